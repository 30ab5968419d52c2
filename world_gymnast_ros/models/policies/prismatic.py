"""The network of OpenVLA and OpenVLA-OFT: DINOv2 and SigLIP towers, a projector and Llama, under their published names.

`PrismaticVLA` is a `PreTrainedModel`, so `from_pretrained` brings shards, dtype, device placement and 4-bit weights;
nothing is converted and no remote code runs. Only what an action depends on is built: both towers stop before their
last block (OpenVLA reads the output of the last block but one, without the final norm), and SigLIP's attention pool is
left out. `unused_tensors` names what a published checkpoint holds beyond that.

Sizes of the towers are not in config.json: they follow from its timm names (TOWERS). A `vision_towers` entry, a list
of `Tower` fields, overrides them.

Sources: openvla `prismatic/extern/hf` (names, order of operations), timm `vision_transformer.py` 0.9.16 (the towers).
"""
from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedConfig, PreTrainedModel

from world_gymnast_ros.errors import BadCheckpoint

MODEL_TYPE = "openvla"
LAYER_NORM_EPS = 1e-6
CHANNELS = 3


@dataclass(frozen=True)
class Tower:
    """Sizes of one vision transformer. `registers` tokens and a class token precede the patches where `prefix`."""

    dim: int
    depth: int
    heads: int
    hidden: int
    patch: int = 14
    registers: int = 0
    class_token: bool = False
    layer_scale: bool = False
    attention_pool: bool = False


TOWERS = {
    "vit_large_patch14_reg4_dinov2.lvd142m": Tower(1024, 24, 16, 4096, registers=4, class_token=True, layer_scale=True),
    "vit_so400m_patch14_siglip_224": Tower(1152, 27, 16, 4304, attention_pool=True),
    "vit_so400m_patch14_siglip_384": Tower(1152, 27, 16, 4304, attention_pool=True),
}
"""Vision transformers of the published checkpoints by their timm name."""

LLAMA_2_7B = {"hidden_size": 4096, "intermediate_size": 11008, "num_hidden_layers": 32, "num_attention_heads": 32,
              "max_position_embeddings": 2048, "rms_norm_eps": 1e-6, "rope_theta": 10000.0, "hidden_act": "silu",
              "attention_bias": False, "mlp_bias": False, "tie_word_embeddings": False}
"""What the reference's library fills in where config.json is silent (Llama-2's own card says `rms_norm_eps` 1e-5; the
published policies were trained and run with 1e-6)."""


class PrismaticConfig(PreTrainedConfig):
    """config.json of a published OpenVLA checkpoint; fields that nothing here reads stay attributes."""

    model_type = MODEL_TYPE

    timm_model_ids: list[str] | None = None
    image_sizes: list[int] | None = None
    use_fused_vision_backbone: bool | None = True
    text_config: Any = None
    n_action_bins: int = 256
    pad_to_multiple_of: int = 64
    norm_stats: Any = None
    vision_towers: Any = None

    def __post_init__(self, **kwargs: Any) -> None:
        """Fill in what config.json leaves out, and refuse what this network cannot be."""
        text = self.text_config if self.text_config is not None else {}
        if isinstance(text, PreTrainedConfig):
            text = text.to_dict()
        kind = text.get("model_type", "llama")
        if kind != "llama":
            raise BadCheckpoint(f"config.json has a language model of type '{kind}'; only 'llama' can be loaded here")
        known = {key: value for key, value in text.items() if key not in ("dtype", "torch_dtype", "model_type")}
        if "rope_parameters" in known:
            known.pop("rope_theta", None)
        defaults = {k: v for k, v in LLAMA_2_7B.items() if not (k == "rope_theta" and "rope_parameters" in known)}
        self.text_config = LlamaConfig(**{**defaults, **known})
        self.timm_model_ids = self.timm_model_ids or list(TOWERS)[:2]
        self.image_sizes = self.image_sizes or [224] * len(self.timm_model_ids)
        super().__post_init__(**kwargs)

    @property
    def towers(self) -> list[Tower]:
        """Sizes of the vision transformers, in the order of their channels in the pixels."""
        if self.vision_towers:
            return [Tower(**tower) for tower in self.vision_towers]
        unknown = [name for name in self.timm_model_ids or [] if name not in TOWERS]
        if unknown:
            raise BadCheckpoint(f"config.json names the vision tower '{unknown[0]}', known are {sorted(TOWERS)}; "
                                "give its sizes as `vision_towers` in config.json")
        return [TOWERS[name] for name in self.timm_model_ids or []]

    @property
    def action_columns(self) -> slice:
        """Columns of the language model's head that are actions: the last `n_action_bins` before the padding."""
        end = self.text_config.vocab_size - self.pad_to_multiple_of
        return slice(end - self.n_action_bins, end)

    @staticmethod
    def describe(towers: list[Tower]) -> list[dict[str, Any]]:
        """Return `towers` as the `vision_towers` entry of a config.json."""
        return [asdict(tower) for tower in towers]


