"""`world-gymnast iterate`: the closed loop in an environment, round after round, beside two baselines at equal budget.

    a round   two thirds of the real episodes, explored with the present adapter -> what the measured joints tell of
              the set-up is learned (camera, what stops the arm), for world model and judge -> both learn from the
              episodes, each promoted only if its release check says so -> the real successes so far are cloned ->
              adaptation in the dream, held to those successes; it starts from the clone where the present adapter
              fails more often than not, or where more of the clone's dreams succeed -> the last third of the real
              episodes: what the dream promoted, else the clone, is tried on the arm as it will be deployed, without
              chance, and dropped where it did not do well enough there, or (`limit_pairs`) where pairs of trials with
              the present adapter, in random order, do not speak for it -> true evaluation

Methods: `loop`, all of it; `unchanged`, adaptation alone, in the world model and judge that the run began with;
`imitation` (Iter-SFT), cloning the successes among the real episodes, with no dream. All begin with the same policy
and are evaluated on the same episodes; those that learn from real episodes take as many a round, with the same seeds.

The environment is the robot with its operator or the twin: this module knows neither. A run is a folder. Every stage
leaves a file when it is done, and every real episode does; what is there is not done again, so a stopped run goes on
where it was. Seeds and settings are in `run.json`; a folder of another run is refused.
"""
from __future__ import annotations

import dataclasses
import json
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from world_gymnast_ros import seeds
from world_gymnast_ros.adaptation.config import AdaptNodeConfig
from world_gymnast_ros.adaptation.rollout import derive_seed, imagine, is_success
from world_gymnast_ros.data.episode import Episode
from world_gymnast_ros.data.episode_files import read_starts, write_episodes, write_starts
from world_gymnast_ros.data.labels import LabelSource, labels_by_outcome
from world_gymnast_ros.data.read import read_array_folders, read_arrays, read_episodes
from world_gymnast_ros.errors import BadConfig
from world_gymnast_ros.evaluation.environment import Environment
from world_gymnast_ros.evaluation.replay import Replays, replay_episodes
from world_gymnast_ros.files import sha256_file, write_text
from world_gymnast_ros.loading import load as build
from world_gymnast_ros.loading.release import write_release
from world_gymnast_ros.models.checkpoint import WEIGHTS
from world_gymnast_ros.objects import ObjectDynamics, drawn_with
from world_gymnast_ros.statistics import chance_better, wilson
from world_gymnast_ros.store import Store
from world_gymnast_ros.types import AdapterRef, Start
from world_gymnast_ros.updates.adaptation import Parts, load_parts, lora_config, run_session
from world_gymnast_ros.updates.behaviour_cloning import Imitation, imitate
from world_gymnast_ros.updates.judges import (
    JUDGE,
    SETTINGS,
    JudgeUpdate,
    decide_judge,
    update_judge,
    update_pair,
)
from world_gymnast_ros.updates.policy_gradient import trainable
from world_gymnast_ros.updates.real_episodes import PARTS, collect, deal, successes
from world_gymnast_ros.updates.validation import validate
from world_gymnast_ros.updates.world_model import Margins, UpdateConfig, check_updatable, parent_name, put_version
from world_gymnast_ros.updates.world_model_run import Data, holds_play, play_folder, update

METHODS = ("loop", "unchanged", "imitation")
NOT_WORSE, BETTER = 0.2, 0.8
"""How likely a candidate must be better than the present adapter, by what either did on the arm, to follow. What the
dream promoted must not be clearly worse; nor must a clone of the real successes where more of its dreams succeed, or
while there is no adapter yet, or one that fails more often than not: imitation lifts what has not learned this scene.
Any other clone must be better."""
LIKELY = 0.8
"""How sure the dream must be that what it promotes in the loop is better at all: the arm tries it before it follows."""
DREAMS = 48
"""About how many tell whether adaptation begins at the present adapter or at a clone, spread over captured frames."""
OFF = "off"
"""In the place of the geometric judge: the learned one decides alone."""
LAYOUT = 12
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
    """Where a method stands: folders of world model and judges (`second` may be "off"), name of the adapter ('' for
    the base), and successes and episodes of that adapter on the arm: `record` of all, `tried` of those without chance.
    """

    world_model: str
    judge: str
    second: str
    adapter: str
    record: tuple[int, int] = (0, 0)
    tried: tuple[int, int] = (0, 0)

    @property
    def weak(self) -> bool:
        """Whether the adapter fails on the arm more often than not."""
        return 2 * self.record[0] < self.record[1]


