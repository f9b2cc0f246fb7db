"""A user's own prompts and answers, from a JSONL or Parquet file, with a verifier or their own reward.

    rlframe train env.name=dataset env.args.path=my.jsonl env.args.reward=numeric
    rlframe train env.name=dataset env.args.path=my.jsonl env.args.reward=my_module:score

where `my_module.py` in the working directory has `def score(text: str, row: dict) -> float`.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from envs import options
from envs.answer_env import RETRY_MESSAGE, AnswerEnv, Retries
from envs.epochs import Epochs
from envs.loading import load_object
from envs.suites.dataset_files import Row, Rows, open_rows
from envs.suites.dataset_index import (
    Columns,
    Split,
    hash_prompts,
    split_by_file,
    split_by_hash,
)
from envs.verifiers import VERIFIERS
from envs.verifiers.text import EXTRACTORS
from rlframe.errors import UserError, nearest
from rlframe.types import Demonstration, Message, Task

RowScore = Callable[[str, Row], "float | Awaitable[float]"]
"""What the policy answered and the row -> a score; 1 is right."""


@dataclass(frozen=True)
class DatasetOptions:
    """`env.args` of `env.name=dataset`."""

    path: str
    """JSONL or Parquet file, one task a row."""
    held_out_path: str = ""
    """File of held-out tasks with the same columns; empty: `env.held_out` rows of `path`."""
    prompt_column: str = "prompt"
    """Text, or a list of messages with role and content."""
    answer_column: str = "answer"
    id_column: str = ""
    """Empty: the row's number."""
    domain_column: str = ""
    """What metrics are split by; empty: all rows are one domain."""
    system: str = ""
    """System prompt put before every prompt; empty: none."""
    reward: str = "exact"
    """`exact`, `numeric`, `contains`, `regex`, or `module:function` of your own."""
    answer_in: str = "text"
    """`text`: all of the policy's answer counts; `tag`: what stands in <answer></answer>."""
    max_turns: int = 1
    retry_reward: float = 0.5
    retry_message: str = RETRY_MESSAGE

    def __post_init__(self) -> None:
        check = options.require
        check(self.answer_in in EXTRACTORS, "env.args.answer_in", self.answer_in, "text or tag")
        check(self.max_turns >= 1, "env.args.max_turns", self.max_turns, "at least 1")

    @property
    def columns(self) -> Columns:
        return Columns(
            prompt=self.prompt_column,
            answer=self.answer_column,
            id=self.id_column,
            domain=self.domain_column,
            text_answers=":" not in self.reward,
        )


class DatasetSource:
    """See the module's docstring; satisfies `rlframe.interfaces.TaskSource`.

    The files are read at the first call that needs them: workers, which only `make`, never do.
    """

    def __init__(self, given: Mapping[str, Any], *, seed: int, held_out: int) -> None:
        self._options = options.parse(DatasetOptions, given)
        self._epochs, self._held_out = Epochs(seed), held_out
        self._score = _row_score(self._options)

    def train_task(self, index: int) -> Task:
        """Every training row once an epoch, in an order that depends on the seed and the epoch."""
        _, row = self._epochs.row(index, count=len(self._split.train))
        return self._task(self._rows, int(self._split.train[row]), "train")

    def held_out_tasks(self) -> Sequence[Task]:
        return [
            self._task(self._held_out_rows, int(row), "held_out") for row in self._split.held_out
        ]

    def make(self, task: Task) -> AnswerEnv:
        row: Row = task.data["row"]
        extract = EXTRACTORS[self._options.answer_in]
        chosen = self._options
        retries = Retries(chosen.max_turns, chosen.retry_reward, chosen.retry_message)
        return AnswerEnv(task.messages, lambda text: self._score(extract(text), row), retries)

    def demonstrations(self, count: int) -> Sequence[Demonstration]:
        """The answer column as what the assistant says, row by row of the training tasks."""
        result = []
        for index in range(count):
            task = self.train_task(index)
            answer = str(task.data["row"][self._options.answer_column])
            said = answer if self._options.answer_in == "text" else f"<answer>{answer}</answer>"
            reply: Message = {"role": "assistant", "content": said}
            result.append(Demonstration((*task.messages, reply), domain=task.domain))
        return result

    @cached_property
    def _rows(self) -> Rows:
        return open_rows(self._options.path, key="env.args.path")

    @cached_property
    def _held_out_rows(self) -> Rows:
        path = self._options.held_out_path
        return open_rows(path, key="env.args.held_out_path") if path else self._rows

    @cached_property
    def _split(self) -> Split:
        columns = self._options.columns
        hashes = hash_prompts(self._rows, columns)
        if not self._options.held_out_path:
            return split_by_hash(hashes, self._held_out)
        return split_by_file(hashes, hash_prompts(self._held_out_rows, columns), self._held_out)

    def _task(self, rows: Rows, number: int, part: str) -> Task:
        row = rows[number]
        chosen = self._options
        own_id = str(row[chosen.id_column]) if chosen.id_column else str(number)
        prompt = row[chosen.prompt_column]
        said: list[Message] = (
            [{"role": "user", "content": prompt}] if isinstance(prompt, str) else list(prompt)
        )
        if chosen.system:
            said.insert(0, {"role": "system", "content": chosen.system})
        return Task(
            id=f"{part}/{own_id}",
            domain=str(row[chosen.domain_column]) if chosen.domain_column else "dataset",
            messages=tuple(said),
            data={"row": row},
        )


def _row_score(chosen: DatasetOptions) -> RowScore:
    """The user's function, or a verifier over the answer column."""
    if ":" in chosen.reward:
        own: RowScore = load_object(chosen.reward, key="env.args.reward")
        options.require(callable(own), "env.args.reward", chosen.reward, "a function")
        return own
    if chosen.reward not in VERIFIERS:
        raise UserError(
            f"env.args.reward={chosen.reward}: there is no such verifier."
            f"{nearest(chosen.reward, VERIFIERS)} Your own is named `module:function`."
        )
    verify, column = VERIFIERS[chosen.reward], chosen.answer_column
    return lambda text, row: verify(text, str(row[column]))
