"""Messages <-> the package's types: the only module that imports generated messages.

Images cross by plain numpy (no copy on the way in, one on the way out). YUV and Bayer go through cv_bridge where it
is installed, which is quicker; `encodings` gives the same pixels where it is not.
"""
from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from math import nan
from pathlib import Path
from typing import Any

import numpy as np
from builtin_interfaces.msg import Duration, Time
from diagnostic_msgs.msg import DiagnosticArray, DiagnosticStatus, KeyValue
from geometry_msgs.msg import (
    Point,
    Pose,
    PoseStamped,
    Quaternion,
    Transform,
    TransformStamped,
    Twist,
    TwistStamped,
    Vector3,
)
from rcl_interfaces.msg import (
    FloatingPointRange,
    IntegerRange,
    ParameterDescriptor,
    ParameterType,
    ParameterValue,
    SetParametersResult,
)
from rcl_interfaces.msg import Parameter as ParameterMsg
from rcl_interfaces.srv import GetParameters, SetParameters
from sensor_msgs.msg import CameraInfo, CompressedImage, Image, JointState, Joy
from sensor_msgs.srv import SetCameraInfo
from std_msgs.msg import Bool, ColorRGBA, Empty, Float32, Float64MultiArray, String
from std_srvs.srv import SetBool, Trigger
from trajectory_msgs.msg import JointTrajectory, JointTrajectoryPoint

from world_gymnast_ros.action import Adapt
from world_gymnast_ros.control.chunk_player import ArmMode, DueAction
from world_gymnast_ros.control.hold_cause import HoldCause
from world_gymnast_ros.encodings import BAYER, PACKED_YUV, rgb_of
from world_gymnast_ros.errors import AdapterMismatch, BadAction, BadConfig, BadFrame
from world_gymnast_ros.images import decode_rgb
from world_gymnast_ros.msg import ActionChunk as ActionChunkMsg
from world_gymnast_ros.msg import Adapter as AdapterMsg
from world_gymnast_ros.msg import ArmStatus as ArmStatusMsg
from world_gymnast_ros.msg import Step as StepMsg
from world_gymnast_ros.msg import TwinTruth
from world_gymnast_ros.robot import kinematics
from world_gymnast_ros.robot.actions import matrix_to_quaternion
from world_gymnast_ros.robot.camera_file import Intrinsics, checked
from world_gymnast_ros.robot.gripper import gripper_from_finger
from world_gymnast_ros.srv import MarkOutcome, ResetTwin, StartEpisode, StopEpisode
from world_gymnast_ros.types import (
    ACTION_DIM,
    F64,
    U8,
    ActionChunk,
    AdapterRef,
    ArmCommand,
    ArmState,
    Frame,
    Verdict,
)

try:
    from interbotix_xs_msgs import msg as xs_msg
    from interbotix_xs_msgs import srv as xs_srv
except ImportError:  # camera, policy, adaptation and recording run without the arm's messages
    xs_msg = xs_srv = None
try:
    from tf2_msgs.msg import TFMessage
except ImportError:  # only display_node wants it, and goes on without /tf
    TFMessage = None
try:
    from visualization_msgs.msg import Marker, MarkerArray
except ImportError:  # only display_node wants them, and goes on without markers
    Marker = MarkerArray = None
try:
    from moveit_msgs.srv import ServoCommandType
except ImportError:  # only the servo driver wants it
    ServoCommandType = None
try:
    from control_msgs.action import GripperCommand
except ImportError:  # only a gripper behind a GripperActionController wants it
    GripperCommand = None
try:
    import cv_bridge
except ImportError:  # numpy converts the same pixels, more slowly
    cv_bridge = None

__all__ = [
    "ActionChunkMsg", "Adapt", "AdapterMsg", "ArmStatusMsg", "Bool", "CameraInfo", "ColorRGBA", "CompressedImage",
    "DiagnosticArray", "DiagnosticStatus", "Empty", "Float32", "Float64MultiArray", "FloatingPointRange",
    "GetParameters", "GripperCommand", "Image", "IntegerRange", "JointState", "JointTrajectory", "Joy", "KeyValue",
    "MarkOutcome", "Marker", "MarkerArray", "ParameterDescriptor", "Point", "PoseStamped", "ResetTwin",
    "ServoCommandType", "SetBool", "SetCameraInfo", "SetParameters", "SetParametersResult", "StartEpisode",
    "StepMsg", "StopEpisode", "String", "TFMessage", "Trigger", "TwinTruth", "TwistStamped", "Vector3", "xs_msg",
    "xs_srv",
]

