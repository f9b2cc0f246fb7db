"""One model in training, as the loop sees it: `rlframe.interfaces.RoleTrainer` over ranks, of
either backend.

Runs in the driver's process, which loads no torch. Rows are cut by data-parallel rank; each rank gets
the rows of its own data-parallel rank only, once, through Ray's object store. Every method returns at
once; the ranks work while the driver talks to another role.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any, cast

import ray

from rlframe.config.schema import RoleConfig, TrainerConfig
from rlframe.types import BatchPlan, Float32Array, TrainRow, WeightManifest
from trainer.objective import COLUMNS, OPTIONAL_COLUMNS, Objective
from trainer.ranks.group import RankCall, RankGroup
from trainer.ranks.shard import cut, join
from trainer.ranks.spec import Backend, ModelSource, RankInfo, RankSpec, Role


class RankedRole:
    """The policy or the critic on `config.layout.world_size` Ray actors."""

    def __init__(
        self,
        role: Role,
        *,
        config: RoleConfig,
        trainer: TrainerConfig,
        model: ModelSource,
        objective: Objective,
        total_steps: int,
        device: str,
        scheduling: Sequence[Mapping[str, Any]],
        keeps_reference: bool = False,
        teachers: Sequence[str] = (),
        keeps_teacher_states: bool = False,
    ) -> None:
        """`scheduling`: Ray actor options, one a rank (placement group, CPUs, GPUs, resources)."""
        world_size = config.layout.world_size
        if len(scheduling) != world_size:
            raise ValueError(f"{len(scheduling)} scheduling options for {world_size} {role} ranks")
        self._role = role
        self._objective = objective
        self._start_timeout_s = trainer.start_timeout_s
        self._silent_rank_s = trainer.silent_rank_s
        self._scheduling = scheduling
        self._specs = [
            RankSpec(
                role=role,
                rank=rank,
                config=config,
                model=model,
                objective=objective,
                total_steps=total_steps,
                device=device,
                num_threads=trainer.num_threads,
                collective_timeout_s=trainer.collective_timeout_s,
                backend=cast(Backend, trainer.backend),
                keeps_reference=keeps_reference,
                teachers=tuple(teachers),
                keeps_teacher_states=keeps_teacher_states,
                share_prefixes=trainer.share_prefixes,
            )
            for rank in range(world_size)
        ]
        self._group: RankGroup | None = None
        self._starts: list[Any] = []
        self._began_s = 0.0

    def begin_start(self) -> None:
        self._began_s = time.monotonic()
        self._group = RankGroup(self._specs, self._scheduling, silent_rank_s=self._silent_rank_s)
        self._starts = self._group.begin_start()

    def wait_started(self, progress: Callable[[str], None]) -> None:
        """Raises RunError if a rank dies or is not up in `trainer.start_timeout_s`."""
        group = self._ranks

        def arrived(rank: int, info: RankInfo) -> None:
            seconds = time.monotonic() - self._began_s
            progress(
                f"{self._role} rank {rank + 1}/{len(group)} is up on {info.host} ({seconds:.1f} s)"
            )

        group.infos = group.wait(
            self._starts, "starting", timeout_s=self._start_timeout_s, arrived=arrived
        )

    def layout(self) -> Mapping[str, int]:
        return {**self._specs[0].layout, "multiple_of": self._specs[0].config.layout.multiple_of}

    def logprobs(self, rows: Sequence[TrainRow], plan: BatchPlan) -> RankCall[list[Float32Array]]:
        return self._read("logprobs", rows, plan, ("loss_mask",))

    def reference_logprobs(
        self, rows: Sequence[TrainRow], plan: BatchPlan
    ) -> RankCall[list[Float32Array]]:
        return self._read("reference_logprobs", rows, plan, ("loss_mask",))

    def teacher_logprobs(
        self, rows: Sequence[TrainRow], plan: BatchPlan
    ) -> RankCall[list[Float32Array]]:
        return self._read("teacher_logprobs", rows, plan, ("loss_mask", "teacher_index"))

    def values(self, rows: Sequence[TrainRow], plan: BatchPlan) -> RankCall[list[Float32Array]]:
        return self._read("values", rows, plan, ())

    def update(
        self, rows: Sequence[TrainRow], plan: BatchPlan, step: int
    ) -> RankCall[Mapping[str, float]]:
        """Raises ValueError if no token of `rows` trains."""
        actions = sum(int(row.loss_mask.sum()) for row in rows)
        if actions == 0:
            raise ValueError(f"step {step}: no token of the {len(rows)} rows trains")
        optional = OPTIONAL_COLUMNS[type(self._objective)]
        given = [name for name in optional if rows[0].has(name)]
        shards = cut(rows, plan, (*COLUMNS[type(self._objective)], *given))
        refs = self._on_shards("update", shards, step, actions)
        return RankCall(self._ranks, f"updating (step {step})", refs, self._first_answer)

    def export(self, version: int, directory: str) -> RankCall[WeightManifest]:
        what = f"exporting version {version}"
        return RankCall(self._ranks, what, self._on_all("export", version, directory), _only)

    def share(self, version: int) -> RankCall[WeightManifest]:
        return RankCall(
            self._ranks, f"sharing version {version}", self._on_all("share", version), _only
        )

    def export_hf(self, directory: str) -> RankCall[None]:
        refs = self._on_all("export_hf", directory)
        return RankCall(self._ranks, f"exporting to {directory}", refs, lambda answers: None)

    def save(self, directory: str, step: int) -> RankCall[None]:
        refs = self._on_all("save", directory, step)
        return RankCall(self._ranks, f"saving step {step}", refs, lambda answers: None)

    def load(self, directory: str) -> RankCall[int]:
        refs = self._on_all("load", directory)
        return RankCall(self._ranks, f"loading {directory}", refs, lambda answers: int(answers[0]))

    def check(self) -> None:
        self._ranks.check()

    def close(self) -> None:
        if self._group is not None:
            self._group.close()

    def process_ids(self) -> list[int]:
        """Of the ranks, by rank, once they are started."""
        return [info.pid for info in self._ranks.infos]

    @property
    def _ranks(self) -> RankGroup:
        assert self._group is not None, "begin_start first"
        return self._group

    def _on_all(self, method: str, *arguments: Any) -> list[Any]:
        return self._ranks.call(method, [arguments] * len(self._ranks))

    def _on_shards(self, method: str, shards: Sequence[Any], *arguments: Any) -> list[Any]:
        """Each rank gets the shard of its data-parallel rank; peers share one object."""
        put = [ray.put(shard) for shard in shards]
        infos = self._ranks.infos
        return self._ranks.call(method, [(put[info.data_rank], *arguments) for info in infos])

    def _read(
        self, method: str, rows: Sequence[TrainRow], plan: BatchPlan, columns: Sequence[str]
    ) -> RankCall[list[Float32Array]]:
        """One number a token."""
        refs = self._on_shards(method, cut(rows, plan, columns))
        what = f"computing {method}"
        return RankCall(self._ranks, what, refs, lambda answers: self._join(answers, rows, plan))

    def _join(
        self, answers: list[Any], rows: Sequence[TrainRow], plan: BatchPlan
    ) -> list[Float32Array]:
        outputs = {
            info.data_rank: answer
            for info, answer in zip(self._ranks.infos, answers, strict=True)
            if info.answers
        }
        return join([outputs[d] for d in range(plan.data_parallel_size)], rows, plan)

    def _first_answer(self, answers: list[Any]) -> Mapping[str, float]:
        infos = self._ranks.infos
        return next(a for info, a in zip(infos, answers, strict=True) if info.answers)


def _only(answers: list[Any]) -> Any:
    """The one answer that is not None: of the rank that wrote the manifest."""
    return next(answer for answer in answers if answer is not None)
