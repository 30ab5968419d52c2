"""Parameters: one frozen dataclass per YAML file in `config/`, with type, range and meaning of every key.

The files are in ROS parameter form, so that `--params-file`, launch files and the command line read the same text.
This loader is strict where ROS is not: an unknown key, a wrong type or a value out of range raises BadConfig naming
the key, the value, the limit and the remedy. The nodes declare their ROS parameters from the same fields.
"""
from __future__ import annotations

import dataclasses
import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from world_gymnast_ros.control.limits import _RANGES as SAFETY_RANGES
from world_gymnast_ros.control.limits import SafetyConfig
from world_gymnast_ros.errors import BadConfig
from world_gymnast_ros.files import read_yaml
from world_gymnast_ros.paths import share_path
from world_gymnast_ros.robot.actions import WORKSPACES, RobotLimits
from world_gymnast_ros.robot.arm_silhouette import projection
from world_gymnast_ros.robot.camera import (
    BRIDGE_CAMERA_FOCAL,
    BRIDGE_CAMERA_LOOK,
    BRIDGE_CAMERA_XYZ_M,
    level_camera,
)
from world_gymnast_ros.robot.camera_extrinsics import read_camera
from world_gymnast_ros.types import F64

T = TypeVar("T")
ROS_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_]*(/[A-Za-z_][A-Za-z0-9_]*)*")
NODE_WILDCARD = "/**"
"""Key for "every node that is given this file", so that a namespace or another node name changes nothing."""
RENAMED = {"select_dreams": "select_groups", "gate_dreams": "promotion_groups"}
"""Keys of earlier versions, and what they are called now: a settings file that holds one is refused by that name."""


def number(default: Any, low: float, high: float, doc: str) -> Any:
    """Declare an int, float or tuple-of-floats parameter; every number must lie in [low, high]."""
    return dataclasses.field(default=default, metadata={"low": low, "high": high, "doc": doc})


def text(default: str, doc: str, choices: tuple[str, ...] = (), number_too: bool = False) -> Any:
    """Declare a string parameter; `choices` empty means any text. `number_too`: a whole number is taken for its digits,
    which is what ROS makes of them on the command line."""
    return dataclasses.field(default=default, metadata={"choices": choices, "doc": doc, "number_too": number_too})


def ros_name(default: str, doc: str) -> Any:
    """Declare a parameter that names a ROS namespace, without a slash at either end."""
    return dataclasses.field(default=default, metadata={"doc": doc, "ros_name": True})


def flag(default: bool, doc: str) -> Any:
    """Declare a bool parameter."""
    return dataclasses.field(default=default, metadata={"doc": doc})


def _limit(name: str, doc: str) -> Any:
    """Declare a limit of the guard, with the default and the range that the guard gives it."""
    low, high = SAFETY_RANGES[name]
    return number(getattr(SafetyConfig, name), low, high, doc)


@dataclass(frozen=True)
class CameraConfig:
    """`camera_node`: a device, a video file or a folder of clips as an image topic."""

    source: str = text("", "camera index such as 0, a device's path, a video file, or a folder of clips or images",
                       number_too=True)
    rate_hz: float = number(5.0, 0.1, 120.0, "images per second, whatever a clip says")
    loop: bool = flag(True, "start again when the clips end; false: exit after the last image")
    width: int = number(640, 16, 4096, "pixels asked of a camera device; clips keep their own size")
    height: int = number(480, 16, 4096, "pixels asked of a camera device; clips keep their own size")
    focal_px: float = number(0.0, 0.0, 10000.0, "focal length for camera_info at `height`; 0: not calibrated")
    camera_info_url: str = text("", "file:///path/to/camera.yaml as camera_calibration writes it; empty: focal_px")
    frame_id: str = text("camera_optical_frame", "frame of the header")
    max_gap_s: float = number(1.0, 0.1, 60.0, "a device silent for longer ends the node with an error")


