"""verl 0.9.1's own pure functions, compiled from its installed source without the package's imports.

functions = VerlFunctions.load()          # installs verl into .venv-verl if it is not there
functions.partitions(workloads, ranks)
"""

from __future__ import annotations

import ast
import heapq
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch

ROOT = Path(__file__).resolve().parents[2]
OVERLAY = ROOT / ".venv-verl"
VERSION = "0.9.1"
BALANCER = "verl/utils/seqlen_balancing.py"


@dataclass(frozen=True)
class VerlFunctions:
    """What verl calls: `gae` in trainer/ppo/core_algos.py, the rest in utils/seqlen_balancing.py."""

    gae: Any
    workload: Any
    partitions: Any
    micro_batches: Any

    @classmethod
    def load(cls) -> VerlFunctions:
        if not (OVERLAY / BALANCER).exists():
            pip = [sys.executable, "-m", "pip", "install", "-q", "--no-deps"]
            subprocess.run([*pip, "--target", str(OVERLAY), f"verl=={VERSION}"], check=True)
        whiten = _functions("verl/utils/torch_functional.py", ("masked_", "clip_by_value"))
        gae = _functions(
            "verl/trainer/ppo/core_algos.py",
            ("compute_gae_advantage_return",),
            verl_F=SimpleNamespace(**whiten),
        )
        balance = _functions(
            BALANCER,
            ("calculate_workload", "karmarkar_karp", "greedy_", "get_seqlen_", "ceildiv", "roundup_",
             "rearrange_micro_batches"),
            heapq=heapq,
            chain=chain,
            dist=torch.distributed,
            # The copy of the rows is left out: only the choice is measured.
            tu=SimpleNamespace(index_select_tensor_dict=lambda batch, rows: rows),
        )  # fmt: skip
        return cls(
            gae=gae["compute_gae_advantage_return"],
            workload=balance["calculate_workload"],
            partitions=balance["get_seqlen_balanced_partitions"],
            micro_batches=balance["rearrange_micro_batches"],
        )

    def plan(self, lengths: Sequence[int], *, ranks: int, cap: int) -> list[list[list[int]]]:
        """As its trainer does: rows to ranks by workload, equally many each; then micro-batches on every
        rank, whose number is the largest of all ranks' (an all-reduce there, a loop here)."""
        work = self.workload(torch.tensor(lengths)).tolist()
        dealt = self.partitions(work, ranks, equal_size=True)
        count = 1
        while True:
            planned = [self._of_rank([lengths[r] for r in rows], cap, count) for rows in dealt]
            most = max(len(batches) for batches in planned)
            if all(len(batches) == most for batches in planned):
                return [
                    [[rows[i] for i in batch] for batch in batches]
                    for rows, batches in zip(dealt, planned, strict=True)
                ]
            count = most

    def _of_rank(self, lengths: Sequence[int], cap: int, count: int) -> list[list[int]]:
        ids = torch.nested.nested_tensor(
            [torch.empty(n, dtype=torch.int8) for n in lengths], layout=torch.jagged
        )
        batches: list[list[int]] = self.micro_batches(
            {"input_ids": ids}, cap, min_num_micro_batch=count
        )[1]
        return batches


def _functions(path: str, prefixes: Sequence[str], **names: Any) -> dict[str, Any]:
    """The top-level functions of that file whose names begin so, as written there."""
    tree = ast.parse((OVERLAY / path).read_text())
    tree.body = [
        node for node in tree.body
        if isinstance(node, ast.FunctionDef) and node.name.startswith(tuple(prefixes))
    ]  # fmt: skip
    for node in tree.body:
        assert isinstance(node, ast.FunctionDef)
        node.decorator_list = []  # registrations
    tree.body.insert(0, ast.parse("from __future__ import annotations").body[0])
    space: dict[str, Any] = {"torch": torch, **names}
    exec(compile(tree, path, "exec"), space)
    return space
