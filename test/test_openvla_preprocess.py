"""What OpenVLA does to a frame before the network: equal to TensorFlow's steps, and bad settings are refused."""
import json
from pathlib import Path

import numpy as np
import pytest
from published_openvla import camera_frame
from safetensors.numpy import load_file

from world_gymnast_ros.errors import BadCheckpoint, BadConfig, BadFrame
from world_gymnast_ros.models.policies.jpeg_fast import jpeg_round_trip
from world_gymnast_ros.models.policies.openvla_preprocess import Preprocess, centre_crop, lanczos3

GOLDEN = Path(__file__).parent / "golden" / "openvla_preprocess.safetensors"
DINO, SIGLIP = ((0.484375, 0.455078125, 0.40625), (0.228515625, 0.2236328125, 0.224609375)), ((0.5,) * 3, (0.5,) * 3)
NORMAL = {"means": (DINO[0], SIGLIP[0]), "stds": (DINO[1], SIGLIP[1])}


def differ(one: np.ndarray, two: np.ndarray) -> tuple[int, float]:
    """Largest difference in grey levels, and the share of values that differ at all."""
    gap = np.abs(one.astype(int) - two.astype(int))
    return int(gap.max()), float((gap > 0).mean())


def test_the_whole_path_is_tensorflows() -> None:
    golden = load_file(GOLDEN)
    for name, frame in (("camera", camera_frame(480, 640, 1)), ("world", camera_frame(256, 256, 2))):
        most, share = differ(lanczos3(jpeg_round_trip(frame), 224), golden[f"{name}.resized"])
        assert most <= 1 and share < 1e-3, name
    whole = Preprocess(224, **NORMAL, crop_area=0.9).image(camera_frame(480, 640, 1))
    most, share = differ(whole, golden["camera.cropped"])
    assert most <= 1 and share < 1e-3


def test_jpeg_is_tensorflows_to_the_bit() -> None:
    """Also where the size is no multiple of a block, and colour is padded."""
    golden = load_file(GOLDEN)
    for name, frame in (("odd", camera_frame(37, 53, 3)), ("narrow", camera_frame(100, 30, 4))):
        np.testing.assert_array_equal(jpeg_round_trip(frame), golden[f"{name}.jpeg"])


def test_the_crop_is_tensorflows() -> None:
    golden = load_file(GOLDEN)
    most, share = differ(centre_crop(golden["camera.resized"], 0.9, 224), golden["camera.cropped"])
    assert most <= 1 and share < 1e-3
    policy = Preprocess(224, **NORMAL, crop_area=0.9, jpeg=False, lanczos=False)
    most, share = differ(policy.image(camera_frame(256, 256, 2)), golden["world.crop_only"])
    assert most <= 1 and share < 1e-3


def test_two_normalisations_in_the_published_order() -> None:
    grey = np.full((1, 224, 224, 3), 128, np.uint8)
    pixels = Preprocess(224, **NORMAL, jpeg=False, lanczos=False)(grey)
    assert pixels.shape == (1, 6, 224, 224) and pixels.dtype == np.float32
    np.testing.assert_allclose(pixels[0, :3, 5, 5], (128 / 255 - np.array(DINO[0])) / np.array(DINO[1]), rtol=1e-5)
    np.testing.assert_allclose(pixels[0, 3:, 5, 5], (128 / 255 - 0.5) / 0.5, rtol=1e-4)


def test_bad_settings_are_refused(tmp_path: Path) -> None:
    for area in (0.0, 1.1):
        with pytest.raises(BadConfig, match="crop_area"):
            Preprocess(224, **NORMAL, crop_area=area)
    with pytest.raises(BadFrame):
        Preprocess(224, **NORMAL)(np.zeros((1, 8, 8, 4), np.uint8))
    with pytest.raises(BadCheckpoint, match=r"preprocessor_config\.json"):
        Preprocess.from_folder(tmp_path, 224, 2)
    (tmp_path / "preprocessor_config.json").write_text(json.dumps({"means": [[0.5] * 3], "stds": [[0.5] * 3]}))
    with pytest.raises(BadCheckpoint, match="1 vision towers"):
        Preprocess.from_folder(tmp_path, 224, 2)
    (tmp_path / "preprocessor_config.json").write_text(json.dumps({"means": [[0.5] * 3], "stds": [[0.0] * 3]}))
    with pytest.raises(BadCheckpoint, match="positive"):
        Preprocess.from_folder(tmp_path, 224, 1)
