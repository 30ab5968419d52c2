"""A tiny Cosmos 3 repository for diffusers, made at random by the public classes in the published layout.

As `nvidia/Cosmos3-Nano` is laid out, but for sizes: the dual transformer trained on actions, the residual Wan
autoencoder with patches (1/16 in space, 1/4 in time), UniPC on flow sigmas with Karras spacing, a chat template of the
tokenizer's own. Sound tokenizer and guardrail are not there.
"""
from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from diffusers import AutoencoderKLWan, Cosmos3OmniPipeline, Cosmos3OmniTransformer, UniPCMultistepScheduler
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import Whitespace
from transformers import PreTrainedTokenizerFast

WORDS = ("<unk>", "<pad>", "<|im_end|>", "<|im_start|>", "<|vision_start|>", "put", "the", "eggplant", "in", "sink",
         "close", "drawer", "user", "assistant")
TEMPLATE = ("{% for message in messages %}<|im_start|>{{ message['role'] }}\n{{ message['content'] }}<|im_end|>\n"
            "{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}")
LATENT = 16
STATISTICS = {"q01": [-0.04, -0.03, -0.035, 0.97, -0.15, -0.08, -0.16, 0.975, -0.08, 0.0],
              "q99": [0.039, 0.031, 0.027, 1.0, 0.16, 0.09, 0.15, 1.0, 0.095, 1.0]}
TINY = {"model_type": "cosmos3_world", "stride": 4, "resolution_tier": 256, "frame_size": [32, 32], "sampling_steps": 1}


def write_repository(folder: Path, **transformer: Any) -> Path:
    """Write a random repository into a folder; return it. `transformer`: other settings of the transformer."""
    torch.manual_seed(0)
    words = Tokenizer(WordLevel({word: i for i, word in enumerate(WORDS)}, unk_token="<unk>"))
    words.pre_tokenizer = Whitespace()
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=words, unk_token="<unk>", pad_token="<pad>",
                                        eos_token="<|im_end|>")
    tokenizer.add_special_tokens({"additional_special_tokens": ["<|im_start|>", "<|vision_start|>"]})
    tokenizer.chat_template = TEMPLATE
    settings = {"head_dim": 12, "hidden_size": 24, "intermediate_size": 32, "latent_channel": LATENT,
                "latent_patch_size": 2, "num_attention_heads": 2, "num_hidden_layers": 2, "num_key_value_heads": 1,
                "patch_latent_dim": 4 * LATENT, "rope_axes_dim": [2, 2, 2], "vocab_size": len(WORDS), "action_dim": 12,
                "action_gen": True}
    vae = AutoencoderKLWan(base_dim=2, decoder_base_dim=2, z_dim=LATENT, dim_mult=[1, 1, 1, 1], num_res_blocks=1,
                           temperal_downsample=[False, True, True], is_residual=True, in_channels=12, out_channels=12,
                           patch_size=2, scale_factor_spatial=16)
    network = Cosmos3OmniTransformer(**{**settings, **transformer})
    with torch.no_grad():  # the published parameter starts at zero, and random layers hardly answer to the actions
        if network.config.action_gen:
            network.action_modality_embed.normal_(0, 0.5)
    scheduler = UniPCMultistepScheduler(prediction_type="flow_prediction", use_flow_sigmas=True, flow_shift=1.0,
                                        use_karras_sigmas=True)
    Cosmos3OmniPipeline(network, tokenizer, vae, scheduler, enable_safety_checker=False).save_pretrained(folder)
    return folder


def write_world(folder: Path, repository: Path, **settings: Any) -> Path:
    """Write the folder of a world model, as docs/howto/cosmos3.md says; return it."""
    folder.mkdir(parents=True)
    (folder / "config.json").write_text(json.dumps({**TINY, "pipeline": str(repository), **settings}))
    (folder / "statistics.json").write_text(json.dumps(STATISTICS))
    return folder
