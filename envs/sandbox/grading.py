"""Grading in a second, clean sandbox, which the agent never saw and which sees only its artifacts.

score = await graded(
    agent,                                    # the agent's sandbox: ended, then read once
    paths=["/workspace/package"],
    accept=lambda path: path.endswith(".py"),
    opens=lambda: pool.take(grading_spec),    # with the hidden tests, from a clean state
    verify=verify,                            # (sandbox, artifacts) -> Score
)
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from dataclasses import replace

from envs.sandbox.artifacts import Artifacts, artifacts_of
from rlframe.errors import PolicyFault, TaskFault
from rlframe.interfaces import Score
from rlframe.sandbox.protocol import Sandbox

MAX_ARTIFACT_BYTES = 64 << 20
Verify = Callable[[Sandbox, Artifacts], Awaitable[Score]]


async def graded(
    agent: Sandbox,
    *,
    paths: Sequence[str],
    accept: Callable[[str], bool],
    opens: Callable[[], Awaitable[Sandbox]],
    verify: Verify,
) -> Score:
    """Artifacts that can't be had (too large, gone) earn 0: the agent made them so. Raises TaskFault
    where the verifier's own code destroys its sandbox."""
    try:
        await agent.end_processes()
        archive = await agent.snapshot(paths, max_bytes=MAX_ARTIFACT_BYTES)
        artifacts = artifacts_of(archive, accept)
    except (OSError, ValueError) as error:
        return Score(0.0, {"artifacts": str(error)})
    second = await opens()
    try:
        await second.upload(artifacts.archive())
        score = await verify(second, artifacts)
    except PolicyFault as error:
        # Here the code under test ran: what destroys a verifier's sandbox is no passing solution.
        return Score(0.0, {"verifier": str(error)})
    except OSError as error:
        raise TaskFault(f"the verifier's sandbox: {error}") from error
    finally:
        await second.close()
    if artifacts.refused:
        info = {**score.info, "refused_artifacts": list(artifacts.refused[:20])}
        return replace(score, info=info)
    return score