@dataclass(frozen=True)
class PolicyConfig:
    """`policy_node`: newest frame and instruction in, action chunks out."""

    checkpoint: str = text("", "folder of the policy; empty: the small one that ships with the package")
    device: str = text("auto", "where the policy computes: auto (the GPU where there is one), cpu, cuda, cuda:1")
    dtype: str = text("auto", "of the policy: auto (its own choice), float32, bfloat16, float16",
                      ("auto", "float32", "bfloat16", "float16"))
    policy_url: str = text("", "http://HOST:PORT of a policy server (POST /act) to ask instead; empty: none")
    policy_timeout_s: float = number(1.0, 0.05, 5.0, "longest wait for that server; the arm refuses older frames")
    image_compressed: bool = flag(False, "subscribe image_raw/compressed (JPEG, PNG) in place of image_raw")
    image_width: int = number(0, 0, 8192, "images of another width are refused; 0: any")
    image_height: int = number(0, 0, 8192, "images of another height are refused; 0: any")
    image_check: str = text("refuse", "definitely wrong images: refuse (do not act, do not arm), warn or off",
                              ("refuse", "warn", "off"))
    image_aspect: float = number(4 / 3, 0.0, 4.0, "width / height that the policy was trained for; 0: any")
    camera_calibration: str = text("", "file of a calibrated camera (robot calibrate); empty: the three numbers below")
    camera_xyz_m: tuple[float, ...] = number(BRIDGE_CAMERA_XYZ_M, -3.0, 3.0, "place of the camera, base axes")
    camera_look: tuple[float, ...] = number(BRIDGE_CAMERA_LOOK, -10.0, 10.0, "its line of sight, base axes, any length")
    camera_focal: float = number(BRIDGE_CAMERA_FOCAL, 0.0, 20.0,
                                 "its focal length in image heights; 0: camera not known, the arm is not looked for")
    dt_s: float = number(0.2, 0.05, 1.0, "control period the actions are made for")
    settle_fraction: float = number(0.9, 0.0, 2.0, "look this part of dt_s after the last action was sent, or later")
    max_frame_age_s: float = number(0.5, 0.05, 5.0, "an older frame is not acted on")
    retry_s: float = number(1.0, 0.1, 30.0, "a chunk that brought no step in this time is counted lost; look again")
    dry_run_without_arm: bool = flag(False, "act on every chunk's worth of frames with no arm in the graph (clips)")
    instruction: str = text("", "instruction until one arrives on the topic")
    threads: int = number(0, 0, 256, "torch threads; 0: torch's own choice")

    def __post_init__(self) -> None:
        if abs(self.camera_look[0]) + abs(self.camera_look[1]) < 1e-3:
            raise BadConfig(f"camera_look is {self.camera_look}; a camera that looks straight up or down has no "
                            "upright image: tilt it a little, or set camera_focal to 0 if it is not known")

    def camera_pose(self) -> F64 | None:
        """Return T_base_camera (4, 4), m, optical axes, or None if it is not known. BadConfig for a file that is none.
        """
        if self.camera_calibration:
            return read_camera(Path(self.camera_calibration).expanduser()).pose()
        return level_camera(self.camera_xyz_m, self.camera_look) if self.camera_focal else None

    def camera(self) -> tuple[float, ...] | None:
        """Return the camera as `arm_silhouette.projection` gives it, or None if it is not known."""
        if self.camera_calibration:
            return read_camera(Path(self.camera_calibration).expanduser()).projection()
        if self.camera_focal == 0.0:
            return None
        aspect = self.image_aspect or 4 / 3  # of the camera; its image may be squashed to a square
        return projection(level_camera(self.camera_xyz_m, self.camera_look), self.camera_focal, aspect, 1.0)


