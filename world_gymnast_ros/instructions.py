"""Sentences: one normaliser for everybody who compares them, and what a kind of task is called."""
from __future__ import annotations

from collections.abc import Mapping, Sequence
from fnmatch import fnmatchcase

PUNCTUATION = ".,!?;:'\""


def normalise(instruction: str) -> str:
    """Return a sentence in the form in which two are compared: lower case, single spaces, no punctuation at the ends of
    words. The small models read this form, too."""
    return " ".join(word for word in (w.strip(PUNCTUATION) for w in instruction.lower().split()) if word)


def task_of(instruction: str, forms: Mapping[str, Sequence[str]]) -> str:
    """Return what the task of an instruction is called: the first of `forms` one of whose sentences it is ("*" stands
    for any words), else the sentence itself."""
    sentence = normalise(instruction)
    for task, sentences in forms.items():
        if any(fnmatchcase(sentence, normalise(form)) for form in sentences):
            return task
    return sentence
