"""How far a set of models may be believed: the release tables beside a world model, each for exactly these weights.

The file is one table, or {"sets": [table, ...]} where several sets of judges were measured with the world model."""
from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from world_gymnast_ros.adaptation.trust import RELEASE_AUC, RELEASE_FALSE_SUCCESS, TaskRelease
from world_gymnast_ros.errors import BadCheckpoint, BadConfig
from world_gymnast_ros.files import write_text
from world_gymnast_ros.loading.load import (
    JUDGE,
    WORLD_MODEL,
    checkpoint_dir,
    find,
    geometric_judge,
    holds,
    judge_names,
)
from world_gymnast_ros.models.checkpoint import CONFIG
from world_gymnast_ros.models.hub import content_hash, is_hub_name
from world_gymnast_ros.models.judges.asking import AskConfig
from world_gymnast_ros.models.judges.remote import RemoteConfig
from world_gymnast_ros.models.judges.vlm import VLMConfig, model_files, named_model
from world_gymnast_ros.models.judges.vlm_processor import find_model, is_image_text_model
from world_gymnast_ros.models.world_models import cosmos3_files
from world_gymnast_ros.models.world_models.cosmos3_settings import Cosmos3Settings
from world_gymnast_ros.models.world_models.moving_background import FOLDER as MOVING_BACKGROUND
from world_gymnast_ros.serving.exchange import is_address
from world_gymnast_ros.serving.remote_world import RemoteWorld

RELEASE = "release.json"


def release_file(world_model: str | Path | None) -> Path:
    """Return where the release table of a world model lies: beside its weights. BadConfig for one on a server."""
    if is_address(world_model):
        raise BadConfig(f"the release table of {world_model} lies beside the weights, on the server's machine: measure "
                        "there, then start the server again")
    path = checkpoint_dir(world_model, WORLD_MODEL)
    return (path if path.is_dir() else path.parent) / RELEASE


def model_hashes(where: Path) -> dict[str, str]:
    """Return SHA-256 of a checkpoint's files: settings count as much as weights, for a judge's calibration decides
    which failures it calls successes. Of Cosmos 3 those of the repository and of the statistics that it names."""
    if holds(where) == Cosmos3Settings.model_type:
        own = [where / CONFIG] if (where / CONFIG).is_file() else []
        return {f.name if f.parent == where else f"{f.parent.name}/{f.name}": content_hash(f)
                for f in (*own, *cosmos3_files.model_files(where))}
    files = [where] if where.is_file() else sorted(
        p for p in where.iterdir() if p.suffix in (".safetensors", ".pt", ".pth") or p.name == CONFIG)
    return {file.name: content_hash(file) for file in files}


def judge_hashes(name: str) -> dict[str, str]:
    """Return what tells one judge from another: the hashes of its files and, of a vision-language judge, of its model
    and of how it is asked. A server's model may change behind its address: that cannot be seen from here."""
    if is_address(name):
        return {"address": name, "settings": _settings_hash(RemoteConfig())}
    path = find_model(name) if find(name) is None and is_hub_name(name) else checkpoint_dir(name, JUDGE)
    found = holds(path)
    if is_image_text_model(found):
        return {"settings": _settings_hash(VLMConfig()), **{f.name: content_hash(f) for f in model_files(path)}}
    if found == VLMConfig.model_type:
        model = model_files(named_model(VLMConfig.read(path), path))
        return {**model_hashes(path), **{f"model/{f.name}": content_hash(f) for f in model}}
    return model_hashes(path)


def _settings_hash(config: AskConfig) -> str:
    return hashlib.sha256(json.dumps(config.to_dict(), sort_keys=True).encode()).hexdigest()


def release_hashes(world_model: str | Path | None, judges: str | Sequence[str]) -> dict[str, Any]:
    """Return the hashes of a world model and its judges: a release table is of one such set."""
    return {"world_model": RemoteWorld(str(world_model)).health.get("sha256") if is_address(world_model) else
            _drawing_hashes(checkpoint_dir(world_model, WORLD_MODEL), judges),
            "judges": [judge_hashes(name) for name in judge_names(judges)]}


