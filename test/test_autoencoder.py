"""Autoencoders of a latent world model: diffusers folders, TAESD pairs, and what is refused."""
from __future__ import annotations

import json
import os
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from world_gymnast_ros.errors import BadCheckpoint
from world_gymnast_ros.models.world_models.autoencoder import TinyAutoencoder, load_autoencoder
from world_gymnast_ros.video import read_video

CPU = torch.device("cpu")
DATA = Path(__file__).resolve().parents[2] / "shared" / "data"
TAEF2 = Path(os.environ.get("WORLD_GYMNAST_TAEF2") or DATA / "taef2")
CLIPS = Path(os.environ.get("WORLD_GYMNAST_CLIPS") or DATA / "bridge_clips")
WEIGHTS = "diffusion_pytorch_model.safetensors"


@pytest.fixture(autouse=True)
def one_thread() -> None:
    torch.set_num_threads(1)


@pytest.fixture
def kl(tmp_path: Path) -> Path:
    """A folder of a tiny AutoencoderKL with Stable Diffusion 3's settings: a scaling and a shift factor."""
    from diffusers import AutoencoderKL

    torch.manual_seed(0)
    model = AutoencoderKL(block_out_channels=(8, 8, 8, 8), down_block_types=("DownEncoderBlock2D",) * 4,
                          up_block_types=("UpDecoderBlock2D",) * 4, latent_channels=16, norm_num_groups=4,
                          layers_per_block=1, scaling_factor=1.5305, shift_factor=0.0609, use_quant_conv=False,
                          use_post_quant_conv=False)
    model.save_pretrained(tmp_path / "sd3" / "vae")
    return tmp_path / "sd3"


def images(count: int = 3) -> torch.Tensor:
    return torch.rand(count, 32, 48, 3, generator=torch.Generator().manual_seed(1))


def test_a_diffusers_autoencoder_is_scaled_and_not_shifted(kl: Path) -> None:
    from diffusers import AutoencoderKL

    ours = load_autoencoder(kl, CPU, torch.float32)
    model = AutoencoderKL.from_pretrained(kl / "vae").eval()
    assert (ours.channels, ours.downscale) == (16, 8)
    with torch.no_grad():
        mean = model.encode(images().permute(0, 3, 1, 2) * 2 - 1).latent_dist.mean
        z = torch.randn(2, 16, 4, 6, generator=torch.Generator().manual_seed(2))
        image = (model.decode(z).sample + 1) / 2
    torch.testing.assert_close(ours.encode(images()), (mean * 1.5305).permute(0, 2, 3, 1))
    torch.testing.assert_close(ours.decode(z.permute(0, 2, 3, 1) * 1.5305), image.permute(0, 2, 3, 1).clamp(0, 1))