@dataclass(frozen=True)
class ArmConfig:
    """`arm_node`: plays chunks through the guard to the arm's driver. Lengths in m, base_link axes.

    The second half is `safety.SafetyConfig`, field by field, with its ranges.
    """

    driver: str = text("xs", "xs (Interbotix), trajectory (ros2_control), servo, cartesian (docs/reference/drivers.md)",
                       ("xs", "trajectory", "servo", "cartesian"))
    robot_name: str = ros_name("wx250s", "namespace of the xs driver")
    joint_states_topic: str = text("joint_states", "measured joints, of the other drivers")
    arm_controller: str = text("arm_controller", "trajectory: sends to <this>/joint_trajectory")
    servo_node: str = text("servo_node", "servo: sends to <this>/pose_target_cmds or <this>/delta_twist_cmds")
    servo_command: str = text("pose", "servo: pose or twist", ("pose", "twist"))
    servo_switch_type: bool = flag(True, "servo: switch Servo to that on arming, needs moveit_msgs; false: you do")
    servo_rate_hz: float = number(50.0, 25.0, 200.0, "servo: each goal is sent this often; Servo halts after 0.1 s")
    target_topic: str = text("cartesian_motion_controller/target_frame", "cartesian: where poses are sent")
    base_frame: str = text("wx250s/base_link", "servo, cartesian: frame of the poses, the arm's base_link")
    gripper_controller: str = text("gripper_controller", "gripper of the drivers other than xs")
    gripper_interface: str = text("trajectory", "what it is: trajectory, action or forward (a command controller)",
                                  ("trajectory", "action", "forward"))
    dry_run: bool = flag(False, "compute and publish everything, send nothing to the driver")
    allow_simulation_policy: bool = flag(False, "let a policy that has seen simulated images only move a real arm")
    moving_time_s: float = _limit("moving_time_s", "time to reach a goal; xs: time profile, set on arming")
    accel_time_s: float = _limit("accel_time_s", "acceleration part of the time profile, set on arming")
    tick_hz: float = number(100.0, 20.0, 500.0, "how often the player looks for a due action")
    gripper_rate_hz: float = number(50.0, 10.0, 200.0, "rate of the gripper's PWM position loop")
    gripper_gain_per_m: float = number(300.0, 1.0, 3000.0, "gain of that loop: share of max_gripper_pwm per m of error")
    max_gripper_pwm: float = number(350.0, 1.0, 885.0, "PWM of the gripper motor at most; 885 is full")
    health_period_s: float = number(2.0, 0.0, 60.0, "how often the motors' torque and errors are read; 0: never")
    policy_lease_s: float = number(0.2, 0.15, 60.0, "hold when a policy that offers `policy_alive` is gone that long")
    dead_man_button: int = number(-1, -1, 63, "button of sensor_msgs/Joy on `joy` that must be held; -1: none")
    dead_man_timeout_s: float = number(0.3, 0.05, 2.0, "`joy` silent for longer counts as released")
    service_timeout_s: float = number(3.0, 0.1, 30.0, "longest wait for a service of the driver")
    dt_s: float = _limit("dt_s", "control period; Bridge: 0.2 s, not blocking")
    max_step_m: float = _limit("max_step_m", "longest step per action, per axis and as a vector")
    max_step_rad: float = _limit("max_step_rad", "largest turn per action and axis")
    workspace: str = text("custom", "a public evaluation's box by name, or custom: the two corners below",
                          ("custom", *WORKSPACES))
    workspace_low_m: tuple[float, ...] = number((0.12, -0.20, 0.022), -1.0, 1.0, "lowest x y z of the end effector")
    workspace_high_m: tuple[float, ...] = number((0.42, 0.25, 0.25), -1.0, 1.0, "highest x y z of the end effector")
    joint_margin_rad: float = _limit("joint_margin_rad", "distance kept from the joint limits")
    joint_speed_factor: float = _limit("joint_speed_factor", "part of pi rad/s that a joint may use")
    max_joint_acceleration_rad_s2: float = _limit("max_joint_acceleration_rad_s2", "of the motors' time profile")
    table_z_m: float = _limit("table_z_m", "height of the table top in base axes")
    min_table_clearance_m: float = _limit("min_table_clearance_m", "distance kept from the table, whole arm")
    min_self_clearance_m: float = _limit("min_self_clearance_m", "distance kept between links that share no joint")
    max_frame_age_s: float = _limit("max_frame_age_s", "a chunk chosen at an older frame is refused")
    max_action_age_s: float = _limit("max_action_age_s", "an action whose frame is older is held")
    max_arm_age_s: float = _limit("max_arm_age_s", "hold when the driver is silent for longer")
    max_target_drift_m: float = _limit("max_target_drift_m", "target further from the arm: re-seeded from measured")
    max_target_drift_rad: float = _limit("max_target_drift_rad", "target further from the arm: re-seeded from measured")
    max_efforts: tuple[float, ...] = number(SafetyConfig.max_efforts, 1.0, 3000.0, "effort limit per joint, raw")
    require_effort: bool = flag(SafetyConfig.require_effort, "false for drivers that report no effort")
    command_timeout_s: float = _limit("command_timeout_s", "hold this long after the last action")
    latch_timeout_s: float = _limit("latch_timeout_s", "latch the hold this long after the last action")
    max_consecutive_holds: int = _limit("max_consecutive_holds", "latch after this many held actions in a row")
    max_request_m: float = _limit("max_request_m", "a longer translation is of another convention: chunk refused")
    max_request_rad: float = _limit("max_request_rad", "a larger rotation is of another convention: chunk refused")
    max_refused_conventions: int = _limit("max_refused_conventions", "latch after this many such chunks in a row")
    max_consecutive_step_limited: int = _limit("max_consecutive_step_limited",
                                               "latch after this many actions beyond a Bridge step in a row")
    max_consecutive_clamped: int = _limit("max_consecutive_clamped",
                                          "latch after this many actions in a row that press against a limit")

    def safety(self) -> SafetyConfig:
        """Return the guard's part, with the named workspace in place of the corners if one is chosen."""
        values = {f.name: getattr(self, f.name) for f in dataclasses.fields(SafetyConfig)}
        if self.workspace != "custom":
            box = WORKSPACES[self.workspace]
            values.update(workspace_low_m=box.low_m, workspace_high_m=box.high_m)
        return SafetyConfig(**values)


