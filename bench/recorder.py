"""Does the recorder keep up? `python bench/recorder.py [--minutes 60] [--episode-minutes 60] [--out DIR]`.

recorder_node as it ships, over DDS, fed by one other process: 640x480 images at 30 Hz (the twin's view with noise as
a sensor has), joint states at 100 Hz, steps at 5 Hz. What was sent is told by that process, what was recorded is read
from the episodes, and every message between the first and the last recorded one must be there. Processor time and
memory of the recorder are read every 10 s. An hour takes about 14 GB of disk in `--out`, removed at the end unless
`--keep`.
"""
from __future__ import annotations

import argparse
import itertools
import json
import os
import shutil
import sys
import tempfile
import time
from array import array
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT / "test"))
RATES_HZ = {"image_raw": 30.0, "wx250s/joint_states": 100.0, "step": 5.0}
IMAGES, NOISE_LEVELS = 32, 3.0
SAMPLE_S = 10.0
INSTRUCTION = "reach the red block"
DOMAIN_ID = 87


# --- the process that feeds it ----------------------------------------------------------------------------------------


def noisy_views(count: int) -> list[np.ndarray]:
    """Return images uint8 (480, 640, 3): the twin's view of a scene, each with noise of its own."""
    from world_gymnast_ros.twin.scene import load_scene
    from world_gymnast_ros.twin.sim import Twin

    twin = Twin(load_scene("train_oak"))
    view = twin.render().astype(np.float32)
    twin.close()
    rng = np.random.default_rng(0)
    return [np.clip(view + rng.normal(0.0, NOISE_LEVELS, view.shape), 0, 255).astype(np.uint8) for _ in range(count)]


