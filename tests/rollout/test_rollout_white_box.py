"""White-box mode by a numbered list of scripted attempts: every way to end, and whose fault it was."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import pytest
from chat_templates import CHATML, save_tokenizer

from rlframe.errors import InfraFault
from rlframe.interfaces import RolloutRequest, StepResult
from rlframe.types import Int32Array, LinkKind, Message, Status, Task, Trajectory, Turn
from rollout.compaction import CompactionPolicy
from rollout.modes.white_box import Limits, WhiteBox
from rollout.policy_client import PolicySettings
from rollout.renderer import Renderer

LIMITS = Limits(max_turns=3, attempt_timeout_s=30.0, infra_retries=2)
CONTEXT_TOKENS = 200
TASK = Task("train/1", "sums", ({"role": "user", "content": "2+2?"},))
AGAIN: Message = {"role": "user", "content": "No."}


@pytest.fixture(scope="module")
def renderer(tmp_path_factory: pytest.TempPathFactory) -> Renderer:
    return Renderer(str(save_tokenizer(tmp_path_factory.mktemp("tokenizer"), CHATML)))


class Policy:
    """Says the scripted texts; an exception in the script is raised instead."""

    def __init__(self, renderer: Renderer, script: Sequence[str | list[int] | Exception]) -> None:
        self.renderer, self.script = renderer, list(script)
        self.prompts: list[str] = []
        self.sampling: list[dict[str, Any]] = []
        self.routing_keys: set[str] = set()

    async def generate(
        self, input_ids: Int32Array, *, sampling: dict[str, Any], routing_key: str
    ) -> Turn:
        self.prompts.append(self.renderer._tokenizer.decode(input_ids.tolist()))
        self.sampling.append(sampling)
        self.routing_keys.add(routing_key)
        said = self.script.pop(0)
        if isinstance(said, Exception):
            raise said
        ids = said if isinstance(said, list) else self.renderer._tokenizer.encode(said)
        ids = ids[: sampling["max_new_tokens"]]
        ended = bool(ids) and ids[-1] == self.renderer.end_of_turn
        count = len(ids)
        return Turn(
            input_ids,
            tuple(ids),
            (-0.5,) * count,
            (3,) * count,
            "stop" if ended else "length",
        )


class Env:
    """Done, with reward 1, when the policy says 4."""

    closed = 0

    async def start(self) -> Sequence[Message]:
        return TASK.messages

    async def step(self, text: str) -> Any:
        if text == "4":
            return StepResult(done=True, reward=1.0, info={"score": 1.0})
        return StepResult(done=False, reward=-0.25, messages=(AGAIN,), info={"score": 0.0})

    async def close(self) -> None:
        type(self).closed += 1


async def attempt(
    renderer: Renderer,
    script: Sequence[str | list[int] | Exception],
    *,
    env: Callable[[Task], Any] = lambda task: Env(),
    limits: Limits = LIMITS,
    sampling: dict[str, Any] | None = None,
    max_context_tokens: int = CONTEXT_TOKENS,
    compaction: CompactionPolicy = CompactionPolicy(),  # noqa: B008 - frozen
) -> tuple[Trajectory, Policy]:
    policy = Policy(renderer, script)
    mode = WhiteBox(
        env,
        PolicySettings(
            generate=policy.generate,
            renderer=renderer,
            sampling={"temperature": 1.0, "max_new_tokens": 20},
            max_context_tokens=max_context_tokens,
            compaction=compaction,
        ),
        limits=limits,
    )
    return await mode.run(RolloutRequest("train/000000001", TASK, sampling or {})), policy


async def test_1_right_at_once(renderer: Renderer) -> None:
    made, policy = await attempt(renderer, ["4<|im_end|>"])
    assert made.status is Status.COMPLETED
    assert (made.id, made.task_id, made.domain) == ("train/000000001", "train/1", "sums")
    (trace,) = made.traces
    trained = trace.token_ids[trace.loss_mask].tolist()
    assert renderer._tokenizer.decode(trained) == "4<|im_end|>"
    assert made.reward == 1.0
    assert made.rewards[0].position == len(trace) - 1
    assert policy.sampling[0]["stop_token_ids"] == [renderer.end_of_turn]
    assert policy.routing_keys == {"train/000000001"}
    assert made.info["prompt"] == "2+2?"
    assert made.info["response"] == "4"
    assert made.info["env"] == {"score": 1.0}
    assert made.info["finish_reasons"] == ["stop"]


async def test_2_right_at_the_second_try_is_one_trace_with_a_reward_a_turn(
    renderer: Renderer,
) -> None:
    made, policy = await attempt(renderer, ["5<|im_end|>", "4<|im_end|>"])
    (trace,) = made.traces
    whole = renderer._tokenizer.decode(trace.token_ids.tolist())
    assert whole == (
        "<|im_start|>user\n2+2?<|im_end|>\n<|im_start|>assistant\n5<|im_end|>\n"
        "<|im_start|>user\nNo.<|im_end|>\n<|im_start|>assistant\n4<|im_end|>"
    )
    assert policy.prompts[1] == whole.removesuffix("4<|im_end|>")
    assert [r.value for r in made.rewards] == [-0.25, 1.0]
    for reward in made.rewards:
        assert trace.token_ids[reward.position] == renderer.end_of_turn
        assert trace.loss_mask[reward.position]
    assert made.info["turns"] == 2


async def test_3_a_cut_turn_is_closed_with_a_token_that_does_not_train(renderer: Renderer) -> None:
    made, _ = await attempt(renderer, ["5" * 40, "4<|im_end|>"], sampling={"max_new_tokens": 6})
    (trace,) = made.traces
    assert made.info["finish_reasons"] == ["length", "stop"]
    assert (
        renderer._tokenizer.decode(trace.token_ids[trace.loss_mask].tolist()) == "5555554<|im_end|>"
    )
    assert renderer._tokenizer.decode(trace.token_ids.tolist()).count("<|im_end|>") == 4


async def test_4_the_turn_limit(renderer: Renderer) -> None:
    made, policy = await attempt(renderer, ["5<|im_end|>"] * 4)
    assert made.status is Status.TRUNCATED_TURNS
    assert made.info["turns"] == 3
    assert len(policy.script) == 1


async def test_5_the_context_limit(renderer: Renderer) -> None:
    limits = replace(LIMITS, max_turns=9)
    made, policy = await attempt(
        renderer, ["5" * 12 + "<|im_end|>"] * 9, limits=limits, max_context_tokens=40
    )
    assert made.status is Status.TRUNCATED_LENGTH
    assert all(len(t) <= 40 for t in made.traces)
    assert made.actions > 0
    assert policy.sampling[-1]["max_new_tokens"] <= 20


async def test_6_a_prompt_without_room_for_an_answer(renderer: Renderer) -> None:
    made, policy = await attempt(renderer, [], max_context_tokens=5)
    assert made.status is Status.TRUNCATED_LENGTH
    assert made.traces == ()
    assert not policy.prompts


async def test_7_the_time_limit(renderer: Renderer) -> None:
    class Slow(Env):
        async def step(self, text: str) -> Any:
            await asyncio.Event().wait()

    before = Env.closed + Slow.closed
    limits = replace(LIMITS, attempt_timeout_s=0.05)
    made, _ = await attempt(renderer, ["5<|im_end|>"], env=lambda task: Slow(), limits=limits)
    assert made.status is Status.TRUNCATED_TIME
    assert made.actions > 0
    assert Env.closed + Slow.closed > before


async def test_8_our_side_fails_and_the_attempt_is_made_again_from_nothing(
    renderer: Renderer,
) -> None:
    script = ["5<|im_end|>", InfraFault("engine gone"), "4<|im_end|>"]
    made, policy = await attempt(renderer, script)
    assert made.status is Status.COMPLETED
    assert made.info["turns"] == 1
    assert made.actions == 2
    assert policy.prompts[2] == policy.prompts[0]


async def test_9_our_side_fails_for_good(renderer: Renderer) -> None:
    made, policy = await attempt(renderer, [InfraFault(f"gone {n}") for n in range(5)])
    assert made.status is Status.INFRA_ERROR
    assert made.info["error"] == "gone 2"
    assert len(policy.script) == 2
    assert not made.status.is_trainable


async def test_10_an_answer_without_a_token_is_our_fault(renderer: Renderer) -> None:
    made, _ = await attempt(renderer, ["", "", "4<|im_end|>"])
    assert made.status is Status.COMPLETED


class RaisesInStart(Env):
    async def start(self) -> Sequence[Message]:
        raise FileNotFoundError("rooms.json")


class RaisesInStep(Env):
    async def step(self, text: str) -> Any:
        return 1 / 0


class TimesOut(Env):
    async def step(self, text: str) -> Any:
        raise TimeoutError("the page did not load")


class ReturnsNothing(Env):
    async def step(self, text: str) -> Any:
        return None


class ReturnsNan(Env):
    async def step(self, text: str) -> Any:
        return StepResult(done=True, reward=float("nan"))


class SaysNothing(Env):
    async def step(self, text: str) -> Any:
        return StepResult(done=False)


class OddMessage(Env):
    async def step(self, text: str) -> Any:
        return StepResult(done=False, messages=({"role": "user", "content": 7},))


def raises_in_make(task: Task) -> Env:
    raise KeyError("domain")


@pytest.mark.parametrize(
    ("env", "error"),
    [
        (raises_in_make, "KeyError: 'domain'"),
        (lambda task: RaisesInStart(), "FileNotFoundError: rooms.json"),
        (lambda task: RaisesInStep(), "ZeroDivisionError: division by zero"),
        (lambda task: TimesOut(), "TimeoutError: the page did not load"),
        (lambda task: ReturnsNothing(), "returned None, which is no StepResult"),
        (lambda task: ReturnsNan(), "reward is nan"),
        (lambda task: SaysNothing(), "no messages to go on with"),
        (lambda task: OddMessage(), "the chat template refuses the messages"),
    ],
)
async def test_11_faults_of_the_environment_are_data(
    renderer: Renderer, env: Callable[[Task], Any], error: str
) -> None:
    made, policy = await attempt(renderer, ["5<|im_end|>"] * 9, env=env)
    assert made.status is Status.FAILED
    assert error in made.info["error"]
    assert not made.status.is_trainable
    assert len(policy.prompts) <= 1  # not made again


async def test_12_an_environment_may_say_that_our_side_failed(renderer: Renderer) -> None:
    class SandboxDied(Env):
        async def step(self, text: str) -> Any:
            raise InfraFault("the sandbox died")

    made, policy = await attempt(renderer, ["5<|im_end|>"] * 9, env=lambda task: SandboxDied())
    assert made.status is Status.INFRA_ERROR
    assert len(policy.prompts) == 1 + LIMITS.infra_retries


async def test_13_what_close_raises_does_not_undo_the_attempt(renderer: Renderer) -> None:
    class Leaks(Env):
        async def close(self) -> None:
            raise OSError("busy")

    made, _ = await attempt(renderer, ["4<|im_end|>"], env=lambda task: Leaks())
    assert made.status is Status.COMPLETED
    assert made.info["error"].startswith("close: OSError: busy")


async def test_14_info_that_can_not_be_stored_becomes_text(renderer: Renderer) -> None:
    class Odd(Env):
        async def step(self, text: str) -> Any:
            return StepResult(done=True, info={"page": object(), "set": {1}})

    made, _ = await attempt(renderer, ["4<|im_end|>"], env=lambda task: Odd())
    assert "object object" in str(made.info["env"]["page"])


async def test_15_every_environment_is_closed(renderer: Renderer) -> None:
    before = Env.closed
    await attempt(renderer, ["5<|im_end|>"] * 3)
    await attempt(renderer, ["5<|im_end|>", InfraFault("gone"), "4<|im_end|>"])
    assert Env.closed == before + 3


def texts(renderer: Renderer, made: Trajectory) -> list[tuple[str, str]]:
    """Of each trace: all of it, and what trains."""
    decode = renderer._tokenizer.decode
    return [
        (decode(t.token_ids.tolist()), decode(t.token_ids[t.loss_mask].tolist()))
        for t in made.traces
    ]


async def test_16_compaction_after_two_turns_keeps_the_last_one(renderer: Renderer) -> None:
    script = ["5<|im_end|>", "6<|im_end|>", "so far: 5 and 6<|im_end|>", "4<|im_end|>"]
    made, _ = await attempt(
        renderer,
        script,
        limits=replace(LIMITS, max_turns=9),
        compaction=CompactionPolicy(every_turns=2, keep_turns=1, instruction="Sum up."),
    )
    assert made.status is Status.COMPLETED
    (first, trained_first), (second, trained_second) = texts(renderer, made)
    assert first.endswith(
        "<|im_start|>user\nSum up.<|im_end|>\n<|im_start|>assistant\nso far: 5 and 6<|im_end|>"
    )
    assert trained_first == "5<|im_end|>6<|im_end|>so far: 5 and 6<|im_end|>"
    assert second == (
        "<|im_start|>user\n2+2?\n\nThe context so far was summarised:\n\nso far: 5 and 6<|im_end|>\n"
        "<|im_start|>assistant\n6<|im_end|>\n<|im_start|>user\nNo.<|im_end|>\n"
        "<|im_start|>assistant\n4<|im_end|>"
    )
    assert trained_second == "4<|im_end|>"
    (link,) = made.links
    assert (link.kind, link.parent, link.child) == (LinkKind.CONTINUES, 0, 1)
    assert [(r.value, r.trace) for r in made.rewards] == [(-0.25, 0), (-0.25, 0), (1.0, 1)]
    assert made.info["compactions"] == 1


async def test_17_several_compactions_and_none_kept(renderer: Renderer) -> None:
    script = [
        text + "<|im_end|>"
        for text in ("5", "first summary", "6", "second summary", "7", "sum", "4")
    ]
    made, _ = await attempt(
        renderer,
        script,
        limits=replace(LIMITS, max_turns=9),
        compaction=CompactionPolicy(every_turns=1, keep_turns=0, instruction="Sum up."),
    )
    assert [trained for _, trained in texts(renderer, made)] == [
        "5<|im_end|>first summary<|im_end|>",
        "6<|im_end|>second summary<|im_end|>",
        "7<|im_end|>sum<|im_end|>",
        "4<|im_end|>",
    ]
    assert texts(renderer, made)[3][0] == (
        "<|im_start|>user\n2+2?\n\nThe context so far was summarised:\n\nsum<|im_end|>\n"
        "<|im_start|>user\nNo.<|im_end|>\n<|im_start|>assistant\n4<|im_end|>"
    )
    assert [(link.parent, link.child) for link in made.links] == [(0, 1), (1, 2), (2, 3)]


async def test_18_a_summary_of_odd_tokens_is_taken_over_token_for_token(renderer: Renderer) -> None:
    """Ids that no tokenizer would make of their text: sampled as they are, spliced as they are."""
    byte = renderer._tokenizer._tokenizer.token_to_id("ÿ")  # 0xFF, which no UTF-8 text has
    odd = [byte, *renderer._tokenizer.encode("sum"), byte]
    assert renderer._tokenizer.encode(renderer._tokenizer.decode(odd)) != odd
    made, _ = await attempt(
        renderer,
        ["5<|im_end|>", odd, "4<|im_end|>"],
        limits=replace(LIMITS, max_turns=9),
        compaction=CompactionPolicy(every_turns=1, keep_turns=1, instruction="Sum up."),
    )
    first, second = (trace.token_ids.tolist() for trace in made.traces)
    assert first[-len(odd) :] == odd
    assert any(second[i : i + len(odd)] == odd for i in range(len(second)))


async def test_19_a_context_that_fills_up_is_compacted_in_time(renderer: Renderer) -> None:
    answer = "5" * 12 + "<|im_end|>"
    made, _ = await attempt(
        renderer,
        [answer, answer, answer, "short<|im_end|>", "4<|im_end|>"],
        limits=replace(LIMITS, max_turns=9),
        max_context_tokens=300,
        compaction=CompactionPolicy(at_share=0.4, keep_turns=1, instruction="Sum up."),
    )
    assert made.status is Status.COMPLETED
    assert made.info["compactions"] == 1
    assert len(made.traces) == 2
