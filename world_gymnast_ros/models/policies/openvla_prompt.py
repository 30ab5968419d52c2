"""OpenVLA's prompt: the sentence it was trained with, in ids of the Llama-2 tokenizer that lies in the checkpoint."""
from __future__ import annotations

from pathlib import Path

from tokenizers import Tokenizer

from world_gymnast_ros.errors import BadCheckpoint, BadInstruction

TOKENIZER = "tokenizer.json"
PROMPT = "In: What action should the robot take to {instruction}?\nOut:"
BOS, STOP, EMPTY = 1, 2, 29871
"""Llama-2's ids of the start of a sequence, its end, and the lone word boundary that precedes an action."""
PIECES = {"<s>": BOS, "</s>": STOP, "▁": EMPTY}


class PromptReader:
    """Turns an instruction into prompt ids: BOS, the prompt, and the word boundary the actions follow."""

    def __init__(self, tokenizer: Tokenizer, vocabulary: int, max_tokens: int = 128) -> None:
        """`vocabulary`: ids below it are embedded. A tokenizer that is not Llama-2's raises BadCheckpoint."""
        for piece, wanted in PIECES.items():
            if tokenizer.token_to_id(piece) != wanted:
                raise BadCheckpoint(f"{TOKENIZER} gives '{piece}' the id {tokenizer.token_to_id(piece)}, Llama-2's is "
                                    f"{wanted}: with another vocabulary the policy would read other words")
        self.tokenizer, self.vocabulary, self.max_tokens = tokenizer, vocabulary, max_tokens

    @classmethod
    def from_folder(cls, folder: Path, vocabulary: int) -> PromptReader:
        """Read the checkpoint's tokenizer.json."""
        path = folder / TOKENIZER
        if not path.is_file():
            raise BadCheckpoint(f"{path} is missing; copy it from the checkpoint that this one was made from")
        try:
            tokenizer = Tokenizer.from_file(str(path))
        except Exception as error:  # the library raises its own bare type
            raise BadCheckpoint(f"{path} cannot be read as a tokenizer ({error})") from error
        return cls(tokenizer, vocabulary)

    def ids(self, instruction: str) -> list[int]:
        """Return the prompt ids of one instruction; it is lower-cased, as in OpenVLA's own evaluation."""
        text = instruction.strip().lower()
        if not text:
            raise BadInstruction("the instruction is empty; say what the arm shall do, e.g. 'close the drawer'")
        if any(ord(letter) < 32 for letter in text):
            raise BadInstruction("the instruction holds a line break or control character; write one plain sentence")
        ids = self.tokenizer.encode(PROMPT.format(instruction=text), add_special_tokens=False).ids
        ids = [BOS, *ids] if ids[:1] != [BOS] else list(ids)
        ids = [*ids, EMPTY] if ids[-1] != EMPTY else ids
        if len(ids) > self.max_tokens:
            raise BadInstruction(f"the instruction makes a prompt of {len(ids)} tokens, the limit is {self.max_tokens};"
                                 " say it shorter")
        if max(ids) >= self.vocabulary:
            raise BadInstruction(f"the instruction needs token {max(ids)}, the policy embeds {self.vocabulary}")
        return ids
