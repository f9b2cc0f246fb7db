"""A worker's gateway, and the black-box mode behind it."""

from __future__ import annotations

import shutil
import tempfile
from pathlib import Path

from rlframe.sandbox.limits import Limits
from rollout.chat import Parser
from rollout.engine.client import EngineClient
from rollout.gateway.registry import Registry
from rollout.gateway.server import Gateway
from rollout.guard_setup import guard_of
from rollout.harness.program import find_program
from rollout.harness.sandbox import Sandbox, find_installed
from rollout.modes.black_box import BlackBox
from rollout.renderer import Renderer
from rollout.session import SessionSettings
from rollout.worker_spec import BlackBoxSpec, WorkerSpec


class RunningGateway:
    """One gateway on a Unix socket of its own directory, which sandboxes get bound in."""

    def __init__(self) -> None:
        self._directory = Path(tempfile.mkdtemp(prefix="rlframe-gateway-"))
        self._registry = Registry()
        self._gateway = Gateway(self._registry)

    @classmethod
    async def start(cls) -> RunningGateway:
        running = cls()
        await running._gateway.listen_unix(running.socket)
        return running

    @property
    def socket(self) -> Path:
        return self._directory / "model.sock"

    def black_box(
        self,
        spec: WorkerSpec,
        own: BlackBoxSpec,
        client: EngineClient,
        renderer: Renderer,
        parser: Parser,
    ) -> BlackBox:
        program = find_program(own.program)
        settings = SessionSettings(
            generate=client.generate,
            renderer=renderer,
            sampling={**spec.sampling, "stop_token_ids": list(renderer.stop_token_ids)},
            max_context_tokens=spec.max_context_tokens,
            max_calls=own.max_calls,
            max_output_tokens=own.max_output_tokens,
            parser=parser,
        )
        return BlackBox(
            make_env=spec.make_source().make,
            settings=settings,
            registry=self._registry,
            sandbox=Sandbox(self.socket, Limits(timeout_s=spec.limits.attempt_timeout_s)),
            program=program,
            installed=find_installed(program, Path(own.programs_directory)),
            infra_retries=spec.limits.infra_retries,
            call_log_directory=spec.call_log_directory,
            guard=guard_of(spec, client, renderer),
        )

    async def close(self) -> None:
        await self._gateway.close()
        shutil.rmtree(self._directory, ignore_errors=True)
