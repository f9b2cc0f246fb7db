"""Teachers of on-policy distillation, and the engines that serve them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from rlframe.config.knob import knob

Dict = dict[str, Any]


@dataclass
class TeachersConfig:
    """Teachers of on-policy distillation, and the engines that serve them."""

    manifest: str = knob(
        "",
        help="YAML file that lists the teachers (rlframe.teachers.manifest); empty: there are none",
    )
    engines: int = knob(
        1, help="SGLang servers that the teachers of the group `default` take turns on", minimum=0
    )
    groups: Dict = knob(
        factory=dict,
        help="engines of further groups: {NAME: {engines: 1, gpus_per_engine: 8, engine_args: {...}}}",
    )
    engine_args: Dict = knob(
        factory=dict, help="SGLang server arguments of teacher engines, by their own names"
    )
    cpus_per_engine: float = knob(1.0, help="Ray CPUs of a teacher engine", minimum=0.0)
    gpus_per_engine: float = knob(1.0, help="GPUs of a teacher engine on `cuda`", minimum=0.0)
    shared_memory_gib: float = knob(
        0.0,
        help="shared memory of a node that keeps teachers' weights at hand; 0: half of what is free. "
        "What does not fit is read from its checkpoint at every swap",
        unit="GiB",
        minimum=0.0,
    )
    tokens_in_flight: int = knob(
        32768, help="that one engine is given to score at a time", unit="tokens", minimum=1
    )
    on_failure: str = knob(
        "stop",
        help="a trace that a teacher could not score in `max_attempts`: stop the run, or skip it, counted",
        allowed=("stop", "skip"),
    )
    max_attempts: int = knob(3, help="how often a teacher is asked about one trace", minimum=1)
    max_restarts: int = knob(
        3,
        help="how often teacher engines may die, hang or rave in a run; they are started again",
        minimum=0,
    )
