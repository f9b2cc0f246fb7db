"""What a critic's value head gives: one number, or logits over bins of values. Kept in the model's config.

`value_bins` in a critic's `config.json` is {count, lowest, highest, sigma}; without it the head has one
output. A head means nothing without its bins, so they travel with the weights.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from rlframe.config.schema import ValueLossConfig
from rlframe.errors import UserError

VALUE_BINS = "value_bins"


def value_outputs(hf_config: Mapping[str, Any]) -> int:
    """Raises UserError, with the key, for bins that are none."""
    bins = hf_config.get(VALUE_BINS)
    if bins is None:
        return 1
    count = bins.get("count") if isinstance(bins, Mapping) else None
    if not isinstance(count, int) or isinstance(count, bool) or count < 2:
        raise UserError(f"model config: {VALUE_BINS}={bins!r} must have a `count` of 2 or more.")
    return count


def value_bins(config: ValueLossConfig) -> dict[str, Any] | None:
    """Of the configured loss; None for squared error."""
    if config.value_loss == "mse":
        return None
    return {
        "count": config.value_bins,
        "lowest": config.value_low,
        "highest": config.value_high,
        "sigma": config.value_sigma if config.value_loss == "hl_gauss" else 0.0,
    }


def with_value_head(hf_config: Mapping[str, Any], config: ValueLossConfig) -> dict[str, Any]:
    """A critic's model config: that of its backbone, and what its head gives."""
    kept = {name: value for name, value in hf_config.items() if name != VALUE_BINS}
    bins = value_bins(config)
    return kept if bins is None else {**kept, VALUE_BINS: bins}


def value_labels(outputs: int) -> dict[str, str]:
    """`id2label` of a sequence classifier, from which transformers takes the head's size."""
    if outputs == 1:
        return {"0": "value"}
    return {str(k): f"value_{k}" for k in range(outputs)}


def head_mismatch(hf_config: Mapping[str, Any], config: ValueLossConfig) -> str:
    """How the value head of a checkpoint with this config differs from the configured one; empty where it
    does not, or where the checkpoint is no critic's."""
    architecture = str((hf_config.get("architectures") or [""])[0])
    if not architecture.endswith("ForSequenceClassification"):
        return ""
    theirs, ours = hf_config.get(VALUE_BINS), value_bins(config)
    if same_outputs(theirs, ours):
        return ""
    return f"its value head gives {_words(theirs)}, algorithm.value_loss={config.value_loss} wants {_words(ours)}"


def same_outputs(a: Mapping[str, Any] | None, b: Mapping[str, Any] | None) -> bool:
    """The width of HL-Gauss targets may change; what an output stands for may not."""
    if a is None or b is None:
        return a is b
    ends = ("count", "lowest", "highest")
    return [a.get(k) for k in ends] == [b.get(k) for k in ends] and (
        (a.get("sigma", 0.0) > 0) == (b.get("sigma", 0.0) > 0)
    )


def _words(bins: Mapping[str, Any] | None) -> str:
    if bins is None:
        return "one number"
    what = "bins (hl_gauss)" if bins.get("sigma", 0.0) > 0 else "points (two_hot)"
    return f"{bins.get('count')} {what} from {bins.get('lowest')} to {bins.get('highest')}"
