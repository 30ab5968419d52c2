"""OpenVLA and OpenVLA-OFT as policies: published checkpoints act, sample, and are adapted through LoRA.

`load_openvla` reads a folder or a hub name and returns

    OpenVLAPolicy   action tokens; decoding "autoregressive" (OpenVLA) or "parallel" (OFT with the LM head)
    OFTL1Policy     OFT's L1 head; continuous actions, trainable where the recipe states a Laplace scale

Sampled actions and their log-probabilities come out of the same forward pass that the learner differentiates (for the
autoregressive model: the tokens are drawn with a key/value cache, then scored as the learner scores them), so the first
probability ratio of an update is 1.
"""
from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from world_gymnast_ros.errors import BadConfig
from world_gymnast_ros.models.policies import laplace_head
from world_gymnast_ros.models.policies.action_bins import ActionStats, decode_bins, encode_bins
from world_gymnast_ros.models.policies.adapted import AdaptedPolicy
from world_gymnast_ros.models.policies.laplace_head import LaplaceScale
from world_gymnast_ros.models.policies.oft_l1_head import L1Head
from world_gymnast_ros.models.policies.openvla_checkpoint import (
    AUTOREGRESSIVE,
    L1,
    Recipe,
    base_hash,
    find_folder,
    load_network,
    read_statistics,
    refuse_foreign_parts,
    weight_files,
)
from world_gymnast_ros.models.policies.openvla_decoding import (
    bins_to_ids,
    decode,
    ids_to_bins,
    parallel_features,
    taught_features,
)
from world_gymnast_ros.models.policies.openvla_preprocess import Preprocess
from world_gymnast_ros.models.policies.openvla_prompt import PromptReader
from world_gymnast_ros.models.policies.prismatic import PrismaticVLA
from world_gymnast_ros.models.policies.turns import in_turn
from world_gymnast_ros.types import ACTION_DIM, F32, I64, U8, ActionChunk, Frame, SampledChunks

STORED_FRAME_PX = 256
"""Side of the frames that are kept for training such a policy, as Bridge keeps them; it resizes them itself."""
LINEAR_LAYERS = (r"vision_backbone\.\w+\.blocks\..*\.(qkv|proj|fc1|fc2)|projector\.fc[123]"
                 r"|language_model\.model\.layers\..*_proj"
                 r"|action_head\.model\.(fc[12]|mlp_resnet_blocks\.\d+\.ffn\.1)|scale_head\.fc")
"""Every linear layer but the language model's head: where OpenVLA's fine-tunes put LoRA ("all-linear")."""
MIN_TEMPERATURE, MAX_TEMPERATURE = 0.05, 10.0
MAX_BATCH = 32
"""Frames that go through the network at once."""
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


class _PublishedPolicy(AdaptedPolicy):
    """What token and continuous policies share: pixels, prompts, adapters, batches of bounded size."""

    full_size = True
    """Learning rate, rank and KL coefficient are those of a policy of billions of parameters."""

    def __init__(self, network: PrismaticVLA, recipe: Recipe, prompts: PromptReader, pixels: Preprocess,
                 stats: ActionStats, name: str, base: str, max_batch: int = MAX_BATCH) -> None:
        """`base`: the hash that adapters are tied to. `max_batch` frames go through the network at once."""
        super().__init__(network, name, base, LINEAR_LAYERS)
        self.network, self.recipe, self.prompts, self.pixels, self.stats = network, recipe, prompts, pixels, stats
        self.chunk_size, self.max_batch, self.image_size = recipe.chunk_size, max_batch, STORED_FRAME_PX
        network.attend_both_ways(recipe.decoding != AUTOREGRESSIVE)

    @property
    def device(self) -> torch.device:
        """Where the network computes."""
        device: torch.device = self.network.vision_backbone.featurizer.pos_embed.device
        return device

    def _patches(self, frames: U8) -> Tensor:
        patches: Tensor = self.network.patches(torch.from_numpy(self.pixels(frames)).to(self.device))
        return patches

    def _prompts(self, instructions: Sequence[str] | str, count: int) -> list[list[int]]:
        if isinstance(instructions, str):
            return [self.prompts.ids(instructions)] * count
        known = {text: self.prompts.ids(text) for text in set(instructions)}
        return [known[text] for text in instructions]

    def _parts(self, count: int) -> Iterator[slice]:
        return (slice(i, i + self.max_batch) for i in range(0, count, self.max_batch))

    @contextmanager
    def _recomputing(self) -> Iterator[None]:
        """Let the layers trade memory for a second forward pass, where that is switched on and a gradient is wanted.

        transformers does so in training mode alone; nothing here has dropout, so the mode changes no number.
        """
        layers = self.network.language_model.model.layers
        before = layers.training
        layers.train(torch.is_grad_enabled())
        try:
            yield
        finally:
            layers.train(before)

    @contextmanager
    def _scoring(self) -> Iterator[None]:
        """Compute what sampled actions are scored with: as the learner will, but for the gradient.

        A 4-bit layer multiplies with another kernel where no gradient is wanted; there the graph is built and dropped.
        """
        if getattr(self.network, "is_loaded_in_4bit", False):
            with torch.enable_grad(), self._recomputing():
                yield
        else:
            with torch.inference_mode():
                yield

    def _uniform(self, seed: int, count: int) -> Tensor:
        """Return numbers float64 (count, K, 7) in 0..1 from `seed`, drawn on the CPU so that they are everywhere the
        same, whatever the batch."""
        generator = torch.Generator().manual_seed(seed)
        return torch.rand((count, self.chunk_size, ACTION_DIM), generator=generator, dtype=torch.float64)


