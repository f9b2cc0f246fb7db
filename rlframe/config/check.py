"""What one knob alone can't tell: checks over several, before anything starts. Each names its keys."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from rlframe.config.check_cluster import (
    check_engines,
    check_resources,
    check_runtime_env,
    check_transport,
)
from rlframe.config.check_critic import check_critic
from rlframe.config.check_deepspeed import check_backend
from rlframe.config.check_distillation import check_distillation
from rlframe.config.check_model import check_layouts, check_lengths, check_model
from rlframe.config.check_value import check_value
from rlframe.config.passthrough import PASSTHROUGH, check_options
from rlframe.config.schema import PpoConfig, RunConfig
from rlframe.errors import UserError, nearest
from rlframe.teachers.check import check_teachers_config


def check_config(config: RunConfig) -> None:
    """Raises UserError for the first thing that can't work. Reads the model's and run's directories."""
    for check in CHECKS:
        check(config)


def check_parts(config: RunConfig) -> None:
    """What `rlframe eval` shares with a training run beyond model and engines."""
    for check in (_passthrough, _guard, _mode, _run_dir):
        check(config)


def _passthrough(config: RunConfig) -> None:
    for key in PASSTHROUGH:
        value: Any = config
        for part in key.split("."):
            value = getattr(value, part)
        check_options(key, value)


def _run_dir(config: RunConfig) -> None:
    if not config.run_dir:
        raise UserError("run_dir is empty: say where the run's files go")
    path = Path(config.run_dir).expanduser()
    above = next(p for p in (path, *path.absolute().parents) if p.exists())
    if not above.is_dir():
        raise UserError(f"run_dir={config.run_dir}: '{above}' is a file, not a directory")


def _sampling(config: RunConfig) -> None:
    if not isinstance(config.algorithm, PpoConfig):
        return
    sampling = config.rollout.sampling
    if sampling.temperature == 0:
        raise UserError(
            "rollout.sampling.temperature=0 explores nothing and has no logprobs to learn from; use 1.0"
        )
    for name, off in (("top_p", 1.0), ("top_k", -1)):
        value = vars(sampling)[name]
        if value != off:
            raise UserError(
                f"rollout.sampling.{name}={value:g}: the trainer computes logprobs of the whole "
                f"distribution, engines would sample from a part of it; training needs {name}={off:g}"
            )


def _guard(config: RunConfig) -> None:
    guard = config.guard
    if guard.judge.url and not guard.judge.model:
        raise UserError("guard.judge.url is given: say which model there, by guard.judge.model")
    if guard.loss == "penalise" and guard.penalty == 0:
        raise UserError("guard.loss=penalise takes nothing: set guard.penalty above 0")


def _batches(config: RunConfig) -> None:
    algorithm = config.algorithm
    if algorithm.name == "sft":
        rows, rows_key = algorithm.batch_conversations, "algorithm.batch_conversations"
        _at_least("trainer.policy.layout.data", config.trainer.policy.layout.data, rows, rows_key)
        return
    if not isinstance(algorithm, PpoConfig):
        return
    rows, rows_key = algorithm.batch_trajectories, "algorithm.batch_trajectories"
    for name, role in (("mini_batches", "policy"), ("critic_mini_batches", "critic")):
        count = vars(algorithm)[name]
        _at_least(f"algorithm.{name}", count, rows, rows_key)
        data = vars(config.trainer)[role].layout.data
        _at_least(
            f"trainer.{role}.layout.data={data} times algorithm.{name}",
            data * count,
            rows,
            rows_key,
        )
    if algorithm.critic_warmup_steps >= config.steps:
        raise UserError(
            f"algorithm.critic_warmup_steps={algorithm.critic_warmup_steps} leaves no step of "
            f"steps={config.steps} in which the policy learns"
        )


def _at_least(key: str, count: int, rows: int, rows_key: str) -> None:
    if count > rows:
        raise UserError(
            f"{key}={count} is more than {rows_key}={rows}: every part needs at least one row"
        )


def _estimator(config: RunConfig) -> None:
    algorithm = config.algorithm
    if not isinstance(algorithm, PpoConfig):
        return
    attempts, rows = algorithm.rollouts_per_task, algorithm.batch_trajectories
    if algorithm.estimator in ("grpo", "rloo") and attempts < 2:
        raise UserError(
            f"algorithm.estimator={algorithm.estimator} compares the attempts at a task: "
            f"algorithm.rollouts_per_task={attempts} must be 2 or more (gae takes one)"
        )
    if rows % attempts:
        raise UserError(
            f"algorithm.rollouts_per_task={attempts} does not divide algorithm.batch_trajectories={rows}: "
            "a task's attempts would be torn apart"
        )
    context = config.trainer.policy.layout.context
    if algorithm.policy_loss == "gspo" and context > 1:
        raise UserError(
            "algorithm.policy_loss=gspo needs whole traces on a rank: "
            f"trainer.policy.layout.context={context} splits them; use ppo or cispo"
        )
    for kind in ("mask", "reject"):
        above = vars(algorithm)[f"{kind}_above"]
        if 0 < above < 1:
            raise UserError(
                f"algorithm.{kind}_above={above:g} would leave out what both sides agree on: "
                "1 or more, or 0 for off"
            )


