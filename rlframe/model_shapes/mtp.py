"""Whether multi-token prediction can be trained as configured; torch-free, so that a run is checked early."""

from __future__ import annotations

from rlframe.config.schema import LayoutConfig, MtpConfig
from rlframe.errors import UserError
from rlframe.model_shapes.glm import GlmShape


def check_mtp(mtp: MtpConfig, shape: GlmShape | None, layout: LayoutConfig, role: str) -> None:
    """Raises UserError, with the key. `shape` is None for a model of another family."""
    key = f"trainer.{role}.mtp"
    if mtp.mode == "off":
        return
    if role != "policy":
        raise UserError(f"{key}.mode={mtp.mode}: only the policy drafts; leave it 'off'.")
    if shape is None or not shape.mtp_layers:
        raise UserError(
            f"{key}.mode={mtp.mode}: the model has no MTP layer (model.hf_config.num_nextn_predict_layers=1 "
            "of model_type 'glm_moe_dsa')."
        )
    if layout.context > 1:
        raise UserError(
            f"{key}.mode={mtp.mode} with trainer.{role}.layout.context={layout.context}: a draft's inputs are "
            "on another rank; use context=1 (tensor and sequence parallelism cut the same memory)."
        )
    if mtp.mode == "frozen_trunk" and layout.pipeline > 1:
        raise UserError(
            f"{key}.mode=frozen_trunk with trainer.{role}.layout.pipeline={layout.pipeline}: stages without a "
            "gradient can't take part; use pipeline=1, or mode=detached."
        )
