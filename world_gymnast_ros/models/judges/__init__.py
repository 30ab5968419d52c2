"""Judges: score rollouts against an instruction."""
