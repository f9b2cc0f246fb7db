"""On-policy distillation: the objective, what it needs of the teachers, and the curriculum. Reads no checkpoint."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from rlframe.config.schema import OpdConfig, RunConfig
from rlframe.distillation.curriculum import parse_curriculum
from rlframe.errors import UserError

MOST_CANDIDATES = 4096
"""Of a teacher engine: each candidate of each token is a number and an id that travel as JSON."""


def check_distillation(config: RunConfig) -> None:
    algorithm = config.algorithm
    if not isinstance(algorithm, OpdConfig):
        return
    if not config.teachers.manifest:
        raise UserError(
            "teachers.manifest is empty: algorithm=opd needs the YAML file that lists the teachers"
        )
    _objective(algorithm)
    if algorithm.teachers_on == "ranks" and config.trainer.backend != "megatron":
        raise UserError(
            f"algorithm.teachers_on=ranks: trainer.backend={config.trainer.backend} holds no teachers; use "
            "engines, or the backend megatron"
        )
    if algorithm.compare and config.rollout.partial:
        raise UserError(
            "algorithm.compare serves other weights under the student's version, which rollout.partial keeps "
            "caches of: set algorithm.compare=false"
        )
    _weights("algorithm.domain_weights", algorithm.domain_weights)
    parse_curriculum(algorithm.curriculum)


def _objective(algorithm: OpdConfig) -> None:
    exact = algorithm.objective != "sampled"
    if exact and algorithm.distill_in == "reward":
        raise UserError(
            f"algorithm.distill_in=reward sums sampled log ratios; objective={algorithm.objective} is a loss"
        )
    if not exact and algorithm.top_k:
        raise UserError("algorithm.top_k is for objective=reverse_kl, forward_kl or jsd")
    temperature = algorithm.distill_temperature
    if temperature == 0:
        raise UserError("algorithm.distill_temperature=0: must be above 0")
    if not exact and temperature != 1:
        raise UserError(
            f"algorithm.distill_temperature={temperature:g}: objective=sampled takes the policy as it samples "
            "(rollout.sampling.temperature) and the teacher at 1"
        )
    if algorithm.top_k and algorithm.tail == "bucket" and temperature != 1:
        raise UserError(
            f"algorithm.distill_temperature={temperature:g} can't be had of tokens that are not known: "
            "with top_k use tail=renormalise, or temperature 1"
        )
    if algorithm.top_k and algorithm.teachers_on == "ranks":
        raise UserError(
            "algorithm.teachers_on=ranks has the whole vocabulary: leave algorithm.top_k=0"
        )
    if algorithm.top_k > MOST_CANDIDATES:
        raise UserError(f"algorithm.top_k={algorithm.top_k}: at most {MOST_CANDIDATES}")


def candidates_of(algorithm: OpdConfig, *, vocab_size: int) -> int:
    """How many of its likeliest tokens a teacher engine is asked for; UserError where that is too many."""
    if algorithm.objective == "sampled" or algorithm.teachers_on == "ranks":
        return 0
    if algorithm.top_k:
        return min(algorithm.top_k, vocab_size)
    if vocab_size > MOST_CANDIDATES:
        raise UserError(
            f"algorithm.objective={algorithm.objective} over the whole vocabulary of {vocab_size:,} tokens is "
            "too much for teacher engines: algorithm.top_k=64 takes the likeliest, "
            "algorithm.teachers_on=ranks has them all"
        )
    return vocab_size


def _weights(key: str, given: Mapping[str, Any]) -> None:
    for domain, weight in given.items():
        number = isinstance(weight, int | float) and not isinstance(weight, bool)
        if not number or weight < 0:
            raise UserError(f"{key}.{domain}={weight!r}: must be a number, at least 0")
