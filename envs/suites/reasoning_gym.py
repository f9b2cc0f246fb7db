"""Tasks of the PyPI package `reasoning_gym`: procedurally generated, verified by the package itself.

A run mixes several families, each with its own parameters and weight:

    env:
      name: reasoning_gym
      args:
        max_turns: 2
        families:
          gcd: {weight: 2, max_value: 50}
          spell_backward: {max_word_len: 4, demonstrations: 100}
"""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from envs import options
from envs.answer_env import RETRY_MESSAGE, SOLVED, AnswerEnv, Retries
from envs.mixture import Mixture, in_share, stable_hash
from envs.suites.reasoning_gym_family import Family, Problem
from envs.verifiers.text import EXTRACTORS
from rlframe.errors import UserError
from rlframe.types import Demonstration, Message, Task


@dataclass(frozen=True)
class ReasoningGymOptions:
    """`env.args` of `env.name=reasoning_gym`."""

    families: Mapping[str, Any]
    """Family -> its own parameters, and ours: `weight` (of the mixture, default 1) and
    `demonstrations` (of how many problems; they repeat after that; 0: no limit)."""
    system: str = ""
    """System prompt; empty: none."""
    answer_in: str = "text"
    """`text`: all of the answer counts; `tag`: what stands in <answer></answer>."""
    partial_credit: bool = True
    """The package's score as it is; otherwise 1 if it is 1, else 0."""
    max_turns: int = 1
    retry_reward: float = 0.5
    """Factor of the reward where a later answer is right."""
    retry_message: str = RETRY_MESSAGE
    held_out_share: float = 0.2
    """Share of a family's questions that never train."""
    demonstration_retry_share: float = 0.0
    """Share of demonstrations that begin with a wrong answer."""

    def __post_init__(self) -> None:
        check = options.require
        check(bool(self.families), "env.args.families", dict(self.families), "at least one family")
        check(self.answer_in in EXTRACTORS, "env.args.answer_in", self.answer_in, "text or tag")
        check(self.max_turns >= 1, "env.args.max_turns", self.max_turns, "at least 1")
        share = self.held_out_share
        check(0 < share < 1, "env.args.held_out_share", share, "between 0 and 1")
        share = self.demonstration_retry_share
        check(0 <= share <= 1, "env.args.demonstration_retry_share", share, "from 0 to 1")


