"""The memory of a session, reported before anything loads, and a refusal where it does not fit.

Weights, adapter and cache are counted from config.json and the headers of the weights; activations are estimated. What
lives at the same time: all weights, the adapter with its optimiser, and the larger of imagining and learning.
"""
from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch

from world_gymnast_ros.adaptation.config import AdaptNodeConfig
from world_gymnast_ros.errors import BadConfig, WorldGymnastError, one_line
from world_gymnast_ros.loading.load import POLICY, SHIPPED, WORLD_MODEL, judge_names, resolve_device, resolve_dtype
from world_gymnast_ros.loading.memory import JudgeSize, PolicySize, WorldSize, judge_size, policy_size, world_size
from world_gymnast_ros.updates.policy_gradient import FULL_SIZE, LoraConfig

GIB = 2**30
ADAPTER_BYTES = {"weights": 4, "gradient": 4, "AdamW": 8, "base, best and newest copy": 12}
"""Of each number of the adapter, which is float32."""
RESERVE = 0.1
"""Of the sum, for the allocator's gaps and the libraries."""
MEMINFO = Path("/proc/meminfo")
CGROUP = Path("/sys/fs/cgroup")


@dataclass(frozen=True)
class Part:
    """One line of the plan. `exact`: counted, not estimated; `group`: parts of one group live at the same time, and of
    several groups the largest counts ("": always)."""

    name: str
    bytes: int
    exact: bool
    group: str = ""


@dataclass(frozen=True)
class MemoryPlan:
    """What a session takes on `device`, and `free` bytes there (None: not known). `unknown`: what is not estimated;
    `unread`: what could not be read, and why; `remedies`: settings that lower it, the most effective first."""

    parts: tuple[Part, ...]
    device: str
    free: int | None
    remedies: tuple[str, ...] = ()
    unknown: tuple[str, ...] = ()
    unread: tuple[str, ...] = ()

    @property
    def needed(self) -> int:
        """Bytes at the fullest moment, the reserve included."""
        groups: dict[str, int] = {}
        for part in self.parts:
            groups[part.group] = groups.get(part.group, 0) + part.bytes
        always = groups.pop("", 0)
        return round((always + max(groups.values(), default=0)) * (1.0 + RESERVE))

    @property
    def fits(self) -> bool:
        """Whether it is not more than what is free."""
        return self.free is None or self.needed <= self.free

    @property
    def text(self) -> str:
        """The plan in lines: each part, the sum, and what is free."""
        lines = [f"memory plan on {self.device} (counted from the files' headers; ~: estimated)"]
        for part in self.parts:
            when = f", while {part.group}" if part.group else ""
            lines.append(f"  {'' if part.exact else '~'}{_size(part.bytes)}  {part.name}{when}")
        lines += [f"    unknown  {why}" for why in (*self.unknown, *self.unread)]
        free = "unknown" if self.free is None else _size(self.free)
        lines.append(f"  ~{_size(self.needed)}  in all at the fullest moment, {RESERVE:.0%} reserve included; free: "
                     f"{free}")
        return "\n".join(lines)

    def check(self) -> None:
        """Raise BadConfig, with what would lower it, where it does not fit."""
        if not self.fits:
            assert self.free is not None
            raise BadConfig(f"the session needs about {_size(self.needed)} on {self.device} and "
                            f"{_size(self.free)} are free; nothing was loaded. Lower it: "
                            f"{'; '.join(self.remedies)}; or end what else runs there. check_memory=false tries it "
                            "all the same")


