"""What capture costs, and that it loses nothing.

    python -m benchmarks.capture

1. Microseconds a turn to record and build conversations of 10, 50 and 200 turns (a 4,000-token opening,
   40 sampled and 60 read tokens a turn), against the least that keeping one row a call can cost: one
   copy of its prompt and answer.
2. The share of sampled tokens that train, in 500 random sessions with drift, retries, forks, dropped
   replies, compactions and sub-agents; beside it the share that is left when every conversation is
   tokenized again from its text, which is what capturing messages comes down to.
3. 100,000 calls that share 4,000-token prompts: seconds, and bytes of memory per distinct token.
"""

from __future__ import annotations

import random
import resource
import sys
import time

import numpy as np
from tokenizers import Tokenizer, decoders, models, pre_tokenizers

from benchmarks.harness import Round, interleaved, ratio, row, write_result
from rlframe.types import Turn
from rollout.capture.build import build, traces_of
from rollout.capture.call import CallKind, Thread
from rollout.capture.capture import Capture

OPENING, SAMPLED, READ = 4000, 40, 60
TURNS = (10, 50, 200)
ROUNDS = 7
SESSIONS = 500
CALLS = 100_000


def conversation(turns: int, seed: int) -> list[Turn]:
    """One agent that only appends."""
    r = random.Random(seed)
    context = [r.randrange(150_000) for _ in range(OPENING)]
    made = []
    for number in range(turns):
        output = [r.randrange(150_000) for _ in range(SAMPLED)]
        made.append(turn_of(context, output, number))
        context = [*context, *output, *(r.randrange(150_000) for _ in range(READ))]
    return made


def turn_of(prompt: list[int], output: list[int], number: int) -> Turn:
    count = len(output)
    return Turn(
        np.array(prompt, np.int32), tuple(output), (-1.0,) * count, (number,) * count, "stop"
    )


def capture_round(turns: list[Turn]) -> Round:
    began, cpu_began = time.perf_counter(), time.process_time()
    capture = Capture()
    base = None
    for turn in turns:
        base = capture.record(turn, base=base).id
    built = build(capture)
    ended, cpu_ended = time.perf_counter(), time.process_time()
    assert len(built.traces) == 1
    assert built.traces[0].actions == SAMPLED * len(turns)
    return Round(ended - began, cpu_ended - cpu_began, len(turns))


def row_a_call_round(turns: list[Turn]) -> Round:
    began, cpu_began = time.perf_counter(), time.process_time()
    rows = [np.append(turn.prompt_ids, np.array(turn.output_ids, np.int32)) for turn in turns]
    ended, cpu_ended = time.perf_counter(), time.process_time()
    assert len(rows) == len(turns)
    return Round(ended - began, cpu_ended - cpu_began, len(turns))


class WildSession:
    """Random calls over a byte vocabulary with merges: much of it is no valid UTF-8."""

    def __init__(self, seed: int, tokenizer: Tokenizer) -> None:
        self.r, self.tokenizer = random.Random(seed), tokenizer
        self.capture = Capture()
        self.sampled: set[tuple[int, ...]] = set()
        self.kept_by_text = 0

    def tokens(self, low: int, high: int) -> list[int]:
        size = self.tokenizer.get_vocab_size()
        return [self.r.randrange(size) for _ in range(self.r.randrange(low, high))]

    def call(self, prompt: list[int], thread: str, base: int | None, kind: CallKind) -> tuple:
        output = self.tokens(5, 40)
        turn = turn_of(prompt, output, 0)
        call = self.capture.record(turn, base=base, thread=thread, kind=kind)
        self.sampled |= {(*prompt, *output[: i + 1]) for i in range(len(output))}
        again = self.tokenizer.encode(self.tokenizer.decode(output)).ids
        same = next(
            (i for i, pair in enumerate(zip(output, again, strict=False)) if pair[0] != pair[1]),
            min(len(output), len(again)),
        )
        self.kept_by_text += same
        return call.id, output

    def agent(self, context: list[int], depth: int, thread: str) -> None:
        base = None
        for _ in range(self.r.randrange(2, 12)):
            event = self.r.random()
            if event < 0.05:
                self.call(context, thread, base, CallKind.TURN)
            base, output = self.call(context, thread, base, CallKind.TURN)
            full = context + output
            if event > 0.95:
                context, base = context + self.tokens(1, 4), None
                continue
            if 0.85 < event <= 0.90:
                full, base = context + output[:-1] + self.tokens(1, 2), None
            if 0.80 < event <= 0.85 and depth < 2:
                name = f"{thread}.{base}"
                self.capture.threads[name] = Thread(name, parent=thread, spawned_by=base)
                self.agent(self.tokens(5, 20), depth + 1, name)
            if 0.74 < event <= 0.80:
                prompt = full + self.tokens(2, 4)
                _, summary = self.call(prompt, thread, base, CallKind.COMPACTION)
                full, base = context[:3] + summary + output, None
            context = full + self.tokens(2, 30)


