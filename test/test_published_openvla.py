"""Published OpenVLA and OpenVLA-OFT checkpoints: equality with the reference classes, loading, sampling, adapters."""
from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from peft import LoraConfig as PeftConfig
from peft.tuners.tuners_utils import _maybe_include_all_linear_layers
from published_openvla import BRIDGE, DRAWER, GOLDEN_IDS, SINK, camera_frame, unused, write_folder
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer
from tokenizers.models import WordLevel

from world_gymnast_ros.errors import AdapterMismatch, BadCheckpoint, BadConfig, BadInstruction
from world_gymnast_ros.loading.load import load_policy
from world_gymnast_ros.models.policies.action_bins import decode_bins
from world_gymnast_ros.models.policies.openvla_checkpoint import Recipe, find_folder
from world_gymnast_ros.models.policies.openvla_decoding import (
    bins_to_ids,
    decode,
    features,
    ids_to_bins,
    join,
    parallel_features,
    taught_features,
)
from world_gymnast_ros.models.policies.openvla_policy import OFTL1Policy, OpenVLAPolicy, _draw, _taken, load_openvla
from world_gymnast_ros.models.policies.openvla_prompt import PromptReader
from world_gymnast_ros.models.policies.prismatic import PrismaticConfig, Tower
from world_gymnast_ros.types import AdapterRef, Frame

torch.set_num_threads(1)
GOLDEN = Path(__file__).parent / "golden" / "openvla.safetensors"
SCHEMES = {"autoregressive": {"decoding": "autoregressive", "chunk_size": 1},
           "parallel": {"decoding": "parallel", "chunk_size": 5},
           "l1": {"decoding": "l1", "chunk_size": 5, "action_scale": 0.05}}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_folder(tmp_path_factory.mktemp("published") / "tiny-openvla", l1_head=True)


@pytest.fixture(scope="module")
def policies(folder: Path) -> dict[str, OpenVLAPolicy | OFTL1Policy]:
    return {name: load_openvla(folder, **recipe) for name, recipe in SCHEMES.items()}


@pytest.fixture()
def copy(folder: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(folder, tmp_path / "copy"))


@pytest.fixture(scope="module")
def golden() -> dict[str, torch.Tensor]:
    return load_file(GOLDEN)


def pixels() -> torch.Tensor:
    return torch.from_numpy(np.random.RandomState(7).standard_normal((2, 6, 224, 224)).astype(np.float32))


def frames(count: int, seed: int = 0) -> np.ndarray:
    return np.stack([camera_frame(120, 160, seed + i) for i in range(count)])


PROMPTS = [GOLDEN_IDS[SINK], GOLDEN_IDS[DRAWER]]


# ---- equality with the reference classes -----------------------------------------------------------------------------

def test_vision_towers_are_the_references(policies, golden) -> None:
    with torch.no_grad():
        out = policies["parallel"].network.vision_backbone(pixels()[:1])
    # Exact where the reference was recorded; another processor sums in another order. Relative to the largest value.
    assert float((out - golden["vision"]).abs().max() / golden["vision"].abs().max()) <= 1e-6


def test_autoregressive_logits_tokens_and_actions_are_the_references(policies, golden) -> None:
    policy = policies["autoregressive"]
    network = policy.network
    with torch.no_grad():
        patches = network.patches(pixels())
        ids = torch.cat([decode(network, patches[i:i + 1], [prompt], lambda _, logits: logits.argmax(-1))
                         for i, prompt in enumerate(PROMPTS)])
        logits = network.action_logits(taught_features(network, patches, PROMPTS, ids))  # unlike prompts in one batch
    assert torch.equal(ids, golden["base.tokens"])
    assert float((logits.flip(-1) - golden["base.logits"]).abs().max()) < 1e-4
    actions = policy.stats.unnormalise(decode_bins(ids_to_bins(network, ids).numpy()))
    expected = golden["base.actions"].numpy()
    expected[:, 6] = expected[:, 6].clip(0, 1)  # a gripper has no opening below closed
    np.testing.assert_allclose(actions, expected, atol=1e-6)


