"""World models: action-conditioned video."""
