"""What a step of learning is."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from rlframe.config.knob import knob

Dict = dict[str, Any]


@dataclass
class ValueLossConfig:
    """How a critic says what a state is worth, for every algorithm that trains one."""

    value_loss: str = knob(
        "mse",
        help="of the critic: squared error, or cross entropy over bins of values (a Gaussian around the "
        "return, or its two nearest points); the value is then their expectation",
        allowed=("mse", "hl_gauss", "two_hot"),
    )
    value_bins: int = knob(101, help="outputs of a critic with bins", minimum=2)
    value_low: float = knob(
        -0.5, help="lowest value of the bins; leave a few beyond the returns (critic/beyond_range)"
    )
    value_high: float = knob(1.5, help="highest value of the bins")
    value_sigma: float = knob(
        0.75, help="deviation of an hl_gauss target, in widths of a bin", minimum=0.01
    )


@dataclass
class PpoConfig(ValueLossConfig):
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
    value_clip: float = knob(
        0.2, help="clip of the value's move, with value_loss=mse; 0: off", minimum=0.0
    )
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
        0.1,
        help="a step whose mean |train - rollout logprob| passes this is a bad step",
        minimum=0.0,
    )
    bad_step: str = knob(
        "stop",
        help="what a run does about a bad step: a logprob gap, a loss or a gradient that is not finite, a "
        "gradient norm beyond trainer.*.grad_norm_limit. Its worst traces are named in run_dir/bad_steps",
        allowed=("stop", "skip"),
    )
    max_bad_steps: int = knob(
        3, help="bad steps in a row that bad_step=skip goes over", unit="steps", minimum=0
    )


@dataclass
class OpdConfig(PpoConfig):
    """On-policy distillation: rollouts of the student, scored by the teacher of their domain. PPO's knobs hold."""

    name: str = knob("opd", help="which algorithm", allowed=("opd",))
    objective: str = knob(
        "sampled",
        help="sampled: reverse KL at the sampled tokens, as an advantage; reverse_kl, forward_kl, jsd: "
        "divergences of whole distributions, as losses",
        allowed=("sampled", "reverse_kl", "forward_kl", "jsd"),
    )
    distill_coef: float = knob(
        1.0, help="weight of the distillation beside the task's reward", minimum=0.0
    )
    distill_in: str = knob(
        "advantage",
        help="objective=sampled: advantage counts each token's own log ratio, reward sums those after it too "
        "(through the estimator, with its critic)",
        allowed=("advantage", "reward"),
    )
    jsd_beta: float = knob(
        0.5,
        help="objective=jsd: weight of the teacher in the mixture; 0: forward KL, 1: reverse KL",
        minimum=0.0,
        maximum=1.0,
    )
    top_k: int = knob(
        0,
        help="divergences over so many of the teacher's likeliest tokens; 0: the whole vocabulary",
        unit="tokens",
        minimum=0,
    )
    tail: str = knob(
        "bucket",
        help="what top_k leaves out: bucket makes one outcome of it, renormalise forgets it",
        allowed=("bucket", "renormalise"),
    )
    distill_temperature: float = knob(
        1.0, help="of both distributions in a divergence", minimum=0.0
    )
    task_reward: bool = knob(False, help="learn from the task's reward too, as PPO does")
    critic: bool = knob(
        True, help="a critic where there is a reward to predict and the estimator is gae"
    )
    teachers_on: str = knob(
        "engines",
        help="engines: SGLang servers (`teachers.*`), any architecture; ranks: weights in the CPU memory of "
        "the policy's ranks, of its architecture, for divergences of the whole vocabulary",
        allowed=("engines", "ranks"),
    )
    several_teachers: str = knob(
        "mixture",
        help="of a domain with several teachers: mixture draws one for each trajectory, by the manifest's "
        "weights; best takes the one with the highest held-out reward there, found out at the start",
        allowed=("mixture", "best"),
    )
    domain_weights: Dict = knob(
        factory=dict, help="how much a domain's distillation counts: {DOMAIN: weight}; others: 1"
    )
    curriculum: Dict = knob(
        factory=dict,
        help="shares of the domains among the tasks, from a step on: {from_STEP: {DOMAIN: weight}}; "
        "empty: as the environment mixes them",
    )
    compare: bool = knob(
        True,
        help="evaluate every teacher, and the average of their weights, in the student's engines at the "
        "start, for the report",
    )


@dataclass
class ValueConfig(ValueLossConfig):
    """Value pretraining: the critic alone, offline, on the returns of trajectories that runs have stored."""

    name: str = knob("value", help="which algorithm", allowed=("value",))
    source_runs: list[str] = knob(
        factory=list, help="directories of runs whose stored trajectories the critic learns from"
    )
    until_version: int = knob(
        -1,
        help="only trajectories whose oldest token is of this weight version or an older one (0: of the "
        "weights that the runs began with); -1: all",
        minimum=-1,
    )
    batch_trajectories: int = knob(128, help="trajectories of one step", minimum=1)
    held_out_share: float = knob(
        0.1,
        help="share of the tasks that are held out, with all of their trajectories",
        minimum=0.0,
        maximum=0.9,
    )
    held_out_trajectories: int = knob(
        1024, help="at most so many of the held-out trajectories are looked at", minimum=1
    )
    patience: int = knob(
        5,
        help="stop after so many evaluations (logging.eval_every) without a lower held-out squared error; "
        "0: never",
        minimum=0,
    )
    gamma: float = knob(1.0, help="discount", minimum=0.0, maximum=1.0)
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
    truncation: str = knob(
        "terminal",
        help="truncated trajectories: their rewards are all that follows, or they are left out",
        allowed=("terminal", "mask"),
    )


@dataclass
class SftConfig:
    """Supervised fine-tuning on the environment's demonstrations."""

    name: str = knob("sft", help="which algorithm", allowed=("sft",))
    demonstrations: int = knob(1000, help="conversations to learn from", minimum=1)
    batch_conversations: int = knob(64, help="conversations of one step", minimum=1)
    stop_below_loss: float = knob(
        0.0,
        help="stop early when the mean of the last three held-out losses falls below this; 0: off",
        unit="nats",
        minimum=0.0,
    )
