"""A MuJoCo twin of the WidowX 250s set-up. The only place that imports mujoco."""
