"""Groups of teacher engines (`teachers.engines`, `teachers.groups`): who takes turns on what."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from rlframe.config.schema.teachers import TeachersConfig
from rlframe.errors import UserError, nearest
from rlframe.teachers.manifest import DEFAULT_GROUP, TeacherManifest

GROUP_FIELDS: Mapping[str, tuple[type, ...]] = {
    "engines": (int,),
    "engine_args": (dict,),
    "cpus_per_engine": (int, float),
    "gpus_per_engine": (int, float),
}


@dataclass(frozen=True, slots=True)
class EngineGroup:
    """Engines that take turns on the same teachers."""

    name: str
    engines: int
    cpus_per_engine: float
    gpus_per_engine: float
    engine_args: dict[str, Any] = field(default_factory=dict)


def engine_groups(config: TeachersConfig) -> list[EngineGroup]:
    """`default` first. UserError for a group that is described wrongly."""
    common: dict[str, Any] = {
        "cpus_per_engine": config.cpus_per_engine,
        "gpus_per_engine": config.gpus_per_engine,
        "engine_args": dict(config.engine_args),
    }
    groups = [EngineGroup(DEFAULT_GROUP, config.engines, **common)]
    for name, given in config.groups.items():
        where = f"teachers.groups.{name}"
        if name == DEFAULT_GROUP:
            raise UserError(f"{where}: the group `{name}` is teachers.engines and its like")
        if not isinstance(given, dict):
            raise UserError(f"{where}={given!r}: must be a dictionary, such as {{engines: 1}}")
        for key, value in given.items():
            if key not in GROUP_FIELDS:
                raise UserError(f"{where}.{key}: unknown key.{nearest(str(key), GROUP_FIELDS)}")
            if isinstance(value, bool) or not isinstance(value, GROUP_FIELDS[key]):
                raise UserError(
                    f"{where}.{key}={value!r}: must be {GROUP_FIELDS[key][-1].__name__}"
                )
        own = {**common, "engines": 1, **given}
        own["engine_args"] = {**common["engine_args"], **given.get("engine_args", {})}
        groups.append(EngineGroup(name, **own))
    return groups


def check_groups(manifest: TeacherManifest, groups: Sequence[EngineGroup]) -> None:
    """Every teacher with a checkpoint has engines."""
    engines = {group.name: group.engines for group in groups}
    for teacher in (t for t in manifest.teachers if t.checkpoint):
        where = f"{manifest.path}: teacher '{teacher.name}': engine_group={teacher.engine_group}"
        if teacher.engine_group not in engines:
            raise UserError(
                f"{where}: teachers.groups has no such group.{nearest(teacher.engine_group, engines)}"
            )
        if engines[teacher.engine_group] < 1:
            key = (
                "teachers.engines"
                if teacher.engine_group == DEFAULT_GROUP
                else f"teachers.groups.{teacher.engine_group}.engines"
            )
            raise UserError(f"{where}: {key}=0 leaves it without an engine")
