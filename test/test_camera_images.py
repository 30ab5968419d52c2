"""Images as cameras give them, and damaged ones: RGB, or one clear refusal. No ROS, but where a message is needed."""
from __future__ import annotations

import contextlib
import io
import struct
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from safetensors.numpy import load_file

from world_gymnast_ros.encodings import BAYER, CHANNELS, ENCODINGS, PACKED_YUV, PLANAR_YUV, rgb_of
from world_gymnast_ros.episodes.schemas import (
    COMPRESSED_IMAGE,
    RAW_IMAGE,
    decode_image,
    header_of,
    message_class,
    serialize,
)
from world_gymnast_ros.errors import BadFrame, EpisodeError
from world_gymnast_ros.images import check_image, decode_rgb

HERE = Path(__file__).parent
DAMAGED = sorted((HERE / "data").glob("png*.bin"))
RGB = np.random.default_rng(0).integers(0, 256, (24, 32, 3), dtype=np.uint8)


def encoded(rgb: np.ndarray, kind: str, **options: object) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(rgb).save(buffer, kind, **options)
    return buffer.getvalue()


@pytest.mark.parametrize("encoding", [*PACKED_YUV, *PLANAR_YUV, *BAYER])
@pytest.mark.parametrize("padding", [0, 6])
def test_camera_encodings_are_opencvs_to_the_bit(encoding: str, padding: int) -> None:
    golden = load_file(HERE / "golden" / "encodings.safetensors")
    name = {"uyvy": "yuv422", "yuyv": "yuv422_yuy2"}.get(encoding, encoding)
    rows = np.pad(golden[f"{name}.in"], ((0, 0), (0, padding)), constant_values=77)
    height, width = golden[f"{name}.rgb"].shape[:2]
    got = rgb_of(encoding, rows.reshape(-1)[:rows.size - padding], height, width, rows.shape[1])  # last row not padded
    np.testing.assert_array_equal(got, golden[f"{name}.rgb"])


def test_opencv_matrices_are_taken_for_bgr() -> None:
    np.testing.assert_array_equal(rgb_of("8UC3", RGB[..., ::-1].reshape(-1), 24, 32, 96), RGB)
    grey = rgb_of("8UC1", RGB[..., 0].reshape(-1), 24, 32, 32)
    np.testing.assert_array_equal(grey, np.repeat(RGB[..., :1], 3, 2))


@pytest.mark.parametrize("encoding", ["mono16", "16UC1", "32FC1", "bayer_rggb16", "rgb16"])
def test_more_than_eight_bits_are_refused(encoding: str) -> None:
    with pytest.raises(BadFrame, match=rf"{encoding}.*more than 8 bits.*rgb8.*bayer_rggb8"):
        rgb_of(encoding, np.zeros(4 * 4 * 8, np.uint8), 4, 4, 32)


@pytest.mark.parametrize("encoding", ENCODINGS)
def test_sizes_that_lie_are_refused(encoding: str) -> None:
    channels = CHANNELS[encoding][0] if encoding in CHANNELS else 2
    data = np.zeros(8 * 8 * channels * 2, np.uint8)
    for height, width, step in ((0, 8, 64), (8, 0, 64), (8, 8, 1), (800, 8, 64), (8, 8, 2**31)):
        with pytest.raises(BadFrame, match="the publisher is broken"):
            rgb_of(encoding, data, height, width, step)


def test_odd_sizes_of_yuv_and_bayer_are_refused() -> None:
    for encoding, size in (("yuyv", (4, 5)), ("nv12", (5, 4)), ("bayer_rggb8", (5, 4))):
        with pytest.raises(BadFrame, match="odd size"):
            rgb_of(encoding, np.zeros(400, np.uint8), *size, 16)


@pytest.mark.parametrize("path", DAMAGED, ids=lambda p: p.stem)
def test_a_damaged_png_is_a_bad_frame(path: Path) -> None:
    """Pillow raises SyntaxError on these."""
    assert len(DAMAGED) == 2
    with pytest.raises(BadFrame, match="image"):
        decode_rgb(path.read_bytes(), "an image")
    with pytest.raises(BadFrame, match="image"):
        check_image(path.read_bytes(), "an image")