class OpenVLAPolicy(_PublishedPolicy):
    """Action tokens from the language model's own head. Implements `types.TrainablePolicy`."""

    def logits(self, frames: U8, instructions: Sequence[str] | str, bins: Tensor | None = None) -> Tensor:
        """Return float32 logits (B, K, 7, 256) by bin for frames uint8 (B, H, W, 3), with gradient where enabled.

        `bins` int64 (B, 7): the tokens taken, which an autoregressive model sees one by one; parallel decoding has no
        use for them.
        """
        return self._logits(self._patches(frames), self._prompts(instructions, len(frames)), bins)

    def _logits(self, patches: Tensor, prompts: list[list[int]], bins: Tensor | None) -> Tensor:
        if self.recipe.decoding == AUTOREGRESSIVE:
            assert bins is not None, "an autoregressive policy scores tokens that were taken"
            ids = bins_to_ids(self.network, bins.to(self.device).reshape(len(patches), ACTION_DIM))
            hidden = taught_features(self.network, patches, prompts, ids)
        else:
            hidden = parallel_features(self.network, patches, prompts, self.chunk_size)
        out: Tensor = self.network.action_logits(hidden)
        return out.view(len(patches), self.chunk_size, ACTION_DIM, -1)

    def _choose(self, frames: U8, instruction: str, choose: Callable[[Tensor, slice], Tensor], rows: slice
                ) -> tuple[Tensor, Tensor]:
        """Return bins int64 (b, K, 7) picked by `choose(logits, token slice)` and the logits they were scored with."""
        patches, prompts = self._patches(frames[rows]), self._prompts(instruction, len(frames[rows]))
        if self.recipe.decoding != AUTOREGRESSIVE:
            logits = self._logits(patches, prompts, None)
            flat = choose(logits.flatten(1, 2), slice(None))
            return flat.view(logits.shape[:-1]), logits

        def one(i: int, logits: Tensor) -> Tensor:
            return choose(logits[:, None], slice(i, i + 1))[:, 0]

        with torch.no_grad(), self._recomputing():
            ids = decode(self.network, patches, prompts, one)
        bins = ids_to_bins(self.network, ids)
        return bins[:, None], self._logits(patches, prompts, bins)

    @in_turn
    def greedy(self, frames: U8, instruction: str) -> I64:
        """Return the most likely bins int64 (B, K, 7) for frames uint8 (B, H, W, 3)."""
        with torch.inference_mode():
            parts = [self._choose(frames, instruction, lambda logits, _: logits.argmax(-1), rows)[0]
                     for rows in self._parts(len(frames))]
        return np.asarray(torch.cat(parts).cpu().numpy(), np.int64)

    @in_turn
    def act(self, frame: Frame, instruction: str) -> ActionChunk:
        """Choose one chunk greedily."""
        deltas = self.stats.unnormalise(decode_bins(self.greedy(frame.rgb[None], instruction)[0]))
        return ActionChunk(deltas=deltas, frame_stamp_ns=frame.stamp_ns, adapter=self.adapter)

    @in_turn
    def sample(self, frames: U8, instruction: str, temperature: float, seed: int) -> SampledChunks:
        """Sample one chunk for each of `frames` uint8 (G, H, W, 3); the same seed gives the same chunks.

        `tokens` are bins 0..255; `logprobs` are over the 256 action columns alone, at `temperature`.
        """
        _check_temperature(temperature)
        noise = self._uniform(seed, len(frames)).flatten(1)
        bins, scores = [], []
        for rows in self._parts(len(frames)):
            part = noise[rows]

            def pick(logits: Tensor, which: slice, part: Tensor = part) -> Tensor:
                return _draw(logits.detach() / temperature, part[:, which]).to(logits.device)

            with self._scoring():
                taken, logits = self._choose(frames, instruction, pick, rows)
                bins.append(taken)
                scores.append(_taken(logits / temperature, taken).detach())
        tokens = torch.cat(bins).cpu().numpy()
        return SampledChunks(deltas=self.stats.unnormalise(decode_bins(tokens)), tokens=tokens,
                             logprobs=torch.cat(scores).cpu().numpy(), adapter=self.adapter)

    def logprobs(self, frames: U8, instructions: Sequence[str] | str, tokens: NDArray[Any], temperature: float
                 ) -> Tensor:
        """Return log-probabilities float32 (B, K, 7) of `tokens` int64 (B, K, 7), differentiable in the adapter."""
        _check_temperature(temperature)
        bins = torch.from_numpy(np.ascontiguousarray(tokens)).to(self.device)
        with self._recomputing():
            return _taken(self.logits(frames, instructions, bins) / temperature, bins)

    def cloning_loss(self, frames: U8, instructions: Sequence[str] | str, deltas: F32) -> Tensor:
        """Return the mean cross-entropy of the action tokens of `deltas` (B, K, 7), OpenVLA's own training loss."""
        bins = encode_bins(self.stats.normalise(deltas))
        return -self.logprobs(frames, instructions, bins, 1.0).mean()


