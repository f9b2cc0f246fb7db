"""Warnings from a run's own metrics: rare, and each says what to do. Pure: history in, texts out."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from rlframe.metrics import Line, series

PATIENCE = 20
"""Steps over which something must hold before it is worth a word."""
ALARM_STEPS = 5
INFRA_ALARM_SHARE, FAILED_ALARM_SHARE = 0.05, 0.05
"""Of attempts; more is an alarm at once, not only after `PATIENCE` steps."""


def advice(history: Sequence[Line]) -> dict[str, str]:
    """What to say now, by a key that stays the same as long as the matter does."""
    return {rule.__name__: text for rule in _RULES if (text := rule(history))}


def critic_does_not_learn(history: Sequence[Line]) -> str:
    recent = _recent(history, "critic/explained_variance")
    if not recent or max(recent) >= 0.0:
        return ""
    return (
        f"explained variance was below 0 for {PATIENCE} steps (now {recent[-1]:.2f}): the critic is worse "
        "than a constant. Raise trainer.critic.lr or algorithm.critic_warmup_steps"
    )


def answers_are_cut_off(history: Sequence[Line]) -> str:
    recent = _recent(history, "rollout/truncated")
    if not recent or min(recent) <= 0.5:
        return ""
    return (
        f"over half of the trajectories hit a limit for {PATIENCE} steps (now {recent[-1]:.0%}): raise "
        "rollout.sampling.max_new_tokens, rollout.max_context_tokens or rollout.max_turns"
    )


def updates_go_far(history: Sequence[Line]) -> str:
    recent = _recent(history, "policy/kl")
    if not recent or min(recent) <= 0.1:
        return ""
    return (
        f"the policy moved by a KL of over 0.1 in each of {PATIENCE} steps (now {recent[-1]:.2f}): lower "
        "trainer.policy.lr, algorithm.epochs or algorithm.mini_batches"
    )


def updates_are_skipped(history: Sequence[Line]) -> str:
    skipped = [
        step
        for role in ("policy", "critic", "sft", "value")
        for step, share in series(history, f"{role}/skipped")
        if share > 0
    ]
    if not skipped:
        return ""
    return (
        f"{len(skipped)} updates were left out because loss or gradients were not finite (last at step "
        f"{max(skipped)}): lower the learning rate, or use model.dtype=float32"
    )


def our_side_fails(history: Sequence[Line]) -> str:
    recent = [value for _, value in series(history, "attempts/infra_error_share")][-ALARM_STEPS:]
    share = sum(recent) / len(recent) if recent else 0.0
    if share <= INFRA_ALARM_SHARE:
        return ""
    return (
        f"{share:.0%} of the attempts of the last {len(recent)} steps were lost by our side (engine, "
        "sandbox, network, grader), not by the policy: they train nothing; see logs/ and "
        "`rlframe inspect`"
    )


def tasks_fail(history: Sequence[Line]) -> str:
    recent = [value for _, value in series(history, "attempts/failed_share")][-ALARM_STEPS:]
    share = sum(recent) / len(recent) if recent else 0.0
    if share <= FAILED_ALARM_SHARE:
        return ""
    return (
        f"{share:.0%} of the attempts of the last {len(recent)} steps failed by their task or "
        "environment (an exception, a bad reward): `rlframe inspect` shows why"
    )


def engine_and_trainer_differ(history: Sequence[Line]) -> str:
    recent = _recent(history, "gap/mean")
    if not recent or min(recent) <= 0.02:
        return ""
    return (
        f"mean |train - rollout logprob| was above 0.02 for {PATIENCE} steps (now {recent[-1]:.2g}), more "
        "than bf16 explains: check rollout.engine_args (quantisation, attention backend)"
    )


_RULES: tuple[Callable[[Sequence[Line]], str], ...] = (
    critic_does_not_learn,
    answers_are_cut_off,
    updates_go_far,
    updates_are_skipped,
    our_side_fails,
    tasks_fail,
    engine_and_trainer_differ,
)


def _recent(history: Sequence[Line], name: str) -> list[float]:
    """The values of the last PATIENCE steps; empty as long as there are fewer."""
    values = [value for _, value in series(history, name)[-PATIENCE:]]
    return values if len(values) == PATIENCE else []
