"""Images from a camera device, a video file, or a folder of clips or images."""
from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import av

from world_gymnast_ros.errors import BadConfig, BadFrame, EpisodeError
from world_gymnast_ros.images import decode_rgb
from world_gymnast_ros.types import U8, Frame
from world_gymnast_ros.video import video_frames

CLIP_SUFFIXES = (".mp4", ".mkv", ".avi", ".mov", ".webm")
IMAGE_SUFFIXES = (".png", ".jpg", ".jpeg")
DEVICE_RATE_HZ = 30
"""Asked of every device: with less than its own rate, V4L2 hands out old buffers."""
DEVICE_FORMATS = ("mjpeg", "yuyv422", "")
"""Asked of a device in turn: compressed, which USB has room for; what every webcam gives; its own choice."""


def device_path(source: str) -> str:
    """Return the device that a source names: an index, or a path under /dev such as /dev/v4l/by-id/...; else ""."""
    if source.isdigit():
        return f"/dev/video{source}"
    return source if source.startswith("/dev/") else ""


def list_clips(source: str) -> list[Path]:
    """Return the clips and images of a file or folder in name order. Raises BadConfig when there is none."""
    if "://" in source:
        raise BadConfig(f"source {source!r} is a stream, which is not read here; start a camera driver that publishes "
                        "it on image_raw")
    path, suffixes = Path(source).expanduser(), (*CLIP_SUFFIXES, *IMAGE_SUFFIXES)
    clips = [path] if path.is_file() else sorted(p for p in path.glob("*") if p.suffix.lower() in suffixes)
    if not clips:
        raise BadConfig(f"source {source!r} is neither a camera index, a device's path, a video file nor a folder with "
                        f"{', '.join(suffixes)} files")
    return clips


def clip_frames(clip: Path) -> Iterator[U8]:
    """Yield the images of a clip, RGB uint8 (H, W, 3), upright; its own times are ignored. Raises BadFrame."""
    if clip.suffix.lower() in IMAGE_SUFFIXES:
        yield decode_rgb(clip, str(clip))
        return
    try:
        for _, rgb in video_frames(clip):
            yield rgb
    except EpisodeError as error:
        raise BadFrame(str(error)) from error


class Device:
    """Newest image of a V4L2 camera, read in a thread so that no old one is ever handed out."""

    def __init__(self, path: str, width: int, height: int) -> None:
        self._container = _opened(path, width, height)
        self._newest: Frame | None = None
        self.error: Exception | None = None
        self._thread = threading.Thread(target=self._read, daemon=True)
        self._thread.start()

    def _read(self) -> None:
        try:
            for image in self._container.decode(video=0):
                stamp_ns = time.time_ns()
                self._newest = Frame(image.to_ndarray(format="rgb24"), stamp_ns)
            self.error = EOFError("the camera ended its stream")
        except Exception as error:  # handed to the node, which ends with it
            self.error = error

    def take(self) -> Frame | None:
        """Return the newest image once, or None when there is no new one."""
        frame, self._newest = self._newest, None
        return frame


def _opened(path: str, width: int, height: int) -> Any:
    """Return the open device, in the first format that it gives. Raises BadConfig, whatever PyAV raises."""
    refusals = []
    for form in DEVICE_FORMATS:
        options = {"video_size": f"{width}x{height}", "framerate": str(DEVICE_RATE_HZ)}
        try:
            return av.open(path, format="v4l2", options=options | ({"input_format": form} if form else {}),
                           timeout=(5.0, 2.0))
        except Exception as error:
            refusals.append(f"{form or 'its own format'}: {getattr(error, 'strerror', None) or error}")
    raise BadConfig(f"camera {path} cannot be opened at {width}x{height} ({'; '.join(dict.fromkeys(refusals))}); is it "
                    "plugged in, is this user in group 'video', and does it give this size?")
