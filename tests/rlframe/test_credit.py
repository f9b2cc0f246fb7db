"""GAE over actions against a brute-force float64 reference that walks states one by one."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rlframe import credit
from rlframe.credit import CreditRules
from rlframe.types import Link, LinkKind, Reward, Status, Trace, Trajectory

OPTIONS = {
    "gamma": 0.97,
    "lambda_policy": 0.9,
    "lambda_critic": 1.0,
    "truncation": "terminal",
    "whiten": False,
}


def assign_credit(trajectories, values, **rules) -> credit.Credit:
    return credit.assign_credit(trajectories, values, rules=CreditRules(**rules))


def trace(mask) -> Trace:
    mask = np.array(mask, bool)
    return Trace(
        token_ids=np.arange(len(mask), dtype=np.int32),
        loss_mask=mask,
        rollout_logprobs=np.where(mask, -1, 0).astype(np.float32),
        versions=np.where(mask, 0, -1).astype(np.int32),
    )


def trajectory(masks, rewards=(), links=(), status=Status.COMPLETED) -> Trajectory:
    return Trajectory(
        "t", "t", "d", status, tuple(trace(m) for m in masks), tuple(rewards), tuple(links)
    )


def continues(count: int) -> tuple[Link, ...]:
    return tuple(Link(LinkKind.CONTINUES, child=k + 1, parent=k) for k in range(count - 1))


def brute_force(states, gamma, lam, end_value):
    """states: [(value, reward)] of one chain, in time order -> advantages by the explicit double sum."""
    n = len(states)
    out = []
    for t in range(n):
        total = 0.0
        for k in range(t, n):
            following = states[k + 1][0] if k + 1 < n else end_value
            delta = states[k][1] + gamma * following - states[k][0]
            total += (gamma * lam) ** (k - t) * delta
        out.append(total)
    return out


masks_strategy = st.lists(
    st.lists(st.booleans(), min_size=1, max_size=12), min_size=1, max_size=4
).filter(lambda masks: any(any(m) for m in masks))


@settings(deadline=None, max_examples=60)
@given(
    masks_strategy, st.integers(0, 99), st.sampled_from(["terminal", "bootstrap"]), st.booleans()
)
def test_chain_equals_brute_force(masks, seed, truncation, truncated):
    rng = np.random.default_rng(seed)
    values = [rng.normal(size=len(m)).astype(np.float32) for m in masks]
    actions = [(k, t) for k, m in enumerate(masks) for t, on in enumerate(m) if on]
    paid = {a: float(rng.normal()) for a in actions if rng.random() < 0.5}
    rewards = [Reward(v, trace=k, position=t) for (k, t), v in paid.items()]
    status = Status.TRUNCATED_TURNS if truncated else Status.COMPLETED
    given_ = trajectory(masks, rewards, continues(len(masks)), status)
    found = assign_credit([given_], [values], **(OPTIONS | {"truncation": truncation}))

    states = [(float(values[k][t]), paid.get((k, t), 0.0)) for k, t in actions]
    end = states[-1][0] if truncated and truncation == "bootstrap" else 0.0
    expected = brute_force(states, 0.97, 0.9, end)
    targets = [a + s[0] for a, s in zip(brute_force(states, 0.97, 1.0, end), states, strict=True)]
    for (k, t), advantage, target in zip(actions, expected, targets, strict=True):
        assert found.advantages[k][t] == pytest.approx(advantage, abs=1e-5)
        assert found.returns[k][t] == pytest.approx(target, abs=1e-5)
    for k, m in enumerate(masks):
        assert not found.advantages[k][~np.array(m)].any()
        assert not found.returns[k][~np.array(m)].any()


def test_tool_tokens_change_nothing():
    """The classic trap: wild values on context tokens must not enter the recursion."""
    plain = trajectory([[0, 1, 1, 1, 1]], [Reward(1.0)])
    padded = trajectory([[0, 1, 1, 0, 0, 0, 1, 1, 0]], [Reward(1.0)])
    values = np.array([0, 0.1, 0.2, 0.3, 0.4], np.float32)
    wild = np.array([9, 0.1, 0.2, -7, 88, 5, 0.3, 0.4, 99], np.float32)
    one = assign_credit([plain], [[values]], **OPTIONS)
    two = assign_credit([padded], [[wild]], **OPTIONS)
    assert np.array_equal(one.advantages[0][1:], two.advantages[0][[1, 2, 6, 7]])


def test_compaction_at_an_action_boundary_changes_nothing_when_values_agree():
    whole = trajectory([[0, 1, 1, 1, 1]], [Reward(1.0)])
    split = trajectory([[0, 1, 1], [0, 0, 1, 1]], [Reward(1.0, trace=1)], continues(2))
    values = np.array([0, 0.5, 0.6, 0.7, 0.8], np.float32)
    parts = [values[:3], np.concatenate([[9, 9], values[3:]]).astype(np.float32)]
    one = assign_credit([whole], [[values]], **OPTIONS)
    two = assign_credit([split], [parts], **OPTIONS)
    joined = np.concatenate([two.advantages[0][1:], two.advantages[1][2:]])
    np.testing.assert_allclose(one.advantages[0][1:], joined, atol=1e-6)


def test_reward_after_the_last_action_counts_for_it():
    t = trajectory([[0, 1, 1, 0, 0]], [Reward(1.0, position=4), Reward(0.5)])
    found = assign_credit(
        [t], [[np.zeros(5, np.float32)]], **(OPTIONS | {"gamma": 1.0, "lambda_policy": 1.0})
    )
    assert found.advantages[0].tolist() == [0, 1.5, 1.5, 0, 0]


def test_sub_agent_ends_in_the_parents_state_at_the_join():
    link = Link(LinkKind.SPAWNED_BY, child=1, parent=0, call_position=1, join_position=3)
    t = trajectory([[0, 1, 0, 0, 1], [0, 1, 1]], [Reward(1.0, trace=0)], [link])
    values = [np.array([0, 0.3, 9, 9, 0.6], np.float32), np.array([9, 0.2, 0.4], np.float32)]
    found = assign_credit([t], [values], **(OPTIONS | {"gamma": 1.0, "lambda_policy": 0.0}))
    assert found.advantages[1][1:] == pytest.approx([0.4 - 0.2, 0.6 - 0.4], abs=1e-6)
    assert found.advantages[0][[1, 4]] == pytest.approx([0.6 - 0.3, 1.0 - 0.6], abs=1e-6)


def test_masked_truncation_gives_no_credit():
    t = trajectory([[0, 1]], [Reward(1.0)], status=Status.TRUNCATED_LENGTH)
    found = assign_credit([t], [[np.ones(2, np.float32)]], **(OPTIONS | {"truncation": "mask"}))
    assert not found.advantages[0].any()


def test_whitening_is_over_the_batchs_actions():
    ts = [trajectory([[0, 1, 1]], [Reward(float(i))]) for i in range(4)]
    values = [[np.zeros(3, np.float32)] for _ in ts]
    found = assign_credit(ts, values, **(OPTIONS | {"whiten": True}))
    flat = np.concatenate([a[1:] for a in found.advantages])
    assert flat.mean() == pytest.approx(0, abs=1e-6)
    assert flat.std() == pytest.approx(1, abs=1e-5)
    assert all(a[0] == 0 for a in found.advantages)


# The general case: forests of chains and sub-agents, several trajectories, rewards anywhere.


def reference(t: Trajectory, values, gamma, lam, truncation) -> list[list[float]]:
    """Advantages of one trajectory by following each action's next state, one by one, in float64."""
    continued = {k.parent: k.child for k in t.links if k.kind is LinkKind.CONTINUES}
    spawned = {k.child: k for k in t.links if k.kind is LinkKind.SPAWNED_BY}
    heads = [k for k in range(len(t.traces)) if k not in continued.values()]
    chain_of, actions_of = {}, {}
    for head in heads:
        members = [head]
        while members[-1] in continued:
            members.append(continued[members[-1]])
        chain_of.update(dict.fromkeys(members, head))
        actions_of[head] = [
            (k, p) for k in members for p in range(len(t.traces[k])) if t.traces[k].loss_mask[p]
        ]
    paid: dict[tuple[int, int], float] = {}
    for r in t.rewards:
        own = actions_of[chain_of[r.trace]]
        position = len(t.traces[r.trace]) - 1 if r.position is None else r.position
        before = [a for a in own if a <= (r.trace, position)]
        if own:
            target = before[-1] if before else own[0]
            paid[target] = paid.get(target, 0.0) + r.value
    out = [[0.0] * len(trace) for trace in t.traces]
    for head, own in actions_of.items():
        if not own:
            continue
        end = 0.0
        if t.status.is_truncated and truncation == "bootstrap":
            end = float(values[own[-1][0]][own[-1][1]])
        if head in spawned:
            link = spawned[head]
            joined = link.join_position is not None
            at = (link.parent, link.join_position)
            after = [a for a in actions_of[chain_of[link.parent]] if joined and a >= at]
            end = float(values[after[0][0]][after[0][1]]) if after else 0.0
        running, following = 0.0, end
        for k, p in reversed(own):
            delta = paid.get((k, p), 0.0) + gamma * following - float(values[k][p])
            running = delta + gamma * lam * running
            following = float(values[k][p])
            out[k][p] = running
    return out


