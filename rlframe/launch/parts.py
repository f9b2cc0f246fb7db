"""The parts of a run, made from its configuration; nothing starts here."""

from __future__ import annotations

import math
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from rlframe.bad_steps import BadSteps
from rlframe.cluster.demand import CRITIC, ENGINE, EVAL_ENGINE, POLICY, has_critic
from rlframe.cluster.preflight import SHARED_MEMORY
from rlframe.cluster.shared_directory import check_shared
from rlframe.config.check_model import read_shape as read_config
from rlframe.config.schema import (
    OpdConfig,
    PpoConfig,
    RunConfig,
    SubAgentsConfig,
    ValueConfig,
    ValueLossConfig,
)
from rlframe.distillation.learning import Teaching
from rlframe.errors import UserError
from rlframe.interfaces import RoleTrainer
from rlframe.launch.black_box import black_box_spec
from rlframe.launch.guard import guard_maker
from rlframe.launch.job import Job
from rlframe.learner import Learner
from rlframe.model_costs.row_costs import row_costs
from rlframe.model_shapes.value_head import value_bins, with_value_head
from rlframe.teachers.manifest import read_manifest
from rlframe.types import WeightManifest
from rollout.compaction import INSTRUCTION, CompactionPolicy
from rollout.engine.client import EXTRAS
from rollout.engine.pool import EnginePool
from rollout.engine.server import EngineSpec
from rollout.modes.white_box import Limits
from rollout.service import RolloutPool
from rollout.sub_agents import SubAgentPolicy
from rollout.worker_spec import WorkerSpec
from trainer.objective import (
    DistillationObjective,
    PolicyObjective,
    SftObjective,
    ValueBins,
    ValueObjective,
)
from trainer.ranks.role import RankedRole
from trainer.ranks.spec import ModelSource


def policy_of(job: Job, objective: PolicyObjective | SftObjective) -> RankedRole:
    config = job.config
    return RankedRole(
        "policy",
        config=config.trainer.policy,
        trainer=config.trainer,
        model=_source(job, job.model.weights, seed=config.model.init_seed),
        objective=objective,
        total_steps=config.steps,
        device=job.device,
        scheduling=job.options[POLICY],
        keeps_reference=isinstance(config.algorithm, PpoConfig) and config.algorithm.kl_coef > 0,
        teachers=_teachers_on_ranks(config),
        keeps_teacher_states=isinstance(config.algorithm, OpdConfig)
        and config.algorithm.epochs > 1,
    )


def _teachers_on_ranks(config: RunConfig) -> list[str]:
    """Their checkpoints, in the manifest's order."""
    algorithm = config.algorithm
    if not isinstance(algorithm, OpdConfig) or algorithm.teachers_on != "ranks":
        return []
    return [teacher.checkpoint for teacher in read_manifest(config.teachers.manifest).teachers]


def roles_of(job: Job, algorithm: PpoConfig) -> tuple[RankedRole, RankedRole | None]:
    """The policy, and the critic where the algorithm has one."""
    policy = policy_of(job, policy_objective(job, algorithm))
    return policy, critic_of(job, algorithm) if has_critic(algorithm) else None


def critic_of(job: Job, algorithm: PpoConfig | ValueConfig) -> RankedRole:
    """Starts from its own checkpoint, or from the policy's."""
    config, bins = job.config, value_bins(algorithm)
    return RankedRole(
        "critic",
        config=config.trainer.critic,
        trainer=config.trainer,
        model=critic_source(job, algorithm),
        objective=ValueObjective(
            # Offline there is no V from before the step that it could be clipped to.
            value_clip=algorithm.value_clip if isinstance(algorithm, PpoConfig) else 0.0,
            bins=ValueBins(**bins) if bins else None,
        ),
        total_steps=config.steps,
        device=job.device,
        scheduling=job.options[CRITIC],
    )


