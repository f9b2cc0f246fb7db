"""Every knob of ours. Names of Megatron and SGLang options are theirs, and pass through untouched.

YAML in `configs/` only holds values that differ from these defaults. A component gets its own part,
never the whole.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from rlframe.config.knob import knob

Dict = dict[str, Any]


@dataclass
class ModelConfig:
    """The model that learns (and the start of the critic)."""

    path: str = knob(
        "",
        help="Hugging Face checkpoint directory to start from; empty: random weights from `hf_config`",
    )
    hf_config: Dict = knob(
        factory=dict,
        help="fields of the transformers config (with `model_type`), for random weights",
    )
    tokenizer: str = knob(
        "",
        help="tokenizer directory; empty: the one in `path`; `build`: train one on the env's texts",
    )
    tokenizer_vocab_size: int = knob(
        512, help="vocabulary of a tokenizer that is built", unit="tokens", minimum=260
    )
    dtype: str = knob(
        "float32", help="dtype of weights in training and serving", allowed=("float32", "bfloat16")
    )
    init_seed: int = knob(1234, help="seed of random weights and of a new value head")


@dataclass
class LayoutConfig:
    """How one role's ranks are arranged; world size = data * tensor * context * pipeline."""

    data: int = knob(1, help="data-parallel size", minimum=1)
    tensor: int = knob(1, help="tensor-parallel size", minimum=1)
    pipeline: int = knob(1, help="pipeline-parallel size", minimum=1)
    sequence_parallel: bool = knob(False, help="shard activations over the tensor-parallel ranks")
    context: int = knob(
        1,
        help="context-parallel size: ranks that share the tokens of a micro-batch (GLM)",
        minimum=1,
    )
    expert: int = knob(
        1,
        help="expert-parallel size: over how many of a stage's ranks experts are spread; divides "
        "data * tensor * context (GLM)",
        minimum=1,
    )
    virtual_pipeline: int = knob(
        1, help="parts of each pipeline stage, interleaved (GLM)", minimum=1
    )
    pipeline_layers: str = knob(
        "",
        help="layers of each of the pipeline * virtual_pipeline parts, in order, such as `5+4`; empty: as "
        "even as parts can be that begin with an indexer's layer (GLM)",
    )

    @property
    def world_size(self) -> int:
        return self.data * self.tensor * self.context * self.pipeline


@dataclass
class MtpConfig:
    """Multi-token prediction: training the layer that drafts for speculative decoding (GLM-5 models)."""

    mode: str = knob(
        "off",
        help="off: the layer is neither built nor exported; frozen_trunk: it alone trains; joint: its loss "
        "trains the whole model too; detached: both train, and its loss leaves the rest alone (for RL)",
        allowed=("off", "frozen_trunk", "joint", "detached"),
    )
    steps: int = knob(3, help="drafted tokens that the one layer is trained to predict", minimum=1)
    loss: str = knob(
        "ce",
        help="ce: the data's tokens; tv: 1 - acceptance of each step; e2e_tv: 1 - share of drafts that are "
        "expected to be accepted in a row; hybrid: KL where acceptance is low, TV where it is high",
        allowed=("ce", "tv", "e2e_tv", "hybrid"),
    )
    weight: float = knob(0.1, help="of this loss beside the objective's", minimum=0.0)
    ce_weight: float = knob(
        0.0, help="cross entropy added to `loss`, times this; not known of GLM-5.2", minimum=0.0
    )
    positions: str = knob(
        "actions",
        help="which positions train it: those whose `steps` labels are all actions, or all of them",
        allowed=("actions", "all"),
    )
    query_positions: str = knob(
        "served",
        help="rotary position of step k's query where steps share rows (GLM-5.2): served: i + k - 1, as "
        "SGLang runs it; unshifted: i. Not known of GLM-5.2's training",
        allowed=("served", "unshifted"),
    )
    detach_rows: bool = knob(
        False,
        help="where steps share rows, only step 1 trains what makes them. Not known of GLM-5.2's training",
    )


