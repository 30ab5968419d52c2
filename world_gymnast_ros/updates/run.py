"""A run of `world-gymnast iterate`: its settings and its folder, and a round of it, which every stage is given."""
from __future__ import annotations

import dataclasses
import json
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from world_gymnast_ros import seeds
from world_gymnast_ros.adaptation.config import AdaptNodeConfig
from world_gymnast_ros.adaptation.rollout import derive_seed
from world_gymnast_ros.data.episode import Episode
from world_gymnast_ros.data.episode_files import read_starts, write_starts
from world_gymnast_ros.data.labels import LabelSource, labels_by_outcome
from world_gymnast_ros.data.read import read_array_folders
from world_gymnast_ros.errors import BadConfig
from world_gymnast_ros.evaluation.environment import Environment
from world_gymnast_ros.files import write_text
from world_gymnast_ros.loading import load as build
from world_gymnast_ros.objects import ObjectDynamics
from world_gymnast_ros.store import Store
from world_gymnast_ros.types import AdapterRef, Start
from world_gymnast_ros.updates.adaptation import Parts, load_parts
from world_gymnast_ros.updates.behaviour_cloning import Imitation
from world_gymnast_ros.updates.judges import JudgeUpdate
from world_gymnast_ros.updates.real_episodes import PARTS
from world_gymnast_ros.updates.replay_cache import ReplayCache
from world_gymnast_ros.updates.world_model import Margins, UpdateConfig
from world_gymnast_ros.updates.world_model_run import holds_play

METHODS = ("loop", "adaptation_only", "imitation")
OFF = "off"
"""In the place of the geometric judge: the learned one decides alone."""
LAYOUT = 14
"""Of a run's folder and what a round does; a folder begun by another version is refused."""


