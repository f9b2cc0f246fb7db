"""Takes indexers out of a checkpoint: the layers without one use the ids of the layer before."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from safetensors.torch import load_file, save_file

INDEXER = ".self_attn.indexer."


def bolt_on(source: str, target: str, hf_config: Mapping[str, Any]) -> None:
    """`target` is `source` without the indexers of layers that are not "full" in `hf_config`."""
    kinds = hf_config["indexer_types"]
    tensors = {
        name: tensor
        for file in sorted(Path(source).glob("*.safetensors"))
        for name, tensor in load_file(file).items()
        if INDEXER not in name or kinds[int(name.split(".")[2])] == "full"
    }
    directory = Path(target)
    directory.mkdir()
    save_file(tensors, directory / "model.safetensors", metadata={"format": "pt"})
    (directory / "config.json").write_text(json.dumps(dict(hf_config), indent=2))
