"""When an engine counts as hung: by a clock of the test's own."""

import asyncio

import numpy as np

from rollout.engine.client import EngineClient
from rollout.engine.pulse import LONGEST_PASS, Pulse, Sign


class Clock:
    def __init__(self) -> None:
        self.now_s = 0.0

    def __call__(self) -> float:
        return self.now_s


def test_counters_that_move_are_a_pulse_and_counters_that_stand_still_are_none() -> None:
    clock = Clock()
    pulse = Pulse(10.0, clock)
    for second in range(1, 30):
        clock.now_s = float(second)
        pulse.feel(Sign((5, 0, 100 + second)))
        assert pulse.still_s == 0.0
    for second in range(30, 38):
        clock.now_s = float(second)
        pulse.feel(Sign((5, 0, 129)))
        assert not pulse.hung
    assert pulse.doubtful
    clock.now_s = 38.0
    pulse.feel(Sign((5, 0, 129)))
    assert pulse.hung


def test_an_engine_that_does_not_answer_has_no_pulse_and_a_token_is_one() -> None:
    clock = Clock()
    pulse = Pulse(10.0, clock)
    pulse.feel(Sign((1, 0, 0)))
    clock.now_s = 4.0
    pulse.feel(Sign(()))
    assert pulse.doubtful
    assert pulse.still_s + pulse.patience_s < 10.0
    pulse.beat()
    assert not pulse.doubtful
    clock.now_s = 13.5
    assert pulse.hung
    assert pulse.patience_s == 1.0


def test_processor_time_is_work_for_a_while() -> None:
    """A long pass on a CPU that others want, too; not for ever, it may run in circles."""
    clock = Clock()
    pulse = Pulse(10.0, clock)
    for second in range(1, int(9 * LONGEST_PASS)):
        clock.now_s = float(second)
        pulse.feel(Sign((1, 2, 3), processor_s=second * 0.1))
    assert not pulse.hung
    clock.now_s += 2.0
    assert pulse.hung
    stopped = Pulse(10.0, clock)
    stopped.feel(Sign((1, 2, 3), processor_s=5.0))
    clock.now_s += 9.0
    stopped.feel(Sign((1, 2, 3), processor_s=5.01))
    assert stopped.hung


async def test_a_real_engines_counters_move_as_it_works(server, keys) -> None:
    async with EngineClient(
        server.url,
        headers={"Authorization": f"Bearer {keys.api}"},
        vocab_size=304,
        max_context_tokens=512,
        request_timeout_s=60,
    ) as client:
        sampling = {"max_new_tokens": 400, "temperature": 1.0, "ignore_eos": True}
        prompts = [np.full(20, number, np.int32) for number in range(3, 19)]
        calls = [asyncio.create_task(client.generate(p, sampling=sampling)) for p in prompts]
        seen = set()
        while not all(call.done() for call in calls):
            seen.add(await asyncio.to_thread(server.control.work, timeout_s=20))
        await asyncio.gather(*calls)
    assert all(seen)
    assert len(seen) > 3
