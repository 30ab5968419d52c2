"""What a vision-language judge is asked, and what its answer means: one rule for a model here and one on a server.

It sees a fixed number of frames, evenly spaced from the first to the last, and answers with one label. The score is the
probability of the label for success. With a partial-credit sentence there are three labels: nothing, partly, done;
the score stays the probability of *done*, and what was reached partly goes into `Judgement.progress`, so that it can
tell failures apart and never makes a success of one.

The two questions have the form of transformers' decision pipeline (`noul` and `score`), and so its probabilities.
"""
from __future__ import annotations

import copy
import dataclasses
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar, Generic, Self, TypeVar

import numpy as np

from world_gymnast_ros.config import from_mapping, number, text
from world_gymnast_ros.errors import BadCheckpoint, BadConfig, BadFrame, BadInstruction
from world_gymnast_ros.files import write_text
from world_gymnast_ros.images import resize_rgb
from world_gymnast_ros.instructions import normalise
from world_gymnast_ros.models.checkpoint import CONFIG, read_config
from world_gymnast_ros.types import F32, F64, SUCCESS_THRESHOLD, U8, Judgement

YES_NO = ("Yes", "No")
LEVELS = ("A", "B", "C")
"""Nothing, partly, done."""
NOTHING = "The instruction is not fulfilled, and little was done towards it."
DONE = "The instruction is fulfilled."
CONTEXT = ("The {frames} images are frames of one attempt of a robot arm, in the order of time. They may come from a "
           "video model and be blurred. The robot was told: {instruction}")
QUESTION = "At the last image, has the robot done what it was told?"
SCENE = "The image shows what the camera of a robot arm sees. The robot is told: {instruction}"
POSSIBLE = ("Are all objects that this is about visible in the image, as real and whole things, so that the robot "
            "could still do it?")
MAX_LOGIT = 30.0


