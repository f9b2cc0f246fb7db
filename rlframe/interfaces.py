"""The protocols between the packages. Each docstring contains the loop that uses it."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol, TypeVar, runtime_checkable

from rlframe.types import (
    BatchPlan,
    Demonstration,
    Float32Array,
    Message,
    Task,
    TrainRow,
    Trajectory,
    WeightManifest,
)


@dataclass(frozen=True, slots=True)
class StepResult:
    """What the environment answers to one turn of the policy."""

    done: bool
    reward: float = 0.0
    """Put on the last action of the turn."""
    messages: tuple[Message, ...] = ()
    """What the policy reads next (empty when done)."""
    info: Mapping[str, Any] = field(default_factory=dict)


class Env(Protocol):
    """One attempt at one task: single use, no reset.

        env = source.make(task)
        messages = await env.start()
        while True:
            turn = await policy.chat(messages)
            result = await env.step(turn.text)
            if result.done: break
            messages = result.messages
        await env.close()

    Exceptions raised here are the task's fault (`Status.FAILED`).
    """

    async def start(self) -> Sequence[Message]: ...

    async def step(self, text: str) -> StepResult: ...

    async def close(self) -> None: ...


@runtime_checkable
class ToolEnv(Protocol):
    """As `Env`, where the policy calls tools: they are shown to it, and its parsed turn comes back.

        env = source.make(task)
        messages = await env.start()
        while True:
            turn = await policy.chat(messages)                  # env.tools stand in the prompt
            result = await env.act(turn.message)
            if result.done: break
            messages = result.messages                          # one {"role": "tool", ...} a call
        await env.close()

    `turn.message` is {"role": "assistant", "content": str, "tool_calls": [{"id", "name", "arguments"}]}.
    How calls are written and read is `rollout.tool_call_parser`, by SGLang's names.
    """

    tools: Sequence[Mapping[str, Any]]
    """[{"name": str, "description": str, "parameters": JSON schema}, ...]"""

    async def start(self) -> Sequence[Message]: ...

    async def act(self, message: Message) -> StepResult: ...

    async def close(self) -> None: ...


@runtime_checkable
class WordingEnv(Protocol):
    """A `ToolEnv` whose tools have a form of their own for what failed: a call that a guard has stopped is answered
    in it. Without this the policy reads what stands in the way as it is."""

    def worded(self, call: Mapping[str, Any], said: str) -> str: ...


@runtime_checkable
class SpawningEnv(Protocol):
    """An environment that says what a sub-agent of its policy works in; without it a sub-agent gets
    its task, and answers once.

    child = env.sub_env("Find out which test fails.")
    """

    def sub_env(self, task: str) -> Env | ToolEnv: ...


@dataclass(frozen=True, slots=True)
class Score:
    """What an attempt of a black-box agent earned."""

    reward: float
    info: Mapping[str, Any] = field(default_factory=dict)


@runtime_checkable
class WorkspaceEnv(Protocol):
    """One attempt of an agent program at one task (`rollout.mode=black_box`): single use.

    env = source.make(task)
    text = await env.prepare(directory)      # files into an empty directory; what the agent is told
    ...                                      # the program works there, in its sandbox
    score = await env.score(directory)
    await env.close()
    """

    async def prepare(self, directory: Path) -> str: ...

    async def score(self, directory: Path) -> Score: ...

    async def close(self) -> None: ...


@dataclass(frozen=True, slots=True)
class Blocked:
    """A tool call that a guard has stopped, and what takes its place."""

    result: str
    """What the tool would answer if nothing were there: the policy reads it."""
    arguments: Mapping[str, Any]
    """Harmless ones for the same tool: an agent program runs these instead."""
    rewrites: Mapping[str, str] = field(default_factory=dict)
    """Text in the program's answer to them that has to read otherwise."""
    whole: bool = False
    """The program's answer to them is replaced by `result`."""


