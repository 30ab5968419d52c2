"""What this machine is like, in findings: packages, GPU, memory, disk, clock, ROS, checkpoints. Nothing is changed."""
from __future__ import annotations

import ctypes
import importlib.metadata
import importlib.util
import os
import platform
import re
import shutil
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from enum import Enum
from functools import partial
from pathlib import Path

import psutil

from world_gymnast_ros.errors import BadCheckpoint, WorldGymnastError
from world_gymnast_ros.paths import share_dir
from world_gymnast_ros.serving.exchange import is_address
from world_gymnast_ros.serving.openai_client import OpenAIClient
from world_gymnast_ros.serving.remote_world import RemoteWorld

GIB = 2**30
LEAST_MEMORY_GIB = 4.0
"""The shipped models and a graph take about 3."""
LEAST_DISK_GIB, LITTLE_DISK_GIB = 1.0, 10.0
"""An hour of recording takes 5 to 10."""
LITTLE_GPU_GIB = 20.0
"""Below it no 7B policy fits, not even in 4 bits beside a world model."""
UNSYNCHRONISED = 0x0040
"""STA_UNSYNC of adjtimex(2): nothing steers this clock."""
ANSWER_S = 5.0
"""For which a server is waited."""
MEASURE = "world-gymnast bench replay --episodes DIR --write"
PIN = re.compile(r"^([A-Za-z0-9._-]+)==([^\s;]+)", re.MULTILINE)


class State(str, Enum):
    """How much a finding matters."""

    OK = "ok"
    UNKNOWN = "unknown"
    WARNING = "warning"
    PROBLEM = "problem"


@dataclass(frozen=True)
class Finding:
    """One thing that was looked at: what was `found`, and where that is not good, what it `means` and what to do."""

    name: str
    state: State
    found: str
    means: str = ""
    remedy: str = ""


def packages() -> list[Finding]:
    """Compare the installed packages with the lock."""
    version = platform.python_version()
    out = [Finding("python", State.OK, f"{version} on {platform.system()} {platform.machine()}")
           if sys.version_info[:2] in ((3, 11), (3, 12)) else
           Finding("python", State.WARNING, version, "the package is tested with Python 3.11 and 3.12",
                   "make env with PYTHON=python3.11")]
    lock = share_dir() / "requirements.lock"
    if not lock.is_file():
        return [*out, Finding("packages", State.UNKNOWN, f"no {lock.name} in {share_dir()}",
                              "versions cannot be compared", "run from a source tree to compare them")]
    missing, other = [], []
    for name, wanted in PIN.findall(lock.read_text(encoding="utf-8")):
        try:
            found = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            missing.append(name)
            continue
        if found != wanted:
            other.append(f"{name} {found} (lock {wanted})")
    if missing:
        out.append(Finding("packages", State.PROBLEM, f"missing: {', '.join(missing[:12])}",
                           "verbs that need them end with an import error", "make env"))
    if other:
        out.append(Finding("packages", State.WARNING, ", ".join(other[:12]), "these versions were not tested together",
                           "make env, or a fresh environment"))
    return out if len(out) > 1 else [*out, Finding("packages", State.OK, "as in requirements.lock")]


def gpu() -> Finding:
    """Say what torch can compute on."""
    try:
        import torch
    except ImportError as error:
        return Finding("gpu", State.PROBLEM, f"torch cannot be imported ({error})", "no model can be loaded",
                       "make env")
    if torch.cuda.is_available():
        cards = [torch.cuda.get_device_properties(i) for i in range(torch.cuda.device_count())]
        found = "; ".join(f"{c.name}, {c.total_memory / GIB:.0f} GiB" for c in cards)
        if max(c.total_memory for c in cards) >= LITTLE_GPU_GIB * GIB:
            return Finding("gpu", State.OK, f"{found}; torch {torch.__version__}")
        return Finding("gpu", State.WARNING, found, f"with less than {LITTLE_GPU_GIB:g} GiB no 7B policy fits beside a "
                       "world model", "use the small models, or a server for the policy (policy_url) or the judge")
    if Path("/dev/nvidia0").exists() or shutil.which("nvidia-smi"):
        return Finding("gpu", State.PROBLEM, f"an NVIDIA card is here, but torch {torch.__version__} cannot use it",
                       "models compute on the CPU, tens of times slower",
                       "install the build that fits the driver: tools/install_torch; look at nvidia-smi")
    return Finding("gpu", State.WARNING, f"none; torch {torch.__version__} computes on the CPU",
                   "the small models that ship work; published ones are far too slow",
                   "name servers (policy_url, --judge http://...), or use a machine with a GPU")


