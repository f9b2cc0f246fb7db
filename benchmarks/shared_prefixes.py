"""Prefixes that several traces share, computed once: tokens and CPU seconds of a policy's passes, with and without.

    python -m benchmarks.shared_prefixes            # docs/results/shared_prefixes.json and .png

Three batches of a dense model (4 layers x 256, one thread, float32), each packed with and without
`trainer.share_prefixes`, both sides in turn: `compaction` (2 attempts at different tasks, the context compacted
twice, two sub-agents each: instructions and tools in front of every trace, the task in front of an attempt's),
`groups` (two tasks, eight answers each), and `apart` (nothing in common: what looking for it costs). A round is
old logprobs and an update.

And the plan alone, in the driver: lognormal traces (median 2,000 tokens) of which four each share 900, 600 of them
with all, and the step's estimated time over that without sharing.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch

from benchmarks.harness import RESULTS, Round, interleaved, median_rate, ratio, write_result
from rlframe import packing, shared_packing
from rlframe.config.schema import LayoutConfig, PolicyRoleConfig
from rlframe.model_costs.row_costs import RowCosts
from rlframe.model_shapes.family import read_shape
from rlframe.planning import plan_rows
from rlframe.types import BatchPlan, TrainRow
from trainer.objective import COLUMNS, PolicyObjective
from trainer.ranks.shard import cut
from trainer.ranks.spec import ModelSource, RankSpec

CAP = 4_096
ROUNDS = 5
VOCABULARY = 2_048
MODEL: dict[str, Any] = {
    "model_type": "qwen3",
    "vocab_size": VOCABULARY,
    "hidden_size": 256,
    "intermediate_size": 768,
    "num_hidden_layers": 4,
    "num_attention_heads": 8,
    "num_key_value_heads": 4,
    "head_dim": 32,
    "tie_word_embeddings": True,
}
Ids = np.ndarray[Any, Any]


def ids(rng: np.random.Generator, count: int) -> Ids:
    return rng.integers(0, VOCABULARY, count, dtype=np.int32)


def row_of(prompt: Ids, turns: Sequence[tuple[int, int]], rng: np.random.Generator) -> TrainRow:
    """`turns` are (sampled, read) tokens after the prompt."""
    parts, masks = [prompt], [np.zeros(len(prompt), bool)]
    for sampled, read in turns:
        parts += [ids(rng, sampled), ids(rng, read)]
        masks += [np.ones(sampled, bool), np.zeros(read, bool)]
    tokens, mask = np.concatenate(parts), np.concatenate(masks)
    noise = rng.normal(size=(2, len(tokens))).astype(np.float32) * mask
    return TrainRow(
        token_ids=tokens,
        loss_mask=mask,
        advantages=noise[0],
        returns=noise[1],
        old_logprobs=(-8.3 * mask).astype(np.float32),
        old_values=np.zeros(len(tokens), np.float32),
        rollout_logprobs=(-8.3 * mask).astype(np.float32),
    )


def compaction(rng: np.random.Generator) -> list[TrainRow]:
    rows, tools, agent = [], ids(rng, 400), ids(rng, 200)
    for _ in range(2):
        start = np.concatenate((tools, ids(rng, 150)))
        for sub_trace in range(3):
            summary = ids(rng, 60 if sub_trace else 0)
            rows.append(row_of(np.concatenate((start, summary)), [(40, 60)] * 4, rng))
        for _ in range(2):
            rows.append(row_of(np.concatenate((agent, ids(rng, 40))), [(30, 50)] * 2, rng))
    return rows


def groups(rng: np.random.Generator) -> list[TrainRow]:
    prompts = [ids(rng, 500) for _ in range(2)]
    return [
        row_of(prompt, [(int(rng.integers(40, 200)), 0)], rng)
        for prompt in prompts
        for _ in range(8)
    ]


def apart(rng: np.random.Generator) -> list[TrainRow]:
    return [row_of(ids(rng, int(rng.integers(100, 600))), [(100, 0)], rng) for _ in range(8)]


BATCHES: dict[str, Callable[[np.random.Generator], list[TrainRow]]] = {
    "compaction": compaction,
    "groups": groups,
    "apart": apart,
}


class Side:
    """One policy in training, packed with or without shared prefixes."""

    def __init__(self, share: bool) -> None:
        from trainer.megatron.training import Training

        self.share = share
        spec = RankSpec(
            role="policy",
            rank=0,
            config=PolicyRoleConfig(layout=LayoutConfig(), lr=0.0),
            model=ModelSource(hf_config=MODEL, path="", dtype="float32", seed=0),
            objective=PolicyObjective(
                clip_low=0.2, clip_high=0.28, dual_clip=3.0, importance_cap=2.0, entropy_coef=0.0
            ),
            total_steps=1,
            device="cpu",
            num_threads=1,
            collective_timeout_s=600.0,
        )
        self._training = Training(replace(spec, share_prefixes=share), "cpu")
        self._costs = RowCosts.of(read_shape(MODEL), longest=CAP)
        self.logprobs = np.zeros(0, np.float32)
        self.update: dict[str, float] = {}

    def plan(self, rows: Sequence[TrainRow]) -> BatchPlan:
        return plan_rows(
            rows, {"data": 1}, max_tokens=CAP, row_costs=self._costs, share_prefixes=self.share
        )

    def round(self, rows: Sequence[TrainRow]) -> Round:
        """Packing included. Tokens are those of the rows, whichever of them are computed."""
        began, cpu_began = time.perf_counter(), time.process_time()
        plan = self.plan(rows)
        (shard,) = cut(rows, plan, COLUMNS[PolicyObjective])
        logprobs = self._training.logprobs(shard)
        update = self._training.update(
            shard, step=0, actions=sum(int(row.loss_mask.sum()) for row in rows)
        )
        seconds, cpu = time.perf_counter() - began, time.process_time() - cpu_began
        assert logprobs is not None
        assert update is not None
        order = [r for batch in plan.micro_batches[0] for r in batch]
        ends = np.cumsum([len(rows[r].token_ids) for r in order])[:-1]
        by_row = dict(zip(order, np.split(logprobs, ends), strict=True))
        self.logprobs = np.concatenate([by_row[r] for r in range(len(rows))])
        self.update = update
        return Round(seconds, cpu, float(len(logprobs)))


def measure(name: str, shared: Side, separate: Side) -> dict[str, Any]:
    rows = BATCHES[name](np.random.default_rng(0))
    token_ids = [row.token_ids for row in rows]
    sides = {"shared": lambda: shared.round(rows), "apart": lambda: separate.round(rows)}
    rounds = interleaved(sides, rounds=ROUNDS)
    saved = shared_packing.shared_share(token_ids, shared.plan(rows))
    total = sum(map(len, token_ids))
    by_cpu = [
        b.cpu_seconds / a.cpu_seconds
        for a, b in zip(rounds["shared"], rounds["apart"], strict=True)
    ]
    norms = shared.update["grad_norm"], separate.update["grad_norm"]
    return {
        "batch": name,
        "traces": len(rows),
        "tokens": total,
        "computed": round(total * (1 - saved)),
        "saved": round(saved, 3),
        "micro_batches": [len(side.plan(rows).micro_batches[0]) for side in (shared, separate)],
        "rate_shared": round(median_rate(rounds["shared"])),
        "rate_apart": round(median_rate(rounds["apart"])),
        "times_as_fast": round(ratio(rounds["shared"], rounds["apart"]), 2),
        "times_as_fast_cpu": round(float(np.median(by_cpu)), 2),
        "logprob_difference": float(np.abs(shared.logprobs - separate.logprobs).max()),
        "loss_difference": abs(shared.update["loss"] - separate.update["loss"]),
        "grad_norm_difference": abs(norms[0] / norms[1] - 1),
    }


def planning(count: int, ranks: int) -> dict[str, Any]:
    rng = np.random.default_rng(0)
    tools, cap = ids(rng, 600), 32_768
    prompts = [np.concatenate((tools, ids(rng, 300))) for _ in range(count // 4)]
    lengths = np.clip(rng.lognormal(np.log(2_000), 1.0, count), 900, cap).astype(int)
    rows = [
        np.concatenate((prompts[i % len(prompts)], ids(rng, n - 900)))
        for i, n in enumerate(lengths)
    ]
    costs = RowCosts.of(read_shape(MODEL), longest=cap)
    began = time.process_time()
    made = shared_packing.plan(rows, data_parallel=ranks, max_tokens=cap, row_costs=costs)
    seconds = time.process_time() - began
    apart = packing.plan(
        lengths.tolist(), data_parallel=ranks, max_tokens=cap, costs=costs(lengths.tolist())
    )
    work = np.array([[sum(costs([lengths[r] for r in b])) for b in k] for k in apart.micro_batches])
    return {
        "batch": f"plan of {count} traces on {ranks} ranks",
        "traces": count,
        "tokens": int(lengths.sum()),
        "saved": round(shared_packing.shared_share(rows, made), 3),
        "cpu_seconds": round(seconds, 3),
        "estimated_time": round(
            shared_packing.step_time(rows, made, costs) / float(work.max(axis=0).sum()), 3
        ),
    }


def main() -> None:
    from trainer.megatron.parallel import init_parallel

    torch.set_num_threads(1)
    init_parallel(
        layout=LayoutConfig(),
        rank=0,
        world_size=1,
        init_method="tcp://127.0.0.1:0",
        device="cpu",
        timeout_s=600,
        seed=0,
    )
    shared, separate = Side(True), Side(False)
    rows = []
    for name in BATCHES:
        print(name, flush=True)
        rows.append(measure(name, shared, separate))
        print(rows[-1], flush=True)
    plans = [planning(count, ranks) for count, ranks in ((512, 8), (2_048, 32))]
    print(plans, flush=True)
    write_result(
        "shared_prefixes",
        [*rows, *plans],
        note="rates: tokens of the traces a second, of old logprobs and an update; differences: largest, relative for the norm",
    )
    draw(rows)


def draw(rows: Sequence[dict[str, Any]]) -> None:
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, (left, right) = pyplot.subplots(1, 2, figsize=(8, 3.2), layout="constrained")
    places = np.arange(len(rows))
    for axes, both in (
        (left, (("computed", "shared"), ("tokens", "apart"))),
        (right, (("rate_shared", "shared"), ("rate_apart", "apart"))),
    ):
        for offset, (key, label) in zip((-0.2, 0.2), both, strict=True):
            axes.bar(places + offset, [row[key] for row in rows], 0.4, label=label)
        axes.set_xticks(places, [row["batch"] for row in rows])
    left.set_title("tokens computed")
    right.set_title("trace tokens a second")
    left.legend()
    figure.savefig(RESULTS / "shared_prefixes.png", dpi=120)


if __name__ == "__main__":
    main()
