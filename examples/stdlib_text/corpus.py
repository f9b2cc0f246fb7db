"""The Python standard library's sources as token ids: real text that every machine has.

    corpus = load_corpus()
    corpus.training      # int32, one file after the other, each ended by END_OF_FILE
    corpus.held_out      # files that no training text shows, nor the tokenizer

A tenth of the files is held out by a hash of the name; tests and generated tables are left out. The
tokenizer is byte-level BPE, trained on the training files. The same Python gives the same ids.
"""

from __future__ import annotations

import sysconfig
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

Ids = npt.NDArray[np.int32]

END_OF_FILE = "<|endoftext|>"
LEFT_OUT = ("test", "tests", "idle_test", "site-packages", "__pycache__", "lib2to3", "pydoc_data")
GENERATED_FROM_BYTES = 250_000
"""Larger files are tables."""
HELD_OUT_TENTHS = 1
TOKENIZER_BYTES = 2_000_000


@dataclass(frozen=True, eq=False)
class Corpus:
    training: Ids
    held_out: Ids
    tokenizer: Tokenizer

    @property
    def vocab_size(self) -> int:
        return int(self.tokenizer.get_vocab_size())


def load_corpus(vocab_size: int = 1024) -> Corpus:
    """Some ten million bytes in about 10 s."""
    training, held_out = [], []
    for path in source_files():
        text = path.read_text(encoding="utf-8", errors="replace")
        (held_out if is_held_out(path.name) else training).append(text)
    tokenizer = train_tokenizer(training, vocab_size)
    return Corpus(_ids(tokenizer, training), _ids(tokenizer, held_out), tokenizer)


def source_files() -> list[Path]:
    """In the order of their names, so that it is the same everywhere."""
    root = Path(sysconfig.get_paths()["stdlib"])
    found = (
        path
        for path in sorted(root.rglob("*.py"))
        if not set(LEFT_OUT) & set(path.relative_to(root).parts)
    )
    return [path for path in found if path.stat().st_size < GENERATED_FROM_BYTES]


def is_held_out(name: str) -> bool:
    return zlib.crc32(name.encode()) % 10 < HELD_OUT_TENTHS


def train_tokenizer(texts: list[str], vocab_size: int) -> Tokenizer:
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=[END_OF_FILE],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(_some(texts, TOKENIZER_BYTES), trainer)
    return tokenizer


def windows(ids: Ids, *, count: int, length: int, seed: int) -> list[Ids]:
    """`count` random windows; the same for the same seed."""
    starts = np.random.default_rng(seed).integers(0, len(ids) - length, count)
    return [ids[start : start + length] for start in starts]


def even_windows(ids: Ids, *, count: int, length: int) -> list[Ids]:
    """`count` windows spread evenly: what held-out figures are measured on."""
    starts = np.linspace(0, len(ids) - length, count).astype(np.int64)
    return [ids[start : start + length] for start in starts]


def _some(texts: list[str], size: int) -> Iterator[str]:
    """Texts from the beginning, middle and end, `size` characters in all or a little more."""
    order: Any = np.random.default_rng(0).permutation(len(texts))
    for index in order:
        if size <= 0:
            return
        size -= len(texts[index])
        yield texts[index]


def _ids(tokenizer: Tokenizer, texts: list[str]) -> Ids:
    end = tokenizer.token_to_id(END_OF_FILE)
    encoded = tokenizer.encode_batch(texts)
    return np.concatenate([np.array([*e.ids, end], np.int32) for e in encoded])
