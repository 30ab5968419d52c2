"""The network of an OpenVLA-class policy: vision tower, projector, Llama, action bins on the vocabulary tail.

A chunk is decoded in one forward from placeholder embeddings (OpenVLA-OFT's parallel decoding): the prefix (vision
tokens, then the prompt) attends to itself, the K * 7 placeholders attend to the prefix and to each other, both ways.
The prompt's first token is the *readout*: after `aux_layer` layers it must tell where the gripper tip, the named
object and the destination are. That regression teaches the trunk to localise; behaviour cloning alone does not.
"""
from __future__ import annotations

from dataclasses import field
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import LlamaConfig, LlamaForCausalLM, PretrainedConfig, PreTrainedModel

from world_gymnast_ros.errors import BadCheckpoint
from world_gymnast_ros.models.policies.action_bins import BINS
from world_gymnast_ros.models.policies.words import PAD, SPECIAL_TOKENS, WORDS
from world_gymnast_ros.models.vision import Projector, WindowTower
from world_gymnast_ros.types import ACTION_DIM, SIMULATION

PLACES = ("tip", "object", "destination")
"""What the readout is asked for, three coordinates each."""
PLACE_CENTRE_M = (0.30, 0.02, 0.06)
PLACE_SCALE_M = 0.10
"""Normalisation of positions, base frame: (xyz - centre) / scale."""


