"""The machine's own clock is stepped under the whole graph: driver, camera, policy and arm, in the middle of a chunk.

Stepping a machine's clock needs the right to, and hits everything that runs on it. So the processes of the graph
preload `clock_shim.c`, which shifts what they read of the real-time clock, and their waits until a real time, by a
number in a shared file. Nothing is simulated inside them: no `use_sim_time`.
"""
from __future__ import annotations

import ctypes
import mmap
import os
import struct
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import av
import numpy as np
import pytest

pytest.importorskip("rclpy")
pytest.importorskip("interbotix_xs_msgs")
from fault_log import holds_after, record
from ros_tools import PATIENCE_S, SLOWNESS, TICK, Client, client
from test_faults import DRIVER, GROUP, LATCH, LIMITS
from test_faults_graph import Swinging, drive
from test_serve import WORDS, serving

from world_gymnast_ros.nodes import base, convert, graph
from world_gymnast_ros.serving.server import PolicyService

pytestmark = [pytest.mark.ros, pytest.mark.slow]
STEP_S = 100.0 if TICK else 100.0 * SLOWNESS
NEAR_NS = 0.1e9 * STEP_S
"""What is stamped on the new time lies so near to it; what is on the old, `STEP_S` away."""


class MachineClock:
    """The offset that the graph's processes add to the kernel's clock, and the environment that makes them."""

    def __init__(self, folder: Path) -> None:
        library, self._file = folder / "clock_shim.so", folder / "offset"
        source = Path(__file__).with_name("clock_shim.c")
        subprocess.run(["cc", "-O2", "-Wall", "-Werror", "-shared", "-fPIC", "-o", str(library), str(source), "-ldl"],
                       check=True)
        self._file.write_bytes(bytes(mmap.PAGESIZE))
        with self._file.open("r+b") as file:
            self._page = mmap.mmap(file.fileno(), mmap.PAGESIZE)
        self.preload = {"LD_PRELOAD": str(library), "CLOCK_OFFSET_FILE": str(self._file)}

    def step(self, seconds: float) -> None:
        """Set the offset, at once and whole: one aligned 8-byte store."""
        ctypes.c_int64.from_buffer(self._page).value = round(seconds * 1e9)

    def now_ns(self) -> int:
        return time.time_ns() + int(struct.unpack_from("<q", self._page)[0])


@pytest.fixture()
def clock(tmp_path: Path) -> MachineClock:
    return MachineClock(tmp_path)


@pytest.fixture()
def nodes(clock: MachineClock, tmp_path: Path) -> Iterator[graph.Graph]:
    """Driver, camera_node on a noisy clip, arm_node and policy_node, all on the stepped clock; a free policy behind."""
    rng = np.random.default_rng(0)
    with av.open(str(tmp_path / "noise.mp4"), "w") as container:
        stream = container.add_stream("libx264", rate=15)
        stream.width, stream.height, stream.pix_fmt = 64, 48, "yuv420p"
        for _ in range(30):
            container.mux(stream.encode(av.VideoFrame.from_ndarray(rng.integers(0, 256, (48, 64, 3), np.uint8),
                                                                   format="rgb24")))
        container.mux(stream.encode())
    with serving(PolicyService(Swinging())) as server:
        limits = {} if TICK else {"max_frame_age_s": 3.0}
        specs = [DRIVER, graph.CAMERA.with_overrides(source=str(tmp_path / "noise.mp4"), rate_hz=15.0),
                 graph.ARM.with_overrides(**LIMITS, **LATCH),
                 graph.POLICY.with_overrides(policy_url=server.url, instruction=WORDS, retry_s=2.0, **limits)]
        with graph.start(specs, {**graph.ros_environment(log_dir=tmp_path), **clock.preload}, tmp_path) as running:
            yield running
            codes = running.stop(grace_s=PATIENCE_S)
    assert set(codes.values()) == {0}, codes  # they end cleanly on the stepped clock too


@pytest.fixture()
def c() -> Iterator[Client]:
    with client() as c:
        c.hear("step", convert.StepMsg)
        c.hear("arm_status", convert.ArmStatusMsg, base.LATCHED)
        c.hear("/diagnostics", convert.DiagnosticArray)
        c.hear("image_raw", convert.Image, base.NEWEST)
        c.hear(GROUP, convert.xs_msg.JointGroupCommand)
        yield c


