"""A tiny OpenVLA checkpoint in the published layout, with weights that anyone can make again.

Each tensor is drawn from MT19937 seeded with the CRC-32 of its name, so the outputs in `golden/` belong to weights that
lie in no file. Names, shards and side files are those of openvla/openvla-7b; only the sizes are tiny.
"""
from __future__ import annotations

import json
import zlib
from pathlib import Path

import numpy as np
import torch
from tokenizers import Regex, Tokenizer
from tokenizers.models import WordLevel
from tokenizers.normalizers import Prepend, Replace
from tokenizers.normalizers import Sequence as Normalizers
from tokenizers.pre_tokenizers import Split

from world_gymnast_ros.models.policies.oft_l1_head import L1Head
from world_gymnast_ros.models.policies.prismatic import PrismaticConfig, PrismaticVLA, Tower

DINO = Tower(dim=32, depth=3, heads=4, hidden=64, registers=4, class_token=True, layer_scale=True)
SIGLIP = Tower(dim=48, depth=3, heads=4, hidden=80, attention_pool=True)
TEXT = {"model_type": "llama", "hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 3,
        "num_attention_heads": 4, "vocab_size": 32064, "pad_token_id": 32000}
BRIDGE = {"q01": [-0.028727, -0.041703, -0.026094, -0.080921, -0.092887, -0.207183, 0.0],
          "q99": [0.028310, 0.040855, 0.040162, 0.081920, 0.077929, 0.203826, 1.0], "mask": [True] * 6 + [False]}
PIECES = {"<unk>": 0, "<s>": 1, "</s>": 2, "\n": 13, "▁the": 278, "▁in": 297, "▁to": 304, "▁on": 373, "▁In": 512,
          "wer": 556, "▁should": 881, "▁What": 1724, "▁put": 1925, "▁take": 2125, "▁action": 3158, "Out": 3744,
          "▁close": 3802, "▁dra": 7482, "▁robot": 19964, "▁egg": 19710, "plant": 24389, "▁sink": 28169, "▁": 29871,
          ":": 29901, "?": 29973}
"""Pieces of Llama-2's vocabulary under their own ids: enough for the sentences of the tests."""
SINK, DRAWER = "put the eggplant in the sink", "close the drawer"
GOLDEN_IDS = {
    SINK: [1, 512, 29901, 1724, 3158, 881, 278, 19964, 2125, 304, 1925, 278, 19710, 24389, 297, 278, 28169, 29973, 13,
           3744, 29901, 29871],
    DRAWER: [1, 512, 29901, 1724, 3158, 881, 278, 19964, 2125, 304, 3802, 278, 7482, 556, 29973, 13, 3744, 29901,
             29871],
}
"""Prompt ids from the real Llama-2 tokenizer (tokenizer.json of 32,000 ids)."""


def drawn(name: str, shape: tuple[int, ...]) -> np.ndarray:
    """Return the weights float32 of one tensor: the same name and shape give the same numbers everywhere."""
    n = np.random.RandomState(zlib.crc32(name.encode())).standard_normal(shape).astype(np.float32)
    module = name.split(".")[-2] if "." in name else name
    if name.endswith("scale_factor"):
        return 0.5 + 0.1 * n
    if name.endswith("bias"):
        return 0.05 * n
    if "norm" in module:
        return 1.0 + 0.1 * n
    if "embed_tokens" in name:
        return 0.5 * n
    if "lm_head" in name:  # actions stand out, so that a greedy choice over the whole vocabulary is one
        n *= 1 / 8
        n[:31744] *= 0.05
        n[32000:] *= 0.05
        n[31744:32000] *= 3.0
        return n
    if len(shape) < 2 or name.endswith(("cls_token", "reg_token", "pos_embed", "latent")):
        return 0.3 * n
    return (n * 1.5 / np.sqrt(np.prod(shape[1:]))).astype(np.float32)


def _block(tower: Tower, prefix: str) -> dict[str, tuple[int, ...]]:
    d, h = tower.dim, tower.hidden
    shapes = {"norm1.weight": (d,), "norm1.bias": (d,), "attn.qkv.weight": (3 * d, d), "attn.qkv.bias": (3 * d,),
              "attn.proj.weight": (d, d), "attn.proj.bias": (d,), "norm2.weight": (d,), "norm2.bias": (d,),
              "mlp.fc1.weight": (h, d), "mlp.fc1.bias": (h,), "mlp.fc2.weight": (d, h), "mlp.fc2.bias": (d,)}
    if tower.layer_scale:
        shapes |= {"ls1.scale_factor": (d,), "ls2.scale_factor": (d,)}
    return {f"{prefix}.blocks.{tower.depth - 1}.{k}": v for k, v in shapes.items()}