def memory() -> Finding:
    """Say how much memory is free."""
    now = psutil.virtual_memory()
    found = f"{now.available / GIB:.1f} of {now.total / GIB:.1f} GiB available"
    if now.available >= LEAST_MEMORY_GIB * GIB:
        return Finding("memory", State.OK, found)
    return Finding("memory", State.PROBLEM, found, f"a graph with the shipped models takes about {LEAST_MEMORY_GIB:g} "
                   "GiB; a node may be killed while it runs", "end other programs, or add memory")


def disk(folder: Path) -> Finding:
    """Say how much room there is where sessions and recordings go."""
    there = next(p for p in (folder.resolve(), *folder.resolve().parents) if p.exists())
    free = shutil.disk_usage(there).free / GIB
    found = f"{free:.1f} GiB free for {folder}"
    if not os.access(there, os.W_OK):
        return Finding("disk", State.PROBLEM, f"{there} cannot be written", "nothing can be recorded or adapted there",
                       "name another folder: --out, record_dir, directory in config/adapt.yaml")
    if free < LITTLE_DISK_GIB:
        return Finding("disk", State.PROBLEM if free < LEAST_DISK_GIB else State.WARNING, found,
                       "an hour of recording takes 5 to 10 GiB; a full disk ends the recording",
                       "free space, or name a folder on another disk")
    return Finding("disk", State.OK, found)


def clock() -> Finding:
    """Say whether something keeps this machine's clock right."""
    status = clock_status()
    if status is None:
        return Finding("clock", State.UNKNOWN, "the system does not say", "stamps of other machines may not fit",
                       "chronyc tracking, or timedatectl")
    if status & UNSYNCHRONISED:
        return Finding("clock", State.WARNING, "not synchronised", "where camera and policy run on different machines, "
                       "frames look too old or come from the future, and the arm is not let act",
                       "start chrony or systemd-timesyncd on every machine; on a single one nothing is needed")
    return Finding("clock", State.OK, "synchronised")


def clock_status() -> int | None:
    """Return the status bits of adjtimex(2), which changes nothing when asked for nothing; None where it fails."""
    buffer = (ctypes.c_long * 64)()  # longer than struct timex; modes, its first word, is 0: only read
    try:
        if ctypes.CDLL(None, use_errno=True).adjtimex(ctypes.byref(buffer)) < 0:
            return None
    except (OSError, AttributeError):
        return None
    return int(ctypes.cast(ctypes.byref(buffer, 5 * ctypes.sizeof(ctypes.c_long)),
                           ctypes.POINTER(ctypes.c_int)).contents.value)


def ros() -> Finding:
    """Say which ROS 2 nodes would run with, without importing it."""
    env = os.environ
    where = [name for name in ("rclpy", "world_gymnast_ros.msg") if _spec(name) is None]
    distro = env.get("ROS_DISTRO") or next(
        (f"{name.split('-')[1]} (wheels)" for name in ("ros-jazzy-rclpy",) if _installed(name)), "unknown")
    found = (f"{distro}, domain {env.get('ROS_DOMAIN_ID', '0')}, "
             f"discovery {env.get('ROS_AUTOMATIC_DISCOVERY_RANGE', 'LOCALHOST (our default)')}, "
             f"{env.get('RMW_IMPLEMENTATION', 'rmw_fastrtps_cpp (default)')}")
    if where:
        return Finding("ros", State.PROBLEM, f"{found}; not there: {', '.join(where)}", "no node can start; the verbs "
                       "without ROS work", "make env, or build the workspace with colcon and source install/setup.bash")
    if env.get("ROS_DISTRO") and _installed("ros-jazzy-rclpy"):
        return Finding("ros", State.WARNING, f"{found}; the wheels of ROS 2 Jazzy are installed too",
                       "two installations mix, and messages may not fit",
                       "use a shell where no ROS is sourced, or a workspace without the wheels")
    return Finding("ros", State.OK, found)


