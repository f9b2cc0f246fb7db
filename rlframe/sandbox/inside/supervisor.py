"""Process 1 of a sandbox: takes requests on its standard input, runs them, answers on its standard output.

A request is its length (4 bytes, big-endian) and a marshalled (header, payload): it comes from us. An
answer is ANSWER and as many bytes as it says: what comes out of a sandbox is anybody's, and must be easy
to read safely. The first request holds the settings. Commands run as children; what touches files runs in
a forked child too, so that a FIFO or a full disk stops nobody. As process 1 without handlers it gets no
signal from inside, and it may not be traced. Its end ends the sandbox.

Imports are few because they are most of a sandbox's start: json, selectors and signal cost 40 ms of CPU.
"""

from __future__ import annotations

import _signal as signal  # type: ignore[import-not-found]
import errno
import marshal
import os
import resource
import select
import struct
import time

import file_jobs  # type: ignore[import-not-found]
import overlay_root  # type: ignore[import-not-found]

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any

    Header = dict[str, Any]

ANSWER = struct.Struct(">IBBBBdQQQQ")
"""id, kind, exit code, timed out, disk full, seconds, bytes of stdout and of stderr that follow, bytes of
both that were dropped."""
DONE, READY, REFUSED, CRASHED = range(4)
CHUNK = 1 << 16
PIPE_BYTES = 1 << 16
FILE_JOB_S = 120.0
END_ALL_S = 5.0