def test_a_sixteen_bit_png_is_refused_and_not_shown_white() -> None:
    deep = Image.fromarray(np.full((8, 8), 5000, np.uint16))
    buffer = io.BytesIO()
    deep.save(buffer, "PNG")
    with pytest.raises(BadFrame, match="more than 8 bits"):
        decode_rgb(buffer.getvalue(), "an image")
    with pytest.raises(BadFrame, match="more than 8 bits"):
        check_image(buffer.getvalue(), "an image")


def test_motion_jpeg_without_huffman_tables_is_read() -> None:
    """Webcams leave the standard tables out of every image."""
    data, out, at = encoded(RGB, "JPEG", quality=95), bytearray(b"\xff\xd8"), 2
    while data[at + 1] != 0xDA:  # segments up to the start of scan, all but DHT
        size = 2 + struct.unpack(">H", data[at + 2:at + 4])[0]
        out += b"" if data[at + 1] == 0xC4 else data[at:at + size]
        at += size
    bare = bytes(out + data[at:])
    assert len(bare) < len(data)
    np.testing.assert_array_equal(decode_rgb(bare, "x"), decode_rgb(data, "x"))


def test_a_photograph_stands_upright() -> None:
    exif = Image.Exif()
    exif[0x0112] = 6  # taken with the camera on its side
    assert decode_rgb(encoded(RGB, "JPEG", exif=exif), "x").shape == (32, 24, 3)


def test_no_damage_escapes_as_another_error() -> None:
    """Seeded fuzz: bytes changed or cut; an image or a BadFrame."""
    rng = np.random.default_rng(7)
    whole = [encoded(RGB, "PNG"), encoded(RGB, "JPEG"), *(p.read_bytes() for p in DAMAGED)]
    refused = 0
    for _ in range(1500):
        data = bytearray(whole[int(rng.integers(len(whole)))])
        for place in rng.integers(0, len(data), int(rng.integers(1, 6))):
            data[place] = int(rng.integers(256))
        if rng.random() < 0.3:
            del data[int(rng.integers(len(data))):]
        try:
            assert decode_rgb(bytes(data), "x").dtype == np.uint8
        except BadFrame:
            refused += 1
            with contextlib.suppress(BadFrame):
                check_image(bytes(data), "x")
    assert 500 < refused < 1490


def test_recorded_images_of_every_kind() -> None:
    def raw(encoding: str, data: np.ndarray, height: int, width: int, step: int) -> bytes:
        return serialize(RAW_IMAGE, message_class(RAW_IMAGE)(
            header=header_of(1, "c"), height=height, width=width, encoding=encoding, is_bigendian=0, step=step,
            data=data))

    np.testing.assert_array_equal(decode_image(RAW_IMAGE, raw("bgr8", RGB[..., ::-1].reshape(-1), 24, 32, 96)), RGB)
    assert decode_image(RAW_IMAGE, raw("yuyv", np.zeros(64, np.uint8), 4, 8, 16)).shape == (4, 8, 3)
    rng, cdr = np.random.default_rng(3), raw("rgb8", RGB.reshape(-1), 24, 32, 96)
    for _ in range(300):  # seeded fuzz of the header's bytes
        damaged = bytearray(cdr)
        for place in rng.integers(0, 60, 3):
            damaged[place] = int(rng.integers(256))
        try:
            decode_image(RAW_IMAGE, bytes(damaged))
        except (BadFrame, EpisodeError):
            continue
    message = message_class(COMPRESSED_IMAGE)(header=header_of(1, "c"), format="png",
                                              data=np.frombuffer(DAMAGED[-1].read_bytes(), np.uint8))
    with pytest.raises(BadFrame, match="image of format 'png'"):
        decode_image(COMPRESSED_IMAGE, serialize(COMPRESSED_IMAGE, message))


@pytest.mark.parametrize("encoding", [*PACKED_YUV, *BAYER])
def test_cv_bridge_gives_the_same_pixels(encoding: str) -> None:
    pytest.importorskip("cv_bridge", reason="cv_bridge is not installed: numpy converts alone")
    from world_gymnast_ros.nodes import convert

    channels = 2 if encoding in PACKED_YUV else 1
    data = np.random.default_rng(1).integers(0, 256, 24 * 32 * channels, dtype=np.uint8)
    msg = convert.Image(height=24, width=32, encoding=encoding, step=32 * channels)
    msg.data.frombytes(data.tobytes())
    np.testing.assert_array_equal(convert.frame_from_image(msg).rgb, rgb_of(encoding, data, 24, 32, 32 * channels))