def unused() -> dict[str, tuple[int, ...]]:
    """Names and shapes of what published checkpoints hold and no action depends on."""
    d, h, fused = SIGLIP.dim, SIGLIP.hidden, "vision_backbone.fused_featurizer"
    pool = {"latent": (1, 1, d), "q.weight": (d, d), "q.bias": (d,), "kv.weight": (2 * d, d), "kv.bias": (2 * d,),
            "proj.weight": (d, d), "proj.bias": (d,), "norm.weight": (d,), "norm.bias": (d,), "mlp.fc1.weight": (h, d),
            "mlp.fc1.bias": (h,), "mlp.fc2.weight": (d, h), "mlp.fc2.bias": (d,)}
    shapes = {**_block(DINO, "vision_backbone.featurizer"), **_block(SIGLIP, fused)}
    shapes |= {f"{fused}.attn_pool.{k}": v for k, v in pool.items()}
    for name, tower in (("featurizer", DINO), ("fused_featurizer", SIGLIP)):
        shapes |= {f"vision_backbone.{name}.norm.{part}": (tower.dim,) for part in ("weight", "bias")}
    return shapes


def tokenizer() -> Tokenizer:
    """A word-level stand-in for Llama-2's tokenizer that gives its ids for the pieces above."""
    made = Tokenizer(WordLevel(PIECES, unk_token="<unk>"))
    made.normalizer = Normalizers([Prepend("▁"), Replace(" ", "▁")])
    longest_first = sorted((p for p in PIECES if p not in ("<unk>", "<s>", "</s>", "▁")), key=len, reverse=True)
    made.pre_tokenizer = Split(Regex("|".join(p.replace("?", r"\?") for p in longest_first)), "isolated")
    return made


def write_folder(folder: Path, *, recipe: dict[str, object] | None = None, l1_head: bool = False,
                 text: dict[str, object] = TEXT) -> Path:
    """Write the checkpoint: 139 tensors in 4 shards, config, statistics, tokenizer, normalisation, recipe, L1 head."""
    config = PrismaticConfig(
        vision_towers=PrismaticConfig.describe([DINO, SIGLIP]), text_config=dict(text), image_sizes=[224, 224],
        timm_model_ids=["vit_large_patch14_reg4_dinov2.lvd142m", "vit_so400m_patch14_siglip_224"],
        norm_stats={"bridge_orig": {"action": BRIDGE}})
    network = PrismaticVLA(config)
    shapes = {name: tuple(t.shape) for name, t in network.state_dict().items()} | unused()
    weights = {name: torch.from_numpy(np.ascontiguousarray(drawn(name, shape))) for name, shape in shapes.items()}
    network.save_pretrained(folder, state_dict=weights, max_shard_size="900KB")
    tokenizer().save(str(folder / "tokenizer.json"))
    (folder / "preprocessor_config.json").write_text(json.dumps({
        "means": [[0.484375, 0.455078125, 0.40625], [0.5, 0.5, 0.5]],
        "stds": [[0.228515625, 0.2236328125, 0.224609375], [0.5, 0.5, 0.5]]}))
    if recipe is not None:
        (folder / "world_gymnast.json").write_text(json.dumps(recipe))
    if l1_head:
        shapes = {name: tuple(t.shape) for name, t in L1Head(text["hidden_size"]).state_dict().items()}
        torch.save({f"module.{name}": torch.from_numpy(np.ascontiguousarray(drawn(f"action_head.{name}", shape)))
                    for name, shape in shapes.items()}, folder / "action_head--50000_checkpoint.pt")
    return folder


def camera_frame(height: int, width: int, seed: int) -> np.ndarray:
    """Blocks of colour with sharp edges under a smooth wave, uint8 (height, width, 3)."""
    blocks = np.random.RandomState(seed).randint(0, 256, (height // 16 + 1, width // 16 + 1, 3))
    blocks = blocks.repeat(16, 0).repeat(16, 1)[:height, :width]
    y, x = np.mgrid[0:height, 0:width]
    wave = 60 * (np.sin(x / 9.0) + np.cos(y / 13.0))[..., None]
    return np.clip(0.6 * blocks + 60 + wave, 0, 255).astype(np.uint8)
