"""camera_node and recorder_node as processes over DDS."""
from __future__ import annotations

import gc
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import av
import numpy as np
import pyarrow.parquet as pq
import pytest
from PIL import Image

pytest.importorskip("rclpy")
from diagnostic_msgs.msg import DiagnosticStatus
from ros_tools import client, running

from world_gymnast_ros.episodes import check, read_outcome, read_steps
from world_gymnast_ros.episodes.reader import read_episode
from world_gymnast_ros.nodes import base, camera_node, clips, convert, graph
from world_gymnast_ros.robot import camera_file
from world_gymnast_ros.types import ActionChunk, AdapterRef, ArmCommand, Verdict

pytestmark = pytest.mark.ros


def write_clip(path: Path, greys: list[int], rate: int = 20) -> None:
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=rate)
        stream.width, stream.height, stream.pix_fmt = 64, 48, "yuv420p"
        for grey in greys:
            image = av.VideoFrame.from_ndarray(np.full((48, 64, 3), grey, np.uint8), format="rgb24")
            container.mux(stream.encode(image))
        container.mux(stream.encode())


def run_camera(capfd: pytest.CaptureFixture[str], **parameters: object) -> tuple[int, str]:
    """Run the node in this process until it ends by itself."""
    code = camera_node.main(["camera_node", *graph.CAMERA.with_overrides(**parameters).arguments()])
    gc.collect()  # a node that failed while it was made publishes until it is collected
    return code, "".join(capfd.readouterr())


@pytest.mark.parametrize(("parameters", "words"), [
    ({"source": ""}, ["source is empty", "camera index"]),
    ({"source": "/nowhere/clip.mp4"}, ["/nowhere/clip.mp4", "neither"]),
    ({"source": "77"}, ["/dev/video77", "plugged in", "mjpeg", "video"]),
    ({"source": "/dev/v4l/by-id/usb-none-index0"}, ["/dev/v4l/by-id/usb-none-index0", "plugged in"]),
    ({"source": "rtsp://robot/camera"}, ["rtsp://robot/camera", "a stream", "image_raw"]),
    ({"source": "0", "rate_hz": 500.0}, ["rate_hz", "500", "120"]),
    ({"sauce": "0"}, ["unknown key 'sauce'", "known keys"]),
])
def test_no_camera_is_a_clear_error(
    capfd: pytest.CaptureFixture[str], parameters: dict[str, object], words: list[str]
) -> None:
    code, output = run_camera(capfd, **parameters)
    assert code == 2 and all(word in output for word in words), output
    assert "Traceback" not in output


def test_clips_play_in_name_order_at_their_true_rate_and_end(tmp_path: Path) -> None:
    greys = [20, 60, 100, 140, 180, 220]
    (tmp_path / "clips").mkdir()
    write_clip(tmp_path / "clips" / "b.mp4", greys[3:], rate=20)
    write_clip(tmp_path / "clips" / "a.mp4", greys[:3], rate=20)
    spec = graph.CAMERA.with_overrides(source=str(tmp_path / "clips"), rate_hz=4.0, loop=True, focal_px=480.0)
    with client() as c, running([spec], tmp_path / "log"):
        images = c.hear("image_raw", convert.Image, base.NEWEST)
        infos = c.hear("camera_info", convert.CameraInfo)
        c.until(lambda: len(images) >= 9 and infos, "nine images")
        seen = [round(float(convert.frame_from_image(m).rgb.mean()) / 40 - 0.5) for m in images]
        assert (np.diff(seen) % 6 == 1).all() or sorted(set(seen)) == list(range(6)), seen
        gaps = np.diff([convert.to_ns(m.header.stamp) for m in images]) * 1e-9
        assert np.median(gaps) > 0.15 and gaps.min() < 0.35  # a busy machine shows some late
        assert (infos[-1].width, infos[-1].height, infos[-1].k[0]) == (64, 48, pytest.approx(48.0))


