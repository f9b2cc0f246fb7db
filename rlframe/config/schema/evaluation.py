"""What `rlframe eval` measures, and how attempts become figures."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from rlframe.config.knob import knob

Dict = dict[str, Any]


@dataclass
class EvalConfig:
    """`rlframe eval`: suites, repeats, and how figures are made. Sampling and limits are `rollout`'s own."""

    preset: str = knob("default", help="the preset's name, for people")
    suites: Dict = knob(
        factory=dict,
        help="what is evaluated, by name: an option of the group `env`, or {name, args, held_out, seed}; "
        "empty: `env` alone",
    )
    repeats: int = knob(1, help="attempts at each task", unit="attempts", minimum=1)
    effort: str = knob("", help="reasoning effort, one of `eval.efforts`; empty: as `rollout` says")
    efforts: Dict = knob(
        factory=dict,
        help="what an effort changes of `rollout`: {template_args, max_new_tokens, max_context_tokens, "
        "max_turns, attempt_timeout_s}",
    )
    solved_from: float = knob(1.0, help="a score that counts as solved, for pass@k and pass^k")
    task_faults: str = knob(
        "exclude",
        help="attempts that failed by the task's own code (environment, verifier): left out, or zeros",
        allowed=("exclude", "zero"),
    )
    max_lost_share: float = knob(
        0.05,
        help="exit 1 when more than this share of the attempts was lost by our side: the same command "
        "makes them again",
        minimum=0.0,
        maximum=1.0,
    )
    price_prompt: float = knob(0.0, help="of a million prompt tokens", minimum=0.0)
    price_sampled: float = knob(0.0, help="of a million sampled tokens", minimum=0.0)
    price_engine_hour: float = knob(0.0, help="of an engine for an hour", minimum=0.0)
    currency: str = knob("USD", help="of the prices")
