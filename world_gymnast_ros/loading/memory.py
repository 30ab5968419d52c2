"""The memory of a policy, a world model and a judge before they are loaded: `sizes.py` put to what names stand for."""
from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

import torch

from world_gymnast_ros.loading.load import (
    JUDGE,
    POLICY,
    SHIPPED,
    WORLD_MODEL,
    checkpoint_dir,
    find,
    geometric_judge,
    holds,
)
from world_gymnast_ros.loading.sizes import (
    FOUR_BIT_BYTES,
    Stack,
    Stored,
    adapter_numbers,
    config_of,
    headers,
    weight_bytes,
)
from world_gymnast_ros.models import hub
from world_gymnast_ros.models.checkpoint import CONFIG, WEIGHTS
from world_gymnast_ros.models.judges import frozen_trunk, reflector
from world_gymnast_ros.models.judges.remote import RemoteConfig
from world_gymnast_ros.models.judges.vlm import VLMConfig, named_model
from world_gymnast_ros.models.judges.vlm_processor import find_model
from world_gymnast_ros.models.policies import openvla_checkpoint, openvla_policy
from world_gymnast_ros.models.policies.lora import TARGETS
from world_gymnast_ros.models.policies.oft_l1_head import HEAD_FILES
from world_gymnast_ros.models.policies.prismatic import PrismaticConfig, unused_tensors
from world_gymnast_ros.models.policies.vla_network import OpenVLAConfig
from world_gymnast_ros.models.vision import _cpu_has_bf16_matrices
from world_gymnast_ros.models.world_models.action_dit import SILHOUETTE_FEATURES, ActionDiTConfig
from world_gymnast_ros.models.world_models.autoencoder import PIXELS_AT_ONCE
from world_gymnast_ros.models.world_models.cosmos3_files import model_files
from world_gymnast_ros.models.world_models.cosmos3_settings import Cosmos3Settings
from world_gymnast_ros.models.world_models.worldgym_dit import DiTShape
from world_gymnast_ros.models.world_models.worldgym_files import (
    is_worldgym,
    read_settings,
    read_weights,
    weights_file,
)
from world_gymnast_ros.models.world_models.worldgym_settings import RECOMPUTE
from world_gymnast_ros.serving.exchange import is_address
from world_gymnast_ros.types import ACTION_DIM

PROMPT_TOKENS = 32
"""Of an instruction in OpenVLA's prompt; a VLM judge's own is longer."""
QUESTION_TOKENS = 160
KINDS = {torch.float32: 4, torch.bfloat16: 2, torch.float16: 2}
FULL_SIZE_CHANNELS = 256
"""Channels at full resolution that an autoencoder of diffusers decodes with, where its config.json is silent."""


@dataclass(frozen=True)
class PolicySize:
    """Memory of a policy. `weights` exact; `adapter` numbers of a LoRA of rank 1; `full_size` as the policy says; its
    `stacks` are recomputed in the backward pass where `recomputed`; `decoded`: token by token, with a cache; at most
    `most_rows` frames at once; `pixels`: bytes of one frame as the network reads it."""

    weights: int = 0
    adapter: int = 0
    full_size: bool = False
    recomputed: bool = False
    decoded: bool = False
    four_bit: bool = False
    most_rows: int = 10**6
    pixels: int = 0
    stacks: tuple[Stack, ...] = ()

    def acting(self, copies: int) -> int:
        """Estimate the memory of choosing actions for so many frames at once."""
        rows = min(copies, self.most_rows)
        if self.four_bit:  # sampled actions are scored as the learner will, with a gradient
            return self.learning(rows)
        cache = self.stacks[-1].keys(rows) if self.decoded and self.stacks else 0
        return cache + max(rows * self.pixels, *(stack.passing(rows) for stack in self.stacks), 0)

    def learning(self, chunks: int) -> int:
        """Estimate the activations of so many chunks in one backward pass."""
        if not self.recomputed:
            return sum(stack.layers * stack.layer(chunks) for stack in self.stacks)
        inputs = sum(stack.inputs(chunks) for stack in self.stacks)
        return inputs + 2 * max((stack.layer(chunks) for stack in self.stacks), default=0)