def test_a_batch_is_its_images_one_by_one(kl: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    ours = load_autoencoder(kl / "vae", CPU, torch.float32)
    whole = ours.encode(images())
    monkeypatch.setattr("world_gymnast_ros.models.world_models.autoencoder.PIXELS_AT_ONCE", 1)
    torch.testing.assert_close(ours.encode(images()), whole)


def test_weights_that_do_not_fit_are_named(kl: Path) -> None:
    tensors = load_file(kl / "vae" / WEIGHTS)
    gone = sorted(tensors)[3]
    del tensors[gone]
    tensors["decoder.extra.weight"] = torch.zeros(2)
    save_file(tensors, kl / "vae" / WEIGHTS)
    with pytest.raises(BadCheckpoint) as error:
        load_autoencoder(kl, CPU, torch.float32)
    assert f"missing {gone}" in str(error.value) and "unexpected decoder.extra.weight" in str(error.value)


@pytest.mark.parametrize("config", ['{"_class_name": "StableDiffusionPipeline"}', '{"_class_name": "os"}', "{}", "["])
def test_a_folder_that_names_no_autoencoder_is_refused(tmp_path: Path, config: str) -> None:
    (tmp_path / "config.json").write_text(config)
    with pytest.raises(BadCheckpoint, match=r"_class_name|no autoencoder"):
        load_autoencoder(tmp_path, CPU, torch.float32)


def test_a_folder_without_one_says_what_is_wanted(tmp_path: Path) -> None:
    with pytest.raises(BadCheckpoint, match="diffusion_pytorch_model"):
        load_autoencoder(tmp_path, CPU, torch.float32)
    (tmp_path / "config.json").write_text(json.dumps({"_class_name": "AutoencoderKL"}))
    with pytest.raises(BadCheckpoint, match="cannot be read as AutoencoderKL"):
        load_autoencoder(tmp_path, CPU, torch.float32)


def test_a_tiny_autoencoder_of_diffusers_has_no_distribution(tmp_path: Path) -> None:
    from diffusers import AutoencoderTiny

    model = AutoencoderTiny(latent_channels=16, encoder_block_out_channels=(8,) * 4,
                            decoder_block_out_channels=(8,) * 4)
    model.save_pretrained(tmp_path)
    ours = load_autoencoder(tmp_path, CPU, torch.float32)
    assert ours.decode(ours.encode(images())).shape == (3, 32, 48, 3)


def test_real_frames_survive_a_real_autoencoder() -> None:
    """TAESD for FLUX.2 on frames of the real set-up: at least 30 dB."""
    if not TAEF2.is_dir() or not CLIPS.is_dir():
        pytest.skip(f"no {TAEF2} or no {CLIPS}; set WORLD_GYMNAST_TAEF2 to a folder with a TAESD for FLUX.2 and "
                    "WORLD_GYMNAST_CLIPS to one with WorldGym's sample clips")
    ours = load_autoencoder(TAEF2, CPU, torch.float32)
    frames = np.stack([read_video(clip)[0] for clip in sorted(CLIPS.glob("*.mp4"))[:4]])
    real = torch.from_numpy(frames).float() / 255
    again = ours.decode(ours.encode(real))
    db = -10 * torch.log10((again - real).square().mean((1, 2, 3)))
    assert (ours.channels, ours.downscale) == (32, 8) and db.min() > 30.0, db


def test_tensors_of_a_taesd_that_do_not_fit_are_named(tmp_path: Path) -> None:
    encoder = TinyAutoencoder._encoder(SimpleNamespace(channels=4), 8, False).state_dict()
    decoder = TinyAutoencoder._decoder(SimpleNamespace(channels=4), 8, False).state_dict()
    save_file(decoder, tmp_path / "t_decoder.safetensors")
    for wrong, says in (({**encoder, "0.bias": torch.zeros(5)}, r"0\.bias is \(5,\), not \(8,\)"),
                        ({**encoder, "20.bias": torch.zeros(4)}, r"unexpected 20\.bias"),
                        ({k: v for k, v in encoder.items() if k != "1.conv.2.weight"}, r"missing 1\.conv\.2\.weight")):
        save_file(wrong, tmp_path / "t_encoder.safetensors")
        with pytest.raises(BadCheckpoint, match=says):
            load_autoencoder(tmp_path, CPU, torch.float32)
    save_file(encoder, tmp_path / "t_encoder.safetensors")
    assert load_autoencoder(tmp_path, CPU, torch.float32).channels == 4


def test_a_cut_taesd_is_refused(tmp_path: Path) -> None:
    torch.save({"0.weight": torch.zeros(8, 3, 3, 3), "14.bias": torch.zeros(4)}, tmp_path / "t_encoder.pth")
    torch.save({"1.weight": torch.zeros(8, 4, 3, 3)}, tmp_path / "t_decoder.pth")
    with pytest.raises(BadCheckpoint, match=r"missing 0\.bias"):
        load_autoencoder(tmp_path, CPU, torch.float32)
    (tmp_path / "t_encoder.pth").write_bytes(b"no")
    with pytest.raises(BadCheckpoint, match="cannot be read"):
        load_autoencoder(tmp_path, CPU, torch.float32)
