"""Load a policy, a world model or a judge: one table from what a folder, a file or a URL holds to a class.

Everybody else names protocols (`types.py`) and asks here. A name is a path, the name of a shipped checkpoint
("tiny/policy"), or what the class itself knows to find (a hub name of a published policy, the URL of a server).
"""
from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch

from world_gymnast_ros.adaptation.trust import TaskRelease
from world_gymnast_ros.errors import BadCheckpoint, BadConfig
from world_gymnast_ros.files import sha256_file
from world_gymnast_ros.models.checkpoint import CONFIG, read_config
from world_gymnast_ros.models.judges.consensus import Consensus
from world_gymnast_ros.models.judges.reflector import Reflector, ReflectorConfig
from world_gymnast_ros.models.policies.openvla import OpenVLA
from world_gymnast_ros.models.policies.openvla_checkpoint import is_published
from world_gymnast_ros.models.policies.openvla_policy import load_openvla
from world_gymnast_ros.models.policies.vla_network import OpenVLAConfig
from world_gymnast_ros.models.world_models.action_dit import ActionDiTConfig
from world_gymnast_ros.models.world_models.action_dit_world import ActionDiTWorld
from world_gymnast_ros.models.world_models.worldgym import WorldGym
from world_gymnast_ros.models.world_models.worldgym_files import is_worldgym, read_settings
from world_gymnast_ros.models.world_models.worldgym_settings import WorldGymSettings
from world_gymnast_ros.objects import ObjectDynamics
from world_gymnast_ros.paths import share_dir
from world_gymnast_ros.robot.actions import RobotLimits
from world_gymnast_ros.tabletop.geometric_judge import GeometricJudge
from world_gymnast_ros.tabletop.locator import Locator, LocatorConfig
from world_gymnast_ros.tabletop.scene_reader import SceneReader
from world_gymnast_ros.types import Judge, TrainablePolicy, WorldModel

