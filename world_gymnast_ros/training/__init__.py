"""Training from scratch: policy, world model, reflector."""
