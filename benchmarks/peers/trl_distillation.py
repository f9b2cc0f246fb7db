"""TRL's on-policy distillation (trl 1.16.0) on one of the benchmark's shapes, a step whenever asked for.

    python trl_distillation.py distillation tiny 1       # in the environment that has trl; or gkd
    python trl_distillation.py value logits.npz          # generalized JSD of given logits, by TRL's own definition

Student and teacher have random weights; the answers have a fixed length.
"""

from __future__ import annotations

import json
import sys
import tempfile
from pathlib import Path

import numpy as np
import torch
from datasets import Dataset
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import AutoModelForCausalLM, PreTrainedTokenizerFast, Qwen3Config
from trl import DistillationConfig, DistillationTrainer
from trl.experimental.gkd import GKDConfig, GKDTrainer

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))
from benchmarks.peers.on_request import OnRequest
from benchmarks.peers.shapes import SHAPES, Shape

MANY_STEPS = 10_000
BETA = 0.5
TEMPLATE = "{% for m in messages %}{{ m['content'] + ' ' }}{% endfor %}"


def tokenizer_of(shape: Shape) -> PreTrainedTokenizerFast:
    """As many words as the vocabulary has."""
    words = {f"w{i}": i for i in range(shape.vocabulary)}
    inner = Tokenizer(models.WordLevel(words, unk_token="w3"))
    inner.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    made = PreTrainedTokenizerFast(
        tokenizer_object=inner, pad_token="w0", eos_token="w2", padding_side="left"
    )
    made.chat_template = TEMPLATE
    return made


def prompts_of(shape: Shape) -> list[str]:
    ids = torch.randint(3, shape.vocabulary, (shape.rollouts * 8, shape.prompt))
    return [" ".join(f"w{i}" for i in row) for row in ids.tolist()]


def common(shape: Shape, directory: str) -> dict[str, object]:
    return {
        "output_dir": directory,
        "per_device_train_batch_size": shape.rollouts,
        "gradient_accumulation_steps": 1,
        "max_steps": MANY_STEPS,
        "temperature": 1.0,
        "beta": BETA,
        "learning_rate": 1e-5,
        "use_cpu": True,
        "bf16": False,
        "gradient_checkpointing": False,
        "report_to": [],
        "save_strategy": "no",
        "logging_strategy": "no",
    }


def distillation(shape: Shape, directory: str, asked: OnRequest) -> DistillationTrainer:
    arguments = DistillationConfig(
        **common(shape, directory),
        max_completion_length=shape.new_tokens,
        generation_kwargs={"min_new_tokens": shape.new_tokens},
    )
    return DistillationTrainer(
        model=AutoModelForCausalLM.from_config(Qwen3Config(**shape.qwen3())),
        teacher_model=AutoModelForCausalLM.from_config(Qwen3Config(**shape.qwen3())),
        args=arguments,
        train_dataset=Dataset.from_dict({"prompt": prompts_of(shape)}),
        processing_class=tokenizer_of(shape),
        callbacks=[asked],
    )


def gkd(shape: Shape, directory: str, asked: OnRequest) -> GKDTrainer:
    arguments = GKDConfig(
        **common(shape, directory), lmbda=1.0, max_new_tokens=shape.new_tokens, max_length=256
    )
    conversations = [
        [{"role": "user", "content": p}, {"role": "assistant", "content": "w5"}]
        for p in prompts_of(shape)
    ]
    trainer = GKDTrainer(
        model=AutoModelForCausalLM.from_config(Qwen3Config(**shape.qwen3())),
        teacher_model=AutoModelForCausalLM.from_config(Qwen3Config(**shape.qwen3())),
        args=arguments,
        train_dataset=Dataset.from_dict({"messages": conversations}),
        processing_class=tokenizer_of(shape),
        callbacks=[asked],
    )
    trainer.generation_config.min_new_tokens = shape.new_tokens
    return trainer


def values(path: str) -> None:
    """Mean over positions, by beta."""
    given = np.load(path)
    student, teacher = torch.from_numpy(given["student"]), torch.from_numpy(given["teacher"])
    found = {
        str(beta): float(
            GKDTrainer.generalized_jsd_loss(
                student[None], teacher[None], beta=beta, reduction="sum"
            )
            / len(student)
        )
        for beta in given["betas"].tolist()
    }
    print(json.dumps({"peer": "values", **found}), flush=True)


def main() -> None:
    if sys.argv[1] == "value":
        return values(sys.argv[2])
    shape = SHAPES[sys.argv[2]]
    torch.set_num_threads(int(sys.argv[3]))
    torch.manual_seed(0)
    asked = OnRequest(shape.rollouts * shape.new_tokens)
    with tempfile.TemporaryDirectory() as directory:
        make = {"distillation": distillation, "gkd": gkd}[sys.argv[1]]
        trainer = make(shape, directory, asked)
        print(json.dumps({"peer": "ready"}), flush=True)
        asked.wait()
        trainer.train()
    return None


if __name__ == "__main__":
    main()