POLICY, WORLD_MODEL, JUDGE = "policy", "world model", "judge"
SHIPPED = {POLICY: "tiny/policy", WORLD_MODEL: "tiny/world_model", JUDGE: "tiny/reflector"}
"""What an empty name means."""
GEOMETRIC = "tiny/locator"
DEFAULT_JUDGES = f"{SHIPPED[JUDGE]}, {GEOMETRIC}"
AUTO = "auto"
DTYPES = {AUTO: None, "float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
RELEASE = "release.json"

Loader = Callable[[Path, str, "torch.dtype | None"], Any]


def _published_policy(where: str | Path, device: str, dtype: torch.dtype | None) -> Any:
    names = {number: name for name, number in DTYPES.items()}
    return load_openvla(where, device=device, dtype=None if dtype is None else names[dtype])


LOADERS: dict[tuple[str, str], Loader] = {
    (POLICY, OpenVLAConfig.model_type): lambda where, device, dtype: OpenVLA.from_pretrained(where, device),
    (POLICY, "openvla"): _published_policy,
    (WORLD_MODEL, ActionDiTConfig.model_type): ActionDiTWorld.from_pretrained,
    (WORLD_MODEL, WorldGymSettings.model_type): WorldGym.from_pretrained,
    (JUDGE, ReflectorConfig.model_type): lambda where, device, dtype: Reflector.from_pretrained(where, device),
    (JUDGE, LocatorConfig.model_type): lambda where, device, dtype: GeometricJudge(
        Locator.from_pretrained(where, device)),
}
"""(kind, what a folder holds) -> a loader (path, device, dtype or None for the class's own choice)."""


def resolve_device(device: str) -> str:
    """Return a torch device: "auto" is the GPU where there is one. BadConfig where it cannot be used."""
    if device == AUTO:
        return "cuda" if torch.cuda.is_available() else "cpu"
    try:
        torch.zeros(1, device=device)
    except (RuntimeError, AssertionError) as error:  # an unknown name; a build without it; no such device here
        raise BadConfig(f"device {device!r} cannot be used ({str(error).splitlines()[0]}); give cpu or auto") from error
    return device


def _find(name: str) -> Path | None:
    """Return what a path or the name of a shipped checkpoint stands for; None where there is no such thing."""
    return next((path for path in (Path(name), share_dir() / "checkpoints" / name) if path.exists()), None)


def checkpoint_dir(where: str | Path | None, kind: str = POLICY) -> Path:
    """Return the folder or file of a checkpoint; '' or None means the shipped one of its kind."""
    name = str(where or SHIPPED[kind])
    if (path := _find(name)) is not None:
        return path
    shipped = sorted(str(p.parent.relative_to(share_dir() / "checkpoints"))
                     for p in (share_dir() / "checkpoints").glob(f"*/*/{CONFIG}"))
    raise BadCheckpoint(f"checkpoint folder {name} does not exist; give the path of a folder that holds a {kind}, or a "
                        f"shipped one: {', '.join(shipped)}")


def holds(where: Path) -> str:
    """Return what a folder or file holds, as its config.json says; '' where nothing says so."""
    if is_worldgym(where):
        return WorldGymSettings.model_type
    try:
        values = json.loads((where / CONFIG).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return ""
    return str(values.get("model_type", "")) if isinstance(values, dict) else ""


def load(kind: str, where: str | Path | None = "", device: str = AUTO, dtype: str = AUTO) -> Any:
    """Load a checkpoint of a kind (POLICY, WORLD_MODEL, JUDGE) onto a device.

    `dtype`: auto (the class's own choice), float32, bfloat16 or float16. BadCheckpoint says what was found and which
    kinds are known; BadConfig names a wrong device or dtype.
    """
    if dtype not in DTYPES:
        raise BadConfig(f"dtype is {dtype!r}; give {', '.join(DTYPES)}")
    if kind == POLICY and where and _find(str(where)) is None and is_published(where):  # a name on the hub
        return _published_policy(where, resolve_device(device), DTYPES[dtype])
    path = checkpoint_dir(where, kind)
    found = "openvla" if kind == POLICY and is_published(path) else holds(path)
    loader = LOADERS.get((kind, found))
    if loader is None:
        known = ", ".join(sorted(name for other, name in LOADERS if other == kind))
        what = f"a '{found}'" if found else f"no {CONFIG} that names a model_type"
        raise BadCheckpoint(f"{path} holds {what}; as a {kind} these can be loaded: {known}")
    return loader(path, resolve_device(device), DTYPES[dtype])


def load_policy(where: str | Path | None = "", device: str = AUTO, dtype: str = AUTO) -> TrainablePolicy:
    """Load a policy that acts, and whose adapter can be trained."""
    policy: TrainablePolicy = load(POLICY, where, device, dtype)
    return policy


def judge_names(names: str | Sequence[str]) -> tuple[str, ...]:
    """Return the names of judges, given one by one or in one text with commas; empty means those that ship."""
    words = names.split(",") if isinstance(names, str) else [str(n) for n in names]
    found = tuple(w.strip() for w in words if w.strip())
    return found or judge_names(DEFAULT_JUDGES)


def geometric_judge(names: str | Sequence[str]) -> str:
    """Return the name of the geometric judge among several; '' where there is none."""
    for name in judge_names(names):
        if holds(checkpoint_dir(name, JUDGE)) == LocatorConfig.model_type:
            return name
    return ""


def load_judges(names: str | Sequence[str] = "", device: str = AUTO, dtype: str = AUTO,
                limits: RobotLimits | None = None) -> Judge:
    """Load judges; several are a consensus, in the order in which they are named. `limits`: the robot's."""
    judges: tuple[Judge, ...] = tuple(load(JUDGE, name, device, dtype) for name in judge_names(names))
    if limits is not None:
        judges = tuple(j.limited(limits) if isinstance(j, GeometricJudge) else j for j in judges)
    return judges[0] if len(judges) == 1 else Consensus(judges)


def load_objects(where: str = GEOMETRIC, device: str = AUTO) -> ObjectDynamics:
    """Load what finds movable objects in captured frames."""
    return SceneReader(Locator.from_pretrained(checkpoint_dir(where or GEOMETRIC, JUDGE), resolve_device(device)))


def load_world_model(where: str | Path | None = "", judges: str | Sequence[str] = "", device: str = AUTO,
                     dtype: str = AUTO, limits: RobotLimits | None = None) -> WorldModel:
    """Load a world model. One that draws movable objects on a background shares the camera and the finder of objects
    with the geometric judge among `judges` (none: the shipped one). `limits`: the robot's, which hold in imagination
    too; BadConfig where they are wider than what the model was trained on."""
    world = load(WORLD_MODEL, where, device, dtype)
    if isinstance(world, ActionDiTWorld) and world.config.plate:
        world = world.with_objects(load_objects(geometric_judge(judges), device))
    limited: WorldModel = world if limits is None else world.limited(limits)
    return limited


def frame_height_px(world_model: str | Path | None) -> int:
    """Return the height of the frames that a world model draws, without loading its weights."""
    where = checkpoint_dir(world_model, WORLD_MODEL)
    if is_worldgym(where):
        return read_settings(where).frame_size[0]
    return ActionDiTConfig.from_dict(read_config(where, ActionDiTConfig.model_type)).image_size


# ---- how far a set of models may be believed ---------------------------------------------------------------------


def release_file(world_model: str | Path | None) -> Path:
    """Return where the release table of a world model lies: beside its weights."""
    path = checkpoint_dir(world_model, WORLD_MODEL)
    return (path if path.is_dir() else path.parent) / RELEASE


def model_hashes(where: Path) -> dict[str, str]:
    """Return SHA-256 of a checkpoint's files: settings count as much as weights, for a judge's calibration decides
    which failures it calls successes."""
    files = [where] if where.is_file() else sorted(
        p for p in where.iterdir() if p.suffix in (".safetensors", ".pt", ".pth") or p.name == CONFIG)
    return {file.name: sha256_file(file) for file in files}


def release_hashes(world_model: str | Path | None, judges: str | Sequence[str]) -> dict[str, Any]:
    """Return the hashes of a world model and its judges: a release table is of one such set."""
    return {"world_model": model_hashes(checkpoint_dir(world_model, WORLD_MODEL)),
            "judges": [model_hashes(checkpoint_dir(name, JUDGE)) for name in judge_names(judges)]}


def release_rows(world_model: str | Path | None = "", judges: str | Sequence[str] = "") -> dict[str, dict[str, Any]]:
    """Return the rows of the release table of a world model *with its judges*, by task, as they are stored.

    Empty when the folder has none or it was measured with other weights or settings: then nothing is known of this
    set, and nothing is offered for adaptation by default.
    """
    file = release_file(world_model)
    if not file.is_file():
        return {}
    try:
        release = json.loads(file.read_text(encoding="utf-8"))
        table = release["tasks"]
        if release["sha256"] != release_hashes(world_model, judges):
            return {}
        for row in table.values():
            TaskRelease.from_json(row)
        return {str(task): dict(row) for task, row in table.items()}
    except (ValueError, KeyError, TypeError, AttributeError, BadConfig) as error:
        raise BadCheckpoint(f"{file} is not a release table ({error!r}); make it with `world-gymnast bench replay`"
                            ) from error


def release_table(world_model: str | Path | None = "", judges: str | Sequence[str] = "") -> dict[str, TaskRelease]:
    """Return the paired-replay table measured for a world model *with its judges*, by task; empty as `release_rows`."""
    return {task: TaskRelease.from_json(row) for task, row in release_rows(world_model, judges).items()}
