"""Whose fault a failure is.

Three kinds, told apart by type:
- `UserError`: the user can fix it. Shown as one readable message, no stack trace, exit code 2. It is
  raised at start-up wherever that is possible, before anything is claimed.
- `RolloutError` and its kinds: one attempt failed. It becomes data (`Status.FAILED` or
  `Status.INFRA_ERROR`) and never a crash, never a reward of zero; `PolicyFault`, the policy's own doing,
  ends the attempt as `Status.COMPLETED`.
- `RunError`: the run cannot go on (a rank died, an invariant broke). Exit code 1, with the reason.
Anything else is our bug and keeps its stack trace.
"""

from __future__ import annotations

import difflib
import sysconfig
import traceback
from collections.abc import Iterable


class RlframeError(Exception):
    """Base of what rlframe raises on purpose."""


class UserError(RlframeError, ValueError):
    """The user can fix it, and the message says how."""


class RunError(RlframeError, RuntimeError):
    """The run cannot go on; the message says why, and what is saved."""


class RolloutError(RlframeError, RuntimeError):
    """One attempt failed."""


class TaskFault(RolloutError):  # noqa: N818 - named for whose fault it is
    """The environment's or verifier's own code failed."""


class PolicyFault(RolloutError):  # noqa: N818
    """What the policy did ended the attempt (it destroyed its sandbox): an attempt like any other, that
    earned nothing more."""


class InfraFault(RolloutError):  # noqa: N818
    """Our side failed: engine, network, disk."""


def nearest(name: str, allowed: Iterable[str]) -> str:
    """The hint that ends a message about an unknown name: ` Did you mean 'x'?`, or what is allowed."""
    names = sorted(allowed)
    close = difflib.get_close_matches(name, names, n=1, cutoff=0.5)
    if close:
        return f" Did you mean '{close[0]}'?"
    if len(names) <= 20:
        return f" Allowed: {', '.join(names) or 'nothing'}."
    return ""


def describe(error: BaseException) -> str:
    """Type, message and place of what somebody else's code raised, for a person to read. The place is
    the innermost line that is not in an installed library."""
    if isinstance(error, SyntaxError):
        return f"SyntaxError: {error.msg} ({error.filename}, line {error.lineno})"
    frames = traceback.extract_tb(error.__traceback__)
    installed = tuple(sysconfig.get_path(name) for name in ("stdlib", "purelib"))
    own = [f for f in frames if not f.filename.startswith((*installed, "<"))] or frames
    place = f" ({own[-1].filename}, line {own[-1].lineno})" if own else ""
    return f"{type(error).__name__}: {error}{place}"