@dataclass(frozen=True)
class EarlierData:
    """Data of earlier scenes. `make(name, folder)` makes it ("replay" or "old") in the run's folder where it is
    missing; `labels` says what its frames show."""

    make: Callable[[str, Path], None]
    labels: LabelSource = labels_by_outcome


def named_pair(judge: str | Path, second: str | Path) -> tuple[str, ...]:
    """Return the names of the learned judge and of the one that measures; '' is the shipped one, OFF none."""
    return (str(judge),) if str(second) == OFF else (str(judge), str(second) or build.GEOMETRIC)


def objects_of(second: str) -> ObjectDynamics:
    """Return what finds objects for a world model beside the geometric judge (OFF: the shipped one)."""
    return build.load_objects("" if second == OFF else second)


def once(path: Path, make: Callable[[], dict[str, Any]]) -> dict[str, Any]:
    """Return the JSON object in `path`; where it is missing, make it and write it whole."""
    if not path.is_file():
        write_text(path, json.dumps(make(), indent=1, default=_plain) + "\n")
    found: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    return found


def compare(record: tuple[int, int], present: State, dreamed: bool, preferred: bool = False) -> dict[str, Any]:
    """Say whether a candidate follows `present`, by its own successes and trials on the arm (`record`).

    Both are compared as they acted without chance; a base that only explored so far, by what it did then. `dreamed`:
    the dream promoted the candidate; else it is a clone, `preferred` where more of its dreams succeed.
    """
    rival = present.tried if present.tried[1] else present.record
    chance = round(chance_better(*rival, *record), 6)
    asked = NOT_WORSE if dreamed or preferred or present.weak or not present.adapter else BETTER
    name = "what the dream promoted" if dreamed else "a clone of the real successes"
    return {"dreamed": dreamed, "chance": chance, "used": chance >= asked, "message": (
        f"{name} succeeded in {record[0]} of {record[1]}, the present adapter in {rival[0]} of {rival[1]}: better with "
        f"a chance of {chance:.2f}, asked for are {asked:g}")}


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
        self.start()  # a wrong checkpoint is refused here, before anything is written, and so is a folder without play
        for name in ("replay", "old"):
            given = Path(getattr(config, name))
            if given.is_absolute():
                holds_play(given, f"--{name}")
        settings = {"layout": LAYOUT, "environment": environment.name, "config": asdict(config), "adapt": asdict(adapt)}
        kept = once(self.out / "run.json", lambda: settings)
        if kept != json.loads(json.dumps(settings, default=_plain)):
            raise BadConfig(f"{out} holds a run with other settings, or of another version (run.json); name another "
                            "folder, or give its own")
        self._figures: dict[tuple[str, str, str, str], Replays] = {}
        self._dreams: dict[tuple[str, str, str], list[Any]] = {}

    # ---- what all methods share ---------------------------------------------------------------------------------

    def start(self) -> State:
        """Return where every method begins."""
        names = build.judge_names(self.adapt.judges)
        second = build.geometric_judge(names)
        learned = [name for name in names if name != second]
        if len(learned) != 1:
            raise BadConfig(f"judges is '{self.adapt.judges}'; the loop teaches one learned judge, beside at most one "
                            "that measures")
        return State(str(build.checkpoint_dir(self.adapt.world_model, build.WORLD_MODEL)),
                     str(build.checkpoint_dir(learned[0], build.JUDGE)), second or OFF, "")

    def play(self, name: str) -> Path | None:
        """Return the folder of `replay` or of `old` scenes; None where there is none."""
        given = getattr(self.config, name)
        if given and not Path(given).is_absolute() and self._earlier is not None:
            self._earlier.make(name, self.out / given)
        return self.out / given if given else None

    def seen_by(self, name: str) -> str:
        """Return the folder of the judge that knows the camera of `replay` or of `old` scenes: the shipped one for
        play that was made for this run, else the run's first."""
        return self.start().second if Path(getattr(self.config, name)).is_absolute() else ""

    def parts(self, method: str, state: State) -> Parts:
        """Load the models of `state`, the policy with its adapter."""
        parts = load_parts(self.session_config(method, state))
        parts.policy.load_adapter(self.adapter(method, state))
        return parts

    def session_config(self, method: str, state: State) -> AdaptNodeConfig:
        """Return the adaptation settings with the models of `state`."""
        return dataclasses.replace(self.adapt, world_model=state.world_model,
                                   judges=", ".join(named_pair(state.judge, state.second)),
                                   directory=str(self.out / method))

    def adapter(self, method: str, state: State) -> AdapterRef | None:
        """Return the stored adapter of `state`."""
        return Store(self.out / method / "adapters").get(state.adapter) if state.adapter else None

    def evaluate(self, parts: Parts, adapter: AdapterRef | None, seed: int, out: Path, dream: bool = True
                 ) -> dict[str, Any]:
        """Measure the policy with `adapter`: true success; with `dream`, imagined success from the same first frames,
        and the true actions replayed in the dream: how many failures pass for successes."""
        played = collect(self.environment, parts.policy, adapter, seeds.EVALUATION, self.config.evaluation,
                         self.instruction, 0.0, out.with_suffix(""), self.progress("evaluation"))
        write_episodes(out, played)
        success = [bool(e.success) for e in played]
        true = wilson(sum(success), len(success))
        if not dream:
            return {"true": asdict(true), "outcomes": success}
        parts.policy.load_adapter(adapter)
        starts = [dataclasses.replace(e.start(), instruction=self.instruction) for e in played]
        claims = self.imagined(parts, starts, 32, lambda i: derive_seed(seed, i))
        replays = replay_episodes(parts.world_model, parts.judge, read_arrays(out), derive_seed(seed, 7))
        summary = replays.summary()
        imagined = wilson(sum(claims), len(claims))
        return {"true": asdict(true), "imagined": asdict(imagined),
                "false_success": [summary["false_success"], summary["false_success_low"],
                                  summary["false_success_high"], summary["failures"]],
                "replay": summary, "outcomes": success}

    def imagined(self, parts: Parts, starts: Sequence[Start], batch: int, seed_of: Callable[[int], int]) -> list[bool]:
        """Imagine the policy as it stands once from each start, `batch` at a time, the noise of the batch that begins
        at start i from `seed_of(i)`; return which of them the judges call a success."""
        groups = [imagine(parts.policy, parts.world_model, parts.judge, starts[i:i + batch], 1,
                          self.config.horizon_steps, self.adapt.held_out_temperature, seed_of(i),
                          judge_every_chunks=0) for i in range(0, len(starts), batch)]
        return [is_success(j) for group in groups for j in group.judgements]

    # ---- rounds -------------------------------------------------------------------------------------------------

    def method(self, method: str) -> list[dict[str, Any]]:
        """Run all rounds of a method; return its rows, round 0 being the start."""
        state = self.start()
        if method == "loop":  # refused before a real episode is run, not at the first judge
            check_updatable(state.world_model)

        def begin() -> dict[str, Any]:
            self.say("round 0: evaluating the start")
            return {"round": 0, "state": asdict(state), "evaluation": self.evaluate(
                self.parts(method, state), None, derive_seed(self.config.seed, 0), self.out / "round-0.npz")}
        rows = [once(self.out / "round-0.json", begin)]
        for number in range(1, self.config.rounds + 1):
            rows.append(self.round(method, number, state))
            state = State(**rows[-1]["state"])
        return rows

    def round(self, method: str, number: int, state: State) -> dict[str, Any]:
        """Run one round from `state`; every stage is skipped where its file is there."""
        folder = self.out / method / f"round-{number}"
        row: dict[str, Any] = {"round": number, "method": method}
        began = time.monotonic()
        if method != "unchanged":  # which has no use for them
            real = row["real"] = once(folder / "real.json", lambda: self.real(method, number, state))
            wins, count = state.record
            state = dataclasses.replace(state, record=(wins + real["successes"], count + real["episodes"]))
        if method == "loop":
            row["setup"] = once(folder / "setup.json", lambda: self.setup(folder, number, state))
            state = dataclasses.replace(state, second=row["setup"]["second"])
            row["world_model"] = once(folder / "world_model.json", lambda: self.world_model(folder, number, state))
            state = dataclasses.replace(state, world_model=row["world_model"]["use"])
            row["judge"] = once(folder / "judge.json", lambda: self.judge(folder, number, state))
            state = dataclasses.replace(state, judge=row["judge"]["use"], second=row["judge"]["second"])
            row["clone"] = once(folder / "clone.json", lambda: self.imitation(method, number, state))
            clone = row["clone"]["adapter"]
            row["begin"] = once(folder / "begin.json", lambda: self.begin(number, state, clone))
            begin = dataclasses.replace(state, adapter=row["begin"]["adapter"])
            row["learning"] = once(folder / "learning.json", lambda: self.adaptation(method, number, begin))
            row["trial"] = once(folder / "trial.json", lambda: self.trial(
                number, state, row["learning"]["adapter"], clone, row["begin"]["preferred"]))
            state = dataclasses.replace(state, adapter=row["trial"]["adapter"], record=tuple(row["trial"]["record"]),
                                        tried=tuple(row["trial"]["without_chance"]))
        else:
            learn = self.imitation if method == "imitation" else self.adaptation
            row["learning"] = once(folder / "learning.json", lambda: learn(method, number, state))
            state = dataclasses.replace(state, adapter=row["learning"]["adapter"] or state.adapter, record=(0, 0),
                                        tried=(0, 0))
        row["evaluation"] = once(folder / "evaluation.json", lambda: self.evaluate(
            self.parts(method, state), self.adapter(method, state), derive_seed(self.config.seed, number, 1),
            folder / "evaluation.npz", method != "imitation"))
        row["state"] = asdict(state)
        e = row["evaluation"]
        dream = f", imagined {e['imagined']['value']:.3f}, false successes {e['false_success'][0]:.3f} of " \
                f"{e['false_success'][3]}" if "imagined" in e else ""
        self.say(f"{method}, round {number}: true {e['true']['value']:.3f}{dream}; {time.monotonic() - began:.0f} s")
        return row

    def real(self, method: str, number: int, state: State) -> dict[str, Any]:
        """Explore with the present adapter. The loop keeps a third of the round's episodes for `trial`."""
        count = self.config.episodes
        count -= count // 3 if method == "loop" else 0
        wins = self.on_arm(method, number, state, 0, count, self.config.temperature)
        self.say(f"{method}, round {number}: {wins} of {count} explored real episodes succeeded")
        return {"episodes": count, "successes": wins, "first_seed": seeds.real(self.config.seed, number)[0]}

    def begin(self, number: int, state: State, clone: str) -> dict[str, Any]:
        """Say whether adaptation begins at the present adapter of `state` or at a clone of the real successes ('' for
        none): at that of an adapter which fails more often than not; else where more dreams of the clone succeed.

        Both are imagined from the same captured frames, under the same noise. A clone has never seen the dream, the
        present adapter may have learned in it, so a dream that flatters does not flatter the clone.
        """
        if not clone or state.weak:
            message = "the present adapter fails more often than not" if clone else "no success to imitate"
            return {"adapter": clone or state.adapter, "preferred": False, "message": message}
        parts, starts = self.parts("loop", state), self.captured(number)
        starts = starts * -(-DREAMS // len(starts))
        wins = []
        for adapter in (state.adapter, clone):
            parts.policy.load_adapter(self.adapter("loop", dataclasses.replace(state, adapter=adapter)))
            wins.append(sum(self.imagined(parts, starts, 16,
                                          lambda i: derive_seed(self.config.seed, number, 6, i // 16))))
        preferred = wins[1] > wins[0]
        message = f"{wins[1]} of its {len(starts)} dreams succeed, of the present adapter's {wins[0]}"
        self.say(f"loop, round {number}: clone: {message}; adaptation begins at the "
                 f"{'clone' if preferred else 'present adapter'}")
        return {"adapter": clone if preferred else state.adapter, "preferred": preferred, "message": message,
                "dreams": len(starts), "present": wins[0], "clone": wins[1]}

    def trial(self, number: int, state: State, dreamed: str, clone: str, preferred: bool = False) -> dict[str, Any]:
        """Try on the arm, without chance as it will be deployed, what the dream promoted (`dreamed`), or else the clone
        that nothing in the dream was better than; where there is neither, the present adapter of `state`.

        So the recordings hold how such a policy fails, which is not how an exploring one does. Returns which adapter
        follows and its records on the arm.
        """
        count, tried = self.config.episodes // 3, dreamed or clone
        if tried and self.config.limit_pairs:
            return self.validation(number, state, tried, bool(dreamed), preferred)
        wins = self.on_arm("loop", number, dataclasses.replace(state, adapter=tried or state.adapter), 1, count, 0.0)
        told: dict[str, Any] = {"episodes": count, "successes": wins, "tried": tried}
        if not tried:
            return told | {"adapter": state.adapter, "record": (state.record[0] + wins, state.record[1] + count),
                           "without_chance": (state.tried[0] + wins, state.tried[1] + count)}
        told |= compare((wins, count), state, bool(dreamed), preferred)
        self.say(f"loop, round {number}: {told['message']}")
        return told | ({"adapter": tried, "record": (wins, count), "without_chance": (wins, count)} if told["used"] else
                       {"adapter": state.adapter, "record": state.record, "without_chance": state.tried})

    def validation(self, number: int, state: State, tried: str, dreamed: bool, preferred: bool) -> dict[str, Any]:
        """Try `tried` and the present adapter of `state` in pairs, in random order, until the sequential test decides.

        What it leaves unclear is decided by the records of these pairs. Same keys as `trial` returns.
        """
        policy, folder = build.load_policy(self.adapt.policy), self.out / "loop" / f"round-{number}" / "validation"
        found = validate(self.environment, policy, self.adapter("loop", state),
                         self.adapter("loop", dataclasses.replace(state, adapter=tried)), self.instruction,
                         seeds.real(self.config.seed, number, 1), self.config.limit_pairs, self.config.confidence,
                         derive_seed(self.config.seed, number, 8), folder)
        deal(found.episodes, self.out / "loop", f"round-{number}-trial")
        mine, theirs = found.record("adapter"), found.record("base")
        present = dataclasses.replace(state, tried=(state.tried[0] + theirs[0], state.tried[1] + theirs[1]),
                                      record=(state.record[0] + theirs[0], state.record[1] + theirs[1]))
        told: dict[str, Any] = {"episodes": len(found.episodes), "successes": mine[0], "tried": tried,
                                "decision": found.verdict.decision, "verdict": found.verdict.as_json()}
        told |= compare(mine, present, dreamed, preferred)
        if found.verdict.decision in ("better", "worse"):
            told |= {"used": found.verdict.decision == "better", "message": found.verdict.words}
        self.say(f"loop, round {number}: {told['message']}")
        return told | ({"adapter": tried, "record": mine, "without_chance": mine} if told["used"] else
                       {"adapter": state.adapter, "record": present.record, "without_chance": present.tried})

    def on_arm(self, method: str, number: int, state: State, part: int, count: int, temperature: float) -> int:
        """Run real episodes with the adapter of `state`, greedy at temperature 0: `part` 0 of the round explores, 1 is
        the trial. Deal them out to learning and checking; return successes."""
        name = f"round-{number}-trial" if part else f"round-{number}"
        episodes = collect(self.environment, build.load_policy(self.adapt.policy), self.adapter(method, state),
                           seeds.real(self.config.seed, number, part), count, self.instruction, temperature,
                           self.out / method / "episodes" / name, self.progress(f"{method}, round {number}"))
        deal(episodes, self.out / method, name)
        return successes(episodes)

    def progress(self, label: str) -> Callable[[int, int], None]:
        """Return what tells of each real episode."""
        return lambda done, count: self.say(f"{label}: {done} of {count} real episodes") if done == count else None

    def _forget_replays(self) -> None:
        self._figures.clear()
        self._dreams.clear()

    def figures(self, world_model: str, judge: str, second: str, which: str, episodes: Sequence[Episode]
                ) -> Replays:
        """Replay the set of episodes called `which` in a world model, judged by a judge or a pair.

        What was replayed in a round is kept: the dreams serve the next judge. Old scenes were seen by the old camera.
        """
        key = (world_model, judge, second, which)
        if key not in self._figures:
            reads = self.seen_by(which) if which == "old" else second  # finds things and camera for the world model
            same = (world_model, reads, which)
            dreams = self._dreams.get(same)
            self._figures[key] = replay_episodes(
                build.load_world_model(world_model, named_pair(judge, reads)),
                build.load_judges(named_pair(judge, second)), episodes, derive_seed(self.config.seed, 11),
                rollouts=dreams)
            self._dreams[same] = self._figures[key].rollouts
        return self._figures[key]

    def setup(self, folder: Path, number: int, state: State) -> dict[str, Any]:
        """Learn what needs no outcome, before anything is drawn by it: where the camera stands, from where the arm is
        seen. The geometric judge and the world model share it."""
        if state.second == OFF:
            return {"second": OFF, "message": "nobody measures"}
        method = folder.parent
        start = build.checkpoint_dir(state.second, build.JUDGE)
        before = build.load_scene_judge(start)
        judge, message = before.with_camera(
            read_episodes([method / "training", method / "calibration"]).marked)
        self.say(f"loop, round {number}: {message}")
        if judge is before:
            return {"second": state.second, "message": message}
        judge.save(folder / "setup")
        ref = put_version(method / "second_judges", folder / "setup", f"round-{number}-setup-{self.environment.name}",
                          parent_name(start), {"learned": message}, self.now_ns(), JUDGE)
        return {"second": str(ref.path), "message": message}

    def world_model(self, folder: Path, number: int, state: State) -> dict[str, Any]:
        """Update, check, store; the version is used where it was promoted."""
        c, method = self.config, folder.parent
        found = read_episodes([method / "training", method / "calibration"])
        data = Data(found.marked, read_array_folders([method / "held_out"]), play_folder(self.play("replay")),
                    play_folder(self.play("old")), found.hashes)
        config = dataclasses.replace(c.update, seed=derive_seed(c.seed, number, 2))
        self._forget_replays()

        def figures(world_model: Path, some: Sequence[Episode]) -> Replays:
            return self.figures(str(world_model), state.judge, state.second,
                                "held out" if some is data.held else "old", some)
        result = update(Path(state.world_model), data, config, c.margins, figures, folder / "world_model",
                        method / "world_models", f"{self.environment.name}-round-{number}", self.now_ns(),
                        objects_of(state.second), objects_of(self.seen_by("replay")))
        promoted = result.decision.promote
        self.say(f"world model {result.version.name}: {'promoted' if promoted else 'not promoted'}")
        return {"version": result.version.name, "promoted": promoted, "decision": result.decision.lines,
                "figures": result.figures, "use": str(result.version.path) if promoted else state.world_model}

    def judge(self, folder: Path, number: int, state: State) -> dict[str, Any]:
        """Teach both judges on true episodes and their dreams by the present world model; check, store, choose.

        Candidates: the pair with new settings alone ("threshold" where the weights have seen earlier rounds), the pair
        with new weights in the learned judge, and, where no camera was learned, that judge alone. Each must pass the
        check against the present judges; of those that do, the one that is right most often on held-out real episodes
        is used, of equals the first.
        """
        c, method = self.config, folder.parent
        settings = dataclasses.replace(c.judge, seed=derive_seed(c.seed, number, 3))
        world = build.load_world_model(state.world_model, named_pair(state.judge, state.second))
        old_world = drawn_with(world, objects_of(self.seen_by("replay")))
        replay = self.play("replay")
        run = None if replay is None else update_judge(  # with nothing to mix in, weights would forget: left alone
            Path(state.judge), world, old_world, method / "training", method / "calibration", replay, folder / "judge",
            settings, labels_by_outcome if self._earlier is None else self._earlier.labels)
        # Without the geometric judge nobody would know a camera that was learned.
        learned = objects_of(state.second).projection != build.load_objects().projection
        candidates: dict[str, tuple[Path, str]] = {} if learned or run is None else {"alone": (run, OFF)}
        lines = [] if replay else ["the learned judge keeps its weights: there is no earlier data to mix in"]
        fresh = sha256_file(Path(state.judge) / WEIGHTS) == sha256_file(Path(self.start().judge) / WEIGHTS)
        if state.second != OFF:
            starts = {SETTINGS if fresh else "threshold": Path(state.judge), **({"weights": run} if run else {})}
            looks, measures, more = update_pair(
                build.checkpoint_dir(state.second, build.JUDGE), starts, world,
                read_array_folders([method / "training"]), read_array_folders([method / "calibration"]),
                folder / "pair", settings)
            lines += more
            candidates = {**{name: (path, str(measures)) for name, path in looks.items()}, **candidates}
        held, old = read_array_folders([method / "held_out"]), play_folder(self.play("old"))
        all_real = [e for part in dict.fromkeys(PARTS) for e in read_array_folders([method / part])]

        def judged(judge: str | Path, second: str) -> tuple[Replays, Replays, Replays | None]:
            """On held-out episodes, on all, and on old scenes (None: there are none), where cameras stand as the run's
            first judge knows."""
            usual = second if second == OFF else self.seen_by("old")
            return (self.figures(state.world_model, str(judge), second, "held out", held),
                    self.figures(state.world_model, str(judge), second, "all", all_real),
                    self.figures(state.world_model, str(judge), usual, "old", old) if old else None)
        before = judged(state.judge, state.second)
        chosen, right = "", -1.0
        after: dict[str, tuple[Replays, Replays, Replays | None]] = {}
        for name, pair in candidates.items():
            after[name] = some = judged(*pair)
            earlier = (before[2], some[2]) if before[2] is not None and some[2] is not None else None
            decision = decide_judge((before[0], some[0]), earlier, c.seed, (before[1], some[1]),
                                    weights=name != SETTINGS)
            agree = float((some[0].claimed == some[0].success).mean())
            lines += [f"{name}: {line}" for line in decision.lines]
            if decision.promote and agree > right:
                chosen, right = name, agree
        figures = {name: {which: r.summary() for which, r in zip(("new", "all", "old"), some, strict=True) if r}
                   for name, some in {"before": before, **after}.items()}
        scores: dict[str, Any] = {"decision": lines, "figures": figures, "settings": asdict(settings)}
        stored: dict[str, tuple[str, str]] = {}
        for name, (path, second) in candidates.items():
            scores = {**scores, "promoted": name == chosen, "candidate": name}
            label = f"round-{number}-{name}-{self.environment.name}"
            ref = put_version(method / "judges", path, label, parent_name(Path(state.judge)), scores, self.now_ns(),
                              JUDGE)
            if second != OFF:
                second = str(put_version(
                    method / "second_judges", Path(second), label,
                    parent_name(build.checkpoint_dir(state.second, build.JUDGE)), scores, self.now_ns(), JUDGE).path)
            stored[name] = (str(ref.path), second)
        use, second = stored.get(chosen, (state.judge, state.second))
        found = after.get(chosen, before)[0]
        self.say(f"judges: {f'promoted, {chosen}' if chosen else 'not promoted'}")
        self._forget_replays()
        return {"version": Path(use).name, "promoted": bool(chosen), "chosen": chosen, "decision": lines,
                "figures": figures, "use": use, "second": second,
                "release": self.release(state.world_model, use, second, found)}

    def release(self, world_model: str, judge: str, second: str, found: Replays) -> dict[str, Any]:
        """Write the paired-replay table of a pair beside the world model, where that is a version of this run.

        Returns the table. It is measured on the held-out episodes of this scene, which also chose the pair.
        """
        rows = {self.config.task or self.instruction: found.release_row(self.environment.name)}
        if Path(world_model).is_relative_to(self.out):
            write_release(world_model, named_pair(judge, second), rows, self.config.seed)
        return rows

    def captured(self, number: int) -> list[Start]:
        """Return the frames that a round's adaptation starts from: captured once, whatever asks for them."""
        path = self.out / "captures" / f"round-{number}.npz"
        if not path.is_file():
            write_starts(path, [self.environment.reset(s, self.instruction)
                                for s in seeds.captures(self.config.captures, number)])
        return read_starts(path)

    def adaptation(self, method: str, number: int, state: State) -> dict[str, Any]:
        """Adapt in the dream from captured frames of the scene, going on from the adapter of `state`; the loop is held
        to the real successes."""
        config = self.session_config(method, state)
        if method == "loop":
            config = dataclasses.replace(config, episodes=str(self.all_real(method)), margin=0.0, confidence=LIKELY)
        result = run_session(load_parts(config), self.captured(number), config,
                             derive_seed(self.config.seed, number, 4), self.now_ns(),
                             parent=self.adapter(method, state))
        report = result.report
        self.say(f"{method}, round {number}: {report.outcome}: {report.message}")
        return {"outcome": report.outcome, "message": report.message, "updates": len(report.curve),
                "adapter": report.adapter.name if report.adapter else "", "seconds": report.seconds.get("total", 0.0),
                "report": str(result.report_path.relative_to(self.out.resolve()))}

    def all_real(self, method: str) -> Path:
        """Return a folder that links all real episodes so far, whatever part they are in."""
        folder = self.out / method / "all"
        folder.mkdir(parents=True, exist_ok=True)
        for link in folder.glob("*.npz"):
            if not link.exists():
                link.unlink()
        for kind in set(PARTS):
            for path in (self.out / method / kind).glob("*.npz"):
                target = folder / f"{kind}-{path.name}"
                if not target.exists():
                    target.symlink_to(path.resolve())
        return folder

    def imitation(self, method: str, number: int, state: State) -> dict[str, Any]:
        """Clone the successes of all real episodes so far: a policy holds none out, for it is evaluated on others."""
        c = self.config
        parts = self.parts(method, state)
        began = time.monotonic()
        settings = dataclasses.replace(c.imitation, seed=derive_seed(c.seed, number, 5))
        episodes = read_episodes([self.all_real(method)]).marked
        ref = imitate(trainable(parts.policy), episodes, lora_config(self.adapt), settings, self.adapter(method, state),
                      Store(self.out / method / "adapters"), self.instruction,
                      {"method": "imitation", "round": number}, self.now_ns())
        return {"outcome": "cloned" if ref else "kept", "message": "" if ref else "no success to imitate",
                "updates": c.imitation.steps if ref else 0, "adapter": ref.name if ref else "",
                "seconds": time.monotonic() - began}
