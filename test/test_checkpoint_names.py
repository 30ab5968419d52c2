"""Every loader of a folder of our own names each tensor that is missing, unexpected or of another shape."""
from __future__ import annotations

import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from world_gymnast_ros.errors import AdapterMismatch, BadCheckpoint
from world_gymnast_ros.loading.load import GEOMETRIC, JUDGE, POLICY, SHIPPED, WORLD_MODEL, checkpoint_dir, load
from world_gymnast_ros.models.checkpoint import WEIGHTS, misfits, named
from world_gymnast_ros.models.policies.oft_l1_head import L1Head


@pytest.mark.parametrize(("kind", "name"), [(POLICY, SHIPPED[POLICY]), (WORLD_MODEL, SHIPPED[WORLD_MODEL]),
                                            (JUDGE, SHIPPED[JUDGE]), (JUDGE, GEOMETRIC)])
def test_a_folder_of_our_own(tmp_path: Path, kind: str, name: str) -> None:
    shutil.copytree(checkpoint_dir(name, kind), tmp_path / "copy")
    tensors = load_file(tmp_path / "copy" / WEIGHTS)
    first, second, third = sorted(tensors)[:3]
    del tensors[first], tensors[second]
    tensors |= {third: torch.zeros(1, 2, 3), "extra.weight": torch.zeros(2)}
    save_file(tensors, tmp_path / "copy" / WEIGHTS)
    with pytest.raises(BadCheckpoint) as refused:
        load(kind, tmp_path / "copy", "cpu")
    for says in (f"missing {first}", f"missing {second}", "unexpected extra.weight", f"{third} is (1, 2, 3), not "):
        assert says in str(refused.value)


def test_an_adapter(tmp_path: Path) -> None:
    policy = load(POLICY, "", "cpu")
    policy.add_lora(4, 8.0)
    policy.save_adapter(tmp_path)
    weights = policy._slot.tensors()
    gone = sorted(weights)[0]
    policy.remove_lora()
    from world_gymnast_ros.models.policies.lora import LoraWeights
    with pytest.raises(AdapterMismatch) as refused:
        policy._slot.put(LoraWeights(4, 8.0, {**{k: v for k, v in weights.items() if k != gone}, "x": torch.zeros(1)}))
    assert f"missing {gone}" in str(refused.value) and "unexpected x" in str(refused.value)


def test_an_l1_head(tmp_path: Path) -> None:
    weights = L1Head(8).state_dict()
    gone = sorted(weights)[0]
    torch.save({**{k: v for k, v in weights.items() if k != gone}, "x": torch.zeros(1)},
               tmp_path / "action_head--1_checkpoint.pt")
    with pytest.raises(BadCheckpoint, match=rf"missing {gone}, unexpected x"):
        L1Head.from_folder(tmp_path, 8)


def test_many_names_are_counted() -> None:
    own = {str(i): torch.zeros(1) for i in range(30)}
    assert named(misfits(own, {})).endswith("missing 19 ... (30 in all)")
