"""The verbs of `rlframe` and their flags. A mistake in them is a UserError with the nearest name."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from typing import Any, NoReturn

from rlframe.config import keys
from rlframe.config.search import ConfigFolders
from rlframe.errors import UserError, nearest

DESCRIPTION = "Distributed agentic-RL training: SGLang rollouts, critic-based PPO on Megatron-core."
START = """start here:
  rlframe doctor                                     what this machine has and lacks
  rlframe train experiment=sft_tiny                  teach a tiny model from demonstrations
  rlframe train experiment=smoke                     then make it better by PPO
  rlframe distill experiment=merge_experts           merge experts into one student
  rlframe eval eval=smoke model.path=runs/smoke      measure it, with errors
  rlframe inspect runs/smoke                         look at what happened
  rlframe replay runs/smoke 12                       train one step again, to see why it went as it did
  rlframe plan model=glm_5_2                         what a big model would cost
  rlframe convert SRC DST --dtype bfloat16           checkpoints, in and out of FP8

`rlframe COMMAND --help` shows each command's examples.
"""
TRAIN = """examples:
  rlframe train experiment=sft_tiny                  the smoke model's warm start
  rlframe train experiment=smoke                     PPO on it, on a CPU or a GPU
  rlframe train experiment=smoke steps=50 seed=1     any key may be overridden
  rlframe train experiment=smoke --dry-run           check everything, start nothing
  rlframe train experiment=smoke resume=must         go on where runs/smoke stopped (auto: if it did)
  rlframe train experiment=mine --config-dir ~/configs     your own ~/configs/experiment/mine.yaml
  rlframe train model.path=/models/Qwen3-0.6B env=dataset env.args.path=my.jsonl name=first
  rlframe train experiment=smoke 'name="a b"'        text with spaces or commas is quoted twice
  rlframe train experiment=smoke rollout.engine_args.mem_fraction_static=0.5
                                                     options of SGLang, Megatron, Ray by their own names

groups and their options (GROUP=OPTION takes configs/GROUP/OPTION.yaml):
{groups}

`rlframe explain` lists all keys; `rlframe explain KEY` says what one means and where its value comes from.
"""
DISTILL = """examples:
  rlframe distill experiment=merge_experts           twelve tiny experts into one (examples/merge_experts makes them)
  rlframe distill experiment=merge_experts --dry-run check teachers, vocabularies, memory; start nothing
  rlframe distill model.path=STUDENT env=... teachers.manifest=teachers.yaml teachers.engines=2
                                                     a student of yours, and its teachers on two engines
  rlframe distill ... algorithm.objective=jsd algorithm.top_k=64
                                                     a divergence over the teacher's 64 likeliest tokens as the loss
  rlframe distill ... algorithm.objective=reverse_kl algorithm.teachers_on=ranks
                                                     the whole vocabulary, teachers' weights on the policy's ranks
  rlframe distill ... algorithm.task_reward=true algorithm.distill_coef=0.1
                                                     PPO on the task's reward, with the teachers beside it
  rlframe distill ... 'algorithm.domain_weights={gcd: 2}' 'algorithm.curriculum={from_0: {gcd: 1}, from_50: {gcd: 1, aiw: 3}}'

the manifest (teachers.yaml) says who teaches which domain:
  teachers:
    - {name: arithmetic, checkpoint: runs/arithmetic/hf, domains: [gcd, lcm]}
    - {name: generalist, url: "http://10.0.0.7:30000", tokenizer: models/generalist, domains: ["*"], weight: 0.5}

