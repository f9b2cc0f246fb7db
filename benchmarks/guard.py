"""The guard on labelled calls: the rules alone, and with a judge of a stated error rate.

    python benchmarks/guard.py            # docs/results/guard.json and guard.png

`given`: 76 calls that others labelled; the rules were written with all of it in view, so that its third that
counts as held out (`is_held_out`) says little. `own` and `second`: 166 and 98 calls of our
own, written when the rules stood and before they were developed further; what the rules said of them at first
sight is in the note. No large model is to be had here: the judge is a real
OpenAI-compatible server on this machine that knows the labels, and gives the wrong answer at the stated rate, by
a seed. Times are CPU time of the rules, each call five times.
"""

from __future__ import annotations

import asyncio
import json
import random
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from aiohttp import web

from benchmarks.harness import RESULTS, write_result
from envs.guard.guard import GuardSettings, RunGuard, make_guard
from envs.guard.labelled import Case, Outcome, Score, by_category, is_held_out, read_cases
from envs.guard.reading import facts_of_call
from envs.guard.scoring import verdicts

CALLS = Path(__file__).resolve().parent / "guard_calls"
ERROR_RATES = (0.02, 0.05)
SEEDS = range(5)
TIMES = 5
FIRST_SIGHT = (
    "At first sight, before the rules were developed on them, they flagged 98 of the 109 hacks in `own` "
    "(recall 0.899) and, the misses in `own` mended, 48 of the 60 in `second` (recall 0.8); none of the 57 and 38 "
    "benign calls. What stands in the rows is after the misses were mended, but for one."
)


def key_of(tool: str, arguments: Any) -> str:
    return json.dumps([tool, json.dumps(arguments, sort_keys=True)])


class LabelJudge:
    """Chat completions, from the labels: wrong at `error_rate`."""

    def __init__(self, cases: Sequence[Case]) -> None:
        self.labels = {key_of(c.tool, c.arguments): c.is_hack for c in cases}
        self.error_rate, self.random = 0.0, random.Random(0)

    def reset(self, error_rate: float, seed: int) -> None:
        self.error_rate, self.random = error_rate, random.Random(seed)

    async def answer(self, request: web.Request) -> web.Response:
        text = (await request.json())["messages"][1]["content"]
        call = json.loads(text.splitlines()[1])["call"]
        hack = self.labels[json.dumps([call["tool"], call["arguments"]])]
        if self.random.random() < self.error_rate:
            hack = not hack
        said = {"nonce": text.split()[1], "verdict": "hack" if hack else "fine", "reason": ""}
        return web.json_response({"choices": [{"message": {"content": json.dumps(said)}}]})

    async def serve(self) -> tuple[web.AppRunner, str]:
        app = web.Application()
        app.router.add_post("/v1/chat/completions", self.answer)
        runner = web.AppRunner(app)
        await runner.setup()
        site = web.TCPSite(runner, "127.0.0.1", 0)
        await site.start()
        return runner, f"http://127.0.0.1:{runner.addresses[0][1]}/v1"


def shares(outcomes: Sequence[Outcome]) -> dict[str, Any]:
    score = Score.of(outcomes)
    return {
        "hacks": score.hacks,
        "benign": score.benign,
        "recall": round(score.recall, 4),
        "precision": round(score.precision, 4),
        "false_blocks": round(score.false_blocks, 4),
    }


def rule_times(guard: RunGuard, cases: Sequence[Case]) -> dict[str, float]:
    """CPU milliseconds a call."""
    spent = []
    for case in cases:
        rules = guard.rules(case.task.rules)
        for _ in range(TIMES):
            memory = rules.memory()
            began = time.process_time()
            rules.flags(facts_of_call(case.tool, case.arguments, memory), memory)
            spent.append((time.process_time() - began) * 1000)
    spent.sort()
    return {
        "ms_mean": round(sum(spent) / len(spent), 3),
        "ms_p95": round(spent[int(len(spent) * 0.95)], 3),
        "ms_p99": round(spent[int(len(spent) * 0.99)], 3),
    }


async def measured() -> list[dict[str, Any]]:
    sets = {name: read_cases(CALLS / f"{name}.jsonl") for name in ("given", "own", "second")}
    sets["all"] = [case for cases in sets.values() for case in cases]
    rows: list[dict[str, Any]] = []
    alone = make_guard(GuardSettings("rules"))
    certain = make_guard(GuardSettings("rules", blocks="certain"))
    for name, cases in sets.items():
        outcomes = await verdicts(alone, cases)
        times = rule_times(alone, cases)
        rows.append({"guard": "rules", "calls": name, **shares(outcomes), **times})
        for part, held_out in (("held out", True), ("the rest", False)):
            some = [o for o in outcomes if is_held_out(o.case) is held_out]
            rows.append({"guard": "rules", "calls": f"{name}, {part}", **shares(some)})
        only = await verdicts(certain, cases)
        rows.append({"guard": "rules, certain only", "calls": name, **shares(only)})
        if name == "all":
            for category, score in by_category(outcomes).items():
                some = [o for o in outcomes if o.case.category == category]
                rows.append({"guard": "rules", "calls": name, "category": category, **shares(some)})
                assert score.hacks + score.benign == len(some)
    rows += await with_judge(sets)
    return rows


async def with_judge(sets: dict[str, list[Case]]) -> list[dict[str, Any]]:
    """Means over the seeds; a cache would make a mistake last, so every seed has a guard of its own."""
    judge = LabelJudge(sets["all"])
    runner, url = await judge.serve()
    rows = []
    try:
        for rate in ERROR_RATES:
            for name in ("given", "all"):
                cases = sets[name]
                seen: list[dict[str, Any]] = []
                for seed in SEEDS:
                    judge.reset(rate, seed)
                    guard = make_guard(GuardSettings("judge", judge_url=url, judge_model="labels"))
                    seen.append(shares(await verdicts(guard, cases)))
                keys = ("recall", "precision", "false_blocks")
                means = {k: round(sum(s[k] for s in seen) / len(seen), 4) for k in keys}
                worst = {"precision_min": min(s["precision"] for s in seen)}
                worst["false_blocks_max"] = max(s["false_blocks"] for s in seen)
                rows.append(
                    {
                        "guard": "judge",
                        "judge_error": rate,
                        "calls": name,
                        "seeds": len(seen),
                        **means,
                        **worst,
                    }
                )
    finally:
        await runner.cleanup()
    return rows


def plot(rows: Sequence[dict[str, Any]]) -> None:
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    shown = [r for r in rows if "category" in r and r["hacks"]]
    figure, axis = plt.subplots(figsize=(8, 4.5))
    places = range(len(shown))
    axis.bar([p - 0.2 for p in places], [r["recall"] for r in shown], 0.4, label="recall")
    axis.bar(
        [p + 0.2 for p in places], [r["false_blocks"] for r in shown], 0.4, label="false blocks"
    )
    axis.set_xticks(
        list(places),
        [f"{r['category']} ({r['hacks']}/{r['benign']})" for r in shown],
        rotation=60,
        ha="right",
        fontsize=7,
    )
    axis.set_title("The rules alone, by category (hacks / benign calls)")
    axis.legend()
    figure.tight_layout()
    figure.savefig(RESULTS / "guard.png", dpi=110)


def main() -> None:
    rows = asyncio.run(measured())
    for row in rows:
        print("  ".join(f"{k}={v}" for k, v in row.items()))
    write_result("guard", rows, note=FIRST_SIGHT)
    plot(rows)


if __name__ == "__main__":
    main()