@st.composite
def forests(draw) -> Trajectory:
    masks = draw(masks_strategy | st.just([[True] * 1, [False, True]]))
    links: list[Link] = []
    continued: set[int] = set()
    for child in range(1, len(masks)):
        parent = draw(st.integers(0, child - 1))
        kind = draw(st.sampled_from(["none", "continues", "spawned", "never joined"]))
        if kind == "continues" and parent not in continued:
            continued.add(parent)
            links.append(Link(LinkKind.CONTINUES, child, parent))
        elif kind.startswith(("spawned", "never")):
            join = draw(st.integers(0, len(masks[parent]))) if kind == "spawned" else None
            links.append(Link(LinkKind.SPAWNED_BY, child, parent, None, join))
    rewards = [
        Reward(draw(st.floats(-3, 3)), k, draw(st.none() | st.integers(0, len(masks[k]) - 1)))
        for k in draw(st.lists(st.integers(0, len(masks) - 1), max_size=4))
    ]
    status = draw(st.sampled_from([Status.COMPLETED, Status.TRUNCATED_LENGTH]))
    return trajectory(masks, rewards, links, status)


@settings(deadline=None, max_examples=200)
@given(
    st.lists(forests(), min_size=1, max_size=5),
    st.integers(0, 99),
    st.sampled_from([0.0, 0.5, 0.97, 1.0]),
    st.sampled_from([0.0, 0.9, 1.0]),
    st.sampled_from(["terminal", "bootstrap", "mask"]),
    st.sampled_from([1, 1 << 15]),
)
def test_any_batch_equals_the_reference(batch, seed, gamma, lam, truncation, block_tokens):
    rng = np.random.default_rng(seed)
    values = [[rng.normal(size=len(x)).astype(np.float32) for x in t.traces] for t in batch]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("rlframe.credit.BLOCK_TOKENS", block_tokens)
        found = assign_credit(
            batch,
            values,
            gamma=gamma,
            lambda_policy=lam,
            lambda_critic=0.7,
            truncation=truncation,
            whiten=False,
        )
    flat = iter(zip(found.advantages, found.returns, found.loss_masks, strict=True))
    for t, own in zip(batch, values, strict=True):
        expected = reference(t, own, gamma, lam, truncation)
        targets = reference(t, own, gamma, 0.7, truncation)
        left_out = truncation == "mask" and t.status.is_truncated
        for k, x in enumerate(t.traces):
            advantages, returns, mask = next(flat)
            assert np.array_equal(mask, x.loss_mask & (not left_out))
            np.testing.assert_allclose(advantages, np.array(expected[k]) * mask, atol=1e-5)
            np.testing.assert_allclose(returns, (np.array(targets[k]) + own[k]) * mask, atol=1e-5)
    assert next(flat, None) is None


