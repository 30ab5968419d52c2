"""Read a recorded episode back as arrays: row t is the action taken at frame t."""
from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from world_gymnast_ros.episodes.bag import recorded, recorded_types
from world_gymnast_ros.episodes.files import HEADER_NAME, MCAP_NAME, PARTIAL_SUFFIX, STEPS_NAME, read_json
from world_gymnast_ros.episodes.outcome import Outcome, read_outcome
from world_gymnast_ros.episodes.provenance import images_acted_on
from world_gymnast_ros.episodes.schemas import IMAGES, decode_image, decoder, header_stamp_ns
from world_gymnast_ros.episodes.steps import StepTable, read_steps
from world_gymnast_ros.errors import BadFrame, EpisodeError
from world_gymnast_ros.images import resize_rgb
from world_gymnast_ros.robot.actions import bridge_state
from world_gymnast_ros.robot.kinematics import JOINT_NAMES, fk
from world_gymnast_ros.types import CONTROL_DT_S, F32, I64, U8

JOINT_STATE = "sensor_msgs/msg/JointState"
FINGER_CLOSED_M, FINGER_TRAVEL_M = 0.010, 0.025
"""Bridge's gripper reading: (left_finger - 0.010) / 0.025."""


@dataclass(frozen=True)
class Episode:
    """One episode of T actions. `frames` uint8 (T+1, H, W, 3) RGB; `frame_stamps_ns` int64 (T+1,), capture times.

    `steps` has T rows; row t was taken at frame t, and frame T is the first image after the last action.
    `states` float32 (T+1, 7) measured Bridge states at the frames; `last_state_measured` is False when no joint
    states were recorded, and row T is then the last commanded target. `header` is what the recorder was started with.
    """

    episode_id: str
    path: Path
    instruction: str
    adapter: str
    header: dict[str, Any]
    ended_by: str
    outcome: Outcome
    frames: U8
    frame_stamps_ns: I64
    steps: StepTable
    states: F32
    last_state_measured: bool

    @property
    def actions(self) -> F32:
        """Return what the arm was told, float32 (T, 7), physical units. See `StepTable.executed`."""
        return self.steps.executed()

    @property
    def target_states(self) -> F32:
        """Return the targets float32 (T+1, 7), Bridge states: row t is what action t was added to.

        The first is the measured state: arming makes that the target.
        """
        after = bridge_state(self.steps.T_base_target, self.steps.gripper_command)
        return np.concatenate([self.states[:1], after]).astype(np.float32)


def read_episode(folder: Path, size: tuple[int, int] | None = None, image_topic: str | None = None) -> Episode:
    """Read a finished episode, images resized to `size` (h, w) if given.

    `image_topic` chooses between cameras. Raises EpisodeError when the episode is partial or broken, holds no step or
    no image, or the camera is ambiguous.
    """
    if folder.name.endswith(PARTIAL_SUFFIX):
        raise EpisodeError(f"{folder} was never finished; run `world-gymnast episodes repair {folder}`")
    header = read_json(folder / HEADER_NAME)
    steps = read_steps(folder / STEPS_NAME)
    if len(steps) == 0:
        raise EpisodeError(f"{folder} holds no control step, so there is no action to read; was the arm armed?")
    topic, kind = camera(folder, image_topic)
    stamps_ns = np.array(sorted(header_stamp_ns(cdr) for _, cdr in messages(folder, topic)), dtype=np.int64)
    chosen_ns = stamps_ns[choose_frames(steps, stamps_ns)]
    last_state = _state_after(folder, int(chosen_ns[-1]))
    states = np.empty((len(steps) + 1, 7), np.float32)
    states[:-1] = bridge_state(steps.T_base_measured, steps.gripper)
    fallback = bridge_state(steps.T_base_target[-1], float(steps.gripper_command[-1]))
    states[-1] = fallback if last_state is None else last_state
    return Episode(
        episode_id=str(header["episode_id"]), path=folder, instruction=_instruction(steps, header["header"]),
        adapter=steps.adapter[0], header=dict(header["header"]), ended_by=str(header["ended_by"]),
        outcome=read_outcome(folder), frames=_decode(folder, topic, kind, chosen_ns, size), frame_stamps_ns=chosen_ns,
        steps=steps, states=states, last_state_measured=last_state is not None,
    )


def first_image(episode: Episode, image_topic: str | None = None) -> U8:
    """Return the image of the first action uint8 (H, W, 3) at the camera's own size."""
    topic, kind = camera(episode.path, image_topic)
    return np.asarray(_decode(episode.path, topic, kind, episode.frame_stamps_ns[:1], None)[0])


