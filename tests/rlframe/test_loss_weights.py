"""Weights of the policy's loss: whose mean it is, and what is left out."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from rlframe.loss_weights import WeightRules, kept_actions, weights
from rlframe.types import Link, LinkKind, Status, Trace, Trajectory


def trace(mask, versions=None, logprob=-1.0) -> Trace:
    mask = np.array(mask, bool)
    versions = np.where(mask, 0, -1) if versions is None else np.array(versions)
    return Trace(
        np.arange(len(mask), dtype=np.int32),
        mask,
        np.where(mask, logprob, 0).astype(np.float32),
        versions.astype(np.int32),
    )


def trajectory(*traces, links=()) -> Trajectory:
    return Trajectory("t", "t", "d", Status.COMPLETED, tuple(traces), (), tuple(links))


def kept_of(trajectories, old=None, version=0, **rules):
    traces = [x for t in trajectories for x in t.traces]
    old = [x.rollout_logprobs for x in traces] if old is None else old
    masks = [x.loss_mask for x in traces]
    return kept_actions(trajectories, masks, old, rules=WeightRules(**rules), version=version)


masks_strategy = st.lists(
    st.lists(st.lists(st.booleans(), min_size=1, max_size=6), min_size=1, max_size=3),
    min_size=1,
    max_size=5,
)


@given(masks_strategy, st.sampled_from(["token", "per_trajectory", "per_trace"]), st.data())
def test_weights_sum_to_the_actions_and_are_the_means_they_say(shapes, aggregation, data):
    batch = [trajectory(*(trace(m) for m in masks)) for masks in shapes]
    masks = [x.loss_mask for t in batch for x in t.traces]
    kept = [m & data.draw(st.booleans()) for m in masks]
    found = weights(batch, masks, kept, aggregation=aggregation)
    total = sum(int(m.sum()) for m in masks)
    losses = [np.arange(len(m)) + 3.0 * i for i, m in enumerate(masks)]
    loss = sum(float((w * x).sum()) for w, x in zip(found, losses, strict=True))
    flat = iter(zip(kept, losses, strict=True))
    groups = [[next(flat) for _ in t.traces] for t in batch]
    if aggregation == "per_trace":
        groups = [[pair] for group in groups for pair in group]
    if aggregation == "token":
        groups = [[pair for group in groups for pair in group]]
    means = []
    for group in groups:
        values = [v for mask, x in group for v in x[mask]]
        means += [np.mean(values)] if values else []
    expected = float(np.mean(means)) if means else 0.0
    assert loss / max(total, 1) == pytest.approx(expected, rel=1e-5)
    for w, k in zip(found, kept, strict=True):
        assert not w[~k].any()


def test_summaries_are_the_last_turns_of_compacted_traces():
    links = [Link(LinkKind.CONTINUES, 1, 0)]
    t = trajectory(trace([0, 1, 1, 0, 1, 1]), trace([0, 0, 1, 0, 1]), links=links)
    kept = kept_of([t], trains="no_summaries").masks
    assert kept[0].tolist() == [0, 1, 1, 0, 0, 0]
    assert kept[1].tolist() == [0, 0, 1, 0, 1]


def test_last_trace_keeps_the_last_of_each_chain():
    links = [Link(LinkKind.CONTINUES, 1, 0), Link(LinkKind.SPAWNED_BY, 2, 0)]
    t = trajectory(trace([0, 1]), trace([0, 1]), trace([0, 1]), links=links)
    assert [bool(m.any()) for m in kept_of([t], trains="last_trace").masks] == [False, True, True]


def test_stale_tokens_are_left_out_by_their_own_version():
    t = trajectory(trace([0, 1, 1, 1], versions=[-1, 2, 3, 5]))
    kept = kept_of([t], version=5, mask_older_than=2)
    assert kept.masks[0].tolist() == [0, 0, 1, 1]
    assert kept.stale == pytest.approx(1 / 3)


@pytest.mark.parametrize(("drift", "accepted"), [(0.0, True), (0.3, False), (-0.3, False)])
def test_a_trace_whose_mean_ratio_leaves_the_band_is_rejected(drift, accepted):
    t = trajectory(trace([0, 1, 1]), trace([0, 1]))
    old = [x.rollout_logprobs.copy() for x in t.traces]
    old[0][1:] += np.float32(drift)
    kept = kept_of([t], old, reject_below=0.8, reject_above=1.25)
    assert kept.masks[0].any() == accepted
    assert kept.masks[1].any()
    assert kept.rejected == pytest.approx(0 if accepted else 2 / 3)
