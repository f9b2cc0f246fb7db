"""A whole run whose attempts at a task share their prompt, on two context-parallel ranks: engines agree."""

import pytest
from tiny_run import TinyRun

SHARING = (
    "steps=3",
    "algorithm.critic_warmup_steps=0",
    "trainer.share_prefixes=true",
    "algorithm.rollouts_per_task=4",
    "trainer.policy.layout.context=2",
)


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_shared_prefixes_over_context_parallel_ranks(tmp_path, warm_start):
    run = TinyRun(tmp_path / "run", warm_start, extra=SHARING)
    try:
        run.start()
        assert run.finish() == 0, run.stderr
    finally:
        run.end()
    logged = run.metrics()
    assert sorted(logged) == [1, 2, 3]
    for line in logged.values():
        assert line["gap/max"] < 1e-4, "the engine computes each attempt by itself"
        assert line["batch/shared_tokens"] > 0.3
        assert line["policy/skipped"] == 0
