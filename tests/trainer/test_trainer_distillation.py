"""Divergences against float64 definitions by autograd, finite memory, split vocabularies, and each other."""

import math

import pytest
import torch
import torch.distributed as dist

from tests.trainer.spawn import run_ranks
from trainer.losses import divergences as module
from trainer.losses.distillation import distillation_loss
from trainer.losses.divergences import (
    Divergence,
    candidate_divergence,
    candidate_logprobs,
    full_divergence,
)
from trainer.losses.policy import PolicyInputs, policy_loss
from trainer.objective import PolicyObjective

POSITIONS, VOCAB = 13, 17
KINDS = [
    ("reverse_kl", 0.5),
    ("forward_kl", 0.5),
    ("jsd", 0.1),
    ("jsd", 0.5),
    ("jsd", 0.0),
    ("jsd", 1.0),
]


def problem(*, seed=0, dtype=torch.float64, positions=POSITIONS, vocab=VOCAB):
    g = torch.Generator().manual_seed(seed)
    student = 2.0 * torch.randn(positions, vocab, generator=g, dtype=torch.float64)
    teacher = 2.0 * torch.randn(positions, vocab, generator=g, dtype=torch.float64)
    upstream = torch.randn(positions, generator=g, dtype=torch.float64)
    return student.to(dtype), teacher.to(dtype), upstream


def by_definition(log_q, log_p, kind, beta):
    """In plain autograd, from distributions [P, V]; JSD as in arXiv 2306.13649, eq. 4."""
    q, p = log_q.exp(), log_p.exp()
    kl = lambda a, b: (a * (a.log() - b.log())).sum(-1)  # noqa: E731
    if kind == "reverse_kl" or (kind == "jsd" and beta == 1.0):
        return kl(q, p)
    if kind == "forward_kl" or (kind == "jsd" and beta == 0.0):
        return kl(p, q)
    m = beta * p + (1 - beta) * q
    return beta * kl(p, m) + (1 - beta) * kl(q, m)


def value_and_gradient(logits, function, upstream):
    logits = logits.clone().requires_grad_()
    value = function(logits)
    value.backward(upstream.to(value.dtype))
    return value.detach(), logits.grad


@pytest.mark.parametrize("chunk", [1 << 20, 3 * VOCAB])
@pytest.mark.parametrize("temperature", [1.0, 0.7])
@pytest.mark.parametrize(("kind", "beta"), KINDS)
def test_whole_vocabulary_value_and_gradient(kind, beta, temperature, chunk, monkeypatch):
    monkeypatch.setattr(module, "CHUNK_ELEMENTS", chunk)
    student, teacher, upstream = problem()
    log_p = torch.log_softmax(teacher / temperature, -1)
    expected = value_and_gradient(
        student,
        lambda z: by_definition(torch.log_softmax(z / temperature, -1), log_p, kind, beta),
        upstream,
    )
    found = value_and_gradient(
        student,
        lambda z: full_divergence(
            z, lambda part: teacher[part], Divergence(kind, beta, temperature)
        ),
        upstream,
    )
    torch.testing.assert_close(found, expected)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_whole_vocabulary_in_lower_precision(dtype):
    student, teacher, upstream = problem(dtype=dtype)
    exact = by_definition(
        torch.log_softmax(student.double(), -1), torch.log_softmax(teacher.double(), -1), "jsd", 0.5
    )
    value, gradient = value_and_gradient(
        student,
        lambda z: full_divergence(z, lambda part: teacher[part], Divergence("jsd", 0.5)),
        upstream,
    )
    assert value.dtype == torch.float32
    assert gradient.dtype == dtype
    torch.testing.assert_close(value.double(), exact, atol=1e-6, rtol=1e-5)


def candidates(teacher, k):
    logprobs, ids = torch.log_softmax(teacher, -1).topk(k)
    return ids, logprobs


def coarse(log_q, ids):
    """[P, K + 1]: the candidates, and all others as one outcome."""
    q = log_q.exp()
    own = q.gather(1, ids)
    others = (q.sum(-1) - own.sum(-1))[:, None]
    return torch.cat([own, others], -1).log()


