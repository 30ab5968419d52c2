"""Messages to types and back. Needs the generated messages, starts no node."""
import io

import numpy as np
import pytest
from PIL import Image as Pillow

pytest.importorskip("rclpy")
from world_gymnast_ros.control.arm_state import GuardInputs, GuardState, arm_fault
from world_gymnast_ros.control.chunk_player import ArmMode, DueAction
from world_gymnast_ros.control.hold_cause import HoldCause
from world_gymnast_ros.control.limits import SafetyConfig
from world_gymnast_ros.errors import AdapterMismatch, BadAction, BadFrame
from world_gymnast_ros.nodes import convert
from world_gymnast_ros.robot import kinematics
from world_gymnast_ros.types import ActionChunk, AdapterRef, ArmCommand, Verdict

RGB = np.random.default_rng(0).integers(0, 256, (5, 7, 3), dtype=np.uint8)


def image(encoding: str, pixels: np.ndarray, padding: int = 0) -> object:
    rows = np.pad(pixels.reshape(pixels.shape[0], -1), ((0, 0), (0, padding)), constant_values=77)
    msg = convert.Image(height=pixels.shape[0], width=pixels.shape[1], encoding=encoding, step=rows.shape[1])
    msg.data.frombytes(rows.tobytes())
    msg.header.stamp = convert.to_time(1_234_567_890_123_456_789)
    return msg


@pytest.mark.parametrize("padding", [0, 3])
@pytest.mark.parametrize(("encoding", "pixels"), [
    ("rgb8", RGB), ("bgr8", RGB[..., ::-1]), ("rgba8", np.dstack([RGB, RGB[..., :1]])),
    ("bgra8", np.dstack([RGB[..., ::-1], RGB[..., :1]])),
])
def test_colour_encodings_become_rgb(encoding: str, pixels: np.ndarray, padding: int) -> None:
    frame = convert.frame_from_image(image(encoding, pixels, padding))
    np.testing.assert_array_equal(frame.rgb, RGB)
    assert frame.stamp_ns == 1_234_567_890_123_456_789


def test_grey_becomes_three_equal_channels() -> None:
    frame = convert.frame_from_image(image("mono8", RGB[..., :1], padding=2))
    np.testing.assert_array_equal(frame.rgb, np.repeat(RGB[..., :1], 3, axis=2))


def test_our_own_image_comes_back() -> None:
    msg = convert.image_from_rgb(RGB[:, ::-1], 42, "cam")
    np.testing.assert_array_equal(convert.frame_from_image(msg).rgb, RGB[:, ::-1])


def test_other_encodings_are_refused_with_the_list() -> None:
    with pytest.raises(BadFrame, match=r"mono16.*rgb8.*mono8"):
        convert.frame_from_image(image("mono16", RGB))


def test_what_webcams_publish_by_default_becomes_rgb() -> None:
    grey = np.full((4, 8, 2), 128, np.uint8)  # Y, U and V in the middle
    frame = convert.frame_from_image(image("yuv422_yuy2", grey, padding=4))
    assert frame.rgb.shape == (4, 8, 3) and np.ptp(frame.rgb) == 0


def test_a_wrong_size_is_refused_with_the_remedy() -> None:
    with pytest.raises(BadFrame, match=r"7x5.*image_width.*640"):
        convert.frame_from_image(image("rgb8", RGB), (0, 640))


@pytest.mark.parametrize("change", [{"step": 3}, {"height": 50}, {"width": 0}])
def test_an_image_that_lies_about_its_size_is_refused(change: dict[str, int]) -> None:
    msg = image("rgb8", RGB)
    for key, value in change.items():
        setattr(msg, key, value)
    with pytest.raises(BadFrame):
        convert.frame_from_image(msg)


def test_compressed_images() -> None:
    buffer = io.BytesIO()
    Pillow.fromarray(RGB).save(buffer, "PNG")
    msg = convert.CompressedImage(format="png", data=buffer.getvalue())
    np.testing.assert_array_equal(convert.frame_from_compressed(msg).rgb, RGB)
    with pytest.raises(BadFrame, match="decoded"):
        convert.frame_from_compressed(convert.CompressedImage(format="jpeg", data=b"not an image"))