class OFTL1Policy(_PublishedPolicy):
    """OFT's L1 head: one continuous chunk in one pass. Implements `types.Policy`.

    Where the recipe states an `action_scale`, actions are Laplace-distributed around the head's (see `laplace_head`),
    and it implements `types.TrainablePolicy`; LoRA then covers both heads too. Without, sampling returns the head's own
    chunk, whatever the temperature.
    """

    def __init__(self, network: PrismaticVLA, recipe: Recipe, prompts: PromptReader, pixels: Preprocess,
                 stats: ActionStats, name: str, base: str, head: L1Head, max_batch: int = MAX_BATCH) -> None:
        super().__init__(network, recipe, prompts, pixels, stats, name, base, max_batch)
        network.action_head = head.to(self.device).eval().requires_grad_(False)
        if recipe.action_scale is not None:
            scale = LaplaceScale(network.config.text_config.hidden_size, ACTION_DIM, recipe.action_scale)
            network.scale_head = scale.to(self.device).eval().requires_grad_(False)

    def distribution(self, frames: U8, instructions: Sequence[str] | str) -> tuple[Tensor, Tensor | None]:
        """Return normalised means (B, K, 7) and log-scales (B, K, 7) (None: deterministic), with gradient where
        enabled."""
        patches, prompts = self._patches(frames), self._prompts(instructions, len(frames))
        features = self.network.action_head.features(
            parallel_features(self.network, patches, prompts, self.chunk_size))
        scale = self.network.scale_head(features) if self.recipe.action_scale is not None else None
        return self.network.action_head(features), scale

    @in_turn
    def act(self, frame: Frame, instruction: str) -> ActionChunk:
        """Return the head's chunk, the mean of the distribution."""
        with torch.inference_mode():
            mean, _ = self.distribution(frame.rgb[None], instruction)
        deltas = self.stats.unnormalise(mean[0].float().cpu().numpy())
        return ActionChunk(deltas=deltas, frame_stamp_ns=frame.stamp_ns, adapter=self.adapter)

    @in_turn
    def sample(self, frames: U8, instruction: str, temperature: float, seed: int) -> SampledChunks:
        """Return one chunk for each of `frames` uint8 (G, H, W, 3); `tokens` are the normalised actions, float32.

        The scale is multiplied by `temperature`. Without a scale: the head's chunks, no tokens, no log-probabilities.
        """
        _check_temperature(temperature)
        noise = self._uniform(seed, len(frames))
        values, scores = [], []
        for rows in self._parts(len(frames)):
            with self._scoring():
                mean, scale = self.distribution(frames[rows], instruction)
                if scale is None:
                    values.append(mean.detach())
                    continue
                drawn, score = laplace_head.sample(mean, scale, temperature, noise[rows].to(mean))
                values.append(drawn.detach())
                scores.append(score.detach())
        actions: F32 = torch.cat(values).float().cpu().numpy()
        return SampledChunks(deltas=self.stats.unnormalise(actions), tokens=actions if scores else None,
                             logprobs=torch.cat(scores).float().cpu().numpy() if scores else None,
                             adapter=self.adapter)

    def logprobs(self, frames: U8, instructions: Sequence[str] | str, tokens: NDArray[Any], temperature: float
                 ) -> Tensor:
        """Return log-densities float32 (B, K, 7) of normalised actions `tokens` (B, K, 7), differentiable."""
        self._check_trainable()
        _check_temperature(temperature)
        with self._recomputing():
            mean, scale = self.distribution(frames, instructions)
        assert scale is not None
        actions = torch.from_numpy(np.ascontiguousarray(tokens)).to(mean)
        return laplace_head.scored(actions, mean, scale, temperature)

    def cloning_loss(self, frames: U8, instructions: Sequence[str] | str, deltas: F32) -> Tensor:
        """Return the mean absolute error of the head against normalised `deltas` (B, K, 7), OFT's own training loss."""
        with self._recomputing():
            mean, _ = self.distribution(frames, instructions)
        return (mean - torch.from_numpy(self.stats.normalise(deltas)).to(mean)).abs().mean()

    def add_lora(self, rank: int = 32, alpha: float = 64.0, seed: int = 0) -> list[torch.nn.Parameter]:
        """Put in a fresh adapter; refused where the policy has no scale to explore with."""
        self._check_trainable()
        return super().add_lora(rank, alpha, seed)

    def _check_trainable(self) -> None:
        if self.recipe.action_scale is None:
            raise BadConfig(f"policy '{self.name}' has an L1 head and no action_scale: it gives one chunk per frame "
                            "and has no probabilities to train; state action_scale in its recipe, e.g. 0.05")


