"""`rlframe`: one command with a few verbs. Heavy packages load only when a verb needs them."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence

from rlframe.cli.arguments import read_arguments
from rlframe.errors import RunError, UserError

USER_ERROR, RUN_ERROR, INTERRUPTED = 2, 1, 130


def main(argv: Sequence[str] | None = None) -> int:
    """Exit codes: 0 done, 1 the run could not go on, 2 the user can mend it, 130 interrupted."""
    try:
        return _dispatch(read_arguments(sys.argv[1:] if argv is None else argv))
    except UserError as error:
        print(f"rlframe: {error}", file=sys.stderr)
        return USER_ERROR
    except RunError as error:
        print(f"rlframe: {error}", file=sys.stderr)
        return RUN_ERROR
    except KeyboardInterrupt:
        return INTERRUPTED
    except BrokenPipeError:
        # The reader of our output is gone (`| head`); Python's own flush at exit would complain.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0


def _dispatch(given: argparse.Namespace) -> int:
    match given.verb:
        case "train":
            return _train(given.overrides, given.config_dir, dry_run=given.dry_run)
        case "distill":
            return _distill(given.overrides, given.config_dir, dry_run=given.dry_run)
        case "eval":
            from rlframe.cli.evaluate import run_eval

            return run_eval(given)
        case "explain":
            return _explain(given.key, given.overrides, given.config_dir)
        case "config":
            return _config(given.overrides, given.config_dir, reference=given.reference)
        case "plan":
            return _plan(given)
        case "convert":
            return _convert(given)
        case "inspect":
            from rlframe.inspect import run_inspect

            return run_inspect(
                given.run_dir,
                trajectory=given.trajectory,
                export=given.export,
                picture=given.picture,
            )
        case "replay":
            from rlframe.launch.replay import run_replay

            return run_replay(given.run_dir, given.step)
        case "guard":
            return _guard(given)
        case "doctor":
            from rlframe.doctor import run_doctor

            return run_doctor()
        case _:
            read_arguments(["--help"])
    return 0


def _train(overrides: Sequence[str], config_dir: str | None, *, dry_run: bool) -> int:
    from rlframe.config.check import check_config
    from rlframe.config.compose import load_config
    from rlframe.package_origin import check_package_origin

    check_package_origin()
    presets = [text for text in overrides if text.partition("=")[0] == "eval"]
    if presets:
        raise UserError(
            f"{presets[0]}: presets are for `rlframe eval`. A training run's held-out attempts are sampled as "
            "it trains; rollout.eval_engines lets them run in the background"
        )
    config = load_config(overrides, config_dir=config_dir)
    check_config(config)
    if dry_run:
        from rlframe.cli.dry_run import show_dry_run
        from rlframe.launch.precheck import precheck

        precheck(config)
        show_dry_run(config)
        return 0
    from rlframe.launch.run import run

    return run(config)


def _distill(overrides: Sequence[str], config_dir: str | None, *, dry_run: bool) -> int:
    """`train`, for the one algorithm; chosen here where neither the experiment nor the user does."""
    from rlframe.config.compose import load_config

    groups = {text.split("=")[0] for text in overrides}
    if not groups & {"experiment", "algorithm"}:
        overrides = ["algorithm=opd", *overrides]
    chosen = load_config(overrides, config_dir=config_dir).algorithm.name
    if chosen != "opd":
        raise UserError(
            f"`rlframe distill` is for algorithm=opd, and this configuration has algorithm={chosen}: "
            "add algorithm=opd, or use `rlframe train`"
        )
    return _train(overrides, config_dir, dry_run=dry_run)


def _plan(given: argparse.Namespace) -> int:
    from rlframe.cli.plan import run_plan
    from rlframe.config.compose import load_config

    return run_plan(
        load_config(given.overrides, config_dir=given.config_dir),
        contexts=given.contexts,
        averaged=given.averaged,
        json_file=given.json,
        plot=given.plot,
        count=given.count,
    )


def _convert(given: argparse.Namespace) -> int:
    from rlframe.launch.convert import run_check, run_convert

    if given.check and given.target is None:
        return run_check(given.source)
    if given.check or given.target is None:
        raise UserError("convert takes SRC and DST, or SRC and --check")
    return run_convert(
        given.source,
        given.target,
        dtype=given.dtype,
        max_shard_size=given.max_shard_size,
        drop_mtp=given.drop_mtp,
        mtp_from=given.mtp_from,
        step=given.step,
        role=given.role,
    )


def _guard(given: argparse.Namespace) -> int:
    if given.what == "audit":
        from rlframe.guard_audit import run_audit

        return run_audit(given.path, json_file=given.json)
    from rlframe.config.compose import load_config
    from rlframe.launch.guard import run_score

    config = load_config(given.overrides, config_dir=given.config_dir)
    return run_score(given.path, config=config.guard, json_file=given.json)


def _explain(key: str, overrides: Sequence[str], config_dir: str | None) -> int:
    from rlframe.config.explain import explain
    from rlframe.launch.our_defaults import our_defaults

    print(explain(key, overrides, config_dir=config_dir, our_defaults=our_defaults))
    return 0


def _config(overrides: Sequence[str], config_dir: str | None, *, reference: bool) -> int:
    if reference:
        from rlframe.config.reference import reference_table

        print(reference_table(), end="")
        return 0
    from rlframe.config.compose import load_config
    from rlframe.config.saved import as_yaml

    print(as_yaml(load_config(overrides, config_dir=config_dir)), end="")
    return 0


if __name__ == "__main__":
    sys.exit(main())
