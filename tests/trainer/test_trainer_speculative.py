"""The reference speculative decoder on models that are tables: its output must be the target's own, jointly."""

import itertools

import pytest
import torch
from scipy import stats

from trainer.speculative import NO_TOKEN, Acceptance, decode, verify

VOCAB, STEPS = 3, 3


class Tables:
    """A target and a draft that look at the last two tokens; both are [V, V, V] logits."""

    def __init__(self, sequences: int, target: torch.Tensor, draft: torch.Tensor) -> None:
        self.target, self.draft = target, draft
        self.committed = torch.zeros(sequences, 2, dtype=torch.long)
        self.drafted = self.committed

    def begin_drafts(self) -> torch.Tensor:
        self.drafted = self.committed
        return self._logits(self.draft, self.drafted)

    def next_draft(self, drafts: torch.Tensor) -> torch.Tensor:
        self.drafted = torch.stack([self.drafted[:, 1], drafts], 1)
        return self._logits(self.draft, self.drafted)

    def verify(self, drafts: torch.Tensor) -> torch.Tensor:
        sequence = torch.cat([self.committed, drafts], 1)
        pairs = [sequence[:, i : i + 2] for i in range(drafts.shape[1] + 1)]
        return torch.stack([self._logits(self.target, pair) for pair in pairs], 1)

    def commit(self, tokens: torch.Tensor, counts: torch.Tensor) -> None:
        sequence = torch.cat([self.committed, tokens], 1)
        last = counts[:, None] + torch.arange(2)
        self.committed = sequence.gather(1, last)

    @staticmethod
    def _logits(table: torch.Tensor, pair: torch.Tensor) -> torch.Tensor:
        return table[pair[:, 0], pair[:, 1]]


def tables(sequences: int, *, distance: float = 1.0, seed: int = 0) -> Tables:
    g = torch.Generator().manual_seed(seed)
    target = torch.randn(VOCAB, VOCAB, VOCAB, generator=g)
    return Tables(sequences, target, target + distance * torch.randn(target.shape, generator=g))


def joint(table: torch.Tensor, length: int, temperature: float) -> torch.Tensor:
    """[VOCAB ** length] chances of every continuation of tokens 0, 0, under the target alone."""
    chances = []
    for tokens in itertools.product(range(VOCAB), repeat=length):
        sequence, chance = [0, 0, *tokens], 1.0
        for i, token in enumerate(tokens):
            row = torch.softmax(table[sequence[i], sequence[i + 1]].double() / temperature, -1)
            chance *= row[token].item()
        chances.append(chance)
    return torch.tensor(chances, dtype=torch.float64)


@pytest.mark.parametrize("temperature", [1.0, 0.7])
@pytest.mark.parametrize("rule", ["target_only", "rejection"])
def test_the_first_four_tokens_are_jointly_the_targets(rule, temperature):
    """Chi-square over all 81 continuations; they cross the borders of rounds of 1 to 4 tokens."""
    sequences = 50_000
    model = tables(sequences)
    generator = torch.Generator().manual_seed(7)
    found = decode(
        model, rule=rule, steps=STEPS, rounds=4, generator=generator, temperature=temperature
    )
    first = found.tokens[:, :4]
    assert (first != NO_TOKEN).all()
    index = (first * VOCAB ** torch.arange(3, -1, -1)).sum(1)
    observed = torch.bincount(index, minlength=VOCAB**4).double()
    expected = joint(model.target, 4, temperature) * sequences
    assert stats.chisquare(observed.numpy(), expected.numpy()).pvalue > 0.001
    # The test would see the draft's distribution: it is far from the target's.
    drafts = joint(model.draft, 4, temperature) * sequences
    assert stats.chisquare(observed.numpy(), drafts.numpy()).pvalue < 1e-9


def test_greedy_emits_what_the_target_alone_would():
    model = tables(5)
    found = decode(model, rule="greedy", steps=STEPS, rounds=6)
    for row in found.tokens.tolist():
        tokens = [token for token in row if token != NO_TOKEN]
        assert len(tokens) >= 6
        sequence = [0, 0]
        for _ in tokens:
            sequence.append(int(model.target[sequence[-2], sequence[-1]].argmax()))
        assert tokens == sequence[2:]


@pytest.mark.parametrize("rule", ["target_only", "rejection"])
def test_acceptance_is_what_the_distributions_say(rule):
    """One round from one context: P(first k drafts accepted), counted over all drafts."""
    sequences = 100_000
    model = tables(sequences)
    generator = torch.Generator().manual_seed(3)
    found = decode(model, rule=rule, steps=2, rounds=1, generator=generator).acceptance
    q1, p1 = (torch.softmax(t[0, 0], -1) for t in (model.draft, model.target))
    if rule == "target_only":
        first = q1.argmax()
        p2 = torch.softmax(model.target[0, first], -1)
        expected = [p1[first], p1[first] * p2[model.draft[0, first].argmax()]]
    else:
        q2, p2 = (torch.softmax(t[0], -1) for t in (model.draft, model.target))  # [first, second]
        both = torch.minimum(p1, q1) * torch.minimum(p2, q2).sum(1)
        expected = [torch.minimum(p1, q1).sum(), both.sum()]
    for hits, chance in zip(found.reached, expected, strict=True):
        deviation = (sequences * chance * (1 - chance)) ** 0.5
        assert abs(hits - sequences * chance) < 4 * deviation


def test_a_draft_like_the_target_is_always_accepted():
    model = tables(50, distance=0.0)
    generator = torch.Generator().manual_seed(0)
    found = decode(model, rule="rejection", steps=STEPS, rounds=5, generator=generator).acceptance
    assert (found.rounds, found.length) == (250, STEPS + 1.0)
    assert found.rates == (1.0, 1.0, 1.0)


def test_rates_and_lengths_of_a_count():
    found = Acceptance(rounds=10, reached=(8, 4, 0, 0))
    assert found.length_without_bonus == pytest.approx(1.2)
    assert found.length == pytest.approx(2.2)
    lengths = torch.tensor([0.0, 0.0, 1.0, 1.0, 1.0, 1.0, 2.0, 2.0, 2.0, 2.0])
    assert found.standard_error == pytest.approx(float(lengths.std(correction=0)) / 10**0.5)
    assert found.rates[:3] == (0.8, 0.5, 0.0)
    assert found + Acceptance(2, (1, 1, 1, 1)) == Acceptance(12, (9, 5, 1, 1))
    assert found.rates[3] != found.rates[3]  # never tried


def test_a_rejected_draft_is_never_emitted():
    p = torch.tensor([[[0.0, 0.5, 0.5], [1.0, 0.0, 0.0]]]).repeat(100, 1, 1)
    q = torch.tensor([[[1.0, 0.0, 0.0]]]).repeat(100, 1, 1)
    drafts = torch.zeros(100, 1, dtype=torch.long)
    accepted, following = verify(p, q, drafts, generator=torch.Generator().manual_seed(0))
    assert not accepted.any()
    assert set(following.tolist()) == {1, 2}
