"""Runs in the Python that has `verifiers`: its environments' own loops, with the policy at the other end of a pipe.

    python verifiers_side.py ENVIRONMENT JSON-ARGUMENTS

Requests and answers are lines of JSON: {"id", "method", "params"} -> {"id", "result"} or {"id", "error"}.
- `about` -> {"train", "held_out", "own_held_out", "tools", "version"}: rows of the data sets, tools' schemas
- `begin` {attempt, split, row} -> what the policy is asked first
- `answer` {attempt, message} -> what it is asked next: {"messages": only the new ones}, or how it ended:
  {"done", "reward", "metrics", "stop", "truncated"}
- `end` {attempt}: it is not wanted any more

An environment runs unchanged: `rollout` drives, and each call of its client becomes a question to us.
"""

from __future__ import annotations

import asyncio
import contextvars
import importlib
import importlib.metadata
import importlib.util
import json
import logging
import os
import sys
import time
import traceback
from pathlib import Path
from typing import Any

MAX_LINE = 16 << 20
scoring_errors: contextvars.ContextVar[list[str]] = contextvars.ContextVar("scoring_errors")


class SaidError(Exception):
    """Said to the other side as it is; `kind`: user (the arguments), task (the environment's code)."""

    def __init__(self, kind: str, text: str) -> None:
        super().__init__(text)
        self.kind = kind


class RubricErrors(logging.Handler):
    """A rubric logs what its functions raise and goes on with 0: no score of the policy's. Kept by rollout."""

    def emit(self, record: logging.LogRecord) -> None:
        text = record.getMessage()
        if "reward function" in text:
            scoring_errors.get([]).append(text)


class Attempt:
    """One rollout under way. `ask` is called by the environment, `turn` by the other side."""

    def __init__(self) -> None:
        self.asked: asyncio.Queue[Any] = asyncio.Queue()
        self.answers: asyncio.Queue[Any] = asyncio.Queue()
        self.running: asyncio.Task[Any] | None = None
        self.known: list[Any] = []

    async def ask(self, messages: list[Any]) -> Any:
        if messages[: len(self.known)] != self.known:
            raise SaidError(
                "task", "the environment rewrites what was said: only what appends is exact"
            )
        self.asked.put_nowait({"messages": messages[len(self.known) :]})
        answer = await self.answers.get()
        self.known = [*messages, plain(answer)]
        return answer

    async def turn(self) -> Any:
        """What the environment asks next, or how it has ended."""
        assert self.running is not None
        asked = asyncio.ensure_future(self.asked.get())
        await asyncio.wait({asked, self.running}, return_when=asyncio.FIRST_COMPLETED)
        if asked.done():
            return asked.result()
        asked.cancel()
        return self.running.result()


def plain(message: Any) -> dict[str, Any]:
    """A message of the package's as ours has it: role, content as text, tool calls with arguments."""
    given = message if isinstance(message, dict) else message.model_dump()
    said: dict[str, Any] = {"role": given["role"], "content": text_of(given.get("content"))}
    if given.get("tool_calls"):
        said["tool_calls"] = [
            {"id": call["id"], "name": call["name"], "arguments": arguments_of(call["arguments"])}
            for call in given["tool_calls"]
        ]
    if given.get("tool_call_id"):
        said["tool_call_id"] = given["tool_call_id"]
    return said


def text_of(content: Any) -> str:
    if content is None or isinstance(content, str):
        return content or ""
    kinds = {part.get("type") for part in content}
    if kinds != {"text"}:
        raise SaidError(
            "task", f"a message with {', '.join(sorted(kinds - {'text'}))}: only text is read"
        )
    return "".join(part["text"] for part in content)


def arguments_of(given: Any) -> Any:
    try:
        return json.loads(given) if isinstance(given, str) else given
    except ValueError:
        return given


class Side:
    """The environment and its attempts."""

    def __init__(self, name: str, args: dict[str, Any]) -> None:
        self.name, self.args = name, args
        self.attempts: dict[str, Attempt] = {}
        self.environment: Any = None
        self.rows: dict[str, Any] = {}

    def load(self) -> Any:
        if self.environment is None:
            self.environment = loaded(self.name, self.args)
        return self.environment

    def data(self, split: str) -> Any:
        if split not in self.rows:
            environment = self.load()
            got = environment.get_dataset if split == "train" else environment.get_eval_dataset
            self.rows[split] = got()
        return self.rows[split]

    async def about(self, given: dict[str, Any]) -> Any:
        environment = self.load()
        if getattr(environment, "requires_group_rollouts", False):
            raise SaidError(
                "user", "its rubric scores groups of rollouts together: that is not supported"
            )
        held_out = environment.build_eval_dataset()
        try:
            train = len(self.data("train"))
        except ValueError:
            train = 0  # an environment for evaluation
        return {
            "train": train,
            "held_out": len(held_out) if held_out is not None else 0,
            "tools": [tool.model_dump(exclude={"strict"}) for tool in environment.tool_defs or ()],
            "version": importlib.metadata.version("verifiers"),
        }

    async def begin(self, given: dict[str, Any]) -> Any:
        attempt = self.attempts[given["attempt"]] = Attempt()
        row = dict(self.data(given["split"])[given["row"]])
        attempt.running = asyncio.create_task(self.rollout(attempt, row))
        return await self.next(given["attempt"])

    async def answer(self, given: dict[str, Any]) -> Any:
        self.attempts[given["attempt"]].answers.put_nowait(given["message"])
        return await self.next(given["attempt"])

    async def end(self, given: dict[str, Any]) -> Any:
        attempt = self.attempts.pop(given["attempt"], None)
        if attempt is not None and attempt.running is not None:
            attempt.running.cancel()
        return {}

    async def next(self, name: str) -> Any:
        turn = await self.attempts[name].turn()
        if turn.get("done"):
            self.attempts.pop(name, None)
        return turn

    async def rollout(self, attempt: Attempt, row: dict[str, Any]) -> dict[str, Any]:
        errors: list[str] = []
        scoring_errors.set(errors)
        shown = [tool.name for tool in self.load().tool_defs or ()]
        client = client_of(attempt, shown)
        state = await self.load().run_rollout(row, client, "policy", {})
        if state.get("error"):
            raise SaidError("task", str(state["error"]["error_chain_str"]))
        if errors:
            raise SaidError("task", errors[0])
        return {
            "done": True,
            "reward": state["reward"],
            "metrics": state["metrics"],
            "stop": state["stop_condition"] or "",
            "truncated": bool(state["is_truncated"]),
        }


