"""The YAML files that a configuration is made of: read one by one, so that a mistake names its file."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hydra.core.default_element import ResultDefault
from omegaconf import OmegaConf

from rlframe.config.search import ROOT, ConfigFolders
from rlframe.config.values import check_tree
from rlframe.errors import UserError


@dataclass(frozen=True, slots=True)
class Layer:
    """One file. `content` stands below the key `package` (empty: at the top).

    Example: configs/model/tiny_qwen3.yaml has package `model`.
    """

    name: str
    package: str
    content: Mapping[str, Any]

    def value_of(self, key: str) -> tuple[bool, Any]:
        """Whether this file sets `key`, and to what."""
        prefix = self.package + "." if self.package else ""
        if not key.startswith(prefix):
            return False, None
        found: Any = self.content
        for part in key.removeprefix(prefix).split("."):
            if not isinstance(found, Mapping) or part not in found:
                return False, None
            found = found[part]
        return True, found


def read_layers(defaults: Iterable[ResultDefault], folders: ConfigFolders) -> list[Layer]:
    """The files of Hydra's defaults list, weakest first; its own and the schemas are left out."""
    layers = []
    for default in defaults:
        config_path = default.config_path
        path = folders.file_of(config_path) if config_path else None
        if config_path is None or path is None or config_path.startswith("hydra/"):
            continue
        layers.append(_read(path, default, folders.shown(path)))
    return layers


def check_layer(layer: Layer) -> None:
    """UserError for a key that is unknown, or a value that does not fit, naming the file."""
    check_tree(layer.package, layer.content, where=f"{layer.name}: ")


def _read(path: Path, default: ResultDefault, name: str) -> Layer:
    content = OmegaConf.to_container(OmegaConf.load(path), resolve=False)
    if not isinstance(content, dict):
        raise UserError(f"{name}: a dictionary of keys is wanted, not a list")
    if default.config_path != ROOT and default.package in ("experiment", "eval"):
        raise UserError(
            f"{name}: its first line must be `# @package _global_`, as in every file of "
            f"configs/{default.package}/"
        )
    content.pop("defaults", None)
    return Layer(name, default.package or "", {str(key): value for key, value in content.items()})
