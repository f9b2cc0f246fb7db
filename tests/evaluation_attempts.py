"""Attempts of evaluations for tests."""

from rlframe.evaluation.measured import Measured
from rlframe.types import Status


def measured(
    task="s/t0", score=1.0, *, repeat=0, status=Status.COMPLETED, domain="d", **more
) -> Measured:
    settings = {
        "id": f"eval/{task}/{repeat}",
        "task_id": task,
        "suite": task.partition("/")[0],
        "domain": domain,
        "repeat": repeat,
        "status": status,
        "score": score,
        "turns": 2,
        "prompt_tokens": 1000,
        "sampled_tokens": 100,
        "seconds": 1.5,
        "tries": 1,
        "versions": (0,),
        "blocked_turns": 0,
        "error": "",
    }
    return Measured(**(settings | more))