def test_long_chains_are_exact_to_float32():
    """16 chains of some thousand actions: at most 1e-6 away from float64, relative to the largest."""
    rng = np.random.default_rng(0)
    batch = [trajectory([rng.random(6000) < 0.7 for _ in range(2)], [Reward(1.0, 1)], continues(2))
             for _ in range(16)]  # fmt: skip
    values = [[rng.normal(size=6000).astype(np.float32) for _ in range(2)] for _ in batch]
    found = assign_credit(batch, values, **(OPTIONS | {"gamma": 1.0, "lambda_policy": 0.95}))
    flat = iter(found.advantages)
    for t, own in zip(batch, values, strict=True):
        for expected in reference(t, own, 1.0, 0.95, "terminal"):
            error = np.abs(next(flat) - np.array(expected)).max()
            assert error <= 1e-6 * max(1.0, np.abs(expected).max())


def test_a_reward_on_a_sub_trace_without_actions_counts_for_the_action_before_it():
    masks = [[0, 1, 1], [0, 0, 0], [0, 1]]
    t = trajectory(masks, [Reward(1.0, trace=1)], continues(3))
    zeros = [np.zeros(len(m), np.float32) for m in masks]
    found = assign_credit([t], [zeros], **(OPTIONS | {"lambda_policy": 0.0, "lambda_critic": 0.0}))
    assert [a.tolist() for a in found.advantages] == [[0, 0, 1], [0, 0, 0], [0, 0]]


def test_what_others_are_in_the_batch_changes_nothing():
    rng = np.random.default_rng(0)
    batch = [trajectory([rng.random(9) < 0.5], [Reward(1.0)]) for _ in range(7)]
    values = [[rng.normal(size=9).astype(np.float32)] for _ in batch]
    together = assign_credit(batch, values, **OPTIONS)
    for i, (t, own) in enumerate(zip(batch, values, strict=True)):
        alone = assign_credit([t], [own], **OPTIONS)
        np.testing.assert_allclose(together.advantages[i], alone.advantages[0], atol=1e-6)


def test_an_empty_batch_and_one_without_actions():
    assert assign_credit([], [], **OPTIONS).advantages == []
    t = trajectory([[0, 0]], [Reward(1.0)])
    found = assign_credit([t], [[np.ones(2, np.float32)]], **(OPTIONS | {"whiten": True}))
    assert not found.advantages[0].any()