class _Scale(nn.Module):
    """LayerScale under its published name (timm's `gamma`, renamed by the reference)."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.scale_factor = nn.Parameter(torch.ones(dim))

    def forward(self, x: Tensor) -> Tensor:
        return x * self.scale_factor


class _Attention(nn.Module):
    """Attention among all tokens."""

    def __init__(self, dim: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.qkv, self.proj = nn.Linear(dim, 3 * dim), nn.Linear(dim, dim)

    def forward(self, x: Tensor) -> Tensor:
        b, n, d = x.shape
        q, k, v = self.qkv(x).reshape(b, n, 3, self.heads, d // self.heads).permute(2, 0, 3, 1, 4).unbind(0)
        out: Tensor = self.proj(F.scaled_dot_product_attention(q, k, v).transpose(1, 2).reshape(b, n, d))
        return out


class _MLP(nn.Module):
    """Two layers with exact GELU (timm's default; transformers' own SigLIP approximates it by tanh)."""

    def __init__(self, dim: int, hidden: int) -> None:
        super().__init__()
        self.fc1, self.fc2 = nn.Linear(dim, hidden), nn.Linear(hidden, dim)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.fc2(F.gelu(self.fc1(x)))
        return out


class _Block(nn.Module):
    """A pre-norm transformer block, with LayerScale where the tower has it."""

    def __init__(self, tower: Tower) -> None:
        super().__init__()
        dim = tower.dim
        self.norm1, self.attn = nn.LayerNorm(dim, eps=LAYER_NORM_EPS), _Attention(dim, tower.heads)
        self.norm2, self.mlp = nn.LayerNorm(dim, eps=LAYER_NORM_EPS), _MLP(dim, tower.hidden)
        self.ls1: nn.Module = _Scale(dim) if tower.layer_scale else nn.Identity()
        self.ls2: nn.Module = _Scale(dim) if tower.layer_scale else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.ls1(self.attn(self.norm1(x)))
        out: Tensor = x + self.ls2(self.mlp(self.norm2(x)))
        return out


class _PatchEmbedding(nn.Module):
    """Non-overlapping patches to tokens."""

    def __init__(self, tower: Tower) -> None:
        super().__init__()
        self.proj = nn.Conv2d(CHANNELS, tower.dim, tower.patch, stride=tower.patch)

    def forward(self, pixels: Tensor) -> Tensor:
        return self.proj(pixels).flatten(2).transpose(1, 2)


class VisionTransformer(nn.Module):
    """One tower up to the last block but one: pixels (B, 3, S, S) to patch tokens (B, (S / patch)^2, dim)."""

    def __init__(self, tower: Tower, image_size: int) -> None:
        super().__init__()
        self.prefix = tower.registers + int(tower.class_token)
        if tower.class_token:
            self.cls_token = nn.Parameter(torch.zeros(1, 1, tower.dim))
        if tower.registers:
            self.reg_token = nn.Parameter(torch.zeros(1, tower.registers, tower.dim))
        self.patch_embed = _PatchEmbedding(tower)
        self.pos_embed = nn.Parameter(torch.zeros(1, (image_size // tower.patch) ** 2, tower.dim))
        self.blocks = nn.ModuleList(_Block(tower) for _ in range(tower.depth - 1))
        self.gradient_checkpointing = False

    def forward(self, pixels: Tensor) -> Tensor:
        """Return the patch tokens that OpenVLA reads: no class token, no registers, no final norm."""
        x = self.patch_embed(pixels) + self.pos_embed
        before = [getattr(self, name).expand(len(x), -1, -1) for name in ("cls_token", "reg_token")
                  if hasattr(self, name)]
        x = torch.cat([*before, x], dim=1)
        for block in self.blocks:
            again = self.gradient_checkpointing and torch.is_grad_enabled()
            x = checkpoint(block, x, use_reentrant=False) if again else block(x)
        return x[:, self.prefix:]


class VisionBackbone(nn.Module):
    """One tower, or two whose patch features are joined: pixels (B, 3 or 6, S, S) to (B, patches, dim)."""

    def __init__(self, towers: list[Tower], image_sizes: list[int]) -> None:
        super().__init__()
        self.featurizer = VisionTransformer(towers[0], image_sizes[0])
        if len(towers) > 1:
            self.fused_featurizer = VisionTransformer(towers[1], image_sizes[1])

    def forward(self, pixels: Tensor) -> Tensor:
        """Return the patch features, DINOv2's before SigLIP's."""
        if not hasattr(self, "fused_featurizer"):
            return self.featurizer(pixels)
        one, two = torch.split(pixels, [CHANNELS, CHANNELS], dim=1)
        return torch.cat([self.featurizer(one), self.fused_featurizer(two)], dim=2)


class Projector(nn.Module):
    """Patch features to the language model's width: three layers behind two towers, two layers behind one."""

    def __init__(self, vision_dim: int, llm_dim: int, fused: bool) -> None:
        super().__init__()
        hidden = 4 * vision_dim if fused else llm_dim
        self.fc1, self.fc2 = nn.Linear(vision_dim, hidden), nn.Linear(hidden, llm_dim)
        if fused:
            self.fc3 = nn.Linear(llm_dim, llm_dim)

    def forward(self, x: Tensor) -> Tensor:
        """Map (B, patches, vision_dim) to (B, patches, llm_dim)."""
        out: Tensor = self.fc2(F.gelu(self.fc1(x)))
        return self.fc3(F.gelu(out)) if hasattr(self, "fc3") else out


