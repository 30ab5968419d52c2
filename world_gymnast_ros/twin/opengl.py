"""What OpenGL says when the twin cannot draw, in one line that names what the environment asks of it."""
from __future__ import annotations

import os

from world_gymnast_ros.errors import BadConfig, one_line

VARIABLES = ("MUJOCO_GL", "PYOPENGL_PLATFORM")
"""What chooses another OpenGL than EGL."""


def gl_error(error: Exception) -> BadConfig:
    """Return the error of a renderer that could not be made, whatever MuJoCo or PyOpenGL raised."""
    asked = [f"{name}={os.environ[name]}" for name in VARIABLES if os.environ.get(name, "egl") != "egl"]
    names = " ".join(word.partition("=")[0] for word in asked)
    remedy = (f"the environment asks for {' '.join(asked)}: unset {names}" if asked else
              "is libEGL installed? (apt install libegl1)")
    return BadConfig(f"the twin cannot draw images ({type(error).__name__}: {one_line(error)}); {remedy}")
