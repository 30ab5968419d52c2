"""Limits of the guard and of the chunk player: one frozen dataclass, every number with a range."""
from __future__ import annotations

from dataclasses import dataclass, fields
from functools import cached_property
from typing import Any

from world_gymnast_ros.control.action_convention import ConventionRules
from world_gymnast_ros.errors import BadConfig
from world_gymnast_ros.robot.actions import WORKSPACES, StepLimits, Workspace
from world_gymnast_ros.robot.kinematics import MAX_JOINT_SPEED_RAD_S
from world_gymnast_ros.types import CONTROL_DT_S, F64

_RANGES: dict[str, tuple[float, float]] = {  # inclusive
    "max_step_m": (0.001, 0.1), "max_step_rad": (0.001, 0.5), "dt_s": (0.05, 1.0), "joint_margin_rad": (0.0, 0.3),
    "joint_speed_factor": (0.05, 1.0), "max_frame_age_s": (0.05, 10.0), "max_action_age_s": (0.05, 30.0),
    "max_arm_age_s": (0.02, 1.0), "max_target_drift_m": (0.01, 0.2), "max_target_drift_rad": (0.05, 1.0),
    "command_timeout_s": (0.1, 5.0), "latch_timeout_s": (0.1, 120.0), "max_consecutive_holds": (1, 100),
    "moving_time_s": (0.05, 5.0), "accel_time_s": (0.01, 2.0), "max_joint_acceleration_rad_s2": (1.0, 200.0),
    "table_z_m": (-1.0, 0.5), "min_table_clearance_m": (0.0, 0.1), "min_self_clearance_m": (0.0, 0.1),
    "max_request_m": (0.02, 1.0), "max_request_rad": (0.1, 3.2), "max_refused_conventions": (1, 100),
    "max_consecutive_step_limited": (2, 1000), "max_consecutive_clamped": (2, 10000),
}


@dataclass(frozen=True)
class SafetyConfig:
    """Limits of the guard and of the chunk player. Every number has a range; a bad one raises BadConfig."""

    max_step_m: float = 0.05
    max_step_rad: float = 0.25
    workspace_low_m: tuple[float, ...] = WORKSPACES["bridge"].low_m
    workspace_high_m: tuple[float, ...] = WORKSPACES["bridge"].high_m
    dt_s: float = CONTROL_DT_S
    joint_margin_rad: float = 0.03
    joint_speed_factor: float = 0.75
    """0.75 pi 0.2 s = 0.47 rad a step, which the 250/100 ms time profile covers at a peak of 0.47 / 0.15 = pi rad/s."""
    moving_time_s: float = 0.25
    accel_time_s: float = 0.10
    """The motors' time profile, from which the guard knows how fast and how hard a goal makes them move."""
    max_joint_acceleration_rad_s2: float = 31.5
    """pi rad/s within accel_time_s: a full step from rest, but no full step against the motion (48)."""
    table_z_m: float = 0.0
    """Height of the table top in base axes: the arm stands on it."""
    min_table_clearance_m: float = 0.003
    """Of any part of the arm. At the twin's floor (z 0.022) the finger tips have 0.0046."""
    min_self_clearance_m: float = 0.015
    """Between links that share no joint: what two links of an arm that is 5 to 8 mm off need. Tasks keep 0.06."""
    max_frame_age_s: float = 1.0
    """From capture to arrival of the chunk. Bridge refuses frames older than 1 s too."""
    max_action_age_s: float = 3.0
    """From capture to sending any action of the chunk: max_frame_age_s and the playing time of ten actions."""
    max_arm_age_s: float = 0.25
    max_target_drift_m: float = 0.06
    max_target_drift_rad: float = 0.35
    max_efforts: tuple[float, ...] = (1360.0, 1700.0, 1020.0, 1020.0, 1020.0, 1190.0)
    """Absolute effort per joint, raw driver units (Bridge's abort: 1.7 times the usual; the last one is load)."""
    require_effort: bool = True
    """False for drivers that report no effort (NaN): then only finite efforts are compared."""
    command_timeout_s: float = 0.47
    """Without an action for this long the arm holds; a fresh chunk may go on."""
    latch_timeout_s: float = 5.0
    """Without an action for this long the hold latches and the operator must arm again."""
    max_consecutive_holds: int = 10
    max_request_m: float = ConventionRules.max_request_m
    max_request_rad: float = ConventionRules.max_request_rad
    """A chunk with an action that asks for more is of another convention; see `action_convention.py`."""
    max_refused_conventions: int = 3
    """One such chunk may be an outlier of a network; three in a row are none."""
    max_consecutive_step_limited: int = 10
    max_consecutive_clamped: int = 100
    """20 s of pressing against a limit. Right policies were seen to press against the workspace for 22 actions."""

    def __post_init__(self) -> None:
        for f in fields(self):
            if f.name in _RANGES:
                _check_range(f.name, getattr(self, f.name), *_RANGES[f.name])
        object.__setattr__(self, "max_efforts", tuple(float(v) for v in self.max_efforts))
        if len(self.max_efforts) != 6 or not all(0.0 < v <= 3000.0 for v in self.max_efforts):
            raise BadConfig(f"max_efforts is {self.max_efforts}; give 6 numbers in (0, 3000], one per joint")
        if self.latch_timeout_s < self.command_timeout_s:
            raise BadConfig(f"latch_timeout_s is {self.latch_timeout_s}; it must be at least command_timeout_s "
                            f"({self.command_timeout_s}): raise it")
        if self.max_action_age_s < self.max_frame_age_s:
            raise BadConfig(f"max_action_age_s is {self.max_action_age_s}; it must be at least max_frame_age_s "
                            f"({self.max_frame_age_s}): raise it")
        object.__setattr__(self, "workspace_low_m", self.workspace.low_m)  # raises BadConfig; lists become tuples
        object.__setattr__(self, "workspace_high_m", self.workspace.high_m)

    @cached_property
    def limits(self) -> StepLimits:
        """Step limits of one action."""
        return StepLimits(self.max_step_m, self.max_step_rad)

    @cached_property
    def conventions(self) -> ConventionRules:
        """What one action may ask for."""
        return ConventionRules(self.max_request_m, self.max_request_rad)

    @cached_property
    def workspace(self) -> Workspace:
        """Box for the end effector target."""
        return Workspace(self.workspace_low_m, self.workspace_high_m)

    @cached_property
    def max_joint_step_rad(self) -> F64:
        """Largest joint move (6,) of one action."""
        return MAX_JOINT_SPEED_RAD_S * (self.joint_speed_factor * self.dt_s)


def _check_range(name: str, value: Any, low: float, high: float) -> None:
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not low <= value <= high:
        raise BadConfig(f"{name} is {value!r}; it must be a number in [{low}, {high}]: choose a value in range")
