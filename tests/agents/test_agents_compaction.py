"""Five programs compact their context by themselves, in five ways: the summary trains, nothing twice."""

from __future__ import annotations

import json
from dataclasses import dataclass

import pytest
from agent_runs import SHELLS, Ran, Runs, check_exact
from scripted_policy import Prompt, says

from rlframe.types import LinkKind, Status
from rollout.capture.call import Call, CallKind
from rollout.harness.program import find_program

pytestmark = pytest.mark.slow

SUMMARY = "Summary: the file is in its old state still."
NOISE_TURNS = 12
"""No program's context should hold that many."""


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Runs:
    return Runs.make(tmp_path_factory.mktemp("agents"))


@dataclass(slots=True)
class FillsItsContext:
    """Prints much until it is asked for a summary; then edits the file and is done."""

    name: str
    noise: str
    asks: str
    """Stands in the program's request for a summary only."""
    summaries: int = 0
    edited: bool = False

    def __call__(self, prompt: Prompt) -> str:
        shell = SHELLS[self.name]
        if "title generator" in prompt.system:
            return says("A title")
        if self.asks in prompt.text:
            self.summaries += 1
            return says(SUMMARY)
        if not self.summaries:
            return says("", shell(self.noise)) if prompt.answers < NOISE_TURNS else says("Enough.")
        if self.edited:
            return says("It is done.")
        self.edited = True
        return says("", shell("printf mended > answer.txt"))


async def compacted(
    runs: Runs, name: str, *, noise: str, asks: str, context_tokens: int
) -> tuple[Ran, Call, Call]:
    """The attempt, its call for a summary, and the next one. Checked: what all three have in common."""
    ran = await runs.run(
        find_program(name), FillsItsContext(name, noise, asks), max_context_tokens=context_tokens
    )
    assert ran.trajectory.status is Status.COMPLETED, ran.said()
    assert [r.value for r in ran.trajectory.rewards] == [1.0], ran.said()
    check_exact(ran)
    assert ran.kinds[CallKind.COMPACTION] == 1, ran.said()
    main = [c for c in ran.calls if c.thread == "main"]
    at = next(i for i, c in enumerate(main) if c.kind is CallKind.COMPACTION)
    summary, after = main[at], main[at + 1]
    assert at >= 2, "nothing was there to be compacted"
    assert all(c.bridged for c in main[1:at]), "appended only before"
    assert all(c.bridged for c in main[at + 2 :]), "appended only afterwards"
    assert not after.bridged
    number = ran.calls.index(after)
    assert SUMMARY in ran.engine.log[number].prompt.text
    assert len(ran.trajectory.traces) == 3, ran.said()
    assert [link.kind for link in ran.trajectory.links] == [LinkKind.CONTINUES] * 2
    trained = ran.trajectory.traces[1]
    assert trained.loss_mask.sum() == len(summary.output_ids), "the summary trains in its own trace"
    return ran, summary, after


async def test_claude_code_keeps_its_last_turn(runs: Runs) -> None:
    """Same tools; the last turn comes back after the summary, and has trained before."""
    ran, summary, after = await compacted(
        runs,
        "claude_code",
        noise="seq 1 1200",
        asks="Your task is to create a detailed summary of",
        context_tokens=110_000,
    )
    assert summary.bridged
    assert ran.engine.log[ran.calls.index(after)].prompt.answers == 1


async def test_codex_asks_without_tools(runs: Runs) -> None:
    ran, summary, after = await compacted(
        runs,
        "codex",
        noise="seq 1 9000",
        asks="CONTEXT CHECKPOINT COMPACTION",
        context_tokens=75_000,
    )
    assert not summary.bridged
    assert not ran.engine.log[ran.calls.index(summary)].prompt.tools
    assert ran.engine.log[ran.calls.index(after)].prompt.answers == 0


async def test_opencode_tells_its_history_in_one_message(runs: Runs) -> None:
    """The summary comes back as an assistant's message, in another context than it was sampled in."""
    ran, summary, after = await compacted(
        runs,
        "opencode",
        noise="seq 1 9000",
        asks="You are a context summarization agent",
        context_tokens=60_000,
    )
    assert not summary.bridged
    assert ran.engine.log[ran.calls.index(summary)].prompt.answers == 0
    assert ran.engine.log[ran.calls.index(after)].prompt.answers == 1


async def test_qwen_code_keeps_several_turns(runs: Runs) -> None:
    """Only the older part is summarised; the turns after it come back and have trained before."""
    ran, summary, after = await compacted(
        runs,
        "qwen_code",
        noise="seq 1 1500",
        asks="You are the component that summarizes internal chat history",
        context_tokens=130_000,
    )
    assert not summary.bridged
    assert not ran.engine.log[ran.calls.index(summary)].prompt.tools
    assert ran.engine.log[ran.calls.index(after)].prompt.answers > 2


@dataclass(slots=True)
class HandsOver:
    """Terminus 2: fills the screen, then hands over to itself: a summary, questions, answers."""

    handed_over: int = 0

    def __call__(self, prompt: Prompt) -> str:
        number = self.handed_over
        if "You are about to hand off your work" in prompt.last:
            self.handed_over += 1
            return says(f"{SUMMARY} ({number})")
        if "Please begin by asking several questions" in prompt.last:
            return says(f"{number}. Where is the file? Is it open?")
        if "The next agent has a few questions for you" in prompt.last:
            return says(f"{number}. In the workspace. It is not.")
        if number:
            done = "printf mended" in prompt.text
            return self._typed([] if done else ["printf mended > answer.txt\n"], done=done)
        return self._typed([f"seq -s ' ' {prompt.answers}0001 {prompt.answers}0250\n"], done=False)

    @staticmethod
    def _typed(keys: list[str], *, done: bool) -> str:
        commands = [{"keystrokes": k, "duration": 0.5} for k in keys]
        said = {"analysis": "so", "plan": "so", "commands": commands, "task_complete": done}
        return says(json.dumps(said))


async def test_terminus_2_asks_itself_questions(runs: Runs) -> None:
    """Three calls more than others take; the questions go on as an assistant's message of the new context."""
    ran = await runs.run(find_program("terminus_2"), HandsOver(), max_context_tokens=11_500)
    assert ran.trajectory.status is Status.COMPLETED, ran.said()
    assert [r.value for r in ran.trajectory.rewards] == [1.0], ran.said()
    check_exact(ran)
    assert ran.kinds[CallKind.COMPACTION] >= 1, ran.said()
    assert ran.threads == ["main"], ran.said()
    at = next(i for i, c in enumerate(ran.calls) if c.kind is CallKind.COMPACTION)
    summary, questions, answers, after = ran.calls[at : at + 4]
    assert summary.bridged
    assert answers.bridged, "the old context goes on"
    assert not questions.bridged
    assert not after.bridged, "the system's message and the questions, in another context"
    assert ran.engine.log[after.id].prompt.answers == 1
    assert {link.kind for link in ran.trajectory.links} == {LinkKind.CONTINUES}
