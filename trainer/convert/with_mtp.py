"""A model with the MTP layer of another checkpoint: of a run that did not train it, from where it started."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

from rlframe.errors import UserError
from trainer.convert.plan import Stored
from trainer.convert.sources import HfSource, Source


class WithMtp:
    """`source`'s tensors, and `donor`'s MTP layer in place of its own."""

    def __init__(self, source: Source, donor: HfSource) -> None:
        """Raises UserError where the donor has no MTP layer, or is of another size."""
        self.directory = source.directory
        self._source, self._donor = source, donor
        for key in (
            "num_hidden_layers",
            "hidden_size",
            "n_routed_experts",
            "moe_intermediate_size",
        ):
            ours, theirs = source.hf_config.get(key), donor.hf_config.get(key)
            if ours != theirs:
                raise UserError(
                    f"--mtp-from: '{donor.directory}' has {key}={theirs}, '{source.directory}' {ours}"
                )
        prefix = f"model.layers.{source.hf_config['num_hidden_layers']}."
        self._given = {n: t for n, t in donor.tensors.items() if n.startswith(prefix)}
        if not self._given:
            raise UserError(f"--mtp-from: '{donor.directory}' has no MTP layer ({prefix}*)")
        self._own = {n: t for n, t in source.tensors.items() if not n.startswith(prefix)}
        layers = donor.hf_config.get("num_nextn_predict_layers", 1)
        self.hf_config: Mapping[str, Any] = {
            **source.hf_config,
            "num_nextn_predict_layers": layers,
        }

    @property
    def tensors(self) -> Mapping[str, Stored]:
        return {**self._own, **self._given}

    def read(self, name: str, rows: slice) -> Tensor:
        return self._of(name).read(name, rows)

    def read_stored(self, name: str, rows: slice) -> dict[str, Tensor]:
        return self._of(name).read_stored(name, rows)

    def fingerprint(self) -> str:
        both = self._source.fingerprint() + self._donor.fingerprint()
        return hashlib.sha256(both.encode()).hexdigest()

    def companions(self) -> list[Path]:
        return self._source.companions()

    def _of(self, name: str) -> Source:
        return self._donor if name in self._given else self._source
