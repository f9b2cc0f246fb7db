"""One seed: a trunk, three MTP layers on it (the trunk frozen), and the four rows measured by decoding."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from examples.mtp_acceptance.settings import ROWS, VARIANTS, MtpVariant, Settings
from examples.stdlib_text.corpus import Ids, even_windows
from examples.stdlib_text.pretrain import held_out_loss, one_rank, pretrain
from rlframe.config.schema import IndexerConfig, MtpConfig, PolicyRoleConfig
from rlframe.model_shapes.glm import GlmShape
from trainer.models.glm.cached_decoding import CachedGlm
from trainer.models.hf_bridge import export_hf
from trainer.speculative import Acceptance, decode

Tensors = dict[str, Tensor]
INDEXER = IndexerConfig(mode="sparse", coefficient=1.0)


def run_seed(settings: Settings, training_ids: Ids, text: Ids, *, seed: int, work: Path) -> dict[str, Any]:
    """`text` is what is measured on. Trained models stay in `work`, and are found there again."""
    torch.set_num_threads(1)
    trunk = work / f"trunk_{seed}"
    loss = train_trunk(settings, training_ids, text, seed=seed, to=trunk)
    print(f"seed {seed}: loss {loss:.3f} nats a token on held-out text", flush=True)
    models = {
        name: train_mtp(settings, training_ids, variant, seed=seed, trunk=trunk, label=f"{seed} {name} ")
        for name, variant in VARIANTS.items()
    }
    measured: dict[str, Any] = {"seed": seed, "held_out_loss": loss}
    for row in ROWS:
        found = measure(settings, models[row.variant], text, row.variant, row.rule, seed=seed)
        measured[row.method] = found
        print(f"seed {seed}: {row.method:20} {found.length:.3f}", flush=True)
    return measured


def train_trunk(settings: Settings, ids: Ids, text: Ids, *, seed: int, to: Path) -> float:
    """The backbone and its indexers by cross entropy; returns the loss on `text`."""
    config = PolicyRoleConfig(
        lr=settings.trunk_lr, lr_warmup_steps=20, lr_decay="cosine", indexer=INDEXER
    )
    hf_config = settings.hf_config(shares=True)
    with one_rank(hf_config, config=config, steps=settings.trunk_steps, seed=seed) as training:
        pretrain(
            training, ids, steps=settings.trunk_steps, sequences=settings.sequences,
            length=settings.length, seed=seed, label=f"seed {seed} trunk ",
        )  # fmt: skip
        loss = held_out_loss(training, even_windows(text, count=32, length=settings.length))
        training.export_hf(str(to))
    return loss


def train_mtp(
    settings: Settings, ids: Ids, variant: MtpVariant, *, seed: int, trunk: Path, label: str
) -> Tensors:
    """The MTP layer alone, on the frozen trunk; returns the whole model's tensors.

    End-to-end TV has no gradient where draft and target do not overlap, so it begins with cross entropy;
    the steps are the same in all.
    """
    phases = [("ce", settings.mtp_steps)]
    if variant.loss != "ce":
        cold = settings.cold_start_steps
        phases = [("ce", cold), (variant.loss, settings.mtp_steps - cold)]
    path, done = trunk, 0
    tensors: Tensors = {}
    for loss, steps in phases:
        mtp = MtpConfig(mode="frozen_trunk", steps=settings.drafts, loss=loss, weight=1.0, positions="all")
        config = PolicyRoleConfig(
            lr=settings.mtp_lr, lr_warmup_steps=20, lr_decay="cosine", indexer=INDEXER, mtp=mtp
        )
        hf_config = settings.hf_config(shares=variant.shares)
        with one_rank(hf_config, config=config, steps=steps, path=str(path), seed=seed) as training:
            history = pretrain(
                training, ids, steps=steps, sequences=settings.sequences, length=settings.length,
                seed=seed + 1000 + done, label=f"seed {label}{loss} ",
            )  # fmt: skip
            last = history[-1]
            print(f"  {label}{loss}: expected length {last['mtp_accept_length']:.3f}", flush=True)
            tensors = {name: tensor.detach().clone() for name, tensor in export_hf(training.model)}
            path, done = trunk.with_name(f"{trunk.name}_mtp"), done + steps
            training.export_hf(str(path))
    return tensors


def measure(
    settings: Settings, tensors: Tensors, text: Ids, variant: str, rule: Any, *, seed: int
) -> Acceptance:
    """Decodes on from windows of `text`."""
    shape = GlmShape.from_hf(settings.hf_config(shares=VARIANTS[variant].shares))
    rows = even_windows(text, count=settings.prompts, length=settings.prompt_length)
    prompts = torch.from_numpy(np.stack(rows)).long()
    capacity = settings.prompt_length + (settings.rounds + 1) * (settings.drafts + 1)
    model = CachedGlm(shape, tensors, prompts, capacity=capacity)
    generator = torch.Generator().manual_seed(seed)
    return decode(
        model, rule=rule, steps=settings.drafts, rounds=settings.rounds, generator=generator
    ).acceptance