def _spec(name: str) -> object:
    try:
        return importlib.util.find_spec(name)
    except ImportError:
        return None


def _installed(name: str) -> bool:
    try:
        importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return False
    return True


def models(policy: str, world_model: str, judges: str | Sequence[str]) -> list[Finding]:
    """Find every model by its name and hash its files; ask servers whether they are there; no weights are loaded."""
    from world_gymnast_ros.loading import load, release
    out = [_model(f"policy {policy or load.SHIPPED[load.POLICY]}", partial(_policy, policy)),
           _model(f"world model {world_model or load.SHIPPED[load.WORLD_MODEL]}", partial(_world_model, world_model)),
           *(_model(f"judge {name}", partial(_judge, name)) for name in load.judge_names(judges))]
    if any(f.state is State.PROBLEM for f in out):
        return out
    try:
        measured = release.release_table(world_model, judges)
        tasks = sorted(task for task, row in measured.items() if release.is_offered(row))
        others = "; ".join(f"{name}: {', '.join(t)}" for name, t in release.offered(world_model).items())
    except WorldGymnastError as error:
        return [*out, Finding("release", State.PROBLEM, str(error), "no task is offered for adaptation", MEASURE)]
    if tasks:
        return [*out, Finding("release", State.OK, f"offered for adaptation: {', '.join(tasks)}")]
    found = f"measured together, none well enough: {', '.join(sorted(measured))}" if measured else \
        "these models were not measured together"
    return [*out, Finding("release", State.WARNING, found, "no task is offered for adaptation",
                          f"name judges with which some are ({others}), or: {MEASURE}" if others else MEASURE)]


def _model(name: str, tell: Callable[[], str]) -> Finding:
    try:
        return Finding(name, State.OK, tell())
    except (WorldGymnastError, OSError) as error:
        return Finding(name, State.PROBLEM, str(error), "sessions and nodes that name it will not start",
                       "fetch its files again, or name another")


def _policy(name: str) -> str:
    from world_gymnast_ros.loading import load, release
    from world_gymnast_ros.models.policies import openvla_checkpoint
    if name and load.find(name) is None and openvla_checkpoint.is_published(name):
        folder = openvla_checkpoint.find_folder(name)
        openvla_checkpoint.weight_files(folder)
        return _short(release.model_hashes(folder))
    return _checkpoint(load.checkpoint_dir(name, load.POLICY))


def _world_model(name: str) -> str:
    from world_gymnast_ros.loading import load
    if is_address(name):
        return f"the server has {RemoteWorld(name, ANSWER_S).name}"
    return _checkpoint(load.checkpoint_dir(name, load.WORLD_MODEL))


def _judge(name: str) -> str:
    from world_gymnast_ros.loading.release import judge_hashes
    if not is_address(name):
        return _short(judge_hashes(name))
    listed = OpenAIClient(name, timeout_s=ANSWER_S, retries=0).models()
    return f"the server lists {', '.join(listed[:5]) or 'no model'}"


def _checkpoint(path: Path) -> str:
    """Hash a checkpoint's files, and read the names of its tensors: a truncated file is found. Raises BadCheckpoint."""
    from safetensors import safe_open

    from world_gymnast_ros.loading import release
    for file in sorted(path.glob("*.safetensors")) if path.is_dir() else ():
        try:
            with safe_open(file, "numpy") as tensors:
                tensors.keys()
        except Exception as error:  # its library raises a type of its own
            raise BadCheckpoint(f"{file} is no whole safetensors file ({error})") from error
    hashes = release.model_hashes(path)
    if not hashes:
        raise BadCheckpoint(f"{path} holds no checkpoint")
    return _short(hashes)


def _short(hashes: dict[str, str]) -> str:
    return ", ".join(f"{file} {digest[:12]}" for file, digest in list(hashes.items())[:6])
