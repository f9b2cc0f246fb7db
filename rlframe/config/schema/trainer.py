"""Roles in training: their layouts, optimizers, and what besides the loss learns."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from rlframe.config.knob import knob

Dict = dict[str, Any]


@dataclass
class LayoutConfig:
    """How one role's ranks are arranged; world size = data * tensor * context * pipeline."""

    data: int = knob(1, help="data-parallel size", minimum=1)
    tensor: int = knob(1, help="tensor-parallel size", minimum=1)
    pipeline: int = knob(1, help="pipeline-parallel size", minimum=1)
    sequence_parallel: bool = knob(False, help="shard activations over the tensor-parallel ranks")
    context: int = knob(
        1,
        help="context-parallel size: ranks that share the tokens of a micro-batch",
        minimum=1,
    )
    expert: int = knob(
        1,
        help="expert-parallel size: over how many of a stage's ranks experts are spread; divides "
        "data * tensor * context (GLM)",
        minimum=1,
    )
    virtual_pipeline: int = knob(
        1, help="parts of each pipeline stage, interleaved (GLM)", minimum=1
    )
    pipeline_layers: str = knob(
        "",
        help="layers of each of the pipeline * virtual_pipeline parts, in order, such as `5+4`; empty: as "
        "even as parts can be that begin with an indexer's layer (GLM)",
    )

    @property
    def world_size(self) -> int:
        return self.data * self.tensor * self.context * self.pipeline

    @property
    def multiple_of(self) -> int:
        """What the length of a packed row must divide by."""
        tensor = self.tensor if self.sequence_parallel else 1
        return tensor * (2 * self.context if self.context > 1 else 1)

    def capacity(self, max_tokens: int) -> int:
        """Tokens of a packed row at most, of which a context-parallel rank holds `max_tokens`."""
        tokens = max_tokens * self.context
        return tokens - tokens % self.multiple_of


@dataclass
class MtpConfig:
    """Multi-token prediction: training the layer that drafts for speculative decoding (GLM-5 models)."""

    mode: str = knob(
        "off",
        help="off: the layer is neither built nor exported; frozen_trunk: it alone trains; joint: its loss "
        "trains the whole model too; detached: both train, and its loss leaves the rest alone (for RL)",
        allowed=("off", "frozen_trunk", "joint", "detached"),
    )
    steps: int = knob(3, help="drafted tokens that the one layer is trained to predict", minimum=1)
    loss: str = knob(
        "ce",
        help="ce: the data's tokens; tv: 1 - acceptance of each step; e2e_tv: 1 - share of drafts that are "
        "expected to be accepted in a row; hybrid: KL where acceptance is low, TV where it is high",
        allowed=("ce", "tv", "e2e_tv", "hybrid"),
    )
    weight: float = knob(0.1, help="of this loss beside the objective's", minimum=0.0)
    ce_weight: float = knob(
        0.0, help="cross entropy added to `loss`, times this; not known of GLM-5.2", minimum=0.0
    )
    positions: str = knob(
        "actions",
        help="which positions train it: those whose `steps` labels are all actions, or all of them",
        allowed=("actions", "all"),
    )
    query_positions: str = knob(
        "served",
        help="rotary position of step k's query where steps share rows (GLM-5.2): served: i + k - 1, as "
        "SGLang runs it; unshifted: i. Not known of GLM-5.2's training",
        allowed=("served", "unshifted"),
    )
    detach_rows: bool = knob(
        False,
        help="where steps share rows, only step 1 trains what makes them. Not known of GLM-5.2's training",
    )


@dataclass
class IndexerConfig:
    """How the indexers of sparse attention learn, by the divergence of their scores from attention (GLM)."""

    mode: str = knob(
        "frozen",
        help="`frozen`: as in the checkpoint (RL); `sparse`: beside everything else, over the chosen rows; "
        "`dense_warmup`: over every row, attention dense, nothing else learns",
        allowed=("frozen", "sparse", "dense_warmup"),
    )
    target: str = knob(
        "own",
        help="attention of the indexer's own layer, or the mean over all layers that it serves",
        allowed=("own", "served"),
    )
    coefficient: float = knob(
        1e-3, help="of the divergence, a mean over the tokens of the mini-batch", minimum=0.0
    )


