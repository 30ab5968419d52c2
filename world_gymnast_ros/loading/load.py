"""Load a policy, a world model or a judge: one table from what a folder, a file or a URL holds to a class.

Everybody else names protocols (`types.py`) and asks here. A name is a path, the name of a shipped checkpoint
("tiny/policy"), a hub name of a published policy or of an image-text model, or the address of a server that judges.
"""
from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, cast

import torch

from world_gymnast_ros.errors import BadCheckpoint, BadConfig
from world_gymnast_ros.evaluation.scene_judge import SceneJudge
from world_gymnast_ros.loading import names as named
from world_gymnast_ros.loading.names import missing, shipped
from world_gymnast_ros.models.checkpoint import CONFIG, read_config
from world_gymnast_ros.models.hub import is_hub_name
from world_gymnast_ros.models.image_text import LocalImageText, RemoteImageText
from world_gymnast_ros.models.inpainting import InpaintingEditor
from world_gymnast_ros.models.judges.consensus import Consensus
from world_gymnast_ros.models.judges.reflector import Reflector, ReflectorConfig
from world_gymnast_ros.models.judges.remote import RemoteConfig, RemoteJudge
from world_gymnast_ros.models.judges.vlm import VLMConfig, VLMJudge
from world_gymnast_ros.models.judges.vlm_processor import is_image_text_model
from world_gymnast_ros.models.policies.openvla import OpenVLA
from world_gymnast_ros.models.policies.openvla_checkpoint import is_published
from world_gymnast_ros.models.policies.openvla_policy import load_openvla
from world_gymnast_ros.models.policies.regression import RegressionConfig, RegressionPolicy
from world_gymnast_ros.models.policies.vla_network import OpenVLAConfig
from world_gymnast_ros.models.world_models.action_dit import ActionDiTConfig
from world_gymnast_ros.models.world_models.action_dit_world import ActionDiTWorld
from world_gymnast_ros.models.world_models.cosmos3 import Cosmos3World
from world_gymnast_ros.models.world_models.cosmos3_files import is_cosmos3
from world_gymnast_ros.models.world_models.cosmos3_settings import Cosmos3Settings
from world_gymnast_ros.models.world_models.moving_background import FOLDER as MOVING_BACKGROUND
from world_gymnast_ros.models.world_models.worldgym import WorldGym
from world_gymnast_ros.models.world_models.worldgym_files import is_worldgym, read_settings
from world_gymnast_ros.models.world_models.worldgym_settings import WorldGymSettings
from world_gymnast_ros.objects import ObjectDynamics
from world_gymnast_ros.robot.actions import RobotLimits
from world_gymnast_ros.robot.camera_extrinsics import StoredCamera
from world_gymnast_ros.serving.client import HttpPolicy
from world_gymnast_ros.serving.exchange import is_address
from world_gymnast_ros.serving.image_edits import ImageEditsClient
from world_gymnast_ros.serving.remote_world import TIMEOUT_S, RemoteWorld
from world_gymnast_ros.tabletop.calibration import CalibratedJudge
from world_gymnast_ros.tabletop.locator import Locator, LocatorConfig
from world_gymnast_ros.tabletop.scene_reader import SceneReader
from world_gymnast_ros.types import ImageEditor, ImageTextModel, Judge, TrainablePolicy, WorldModel

