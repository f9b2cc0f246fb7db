"""What the parts of a run need of a cluster, counted before anything starts."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from rlframe.config.schema import ClusterConfig, OpdConfig, PpoConfig, RunConfig
from rlframe.teachers.groups import engine_groups
from rlframe.teachers.manifest import DEFAULT_GROUP

ENGINE, POLICY, CRITIC, TEACHER = "engine", "policy", "critic", "teacher"
EVAL_ENGINE = "eval_engine"
"""Engines of evaluations in the background."""


@dataclass(frozen=True, slots=True)
class PartDemand:
    """`count` actors of one part, each with these Ray resources.

    Example: PartDemand("policy", count=2, cpus=1.0, gpus=0.0, resources={"train_node": 0.001})
    """

    name: str
    count: int
    cpus: float
    gpus: float
    resources: Mapping[str, float] = field(default_factory=dict)


def parts_of(config: RunConfig, *, device: str) -> list[PartDemand]:
    """The parts of this run: engines, critic and policy only where the algorithm has them."""
    cluster = config.cluster
    rank_gpus = cluster.gpus_per_rank if device == "cuda" else 0.0
    engine_gpus = cluster.gpus_per_engine if device == "cuda" else 0.0

    def part(name: str, count: int, cpus: float, gpus: float) -> PartDemand:
        return PartDemand(name, count, cpus, gpus, _pins(cluster, name))

    critics = config.trainer.critic.layout.world_size
    if config.algorithm.name == "value":
        return [part(CRITIC, critics, cluster.cpus_per_rank, rank_gpus)]
    parts = [
        part(POLICY, config.trainer.policy.layout.world_size, cluster.cpus_per_rank, rank_gpus)
    ]
    if isinstance(config.algorithm, PpoConfig):
        if has_critic(config.algorithm):
            parts.append(part(CRITIC, critics, cluster.cpus_per_rank, rank_gpus))
        rollout = config.rollout
        parts.append(part(ENGINE, rollout.engines, cluster.cpus_per_engine, engine_gpus))
        if rollout.eval_engines:
            count = rollout.eval_engines
            parts.append(part(EVAL_ENGINE, count, cluster.cpus_per_engine, engine_gpus))
    return parts + _teachers(config, device=device)


def teacher_part(group: str) -> str:
    """The part that an engine group of the teachers is; `cluster.resources.teacher` pins all of them."""
    return TEACHER if group == DEFAULT_GROUP else f"{TEACHER}/{group}"


def _teachers(config: RunConfig, *, device: str) -> list[PartDemand]:
    """One part for each group of teacher engines, where the run has a manifest of teachers."""
    algorithm = config.algorithm
    if not isinstance(algorithm, OpdConfig) or algorithm.teachers_on != "engines":
        return []
    return [
        PartDemand(
            teacher_part(group.name),
            group.engines,
            float(group.cpus_per_engine),
            float(group.gpus_per_engine) if device == "cuda" else 0.0,
            _pins(config.cluster, TEACHER),
        )
        for group in engine_groups(config.teachers)
        if group.engines
    ]


def engines_of(config: RunConfig, *, device: str) -> list[PartDemand]:
    """Of an evaluation: engines alone, no rank."""
    return [part for part in parts_of(config, device=device) if part.name == ENGINE]


def has_critic(algorithm: PpoConfig) -> bool:
    """With gae; a distillation has one only where there is a reward to predict."""
    if isinstance(algorithm, OpdConfig):
        rewarded = algorithm.task_reward or sums_penalties(algorithm)
        return algorithm.estimator == "gae" and algorithm.critic and rewarded
    return algorithm.estimator == "gae"


def sums_penalties(algorithm: OpdConfig) -> bool:
    """Whether the divergence from the teachers is a reward, of which returns are made."""
    return algorithm.objective == "sampled" and algorithm.distill_in == "reward"


def _pins(cluster: ClusterConfig, name: str) -> dict[str, float]:
    return {key: float(value) for key, value in cluster.resources.get(name, {}).items()}


def total(parts: list[PartDemand]) -> dict[str, float]:
    """Sum over all parts, by Ray's resource names (`CPU`, `GPU`, custom ones)."""
    needed: dict[str, float] = {}
    for part in parts:
        for key, value in {"CPU": part.cpus, "GPU": part.gpus, **part.resources}.items():
            if value:
                needed[key] = needed.get(key, 0.0) + value * part.count
    return needed
