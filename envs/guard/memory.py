"""What an attempt's calls leave behind for the guard: where the agent is, what it wrote, what is tainted."""

from __future__ import annotations

from collections.abc import Sequence

from envs.guard.facts import Access, Fact, Memory, Touch
from envs.guard.paths import ACTIVE, absolute

MAX_KEPT = 512
MAX_BYTES = 65_536


def copied(memory: Memory) -> Memory:
    return Memory(
        cwds=memory.cwds,
        variables=dict(memory.variables),
        links=dict(memory.links),
        tainted=set(memory.tainted),
        written=dict(memory.written),
        git_peeked=memory.git_peeked,
    )


def remember(memory: Memory, facts: Sequence[Fact], *, tainting: bool) -> None:
    """`tainting`: the call was flagged and ran all the same; what it wrote may hold protected content. A
    clean write takes the taint from a file."""
    for fact in facts:
        if (
            not isinstance(fact, Touch)
            or fact.access is not Access.WRITE
            or ACTIVE.search(fact.path)
        ):
            continue
        for path in absolute(fact.path, fact.cwds)[:4]:
            if tainting:
                memory.tainted.add(path)
            else:
                memory.tainted.discard(path)
            content = fact.content
            if content is not None and len(content) <= MAX_BYTES and len(memory.written) < MAX_KEPT:
                memory.written[path] = content
            else:
                memory.written.pop(path, None)
