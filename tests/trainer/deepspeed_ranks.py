"""What DeepSpeed ranks of a test do, without Ray, and small models of several architectures for them."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from rlframe.config.schema import LayoutConfig
from rlframe.types import BatchPlan, TrainRow
from tests.trainer.tiny import TINY
from tests.trainer.train_rows import plan_of, rank_spec
from trainer.objective import COLUMNS
from trainer.ranks.shard import RowShard, cut
from trainer.ranks.spec import RankSpec

PLANS: dict[int, tuple[BatchPlan, ...]] = {
    1: (plan_of(((0, 1, 2, 3, 4),)), plan_of(((4, 2), (0,), (1, 3), ()))),
    2: (plan_of(((4, 2), (0,)), ((1, 3), ())), plan_of(((0, 1, 2, 3, 4),), ((),))),
}
"""By number of ranks: two plans over the five rows, to be used one after the other."""
CONFIGS: dict[str, dict[str, Any]] = {
    "qwen3": TINY,
    "gpt2": {
        "model_type": "gpt2",
        "vocab_size": 67,
        "n_embd": 32,
        "n_layer": 2,
        "n_head": 4,
        "n_positions": 128,
        "bos_token_id": 0,
        "eos_token_id": 0,
        "initializer_range": 0.1,
    },
    "llama": {
        "model_type": "llama",
        "vocab_size": 67,
        "hidden_size": 32,
        "intermediate_size": 48,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "tie_word_embeddings": False,
        "initializer_range": 0.1,
    },
    "gemma2": {
        "model_type": "gemma2",
        "vocab_size": 67,
        "hidden_size": 32,
        "intermediate_size": 48,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "head_dim": 12,
        "sliding_window": 8,
        "initializer_range": 0.1,
    },
    "qwen3_moe": {
        "model_type": "qwen3_moe",
        "vocab_size": 67,
        "hidden_size": 32,
        "intermediate_size": 48,
        "moe_intermediate_size": 16,
        "num_experts": 4,
        "num_experts_per_tok": 2,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "head_dim": 12,
        "initializer_range": 0.1,
    },
}


def write_model(directory: Path, kind: str = "qwen3") -> str:
    """A random model as transformers writes it."""
    from transformers import AutoConfig, AutoModelForCausalLM

    torch.manual_seed(0)
    AutoModelForCausalLM.from_config(AutoConfig.for_model(**CONFIGS[kind])).save_pretrained(
        directory
    )
    return str(directory)


def deepspeed_spec(
    kind: str, *, rank: int, world_size: int, stage: int, path: str, **config: Any
) -> RankSpec:
    zero = {"stage": stage, "reduce_bucket_size": 10**6, **config.pop("zero", {})}
    spec = rank_spec(
        kind,
        rank=rank,
        layout=LayoutConfig(data=world_size),
        path=path,
        deepspeed={"zero_optimization": zero},
        **config,
    )
    return dataclasses.replace(spec, backend="deepspeed")


def join(spec: RankSpec, init_method: str) -> None:
    from trainer.deepspeed.start import join_ranks

    torch.set_num_threads(1)
    join_ranks(spec, init_method, torch.device("cpu"))


def build(spec: RankSpec) -> Any:
    from trainer.deepspeed.training import Training

    return Training(spec, torch.device("cpu"))


def own_shard(
    training: Any, rows: Sequence[TrainRow], plan: BatchPlan, columns: Sequence[str]
) -> RowShard:
    return cut(rows, plan, columns)[training.info().data_rank]


def update(
    training: Any, rows: Sequence[TrainRow], plan: BatchPlan, *, step: int
) -> dict[str, float]:
    """As `RankedRole.update` calls it."""
    columns = COLUMNS[type(training.spec.objective)]
    actions = sum(int(row.loss_mask.sum()) for row in rows)
    result: dict[str, float] = training.update(
        own_shard(training, rows, plan, columns), step=step, actions=actions
    )
    return result


def parameters(training: Any) -> dict[str, np.ndarray[Any, Any]]:
    """Whole tensors by Hugging Face name, on rank 0; collective."""
    return {name: t.float().numpy().copy() for name, t in training.exported.tensors()}
