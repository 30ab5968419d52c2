"""MP4 clips to and from arrays, one picture per step."""
from __future__ import annotations

from collections.abc import Iterable
from fractions import Fraction
from pathlib import Path

import av
import numpy as np

from world_gymnast_ros.errors import EpisodeError
from world_gymnast_ros.images import resize_rgb
from world_gymnast_ros.types import U8

CRF = 18
"""x264 quality: visually lossless; the published WorldGym clips were made with the coarser default, 23."""


def write_mp4(path: Path, clips: Iterable[U8], size: tuple[int, int], fps: int) -> None:
    """Write clips uint8 (T, H, W, 3) RGB of `size` (h, w), one after the other, as H.264 (yuv420p).

    Raises EpisodeError for odd sizes, which that format lacks, and when the file cannot be written.
    """
    if size[0] % 2 or size[1] % 2:
        raise EpisodeError(f"a video of {size[0]} x {size[1]} is not possible: H.264 needs even sizes; name other ones")
    try:
        with av.open(str(path), "w", format="mp4") as container:
            stream = container.add_stream("libx264", rate=Fraction(fps))
            stream.height, stream.width, stream.pix_fmt = *size, "yuv420p"
            stream.options = {"crf": str(CRF), "preset": "veryfast"}
            # One thread: the workstation's cores belong to the policy.
            stream.thread_count = 1
            for clip in clips:
                for rgb in resize_rgb(clip, size):
                    container.mux(stream.encode(av.VideoFrame.from_ndarray(rgb, format="rgb24")))
            container.mux(stream.encode())
    except (OSError, av.FFmpegError) as error:
        path.unlink(missing_ok=True)
        raise EpisodeError(f"could not write {path}: {error}; check the free space") from error


def read_mp4(path: Path) -> U8:
    """Read every picture of a clip, uint8 (T, H, W, 3) RGB. Raises EpisodeError when it cannot be decoded."""
    try:
        with av.open(str(path)) as container:
            pictures = [frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)]
    except (OSError, av.FFmpegError, IndexError) as error:
        raise EpisodeError(f"cannot read {path}: {error}; check that it is a whole video file") from error
    if not pictures:
        raise EpisodeError(f"{path} holds no picture; check that it is a whole video file")
    return np.stack(pictures).astype(np.uint8)
