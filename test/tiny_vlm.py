"""Tiny image-text-to-text models, made at random by the public transformers classes, in the published layout.

Qwen3-VL as `Qwen/Qwen3-VL-4B-Instruct` is laid out (its image processor named by the torchvision class, a chat template
file of its own), Idefics3 and SmolVLM (images cut into tiles) and LLaVA (one CLIP tower, fixed token count).
"""
from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import Whitespace
from transformers import (
    CLIPVisionConfig,
    Idefics3Config,
    Idefics3ForConditionalGeneration,
    LlamaConfig,
    LlavaConfig,
    LlavaForConditionalGeneration,
    PreTrainedTokenizerFast,
    Qwen3VLConfig,
    Qwen3VLForConditionalGeneration,
    SmolVLMConfig,
    SmolVLMForConditionalGeneration,
)

QWEN, IDEFICS, SMOL, LLAVA = "qwen3_vl", "idefics3", "smolvlm", "llava"
WORDS = ("Yes", "No", "A", "B", "C", "reach", "push", "put", "close", "the", "red", "blue", "block", "drawer",
         "eggplant", "in", "sink", "left", "right", "last", "image", "robot", "arm", "done", "Answer", "or", "only")
SPECIAL = {
    QWEN: ["<|im_start|>", "<|im_end|>", "<|vision_start|>", "<|vision_end|>", "<|image_pad|>", "<|video_pad|>"],
    IDEFICS: ["<image>", "<fake_token_around_image>", "<end_of_utterance>", "<global-img>",
              *[f"<row_{i}_col_{j}>" for i in range(1, 4) for j in range(1, 4)]],
    LLAVA: ["<image>"],
}
SPECIAL[SMOL] = SPECIAL[IDEFICS]
_BLOCKS = "{% for part in message['content'] %}{% if part['type'] == 'image' %}IMAGE{% else %}{{ part['text'] }}" \
          "{% endif %}{% endfor %}"
TEMPLATES = {
    QWEN: "{% for message in messages %}<|im_start|>{{ message['role'] }}\n"
          + _BLOCKS.replace("IMAGE", "<|vision_start|><|image_pad|><|vision_end|>")
          + "<|im_end|>\n{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}",
    IDEFICS: "{% for message in messages %}{{ message['role'] }}: " + _BLOCKS.replace("IMAGE", "<image>")
             + "<end_of_utterance>\n{% endfor %}{% if add_generation_prompt %}Assistant:{% endif %}",
    LLAVA: "{% for message in messages %}{{ message['role'] }}: " + _BLOCKS.replace("IMAGE", "<image>\n")
           + " {% endfor %}{% if add_generation_prompt %}ASSISTANT:{% endif %}",
}
TEMPLATES[SMOL] = TEMPLATES[IDEFICS]
_TEXT = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4,
         "num_key_value_heads": 2, "max_position_embeddings": 4096, "tie_word_embeddings": False}


def _tokenizer(family: str) -> PreTrainedTokenizerFast:
    names = ["<unk>", "<pad>", "</s>", *SPECIAL[family], *WORDS]
    words = Tokenizer(WordLevel({name: i for i, name in enumerate(names)}, unk_token="<unk>"))
    words.pre_tokenizer = Whitespace()
    out = PreTrainedTokenizerFast(tokenizer_object=words, unk_token="<unk>", pad_token="<pad>", eos_token="</s>",
                                  padding_side="left")
    out.add_special_tokens({"additional_special_tokens": SPECIAL[family]})
    return out


def _qwen(tokenizer: PreTrainedTokenizerFast) -> tuple[Any, dict[str, Any]]:
    token = tokenizer.convert_tokens_to_ids
    vision = {"depth": 2, "hidden_size": 24, "intermediate_size": 32, "num_heads": 2, "out_hidden_size": 32,
              "patch_size": 16, "spatial_merge_size": 2, "temporal_patch_size": 2, "num_position_embeddings": 64,
              "deepstack_visual_indexes": [0]}
    text = {**_TEXT, "vocab_size": len(tokenizer), "head_dim": 8,
            "rope_scaling": {"rope_type": "default", "mrope_section": [2, 1, 1], "mrope_interleaved": True}}
    config = Qwen3VLConfig(text_config=text, vision_config=vision, image_token_id=token("<|image_pad|>"),
                           video_token_id=token("<|video_pad|>"), vision_start_token_id=token("<|vision_start|>"),
                           vision_end_token_id=token("<|vision_end|>"), tie_word_embeddings=False)
    return Qwen3VLForConditionalGeneration(config), {
        "size": {"longest_edge": 16777216, "shortest_edge": 4096}, "patch_size": 16, "temporal_patch_size": 2,
        "merge_size": 2, "image_mean": [0.5] * 3, "image_std": [0.5] * 3, "processor_class": "Qwen3VLProcessor",
        "image_processor_type": "Qwen2VLImageProcessorFast"}


