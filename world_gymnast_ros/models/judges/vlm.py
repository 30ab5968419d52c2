"""`VLMJudge`: any transformers image-text-to-text model as a judge, read out as the probability of a label.

No text is generated: one forward pass, and the logits of the labels at the place of the answer. A whole group is judged
in batches of rollouts, which have one instruction and one frame size, and so prompts of one length: no padding.
"""
from __future__ import annotations

import dataclasses
import inspect
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch
from PIL import Image

from world_gymnast_ros.config import number
from world_gymnast_ros.errors import BadCheckpoint, BadFrame, BadInstruction
from world_gymnast_ros.models import hub
from world_gymnast_ros.models.checkpoint import CONFIG
from world_gymnast_ros.models.judges.asking import LEVELS, YES_NO, AskConfig, AskedJudge, logits_of, no_verdicts
from world_gymnast_ros.models.judges.vlm_processor import find_model, load_model, load_processor
from world_gymnast_ros.types import F32, F64, U8, Judgement, RolloutFacts


@dataclass(frozen=True)
class VLMConfig(AskConfig):
    """Settings of a VLMJudge."""

    model_type: ClassVar[str] = "vlm_judge"
    batch: int = number(4, 1, 1024, "rollouts in one forward pass; lower it when memory runs out")
    min_label_share: float = number(0.01, 0.0, 1.0, "where the labels have less of the probability, the model answers "
                                    "something else, and there is no verdict")


