"""Pictures from a camera device, a video file or a folder of clips, through one library (av)."""
from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from pathlib import Path

import av

from world_gymnast_ros.errors import BadConfig, BadFrame, EpisodeError
from world_gymnast_ros.types import U8, Frame
from world_gymnast_ros.video import pictures

CLIP_SUFFIXES = (".mp4", ".mkv", ".avi", ".mov", ".webm")
DEVICE_RATE_HZ = 30
"""Asked of every device: with less than its own rate, V4L2 hands out old buffers."""


def list_clips(source: str) -> list[Path]:
    """Return the clips of a file or folder in name order. Raises BadConfig when there is none."""
    path = Path(source)
    clips = [path] if path.is_file() else sorted(p for p in path.glob("*") if p.suffix.lower() in CLIP_SUFFIXES)
    if not clips:
        raise BadConfig(f"source {source!r} is neither a camera index, a video file nor a folder with "
                        f"{', '.join(CLIP_SUFFIXES)} files")
    return clips


def clip_frames(clip: Path) -> Iterator[U8]:
    """Yield the pictures of a clip, RGB uint8 (H, W, 3), upright; its own times are ignored. Raises BadFrame."""
    try:
        for _, rgb in pictures(clip):
            yield rgb
    except EpisodeError as error:
        raise BadFrame(str(error)) from error


class Device:
    """Newest picture of a V4L2 camera, read in a thread so that no old one is ever handed out."""

    def __init__(self, index: int, width: int, height: int) -> None:
        path = f"/dev/video{index}"
        options = {"video_size": f"{width}x{height}", "framerate": str(DEVICE_RATE_HZ), "input_format": "mjpeg"}
        try:
            self._container = av.open(path, format="v4l2", options=options, timeout=(5.0, 2.0))
        except (av.error.FFmpegError, OSError, ValueError) as error:
            raise BadConfig(f"camera {path} cannot be opened at {width}x{height} ({error}); is it plugged in, and is "
                            "this user in group 'video'?") from error
        self._newest: Frame | None = None
        self.error: Exception | None = None
        self._thread = threading.Thread(target=self._read, daemon=True)
        self._thread.start()

    def _read(self) -> None:
        try:
            for picture in self._container.decode(video=0):
                stamp_ns = time.time_ns()
                self._newest = Frame(picture.to_ndarray(format="rgb24"), stamp_ns)
            self.error = EOFError("the camera ended its stream")
        except Exception as error:  # handed to the node, which ends with it
            self.error = error

    def take(self) -> Frame | None:
        """Return the newest picture once, or None when there is no new one."""
        frame, self._newest = self._newest, None
        return frame
