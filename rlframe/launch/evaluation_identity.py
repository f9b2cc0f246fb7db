"""What all attempts of an evaluation share: its tasks, its pinned settings, its weights."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from rlframe.config.schema import RunConfig
from rlframe.errors import UserError, nearest
from rlframe.evaluation import record
from rlframe.evaluation.pins import digest, pinned, tasks_digest
from rlframe.installed import versions
from rlframe.interfaces import TaskSource
from rlframe.types import Task

PINNED_GROUPS = ("rollout", "guard", "sandbox")
"""Groups of the configuration that are pinned whole, where there are such."""


def source_of(config: RunConfig) -> TaskSource:
    """The union of the suites. UserError where one can't be made."""
    from envs.registry import make_source

    env = config.env
    return make_source(env.name, env.args, seed=env.seed, held_out=env.held_out)


def identify(config: RunConfig, tasks: Sequence[Task]) -> record.Identity:
    """Everything that attempts of this evaluation share; checks that the template knows the effort."""
    chosen = config.eval
    suites: dict[str, Any] = {}
    for name, suite in config.env.args["parts"].items():
        own = [task for task in tasks if task.id.startswith(f"{name}/")]
        suites[name] = {**suite, "tasks": len(own), "tasks_digest": tasks_digest(own)}
    groups = {name: getattr(config, name) for name in PINNED_GROUPS if hasattr(config, name)}
    settings = {
        **groups,
        "suites": suites,
        "eval": {
            name: getattr(chosen, name)
            for name in ("repeats", "effort", "solved_from", "task_faults")
        },
        "model": {"dtype": config.model.dtype, "chat_template": _template(config)},
        "seed": config.seed,
        "harness": _harness(config),
    }
    return record.Identity(pinned(settings), record.weights_of(config.model.path))


def _template(config: RunConfig) -> str:
    """Its digest. UserError where it has no variable that the chosen effort sets: that would do nothing."""
    from rollout.chat_template import ChatTokenizer

    directory = config.model.tokenizer or config.model.path
    if directory == "build":
        return "built"
    tokenizer = ChatTokenizer(directory)
    effort = config.eval.effort
    level = config.eval.efforts.get(effort, {}) if effort else {}
    for name in level.get("template_args", {}):
        if name not in tokenizer.variables():
            raise UserError(
                f"eval.effort={effort} sets the template's variable '{name}', which the chat template of "
                f"{directory} does not have.{nearest(name, tokenizer.variables())} Say what the effort is for "
                f"this model: eval.efforts.{effort}"
            )
    return digest({"template": tokenizer.template})


def _harness(config: RunConfig) -> str:
    """Who drives, and its version."""
    from rollout.harness.program import find_program

    if config.rollout.mode == "black_box":
        return find_program(config.rollout.black_box.program).package
    return f"rlframe {versions().get('rlframe', '')}".strip()
