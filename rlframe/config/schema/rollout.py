"""Engines, and how attempts are made on them."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from rlframe.config.knob import knob

Dict = dict[str, Any]


@dataclass
class SamplingConfig:
    """Sampling parameters, by SGLang's own names. The client never chooses them."""

    temperature: float = knob(1.0, help="softmax temperature", minimum=0.0)
    top_p: float = knob(
        1.0,
        help="nucleus; anything but 1.0 makes rollout logprobs differ from the trainer's",
        minimum=0.0,
        maximum=1.0,
    )
    top_k: int = knob(-1, help="-1: off")
    max_new_tokens: int = knob(256, help="of one turn", unit="tokens", minimum=1)
    ignore_eos: bool = knob(
        False, help="sample on after the end of a turn, up to max_new_tokens (benchmarks)"
    )


@dataclass
class CompactionConfig:
    """When the framework compacts a context, and what stays. Off unless a trigger is set."""

    at_share: float = knob(
        0.0,
        help="compact when the next prompt takes more than this share of max_context_tokens; 0: never",
        minimum=0.0,
        maximum=1.0,
    )
    every_turns: int = knob(
        0, help="compact after so many turns in one context; 0: never", unit="turns", minimum=0
    )
    by_tool: bool = knob(
        False, help="the policy gets a tool, compact_context, and compacts when it wants to"
    )
    keep_turns: int = knob(
        1, help="last turns that stay as they were after the summary", unit="turns", minimum=0
    )
    max_summary_tokens: int = knob(512, help="of one summary", unit="tokens", minimum=1)
    instruction: str = knob("", help="what asks the policy for the summary; empty: the default")


@dataclass
class SubAgentsConfig:
    """Sub-agents that the policy spawns by a tool call (`mode=white_box`). Off unless max_agents is set."""

    max_agents: int = knob(0, help="of one attempt; 0: there is no such tool", minimum=0)
    max_depth: int = knob(1, help="1: sub-agents spawn none themselves", minimum=1)
    max_turns: int = knob(8, help="of one sub-agent", unit="turns", minimum=1)
    system_prompt: str = knob("", help="what a sub-agent is told first; empty: the default")


@dataclass
class BlackBoxConfig:
    """The agent program that does the work (`mode=black_box`), and what it may use."""

    program: str = knob("", help="which agent program: mini_swe_agent, claude_code, codex, ...")
    programs_directory: str = knob(
        ".agents", help="where scripts/install_agents.py has put the programs"
    )
    max_calls: int = knob(200, help="model calls of one attempt", unit="calls", minimum=1)
    max_output_tokens: int = knob(
        200_000, help="sampled in all calls of one attempt together", unit="tokens", minimum=1
    )


@dataclass
class RolloutConfig:
    """Engines, and how attempts are made on them."""

    mode: str = knob(
        "white_box",
        help="who drives the loop: the framework, or an agent program through the gateway",
        allowed=("white_box", "black_box"),
    )
    engines: int = knob(1, help="SGLang servers", minimum=1)
    eval_engines: int = knob(
        0,
        help="engines for held-out attempts alone, which then run in the background by the weights that they "
        "began with; 0: they go to the other engines, and the steps wait for them",
        minimum=0,
    )
    engine_args: Dict = knob(
        factory=dict,
        help="SGLang server arguments, by their own names (sglang.srt.server_args.ServerArgs)",
    )
    router: bool = knob(True, help="put sglang-router before the engines (always on with several)")
    router_args: Dict = knob(factory=dict, help="sglang-router arguments, by their own names")
    sampling: SamplingConfig = field(default_factory=SamplingConfig)
    compaction: CompactionConfig = field(default_factory=CompactionConfig)
    sub_agents: SubAgentsConfig = field(default_factory=SubAgentsConfig)
    black_box: BlackBoxConfig = field(default_factory=BlackBoxConfig)
    call_logs: bool = knob(
        True, help="keep every model call of every attempt in `run_dir/calls` (rlframe.capture)"
    )
    tool_call_parser: str = knob(
        "",
        help="which of SGLang's parsers reads tool calls in the policy's answers (qwen25 for Qwen3, "
        "qwen3_coder for Qwen3.5, glm45 for GLM-4.5 and 4.6, glm47 for GLM-4.7 and 5); empty: none",
    )
    reasoning_parser: str = knob(
        "",
        help="which of SGLang's parsers takes the reasoning out of an answer (qwen3, glm45); empty: none",
    )
    template_args: Dict = knob(
        factory=dict,
        help="variables of the chat template, by its own names (enable_thinking, clear_thinking, ...)",
    )
    max_turns: int = knob(4, help="model calls of one attempt", unit="turns", minimum=1)
    max_context_tokens: int = knob(
        4096, help="prompt and output of one trace together", unit="tokens", minimum=2
    )
    workers: int = knob(
        1,
        help="processes that make attempts, each with an event loop and a CPU core of its own",
        minimum=1,
    )
    max_concurrency: int = knob(256, help="attempts in flight", minimum=1)
    domain_concurrency: Dict = knob(
        factory=dict,
        help="attempts in flight by domain, or by what stands before the domain's slash (the part of "
        "env.name=mixed): {terminal: 16}; others have max_concurrency alone",
    )
    over_admission: float = knob(
        0.0,
        help="attempts beyond a batch, as a share of it: the first to finish make the batch, the rest "
        "are cancelled (against the long tail; favours short attempts)",
        minimum=0.0,
    )
    attempt_timeout_s: float = knob(600.0, help="time limit of one attempt", unit="s", minimum=1)
    request_timeout_s: float = knob(120.0, help="time limit of one model call", unit="s", minimum=1)
    infra_retries: int = knob(
        2, help="how often an attempt that our side lost is made again", minimum=0
    )
    max_lost_share: float = knob(
        0.75,
        help="stop when more than this share of the attempts of the last two batches came to nothing",
        minimum=0.0,
        maximum=1.0,
    )
    partial: bool = knob(
        False, help="let requests run on over a weight update (each token keeps its version)"
    )
    start_timeout_s: float = knob(
        300.0, help="how long an engine may take to start", unit="s", minimum=1
    )
    num_threads: int = knob(1, help="BLAS threads of a CPU engine", minimum=1)
    max_restarts: int = knob(
        3, help="how often a dead engine or router is started again in a run", minimum=0
    )
    hung_after_s: float = knob(
        10.0,
        help="an engine whose scheduler stands still for so long with work to do is started again; "
        "more than its longest forward pass",
        unit="s",
        minimum=2,
    )
