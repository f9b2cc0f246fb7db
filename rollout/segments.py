"""Text to ids where much of the text comes again: system messages with the schemas of 24 tools.

A tokenizer takes special tokens out of a text before anything else, so what stands between two of them
is cut alone, and can be remembered. Tokenizing 70 kB takes some 20 ms, and an agent program sends
them with every new conversation.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from functools import lru_cache

import numpy as np
from tokenizers import Tokenizer

from rlframe.types import Int32Array

SHORTEST, LONGEST = 512, 1 << 18
"""Characters of a segment that is remembered."""
REMEMBERED = 128


class SegmentEncoder:
    """Gives what `tokenizer.encode` gives. TypeError for text that isn't Unicode."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._tokenizer = tokenizer
        self._remembered: Callable[[str], Int32Array] = lru_cache(maxsize=REMEMBERED)(self._array)
        marks = _marks(tokenizer)
        # At every mark, and before it: a segment begins with its mark.
        self._split = re.compile("|".join(map(re.escape, marks))) if marks else None

    def encode(self, text: str) -> list[int]:
        if self._split is None or len(text) < SHORTEST:
            return self._plain(text)
        # A batch of one: only batches can be had without offsets, which take a quarter of the time.
        ids: list[int] = []
        short: list[str] = []
        for segment in self._segments(text):
            if SHORTEST <= len(segment) <= LONGEST:
                ids += self._plain("".join(short)) if short else []
                short = []
                ids += self._remembered(segment).tolist()
            else:
                short.append(segment)
        return [*ids, *self._plain("".join(short))]

    def _segments(self, text: str) -> Iterator[str]:
        assert self._split is not None
        start = 0
        for mark in self._split.finditer(text):
            if mark.start() > start:
                yield text[start : mark.start()]
            start = mark.start()
        yield text[start:]

    def _plain(self, text: str) -> list[int]:
        # A batch of one: only batches can be had without offsets, which take a quarter of the time.
        ids: list[int] = self._tokenizer.encode_batch_fast([text], add_special_tokens=False)[0].ids
        return ids

    def _array(self, text: str) -> Int32Array:
        return np.array(self._plain(text), np.int32)


def _marks(tokenizer: Tokenizer) -> list[str]:
    """Tokens at which a text may be cut, longest first: they take no space with them, and stand in no
    other added token."""
    added = tokenizer.get_added_tokens_decoder().values()
    return sorted(
        (
            token.content
            for token in added
            if token.special
            and token.content
            and not (token.lstrip or token.rstrip or token.single_word or token.normalized)
            and not any(_overlap(token.content, other.content) for other in added)
        ),
        key=len,
        reverse=True,
    )


def _overlap(mark: str, other: str) -> bool:
    """Whether `other` could begin before `mark` and end inside or after it."""
    if mark == other:
        return False
    return mark in other or any(other.endswith(mark[:n]) for n in range(1, len(mark)))
