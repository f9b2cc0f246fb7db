"""What the states of finished trajectories were worth: Monte Carlo returns, for a critic that learns offline.

The return of an action is the discounted sum of the rewards from it to the end of its chain, through
compaction (credit with lambda = 1). A sub-agent's chain goes on with the parent's state at the join; there
is no value to take there yet, so it takes the return that the parent had from it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from rlframe import batch
from rlframe.config.schema import ValueConfig
from rlframe.credit import CreditRules, assign_credit
from rlframe.types import LinkKind, TrainRow, Trajectory


def value_rows(trajectories: Sequence[Trajectory], config: ValueConfig) -> list[TrainRow]:
    """One row a trace, in the order of `batch.flatten`, with its returns; what `truncation=mask` leaves out
    does not train."""
    rules = CreditRules(
        gamma=config.gamma,
        lambda_policy=1.0,
        lambda_critic=1.0,
        truncation=config.truncation,
        whiten=False,
        compaction=config.compaction,
        sub_agent=config.sub_agent,
    )
    traces = batch.flatten(trajectories)
    returns = [np.zeros(len(trace), np.float32) for trace in traces]
    # With returns for values the parents' are right after one pass, their sub-agents' after the next, ...
    for _ in range(1 + max(map(_nesting, trajectories), default=0)):
        credit = assign_credit(trajectories, batch.unflatten(returns, trajectories), rules=rules)
        returns = credit.returns
    rows = zip(batch.bare_rows(traces), credit.loss_masks, returns, strict=True)
    return [replace(row, loss_mask=mask, returns=found) for row, mask, found in rows]


def _nesting(trajectory: Trajectory) -> int:
    """How deep sub-agents have called sub-agents."""
    depth = [0] * len(trajectory.traces)
    for link in sorted(
        trajectory.links, key=lambda link: link.child
    ):  # a parent comes before its child
        depth[link.child] = depth[link.parent] + (link.kind is LinkKind.SPAWNED_BY)
    return max(depth, default=0)
