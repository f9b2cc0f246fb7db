"""Value pretraining: its sources are runs with trajectories of the same vocabulary, and of lengths that fit."""

from __future__ import annotations

import json
from pathlib import Path

from rlframe.config.check_critic import vocabularies_differ
from rlframe.config.check_model import critic_shape, model_shape
from rlframe.config.schema import RunConfig, ValueConfig
from rlframe.errors import UserError
from rlframe.stored_trajectories import KEY, StoredTrajectories


def max_trace_tokens(config: RunConfig) -> int:
    """What a micro-batch of the critic holds, and its positions."""
    critic = config.trainer.critic
    shape = critic_shape(critic.path) if critic.path else model_shape(config.model)
    tokens = critic.layout.capacity(config.trainer.max_tokens_per_micro_batch)
    return min(tokens, int(shape.get("max_position_embeddings", tokens)))


def check_value(config: RunConfig) -> None:
    """Opens the stores, so that a run that would find nothing never begins."""
    algorithm = config.algorithm
    if not isinstance(algorithm, ValueConfig):
        return
    with StoredTrajectories(
        algorithm.source_runs,
        until_version=algorithm.until_version,
        max_trace_tokens=max_trace_tokens(config),
    ) as stored:
        training, _ = stored.split(held_out_share=algorithm.held_out_share)
    data, rows = config.trainer.critic.layout.data, min(algorithm.batch_trajectories, len(training))
    if data > rows:
        raise UserError(
            f"trainer.critic.layout.data={data} is more than the {rows} trajectories of a step "
            f"(algorithm.batch_trajectories={algorithm.batch_trajectories}): every rank needs one"
        )
    for run in algorithm.source_runs:
        _check_vocabulary(config, Path(run).expanduser() / "model")


def _check_vocabulary(config: RunConfig, source: Path) -> None:
    """Token ids of a source mean the same here."""
    described = source / "config.json"
    if not described.is_file():
        raise UserError(
            f"{KEY}: '{described}' is missing: which vocabulary its token ids are of is unknown"
        )
    theirs, ours = json.loads(described.read_text()).get("vocab_size"), model_shape(config.model)
    if ours.get("vocab_size", theirs) != theirs:
        raise UserError(
            f"{KEY}: the tokens of '{source.parent}' are of a vocabulary of {theirs}, the model's has "
            f"{ours['vocab_size']}"
        )
    model = config.model
    if model.tokenizer == "build":
        raise UserError(
            f"model.tokenizer=build makes new token ids, which those in {KEY} are not: give model.tokenizer "
            f"'{source}'"
        )
    different = vocabularies_differ(Path(model.tokenizer or model.path), source)
    if different:
        raise UserError(f"{KEY}: {different}")
