"""What a rank is told at its birth, and what it tells when it is up. Imports nothing heavy."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from rlframe.config.schema import (
    CriticRoleConfig,
    IndexerConfig,
    MtpConfig,
    PolicyRoleConfig,
    RoleConfig,
)
from trainer.objective import Objective

Role = Literal["policy", "critic"]
Backend = Literal["megatron", "deepspeed"]


@dataclass(frozen=True, slots=True)
class ModelSource:
    """Where a role's weights come from."""

    hf_config: Mapping[str, Any]
    path: str
    """Hugging Face checkpoint directory; empty: random weights from `hf_config` and `seed`."""
    dtype: str
    seed: int


@dataclass(frozen=True, slots=True)
class RankSpec:
    """One rank of one role."""

    role: Role
    rank: int
    config: RoleConfig
    model: ModelSource
    objective: Objective
    total_steps: int
    """The run's steps, where the learning rate's decay ends."""
    device: str
    """`cpu` or `cuda`."""
    num_threads: int
    collective_timeout_s: float
    backend: Backend = "megatron"
    """What trains the rank."""
    keeps_reference: bool = False
    """The policy keeps a copy of the weights that it begins with."""
    teachers: tuple[str, ...] = ()
    """Hugging Face checkpoint directories of the teachers whose weights a policy's ranks hold."""
    keeps_teacher_states: bool = False
    """A step's batch is learnt from more than once: what its teachers say is not computed again."""
    share_prefixes: bool = False
    """What rows of a micro-batch begin with is computed once."""

    @property
    def world_size(self) -> int:
        return self.config.layout.world_size

    @property
    def mtp(self) -> MtpConfig:
        """Off for a critic."""
        return self.config.mtp if isinstance(self.config, PolicyRoleConfig) else MtpConfig()

    @property
    def indexer(self) -> IndexerConfig:
        """Frozen for a critic."""
        config = self.config
        return config.indexer if isinstance(config, PolicyRoleConfig) else IndexerConfig()

    @property
    def freezes_attention(self) -> bool:
        return isinstance(self.config, CriticRoleConfig) and self.config.freeze_attention

    @property
    def layout(self) -> dict[str, int]:
        layout = self.config.layout
        sizes = {"data": layout.data, "tensor": layout.tensor, "pipeline": layout.pipeline}
        rarer = {
            "context": layout.context,
            "expert": layout.expert,
            "virtual_pipeline": layout.virtual_pipeline,
        }
        # Left out where they are 1, as in checkpoints from before they were there.
        return sizes | {name: size for name, size in rarer.items() if size > 1}


@dataclass(frozen=True, slots=True)
class RankInfo:
    """Where a started rank is and which part of the work is its."""

    rank: int
    data_rank: int
    tensor_rank: int
    pipeline_rank: int
    answers: bool
    """It is the one of its data-parallel rank that has results: last stage, first tensor rank."""
    host: str
    pid: int
