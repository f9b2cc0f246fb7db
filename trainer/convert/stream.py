"""One conversion: files written one after the other, each whole or not at all, and gone on with where it stopped."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from rlframe.durable_files import replace_directory, write_atomic
from rlframe.errors import UserError
from trainer.convert.plan import (
    Item,
    Shard,
    Target,
    described,
    plan_items,
    plan_shards,
    weight_index,
)
from trainer.convert.sources import Source
from trainer.models.fp8_blocks import BLOCK, quantise
from trainer.models.hf_files import INDEX, SCALE_SUFFIX, layer_words
from trainer.models.safetensors_files import DTYPES, SafetensorsFile

NUMBERS_AT_ONCE = 4 << 20
"""Of a tensor, held at once: 16 MiB in float32, and a few copies of that."""
JOURNAL = "conversion.json"


@dataclass(frozen=True, slots=True)
class Options:
    """What is asked for."""

    target: Target = "stored"
    max_shard_bytes: int = 5_000_000_000
    drop_mtp: bool = False


@dataclass(frozen=True, slots=True)
class Done:
    """What a conversion wrote."""

    tensors: int
    files: int
    num_bytes: int
    resumed_files: int
    """Of these files, how many an earlier attempt had written."""


class Conversion:
    """`run` writes `target`, which must not exist; what is not complete lies beside it under a hidden name."""

    def __init__(self, source: Source, target: Path, options: Options) -> None:
        """Raises UserError where the target exists, or half of another conversion stands in its place."""
        self.source, self.target, self.options = source, target.absolute(), options
        self.staging = self.target.with_name(f".{self.target.name}.partial")
        mtp = _mtp_prefix(source) if options.drop_mtp else None
        tensors = {n: t for n, t in source.tensors.items() if mtp is None or not n.startswith(mtp)}
        self.items = plan_items(tensors, options.target)
        self.shards = plan_shards(self.items, max_bytes=options.max_shard_bytes)
        self._journal = json.dumps(
            {
                "source": str(source.directory),
                "fingerprint": source.fingerprint(),
                "options": [options.target, options.max_shard_bytes, options.drop_mtp],
            }
        )
        if self.target.exists() and (not self.target.is_dir() or any(self.target.iterdir())):
            raise UserError(f"'{target}' exists: give another name, or delete it")
        self._check_journal()

    @property
    def num_bytes(self) -> int:
        return sum(shard.num_bytes for shard in self.shards)

    def run(self, advance: Callable[[int], None] = lambda num_bytes: None) -> Done:
        """`advance` is told of bytes that are written, or were before. Raises UserError for values that are
        not finite, naming the layer, and for a disk that is too small."""
        finished = {s.file for s in self.shards if (self.staging / s.file).exists()}
        self._check_space(finished)
        self.staging.mkdir(parents=True, exist_ok=True)
        write_atomic(self.staging / JOURNAL, self._journal)
        for shard in self.shards:
            if shard.file in finished:
                advance(shard.num_bytes)
            else:
                self._write_shard(shard, advance)
        self._write_rest()
        (self.staging / JOURNAL).unlink()
        replace_directory(self.staging, self.target)
        return Done(len(self.items), len(self.shards), self.num_bytes, len(finished))

    def _check_journal(self) -> None:
        journal = self.staging / JOURNAL
        if journal.exists() and journal.read_text() != self._journal:
            raise UserError(
                f"'{self.staging}' is half of another conversion, of another source or with other options: "
                "repeat that one to go on with it, or delete the directory"
            )

    def _check_space(self, finished: set[str]) -> None:
        needed = sum(shard.num_bytes for shard in self.shards if shard.file not in finished)
        existing = next(p for p in self.target.parents if p.exists())
        free = shutil.disk_usage(existing).free
        if needed > free:
            raise UserError(
                f"{needed / 1e9:,.1f} GB are to be written to '{existing}', which has {free / 1e9:,.1f} GB free"
            )

    def _write_shard(self, shard: Shard, advance: Callable[[int], None]) -> None:
        file = SafetensorsFile(self.staging / shard.file, shard.layout)
        try:
            for item in shard.items:
                _write_item(self.source, item, file)
                advance(item.num_bytes)
        except BaseException:
            file.close()
            raise
        file.finish()

    def _write_rest(self) -> None:
        for file in self.source.companions():
            shutil.copy2(file, self.staging / file.name)
        config = described(
            self.source.hf_config,
            self.items,
            target=self.options.target,
            drop_mtp=self.options.drop_mtp,
        )
        write_atomic(self.staging / "config.json", json.dumps(config, indent=2) + "\n")
        if len(self.shards) > 1:
            index = json.dumps(weight_index(self.shards), indent=2) + "\n"
            write_atomic(self.staging / INDEX, index)


def _mtp_prefix(source: Source) -> str:
    return f"model.layers.{source.hf_config['num_hidden_layers']}."


def _write_item(source: Source, item: Item, file: SafetensorsFile) -> None:
    """A part of the rows at a time; those of FP8 weights are whole blocks."""
    count = item.shape[0] if item.shape else 1
    columns = max(1, torch.Size(item.shape).numel() // max(1, count))
    at_once = max(BLOCK, NUMBERS_AT_ONCE // columns // BLOCK * BLOCK)
    for first in range(0, count, at_once):
        rows = slice(first, min(first + at_once, count))
        for name, part in _converted(source, item, rows).items():
            dtype, shape = item.layout[name]
            row = first // BLOCK if name.endswith(SCALE_SUFFIX) else first
            row_bytes = torch.Size(shape[1:]).numel() * DTYPES[dtype].itemsize
            file.write(name, part, at_byte=row * row_bytes)


def _converted(source: Source, item: Item, rows: slice) -> dict[str, Tensor]:
    if item.how == "copy":
        parts = source.read_stored(item.name, rows)
    elif item.how == "cast":
        dtype = DTYPES[item.layout[item.name][0]]
        parts = {item.name: source.read(item.name, rows).to(dtype)}
    else:
        read = source.read(item.name, rows)
        _check_finite(source, item.name, read)
        weight, scale = quantise(read)
        return {item.name: weight, item.name + SCALE_SUFFIX: scale}
    for part in parts.values():
        _check_finite(source, item.name, part)
    return parts


def _check_finite(source: Source, name: str, part: Tensor) -> None:
    wide = part.float() if part.element_size() == 1 else part
    if not bool(wide.isfinite().all()):
        raise UserError(
            f"'{source.directory}': tensor '{name}'{layer_words(name)} has values that are not finite "
            "in the dtype that is written"
        )
