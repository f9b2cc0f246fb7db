"""Which digit had a colour on the first page? Four pages do not fit into the context, nor do two."""

import random
from collections.abc import Mapping, Sequence

from rlframe.interfaces import StepResult
from rlframe.types import Demonstration, Message, Task
from rollout.compaction import OPENING

COLOURS = ("red", "blue", "green")
WEATHER = ("rain", "fog", "wind", "snow", "hail", "sun")
PAGES = 4
NOTES_A_PAGE = 8
OPENING_TEXT = "Read the pages, then answer."
SUM_UP = "Sum up."
NEXT = "next"
KEPT = 0.7
"""How often a demonstrated summary keeps a fact: what is lost on the way is PPO's to save."""


def say(role: str, content: str) -> Message:
    return {"role": role, "content": content}


def pairs(facts: Mapping[str, str]) -> str:
    return " ".join(f"{name} {digit}" for name, digit in facts.items())


def draw_facts(draw: random.Random) -> dict[str, str]:
    return {colour: str(draw.randrange(10)) for colour in COLOURS}


def draw_page(draw: random.Random, facts: Mapping[str, str]) -> str:
    """A page of notes about the weather; the facts stand among them, in order."""
    notes = [f"{draw.choice(WEATHER)} {draw.randrange(10)}" for _ in range(NOTES_A_PAGE)]
    places = sorted(draw.sample(range(NOTES_A_PAGE), len(facts)))
    for place, (colour, digit) in zip(places, facts.items(), strict=True):
        notes[place] = f"{colour} {digit}"
    return " ".join(notes)


def ask(colour: str) -> str:
    return f"Which digit was {colour}?"


class PageTasks:
    def __init__(self, *, seed: int, held_out: int) -> None:
        self._seed, self._held_out = seed, held_out

    def _task(self, name: str) -> Task:
        draw = random.Random(f"{self._seed}/{name}")
        facts = draw_facts(draw)
        pages = [draw_page(draw, facts if number == 0 else {}) for number in range(PAGES)]
        colour = draw.choice(COLOURS)
        data = {"pages": pages, "question": ask(colour), "right": facts[colour]}
        return Task(id=name, domain="pages", messages=(say("user", OPENING_TEXT),), data=data)

    def train_task(self, index: int) -> Task:
        return self._task(f"train-{index}")

    def held_out_tasks(self) -> list[Task]:
        return [self._task(f"held-out-{i}") for i in range(self._held_out)]

    def make(self, task: Task) -> "Reading":
        return Reading([*task.data["pages"], task.data["question"]], task.data["right"])

    def demonstrations(self, count: int) -> list[Demonstration]:
        """How to turn a page, to sum up what is on it, and to answer from a summary."""
        kinds = (_first_page, _later_page, _answer)
        return [kinds[i % 3](random.Random(f"shown/{i}")) for i in range(count)]


def _some(draw: random.Random, facts: Mapping[str, str]) -> dict[str, str]:
    return {colour: digit for colour, digit in facts.items() if draw.random() < KEPT}


def _summed_up(opening: str, page: str, summary: str) -> Demonstration:
    messages = [say("user", opening), say("assistant", NEXT), say("user", page)]
    messages += [say("assistant", NEXT), say("user", SUM_UP), say("assistant", summary)]
    return Demonstration(tuple(messages), domain="pages")


def _first_page(draw: random.Random) -> Demonstration:
    facts = draw_facts(draw)
    return _summed_up(OPENING_TEXT, draw_page(draw, facts), _summary(_some(draw, facts)))


def _later_page(draw: random.Random) -> Demonstration:
    known = _some(draw, draw_facts(draw))
    opening = f"{OPENING_TEXT}\n\n{OPENING}{_summary(known)}"
    return _summed_up(opening, draw_page(draw, {}), _summary(_some(draw, known)))


def _answer(draw: random.Random) -> Demonstration:
    known = _some(draw, draw_facts(draw))
    colour = draw.choice(COLOURS)
    answer = known.get(colour, str(draw.randrange(10)))
    opening = f"{OPENING_TEXT}\n\n{OPENING}{_summary(known)}"
    messages = [say("user", opening), say("assistant", NEXT), say("user", ask(colour))]
    return Demonstration((*messages, say("assistant", answer)), domain="pages")


def _summary(facts: Mapping[str, str]) -> str:
    return pairs(facts) or "none"


class Reading:
    """One page a turn, whatever is answered; then the question."""

    def __init__(self, texts: Sequence[str], right: str) -> None:
        self._texts, self._right = list(texts), right

    async def start(self) -> list[Message]:
        return [say("user", OPENING_TEXT)]

    async def step(self, text: str) -> StepResult:
        if self._texts:
            return StepResult(done=False, messages=(say("user", self._texts.pop(0)),))
        return StepResult(done=True, reward=float(text.strip() == self._right))

    async def close(self) -> None:
        """Nothing is held."""