class ReasoningGymSource:
    """See the module's docstring; satisfies `rlframe.interfaces.TaskSource`."""

    def __init__(self, given: Mapping[str, Any], *, seed: int, held_out: int) -> None:
        self._options = options.parse(ReasoningGymOptions, given)
        self._seed, self._held_out = seed, held_out
        self._families: list[Family] = []
        self._shown: list[int] = []  # different problems in demonstrations, a family; 0: no limit
        weights = []
        for name, spec in self._options.families.items():
            weight, shown, parameters = _split_spec(name, spec)
            weights.append(weight)
            self._shown.append(shown)
            self._families.append(
                Family(name, parameters, seed=seed, held_out_share=self._options.held_out_share)
            )
        self._by_name = {family.name: family for family in self._families}
        self._mixture = Mixture(weights)

    def train_task(self, index: int) -> Task:
        return self.train_task_of(self._families[self._mixture.part(index)].name, index)

    def train_task_of(self, domain: str, index: int) -> Task:
        family = self._by_name[domain]
        return self._task(f"train/{index}", family, family.problem("train", index))

    def held_out_tasks(self) -> Sequence[Task]:
        """By weight; fewer than asked for where a family has not enough different questions."""
        return [
            self._task(f"held_out/{family.name}/{k}", family, problem)
            for family, quota in zip(
                self._families, self._mixture.quotas(self._held_out), strict=True
            )
            for k, problem in enumerate(family.held_out(quota))
        ]

    def make(self, task: Task) -> AnswerEnv:
        family = self._by_name[task.domain]
        number, question = int(task.data["number"]), str(task.data["question"])
        extract = EXTRACTORS[self._options.answer_in]

        def score(text: str) -> float:
            value = family.scored(number, question, extract(text))
            return value if self._options.partial_credit else float(value >= SOLVED)

        chosen = self._options
        retries = Retries(chosen.max_turns, chosen.retry_reward, chosen.retry_message)
        return AnswerEnv(task.messages, score, retries)

    def demonstrations(self, count: int) -> Sequence[Demonstration]:
        """By weight, family by family in turn; a family's problems repeat after its limit."""
        seen = [0] * len(self._families)
        result = []
        for draw in range(count):
            part = self._mixture.part(draw)
            result.append(self._demonstration(part, seen[part]))
            seen[part] += 1
        return result

    def _demonstration(self, part: int, position: int) -> Demonstration:
        family, shown = self._families[part], self._shown[part]
        problem = family.problem("demonstrations", position % shown if shown else position)
        question = self._messages(problem.question)
        right: Message = {"role": "assistant", "content": self._answer(family, problem)}
        share = self._options.demonstration_retry_share
        if not in_share(share, "retry", self._seed, family.name, position):
            return Demonstration((*question, right), domain=family.name)
        wrong: Message = {"role": "assistant", "content": self._wrong(part, problem, position)}
        again: Message = {"role": "user", "content": self._options.retry_message}
        return Demonstration(
            (*question, wrong, again, right), untrained=(len(question),), domain=family.name
        )

    def _wrong(self, part: int, problem: Problem, position: int) -> str:
        """The right answer to another problem, where it is wrong here."""
        family, shown = self._families[part], self._shown[part]
        rng = random.Random(stable_hash("wrong", self._seed, family.name, position))
        for _ in range(20):
            other = family.problem("demonstrations", rng.randrange(shown or position + 20))
            answer = self._answer(family, other)
            if family.scored(problem.number, problem.question, self._extract(answer)) < SOLVED:
                return answer
        raise UserError(
            f"env.args.families.{family.name}: no wrong answers to demonstrate retries with: raise its "
            "`demonstrations`, or set env.args.demonstration_retry_share=0"
        )

    def _answer(self, family: Family, problem: Problem) -> str:
        answer = problem.answer
        if answer is None or family.scored(problem.number, problem.question, answer) < SOLVED:
            raise UserError(
                f"env.args.families.{family.name}: reasoning_gym has no answers for this family, so "
                "there is nothing to demonstrate"
            )
        return answer if self._options.answer_in == "text" else f"<answer>{answer}</answer>"

    def _extract(self, text: str) -> str:
        return EXTRACTORS[self._options.answer_in](text)

    def _task(self, task_id: str, family: Family, problem: Problem) -> Task:
        return Task(
            id=task_id,
            domain=family.name,
            messages=self._messages(problem.question),
            data={"number": problem.number, "question": problem.question},
            seed=problem.number,
        )

    def _messages(self, question: str) -> tuple[Message, ...]:
        user: Message = {"role": "user", "content": question}
        system = self._options.system
        return ({"role": "system", "content": system}, user) if system else (user,)


def _split_spec(name: str, spec: Any) -> tuple[float, int, dict[str, Any]]:
    """Our keys of a family's part, and the package's."""
    where = f"env.args.families.{name}"
    options.require(spec is None or isinstance(spec, Mapping), where, spec, "its parameters")
    parameters = dict(spec or {})
    weight = parameters.pop("weight", 1.0)
    valid = isinstance(weight, int | float) and not isinstance(weight, bool) and weight > 0
    options.require(valid, f"{where}.weight", weight, "a number above 0")
    shown = parameters.pop("demonstrations", 0)
    valid = isinstance(shown, int) and not isinstance(shown, bool) and shown >= 0
    options.require(valid, f"{where}.demonstrations", shown, "a whole number, 0 or more")
    return float(weight), shown, parameters
