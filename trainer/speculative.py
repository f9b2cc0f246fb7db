"""A reference speculative decoder: exact in distribution, any model, B sequences side by side; pure torch.

A round drafts K tokens, lets the target judge them in one pass, and emits the accepted ones and one
token more: the correction of the first rejected draft, or the bonus token after the last. The rules are
SGLang's (kernels/ops/speculative/reject_sampling.py of 0.5.23), and are one rule with other p and q:

    rule          the drafts are                 accepted with          p, q in min(1, p/q)
    greedy        q's most likely tokens         1 if also p's, else 0  both one-hot at their argmax
    target_only   q's most likely tokens         p(draft)               q one-hot at its argmax
    rejection     drawn from q                   min(1, p/q)            as they are

    outcome = decode(model, rule="rejection", steps=7, rounds=100, generator=generator)
    outcome.acceptance.length            # tokens a round, bonus token counted
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, Protocol

import torch
from torch import Tensor

Rule = Literal["greedy", "target_only", "rejection"]
NO_TOKEN = -1


class SpeculativeModel(Protocol):
    """Target and draft of B sequences, with all that they remember.

    A round is `begin_drafts`, then `next_draft` until K drafts are there, then `verify`, then `commit`.
    """

    def begin_drafts(self) -> Tensor:
        """Logits [B, V] of the first draft, given everything committed."""
        ...

    def next_draft(self, drafts: Tensor) -> Tensor:
        """Logits [B, V] of the draft that follows the last ones [B]."""
        ...

    def verify(self, drafts: Tensor) -> Tensor:
        """The target's logits [B, K + 1, V] of each draft [B, K] and of the token after the last."""
        ...

    def commit(self, tokens: Tensor, counts: Tensor) -> None:
        """Of tokens [B, K + 1] the first counts [B] (>= 1) are now part of each sequence."""
        ...


@dataclass(frozen=True, slots=True)
class Acceptance:
    """What the rounds of all sequences came to."""

    rounds: int
    reached: tuple[int, ...]
    """Entry k - 1: rounds in which the first k drafts were all accepted."""

    def __add__(self, other: Acceptance) -> Acceptance:
        reached = tuple(a + b for a, b in zip(self.reached, other.reached, strict=True))
        return Acceptance(self.rounds + other.rounds, reached)

    @property
    def length(self) -> float:
        """Mean tokens emitted a round, the bonus token counted: SGLang's `accept len`."""
        return 1.0 + self.length_without_bonus

    @property
    def length_without_bonus(self) -> float:
        """Mean accepted drafts a round."""
        return sum(self.reached) / self.rounds

    @property
    def standard_error(self) -> float:
        """Of `length`, as if all rounds were independent."""
        mean = self.length_without_bonus
        squares = sum((2 * k + 1) * hits for k, hits in enumerate(self.reached)) / self.rounds
        return float(((squares - mean**2) / self.rounds) ** 0.5)

    @property
    def rates(self) -> tuple[float, ...]:
        """Per step, the share of accepted drafts where all before were accepted; nan where none came."""
        before = (self.rounds, *self.reached)
        return tuple(
            hits / tries if tries else float("nan")
            for hits, tries in zip(self.reached, before, strict=False)
        )


@dataclass(frozen=True, slots=True, eq=False)
class Decoded:
    """`tokens` [B, rounds * (K + 1)]: each sequence's emitted tokens, NO_TOKEN after its last."""

    tokens: Tensor
    acceptance: Acceptance


