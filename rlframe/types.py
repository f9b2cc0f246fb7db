"""The data model: what travels from a task to an optimizer step. See the glossary in ARCHITECTURE.md.

Everything here is plain data (numpy, str, int), so that it can be pickled, stored and compared;
no object knows a library. Arrays of a trace all have the trace's length `T`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any

import numpy as np
import numpy.typing as npt

from rlframe.task_rules import TaskRules

Int32Array = npt.NDArray[np.int32]
Float32Array = npt.NDArray[np.float32]
BoolArray = npt.NDArray[np.bool_]

NO_VERSION = -1
"""The weight version of a token that no engine sampled (prompt, template, tool result)."""

Message = Mapping[str, Any]
"""One chat message: `role`, `content`, and whatever else the chat template understands."""


class Status(StrEnum):
    """Why a trajectory ended."""

    COMPLETED = "completed"
    """The environment or the policy ended it."""
    TRUNCATED_LENGTH = "truncated_length"
    """The context window or the token budget ran out."""
    TRUNCATED_TURNS = "truncated_turns"
    """The turn limit was reached before the environment was done."""
    TRUNCATED_TIME = "truncated_time"
    """The time limit was reached."""
    FAILED = "failed"
    """The task's own code failed (environment, verifier): data about the task, never trained on."""
    INFRA_ERROR = "infra_error"
    """Our side failed (engine, network): counted, retried or dropped, never a reward of zero."""
    ABORTED = "aborted"
    """Cancelled by us (`RolloutService.cancel`, shutdown): never trained on, and nobody's fault."""

    @property
    def is_truncated(self) -> bool:
        return self.value.startswith("truncated")

    @property
    def is_trainable(self) -> bool:
        return self is Status.COMPLETED or self.is_truncated


@dataclass(frozen=True, slots=True)
class Task:
    """One frozen problem.

    Example: Task(id="train/17", domain="gcd", messages=({"role": "user", "content": "..."},),
    data={"answer": "4"}, seed=17)
    """

    id: str
    domain: str
    messages: tuple[Message, ...]
    data: Mapping[str, Any] = field(default_factory=dict)
    """What the environment needs to run and to score it (JSON-serialisable)."""
    seed: int = 0
    rules: TaskRules = TaskRules()
    """What the agent must leave alone, and what it may use: for sandbox, verifier and guard."""


@dataclass(frozen=True, slots=True)
class Demonstration:
    """A whole conversation to learn from; its last message is the assistant's.

    Every assistant message trains (its text and the token that ends it), except those whose index is
    in `untrained`: a wrong first answer stands there as context, so that recovering from it is learnt
    and making it is not.

    Example: Demonstration(messages=(question, wrong, "Wrong. Try once more.", right), untrained=(1,))
    """

    messages: tuple[Message, ...]
    untrained: tuple[int, ...] = ()
    domain: str = ""
    tools: tuple[Mapping[str, Any], ...] = ()
    """What stands in the prompt; where an attempt has tools, so must what it learns from."""


@dataclass(frozen=True, slots=True, eq=False)
class Turn:
    """One model call, exactly as the engine saw and answered it."""

    prompt_ids: Int32Array  # [P] thousands, where an answer has tens
    output_ids: tuple[int, ...]
    logprobs: tuple[float, ...]
    """[len(output_ids)] log p of each sampled token, at the sampling temperature."""
    versions: tuple[int, ...]
    """[len(output_ids)] weight version that sampled each token."""
    finish_reason: str
    """`stop`, `length` or `abort`."""
    started_s: float = 0.0
    ended_s: float = 0.0
    extras: Mapping[str, str] = field(default_factory=dict)
    """What the engine returned besides, as it wrote it: `routed_experts`, `indexer_topk` (base64)."""


@dataclass(frozen=True, slots=True, eq=False)
class Trace:
    """One linear token sequence that turns built by extending each other token for token.

    Invariants (checked by `rlframe.invariants.check_trace`): all arrays have one length T; the first
    token is never trainable; `rollout_logprobs` is finite and <= 0 where `loss_mask`, 0 elsewhere;
    `versions` is >= 0 where `loss_mask`, NO_VERSION elsewhere.
    """

    token_ids: Int32Array  # [T]
    loss_mask: BoolArray  # [T] true where the policy sampled the token and it trains
    rollout_logprobs: Float32Array  # [T]
    versions: Int32Array  # [T]

    def __len__(self) -> int:
        return len(self.token_ids)

    @property
    def actions(self) -> int:
        """How many tokens train."""
        return int(self.loss_mask.sum())

    @property
    def oldest_version(self) -> int:
        sampled = self.versions[self.loss_mask]
        return int(sampled.min()) if sampled.size else NO_VERSION