@dataclass(frozen=True)
class WorldSize:
    """Memory of a world model: `weights` exact; of each copy `cache` exact and `drawing` estimated; `decoding`
    estimated, whatever the number of copies; `frame` bytes of a frame; `untold`: what is not estimated, or ''."""

    weights: int = 0
    cache: int = 0
    drawing: int = 0
    decoding: int = 0
    frame: int = 0
    untold: str = ""


@dataclass(frozen=True)
class JudgeSize:
    """Memory of a judge: `weights` exact, `looking` estimated. `elsewhere`: a server has it."""

    weights: int = 0
    looking: int = 0
    elsewhere: bool = field(default=False)


def policy_size(name: str, device: str, dtype: torch.dtype | None, four_bit: bool) -> PolicySize:
    """Return the memory of the policy that a name stands for. BadCheckpoint where its files do not say."""
    path = find(name or SHIPPED[POLICY])
    if openvla_checkpoint.is_published(path if path is not None else name):
        number = KINDS[dtype or (torch.bfloat16 if device.startswith("cuda") or four_bit else torch.float32)]
        return _published(openvla_checkpoint.find_folder(path or name), number, four_bit)
    folder = checkpoint_dir(name, POLICY)
    config, tensors = OpenVLAConfig(**config_of(folder)), headers(folder / WEIGHTS)
    text, vision = config.text_config, config.vision_tokens * 4
    number = 2 if device.startswith("cuda") or _cpu_has_bf16_matrices() else 4
    tokens = config.vision_tokens + config.max_words + config.chunk_size * ACTION_DIM
    stacks = (Stack(config.vision_layers, vision, config.vision_dim, 4 * config.vision_dim, number,
                    heads=config.vision_heads),
              Stack(text["num_hidden_layers"], tokens, text["hidden_size"], text["intermediate_size"], number,
                    heads=text["num_attention_heads"]))
    return PolicySize(weight_bytes(tensors, 4), adapter_numbers(tensors, TARGETS, 1),
                      pixels=3 * 4 * config.image_size**2, stacks=stacks)


