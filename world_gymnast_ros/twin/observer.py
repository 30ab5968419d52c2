"""What is noted of a twin at each frame of an episode: the camera's frame, where the arm is, what physics knows."""
from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from world_gymnast_ros.images import resize_rgb
from world_gymnast_ros.robot.actions import bridge_state
from world_gymnast_ros.robot.arm_silhouette import projection
from world_gymnast_ros.twin.model import CAMERA_FOCAL_PX, CAMERA_HEIGHT, CAMERA_WIDTH, camera_pose
from world_gymnast_ros.twin.scene import ObjectSpec, Scene
from world_gymnast_ros.twin.sim import Twin
from world_gymnast_ros.twin.tasks import DIRECTIONS
from world_gymnast_ros.types import F32, U8, Frame

SIZE_PX = 64
CAPTURE_HEIGHT, CAPTURE_WIDTH = 144, 192
"""Size of the first frame that is kept beside the small ones, for judges that need more pixels."""
RENDER_WIDTH, RENDER_HEIGHT = 320, 240
MAX_OBJECTS, MAX_ALTERNATIVES = 5, 14


def instructions_for(objects: tuple[ObjectSpec, ...]) -> list[str]:
    """Return every instruction the twin can measure for these objects."""
    movable = [o.name for o in objects if o.shape != "plate"]
    plates = [o.name for o in objects if o.shape == "plate"]
    out = [f"reach the {n}" for n in movable]
    out += [f"push the {n} {d}" for n in movable for d in DIRECTIONS]
    return out + [f"put the {n} on the {p}" for n in movable for p in plates]


def capture(twin: Twin) -> tuple[Frame, F32]:
    """Return the camera's frame and the measured Bridge state (7,) now."""
    state = twin.arm_state(0)
    frame = Frame(twin.render(RENDER_WIDTH, RENDER_HEIGHT), round(twin.time_s * 1e9))
    return frame, bridge_state(state.T_base_ee, state.gripper)


def scene_camera(scene: Scene) -> tuple[float, ...]:
    """Return the projection of the scene's true camera (12,), as from `arm_silhouette.projection`."""
    return projection(camera_pose(scene), CAMERA_FOCAL_PX, CAMERA_WIDTH, CAMERA_HEIGHT)


def nominal_camera() -> tuple[list[float], list[float]]:
    """Return the Bridge camera's T_base_camera (16 numbers, row by row) and its focal lengths in halves of the image.
    """
    pose = camera_pose(Scene("nominal", ("reach the red block",), (ObjectSpec("red", "block"),)))
    return [float(x) for x in pose.ravel()], [2 * CAMERA_FOCAL_PX / CAMERA_WIDTH, 2 * CAMERA_FOCAL_PX / CAMERA_HEIGHT]


@dataclass(frozen=True)
class Seen:
    """One moment: `frame` uint8 (h, w, 3) as the models draw it; `measured` (7,) Bridge state; `success` so far;
    `alternatives` (A,) success of the scene's other instructions; `objects_m` (O, 3), base frame."""

    frame: U8
    measured: F32
    success: bool
    alternatives: NDArray[np.bool_]
    objects_m: F32


class Observer:
    """Looks at a twin that was just reset; measures success of the scene's other instructions too, for labels."""

    def __init__(self, twin: Twin, size: tuple[int, int] = (SIZE_PX, SIZE_PX)) -> None:
        self.twin, self.size = twin, size
        self.names = [o.name for o in twin.scene.objects][:MAX_OBJECTS]
        self.alternatives = [i for i in instructions_for(twin.scene.objects)
                             if i != twin.task.instruction][:MAX_ALTERNATIVES]
        twin.track(self.alternatives)

    def look(self, rgb: U8 | None = None) -> Seen:
        """Note this moment; `rgb` is the camera's frame where it was rendered already."""
        twin = self.twin
        rgb = twin.render(RENDER_WIDTH, RENDER_HEIGHT) if rgb is None else rgb
        state = twin.arm_state(0)
        alternatives, xyz = np.zeros(MAX_ALTERNATIVES, bool), np.zeros((MAX_OBJECTS, 3), np.float32)
        for i, text in enumerate(self.alternatives):
            alternatives[i] = twin.success(text)
        for i, name in enumerate(self.names):
            xyz[i] = twin.object_xyz(name)
        return Seen(resize_rgb(rgb, self.size), bridge_state(state.T_base_ee, state.gripper), twin.success(),
                    alternatives, xyz)

    def truth(self, seen: Sequence[Seen]) -> dict[str, NDArray[Any]]:
        """Return what only the twin knows of an episode, under the keys of a file of play data."""
        def padded(items: Sequence[str], count: int) -> NDArray[Any]:
            return np.array([*items, *[""] * (count - len(items))], "U64")
        return {"alt_success": np.stack([s.alternatives for s in seen], 1),
                "alt_instructions": padded(self.alternatives, MAX_ALTERNATIVES),
                "object_names": padded(self.names, MAX_OBJECTS), "objects_xyz": np.stack([s.objects_m for s in seen]),
                "scene": np.array(self.twin.scene.name, "U32")}