def feed(sent: Path, words: list[str]) -> int:
    """Publish all three topics until a signal; the stamps of what was sent go to files in the folder `sent`."""
    from world_gymnast_ros.nodes import base, convert
    from world_gymnast_ros.robot.kinematics import NEUTRAL, fk
    from world_gymnast_ros.types import ArmCommand, ArmState, Verdict

    class Feeder(base.ConfiguredNode):
        def __init__(self) -> None:
            super().__init__("feeder")
            self.counts, self.seen_ns = dict.fromkeys(RATES_HZ, 0), self.now_ns()
            self.files = {topic: sent_file(sent, topic).open("wb") for topic in RATES_HZ}
            self.images = [convert.image_from_rgb(rgb, 0, "camera") for rgb in noisy_views(IMAGES)]
            kinds = {"image_raw": (convert.Image, base.NEWEST_RELIABLE), "step": (convert.StepMsg, base.RELIABLE),
                     "wx250s/joint_states": (convert.JointState, base.RELIABLE)}
            self.senders = {topic: self.create_publisher(kind, topic, qos) for topic, (kind, qos) in kinds.items()}
            self.make = {"image_raw": self.image, "wx250s/joint_states": self.joints, "step": self.step}
            for topic, rate_hz in RATES_HZ.items():
                self.every(1.0 / rate_hz, lambda topic=topic: self.send(topic))

        def send(self, topic: str) -> None:
            now_ns = self.now_ns()
            self.senders[topic].publish(self.make[topic](now_ns))
            self.files[topic].write(now_ns.to_bytes(8, sys.byteorder))
            self.counts[topic] += 1

        def image(self, now_ns: int) -> Any:
            image = self.images[self.counts["image_raw"] % IMAGES]
            image.header.stamp, self.seen_ns = convert.to_time(now_ns), now_ns
            return image

        def joints(self, now_ns: int) -> Any:
            position = np.array([*NEUTRAL, 0.0, 0.03, -0.03])
            return convert.joint_state_msg(now_ns, position, np.zeros(9), np.zeros(9))

        def step(self, now_ns: int) -> Any:
            number = self.counts["step"]
            delta = np.array([0.01, 0, 0, 0, 0, 0, 1], np.float32)
            measured = ArmState(fk(NEUTRAL), NEUTRAL, np.zeros(6), np.zeros(6), 1.0, now_ns)
            action = convert.DueAction(delta, number // 4, number % 4, 4, self.seen_ns, 0, "base", INSTRUCTION)
            command = ArmCommand(fk(NEUTRAL), NEUTRAL, 1.0, delta, delta, Verdict.OK, "")
            return convert.step_msg(command, action, measured, now_ns)

        def close(self) -> None:
            for file in self.files.values():
                file.close()

    return base.run(Feeder, [sys.argv[0], *words])


def sent_file(sent: Path, topic: str) -> Path:
    """Return the file of a topic's stamps, int64 ns."""
    return sent / f"sent.{topic.replace('/', '.')}"


def read_sent(sent: Path) -> dict[str, np.ndarray]:
    """Return the stamps of what was sent, by topic."""
    return {topic: np.fromfile(sent_file(sent, topic), np.int64) for topic in RATES_HZ}


def feeder_spec(sent: Path, niceness: int = 0) -> Any:
    """Return the process that runs `feed`."""
    from world_gymnast_ros.nodes import graph

    @dataclass(frozen=True)
    class Feeder(graph.NodeSpec):
        def command(self) -> list[str]:
            return [*nice(niceness), sys.executable, str(Path(__file__).resolve()), "--role", "feed", "--sent",
                    str(sent)]

    return Feeder("feeder")


# --- measuring --------------------------------------------------------------------------------------------------------


@dataclass
class Sample:
    """One look at the recorder's process: s since the start, processor seconds since then, MiB resident."""

    at_s: float
    processor_s: float
    resident_mib: float


def look(process: Any, start_s: float) -> Sample:
    """Read the process once."""
    used = process.cpu_times()
    return Sample(time.monotonic() - start_s, used.user + used.system, process.memory_info().rss / 2**20)


def nice(niceness: int) -> list[str]:
    """Return the words that start a command at this niceness; below 0 only with the right to."""
    return ["nice", "-n", str(niceness)] if niceness else []


def run(minutes: float, episode_minutes: float, niceness: int, out: Path) -> tuple[list[Sample], list[Path], float]:
    """Record; return the looks at the process, the episodes, and the share of a core that everything else took."""
    import psutil
    from ros_tools import client

    from world_gymnast_ros.nodes import convert, graph

    @dataclass(frozen=True)
    class Recorder(graph.NodeSpec):
        def command(self) -> list[str]:
            return [*nice(niceness), *super().command()]

    recorder = Recorder(graph.RECORDER.name, graph.RECORDER.params,
                        {"directory": str(out / "episodes"), "max_episode_s": 36000.0})
    folders: list[Path] = []
    with client() as c, graph.start([recorder, feeder_spec(out, niceness)], graph.ros_environment(log_dir=out),
                                    out) as nodes:
        process = psutil.Process(nodes.nodes["recorder_node"].process.pid)
        c.until(lambda: c.count_publishers("step") > 0, "the feeder", 120.0, nodes.check)
        start_s, busy_before = time.monotonic(), busy_s()
        samples: list[Sample] = []
        while (left_s := 60 * minutes - (time.monotonic() - start_s)) > 1.0:
            begun = c.call("recorder_node/start_episode", convert.StartEpisode, instruction=INSTRUCTION)
            assert begun.success, begun.message
            samples = samples or [look(process, start_s)]
            end_s = time.monotonic() + min(left_s, 60 * episode_minutes)
            while time.monotonic() < end_s:
                c.spin(min(SAMPLE_S, max(0.0, end_s - time.monotonic())))
                nodes.check()
                samples.append(look(process, start_s))
            ended = c.call("recorder_node/stop_episode", convert.StopEpisode, partial_score=-1.0)
            assert ended.success, ended.message
            folders.append(Path(ended.path))
        samples.append(look(process, start_s))
        wall_s = time.monotonic() - start_s
        others = (busy_s() - busy_before - (samples[-1].processor_s - samples[0].processor_s)) / wall_s
    return samples, folders, others


def busy_s() -> float:
    """Processor time that the whole machine has spent on anything, s."""
    import psutil

    times = psutil.cpu_times()
    return float(times.user + times.nice + times.system + times.irq + times.softirq)


def compare(folders: list[Path], sent: dict[str, np.ndarray]) -> dict[str, dict[str, float]]:
    """Compare stamp by stamp what was sent with what was recorded, episode by episode."""
    from mcap.reader import make_reader

    from world_gymnast_ros.episodes.schemas import header_stamp_ns

    rows: dict[str, dict[str, float]] = {t: {"sent": 0, "recorded": 0, "dropped": 0, "twice": 0} for t in RATES_HZ}
    for folder in folders:
        found = {topic: array("q") for topic in RATES_HZ}
        with (folder / "episode.mcap").open("rb") as file:
            for _, channel, message in make_reader(file).iter_messages(log_time_order=False):
                topic = channel.topic[1:].removesuffix("/compressed")
                if topic in found:
                    found[topic].append(header_stamp_ns(message.data))
        for topic, stamps in found.items():
            got = np.unique(stamps)
            due = sent[topic][(sent[topic] >= got[0]) & (sent[topic] <= got[-1])]
            row = rows[topic]
            row["sent"] += len(due)
            row["recorded"] += len(got)
            row["dropped"] += len(np.setdiff1d(due, got))
            row["twice"] += len(stamps) - len(got)
            row["longest_gap_s"] = max(row.get("longest_gap_s", 0.0), float(np.diff(got).max()) * 1e-9)
    return rows


def tell(samples: list[Sample], folders: list[Path], others: float, rows: dict[str, dict[str, float]]) -> None:
    """Print the figures."""
    wall_s = samples[-1].at_s - samples[0].at_s
    share = (samples[-1].processor_s - samples[0].processor_s) / wall_s
    steps = [(b.processor_s - a.processor_s) / (b.at_s - a.at_s) for a, b in itertools.pairwise(samples)
             if b.at_s - a.at_s > 0.5 * SAMPLE_S]
    size = sum(p.stat().st_size for folder in folders for p in folder.iterdir())
    print(f"{wall_s / 60:.1f} minutes, {len(folders)} episodes, {size / 1e9:.2f} GB; other processes used "
          f"{100 * others:.0f} % of a core")
    print("\n| topic | sent | recorded | dropped | written twice | longest gap, s |\n|---|---|---|---|---|---|")
    for topic, row in rows.items():
        print(f"| {topic}, {row['sent'] / wall_s:.1f} Hz | {row['sent']} | {row['recorded']} | {row['dropped']} | "
              f"{row['twice']} | {row['longest_gap_s']:.2f} |")
    print(f"\nprocessor: {100 * share:.1f} % of a core; highest 10 s: {100 * max(steps):.1f} %")
    settled = [s for s in samples if s.at_s >= min(60.0, wall_s / 4)]
    at_h, mib = np.array([s.at_s for s in settled]) / 3600, np.array([s.resident_mib for s in settled])
    print(f"memory: {mib[0]:.1f} MiB at {60 * at_h[0]:.0f} min, {mib[-1]:.1f} at the end, highest "
          f"{mib.max():.1f}; slope {np.polyfit(at_h, mib, 1)[0]:+.1f} MiB per hour")


def main() -> int:
    """Record for so long, compare, and tell; exit status 1 when something was dropped."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, default=60.0)
    parser.add_argument("--episode-minutes", type=float, default=60.0, help="an episode after the other, of so long")
    parser.add_argument("--nice", type=int, default=0, help="niceness of recorder and feeder; below 0 where other "
                        "programs want more than the machine has")
    parser.add_argument("--out", type=Path, help="folder for the episodes (default: a temporary one)")
    parser.add_argument("--keep", action="store_true", help="leave the episodes there")
    for hidden in ("--role", "--sent"):
        parser.add_argument(hidden, default="", help=argparse.SUPPRESS)
    args, rest = parser.parse_known_args()
    if args.role:
        return feed(Path(args.sent), rest)
    if rest:
        parser.error(f"unknown: {' '.join(rest)}")
    from world_gymnast_ros.episodes import check
    from world_gymnast_ros.nodes import graph

    os.environ.setdefault("ROS_DOMAIN_ID", str(DOMAIN_ID))
    os.environ.update(graph.ros_environment())
    out = args.out or Path(tempfile.mkdtemp())
    out.mkdir(parents=True, exist_ok=True)
    try:
        samples, folders, others = run(args.minutes, args.episode_minutes, args.nice, out)
        (out / "samples.json").write_text(json.dumps([vars(s) for s in samples]))
        rows = compare(folders, read_sent(out))
        tell(samples, folders, others, rows)
        problems = [f"{folder.name}: {what}" for folder in folders for what in check(folder)]
        print("check: " + ("; ".join(problems) or "good"))
    finally:
        if not args.keep:
            shutil.rmtree(out / "episodes" if args.out else out, ignore_errors=True)
    return 1 if problems or any(row["dropped"] for row in rows.values()) else 0


if __name__ == "__main__":
    raise SystemExit(main())
