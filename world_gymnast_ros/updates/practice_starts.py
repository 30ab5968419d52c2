"""Read where training may begin beside the captured frames: recordings of this scene, and frames of earlier ones."""
from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from world_gymnast_ros.adaptation.practice import AlongStart, no_verdict, what_is_used
from world_gymnast_ros.adaptation.record import RECORD_NAME, read_record
from world_gymnast_ros.adaptation.rollout import facts_of, is_success, judge_safely
from world_gymnast_ros.data.episode import UNNAMED, Episode
from world_gymnast_ros.data.episode_files import REPLAY_NAME, read_starts
from world_gymnast_ros.data.read import read_episodes
from world_gymnast_ros.errors import EpisodeError
from world_gymnast_ros.instructions import normalise
from world_gymnast_ros.loading.load import checkpoint_dir
from world_gymnast_ros.types import ACTION_DIM, Frame, Judge, Judgement, Start

WITH_POLICY = "policy"
STILL_FRAMES = 3
"""Judges ask for two frames in a row, and look at what comes after the first."""
JUDGED_AT_ONCE = 64
DONE_ALREADY = "the task is done already"


@dataclass(frozen=True)
class Along:
    """Frames of recordings to begin at, and why others were left out, with counts. `source`: where they come from."""

    starts: tuple[AlongStart, ...]
    dropped: Mapping[str, int]
    source: str

    @property
    def summary(self) -> str:
        """What came of it, in words."""
        return what_is_used(len(self.starts), self.dropped, f"frames along the way, of {self.source},")


def along_starts(folders: Sequence[Path], instructions: Sequence[str], judge: Judge, cache: Path | None = None
                 ) -> Along:
    """Return the frames of recordings as starts of the instructions that they show; one without an instruction, such as
    a hand-guided approach, serves all. EpisodeError where nothing fits."""
    episodes = read_episodes(folders, None, cache, min_steps=1).episodes
    return along_episodes(episodes, instructions, judge, ", ".join(map(str, folders)))


def along_episodes(episodes: Sequence[Episode], instructions: Sequence[str], judge: Judge, source: str) -> Along:
    """Return what `along_starts` does, of episodes that were read from `source`.

    One that succeeded ends at its success. Of a near miss the end is where the judge saw the furthest progress; where
    it sees none, its last frame. Frames that the judge cannot judge, or calls done, teach nothing and are left out.
    """
    pairs = [(e, instruction) for e in episodes for instruction in instructions if _shows(e, instruction)]
    if not pairs:
        shown = ", ".join(f"'{w}'" for w in dict.fromkeys(e.instruction for e in episodes))
        raise EpisodeError(f"no recording in {source} shows what is asked for "
                           f"('{instructions[0]}'); they show {shown}; record an approach with that instruction")
    kept: list[AlongStart] = []
    dropped: Counter[str] = Counter()
    for episode, instruction in pairs:
        verdicts = judge_frames(judge, [a.start for a in along(episode, instruction, episode.steps + 1)])
        for start, verdict in zip(along(episode, instruction, _end(episode, verdicts)), verdicts, strict=False):
            if verdict.score is None:
                dropped[no_verdict(verdict)] += 1
            elif is_success(verdict):
                dropped[DONE_ALREADY] += 1
            else:
                kept.append(start)
    return Along(tuple(kept), dict(dropped), source)


def _shows(episode: Episode, instruction: str) -> bool:
    return episode.instruction in ("", UNNAMED) or normalise(episode.instruction) == normalise(instruction)


def along(episode: Episode, instruction: str, end: int) -> Iterator[AlongStart]:
    """Yield every frame before frame `end` as a start; the state is the measured one where it was measured."""
    states = episode.states if episode.measured is None else episode.measured
    for t in range(end):
        state = None if states is None else states[t]
        yield AlongStart(Start(Frame(episode.frames[t], 0), state, instruction), end - t)


def _end(episode: Episode, verdicts: Sequence[Judgement]) -> int:
    """Return the frame at which a recording came nearest to success, at least 1; `verdicts` on its frames."""
    if episode.success:
        return max(1, episode.steps if episode.done_step is None else episode.done_step)
    progress = [j.progress or 0.0 for j in verdicts]
    return max(1, int(np.argmax(progress))) if max(progress) > 0 else episode.steps


def judge_frames(judge: Judge, starts: Sequence[Start]) -> list[Judgement]:
    """Return what a judge says of each start by itself, as of a rollout in which nothing moves: whether the task is
    done already, how near it is, or why it cannot tell. The starts have one instruction and one size."""
    if len(starts) > JUDGED_AT_ONCE:  # a long recording's frames, times three, need not fit into memory
        return [verdict for i in range(0, len(starts), JUDGED_AT_ONCE)
                for verdict in judge_frames(judge, starts[i:i + JUDGED_AT_ONCE])]
    frames = np.stack([np.stack([s.frame.rgb] * STILL_FRAMES) for s in starts])
    deltas = np.zeros((len(starts), STILL_FRAMES - 1, ACTION_DIM), np.float32)
    deltas[..., 6] = np.array([1.0 if s.state is None else float(s.state[6]) for s in starts])[:, None]
    return judge_safely(judge, frames, starts[0].instruction, facts_of(starts, deltas))


def replay_starts(where: str, policy: str) -> tuple[Start, ...]:
    """Return starts of earlier scenes: what ships with the policy in folder `policy` (WITH_POLICY), a file of captured
    frames, or the captured frames of the sessions in a folder. EpisodeError where there are none."""
    if where == WITH_POLICY:
        path = checkpoint_dir(policy) / REPLAY_NAME
        if not path.is_file():
            raise EpisodeError(f"no {REPLAY_NAME} lies beside the policy ({path.parent}); name a folder of your own "
                               "sessions, or leave replay empty")
        return tuple(read_starts(path))
    path = Path(where)
    if path.is_file():
        return tuple(read_starts(path))
    records = sorted(path.rglob(RECORD_NAME)) if path.is_dir() else []
    starts = tuple(s for record in records for s in read_record(record).report.starts)
    if not starts:
        raise EpisodeError(f"replay {where}: no session ({RECORD_NAME}) lies there; name a folder of sessions, a file "
                           f"of captured frames, or '{WITH_POLICY}'")
    return starts
