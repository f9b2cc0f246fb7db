"""`env.name=long_memory`: more is read than the context holds, and asked about at the end.

A task is a row of pages, one a turn, whatever the policy answers. Some pages say where a person keeps a thing;
later pages move some of them. Then one question about the last place. With a context window smaller than the
pages (`pages * page_notes` notes of about ten tokens), only what compaction keeps can be answered.
"""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from envs import options
from envs.verifiers.text import normal_form
from rlframe.errors import UserError
from rlframe.interfaces import StepResult
from rlframe.types import Demonstration, Message, Task

PEOPLE = ("Ada", "Ben", "Cleo", "Dan", "Eva", "Finn", "Gia", "Hugo")
THINGS = ("key", "map", "lamp", "coin", "ring", "book", "cup", "bell")
PLACES = ("attic", "barn", "cellar", "garden", "kitchen", "library", "porch", "study")
WEATHER = ("rain", "fog", "wind", "snow", "hail", "sun")
OPENING = (
    "You will read {pages} pages of a diary, one after the other. Answer each with 'next'. Remember where "
    "everybody's things are: after the last page comes one question. Answer that one with one word."
)


@dataclass(frozen=True)
class LongMemoryOptions:
    """`env.args` of `env.name=long_memory`."""

    pages: int = 12
    page_notes: int = 40
    """Notes on a page; all but the facts are about the weather."""
    facts: int = 4
    """Things whose places are told."""
    moves: int = 2
    """How many of those tellings are changes of an earlier one."""

    def __post_init__(self) -> None:
        check = options.require
        check(self.pages >= 2, "env.args.pages", self.pages, "at least 2")
        check(1 <= self.facts <= 32, "env.args.facts", self.facts, "between 1 and 32")
        check(self.moves >= 0, "env.args.moves", self.moves, "at least 0")
        least = self.facts + self.moves
        check(self.page_notes >= least, "env.args.page_notes", self.page_notes, f"at least {least}")


class LongMemorySource:
    """Satisfies `rlframe.interfaces.TaskSource`."""

    def __init__(self, given: Mapping[str, Any], *, seed: int, held_out: int) -> None:
        self._options = options.parse(LongMemoryOptions, given)
        self._seed, self._held_out = seed, held_out

    def train_task(self, index: int) -> Task:
        return self._task(f"train/{index}")

    def held_out_tasks(self) -> Sequence[Task]:
        return [self._task(f"held_out/{number}") for number in range(self._held_out)]

    def make(self, task: Task) -> Reading:
        return Reading(
            task.messages, list(task.data["pages"]), task.data["question"], task.data["answer"]
        )

    def demonstrations(self, count: int) -> Sequence[Demonstration]:
        raise UserError("env.name=long_memory: has no demonstrations for supervised fine-tuning")

    def _task(self, name: str) -> Task:
        draw, chosen = random.Random(f"{self._seed}/{name}"), self._options
        pages = [
            [
                f"{draw.choice(WEATHER).capitalize()} on day {draw.randrange(1, 400)}."
                for _ in range(chosen.page_notes)
            ]
            for _ in range(chosen.pages)
        ]
        owners = draw.sample([(p, t) for p in PEOPLE for t in THINGS], chosen.facts)
        told = owners + [draw.choice(owners) for _ in range(chosen.moves)]
        # In order of time: a later note about the same thing counts.
        where = sorted(draw.randrange(chosen.pages - 1) for _ in told)
        places: dict[tuple[str, str], str] = {}
        for page, owner in zip(where, told, strict=True):
            places[owner] = draw.choice([p for p in PLACES if p != places.get(owner)])
            pages[page].append(f"{owner[0]} put the {owner[1]} in the {places[owner]}.")
        person, thing = draw.choice(owners)
        opening: Message = {"role": "user", "content": OPENING.format(pages=chosen.pages)}
        data = {
            "pages": [" ".join(page) for page in pages],
            "question": f"Where is the {thing} of {person}?",
            "answer": places[person, thing],
        }
        return Task(name, "long_memory", (opening,), data)


@dataclass(slots=True)
class Reading:
    """One page a turn, then the question."""

    opening: Sequence[Message]
    pages: list[str]
    question: str
    answer: str
    _turn: int = 0

    async def start(self) -> Sequence[Message]:
        return self.opening

    async def step(self, text: str) -> StepResult:
        self._turn += 1
        if self._turn <= len(self.pages):
            return self._go_on(self.pages[self._turn - 1])
        if self._turn == len(self.pages) + 1:
            return self._go_on(self.question)
        right = normal_form(text).strip(" .") == self.answer
        return StepResult(done=True, reward=float(right), info={"pages": len(self.pages)})

    async def close(self) -> None:
        """Nothing is held."""

    def _go_on(self, text: str) -> StepResult:
        return StepResult(done=False, messages=({"role": "user", "content": text},))