class GuardWatch(Protocol):
    """Looks at one attempt.

    watch = guard.watch(task)
    for call in turn.message["tool_calls"]:
        blocked = await watch.check(call, turn=turn.call)     # None: it may run
    findings = watch.scan(before, after)                      # text files by path, when it has ended
    info["guard"] = watch.report()
    """

    async def check(self, call: Mapping[str, Any], *, turn: int) -> Blocked | None: ...

    def scan(self, before: Mapping[str, str], after: Mapping[str, str]) -> Sequence[str]: ...

    def report(self) -> Mapping[str, Any]:
        """`config` (its hash), `calls`, `flagged`, `hacks`, `blocked`, `events`, ...: JSON-serialisable."""
        ...


class Guard(Protocol):
    """Watches attempts for what their tasks' rules forbid. Shared by all attempts of a worker."""

    action: str
    """On a hack: `block` and go on, `end` the attempt without a reward, or `watch` (`check` stops nothing)."""
    loss: str
    """Of a turn with a blocked call: `mask` (no token of it trains), `train`, or `penalise`."""
    penalty: float
    """`penalise`: taken from the reward for each such turn, at its last token."""
    on_finding: str
    """Of an attempt whose changes show a hack when it has ended: `report`, or `zero` (its reward)."""

    def watch(self, task: Task) -> GuardWatch | None:
        """None: the task has no rules to break."""
        ...


Ask = Callable[[Sequence[Message]], Awaitable[str]]
"""A question to a model, greedily: its answer's text."""


AnyEnv = Env | ToolEnv | WorkspaceEnv


class TaskSource(Protocol):
    """An endless, deterministic stream of training tasks, and a finite set of held-out ones.

    task = source.train_task(i)        # i = 0, 1, 2, ...: the same task for the same i, for ever
    held_out = source.held_out_tasks() # never among the training tasks
    env = source.make(task)
    """

    def train_task(self, index: int) -> Task: ...

    def held_out_tasks(self) -> Sequence[Task]: ...

    def make(self, task: Task) -> AnyEnv: ...

    def demonstrations(self, count: int) -> Sequence[Demonstration]:
        """`count` conversations for SFT, never on a held-out task; the same ones for the same count.

        Raises UserError where the source has none.
        """
        ...


@runtime_checkable
class DrawsByDomain(Protocol):
    """Of a task source, if it can: what a curriculum would look through many tasks for."""

    def train_task_of(self, domain: str, index: int) -> Task:
        """A training task of this domain: the same for the same two, another for another index."""
        ...


@dataclass(frozen=True, slots=True)
class RolloutRequest:
    """One attempt to make. `id` is the trajectory's id; the same id asked for twice runs once."""

    id: str
    task: Task
    sampling: Mapping[str, Any] = field(default_factory=dict)
    """Overrides of the configured sampling parameters (evaluation)."""


class RolloutService(Protocol):
    """Makes trajectories.

    service.submit([RolloutRequest(...), ...])
    while missing:
        for trajectory in service.collect(timeout_s=1.0): ...
    """

    def submit(self, requests: Sequence[RolloutRequest]) -> None: ...

    def cancel(self, ids: Sequence[str]) -> None:
        """These attempts are not wanted any more: each comes back as `aborted`, or as it ended already."""
        ...

    def collect(self, timeout_s: float) -> list[Trajectory]:
        """Whatever has finished, as soon as anything has; empty after `timeout_s`."""
        ...

    def sync(self, manifest: WeightManifest) -> Mapping[str, float]:
        """Bring every engine to `manifest.version`: verify, pause, update, confirm, resume.

        Returns metrics (seconds paused, bytes, GB/s). After it, no token is sampled from an older
        version. Raises RunError if no engine took the weights.
        """
        ...

    def close(self) -> None: ...


T_co = TypeVar("T_co", covariant=True)


class Pending(Protocol[T_co]):
    """A call that is under way on every rank of a role."""

    def result(self) -> T_co:
        """Wait for it. Raises RunError as soon as one rank has died or failed, naming it; UserError
        if the user can mend what a rank met (a wrong checkpoint, a layout that does not divide)."""
        ...