class OpenVLAConfig(PretrainedConfig):
    """Sizes, words and action statistics. `text_config` holds the Llama sizes; its vocabulary is set here."""

    model_type = "world_gymnast_openvla"

    name: str = "openvla-tiny"
    trained_on: str = SIMULATION  # what it saw; this package trains the class on the twin's play alone
    image_size: int = 64
    window: int = 12
    stride: int = 8
    vision_dim: int = 128
    vision_layers: int = 3
    vision_heads: int = 4
    text_config: dict[str, Any] = field(default_factory=lambda: dict(TINY_TEXT))
    words: list[str] = field(default_factory=lambda: list(WORDS))
    max_words: int = 12
    chunk_size: int = 4
    aux_layer: int = 2
    action_q01: list[float] = field(default_factory=lambda: [-0.03, -0.03, -0.03, -0.1, -0.1, -0.1, 0.0])
    action_q99: list[float] = field(default_factory=lambda: [0.03, 0.03, 0.03, 0.1, 0.1, 0.1, 1.0])
    action_mask: list[bool] = field(default_factory=lambda: [True] * 6 + [False])

    @property
    def vocab_size(self) -> int:
        """Specials and words, then the 256 action tokens at the tail."""
        return SPECIAL_TOKENS + len(self.words) + BINS

    @property
    def vision_tokens(self) -> int:
        """Tokens per image in the language model, after merging 2 x 2."""
        return (self.image_size // self.stride // 2) ** 2

    def llama(self) -> LlamaConfig:
        """Return the language model's config with this vocabulary."""
        sizes = {k: v for k, v in self.text_config.items() if k not in ("vocab_size", "pad_token_id")}
        config = LlamaConfig(vocab_size=self.vocab_size, pad_token_id=PAD, use_cache=False, **sizes)
        config._attn_implementation = "eager"
        if not 1 <= self.aux_layer <= config.num_hidden_layers:
            raise BadCheckpoint(f"aux_layer {self.aux_layer} is outside 1..{config.num_hidden_layers}; fix config.json")
        return config


TINY_TEXT: dict[str, Any] = {
    "hidden_size": 192, "intermediate_size": 512, "num_hidden_layers": 4, "num_attention_heads": 6,
    "max_position_embeddings": 128, "initializer_range": 0.06,
}


class Trunk(nn.Module):
    """What policy and judge have in common: images and words to a readout and a prefix.

    Subclasses have `vision_backbone`, `projector`, `language_model` and `aux_head`; weight names as OpenVLA's.
    """

    config: Any
    vision_backbone: WindowTower
    projector: Projector
    language_model: LlamaForCausalLM
    aux_head: nn.Module

    def see(self, frames: Tensor) -> Tensor:
        """Map uint8 images (B, H, W, 3) to language-model tokens (B, vision_tokens, d). Knows no instruction."""
        tokens: Tensor = self.projector(self.vision_backbone(frames))
        return tokens

    def _positions(self, hidden: Tensor, words: int, actions: int) -> tuple[Tensor, Tensor]:
        config = self.config
        base = config.vision_tokens
        ids = torch.cat([torch.arange(base + words), torch.arange(actions) + base + 1 + config.max_words])
        cos_sin: tuple[Tensor, Tensor] = self.language_model.model.rotary_emb(hidden, ids[None].to(hidden.device))
        return cos_sin

    def _layers(self, hidden: Tensor, layers: slice, hide: Tensor, positions: tuple[Tensor, Tensor]) -> Tensor:
        for layer in self.language_model.model.layers[layers]:
            hidden = layer(hidden, attention_mask=hide, position_embeddings=positions)
        return hidden

    def _mask(self, ids: Tensor, vision: int, actions: int) -> Tensor:
        """Return the additive mask (B, 1, N, N): nobody sees padding, the prefix does not see the placeholders."""
        seen = F.pad(ids != PAD, (vision, actions), value=True)
        total = seen.shape[1]
        allowed = seen[:, None, None, :].expand(-1, 1, total, -1).clone()
        if actions:
            allowed[:, :, : total - actions, total - actions:] = False
        return torch.zeros(allowed.shape, device=ids.device).masked_fill_(~allowed, -1e4)

    def read(self, tokens: Tensor, ids: Tensor) -> tuple[Tensor, Tensor]:
        """Return the readout (B, d) and places (B, 9) from `see`'s tokens and ids (B, L), after `aux_layer` layers."""
        words = self.language_model.model.embed_tokens(ids)
        hidden = torch.cat([tokens.to(words.dtype), words], dim=1)
        mask = self._mask(ids, tokens.shape[1], 0)
        hidden = self._layers(hidden, slice(self.config.aux_layer), mask, self._positions(hidden, ids.shape[1], 0))
        readout = hidden[:, tokens.shape[1]].float()
        return readout, self.aux_head(readout).float()


def _aux_head(dim: int) -> nn.Module:
    return nn.Sequential(nn.LayerNorm(dim), nn.Linear(dim, dim), nn.GELU(), nn.Linear(dim, 3 * len(PLACES)))


class ChunkTrunk(Trunk):
    """A trunk with a placeholder for each of K * 7 numbers of a chunk, whose features a head turns into actions."""

    action_queries: nn.Parameter

    def build(self, config: OpenVLAConfig) -> None:
        """Make the parts, with fresh weights."""
        llama = config.llama()
        self.vision_backbone = WindowTower(config.image_size, config.window, config.stride, config.vision_dim,
                                           config.vision_layers, config.vision_heads)
        self.projector = Projector(self.vision_backbone.side, config.vision_dim, llama.hidden_size)
        self.language_model = LlamaForCausalLM(llama)
        self.action_queries = nn.Parameter(0.3 * torch.randn(config.chunk_size * ACTION_DIM, llama.hidden_size))
        self.aux_head = _aux_head(llama.hidden_size)
        nn.init.normal_(self.language_model.model.embed_tokens.weight, std=0.3)

    def slots(self, frames: Tensor, ids: Tensor) -> tuple[Tensor, Tensor]:
        """Return the features (B, K * 7, d) of the placeholders and places (B, 9), in one pass.

        `frames` uint8 (B, image_size, image_size, 3); `ids` int64 (B, L) from the reader, PAD at the right.
        """
        tokens = self.see(frames)
        model = self.language_model.model
        words = model.embed_tokens(ids)
        queries = self.action_queries.to(words.dtype).expand(frames.shape[0], -1, -1)
        hidden = torch.cat([tokens.to(words.dtype), words, queries], dim=1)
        mask = self._mask(ids, tokens.shape[1], queries.shape[1])
        positions = self._positions(hidden, ids.shape[1], queries.shape[1])
        hidden = self._layers(hidden, slice(self.config.aux_layer), mask, positions)
        places = self.aux_head(hidden[:, tokens.shape[1]].float()).float()
        hidden = self._layers(hidden, slice(self.config.aux_layer, None), mask, positions)
        return model.norm(hidden[:, -queries.shape[1]:]), places


class OpenVLAForActionPrediction(PreTrainedModel, ChunkTrunk):
    """Images and an instruction to the logits of K * 7 action bins."""

    config_class = OpenVLAConfig
    base_model_prefix = "openvla"
    main_input_name = "frames"

    def __init__(self, config: OpenVLAConfig) -> None:
        super().__init__(config)
        self.build(config)

    def forward(self, frames: Tensor, ids: Tensor) -> tuple[Tensor, Tensor]:
        """Return bin logits float32 (B, K, 7, 256), bin 0 first, and places (B, 9); arguments as of `slots`."""
        out, places = self.slots(frames, ids)
        tail = self.language_model.lm_head.weight[-BINS:].flip(0)
        logits = F.linear(out, tail).float().view(frames.shape[0], self.config.chunk_size, ACTION_DIM, BINS)
        return logits, places

    def keep_trunk_only(self) -> None:
        """Drop what only acting needs (a judge has the trunk alone)."""
        del self.action_queries
        self.language_model.lm_head = nn.Identity()
        self.language_model.model.norm = nn.Identity()


def soft_target_loss(logits: Tensor, values: Tensor, sigma_bins: float) -> Tensor:
    """Return the cross-entropy of bin logits (..., 256) with Gaussians around `values` (...), normalised units."""
    centres = torch.arange(BINS) * (2.0 / (BINS - 1)) - 1.0 + 1.0 / (BINS - 1)
    width = sigma_bins * 2.0 / (BINS - 1)
    targets = torch.softmax(-0.5 * ((values[..., None].clamp(-1, 1) - centres) / width) ** 2, dim=-1)
    return -(targets * torch.log_softmax(logits, dim=-1)).sum(-1).mean()