def joint_state(**change: object) -> object:
    position = np.array([*kinematics.NEUTRAL, 1.0, 0.0225, -0.0225])
    msg = convert.joint_state_msg(5, position, np.arange(9.0), np.arange(9.0) * 10)
    for key, value in change.items():
        setattr(msg, key, value)
    return msg


def test_joint_states_in_any_order() -> None:
    msg = joint_state()
    order = np.random.default_rng(1).permutation(9)
    for key in ("name", "position", "velocity", "effort"):
        setattr(msg, key, [getattr(msg, key)[i] for i in order])
    state = convert.arm_state(msg)
    np.testing.assert_allclose(state.joints, kinematics.NEUTRAL)
    np.testing.assert_allclose(state.efforts, np.arange(6) * 10)
    assert state.gripper == pytest.approx(0.5)
    np.testing.assert_allclose(state.T_base_ee[:3, 3], [0.120201, -0.019085, 0.246696], atol=1e-5)


@pytest.mark.parametrize("change", [
    {"name": ["waist"], "position": [0.0]}, {"position": [0.0] * 8}, {"position": [float("nan")] * 9},
])
def test_unusable_joint_states_are_refused(change: dict[str, object]) -> None:
    with pytest.raises(BadAction):
        convert.arm_state(joint_state(**change))


def test_a_driver_without_velocities_and_efforts() -> None:
    state = convert.arm_state(joint_state(velocity=[], effort=[]))
    assert np.isnan(state.joint_velocities).all() and np.isnan(state.efforts).all()
    assert np.isnan(convert.arm_state(joint_state(effort=[0.0] * 6)).efforts).all()  # of another number of joints
    inputs = GuardInputs(state, 0.0, 0.0, 0)
    assert "require_effort" in arm_fault(GuardState(), inputs, SafetyConfig())  # not zeros: that would be no effort
    assert arm_fault(GuardState(), inputs, SafetyConfig(require_effort=False)) == ""


def test_chunk_round_trip() -> None:
    deltas = np.random.default_rng(2).normal(size=(4, 7)).astype(np.float32)
    msg = convert.chunk_msg(ActionChunk(deltas, 11, "mine", 0.2), 3, "go", 12, 13, 14)
    back = convert.chunk_from_msg(msg)
    np.testing.assert_array_equal(back.deltas, deltas)
    assert (back.frame_stamp_ns, back.adapter, msg.sequence, msg.chunk_size) == (11, "mine", 3, 4)
    msg.deltas.pop()
    with pytest.raises(BadAction, match="27 numbers"):
        convert.chunk_from_msg(msg)


def test_a_step_without_a_measurement_says_nan() -> None:
    command = ArmCommand(np.eye(4), np.arange(6.0), 0.5, np.ones(7, np.float32), np.zeros(7, np.float32),
                         Verdict.HOLD, "why")
    action = DueAction(np.ones(7, np.float32), 9, 2, 4, 77, 0, "base", "go")
    msg = convert.step_msg(command, action, None, 99)
    assert msg.verdict == msg.HOLD and msg.chunk_sequence == 9 and msg.chunk_index == 2 and msg.reason == "why"
    assert np.isnan(msg.joints).all() and np.isnan(msg.t_base_measured).all()
    assert convert.to_ns(msg.frame_stamp) == 77 and convert.to_ns(msg.header.stamp) == 99


def test_a_status_names_the_cause_of_a_hold_apart_from_its_words() -> None:
    numbers = set()
    for cause in HoldCause:
        msg = convert.status_msg(ArmMode.HOLDING, "in any words", cause, dict.fromkeys(Verdict, 0), -1.0, -1.0, 5)
        numbers.add(msg.hold_cause)
        assert convert.hold_cause(msg) is cause and msg.reason == "in any words"
    assert len(numbers) == len(HoldCause)
    msg.hold_cause = 200
    assert convert.hold_cause(msg) is HoldCause.OTHER, "a cause of a later version"


def test_adapters() -> None:
    assert convert.adapter_ref(convert.adapter_msg(None, 0)) is None
    ref = AdapterRef("a", __import__("pathlib").Path("/x/a"), "00", "base", "tiny", {"before": [0.1, 0.2]})
    assert convert.adapter_ref(convert.adapter_msg(ref, 0)) == ref
    bad = convert.adapter_msg(ref, 0)
    bad.scores_json = "{"
    with pytest.raises(AdapterMismatch, match="JSON"):
        convert.adapter_ref(bad)
