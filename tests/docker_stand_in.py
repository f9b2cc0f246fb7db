#!/usr/bin/env python3
"""A stand-in for the `docker` command, scripted: containers are files, commands run here, unprotected.

There is no daemon on the machines that test this; what is held is what is asked for and how answers are read.
"""

import os
import subprocess
import sys
from pathlib import Path

STATE = Path(os.environ["DOCKER_STAND_IN_STATE"])


def fail(text: str, code: int) -> None:
    print(text, file=sys.stderr)
    sys.exit(code)


def main(words: list[str]) -> None:
    with (STATE / "log").open("a") as log:
        log.write("\t".join(words) + "\n")
    if words[0] == "run":
        image = words[-3]
        if image == "absent":
            fail("docker: Error response from daemon: pull access denied for absent", 125)
        (STATE / "container").touch()
        print("Pulling a layer ...\nc0ffee")
    elif words[0] == "rm":
        (STATE / "container").unlink(missing_ok=True)
    elif words[0] == "exec":
        if not (STATE / "container").exists():
            fail("Error response from daemon: No such container: c0ffee", 1)
        rest = words[2:]
        options = [rest.pop(0) for _ in range(len(rest)) if rest[0].startswith("--")]
        assert rest.pop(0) == "c0ffee"
        cwd = next(o.split("=", 1)[1] for o in options if o.startswith("--workdir="))
        env = dict(o.split("=", 1)[1].split("=", 1) for o in options if o.startswith("--env="))
        code = subprocess.run(rest, cwd=cwd, env=env, check=False).returncode
        sys.exit(128 - code if code < 0 else code)


main(sys.argv[1:])
