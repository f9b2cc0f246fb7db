"""The critic: its own checkpoint reads the policy's tokens, and its value head is the configured one."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from rlframe.config.check_model import check_weights, critic_shape, model_shape
from rlframe.config.schema import PpoConfig, RunConfig, ValueLossConfig
from rlframe.errors import UserError
from rlframe.model_shapes.value_head import head_mismatch

KEY = "trainer.critic.path"


def check_critic(config: RunConfig) -> None:
    algorithm = config.algorithm
    if not isinstance(algorithm, ValueLossConfig):
        return
    if algorithm.value_low >= algorithm.value_high:
        raise UserError(
            f"algorithm.value_low={algorithm.value_low:g} must be below "
            f"algorithm.value_high={algorithm.value_high:g}"
        )
    if not config.trainer.critic.path:
        return
    path, model = Path(config.trainer.critic.path), config.model
    shape = critic_shape(str(path))
    check_weights(path, KEY)
    own, other = shape.get("vocab_size"), model_shape(model).get("vocab_size")
    if other is not None and own != other:
        raise UserError(
            f"{KEY}: its vocab_size={own} is not the policy's {other}: both read the same tokens"
        )
    if model.tokenizer != "build":
        different = vocabularies_differ(path, Path(model.tokenizer or model.path))
        if different:
            raise UserError(f"{KEY}: {different}: both read the same tokens")
    mismatch = head_mismatch(shape, algorithm)
    if mismatch:
        raise UserError(
            f"{KEY}: {mismatch}. Set algorithm.value_loss, value_bins, value_low and value_high to what it was "
            "trained with, or start from a policy's checkpoint, which gets a new head"
        )
    positions, context = shape.get("max_position_embeddings"), config.rollout.max_context_tokens
    rolls_out = isinstance(algorithm, PpoConfig)
    if rolls_out and positions is not None and context > positions:
        raise UserError(
            f"rollout.max_context_tokens={context} is above max_position_embeddings={positions} of {KEY}"
        )


def vocabularies_differ(a: Path, b: Path) -> str:
    """The first token that two tokenizer directories number differently, in words; empty where there is
    none, or where one of them has no `tokenizer.json`."""
    files = (a / "tokenizer.json", b / "tokenizer.json")
    if not all(file.is_file() for file in files):
        return ""
    ours, theirs = (_vocabulary(file) for file in files)
    for token in sorted(ours.keys() | theirs.keys()):
        if ours.get(token) != theirs.get(token):
            return f"token {token!r} is {ours.get(token)} in '{files[0]}' and {theirs.get(token)} in '{files[1]}'"
    return ""


def _vocabulary(file: Path) -> dict[str, int]:
    """Ids by token, added tokens too. Raises UserError for a file that is no tokenizer."""
    try:
        described: Any = json.loads(file.read_text())
        vocab = described["model"]["vocab"]
        if isinstance(vocab, list):  # Unigram: [token, score], numbered in order
            vocab = {token: number for number, (token, _) in enumerate(vocab)}
        added = {t["content"]: t["id"] for t in described.get("added_tokens", ())}
        return {**vocab, **added}
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise UserError(f"'{file}' is broken: {type(error).__name__}: {error}") from None
