"""Load a policy, a world model or a judge from a checkpoint folder. The one place that knows which class is which."""
from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from world_gymnast_ros.adaptation.trust import TaskRelease
from world_gymnast_ros.errors import BadCheckpoint, BadConfig
from world_gymnast_ros.models.checkpoint import CONFIG, WEIGHTS, sha256_file
from world_gymnast_ros.models.judges.consensus import Consensus
from world_gymnast_ros.models.judges.reflector import Reflector
from world_gymnast_ros.models.policies.openvla import OpenVLA
from world_gymnast_ros.models.policies.openvla_checkpoint import is_published
from world_gymnast_ros.models.policies.openvla_policy import OFTL1Policy, OpenVLAPolicy, load_openvla
from world_gymnast_ros.models.world_models.action_dit_world import ActionDiTWorld
from world_gymnast_ros.paths import share_dir
from world_gymnast_ros.tabletop.geometric_judge import GeometricJudge
from world_gymnast_ros.tabletop.locator import Locator
from world_gymnast_ros.tabletop.scene_reader import SceneReader
from world_gymnast_ros.types import Judge

OFF = "off"
"""In the place of the second judge's folder: the first decides alone."""


def checkpoint_dir(path: str | Path | None, kind: str) -> Path:
    """Resolve a checkpoint folder; None or '' means the tiny one shipped under `checkpoints/tiny/<kind>`."""
    directory = Path(path) if path else share_dir() / "checkpoints" / "tiny" / kind
    if not directory.is_dir():
        raise BadCheckpoint(f"checkpoint folder {directory} does not exist; give the path of a folder that holds "
                            f"config.json and model.safetensors, or leave it empty for the shipped tiny {kind}")
    return directory


def load_policy(path: str | Path | None = None, **options: Any) -> OpenVLA | OpenVLAPolicy | OFTL1Policy:
    """Load the VLA: a checkpoint of this package, or a published OpenVLA (its folder, or its name on the hub).

    `options` are of the latter alone: device, dtype, four_bit, and what its recipe leaves open (see `load_openvla`).
    """
    if path and is_published(path):
        return load_openvla(path, **options)
    if options:
        raise BadConfig(f"{', '.join(sorted(options))} can be set for published OpenVLA checkpoints alone, "
                        f"{path or 'the shipped policy'} is none")
    return OpenVLA.from_pretrained(checkpoint_dir(path, "policy"))


def load_world_model(path: str | Path | None = None, locator: str | Path | None = None) -> ActionDiTWorld:
    """Load the world model, which finds things with `locator`, the second judge's folder ("off": the shipped one)."""
    return ActionDiTWorld.from_pretrained(checkpoint_dir(path, "world_model"), objects=load_reader(locator))


def load_reader(locator: str | Path | None = None) -> SceneReader:
    """Load what finds things in captured frames; `locator` as for `load_world_model`."""
    folder = None if str(locator or "") == OFF else locator
    return SceneReader(Locator.from_pretrained(checkpoint_dir(folder, "locator")))


def load_judge(path: str | Path | None = None) -> Reflector:
    """Load the judge."""
    return Reflector.from_pretrained(checkpoint_dir(path, "reflector"))


def load_judges(judge: str | Path | None = None, second: str | Path | None = None) -> Judge:
    """Load the judge that looks and the one that measures, who must agree; `second` "off": the first alone."""
    if str(second or "") == OFF:
        return load_judge(judge)
    return Consensus((load_judge(judge),
                      GeometricJudge(Locator.from_pretrained(checkpoint_dir(second, "locator")))))


def release_hashes(world_model: str | Path | None, judge: str | Path | None, second: str | Path | None
                   ) -> dict[str, str]:
    """Return SHA-256 of the files of a world model and its judges: a release table is of one such set.

    The settings count as much as the weights: a judge's calibration decides which failures it calls successes.
    """
    kinds = [("world_model", world_model, "world_model"), ("judge", judge, "reflector")]
    if str(second or "") != OFF:
        kinds.append(("second_judge", second, "locator"))
    return {f"{kind}_{part}_sha256": sha256_file(checkpoint_dir(path, folder) / name)
            for kind, path, folder in kinds for part, name in (("weights", WEIGHTS), ("config", CONFIG))}


def release_rows(world_model: str | Path | None = None, judge: str | Path | None = None,
                 second: str | Path | None = None) -> dict[str, dict[str, Any]]:
    """Return the rows of the release table of a world model *with its judges*, by task, as they are stored.

    Empty when the folder has none or it was measured with other weights or settings: then nothing is known of this
    set, and nothing is offered for adaptation by default.
    """
    file = checkpoint_dir(world_model, "world_model") / "release.json"
    if not file.is_file():
        return {}
    try:
        release = json.loads(file.read_text(encoding="utf-8"))
        table = release["families"]
        measured = {key: value for key, value in release.items() if key.endswith("_sha256")}
        if measured != release_hashes(world_model, judge, second):
            return {}
        for row in table.values():
            TaskRelease.from_json(row)
        return {str(task): dict(row) for task, row in table.items()}
    except (ValueError, KeyError, TypeError, AttributeError, BadConfig) as error:
        raise BadCheckpoint(f"{file} is not a release table ({error}); make it with `world-gymnast bench replay`"
                            ) from error


def release_table(world_model: str | Path | None = None, judge: str | Path | None = None,
                  second: str | Path | None = None) -> dict[str, TaskRelease]:
    """Return the paired-replay table measured for a world model *with its judges*, by task; empty as `release_rows`."""
    return {task: TaskRelease.from_json(row) for task, row in release_rows(world_model, judge, second).items()}