@dataclass(frozen=True)
class DisplayConfig:
    """`display_node`: what RViz and Foxglove want to see. What it shows, it asks of the nodes that it is about."""

    rate_hz: float = number(20.0, 1.0, 100.0, "of /tf and measured_pose")
    tf: bool = flag(True, "publish /tf and robot_description of the arm, unless the driver's own is heard")
    camera_frame: str = text("camera_optical_frame", "frame_id of the images, placed by policy_node's camera_xyz_m, "
                             "camera_look; empty: another places the camera")
    clamp_lifetime_s: float = number(3.0, 0.1, 60.0, "how long a cut or refused action is shown")


@dataclass(frozen=True)
class ReflectorNodeConfig:
    """`reflector_node`: says when the task is done."""

    judge: str = text("tiny/reflector", "judges that must agree, with commas: folders, shipped names, servers")
    threshold: float = number(0.5, 0.0, 1.0, "done above this probability")
    looks: int = number(2, 1, 100, "so many looks in a row must say so")
    period_s: float = number(0.2, 0.02, 10.0, "a frame is looked at so often; learned judges know steps of 0.2 s")
    image_compressed: bool = flag(False, "subscribe image_raw/compressed in place of image_raw")
    device: str = text("auto", "where the judge computes: auto (the GPU where there is one), cpu, cuda, cuda:1")
    dtype: str = text("auto", "of the judge: auto (its own choice), float32, bfloat16, float16",
                      ("auto", "float32", "bfloat16", "float16"))
    threads: int = number(1, 0, 256, "torch threads; 0: torch's own choice")


@dataclass(frozen=True)
class RecorderConfig:
    """`recorder_node`: episodes on disk."""

    directory: str = text("runs/episodes", "folder that gets one sub-folder per episode")
    image_compressed: bool = flag(False, "record image_raw/compressed in place of image_raw")
    robot_name: str = ros_name("wx250s", "namespace of the driver, for joint_states")
    min_free_mb: float = number(500.0, 0.0, 1e6, "refuse to start with less free disk than this")
    max_episode_s: float = number(300.0, 1.0, 36000.0, "an episode that nobody stops ends here, marked `time`")
    success_button: int = number(-1, -1, 63, "button of sensor_msgs/Joy on `joy` that marks success; -1: none")
    failure_button: int = number(-1, -1, 63, "the same for failure; both mark the running or last episode")


@dataclass(frozen=True)
class TwinConfig:
    """`twin_node`: MuJoCo in place of driver and camera, under the same names and types."""

    robot_name: str = ros_name("wx250s", "namespace of the driver it stands in for")
    scene: str = text("train_oak", "name of a scene in config/scenes, or a YAML file")
    instruction: str = text("", "instruction whose true success is measured; empty: the scene's first")
    seed: int = number(0, 0, 2**31 - 1, "start state of the first episode")
    image_rate_hz: float = number(15.0, 0.5, 60.0, "images per second")
    image_width: int = number(640, 16, 640, "pixels")
    image_height: int = number(480, 16, 480, "pixels")
    joint_rate_hz: float = number(100.0, 10.0, 200.0, "joint states per second; the driver sends 100")
    truth_rate_hz: float = number(5.0, 0.5, 50.0, "twin/truth messages per second")
    max_catch_up_s: float = number(0.1, 0.02, 1.0, "physics runs at most this far per tick; beyond, time stretches")


FILES: dict[str, type[Any]] = {
    "camera.yaml": CameraConfig,
    "policy.yaml": PolicyConfig,
    "arm.yaml": ArmConfig,
    "display.yaml": DisplayConfig,
    "reflector.yaml": ReflectorNodeConfig,
    "recorder.yaml": RecorderConfig,
    "twin.yaml": TwinConfig,
}
"""Shipped file -> its dataclass."""


