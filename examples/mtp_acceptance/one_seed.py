"""One seed: a trunk, three MTP layers on it (the trunk frozen), and the four rows measured by decoding."""

from __future__ import annotations

from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from examples.mtp_acceptance.settings import ROWS, VARIANTS, MtpVariant, Row, Settings
from examples.stdlib_text.corpus import Ids, even_windows
from examples.stdlib_text.pretrain import held_out_loss, one_rank, pretrain
from rlframe.config.schema import IndexerConfig, MtpConfig, PolicyRoleConfig
from rlframe.model_shapes.glm import GlmShape
from trainer.losses.draft_scores import complete_positions, draft_scores
from trainer.losses.mtp import expected_drafts
from trainer.megatron.training import Training
from trainer.models.glm.cached_decoding import CachedGlm
from trainer.models.hf_bridge import export_hf
from trainer.models.language_model import model_chunks
from trainer.models.packed import PackedBatch, forward
from trainer.speculative import Acceptance, Rule, decode

AT_ONCE = 96
"""Sequences that are decoded side by side."""
INDEXER = IndexerConfig(mode="sparse", coefficient=1.0)


@dataclass(frozen=True)
class SeedResult:
    """What one seed came to, by the rows' methods."""

    held_out_loss: float  # of the trunk, nats a token
    acceptances: dict[str, Acceptance]
    teacher_forced: dict[str, float]  # 1 + E[L] in the training form, on the text's own tokens


@dataclass(frozen=True)
class Drafting:
    """A trained model, and what its draft distributions say on text, before any decoding."""

    tensors: dict[str, Tensor]
    expected: dict[Rule, float]


def run_seed(
    settings: Settings, training_ids: Ids, text: Ids, *, seed: int, work: Path
) -> SeedResult:
    """`text` is what is measured on. Models that are in `work` are not trained again."""
    torch.set_num_threads(1)
    trunk = work / f"trunk_{seed}"
    loss = train_trunk(settings, training_ids, text, seed=seed, to=trunk)
    print(f"seed {seed}: the trunk's loss is {loss:.3f} nats a token", flush=True)
    models = {
        name: train_mtp(settings, training_ids, text, name, seed=seed, trunk=trunk)
        for name in VARIANTS
    }
    acceptances = {}
    for row in ROWS:
        found = measure(settings, models[row.variant].tensors, text, row, seed=seed)
        acceptances[row.method] = found
        print(f"seed {seed}: {row.method:20} {found.length:.3f}", flush=True)
    forced = {row.method: models[row.variant].expected[row.rule] for row in ROWS}
    return SeedResult(loss, acceptances, forced)


def train_trunk(settings: Settings, ids: Ids, text: Ids, *, seed: int, to: Path) -> float:
    """The backbone by cross entropy, and its indexers; returns the loss on `text`."""
    config = PolicyRoleConfig(
        lr=settings.trunk_lr, lr_warmup_steps=20, lr_decay="cosine", indexer=INDEXER
    )
    hf_config = settings.hf_config(shares=True)
    there = to.exists()
    path = str(to) if there else ""
    steps = settings.trunk_steps
    with one_rank(hf_config, config=config, steps=steps, path=path, seed=seed) as training:
        if not there:
            pretrain(
                training,
                ids,
                steps=steps,
                sequences=settings.sequences,
                length=settings.length,
                seed=seed,
                label=f"seed {seed} trunk ",
            )
            training.export_hf(str(to))
        return held_out_loss(training, even_windows(text, count=32, length=settings.length))


def train_mtp(
    settings: Settings, ids: Ids, text: Ids, name: str, *, seed: int, trunk: Path
) -> Drafting:
    """The MTP layer alone, on the frozen trunk.

    End-to-end TV has no gradient where draft and target do not overlap, so it begins with cross entropy;
    the number of steps is the same in all.
    """
    variant, done = VARIANTS[name], 0
    finished = trunk.with_name(f"{trunk.name}_{name}")
    cold = settings.cold_start_steps if variant.loss != "ce" else 0
    phases = [("ce", cold)] if cold else []
    phases.append((variant.loss, settings.mtp_steps - cold))
    path = trunk
    for loss, steps in [] if finished.exists() else phases:
        with _mtp_rank(settings, variant, loss, steps=steps, path=path, seed=seed) as training:
            pretrain(
                training,
                ids,
                steps=steps,
                sequences=settings.sequences,
                length=settings.length,
                seed=seed + 1000 + done,
                label=f"seed {seed} {name} {loss} ",
            )
            done += steps
            path = finished if done == settings.mtp_steps else trunk.with_name(f"begun_{seed}")
            training.export_hf(str(path))
    with _mtp_rank(settings, variant, variant.loss, steps=1, path=finished, seed=seed) as training:
        drafting = look_at(settings, training, text)
    print(f"seed {seed} {name}: {drafting.expected}", flush=True)
    return drafting


def _mtp_rank(
    settings: Settings, variant: MtpVariant, loss: str, *, steps: int, path: Path, seed: int
) -> AbstractContextManager[Training]:
    hf_config = settings.hf_config(shares=variant.shares)
    config = mtp_config(settings, loss)
    return one_rank(hf_config, config=config, steps=steps, path=str(path), seed=seed)


def mtp_config(settings: Settings, loss: str) -> PolicyRoleConfig:
    return PolicyRoleConfig(
        lr=settings.mtp_lr,
        lr_warmup_steps=20,
        lr_decay="cosine",
        indexer=INDEXER,
        mtp=MtpConfig(
            mode="frozen_trunk", steps=settings.drafts, loss=loss, weight=1.0, positions="all"
        ),
    )


@torch.no_grad()
def look_at(settings: Settings, training: Training, text: Ids) -> Drafting:
    """Copies the weights, and computes the expected acceptance length on the text, teacher-forced."""
    (model,) = model_chunks(training.model)
    model.train()
    packed = PackedBatch.from_rows(even_windows(text, count=16, length=settings.length))
    forward(model, packed)
    assert packed.mtp is not None
    total = len(packed.token_ids)
    scores = draft_scores(
        packed.mtp.drafts,
        packed.mtp.targets,
        packed.token_ids,
        complete_positions(packed.cu_seqlens, steps=settings.drafts, total=total),
        head=lambda h: model.logits(h.unsqueeze(1)),
    )
    expected: dict[Rule, float] = {
        "rejection": 1.0 + float(expected_drafts(scores.overlap).mean()),
        "target_only": 1.0 + float(expected_drafts(scores.top_overlap).mean()),
    }
    tensors = {name: tensor.detach().clone() for name, tensor in export_hf(training.model)}
    return Drafting(tensors, expected)


def measure(
    settings: Settings, tensors: dict[str, Tensor], text: Ids, row: Row, *, seed: int
) -> Acceptance:
    """Decodes on from windows of `text`, as the serving engine would."""
    variant: MtpVariant = VARIANTS[row.variant]
    shape = GlmShape.from_hf(settings.hf_config(shares=variant.shares))
    windows = even_windows(text, count=settings.prompts, length=settings.prompt_length)
    prompts = torch.from_numpy(np.stack(windows)).long()
    capacity = settings.prompt_length + (settings.rounds + 1) * (settings.drafts + 1)
    generator = torch.Generator().manual_seed(seed)
    parts = [
        decode(
            CachedGlm(shape, tensors, some, capacity=capacity),
            rule=row.rule,
            steps=settings.drafts,
            rounds=settings.rounds,
            generator=generator,
        ).acceptance
        for some in prompts.split(AT_ONCE)
    ]
    return sum(parts[1:], parts[0])
