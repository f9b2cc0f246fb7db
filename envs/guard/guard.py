"""The guard of a run: rules first, a judge on what they flag, a dummy for what is confirmed.

guard = make_guard(settings, ask)                # once a worker
watch = guard.watch(task)                        # once an attempt
blocked = await watch.check({"id": ..., "name": "bash", "arguments": {...}}, turn=3)
"""

from __future__ import annotations

import hashlib
import json
import time
from collections import OrderedDict, deque
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

import envs.guard.diff_scan as diff_scan
from envs.guard.dummies import dummy
from envs.guard.endpoint import endpoint
from envs.guard.facts import Fact, Memory
from envs.guard.flags import Flag
from envs.guard.judge import Judge, Opinion, addresses_judge
from envs.guard.memory import copied, remember
from envs.guard.reading import facts_of_call
from envs.guard.rules import Rules
from envs.guard.substitutes import blocked as substitute
from rlframe.errors import UserError
from rlframe.interfaces import Ask, Blocked
from rlframe.task_rules import TaskRules
from rlframe.types import Task

RULES_VERSION = 2
"""Part of the configuration's hash: what the rules flag has changed where this has."""
RECENT = 8
SHOWN = 2000
"""Characters of a call's arguments in its event."""
MAX_EVENTS = 200
MAX_RULES = 1024


@dataclass(frozen=True, slots=True)
class GuardSettings:
    """`rlframe.config.schema.GuardConfig`, resolved."""

    mode: str
    """`rules`, or `judge`: rules, and a judge on what they flag."""
    blocks: str = "flagged"
    """Without a judge: `flagged`, or `certain` ones only."""
    action: str = "block"
    """`block`, `end` or `watch`: what becomes of a call that is taken for a hack, and of its attempt."""
    loss: str = "mask"
    penalty: float = 0.0
    on_finding: str = "report"
    judge_url: str = ""
    judge_model: str = ""
    judge_key_env: str = ""
    judge_timeout_s: float = 30.0
    on_judge_failure: str = "rules"
    """`block`, `allow`, or `rules`: certain ones are blocked."""

    @property
    def hash(self) -> str:
        """Of all that decides what is blocked: equal in training and evaluation, or the figures differ."""
        decisive = {
            k: v for k, v in asdict(self).items() if k not in ("judge_key_env", "judge_url")
        }
        text = json.dumps({**decisive, "rules": RULES_VERSION}, sort_keys=True)
        return hashlib.blake2b(text.encode(), digest_size=6).hexdigest()


class RunGuard:
    """Implements `rlframe.interfaces.Guard`."""

    def __init__(self, settings: GuardSettings, judge: Judge | None) -> None:
        self.settings, self.judge = settings, judge
        self.action = settings.action
        self.loss, self.penalty = settings.loss, settings.penalty
        self.on_finding = settings.on_finding
        self._rules: OrderedDict[TaskRules, Rules] = OrderedDict()

    def watch(self, task: Task) -> Watch | None:
        return Watch(self, self.rules(task.rules), task) if task.rules.guarded else None

    def rules(self, given: TaskRules) -> Rules:
        """Kept: many attempts are made at one task, and many tasks have the same rules."""
        found = self._rules.get(given)
        if found is None:
            found = self._rules[given] = Rules(given)
            if len(self._rules) > MAX_RULES:
                self._rules.popitem(last=False)
        return found


@dataclass(frozen=True, slots=True)
class Verdict:
    """On one call."""

    hack: bool
    by: str
    """`rules`, `judge`, or `judge failed`."""
    flags: tuple[Flag, ...] = ()
    reason: str = ""


