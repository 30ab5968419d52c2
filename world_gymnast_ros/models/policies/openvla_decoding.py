"""Where OpenVLA's actions are read: the two sequences, and the logits or features at the right positions.

Both begin with BOS, the image patches and the prompt; position p predicts the token at p + 1, so an action is read
*one position before its own slot*.

    autoregressive (OpenVLA)     ... prompt | a1 a2 ... a6                causal, one action of seven tokens
    parallel (OpenVLA-OFT)       ... prompt | 0 0 0 ... 0 (7 K) | stop    every position sees every other

In the parallel form the slots are zero vectors and the stop token closes the sequence, as in training. Rows of a batch
may differ in prompt length: they are padded on the right, the padding is masked, and positions do not move.

Sources: openvla and openvla-oft `prismatic/extern/hf/modeling_prismatic.py`; the fork of transformers that OFT pins
copies the last mask row to every row, which is full attention.
"""
from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from world_gymnast_ros.models.policies.openvla_prompt import STOP
from world_gymnast_ros.models.policies.prismatic import PrismaticVLA
from world_gymnast_ros.types import ACTION_DIM


@dataclass(frozen=True)
class Sequences:
    """A batch ready for the language model. `embeddings` (B, L, D); `mask` bool (B, L), None without padding; `read`
    int64 (B, n), the positions that predict the actions."""

    embeddings: Tensor
    mask: Tensor | None
    read: Tensor


def join(network: PrismaticVLA, patches: Tensor, prompts: Sequence[list[int]], tail: Tensor, count: int) -> Sequences:
    """Return BOS, patches (B, P, D), the rest of the prompt and `tail` (B, n, D), row by row; `count` actions tokens
    are read from the last prompt position on."""
    embed, device = network.get_input_embeddings(), patches.device
    lengths = torch.tensor([len(p) + patches.shape[1] + tail.shape[1] for p in prompts])
    longest = int(lengths.max())
    rows = []
    for i, prompt in enumerate(prompts):
        text = embed(torch.tensor(prompt, device=device)).to(patches.dtype)
        row = torch.cat([text[:1], patches[i], text[1:], tail[i]])
        rows.append(torch.cat([row, row.new_zeros(longest - len(row), row.shape[1])]))
    first = torch.tensor([len(p) + patches.shape[1] - 1 for p in prompts])
    read = (first[:, None] + torch.arange(count)).to(device)
    same = bool((lengths == longest).all())
    mask = None if same else (torch.arange(longest) < lengths[:, None]).to(device)
    return Sequences(torch.stack(rows), mask, read)


def features(network: PrismaticVLA, sequences: Sequences) -> Tensor:
    """Return the language model's last features (B, n, D) at the positions that predict the actions."""
    out = network(sequences.embeddings, sequences.mask, use_cache=False).last_hidden_state
    index = sequences.read[..., None].expand(-1, -1, out.shape[-1])
    return out.gather(1, index)


def parallel_features(network: PrismaticVLA, patches: Tensor, prompts: Sequence[list[int]], chunk_size: int) -> Tensor:
    """Return features (B, 7 K, D) of OFT's slots, all in one pass. The network must attend both ways."""
    count = chunk_size * ACTION_DIM
    stop = network.get_input_embeddings()(torch.tensor([STOP], device=patches.device)).to(patches.dtype)
    zeros = patches.new_zeros(len(patches), count, patches.shape[-1])
    tail = torch.cat([zeros, stop.expand(len(patches), 1, -1)], dim=1)
    return features(network, join(network, patches, prompts, tail, count))


def taught_features(network: PrismaticVLA, patches: Tensor, prompts: Sequence[list[int]], ids: Tensor) -> Tensor:
    """Return features (B, 7, D) that predict the action tokens `ids` int64 (B, 7), each seeing the true ones before."""
    tail = network.get_input_embeddings()(ids[:, :-1]).to(patches.dtype)
    return features(network, join(network, patches, prompts, tail, ids.shape[1]))


def decode(network: PrismaticVLA, patches: Tensor, prompts: Sequence[list[int]],
           choose: Callable[[int, Tensor], Tensor]) -> Tensor:
    """Return action token ids int64 (B, 7), one after another with a key/value cache, all rows at once.

    `choose(i, logits)` picks bins int64 (B,) of token i from logits float32 (B, bins). Prompts must be of one length.
    """
    tail = patches.new_zeros(len(patches), 0, patches.shape[-1])
    sequences = join(network, patches, prompts, tail, 1)
    assert sequences.mask is None, "cached decoding takes prompts of one length"
    out = network(sequences.embeddings, use_cache=True)
    chosen = []
    for i in range(ACTION_DIM):
        bins = choose(i, network.action_logits(out.last_hidden_state[:, -1])).to(patches.device)
        chosen.append(bins_to_ids(network, bins))
        if i + 1 < ACTION_DIM:
            step = network.get_input_embeddings()(chosen[-1][:, None]).to(patches.dtype)
            out = network(step, past_key_values=out.past_key_values, use_cache=True)
    return torch.stack(chosen, dim=1)


def bins_to_ids(network: PrismaticVLA, bins: Tensor) -> Tensor:
    """Return the token ids of action bins 0..255 (bin 0 is the highest id)."""
    return network.config.action_columns.stop - 1 - bins


def ids_to_bins(network: PrismaticVLA, ids: Tensor) -> Tensor:
    """Return the action bins of token ids."""
    return network.config.action_columns.stop - 1 - ids
