"""A MuJoCo twin of the WidowX 250s set-up. The only place that imports mujoco."""
import os

os.environ.setdefault("MUJOCO_GL", "egl")  # read when mujoco is imported: render without a display
