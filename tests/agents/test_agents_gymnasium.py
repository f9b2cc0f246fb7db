"""A registered environment of the real Gymnasium, unchanged, through our adapter: in the Python that has it."""

from __future__ import annotations

import subprocess
from pathlib import Path

from peers import needs_peer

from envs.adapters.peer import own_environment, peer_python

ROOT = Path(__file__).parents[2]
LAKE = """
import asyncio
from envs.registry import make_source
from envs.source_check import check_source
from rlframe.errors import UserError

async def main():
    given = {"id": "FrozenLake-v1", "args": {"is_slippery": False}, "action": "builtins:int"}
    source = make_source("gymnasium", given, seed=0, held_out=1)
    check_source(source, name="gymnasium")
    env = source.make(source.train_task(0))
    assert (await env.start())[0]["content"] == "0"
    said = await env.step("down")
    assert "That is no action" in said.messages[0]["content"]
    for action in "112212":
        result = await env.step(action)
    assert (result.done, result.reward, result.info["truncated"]) == (True, 1.0, False)
    await env.close()
    try:
        make_source("gymnasium", {"id": "FrozenLike-v1"}, seed=0, held_out=1)
    except UserError as error:
        print(error)

asyncio.run(main())
"""


@needs_peer("gymnasium")
def test_the_real_gymnasium() -> None:
    done = subprocess.run(
        [peer_python("gymnasium"), "-c", LAKE],
        cwd=ROOT,
        env={**own_environment(), "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    assert "gymnasium has no such environment" in done.stdout
    assert "FrozenLake-v1" in done.stdout