def test_parallel_logits_tokens_and_actions_are_the_references(policies, golden) -> None:
    policy = policies["parallel"]
    with torch.no_grad():
        logits = policy._logits(policy.network.patches(pixels()), PROMPTS, None)
    flat = logits.flatten(1, 2)
    assert float((flat.flip(-1) - golden["oft.logits"]).abs().max()) < 1e-4
    assert torch.equal(bins_to_ids(policy.network, flat.argmax(-1)), golden["oft.tokens"])
    actions = policy.stats.unnormalise(decode_bins(logits.argmax(-1).numpy()))
    np.testing.assert_allclose(actions, golden["oft.actions"].numpy(), atol=1e-6)


def test_the_eager_attention_is_bidirectional_too(folder: Path, golden) -> None:
    policy = load_openvla(folder, **SCHEMES["parallel"])
    policy.network.language_model.set_attn_implementation("eager")
    with torch.no_grad():
        logits = policy._logits(policy.network.patches(pixels()), PROMPTS, None)
    assert float((logits.flatten(1, 2).flip(-1) - golden["oft.logits"]).abs().max()) < 1e-4


def test_other_readings_of_the_same_weights_act_otherwise(policies, golden) -> None:
    """What decides: full attention, and reading one position before the own slot."""
    network = policies["parallel"].network
    with torch.no_grad():
        patches = network.patches(pixels())
        network.attend_both_ways(False)
        causal = network.action_logits(parallel_features(network, patches, PROMPTS, 5)).argmax(-1)
        network.attend_both_ways(True)
        tail = patches.new_zeros(2, 36, patches.shape[-1])
        tail[:, 35] = network.get_input_embeddings()(torch.tensor(2))
        sequences = join(network, patches, PROMPTS, tail, 35)
        own = type(sequences)(sequences.embeddings, sequences.mask, sequences.read + 1)
        own_slot = network.action_logits(features(network, own)).argmax(-1)
    for other in (causal, own_slot):
        assert float((bins_to_ids(network, other) == golden["oft.tokens"]).float().mean()) < 0.9


def test_l1_actions_are_the_references(policies, golden) -> None:
    policy = policies["l1"]
    with torch.no_grad():
        slots = parallel_features(policy.network, policy.network.patches(pixels()), PROMPTS, 5)
        mean = policy.network.action_head(policy.network.action_head.features(slots))
    np.testing.assert_allclose(mean, golden["l1.normalised"], atol=1e-4)
    actions = policy.stats.unnormalise(mean.numpy())
    np.testing.assert_allclose(actions[..., :6], golden["l1.actions"].numpy()[..., :6], atol=1e-5)
    assert actions[..., 6].min() >= 0 and actions[..., 6].max() <= 1  # the reference lets the gripper leave 0..1


# ---- the prompt ------------------------------------------------------------------------------------------------------

def test_prompt_ids_are_golden(policies) -> None:
    for sentence, ids in GOLDEN_IDS.items():
        assert policies["parallel"].prompts.ids(f" {sentence.capitalize()} ") == ids


def test_a_tokenizer_of_another_vocabulary_is_refused() -> None:
    with pytest.raises(BadCheckpoint, match="29871"):
        PromptReader(Tokenizer(WordLevel({"<s>": 1, "</s>": 2, "▁": 5}, unk_token="<s>")), 32064)


@pytest.mark.parametrize("sentence", ["", "   ", "close\nthe drawer", "close the drawer " * 60])
def test_sentences_that_cannot_be_a_prompt_are_refused(policies, sentence: str) -> None:
    with pytest.raises(BadInstruction):
        policies["parallel"].act(Frame(frames(1)[0], 0), sentence)


# ---- loading ---------------------------------------------------------------------------------------------------------

def test_the_folder_is_in_the_published_layout(folder: Path) -> None:
    index = json.loads((folder / "model.safetensors.index.json").read_text())["weight_map"]
    assert len(index) == 139 and len(set(index.values())) == 4


def shard_of(folder: Path, name: str) -> Path:
    return folder / json.loads((folder / "model.safetensors.index.json").read_text())["weight_map"][name]


