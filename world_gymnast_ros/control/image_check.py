"""May a policy act on what this camera shows? Image statistics, the arm's silhouette, and where the image changes
when the arm moves, over the last few images.

Pure: the caller passes images and, where it knows it, the arm's pose at the image. Without a pose, or a camera,
the silhouette says nothing, and only the image's own numbers count.
"""
from __future__ import annotations

from typing import NamedTuple

import numpy as np

from world_gymnast_ros.control.arm_in_image import ArmView, arm_finding, fit_silhouette, silhouette_maps, view_arm
from world_gymnast_ros.control.arm_motion import alike, change_maps, motion_agrees, motion_finding, same_scene
from world_gymnast_ros.control.image_statistics import Finding, ImageFault, still_finding
from world_gymnast_ros.robot.actions import bridge_state
from world_gymnast_ros.types import F64, U8

IN_A_ROW = 2
"""So many images with the same definite fault: one alone may be a camera that is still starting."""
POSES = 3
"""Remembered for the silhouette; more would remember a camera that was put right meanwhile."""
MOVES = 5
"""Motions of the arm that are remembered."""
MOVED_M = 0.02
"""A pose counts as another one when the end effector moved so far."""
AT_REST_M = 0.015
"""The arm sags and lags by 5 to 8 mm; 15 mm are less than one cell of the silhouette."""
POSE_AGE_NS = 1_000_000_000
"""Longest time between an image and the measured poses around it."""


class ImageVerdict(NamedTuple):
    """`refuse`: do not act on this image. `lasting`: it is no glitch, the arm must not be armed. `silhouette`: how
    well the arm fits, None if that is not known."""

    finding: Finding | None
    refuse: bool
    lasting: bool
    silhouette: float | None

    @property
    def words(self) -> str:
        """What to tell people; "" when nothing is wrong."""
        return self.finding.words if self.finding else ""


class ImageCheck:
    """Looks at images one after the other."""

    def __init__(self, aspect: float, camera: tuple[float, ...] | None) -> None:
        """`aspect` width / height that the policy was trained for, 0: any. `camera` as from
        `arm_silhouette.projection`, None: not known."""
        self._aspect, self._camera = aspect, camera
        self._seen: list[F64] = []  # silhouette maps of images at different poses
        self._moves: list[F64] = []  # change maps between them
        self._at: tuple[ArmView, F64] | None = None  # the last image at another pose, its end effector (3,)
        self._right: ArmView | None = None  # the last image, if the arm is seen as it should be
        self._read: tuple[U8, F64 | None, Finding | None, ArmView | None] | None = None  # of the last image
        self._last: ImageFault | None = None
        self._in_a_row = 0

    def recognises(self, rgb: U8, T_base_ee: F64 | None) -> bool:
        """Tell whether an image shows the scene of the last right one as that did, and has no fault of its own.

        The arm is not searched for, which takes most of the time of `look`: that may then wait until the image was
        acted on.
        """
        finding, view = self._seen_in(rgb, T_base_ee)
        return (self._right is not None and view is not None and not (finding and finding.definite)
                and same_scene(self._right, view))

    def _seen_in(self, rgb: U8, T_base_ee: F64 | None) -> tuple[Finding | None, ArmView | None]:
        """Return what the image's own numbers say, and the image with the arm's silhouette where that is known."""
        if self._read is None or self._read[0] is not rgb or self._read[1] is not T_base_ee:
            finding, view = still_finding(rgb, self._aspect), None
            if T_base_ee is not None and self._camera is not None and not (finding and finding.definite):
                view = view_arm(rgb, bridge_state(T_base_ee, 1.0), self._camera)
            self._read = (rgb, T_base_ee, finding, view)
        return self._read[2:]

    def look(self, rgb: U8, T_base_ee: F64 | None, acted_on: bool = False) -> ImageVerdict:
        """Return what is to be said of an image uint8 (H, W, 3) taken with the arm at rest at `T_base_ee` (4, 4).

        `acted_on`: it was recognised and acted on. A fault then counts at once, for the arm is no longer where the next
        image would show the same.
        """
        (finding, view), fitted, of_arm, sure = self._seen_in(rgb, T_base_ee), None, None, False
        if view is not None and T_base_ee is not None:
            self._remember(view, T_base_ee[:3, 3])
            of_arm, fitted, sure = self._of_arm()
            finding = of_arm or finding
        definite = finding is not None and finding.definite
        if definite or view is not None:
            self._right = view if sure and of_arm is None else None
        self._read = None
        fault = finding.fault if finding is not None and definite else None
        self._in_a_row = self._in_a_row + 1 if definite and fault is self._last else int(definite)
        self._last = fault
        lasting = definite and (acted_on or self._in_a_row >= IN_A_ROW)
        return ImageVerdict(finding, definite, lasting, fitted)

    def _of_arm(self) -> tuple[Finding | None, float, bool]:
        """Return what the remembered images say of the arm, how well its silhouette fits them as they are, and
        whether that is better than in any other way."""
        still = fit_silhouette(self._seen)
        finding, sure = arm_finding(still), bool(still.scores[0] >= still.scores[1:].max())
        if self._moves:
            moved = fit_silhouette(self._moves)
            if motion_agrees(moved):  # the stronger evidence
                finding, sure = None, True
            finding = motion_finding(moved, len(self._moves)) or finding
        return finding, float(still.scores[0]), sure

    def _remember(self, view: ArmView, xyz_m: F64) -> None:
        """Note an image; one at the same place replaces the last, or ends what is known of a camera that changed."""
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


class PoseAtImage:
    """The arm's pose at an image's time, from poses that come a few times a second: known only when it was at rest."""

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
