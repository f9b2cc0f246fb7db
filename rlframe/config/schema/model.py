"""The model that learns."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from rlframe.config.knob import knob

Dict = dict[str, Any]


@dataclass
class ModelConfig:
    """The model that learns (and the start of the critic)."""

    path: str = knob(
        "",
        help="Hugging Face checkpoint directory to start from; empty: random weights from `hf_config`",
    )
    hf_config: Dict = knob(
        factory=dict,
        help="fields of the transformers config (with `model_type`), for random weights",
    )
    tokenizer: str = knob(
        "",
        help="tokenizer directory; empty: the one in `path`; `build`: train one on the env's texts",
    )
    tokenizer_vocab_size: int = knob(
        512, help="vocabulary of a tokenizer that is built", unit="tokens", minimum=260
    )
    dtype: str = knob(
        "float32", help="dtype of weights in training and serving", allowed=("float32", "bfloat16")
    )
    init_seed: int = knob(1234, help="seed of random weights and of a new value head")