def edit(folder: Path, name: str, change) -> None:
    """Rewrite one tensor (None: drop it) in its shard."""
    path = shard_of(folder, name)
    tensors = load_file(path)
    value = change(tensors.pop(name))
    save_file(tensors | ({name: value} if value is not None else {}), path, {"format": "pt"})


def test_each_missing_tensor_is_named(copy: Path) -> None:
    for name in ("projector.fc3.weight", "vision_backbone.featurizer.blocks.1.ls2.scale_factor"):
        edit(copy, name, lambda _: None)
    with pytest.raises(BadCheckpoint, match=r"2 missing.*projector\.fc3\.weight, vision_backbone\.featurizer"):
        load_openvla(copy, **SCHEMES["parallel"])


def test_each_unexpected_tensor_is_named(copy: Path) -> None:
    path = shard_of(copy, "projector.fc3.bias")
    save_file(load_file(path) | {"vision_backbone.featurizer.blocks.0.scale.weight": torch.ones(3)}, path,
              {"format": "pt"})
    with pytest.raises(BadCheckpoint, match=r"1 unexpected.*blocks\.0\.scale\.weight"):
        load_openvla(copy, **SCHEMES["parallel"])


def test_tensors_no_action_depends_on_may_be_absent(copy: Path) -> None:
    for name in unused():
        edit(copy, name, lambda _: None)
    assert load_openvla(copy, **SCHEMES["parallel"]).chunk_size == 5


def test_a_misshapen_or_infinite_tensor_is_named(copy: Path) -> None:
    edit(copy, "projector.fc1.bias", lambda t: t[:-1])
    with pytest.raises(BadCheckpoint, match=r"projector\.fc1\.bias"):
        load_openvla(copy, **SCHEMES["parallel"])
    edit(copy, "projector.fc1.bias", lambda t: torch.cat([t, torch.tensor([float("nan")])]))
    with pytest.raises(BadCheckpoint, match=r"projector\.fc1\.bias"):
        load_openvla(copy, **SCHEMES["parallel"])


def test_a_missing_shard_is_named(copy: Path) -> None:
    path = shard_of(copy, "projector.fc1.bias")
    path.unlink()
    with pytest.raises(BadCheckpoint, match=path.name):
        load_openvla(copy, **SCHEMES["parallel"])


def test_the_recipe_is_stated_never_guessed(copy: Path) -> None:
    with pytest.raises(BadConfig, match="decoding and chunk_size"):
        load_openvla(copy)
    with pytest.raises(BadConfig, match="chunk_size"):
        load_openvla(copy, decoding="parallel")
    (copy / "world_gymnast.json").write_text(json.dumps({"decoding": "parallel", "chunk_size": 5, "crop_area": 0.9}))
    policy = load_openvla(copy)
    assert policy.chunk_size == 5 and policy.pixels.crop_area == 0.9
    assert load_openvla(copy, chunk_size=8).chunk_size == 8
    (copy / "world_gymnast.json").write_text(json.dumps({"decoding": "parallel", "chunk_size": 5, "crop": 0.9}))
    with pytest.raises(BadConfig, match="'crop'"):
        load_openvla(copy)
    for wrong in ({"decoding": "autoregressive", "chunk_size": 5}, {"decoding": "parallel", "chunk_size": 0},
                  {"decoding": "causal", "chunk_size": 1},
                  {"decoding": "parallel", "chunk_size": 5, "action_scale": 1}):
        with pytest.raises(BadConfig):
            Recipe(**wrong)


def test_the_published_base_model_needs_no_recipe_by_its_hub_name(tmp_path: Path) -> None:
    assert Recipe.read(tmp_path, "openvla/openvla-7b", {}) == Recipe("autoregressive", 1, "bridge_orig")
    assert Recipe.read(tmp_path, "openvla/openvla-7b", {"statistics": "fractal20220817_data"}).chunk_size == 1


