"""Sentences: one normaliser for everybody who compares them."""
from __future__ import annotations


def normalise(instruction: str) -> str:
    """Return a sentence in the form in which two are compared: lower case, single spaces, no full stop at the end."""
    return " ".join(instruction.lower().split()).rstrip(" .!")