def test_the_shim_steps_the_clock_and_the_waits_of_a_process(clock: MachineClock) -> None:
    """The test's own tool: a child sees the step in every clock, and a wait until a real time ends with it."""
    code = ("import ctypes, sys, time, datetime\n"
            "libc = ctypes.CDLL(None, use_errno=True)\n"
            "tell = lambda: print(time.time(), datetime.datetime.now().timestamp(), time.monotonic(), flush=True)\n"
            "tell(); sys.stdin.readline(); tell()\n"
            "sem, until = ctypes.create_string_buffer(64), (ctypes.c_long * 2)(int(time.time()) + 50, 0)\n"
            "libc.sem_init(sem, 0, 0); begin = time.monotonic()\n"
            "print('waiting', flush=True); libc.sem_timedwait(sem, until); print(time.monotonic() - begin)\n")
    child = subprocess.Popen([sys.executable, "-c", code], env={**os.environ, **clock.preload}, text=True,
                             stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    assert child.stdin is not None and child.stdout is not None
    before = [float(v) for v in child.stdout.readline().split()]
    clock.step(STEP_S)
    print(file=child.stdin, flush=True)
    after = [float(v) for v in child.stdout.readline().split()]
    assert np.subtract(after, before) == pytest.approx([STEP_S, STEP_S, 0.0], abs=5.0)
    assert child.stdout.readline() == "waiting\n"
    time.sleep(0.2)
    clock.step(STEP_S + 60.0)  # past its deadline
    assert float(child.stdout.readline()) < 20.0 and child.wait(20) == 0


@pytest.mark.parametrize("jump_s", [-STEP_S, STEP_S])
def test_the_machines_clock_steps_in_the_middle_of_a_chunk(
    jump_s: float, clock: MachineClock, nodes: graph.Graph, c: Client
) -> None:
    steps, status, images = c.heard["step"], c.heard["arm_status"], c.heard["image_raw"]
    drive(c, nodes)
    assert abs(convert.to_ns(steps[-1].header.stamp) - time.time_ns()) < NEAR_NS
    heard = len(steps)
    c.until(lambda: len(steps) > heard and steps[-1].chunk_index == 1, "the middle of a chunk", check=nodes.check)
    clock.step(jump_s)
    since, first, seen, armings = time.monotonic(), len(steps), len(images), 0
    way = "back" if jump_s < 0 else "forward"
    chunk = steps[-1].chunk_sequence

    rest = c.until_over(chunk, 4)
    assert [s.chunk_index for s in rest] == [0, 1, 2, 3] and all(s.verdict < s.HOLD for s in rest)
    last = c.times["step"][-1]
    assert abs(convert.to_ns(steps[-1].header.stamp) - clock.now_ns()) < NEAR_NS  # it is on the new time
    c.until(lambda: len(images) > seen + 5, "the camera to go on", check=nodes.check)
    assert all(abs(convert.to_ns(m.header.stamp) - clock.now_ns()) < NEAR_NS for m in images[seen + 2:])

    def again() -> bool:
        nonlocal armings
        if status[-1].state == status[-1].HOLDING:
            if not armings:
                record(f"machine's clock stepped {way} {STEP_S:g} s: latched", time.monotonic() - since,
                       status[-1].reason)
            armings += bool(c.trigger("arm").success)
        return len([s for s in steps[first:] if abs(convert.to_ns(s.frame_stamp) - clock.now_ns()) < 2 * NEAR_NS]) > 8

    c.until(again, "two chunks on frames of the new time", check=nodes.check)
    record(f"machine's clock stepped {way} {STEP_S:g} s: acts again", time.monotonic() - since,
           f"armed {armings} times")
    next_s = next(t for t in c.times[GROUP] if t > last + 0.1) - last
    acted_s = next(t for t in c.times["step"] if t > last + 0.1) - last  # before that, there are only holds
    waited = "held" if next_s < acted_s - 0.1 else "the next action"
    record(f"machine's clock stepped {way} {STEP_S:g} s: {waited}, from the last action", next_s, "")
    assert next_s < (0.6 if TICK else PATIENCE_S)
    played = [convert.to_ns(s.header.stamp) * 1e-9 for s in steps if s.verdict < s.HOLD]  # by the node, not by DDS
    gaps_s = np.diff(played)
    gaps_s[np.abs(gaps_s - jump_s) < 0.5 * STEP_S] -= jump_s
    assert gaps_s.min() > 0.1, f"actions were hurried: {gaps_s.round(3)}"
    assert time.monotonic() - since < STEP_S / 2

    # Stop and the watchdog's clocks are the steady one: both work as ever.
    c.say("stop", convert.Bool, base.RELIABLE, convert.Bool(data=False))  # known to DDS before it is needed
    c.until(lambda: steps[-1].chunk_index == 1, "the middle of a chunk", check=nodes.check)
    pressed = time.monotonic()
    c.say("stop", convert.Bool, base.RELIABLE, convert.Bool(data=True))
    c.until_state(status[-1].STOPPED)
    c.until(lambda: holds_after(c, GROUP, pressed), "the hold")
    took_s = holds_after(c, GROUP, pressed)[0] - pressed
    record(f"stop after the machine's clock stepped {way}", took_s, status[-1].reason)
    assert not TICK or took_s < 0.05
    c.say("stop", convert.Bool, base.RELIABLE, convert.Bool(data=False))
    c.until(lambda: c.trigger("disarm").success, "disarm")
