"""Building one role's model on one rank, of whichever family its config names."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import torch
from megatron.core import parallel_state

from rlframe.config.schema import IndexerConfig, LayoutConfig, MtpConfig
from rlframe.model_shapes.dense import DenseShape
from rlframe.model_shapes.glm import MODEL_TYPE as GLM
from rlframe.model_shapes.glm import GlmShape
from rlframe.model_shapes.glm_layout import check_layout, glm_chunks
from rlframe.model_shapes.mtp import check_mtp
from rlframe.model_shapes.pipeline import Chunk, chunks_of
from trainer.models.dense_model import dense_specs
from trainer.models.glm import indexer_training
from trainer.models.glm.attention import Form
from trainer.models.glm.config import glm_fields
from trainer.models.glm.model import GlmModel
from trainer.models.hf_bridge import init_random, load_hf
from trainer.models.language_model import LanguageModel, Role
from trainer.models.transformer import dense_fields, transformer_config

NO_MTP, FROZEN_INDEXERS = MtpConfig(), IndexerConfig()
FORMS: dict[str, Form] = {"frozen": "auto", "sparse": "absorbed", "dense_warmup": "dense"}
"""How attention is computed in each mode of `IndexerConfig`: its loss reads absorbed queries."""


def build_model(
    *,
    hf_config: Mapping[str, Any],
    layout: LayoutConfig,
    transformer: Mapping[str, Any],
    role: Role,
    dtype: str,
    device: torch.device | str,
    seed: int,
    path: str = "",
    mtp: MtpConfig = NO_MTP,
    indexer: IndexerConfig = FROZEN_INDEXERS,
) -> LanguageModel:
    """This rank's part of the model: `build_chunks`' only one. Virtual pipelining has several."""
    (model,) = build_chunks(
        hf_config=hf_config,
        layout=layout,
        transformer=transformer,
        role=role,
        dtype=dtype,
        device=device,
        seed=seed,
        path=path,
        mtp=mtp,
        indexer=indexer,
    )
    assert isinstance(model, LanguageModel)
    return model


def build_chunks(
    *,
    hf_config: Mapping[str, Any],
    layout: LayoutConfig,
    transformer: Mapping[str, Any],
    role: Role,
    dtype: str,
    device: torch.device | str,
    seed: int,
    path: str = "",
    mtp: MtpConfig = NO_MTP,
    indexer: IndexerConfig = FROZEN_INDEXERS,
) -> torch.nn.ModuleList:
    """This rank's `LanguageModel` chunks, filled from the checkpoint at `path` or, without one, at random.

    `hf_config` is a transformers config of type `qwen3` or `glm_moe_dsa`; `transformer` passes fields of
    Megatron's TransformerConfig through. Random weights follow from `seed` and the tensors' Hugging Face
    names, so they are the same for every layout. `trainer.megatron.parallel.init_parallel` comes first.
    Raises UserError for a config, a layout, a pass-through field or a checkpoint that does not fit.
    """
    if hf_config.get("model_type") == GLM:
        form = FORMS[indexer.mode]
        model = _make_glm(hf_config, layout, transformer, role, dtype, mtp, form)
    else:
        check_mtp(mtp, None, layout, role)
        model = _make_dense(hf_config, layout, transformer, role, dtype)
    if path:
        load_hf(model, path, seed=seed)
    else:
        init_random(model, seed=seed)
    model.to(device)
    indexer_training.prepare(model, indexer, key=f"trainer.{role}.indexer")
    if mtp.mode == "frozen_trunk":
        for chunk in model:
            assert isinstance(chunk, GlmModel)
            chunk.freeze_trunk()
    return model


def _make_dense(
    hf_config: Mapping[str, Any],
    layout: LayoutConfig,
    transformer: Mapping[str, Any],
    role: Role,
    dtype: str,
) -> torch.nn.ModuleList:
    shape = DenseShape.from_hf(hf_config)
    shape.check_layout(layout, role)
    fields = dense_fields(shape)
    config = transformer_config(fields, layout=layout, dtype=dtype, passed=transformer, role=role)
    chunks = chunks_of([shape.layers // layout.pipeline] * layout.pipeline)
    is_last = parallel_state.is_pipeline_last_stage(ignore_virtual=True)
    specs = dense_specs(
        shape,
        layers=shape.layers // layout.pipeline,
        asks_early=is_last and not layout.sequence_parallel,
    )
    return torch.nn.ModuleList([LanguageModel(config, shape, specs, role=role, chunks=chunks)])


def _make_glm(
    hf_config: Mapping[str, Any],
    layout: LayoutConfig,
    transformer: Mapping[str, Any],
    role: Role,
    dtype: str,
    mtp: MtpConfig,
    form: Form,
) -> torch.nn.ModuleList:
    shape = GlmShape.from_hf(hf_config)
    check_layout(shape, layout, key=f"trainer.{role}.layout")
    check_mtp(mtp, shape, layout, role)
    if mtp.mode == "off":
        shape = replace(shape, mtp_layers=0)
    chunks: tuple[Chunk, ...] = glm_chunks(shape, layout)
    fields = glm_fields(shape, chunks, expert_ranks=layout.expert)
    config = transformer_config(fields, layout=layout, dtype=dtype, passed=transformer, role=role)
    return torch.nn.ModuleList(
        [
            GlmModel(config, shape, role=role, chunks=chunks, part=part, mtp=mtp, form=form)
            for part in range(layout.virtual_pipeline)
        ]
    )