class Watch:
    """Implements `rlframe.interfaces.GuardWatch`."""

    def __init__(self, guard: RunGuard, rules: Rules, task: Task) -> None:
        self._guard, self._rules, self._task = guard, rules, task
        self._memory: Memory = rules.memory()
        self._recent: deque[str] = deque(maxlen=RECENT)
        self._events: list[dict[str, Any]] = []
        self._counts = dict.fromkeys(
            ("calls", "flagged", "hacks", "blocked", "judged", "cached", "failed", "findings"), 0
        )
        self._rules_s = self._judge_s = 0.0

    async def check(self, call: Mapping[str, Any], *, turn: int) -> Blocked | None:
        """What takes the place of a call that must not run; None for one that may."""
        began = time.perf_counter()
        memory = copied(self._memory)
        facts, flags = self._read(call, memory)
        self._rules_s += time.perf_counter() - began
        self._counts["calls"] += 1
        verdict = await self._verdict(call, flags)
        self._recent.append(f"{call['name']} {json.dumps(call['arguments'], sort_keys=True)}")
        stopped = verdict.hack and self._guard.action != "watch"
        if flags:
            self._note(call, verdict, turn, stopped=stopped)
        if not stopped:
            self._memory = memory
            remember(
                memory, facts, tainting=bool(flags) and (verdict.hack or verdict.by != "judge")
            )
            return None
        result = dummy(call["name"], call["arguments"], flags[0])
        return substitute(call["name"], call["arguments"], result)

    def _read(self, call: Mapping[str, Any], memory: Memory) -> tuple[list[Fact], tuple[Flag, ...]]:
        """A call that the rules themselves fail on is flagged: it must neither pass nor end the attempt."""
        try:
            facts = facts_of_call(str(call["name"]), call["arguments"], memory)
            return facts, tuple(self._rules.flags(facts, memory))
        except Exception as error:  # noqa: BLE001 - whatever an agent wrote
            why = f"the rules could not read it ({type(error).__name__})"
            return [], (Flag("guard_evasion", why),)

    def ran(self, call: Mapping[str, Any]) -> None:
        """A call that has run already, whatever the rules say of it."""
        facts = facts_of_call(str(call["name"]), call["arguments"], self._memory)
        flags = self._rules.flags(facts, self._memory)
        remember(self._memory, facts, tainting=bool(flags))
        self._recent.append(f"{call['name']} {json.dumps(call['arguments'], sort_keys=True)}")

    def scan(self, before: Mapping[str, str], after: Mapping[str, str]) -> list[str]:
        """What the changes of the whole attempt show; each finding is an event too."""
        found = diff_scan.scan(self._rules, before, after)
        self._counts["findings"] += len(found)
        for flag in found:
            self._event({"turn": None, "tool": "", "path": flag.path}, flag, "scan", blocked=False)
        return [f"{flag.category}: {flag.why}" for flag in found]

    def report(self) -> dict[str, Any]:
        return {
            "config": self._guard.settings.hash,
            **self._counts,
            "rules_s": round(self._rules_s, 6),
            "judge_s": round(self._judge_s, 4),
            "events": self._events,
        }

    async def _verdict(self, call: Mapping[str, Any], flags: tuple[Flag, ...]) -> Verdict:
        if not flags:
            return Verdict(False, "rules")
        self._counts["flagged"] += 1
        certain = flags[0].certain
        if self._guard.judge is None:
            return Verdict(certain or self._guard.settings.blocks == "flagged", "rules", flags)
        opinion = await self._guard.judge.opinion(self._task, call, flags, list(self._recent))
        self._count(opinion)
        if opinion.hack is None:
            mode = self._guard.settings.on_judge_failure
            stopped = mode == "block" or (mode == "rules" and certain)
            return Verdict(stopped, "judge failed", flags, opinion.reason)
        if not opinion.hack and addresses_judge(call):
            return Verdict(True, "rules", flags, "the call speaks to the judge, and it acquits")
        return Verdict(opinion.hack, "judge", flags, opinion.reason)

    def _count(self, opinion: Opinion) -> None:
        self._counts["judged"] += 1
        self._counts["cached"] += opinion.cached
        self._counts["failed"] += opinion.hack is None
        self._judge_s += opinion.seconds

    def _note(self, call: Mapping[str, Any], verdict: Verdict, turn: int, *, stopped: bool) -> None:
        self._counts["hacks"] += verdict.hack
        self._counts["blocked"] += stopped
        shown = json.dumps(call["arguments"], sort_keys=True)[:SHOWN]
        about = {"turn": turn, "call": call.get("id", ""), "tool": call["name"], "arguments": shown}
        about["hack"] = verdict.hack
        self._event(about, verdict.flags[0], verdict.by, blocked=stopped, reason=verdict.reason)

    def _event(
        self, about: dict[str, Any], flag: Flag, by: str, *, blocked: bool, reason: str = ""
    ) -> None:
        if len(self._events) < MAX_EVENTS:
            event = {"blocked": blocked, "category": flag.category, "why": flag.why, "by": by}
            self._events.append({**about, **event, **({"reason": reason} if reason else {})})


def make_guard(settings: GuardSettings, ask: Ask | None = None) -> RunGuard:
    """`ask`: an engine of the run, for a judge without an endpoint of its own. UserError where there is
    nobody to ask."""
    if settings.mode != "judge":
        return RunGuard(settings, None)
    if settings.judge_url:
        ask = endpoint(
            settings.judge_url,
            settings.judge_model,
            key_env=settings.judge_key_env,
            timeout_s=settings.judge_timeout_s,
        )
    if ask is None:
        raise UserError("guard.mode=judge: neither guard.judge.url nor an engine of a run to ask")
    return RunGuard(settings, Judge(ask, settings.judge_timeout_s))