def load_openvla(where: str | Path, *, device: str = "cpu", dtype: str | None = None, four_bit: bool = False,
                 checkpointing: bool = True, **stated: Any) -> OpenVLAPolicy | OFTL1Policy:
    """Load a published checkpoint from a folder or hub name.

    `dtype`: "float32", "bfloat16" or "float16"; bfloat16 on a GPU and float32 on the CPU by default. `four_bit` loads
    the language model in NF4 (bitsandbytes). `checkpointing` recomputes activations in training to save memory.
    `stated`: fields of `Recipe`, which override the folder's world_gymnast.json.
    """
    if dtype is not None and dtype not in DTYPES:
        raise BadConfig(f"dtype is '{dtype}', known are {', '.join(DTYPES)}")
    number = DTYPES[dtype or ("bfloat16" if device.startswith("cuda") or four_bit else "float32")]
    folder, name = find_folder(where), str(where)
    name = Path(name).resolve().name if Path(name).is_dir() else name
    recipe = Recipe.read(folder, name, stated)
    refuse_foreign_parts(folder)
    network = load_network(folder, device, number, four_bit)
    if checkpointing:
        network.activation_checkpointing_enable({"use_reentrant": False})
    config = network.config
    _, stats = read_statistics(folder, config, recipe.statistics)
    size = config.image_sizes[0]
    pixels = Preprocess.from_folder(folder, size, len(config.towers), crop_area=recipe.crop_area, jpeg=recipe.jpeg,
                                    lanczos=recipe.lanczos)
    prompts = PromptReader.from_folder(folder, config.text_config.vocab_size)
    files = weight_files(folder)
    if recipe.decoding != L1:
        return OpenVLAPolicy(network, recipe, prompts, pixels, stats, name, base_hash(files, recipe))
    head, file = L1Head.from_folder(folder, config.text_config.hidden_size)
    return OFTL1Policy(network, recipe, prompts, pixels, stats, name, base_hash([*files, file], recipe), head)


def _draw(logits: Tensor, uniform: Tensor) -> Tensor:
    """Return indices (B, n) drawn from logits (B, n, bins) by inverting the distribution at `uniform` (B, n)."""
    edges = torch.softmax(logits.double(), dim=-1).cumsum(-1).cpu()
    found = torch.searchsorted(edges, (uniform * edges[..., -1])[..., None], right=True)
    return found[..., 0].clamp(max=logits.shape[-1] - 1)


def _taken(logits: Tensor, bins: Tensor) -> Tensor:
    """Return the log-probabilities (B, K, 7) of `bins` (B, K, 7) under logits (B, K, 7, bins)."""
    scores = torch.log_softmax(logits, dim=-1)
    return scores.gather(-1, bins.to(logits.device)[..., None])[..., 0]


def _check_temperature(temperature: float) -> None:
    if not MIN_TEMPERATURE <= temperature <= MAX_TEMPERATURE:
        raise BadConfig(f"temperature {temperature} is outside {MIN_TEMPERATURE}..{MAX_TEMPERATURE}; 1.0 to 1.6 "
                        "explores, act() is greedy")