def _prefixes(config: RunConfig) -> None:
    trainer, given = config.trainer, "trainer.share_prefixes=true"
    if not trainer.share_prefixes:
        return
    for key, mode, off in (
        ("mtp", trainer.policy.mtp.mode, "off"),
        ("indexer", trainer.policy.indexer.mode, "frozen"),
    ):
        if mode != off:
            raise UserError(
                f"{given} with trainer.policy.{key}.mode={mode}: its loss is a mean over the tokens of whole "
                f"rows. Set trainer.share_prefixes=false, or trainer.policy.{key}.mode={off}"
            )
    for name, role in (("policy", trainer.policy), ("critic", trainer.critic)):
        if role.transformer.get("moe_router_bias_update_rate"):
            raise UserError(
                f"{given}: trainer.{name}.transformer.moe_router_bias_update_rate counts the tokens of whole "
                "rows. Set trainer.share_prefixes=false, or the rate to 0"
            )


def _staleness(config: RunConfig) -> None:
    if (
        isinstance(config.algorithm, PpoConfig)
        and config.rollout.partial
        and not config.algorithm.max_staleness
    ):
        raise UserError(
            "rollout.partial=true lets a trajectory run on over a weight update, which "
            "algorithm.max_staleness=0 forbids: allow 1 or more"
        )


def _mode(config: RunConfig) -> None:
    rollout = config.rollout
    compaction = rollout.compaction
    compacts = compaction.at_share > 0 or compaction.every_turns > 0 or compaction.by_tool
    if rollout.mode == "black_box":
        if not rollout.black_box.program:
            raise UserError(
                "rollout.mode=black_box needs rollout.black_box.program: mini_swe_agent, claude_code, ..."
            )
        for key, given in (("compaction", compacts), ("sub_agents", rollout.sub_agents.max_agents)):
            if given:
                raise UserError(
                    f"rollout.{key} is for rollout.mode=white_box: an agent program does that by itself"
                )
    for domain, limit in rollout.domain_concurrency.items():
        if not isinstance(limit, int) or isinstance(limit, bool) or limit < 1:
            raise UserError(
                f"rollout.domain_concurrency.{domain}={limit!r} must be an integer of 1 or more"
            )
        parts = config.env.args.get("parts", {}) if config.env.name == "mixed" else {}
        if parts and domain.partition("/")[0] not in parts:
            raise UserError(
                f"rollout.domain_concurrency.{domain}: env.args.parts has no such part."
                f"{nearest(domain, parts)}"
            )
    if compaction.by_tool and not rollout.tool_call_parser:
        raise UserError(
            "rollout.compaction.by_tool is set, but the tool could never be called: "
            "rollout.tool_call_parser is empty (qwen25 for Qwen3-type templates)"
        )
    if rollout.sub_agents.max_agents and not rollout.tool_call_parser:
        raise UserError(
            "rollout.sub_agents.max_agents is set, but no sub-agent could ever be called: "
            "rollout.tool_call_parser is empty (qwen25 for Qwen3-type templates)"
        )


def _teachers(config: RunConfig) -> None:
    for group in config.teachers.groups.values():
        if isinstance(group, dict) and isinstance(group.get("engine_args"), dict):
            check_options("teachers.engine_args", group["engine_args"])
    model = config.model
    built = model.tokenizer == "build"
    check_teachers_config(
        config.teachers,
        student_tokenizer=None if built else Path(model.tokenizer or model.path),
        max_tokens=config.rollout.max_context_tokens,
        here=not config.cluster.address,
        gpus=config.cluster.device != "cpu",
    )


CHECKS: tuple[Callable[[RunConfig], None], ...] = (
    _passthrough,
    check_backend,
    check_model,
    check_critic,
    check_layouts,
    check_lengths,
    check_value,
    _sampling,
    _guard,
    _batches,
    _estimator,
    _prefixes,
    _staleness,
    check_resources,
    check_engines,
    check_transport,
    check_runtime_env,
    _mode,
    check_distillation,
    _teachers,
    _run_dir,
)
