"""What does SIGKILL cost? `python bench/recorder_kill.py [--kills 200] [--seed 0] [--out DIR]`.

recorder_node as it ships records 640x480 images at 30 Hz, joint states at 100 Hz and steps at 5 Hz over DDS, and is
killed at a random moment: while it records or, one time in four, while it is ending the episode. An episode begins once
its diagnostics say that it hears all three: what DDS has not connected yet is not its to lose. Then `repair`, and:
everything sent a second or more before the kill must be there; before the repair nothing may look whole that is not;
after it every index must name what is there and a reader that is not ours must read it all; the episode before must be
as it was. Exit status 1 when any of that fails.
"""
from __future__ import annotations

import argparse
import contextlib
import hashlib
import os
import re
import shutil
import signal
import sys
import tempfile
import time
from array import array
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import yaml
from recorder import INSTRUCTION, RATES_HZ, ROOT, feeder_spec, read_sent

sys.path.insert(0, str(ROOT / "test"))
DOMAIN_ID = 86
LONGEST_S, SAFE_S = 3.0, 1.0
ANSWER_S, HEARS_S = 5.0, 30.0
ENDING_SHARE, ENDING_S = 0.25, 0.3


class Unheard(Exception):
    """A recorder runs, and does not answer or hears nothing."""


@dataclass
class Kill:
    """One kill: when recording was known to run and when it ended, wall clock; stamps found afterwards, by topic."""

    begun_ns: int
    killed_ns: int
    ending: bool
    whole: bool
    empty: bool = False
    found: dict[str, np.ndarray] = field(default_factory=dict)
    faults: list[str] = field(default_factory=list)


def kill_once(moment_s: float, ending_s: float | None, out: Path, log_dir: Path) -> Kill | None:
    """Start a recorder, let it record for `moment_s`, kill it (`ending_s` after it was told to stop), and look.

    None: it was up, and nothing reached it or its answer never came. That is Fast DDS, which leaves locked shared
    memory behind when killed.
    """
    from ros_tools import client

    from world_gymnast_ros.nodes import convert, graph

    spec = graph.RECORDER.with_overrides(directory=str(out / "episodes"), min_free_mb=1.0)
    # A client of its own: an older one would still believe in the recorder that was killed before.
    with graph.start([spec], graph.ros_environment(log_dir=log_dir), log_dir) as nodes, client() as c:
        process = nodes.nodes["recorder_node"].process
        try:
            until_it_hears(c, nodes.check)
            folder = start(c, out / "episodes")
        except Unheard:
            return None
        begun_ns = time.time_ns()
        c.spin(moment_s)
        if ending_s is not None:
            c.ask("recorder_node/stop_episode", convert.StopEpisode, partial_score=-1.0)
            time.sleep(ending_s)
        killed_ns = time.time_ns()
        os.kill(process.pid, signal.SIGKILL)
        process.wait()
    final = folder.with_name(folder.name.removesuffix(".partial"))
    kill = Kill(begun_ns, killed_ns, ending_s is not None, whole=final.is_dir())
    look(kill, folder, final)
    return kill


def until_it_hears(client: Any, check: Callable[[], None]) -> None:
    """Spin until the recorder's diagnostics say that it heard every topic within the last second."""
    from world_gymnast_ros.nodes import convert

    told = client.hear("/diagnostics", convert.DiagnosticArray)

    def hears() -> bool:
        mine = [m.status[0].values for m in told if m.status[0].name == "recorder_node"]
        values = {v.key: v.value for v in mine[-1]} if mine else {}
        return all(re.fullmatch(r"used 0\.\d s ago", values.get(topic, "")) for topic in RATES_HZ)
    try:
        client.until(hears, "a recorder that hears all topics", HEARS_S, check)
    except AssertionError as error:
        raise Unheard from error


def start(client: Any, root: Path) -> Path:
    """Begin an episode and return its folder; ask again where the answer came before this client could hear it."""
    from world_gymnast_ros.nodes import convert

    for _ in range(2):
        answer = client.ask("recorder_node/start_episode", convert.StartEpisode, instruction=INSTRUCTION)
        with contextlib.suppress(AssertionError):
            client.until(answer.done, "an answer", ANSWER_S)
            break
    if not answer.done():
        raise Unheard
    told = answer.result()
    assert told.success or "is running" in told.message, told.message
    return Path(told.path) if told.success else max(root.glob("*.partial"))


def look(kill: Kill, partial: Path, final: Path) -> None:
    """Examine what is left, repair it, and examine that."""
    from mcap.reader import make_reader
    from rosbags.rosbag2 import Reader

    from world_gymnast_ros.episodes import check, list_episodes, read_steps, repair
    from world_gymnast_ros.episodes.schemas import header_stamp_ns
    from world_gymnast_ros.errors import EpisodeError

    if kill.whole == partial.is_dir():
        kill.faults.append(f"{final.name}: neither partial nor whole, or both")
        return
    if not kill.whole:
        if not next(info.partial for info in list_episodes(partial.parent) if info.path == partial):
            kill.faults.append(f"{partial.name} is listed as whole")
        try:
            saved, _ = repair(partial, time.time_ns())
        except EpisodeError as error:  # killed before its first flush
            if "no whole message" not in str(error):
                kill.faults.append(str(error))
            kill.empty = True
            return
        if saved != final or partial.exists():
            kill.faults.append(f"{partial.name} was repaired to {saved}")
    kill.faults += [f"{final.name}: {problem}" for problem in check(final)]
    info = yaml.safe_load((final / "metadata.yaml").read_text())["rosbag2_bagfile_information"]
    named = {*info["relative_file_paths"], *(file["path"] for file in info["files"])}
    kill.faults += [f"{final.name}: metadata.yaml names {name}" for name in named if not (final / name).is_file()]
    with Reader(final) as bag:
        read = sum(1 for _ in bag.messages())
    found = {topic: array("q") for topic in RATES_HZ}
    with (final / "episode.mcap").open("rb") as file:  # by its index
        for _, channel, message in make_reader(file, validate_crcs=True).iter_messages():
            topic = channel.topic[1:].removesuffix("/compressed")
            if topic in found:
                found[topic].append(header_stamp_ns(message.data))
    kill.found = {topic: np.unique(np.array(stamps, np.int64)) for topic, stamps in found.items()}
    if read < sum(len(stamps) for stamps in kill.found.values()):
        kill.faults.append(f"{final.name}: rosbags reads {read} messages, mcap more")
    rows = read_steps(final / "steps.parquet").stamps_ns
    if not np.array_equal(rows, kill.found["step"]):
        kill.faults.append(f"{final.name}: {len(rows)} rows for {len(kill.found['step'])} steps")


