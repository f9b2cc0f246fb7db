"""What a run would start: the resolved configuration and the parts, with nothing claimed."""

from __future__ import annotations

from collections.abc import Iterator

from rlframe.cluster import preflight
from rlframe.cluster.demand import CRITIC, ENGINE, POLICY, PartDemand, parts_of, total
from rlframe.config.saved import as_yaml
from rlframe.config.schema import LayoutConfig, PpoConfig, RunConfig, ValueConfig
from rlframe.run_directory import RunDirectory


def show_dry_run(config: RunConfig) -> None:
    """Prints the configuration as YAML, and the plan as comments below it."""
    print(as_yaml(config))
    print("\n".join(f"# {line}" for line in _plan(config)))


def _plan(config: RunConfig) -> Iterator[str]:
    device = preflight.choose_device(config.cluster)
    parts = parts_of(config, device=device)
    where = config.cluster.address or "a local Ray, started for it"
    yield f"plan: {config.algorithm.name}, {config.steps} steps, on {device}, cluster {where}"
    yield f"  model     {config.model.path or 'random weights'}, {config.model.dtype}"
    for part in parts:
        yield f"  {part.name:<9} {part.count} x {_amounts(part)}{_arrangement(config, part)}"
    summed = ", ".join(f"{amount:g} {name}" for name, amount in total(parts).items())
    yield f"  together  {summed}; {config.cluster.placement}"
    if any(part.name == ENGINE for part in parts):
        yield f"  weights   by {config.sync.transport}"
    yield from _work(config)
    used = RunDirectory(config.run_dir).is_used()
    yield f"  files     {config.run_dir}" + (
        f" (holds a run; resume={config.resume})" if used else ""
    )
    yield "nothing was started; the same command without --dry-run runs it"


def _work(config: RunConfig) -> Iterator[str]:
    context = config.rollout.max_context_tokens
    algorithm = config.algorithm
    if isinstance(algorithm, PpoConfig):
        most = algorithm.batch_trajectories * context
        yield (
            f"  a step    {algorithm.batch_trajectories} trajectories of at most {context:,} tokens a trace: "
            f"at most {most:,} tokens where each is one trace"
        )
    elif isinstance(algorithm, ValueConfig):
        yield f"  a step    {algorithm.batch_trajectories} of the trajectories of {', '.join(algorithm.source_runs)}"
    else:
        yield f"  a step    {algorithm.batch_conversations} of {algorithm.demonstrations} conversations"


def _amounts(part: PartDemand) -> str:
    needs = {"CPU": part.cpus, "GPU": part.gpus, **part.resources}
    return "(" + ", ".join(f"{amount:g} {name}" for name, amount in needs.items() if amount) + ")"


def _arrangement(config: RunConfig, part: PartDemand) -> str:
    layouts = {POLICY: config.trainer.policy.layout, CRITIC: config.trainer.critic.layout}
    return f": {_words(layouts[part.name])}" if part.name in layouts else ""


def _words(layout: LayoutConfig) -> str:
    words = f"data {layout.data} x tensor {layout.tensor} x pipeline {layout.pipeline}"
    return f"{words} x context {layout.context}" if layout.context > 1 else words
