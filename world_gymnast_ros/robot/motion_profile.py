"""What the motors make of the goals they are sent: the time profile, from which speed and acceleration follow.

A goal is not a step: the servo's own profile generator goes there in `moving_time_s`, speeding up for `accel_time_s`,
at an even speed, and slowing down for `accel_time_s` (Dynamixel's trapezoid of the "time" profile). A goal that comes
while the last one is under way starts from where the profile is, at the speed that it has there. So two goals and
their times decide how fast a joint moves and how hard it is pulled, before anything moves.

All joints at once, shapes (6,): rad, rad/s, rad/s^2; times in s, stamps in steady ns.
"""
from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from world_gymnast_ros.types import F64


@dataclass(frozen=True)
class Profile:
    """A motion under way: sent at `start_ns` from `position` with `speed`, to rest at `goal`."""

    start_ns: int
    position: F64
    speed: F64
    goal: F64


def at_rest(joints: F64) -> Profile:
    """Return the profile of an arm that was told nothing yet."""
    return Profile(0, joints, np.zeros(6), joints)


def cruise_speed(position: F64, speed: F64, goal: F64, moving_time_s: float, accel_time_s: float) -> F64:
    """Return the even speed of the middle part of the way to `goal`."""
    ramp_s = min(accel_time_s, moving_time_s / 2.0)
    return (goal - position - speed * (ramp_s / 2.0)) / (moving_time_s - ramp_s)


def goal_of(position: F64, speed: F64, cruise: F64, moving_time_s: float, accel_time_s: float) -> F64:
    """Return the goal that is reached with the even speed `cruise`: the inverse of `cruise_speed`."""
    ramp_s = min(accel_time_s, moving_time_s / 2.0)
    return position + speed * (ramp_s / 2.0) + cruise * (moving_time_s - ramp_s)


def cruise_bounds(
    speed: F64, max_speed: F64, max_acceleration: float, moving_time_s: float, accel_time_s: float
) -> tuple[F64, F64]:
    """Return the lowest and highest even speed that keep speed and acceleration within their limits from `speed` on."""
    gain = max_acceleration * min(accel_time_s, moving_time_s / 2.0)
    most = np.minimum(max_speed, gain)
    return np.maximum(-most, speed - gain), np.minimum(most, speed + gain)


def peak_acceleration(speed: F64, cruise: F64, moving_time_s: float, accel_time_s: float) -> F64:
    """Return the larger of the acceleration at the start, from `speed` to `cruise`, and that at the end, to rest."""
    ramp_s = min(accel_time_s, moving_time_s / 2.0)
    return np.maximum(np.abs(cruise - speed), np.abs(cruise)) / ramp_s


def state_at(profile: Profile, now_ns: int, moving_time_s: float, accel_time_s: float) -> tuple[F64, F64]:
    """Return where the profile is at `now_ns`, and its speed."""
    elapsed_s = (now_ns - profile.start_ns) * 1e-9
    if elapsed_s >= moving_time_s:
        return profile.goal, np.zeros(6)
    ramp_s = min(accel_time_s, moving_time_s / 2.0)
    cruise = cruise_speed(profile.position, profile.speed, profile.goal, moving_time_s, accel_time_s)
    left_s = moving_time_s - elapsed_s
    if left_s <= ramp_s:
        speed = cruise * (left_s / ramp_s)
        return profile.goal - speed * (left_s / 2.0), speed
    up_s = min(max(elapsed_s, 0.0), ramp_s)
    speed = profile.speed + (cruise - profile.speed) * (up_s / ramp_s)
    position = profile.position + (profile.speed + speed) * (up_s / 2.0) + cruise * max(0.0, elapsed_s - ramp_s)
    return position, speed


def after(profile: Profile, goal: F64, now_ns: int, moving_time_s: float, accel_time_s: float) -> Profile:
    """Return the profile once `goal` was sent at `now_ns`."""
    return Profile(now_ns, *state_at(profile, now_ns, moving_time_s, accel_time_s), goal)