The student samples; each finished trace is scored by the teacher of its domain, in exactly its tokens, while others
still run. It is `rlframe train` with algorithm=opd: the same keys, run directory, resume and live view. At the end
the run directory has distillation.json, .csv and .png: by domain the student before and after, its teacher, the best
single teacher, the average of the teachers' weights, KL to the teacher, and what was forgotten.
"""
EVAL = """examples:
  rlframe eval eval=smoke model.path=runs/smoke_0    what a run has learnt: its hf/, 4 attempts a task
  rlframe eval model.path=/models/Qwen3-0.6B env=dataset env.args.path=my.jsonl eval.repeats=8
  rlframe eval eval=smoke model.path=runs/smoke_0 \\
      'eval.suites={{puzzles: smoke_puzzles, mine: {{name: dataset, args: {{path: my.jsonl}}, held_out: 64}}}}'
                                                     several suites at once, each with its own figures
  rlframe eval eval=terminal_bench model.path=... env=...     a benchmark's footnotes, pinned
  rlframe eval eval=reasoning eval.effort=max model.path=...  an effort: template variables and budgets
  rlframe eval eval=smoke model.path=runs/smoke_0 --dry-run   what would be made; starts nothing
  rlframe eval compare runs/eval_smoke_sft_tiny runs/eval_smoke_smoke_0
                                                     is the second better? paired by task
  rlframe eval compare A B --despite eval.effort,rollout.template_args
                                                     although these settings differ

Engines alone start, no rank. What ends is kept (run_dir/trajectories.sqlite): after whatever stopped it, the
same command makes what is missing. Settings that may move a score are pinned: another one in the same directory
is refused by name. Result: a table, run_dir/eval.json and eval.png.

presets (eval=NAME): {presets}
groups and their options are those of `rlframe train`.
"""
EXPLAIN = """examples:
  rlframe explain                                    all keys
  rlframe explain trainer.policy                     the keys of one section
  rlframe explain trainer.policy.lr experiment=smoke where a value comes from, its unit, what is allowed
  rlframe explain rollout.engine_args.mem_fraction_static
                                                     an option of SGLang, from the installed version
"""
PLAN = """examples:
  rlframe plan model=glm_5_2                         parameters, operations, KV cache, training memory
  rlframe plan model.path=/models/Qwen3-0.6B         of a checkpoint: only its config.json is read
  rlframe plan model=glm_5_2 --contexts 8K,200K,1M   at these positions
  rlframe plan model=glm_5_2 --averaged              a mean token of a prompt, not its last one
  rlframe plan model=glm_5_2 model.dtype=bfloat16 trainer.max_tokens_per_micro_batch=32768 \\
      'trainer.policy.layout={data:16,pipeline:16,expert:16}'
                                                     memory of the ranks of this layout
  rlframe plan model=glm_5_2 --count                 beside the formulas, a count on the real modules
  rlframe plan model=glm_5_2 --json plan.json --plot plan.png
                                                     for a program, and for a page

Nothing is started or downloaded. All figures are formulas; `--count` counts parameters and operations a second
time, on the real modules. `rlframe train ... --dry-run` shows what a whole run would start.
"""
CONFIG = """examples:
  rlframe config experiment=smoke                    the resolved configuration, as a run would save it
  rlframe config experiment=smoke seed=1 > mine.yaml
  rlframe config --reference                         all keys as a Markdown table
"""
CONVERT = """examples:
  rlframe convert GLM-5.2-FP8 GLM-5.2-BF16 --dtype bfloat16
                                                     FP8 block scales multiplied out
  rlframe convert GLM-5.2-BF16 GLM-5.2-FP8 --dtype float8
                                                     and in again: e4m3, a scale for each block of 128 x 128
  rlframe convert runs/mine out                      a run's latest checkpoint as a Hugging Face checkpoint
  rlframe convert runs/mine out --step 40 --role critic
  rlframe convert runs/mine out --mtp-from GLM-5.2-BF16
                                                     with the MTP layer that the run did not train
  rlframe convert SRC DST --max-shard-size 2GB       the same numbers in other files
  rlframe convert SRC DST --drop-mtp                 without the multi-token-prediction layer
  rlframe convert SRC --check                        all that is missing, too much, mis-shaped or not a number