@pytest.mark.parametrize("k", [1, 4])
@pytest.mark.parametrize("chunk", [1 << 20, 3 * VOCAB])
@pytest.mark.parametrize(("kind", "beta"), KINDS)
def test_candidates_with_the_rest_in_a_bucket(kind, beta, chunk, k, monkeypatch):
    monkeypatch.setattr(module, "CHUNK_ELEMENTS", chunk)
    student, teacher, upstream = problem()
    ids, logprobs = candidates(teacher, k)
    log_p = coarse(torch.log_softmax(teacher, -1), ids)
    expected = value_and_gradient(
        student,
        lambda z: by_definition(coarse(torch.log_softmax(z, -1), ids), log_p, kind, beta),
        upstream,
    )
    found = value_and_gradient(
        student,
        lambda z: candidate_divergence(z, ids, logprobs, Divergence(kind, beta), tail="bucket"),
        upstream,
    )
    torch.testing.assert_close(found, expected)


@pytest.mark.parametrize("temperature", [1.0, 0.7])
@pytest.mark.parametrize(("kind", "beta"), KINDS)
def test_candidates_renormalised(kind, beta, temperature):
    student, teacher, upstream = problem()
    ids, logprobs = candidates(teacher, 4)
    log_p = torch.log_softmax(teacher.gather(1, ids) / temperature, -1)
    expected = value_and_gradient(
        student,
        lambda z: by_definition(
            torch.log_softmax(z.gather(1, ids) / temperature, -1), log_p, kind, beta
        ),
        upstream,
    )
    found = value_and_gradient(
        student,
        lambda z: candidate_divergence(
            z, ids, logprobs, Divergence(kind, beta, temperature), tail="renormalise"
        ),
        upstream,
    )
    torch.testing.assert_close(found, expected)


@pytest.mark.parametrize("tail", ["bucket", "renormalise"])
@pytest.mark.parametrize(("kind", "beta"), KINDS)
def test_all_candidates_are_the_whole_vocabulary(kind, beta, tail):
    student, teacher, upstream = problem()
    ids, logprobs = candidates(teacher, VOCAB)
    divergence = Divergence(kind, beta)
    expected = value_and_gradient(
        student, lambda z: full_divergence(z, lambda part: teacher[part], divergence), upstream
    )
    found = value_and_gradient(
        student,
        lambda z: candidate_divergence(z, ids, logprobs, divergence, tail=tail),
        upstream,
    )
    torch.testing.assert_close(found, expected, atol=2e-6, rtol=1e-6)
    assert found[1].isfinite().all()


@pytest.mark.parametrize(("kind", "beta"), KINDS)
def test_a_bucket_is_a_lower_bound_that_grows_with_the_candidates(kind, beta):
    student, teacher, _ = problem()
    exact = full_divergence(student, lambda part: teacher[part], Divergence(kind, beta))
    before = torch.zeros_like(exact)
    for k in (1, 2, 5, 10, VOCAB - 1):
        ids, logprobs = candidates(teacher, k)
        bound = candidate_divergence(student, ids, logprobs, Divergence(kind, beta), tail="bucket")
        assert (bound >= before - 1e-9).all()
        before = bound
    assert (before <= exact + 1e-9).all()


def test_a_sure_teacher_leaves_no_mass_and_no_nan():
    student, teacher, upstream = problem(dtype=torch.float32)
    teacher[:, 0] = 60.0
    ids, logprobs = candidates(teacher, 2)
    for kind, beta in KINDS:
        value, gradient = value_and_gradient(
            student,
            lambda z, kind=kind, beta=beta: candidate_divergence(
                z, ids, logprobs, Divergence(kind, beta), tail="bucket"
            ),
            upstream,
        )
        assert value.isfinite().all()
        assert gradient.isfinite().all()