@dataclass(frozen=True)
class IterateConfig:
    """One run. `horizon_steps`: actions of an imagined episode; `task`: what a release table calls the instruction
    (default: itself); `episodes` real ones a round; `evaluation` true ones after each; `temperature` of exploration;
    `captures`: frames an adaptation starts from; `limit_pairs`: of the sequential test of what is to be deployed (0:
    it is compared by its record alone). `replay`, `old`: folders of play data, in the run's folder if relative, to mix
    in and to check old scenes on; "": there are none."""

    instruction: str
    horizon_steps: int
    task: str = ""
    rounds: int = 3
    episodes: int = 24
    evaluation: int = 40
    temperature: float = 1.2
    captures: int = 16
    limit_pairs: int = 0
    confidence: float = 0.95
    replay: str = ""
    old: str = ""
    seed: int = 0
    update: UpdateConfig = field(default_factory=UpdateConfig)
    judge: JudgeUpdate = field(default_factory=JudgeUpdate)
    imitation: Imitation = field(default_factory=Imitation)
    margins: Margins = field(default_factory=Margins)

    def __post_init__(self) -> None:
        limits = {"rounds": (1, seeds.MAX_ROUNDS), "episodes": (3 * len(PARTS), seeds.MAX_EPISODES),
                  "evaluation": (2, seeds.MAX_EVALUATION), "captures": (1, seeds.MAX_CAPTURES),
                  "horizon_steps": (1, 1000), "limit_pairs": (0, seeds.MAX_EPISODES // 2)}
        for name, (least, most) in limits.items():
            if not least <= getattr(self, name) <= most:
                raise BadConfig(f"{name} is {getattr(self, name)}; give {least} to {most}")


@dataclass(frozen=True)
class State:
    """Where a method stands: folders of world model, learned judge and geometric judge (or OFF), name of the adapter
    ('' for the base), and successes and episodes of that adapter on the arm: `record` of all, `greedy` of those at
    temperature 0."""

    world_model: str
    judge: str
    geometric: str
    adapter: str = ""
    record: tuple[int, int] = (0, 0)
    greedy: tuple[int, int] = (0, 0)

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> State:
        """Read what `asdict` made."""
        values: dict[str, Any] = {k: tuple(v) if isinstance(v, list) else v for k, v in value.items()}
        return cls(**values)

    @property
    def weak(self) -> bool:
        """Whether the adapter fails on the arm more often than not."""
        return 2 * self.record[0] < self.record[1]

    @property
    def judges(self) -> tuple[str, ...]:
        """The names of the judges."""
        return judge_pair(self.judge, self.geometric)


@dataclass(frozen=True)
class EarlierData:
    """Data of earlier scenes. `make(name, folder)` makes it ("replay" or "old") in the run's folder where it is
    missing; `labels` says what its frames show."""

    make: Callable[[str, Path], None]
    labels: LabelSource = labels_by_outcome


def judge_pair(judge: str | Path, geometric: str | Path) -> tuple[str, ...]:
    """Return the names of the learned judge and of the geometric one; '' is the shipped one, OFF none."""
    return (str(judge),) if str(geometric) == OFF else (str(judge), str(geometric) or build.GEOMETRIC)


def drawn_by(geometric: str) -> tuple[str, ...]:
    """Return the judges with which a world model is loaded: the geometric one ('': the shipped one), or, without it
    (OFF), a learned one: which of them makes no difference to what is drawn."""
    return (build.SHIPPED[build.JUDGE],) if geometric == OFF else (geometric or build.GEOMETRIC,)


def objects_of(world_model: str, geometric: str) -> ObjectDynamics | None:
    """Return what finds objects for a world model beside the geometric judge; None where it needs nothing found."""
    return build.object_finder(world_model, drawn_by(geometric))


def cached(path: Path, make: Callable[[], dict[str, Any]]) -> dict[str, Any]:
    """Return the JSON object in `path`; where it is missing, make it and write it whole."""
    if not path.is_file():
        write_text(path, json.dumps(make(), indent=1, default=_plain) + "\n")
    found: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    return found


def _plain(value: Any) -> Any:
    return value.item() if isinstance(value, np.generic) else str(value)


class Run:
    """A run in a folder. `say` prints a line; `now_ns` is the clock that stamps what is stored; `earlier`: where a
    simulator makes earlier data."""

    def __init__(self, config: IterateConfig, adapt: AdaptNodeConfig, environment: Environment, out: Path,
                 say: Callable[[str], None], now_ns: Callable[[], int] = time.time_ns,
                 earlier: EarlierData | None = None) -> None:
        self.config, self.environment, self.instruction = config, environment, config.instruction
        self.adapt = dataclasses.replace(adapt, horizon_steps=config.horizon_steps, horizon_from_task=False)
        self.out, self.say, self.now_ns, self._earlier = out.resolve(), say, now_ns, earlier
        self.replays = ReplayCache(derive_seed(config.seed, 11))
        self.start()  # a wrong checkpoint is refused here, before anything is written, and so is a folder without play
        for name in ("replay", "old"):
            given = Path(getattr(config, name))
            if given.is_absolute():
                holds_play(given, f"--{name}")
        settings = {"layout": LAYOUT, "environment": environment.name, "config": asdict(config), "adapt": asdict(adapt)}
        kept = cached(self.out / "run.json", lambda: settings)
        if kept != json.loads(json.dumps(settings, default=_plain)):
            raise BadConfig(f"{out} holds a run with other settings, or of another version (run.json); name another "
                            "folder, or give its own")

    def start(self) -> State:
        """Return where every method begins."""
        names = build.judge_names(self.adapt.judges)
        geometric = build.geometric_judge(names)
        learned = [name for name in names if name != geometric]
        if len(learned) != 1:
            raise BadConfig(f"judges is '{self.adapt.judges}'; the loop teaches one learned judge, beside at most one "
                            "geometric one")
        if not build.is_learned_judge(learned[0]):
            raise BadConfig(f"judge {learned[0]} learns nothing from recordings but its calibration (`world-gymnast "
                            "judge calibrate`); the loop teaches the learned judge that ships, or one trained like it "
                            f"({build.SHIPPED[build.JUDGE]})")
        return State(str(build.checkpoint_dir(self.adapt.world_model, build.WORLD_MODEL)),
                     str(build.checkpoint_dir(learned[0], build.JUDGE)), geometric or OFF)

    def play(self, name: str) -> Path | None:
        """Return the folder of `replay` or of `old` scenes; None where there is none."""
        given = getattr(self.config, name)
        if given and not Path(given).is_absolute() and self._earlier is not None:
            self._earlier.make(name, self.out / given)
        return self.out / given if given else None

    @property
    def play_labels(self) -> LabelSource:
        """What the frames of earlier data show."""
        return labels_by_outcome if self._earlier is None else self._earlier.labels

    def seen_by(self, name: str) -> str:
        """Return the folder of the judge that knows the camera of `replay` or of `old` scenes: the shipped one for
        play that was made for this run, else the run's first; OFF where the run has none."""
        first = self.start().geometric
        return first if first == OFF or Path(getattr(self.config, name)).is_absolute() else ""

    def captured(self, number: int) -> list[Start]:
        """Return the frames that a round's adaptation starts from: captured once, whatever asks for them."""
        path = self.out / "captures" / f"round-{number}.npz"
        if not path.is_file():
            write_starts(path, [self.environment.reset(s, self.instruction)
                                for s in seeds.captures(self.config.captures, number)])
        return read_starts(path)


@dataclass(frozen=True)
class Round:
    """One round of a method of a run, and where the method stands in it."""

    run: Run
    method: str
    number: int
    state: State

    @property
    def name(self) -> str:
        """What the round's folder is called."""
        return f"round-{self.number}"

    @property
    def where(self) -> Path:
        """The method's folder."""
        return self.run.out / self.method

    @property
    def folder(self) -> Path:
        """The round's folder."""
        return self.where / self.name

    @property
    def store(self) -> Store:
        """The method's adapters."""
        return Store(self.where / "adapters")

    def seed(self, *branch: int) -> int:
        """Return the seed of a part of the round."""
        return derive_seed(self.run.config.seed, self.number, *branch)

    def say(self, text: str) -> None:
        """Print a line about the round."""
        self.run.say(f"{self.method}, round {self.number}: {text}")

    def stage(self, name: str, make: Callable[[Round], dict[str, Any]]) -> dict[str, Any]:
        """Return what a stage came to; it is done where its file is missing."""
        return cached(self.folder / f"{name}.json", lambda: make(self))

    def at(self, **changes: Any) -> Round:
        """Return the round with changes of its state."""
        return dataclasses.replace(self, state=dataclasses.replace(self.state, **changes))

    def episodes(self, *parts: str) -> list[Episode]:
        """Return the real episodes so far in some of PARTS (none named: in all)."""
        return read_array_folders([self.where / part for part in parts or dict.fromkeys(PARTS)])

    def adapter(self) -> AdapterRef | None:
        """Return the stored adapter of the state."""
        return self.store.get(self.state.adapter) if self.state.adapter else None

    def session(self) -> AdaptNodeConfig:
        """Return the adaptation settings with the models of the state."""
        return dataclasses.replace(self.run.adapt, world_model=self.state.world_model, directory=str(self.where),
                                   judges=", ".join(self.state.judges))

    def parts(self) -> Parts:
        """Load the models of the state, the policy with its adapter."""
        parts = load_parts(self.session())
        parts.policy.load_adapter(self.adapter())
        return parts

    def progress(self, label: str = "") -> Callable[[int, int], None]:
        """Return what tells of real episodes when the last one is done."""
        of = label or f"{self.method}, round {self.number}"
        return lambda done, count: self.run.say(f"{of}: {done} of {count} real episodes") if done == count else None