@dataclass(frozen=True)
class AskConfig:
    """How a judge is asked; `config.json` of a judge's folder holds what differs from this.

    `partial_credit`: instruction, or "*" for any other, and the sentence that says what counts as half done.
    """

    model_type: ClassVar[str] = ""
    model: str = text("", "folder or hub name of an image-text-to-text model; of a server http://HOST:PORT/v1#MODEL")
    name: str = text("", "what the judge is called; empty: what its model is called")
    frames: int = number(8, 1, 64, "frames that it sees, evenly spaced from the first to the last")
    frame_px: int = number(256, 16, 2048, "height to which every frame is brought: the same in calibration and in use")
    context: str = text(CONTEXT, "what it is told first; {frames} and {instruction} are filled in")
    question: str = text(QUESTION, "what it is asked")
    logit_scale: float = number(1.0, 1e-3, 1e3, "calibrated logit = logit_scale * logit + logit_offset")
    logit_offset: float = number(0.0, -1e3, 1e3, "see logit_scale")
    partial_credit: Mapping[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if "{instruction}" not in self.context:
            raise BadConfig(f"context is {self.context!r}; it must hold {{instruction}}, or the judge is not told what "
                            "the robot was to do")
        for name, sentence in self.partial_credit.items():
            if not isinstance(sentence, str) or not sentence.strip():
                raise BadConfig(f"partial_credit of {name!r} is {sentence!r}; give a sentence that says what counts as "
                                "half done, or leave it out")

    @classmethod
    def from_dict(cls, values: Mapping[str, Any], source: str = "") -> Self:
        """Build from what `config.json` holds. Raises BadConfig for an unknown key or a value out of range."""
        plain = {k: v for k, v in values.items() if k not in ("model_type", "partial_credit")}
        partly = values.get("partial_credit", {})
        if not isinstance(partly, Mapping):
            raise BadConfig(f"{source}: partial_credit is {partly!r}; give an object of instruction to sentence")
        return dataclasses.replace(from_mapping(cls, plain, source), partial_credit=dict(partly))

    @classmethod
    def read(cls, folder: Path) -> Self:
        """Read a judge's folder. Raises BadCheckpoint or BadConfig."""
        config = cls.from_dict(read_config(folder, cls.model_type), str(folder / CONFIG))
        if not config.model:
            raise BadCheckpoint(f"{folder / CONFIG} names no model; add \"model\"")
        return config

    def to_dict(self) -> dict[str, Any]:
        """Return what `config.json` holds."""
        return {"model_type": self.model_type, **dataclasses.asdict(self)}

    def save(self, folder: Path) -> None:
        """Write a judge's folder."""
        write_text(folder / CONFIG, json.dumps(self.to_dict(), indent=2) + "\n")

    def credit(self, instruction: str) -> str:
        """Return the partial-credit sentence of an instruction; '' where there is none."""
        for form, sentence in self.partial_credit.items():
            if normalise(form) == normalise(instruction):
                return sentence
        return self.partial_credit.get("*", "")

    def labels(self, instruction: str) -> tuple[str, ...]:
        """Return the labels that are answered with."""
        return LEVELS if self.credit(instruction) else YES_NO

    def prompt(self, instruction: str, frames: int) -> str:
        """Return the text behind `frames` images. Raises BadInstruction for an empty instruction."""
        if not instruction.strip():
            raise BadInstruction("the instruction is empty; say what the arm shall do, e.g. 'reach the red block'")
        context = self.context.replace("{frames}", str(frames)).replace("{instruction}", instruction.strip())
        partly = self.credit(instruction)
        if not partly:
            return f"{context}\n\n{self.question}\nAnswer {YES_NO[0]} or {YES_NO[1]} only."
        levels = "\n".join(f"{letter}. {level}" for letter, level in zip(LEVELS, (NOTHING, partly, DONE), strict=True))
        return (f"{context}\n\n{self.question}\n{levels}\nAnswer with the letter of the level that fits best "
                f"({LEVELS[0]} to {LEVELS[-1]}) only.")

    def rows(self, frames: int) -> list[int]:
        """Return which of the so many frames of a rollout are shown."""
        shown: list[int] = np.unique(np.linspace(0, frames - 1, self.frames).round().astype(int)).tolist()
        return shown

    def pick(self, rollouts: U8) -> U8:
        """Return the frames that are shown, uint8 (G, n, h, w, 3), of rollouts uint8 (G, T+1, H, W, 3)."""
        if rollouts.ndim != 5 or rollouts.dtype != np.uint8 or rollouts.shape[-1] != 3 or 0 in rollouts.shape[1:]:
            raise BadFrame(f"rollouts must be uint8 (G, T+1, H, W, 3), got {rollouts.dtype} {rollouts.shape}")
        rows = self.rows(rollouts.shape[1])
        height, width = rollouts.shape[2:4]
        size = (self.frame_px, max(1, round(width * self.frame_px / height)))
        return resize_rgb(rollouts[:, rows], size)

    def judge(self, logs: F64, detail: str = "", votes: Sequence[float] = ()) -> Judgement:
        """Return the judgement of log-probabilities float64 (labels,) that need not be normalised, in the order of
        `labels`; not finite: no verdict."""
        logit = success_logit(logs)
        if not math.isfinite(logit):
            return Judgement(None, detail=detail or "the answer's probabilities are not finite")
        x = min(MAX_LOGIT, max(-MAX_LOGIT, self.logit_scale * logit + self.logit_offset))
        share = shares(logs)
        return Judgement(score=1.0 / (1.0 + math.exp(-x)), votes=tuple(votes), detail=detail,
                         progress=float(0.5 * share[1] + share[2]) if len(logs) == len(LEVELS) else None)


C = TypeVar("C", bound=AskConfig)


class AskedJudge(Generic[C]):
    """What every judge that is asked has in common: its settings, and what follows from them."""

    config: C
    name: str

    @property
    def frame_size(self) -> tuple[int, int]:
        """(H, W) to which recorded frames are best read, px."""
        return self.config.frame_px, self.config.frame_px

    @property
    def threshold(self) -> float:
        """Above this score it predicts success."""
        return SUCCESS_THRESHOLD

    @property
    def tasks(self) -> Mapping[str, Sequence[str]]:
        """It knows no task by a name: any sentence is read."""
        return {}

    def pick(self, rollouts: U8) -> U8:
        """Return the frames that it looks at, uint8 (G, n, h, w, 3), of rollouts uint8 (G, T+1, H, W, 3)."""
        return self.config.pick(rollouts)

    def looks_at(self, frames: int) -> list[int]:
        """Return which of the so many frames of a rollout it looks at."""
        return self.config.rows(frames)

    def save(self, directory: str | Path) -> None:
        """Write a judge's folder: the settings, and where the model is; neither the model nor a key is copied."""
        self.config.save(Path(directory))

    def take_partial_credit(self, sentences: Mapping[str, str]) -> tuple[str, ...]:
        """Ask about these instructions with the sentence of each that says what counts as half done; one that the
        judge's own settings name for an instruction stays. Returns the judge's name."""
        own = self.config.partial_credit
        known = {normalise(form) for form in own}
        more = {words: partly for words, partly in sentences.items() if normalise(words) not in known}
        self.config = dataclasses.replace(self.config, partial_credit={**own, **more})
        return (self.name,)

    def possible(self, images: U8, instruction: str) -> list[Judgement]:
        """Return of each image uint8 (G, H, W, 3), by itself, the probability that the instruction can be carried out
        in the scene that it shows; the calibration for success is not applied."""
        other: Any = copy.copy(self)
        other.config = dataclasses.replace(self.config, context=SCENE, question=POSSIBLE, partial_credit={},
                                           logit_scale=1.0, logit_offset=0.0)
        found: list[Judgement] = other.score(images[:, None], instruction)
        return found

    def calibrate(self, scale: float, offset: float) -> None:
        """Set logit scale and offset."""
        self.config = dataclasses.replace(self.config, logit_scale=scale, logit_offset=offset)


def shares(logs: F64) -> F64:
    """Return the softmax of (labels,)."""
    with np.errstate(invalid="ignore"):
        weights = np.exp(logs - logs.max())
    return np.asarray(weights / weights.sum(), np.float64)


def success_logit(logs: F64) -> float:
    """Return log(p / (1 - p)) of the label for success: the first of Yes, No; the last of three levels. NaN where the
    log-probabilities say nothing."""
    done = 0 if len(logs) == len(YES_NO) else len(logs) - 1
    others = np.delete(logs, done)
    if np.isnan(logs).any() or np.isposinf(logs).any() or np.isneginf(logs).all():
        return math.nan
    top = others.max()
    rest = -math.inf if np.isneginf(top) else float(top + np.log(np.exp(others - top).sum()))
    return float(np.clip(logs[done] - rest, -MAX_LOGIT, MAX_LOGIT))


def no_verdicts(count: int, detail: str) -> list[Judgement]:
    """Return so many judgements without a verdict."""
    return [Judgement(None, detail=detail)] * count


def logits_of(judged: Sequence[F64 | None]) -> F32:
    """Return uncalibrated logits float32 (G,); NaN where there is no verdict."""
    return np.array([math.nan if logs is None else success_logit(logs) for logs in judged], np.float32)
