"""MTP losses against float64 identities, the published gradient, loops over documents, and a split vocabulary."""

import itertools

import pytest
import torch
import torch.distributed as dist
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.trainer.spawn import run_ranks
from trainer.losses import draft_scores as module
from trainer.losses.draft_scores import DraftScores, complete_positions, draft_scores
from trainer.losses.mtp import LOSSES, end_to_end_tv, expected_drafts, mtp_loss

STEPS, HIDDEN, VOCAB = 3, 5, 11


def problem(tokens: int = 20, *, seed: int = 0, steps: int = STEPS):
    g = torch.Generator().manual_seed(seed)
    draw = lambda *size: torch.randn(*size, generator=g, dtype=torch.float64)  # noqa: E731
    return {
        "drafts": draw(steps, tokens, HIDDEN),
        "targets": draw(tokens, HIDDEN),
        "weight": draw(VOCAB, HIDDEN),
        "token_ids": torch.randint(0, VOCAB, (tokens,), generator=g),
    }


def scores_of(p, positions, *, weight=None, **options) -> DraftScores:
    w = p["weight"] if weight is None else weight
    return draft_scores(
        p["drafts"], p["targets"], p["token_ids"], positions, head=lambda h: h @ w.T, **options
    )


def distributions(p, i: int, k: int, temperature: float = 1.0):
    """p and q of step k at position i."""
    target = torch.softmax(p["weight"] @ p["targets"][i + k] / temperature, -1)
    draft = torch.softmax(p["weight"] @ p["drafts"][k - 1, i] / temperature, -1)
    return target, draft


@pytest.mark.parametrize("temperature", [1.0, 0.6])
def test_scores_are_their_definitions(temperature):
    p = problem()
    positions = torch.arange(20 - STEPS - 1)
    found = scores_of(p, positions, chunk=6, temperature=temperature)
    for n, i in enumerate(positions.tolist()):
        for k in range(1, STEPS + 1):
            target, draft = distributions(p, i, k, temperature)
            label = int(p["token_ids"][i + k + 1])
            one_minus_tv = 1 - 0.5 * (target - draft).abs().sum()
            drawn_and_accepted = (draft * torch.clamp(target / draft, max=1.0)).sum()
            torch.testing.assert_close(found.overlap[k - 1, n], one_minus_tv)
            torch.testing.assert_close(found.overlap[k - 1, n], drawn_and_accepted)
            torch.testing.assert_close(
                found.divergence[k - 1, n], (target * (target / draft).log()).sum()
            )
            torch.testing.assert_close(found.label_logprobs[k - 1, n], draft[label].log())
            torch.testing.assert_close(found.top_overlap[k - 1, n], target[draft.argmax()])


@settings(deadline=None, max_examples=50)
@given(st.lists(st.integers(1, 9), min_size=1, max_size=5), st.integers(1, 7))
def test_complete_positions_keep_all_labels_in_the_document(lengths, steps):
    ends = list(itertools.accumulate(lengths))
    cu_seqlens = torch.tensor([0, *ends], dtype=torch.int32)
    document = [d for d, n in enumerate(lengths) for _ in range(n)]
    expected = [
        i
        for i in range(ends[-1])
        if i + steps + 1 < ends[-1] and document[i + steps + 1] == document[i]
    ]
    assert complete_positions(cu_seqlens, steps=steps, total=ends[-1]).tolist() == expected


def test_gradient_of_the_overlap_is_equation_11():
    p = problem()
    drafts = p["drafts"].requires_grad_()
    identity = {**p, "weight": torch.eye(HIDDEN, dtype=torch.float64)}
    identity["token_ids"] = p["token_ids"] % HIDDEN
    positions = torch.tensor([2, 7])
    scores_of(identity, positions).overlap[1, 1].backward()
    target, draft = distributions(identity, 7, 2)
    below = (draft <= target).double()
    expected = draft * (below - (draft * below).sum())
    torch.testing.assert_close(drafts.grad[1, 7], expected)
    assert expected.abs().max() <= 1
    drafts.grad[1, 7] = 0
    assert not drafts.grad.any()