def test_the_sampled_objective_is_the_exact_one_in_expectation():
    """Over actions drawn from the policy, weighted by their exact probabilities: the gradient of the loss with
    the advantage log pi_T - log pi_old is the gradient of KL(pi || pi_T), and so is the mean penalty its value."""
    student, teacher, _ = problem(positions=1, vocab=5)
    log_p = torch.log_softmax(teacher[0], -1)
    exact, exact_gradient = value_and_gradient(
        student,
        lambda z: full_divergence(z, lambda part: teacher[part], Divergence("reverse_kl")),
        torch.ones(1),
    )
    logits = student.clone().requires_grad_()
    log_q = torch.log_softmax(logits[0], -1)
    old = log_q.detach()
    objective = PolicyObjective(
        clip_low=0.2, clip_high=0.28, dual_clip=3.0, importance_cap=2.0, entropy_coef=0.0
    )
    value = torch.zeros((), dtype=torch.float64)
    for action in range(5):
        penalty = (old - log_p)[action]
        inputs = PolicyInputs(
            logprobs=log_q[action : action + 1],
            old_logprobs=old[action : action + 1],
            rollout_logprobs=old[action : action + 1],
            advantages=-penalty[None],
            mask=torch.tensor([True]),
        )
        loss, _ = policy_loss(inputs, objective, denominator=1.0)
        (old[action].exp() * loss).backward(retain_graph=True)
        value = value + old[action].exp() * penalty
    torch.testing.assert_close(logits.grad, exact_gradient)
    torch.testing.assert_close(value[None], exact)


def test_loss_is_a_weighted_sum_over_the_mask():
    divergences = torch.tensor([1.0, 2.0, 4.0, 8.0], requires_grad=True)
    mask = torch.tensor([True, False, True, True])
    weights = torch.tensor([1.0, 1.0, 0.5, 0.0])
    loss, statistics = distillation_loss(divergences, mask, weights, coef=0.3, denominator=6.0)
    assert loss.item() == pytest.approx(0.3 * (1.0 + 2.0) / 6.0)
    assert statistics["teacher_divergence"].item() == 13.0
    loss.backward()
    assert divergences.grad.tolist() == pytest.approx([0.05, 0.0, 0.025, 0.0])


def test_candidate_logprobs_add_up():
    student, teacher, _ = problem()
    ids, _ = candidates(teacher, 3)
    chosen, rest = candidate_logprobs(student, ids)
    torch.testing.assert_close(chosen.exp().sum(-1) + rest.exp(), torch.ones(POSITIONS).double())
    assert math.isinf(candidate_logprobs(student, candidates(teacher, VOCAB)[0])[1][0].item())


def _split_rank(rank: int, world_size: int, init_method: str) -> None:
    dist.init_process_group("gloo", init_method=init_method, rank=rank, world_size=world_size)
    module.CHUNK_ELEMENTS = 4 * 9
    student, teacher, upstream = problem()
    ids, logprobs = candidates(teacher, 4)
    first, last = ((0, 9), (9, VOCAB))[rank]
    options = {"first_column": first, "group": dist.group.WORLD}
    own = student[:, first:last]
    for kind, beta in KINDS:
        divergence = Divergence(kind, beta)
        for whole, part in (
            (
                lambda z, d=divergence: full_divergence(z, lambda s: teacher[s], d),
                lambda z, d=divergence: full_divergence(
                    z, lambda s: teacher[s, first:last], d, **options
                ),
            ),
            (
                lambda z, d=divergence: candidate_divergence(z, ids, logprobs, d, tail="bucket"),
                lambda z, d=divergence: candidate_divergence(
                    z, ids, logprobs, d, tail="bucket", **options
                ),
            ),
        ):
            value, gradient = value_and_gradient(student, whole, upstream)
            found, own_gradient = value_and_gradient(own, part, upstream)
            torch.testing.assert_close(found, value)
            torch.testing.assert_close(own_gradient, gradient[:, first:last])
    dist.destroy_process_group()


def test_two_ranks_that_share_a_vocabulary_agree_with_one():
    run_ranks(_split_rank, 2)