def _published(folder: Path, number: int, four_bit: bool) -> PolicySize:
    """Return the memory of a published OpenVLA, its language model in 4 bits where asked."""
    config = PrismaticConfig(**{k: v for k, v in config_of(folder).items()
                                if k not in ("auto_map", "torch_dtype", "dtype")})
    recipe = openvla_checkpoint.Recipe.read(folder, folder.name, {}) if (
        folder / openvla_checkpoint.RECIPE).is_file() else openvla_checkpoint.PUBLISHED["openvla/openvla-7b"]
    left_out = [re.compile(pattern) for pattern in unused_tensors(config.towers)]
    tensors = {name: t for name, t in headers(*openvla_checkpoint.weight_files(folder)).items()
               if not any(pattern.search(name) for pattern in left_out)}
    short = {n for n, t in tensors.items() if four_bit and n.startswith("language_model.model.layers.")
             and len(t.shape) == 2}
    weights = weight_bytes({n: t for n, t in tensors.items() if n not in short}, number)
    weights += round(sum(tensors[n].count for n in short) * FOUR_BIT_BYTES)
    heads = _heads(folder, config, recipe)
    text = config.text_config
    sizes, tail = config.image_sizes or [], recipe.chunk_size * ACTION_DIM + 1
    towers = [Stack(t.depth - 1, (size // t.patch) ** 2 + t.registers + int(t.class_token), t.dim, t.hidden, number)
              for t, size in zip(config.towers, sizes, strict=False)]
    patches = (sizes[0] // config.towers[0].patch) ** 2
    llama = Stack(text.num_hidden_layers, patches + PROMPT_TOKENS + tail, text.hidden_size, text.intermediate_size,
                  number, key_width=text.num_key_value_heads * (text.hidden_size // text.num_attention_heads))
    return PolicySize(weights + weight_bytes(heads, 4),
                      adapter_numbers({**tensors, **heads}, openvla_policy.LINEAR_LAYERS, 1), full_size=True,
                      recomputed=True, decoded=recipe.decoding == openvla_checkpoint.AUTOREGRESSIVE,
                      four_bit=four_bit, most_rows=openvla_policy.MAX_BATCH,
                      pixels=sum(3 * 4 * size**2 for size in sizes), stacks=(*towers, llama))


def _heads(folder: Path, config: PrismaticConfig, recipe: openvla_checkpoint.Recipe) -> dict[str, Stored]:
    """Return the tensors of OFT's L1 head and of the scale beside it, which stay float32."""
    if recipe.decoding != openvla_checkpoint.L1:
        return {}
    found = {}
    for file in folder.glob(HEAD_FILES):
        state = torch.load(file, map_location="cpu", weights_only=True, mmap=True)
        found = {f"action_head.{name.removeprefix('module.')}": Stored("F32", tuple(t.shape))
                 for name, t in state.items()}
    if recipe.action_scale is not None:
        found["scale_head.fc.weight"] = Stored("F32", (ACTION_DIM, config.text_config.hidden_size))
        found["scale_head.fc.bias"] = Stored("F32", (ACTION_DIM,))
    return found


def world_size(name: str, judges: str, device: str, dtype: torch.dtype | None, frames: int) -> WorldSize:
    """Return the memory of the world model that a name stands for, for rollouts of so many frames."""
    if is_address(name):
        return WorldSize()
    path = checkpoint_dir(name, WORLD_MODEL)
    number = KINDS[dtype or (torch.bfloat16 if device.startswith("cuda") or _cpu_has_bf16_matrices()
                             else torch.float32)]
    if is_worldgym(path):
        return _worldgym(path, number, frames)
    if holds(path) == Cosmos3Settings.model_type:
        return _cosmos3(path, number)
    config = ActionDiTConfig.from_dict(config_of(path))
    weights = weight_bytes(headers(path / WEIGHTS), number)
    if config.plate:
        weights += _small_judge(checkpoint_dir(geometric_judge(judges) or "tiny/locator", JUDGE))
    stack = Stack(config.depth, config.tokens, config.dim, config.mlp_ratio * config.dim, number, heads=config.heads)
    cache = len(config.temporal_blocks) * 2 * config.tokens * config.context_frames * config.dim * number
    pixels = config.image_size**2
    features = SILHOUETTE_FEATURES * 6 if config.camera is not None else 12
    windows = config.tokens * config.window**2 * 3 * number * 4
    return WorldSize(weights, cache, stack.passing(1) + pixels * features * 4 + windows, 0, pixels * 3)


def _cosmos3(path: Path, number: int) -> WorldSize:
    settings = Cosmos3Settings.read(path)
    files = [file for file in model_files(path) if file.suffix == ".safetensors"]
    height, width = settings.frame_size
    return WorldSize(sum(weight_bytes(headers(file), number) for file in files), frame=height * width * 3,
                     untold="what Cosmos 3 needs while it draws")


def _worldgym(path: Path, number: int, frames: int) -> WorldSize:
    file = weights_file(path)
    settings = read_settings(file.parent)
    tensors = (headers(file) if file.suffix == ".safetensors" else
               {n: Stored("F32", tuple(t.shape)) for n, t in read_weights(file).items()})
    shape = _shape(tensors, settings.heads, settings.spatial_positions)
    vae, downscale, channels = _autoencoder(file.parent / settings.vae)
    height, width = (side // downscale // shape.patch for side in settings.frame_size)
    patches, halves = height * width, 2 if settings.guidance != 1.0 else 1
    slots = settings.window + settings.frames_at_once
    cache = halves * shape.depth * 2 * patches * slots * shape.dim * number
    slides = settings.after_window == RECOMPUTE and frames > settings.window
    at_once = settings.frames_at_once + (settings.window if slides else 1)
    stack = Stack(shape.depth, patches * at_once, shape.dim, 4 * shape.dim, number)
    rows = (settings.sampling_steps + settings.frames_at_once) * settings.frames_at_once + at_once
    modulation = 2 * shape.depth * 6 * rows * shape.dim * number
    return WorldSize(weight_bytes(tensors, number) + weight_bytes(vae, number), cache,
                     halves * (stack.passing(1) + modulation), PIXELS_AT_ONCE * channels * 4 * number,
                     settings.frame_size[0] * settings.frame_size[1] * 3)


def _shape(tensors: Mapping[str, Stored], heads: int, positions: str) -> DiTShape:
    return DiTShape.of({n: torch.empty(t.shape, device="meta") for n, t in tensors.items()}, heads, positions)


def _autoencoder(folder: Path) -> tuple[dict[str, Stored], int, int]:
    """Return an autoencoder's tensors, how many times smaller its latent frames are, and its widest full-size layer."""
    for directory in (folder, folder / "vae"):
        if (directory / CONFIG).is_file():
            blocks = config_of(directory).get("block_out_channels") or [FULL_SIZE_CHANNELS]
            return headers(*directory.glob("*.safetensors")), 2 ** (len(blocks) - 1), int(blocks[0])
    found = {}
    for file in [*folder.glob("*coder.safetensors"), *folder.glob("*coder.pth")]:
        tensors = headers(file) if file.suffix == ".safetensors" else {
            n: Stored("F32", tuple(t.shape))
            for n, t in torch.load(file, map_location="cpu", weights_only=True, mmap=True).items()}
        found.update({f"{file.stem}.{n}": t for n, t in tensors.items()})
    return found, 8, 64


def judge_size(name: str, device: str, dtype: torch.dtype | None) -> JudgeSize:
    """Return the memory of the judge that a name stands for."""
    path = find(name)
    if path is None and is_address(name):
        return JudgeSize(elsewhere=True)
    number = KINDS[dtype or (torch.bfloat16 if device.startswith("cuda") else torch.float32)]
    if path is None:
        return _vlm(find_model(name), VLMConfig(), number)
    found = holds(path)
    if found == RemoteConfig.model_type:
        return JudgeSize(elsewhere=True)
    if found == VLMConfig.model_type:
        config = VLMConfig.read(path)
        return _vlm(find_model(named_model(config, path)), config, number)
    if found == reflector.ReflectorConfig.model_type:
        return _reflector(path, number)
    return _vlm(path, VLMConfig(), number) if (path / hub.INDEX).is_file() or "vision_config" in config_of(path) else \
        JudgeSize(_small_judge(path))


def _small_judge(path: Path) -> int:
    return weight_bytes(headers(path / WEIGHTS), 4)


def _reflector(path: Path, number: int) -> JudgeSize:
    config, weights = reflector.ReflectorConfig(**config_of(path)), _small_judge(path)
    if config.frozen_trunk:
        beside = path / config.frozen_trunk
        asked = VLMConfig(frames=1, frame_px=config.frame_px, batch=frozen_trunk.BATCH)
        trunk = _vlm(find_model(beside if beside.is_dir() else config.frozen_trunk), asked, number)
        return JudgeSize(weights + trunk.weights, trunk.looking)
    trunk_config = config.trunk_config()
    vision = Stack(trunk_config.vision_layers, trunk_config.vision_tokens * 4, trunk_config.vision_dim,
                   4 * trunk_config.vision_dim, 4, heads=trunk_config.vision_heads)
    return JudgeSize(weights, vision.passing(reflector.BATCH))


def _vlm(folder: Path, config: VLMConfig, number: int) -> JudgeSize:
    """Return the memory of an image-text model that sees `config.frames` frames of `config.batch` rollouts at once."""
    values = config_of(folder)
    text, vision = values.get("text_config", values), values.get("vision_config", {})
    names, missing = hub.weight_files(folder)
    tensors = headers(*(folder / name for name in names if name not in missing))
    patches = (config.frame_px // int(vision.get("patch_size", 14))) ** 2
    merged = patches // int(vision.get("spatial_merge_size") or values.get("scale_factor") or 1) ** 2
    width, rows = int(text.get("hidden_size", 4096)), config.batch
    tower = int(vision.get("hidden_size", 1024))
    seeing = Stack(1, patches, tower, int(vision.get("intermediate_size", 4 * tower)), number)
    reading = Stack(1, merged * config.frames + QUESTION_TOKENS, width, int(text.get("intermediate_size", 4 * width)),
                    number)
    logits = rows * int(text.get("vocab_size", 32000)) * 8
    return JudgeSize(weight_bytes(tensors, number),
                     max(seeing.passing(rows * config.frames), reading.passing(rows)) + logits)