@pytest.mark.parametrize("name", LOSSES)
def test_gradients_agree_with_finite_differences(name):
    p = problem(10)
    positions = torch.tensor([0, 1, 4])

    def loss(drafts, weight):
        found = scores_of({**p, "drafts": drafts}, positions, weight=weight, chunk=2)
        return mtp_loss(found, name, denominator=3.0)[0]

    def frozen_target(drafts, weight):  # the target's head is no part of the gradient
        with torch.no_grad():
            logits = p["targets"] @ p["weight"].T
        found = draft_scores(
            drafts, logits, p["token_ids"], positions, head=lambda h: h @ weight.T,
            target_head=lambda rows: rows, chunk=2,
        )  # fmt: skip
        return mtp_loss(found, name, denominator=3.0)[0]

    inputs = (p["drafts"].requires_grad_(), p["weight"].clone().requires_grad_())
    if name == "hybrid":  # lambda carries no gradient: compare with the sum at fixed lambda
        found = scores_of(p, positions)
        weight = torch.exp(-3.0 * found.overlap).detach()
        fixed = (weight * found.divergence + (1 - weight) * (1 - found.overlap)).mean(0).sum() / 3.0
        expected = torch.autograd.grad(fixed, p["drafts"])[0]
        torch.testing.assert_close(torch.autograd.grad(loss(*inputs), inputs[0])[0], expected)
    else:
        assert torch.autograd.gradcheck(frozen_target, inputs)
    first = torch.autograd.grad(loss(*inputs), inputs)
    second = torch.autograd.grad(frozen_target(*inputs), inputs)
    torch.testing.assert_close(first, second)