@dataclass
class IndexerConfig:
    """How the indexers of sparse attention learn, by the divergence of their scores from attention (GLM)."""

    mode: str = knob(
        "frozen",
        help="`frozen`: as in the checkpoint (RL); `sparse`: beside everything else, over the chosen rows; "
        "`dense_warmup`: over every row, attention dense, nothing else learns",
        allowed=("frozen", "sparse", "dense_warmup"),
    )
    target: str = knob(
        "own",
        help="attention of the indexer's own layer, or the mean over all layers that it serves",
        allowed=("own", "served"),
    )
    coefficient: float = knob(
        1e-3, help="of the divergence, a mean over the tokens of the mini-batch", minimum=0.0
    )


@dataclass
class RoleConfig:
    """One model in training: its layout and its optimizer."""

    layout: LayoutConfig = field(default_factory=LayoutConfig)
    lr: float = knob(1e-5, help="peak learning rate", minimum=0.0)
    lr_warmup_steps: int = knob(0, help="linear warm-up", unit="steps", minimum=0)
    lr_decay: str = knob(
        "constant", help="what follows the warm-up", allowed=("constant", "linear", "cosine")
    )
    optimizer: Dict = knob(
        factory=dict, help="fields of megatron.core.optimizer.OptimizerConfig, by their own names"
    )
    transformer: Dict = knob(
        factory=dict,
        help="fields of megatron.core.transformer.TransformerConfig, by their own names",
    )
    ddp: Dict = knob(
        factory=dict,
        help="fields of megatron.core.distributed.DistributedDataParallelConfig, by their own names",
    )
    path: str = knob("", help="critic only: its own checkpoint; empty: start from the policy's")


@dataclass
class PolicyRoleConfig(RoleConfig):
    """The policy is a role that may draft, and whose indexers may learn; a critic's stay as they are."""

    mtp: MtpConfig = field(default_factory=MtpConfig)
    indexer: IndexerConfig = field(default_factory=IndexerConfig)


@dataclass
class CriticRoleConfig(RoleConfig):
    """The critic is a role whose attention may stay as it began."""

    freeze_attention: bool = knob(
        False, help="the critic's attention keeps the weights it began with; the rest learns"
    )


@dataclass
class TrainerConfig:
    """Ranks that learn: backend, micro-batches, checkpoints, one part a role."""

    backend: str = knob("megatron", help="which trainer", allowed=("megatron",))
    max_tokens_per_micro_batch: int = knob(
        8192, help="hard cap of one packed micro-batch", unit="tokens", minimum=1
    )
    policy: PolicyRoleConfig = field(default_factory=PolicyRoleConfig)
    critic: CriticRoleConfig = field(default_factory=CriticRoleConfig)
    checkpoint_every: int = knob(
        10,
        help="save a checkpoint every so many steps; 0: only at the end",
        unit="steps",
        minimum=0,
    )
    keep_checkpoints: int = knob(2, help="how many of the latest to keep", minimum=1)
    num_threads: int = knob(1, help="torch threads of a CPU rank", minimum=1)
    start_timeout_s: float = knob(
        300.0, help="how long ranks may take to start", unit="s", minimum=1
    )
    collective_timeout_s: float = knob(
        600.0, help="how long a collective may take before the run stops", unit="s", minimum=1
    )
    silent_rank_s: float = knob(
        60.0,
        help="stop when a rank that is waited for gives no sign of life for so long (a stopped or hung "
        "process); 0: only collective_timeout_s finds it",
        unit="s",
        minimum=0.0,
    )


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


@dataclass
class EnvConfig:
    """Where tasks come from, and what verifies the answers."""

    name: str = knob(
        "reasoning_gym",
        help="`reasoning_gym`, `dataset` (JSONL or Parquet), `mixed` (several, by weight), or `package.module:TaskSource` of your own",
    )
    args: Dict = knob(factory=dict, help="arguments of the environment's source")
    held_out: int = knob(128, help="held-out tasks", minimum=1)
    seed: int = knob(0, help="seed of the task stream")