def byte_tokenizer() -> Tokenizer:
    """Every byte, and the pairs of a few hundred: random ids rarely survive their own text."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    r = random.Random(0)
    pairs = list({(r.choice(alphabet), r.choice(alphabet)) for _ in range(300)})
    vocabulary = {symbol: i for i, symbol in enumerate([*alphabet, *("".join(p) for p in pairs)])}
    tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=pairs))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.decoder = decoders.ByteLevel()
    return tokenizer


def shares() -> dict[str, float]:
    sampled = trained = by_text = calls = 0
    tokenizer = byte_tokenizer()
    for seed in range(SESSIONS):
        session = WildSession(seed, tokenizer)
        session.agent(session.tokens(5, 30), 0, "main")
        got = {
            tuple(trace.token_ids[: p + 1].tolist())
            for trace in build(session.capture).traces
            for p in np.flatnonzero(trace.loss_mask)
        }
        assert got <= session.sampled, "something trains that nobody sampled"
        sampled, trained = sampled + len(session.sampled), trained + len(got)
        by_text, calls = by_text + session.kept_by_text, calls + len(session.capture.calls)
    return {
        "calls": calls,
        "sampled_tokens": sampled,
        "trained_share": trained / sampled,
        "share_when_tokenized_again": round(by_text / sampled, 4),
    }


def many_calls() -> dict[str, float]:
    """Samples of 250 prompts, as a wide search would make them."""
    prompts = [conversation(1, seed)[0].prompt_ids for seed in range(250)]
    output = tuple(range(30))
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    began = time.perf_counter()
    capture = Capture()
    for number in range(CALLS):
        prompt = np.append(prompts[number % 250], np.int32(number))
        turn = Turn(prompt, output, (-1.0,) * 30, (0,) * 30, "stop")
        capture.record(turn)
    actions = sum(trace.actions for trace in traces_of(capture))
    seconds = time.perf_counter() - began
    grown = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) * 1024
    assert actions == CALLS * 30
    return {
        "calls": CALLS,
        "seconds": round(seconds, 2),
        "distinct_tokens": capture.trie.tokens,
        "prompt_and_output_tokens": CALLS * (OPENING + 31),
        "bytes_per_distinct_token": round(grown / capture.trie.tokens, 1),
        "peak_growth_mib": round(grown / 2**20, 1),
    }


def main() -> int:
    rows = []
    for turns in TURNS:
        made = conversation(turns, seed=turns)
        measured = interleaved(
            {
                "rlframe": lambda made=made: capture_round(made),
                "row_a_call": lambda made=made: row_a_call_round(made),
            },
            rounds=ROUNDS,
        )
        for side, rounds in measured.items():
            microseconds = float(np.median([r.seconds / r.amount for r in rounds])) * 1e6
            rows.append(row(side, rounds, turns=turns, us_a_turn=round(microseconds, 1)))
            print(f"{turns:>4} turns  {side:<12} {microseconds:8.1f} us a turn")
        rows.append(
            {
                "side": "ratio",
                "turns": turns,
                "to_row_a_call": round(ratio(measured["rlframe"], measured["row_a_call"]), 2),
            }
        )
    kept = shares()
    print(f"sampled tokens that train: {kept['trained_share']:.0%} of {kept['sampled_tokens']:,}; ")
    print(f"tokenized again from text: {kept['share_when_tokenized_again']:.1%}")
    rows.append({"side": "exactness", **kept})
    many = many_calls()
    print(
        f"{CALLS:,} calls in {many['seconds']} s, {many['bytes_per_distinct_token']} bytes per "
        f"distinct token ({many['distinct_tokens']:,} of {many['prompt_and_output_tokens']:,} tokens)"
    )
    rows.append({"side": "many calls", **many})
    write_result("capture", rows)
    return 0


if __name__ == "__main__":
    sys.exit(main())