def test_statistics_by_key_and_file(copy: Path) -> None:
    narrow = {**BRIDGE, "q99": [x / 2 for x in BRIDGE["q99"]]}
    table = {"bridge_dataset": {"action": narrow}, "fractal": {"action": BRIDGE}}
    (copy / "dataset_statistics.json").write_text(json.dumps(table))
    assert load_openvla(copy, **SCHEMES["parallel"]).stats.q99[0] == pytest.approx(BRIDGE["q99"][0] / 2)
    assert load_openvla(copy, **SCHEMES["parallel"], statistics="fractal").stats.q99[0] == BRIDGE["q99"][0]
    with pytest.raises(BadConfig, match=r"bridge_orig.*fractal"):
        load_openvla(copy, **SCHEMES["parallel"], statistics="bridge_orig")
    (copy / "dataset_statistics.json").write_text(json.dumps({"a": {"action": narrow}, "b": {"action": BRIDGE}}))
    with pytest.raises(BadConfig, match="state the key"):
        load_openvla(copy, **SCHEMES["parallel"])


@pytest.mark.parametrize("name", ["proprio_projector--50000_checkpoint.pt", "vision_backbone--50000_checkpoint.pt",
                                  "noisy_action_projector--50000_checkpoint.pt"])
def test_variants_that_need_more_are_refused(copy: Path, name: str) -> None:
    (copy / name).write_bytes(b"")
    with pytest.raises(BadCheckpoint, match=name):
        load_openvla(copy, **SCHEMES["parallel"])


def test_an_unmerged_lora_says_what_to_do(tmp_path: Path, folder: Path) -> None:
    (tmp_path / "lora_adapter").mkdir()
    shutil.copy(folder / "config.json", tmp_path)
    with pytest.raises(BadCheckpoint, match="merge"):
        load_openvla(tmp_path, **SCHEMES["parallel"])


class Evil:
    def __reduce__(self):
        return (exec, ("raise SystemExit('unpickled')",))


def test_an_action_head_is_never_unpickled(copy: Path) -> None:
    path = next(copy.glob("action_head--*"))
    torch.save({"model.fc1.weight": Evil()}, path)
    with pytest.raises(BadCheckpoint, match="plain tensors"):
        load_openvla(copy, **SCHEMES["l1"])
    torch.save({"model.fc1.weight": torch.ones(2)}, path)
    with pytest.raises(BadCheckpoint, match=r"model\.fc1\.bias"):
        load_openvla(copy, **SCHEMES["l1"])
    path.unlink()
    with pytest.raises(BadCheckpoint, match="0 files"):
        load_openvla(copy, **SCHEMES["l1"])


def test_other_models_and_towers_are_refused(copy: Path) -> None:
    config = json.loads((copy / "config.json").read_text())
    for change, match in (({"model_type": "qwen3_vl"}, "qwen3_vl"),
                          ({"text_config": {"model_type": "mistral"}}, "mistral"),
                          ({"vision_towers": None, "timm_model_ids": ["vit_huge", "vit_so400m_patch14_siglip_224"]},
                           "vit_huge")):
        (copy / "config.json").write_text(json.dumps({**config, **change}))
        with pytest.raises(BadCheckpoint, match=match):
            load_openvla(copy, **SCHEMES["parallel"])


