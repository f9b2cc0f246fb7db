"""Weights handed to engines of the same host as memory handles, without a file (`sync.transport=tensor`).

On GPUs the handles are CUDA IPC, on a CPU shared-memory files. SGLang takes them as one pickle of (name,
tensor) pairs, by torch's own reductions: the only pickle that crosses a process border here. Finiteness is
checked before anything is shared; bytes that never leave memory have no checksum.

Run on a CPU only so far: no GPU was at hand.
"""

from __future__ import annotations

import base64
import io
from multiprocessing.reduction import ForkingPickler

import torch
import torch.distributed as dist
import torch.multiprocessing
from torch import Tensor

from rlframe.errors import RunError
from rlframe.types import TensorSpec, WeightManifest
from trainer.weights import DTYPES, Exported


class TensorSharer:
    """Shares one version at a time, and keeps it alive until the next."""

    def __init__(self, exported: Exported) -> None:
        self._exported = exported
        self._alive: list[tuple[str, Tensor]] = []
        if not torch.cuda.is_available():
            # With the default, SGLang's scheduler dies on an authentication error (0.5.20).
            torch.multiprocessing.set_sharing_strategy("file_system")  # type: ignore[no-untyped-call]

    def share(self, version: int) -> WeightManifest | None:
        """Collective; the manifest on rank 0, None elsewhere. RunError for values that are not finite."""
        if dist.get_rank() != 0:
            self._exported.take_part()
            return None
        # Copies: what is served must not change under the next optimizer step.
        self._alive = [(name, tensor.detach().clone()) for name, tensor in self._exported.tensors()]
        broken = [name for name, tensor in self._alive if not torch.isfinite(tensor).all()]
        if broken:
            raise RunError(f"version {version} has values that are not finite: '{broken[0]}'")
        specs = {
            name: TensorSpec(tuple(tensor.shape), DTYPES[tensor.dtype], checksum="")
            for name, tensor in self._alive
        }
        return WeightManifest(version, directory="", tensors=specs, handles=self._handles())

    def _handles(self) -> str:
        buffer = io.BytesIO()
        ForkingPickler(buffer).dump(self._alive)
        return base64.b64encode(buffer.getvalue()).decode()