def _idefics(tokenizer: PreTrainedTokenizerFast) -> tuple[Any, dict[str, Any]]:
    vision = {"hidden_size": 24, "intermediate_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2,
              "image_size": 32, "patch_size": 8}
    text = LlamaConfig(**_TEXT, vocab_size=len(tokenizer), pad_token_id=1)
    config = Idefics3Config(vision_config=vision, text_config=text, scale_factor=2, pad_token_id=1,
                            image_token_id=tokenizer.convert_tokens_to_ids("<image>"), tie_word_embeddings=False)
    return Idefics3ForConditionalGeneration(config), {
        "do_convert_rgb": True, "do_image_splitting": True, "do_normalize": True, "do_pad": True, "do_rescale": True,
        "do_resize": True, "image_mean": [0.5] * 3, "image_std": [0.5] * 3, "max_image_size": {"longest_edge": 32},
        "size": {"longest_edge": 64}, "image_processor_type": "Idefics3ImageProcessor",
        "processor_class": "Idefics3Processor"}


def _smol(tokenizer: PreTrainedTokenizerFast) -> tuple[Any, dict[str, Any]]:
    like, images = _idefics(tokenizer)
    values = {k: v for k, v in like.config.to_dict().items() if k not in ("model_type", "architectures")}
    return SmolVLMForConditionalGeneration(SmolVLMConfig(**values)), {
        **images, "image_processor_type": "SmolVLMImageProcessor", "processor_class": "SmolVLMProcessor"}


def _llava(tokenizer: PreTrainedTokenizerFast) -> tuple[Any, dict[str, Any]]:
    vision = CLIPVisionConfig(hidden_size=24, intermediate_size=32, num_hidden_layers=2, num_attention_heads=2,
                              image_size=32, patch_size=8, projection_dim=16)
    config = LlavaConfig(vision_config=vision, text_config=LlamaConfig(**_TEXT, vocab_size=len(tokenizer)),
                         image_token_index=tokenizer.convert_tokens_to_ids("<image>"), image_seq_length=16,
                         vision_feature_layer=-2)
    return LlavaForConditionalGeneration(config), {
        "crop_size": {"height": 32, "width": 32}, "size": {"shortest_edge": 32}, "do_center_crop": True,
        "do_resize": True, "do_rescale": True, "do_normalize": True, "image_mean": [0.5] * 3, "image_std": [0.5] * 3,
        "image_processor_type": "CLIPImageProcessor", "processor_class": "LlavaProcessor"}


PROCESSOR = {QWEN: {}, IDEFICS: {"image_seq_len": 4, "processor_class": "Idefics3Processor"},
             SMOL: {"image_seq_len": 4, "processor_class": "SmolVLMProcessor"},
             LLAVA: {"patch_size": 8, "vision_feature_select_strategy": "default", "num_additional_image_tokens": 1,
                     "processor_class": "LlavaProcessor"}}


def write_tiny_vlm(folder: Path, family: str = QWEN, seed: int = 0) -> Path:
    """Write a model, its tokenizer and its processor's files; the same seed gives the same weights."""
    tokenizer = _tokenizer(family)
    torch.manual_seed(seed)
    model, images = {QWEN: _qwen, IDEFICS: _idefics, SMOL: _smol, LLAVA: _llava}[family](tokenizer)
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if "norm" not in name:  # far enough from zero that images and words change the answer
                weight.normal_(0.0, 0.2 if weight.ndim > 1 else 0.05)
    model.save_pretrained(folder, max_shard_size="40KB")
    tokenizer.save_pretrained(folder)
    (folder / "preprocessor_config.json").write_text(json.dumps(images))
    (folder / "chat_template.json").write_text(json.dumps({"chat_template": TEMPLATES[family]}))
    if PROCESSOR[family]:
        (folder / "processor_config.json").write_text(json.dumps(PROCESSOR[family]))
    return folder
