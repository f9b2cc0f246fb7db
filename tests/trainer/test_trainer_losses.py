"""Losses against float64 references written as loops, and the additivity that every layout rests on."""

import itertools
import math
from dataclasses import replace

import pytest
import torch
import torch.distributed as dist
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.trainer.spawn import run_ranks
from trainer.losses import logprobs as module
from trainer.losses.kl import kl_estimate
from trainer.losses.logprobs import token_logprobs
from trainer.losses.policy import PolicyInputs, policy_loss
from trainer.losses.sft import sft_loss
from trainer.losses.value import distributional_value_loss, value_loss
from trainer.losses.value_bins import centres, expected_value, target
from trainer.objective import PolicyObjective, ValueBins

PLAIN = PolicyObjective(
    clip_low=0.2, clip_high=0.28, dual_clip=3.0, importance_cap=2.0, entropy_coef=0.0
)


def random_batch(tokens: int, seed: int) -> dict[str, torch.Tensor]:
    g = torch.Generator().manual_seed(seed)
    draw = lambda scale=1.0: scale * torch.randn(tokens, generator=g, dtype=torch.float64)  # noqa: E731
    old = -draw().abs()
    return {
        "logprobs": old + draw(0.5),
        "old_logprobs": old,
        "rollout_logprobs": old + draw(0.5),
        "advantages": draw(),
        "mask": torch.rand(tokens, generator=g) < 0.6,
        "entropy": draw().abs(),
        "weights": draw().abs().clamp(min=0.3) - 0.3,
        "ref_logprobs": old + draw(0.5),
        "traces": torch.sort(torch.randint(0, 3, (tokens,), generator=g)).values,
    }


def policy_reference(b, o: PolicyObjective) -> float:
    """The docstring's equations, token by token, in Python's floats."""
    chosen = [t for t in range(len(b["mask"])) if b["mask"][t]]
    base = b["rollout_logprobs"] if o.ratio_against == "rollout" else b["old_logprobs"]
    total = 0.0
    for t in chosen:
        a, logprob = float(b["advantages"][t]), float(b["logprobs"][t])
        r = math.exp(logprob - float(base[t]))
        drift = math.exp(float(b["old_logprobs"][t] - b["rollout_logprobs"][t]))
        drift = r if o.ratio_against == "rollout" else drift
        if o.policy_loss == "gspo":
            same = [u for u in chosen if b["traces"][u] == b["traces"][t]]
            r = math.exp(sum(float(b["logprobs"][u] - base[u]) for u in same) / len(same))
        bounded = min(max(r, 1 - o.clip_low), 1 + o.clip_high)
        if o.policy_loss == "cispo":
            objective = a * bounded * logprob
        else:
            objective = min(a * r, a * bounded)
            if o.dual_clip and a < 0:
                objective = max(objective, o.dual_clip * a)
        if o.importance_cap and o.ratio_against == "old":
            objective *= min(drift, o.importance_cap)
        if (o.mask_below and drift < o.mask_below) or (o.mask_above and drift > o.mask_above):
            objective = 0.0
        x = float(b["ref_logprobs"][t]) - logprob
        kl = {"k1": -x, "k2": x * x / 2, "k3": math.exp(x) - 1 - x}[o.kl_estimator]
        loss = -objective + o.kl_coef * kl - o.entropy_coef * float(b["entropy"][t])
        total += loss * float(b["weights"][t])
    return total


objectives = st.builds(
    PolicyObjective,
    clip_low=st.sampled_from([0.2, 1.0]),
    clip_high=st.sampled_from([0.28, 1e9]),
    dual_clip=st.sampled_from([0.0, 3.0]),
    importance_cap=st.sampled_from([0.0, 2.0]),
    entropy_coef=st.sampled_from([0.0, 0.01]),
    policy_loss=st.sampled_from(["ppo", "gspo", "cispo"]),
    ratio_against=st.sampled_from(["old", "rollout"]),
    mask_below=st.sampled_from([0.0, 0.7]),
    mask_above=st.sampled_from([0.0, 1.4]),
    kl_coef=st.sampled_from([0.0, 0.1]),
    kl_estimator=st.sampled_from(["k1", "k2", "k3"]),
)


