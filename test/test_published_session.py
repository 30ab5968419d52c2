"""A whole session of published layouts at tiny random size, by the command that a user types, to its verdict.

`data/bridge_sink.jpg`: 640x480, the Bridge sink without the arm, from ManiSkill2_real2sim (Apache-2.0), as JPEG.
"""
from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from published_openvla import SINK, write_folder
from test_worldgym import TINY, WEIGHTS
from tiny_vlm import QWEN, write_tiny_vlm

from world_gymnast_ros.adaptation.config import AdaptNodeConfig
from world_gymnast_ros.adaptation.log import LOG_NAME
from world_gymnast_ros.cli import main
from world_gymnast_ros.config import load
from world_gymnast_ros.errors import BadConfig
from world_gymnast_ros.loading.load import load_policy
from world_gymnast_ros.models.judges.vlm import VLMConfig
from world_gymnast_ros.paths import share_path
from world_gymnast_ros.updates.adaptation import lora_config
from world_gymnast_ros.updates.policy_gradient import FULL_SIZE, LoraConfig

FRAME = Path(__file__).parent / "data" / "bridge_sink.jpg"


@pytest.fixture(scope="module")
def oft(tmp_path_factory: pytest.TempPathFactory) -> Path:
    recipe = {"decoding": "parallel", "chunk_size": 5}
    return write_folder(tmp_path_factory.mktemp("oft") / "openvla-oft", recipe=recipe)


def worldgym(folder: Path) -> Path:
    """A folder as docs/howto/worldgym.md says: a .pt of the training, config.json, the autoencoder."""
    from diffusers import AutoencoderKL

    torch.manual_seed(0)
    vae = AutoencoderKL(block_out_channels=(8, 8, 8, 8), down_block_types=("DownEncoderBlock2D",) * 4,
                        up_block_types=("UpDecoderBlock2D",) * 4, latent_channels=4, norm_num_groups=4,
                        layers_per_block=1, use_quant_conv=False, use_post_quant_conv=False)
    vae.save_pretrained(folder / "vae")
    torch.save({"ema": WEIGHTS}, folder / "ckpt_000580000.pt")
    (folder / "config.json").write_text(json.dumps({**TINY.to_dict(), "frame_size": [64, 64], "sampling_steps": 2}))
    return folder


def test_the_eggplant_session_ends_in_a_verdict(oft: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    judge = tmp_path / "judge"
    model = write_tiny_vlm(tmp_path / "vlm", QWEN)
    VLMConfig(model=str(model), frames=2, frame_px=32, min_label_share=0.0).save(judge)
    status = main(["adapt", SINK, "--frame", str(FRAME), "--policy", str(oft), "--world-model",
                   str(worldgym(tmp_path / "worldgym")), "--judge", str(judge), "--device", "cpu", "--out",
                   str(tmp_path / "runs"), "--updates", "1", "--budget-s", "3600", "--set", "min_release_auc=0",
                   "copies=4", "groups_per_update=1", "horizon_steps=5", "horizon_from_task=false", "evaluate_every=1",
                   "select_groups=1", "held_out_copies=2", "promotion_groups=4", "threads=1", "moved_m=10",
                   "sharpness_floor=0", "colour_shift_levels=255", "reroll=false", "solved_rate=1.0"])
    said = capsys.readouterr().out
    assert status in (0, 1) and said.splitlines()[0].startswith("let the arm move: "), said
    assert "kept: " in said or "promoted: " in said, said
    [log] = (tmp_path / "runs" / "sessions").glob(f"*/{LOG_NAME}")
    rows = [json.loads(line) for line in log.read_text().splitlines()]
    first = rows[0]
    assert first["names"]["policy"] == "openvla-oft" and first["names"]["world_model"] == "worldgym"
    assert first["names"]["learner"].startswith("LoRA of rank 32") and first["instructions"] == [SINK]
    [update] = [row for row in rows if row.get("event", row.get("kind")) == "update" or "imagined_success" in row][:1]
    assert not update["idle"] and update["first_ratio_off"] < 1e-3 and update["chunks"] == 4, update
    assert list(log.parent.glob("report.html"))


def test_what_the_settings_leave_open_is_as_the_policy_s_size_wants_it(oft: Path) -> None:
    published, small, config = load_policy(oft, "cpu"), load_policy("", "cpu"), AdaptNodeConfig()
    assert lora_config(config, small) == LoraConfig() and lora_config(config, published) == FULL_SIZE
    assert load(AdaptNodeConfig, share_path("config/adapt.yaml")).learning_rate == 0.0
    mine = AdaptNodeConfig(lora_rank=8, learning_rate=1e-4, kl_coefficient=0.0, micro_chunks=3)
    stated = lora_config(mine, published)
    assert (stated.rank, stated.alpha, stated.learning_rate, stated.kl_coefficient, stated.micro_chunks) == (
        8, 16.0, 1e-4, 0.0, 3)
    assert published.network.vision_backbone.featurizer.gradient_checkpointing, "activations are recomputed"
    with pytest.raises(BadConfig, match="four_bit is for published policies"):
        load_policy("", "cpu", four_bit=True)


@pytest.mark.parametrize("name", ["adapt_80gb", "adapt_24gb"])
def test_profiles_are_whole_settings_and_say_that_they_are_estimates(name: str) -> None:
    path = share_path(f"config/{name}.yaml")
    profile = load(AdaptNodeConfig, path)
    assert profile.policy == "openvla/openvla-7b" and profile.budget_s >= 3600 and profile.dtype == "bfloat16"
    assert profile.four_bit == (name == "adapt_24gb")
    assert "Estimates, measured on no GPU" in path.read_text()