@dataclass
class PpoConfig:
    """Critic-based PPO with a token-level loss."""

    name: str = knob("ppo", help="which algorithm", allowed=("ppo",))
    batch_trajectories: int = knob(128, help="trajectories of one step", minimum=1)
    max_staleness: int = knob(
        0,
        help="steps that a trajectory's oldest token may lag; 0: on-policy",
        unit="steps",
        minimum=0,
    )
    rollouts_per_task: int = knob(
        1, help="attempts at each task; estimators without a critic compare them", minimum=1
    )
    estimator: str = knob(
        "gae",
        help="advantages: gae has a critic; grpo and rloo compare the attempts of a task, "
        "reinforce_pp the batch",
        allowed=("gae", "grpo", "rloo", "reinforce_pp"),
    )
    gamma: float = knob(1.0, help="discount", minimum=0.0, maximum=1.0)
    lambda_policy: float = knob(
        0.95, help="GAE lambda of the policy's advantages", minimum=0.0, maximum=1.0
    )
    lambda_critic: float = knob(
        1.0, help="GAE lambda of the critic's targets", minimum=0.0, maximum=1.0
    )
    lambda_length_alpha: float = knob(
        0.0,
        help="the policy's lambda is 1 - 1 / (alpha T) for T actions instead; 0: off",
        minimum=0.0,
    )
    compaction: str = knob(
        "chain",
        help="credit at a compaction: chain goes on through it, terminal ends with the whole reward",
        allowed=("chain", "terminal"),
    )
    sub_agent: str = knob(
        "join",
        help="credit of a sub-agent: join bootstraps from the parent, terminal ends with the whole reward",
        allowed=("join", "terminal"),
    )
    trains: str = knob(
        "all",
        help="the actions that the policy learns from",
        allowed=("all", "last_trace", "no_summaries"),
    )
    whiten_advantages: bool = knob(True, help="zero mean, unit deviation over the batch's actions")
    truncation: str = knob(
        "terminal",
        help="value after a truncated trajectory",
        allowed=("terminal", "bootstrap", "mask"),
    )
    policy_loss: str = knob("ppo", help="surrogate", allowed=("ppo", "gspo", "cispo"))
    ratio_against: str = knob(
        "old",
        help="the policy ratio's denominator: the trainer's before the step, or the rollout's own",
        allowed=("old", "rollout"),
    )
    aggregation: str = knob(
        "token",
        help="whose mean the policy's loss is",
        allowed=("token", "per_trajectory", "per_trace"),
    )
    clip_low: float = knob(0.2, help="policy ratio clip, lower side", minimum=0.0)
    clip_high: float = knob(0.28, help="policy ratio clip, upper side", minimum=0.0)
    dual_clip: float = knob(
        3.0, help="bound of the ratio for negative advantages; 0: off", minimum=0.0
    )
    value_clip: float = knob(0.2, help="clip of the value's move; 0: off", minimum=0.0)
    entropy_coef: float = knob(0.0, help="entropy bonus", minimum=0.0)
    importance_cap: float = knob(
        2.0, help="cap of the truncated train/rollout importance weight; 0: off", minimum=0.0
    )
    mask_below: float = knob(
        0.0,
        help="no gradient for tokens whose train/rollout ratio is below this; 0: off",
        minimum=0.0,
        maximum=1.0,
    )
    mask_above: float = knob(
        0.0,
        help="no gradient for tokens whose train/rollout ratio is above this; 0: off",
        minimum=0.0,
    )
    reject_below: float = knob(
        0.0,
        help="leave out traces whose mean train/rollout ratio (geometric) is below this; 0: off",
        minimum=0.0,
        maximum=1.0,
    )
    reject_above: float = knob(
        0.0,
        help="leave out traces whose mean train/rollout ratio (geometric) is above this; 0: off",
        minimum=0.0,
    )
    mask_older_than: int = knob(
        0,
        help="leave out tokens that lag more than so many steps; 0: off",
        unit="steps",
        minimum=0,
    )
    kl_coef: float = knob(0.0, help="KL to the policy that the run began with; 0: off", minimum=0.0)
    kl_estimator: str = knob("k3", help="of that KL", allowed=("k1", "k2", "k3"))
    kl_in: str = knob("loss", help="where that KL counts", allowed=("loss", "reward"))
    mini_batches: int = knob(1, help="policy updates a step", minimum=1)
    critic_mini_batches: int = knob(1, help="critic updates a step", minimum=1)
    epochs: int = knob(1, help="passes over the batch", minimum=1)
    critic_warmup_steps: int = knob(
        0, help="first steps in which only the critic learns", unit="steps", minimum=0
    )
    max_logprob_gap: float = knob(
        0.1, help="stop when mean |train - rollout logprob| of a step passes this", minimum=0.0
    )


