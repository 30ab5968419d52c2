"""Time from image to command: `python bench/latency.py [--minutes 10] [--rates 5 30] [--loads none nice10 nice0]`.

The real camera topic, policy_node and arm_node as processes over DDS with the limits that ship, 640x480 images of an
arm, a driver without dynamics, and a policy that costs nothing: what is left is what the package itself takes.
`--policy shipped` takes the small one that ships, whose inference needs the cores, too. Under load, a process that
trains a small network runs per core, in a terminal of its own; `--loads` says how it gives way. The nodes are in one
terminal, as under `ros2 launch`, or with `--apart` in one each, as `world-gymnast` starts them.

A look follows a full control period after the last action (`settle_fraction` 1), so that no command waits for its turn:
the player sends at once, and waiting between looks is no latency. Prints one Markdown row per rate and load.
"""
from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass, field
from pathlib import Path
from string import ascii_letters
from typing import Any

import numpy as np

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT / "test"))
SIZE = (480, 640, 3)
DT_S, ACTIONS = 0.2, 2
WARM_S = 5.0
DOMAIN_ID = 88
ARM, NOISE = "arm", "noise"
"""Images: of the twin's arm where the driver holds it, or of nothing."""
PLAYS_NOISE = {"allow_simulation_policy": True, "max_consecutive_clamped": 10000}
"""On noise the shipped policy presses against the workspace."""


# --- the processes ----------------------------------------------------------------------------------------------------


def scene_images(count: int) -> list[Any]:
    """Return images of the twin's arm where the driver holds it, each with a camera's noise."""
    from fault_driver import START

    from world_gymnast_ros.robot.actions import bridge_state
    from world_gymnast_ros.robot.kinematics import fk
    from world_gymnast_ros.twin.scene import load_scene
    from world_gymnast_ros.twin.sim import Twin

    twin = Twin(load_scene("train_oak"), 0)
    twin.reset(0, twin.scene.instructions[0], bridge_state(fk(START), 1.0).astype(np.float64))
    seen, rng = twin.render(SIZE[1], SIZE[0]).astype(np.int16), np.random.default_rng(0)
    twin.close()
    return [np.clip(seen + rng.integers(-3, 4, SIZE), 0, 255).astype(np.uint8) for _ in range(count)]


def camera(rate_hz: float, kind: str) -> int:
    """Publish prepared images under fresh stamps: of the arm, or noise alone."""
    from world_gymnast_ros.nodes import base, convert

    class Camera(base.ConfiguredNode):
        def __init__(self) -> None:
            super().__init__("camera_node")
            rng = np.random.default_rng(0)
            images = scene_images(8) if kind == ARM else [rng.integers(0, 256, SIZE, np.uint8) for _ in range(8)]
            self.images = [convert.image_from_rgb(rgb, 0, "cam") for rgb in images]
            self.sender, self.count = self.create_publisher(convert.Image, "image_raw", base.NEWEST_RELIABLE), 0
            self.create_timer(1.0 / rate_hz, self.show)

        def show(self) -> None:
            self.count += 1
            image = self.images[self.count % len(self.images)]
            image.header.stamp = convert.to_time(self.now_ns())
            self.sender.publish(image)

    return base.run(Camera, [sys.argv[0]])


def free_policy(words: list[str]) -> int:
    """policy_node with a policy that costs nothing: to and fro, a few millimetres."""
    from world_gymnast_ros.nodes import base
    from world_gymnast_ros.nodes.policy_node import PolicyNode
    from world_gymnast_ros.types import ActionChunk, Frame

    class Free:
        name, chunk_size, count = "free", ACTIONS, 0

        def act(self, frame: Frame, instruction: str) -> ActionChunk:
            self.count += 1
            way = 0.003 if self.count % 2 else -0.003
            return ActionChunk(np.tile(np.float32([way, 0, 0, 0, 0, 0, 1]), (ACTIONS, 1)), frame.stamp_ns)

    class FreePolicyNode(PolicyNode):
        def make_policy(self) -> Any:
            return Free()

    return base.run(FreePolicyNode, [sys.argv[0], *words])


def train(load: str) -> int:
    """Train a small network for ever, on one core, in a session of its own as in another terminal."""
    import torch

    from world_gymnast_ros import priority

    kind, number = load.rstrip("0123456789"), int(load.lstrip(ascii_letters) or 0)
    if kind == "nice":
        os.nice(number)
    elif kind == "session":
        os.nice(number)
        refused = priority.lower_session(number)
        if refused:
            sys.exit(refused)
    elif kind == "idle":
        os.sched_setscheduler(0, os.SCHED_IDLE, os.sched_param(0))
    else:
        os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[number:])
    torch.set_num_threads(1)
    network = torch.nn.Sequential(torch.nn.Conv2d(3, 64, 3), torch.nn.ReLU(), torch.nn.Conv2d(64, 64, 3, stride=2),
                                  torch.nn.Flatten(), torch.nn.Linear(64 * 30 * 30, 256))
    optimiser = torch.optim.AdamW(network.parameters())
    while True:
        loss = network(torch.rand(8, 3, 64, 64)).square().mean()
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()