@settings(deadline=None, max_examples=300)
@given(st.integers(1, 40), st.integers(0, 999), objectives)
def test_policy_loss_is_the_reference(tokens, seed, objective):
    b = random_batch(tokens, seed)
    loss, stats = policy_loss(PolicyInputs(**b), objective, denominator=7.0)
    assert loss.item() == pytest.approx(policy_reference(b, objective) / 7.0, abs=1e-12)
    assert 0 <= stats["clipped"] <= b["mask"].sum()
    assert 0 <= stats["masked"] <= b["mask"].sum()
    assert stats["kl"] >= -1e-12


@settings(deadline=None, max_examples=100)
@given(st.integers(1, 20), st.integers(0, 999), objectives)
def test_policy_loss_only_moves_what_it_may(tokens, seed, objective):
    """No gradient at masked tokens, nor where the weight is 0."""
    b = random_batch(tokens, seed)
    b["logprobs"].requires_grad_()
    policy_loss(PolicyInputs(**b), objective, denominator=1.0)[0].backward()
    still = ~b["mask"] | (b["weights"] == 0)
    assert torch.all(b["logprobs"].grad[still] == 0)


@pytest.mark.parametrize("kind", ["ppo", "gspo", "cispo"])
def test_first_update_has_the_policy_gradient(kind):
    """At pi = pi_old = pi_rollout the gradient is -A: nothing is clipped."""
    b = random_batch(30, 2)
    b["logprobs"] = b["old_logprobs"].clone().requires_grad_()
    b["rollout_logprobs"] = b["old_logprobs"]
    b["weights"] = None
    objective = replace(PLAIN, policy_loss=kind)
    policy_loss(PolicyInputs(**b), objective, denominator=1.0)[0].backward()
    expected = torch.where(b["mask"], -b["advantages"], 0.0)
    torch.testing.assert_close(b["logprobs"].grad, expected)


@pytest.mark.parametrize("against", ["old", "rollout"])
def test_gradients_agree_with_finite_differences(against):
    b = random_batch(12, 3)
    objective = replace(PLAIN, ratio_against=against, kl_coef=0.1)

    def loss(logprobs):
        return policy_loss(PolicyInputs(**b | {"logprobs": logprobs}), objective, denominator=3.0)[
            0
        ]

    assert torch.autograd.gradcheck(loss, (b["logprobs"].requires_grad_(),))


def test_gspo_with_one_advantage_has_the_papers_gradient():
    """d/d logprob of -A s, s the geometric mean ratio of T actions, summed over them, is -A s each."""
    b = random_batch(8, 5)
    b |= {"mask": torch.ones(8, dtype=torch.bool), "weights": None, "ref_logprobs": None}
    b |= {"advantages": torch.full((8,), 1.5, dtype=torch.float64), "traces": torch.zeros(8).long()}
    objective = replace(PLAIN, policy_loss="gspo", clip_low=1.0, clip_high=1e9, importance_cap=0.0)
    logprobs = b["logprobs"].requires_grad_()
    policy_loss(PolicyInputs(**b), objective, denominator=8.0)[0].backward()
    s = (logprobs - b["old_logprobs"]).mean().exp()
    (expected,) = torch.autograd.grad(-1.5 * s, logprobs)
    torch.testing.assert_close(logprobs.grad, expected)


def test_kl_estimators_are_unbiased_or_have_the_kls_gradient():
    """Over a small vocabulary the expectations are sums: E[k1] = E[k3] = KL, E[grad k2] = grad KL."""
    g = torch.Generator().manual_seed(0)
    logits = torch.randn(7, generator=g, dtype=torch.float64).requires_grad_()
    p = torch.log_softmax(logits, 0)
    q = torch.log_softmax(torch.randn(7, generator=g, dtype=torch.float64), 0)
    kl = (p.exp() * (p - q)).sum()
    weights = p.exp().detach()
    for name in ("k1", "k3"):
        torch.testing.assert_close((weights * kl_estimate(p, q, estimator=name)).sum(), kl)
    (true,) = torch.autograd.grad(kl, logits, retain_graph=True)
    k2 = (weights * kl_estimate(p, q, estimator="k2")).sum()
    torch.testing.assert_close(torch.autograd.grad(k2, logits)[0], true)


