"""log p and entropy of given tokens, forward and backward, against torch's own operators.

    python -m benchmarks.logprobs

Per vocabulary: CPU seconds of `token_logprobs` against `torch.nn.functional.cross_entropy` (logprob alone) and
against `log_softmax` with the entropy from it (both), and the most memory that each takes beyond the logits, in
a process of its own. Writes docs/results/logprobs.json.
"""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import psutil
import torch
from torch import Tensor
from torch.nn.functional import cross_entropy, log_softmax

from benchmarks.harness import ROOT, Round, interleaved, write_result
from trainer.losses.logprobs import token_logprobs

VOCABULARIES = (8_192, 32_768, 154_880)
ELEMENTS = 1 << 26
"""Of the logits: 256 MiB in float32."""
ROUNDS = 5
Loss = Callable[[Tensor, Tensor], Tensor]


def ours(logits: Tensor, targets: Tensor) -> Tensor:
    return token_logprobs(logits, targets)[0].sum()


def torch_cross_entropy(logits: Tensor, targets: Tensor) -> Tensor:
    return -cross_entropy(logits, targets, reduction="sum")


def ours_with_entropy(logits: Tensor, targets: Tensor) -> Tensor:
    logprobs, entropy = token_logprobs(logits, targets, with_entropy=True)
    assert entropy is not None
    return logprobs.sum() + 0.01 * entropy.sum()


def naive_with_entropy(logits: Tensor, targets: Tensor) -> Tensor:
    logp = log_softmax(logits, -1)
    chosen = logp.gather(1, targets[:, None])
    return chosen.sum() - 0.01 * (logp.exp() * logp).sum()


LOSSES: dict[str, Loss] = {
    function.__name__: function
    for function in (ours, torch_cross_entropy, ours_with_entropy, naive_with_entropy)
}
PAIRS = (("ours", "torch_cross_entropy"), ("ours_with_entropy", "naive_with_entropy"))


def inputs(vocabulary: int) -> tuple[Tensor, Tensor]:
    tokens = ELEMENTS // vocabulary
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(tokens, vocabulary, generator=generator).requires_grad_()
    return logits, torch.randint(vocabulary, (tokens,), generator=generator)


def one_round(loss: Loss, logits: Tensor, targets: Tensor) -> Round:
    logits.grad = None
    began, cpu_began = time.perf_counter(), time.process_time()
    loss(logits, targets).backward()
    seconds, cpu = time.perf_counter() - began, time.process_time() - cpu_began
    return Round(seconds, cpu, len(targets))


def peak_bytes(name: str, vocabulary: int) -> int:
    """Beyond the logits; the process's peak only ever rises, so each has its own."""
    command = [sys.executable, "-m", "benchmarks.logprobs", name, str(vocabulary)]
    done = subprocess.run(command, check=True, capture_output=True, text=True, cwd=ROOT)
    return int(done.stdout)


def measure_peak(name: str, vocabulary: int) -> int:
    logits, targets = inputs(vocabulary)
    Path("/proc/self/clear_refs").write_text("5")  # the peak begins here
    before = psutil.Process().memory_info().rss
    LOSSES[name](logits, targets).backward()
    status = Path("/proc/self/status").read_text()
    peak = next(line.split()[1] for line in status.splitlines() if line.startswith("VmHWM"))
    return int(peak) * 1024 - before


def main() -> None:
    torch.set_num_threads(1)
    if len(sys.argv) == 3:
        print(measure_peak(sys.argv[1], int(sys.argv[2])))
        return
    rows = []
    for vocabulary in VOCABULARIES:
        logits, targets = inputs(vocabulary)
        print(f"vocabulary {vocabulary:,}, {len(targets):,} tokens")
        sides = {
            name: lambda loss=loss, a=logits, b=targets: one_round(loss, a, b)
            for name, loss in LOSSES.items()
        }
        rounds = interleaved(sides, rounds=ROUNDS)
        for mine, theirs in PAIRS:
            cpu = [
                b.cpu_seconds / a.cpu_seconds
                for a, b in zip(rounds[mine], rounds[theirs], strict=True)
            ]
            peaks = peak_bytes(mine, vocabulary), peak_bytes(theirs, vocabulary)
            row = {
                "vocabulary": vocabulary,
                "ours": mine,
                "theirs": theirs,
                "times_as_fast": round(sorted(cpu)[ROUNDS // 2], 2),
                "memory_share": round(peaks[0] / peaks[1], 3),
                "our_peak_mib": round(peaks[0] / 2**20),
                "their_peak_mib": round(peaks[1] / 2**20),
            }
            print(row, flush=True)
            rows.append(row)
    write_result("logprobs", rows)


if __name__ == "__main__":
    main()