@dataclass
class RoleConfig:
    """One model in training: its layout and its optimizer."""

    layout: LayoutConfig = field(default_factory=LayoutConfig)
    lr: float = knob(1e-5, help="peak learning rate", minimum=0.0)
    lr_warmup_steps: int = knob(0, help="linear warm-up", unit="steps", minimum=0)
    lr_decay: str = knob(
        "constant", help="what follows the warm-up", allowed=("constant", "linear", "cosine")
    )
    optimizer: Dict = knob(
        factory=dict,
        help="fields of megatron.core.optimizer.OptimizerConfig, by their own names; with trainer=deepspeed "
        "those that say which Adam or SGD it is",
    )
    transformer: Dict = knob(
        factory=dict,
        help="fields of megatron.core.transformer.TransformerConfig, by their own names",
    )
    ddp: Dict = knob(
        factory=dict,
        help="fields of megatron.core.distributed.DistributedDataParallelConfig, by their own names",
    )
    deepspeed: Dict = knob(
        factory=dict,
        help="DeepSpeed's own configuration, by its own names, such as `{zero_optimization: {stage: 3}}` "
        "(trainer=deepspeed)",
    )
    attention: str = knob(
        "auto",
        help="transformers' implementation of attention; auto: flash_attention_2 where it is installed and "
        "the model is in bfloat16 on a GPU, else transformers' choice (trainer=deepspeed)",
        allowed=("auto", "eager", "sdpa", "flash_attention_2", "flash_attention_3"),
    )
    gradient_checkpointing: bool = knob(
        False,
        help="compute activations again in the backward pass instead of keeping them (trainer=deepspeed)",
    )
    grad_norm_limit: float = knob(
        0.0,
        help="an update whose gradient norm, before clipping, is above this is left out: a bad step; 0: off",
        minimum=0.0,
    )
    path: str = knob("", help="critic only: its own checkpoint; empty: start from the policy's")


@dataclass
class PolicyRoleConfig(RoleConfig):
    """The policy is a role that may draft, and whose indexers may learn; a critic's stay as they are."""

    mtp: MtpConfig = field(default_factory=MtpConfig)
    indexer: IndexerConfig = field(default_factory=IndexerConfig)


@dataclass
class CriticRoleConfig(RoleConfig):
    """The critic is a role whose attention may stay as it began."""

    freeze_attention: bool = knob(
        False, help="the critic's attention keeps the weights it began with; the rest learns"
    )


@dataclass
class TrainerConfig:
    """Ranks that learn: backend, micro-batches, checkpoints, one part a role."""

    backend: str = knob(
        "megatron",
        help="which trainer: Megatron-core, or DeepSpeed for any causal model of transformers",
        allowed=("megatron", "deepspeed"),
    )
    max_tokens_per_micro_batch: int = knob(
        8192, help="hard cap of one packed micro-batch", unit="tokens", minimum=1
    )
    share_prefixes: bool = knob(
        False,
        help="what several rows of a micro-batch begin with (a prompt, a compacted or a sub-agent's common "
        "start) is computed once; the losses and gradients are the same",
    )
    policy: PolicyRoleConfig = field(default_factory=PolicyRoleConfig)
    critic: CriticRoleConfig = field(default_factory=CriticRoleConfig)
    checkpoint_every: int = knob(
        10,
        help="save a checkpoint every so many steps; 0: only at the end",
        unit="steps",
        minimum=0,
    )
    keep_checkpoints: int = knob(2, help="how many of the latest to keep", minimum=1)
    num_threads: int = knob(1, help="torch threads of a CPU rank", minimum=1)
    start_timeout_s: float = knob(
        300.0, help="how long ranks may take to start", unit="s", minimum=1
    )
    collective_timeout_s: float = knob(
        600.0, help="how long a collective may take before the run stops", unit="s", minimum=1
    )
    silent_rank_s: float = knob(
        60.0,
        help="stop when a rank that is waited for gives no sign of life for so long (a stopped or hung "
        "process); 0: only collective_timeout_s finds it",
        unit="s",
        minimum=0.0,
    )
