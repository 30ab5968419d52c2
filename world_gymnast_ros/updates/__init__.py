"""Learning from experience: policy gradient, behaviour cloning, world model, judges, the closed loop."""
