"""Runs inside the sandbox: a TCP port on loopback in front of the gateway's Unix socket, and the program.

    python -I forward.py '{"socket": ..., "port": ..., "limits": {...}}' COMMAND ARGUMENTS...

Standard library only, by whatever Python is there. Ends with the program's exit code; the sandbox's
process namespace ends with this process, and whatever the program left running with it.
"""

import contextlib
import json
import resource
import socket
import subprocess
import sys
import threading

LIMITS = {
    "memory_bytes": resource.RLIMIT_AS,
    "file_bytes": resource.RLIMIT_FSIZE,
    "processes": resource.RLIMIT_NPROC,
    "cpu_s": resource.RLIMIT_CPU,
}


def pump(source: socket.socket, target: socket.socket) -> None:
    """Bytes from one to the other until the source says that it has no more."""
    try:
        while data := source.recv(1 << 16):
            target.sendall(data)
    except OSError:
        pass
    finally:
        with contextlib.suppress(OSError):
            target.shutdown(socket.SHUT_WR)


def serve(listener: socket.socket, path: str) -> None:
    while True:
        client, _ = listener.accept()
        client.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        gateway = socket.socket(socket.AF_UNIX)
        try:
            gateway.connect(path)
        except OSError:
            client.close()
            continue
        for pair in ((client, gateway), (gateway, client)):
            threading.Thread(target=pump, args=pair, daemon=True).start()


def limit(limits: dict[str, int]) -> None:
    for name, value in limits.items():
        resource.setrlimit(LIMITS[name], (value, value))


def main() -> int:
    settings = json.loads(sys.argv[1])
    listener = socket.create_server(("127.0.0.1", settings["port"]), backlog=128)
    threading.Thread(target=serve, args=(listener, settings["socket"]), daemon=True).start()
    program = subprocess.Popen(
        sys.argv[2:], stdin=subprocess.DEVNULL, preexec_fn=lambda: limit(settings["limits"])
    )
    code = program.wait()
    return 128 - code if code < 0 else code


if __name__ == "__main__":
    sys.exit(main())
