"""Which proposed instructions a session can train: the world model was shown to rank them, the policy reads them, and
the judges can tell at the captured frames that they are not done yet."""
from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

from world_gymnast_ros.adaptation.config import AdaptNodeConfig
from world_gymnast_ros.adaptation.proposals import Dropped, Proposal, Proposals
from world_gymnast_ros.adaptation.rollout import is_success
from world_gymnast_ros.adaptation.trust import released_task
from world_gymnast_ros.errors import BadFrame, BadInstruction, NotTrusted
from world_gymnast_ros.types import Judge, Judgement, Policy, Start, TakesPartialCredit
from world_gymnast_ros.updates.adaptation import Parts, check_released
from world_gymnast_ros.updates.practice_starts import judge_frames

NOT_SHOWN = "the world model was not shown to rank such a task"
NOT_READ = "the policy cannot read it"
DONE = "done already in every captured frame"
NOT_JUDGED = "the judges cannot judge it there"


def keep_trainable(proposals: Proposals, parts: Parts, scene: Sequence[Start], config: AdaptNodeConfig) -> Proposals:
    """Return proposals without those that cannot be trained from the frames and states of `scene`, and why."""
    bad: dict[str, Dropped] = {}
    for proposal in proposals.usable:
        starts = [replace(s, instruction=proposal.instruction) for s in scene]
        if found := _not_shown(proposal, parts, config) or unread(parts.policy, starts[0]) or _unjudged(parts.judge,
                                                                                                       starts):
            bad[proposal.instruction] = found
    return proposals.without(bad)


def _not_shown(proposal: Proposal, parts: Parts, config: AdaptNodeConfig) -> Dropped | None:
    try:
        check_released(parts.release, [proposal.instruction], config.min_release_auc, config.max_false_success)
    except NotTrusted:
        return Dropped(NOT_SHOWN, proposal.instruction)
    return None


def unread(policy: Policy, start: Start) -> Dropped | None:
    """Return why a policy cannot read the instruction of a start, or None: it is asked for one chunk there."""
    try:
        policy.act(start.frame, start.instruction)
    except BadInstruction as error:
        return Dropped(NOT_READ, str(error))
    return None


def _unjudged(judge: Judge, starts: Sequence[Start]) -> Dropped | None:
    verdicts: list[Judgement] = []
    words, why = starts[0].instruction, ""
    for start in starts:  # one by one: captured frames may be of several sizes
        try:
            verdicts += judge_frames(judge, [start])
        except (BadInstruction, BadFrame) as error:
            why = str(error)
    known = [v for v in verdicts if v.score is not None]
    if not known:
        return Dropped(NOT_JUDGED, f"{words}: {why or next((v.detail for v in verdicts if v.detail), 'no verdict')}")
    return Dropped(DONE, words) if all(map(is_success, known)) else None


def give_partial_credit(parts: Parts, sentences: Mapping[str, str]) -> str:
    """Have the judges that are asked in words use the partial-credit sentence of each instruction; return in words what
    came of it, or ''.

    Not for a task that the release table covers: it says how far these judges may be believed as they were asked then.
    """
    free = {words: partly for words, partly in sentences.items()
            if partly and released_task(words, parts.release) not in parts.release}
    measured = sum(map(bool, sentences.values())) - len(free)
    names = parts.judge.take_partial_credit(free) if free and isinstance(parts.judge, TakesPartialCredit) else ()
    said = []
    if free:
        said.append(f"partial credit is asked of {', '.join(names)}" if names else
                    "no judge here takes a sentence about partial credit")
    if measured:
        said.append(f"judges are asked as they were measured, without partial credit, about {measured} instructions")
    return "; ".join(said)