def _drawing_hashes(where: Path, judges: str | Sequence[str]) -> dict[str, str]:
    """Return the hashes of a world model as it draws with these judges: without a geometric one its background moves
    by weights of its own (`load_world_model`)."""
    moving = where / MOVING_BACKGROUND
    learned = moving.is_dir() and not geometric_judge(judges)
    more = {f"{moving.name}/{name}": value for name, value in model_hashes(moving).items()} if learned else {}
    return {**model_hashes(where), **more}


def release_rows(world_model: str | Path | None = "", judges: str | Sequence[str] = "") -> dict[str, dict[str, Any]]:
    """Return the rows of the release table of a world model *with its judges*, by task, as they are stored.

    Empty when the folder has none or it was measured with other weights or settings: then nothing is known of this
    set, and nothing is offered for adaptation by default.
    """
    text = served_release(world_model) if is_address(world_model) else release_text(world_model)
    if not text:
        return {}
    try:
        wanted = release_hashes(world_model, judges)
        table: dict[str, dict[str, Any]] = next((one["tasks"] for one in _sets(text) if one["sha256"] == wanted), {})
        for row in table.values():
            TaskRelease.from_json(row)
        return {str(task): dict(row) for task, row in table.items()}
    except (ValueError, KeyError, TypeError, AttributeError, BadConfig) as error:
        raise BadCheckpoint(f"{world_model}: {RELEASE} is not a release table ({error!r}); make it with `world-gymnast "
                            "bench replay`") from error


def _sets(text: str) -> list[dict[str, Any]]:
    """Return the tables of a release file."""
    held = json.loads(text)
    found: list[dict[str, Any]] = held.get("sets", [held])
    return found


def release_text(world_model: str | Path | None) -> str:
    """Return the release table that lies beside a world model's weights, as it is written; '' where there is none."""
    file = release_file(world_model)
    return file.read_text(encoding="utf-8") if file.is_file() else ""


def served_release(url: str | Path | None) -> str:
    """Return the release table that a world model's server tells of; '' where it tells of none."""
    return str(RemoteWorld(str(url)).health.get("release") or "")


def release_table(world_model: str | Path | None = "", judges: str | Sequence[str] = "") -> dict[str, TaskRelease]:
    """Return the paired-replay table measured for a world model *with its judges*, by task; empty as `release_rows`."""
    return {task: TaskRelease.from_json(row) for task, row in release_rows(world_model, judges).items()}


def offered(world_model: str | Path | None = "") -> dict[str, list[str]]:
    """Return which tasks the release file of a world model offers for adaptation, by the judges that were measured."""
    text = served_release(world_model) if is_address(world_model) else release_text(world_model)
    found = {one["judge"]: sorted(task for task, row in one["tasks"].items() if is_offered(TaskRelease.from_json(row)))
             for one in (_sets(text) if text else [])}
    return {judges: tasks for judges, tasks in found.items() if tasks}


def is_offered(row: TaskRelease) -> bool:
    """Return whether a task that was measured so is offered for adaptation by default."""
    return row.auc >= RELEASE_AUC and row.false_success_high <= RELEASE_FALSE_SUCCESS


def write_release(world_model: str | Path | None, judges: str | Sequence[str], tasks: Mapping[str, Mapping[str, Any]],
                  seed: int) -> Path:
    """Write the release table of exactly this set of models, rows by task; return the file, which is whole or absent.
    Other tasks that were measured with the same set stay, and so do other sets with the same weights of the world
    model."""
    file, names = release_file(world_model), judge_names(judges)
    wanted = release_hashes(world_model, names)
    where = checkpoint_dir(world_model, WORLD_MODEL)
    drawn = model_hashes(where)
    rows = release_rows(world_model, names)  # refuses a file that is none
    others = [one for one in (_sets(file.read_text(encoding="utf-8")) if file.is_file() else [])
              if one["sha256"] != wanted and drawn.items() <= dict(one["sha256"]["world_model"]).items()]
    mine = {"world_model": where.name, "judge": ", ".join(Path(n).name for n in names), "seed": seed, "sha256": wanted,
            "tasks": {**rows, **tasks}}
    write_text(file, json.dumps({"sets": [*others, mine]} if others else mine, indent=1, default=float))
    return file