def test_a_calibration_is_published_for_the_images_as_they_are_and_can_be_set(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("ROS_HOME", str(tmp_path / "ros"))
    write_clip(tmp_path / "a.mp4", [50, 60])
    K = np.array([[600.0, 0, 300], [0, 610, 250], [0, 0, 1]])
    camera_file.write(tmp_path / "c.yaml", camera_file.Intrinsics(640, 480, K, (0.1, 0.0, 0.0, 0.0, 0.0)))
    spec = graph.CAMERA.with_overrides(source=str(tmp_path / "a.mp4"), rate_hz=10.0,
                                       camera_info_url=f"file://{tmp_path / 'c.yaml'}")
    with client() as c, running([spec], tmp_path / "log"):
        infos = c.hear("camera_info", convert.CameraInfo)
        c.until(lambda: infos, "camera_info")
        assert (infos[-1].width, infos[-1].height, infos[-1].k[0], infos[-1].d[0]) == (64, 48, pytest.approx(60.0), 0.1)
        better = convert.camera_info(0, "", 64, 48, camera_file.pinhole(77.0, 64, 48))
        assert c.call("set_camera_info", convert.SetCameraInfo, camera_info=better).success
        c.until(lambda: infos[-1].k[0] == 77.0, "the new calibration")
        bad = convert.camera_info(0, "", 64, 48, None)
        answer = c.call("set_camera_info", convert.SetCameraInfo, camera_info=bad)
        assert not answer.success and "focal lengths must be above 0" in answer.status_message
    assert camera_file.read(tmp_path / "c.yaml").K[0, 0] == 77.0, "and it is kept"


def test_a_calibration_of_another_view_ends_the_node(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    write_clip(tmp_path / "a.mp4", [50, 60])
    camera_file.write(tmp_path / "c.yaml", camera_file.pinhole(900.0, 1280, 720))
    code, output = run_camera(capfd, source=str(tmp_path / "a.mp4"), camera_info_url=str(tmp_path / "c.yaml"))
    assert code == 2 and "calibrated at 1280x720" in output and "Traceback" not in output


def test_a_clip_that_does_not_loop_ends_with_code_zero(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    write_clip(tmp_path / "a.mp4", [50, 60])
    code, output = run_camera(capfd, source=str(tmp_path / "a.mp4"), loop=False, rate_hz=50.0)
    assert code == 0, output


def test_a_folder_of_images_is_a_clip_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    for name, grey in (("b.png", 90), ("a.jpg", 30)):
        Image.fromarray(np.full((48, 64, 3), grey, np.uint8)).save(tmp_path / name)
    shown = [rgb.mean() for clip in clips.list_clips("~") for rgb in clips.clip_frames(clip)]
    assert shown == pytest.approx([30, 90], abs=1)
    assert clips.device_path("0") == "/dev/video0" and not clips.device_path("~")
    assert clips.device_path("/dev/v4l/by-id/x") == "/dev/v4l/by-id/x"


def test_a_file_that_is_no_video_ends_with_code_one(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "a.mp4").write_bytes(b"not a video" * 100)
    code, output = run_camera(capfd, source=str(tmp_path / "a.mp4"))
    assert code == 1 and "a.mp4" in output and "re-encode it" in output and "Traceback" not in output


def step_message(index: int, frame_ns: int, now_ns: int) -> object:
    command = ArmCommand(np.eye(4), np.zeros(6), 1.0, np.full(7, 0.01, np.float32), np.full(7, 0.01, np.float32),
                         Verdict.OK, "")
    action = convert.DueAction(command.sent, 5, index, 4, frame_ns, 0, "mine", "push the red block left")
    return convert.step_msg(command, action, None, now_ns)


def test_recorder_writes_a_whole_episode(tmp_path: Path) -> None:
    spec = graph.RECORDER.with_overrides(directory=str(tmp_path / "episodes"), min_free_mb=1.0)
    with client() as c, running([spec], tmp_path / "log"):
        def now() -> int:
            return int(c.get_clock().now().nanoseconds)

        def show(grey: int, stamp_ns: int) -> None:
            rgb = np.full((48, 64, 3), grey, np.uint8)
            c.say("image_raw", convert.Image, base.NEWEST_RELIABLE, convert.image_from_rgb(rgb, stamp_ns, "cam"))

        c.say("instruction", convert.String, base.LATCHED, convert.String(data="push the red block left"))
        show(0, now())  # a reader that takes the newest alone may know its writer later than the writer knows it
        c.spin(0.3)  # said before the episode begins
        refused = c.call("recorder_node/stop_episode", convert.StopEpisode)
        assert not refused.success and "no episode" in refused.message
        begun = c.call("recorder_node/start_episode", convert.StartEpisode, instruction="push the red block left")
        assert begun.success, begun.message
        assert not c.call("recorder_node/start_episode", convert.StartEpisode).success
        c.spin(0.5)  # on a busy machine the newest image alone is kept while the node is behind
        for index in range(4):
            frame_ns = now()
            show(40 * index + 20, frame_ns)
            c.spin(0.05)
            c.say("step", convert.StepMsg, base.RELIABLE, step_message(index, frame_ns, now()))
            c.spin(0.15)
        show(200, now())
        c.spin(0.5)
        said = [convert.KeyValue(key="score", value="0.9")]
        c.say("task_done", convert.DiagnosticStatus, base.RELIABLE,
              convert.DiagnosticStatus(hardware_id="the judge", message="it is done", values=said))
        c.spin(0.5)
        ended = c.call("recorder_node/stop_episode", convert.StopEpisode, outcome="success", marked_by="test",
                       partial_score=-1.0)
        assert ended.success, ended.message
        marked = c.call("recorder_node/mark_outcome", convert.MarkOutcome, path=ended.path, outcome="failure",
                        marked_by="second look", partial_score=0.5)
        assert marked.success, marked.message
        outside = c.call("recorder_node/mark_outcome", convert.MarkOutcome, path=str(tmp_path), outcome="failure",
                         marked_by="x", partial_score=-1.0)
        assert not outside.success
    folder = Path(ended.path)
    table = read_steps(folder / "steps.parquet")
    assert len(table) == 4 and set(table.instruction) == {"push the red block left"}
    outcome = read_outcome(folder)
    assert outcome.outcome == "failure"  # the person's mark; the judge that ended the episode stands beside it
    assert [(j["judge"], j["score"]) for j in outcome.judgements] == [("the judge", 0.9)]
    episode = read_episode(folder)
    assert episode.ended_by == "done"
    assert [round(float(f.mean())) for f in episode.frames] == pytest.approx([20, 60, 100, 140, 200], abs=2)


def test_an_operator_marks_by_service_joystick_and_key(tmp_path: Path) -> None:
    """The running episode, or the last one; what was marked on the way is not undone by a stop that says nothing."""
    spec = graph.RECORDER.with_overrides(directory=str(tmp_path / "episodes"), min_free_mb=1.0, success_button=2,
                                         failure_button=3)
    with client() as c, running([spec], tmp_path / "log"):
        def outcome() -> tuple[str, str, float | None]:
            (folder,) = (tmp_path / "episodes").iterdir()
            marked = read_outcome(folder)
            return marked.outcome, marked.marked_by, marked.partial_score

        def hold(*buttons: int) -> bool:  # as joy_node does: again and again
            c.say("joy", convert.Joy, base.RELIABLE, convert.Joy(buttons=[int(n in buttons) for n in range(4)]))
            return True

        unmarked = {"path": "", "outcome": "success", "marked_by": "alice", "partial_score": -1.0}
        refused = c.call("recorder_node/mark_outcome", convert.MarkOutcome, **unmarked)
        assert not refused.success and "no episode" in refused.message
        assert c.call("recorder_node/start_episode", convert.StartEpisode, instruction="x").success
        c.say("step", convert.StepMsg, base.RELIABLE, step_message(0, 1, int(c.get_clock().now().nanoseconds)))
        c.until(lambda: hold(2) and outcome() == ("success", "joystick", None), "the mark of the button")
        marked = c.call("recorder_node/mark_outcome", convert.MarkOutcome, **{**unmarked, "outcome": "failure"})
        assert marked.success and outcome() == ("failure", "alice", None)
        for _ in range(5):  # still held: no second mark
            hold(2)
            c.spin(0.1)
        assert outcome() == ("failure", "alice", None)
        c.until(lambda: hold(2, 3) and outcome() == ("failure", "joystick", None), "the mark of the other button")
        ended = c.call("recorder_node/stop_episode", convert.StopEpisode, partial_score=-1.0)
        assert ended.success and outcome() == ("failure", "joystick", None)
        keys = subprocess.Popen([sys.executable, "-m", "world_gymnast_ros.cli", "episodes", "keys", "--by", "bob"],
                                stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        assert keys.stdin and keys.stdout
        keys.stdin.write("x7q")
        keys.stdin.close()
        c.until(lambda: keys.poll() is not None, "the end of the keys")
        assert keys.returncode == 0 and "failure by bob" in keys.stdout.read()
        keys.stdout.close()
    assert outcome() == ("failure", "bob", pytest.approx(0.7))
    table = pq.read_table(Path(ended.path) / "steps.parquet")
    assert table["marked_by"].to_pylist() == ["bob"] and table["ended_by"].to_pylist() == ["stopped"]
    assert check(Path(ended.path)) == ["holds no image (sensor_msgs/msg/CompressedImage or sensor_msgs/msg/Image)"]


def test_a_recorder_says_what_it_does_not_hear(tmp_path: Path) -> None:
    """An episode without camera or arm is recorded, and who starts it is told at once; so are the diagnostics."""
    spec = graph.RECORDER.with_overrides(directory=str(tmp_path / "episodes"), min_free_mb=1.0)
    spec = replace(spec, remaps={"__node": "recorder_node"})  # as launch does
    with client() as c, running([spec], tmp_path / "log"):
        told = c.hear("/diagnostics", convert.DiagnosticArray)

        def status() -> tuple[bytes, str, dict[str, str]]:
            (status,) = told[-1].status
            return status.level, status.message, {v.key: v.value for v in status.values}

        c.until(lambda: told, "diagnostics")
        assert sorted(name for name in c.get_node_names() if "recorder" in name) == ["recorder_ears", "recorder_node"]
        level, message, values = status()
        assert level == DiagnosticStatus.WARN and message.startswith("ready; nothing heard on image_raw (ever)")
        assert values["wx250s/joint_states"] == "nothing of use yet"
        begun = c.call("recorder_node/start_episode", convert.StartEpisode, instruction="x")
        assert begun.success and "nothing heard on image_raw (ever), wx250s/joint_states (ever)" in begun.message
        assert c.call("recorder_node/stop_episode", convert.StopEpisode, partial_score=-1.0).success

        def show() -> bool:
            now_ns = int(c.get_clock().now().nanoseconds)
            c.say("image_raw", convert.Image, base.NEWEST_RELIABLE,
                  convert.image_from_rgb(np.zeros((48, 64, 3), np.uint8), now_ns, "cam"))
            c.say("wx250s/joint_states", convert.JointState, base.RELIABLE,
                  convert.joint_state_msg(now_ns, np.zeros(9), np.zeros(9), np.zeros(9)))
            c.spin(0.05)
            return True

        c.until(lambda: show() and status()[:2] == (DiagnosticStatus.OK, "ready"), "a recorder that hears both")
        begun = c.call("recorder_node/start_episode", convert.StartEpisode, instruction="x")
        assert begun.success and "nothing heard" not in begun.message
        c.until(lambda: "image_raw (for " in status()[1], "the silence of the camera")
        level, message, _ = status()
        assert level == DiagnosticStatus.WARN and message.startswith("recording ")


def test_the_table_names_policy_adapter_and_world_model(tmp_path: Path) -> None:
    """Told before the episode began, by the messages of the nodes themselves."""
    spec = graph.RECORDER.with_overrides(directory=str(tmp_path / "episodes"), min_free_mb=1.0)
    with client() as c, running([spec], tmp_path / "log"):
        now_ns = int(c.get_clock().now().nanoseconds)
        ref = AdapterRef("mine", Path("x"), "ab12", "base", "tiny", {"world_model": "wm-3"})
        c.say("adapter", convert.AdapterMsg, base.LATCHED, convert.adapter_msg(ref, now_ns))
        for name, hardware in (("policy_node", "tiny"), ("arm_node", "xs"), ("lab/policy_node", "another robot's")):
            c.say("/diagnostics", convert.DiagnosticArray, base.RELIABLE,
                  convert.diagnostics_msg(name, hardware, "ok", "", {}, now_ns))
        c.spin(0.3)
        assert c.call("recorder_node/start_episode", convert.StartEpisode, instruction="x").success
        chunk = ActionChunk(np.full((4, 7), 0.5, np.float32), now_ns)
        c.say("action_chunk", convert.ActionChunkMsg, base.RELIABLE,
              convert.chunk_msg(chunk, 5, "x", now_ns + 1, now_ns + 2, now_ns + 3))
        c.say("step", convert.StepMsg, base.RELIABLE, step_message(1, now_ns, now_ns + 4))
        c.spin(0.3)
        ended = c.call("recorder_node/stop_episode", convert.StopEpisode, partial_score=-1.0)
        assert ended.success, ended.message
    table = read_steps(Path(ended.path) / "steps.parquet")
    assert (table.policy, table.adapter_sha256, table.world_model) == (("tiny",), ("ab12",), ("wm-3",))
    np.testing.assert_array_equal(table.policy_output, np.full((1, 7), 0.5))
    stamps = (table.inference_start_ns, table.inference_end_ns, table.chunk_stamps_ns, table.stamps_ns)
    assert [int(s[0]) - now_ns for s in stamps] == [1, 2, 3, 4]


def test_recorder_saves_a_running_episode_when_it_is_told_to_go(tmp_path: Path) -> None:
    spec = graph.RECORDER.with_overrides(directory=str(tmp_path / "episodes"), min_free_mb=1.0)
    with client() as c, running([spec], tmp_path / "log"):
        assert c.call("recorder_node/start_episode", convert.StartEpisode, instruction="x").success
        c.say("step", convert.StepMsg, base.RELIABLE, step_message(0, 1, int(c.get_clock().now().nanoseconds)))
        c.spin(0.5)
    (folder,) = (tmp_path / "episodes").iterdir()
    assert not folder.name.endswith(".partial") and len(read_steps(folder / "steps.parquet")) == 1
