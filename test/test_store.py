"""Adapters on disk: whole or absent, and nothing read that was not meant."""
import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import save_file

from world_gymnast_ros.errors import AdapterMismatch, BadCheckpoint
from world_gymnast_ros.files import sha256_file
from world_gymnast_ros.store import ADAPTER, WORLD_MODEL, Store, check_safetensors, load_adapter, slug


def writer(value=1.0):
    def write(directory: Path) -> None:
        save_file({"a": np.full((3, 4), value, np.float32)}, directory / "adapter_model.safetensors")
        (directory / "adapter_config.json").write_text("{}")
        (directory / "README.md").write_text("peft writes one")
    return write


def put(store, name="reach the Red block!", value=1.0, created_ns=1, write=None):
    return store.put(name, write or writer(value), parent="base", base_policy="tiny", scores={"gain": 0.25},
                     created_ns=created_ns)


@pytest.fixture()
def store(tmp_path):
    return Store(tmp_path / "adapters")


def test_round_trip(store):
    ref = put(store)
    assert ref.name == f"reach-the-red-block-{ref.sha256[:8]}" and ref.scores == {"gain": 0.25}
    assert ref.sha256 == sha256_file(ref.path / "adapter_model.safetensors")
    assert sorted(p.name for p in ref.path.iterdir()) == ["adapter.json", "adapter_config.json",
                                                          "adapter_model.safetensors"]
    assert store.refs() == [ref] == [store.get(ref.name)] and load_adapter(ref.path) == ref
    assert put(store) == ref, "the same bytes are the same adapter"


def test_the_newest_is_by_time_and_not_by_name(store):
    late, early = put(store, "a", 1.0, created_ns=20), put(store, "z", 2.0, created_ns=10)
    assert store.refs() == [early, late] and store.newest() == late
    assert Store(store.root / "none").newest() is None


def test_damage_is_named(store):
    ref = put(store)
    weights = ref.path / "adapter_model.safetensors"
    good = weights.read_bytes()
    weights.write_bytes(good[:-1] + b"\x00")
    with pytest.raises(AdapterMismatch, match="changed after it was stored"):
        store.get(ref.name)
    weights.unlink()
    with pytest.raises(BadCheckpoint, match="missing or a link"):
        store.get(ref.name)
    outside = store.root / "elsewhere"
    outside.write_bytes(good)
    weights.symlink_to(outside)
    with pytest.raises(BadCheckpoint, match="link"):
        store.get(ref.name)
    weights.unlink()
    weights.write_bytes(good)
    assert store.get(ref.name) == ref
    card = json.loads((ref.path / "adapter.json").read_text())
    (ref.path / "adapter.json").write_text(json.dumps({**card, "sha256": "0" * 64}))
    with pytest.raises(AdapterMismatch, match="edited"):
        store.get(ref.name)
    assert store.refs() == [] and "edited" in store.problems()[0]


@pytest.mark.parametrize(("text", "says"), [("{", "not JSON"), ("[]", "JSON object"), ('{"name": "x"}', "lacks"),
                                            ("x" * (2 << 20), "larger")])
def test_bad_cards_are_refused(store, text, says):
    ref = put(store)
    (ref.path / "adapter.json").write_text(text)
    with pytest.raises(BadCheckpoint, match=says):
        store.get(ref.name)


def test_a_renamed_directory_is_refused(store):
    ref = put(store)
    ref.path.rename(store.root / "other")
    with pytest.raises(BadCheckpoint, match="renamed"):
        store.get("other")
    with pytest.raises(BadCheckpoint, match="not a name"):
        store.get("../adapters")


@pytest.mark.parametrize("data", [b"", b"\x80\x04pickle", b"\xff" * 64, b"\x02\0\0\0\0\0\0\0{}trailing",
                                  b"\x02\0\0\0\0\0\0\0[]"])
def test_only_whole_safetensors_pass(store, data, tmp_path):
    def write(directory):
        writer()(directory)
        (directory / "adapter_model.safetensors").write_bytes(data)
    with pytest.raises(BadCheckpoint):
        put(store, write=write)
    assert list(store.root.iterdir()) == []


def test_a_cut_file_is_told(tmp_path):
    save_file({"a": np.zeros(100, np.float32)}, tmp_path / "w")
    check_safetensors(tmp_path / "w")
    (tmp_path / "w").write_bytes((tmp_path / "w").read_bytes()[:-4])
    with pytest.raises(BadCheckpoint, match="cut or padded"):
        check_safetensors(tmp_path / "w")


def test_a_writer_that_fails_leaves_nothing(store):
    def half(directory):
        (directory / "adapter_config.json").write_text("{}")
    with pytest.raises(BadCheckpoint, match="was not written"):
        put(store, write=half)

    def crash(directory):
        writer()(directory)
        raise RuntimeError("out of memory")
    with pytest.raises(RuntimeError):
        put(store, write=crash)
    assert list(store.root.iterdir()) == []


def test_a_full_disk_leaves_nothing_and_says_so(store):
    def full(directory):
        writer()(directory)
        raise OSError(28, "No space left on device")
    with pytest.raises(BadCheckpoint, match=r"No space left on device \(nothing was kept\)"):
        put(store, write=full)
    assert list(store.root.iterdir()) == [] and store.refs() == []


def test_an_unusable_folder_is_named(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(BadCheckpoint, match="Not a directory"):
        put(Store(tmp_path / "file" / "adapters"))


def test_a_killed_writer_leaves_nothing_that_counts(store):
    code = (f"import os, sys; sys.path.insert(0, {str(Path(__file__).resolve().parents[1])!r})\n"
            "from pathlib import Path\nfrom world_gymnast_ros.store import Store\n"
            "def write(d):\n    (d / 'adapter_config.json').write_text('{}'); os._exit(9)\n"
            f"Store(Path({str(store.root)!r})).put('x', write, parent='', base_policy='', scores={{}}, created_ns=1)")
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 9
    assert [p.name.startswith(".tmp-") for p in store.root.iterdir()] == [True] and store.refs() == []
    ref = put(store)
    assert [p.name for p in store.root.iterdir()] == [ref.name], "the next writer clears up"


def test_world_model_versions_are_kept_the_same_way(tmp_path):
    versions = Store(tmp_path, WORLD_MODEL)

    def write(directory):
        save_file({"a": np.zeros(3, np.float32)}, directory / "model.safetensors")
        (directory / "config.json").write_text("{}")
    ref = versions.put("dream", write, parent="none", base_policy="", scores={"auc": 0.9}, created_ns=1)
    assert (ref.path / "version.json").is_file() and versions.newest() == ref
    with pytest.raises(BadCheckpoint):
        Store(tmp_path, ADAPTER).get(ref.name)
    assert slug("  ") == "unnamed"
