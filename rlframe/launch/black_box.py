"""What black-box attempts need, from the configuration."""

from __future__ import annotations

from pathlib import Path

from rlframe.config.schema import RolloutConfig
from rollout.worker_spec import BlackBoxSpec


def black_box_spec(rollout: RolloutConfig) -> BlackBoxSpec:
    """`spec.check()` raises UserError for an unknown program, one that is not installed, and where
    there is no bubblewrap."""
    return BlackBoxSpec(
        program=rollout.black_box.program,
        programs_directory=str(Path(rollout.black_box.programs_directory).absolute()),
        max_calls=rollout.black_box.max_calls,
        max_output_tokens=rollout.black_box.max_output_tokens,
    )