def test_end_to_end_loss_is_one_minus_the_expected_share():
    """E[L] counted over all 2^K outcomes of accepting; the step weights w_i are its derivatives."""
    alpha = torch.rand(4, 1, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    expected = torch.zeros(())
    for outcome in itertools.product([True, False], repeat=4):
        chance = torch.prod(torch.where(torch.tensor(outcome), alpha[:, 0], 1 - alpha[:, 0]))
        length = outcome.index(False) if False in outcome else 4
        expected = expected + chance * length
    alpha.requires_grad_()
    torch.testing.assert_close(expected_drafts(alpha)[0], expected.double(), check_dtype=False)
    scores = DraftScores(alpha, alpha, alpha, alpha)
    end_to_end_tv(scores).backward()
    products = alpha.detach().cumprod(0)
    weights = torch.stack([products[i:].sum() / (4 * alpha[i, 0]) for i in range(4)])
    torch.testing.assert_close(-alpha.grad[:, 0], weights.detach())


def test_a_perfect_draft_loses_nothing():
    p = problem()
    for k in range(1, STEPS + 1):
        p["drafts"][k - 1, : 20 - k] = p["targets"][k:]
    found = scores_of(p, torch.arange(20 - STEPS - 1))
    for name in ("tv", "e2e_tv", "hybrid"):
        assert mtp_loss(found, name, denominator=1.0)[0].item() == pytest.approx(0.0, abs=1e-12)
    _, stats = mtp_loss(found, "ce", denominator=float(found.overlap.shape[1]))
    assert stats["accept_length"].item() == pytest.approx(STEPS + 1)


def test_hybrid_moves_a_draft_that_hardly_overlaps_and_tv_does_not():
    target, draft = torch.zeros(1, VOCAB), torch.zeros(1, VOCAB)
    target[0, 1], draft[0, 2] = 40.0, 40.0
    pushes = {}
    for name in ("tv", "hybrid"):
        logits = draft.clone().requires_grad_()
        rows = torch.cat([target] * 3)
        found = draft_scores(
            logits.expand(1, 3, VOCAB), rows, torch.ones(3, dtype=torch.long),
            torch.tensor([0]), head=lambda h: h,
        )  # fmt: skip
        mtp_loss(found, name, denominator=1.0)[0].backward()
        pushes[name] = logits.grad.abs().max().item()
    assert pushes["tv"] < 1e-6
    assert pushes["hybrid"] > 0.5


def test_logits_kept_or_made_again_give_the_same(monkeypatch):
    gradients = []
    for limit in (0, 1 << 30):
        monkeypatch.setattr(module, "KEPT_BYTES", limit)
        p = problem()
        weight = p["weight"].clone().requires_grad_()
        found = scores_of(p, torch.arange(16), weight=weight, chunk=5)
        mtp_loss(found, "hybrid", denominator=1.0)[0].backward()
        gradients.append(weight.grad)
    assert torch.equal(*gradients)


@settings(deadline=None, max_examples=20)
@given(st.sampled_from(sorted(LOSSES)), st.integers(1, 20), st.integers(0, 15))
def test_losses_add_up_over_any_split_and_chunk(name, chunk, cut):
    p = problem()
    positions = torch.arange(16)
    whole, stats = mtp_loss(scores_of(p, positions), name, denominator=5.0)
    parts = [
        mtp_loss(scores_of(p, part, chunk=chunk), name, denominator=5.0)
        for part in (positions[:cut], positions[cut:])
    ]
    assert whole.item() == pytest.approx(sum(part[0].item() for part in parts), abs=1e-12)
    for key, value in stats.items():
        assert value.item() == pytest.approx(sum(part[1][key].item() for part in parts), abs=1e-9)


def test_no_logits_of_the_whole_row_are_kept(monkeypatch):
    monkeypatch.setattr(module, "KEPT_BYTES", 0)
    p = problem(200)
    p["drafts"].requires_grad_()
    sizes: list[int] = []

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        sizes.append(tensor.numel())
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda x: x):
        found = scores_of(p, torch.arange(196), chunk=8)
        loss = mtp_loss(found, "e2e_tv", denominator=1.0)[0]
    assert max(sizes) <= p["drafts"].numel()  # the inputs, not [K, T, vocabulary]
    assert p["drafts"].numel() < STEPS * 196 * VOCAB
    loss.backward()
    assert torch.isfinite(p["drafts"].grad).all()


def split_vocabulary(rank: int, world_size: int, init_method: str, name: str, columns: list[int]):
    dist.init_process_group("gloo", init_method=init_method, rank=rank, world_size=world_size)
    p = problem()
    first = sum(columns[:rank])
    own = p["weight"][first : first + columns[rank]].clone().requires_grad_()
    p["drafts"].requires_grad_()
    found = scores_of(
        p, torch.arange(16), weight=own, chunk=5, first_column=first, group=dist.group.WORLD
    )
    loss, stats = mtp_loss(found, name, denominator=16.0)
    loss.backward()
    dist.destroy_process_group()
    return loss.detach(), found.top_overlap, stats, p["drafts"].grad, own.grad


@pytest.mark.parametrize("name", LOSSES)
def test_a_split_vocabulary_changes_nothing(name):
    p = problem()
    p["drafts"].requires_grad_()
    weight = p["weight"].clone().requires_grad_()
    found = scores_of(p, torch.arange(16), weight=weight)
    loss, stats = mtp_loss(found, name, denominator=16.0)
    loss.backward()
    ranks = run_ranks(split_vocabulary, 2, name=name, columns=[7, 4])
    for other, top, other_stats, _, _ in ranks:
        torch.testing.assert_close(other, loss.detach())
        torch.testing.assert_close(top, found.top_overlap)
        torch.testing.assert_close(other_stats, stats)
    # A column-parallel head sums the gradients of its input over ranks.
    torch.testing.assert_close(sum(rank[3] for rank in ranks), p["drafts"].grad)
    torch.testing.assert_close(torch.cat([rank[4] for rank in ranks]), weight.grad)
