"""Masked GAE and returns: ours on trajectories against verl 0.9.1's loop over time, in the same run.

    python benchmarks/credit.py            # docs/results/credit.json

64 responses of 8,192 tokens, of which tool results are about a third; both sides get the same rewards,
values and masks. `flat` times what verl's function does (arrays in, arrays out); `assign_credit` the whole
of ours: chains, links, rewards by position, two lambdas, and one array a trace back. Errors are
against a float64 walk over the actions.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import numpy as np
import torch

from benchmarks.harness import Round, interleaved, ratio, row, write_result
from benchmarks.peers.verl_functions import VerlFunctions
from rlframe.credit import CreditRules, assign_credit
from rlframe.credit_scan import scan
from rlframe.types import Reward, Status, Trace, Trajectory

RESPONSES, TOKENS = 64, 8_192
GAMMA, LAMBDA = 1.0, 0.95
RULES = CreditRules(
    gamma=GAMMA, lambda_policy=LAMBDA, lambda_critic=LAMBDA, truncation="terminal", whiten=False
)


def main() -> None:
    rng = np.random.default_rng(0)
    mask = rng.random((RESPONSES, TOKENS)) < 0.67
    mask[:, 0] = False
    mask[:, -1] = True
    values = rng.normal(size=mask.shape).astype(np.float32)
    batch = [trajectory(m, i) for i, m in enumerate(mask)]
    per_trace = [[v] for v in values]
    rewards = np.zeros(mask.shape, np.float32)
    rewards[:, -1] = 1.0
    verl = VerlFunctions.load().gae
    tensors = [torch.from_numpy(a) for a in (rewards, values, mask.astype(np.float32))]

    def flat() -> np.ndarray:
        positions, ends = np.flatnonzero(mask), np.cumsum(mask.sum(axis=1))
        advantages, returns = np.zeros((2, mask.size), np.float32)
        scan(
            values.reshape(-1),
            positions,
            rewards.reshape(-1)[positions].astype(np.float64),
            ends,
            np.zeros(RESPONSES),
            GAMMA,
            np.full(RESPONSES, LAMBDA),
            LAMBDA,
            advantages,
            returns,
        )
        return advantages.reshape(mask.shape)

    def whole() -> list[np.ndarray]:
        return assign_credit(batch, per_trace, rules=RULES).advantages

    def theirs() -> torch.Tensor:
        return verl(*tensors, GAMMA, LAMBDA)[0]

    sides = {"flat": flat, "assign_credit": whole, "verl": theirs}
    rounds = interleaved(
        {n: rounds_of(f, 1 if n == "verl" else 20) for n, f in sides.items()}, rounds=7
    )
    expected = walk(mask, values, rewards)
    scale = np.abs(expected).max()
    errors = {
        "flat": np.abs(flat() - expected).max() / scale,
        "assign_credit": np.abs(np.stack(whole()) - expected).max() / scale,
    }
    rows: list[dict[str, Any]] = [
        row(
            name,
            measured,
            ms=round(1e3 * float(np.median([r.seconds / r.amount for r in measured])), 3),
            cpu_ms=round(1e3 * cpu_seconds_a_call(measured), 3),
            times_verl=round(ratio(measured, rounds["verl"]), 1),
            times_verl_by_cpu=round(
                cpu_seconds_a_call(rounds["verl"]) / cpu_seconds_a_call(measured), 1
            ),
            relative_error=float(errors.get(name, float("nan"))) if name in errors else None,
        )
        for name, measured in rounds.items()
    ]
    for shown in rows:
        print(shown)
    write_result(
        "credit",
        rows=rows,
        note="rate: calls a second; times_verl: ratio of rates, or of CPU seconds",
    )


def cpu_seconds_a_call(rounds: list[Round]) -> float:
    return float(np.median([r.cpu_seconds / r.amount for r in rounds]))


def trajectory(mask: np.ndarray, index: int) -> Trajectory:
    trace = Trace(
        token_ids=np.zeros(len(mask), np.int32),
        loss_mask=mask,
        rollout_logprobs=np.where(mask, -1, 0).astype(np.float32),
        versions=np.where(mask, 0, -1).astype(np.int32),
    )
    return Trajectory(str(index), str(index), "d", Status.COMPLETED, (trace,), (Reward(1.0),))


def rounds_of(function: Callable[[], Any], calls: int) -> Callable[[], Round]:
    def one() -> Round:
        began, cpu_began = time.perf_counter(), time.process_time()
        for _ in range(calls):
            function()
        return Round(time.perf_counter() - began, time.process_time() - cpu_began, calls)

    return one


def walk(mask: np.ndarray, values: np.ndarray, rewards: np.ndarray) -> np.ndarray:
    """Advantages action by action, in float64."""
    out = np.zeros(mask.shape)
    for i in range(len(mask)):
        running = following = 0.0
        for t in reversed(np.flatnonzero(mask[i])):
            value = float(values[i, t])
            delta = float(rewards[i, t]) + GAMMA * following - value
            running = delta + GAMMA * LAMBDA * running
            following = value
            out[i, t] = running
    return out


if __name__ == "__main__":
    main()