class PrismaticVLA(PreTrainedModel):
    """OpenVLA's network. `bidirectional` makes the language model attend in both directions, as OpenVLA-OFT does."""

    config_class = PrismaticConfig
    base_model_prefix = ""
    supports_gradient_checkpointing = True
    _supports_sdpa = True
    _supports_flash_attn = True
    _no_split_modules = ("_Block", "LlamaDecoderLayer", "Projector")

    def __init__(self, config: PrismaticConfig) -> None:
        super().__init__(config)
        towers, sizes = config.towers, config.image_sizes or []
        if not 1 <= len(towers) <= 2 or len(towers) != len(sizes):
            raise BadCheckpoint(f"config.json has {len(towers)} vision towers and {len(sizes)} image sizes; OpenVLA "
                                "has one or two of each")
        self.vision_backbone = VisionBackbone(towers, sizes)
        self.projector = Projector(sum(t.dim for t in towers), config.text_config.hidden_size, len(towers) > 1)
        self.language_model = LlamaForCausalLM(config.text_config)
        self._keys_to_ignore_on_load_unexpected = unused_tensors(towers)
        self.post_init()

    def get_input_embeddings(self) -> nn.Module:
        """Return the token embedding."""
        return self.language_model.get_input_embeddings()

    def set_input_embeddings(self, value: nn.Module) -> None:
        """Replace the token embedding."""
        self.language_model.set_input_embeddings(value)

    def get_output_embeddings(self) -> nn.Module:
        """Return the language model's head."""
        return self.language_model.get_output_embeddings()

    def attend_both_ways(self, on: bool) -> None:
        """Let every position of the language model see every other (OFT), or the earlier ones alone (base model)."""
        self.config.text_config.is_causal = not on
        self.language_model.config.is_causal = not on
        for layer in self.language_model.model.layers:
            layer.self_attn.is_causal = not on

    def patches(self, pixels: Tensor) -> Tensor:
        """Map pixels (B, 3 or 6, S, S) to projected patch embeddings (B, patches, llm_dim)."""
        out: Tensor = self.projector(self.vision_backbone(pixels.to(self.pixel_dtype)))
        return out

    @property
    def pixel_dtype(self) -> torch.dtype:
        """Number format of the vision towers (they stay unquantised in a 4-bit model)."""
        dtype: torch.dtype = self.vision_backbone.featurizer.pos_embed.dtype
        return dtype

    def forward(self, inputs_embeds: Tensor, attention_mask: Tensor | None = None, **options: Any) -> Any:
        """Run the language model without its head; see `openvla_decoding` for what goes in."""
        return self.language_model.model(inputs_embeds=inputs_embeds, attention_mask=attention_mask, **options)

    def action_logits(self, hidden: Tensor) -> Tensor:
        """Return float32 logits (..., n_action_bins) over the action columns of the head, by bin: bin b is token
        `action_columns.stop - 1 - b`. Computed in float32: in bfloat16 neighbouring bins would tie."""
        rows: Tensor = self.language_model.lm_head.weight[self.config.action_columns]
        return F.linear(hidden.float(), rows.float()).flip(-1)


def unused_tensors(towers: list[Tower]) -> list[str]:
    """Return patterns of tensors in a published checkpoint that no action depends on: of each tower the last block and
    the final norm, of SigLIP the attention pool."""
    patterns = []
    for name, tower in zip(("featurizer", "fused_featurizer"), towers, strict=False):
        parts = [rf"blocks\.{tower.depth - 1}\.", r"norm\."] + ([r"attn_pool\."] if tower.attention_pool else [])
        patterns += [rf"^vision_backbone\.{name}\.{part}" for part in parts]
    return patterns
