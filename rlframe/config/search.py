"""Where configuration files are: rlframe's own `configs/`, and a folder of the user's own."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from rlframe.config import keys
from rlframe.errors import UserError, nearest

CONFIGS = Path(__file__).resolve().parents[2] / "configs"
ROOT, EVALUATION_ROOT = "train", "evaluate"


@dataclass(frozen=True, slots=True)
class ConfigFolders:
    """`own` is a user's folder with the same groups (`own/experiment/mine.yaml`), or None."""

    own: Path | None = None

    @property
    def roots(self) -> list[Path]:
        return [CONFIGS, *([self.own] if self.own else [])]

    def options_of(self, group: str) -> list[str]:
        """The choices of a group, subfolders with a slash (`team/mine`)."""
        found = set()
        for root in self.roots:
            folder = root / group
            found |= {str(p.relative_to(folder).with_suffix("")) for p in folder.rglob("*.yaml")}
        return sorted(found)

    def file_of(self, config_path: str) -> Path | None:
        """The YAML file behind Hydra's name of a config (`experiment/smoke`); None for a schema."""
        for root in self.roots:
            path = root / f"{config_path}.yaml"
            if path.is_file():
                return path
        return None

    def shown(self, path: Path) -> str:
        """The file's name as people know it."""
        return str(path.relative_to(CONFIGS.parent)) if path.is_relative_to(CONFIGS) else str(path)

    def where_else(self) -> str:
        """The end of a message about an option that is not there."""
        return f" (also looked in {self.own})" if self.own else " Your own: --config-dir DIR."


def find_folders(config_dir: str | None) -> ConfigFolders:
    """UserError where the folder is missing, has no group, or hides a file behind one of rlframe's."""
    if config_dir is None:
        return ConfigFolders()
    own = Path(config_dir).expanduser().resolve()
    if not own.is_dir():
        raise UserError(f"--config-dir={config_dir}: there is no such directory")
    groups = [group for group in keys.GROUPS if (own / group).is_dir()]
    if not groups:
        names = sorted(p.name for p in own.iterdir() if p.is_dir() and not p.name.startswith("."))
        near = [hint for name in names if "mean" in (hint := nearest(name, keys.GROUPS))]
        raise UserError(
            f"--config-dir={config_dir} has no group's folder, such as experiment/ with your "
            f"experiment/NAME.yaml. Groups: {', '.join(keys.GROUPS)}.{near[0] if near else ''}"
        )
    for group in groups:
        for path in (own / group).rglob("*.yaml"):
            hidden = CONFIGS / path.relative_to(own)
            if hidden.is_file():
                raise UserError(
                    f"{path}: rlframe has a '{hidden.relative_to(CONFIGS)}' already, which would be taken "
                    "instead; give yours another name"
                )
    return ConfigFolders(own)