@settings(deadline=None, max_examples=30)
@given(st.integers(2, 30), st.integers(0, 99), objectives, st.data())
def test_losses_add_up_over_any_split(tokens, seed, objective, data):
    """GSPO too where traces stay whole: a split never cuts one."""
    b = random_batch(tokens, seed)
    cuts = [t for t in range(1, tokens) if b["traces"][t] != b["traces"][t - 1]]
    if objective.policy_loss != "gspo":
        cuts = list(range(1, tokens))
    cut = data.draw(st.sampled_from(cuts or [0]))
    n = float(b["mask"].sum()) or 1.0
    whole, stats = policy_loss(PolicyInputs(**b), objective, denominator=n)
    parts = [
        policy_loss(PolicyInputs(**{k: v[s] for k, v in b.items()}), objective, denominator=n)
        for s in (slice(cut), slice(cut, None))
    ]
    assert whole.item() == pytest.approx(sum(p[0].item() for p in parts), abs=1e-12)
    for key, value in stats.items():
        assert value.item() == pytest.approx(sum(p[1][key].item() for p in parts), abs=1e-9)


bins_strategy = st.builds(
    ValueBins,
    count=st.integers(2, 60),
    lowest=st.sampled_from([-2.0, 0.0]),
    highest=st.sampled_from([1.0, 3.0]),
    sigma=st.sampled_from([0.0, 0.75]),
)


@given(bins_strategy, st.integers(0, 99))
def test_a_returns_target_is_a_distribution_around_it(bins, seed):
    g = torch.Generator().manual_seed(seed)
    returns = torch.cat(
        [4 * torch.rand(20, generator=g, dtype=torch.float64) - 2,
         torch.tensor([bins.lowest, bins.highest], dtype=torch.float64)]
    )  # fmt: skip
    found = target(bins, returns)
    torch.testing.assert_close(found.sum(1), torch.ones(22, dtype=torch.float64))
    assert (found >= 0).all()
    inside = returns.clamp(bins.lowest, bins.highest)
    if not bins.sigma:  # two-hot says the return exactly, at the ends too
        torch.testing.assert_close(found @ centres(bins, returns), inside)
        assert ((found > 0).sum(1) <= 2).all()
    for r, row in zip(inside.tolist(), found.tolist(), strict=True):
        if bins.sigma:  # the reference: the normal's cumulative distribution, edge by edge
            scale = bins.sigma * bins.width
            edges = [bins.lowest + bins.width * k for k in range(bins.count + 1)]
            cdf = [0.5 * math.erfc((r - e) / (scale * math.sqrt(2))) for e in edges]
            mass = [(h - l) / (cdf[-1] - cdf[0]) for l, h in itertools.pairwise(cdf)]  # noqa: E741
            assert row == pytest.approx(mass, abs=1e-9)


def test_an_hl_gauss_targets_mean_is_the_return_away_from_the_ends():
    """To within a hundredth of a bin: a value can be read back from what was taught."""
    bins = ValueBins(101, -0.5, 1.5, 0.75)
    returns = torch.linspace(-0.4, 1.4, 200, dtype=torch.float64)
    mean = target(bins, returns) @ centres(bins, returns)
    torch.testing.assert_close(mean, returns, atol=0.01 * bins.width, rtol=0)


@given(bins_strategy, st.integers(0, 99))
def test_distributional_value_loss_is_the_cross_entropy(bins, seed):
    b = random_batch(9, seed)
    g = torch.Generator().manual_seed(seed)
    logits = torch.randn(9, bins.count, generator=g, dtype=torch.float64, requires_grad=True)
    returns, mask = 2 * b["advantages"], b["mask"]
    loss, stats = distributional_value_loss(logits, returns, mask, bins=bins, denominator=3.0)
    loss.backward()
    wanted = target(bins, returns)
    probabilities = torch.softmax(logits.detach(), 1)
    middle = [bins.first + k * bins.width for k in range(bins.count)]
    total = beyond = error = 0.0
    gradient = torch.zeros_like(logits)
    for t in range(9):
        value = sum(p * m for p, m in zip(probabilities[t].tolist(), middle, strict=True))
        assert expected_value(bins, logits)[t].item() == pytest.approx(value, abs=1e-9)
        if mask[t]:
            r = returns[t].item()
            for k in range(bins.count):
                total -= wanted[t, k].item() * math.log(probabilities[t, k].item())
                gradient[t, k] = (probabilities[t, k] - wanted[t, k]) / 3.0
            beyond += r < bins.lowest or r > bins.highest
            error += abs(value - r)
    assert loss.item() == pytest.approx(total / 3.0, abs=1e-9)
    torch.testing.assert_close(logits.grad, gradient)
    assert stats["beyond_range"].item() == beyond
    assert stats["error"].item() == pytest.approx(error, abs=1e-9)