def memory_plan(config: AdaptNodeConfig, free: int | None = None) -> MemoryPlan:
    """Return the plan of a session; `free` bytes on its device (None: those that are now).

    Nothing is loaded. A part whose files cannot be read is named as unknown: whoever loads it says what is wrong.
    """
    c = config
    device, dtype = resolve_device(c.device), resolve_dtype(c.dtype)
    unread: list[str] = []

    def size_of(what: str, read: Callable[[], Any], otherwise: Any) -> Any:
        try:
            return read()
        except (WorldGymnastError, OSError, KeyError, TypeError, ValueError) as error:
            unread.append(f"{what} ({one_line(error)})")
            return otherwise

    policy: PolicySize = size_of(f"policy {c.policy or SHIPPED[POLICY]}",
                                 lambda: policy_size(c.policy, device, dtype, c.four_bit), PolicySize())
    world: WorldSize = size_of(f"world model {c.world_model or SHIPPED[WORLD_MODEL]}", lambda: world_size(
        c.world_model, c.judges, device, dtype, c.horizon_steps + 1), WorldSize())
    judges = {name: size_of(f"judge {name}", partial(judge_size, name, device, dtype), JudgeSize())
              for name in judge_names(c.judges)}
    lora = lora_settings(c, policy.full_size)
    rows = max(c.copies, min(c.max_batch, c.held_out_copies * max(c.select_groups, c.promotion_groups)))
    parts = [Part("weights of the policy", policy.weights, True),
             Part("weights of the world model", world.weights, True),
             *(Part(f"weights of the judge {name}", size.weights, True) for name, size in judges.items()),
             Part(f"adapter of rank {lora.rank} ({', '.join(ADAPTER_BYTES)})",
                  policy.adapter * lora.rank * sum(ADAPTER_BYTES.values()), True),
             Part(f"cache of {rows} rollouts", rows * world.cache, True, "imagining"),
             Part("world model, policy or judge at work, the largest", max(
                 rows * world.drawing, world.decoding, policy.acting(rows),
                 *(size.looking for size in judges.values())), False, "imagining"),
             Part(f"activations of {lora.micro_chunks} chunks", policy.learning(lora.micro_chunks), False, "learning")]
    if device == "cpu":  # frames are kept where the processor works
        parts.append(Part("frames of a group, four times", 4 * rows * (c.horizon_steps + 1) * world.frame, True,
                          "imagining"))
    return MemoryPlan(tuple(p for p in parts if p.bytes), device, free_bytes(device) if free is None else free,
                      tuple(_remedies(c, policy, world, judges, lora, dtype)),
                      (world.untold,) if world.untold else (), tuple(unread))


def lora_settings(config: AdaptNodeConfig, full_size: bool) -> LoraConfig:
    """Return the learner's part of the settings; what they leave open is as a policy of this size wants it."""
    usual = FULL_SIZE if full_size else LoraConfig()
    rank = config.lora_rank or usual.rank
    return LoraConfig(rank, config.lora_alpha or 2.0 * rank, config.learning_rate or usual.learning_rate, config.epochs,
                      config.minibatch_chunks, config.micro_chunks or usual.micro_chunks, config.clip_low,
                      config.clip_high, usual.kl_coefficient if config.kl_coefficient < 0 else config.kl_coefficient,
                      config.target_kl)


def _remedies(c: AdaptNodeConfig, policy: PolicySize, world: WorldSize, judges: dict[str, JudgeSize], lora: LoraConfig,
              dtype: torch.dtype | None) -> list[str]:
    """Return settings that lower the sum, by how much they may save."""
    found: list[tuple[int, str]] = []
    if policy.full_size and not c.four_bit:
        found.append((round(0.7 * policy.weights), "four_bit=true"))
    if dtype is torch.float32 and policy.full_size:
        found.append((policy.weights // 2, "dtype=bfloat16"))
    if world.weights:
        found.append((world.weights, "a world model on another machine (--world-model http://HOST:PORT)"))
    heaviest = max((size.weights for size in judges.values()), default=0)
    if heaviest:
        found.append((heaviest, "a judge on a server (--judge http://HOST:PORT/v1#MODEL)"))
    if c.copies > 2:
        found.append((c.copies * (world.cache + world.drawing) // 2, f"fewer rollouts at once (copies={c.copies // 2}, "
                      f"max_batch={max(1, min(c.max_batch, c.copies // 2))})"))
    if lora.micro_chunks > 1:
        found.append((policy.learning(lora.micro_chunks) // 2, f"micro_chunks={lora.micro_chunks // 2}"))
    if lora.rank > 4:
        found.append((policy.adapter * lora.rank * 14, f"lora_rank={lora.rank // 2}"))
    return [f"{words} (about {_size(saved)})" for saved, words in sorted(found, reverse=True)[:5] if saved]


def free_bytes(device: str) -> int | None:
    """Return the bytes that are free on a device: of a GPU, or of this machine's memory and this group's limit."""
    if device.startswith("cuda"):
        return int(torch.cuda.mem_get_info(torch.device(device))[0])
    if device != "cpu":
        return None
    limits = [_available(), _allowed()]
    known = [limit for limit in limits if limit is not None]
    return min(known) if known else None


def _available() -> int | None:
    try:
        rows = dict(line.split(":", 1) for line in MEMINFO.read_text().splitlines())
        return int(rows["MemAvailable"].split()[0]) * 1024
    except (OSError, KeyError, ValueError):
        return None


def _allowed() -> int | None:
    """Return what this control group may still take; files that are only cached there do not count."""
    try:
        rows = dict(line.split() for line in (CGROUP / "memory.stat").read_text().splitlines())
        used = int((CGROUP / "memory.current").read_text()) - int(rows["file"]) + int(rows["shmem"])
        return max(0, int((CGROUP / "memory.max").read_text()) - used)
    except (OSError, KeyError, ValueError):  # "max", or no such group
        return None


def _size(count: float) -> str:
    """Return bytes in words."""
    return f"{count / GIB:.2f} GiB" if count >= GIB / 10 else f"{count / 2**20:.1f} MiB"

