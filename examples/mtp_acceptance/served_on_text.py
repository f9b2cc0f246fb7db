"""What serving does to a layer: exact acceptance probabilities of the serving form on the text's own tokens.

    python examples/mtp_acceptance/run.py --models DIR
    python examples/mtp_acceptance/served_on_text.py DIR

Each layer is served as it was trained, and in the other form: with rows and ids of its own at each step, or
those of step 1. No token is drawn, so the figures of one text differ by the layers alone.
"""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import load_file
from torch import Tensor

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))
from examples.mtp_acceptance.settings import VARIANTS, Settings, load_settings
from examples.stdlib_text.corpus import Ids, even_windows, load_corpus
from rlframe.model_shapes.glm import GlmShape
from trainer.losses.mtp import expected_drafts
from trainer.models.glm.cached_decoding import PREFILL_TOKENS, CachedMtp, CachedTarget

WINDOWS, CONTEXT, POSITIONS = 128, 200, 16
"""Drafts begin at POSITIONS places of each window, after CONTEXT tokens."""


def main() -> int:
    settings, models = load_settings(), Path(sys.argv[1])
    text = load_corpus(settings.vocab_size).held_out
    for seed in settings.seeds:
        for name, variant in VARIANTS.items():
            path = models / f"trunk_{seed}_{name}"
            tensors = {n: t for f in path.glob("*.safetensors") for n, t in load_file(f).items()}
            for shares in (variant.shares, not variant.shares):
                drawn, likeliest = served(settings, tensors, text, shares=shares)
                print(
                    f"seed {seed} {name:10} rows {'shared' if shares else 'own':7}"
                    f"rejection {1 + expected_drafts(drawn).mean():.4f}  "
                    f"target_only {1 + expected_drafts(likeliest).mean():.4f}  "
                    f"steps {[round(x, 3) for x in drawn.mean(1).tolist()]}",
                    flush=True,
                )
    return 0


@torch.no_grad()
def served(
    settings: Settings, tensors: dict[str, Tensor], text: Ids, *, shares: bool
) -> tuple[Tensor, Tensor]:
    """Acceptance probabilities [K, positions] of a drawn draft and of the likeliest one."""
    shape = GlmShape.from_hf(settings.hf_config(shares=shares))
    length = CONTEXT + POSITIONS + settings.drafts
    windows = even_windows(text, count=WINDOWS, length=length + 1)
    tokens = torch.from_numpy(np.stack(windows)).long()
    target = CachedTarget(shape, tensors, batch=WINDOWS, capacity=length)
    mtp = CachedMtp(shape, tensors, batch=WINDOWS, capacity=length)
    logits = []
    for at in torch.arange(length).split(PREFILL_TOKENS):
        positions = at.expand(WINDOWS, -1)
        hidden = target.forward(tokens[:, at], positions)
        mtp.extend(tokens[:, at + 1], hidden, positions)
        logits.append(target.logits(hidden))
    p = torch.cat(logits, dim=1).softmax(-1)
    drawn, likeliest = [], []
    # From the last place to the first: drafts overwrite rows behind their place only.
    for rows in range(CONTEXT + POSITIONS - 1, CONTEXT - 1, -1):
        state = mtp.begin(torch.full((WINDOWS,), rows))
        for k in range(1, settings.drafts + 1):
            if k > 1:
                state = mtp.step(tokens[:, rows - 1 + k])
            q, wanted = target.logits(state).softmax(-1), p[:, rows - 1 + k]
            drawn.append(torch.minimum(wanted, q).sum(-1))
            likeliest.append(wanted.gather(1, q.argmax(-1, keepdim=True)).squeeze(1))
    columns = (POSITIONS, settings.drafts, WINDOWS)
    return tuple(  # type: ignore[return-value]
        torch.stack(x).view(columns).transpose(0, 1).flatten(1) for x in (drawn, likeliest)
    )


if __name__ == "__main__":
    sys.exit(main())