@settings(deadline=None, max_examples=50)
@given(st.integers(1, 40), st.integers(0, 999), st.sampled_from([0.0, 0.2]))
def test_value_loss_is_the_reference(tokens, seed, clip):
    b = random_batch(tokens, seed)
    values, old, returns = b["logprobs"], b["old_logprobs"], b["advantages"]
    total = 0.0
    for v, o, r, m in zip(values.tolist(), old.tolist(), returns.tolist(), b["mask"], strict=True):
        if m:
            worst = (v - r) ** 2
            if clip:
                worst = max(worst, (o + min(max(v - o, -clip), clip) - r) ** 2)
            total += 0.5 * worst
    loss, _ = value_loss(values, old, returns, b["mask"], value_clip=clip, denominator=5.0)
    assert loss.item() == pytest.approx(total / 5.0, abs=1e-12)


def test_sft_loss_is_minus_the_masked_sum():
    logprobs = torch.tensor([-1.0, -2.0, -4.0])
    loss, _ = sft_loss(logprobs, torch.tensor([False, True, True]), denominator=2.0)
    assert loss.item() == 3.0


@pytest.mark.parametrize("chunk", [1, 64, 1 << 22])
@pytest.mark.parametrize("temperature", [1.0, 0.7])
@pytest.mark.parametrize("vocab_size", [None, 17])
def test_token_logprobs_and_entropy_equal_log_softmax(monkeypatch, chunk, temperature, vocab_size):
    monkeypatch.setattr(module, "CHUNK_ELEMENTS", chunk)
    g = torch.Generator().manual_seed(0)
    logits = (3 * torch.randn(11, 20, generator=g)).requires_grad_()
    targets = torch.randint(0, 17, (11,), generator=g)
    weights = torch.randn(2, 11, generator=g)

    found, entropy = token_logprobs(
        logits, targets, temperature=temperature, vocab_size=vocab_size, with_entropy=True
    )
    (weights[0] @ found + weights[1] @ entropy).backward()
    grad, logits.grad = logits.grad, None

    reference = torch.log_softmax(logits[:, :vocab_size].double() / temperature, -1)
    expected = reference.gather(1, targets[:, None]).squeeze(1)
    expected_entropy = -(reference.exp() * reference).sum(-1)
    (weights[0].double() @ expected + weights[1].double() @ expected_entropy).backward()
    torch.testing.assert_close(found.double(), expected, atol=2e-6, rtol=0)
    torch.testing.assert_close(entropy.double(), expected_entropy, atol=5e-6, rtol=0)
    torch.testing.assert_close(grad, logits.grad, atol=5e-6, rtol=1e-5)


def test_bf16_logits_are_computed_in_float32():
    g = torch.Generator().manual_seed(0)
    logits = torch.randn(5, 50, generator=g).bfloat16()
    targets = torch.randint(0, 50, (5,), generator=g)
    found, none = token_logprobs(logits, targets)
    assert none is None
    assert found.dtype == torch.float32
    expected = torch.log_softmax(logits.double(), -1).gather(1, targets[:, None]).squeeze(1)
    torch.testing.assert_close(found.double(), expected, atol=1e-6, rtol=0)


@pytest.mark.parametrize("advantage", [-1.0, 1.0])
@pytest.mark.parametrize("gap", [-200.0, 200.0])
def test_ratios_beyond_float32_leave_loss_and_gradient_finite(advantage, gap):
    logprobs = torch.tensor([-201.0 + gap, -1.0], requires_grad=True)
    old = torch.tensor([-201.0, -1.0])
    inputs = PolicyInputs(
        logprobs, old, old - gap, torch.full((2,), advantage), torch.ones(2, dtype=torch.bool)
    )
    loss, stats = policy_loss(inputs, PLAIN, denominator=2.0)
    loss.backward()
    assert torch.isfinite(loss)
    assert torch.isfinite(logprobs.grad).all()
    assert all(torch.isfinite(value) for value in stats.values())


