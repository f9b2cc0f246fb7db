"""Every knob of ours. Names of Megatron and SGLang options are theirs, and pass through untouched.

YAML in `configs/` only holds values that differ from these defaults. A component gets its own part,
never the whole.
"""

from rlframe.config.schema.algorithm import (
    OpdConfig,
    PpoConfig,
    SftConfig,
    ValueConfig,
    ValueLossConfig,
)
from rlframe.config.schema.evaluation import EvalConfig
from rlframe.config.schema.guard import GuardConfig, JudgeConfig
from rlframe.config.schema.model import ModelConfig
from rlframe.config.schema.rollout import (
    BlackBoxConfig,
    CompactionConfig,
    RolloutConfig,
    SamplingConfig,
    SubAgentsConfig,
)
from rlframe.config.schema.run import RunConfig
from rlframe.config.schema.surroundings import ClusterConfig, EnvConfig, LoggingConfig, SyncConfig
from rlframe.config.schema.teachers import TeachersConfig
from rlframe.config.schema.trainer import (
    CriticRoleConfig,
    IndexerConfig,
    LayoutConfig,
    MtpConfig,
    PolicyRoleConfig,
    RoleConfig,
    TrainerConfig,
)

__all__ = [
    "BlackBoxConfig",
    "ClusterConfig",
    "CompactionConfig",
    "CriticRoleConfig",
    "EnvConfig",
    "EvalConfig",
    "GuardConfig",
    "IndexerConfig",
    "JudgeConfig",
    "LayoutConfig",
    "LoggingConfig",
    "ModelConfig",
    "MtpConfig",
    "OpdConfig",
    "PolicyRoleConfig",
    "PpoConfig",
    "RoleConfig",
    "RolloutConfig",
    "RunConfig",
    "SamplingConfig",
    "SftConfig",
    "SubAgentsConfig",
    "SyncConfig",
    "TeachersConfig",
    "TrainerConfig",
    "ValueConfig",
    "ValueLossConfig",
]
