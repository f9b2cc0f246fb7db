"""The whole configuration of a run."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from rlframe.config.knob import knob
from rlframe.config.schema.algorithm import PpoConfig
from rlframe.config.schema.evaluation import EvalConfig
from rlframe.config.schema.guard import GuardConfig
from rlframe.config.schema.model import ModelConfig
from rlframe.config.schema.rollout import RolloutConfig
from rlframe.config.schema.surroundings import ClusterConfig, EnvConfig, LoggingConfig, SyncConfig
from rlframe.config.schema.teachers import TeachersConfig
from rlframe.config.schema.trainer import TrainerConfig


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
    steps: int = knob(100, help="optimizer steps of the model that learns", unit="steps", minimum=1)
    model: ModelConfig = field(default_factory=ModelConfig)
    trainer: TrainerConfig = field(default_factory=TrainerConfig)
    rollout: RolloutConfig = field(default_factory=RolloutConfig)
    env: EnvConfig = field(default_factory=EnvConfig)
    algorithm: Any = knob(
        factory=PpoConfig, help="PpoConfig, SftConfig or ValueConfig, by the group `algorithm`"
    )
    teachers: TeachersConfig = field(default_factory=TeachersConfig)
    guard: GuardConfig = field(default_factory=GuardConfig)
    cluster: ClusterConfig = field(default_factory=ClusterConfig)
    sync: SyncConfig = field(default_factory=SyncConfig)
    logging: LoggingConfig = field(default_factory=LoggingConfig)
    eval: EvalConfig = field(default_factory=EvalConfig)