# --- measuring --------------------------------------------------------------------------------------------------------


@dataclass
class Figures:
    """Times in s, one per chunk (jitter: one per pair of actions); shares in percent of a core."""

    total: list[float] = field(default_factory=list)
    seen: list[float] = field(default_factory=list)
    carried: list[float] = field(default_factory=list)
    jitter: list[float] = field(default_factory=list)
    shares: dict[str, float] = field(default_factory=dict)
    others: float = 0.0
    lost: int = 0
    """Holds that latched."""
    frozen: int = 0
    """Holds because the policy was taken for frozen."""


def started(specs: list[Any], env: dict[str, str], log_dir: Path, apart: bool) -> Any:
    """Start nodes in the session of this process, trainers (and nodes that are `apart`) in sessions of their own."""
    from world_gymnast_ros.nodes import graph

    if apart:
        return graph.start(specs, env, log_dir)
    log_dir.mkdir(parents=True, exist_ok=True)
    running = []
    for spec in specs:
        log, own = log_dir / f"{spec.name}.log", spec.name.startswith("trainer")
        with log.open("wb") as file:
            process = subprocess.Popen(spec.command(), env=env, stdin=subprocess.DEVNULL, stdout=file, stderr=file,
                                       start_new_session=own, process_group=None if own else 0)
        running.append(graph.Running(spec, process, log))
    return graph.Graph(running)


def specs(rate_hz: float, load: str, niceness: int, shipped: bool, images: str) -> list[Any]:
    """Return the graph; its nodes (not the trainers) run at `niceness`, below 0 only with the right to."""
    from world_gymnast_ros.nodes import graph

    @dataclass(frozen=True)
    class Script(graph.NodeSpec):
        words: tuple[str, ...] = ()

        def command(self) -> list[str]:
            given = () if self.name.startswith("trainer") or not niceness else ("nice", "-n", str(niceness))
            return [*given, sys.executable, *self.words, *self.arguments()]

    me = str(Path(__file__).resolve())
    policy = graph.POLICY.with_overrides(instruction="reach the red block", settle_fraction=1.0,
                                         **({"image_check": "off", "max_frame_age_s": 3.0} if shipped else {}))
    asked = ("-m", "world_gymnast_ros.nodes", policy.name) if shipped else (me, "--role", "policy")
    nodes = [Script("driver", words=(str(ROOT / "test" / "fault_driver.py"),)),
             Script(graph.ARM.name, graph.ARM.params, PLAYS_NOISE if shipped else {},
                    words=("-m", "world_gymnast_ros.nodes", graph.ARM.name)),
             Script(policy.name, policy.params, policy.overrides, words=asked),
             Script("camera", words=(me, "--role", "camera", "--rate", str(rate_hz), "--images", images))]
    if load != "none":
        words = (me, "--role", "load", "--kind", load)
        nodes += [Script(f"trainer {i}", words=words) for i in range(os.cpu_count() or 1)]
    return nodes


def measure(rate_hz: float, load: str, args: argparse.Namespace, log_dir: Path) -> Figures:
    """Run the graph once."""
    import psutil
    from ros_tools import client

    from world_gymnast_ros.nodes import base, convert, graph

    figures = Figures()
    env = graph.ros_environment(log_dir=log_dir)
    wanted = specs(rate_hz, load, args.nodes, args.policy == "shipped", args.images)
    with client() as c, started(wanted, env, log_dir, args.apart) as nodes:
        steps, chunks = c.hear("step", convert.StepMsg), c.hear("action_chunk", convert.ActionChunkMsg)
        status = c.hear("arm_status", convert.ArmStatusMsg, base.LATCHED)
        c.hear("/diagnostics", convert.DiagnosticArray)

        def policy_is_up() -> bool:
            return any(m.status[0].name == "policy_node" for m in c.heard["/diagnostics"])

        c.until(lambda: status and policy_is_up(), "the nodes", 120.0, nodes.check)
        c.until(lambda: c.trigger("arm").success, "arming")
        c.until(lambda: len(steps) > 2, "the first steps", check=nodes.check)
        c.spin(WARM_S)
        first_step, first_chunk, first_status = len(steps), len(chunks), len(status)
        processes = {name: psutil.Process(node.process.pid) for name, node in nodes.nodes.items()}
        processes["this bench"] = psutil.Process()

        def used() -> dict[str, float]:
            return {name: sum(p.cpu_times()[:2]) for name, p in processes.items()}

        before, busy, start = used(), busy_s(), time.monotonic()
        while time.monotonic() - start < 60.0 * args.minutes:
            c.spin(0.5)
            nodes.check()
            if status[-1].state != status[-1].ARMED:  # a busy machine looked like a fault; count it and go on
                figures.lost += 1
                print(f"  {status[-1].state_name}: {status[-1].reason}", file=sys.stderr)
                c.until(lambda: c.trigger("arm").success, "arming")
        wall_s, after = time.monotonic() - start, used()
        figures.frozen = sum("gone or frozen" in m.reason for m in status[first_status:])
        figures.shares = {name: 100 * (after[name] - before[name]) / wall_s for name in after}
        figures.others = 100 * (busy_s() - busy) / wall_s - sum(figures.shares.values())
    evaluate(figures, steps[first_step:], chunks[first_chunk:])
    return figures


