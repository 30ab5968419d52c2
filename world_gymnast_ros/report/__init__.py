"""Pages, charts and rollout videos for a person."""
