"""Images: averaging without aliasing, squashing to any shape, and refusals."""
from __future__ import annotations

import numpy as np
import pytest

from world_gymnast_ros.errors import BadFrame
from world_gymnast_ros.images import check_rgb, resize_rgb


def test_shrinking_averages_the_area() -> None:
    checker = np.zeros((480, 640, 3), np.uint8)
    checker[::2, ::2] = checker[1::2, 1::2] = (200, 100, 50)  # finest pattern: sampling would give 0 or 200
    small = resize_rgb(checker, (48, 64))
    assert small.shape == (48, 64, 3)
    np.testing.assert_allclose(small.reshape(-1, 3).astype(int), [[100, 50, 25]] * (48 * 64), atol=1)


def test_whole_image_is_squashed_not_cropped() -> None:
    image = np.zeros((480, 640, 3), np.uint8)
    image[:, :320] = (255, 0, 0)
    image[240:, 320:] = (0, 0, 255)
    small = resize_rgb(image, (64, 64))
    np.testing.assert_array_equal(small[:, :32], np.broadcast_to([255, 0, 0], (64, 32, 3)))
    np.testing.assert_array_equal(small[32:, 32:], np.broadcast_to([0, 0, 255], (32, 32, 3)))
    np.testing.assert_array_equal(small[:32, 32:], 0)


def test_batches_keep_their_axes_and_order() -> None:
    rng = np.random.default_rng(0)
    frames = rng.integers(0, 256, (2, 3, 32, 48, 3), dtype=np.uint8)
    out = resize_rgb(frames, (16, 16))
    assert out.shape == (2, 3, 16, 16, 3) and out.dtype == np.uint8
    np.testing.assert_array_equal(out[1, 2], resize_rgb(frames[1, 2], (16, 16)))


def test_same_size_is_a_copy_and_enlarging_is_smooth() -> None:
    rgb = np.zeros((4, 4, 3), np.uint8)
    same = resize_rgb(rgb, (4, 4))
    same[:] = 9
    assert rgb.max() == 0
    rgb[:, 2:] = 200
    row = resize_rgb(rgb, (16, 16))[0, :, 0].astype(int)
    assert (np.diff(row) >= 0).all() and len(set(row.tolist())) > 2


@pytest.mark.parametrize("bad", [
    np.zeros((4, 4, 3), np.float32), np.zeros((4, 4), np.uint8), np.zeros((4, 4, 4), np.uint8),
    np.zeros((0, 4, 3), np.uint8), [[1, 2, 3]], None,
])
def test_refuses_other_things(bad: object) -> None:
    with pytest.raises(BadFrame, match="camera"):
        check_rgb(bad, "camera")


def test_refuses_an_empty_size() -> None:
    with pytest.raises(BadFrame, match="size"):
        resize_rgb(np.zeros((4, 4, 3), np.uint8), (0, 4))
