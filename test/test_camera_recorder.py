"""camera_node and recorder_node as processes over DDS."""
from __future__ import annotations

from pathlib import Path

import av
import numpy as np
import pytest

pytest.importorskip("rclpy")
from ros_tools import client, running

from world_gymnast_ros import graph
from world_gymnast_ros.episodes import read_outcome, read_steps
from world_gymnast_ros.episodes.reader import read_episode
from world_gymnast_ros.nodes import base, camera_node, convert
from world_gymnast_ros.types import ArmCommand, Verdict

pytestmark = pytest.mark.ros


def write_clip(path: Path, greys: list[int], rate: int = 20) -> None:
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=rate)
        stream.width, stream.height, stream.pix_fmt = 64, 48, "yuv420p"
        for grey in greys:
            picture = av.VideoFrame.from_ndarray(np.full((48, 64, 3), grey, np.uint8), format="rgb24")
            container.mux(stream.encode(picture))
        container.mux(stream.encode())


def run_camera(capfd: pytest.CaptureFixture[str], **parameters: object) -> tuple[int, str]:
    """Run the node in this process until it ends by itself."""
    code = camera_node.main(["camera_node", *graph.CAMERA.with_overrides(**parameters).arguments()])
    return code, "".join(capfd.readouterr())


@pytest.mark.parametrize(("parameters", "words"), [
    ({"source": ""}, ["source is empty", "camera index"]),
    ({"source": "/nowhere/clip.mp4"}, ["/nowhere/clip.mp4", "neither"]),
    ({"source": "77"}, ["/dev/video77", "plugged in"]),
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
        c.until(lambda: len(images) >= 9 and infos, "nine pictures")
        seen = [round(float(convert.frame_from_image(m).rgb.mean()) / 40 - 0.5) for m in images]
        assert (np.diff(seen) % 6 == 1).all() or sorted(set(seen)) == list(range(6)), seen
        gaps = np.diff([convert.to_ns(m.header.stamp) for m in images]) * 1e-9
        assert np.median(gaps) == pytest.approx(0.25, abs=0.1)
        assert (infos[-1].width, infos[-1].height, infos[-1].k[0]) == (64, 48, pytest.approx(48.0))


def test_a_clip_that_does_not_loop_ends_with_code_zero(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    write_clip(tmp_path / "a.mp4", [50, 60])
    code, output = run_camera(capfd, source=str(tmp_path / "a.mp4"), loop=False, rate_hz=50.0)
    assert code == 0, output


def test_a_file_that_is_no_video_ends_with_code_one(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "a.mp4").write_bytes(b"not a video" * 100)
    code, output = run_camera(capfd, source=str(tmp_path / "a.mp4"))
    assert code == 1 and "a.mp4 cannot be decoded" in output and "Traceback" not in output


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

        c.say("instruction", convert.String, base.LATCHED, convert.String(data="push the red block left"))
        c.spin(0.3)  # said before the episode begins
        refused = c.call("recorder_node/stop_episode", convert.StopEpisode)
        assert not refused.success and "no episode" in refused.message
        begun = c.call("recorder_node/start_episode", convert.StartEpisode, instruction="push the red block left")
        assert begun.success, begun.message
        assert not c.call("recorder_node/start_episode", convert.StartEpisode).success
        for index in range(4):
            frame_ns = now()
            rgb = np.full((48, 64, 3), 40 * index + 20, np.uint8)
            c.say("image_raw", convert.Image, base.NEWEST_RELIABLE, convert.image_from_rgb(rgb, frame_ns, "cam"))
            c.spin(0.05)
            c.say("step", convert.StepMsg, base.RELIABLE, step_message(index, frame_ns, now()))
            c.spin(0.15)
        c.say("image_raw", convert.Image, base.NEWEST_RELIABLE,
              convert.image_from_rgb(np.full((48, 64, 3), 200, np.uint8), now(), "cam"))
        c.spin(0.5)
        ended = c.call("recorder_node/stop_episode", convert.StopEpisode, outcome="success", marked_by="test",
                       partial_score=-1.0, ended_by="done")
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
    assert read_outcome(folder).outcome == "failure"
    episode = read_episode(folder)
    assert [round(float(f.mean())) for f in episode.frames] == pytest.approx([20, 60, 100, 140, 200], abs=2)


def test_recorder_saves_a_running_episode_when_it_is_told_to_go(tmp_path: Path) -> None:
    spec = graph.RECORDER.with_overrides(directory=str(tmp_path / "episodes"), min_free_mb=1.0)
    with client() as c, running([spec], tmp_path / "log"):
        assert c.call("recorder_node/start_episode", convert.StartEpisode, instruction="x").success
        c.say("step", convert.StepMsg, base.RELIABLE, step_message(0, 1, int(c.get_clock().now().nanoseconds)))
        c.spin(0.5)
    (folder,) = (tmp_path / "episodes").iterdir()
    assert not folder.name.endswith(".partial") and len(read_steps(folder / "steps.parquet")) == 1
