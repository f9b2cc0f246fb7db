"""The guard: who watches what an agent's tools do."""

from __future__ import annotations

from dataclasses import dataclass, field

from rlframe.config.knob import knob


@dataclass
class JudgeConfig:
    """The model that confirms or clears what the rules flag (`guard.mode=judge`)."""

    url: str = knob(
        "",
        help="an OpenAI-compatible endpoint, up to before `/chat/completions`; empty: the run's own engines",
    )
    model: str = knob("", help="its model's name, for `url`")
    key_env: str = knob(
        "", help="environment variable that holds its key, on the workers' machines"
    )
    timeout_s: float = knob(30.0, help="how long one answer may take", unit="s", minimum=0.1)
    on_failure: str = knob(
        "rules",
        help="without an answer: `block`, `allow`, or `rules` (blocks what breaks a rule as it is written)",
        allowed=("rules", "block", "allow"),
    )


@dataclass
class GuardConfig:
    """What stops hacks while they happen. Tasks without rules are not watched."""

    mode: str = knob(
        "rules",
        help="rules: what they flag is blocked; judge: what a judge confirms of it; off",
        allowed=("rules", "judge", "off"),
    )
    blocks: str = knob(
        "flagged",
        help="without a judge: all that is flagged, or only what breaks a rule as it is written",
        allowed=("flagged", "certain"),
    )
    action: str = knob(
        "block",
        help="on a hack: block (a dummy answers, the attempt goes on), end (the attempt is over, with no "
        "reward), or watch (nothing is stopped, only counted)",
        allowed=("block", "end", "watch"),
    )
    loss: str = knob(
        "mask",
        help="of a turn with a blocked call: mask (no token of it trains), train, penalise",
        allowed=("mask", "train", "penalise"),
    )
    penalty: float = knob(
        0.0, help="taken from the reward for each such turn, with loss=penalise", minimum=0.0
    )
    on_finding: str = knob(
        "report",
        help="where a finished attempt's changes show a hack (black box): report it, or zero its reward",
        allowed=("report", "zero"),
    )
    judge: JudgeConfig = field(default_factory=JudgeConfig)
