"""Why an arm was put on hold for good, as a name that programs compare; the sentence beside it is for people."""
from __future__ import annotations

from enum import Enum


class HoldCause(Enum):
    """Cause of a hold that only a person ends, by arming again. The value is the text that an operator reads."""

    NONE = ""
    ANOTHER_CONVENTION = "the policy speaks another convention than Bridge's"
    STEP_LIMITED = "the policy asks for more than the longest step, action after action"
    CLAMPED = "the guard cuts action after action: the policy presses against a limit"
    POLICY_NOT_READY = "the policy's side says that it must not act"
    TASK_DONE = "the task is done; arm to go on"
    GOING_HOME = "going home"
    AT_HOME = "at home; arm to go on"
    GOING_TO_CAPTURE = "going to the capture pose"
    AT_CAPTURE = "at the capture pose; capture, then arm to go on"
    OTHER = "see the reason"