_EXPONENT = re.compile(r"[-+]?\d+(\.\d*)?[eE][-+]?\d+")
"""A number such as 3e-4, which PyYAML takes for a text and ROS for a number."""


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _bounded(where: str, spec: dataclasses.Field[Any], value: float) -> None:
    low, high = spec.metadata.get("low", -math.inf), spec.metadata.get("high", math.inf)
    if not math.isfinite(value):
        raise BadConfig(f"{where}{spec.name} is {value}; it must be a finite number ({spec.metadata['doc']})")
    if not low <= value <= high:
        raise BadConfig(f"{where}{spec.name} is {value}; it must lie in {low:g}..{high:g} ({spec.metadata['doc']})")


def _coerce(where: str, spec: dataclasses.Field[Any], value: Any) -> Any:
    """Return `value` in the type of the field's default (an int passes for a float); raise BadConfig otherwise."""
    default = spec.default
    kind = type(default)
    good: Any = None
    if kind is float and (_is_number(value) or (isinstance(value, str) and _EXPONENT.fullmatch(value))):
        good = float(value)
    elif kind in (int, bool, str) and type(value) is kind:
        good = value
    elif spec.metadata.get("number_too") and type(value) is int:
        good = str(value)
    elif isinstance(default, tuple) and not isinstance(value, str | Mapping) and hasattr(value, "__iter__"):
        items = tuple(value)
        if len(items) == len(default) and all(_is_number(v) for v in items):
            good = tuple(float(v) for v in items)
    if good is None:
        wanted = f"{len(default)} numbers" if isinstance(default, tuple) else kind.__name__
        raise BadConfig(f"{where}{spec.name} is {value!r}; it must be {wanted}, such as {default!r}")
    for item in good if isinstance(good, tuple) else (good,):
        if _is_number(item):
            _bounded(where, spec, item)
    choices = spec.metadata.get("choices", ())
    if choices and good not in choices:
        raise BadConfig(f"{where}{spec.name} is {good!r}; choose one of {', '.join(choices)}")
    if spec.metadata.get("ros_name") and not ROS_NAME.fullmatch(good):
        raise BadConfig(f"{where}{spec.name} is {good!r}; a name of ROS has letters, digits and _, does not begin with "
                        f"a digit, and has no slash at either end, such as {default!r}")
    return good


def from_mapping(cls: type[T], values: Mapping[str, Any], source: str = "") -> T:
    """Build a config dataclass from key and value; missing keys keep their defaults. Raises BadConfig."""
    where = f"{source}: " if source else ""
    specs = {f.name: f for f in dataclasses.fields(cls)}  # type: ignore[arg-type]
    unknown = sorted(set(values) - set(specs))
    if unknown:
        if (name := RENAMED.get(unknown[0])) in specs:
            raise BadConfig(f"{where}{unknown[0]} is now called {name}: rename the key, its value means the same")
        raise BadConfig(f"{where}unknown key {unknown[0]!r} = {values[unknown[0]]!r}; known keys: {', '.join(specs)}")
    return cls(**{k: _coerce(where, specs[k], v) for k, v in values.items()})


def read_parameters(path: Path) -> dict[str, Any]:
    """Return the parameters of a file in ROS form, one block for one node. Raises BadConfig."""
    data = read_yaml(path)
    if not isinstance(data, dict) or len(data) != 1:
        raise BadConfig(f"{path} must hold one block ('{NODE_WILDCARD}:' or a node name), each node has its own file")
    ((name, block),) = data.items()
    if not isinstance(block, dict) or set(block) != {"ros__parameters"}:
        raise BadConfig(f"{path}: '{name}' must hold 'ros__parameters' and nothing else")
    values = block["ros__parameters"] or {}
    if not isinstance(values, dict):
        raise BadConfig(f"{path}: ros__parameters must be a mapping of key to value, got {type(values).__name__}")
    return values


def load(cls: type[T], path: Path) -> T:
    """Load one config file into its dataclass. Raises BadConfig."""
    return from_mapping(cls, read_parameters(path), str(path))


def robot_limits(path: str = "") -> RobotLimits:
    """Return the step limits and the workspace of an arm's parameters ('': the shipped config/arm.yaml)."""
    safety = load(ArmConfig, Path(path) if path else share_path("config/arm.yaml")).safety()
    return RobotLimits(safety.limits, safety.workspace)