@dataclass
class SftConfig:
    """Supervised fine-tuning on the environment's demonstrations."""

    name: str = knob("sft", help="which algorithm", allowed=("sft",))
    demonstrations: int = knob(1000, help="conversations to learn from", minimum=1)
    batch_conversations: int = knob(64, help="conversations of one step", minimum=1)
    stop_below_loss: float = knob(
        0.0,
        help="stop early when the held-out loss falls below this; 0: off",
        unit="nats",
        minimum=0.0,
    )


@dataclass
class ClusterConfig:
    """Ray: which cluster, and what each actor takes of it."""

    address: str = knob(
        "", help="Ray cluster to attach to (`auto` or host:port); empty: start one here"
    )
    placement: str = knob(
        "colocated", help="engines beside ranks, or apart", allowed=("colocated", "disaggregated")
    )
    device: str = knob(
        "auto", help="what ranks and engines run on", allowed=("auto", "cpu", "cuda")
    )
    cpus_per_rank: float = knob(1.0, help="Ray CPUs of a trainer rank", minimum=0.0)
    cpus_per_engine: float = knob(1.0, help="Ray CPUs of an engine", minimum=0.0)
    gpus_per_rank: float = knob(1.0, help="GPUs of a trainer rank on `cuda`", minimum=0.0)
    gpus_per_engine: float = knob(1.0, help="GPUs of an engine on `cuda`", minimum=0.0)
    resources: Dict = knob(
        factory=dict,
        help="custom Ray resources by part (`engine`, `policy`, `critic`), to pin parts to nodes",
    )
    dashboard: bool = knob(False, help="start Ray's dashboard on loopback")
    runtime_env: Dict = knob(factory=dict, help="fields of Ray's runtime_env added to ours")
    min_memory_gib: float = knob(
        4.0, help="refuse to start with less free memory", unit="GiB", minimum=0.0
    )
    min_shm_gib: float = knob(
        0.5, help="refuse to start with less free shared memory", unit="GiB", minimum=0.0
    )


@dataclass
class SyncConfig:
    """How new weights reach the engines."""

    transport: str = knob("disk", help="how weights reach the engines", allowed=("disk", "tensor"))
    directory: str = knob(
        "",
        help="where `disk` writes, in a directory of its own; all nodes must see it (checked at start); "
        "empty: shared memory on one host, the run directory on several",
    )
    timeout_s: float = knob(120.0, help="how long one engine may take", unit="s", minimum=1)


@dataclass
class LoggingConfig:
    """What is shown and recorded while a run goes on."""

    live: str = knob(
        "auto", help="live terminal view; auto: on a terminal", allowed=("auto", "on", "off")
    )
    wandb: str = knob(
        "auto",
        help="auto: online with a key, offline without one",
        allowed=("auto", "online", "offline", "off"),
    )
    wandb_project: str = knob("rlframe", help="wandb project")
    wandb_entity: str = knob("", help="wandb entity; empty: your default")
    eval_every: int = knob(
        20,
        help="evaluate on held-out tasks every so many steps; 0: only first and last",
        unit="steps",
        minimum=0,
    )
    min_reward_rise: float = knob(
        0.0, help="exit 1 if the held-out reward did not rise by this; 0: no check"
    )


@dataclass
class RunConfig:
    """One run. `rlframe train experiment=smoke key=value ...`"""

    name: str = knob("run", help="the run's name")
    seed: int = knob(0, help="seed of everything that is not given its own")
    run_dir: str = knob("runs/${name}", help="where everything of the run is kept")
    resume: str = knob(
        "auto",
        help="auto: go on where the run directory stopped; never: refuse a used one; must: refuse a new one",
        allowed=("auto", "never", "must"),
    )
    steps: int = knob(100, help="optimizer steps of the policy", unit="steps", minimum=1)
    model: ModelConfig = field(default_factory=ModelConfig)
    trainer: TrainerConfig = field(default_factory=TrainerConfig)
    rollout: RolloutConfig = field(default_factory=RolloutConfig)
    env: EnvConfig = field(default_factory=EnvConfig)
    algorithm: Any = knob(
        factory=PpoConfig, help="PpoConfig or SftConfig, by the group `algorithm`"
    )
    cluster: ClusterConfig = field(default_factory=ClusterConfig)
    sync: SyncConfig = field(default_factory=SyncConfig)
    logging: LoggingConfig = field(default_factory=LoggingConfig)