@torch.no_grad()
def decode(
    model: SpeculativeModel,
    *,
    rule: Rule,
    steps: int,
    rounds: int,
    generator: torch.Generator | None = None,
    temperature: float = 1.0,
) -> Decoded:
    """`rounds` rounds of `steps` drafts for every sequence.

    The emitted tokens are distributed as the target alone would sample them at `temperature` (which
    greedy ignores), whatever the draft is. No end token is looked for: what follows one is the caller's
    to drop.
    """
    rows: list[Tensor] = []
    reached = torch.zeros(steps, dtype=torch.long)
    sequences = 0
    for _ in range(rounds):
        drafts, q = _draft(model, rule, steps, temperature, generator)
        p = _distribution(model.verify(drafts), temperature, one_hot=rule == "greedy")
        accepted, following = verify(p, q, drafts, generator=generator)
        tokens = torch.cat([drafts, torch.full_like(drafts[:, :1], NO_TOKEN)], dim=1)
        tokens.scatter_(1, accepted[:, None], following[:, None])
        model.commit(tokens, accepted + 1)
        index = torch.arange(steps + 1, device=tokens.device)
        rows.append(tokens.where(index <= accepted[:, None], NO_TOKEN))
        reached += (accepted[:, None] > index[:steps]).sum(0).cpu()
        sequences = len(tokens)
    return Decoded(_compacted(rows), Acceptance(sequences * rounds, tuple(reached.tolist())))


def verify(
    p: Tensor, q: Tensor, drafts: Tensor, *, generator: torch.Generator | None = None
) -> tuple[Tensor, Tensor]:
    """How many drafts [B, K] are accepted [B], and the token [B] that follows them.

    p: [B, K + 1, V] of the target, q: [B, K, V] that the drafts were drawn from. Draft i is accepted if
    u q_i < p_i, u uniform; after the first rejected one the token comes from norm(max(p - q, 0)), after
    the last accepted one from p. So the emitted tokens are distributed as p (Leviathan et al.,
    arXiv 2211.17192).
    """
    chosen = drafts[..., None]
    accepted_p = p[:, :-1].gather(2, chosen).squeeze(2)
    accepted_q = q.gather(2, chosen).squeeze(2)
    u = torch.rand(drafts.shape, generator=generator, dtype=p.dtype, device=p.device)
    accepted = (u * accepted_q < accepted_p).long().cumprod(dim=1).sum(dim=1)
    at = accepted[:, None, None].expand(-1, 1, p.shape[2])
    target = p.gather(1, at).squeeze(1)
    draft = torch.cat([q, torch.zeros_like(q[:, :1])], dim=1).gather(1, at).squeeze(1)
    residual = (target - draft).clamp(min=0.0)
    # Where p and q are equal but for round-off nothing may be left; p is then what is wanted.
    residual = torch.where(residual.sum(1, keepdim=True) > 0, residual, target)
    return accepted, torch.multinomial(residual, 1, generator=generator).squeeze(1)


def _draft(
    model: SpeculativeModel,
    rule: Rule,
    steps: int,
    temperature: float,
    generator: torch.Generator | None,
) -> tuple[Tensor, Tensor]:
    """Tokens [B, K] and the distributions [B, K, V] that they were drawn from."""
    tokens: list[Tensor] = []
    distributions: list[Tensor] = []
    for step in range(steps):
        logits = model.next_draft(tokens[-1]) if step else model.begin_drafts()
        q = _distribution(logits, temperature, one_hot=rule != "rejection")
        tokens.append(torch.multinomial(q, 1, generator=generator).squeeze(1))
        distributions.append(q)
    return torch.stack(tokens, dim=1), torch.stack(distributions, dim=1)


def _distribution(logits: Tensor, temperature: float, *, one_hot: bool) -> Tensor:
    """[..., V] in float32 at least: softmax, or all mass on the most likely token."""
    wide = logits.to(torch.promote_types(logits.dtype, torch.float32))
    if one_hot:
        return torch.zeros_like(wide).scatter_(-1, wide.argmax(-1, keepdim=True), 1.0)
    return torch.softmax(wide / temperature, dim=-1)


def _compacted(rows: list[Tensor]) -> Tensor:
    """Rounds side by side, the gaps between them moved to the end."""
    tokens = torch.cat(rows, dim=1)
    order = (tokens == NO_TOKEN).to(torch.uint8).argsort(dim=1, stable=True)
    return tokens.gather(1, order)
