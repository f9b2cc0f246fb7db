"""A thread that takes what a service has finished, and who waits for it.

    collector = Collector("scores", service.collect, keep)
    collector.start()
    with collector.changed:
        collector.wait_for(lambda: complete)        # woken after each `keep`

What the thread raises is raised again by whoever waits; it never ends silently.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from typing import Generic, TypeVar

TIMEOUT_S = 1.0
"""Of one call of `collect`: how long closing may take to be seen."""
Item = TypeVar("Item")


class Collector(Generic[Item]):
    """`changed` guards the state that `keep` writes; `keep` is called without it, and takes it itself."""

    def __init__(
        self,
        name: str,
        collect: Callable[[float], Sequence[Item]],
        keep: Callable[[Sequence[Item]], None],
    ) -> None:
        """`collect(timeout_s)`: what has finished, possibly nothing."""
        self.changed = threading.Condition()
        self._collect, self._keep = collect, keep
        self._error: BaseException | None = None
        self._closing = threading.Event()
        self._thread = threading.Thread(target=self._run, name=name, daemon=True)

    def start(self) -> None:
        self._thread.start()

    def wait_for(self, done: Callable[[], bool]) -> None:
        """With `changed` held. Raises what the thread has raised, before or meanwhile."""
        self.changed.wait_for(lambda: self._error is not None or done())
        self.check()

    def check(self) -> None:
        """Raises what the thread has raised."""
        if self._error is not None:
            raise self._error

    def close(self) -> None:
        """Stops collecting; what was collected has been kept."""
        self._closing.set()
        if self._thread.is_alive():
            self._thread.join(timeout=TIMEOUT_S * 5)

    def _run(self) -> None:
        try:
            while not self._closing.is_set():
                found = self._collect(TIMEOUT_S)
                if found:
                    self._keep(found)
                    with self.changed:
                        self.changed.notify_all()
        except BaseException as error:  # noqa: BLE001 - handed to who waits, who raises it
            with self.changed:
                self._error = error
                self.changed.notify_all()
