"""May a policy act on what this camera shows? Picture statistics, the arm's silhouette, and where the picture changes
when the arm moves, over the last few pictures.

Pure: the caller passes pictures and, where it knows it, the arm's pose at the picture. Without a pose, or a camera,
the silhouette says nothing, and only the picture's own numbers count.
"""
from __future__ import annotations

from typing import NamedTuple

import numpy as np

from world_gymnast_ros.control.arm_in_picture import ArmView, arm_finding, fit_silhouette, silhouette_maps, view_arm
from world_gymnast_ros.control.arm_motion import alike, change_maps, motion_agrees, motion_finding
from world_gymnast_ros.control.picture_statistics import Finding, PictureFault, still_finding
from world_gymnast_ros.robot.actions import bridge_state
from world_gymnast_ros.types import F64, U8

IN_A_ROW = 2
"""So many pictures with the same definite fault: one alone may be a camera that is still starting."""
POSES = 3
"""Remembered for the silhouette; more would remember a camera that was put right meanwhile."""
MOVES = 5
"""Motions of the arm that are remembered."""
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
        self._seen: list[F64] = []  # silhouette maps of pictures at different poses
        self._moves: list[F64] = []  # change maps between them
        self._at: tuple[ArmView, F64] | None = None  # the last picture at another pose, its end effector (3,)
        self._last: PictureFault | None = None
        self._in_a_row = 0

    def look(self, rgb: U8, T_base_ee: F64 | None) -> PictureVerdict:
        """Return what is to be said of a picture uint8 (H, W, 3) taken with the arm at rest at `T_base_ee` (4, 4)."""
        finding, fitted = still_finding(rgb, self._aspect), None
        if T_base_ee is not None and self._camera is not None and not (finding and finding.definite):
            view = view_arm(rgb, bridge_state(T_base_ee, 1.0), self._camera)
            if view is not None:
                self._remember(view, T_base_ee[:3, 3])
                of_arm, fitted = self._of_arm()
                finding = of_arm or finding
        definite = finding is not None and finding.definite
        fault = finding.fault if finding is not None and definite else None
        self._in_a_row = self._in_a_row + 1 if definite and fault is self._last else int(definite)
        self._last = fault
        return PictureVerdict(finding, definite, self._in_a_row >= IN_A_ROW, fitted)

    def _of_arm(self) -> tuple[Finding | None, float]:
        """Return what the remembered pictures say of the arm, and how well its silhouette fits them as they are."""
        still = fit_silhouette(self._seen)
        finding = arm_finding(still)
        if self._moves:
            moved = fit_silhouette(self._moves)
            if motion_agrees(moved):  # the stronger evidence
                finding = None
            finding = motion_finding(moved, len(self._moves)) or finding
        return finding, float(still.scores[0])

    def _remember(self, view: ArmView, xyz_m: F64) -> None:
        """Note a picture; one at the same place replaces the last, or ends what is known of a camera that changed."""
        before, self._at = self._at, (view, xyz_m)
        if before is None:
            self._seen = [silhouette_maps(view)]
        elif np.linalg.norm(before[1] - xyz_m) >= MOVED_M:
            self._seen = [*self._seen, silhouette_maps(view)][-POSES:]
            self._moves = [*self._moves, change_maps(before[0], view)][-MOVES:]
        elif alike(before[0], view):
            self._seen[-1], self._at = silhouette_maps(view), before  # the older one: an arm that creeps moves, too
        else:
            self._seen, self._moves = [silhouette_maps(view)], []


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
