"""Video files to and from images. The only place, but for devices, that knows PyAV: whatever it raises is an error
of ours."""
from __future__ import annotations

from collections.abc import Iterable, Iterator
from fractions import Fraction
from pathlib import Path

import av
import numpy as np

from world_gymnast_ros.errors import EpisodeError, one_line
from world_gymnast_ros.files import whole
from world_gymnast_ros.images import resize_rgb
from world_gymnast_ros.types import U8

CRF = 18
"""x264 quality: visually lossless; the published WorldGym clips were made with the coarser default, 23."""
SEEK_MARGIN_S = 1e-3


def write_mp4(path: Path, clips: Iterable[U8], size: tuple[int, int], fps: int) -> None:
    """Write clips uint8 (T, H, W, 3) RGB of `size` (h, w), one after the other, as H.264 (yuv420p); whole or absent.

    Raises EpisodeError for odd sizes, which that format lacks, and when the file cannot be written.
    """
    if size[0] % 2 or size[1] % 2:
        raise EpisodeError(f"a video of {size[0]} x {size[1]} is not possible: H.264 needs even sizes; name other ones")
    try:
        with whole(path) as partial:
            _write_mp4(partial, clips, size, fps)
    except (OSError, av.FFmpegError) as error:
        raise EpisodeError(f"could not write {path}: {error}; check the free space") from error


def _write_mp4(path: Path, clips: Iterable[U8], size: tuple[int, int], fps: int) -> None:
    written = 0
    with av.open(str(path), "w", format="mp4") as container:
        stream = container.add_stream("libx264", rate=Fraction(fps))
        stream.height, stream.width, stream.pix_fmt = *size, "yuv420p"
        stream.options = {"crf": str(CRF), "preset": "veryfast"}
        # One thread: the workstation's cores belong to the policy.
        stream.thread_count = 1
        for clip in clips:
            for rgb in resize_rgb(clip, size):
                container.mux(stream.encode(av.VideoFrame.from_ndarray(rgb, format="rgb24")))
            written += len(clip)
        container.mux(stream.encode())
    if not written:
        raise EpisodeError("no episode to export; record some, or choose others")


def video_frames(path: Path, from_s: float = 0.0) -> Iterator[tuple[float, U8]]:
    """Yield (time in s, image uint8 (H, W, 3) RGB) from about `from_s` on, upright as the file says.

    Raises EpisodeError when it cannot be decoded, whatever PyAV raises. Images may be of several sizes.
    """
    try:
        with av.open(str(path)) as container:
            stream = container.streams.video[0]
            if from_s > 0:
                container.seek(max(0, int((from_s - SEEK_MARGIN_S) / stream.time_base)), stream=stream)
            for frame in container.decode(stream):
                rgb = frame.to_ndarray(format="rgb24")
                turns = round(frame.rotation / 90) % 4  # a telephone's clip lies on its side
                yield float(frame.time or 0.0), np.ascontiguousarray(np.rot90(rgb, turns)) if turns else rgb
    except GeneratorExit:
        raise
    except Exception as error:
        raise EpisodeError(f"cannot read {path} as video ({type(error).__name__}: {one_line(error)}); check that it is "
                           "a whole video file, or re-encode it, for example to h264 mp4") from error


def read_video(path: Path) -> U8:
    """Return every image of a clip, uint8 (T, H, W, 3) RGB. Raises EpisodeError."""
    found = [rgb for _, rgb in video_frames(path)]
    sizes = {rgb.shape for rgb in found}
    if len(sizes) != 1:
        content = f"images of {len(sizes)} sizes {sorted(sizes)}" if sizes else "no image"
        raise EpisodeError(f"{path} holds {content}; check that it is a whole video file of one size")
    return np.stack(found)
