"""TRL's PPOTrainer (trl 1.10.0) on one of the benchmark's shapes, a step whenever asked for.

    python trl_ppo.py tiny 1        # in the environment that has trl; shape, threads

Its training loop is one function; a callback at the end of each step answers and waits for the next line.
"""

from __future__ import annotations

import json
import sys
import tempfile
from pathlib import Path

import torch
from datasets import Dataset
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import (
    AutoModelForCausalLM,
    AutoModelForSequenceClassification,
    PreTrainedTokenizerFast,
    Qwen3Config,
)
from trl.experimental.ppo import PPOConfig, PPOTrainer

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))
from benchmarks.peers.on_request import OnRequest
from benchmarks.peers.shapes import SHAPES, Shape

MANY_STEPS = 10_000


def tokenizer_of(shape: Shape) -> PreTrainedTokenizerFast:
    """As many words as the vocabulary has; the trainer needs one to decode and to pad with."""
    words = {f"w{i}": i for i in range(shape.vocabulary)}
    inner = Tokenizer(models.WordLevel(words, unk_token="w3"))
    inner.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return PreTrainedTokenizerFast(tokenizer_object=inner, pad_token="w0", eos_token="w2")


def main() -> None:
    shape = SHAPES[sys.argv[1]]
    torch.set_num_threads(int(sys.argv[2]))
    torch.manual_seed(0)
    config = Qwen3Config(**shape.qwen3(), num_labels=1)
    prompts = torch.randint(3, shape.vocabulary, (shape.rollouts * 8, shape.prompt)).tolist()
    data = Dataset.from_dict({"input_ids": prompts})
    asked = OnRequest(shape.rollouts * shape.new_tokens)
    with tempfile.TemporaryDirectory() as directory:
        trainer = PPOTrainer(
            args=PPOConfig(
                output_dir=directory,
                per_device_train_batch_size=shape.rollouts,
                gradient_accumulation_steps=1,
                num_mini_batches=1,
                num_ppo_epochs=1,
                total_episodes=shape.rollouts * MANY_STEPS,
                local_rollout_forward_batch_size=shape.rollouts,
                response_length=shape.new_tokens,
                temperature=1.0,
                learning_rate=1e-5,
                num_sample_generations=0,
                use_cpu=True,
                bf16=False,
                report_to=[],
                save_strategy="no",
                logging_strategy="no",
            ),
            processing_class=tokenizer_of(shape),
            model=AutoModelForCausalLM.from_config(config),
            ref_model=AutoModelForCausalLM.from_config(config),
            reward_model=AutoModelForSequenceClassification.from_config(config),
            value_model=AutoModelForSequenceClassification.from_config(config),
            train_dataset=data,
            eval_dataset=data.select(range(shape.rollouts)),
            callbacks=[asked],
        )
        print(json.dumps({"peer": "ready"}), flush=True)
        asked.wait()
        trainer.train()


if __name__ == "__main__":
    main()