class VLMJudge(AskedJudge[VLMConfig]):
    """Implements `types.Judge`."""

    def __init__(self, model: Any, processor: Any, config: VLMConfig) -> None:
        self.model, self.processor, self.config = model, processor, config
        self.name = config.name or Path(config.model).name
        self.device = next(model.parameters()).device
        self.dtype = next(model.parameters()).dtype
        self._ids: dict[tuple[str, ...], list[int]] = {YES_NO: label_ids(processor.tokenizer, YES_NO)}
        if config.partial_credit:
            self._ids[LEVELS] = label_ids(processor.tokenizer, LEVELS)
        self._control = sorted({str(t) for t in processor.tokenizer.all_special_tokens}
                               | {str(t) for t in processor.tokenizer.get_added_vocab()}, key=len, reverse=True)
        template = processor.chat_template
        self._no_thinking = {"enable_thinking": False} if "enable_thinking" in str(template) else {}
        self._last_only = ({"logits_to_keep": 1}
                           if "logits_to_keep" in inspect.signature(type(model).forward).parameters else {})

    @classmethod
    def from_pretrained(cls, where: str | Path, device: str = "cpu", dtype: torch.dtype | None = None,
                        **settings: Any) -> VLMJudge:
        """Load a model's folder or hub name, or a judge's folder (`VLMConfig.save`) that names one.

        `dtype`: by default bfloat16 on a GPU and float32 on the CPU. `settings`: fields of VLMConfig, which win.
        Raises BadCheckpoint, BadConfig or NotInstalled.
        """
        path = Path(where)
        own = (path / CONFIG).is_file() and f'"{VLMConfig.model_type}"' in (path / CONFIG).read_text(encoding="utf-8")
        config = VLMConfig.read(path) if own else VLMConfig(model=str(path.resolve()) if path.is_dir() else str(where))
        config = dataclasses.replace(config, **settings)
        folder = find_model(named_model(config, path))
        number_type = dtype or (torch.bfloat16 if str(device).startswith("cuda") else torch.float32)
        return cls(load_model(folder, str(device), number_type), load_processor(folder), config)

    def take_partial_credit(self, sentences: Mapping[str, str]) -> tuple[str, ...]:
        """See `AskedJudge`. BadCheckpoint where the levels are no single tokens of the model; then nothing changes."""
        self._ids[LEVELS] = label_ids(self.processor.tokenizer, LEVELS)
        return super().take_partial_credit(sentences)

    def success_logits(self, frames: U8, instruction: str) -> F32:
        """Return uncalibrated logits float32 (G,) of success; NaN where there is no verdict."""
        return logits_of([logs for logs, _ in self._asked(frames, instruction)])

    def score(self, frames: U8, instruction: str, facts: RolloutFacts | None = None) -> list[Judgement]:
        """Judge rollouts uint8 (G, T+1, H, W, 3) by their frames alone.

        What goes wrong inside becomes *no verdict*, with the reason. A bad instruction or frame array is the caller's
        mistake and is raised.
        """
        try:
            asked = self._asked(frames, instruction)
        except (BadInstruction, BadFrame):
            raise
        except Exception as error:  # memory, device, numerics: none may turn into a score
            return no_verdicts(len(frames), f"{self.name}: {type(error).__name__}: {error}")
        return [Judgement(None, detail=f"{self.name}: {why}") if logs is None else self.config.judge(logs)
                for logs, why in asked]

    def _asked(self, rollouts: U8, instruction: str) -> list[tuple[F64 | None, str]]:
        """Return log-probabilities float64 (labels,) of each rollout, or None and why there are none."""
        held = next((token for token in self._control if token in instruction), "")
        if held:
            raise BadInstruction(f"the instruction {instruction!r} holds {held!r}, which steers the judge's model; say "
                                 "it in words")
        frames = self.config.pick(rollouts)
        labels = self.config.labels(instruction)
        text = self.config.prompt(instruction, frames.shape[1])
        ids = self._ids[labels]
        out: list[tuple[F64 | None, str]] = []
        for first in range(0, len(frames), self.config.batch):
            logs = self._label_logs(frames[first:first + self.config.batch], text, ids)
            out += [self._checked(row, labels) for row in logs]
        return out

    def _checked(self, logs: F64, labels: Sequence[str]) -> tuple[F64 | None, str]:
        if not np.isfinite(logs).all():
            return None, "the model gave numbers that are not finite"
        share = float(np.exp(logs).sum())
        if share < self.config.min_label_share:
            return None, (f"the model answers something else: {', '.join(labels)} have {share:.2%} of the probability, "
                          f"min_label_share is {self.config.min_label_share:.2%}; is it instruction-tuned, and made to "
                          "answer at once?")
        return logs, ""

    def _label_logs(self, frames: U8, text: str, ids: Sequence[int]) -> F64:
        """Return log-probabilities over the whole vocabulary float64 (G, labels) of the answer's first token."""
        talks = [[{"role": "user", "content": [*({"type": "image", "image": Image.fromarray(rgb)} for rgb in rollout),
                                               {"type": "text", "text": text}]}] for rollout in frames]
        inputs = self.processor.apply_chat_template(talks, add_generation_prompt=True, tokenize=True, return_dict=True,
                                                    return_tensors="pt", **self._no_thinking)
        inputs = inputs.to(self.device, self.dtype)
        with torch.inference_mode():
            logits = self.model(**inputs, use_cache=False, **self._last_only).logits[:, -1].float()
            logs = torch.log_softmax(logits, -1)[:, list(ids)]
        return np.asarray(logs.cpu().numpy(), np.float64)


def named_model(config: AskConfig, folder: Path) -> Path | str:
    """Return where the model of a judge's folder is: beside the settings, where that exists, else as it is named."""
    beside = folder / config.model
    return beside if beside.is_dir() else config.model


def model_files(where: str | Path) -> list[Path]:
    """Return the files that decide what a model answers: weights, settings, tokenizer."""
    folder = find_model(where)
    names = hub.weight_files(folder)[0]
    return [folder / name for name in names] + sorted(p for p in folder.iterdir() if p.suffix in (".json", ".jinja"))


def label_ids(tokenizer: Any, labels: Sequence[str]) -> list[int]:
    """Return the token of each label. Raises BadCheckpoint where a label is not one token of its own."""
    found = list(tokenizer(list(labels), add_special_tokens=False)["input_ids"])
    ids = [tokens[0] for tokens in found if len(tokens) == 1 and tokens[0] != tokenizer.unk_token_id]
    if len(set(ids)) != len(labels):
        raise BadCheckpoint(f"the labels {', '.join(labels)} are not single tokens of the model's tokenizer; it cannot "
                            "be read as a judge")
    return ids
