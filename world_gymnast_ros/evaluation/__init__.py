"""How far a model may be believed: paired replay, image metrics, paired trials, sequential test."""
