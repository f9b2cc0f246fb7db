"""Monte Carlo returns of stored trajectories against a recursion in float64 that follows states one by one."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rlframe.config.schema import ValueConfig
from rlframe.types import Link, LinkKind, Reward, Status, Trace, Trajectory
from rlframe.value_targets import value_rows


def trace(mask) -> Trace:
    mask = np.array(mask, bool)
    return Trace(
        np.arange(len(mask), dtype=np.int32),
        mask,
        np.where(mask, -1, 0).astype(np.float32),
        np.where(mask, 0, -1).astype(np.int32),
    )


@st.composite
def forests(draw) -> Trajectory:
    """Traces of which each continues an earlier one, was spawned by one, or hangs on nothing."""
    lengths = draw(st.lists(st.integers(2, 7), min_size=1, max_size=6))
    masks = [[False, *(draw(st.booleans()) for _ in range(n - 1))] for n in lengths]
    links: list[Link] = []
    for child in range(1, len(masks)):
        parent = draw(st.integers(0, child - 1))
        kind = draw(st.sampled_from(["continues", "spawned_by", "none"]))
        taken = {k.parent for k in links if k.kind is LinkKind.CONTINUES}
        if kind == "continues" and parent not in taken:
            links.append(Link(LinkKind.CONTINUES, child, parent))
        elif kind == "spawned_by":
            join = draw(st.none() | st.integers(1, len(masks[parent])))
            links.append(Link(LinkKind.SPAWNED_BY, child, parent, 0, join))
    rewards = [
        Reward(draw(st.sampled_from([-1.0, 0.5, 2.0])), k, draw(st.integers(0, n - 1)))
        for k, n in enumerate(lengths)
        if draw(st.booleans())
    ]
    return Trajectory(
        "t", "t", "d", Status.COMPLETED, tuple(trace(m) for m in masks), tuple(rewards), tuple(links)
    )  # fmt: skip


class Walk:
    """The worth of every action's state, asked for one at a time."""

    def __init__(self, t: Trajectory, gamma: float) -> None:
        self.gamma = gamma
        after = {k.parent: k.child for k in t.links if k.kind is LinkKind.CONTINUES}
        spawned = {k.child: k for k in t.links if k.kind is LinkKind.SPAWNED_BY}
        self.chains, self.of_trace = [], {}
        for head in sorted(set(range(len(t.traces))) - set(after.values())):
            traces = [head]
            while traces[-1] in after:
                traces.append(after[traces[-1]])
            states = [(k, int(p)) for k in traces for p in np.flatnonzero(t.traces[k].loss_mask)]
            for k in traces:
                self.of_trace[k] = len(self.chains)
            self.chains.append((traces, states, spawned.get(head)))
        self.paid: dict[tuple[int, int], float] = {}
        for r in t.rewards:
            traces, states, _ = self.chains[self.of_trace[r.trace]]
            place = (traces.index(r.trace), r.position)
            before = [s for s in states if (traces.index(s[0]), s[1]) <= place]
            if states:
                state = before[-1] if before else states[0]
                self.paid[state] = self.paid.get(state, 0.0) + r.value

    def worth(self, trace: int, position: int) -> float:
        """At the first action of the trace's chain at or after `position`."""
        traces, states, link = self.chains[self.of_trace[trace]]
        order = [(traces.index(k), p) for k, p in states]
        rest = [
            s for s, o in zip(states, order, strict=True) if o >= (traces.index(trace), position)
        ]
        if not rest:
            return 0.0
        end = 0.0
        if link is not None and link.join_position is not None:
            end = self.worth(link.parent, link.join_position)
        total = self.gamma ** len(rest) * end
        return total + sum(self.gamma**k * self.paid.get(s, 0.0) for k, s in enumerate(rest))


@settings(deadline=None, max_examples=150)
@given(st.lists(forests(), min_size=1, max_size=3), st.sampled_from([1.0, 0.9]))
def test_returns_follow_the_chain_and_the_join(trajectories, gamma):
    rows = iter(value_rows(trajectories, ValueConfig(gamma=gamma)))
    for t in trajectories:
        walk = Walk(t, gamma)
        for k, own in enumerate(t.traces):
            row = next(rows)
            expected = [walk.worth(k, p) if on else 0.0 for p, on in enumerate(own.loss_mask)]
            assert row.returns == pytest.approx(expected, abs=1e-5)


def test_a_sub_agents_state_is_worth_what_its_answer_led_to():
    """Not zero, though no value stood at the join yet; the same for what a sub-agent's own called."""
    links = (
        Link(LinkKind.SPAWNED_BY, 1, 0, call_position=1, join_position=3),
        Link(LinkKind.SPAWNED_BY, 2, 1, call_position=1, join_position=2),
    )
    masks = ([0, 1, 0, 0, 1], [0, 1, 1], [0, 1])
    t = Trajectory(
        "t", "t", "d", Status.COMPLETED, tuple(map(trace, masks)), (Reward(1.0, trace=0),), links
    )
    assert [row.returns.max() for row in value_rows([t], ValueConfig())] == [1.0, 1.0, 1.0]
    alone = value_rows([t], ValueConfig(sub_agent="terminal"))
    assert [row.returns.max() for row in alone] == [1.0, 1.0, 1.0]


def test_truncated_trajectories_may_be_left_out():
    t = Trajectory("t", "t", "d", Status.TRUNCATED_TURNS, (trace([0, 1]),), (Reward(1.0),))
    assert value_rows([t], ValueConfig())[0].loss_mask.any()
    assert not value_rows([t], ValueConfig(truncation="mask"))[0].loss_mask.any()
