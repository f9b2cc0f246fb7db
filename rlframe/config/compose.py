"""From overrides to a typed RunConfig, by Hydra; its errors become one readable message each."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import yaml
from hydra import compose, initialize_config_dir
from hydra.core.config_store import ConfigStore
from hydra.core.global_hydra import GlobalHydra
from hydra.errors import HydraException
from hydra.types import RunMode
from omegaconf import MISSING, DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from rlframe.config import keys
from rlframe.config.hydra_errors import readable
from rlframe.config.layers import Layer, check_layer, read_layers
from rlframe.config.overrides import Given, read_overrides
from rlframe.config.schema import RunConfig
from rlframe.config.search import CONFIGS, EVALUATION_ROOT, ROOT, ConfigFolders, find_folders
from rlframe.config.values import check_values
from rlframe.errors import UserError


@dataclass(frozen=True, slots=True)
class Composition:
    """What a configuration was made of, for those who ask where a value comes from."""

    raw: DictConfig
    """Composed, its interpolations not resolved."""
    layers: list[Layer]
    """The YAML files, weakest first."""
    given: list[Given]
    """The command line's overrides, in their order; each is stronger than all files."""


def load_config(
    overrides: Sequence[str], *, config_dir: str | None = None, root: str | None = None
) -> RunConfig:
    """Composes `configs/train.yaml` with the overrides; UserError for anything that does not fit.

    `config_dir` is a directory of the user's own, with the same groups (`experiment/mine.yaml`). `root`:
    another file to begin with; none given, it is that of evaluations where a preset of `eval` is chosen.
    """
    return to_run_config(compose_layers(overrides, config_dir=config_dir, root=root).raw)


def to_run_config(raw: DictConfig) -> RunConfig:
    """Plain typed dataclasses, every interpolation resolved and every value checked."""
    try:
        config = OmegaConf.to_object(raw)
    except OmegaConfBaseException as error:
        raise readable(error) from None
    assert isinstance(config, RunConfig)
    if not isinstance(config.algorithm, tuple(keys.ALGORITHMS.values())):
        raise UserError(
            "the chosen 'algorithm' file has no type: begin it with `defaults: [ppo_schema]` (or "
            "sft_schema), as configs/algorithm/ppo.yaml does"
        )
    check_values(config)
    return config


def compose_layers(
    overrides: Sequence[str], *, config_dir: str | None = None, root: str | None = None
) -> Composition:
    """Checks each override and each file by itself, then composes them."""
    folders = find_folders(config_dir)
    given = read_overrides(overrides, folders)
    if root is None:
        root = EVALUATION_ROOT if any(o.is_group and o.key == "eval" for o in given) else ROOT
    hydra = [override.hydra for override in given]
    try:
        with _hydra(folders) as search:
            choosing = [o.hydra for o in given if o.is_group]
            loader = GlobalHydra.instance().config_loader()
            defaults = loader.compute_defaults_list(root, [*choosing, *search], RunMode.RUN)
            layers = read_layers(defaults.defaults, folders)
            for layer in layers:
                check_layer(layer)
            composed = compose(root, overrides=[*hydra, *search])
        OmegaConf.resolve(composed.copy())
    except yaml.MarkedYAMLError as error:
        raise _broken_yaml(error, folders) from None
    except (HydraException, OmegaConfBaseException) as error:
        raise readable(error) from None
    return Composition(composed, layers, given)


@contextmanager
def _hydra(folders: ConfigFolders) -> Iterator[list[str]]:
    """Hydra's compose API alone: no working directory, no output directory, no logging of its own.

    Yields the overrides that add the user's folder.
    """
    _register()
    GlobalHydra.instance().clear()
    try:
        with initialize_config_dir(version_base="1.3", config_dir=str(CONFIGS)):
            # Quoted: the path may have spaces or commas.
            yield [f"hydra.searchpath=['file://{folders.own}']"] if folders.own else []
    finally:
        GlobalHydra.instance().clear()


def evaluation_name(preset: str, checkpoint: str, effort: str) -> str:
    """`runs/smoke_0/hf` and `smoke` -> `eval_smoke_smoke_0`."""
    path = Path(checkpoint)
    model = (path.parent if path.name == "hf" else path).name or "random"
    return "_".join(part for part in ("eval", preset, model, effort) if part)


def _register() -> None:
    OmegaConf.register_new_resolver("evaluation_name", evaluation_name, replace=True)
    store = ConfigStore.instance()
    schema = OmegaConf.structured(RunConfig)
    # Typed by whichever option of the group is chosen, not by the dataclass's default.
    schema.algorithm = MISSING
    store.store(name="run_schema", node=schema)
    for name, algorithm in keys.ALGORITHMS.items():
        store.store(group="algorithm", name=f"{name}_schema", node=algorithm)


def _broken_yaml(error: yaml.MarkedYAMLError, folders: ConfigFolders) -> UserError:
    mark = error.problem_mark or error.context_mark
    where = f"{mark.name}, line {mark.line + 1}" if mark else "a configuration file"
    return UserError(f"{where}: not valid YAML ({error.problem or error.context})")
