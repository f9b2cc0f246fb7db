"""`rlframe convert`: finds the source, shows progress, says what was written."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from rich.console import Console
from rich.progress import (
    BarColumn,
    DownloadColumn,
    Progress,
    TextColumn,
    TimeRemainingColumn,
    TransferSpeedColumn,
)

from rlframe.checkpoints import Checkpoint, Checkpoints
from rlframe.errors import UserError
from rlframe.launch.model_files import TOKENIZER_FILES
from rlframe.run_directory import RunDirectory

if TYPE_CHECKING:
    from trainer.convert.plan import Target
    from trainer.convert.sources import Source

UNITS = {"": 1, "KB": 10**3, "MB": 10**6, "GB": 10**9, "KIB": 2**10, "MIB": 2**20, "GIB": 2**30}
ROLE_FILE = "role.json"
TARGETS: dict[str | None, Target] = {
    None: "stored",
    "float32": "float32",
    "bfloat16": "bfloat16",
    "float8": "float8",
}
SHOWN_PROBLEMS = 200
LOGGED_BYTES = 10**9
"""Less is done before anybody looks into the log."""


def run_convert(
    source: str,
    target: str,
    *,
    dtype: str | None,
    max_shard_size: str,
    drop_mtp: bool,
    step: int | None,
    role: str,
    mtp_from: str | None = None,
    console: Console | None = None,
) -> int:
    """UserError for what can't be converted; an interrupted conversion is gone on with by the same command."""
    from trainer.convert.stream import Conversion, Options

    out = console or Console(highlight=False)
    options = Options(TARGETS[dtype], read_size(max_shard_size), drop_mtp)
    found = find_source(Path(source), step=step, role=role)
    if mtp_from is not None:
        found = _with_mtp(found, Path(mtp_from), drop_mtp=drop_mtp)
    conversion = Conversion(found, Path(target), options)
    with _progress(out, "writing", conversion.num_bytes) as advance:
        done = conversion.run(advance)
    resumed = f", {done.resumed_files} of them by an earlier attempt" if done.resumed_files else ""
    out.print(
        f"wrote {target}: {done.tensors:,} tensors, {_size(done.num_bytes)} in "
        f"{done.files} file{'s' * (done.files > 1)}{resumed}"
    )
    return 0


def run_check(source: str, *, console: Console | None = None) -> int:
    """Prints every problem. UserError, with their number, where there are any."""
    from trainer.convert.check import count_numbers, name_problems, value_problems
    from trainer.convert.sources import HfSource

    out = console or Console(highlight=False)
    checked = HfSource(Path(source))
    problems = name_problems(checked)
    with _progress(out, "reading", count_numbers(checked)) as advance:
        problems += value_problems(checked, advance)
    for problem in problems[:SHOWN_PROBLEMS]:
        out.print(problem, markup=False, soft_wrap=True)
    if problems:
        hidden = f", {SHOWN_PROBLEMS} of them shown" if len(problems) > SHOWN_PROBLEMS else ""
        raise UserError(f"{source}: {len(problems):,} problems{hidden}")
    numbers = f"{count_numbers(checked):,} numbers, all finite"
    out.print(f"{source} is whole: {len(checked.checkpoint.shapes):,} tensors, {numbers}")
    return 0


def find_source(path: Path, *, step: int | None, role: str) -> Source:
    """A Hugging Face checkpoint, a run (its latest checkpoint, or that of `step`), or one role's state."""
    from trainer.convert.run_source import SavedRole
    from trainer.convert.sources import HfSource

    if not path.is_dir():
        raise UserError(f"there is no directory '{path}'")
    run = RunDirectory(path)
    if run.checkpoints.is_dir():
        checkpoint = _checkpoint(run, step)
        model = run.path / "model"
        companions = [model / name for name in TOKENIZER_FILES if (model / name).is_file()]
        return SavedRole(_role_directory(checkpoint.directory, role), companions=companions)
    if step is not None:
        raise UserError(f"--step: '{path}' is no run directory: it has no {run.checkpoints.name}/")
    if (path / ROLE_FILE).exists():
        return SavedRole(path)
    if (path / role / ROLE_FILE).exists():
        return SavedRole(path / role)
    return HfSource(path)


def _with_mtp(source: Source, donor: Path, *, drop_mtp: bool) -> Source:
    from trainer.convert.sources import HfSource
    from trainer.convert.with_mtp import WithMtp

    if drop_mtp:
        raise UserError("--mtp-from adds the layer that --drop-mtp leaves out: give one of them")
    return WithMtp(source, HfSource(donor))


def read_size(text: str) -> int:
    """`5GB`, `500MiB`, `1000000` -> bytes. Raises UserError."""
    found = re.fullmatch(r"(\d+(?:\.\d+)?)\s*([a-zA-Z]*)", text.strip())
    if not found or found[2].upper() not in UNITS or not float(found[1]):
        raise UserError(f"--max-shard-size={text}: write a size such as 5GB, 500MB or 2GiB")
    return int(float(found[1]) * UNITS[found[2].upper()])


def _checkpoint(run: RunDirectory, step: int | None) -> Checkpoint:
    complete = Checkpoints(run.checkpoints, keep=1).complete()
    if not complete:
        raise UserError(f"{run.path} has no complete checkpoint")
    if step is None:
        return complete[-1]
    for checkpoint in complete:
        if checkpoint.step == step:
            return checkpoint
    steps = ", ".join(str(checkpoint.step) for checkpoint in complete)
    raise UserError(f"--step={step}: {run.path} has checkpoints of steps {steps}")


def _role_directory(checkpoint: Path, role: str) -> Path:
    roles = sorted(p.name for p in checkpoint.iterdir() if (p / ROLE_FILE).exists())
    if role not in roles:
        raise UserError(f"--role={role}: '{checkpoint}' has {', '.join(roles) or 'no role'}")
    return checkpoint / role


@contextmanager
def _progress(console: Console, what: str, total: int) -> Iterator[Callable[[int], None]]:
    """A bar on a terminal; in a log a line for each tenth."""
    if not console.is_terminal:
        yield _tenths(console, what, total)
        return
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        DownloadColumn(),
        TransferSpeedColumn(),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=console) as progress:
        task = progress.add_task(what, total=total)
        yield lambda count: progress.advance(task, count)


def _tenths(console: Console, what: str, total: int) -> Callable[[int], None]:
    done, said = 0, 0

    def advance(count: int) -> None:
        nonlocal done, said
        done += count
        if total >= LOGGED_BYTES and done * 10 // total > said:
            said = done * 10 // total
            console.print(f"{what}: {said * 10}% of {_size(total)}")

    return advance


def _size(num_bytes: int) -> str:
    return f"{num_bytes / 1e9:,.2f} GB" if num_bytes >= 1e9 else f"{num_bytes / 1e6:,.1f} MB"