@pytest.mark.parametrize("temperature", [1.0, 0.5])
@pytest.mark.parametrize("vocab_size", [None, 5])
@pytest.mark.parametrize("outputs", ["both", "logprobs", "entropy"])
def test_token_logprobs_agree_with_finite_differences(temperature, vocab_size, outputs):
    logits = torch.randn(4, 7, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    targets = torch.tensor([0, 3, 4, 2])

    def chosen(logits):
        found = token_logprobs(
            logits,
            targets,
            temperature=temperature,
            vocab_size=vocab_size,
            with_entropy=outputs != "logprobs",
        )
        return {"both": found, "logprobs": found[:1], "entropy": found[1:]}[outputs]

    assert torch.autograd.gradcheck(chosen, (logits.requires_grad_(),))


@settings(deadline=None, max_examples=25)
@given(st.integers(0, 9), st.integers(1, 30), st.integers(0, 99), st.data())
def test_any_split_of_the_tokens_has_the_same_logprobs_and_gradient(tokens, vocab, seed, data):
    g = torch.Generator().manual_seed(seed)
    logits = torch.randn(tokens, vocab, generator=g, requires_grad=True)
    targets = torch.randint(0, vocab, (tokens,), generator=g)
    cut = data.draw(st.integers(0, tokens))
    whole = token_logprobs(logits, targets, with_entropy=True)
    sum(x.sum() for x in whole).backward()
    grad, logits.grad = logits.grad, None
    parts = [
        token_logprobs(logits[part], targets[part], with_entropy=True)
        for part in (slice(0, cut), slice(cut, tokens))
    ]
    sum(x.sum() for part in parts for x in part).backward()
    for k in range(2):
        torch.testing.assert_close(whole[k], torch.cat([part[k] for part in parts]))
    torch.testing.assert_close(grad, logits.grad)


def vocabulary_parallel(rank: int, world_size: int, init_method: str, columns: list[int]):
    """One rank of a vocabulary split unevenly, the last ranks with padding only."""
    dist.init_process_group("gloo", init_method=init_method, rank=rank, world_size=world_size)
    logits, targets, weights = _parallel_problem()
    first = sum(columns[:rank])
    padded = torch.nn.functional.pad(logits, (0, sum(columns) - logits.shape[1]))
    own = padded[:, first : first + columns[rank]].clone().requires_grad_()
    logprobs, entropy = token_logprobs(
        own,
        targets,
        temperature=0.7,
        vocab_size=logits.shape[1],
        first_column=first,
        group=dist.group.WORLD,
        with_entropy=True,
    )
    (weights[0] @ logprobs + weights[1] @ entropy).backward()
    dist.destroy_process_group()
    return logprobs.tolist(), entropy.tolist(), own.grad.tolist()


def _parallel_problem():
    g = torch.Generator().manual_seed(0)
    logits = 30 * torch.randn(6, 10, generator=g, dtype=torch.float64)
    return logits, torch.tensor([0, 9, 4, 5, 3, 7]), torch.randn(2, 6, generator=g).double()


@pytest.mark.parametrize("columns", [[6, 6], [6, 5, 3]])
def test_a_split_vocabulary_changes_nothing(columns):
    """Padding columns on the last rank, once nothing but padding."""
    found = run_ranks(vocabulary_parallel, len(columns), columns=columns)

    logits, targets, weights = _parallel_problem()
    logits.requires_grad_()
    expected, entropy = token_logprobs(logits, targets, temperature=0.7, with_entropy=True)
    (weights[0] @ expected + weights[1] @ entropy).backward()
    for logprobs, entropies, _ in found:
        assert logprobs == pytest.approx(expected.tolist(), abs=1e-12)
        assert entropies == pytest.approx(entropy.tolist(), abs=1e-12)
    grad = torch.cat([torch.tensor(g, dtype=torch.float64) for _, _, g in found], dim=1)
    torch.testing.assert_close(grad[:, :10], logits.grad)
    assert not grad[:, 10:].any()