def test_a_hub_name_that_is_not_here_says_so(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    with pytest.raises(BadCheckpoint, match="does not exist"):
        find_folder(tmp_path / "nothing")

    def offline(*_: object, **__: object) -> str:
        raise ConnectionError("no network")

    monkeypatch.setattr("world_gymnast_ros.models.hub.snapshot_download", offline)
    with pytest.raises(BadCheckpoint, match=r"openvla/openvla-7b.*no network"):
        load_openvla("openvla/openvla-7b")


def test_the_published_size_is_the_published_size() -> None:
    """Counted on the meta device: 7.54 billion parameters in the reference, less what no action depends on."""
    from world_gymnast_ros.models.policies.prismatic import PrismaticVLA
    with torch.device("meta"):
        network = PrismaticVLA(PrismaticConfig(text_config={"vocab_size": 32064, "pad_token_id": 32000}))
    assert network.config.action_columns == slice(31744, 32000)
    assert network.config.text_config.rms_norm_eps == 1e-6
    assert network.config.text_config.rope_parameters["rope_theta"] == 10000.0
    counted = sum(p.numel() for p in network.parameters())
    last_blocks = (12 * 1024**2 + 15 * 1024) + (4 * 1152**2 + 2 * 1152 * 4304 + 4304 + 9 * 1152)
    pool = (1152 + 4 * 1152**2 + 4 * 1152) + (2 * 1152 * 4304 + 4304 + 1152) + 2 * 1152
    assert counted + last_blocks + pool + 2 * 1024 + 2 * 1152 == 7_541_237_184


def test_one_call_loads_every_kind_of_policy(folder: Path, copy: Path) -> None:
    (copy / "world_gymnast.json").write_text(json.dumps(SCHEMES["parallel"]))
    assert isinstance(load_policy(copy), OpenVLAPolicy)
    assert load_policy().name != load_policy(copy).name
    with pytest.raises(BadConfig, match="dtype"):
        load_policy(copy, dtype="int8")
    (copy / "world_gymnast.json").write_text(json.dumps(SCHEMES["l1"]))
    assert isinstance(load_policy(copy), OFTL1Policy)


# ---- sampling and scoring --------------------------------------------------------------------------------------------

@pytest.mark.parametrize("scheme", SCHEMES)
def test_a_seed_gives_one_result_whatever_the_batch(policies, scheme: str) -> None:
    policy = policies[scheme]
    whole = policy.sample(frames(5), SINK, 1.3, seed=4)
    again = policy.sample(frames(5), SINK, 1.3, seed=4)
    assert whole.deltas.shape == (5, policy.chunk_size, 7) and whole.deltas.dtype == np.float32
    np.testing.assert_array_equal(whole.tokens, again.tokens)
    np.testing.assert_array_equal(whole.logprobs, again.logprobs)
    assert (policy.sample(frames(5), SINK, 1.3, seed=5).tokens != whole.tokens).any()
    policy.max_batch = 2
    try:
        split = policy.sample(frames(5), SINK, 1.3, seed=4)
    finally:
        policy.max_batch = 32
    np.testing.assert_allclose(split.tokens, whole.tokens, atol=1e-5)
    np.testing.assert_allclose(split.logprobs, whole.logprobs, atol=1e-4)


@pytest.mark.parametrize("scheme", ["autoregressive", "parallel"])
def test_greedy_batched_is_one_by_one(policies, scheme: str) -> None:
    policy = policies[scheme]
    together = policy.greedy(frames(3), DRAWER)
    for i, frame in enumerate(frames(3)):
        chunk = policy.act(Frame(frame, 17), DRAWER)
        np.testing.assert_array_equal(policy.stats.unnormalise(decode_bins(together[i])), chunk.deltas)
        assert chunk.frame_stamp_ns == 17 and chunk.adapter == "base"


def test_samples_follow_the_probabilities() -> None:
    logits = torch.tensor([[0.0, 2.0, -1.0, 1.0]])
    drawn = _draw(logits.expand(1, 20000, 4), torch.rand(1, 20000, generator=torch.Generator().manual_seed(0)).double())
    seen = np.bincount(drawn[0].numpy(), minlength=4) / 20000
    np.testing.assert_allclose(seen, torch.softmax(logits[0], -1), atol=0.015)
    assert _draw(logits[None], torch.tensor([[1.0 - 1e-16]]).double()).item() <= 3


def test_probabilities_are_over_the_action_columns_alone(policies) -> None:
    """Padding and words of the vocabulary take no share: all 256 bins of one slot add up to 1."""
    policy = policies["parallel"]
    tokens = policy.sample(frames(1), SINK, 1.6, 0).tokens.repeat(256, axis=0)
    tokens[:, 2, 3] = np.arange(256)
    with torch.no_grad():
        logits = policy.logits(frames(1), SINK)
        scores = _taken(logits.expand(256, -1, -1, -1) / 1.6, torch.from_numpy(tokens))
        one = policy.logprobs(frames(1), SINK, tokens[77:78], 1.6)
    assert logits.shape == (1, 5, 7, 256) and float(scores[:, 2, 3].exp().sum()) == pytest.approx(1.0, abs=1e-5)
    np.testing.assert_allclose(one[0], scores[77], atol=1e-5)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("scheme", SCHEMES)
def test_the_first_ratio_is_one(folder: Path, scheme: str, dtype: str) -> None:
    """Sampler and trainer are one code path: with an adapter that acts, and with recomputed activations."""
    policy = load_openvla(folder, **SCHEMES[scheme], dtype=dtype)
    assert policy.network.dtype == getattr(torch, dtype)
    scramble(policy)
    sampled = policy.sample(frames(4), SINK, 1.6, seed=1)
    now = policy.logprobs(frames(4), SINK, sampled.tokens, 1.6)
    assert now.requires_grad and now.dtype == torch.float32
    assert float((torch.exp(now.detach() - torch.from_numpy(sampled.logprobs)) - 1).abs().max()) == 0.0


@pytest.mark.parametrize("scheme", SCHEMES)
def test_a_batch_of_unlike_sentences_scores_as_one_by_one(policies, scheme: str) -> None:
    policy = policies[scheme]
    texts = [SINK, DRAWER]
    tokens = np.concatenate([policy.sample(frames(1), text, 1.0, seed).tokens for seed, text in enumerate(texts)])
    with torch.no_grad():
        both = policy.logprobs(np.repeat(frames(1), 2, axis=0), texts, tokens, 1.0)
        alone = torch.cat([policy.logprobs(frames(1), text, tokens[i:i + 1], 1.0) for i, text in enumerate(texts)])
    np.testing.assert_allclose(both, alone, atol=1e-4)


def test_temperature_is_checked_and_used(policies) -> None:
    for policy in policies.values():
        with pytest.raises(BadConfig, match="temperature"):
            policy.sample(frames(1), SINK, 0.0, 0)
    cold = policies["l1"].sample(frames(1), SINK, 0.05, 0).deltas
    mean = policies["l1"].act(Frame(frames(1)[0], 0), SINK).deltas
    hot = policies["l1"].sample(frames(1), SINK, 2.0, 0).deltas
    assert np.abs(cold - mean).max() < np.abs(hot - mean).max() / 5


def test_an_l1_head_without_scale_acts_and_is_not_trained(folder: Path) -> None:
    policy = load_openvla(folder, decoding="l1", chunk_size=5)
    sampled = policy.sample(frames(2), SINK, 1.0, 0)
    assert sampled.tokens is None and sampled.logprobs is None
    alone = policy.act(Frame(frames(2)[1], 0), SINK).deltas
    np.testing.assert_allclose(sampled.deltas[1], alone, atol=1e-5)  # a batch is summed in another order
    for call in (policy.add_lora, lambda: policy.logprobs(frames(1), SINK, np.zeros((1, 5, 7)), 1.0)):
        with pytest.raises(BadConfig, match="action_scale"):
            call()


# ---- adapters --------------------------------------------------------------------------------------------------------

def scramble(policy, rank: int = 4) -> None:
    """Give a fresh adapter an effect (its B matrices start at zero)."""
    parameters = policy.add_lora(rank, 2.0 * rank)
    torch.manual_seed(1)
    with torch.no_grad():
        for parameter in parameters:
            parameter.normal_(0, 0.2)


def test_lora_is_on_all_linear_layers(folder: Path) -> None:
    """The same layers as peft's own "all-linear", which leaves out the language model's head."""
    policy = load_openvla(folder, **SCHEMES["parallel"])
    wanted = _maybe_include_all_linear_layers(PeftConfig(target_modules="all-linear"), policy.network).target_modules
    parameters = policy.add_lora()
    found = {name for name, _ in policy._slot.layers()}
    assert found == set(wanted) and len(found) == 40 and len(parameters) == 80
    assert {"projector.fc3", "vision_backbone.featurizer.blocks.0.attn.qkv"} <= found
    assert policy._slot.rank == 32 and all(p.dtype == torch.float32 for p in parameters)


def test_lora_weights_stay_float32_on_a_bfloat16_base(folder: Path) -> None:
    policy = load_openvla(folder, **SCHEMES["parallel"], dtype="bfloat16")
    before = policy.greedy(frames(2), SINK)
    assert all(p.dtype == torch.float32 for p in policy.add_lora(4))
    np.testing.assert_array_equal(policy.greedy(frames(2), SINK), before)  # a fresh adapter changes nothing


@pytest.mark.parametrize("scheme", SCHEMES)
def test_one_copy_of_the_base_serves_all(folder: Path, tmp_path: Path, scheme: str) -> None:
    policy = load_openvla(folder, **SCHEMES[scheme])
    size = sum(p.numel() for p in policy.network.parameters())
    place = policy.network.language_model.lm_head.weight.data_ptr()
    base = policy.act(Frame(frames(1)[0], 0), SINK).deltas
    scramble(policy)
    adapted = policy.act(Frame(frames(1)[0], 0), SINK)
    assert adapted.adapter == "new" and np.abs(adapted.deltas - base).max() > 0
    with policy.without_adapter():
        reference = policy.act(Frame(frames(1)[0], 0), SINK)
    np.testing.assert_array_equal(reference.deltas, base)
    assert reference.adapter == "base"
    np.testing.assert_array_equal(policy.act(Frame(frames(1)[0], 0), SINK).deltas, adapted.deltas)
    added = sum(p.numel() for p in policy.trainable_parameters())
    assert sum(p.numel() for p in policy.network.parameters()) == size + added
    assert policy.network.language_model.lm_head.weight.data_ptr() == place
    digest = policy.save_adapter(tmp_path / "adapter")
    ref = AdapterRef("a", tmp_path / "adapter", digest, "base", policy.name)
    policy.load_adapter(None)
    np.testing.assert_array_equal(policy.act(Frame(frames(1)[0], 0), SINK).deltas, base)
    policy.load_adapter(ref)
    np.testing.assert_array_equal(policy.act(Frame(frames(1)[0], 0), SINK).deltas, adapted.deltas)
    with pytest.raises(AdapterMismatch):
        policy.load_adapter(AdapterRef("a", tmp_path / "adapter", "0" * 64, "base", policy.name))
    assert policy.adapter == "a"


def test_an_adapter_belongs_to_its_decoding_scheme(folder: Path, tmp_path: Path) -> None:
    policy = load_openvla(folder, **SCHEMES["parallel"])
    policy.add_lora(2)
    digest = policy.save_adapter(tmp_path)
    ref = AdapterRef("a", tmp_path, digest, "base", policy.name)
    for other in (SCHEMES["autoregressive"], {"decoding": "parallel", "chunk_size": 8}):
        with pytest.raises(AdapterMismatch):
            load_openvla(folder, **other).load_adapter(ref)


def saved_bytes(policy, tokens: np.ndarray) -> tuple[float, list[torch.Tensor]]:
    """Bytes that a scoring pass keeps for its backward, and the gradients."""
    seen: dict[int, int] = {}

    def note(tensor: torch.Tensor) -> torch.Tensor:
        seen[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
        return tensor

    weights = {p.untyped_storage().data_ptr() for p in policy.network.parameters()}
    with torch.autograd.graph.saved_tensors_hooks(note, lambda t: t):
        out = policy.logprobs(frames(2), SINK, tokens, 1.0)
    out.sum().backward()
    gradients = [p.grad.clone() for p in policy.trainable_parameters()]
    return float(sum(size for place, size in seen.items() if place not in weights)), gradients


def test_recomputing_activations_saves_memory_and_changes_no_gradient(folder: Path) -> None:
    runs = []
    for checkpointing in (True, False):
        policy = load_openvla(folder, **SCHEMES["parallel"], checkpointing=checkpointing)
        scramble(policy)
        tokens = policy.sample(frames(2), SINK, 1.0, 0).tokens
        runs.append(saved_bytes(policy, tokens))
    assert runs[0][0] < runs[1][0] / 3
    for one, two in zip(runs[0][1], runs[1][1], strict=True):
        torch.testing.assert_close(one, two)
    assert sum(float(g.abs().sum()) for g in runs[0][1]) > 0


def test_a_tower_is_described_by_its_fields() -> None:
    tower = Tower(dim=8, depth=2, heads=2, hidden=16)
    assert PrismaticConfig(vision_towers=PrismaticConfig.describe([tower]), timm_model_ids=["x"]).towers == [tower]