def critic_source(job: Job, algorithm: ValueLossConfig) -> ModelSource:
    """Its own checkpoint, of whatever size and family that is, or the policy's."""
    own = job.config.trainer.critic.path
    hf_config = read_config(Path(own), "trainer.critic.path") if own else job.model.hf_config
    return ModelSource(
        hf_config=with_value_head(hf_config, algorithm),
        path=own or job.model.weights,
        dtype=job.config.model.dtype,
        seed=job.config.model.init_seed,
    )


def learner_of(
    job: Job,
    algorithm: PpoConfig,
    policy: RoleTrainer,
    critic: RoleTrainer | None,
    bad_steps: BadSteps,
    teaching: Teaching | None = None,
) -> Learner:
    config, longest = job.config, job.config.rollout.max_context_tokens
    critic_config = critic_source(job, algorithm).hf_config
    return Learner(
        algorithm=algorithm,
        policy=policy,
        critic=critic,
        max_tokens_per_micro_batch=config.trainer.max_tokens_per_micro_batch,
        row_costs=row_costs(job.model.hf_config, longest=longest),
        critic_row_costs=row_costs(critic_config, longest=longest),
        bad_steps=bad_steps,
        seed=config.seed,
        teaching=teaching,
        share_prefixes=config.trainer.share_prefixes,
    )


def policy_objective(job: Job, algorithm: PpoConfig) -> PolicyObjective:
    return PolicyObjective(
        clip_low=algorithm.clip_low,
        clip_high=algorithm.clip_high,
        dual_clip=algorithm.dual_clip,
        importance_cap=algorithm.importance_cap,
        entropy_coef=algorithm.entropy_coef,
        temperature=job.config.rollout.sampling.temperature,
        policy_loss=algorithm.policy_loss,
        ratio_against=algorithm.ratio_against,
        mask_below=algorithm.mask_below,
        mask_above=algorithm.mask_above,
        kl_coef=algorithm.kl_coef if algorithm.kl_in == "loss" else 0.0,
        kl_estimator=algorithm.kl_estimator,
        distillation=_distillation(algorithm),
    )


def _distillation(algorithm: PpoConfig) -> DistillationObjective | None:
    """The sampled objective is an advantage, not a loss of its own."""
    if not isinstance(algorithm, OpdConfig) or algorithm.objective == "sampled":
        return None
    return DistillationObjective(
        divergence=algorithm.objective,
        coef=algorithm.distill_coef,
        beta=algorithm.jsd_beta,
        temperature=algorithm.distill_temperature,
        tail=algorithm.tail,
    )