def busy_s() -> float:
    """Processor time that the whole machine has spent on anything, s."""
    import psutil

    times = psutil.cpu_times()
    return float(times.user + times.nice + times.system + times.irq + times.softirq)


def evaluate(figures: Figures, steps: list[Any], chunks: list[Any]) -> None:
    """Fill in the times: all are stamps of one machine's clock."""
    from world_gymnast_ros.nodes.convert import to_ns

    chosen = {m.sequence: m for m in chunks}
    sent_ns = {(m.chunk_sequence, m.chunk_index): to_ns(m.header.stamp) for m in steps if m.verdict < m.HOLD}
    for (sequence, index), at_ns in sent_ns.items():
        chunk = chosen.get(sequence)
        if index == 0 and chunk is not None:
            figures.total.append((at_ns - to_ns(chunk.frame_stamp)) * 1e-9)
            figures.seen.append((to_ns(chunk.inference_start) - to_ns(chunk.frame_stamp)) * 1e-9)
            figures.carried.append((at_ns - to_ns(chunk.inference_end)) * 1e-9)
        elif (sequence, index - 1) in sent_ns:
            figures.jitter.append(abs((at_ns - sent_ns[sequence, index - 1]) * 1e-9 - DT_S))


def words(times_s: list[float]) -> str:
    """Return p50, p99 and worst in ms."""
    ms = 1000 * np.array(times_s)
    return " / ".join(f"{v:.1f}" for v in (*np.percentile(ms, [50, 99]), ms.max())) if times_s else "-"


def main() -> int:
    """Measure every rate under every load."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, default=10.0, help="per row")
    parser.add_argument("--rates", type=float, nargs="+", default=[5.0, 30.0], help="of the camera, Hz")
    parser.add_argument("--loads", nargs="+", default=["none", "nice10", "session10"],
                        help="none; niceN; sessionN: niceness of the whole session, as adapt_node and `world-gymnast` "
                             "do it; idle: SCHED_IDLE; freeN: N cores left alone")
    parser.add_argument("--nodes", type=int, default=0, help="niceness of the nodes; below 0 only with the right to")
    parser.add_argument("--policy", choices=("free", "shipped"), default="free")
    parser.add_argument("--images", choices=(ARM, NOISE), default=ARM,
                        help="noise: no image is like the one before, so each is searched for the arm at once")
    parser.add_argument("--apart", action="store_true", help="every node in a terminal of its own")
    for hidden in ("--role", "--rate", "--kind"):
        parser.add_argument(hidden, default="", help=argparse.SUPPRESS)
    args, rest = parser.parse_known_args()
    if args.role:
        return {"camera": lambda: camera(float(args.rate), args.images), "policy": lambda: free_policy(rest),
                "load": lambda: train(args.kind)}[args.role]()
    if rest:
        parser.error(f"unknown: {' '.join(rest)}")
    from world_gymnast_ros.nodes import graph

    os.environ.update({"ROS_DOMAIN_ID": str(DOMAIN_ID), "OMP_NUM_THREADS": "1"})
    os.environ.update(graph.ros_environment())
    columns = ("camera, Hz", "load", "n", "image's stamp to command sent", "of that: to the policy",
               "from the policy", "jitter of the 0.2 s beat", "other processes", "holds", "frozen")
    print("Times in ms: p50 / p99 / worst. Other processes: percent of one core.\n")
    print(f"| {' | '.join(columns)} |\n{'|---' * len(columns)}|", flush=True)
    notes = []
    for load in args.loads:
        for rate_hz in args.rates:
            with tempfile.TemporaryDirectory() as folder:
                f = measure(rate_hz, load, args, Path(folder))
            times = " | ".join(words(v) for v in (f.total, f.seen, f.carried, f.jitter))
            counts = f"{f.others:.0f} % | {f.lost} | {f.frozen}"
            print(f"| {rate_hz:g} | {load} | {len(f.total)} | {times} | {counts} |", flush=True)
            shares = ", ".join(f"{name} {share:.0f} %" for name, share in f.shares.items())
            notes.append(f"{rate_hz:g} Hz, {load}: {shares}")
    print("\nProcessor time of each process:\n" + "\n".join(f"- {note}" for note in notes))
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