NS_PER_S = 1_000_000_000
DRIVER_JOINTS = (*kinematics.JOINT_NAMES, "gripper", "left_finger", "right_finger")
VERDICTS = {Verdict.OK: StepMsg.OK, Verdict.CLAMPED: StepMsg.CLAMPED, Verdict.HOLD: StepMsg.HOLD,
            Verdict.STOP: StepMsg.STOP}
HOLD_CAUSES = {cause: getattr(ArmStatusMsg, f"CAUSE_{cause.name}") for cause in HoldCause}
CV_BRIDGE_CONVERTS = (*PACKED_YUV, *BAYER)
"""Encodings that cv_bridge knows and that cost numpy milliseconds."""


def require_interbotix() -> None:
    """Raise BadConfig when the arm's messages are not installed."""
    if xs_msg is None:
        raise BadConfig("interbotix_xs_msgs is not installed; source the Interbotix workspace, or install the copy in "
                        "interfaces/interbotix_xs_msgs")


def require_moveit() -> None:
    """Raise BadConfig when Servo's service to choose the kind of command cannot be called."""
    if ServoCommandType is None:
        raise BadConfig("moveit_msgs is not installed; source a workspace with MoveIt 2 (or install moveit_msgs), or "
                        "set servo_switch_type to false and switch Servo to the kind of command by hand")


def require_control_msgs() -> None:
    """Raise BadConfig when a GripperActionController cannot be spoken to."""
    if GripperCommand is None:
        raise BadConfig("control_msgs is not installed; source a workspace with ros2_controllers (or install "
                        "control_msgs), or set gripper_interface to trajectory or forward")


# --- time -------------------------------------------------------------------------------------------------------------


