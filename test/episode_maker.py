"""Make small recordings for tests: a simulated camera, policy and arm, recorded as a real graph would be."""
from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from world_gymnast_ros.episodes import EpisodeWriter
from world_gymnast_ros.episodes.schemas import STEP, header_of, message_class, serialize, time_of
from world_gymnast_ros.robot.actions import pose_from_state

START_NS = 1_780_000_000_000_000_000
CAMERA_PERIOD_NS = 66_666_667
STEP_NS = 200_000_000
INFERENCE_NS = 80_000_000
K = 4
HEIGHT, WIDTH, BAR_PX = 48, 160, 8
PX_PER_M = 200.0


def step_cdr(stamp_ns: int, frame_stamp_ns: int = START_NS, sequence: int = 0, index: int = 0,
             action: np.ndarray | None = None, x_m: float = 0.2, verdict: int = 0, gripper_command: float = 1.0,
             instruction: str = "push the red block left") -> bytes:
    """Serialize one Step. `x_m` is where the arm is measured; the target is there plus the action."""
    delta = np.array([0, 0, 0, 0, 0, 0, 1], np.float32) if action is None else action.astype(np.float32)
    measured = pose_from_state(np.array([x_m, 0, 0.15, 0, 0, 0, 1], np.float32))
    target = measured.copy()
    target[:3, 3] += delta[:3]
    six = np.arange(6, dtype=np.float64) / 10
    message = message_class(STEP)(
        header=header_of(stamp_ns, "base_link"), frame_stamp=time_of(frame_stamp_ns), chunk_sequence=sequence,
        chunk_index=index, chunk_size=K, requested=delta * 2, sent=delta if verdict < 2 else np.zeros(7, np.float32),
        verdict=verdict, reason="" if verdict == 0 else "a reason", t_base_target=target.ravel(),
        t_base_measured=measured.ravel(), joints=six, joint_velocities=six + 1, efforts=six + 2,
        commanded_joints=six + 3, gripper=1.0, gripper_command=gripper_command, adapter="base", instruction=instruction,
    )
    return serialize(STEP, message)


@dataclass
class Truth:
    """What really happened: the actions, and the capture times of the frames they were taken at, T+1 of them."""

    actions: list[np.ndarray] = field(default_factory=list)
    frame_stamps_ns: list[int] = field(default_factory=list)


def bar_image(x_m: float) -> np.ndarray:
    """Draw the arm as a white bar whose left edge stands at x_m."""
    rgb = np.full((HEIGHT, WIDTH, 3), 30, np.uint8)
    left = round(x_m * PX_PER_M)
    rgb[:, left : left + BAR_PX] = 230
    return rgb


def bar_position_m(rgb: np.ndarray) -> float:
    """Read back where the bar stands, from an image that went through JPEG or H.264."""
    bright = np.flatnonzero(rgb[:, :, 1].mean(axis=0) > 130)
    return float(bright[0] / PX_PER_M * (WIDTH / rgb.shape[1]))


def record(root: Path, episode_id: str = "one", chunks: int = 3, seed: int = 0, outcome: str = "unknown",
           instruction: str = "push the red block left", reserve_bytes: int = 0) -> tuple[Path, Truth]:
    """Record an arm that moves at once when told, seen by a camera of 15 Hz; return the folder and what happened."""
    rng = np.random.default_rng(seed)
    writer = EpisodeWriter(root, episode_id, {"instruction": instruction, "scene": "test"}, START_NS, reserve_bytes)
    truth, x_m, now_ns, next_image_ns, newest_ns = Truth(), 0.2, START_NS, START_NS, 0

    def camera_until(until_ns: int) -> None:
        nonlocal next_image_ns, newest_ns
        while next_image_ns <= until_ns:
            newest_ns = next_image_ns
            writer.write_image("/image_raw", bar_image(x_m), newest_ns, newest_ns + 5_000_000, "camera")
            next_image_ns += CAMERA_PERIOD_NS

    camera_until(now_ns)
    for sequence in range(chunks):
        seen_ns = newest_ns
        now_ns = seen_ns + INFERENCE_NS
        for index in range(K):
            camera_until(now_ns)
            action = np.zeros(7, np.float32)
            action[0], action[6] = rng.integers(-8, 9) / PX_PER_M, 1.0
            action[0] = action[0] if 0.05 < x_m + action[0] < 0.7 else -action[0]
            truth.actions.append(action)
            truth.frame_stamps_ns.append(seen_ns if index == 0 else newest_ns)
            cdr = step_cdr(now_ns, seen_ns, sequence, index, action, x_m, instruction=instruction)
            writer.write("/step", STEP, cdr, now_ns)
            x_m += float(action[0])
            last_send_ns = now_ns
            now_ns += STEP_NS
        # The policy waits for a frame that shows the chunk's last action.
        camera_until(last_send_ns)
        while newest_ns < last_send_ns + round(0.9 * STEP_NS):
            camera_until(next_image_ns)
    truth.frame_stamps_ns.append(newest_ns)
    marked_by = "" if outcome == "unknown" else "test"
    return writer.close("done", now_ns, outcome, marked_by), truth
