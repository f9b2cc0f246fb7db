"""The actions of trajectories as one flat array, chain after chain, for `rlframe.credit`.

Which rewards count for which action, and what value follows the last action of a chain, is decided
here; see `rlframe.credit` for the rules. Legend: A actions, C chains that have one.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TypeVar

import numpy as np
import numpy.typing as npt

from rlframe.types import BoolArray, Float32Array, LinkKind, Trajectory

Float64Array = npt.NDArray[np.float64]
IntArray = npt.NDArray[np.intp]
Kind = TypeVar("Kind", bound=np.generic)


@dataclass(frozen=True, slots=True)
class Actions:
    """The actions of a batch, chain after chain, and where their traces are.

    Traces stand in *chain order*: `order[j]` is the index in `batch.flatten`'s order of the j-th, and
    its tokens are `token_starts[j]` up to `token_starts[j + 1]` of the concatenated tokens.
    """

    trajectories: Sequence[Trajectory]
    order: list[int]
    token_starts: IntArray  # [traces + 1]
    loss_mask: BoolArray  # [tokens] of those that train
    positions: IntArray  # [A] of the actions among the tokens
    values: Float32Array  # [tokens]
    chain_of: list[int]
    """Of each trace in chain order; chains without an action are counted too."""
    chain_starts: IntArray  # [all chains + 1] in actions
    totals: list[float | None]
    """Of each chain: the trajectory's reward if it ends with that as if alone, else None."""

    @classmethod
    def of(
        cls,
        trajectories: Sequence[Trajectory],
        values: Sequence[Sequence[Float32Array]],
        *,
        masks_truncated: bool,
        splits_compaction: bool = False,
        splits_sub_agents: bool = False,
    ) -> Actions:
        """`splits_...`: these sub-traces are chains of their own, which end with the whole reward."""
        order: list[int] = []
        totals: list[float | None] = []
        chain_of: list[int] = []
        masks: list[BoolArray] = []
        parts: list[Float32Array] = []
        flat, chains = 0, 0
        for trajectory, own in zip(trajectories, values, strict=True):
            masked = masks_truncated and trajectory.status.is_truncated
            alone = _spawned(trajectory) if splits_sub_agents else set()
            for chain in chains_of(trajectory, splits_compaction=splits_compaction):
                ends_alone = splits_compaction or chain[0] in alone
                totals.append(trajectory.reward if ends_alone else None)
                for k in chain:
                    mask = trajectory.traces[k].loss_mask
                    order.append(flat + k)
                    chain_of.append(chains)
                    masks.append(np.zeros_like(mask) if masked else mask)
                    parts.append(own[k])
                chains += 1
            flat += len(trajectory.traces)
        token_starts = np.cumsum([0, *map(len, masks)], dtype=np.intp)
        loss_mask = np.concatenate([np.zeros(0, np.bool_), *masks])
        positions = np.flatnonzero(loss_mask)
        all_values = np.concatenate([np.zeros(0, np.float32), *parts])
        first_traces = np.searchsorted(chain_of, np.arange(chains + 1))
        return cls(
            trajectories=trajectories,
            order=order,
            token_starts=token_starts,
            loss_mask=loss_mask,
            positions=positions,
            values=all_values,
            chain_of=chain_of,
            chain_starts=np.searchsorted(positions, token_starts[first_traces]),
            totals=totals,
        )

    @property
    def chain_ends(self) -> IntArray:
        """[C] one past the last action of each chain that has one."""
        return self.chain_starts[1:][np.diff(self.chain_starts) > 0]

    def rewards(self) -> Float64Array:
        """[A]; a reward on a chain without actions is nobody's."""
        traces, positions, amounts = [], [], []
        place = self._places()
        flat = 0
        for trajectory in self.trajectories:
            for reward in trajectory.rewards:
                length = len(trajectory.traces[reward.trace]) if trajectory.traces else 0
                traces.append(place[flat + reward.trace] if length else 0)
                positions.append(length if reward.position is None else reward.position)
                amounts.append(reward.value if length else 0.0)
            flat += len(trajectory.traces)
        rewards = np.zeros(len(self.positions))
        if not len(self.positions):
            return rewards
        for chain, total in enumerate(self.totals):
            if total is not None and self.chain_starts[chain] < self.chain_starts[chain + 1]:
                rewards[self.chain_starts[chain + 1] - 1] = total
        if not amounts:
            return rewards
        where = self.token_starts[traces] + np.array(positions)
        where = np.minimum(where, self.token_starts[np.array(traces) + 1] - 1)
        chains = np.array(self.chain_of)[traces]
        starts, ends = self.chain_starts[chains], self.chain_starts[chains + 1]
        index = np.maximum(np.searchsorted(self.positions, where, side="right") - 1, starts)
        real = (starts < ends) & np.array([total is None for total in self.totals])[chains]
        np.add.at(rewards, index[real], np.array(amounts, np.float64)[real])
        return rewards

    def end_values(self, *, bootstraps: bool) -> Float64Array:
        """[C] the value after the last action of each chain that has one."""
        ends = np.zeros(len(self.chain_starts) - 1)
        place = self._places()
        flat = 0
        for trajectory in self.trajectories:
            if bootstraps and trajectory.status.is_truncated:
                for k in range(len(trajectory.traces)):
                    chain = self.chain_of[place[flat + k]]
                    if self.totals[chain] is not None:
                        continue
                    last = self.chain_starts[chain + 1] - 1
                    if last >= self.chain_starts[chain]:
                        ends[chain] = self.values[self.positions[last]]
            for link in trajectory.links:
                if link.kind is LinkKind.SPAWNED_BY:
                    child = self.chain_of[place[flat + link.child]]
                    if self.totals[child] is None:
                        ends[child] = self._value_at(place[flat + link.parent], link.join_position)
            flat += len(trajectory.traces)
        return ends[np.diff(self.chain_starts) > 0]

    def gather(self, arrays: Sequence[Float32Array]) -> Float64Array:
        """[A] of one array a trace, in the order of `batch.flatten`."""
        parts = [arrays[flat] for flat in self.order]
        joined = np.concatenate([np.zeros(0, np.float32), *parts])
        chosen: Float64Array = joined[self.positions].astype(np.float64)
        return chosen

    def masks(self) -> list[BoolArray]:
        return self.split(self.loss_mask)

    def _value_at(self, trace: int, join_position: int | None) -> float:
        """At the first action of the chain at or after that position of its trace; 0 if none."""
        if join_position is None:
            return 0.0
        where = self.token_starts[trace] + join_position
        index = int(np.searchsorted(self.positions, where))
        in_chain = index < self.chain_starts[self.chain_of[trace] + 1]
        return float(self.values[self.positions[index]]) if in_chain else 0.0

    def _places(self) -> list[int]:
        """Where each trace of `batch.flatten`'s order stands in chain order."""
        place = [0] * len(self.order)
        for j, flat in enumerate(self.order):
            place[flat] = j
        return place

    def split(self, tokens: npt.NDArray[Kind]) -> list[npt.NDArray[Kind]]:
        """[tokens] -> one array a trace, in the order of `batch.flatten`; views."""
        starts = self.token_starts.tolist()
        return [tokens[starts[j] : starts[j + 1]] for j in self._places()]


def _spawned(trajectory: Trajectory) -> set[int]:
    """The traces that sub-agents begin with."""
    return {k.child for k in trajectory.links if k.kind is LinkKind.SPAWNED_BY}


def chains_of(trajectory: Trajectory, *, splits_compaction: bool = False) -> list[list[int]]:
    """Trace indices, joined by `continues` in time order; chains in the order of their first trace."""
    if not trajectory.links or splits_compaction:
        return [[k] for k in range(len(trajectory.traces))]
    continued = {k.parent: k.child for k in trajectory.links if k.kind is LinkKind.CONTINUES}
    heads = set(range(len(trajectory.traces))) - set(continued.values())
    chains = []
    for head in sorted(heads):
        chain = [head]
        while chain[-1] in continued:
            chain.append(continued[chain[-1]])
        chains.append(chain)
    return chains