def client_of(attempt: Attempt, shown: list[str]) -> Any:
    """A client in the package's sense whose model is the other side."""
    from verifiers.clients import Client
    from verifiers.types import Response, ResponseMessage, ToolCall

    async def get_response(
        self: Any, prompt: Any, model: str, sampling: Any = None, tools: Any = None, **_: Any
    ) -> Any:
        if [tool.name for tool in tools or ()] != shown:
            raise SaidError("task", "a row with tools of its own: only the environment's are shown")
        answer = await attempt.ask([plain(message) for message in prompt])
        calls = [
            ToolCall(id=call["id"], name=call["name"], arguments=json.dumps(call["arguments"]))
            for call in answer.get("tool_calls") or ()
        ]
        message = ResponseMessage(
            content=answer["content"],
            tool_calls=calls or None,
            finish_reason="tool_calls" if calls else "stop",
            is_truncated=False,
        )
        return Response(id="", created=int(time.time()), model=model, message=message)

    async def unused(self: Any, *given: Any, **named: Any) -> Any:
        raise NotImplementedError("the policy is at the other end of a pipe")

    methods = dict.fromkeys(Client.__abstractmethods__, unused)
    made = type("Policy", (Client,), {**methods, "get_response": get_response})
    return made(attempt)


def loaded(name: str, args: dict[str, Any]) -> Any:
    if importlib.util.find_spec(name.replace("-", "_").split("/")[-1]) is None:
        raise SaidError("unknown", json.dumps(environments()))
    try:
        import verifiers

        load = verifiers.load_environment
        importlib.import_module("verifiers.clients")
    except (ImportError, AttributeError) as error:
        raise SaidError(
            "user", f"this verifiers has no environments (0.1.14 to 0.3.1 have): {error}"
        ) from error
    logging.getLogger("verifiers").addHandler(RubricErrors())  # after its own set-up of loggers
    try:
        return load(name, **args)
    except Exception as error:
        raise SaidError("user", said_by(error)) from error


def environments() -> list[str]:
    """Modules in sight that have a `load_environment`."""
    found = []
    for place in map(Path, dict.fromkeys(sys.path)):
        if place.is_dir():
            for path in (*place.glob("*.py"), *place.glob("*/__init__.py")):
                if b"def load_environment" in path.read_bytes():
                    found.append(path.parent.name if path.stem == "__init__" else path.stem)
    return sorted(set(found) - {"verifiers", Path(__file__).stem})


def said_by(error: BaseException) -> str:
    """Its text and where it came from."""
    cause = error.__cause__ or error
    frames = traceback.extract_tb(cause.__traceback__)
    place = f" ({frames[-1].filename}, line {frames[-1].lineno})" if frames else ""
    return f"{type(cause).__name__}: {cause}{place}"


async def answered(side: Side, request: dict[str, Any]) -> dict[str, Any]:
    try:
        result = await getattr(side, request["method"])(request.get("params", {}))
        return {"id": request["id"], "result": result}
    except SaidError as wrong:
        return {"id": request["id"], "error": {"kind": wrong.kind, "message": str(wrong)}}
    except Exception as error:  # noqa: BLE001 - the environment's own code
        return {"id": request["id"], "error": {"kind": "task", "message": said_by(error)}}


async def serve(out: Any) -> None:
    side = Side(sys.argv[1], json.loads(sys.argv[2]))
    reader = asyncio.StreamReader(limit=MAX_LINE)
    loop = asyncio.get_running_loop()
    await loop.connect_read_pipe(lambda: asyncio.StreamReaderProtocol(reader), sys.stdin)
    tasks = set()

    async def one(request: dict[str, Any]) -> None:
        out.write(json.dumps(await answered(side, request), default=str) + "\n")
        out.flush()

    while line := await reader.readline():
        task = asyncio.create_task(one(json.loads(line)))
        tasks.add(task)
        task.add_done_callback(tasks.discard)


def main() -> None:
    out = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # what the environment prints is none of our messages
    sys.path[0] = os.getcwd()  # the user's modules, not this file's neighbours
    asyncio.run(serve(out))
    os._exit(0)  # threads of the environment's may still be there


if __name__ == "__main__":
    main()