def to_time(stamp_ns: int) -> Time:
    """Return nanoseconds since the epoch as a message."""
    return Time(sec=int(stamp_ns // NS_PER_S), nanosec=int(stamp_ns % NS_PER_S))


def to_ns(time: Time) -> int:
    """Return a message stamp as nanoseconds since the epoch."""
    return int(time.sec) * NS_PER_S + int(time.nanosec)


# --- images ---------------------------------------------------------------------------------------------------------


def _check_size(height: int, width: int, size: tuple[int, int]) -> None:
    for name, got, wanted in (("width", width, size[1]), ("height", height, size[0])):
        if wanted and got != wanted:
            raise BadFrame(f"image is {width}x{height}, but image_{name} is set to {wanted}; "
                           "change the camera's resolution or the parameter (0 takes any)")


def frame_from_image(msg: Any, size: tuple[int, int] = (0, 0)) -> Frame:
    """Return the image of a sensor_msgs/Image as RGB. `size` (h, w) wanted, 0 for any. Raises BadFrame.

    rgb8 without row padding is not copied: the frame then shares the message's buffer.
    """
    height, width = int(msg.height), int(msg.width)
    _check_size(height, width, size)
    rgb = _by_cv_bridge(msg) if cv_bridge is not None and msg.encoding in CV_BRIDGE_CONVERTS else None
    if rgb is None:
        rgb = rgb_of(msg.encoding, np.frombuffer(msg.data, np.uint8), height, width, int(msg.step))
    return Frame(rgb, to_ns(msg.header.stamp))


def _by_cv_bridge(msg: Any) -> U8 | None:
    """Return the image as cv_bridge has it, which is quicker here, or None where it refuses."""
    try:
        return np.asarray(cv_bridge.CvBridge().imgmsg_to_cv2(msg, "rgb8"))
    except Exception:  # it raises errors of its own, of OpenCV's and of numpy's; ours says what is wrong
        return None


def frame_from_compressed(msg: Any, size: tuple[int, int] = (0, 0)) -> Frame:
    """Return the image of a sensor_msgs/CompressedImage (JPEG or PNG) as RGB. Raises BadFrame."""
    rgb = decode_rgb(bytes(msg.data), f"compressed image of format '{msg.format[:60]}'")
    _check_size(rgb.shape[0], rgb.shape[1], size)
    return Frame(rgb, to_ns(msg.header.stamp))


def image_from_rgb(rgb: U8, stamp_ns: int, frame_id: str) -> Any:
    """Return an rgb8 sensor_msgs/Image of uint8 (H, W, 3)."""
    msg = Image(height=rgb.shape[0], width=rgb.shape[1], encoding="rgb8", step=3 * rgb.shape[1],
                is_bigendian=int(sys.byteorder == "big"))
    msg.header.stamp, msg.header.frame_id = to_time(stamp_ns), frame_id
    msg.data.frombytes(np.ascontiguousarray(rgb).data.cast("B"))  # 50 times faster than assigning an array
    return msg


def camera_info(stamp_ns: int, frame_id: str, width: int, height: int, intrinsics: Intrinsics | None) -> Any:
    """Return a CameraInfo; without `intrinsics` not calibrated, which REP-104 marks with zeros."""
    msg = CameraInfo(width=width, height=height, distortion_model="plumb_bob")
    msg.header.stamp, msg.header.frame_id = to_time(stamp_ns), frame_id
    if intrinsics is not None:
        msg.distortion_model, msg.d = intrinsics.model, list(intrinsics.D)
        msg.k = intrinsics.K.ravel().tolist()
        msg.r = intrinsics.rectification.ravel().tolist()
        msg.p = intrinsics.projection.ravel().tolist()
    return msg


def intrinsics_from_msg(msg: Any, name: str) -> Intrinsics:
    """Return the calibration in a CameraInfo. Raises BadConfig where it cannot be one."""
    return checked(Intrinsics(int(msg.width), int(msg.height), np.asarray(msg.k).reshape(3, 3), tuple(msg.d),
                              np.asarray(msg.r).reshape(3, 3), np.asarray(msg.p).reshape(3, 4),
                              str(msg.distortion_model), name))


# --- arm --------------------------------------------------------------------------------------------------------------


def arm_state(msg: Any, finger_m: float | None = None) -> ArmState:
    """Return the measured state in the driver's JointState. Raises BadAction when joints are missing or not finite.

    `finger_m`: where the left finger is, for a message that does not tell (`joint_merge`).
    Efforts and velocities are NaN where they are not measured: joint_state_broadcaster says so itself, the driver's
    simulation sends none. The guard judges efforts (`require_effort`).
    """
    index = {name: i for i, name in enumerate(msg.name)}
    wanted = () if finger_m is not None and "left_finger" not in index else ("left_finger",)
    missing = [n for n in (*kinematics.JOINT_NAMES, *wanted) if n not in index]
    if missing or len(msg.position) != len(msg.name):
        raise BadAction(f"joint_states lacks {missing or 'positions'}; is this the driver of a WidowX 250s?")
    rows = [index[n] for n in kinematics.JOINT_NAMES]
    position = np.asarray(msg.position, np.float64)

    def column(values: Any) -> F64:
        return np.asarray(values, np.float64)[rows] if len(values) == len(msg.name) else np.full(6, nan)

    joints, velocities, efforts = position[rows], column(msg.velocity), column(msg.effort)
    finger = float(position[index["left_finger"]]) if wanted or finger_m is None else finger_m
    if not np.isfinite([*joints, finger]).all():
        raise BadAction("joint_states holds a number that is not finite: the driver's bus is faulty")
    return ArmState(kinematics.fk(joints), joints, velocities, efforts, gripper_from_finger(finger),
                    to_ns(msg.header.stamp))


def joint_state_msg(stamp_ns: int, position: F64, velocity: F64, effort: F64) -> Any:
    """Return a JointState (9 values each) in the driver's order."""
    msg = JointState(name=list(DRIVER_JOINTS), position=position.tolist(), velocity=velocity.tolist(),
                     effort=effort.tolist())
    msg.header.stamp = to_time(stamp_ns)
    return msg


def trajectory_msg(names: Sequence[str], positions: F64 | Sequence[float], time_s: float) -> Any:
    """Return a JointTrajectory of one point, to be reached `time_s` from when it is received (stamp zero)."""
    time = to_time(round(time_s * NS_PER_S))
    point = JointTrajectoryPoint(positions=np.asarray(positions, np.float64).tolist(),
                                 time_from_start=Duration(sec=time.sec, nanosec=time.nanosec))
    return JointTrajectory(joint_names=list(names), points=[point])


def pose_msg(T: F64, stamp_ns: int, frame_id: str) -> Any:
    """Return a PoseStamped of a transform (4, 4)."""
    x, y, z, w = matrix_to_quaternion(T[:3, :3]).tolist()
    msg = PoseStamped(pose=Pose(position=Point(**dict(zip("xyz", T[:3, 3].tolist(), strict=True))),
                                orientation=Quaternion(x=x, y=y, z=z, w=w)))
    msg.header.stamp, msg.header.frame_id = to_time(stamp_ns), frame_id
    return msg


def pose_from_msg(msg: Any) -> F64:
    """Return the transform (4, 4) of a PoseStamped. Raises BadAction when it is none."""
    p, q = msg.pose.position, np.array([getattr(msg.pose.orientation, axis) for axis in "xyzw"])
    length = float(np.linalg.norm(q))
    if not (np.isfinite([p.x, p.y, p.z]).all() and 0.9 < length < 1.1):
        raise BadAction(f"pose is not finite, or its quaternion has length {length:.3g}, must be 1")
    x, y, z, w = q / length
    T = np.eye(4)
    T[:3, :3] = [[1 - 2 * (y * y + z * z), 2 * (x * y - z * w), 2 * (x * z + y * w)],
                 [2 * (x * y + z * w), 1 - 2 * (x * x + z * z), 2 * (y * z - x * w)],
                 [2 * (x * z - y * w), 2 * (y * z + x * w), 1 - 2 * (x * x + y * y)]]
    T[:3, 3] = p.x, p.y, p.z
    return T


def transform_msg(T: F64, stamp_ns: int, parent: str, child: str) -> Any:
    """Return a TransformStamped of T_parent_child (4, 4), m."""
    x, y, z, w = matrix_to_quaternion(T[:3, :3]).tolist()
    msg = TransformStamped(child_frame_id=child, transform=Transform(
        translation=Vector3(**dict(zip("xyz", T[:3, 3].tolist(), strict=True))),
        rotation=Quaternion(x=x, y=y, z=z, w=w)))
    msg.header.stamp, msg.header.frame_id = to_time(stamp_ns), parent
    return msg


def twist_msg(linear: F64, angular: F64, stamp_ns: int, frame_id: str) -> Any:
    """Return a TwistStamped, both parts (3,) in the axes of `frame_id`."""
    parts = [Vector3(**dict(zip("xyz", v.tolist(), strict=True))) for v in (linear, angular)]
    msg = TwistStamped(twist=Twist(linear=parts[0], angular=parts[1]))
    msg.header.stamp, msg.header.frame_id = to_time(stamp_ns), frame_id
    return msg


def chunk_from_msg(msg: Any) -> ActionChunk:
    """Return the chunk of a message. Raises BadAction when sizes disagree; numbers are the guard's business."""
    count, size = len(msg.deltas), int(msg.chunk_size)
    if size < 1 or count != size * ACTION_DIM:
        raise BadAction(f"chunk {msg.sequence} says chunk_size {size} but holds {count} numbers; "
                        f"{ACTION_DIM} per action are needed")
    deltas = np.array(msg.deltas, np.float32).reshape(size, ACTION_DIM)
    return ActionChunk(deltas, to_ns(msg.frame_stamp), msg.adapter, float(msg.dt_s))


def chunk_msg(chunk: ActionChunk, sequence: int, instruction: str, start_ns: int, end_ns: int, now_ns: int) -> Any:
    """Return the message of a chunk; inference start and end in nanoseconds since the epoch."""
    msg = ActionChunkMsg(sequence=sequence, chunk_size=len(chunk.deltas), dt_s=chunk.dt_s, adapter=chunk.adapter,
                         instruction=instruction, frame_stamp=to_time(chunk.frame_stamp_ns),
                         inference_start=to_time(start_ns), inference_end=to_time(end_ns))
    msg.header.stamp = to_time(now_ns)
    msg.deltas.frombytes(np.ascontiguousarray(chunk.deltas, np.float32).tobytes())
    return msg


def step_msg(command: ArmCommand, action: DueAction, measured: ArmState | None, now_ns: int) -> Any:
    """Return the record of one control step; what was not measured is NaN."""
    msg = StepMsg(frame_stamp=to_time(action.frame_stamp_ns), chunk_sequence=action.sequence,
                  chunk_index=action.index, chunk_size=action.size, verdict=VERDICTS[command.verdict],
                  reason=command.reason, gripper=nan, gripper_command=float(command.gripper),
                  adapter=action.adapter, instruction=action.instruction)
    msg.header.stamp, msg.header.frame_id = to_time(now_ns), "base_link"
    msg.requested, msg.sent = command.requested.astype(np.float32), command.sent.astype(np.float32)
    msg.t_base_target, msg.t_base_measured = command.T_base_target.ravel(), np.full(16, nan)
    msg.joints, msg.joint_velocities, msg.efforts = (np.full(6, nan) for _ in range(3))
    if measured is not None:
        msg.t_base_measured, msg.gripper = measured.T_base_ee.ravel(), float(measured.gripper)
        msg.joints, msg.joint_velocities, msg.efforts = measured.joints, measured.joint_velocities, measured.efforts
    msg.commanded_joints = command.joints.astype(np.float64)
    return msg


def status_msg(mode: ArmMode, reason: str, cause: HoldCause, counts: dict[Verdict, int], frame_age_s: float,
               command_age_s: float, now_ns: int) -> Any:
    """Return an ArmStatus; ages are -1 before the first command."""
    msg = ArmStatusMsg(state=int(mode), state_name=mode.name, reason=reason, hold_cause=HOLD_CAUSES[cause],
                       frame_age_s=frame_age_s, command_age_s=command_age_s,
                       verdict_counts=[counts[v] for v in VERDICTS])
    msg.header.stamp = to_time(now_ns)
    return msg


def hold_cause(msg: Any) -> HoldCause:
    """Return why an ArmStatus says that the arm is held for good; OTHER for a cause of a later version."""
    return next((cause for cause, number in HOLD_CAUSES.items() if number == msg.hold_cause), HoldCause.OTHER)


# --- adapters, diagnostics --------------------------------------------------------------------------------------------


def adapter_ref(msg: Any) -> AdapterRef | None:
    """Return the offered adapter, or None for the base policy (empty name). Raises AdapterMismatch on bad JSON."""
    if not msg.name:
        return None
    try:
        scores = json.loads(msg.scores_json or "{}")
    except ValueError as error:
        raise AdapterMismatch(f"adapter '{msg.name}': scores_json is not JSON ({error}); offer it again") from error
    return AdapterRef(msg.name, Path(msg.path), msg.sha256, msg.parent, msg.base_policy,
                      scores if isinstance(scores, dict) else {})


def set_double(name: str, value: float) -> Any:
    """Return the request that sets one parameter of a node to a number."""
    return SetParameters.Request(parameters=[ParameterMsg(name=name, value=ParameterValue(
        type=ParameterType.PARAMETER_DOUBLE, double_value=float(value)))])


def adapter_msg(ref: AdapterRef | None, now_ns: int) -> Any:
    """Return the offer of an adapter; None offers the base policy."""
    msg = AdapterMsg()
    msg.header.stamp = to_time(now_ns)
    if ref is not None:
        msg.name, msg.path, msg.sha256 = ref.name, str(ref.path), ref.sha256
        msg.parent, msg.base_policy, msg.scores_json = ref.parent, ref.base_policy, json.dumps(ref.scores)
    return msg


def diagnostics_msg(name: str, hardware: str, level: str, message: str, values: dict[str, Any], now_ns: int) -> Any:
    """Return a DiagnosticArray of one status; `level` is "ok", "warn" or "error"."""
    levels = {"ok": DiagnosticStatus.OK, "warn": DiagnosticStatus.WARN, "error": DiagnosticStatus.ERROR}
    status = DiagnosticStatus(name=name, hardware_id=hardware, level=levels[level], message=message,
                              values=[KeyValue(key=k, value=str(v)) for k, v in values.items()])
    msg = DiagnosticArray(status=[status])
    msg.header.stamp = to_time(now_ns)
    return msg
