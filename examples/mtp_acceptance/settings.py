"""What the example does, read from `settings.yaml` beside it; and the four rows."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from trainer.speculative import Rule


@dataclass(frozen=True)
class Settings:
    seeds: list[int]
    vocab_size: int
    length: int
    sequences: int
    trunk_steps: int
    trunk_lr: float
    mtp_steps: int
    mtp_lr: float
    cold_start_steps: int
    drafts: int
    prompts: int
    prompt_length: int
    rounds: int
    model: dict[str, Any]

    def hf_config(self, *, shares: bool) -> dict[str, Any]:
        return {
            **self.model,
            "vocab_size": self.vocab_size,
            "index_share_for_mtp_iteration": shares,
        }


@dataclass(frozen=True)
class MtpVariant:
    """One MTP layer that is trained."""

    shares: bool  # rows and ids of step 1 for all steps (GLM-5.2)
    loss: str


@dataclass(frozen=True)
class Row:
    """One line of the ablation: which layer drafts, and by which rule its drafts are judged."""

    method: str
    label: str
    variant: str
    rule: Rule


VARIANTS = {
    "own_ce": MtpVariant(shares=False, loss="ce"),
    "shared_ce": MtpVariant(shares=True, loss="ce"),
    "shared_tv": MtpVariant(shares=True, loss="e2e_tv"),
}
ROWS = (
    Row("baseline", "GLM-5.1 style", "own_ce", "target_only"),
    Row("index_kv_share", "+ IndexShare, KVShare", "shared_ce", "target_only"),
    Row("rejection_sampling", "+ rejection sampling", "shared_ce", "rejection"),
    Row("tv_loss", "+ end-to-end TV loss", "shared_tv", "rejection"),
)


def load_settings() -> Settings:
    path = Path(__file__).with_name("settings.yaml")
    return Settings(**yaml.safe_load(path.read_text()))
