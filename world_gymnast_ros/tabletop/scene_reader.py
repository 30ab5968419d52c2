"""`SceneReader`: where the camera is and where objects lie on the table, read off one captured frame.

A `Locator` finds named objects and the parts of the arm in the image; the arm's measured pose tells from the parts
where the camera is (`robot/camera.py`), so places on the table follow in m. The geometric judge asks it for the
objects of a task, the world model for everything that a hand could move.
"""
from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass
from hashlib import blake2b
from itertools import product

import numpy as np

from world_gymnast_ros.objects import ObjectTracks
from world_gymnast_ros.robot.arm_parts import part_points
from world_gymnast_ros.robot.camera import CameraPrior, FittedCamera, fit_camera
from world_gymnast_ros.tabletop.contact import OBJECT_SIZE_M, ObjectPaths, predicted_path
from world_gymnast_ros.tabletop.locator import Locator
from world_gymnast_ros.types import F32, F64, U8

CACHED = 256
FLAT_SHAPE = "plate"
"""Objects are put on it, and it stays where it is."""
FLAT_HEIGHT_M = 0.006
APART_M = 0.025
"""Two detections nearer than this are one object under two names."""


@dataclass(frozen=True)
class Measured:
    """What one captured frame says: places on the table (Q, 3) m of the named objects, the `confidence` (Q,) in each,
    the camera, or why nothing."""

    places_m: F64
    confidence: F64
    camera: FittedCamera | None
    fault: str = ""


@dataclass(frozen=True)
class Seen:
    """Objects that a hand could move: `places_m` float64 (N, 3), base axes, `sizes_m` (N, 2), radius and height that
    they are pushed with; `camera` float32 (12,), the projection that sees them, as from `arm_silhouette.projection`."""

    places_m: F64
    sizes_m: F64
    camera: F32


def _rows(T_base_camera: F64, focal_u: float, focal_v: float) -> F64:
    """Return the projection float64 (12,) of a camera; focal lengths in halves of the image."""
    return np.asarray(np.array([focal_u, focal_v, 1.0])[:, None] * np.linalg.inv(T_base_camera)[:3], np.float64).ravel()