POLICY, WORLD_MODEL, JUDGE, find = named.POLICY, named.WORLD_MODEL, named.JUDGE, named.find
SHIPPED = {POLICY: "tiny/policy", WORLD_MODEL: "tiny/world_model", JUDGE: "tiny/reflector"}
"""What an empty name means."""
GEOMETRIC = "tiny/locator"
DEFAULT_JUDGE = "tiny/reflector_alone"
"""The learned judge with thresholds for deciding alone: geometry of small objects is an option."""
TABLETOP_JUDGES = (SHIPPED[JUDGE], GEOMETRIC)
"""That option, `names.TABLETOP`: a geometric judge, and the learned one with a veto beside it."""
AUTO = "auto"
POLICY_TIMEOUT_S = 60.0
"""For one chunk of a policy's server, in imagination: no arm waits."""
DTYPES = {AUTO: None, "float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}

Loader = Callable[[Path, str, "torch.dtype | None"], Any]


def _published_policy(where: str | Path, device: str, dtype: torch.dtype | None, four_bit: bool = False) -> Any:
    names = {number: name for name, number in DTYPES.items()}
    return load_openvla(where, device=device, dtype=None if dtype is None else names[dtype], four_bit=four_bit,
                        checkpointing=True)


LOADERS: dict[tuple[str, str], Loader] = {
    (POLICY, OpenVLAConfig.model_type): lambda where, device, dtype: OpenVLA.from_pretrained(where, device),
    (POLICY, RegressionConfig.model_type): lambda where, device, dtype: RegressionPolicy.from_pretrained(where, device),
    (POLICY, "openvla"): _published_policy,
    (WORLD_MODEL, ActionDiTConfig.model_type): ActionDiTWorld.from_pretrained,
    (WORLD_MODEL, WorldGymSettings.model_type): WorldGym.from_pretrained,
    (WORLD_MODEL, Cosmos3Settings.model_type): Cosmos3World.from_pretrained,
    (JUDGE, ReflectorConfig.model_type): Reflector.from_pretrained,
    (JUDGE, LocatorConfig.model_type): lambda where, device, dtype: CalibratedJudge(
        Locator.from_pretrained(where, device)),
    (JUDGE, VLMConfig.model_type): VLMJudge.from_pretrained,
    (JUDGE, RemoteConfig.model_type): lambda where, device, dtype: RemoteJudge.from_pretrained(where),
}
"""(kind, what a folder holds) -> a loader (path, device, dtype or None for the class's own choice)."""


def resolve_dtype(dtype: str) -> torch.dtype | None:
    """Return a number type by its name; None for "auto", the class's own choice. BadConfig where it is unknown."""
    if dtype not in DTYPES:
        raise BadConfig(f"dtype is {dtype!r}; give {', '.join(DTYPES)}")
    return DTYPES[dtype]


def resolve_device(device: str) -> str:
    """Return a torch device: "auto" is the GPU where there is one. BadConfig where it cannot be used."""
    if device == AUTO:
        return "cuda" if torch.cuda.is_available() else "cpu"
    try:
        torch.zeros(1, device=device)
    except (RuntimeError, AssertionError) as error:  # an unknown name; a build without it; no such device here
        raise BadConfig(f"device {device!r} cannot be used ({str(error).splitlines()[0]}); give cpu or auto") from error
    return device


def checkpoint_dir(where: str | Path | None, kind: str = POLICY) -> Path:
    """Return the folder or file of a checkpoint; '' or None means the shipped one of its kind."""
    name = str(where or SHIPPED[kind])
    if (path := find(name)) is not None:
        return path
    raise missing(name, kind)


def holds(where: Path) -> str:
    """Return what a folder or file holds, as its config.json says; '' where nothing says so."""
    if is_worldgym(where):
        return WorldGymSettings.model_type
    if is_cosmos3(where):  # the repository itself, whose own config.json names another model
        return Cosmos3Settings.model_type
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
    resolve_dtype(dtype)
    if kind == POLICY and where and find(str(where)) is None and is_published(where):  # a name on the hub
        return _published_policy(where, resolve_device(device), DTYPES[dtype])
    if kind == POLICY and is_address(where):
        return HttpPolicy(str(where), POLICY_TIMEOUT_S)
    if kind == JUDGE and where and find(str(where)) is None:
        if is_address(where):
            return RemoteJudge.from_pretrained(where)
        if is_hub_name(where):
            try:
                return VLMJudge.from_pretrained(where, resolve_device(device), DTYPES[dtype])
            except BadCheckpoint as error:
                raise BadCheckpoint(f"{error}; what ships is {shipped()}") from error
    path = checkpoint_dir(where, kind)
    found = "openvla" if kind == POLICY and is_published(path) else holds(path)
    loader = LOADERS.get((kind, found))
    if loader is None and kind == JUDGE and is_image_text_model(found):
        loader = VLMJudge.from_pretrained
    if loader is None:
        known = ", ".join(sorted(name for other, name in LOADERS if other == kind))
        what = f"a '{found}'" if found else f"no {CONFIG} that names a model_type"
        raise BadCheckpoint(f"{path} holds {what}; as a {kind} these can be loaded: {known}"
                            f"{', or any image-text model of transformers' if kind == JUDGE else ''}")
    return loader(path, resolve_device(device), DTYPES[dtype])


def load_policy(where: str | Path | None = "", device: str = AUTO, dtype: str = AUTO, four_bit: bool = False
                ) -> TrainablePolicy:
    """Load a policy that acts, and whose adapter can be trained. `four_bit`: with the language model of a published one
    in NF4; BadConfig for another."""
    if four_bit:
        path = find(str(where or SHIPPED[POLICY])) or Path(str(where))
        if not is_published(path):
            raise BadConfig(f"four_bit is for published policies (openvla/openvla-7b, its fine-tunes), and {path} is "
                            "none; leave it out")
        return cast(TrainablePolicy, _published_policy(path, resolve_device(device), resolve_dtype(dtype), True))
    policy: TrainablePolicy = load(POLICY, where, device, dtype)
    return policy


def judge_names(names: str | Sequence[str]) -> tuple[str, ...]:
    """Return the names of judges, given one by one or in one text with commas; empty means the default, "tabletop" the
    two that know small objects on a table."""
    words = names.split(",") if isinstance(names, str) else [str(n) for n in names]
    given = [w.strip() for w in words if w.strip()]
    found = tuple(name for w in given for name in (TABLETOP_JUDGES if w == named.TABLETOP else (w,)))
    return found or (DEFAULT_JUDGE,)


def geometric_judge(names: str | Sequence[str]) -> str:
    """Return the name of the geometric judge among several; '' where there is none."""
    for name in judge_names(names):
        path = find(name)
        if path is None and not (is_address(name) or is_hub_name(name)):
            checkpoint_dir(name, JUDGE)  # says what is wrong
        if path is not None and holds(path) == LocatorConfig.model_type:
            return name
    return ""


def is_learned_judge(name: str) -> bool:
    """Tell whether a judge's name stands for one whose weights learn from recordings."""
    asked = find(name) is None and (is_address(name) or is_hub_name(name))
    return not asked and holds(checkpoint_dir(name, JUDGE)) == ReflectorConfig.model_type


def load_judges(names: str | Sequence[str] = "", device: str = AUTO, dtype: str = AUTO,
                limits: RobotLimits | None = None, camera: StoredCamera | None = None) -> Judge:
    """Load judges; several are a consensus, in the order in which they are named. `limits`: the robot's. `camera`:
    where a calibration found it; None: where each geometric judge knows it."""
    judges: tuple[Judge, ...] = tuple(load(JUDGE, name, device, dtype) for name in judge_names(names))
    if camera is not None:
        judges = tuple(type(j)(j.locator.seen_from(camera)) if isinstance(j, CalibratedJudge) else j for j in judges)
    if limits is not None:
        judges = tuple(j.limited(limits) if isinstance(j, CalibratedJudge) else j for j in judges)
    return judges[0] if len(judges) == 1 else Consensus(judges)


def load_image_text(where: str, device: str = AUTO, dtype: str = AUTO, timeout_s: float = 120.0) -> ImageTextModel:
    """Load a model that looks at images and answers in words: a folder or hub name of an image-text model, or the
    address of an OpenAI-compatible server; `timeout_s` holds for one answer. BadCheckpoint or BadConfig."""
    if is_address(where):
        return RemoteImageText(where, timeout_s)
    return LocalImageText.from_pretrained(where, resolve_device(device), resolve_dtype(dtype), timeout_s)


def load_editor(where: str, device: str = AUTO, dtype: str = AUTO, timeout_s: float = 120.0) -> ImageEditor:
    """Load what paints into captured frames: a folder or hub name of a diffusers inpainting pipeline, or the address of
    a server with the images endpoint of OpenAI; `timeout_s` holds for one image. BadCheckpoint or BadConfig."""
    if is_address(where):
        return ImageEditsClient(where, timeout_s=timeout_s, concurrency=1)
    return InpaintingEditor.from_pretrained(where, resolve_device(device), resolve_dtype(dtype), timeout_s)


def load_scene_judge(where: str | Path, device: str = AUTO) -> SceneJudge:
    """Load a judge that a scene can be taught; BadCheckpoint where the folder holds another."""
    judge = load(JUDGE, where, device)
    if not isinstance(judge, CalibratedJudge):
        raise BadCheckpoint(f"the judge {where} learns no scene by settings alone; name a geometric one ({GEOMETRIC})")
    return judge


def load_objects(where: str = GEOMETRIC, device: str = AUTO, camera: StoredCamera | None = None) -> ObjectDynamics:
    """Load what finds movable objects in captured frames; `camera` as of `load_judges`."""
    locator = Locator.from_pretrained(checkpoint_dir(where or GEOMETRIC, JUDGE), resolve_device(device))
    return SceneReader(locator if camera is None else locator.seen_from(camera))


def needs_state(world_model: str | Path | None, judges: str | Sequence[str]) -> str:
    """Return what cannot go without the arm's state at a captured frame, in words; '' where nothing is known to."""
    if geometric_judge(judges):
        return "the geometric judge"
    return "the world model, which moves what the arm takes along," if moves_background(world_model) else ""


def moves_background(world_model: str | Path | None) -> bool:
    """Return whether a world model here has learned to move its background."""
    return not is_address(world_model) and (checkpoint_dir(world_model, WORLD_MODEL) / MOVING_BACKGROUND).is_dir()


def object_finder(world_model: str | Path | None, judges: str | Sequence[str], device: str = AUTO
                  ) -> ObjectDynamics | None:
    """Load what finds objects for a world model as `load_world_model` gives it with these judges; None where its
    background moves as it has learned."""
    geometric = geometric_judge(judges)
    return load_objects(geometric, device) if geometric or not moves_background(world_model) else None


def load_world_model(where: str | Path | None = "", judges: str | Sequence[str] = "", device: str = AUTO,
                     dtype: str = AUTO, limits: RobotLimits | None = None, timeout_s: float = TIMEOUT_S,
                     camera: StoredCamera | None = None) -> WorldModel:
    """Load a world model, or ask the server at an address (http://HOST:PORT); `timeout_s`: longest wait for its answer.

    One that draws movable objects on a background shares the camera and the finder of objects with the geometric judge
    among `judges`; where there is none, it moves its background as it has learned to (one that has not: by the shipped
    finder). `limits`: the robot's, which hold in imagination too; BadConfig where they are wider than what the model
    was trained on. `camera`: where a calibration found it; None: where the geometric judge or the model knows it."""
    world = RemoteWorld(str(where), timeout_s) if is_address(where) else load(WORLD_MODEL, where, device, dtype)
    geometric = geometric_judge(judges)
    if isinstance(world, ActionDiTWorld) and world.config.plate and (geometric or world.moving is None):
        world = world.with_objects(load_objects(geometric, device, camera))
    elif isinstance(world, ActionDiTWorld) and camera is not None:
        world.seen_from(camera.projection())
    limited: WorldModel = world if limits is None else world.limited(limits)
    return limited


def frame_size(world_model: str | Path | None) -> tuple[int, int]:
    """Return (H, W) of the frames that a world model draws, px, without loading its weights."""
    if is_address(world_model):
        return RemoteWorld(str(world_model)).frame_size
    where = checkpoint_dir(world_model, WORLD_MODEL)
    if is_worldgym(where):
        return read_settings(where).frame_size
    if holds(where) == Cosmos3Settings.model_type:
        return Cosmos3Settings.read(where).frame_size
    size = ActionDiTConfig.from_dict(read_config(where, ActionDiTConfig.model_type)).image_size
    return size, size