class Kept:
    """The beginning and the end of a stream: half of `limit` each."""

    def __init__(self, limit: int) -> None:
        self.half, self.dropped = max(limit // 2, 1), 0
        self.head, self.tail = bytearray(), bytearray()
        self.fd = -1
        self.pump: Callable[[], object] = int

    def add(self, data: bytes) -> None:
        room = max(self.half - len(self.head), 0)
        self.head += data[:room]
        self.tail += data[room:]
        if len(self.tail) > 2 * self.half + CHUNK:
            self._cut()

    def _cut(self) -> None:
        extra = max(len(self.tail) - self.half, 0)
        self.dropped += extra
        del self.tail[:extra]

    def value(self) -> bytes:
        self._cut()
        return bytes(self.head + self.tail)


class Job:
    def __init__(self, header: Header, stdin: bytes) -> None:
        self.id, self.stdin = header["id"], stdin
        limit = header.get("max_output_bytes", 1 << 20)
        self.streams = {"out": Kept(limit), "err": Kept(limit)}
        self.began = time.monotonic()
        self.deadline = self.began + header.get("timeout_s", FILE_JOB_S)
        self.pid, self.ended, self.timed_out = 0, False, False


class Supervisor:
    def __init__(self, limits: dict[str, int]) -> None:
        self.limits = limits
        self.poll = select.poll()
        self.readers: dict[int, Callable[[], object]] = {}
        self.jobs: dict[int, Job] = {}
        wake, signalled = os.pipe()
        os.set_blocking(wake, False)
        os.set_blocking(signalled, False)
        signal.set_wakeup_fd(signalled, warn_on_full_buffer=False)
        signal.signal(signal.SIGCHLD, lambda *_: None)
        signal.signal(signal.SIGINT, signal.SIG_DFL)
        self.register(wake, select.POLLIN, lambda: drain(wake))
        self.register(0, select.POLLIN, lambda: self.handle(*read_request()))

    def register(self, fd: int, events: int, ready: Callable[[], object]) -> None:
        self.poll.register(fd, events)
        self.readers[fd] = ready

    def unregister(self, fd: int) -> None:
        """And close."""
        self.poll.unregister(fd)
        del self.readers[fd]
        os.close(fd)

    def run(self) -> None:
        while True:
            deadlines = [j.deadline for j in self.jobs.values() if not j.timed_out]
            wait = max(min(deadlines) - time.monotonic(), 0) * 1000 + 1 if deadlines else None
            for fd, _ in self.poll.poll(wait):
                if fd in self.readers:
                    self.readers[fd]()
            self.reap()
            now = time.monotonic()
            for job in self.jobs.values():
                if now >= job.deadline and not job.timed_out:
                    job.timed_out = True
                    kill_group(job.pid)

    def handle(self, header: Header, payload: bytes) -> None:
        if header["op"] == "end_processes":
            self.end_all()
            answer(header["id"], DONE)
        elif header["op"] == "cancel":
            for job in self.jobs.values():
                if job.id == header["job"]:
                    kill_group(job.pid)
        else:
            self.start(Job(header, payload), header)

    def start(self, job: Job, header: Header) -> None:
        pipes = {"in": os.pipe(), "out": os.pipe(), "err": os.pipe()}
        try:
            job.pid = self.fork()
        except OSError as error:
            for pair in pipes.values():
                os.close(pair[0])
                os.close(pair[1])
            answer(job.id, REFUSED, err=str(error).encode())
            return
        if job.pid == 0:
            self.child(header, job.stdin, pipes)
        os.close(pipes["in"][0])
        os.close(pipes["out"][1])
        os.close(pipes["err"][1])
        self.jobs[job.pid] = job
        for name in ("out", "err"):
            self.listen(job, name, pipes[name][0])
        if header["op"] == "exec":
            self.feed(job, pipes["in"][1])
        else:
            os.close(pipes["in"][1])

    def child(self, header: Header, payload: bytes, pipes: dict[str, tuple[int, int]]) -> None:
        """Never returns."""
        code = 127
        try:
            os.setsid()
            os.dup2(pipes["in"][0], 0)
            os.dup2(pipes["out"][1], 1)
            os.dup2(pipes["err"][1], 2)
            signal.set_wakeup_fd(-1)
            signal.signal(signal.SIGCHLD, signal.SIG_DFL)
            signal.signal(signal.SIGPIPE, signal.SIG_DFL)
            restrict(self.limits)
            if header["op"] == "exec":
                os.chdir(header["cwd"])
                os.execvpe(header["command"][0], header["command"], header["env"])
            file_jobs.JOBS[header["op"]](header, payload)
            code = 0
        except OSError as error:
            about = error.filename if isinstance(error.filename, str) else ""
            report(error.errno or 0, error.strerror or str(error), about)
            code = 126 if header["op"] == "exec" else 1
        except Exception as error:  # noqa: BLE001 - told to who asked
            report(errno.EINVAL, f"{type(error).__name__}: {error}", "")
            code = 1
        finally:
            os._exit(code)

    def listen(self, job: Job, name: str, fd: int) -> None:
        os.set_blocking(fd, False)

        def readable() -> None:
            try:
                data = os.read(fd, CHUNK)
            except BlockingIOError:
                return
            if data:
                if not job.ended:  # a background process may go on writing; nobody listens
                    job.streams[name].add(data)
                return
            self.unregister(fd)
            job.streams[name].fd = -1

        self.register(fd, select.POLLIN, readable)
        job.streams[name].pump, job.streams[name].fd = readable, fd

    def feed(self, job: Job, fd: int) -> None:
        os.set_blocking(fd, False)

        def writable() -> None:
            try:
                job.stdin = job.stdin[os.write(fd, job.stdin[:CHUNK]) :] if job.stdin else b""
            except BlockingIOError:
                return
            except OSError:
                job.stdin = b""
            if not job.stdin:
                self.unregister(fd)

        self.register(fd, select.POLLOUT, writable)

    def reap(self) -> None:
        while True:
            try:
                pid, status = os.waitpid(-1, os.WNOHANG)
            except ChildProcessError:
                return
            if pid == 0:
                return
            job = self.jobs.pop(pid, None)
            if job is not None:
                self.finish(job, os.waitstatus_to_exitcode(status))

    def fork(self) -> int:
        """Once more after everybody else's end, where there is no room for one more process."""
        try:
            return os.fork()
        except OSError:
            self.end_all()
            return os.fork()

    def end_all(self) -> None:
        """Kill everything but this process, and wait until it is gone."""
        until = time.monotonic() + END_ALL_S
        while time.monotonic() < until:
            try:
                os.kill(-1, signal.SIGKILL)
            except ProcessLookupError:
                return
            self.reap()
            select.select([], [], [], 0.002)

    def finish(self, job: Job, code: int) -> None:
        for kept in job.streams.values():
            # What stands in the pipe, not what a background process goes on writing.
            for _ in range(PIPE_BYTES // CHUNK + 1):
                if kept.fd >= 0 and pending(kept.fd):
                    kept.pump()
        job.ended = True
        out, err = job.streams["out"], job.streams["err"]
        answer(
            job.id,
            DONE,
            code=128 - code if code < 0 else code,
            timed_out=job.timed_out,
            seconds=time.monotonic() - job.began,
            out=out.value(),
            err=err.value(),
            dropped=(out.dropped, err.dropped),
        )


def drain(wake: int) -> None:
    try:  # contextlib costs 5 ms of a start
        os.read(wake, CHUNK)
    except BlockingIOError:
        return


def pending(fd: int) -> bool:
    return bool(select.select([fd], [], [], 0)[0])


def disk_full() -> bool:
    free = os.statvfs("/")
    return free.f_bavail * free.f_frsize < 1 << 16 or free.f_favail == 0


def restrict(limits: dict[str, int]) -> None:
    """Of one command: the sum over all of them is the host's to watch."""
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    for name, value in limits.items():
        resource.setrlimit(getattr(resource, name), (value, value))
    try:
        with open("/proc/self/oom_score_adj", "w") as file:
            file.write("1000")
    except OSError:
        pass


def kill_group(pid: int) -> None:
    try:
        os.killpg(pid, signal.SIGKILL)
    except (ProcessLookupError, PermissionError):
        try:
            os.kill(pid, signal.SIGKILL)
        except ProcessLookupError:
            return


def read_exactly(fd: int, count: int) -> bytes:
    parts = []
    while count:
        data = os.read(fd, min(count, 1 << 20))
        if not data:
            os._exit(0)
        parts.append(data)
        count -= len(data)
    return b"".join(parts)


def read_request() -> tuple[Header, bytes]:
    (size,) = struct.unpack(">I", read_exactly(0, 4))
    header, payload = marshal.loads(read_exactly(0, size))
    return header, payload


def report(number: int, text: str, path: str) -> None:
    """What a file operation met, as its standard error."""
    os.write(2, f"{number}\t{text}\t{path}".encode(errors="replace"))


def answer(
    job: int,
    kind: int,
    *,
    code: int = 0,
    timed_out: bool = False,
    seconds: float = 0.0,
    out: bytes = b"",
    err: bytes = b"",
    dropped: tuple[int, int] = (0, 0),
) -> None:
    full = kind == DONE and disk_full()
    head = ANSWER.pack(
        job, kind, code & 255, timed_out, full, seconds, len(out), len(err), *dropped
    )
    data = memoryview(head + out + err)
    while data:
        data = data[os.write(CONTROL, data) :]


CONTROL = 1
"""Where answers go, once commands have standard outputs of their own."""


def main() -> None:
    global CONTROL
    settings, _ = read_request()
    overlay_root.build(settings["root"])
    if settings["model_port"]:
        listen_for_model(settings["model_port"])
    if settings["root"]["image"]:
        import tarfile  # noqa: F401 - this Python's library is not in the image
    overlay_root.enter()
    overlay_root.drop_capabilities()
    CONTROL = os.dup(1)
    quiet = os.open("/dev/null", os.O_WRONLY)
    os.dup2(quiet, 1)
    os.dup2(quiet, 2)
    answer(0, READY)
    try:
        Supervisor(settings["limits"]).run()
    except BaseException as error:  # noqa: BLE001 - told before the sandbox ends
        answer(0, CRASHED, err=f"{type(error).__name__}: {error}"[:300].encode())


def listen_for_model(port: int) -> None:
    """A port of loopback before the model's Unix socket, where programs look for their API."""
    import socket
    import threading

    import forward  # type: ignore[import-not-found]

    listener = socket.create_server(("127.0.0.1", port), backlog=128)
    threading.Thread(target=forward.serve, args=(listener, "/run/model/sock"), daemon=True).start()
