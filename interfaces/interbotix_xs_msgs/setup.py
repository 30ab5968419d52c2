"""pip entry: builds these interfaces where Interbotix's own package is not installed."""
import sys
from pathlib import Path

from setuptools import Extension, setup

ROOT = Path(__file__).resolve().parent
sys.path.insert(0, str(ROOT.parents[1] / "cmake"))
from pip_build import BuildInterfaces, InterfaceDistribution  # noqa: E402

NAME = "interbotix_xs_msgs"

setup(
    name="interbotix-xs-msgs",
    version="0.0.0",
    distclass=InterfaceDistribution,
    packages=[],
    ext_modules=[Extension(f"{NAME}._interfaces", sources=[])],
    cmdclass={"build_ext": BuildInterfaces},
    zip_safe=False,
)
