"""A run's surroundings, settled in order: checks, directory, environment, model files, cluster, places."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from functools import partial
from typing import Any

from rlframe.checkpoints import Checkpoints
from rlframe.cluster import preflight
from rlframe.cluster.connect import Cluster, connect
from rlframe.cluster.demand import CRITIC, POLICY, PartDemand, parts_of
from rlframe.cluster.placement import place
from rlframe.config.saved import save_config
from rlframe.config.schema import RunConfig
from rlframe.interfaces import TaskSource
from rlframe.launch.model_files import ModelFiles, prepare
from rlframe.launch.precheck import attempts_by
from rlframe.live import View
from rlframe.metrics import Metrics, Sink
from rlframe.run_directory import RunDirectory
from rlframe.wandb_sink import open_wandb


@dataclass(frozen=True, slots=True)
class Job:
    """What a run's algorithm finds when it begins."""

    config: RunConfig
    directory: RunDirectory
    checkpoints: Checkpoints
    make_source: Callable[[], TaskSource]
    source: TaskSource
    model: ModelFiles
    device: str
    cluster: Cluster
    options: Mapping[str, list[dict[str, Any]]]
    """Ray actor options, by part, one an actor."""
    view: View

    def metrics(self, *, after_step: int) -> Metrics:
        """Of a run that goes on after so many steps."""
        logging = self.config.logging
        sinks: list[Sink] = [self.view]
        wandb = open_wandb(
            logging.wandb,
            project=logging.wandb_project,
            entity=logging.wandb_entity,
            name=self.config.name,
            directory=self.directory.path,
            config=asdict(self.config),
        )
        if wandb is not None:
            sinks.append(wandb)
        metrics = Metrics(
            self.directory.metrics, after_step=after_step, sinks=sinks, on_span=self.view.phase
        )
        self.view.restore(metrics.history)
        return metrics


@contextmanager
def settle(
    config: RunConfig,
    *,
    again: bool = False,
    demand: Callable[..., list[PartDemand]] = parts_of,
) -> Iterator[Job]:
    """Everything that can be refused is refused here, cheapest first. UserError says what.

    `again`: a run that is there already, to be looked at: its ranks, no engines, and no live view.
    `demand`: the parts that are wanted; a run's own unless it is an evaluation.
    """
    from envs.registry import make_source
    from envs.source_check import check_source

    preflight.check_machine(config.cluster)
    device = preflight.choose_device(config.cluster)
    sourcing = partial(
        make_source,
        config.env.name,
        config.env.args,
        seed=config.env.seed,
        held_out=config.env.held_out,
    )
    source = sourcing()
    check_source(source, name=config.env.name, mode=attempts_by(config))
    directory = RunDirectory(config.run_dir)
    with directory.claim(resume="must" if again else config.resume):
        model = prepare(config.model, directory.path / "model", source=source)
        save_config(config, directory.config)
        parts = demand(config, device=device)
        if again:
            parts = [part for part in parts if part.name in (POLICY, CRITIC)]
        live = config.logging.live if demand is parts_of and not again else "off"
        view = View(title=config.name, total_steps=config.steps, live=live)
        with (
            view,
            _said(view, "connecting to Ray"),
            connect(config.cluster, parts, env_name=config.env.name) as cluster,
            place(parts, placement=config.cluster.placement) as options,
        ):
            yield Job(
                config=config,
                directory=directory,
                checkpoints=Checkpoints(
                    directory.checkpoints, keep=config.trainer.keep_checkpoints
                ),
                make_source=sourcing,
                source=source,
                model=model,
                device=device,
                cluster=cluster,
                options=options,
                view=view,
            )


@contextmanager
def _said(view: View, text: str) -> Iterator[None]:
    view.say(text)
    yield