class SceneReader:
    """Reads captured frames with a `Locator`. It looks once at each frame; what it makes of that follows the settings
    as they are (heights, sizes, detection thresholds), but for the camera's."""

    def __init__(self, locator: Locator) -> None:
        self.locator, self.config = locator, locator.config
        pose = np.array(self.config.T_base_camera, np.float64).reshape(4, 4)
        focal_u, focal_v = self.config.focal
        self.prior = CameraPrior(pose, focal_u, focal_v, self.config.shift_sigma_m, self.config.rotation_sigma_rad,
                                 self.config.seen_sigma)
        self._looks: OrderedDict[bytes, tuple[FittedCamera, F64, F64]] = OrderedDict()

    @property
    def projection(self) -> tuple[float, ...]:
        """The camera where this set-up has it, before a frame says more: 12 numbers (`arm_silhouette.projection`)."""
        return tuple(round(float(x), 9) for x in _rows(self.prior.T_base_camera, *self.config.focal))

    def measure(self, captured: U8, state: F32, names: tuple[str, ...]) -> Measured:
        """Find `names` in one captured frame uint8 (H, W, 3) taken at Bridge state (7,)."""
        camera, uv, confidence = self._look(captured, state, names)
        nothing = np.zeros((len(names), 3))
        if camera.rms > self.config.camera_rms:
            told = "no part of the arm was found" if not np.isfinite(camera.rms) else f"it is {camera.rms:.3f} off"
            return Measured(nothing, confidence, None, "the arm in the image does not agree with its measured pose "
                            f"({told}); check the camera and the joint states")
        lost = [n for n, s in zip(names, confidence, strict=True) if not s > self.detection_threshold(n)]
        if lost:
            return Measured(nothing, confidence, None, f"the {lost[0]} was not found in the captured frame")
        heights = np.array([self.height_m(n) for n in names])
        return Measured(camera.on_plane(uv, heights), confidence, camera)

    def objects(self, captured: U8, state: F32) -> Seen | None:
        """Find all objects that this locator has words for and a hand could move; None where the camera is not known.

        BadFrame where the frame is none; a frame of fewer pixels than the locator looks at says nothing.
        """
        if captured.shape[0] < self.config.height:
            return None
        names = tuple(f"{colour} {shape}" for colour, shape in product(self.config.colours, self.config.shapes)
                      if shape != FLAT_SHAPE)
        camera, uv, confidence = self._look(captured, state, names)
        if camera.rms > self.config.camera_rms:
            return None
        places_m = camera.on_plane(uv, np.array([self.height_m(n) for n in names]))
        kept: list[int] = []
        # Whoever has a size of its own is not taken for what it looks like.
        for i in sorted(range(len(names)), key=lambda n: (names[n] not in self.config.object_sizes_m, -confidence[n])):
            if confidence[i] > self.detection_threshold(names[i]) and all(
                    np.linalg.norm(places_m[i, :2] - places_m[k, :2]) > APART_M for k in kept):
                kept.append(i)
        rows = _rows(camera.T_base_camera, camera.focal_u, camera.focal_v)
        sizes_m = np.array([self.size_m(names[k]) for k in kept]).reshape(-1, 2)
        return Seen(places_m[kept].reshape(-1, 3), sizes_m, rows.astype(np.float32))

    def begin(self, captured: Sequence[U8], states: F32) -> tuple[ObjectPaths, F32] | None:
        """Find the objects in captured frames, one for each copy, taken at states (G, 7); return them as hands will
        move them, and the cameras float32 (G, 12) that see them. None where a frame says nothing of any."""
        found: dict[tuple[int, bytes], Seen | None] = {}  # copies of one start are looked at once
        keys = [(id(rgb), state.tobytes()) for rgb, state in zip(captured, states, strict=True)]
        for key, rgb, state in zip(keys, captured, states, strict=True):
            if key not in found:
                found[key] = self.objects(rgb, state)
        most = max((len(s.places_m) for s in found.values() if s is not None), default=0)
        places_m, sizes_m = np.full((len(keys), most, 3), np.nan), np.full((len(keys), most, 2), np.nan)
        cameras = np.zeros((len(keys), 12), np.float32)
        for i, key in enumerate(keys):
            seen = found[key]
            if seen is not None:
                count = len(seen.places_m)
                places_m[i, :count], sizes_m[i, :count], cameras[i] = seen.places_m, seen.sizes_m, seen.camera
        c = self.config
        return ObjectPaths(places_m, sizes_m, states, c.hand_lag, c.hand_sag_m), cameras

    def predict(self, captured: U8, states: F32) -> ObjectTracks | None:
        """Return where the objects in a captured frame will be under target states (T+1, 7); None: camera unknown."""
        seen = self.objects(captured, states[0])
        if seen is None:
            return None
        path_m = predicted_path(states[None].astype(np.float64), seen.places_m[None], seen.sizes_m[None],
                                self.config.hand_lag, self.config.hand_sag_m)[0]
        return ObjectTracks(path_m.astype(np.float32), seen.sizes_m.astype(np.float32), seen.camera)

    def height_m(self, name: str) -> float:
        """Return at what height the middle of what is seen of a named object lies, m above the table."""
        usual = FLAT_HEIGHT_M if name.endswith(FLAT_SHAPE) else self.config.object_height_m
        return self.config.object_heights_m.get(name, usual)

    def size_m(self, name: str) -> tuple[float, float]:
        """Return radius and height of the upright disc as which a named object is pushed, m."""
        radius_m, top_m = self.config.object_sizes_m.get(name, OBJECT_SIZE_M)
        return radius_m, top_m

    def detection_threshold(self, name: str) -> float:
        """Return the detection threshold of a named object."""
        return self.config.object_found.get(name, self.config.found)

    def _look(self, captured: U8, state: F32, names: tuple[str, ...]) -> tuple[FittedCamera, F64, F64]:
        """Return the camera, where names are seen (Q, 2), u, v, and with which confidence (Q,); one look a frame."""
        state = np.asarray(state, np.float32)
        key = blake2b(captured.tobytes() + state.tobytes() + "|".join(names).encode(), digest_size=16).digest()
        if key not in self._looks:
            uv, confidence, parts_uv, parts_sure = (
                x[0].astype(np.float64) for x in self.locator.detect(captured[None], names))
            camera = fit_camera(self.prior, part_points(state[None])[0].astype(np.float64), parts_uv,
                                np.where(parts_sure > self.config.found, parts_sure, 0.0))
            self._looks[key] = camera, uv, confidence
            while len(self._looks) > CACHED:
                self._looks.popitem(last=False)
        return self._looks[key]
