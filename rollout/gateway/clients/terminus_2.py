"""Terminus 2 (harbor 0.24): nothing but its prompts tells it. It hands over to itself in three calls: a summary
in the old context, questions on it in a new one, answers in the old one; the new context goes on from the questions.
"""

from __future__ import annotations

from rollout.capture.call import CallKind
from rollout.chat import Identity
from rollout.gateway.clients.seen import Seen

SUMMARY_REQUESTS = ("You are about to hand off your work to another AI agent.",)


def identify(seen: Seen) -> Identity | None:
    if seen.asked.tools or not _asks_for_summary(seen):
        return None
    return Identity(kind=CallKind.COMPACTION)


def _asks_for_summary(seen: Seen) -> bool:
    return next(seen.last_user_lines(), "").startswith(SUMMARY_REQUESTS)
