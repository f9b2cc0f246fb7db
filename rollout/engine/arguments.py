"""SGLang's server arguments: ours for what we own, the platform's defaults, the user's on top."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

CPU_DEFAULTS: Mapping[str, Any] = {
    "attention_backend": "torch_native",
    "sampling_backend": "pytorch",
    # `none` with a tool parser crashed the server (SGLang 0.5.20).
    "grammar_backend": "xgrammar",
    "disable_cuda_graph": True,
    "disable_overlap_schedule": True,
    "mem_fraction_static": 0.2,
    "max_total_tokens": 131072,
    "max_running_requests": 512,
}
GLM_ARCHITECTURE = "GlmMoeDsaForCausalLM"
GLM_ALIAS = "DeepseekV2ForCausalLM"
"""What a CPU server is told instead: see `rollout.engine.glm_cpu.model`."""
COMMON_DEFAULTS: Mapping[str, Any] = {
    "skip_server_warmup": True,
    # Token ids go in and come out: no tokenizer, no detokenizer work.
    "skip_tokenizer_init": True,
    # An idle scheduler polls at a full core without it.
    "sleep_on_idle": True,
    "log_level": "warning",
}


def server_arguments(
    *,
    user: Mapping[str, Any],
    device: str,
    model_directory: str,
    random_weights: bool,
    dtype: str,
    seed: int,
    host: str,
    port: int,
) -> dict[str, Any]:
    """Fields of `sglang.srt.server_args.ServerArgs`. The user's win over defaults, ours over all."""
    defaults = {**COMMON_DEFAULTS, **(CPU_DEFAULTS if device == "cpu" else {})}
    if device == "cpu" and GLM_ARCHITECTURE in architectures(model_directory):
        user = {**user, **_under_alias(user)}
    owned = {
        "model_path": model_directory,
        "device": device,
        "dtype": dtype,
        "host": host,
        "port": port,
        "weight_version": "0",
    }
    if random_weights:
        owned["load_format"] = "dummy"
    defaults["random_seed"] = seed
    return {**defaults, **user, **owned}


def architectures(model_directory: str) -> list[str]:
    """Of its config.json."""
    described = json.loads((Path(model_directory) / "config.json").read_text())
    return list(described.get("architectures", []))


def _under_alias(user: Mapping[str, Any]) -> dict[str, Any]:
    given = json.loads(user.get("json_model_override_args", "{}"))
    return {"json_model_override_args": json.dumps({**given, "architectures": [GLM_ALIAS]})}