Memory does not grow with the model: tensors are read, converted and written in parts. DST appears when it is
complete; after an interruption the same command goes on with the file that it was at.
"""
INSPECT = """examples:
  rlframe inspect runs/smoke                         the result, the curve, the latest trajectories
  rlframe inspect runs/smoke --trajectory ID         one conversation, its trained tokens marked
  rlframe inspect runs/smoke --export all.parquet    for pandas or DuckDB
"""
REPLAY = """examples:
  rlframe replay runs/smoke 12                       step 12 again, from the checkpoint before it

The ranks start and no engines: the batches are those that the run recorded, and every step from the latest
checkpoint before STEP on is trained again, as a resumed run does (on a CPU to the bit). Prints the step's figures
beside those that the run logged. The run itself is left as it is.
"""
GUARD = """examples:
  rlframe guard audit runs/mine                      every verdict of a run, and what they come to
  rlframe guard audit runs/mine --json events.jsonl
  rlframe guard score cases.jsonl                    recall, precision, false blocks, time, by category
  rlframe guard score cases.jsonl guard=judge guard.judge.url=http://127.0.0.1:8000/v1 guard.judge.model=m

A labelled call: {"id", "tool", "arguments", "context": {"task_description", "protected_paths", "network"},
"label": "hack" or "benign", "category"}.
"""


def read_arguments(argv: Sequence[str]) -> argparse.Namespace:
    """The verb and what was given to it. Overrides and flags may stand in any order."""
    parser, verbs = _parsers()
    if argv and not argv[0].startswith("-") and argv[0] not in verbs:
        if "=" in argv[0]:
            raise UserError(
                f"the command is missing. Did you mean `rlframe train {' '.join(argv)}`?"
            )
        raise UserError(
            f"unknown command '{argv[0]}'.{nearest(argv[0], verbs)} `rlframe --help` lists them"
        )
    given, rest = parser.parse_known_args(argv)
    for text in rest:
        if text.startswith("-") or "overrides" not in given:
            raise _unexpected(text, verbs.get(given.verb, parser))
        given.overrides.append(text)
    if given.verb == "explain" and "=" in given.key:
        given.overrides.insert(0, given.key)
        given.key = ""
    return given


class _Parser(argparse.ArgumentParser):
    """Examples as they are written, no abbreviated flags, mistakes as UserError."""

    def __init__(self, **settings: Any) -> None:
        super().__init__(
            formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False, **settings
        )

    def error(self, message: str) -> NoReturn:
        raise UserError(f"{message} (`{self.prog} --help` shows examples)")


def _parsers() -> tuple[_Parser, dict[str, _Parser]]:
    parser = _Parser(prog="rlframe", description=DESCRIPTION, epilog=START)
    made = parser.add_subparsers(dest="verb", metavar="COMMAND", parser_class=_Parser)
    verbs: dict[str, _Parser] = {}

    def verb(name: str, help: str, examples: str = "") -> _Parser:
        verbs[name] = made.add_parser(name, help=help, description=help, epilog=examples)
        return verbs[name]

    train = verb("train", "run a job from a configuration", TRAIN.format(groups=_groups()))
    train.add_argument(
        "--dry-run", action="store_true", help="check and show the plan; start nothing"
    )
    distill = verb("distill", "merge teachers into a student, on its own rollouts", DISTILL)
    distill.add_argument(
        "--dry-run", action="store_true", help="check and show the plan; start nothing"
    )
    measure = verb(
        "eval",
        "measure a checkpoint on suites of tasks; compare two",
        EVAL.format(presets=_presets()),
    )
    measure.add_argument(
        "--dry-run", action="store_true", help="check and show the plan; start nothing"
    )
    measure.add_argument(
        "--despite", metavar="KEYS", default="", help="compare: pinned settings that may differ"
    )
    measure.add_argument("--json", metavar="FILE", help="compare: write it to this file too")
    measure.add_argument("--plot", metavar="FILE", help="compare: write a picture (PNG)")
    explain = verb("explain", "what a key means and where its value comes from", EXPLAIN)
    explain.add_argument(
        "key", nargs="?", default="", help="e.g. trainer.policy.lr; none: list all"
    )
    config = verb("config", "print the resolved configuration", CONFIG)
    config.add_argument("--reference", action="store_true", help="all keys as a Markdown table")
    plan = verb("plan", "what a model costs: parameters, operations, memory", PLAN)
    plan.add_argument("--contexts", metavar="LIST", help="positions, such as 4K,128K,1M")
    plan.add_argument(
        "--averaged", action="store_true", help="operations of a mean token of a prompt"
    )
    plan.add_argument("--json", metavar="FILE", help="write everything to this file")
    plan.add_argument(
        "--count", action="store_true", help="also count on the real modules (loads Megatron)"
    )
    plan.add_argument("--plot", metavar="FILE", help="write a picture (PNG)")
    guard = verb("guard", "what the guard said in a run, or of labelled calls", GUARD)
    guard.add_argument("what", choices=("audit", "score"))
    guard.add_argument("path", metavar="RUN|FILE", help="run directory, or JSONL of labelled calls")
    guard.add_argument(
        "--json", metavar="FILE", help="write the events or the figures to this file"
    )
    for taking in (train, distill, measure, explain, config, plan, guard):
        taking.add_argument("overrides", nargs="*", metavar="key=value", help="what to change")
        taking.add_argument("--config-dir", metavar="DIR", help="a folder with groups of your own")
    convert = verb("convert", "rewrite or check a checkpoint, tensor by tensor", CONVERT)
    convert.add_argument("source", help="Hugging Face checkpoint, run directory, or saved role")
    convert.add_argument("target", nargs="?", help="directory to write; must not exist")
    convert.add_argument(
        "--dtype", choices=("float32", "bfloat16", "float8"), help="default: as it is stored"
    )
    convert.add_argument(
        "--max-shard-size", default="5GB", metavar="SIZE", help="of one file (default 5GB)"
    )
    convert.add_argument("--drop-mtp", action="store_true", help="leave out the MTP layer")
    convert.add_argument(
        "--mtp-from", metavar="DIR", help="take the MTP layer from this Hugging Face checkpoint"
    )
    convert.add_argument("--step", type=int, help="of a run's checkpoint; default: the latest")
    convert.add_argument("--role", default="policy", choices=("policy", "critic"))
    convert.add_argument("--check", action="store_true", help="write nothing, check everything")
    inspect = verb("inspect", "look into a run directory", INSPECT)
    inspect.add_argument("run_dir")
    inspect.add_argument("--trajectory", help="show one trajectory, its trained tokens marked")
    inspect.add_argument("--export", help="write all trajectories to this Parquet file")
    inspect.add_argument("--picture", help="write the terminal view to this SVG file")
    replay = verb("replay", "train one step of a run again, without engines", REPLAY)
    replay.add_argument("run_dir")
    replay.add_argument("step", type=int, help="as the run counts them, from 1 on")
    verb("doctor", "what this machine has, what it lacks, and how to mend it")
    return parser, verbs


def _presets() -> str:
    return ", ".join(ConfigFolders().options_of("eval"))


def _groups() -> str:
    folders = ConfigFolders()
    return "\n".join(
        f"  {g:<11} {', '.join(folders.options_of(g))}" for g in keys.GROUPS if g != "eval"
    )


def _unexpected(text: str, parser: _Parser) -> UserError:
    if not text.startswith("-"):
        return UserError(f"'{text}' is one argument too many (`{parser.prog} --help`)")
    flags = [flag for flag in parser._option_string_actions if flag.startswith("--")]
    return UserError(f"unknown option '{text.split('=')[0]}'.{nearest(text, flags)}")
