"""Runs under transformers 5.23.0 (see `oracle.py`): a GLM-5 checkpoint's logits, ids and gradients.

Asked: `path` of a checkpoint, `rows` (token ids, one tensor a sequence), `weights` [vocabulary] of the
loss sum((logits * weights)^2), `save_to` a directory (or ""). Answers: `logits` of all rows end to end
[tokens, vocabulary]; `ids` per layer, one list of sets of positions a token, within its row; `gradients`
by checkpoint name.
"""

from __future__ import annotations

import sys
from typing import Any

import torch
from transformers import GlmMoeDsaForCausalLM
from transformers.utils import logging


def main(asked: str, answered: str) -> None:
    logging.set_verbosity_error()
    question = torch.load(asked)
    model = GlmMoeDsaForCausalLM.from_pretrained(
        question["path"], dtype=torch.float32, attn_implementation="eager"
    ).eval()
    model.config._experts_implementation = "eager"
    if question["save_to"]:
        model.save_pretrained(question["save_to"])
    ids: dict[int, list[set[int]]] = {}
    for number, layer in enumerate(model.model.layers):
        layer.self_attn.register_forward_hook(_recorder(ids, number))
    logits = torch.cat([model(row[None], use_cache=False).logits[0] for row in question["rows"]])
    (logits * question["weights"]).square().sum().backward()
    gradients = {n: p.grad for n, p in model.named_parameters() if p.grad is not None}
    answer = {"logits": logits.detach(), "ids": ids, "gradients": _by_expert(gradients)}
    torch.save(answer, answered)


def _recorder(ids: dict[int, list[set[int]]], number: int) -> Any:
    def record(module: Any, inputs: Any, output: Any) -> None:
        chosen = output[2][0].tolist()
        # It may name rows after the token, which its mask hides.
        ids.setdefault(number, []).extend(
            {s for s in row if s <= t} for t, row in enumerate(chosen)
        )

    return record


def _by_expert(gradients: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """In memory, experts are one tensor [experts, 2 * ffn, hidden] and one [experts, hidden, ffn]."""
    split: dict[str, torch.Tensor] = {}
    for name, gradient in gradients.items():
        prefix, _, kind = name.rpartition(".")
        if prefix.endswith(".experts"):
            for expert, one in enumerate(gradient):
                parts = {"gate": one.chunk(2)[0], "up": one.chunk(2)[1]}
                parts = parts if kind == "gate_up_proj" else {"down": one}
                for part, tensor in parts.items():
                    split[f"{prefix}.{expert}.{part}_proj.weight"] = tensor.clone()
        else:
            split[name] = gradient
    return split


if __name__ == "__main__":
    main(*sys.argv[1:])
