"""A background that moves as it was learned to."""
from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from world_gymnast_ros.cli import main
from world_gymnast_ros.errors import AdapterMismatch, BadCheckpoint, EpisodeError
from world_gymnast_ros.loading.load import TABLETOP_JUDGES, WORLD_MODEL, checkpoint_dir, load_world_model
from world_gymnast_ros.models.world_models.action_dit_world import ActionDiTWorld, load_network, to_uint8
from world_gymnast_ros.models.world_models.moving_background import (
    FOLDER,
    load_moving_background,
    save_moving_background,
)
from world_gymnast_ros.robot.arm_silhouette import PARKED, silhouette
from world_gymnast_ros.store import WORLD_MODEL as STORED
from world_gymnast_ros.store import Store
from world_gymnast_ros.updates.world_model import mixed, put_version

CAMERA = load_network(checkpoint_dir("", WORLD_MODEL))[0].config.camera


@pytest.fixture(scope="module")
def network():
    found = load_moving_background(checkpoint_dir("", WORLD_MODEL))
    assert found is not None
    return found.eval().requires_grad_(False)


def _hands(copies: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Capsules (B, 3, 6, 6), points under the hand (B, 3, 2) and states (B, 3, 7) of hands that go down and forward."""
    way = np.linspace(0.0, 1.0, 3)[None, :, None] * np.array([0.04, 0.02, -0.06, 0, 0, 0, -1.0])
    states = np.array([0.25, 0.0, 0.12, 0, 0, 0, 1.0]) + way + np.arange(copies)[:, None, None] * 0.01
    states = states.astype(np.float32)
    capsules = silhouette(states.reshape(-1, 7), np.ones(3 * copies, bool), CAMERA).reshape(copies, 3, 6, 6)
    ground = torch.rand(copies, 3, 2, generator=torch.Generator().manual_seed(1)) - 0.5
    return torch.from_numpy(capsules), ground, torch.from_numpy(states)


def _play(network, clean, capsules, ground, states):
    moved = network.begin(clean)
    for k in range(capsules.shape[1] - 1):
        moved = network.step(moved, capsules[:, k:k + 2], ground[:, k:k + 2], states[:, k:k + 2])
    return moved


def test_copies_do_not_mix_and_a_run_repeats(network):
    clean = torch.rand(3, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    hands = _hands(3)
    whole = _play(network, clean, *hands)
    assert torch.equal(whole.now, _play(network, clean, *hands).now)
    assert (whole.now - clean).abs().max() > 0.01  # something was drawn
    for i in range(3):
        alone = _play(network, clean[i:i + 1], *(x[i:i + 1] for x in hands))
        torch.testing.assert_close(alone.now, whole.now[i:i + 1], atol=1e-5, rtol=0)
    whole.keep(torch.tensor([2]))
    assert whole.now.shape == (1, 3, 64, 64) and whole.memory.shape[0] == 1


def test_nothing_moves_where_no_hand_is_seen(network):
    clean = torch.rand(1, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    capsules, ground, states = _hands(1)
    assert torch.equal(_play(network, clean, torch.full_like(capsules, PARKED), ground, states).now, clean)


def test_what_is_far_from_the_hand_stays(network):
    clean = torch.rand(1, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    hands = _hands(1)
    changed = (_play(network, clean, *hands).now != clean).any(1)[0].nonzero()
    assert len(changed) and (changed.amax(0) - changed.amin(0)).max() < 2 * network.config.crop


def test_it_is_asked_where_no_geometric_judge_is():
    learned, geometric = load_world_model("", "tiny/reflector"), load_world_model("", TABLETOP_JUDGES)
    assert isinstance(learned, ActionDiTWorld) and isinstance(geometric, ActionDiTWorld)
    assert learned.objects is None and learned.moving is not None
    assert geometric.objects is not None


def test_a_broken_folder_is_named(tmp_path: Path):
    assert load_moving_background(tmp_path) is None
    (tmp_path / FOLDER).mkdir()
    (tmp_path / FOLDER / "config.json").write_text('{"model_type": "moving_background", "crop": 30}')
    with pytest.raises(BadCheckpoint, match=r"crop is 30; it must be a multiple of 4"):
        load_moving_background(tmp_path)


def test_a_training_that_was_stopped_before_its_first_weights_is_no_checkpoint(tmp_path: Path):
    (tmp_path / FOLDER / "training").mkdir(parents=True)
    assert load_moving_background(tmp_path) is None


def test_a_stored_version_and_a_mixture_keep_it(network, tmp_path: Path):
    shipped = checkpoint_dir("", WORLD_MODEL)
    half = mixed(shipped, shipped, 0.5, tmp_path / "half")
    ref = put_version(tmp_path / "store", half, "lab", "tiny", {}, 1)
    kept = load_moving_background(ref.path)
    assert kept is not None
    for mine, theirs in zip(kept.parameters(), network.parameters(), strict=True):
        assert torch.equal(mine, theirs)
    store = Store(tmp_path / "store", STORED)
    assert store.refs() == [ref]
    weights = ref.path / FOLDER / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1] + b"x")
    with pytest.raises(AdapterMismatch, match=r"moving_background/model\.safetensors has SHA-256"):
        store.get(ref.name)
    weights.unlink()
    with pytest.raises(BadCheckpoint, match=r"moving_background/model\.safetensors is missing"):
        store.get(ref.name)


def test_a_stored_version_without_one_is_given_none_later(network, tmp_path: Path):
    shipped, bare = checkpoint_dir("", WORLD_MODEL), tmp_path / "bare"
    bare.mkdir()
    for name in ("config.json", "model.safetensors"):
        (bare / name).write_bytes((shipped / name).read_bytes())
    ref = put_version(tmp_path / "store", bare, "lab", "tiny", {}, 1)
    assert load_moving_background(ref.path) is None
    save_moving_background(network, ref.path)
    with pytest.raises(AdapterMismatch, match=r"moving_background/config\.json is not in version\.json"):
        Store(tmp_path / "store", STORED).get(ref.name)


def test_a_saved_world_model_keeps_it(network, tmp_path: Path):
    load_world_model("", "tiny/reflector").save(tmp_path / "run")
    kept = load_world_model(tmp_path / "run", "tiny/reflector")
    assert isinstance(kept, ActionDiTWorld) and kept.objects is None and kept.moving is not None
    for mine, shipped in zip(kept.moving.parameters(), network.parameters(), strict=True):
        assert torch.equal(mine, shipped)


@pytest.fixture(scope="module")
def contact_play(tmp_path_factory) -> Path:
    play = pytest.importorskip("world_gymnast_ros.twin.play", reason="MuJoCo is not installed")
    folder = tmp_path_factory.mktemp("contact")
    play.make_file(folder / "push.npz", "push", "contact_play", 6, seed=41)
    return folder


def test_contact_play_shows_the_scene_without_the_arm(contact_play: Path):
    with np.load(contact_play / "push.npz") as data:
        frames, bare = data["frames"], data["without_arm"]
    assert bare.shape == frames.shape
    dark = (frames.max(-1) < 60).mean(), (bare.max(-1) < 60).mean()
    assert dark[0] > 3 * dark[1]  # the arm is nearly black


def test_what_is_pushed_is_moved_by_the_shipped_one(network, contact_play: Path):
    from world_gymnast_ros.data.read import read_arrays
    from world_gymnast_ros.training.moving_background import Stretches, moved_error

    drawing = load_network(checkpoint_dir("", WORLD_MODEL))[0].eval()
    held_out = Stretches.of(read_arrays(contact_play / "push.npz"), drawing)
    error, still = moved_error(network, held_out, 12, seed=3)
    assert error < 0.85 * still


@pytest.mark.parametrize(("bare", "aside"), [
    (True, False), (False, False), pytest.param(True, True, marks=pytest.mark.slow)])
def test_it_is_trained_and_goes_on_where_it_was_stopped(contact_play: Path, tmp_path: Path, bare: bool, aside: bool,
                                                        capsys):
    data = contact_play
    if not bare:  # as a recording of a real arm: no scene without it
        data = tmp_path / "recorded"
        data.mkdir()
        with np.load(contact_play / "push.npz") as whole:
            np.savez(data / "push.npz", **{k: whole[k] for k in whole.files if k != "without_arm"})
    words = ["train", "moving-background", "--episodes", str(data), "--out", str(tmp_path / "mb"), "--steps",
             "2" if bare else "1", *(["--held-out", str(data)] if aside else [])]
    assert main(words) == 0
    said = capsys.readouterr().out
    assert ("without" if bare else "with") + " the arm" in said and ("standing still" in said) == aside
    trained = (tmp_path / "mb" / "model.safetensors").read_bytes()
    assert main(words) == 0  # nothing is left to do
    assert (tmp_path / "mb" / "model.safetensors").read_bytes() == trained and len(trained) < 1_000_000


def test_a_world_model_learns_on_the_background_that_it_draws_by(network, contact_play: Path, tmp_path: Path):
    from world_gymnast_ros.data.clip_sampler import ClipSource
    from world_gymnast_ros.data.read import read_arrays
    from world_gymnast_ros.training.backgrounds import with_backgrounds
    from world_gymnast_ros.updates.world_model import UpdateConfig, fine_tune

    parent = checkpoint_dir("", WORLD_MODEL)
    episodes = read_arrays(contact_play / "push.npz")
    moving = with_backgrounds(load_network(parent)[0].eval(), network, episodes)
    world = load_world_model(parent, "tiny/reflector", dtype="float32")
    for e in moving[:2]:
        drawn = world.begin([e.start()], seed=0)
        drawn.play(e.deltas[None])
        shown = to_uint8(drawn._sampler._moved.now.permute(0, 2, 3, 1))[0].astype(int)
        assert np.abs(shown - e.background[-1]).max() <= 1
        assert (np.abs(shown - e.background[0].astype(int)).max(-1) > 12).any()  # something was pushed
    batch = ClipSource(moving, 8, {}).batch(np.random.default_rng(0), 4, 0.0)
    assert batch.behind is not None and batch.behind.shape == batch.following.shape
    assert ClipSource(episodes, 8, {}).batch(np.random.default_rng(0), 4, 0.0).behind is None

    out = fine_tune(parent, episodes, [], [], UpdateConfig(steps=2, batch=2, own_rollouts=2), tmp_path / "tuned")
    still = tmp_path / "still"  # as a parent without one is trained
    still.mkdir()
    for name in ("config.json", "model.safetensors"):
        (still / name).write_bytes((parent / name).read_bytes())
    other = fine_tune(still, episodes, [], [], UpdateConfig(steps=2, batch=2, own_rollouts=2), tmp_path / "other")
    assert (out / "model.safetensors").read_bytes() != (other / "model.safetensors").read_bytes()
    assert load_moving_background(out) is not None


def test_episodes_without_states_are_refused(tmp_path: Path):
    from world_gymnast_ros.data.episode import Episode
    from world_gymnast_ros.training.moving_background import Stretches

    drawing = load_network(checkpoint_dir("", WORLD_MODEL))[0].eval()
    bad = Episode(np.zeros((3, 64, 64, 3), np.uint8), np.zeros((2, 7), np.float32), None)
    with pytest.raises(EpisodeError, match="no episode with target states"):
        Stretches.of([bad], drawing)