def rollouts_of(job: Job, *, part: str = ENGINE) -> RolloutPool:
    """Engines, router and workers; `part=EVAL_ENGINE`: those of evaluations in the background."""
    config = job.config
    rollout = config.rollout
    evaluating = part == EVAL_ENGINE
    logs = job.directory.logs / "evaluation" if evaluating else job.directory.logs
    specs = [
        EngineSpec(
            index=index,
            model_directory=str(job.model.weights or job.model.directory),
            random_weights=not job.model.weights,
            dtype=config.model.dtype,
            device=job.device,
            arguments=dict(rollout.engine_args),
            seed=config.seed,
            num_threads=rollout.num_threads,
            log_directory=str(logs),
            start_timeout_s=rollout.start_timeout_s,
            control_timeout_s=config.sync.timeout_s,
        )
        for index in range(rollout.eval_engines if evaluating else rollout.engines)
    ]
    engines = EnginePool(
        specs,
        scheduling=job.options[part],
        router=rollout.router and not evaluating,
        # Ports that the user gave are those of the training rollouts' router.
        router_arguments={} if evaluating else rollout.router_args,
        one_host=job.cluster.one_host,
        partial=rollout.partial and not evaluating,
        sync_timeout_s=config.sync.timeout_s,
        max_restarts=rollout.max_restarts,
        hung_after_s=rollout.hung_after_s,
    )
    sampling = rollout.sampling
    worker = WorkerSpec(
        make_source=job.make_source,
        tokenizer_directory=str(job.model.directory),
        vocab_size=job.model.vocab_size,
        sampling={
            "temperature": sampling.temperature,
            "top_p": sampling.top_p,
            "top_k": sampling.top_k,
            "max_new_tokens": sampling.max_new_tokens,
            "ignore_eos": sampling.ignore_eos,
        },
        limits=Limits(
            max_turns=rollout.max_turns,
            attempt_timeout_s=rollout.attempt_timeout_s,
            infra_retries=rollout.infra_retries,
        ),
        max_context_tokens=rollout.max_context_tokens,
        compaction=CompactionPolicy(
            at_share=rollout.compaction.at_share,
            every_turns=rollout.compaction.every_turns,
            by_tool=rollout.compaction.by_tool,
            keep_turns=rollout.compaction.keep_turns,
            max_summary_tokens=rollout.compaction.max_summary_tokens,
            instruction=rollout.compaction.instruction or INSTRUCTION,
        ),
        sub_agents=_sub_agents(rollout.sub_agents),
        black_box=black_box_spec(rollout) if rollout.mode == "black_box" else None,
        make_guard=guard_maker(config.guard),
        call_log_directory=str(job.directory.path / "calls") if rollout.call_logs else "",
        tool_call_parser=rollout.tool_call_parser,
        reasoning_parser=rollout.reasoning_parser,
        template_args=dict(rollout.template_args),
        extras=tuple(
            name for name in EXTRAS if rollout.engine_args.get(f"enable_return_{name}", False)
        ),
        request_timeout_s=rollout.request_timeout_s,
        max_concurrency=math.ceil(rollout.max_concurrency / rollout.workers),
        domain_concurrency={
            domain: math.ceil(limit / rollout.workers)
            for domain, limit in rollout.domain_concurrency.items()
        },
    )
    workers = 1 if evaluating else rollout.workers
    return RolloutPool(engines, worker, workers=workers, on_event=job.view.warn)


def _sub_agents(config: SubAgentsConfig) -> SubAgentPolicy:
    default = SubAgentPolicy()
    return SubAgentPolicy(
        max_agents=config.max_agents,
        max_depth=config.max_depth,
        max_turns=config.max_turns,
        system_prompt=config.system_prompt or default.system_prompt,
    )


def publisher(job: Job, policy: RoleTrainer, directory: str) -> Callable[[int], WeightManifest]:
    """By `sync.transport`: files in `directory`, or handles of memory."""
    if job.config.sync.transport == "tensor":
        if not job.cluster.one_host:
            raise UserError(
                "sync.transport=tensor shares memory, but this cluster has several hosts: use sync=disk"
            )
        return lambda version: policy.share(version).result()
    return lambda version: policy.export(version, directory).result()


@contextmanager
def weights_directory(job: Job) -> Iterator[str]:
    """Where published weights lie: shared memory on one host, else below the run directory. Removed at
    the end, however the run ends. UserError where a node of the policy or the engines does not see it."""
    if job.config.sync.directory:
        path = _new_directory(Path(job.config.sync.directory).absolute())
    elif job.cluster.one_host and SHARED_MEMORY.is_dir():
        path = _new_directory(SHARED_MEMORY)
    else:
        path = job.directory.path.absolute() / "weights"
        path.mkdir(parents=True, exist_ok=True)
    job.cluster.reaper.remove(str(path))
    try:
        by_files = job.config.sync.transport == "disk" or EVAL_ENGINE in job.options
        if len(job.cluster.node_addresses) > 1 and by_files:
            wanted = (POLICY, ENGINE, EVAL_ENGINE)
            readers = {part: job.options[part] for part in wanted if part in job.options}
            check_shared(path, readers, key="sync.directory")
        yield str(path)
    finally:
        shutil.rmtree(path, ignore_errors=True)


def _new_directory(parent: Path) -> Path:
    """Of this run alone: it is removed at the end, the parent is not."""
    parent.mkdir(parents=True, exist_ok=True)
    return Path(tempfile.mkdtemp(prefix=f"rlframe-{os.getpid()}-", dir=parent))


def _source(job: Job, weights: str, *, seed: int) -> ModelSource:
    return ModelSource(
        hf_config=job.model.hf_config, path=weights, dtype=job.config.model.dtype, seed=seed
    )
