"""May a policy act on what this camera shows? Picture statistics and the arm's silhouette, over the last few pictures.

Pure: the caller passes pictures and, where it knows it, the arm's pose at the picture. Without a pose, or a camera,
the silhouette says nothing, and only the picture's own numbers count.
"""
from __future__ import annotations

from typing import NamedTuple

import numpy as np

from world_gymnast_ros.control.arm_in_picture import arm_finding, fit_silhouette, silhouette_maps
from world_gymnast_ros.control.picture_statistics import Finding, PictureFault, still_finding
from world_gymnast_ros.robot.actions import bridge_state
from world_gymnast_ros.types import F64, U8

IN_A_ROW = 2
"""So many pictures with the same definite fault: one alone may be a camera that is still starting."""
POSES = 3
"""Remembered for the silhouette; more would remember a camera that was put right meanwhile."""
MOVED_M = 0.02
"""A pose counts as another one when the end effector moved so far."""
AT_REST_M = 0.015
"""The arm sags and lags by 5 to 8 mm; 15 mm are less than one cell of the silhouette."""
POSE_AGE_NS = 1_000_000_000
"""Longest time between a picture and the measured poses around it."""


class PictureVerdict(NamedTuple):
    """`refuse`: do not act on this picture. `lasting`: it is no glitch, the arm must not be armed. `silhouette`: how
    well the arm fits, None if that is not known."""

    finding: Finding | None
    refuse: bool
    lasting: bool
    silhouette: float | None

    @property
    def words(self) -> str:
        """What to tell people; "" when nothing is wrong."""
        return self.finding.words if self.finding else ""


class PictureCheck:
    """Looks at pictures one after the other."""

    def __init__(self, aspect: float, camera: tuple[float, ...] | None) -> None:
        """`aspect` width / height that the policy was trained for, 0: any. `camera` as from
        `arm_silhouette.projection`, None: not known."""
        self._aspect, self._camera = aspect, camera
        self._seen: list[tuple[F64, F64]] = []  # silhouette maps, and where the end effector was (3,)
        self._last: PictureFault | None = None
        self._in_a_row = 0

    def look(self, rgb: U8, T_base_ee: F64 | None) -> PictureVerdict:
        """Return what is to be said of a picture uint8 (H, W, 3) taken with the arm at rest at `T_base_ee` (4, 4)."""
        finding, fit = still_finding(rgb, self._aspect), None
        if T_base_ee is not None and self._camera is not None and not (finding and finding.definite):
            maps = silhouette_maps(rgb, bridge_state(T_base_ee, 1.0), self._camera)
            if maps is not None:
                self._remember(maps, T_base_ee[:3, 3])
                fit = fit_silhouette([seen for seen, _ in self._seen])
                finding = arm_finding(fit) or finding
        definite = finding is not None and finding.definite
        fault = finding.fault if finding is not None and definite else None
        self._in_a_row = self._in_a_row + 1 if definite and fault is self._last else int(definite)
        self._last = fault
        return PictureVerdict(finding, definite, self._in_a_row >= IN_A_ROW, float(fit.scores[0]) if fit else None)

    def _remember(self, maps: F64, xyz_m: F64) -> None:
        if self._seen and np.linalg.norm(self._seen[-1][1] - xyz_m) < MOVED_M:
            self._seen.pop()
        self._seen = [*self._seen, (maps, xyz_m)][-POSES:]


class PoseAtPicture:
    """The arm's pose at a picture's time, from poses that come a few times a second: known only when it was at rest."""

    def __init__(self) -> None:
        self._poses: list[tuple[int, F64]] = []

    def add(self, stamp_ns: int, T_base_ee: F64) -> None:
        """Note a measured pose (4, 4)."""
        self._poses = [*self._poses, (stamp_ns, T_base_ee)][-2:]

    def rests(self, stamp_ns: int, T_base_ee: F64) -> None:
        """Note where the arm comes to rest after its last action."""
        self._poses = [(stamp_ns, T_base_ee)] * 2

    def at(self, stamp_ns: int) -> F64 | None:
        """Return the pose (4, 4) at a time, or None: not known, or under way."""
        if len(self._poses) < 2 or any(abs(stamp_ns - at_ns) > POSE_AGE_NS for at_ns, _ in self._poses):
            return None
        (_, before), (_, now) = self._poses
        still = float(np.linalg.norm(before[:3, 3] - now[:3, 3])) < AT_REST_M
        return now if still and bool(np.isfinite(now).all()) else None