class LinkKind(StrEnum):
    CONTINUES = "continues"
    """The child goes on where the parent stopped, in an edited context (compaction)."""
    SPAWNED_BY = "spawned_by"
    """The child is a sub-agent that the parent called."""


@dataclass(frozen=True, slots=True)
class Link:
    """How trace `child` hangs on trace `parent` (indices into `Trajectory.traces`)."""

    kind: LinkKind
    child: int
    parent: int
    call_position: int | None = None
    """`spawned_by`: index in the parent of the last token of the call."""
    join_position: int | None = None
    """`spawned_by`: index in the parent of the first token after the result; None if never joined."""


@dataclass(frozen=True, slots=True)
class Reward:
    """A number that the algorithm uses, put on one action.

    `position` is an index into the trace's tokens; the reward counts for the last action at or
    before it. None means the trace's last action.
    """

    value: float
    trace: int = 0
    position: int | None = None


@dataclass(frozen=True, slots=True, eq=False)
class Trajectory:
    """All traces of one attempt at a Task."""

    id: str
    task_id: str
    domain: str
    status: Status
    traces: tuple[Trace, ...]
    rewards: tuple[Reward, ...] = ()
    links: tuple[Link, ...] = ()
    info: Mapping[str, Any] = field(default_factory=dict)
    """JSON-serialisable: error text, tool times, finish reasons, turn count, texts for people."""

    @property
    def reward(self) -> float:
        """The trajectory's total reward."""
        return float(sum(r.value for r in self.rewards))

    @property
    def actions(self) -> int:
        return sum(t.actions for t in self.traces)

    @property
    def oldest_version(self) -> int:
        versions = [t.oldest_version for t in self.traces if t.actions]
        return min(versions, default=NO_VERSION)


@dataclass(frozen=True, slots=True, eq=False)
class TrainRow:
    """One trace with its credit, as a trainer rank takes it. T is the trace's length.

    Position t of every array speaks about *token* t; the logits that predict it stand at t - 1.
    """

    token_ids: Int32Array  # [T]
    loss_mask: BoolArray  # [T]
    advantages: Float32Array  # [T] 0 outside the mask
    returns: Float32Array  # [T] the critic's target for V(state before token t); 0 outside the mask
    old_logprobs: Float32Array  # [T] by the trainer, before the first update of the step
    old_values: Float32Array  # [T] V(state before token t)
    rollout_logprobs: Float32Array  # [T]
    ref_logprobs: Float32Array | None = None  # [T]
    loss_weights: Float32Array | None = None  # [T] how much a token counts for the policy; None: 1
    teacher_logprobs: Float32Array | None = None  # [T] by the teacher of the row's domain
    teacher_top_ids: Int32Array | None = None  # [T, k] its likeliest tokens
    teacher_top_logprobs: Float32Array | None = None  # [T, k]
    teacher_weights: Float32Array | None = None  # [T] how much the divergence from it counts
    teacher_index: Int32Array | None = (
        None  # [T] which of the teachers that the ranks hold; one a row
    )

    def has(self, name: str) -> bool:
        """Whether an optional field is given."""
        return getattr(self, name) is not None


MicroBatches = Sequence[Sequence[int]]
"""Row indices per micro-batch."""


@dataclass(frozen=True, slots=True)
class BatchPlan:
    """Which rows each data-parallel rank computes, in which micro-batches.

    `micro_batches[d][m]` are the row indices of micro-batch m on data-parallel rank d. Every rank
    has the same number of micro-batches (pipeline schedules need that); one may be empty.
    """

    micro_batches: tuple[tuple[tuple[int, ...], ...], ...]
    max_tokens: int

    @property
    def data_parallel_size(self) -> int:
        return len(self.micro_batches)


@dataclass(frozen=True, slots=True)
class TensorSpec:
    """What an engine must find under a name, and the checksum of its bytes."""

    shape: tuple[int, ...]
    dtype: str
    """As in safetensors: `F32`, `BF16`, ..."""
    checksum: str
    """xxh3_128 hex digest of the tensor's bytes, little-endian, contiguous."""


@dataclass(frozen=True, slots=True)
class WeightManifest:
    """One published set of weights. An engine serves it whole or not at all."""

    version: int
    directory: str
    """Where the safetensors files are (for `disk`: a directory in shared memory or on a shared disk)."""
    tensors: Mapping[str, TensorSpec]
    """By Hugging Face name."""
    handles: str = ""
    """For `tensor`: handles of the tensors' memory, as SGLang takes them; no files and checksums then."""

    @property
    def num_bytes(self) -> int:
        width = {"F64": 8, "F32": 4, "BF16": 2, "F16": 2, "F8_E4M3": 1, "I64": 8, "I32": 4, "U8": 1}
        return sum(
            int(np.prod(t.shape, dtype=np.int64)) * width[t.dtype] for t in self.tensors.values()
        )
