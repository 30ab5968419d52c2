"""pip entry: builds the ROS interfaces with the same CMakeLists.txt that colcon uses."""
import sys
from pathlib import Path

from setuptools import Extension, find_packages, setup

ROOT = Path(__file__).resolve().parent
sys.path.insert(0, str(ROOT / "cmake"))
from pip_build import KINDS, BuildInterfaces, InterfaceDistribution  # noqa: E402

NAME = "world_gymnast_ros"

setup(
    name="world-gymnast-ros",
    version="0.1.0",
    python_requires=">=3.11,<3.13",
    distclass=InterfaceDistribution,
    packages=find_packages(include=[NAME, f"{NAME}.*"], exclude=[f"{NAME}.{kind}" for kind in KINDS]),
    # No sources: the name only makes setuptools call build_ext and mark the wheel as one for this platform.
    ext_modules=[Extension(f"{NAME}._interfaces", sources=[])],
    cmdclass={"build_ext": BuildInterfaces},
    extras_require={"fog": ["gym-pusht>=0.1.8,<0.2"]},
    entry_points={"console_scripts": ["world-gymnast = world_gymnast_ros.cli:main"]},
    zip_safe=False,
)