def due(kill: Kill, sent: dict[str, np.ndarray], topic: str, age_s: float) -> np.ndarray:
    """Return the stamps that were sent while it recorded, `age_s` or more before the kill."""
    stamps = sent[topic]
    return stamps[(stamps > kill.begun_ns) & (stamps <= kill.killed_ns - age_s * 1e9)]


def missing(kill: Kill, sent: dict[str, np.ndarray], topic: str, age_s: float = SAFE_S) -> np.ndarray:
    """Return what of these was not found."""
    return np.setdiff1d(due(kill, sent, topic, age_s), kill.found.get(topic, ()))


def lost_s(kill: Kill, sent: dict[str, np.ndarray], topic: str) -> float:
    """Return the age, at the kill, of the oldest message that was sent and not found; 0 when none is lost."""
    lost = missing(kill, sent, topic, 0.0)
    return float(kill.killed_ns - lost[0]) * 1e-9 if len(lost) else 0.0


def digest(folder: Path) -> str:
    """Return one hash of everything in an episode."""
    files = sorted(folder.iterdir())
    return hashlib.sha256(b"".join(f.name.encode() + f.read_bytes() for f in files)).hexdigest()


def run(kills: int, seed: int, out: Path) -> tuple[list[Kill], dict[str, np.ndarray]]:
    """Kill so often; return what was found, and the stamps of everything that was sent."""
    from ros_tools import client

    from world_gymnast_ros.nodes import graph

    rng, done = np.random.default_rng(seed), []
    before: tuple[Path, str] | None = None
    env = graph.ros_environment(log_dir=out)
    with client() as c, graph.start([feeder_spec(out)], env, out) as feeder:
        c.until(lambda: c.count_publishers("step") > 0, "the feeder", 120.0, feeder.check)
        number, unheard = 0, 0
        while number < kills:
            moment_s, ending = rng.uniform(0.0, LONGEST_S), rng.random() < ENDING_SHARE
            ending_s = float(rng.uniform(0.0, ENDING_S)) if ending else None
            kill = kill_once(moment_s, ending_s, out, out / f"log{number % 4}")
            feeder.check()
            if kill is None:
                unheard += 1
                assert unheard <= max(3, kills // 10), f"{unheard} recorders were not heard"
                continue
            number += 1
            folders = sorted((out / "episodes").iterdir())
            if before is not None:
                if digest(before[0]) != before[1]:
                    kill.faults.append(f"{before[0].name}, an earlier episode, was changed")
                shutil.rmtree(before[0])
            before = folders[-1], digest(folders[-1])
            done.append(kill)
            if number % 10 == 0:
                print(f"{number} kills, {sum(len(k.faults) for k in done)} faults, {unheard} recorders not heard",
                      file=sys.stderr, flush=True)
    return done, read_sent(out)


def main() -> int:
    """Kill, compare, and tell."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=200)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, help="folder for the episodes (default: a temporary one)")
    args = parser.parse_args()
    from world_gymnast_ros.nodes import graph

    os.environ.setdefault("ROS_DOMAIN_ID", str(DOMAIN_ID))
    os.environ.update(graph.ros_environment())
    out = args.out or Path(tempfile.mkdtemp())
    out.mkdir(parents=True, exist_ok=True)
    try:
        kills, sent = run(args.kills, args.seed, out)
    finally:
        shutil.rmtree(out / "episodes" if args.out else out, ignore_errors=True)
    ending = sum(k.ending for k in kills)
    print(f"{len(kills)} kills, {ending} of them while the episode was being ended ({sum(k.whole for k in kills)} came "
          f"too late: it was whole already); {sum(k.empty for k in kills)} came before anything was written")
    print("\n| topic | sent a second or more before a kill | missing | oldest lost, s: median, worst |")
    print("|---|---|---|---|")
    # What a recorder is told to end it need not record: from then on nothing is due.
    running = [kill for kill in kills if not kill.ending]
    missed = {topic: sum(len(missing(kill, sent, topic)) for kill in running) for topic in sent}
    for topic in sent:
        lost = [lost_s(kill, sent, topic) for kill in running]
        total = sum(len(due(kill, sent, topic, SAFE_S)) for kill in running)
        told = f"{np.median(lost):.2f}, {max(lost):.2f}" if lost else "-"
        print(f"| {topic} | {total} | {missed[topic]} | {told} |")
    faults = [fault for kill in kills for fault in kill.faults]
    print("\nfaults: " + ("; ".join(faults) or "none"))
    return 1 if faults or any(missed.values()) else 0


if __name__ == "__main__":
    raise SystemExit(main())