class RoleTrainer(Protocol):
    """One model in training: the policy or the critic, on all of its ranks.

        for role in (policy, critic): role.begin_start()      # both start at the same time
        for role in (policy, critic): role.wait_started(report)
        ...
        old_logprobs = policy.logprobs(rows, plan)            # Pending: both under way
        values = critic.values(rows, critic_plan)
        rows = assign_credit(rows, old_logprobs.result(), values.result())
        updates = [critic.update(rows, critic_plan, step=s), policy.update(rows, plan, step=s)]
        metrics = [u.result() for u in updates]
        manifest = policy.export(version=s + 1, directory=...).result()

    Calls on one role run in the order in which they were made, whether or not their results were
    waited for. Indices in a plan are indices into `rows`.
    """

    def begin_start(self) -> None:
        """Create the ranks and let them start; returns at once."""
        ...

    def wait_started(self, progress: Callable[[str], None]) -> None:
        """Until every rank has its model; `progress` is told what has come up."""
        ...

    def layout(self) -> Mapping[str, int]:
        """`{"data": d, "tensor": t, "pipeline": p}`, and where they are not 1 `context` and `multiple_of`,
        what a packed row's length must divide by."""
        ...

    def logprobs(self, rows: Sequence[TrainRow], plan: BatchPlan) -> Pending[list[Float32Array]]:
        """log p of every token under `loss_mask`, at the sampling temperature, given those before it:
        one float32 [T] a row, 0 elsewhere."""
        ...

    def reference_logprobs(
        self, rows: Sequence[TrainRow], plan: BatchPlan
    ) -> Pending[list[Float32Array]]:
        """As `logprobs`, of the weights that a policy began with (where it was told to keep them)."""
        ...

    def teacher_logprobs(
        self, rows: Sequence[TrainRow], plan: BatchPlan
    ) -> Pending[list[Float32Array]]:
        """As `logprobs`, each row by the teacher `teacher_index` of those that the ranks hold, at temperature 1."""
        ...

    def values(self, rows: Sequence[TrainRow], plan: BatchPlan) -> Pending[list[Float32Array]]:
        """V(state before token t): one float32 [T] a row, 0 at position 0."""
        ...

    def update(
        self, rows: Sequence[TrainRow], plan: BatchPlan, step: int
    ) -> Pending[Mapping[str, float]]:
        """One optimizer step on all of `rows`: the loss is normalised by their actions.

        The loop cuts mini-batches: it calls this once a mini-batch and epoch, with that mini-batch's
        rows and a plan over them. `step` is the loop's step and sets the learning rate, so that
        every mini-batch of a step learns at the same rate.

        The result has `loss`, `grad_norm`, `lr`, `skipped` (1: loss or gradients were not finite, or
        their norm was above `grad_norm_limit`, and the weights were left as they are) and the loss's
        own statistics, as means over actions.
        """
        ...

    def export(self, version: int, directory: str) -> Pending[WeightManifest]:
        """Write Hugging Face named safetensors and their manifest."""
        ...

    def share(self, version: int) -> Pending[WeightManifest]:
        """Hand the tensors' memory to engines of the same host, until the next call."""
        ...

    def export_hf(self, directory: str) -> Pending[None]:
        """Write a complete Hugging Face checkpoint (config and weights; the tokenizer is the caller's)."""
        ...

    def save(self, directory: str, step: int) -> Pending[None]:
        """Write everything that training needs to go on; `directory` appears whole or not at all."""
        ...

    def load(self, directory: str) -> Pending[int]:
        """Returns the step that was saved. The layout may differ from the one that saved."""
        ...

    def check(self) -> None:
        """RunError if a rank has died since; never waits. Every `result()` checks by itself."""
        ...

    def close(self) -> None:
        """End all ranks. Never raises for a rank that is already dead."""
        ...
