"""Let pip build a ROS interface package with the CMakeLists.txt that colcon uses.

Imported by `setup.py` here and in `interfaces/interbotix_xs_msgs`. The ROS 2 packages come from wheels in the
environment that pip builds in.
"""
import filecmp
import os
import shutil
import subprocess
import sys
import sysconfig
from pathlib import Path

from setuptools import Distribution
from setuptools.command.build_ext import build_ext

SHARED_FOLDERS = ("checkpoints", "config", "docs")
"""Folders of share/<package> that an editable install leaves in the source tree, so that no stale copy is read.

launch/ is none of them: `ros2 launch` looks for launch files below share/ alone."""
KINDS = ("msg", "srv", "action")


def ros_prefixes() -> list[str]:
    """List the prefixes (virtual environment, or pip's build overlay) that hold the ROS wheels' share/ and lib/."""
    found: list[str] = []
    for entry in [*sys.path, sysconfig.get_path("purelib")]:
        for up in Path(entry).resolve().parents:
            if (up / "share" / "ament_index").is_dir() and str(up) not in found:
                found.append(str(up))
    return found + [p for p in os.environ.get("AMENT_PREFIX_PATH", "").split(os.pathsep) if p and p not in found]


def run_cmake(source: Path, build: Path, stage: Path) -> None:
    """Configure, build and install the package at `source` into `stage`, reusing `build` where it still fits."""
    prefixes = os.pathsep.join(ros_prefixes())
    # A CMake cache remembers the prefixes and the interpreter it found: another environment starts afresh.
    made_for = build / "made_for.txt"
    wanted = f"{source}\n{prefixes}\n{sys.executable}\n"
    if not made_for.is_file() or made_for.read_text() != wanted:
        shutil.rmtree(build, ignore_errors=True)
        build.mkdir(parents=True)
        made_for.write_text(wanted)
    shutil.rmtree(stage, ignore_errors=True)
    env = {**os.environ, "AMENT_PREFIX_PATH": prefixes, "CMAKE_PREFIX_PATH": prefixes}
    configure = ["cmake", "-S", str(source), "-B", str(build), f"-DCMAKE_INSTALL_PREFIX={stage}",
                 f"-DPython3_EXECUTABLE={sys.executable}", "-DBUILD_TESTING=OFF", "-DCMAKE_BUILD_TYPE=Release"]
    if shutil.which("ninja"):
        configure += ["-G", "Ninja"]
    subprocess.check_call(configure, env=env)
    subprocess.check_call(["cmake", "--build", str(build), "--parallel"], env=env)
    subprocess.check_call(["cmake", "--install", str(build)], env=env, stdout=subprocess.DEVNULL)


class InterfaceDistribution(Distribution):
    """A distribution whose data files reach editable wheels too."""

    def has_data(self) -> bool:
        """Answer to the name that setuptools' editable wheel asks for before it installs data files."""
        return self.has_data_files()


class BuildInterfaces(build_ext):
    """Generate msg, srv and action of the package named like the distribution, and lay them into the wheel."""

    def run(self) -> None:
        name = self.distribution.get_name().replace("-", "_")
        source = Path(self.distribution.src_root or os.curdir).resolve()
        work = source / "build" / f"pip-{sys.implementation.cache_tag}"
        stage = work / "stage"
        run_cmake(source, work / "cmake", stage)
        editable = bool(getattr(self, "editable_mode", False) or self.inplace)
        site = next(stage.glob("lib/python3*/site-packages")) / name
        self._copy_generated(site, source / name if editable else Path(self.build_lib).resolve() / name)
        self._add_data_files(stage, name, editable)

    @staticmethod
    def _copy_generated(site: Path, target: Path) -> None:
        generated = [*site.glob("*.so"), *(path for kind in KINDS for path in (site / kind).glob("*.py"))]
        if not (target / "__init__.py").exists():
            generated.append(site / "__init__.py")
        wanted = {target / path.relative_to(site): path for path in generated}
        stale = {*target.glob("*.so"), *(path for kind in KINDS for path in (target / kind).glob("*.py"))} - set(wanted)
        for path in stale:
            path.unlink()
        for out, path in wanted.items():
            # An editable install writes into the source tree, where a running node may have the same file open.
            if out.is_file() and filecmp.cmp(path, out, shallow=False):
                continue
            out.parent.mkdir(parents=True, exist_ok=True)
            fresh = out.with_name(out.name + ".new")
            shutil.copy2(path, fresh)
            fresh.replace(out)

    def _add_data_files(self, stage: Path, name: str, editable: bool) -> None:
        files = self.distribution.data_files = list(self.distribution.data_files or [])
        left_out = {Path("share", name, folder) for folder in SHARED_FOLDERS} if editable else set()
        for top in ("lib", "share", "include"):
            for path in sorted((stage / top).rglob("*")):
                place = path.relative_to(stage)
                if not path.is_file() or {"site-packages", "__pycache__"} & set(place.parts):
                    continue
                if left_out & set(place.parents):
                    continue
                files.append((str(place.parent), [str(path)]))
