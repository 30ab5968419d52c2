"""The word-level reader of the small models: instruction to token ids and back to a helpful error."""
from __future__ import annotations

from collections.abc import Sequence

from world_gymnast_ros.errors import BadInstruction
from world_gymnast_ros.instructions import normalise

COLOURS = ("red", "green", "blue", "yellow", "orange", "purple", "white", "cyan")
SHAPES = ("block", "cylinder", "ball", "plate")
WORDS = (*COLOURS, *SHAPES, "reach", "push", "put", "the", "on", "left", "right", "forward")
"""Every word of the twin's language."""
PAD, BOS = 0, 1
SPECIAL_TOKENS = 2


class WordReader:
    """Maps instructions to ids: BOS, then one id per word of the normalised sentence."""

    def __init__(self, words: Sequence[str], max_words: int) -> None:
        self.words, self.max_words = tuple(words), max_words
        self._ids = {word: SPECIAL_TOKENS + i for i, word in enumerate(self.words)}
        self._seen: dict[str, tuple[int, ...]] = {}

    def encode(self, instruction: str) -> tuple[int, ...]:
        """Return the ids of one instruction; BadInstruction names the unknown word and the known ones."""
        if instruction in self._seen:
            return self._seen[instruction]
        words = normalise(instruction).split()
        if not words:
            raise BadInstruction("the instruction is empty; type a task such as 'reach the red block'")
        for word in words:
            if word not in self._ids:
                raise BadInstruction(
                    f"the model does not know the word '{word}' in '{instruction}'; it knows: {', '.join(self.words)}")
        if len(words) > self.max_words:
            raise BadInstruction(f"'{instruction}' has {len(words)} words, the limit is {self.max_words}; shorten it")
        ids = (BOS, *(self._ids[w] for w in words))
        if len(self._seen) < 10_000:
            self._seen[instruction] = ids
        return ids

    def batch(self, instructions: Sequence[str]) -> list[list[int]]:
        """Return ids of several instructions, padded at the right to the longest."""
        rows = [self.encode(text) for text in instructions]
        longest = max(len(row) for row in rows)
        return [[*row, *([PAD] * (longest - len(row)))] for row in rows]