def choose_frames(steps: StepTable, stamps_ns: I64, dt_s: float = CONTROL_DT_S) -> I64:
    """Return the indices (T+1,) into sorted capture times `stamps_ns` of the frames that the steps were taken at.

    The first action of a chunk belongs to the very frame that the policy saw (Step.frame_stamp); a later one to the
    newest frame when it was sent. The last frame is the first one 0.9 periods after the last action, or the newest.
    """
    rows = images_acted_on(stamps_ns, steps.stamps_ns, steps.frame_stamps_ns, steps.chunk_index)
    after_ns = int(steps.stamps_ns[-1]) + round(0.9e9 * dt_s)
    last = min(int(np.searchsorted(stamps_ns, after_ns, side="left")), len(stamps_ns) - 1)
    # Never back in time, and never before the first image.
    out: I64 = np.maximum.accumulate(np.append(np.maximum(rows, 0), last)).astype(np.int64)
    return out


def messages(folder: Path, topic: str) -> Iterator[tuple[int, bytes]]:
    """Yield (receive time ns, CDR) of one topic. Raises EpisodeError if the file cannot be read."""
    for _, _, received_ns, cdr in recorded(folder / MCAP_NAME, [topic]):
        yield received_ns, cdr


def camera(folder: Path, wanted: str | None = None) -> tuple[str, str]:
    """Return topic and type of the images; `wanted` chooses between cameras. Raises EpisodeError."""
    cameras = {topic: kind for topic, kind in recorded_types(folder / MCAP_NAME).items() if kind in IMAGES}
    found = cameras if not wanted else {topic: kind for topic, kind in cameras.items()
                                        if topic.removesuffix("/compressed").strip("/") == wanted.strip("/")
                                        or topic == wanted}
    if not cameras:
        raise EpisodeError(f"{folder} holds no images; was a camera running when it was recorded?")
    if len(found) != 1:
        content = f"no camera {wanted}" if wanted else f"{len(cameras)} cameras"
        raise EpisodeError(f"{folder} holds {content}; choose one with --camera: {', '.join(sorted(cameras))}")
    return next(iter(found.items()))


def _decode(folder: Path, topic: str, kind: str, chosen_ns: I64, size: tuple[int, int] | None) -> U8:
    """Decode the images with the given capture times, in order."""
    wanted = set(chosen_ns.tolist())
    images: dict[int, U8] = {}
    for _, cdr in messages(folder, topic):
        stamp_ns = header_stamp_ns(cdr)
        if stamp_ns in wanted and stamp_ns not in images:
            try:
                image = decode_image(kind, cdr)
            except (BadFrame, EpisodeError) as error:
                seconds = (stamp_ns - int(chosen_ns[0])) * 1e-9
                raise EpisodeError(f"{folder.name}: the image {seconds:.2f} s after the first cannot be used: {error}"
                                   ) from error
            images[stamp_ns] = image if size is None else resize_rgb(image, size)
    shapes = {image.shape for image in images.values()}
    if len(shapes) != 1:
        raise EpisodeError(f"{folder}: the images have {len(shapes)} sizes {sorted(shapes)}; read with one `size`")
    return np.stack([images[stamp] for stamp in chosen_ns.tolist()])


def _state_after(folder: Path, stamp_ns: int) -> F32 | None:
    """Return the measured Bridge state at the first joint states received at or after `stamp_ns`, or the newest."""
    topic = next((t for t, kind in recorded_types(folder / MCAP_NAME).items() if kind == JOINT_STATE), None)
    decode, arm, finger = decoder(JOINT_STATE), None, None
    # Several drivers may publish there, such as a gripper's own: the arm's joints and the finger come by their names.
    for received_ns, cdr in messages(folder, topic) if topic else ():
        message = decode(cdr)
        places = dict(zip(message.name, message.position, strict=False))
        finger = places.get("left_finger", finger)
        if all(name in places for name in JOINT_NAMES):
            arm = [places[name] for name in JOINT_NAMES]
            if received_ns >= stamp_ns and finger is not None:
                break
    if arm is None or finger is None:
        return None
    return bridge_state(fk(np.array(arm)), (finger - FINGER_CLOSED_M) / FINGER_TRAVEL_M)


def _instruction(steps: StepTable, header: dict[str, Any]) -> str:
    return next((text for text in steps.instruction if text), str(header.get("instruction", "")))
