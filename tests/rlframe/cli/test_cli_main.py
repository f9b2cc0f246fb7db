"""The command line: exit codes, messages, help; and that nothing heavy loads before it must."""

import subprocess
import sys

import pytest

from rlframe.cli.main import main

HEAVY = ("torch", "ray", "sglang", "megatron", "transformers", "wandb", "deepspeed")


def test_a_typo_in_a_command_names_the_nearest(capsys):
    assert main(["trian"]) == 2
    assert "Did you mean 'train'?" in capsys.readouterr().err


def test_a_wrong_key_is_one_line_and_code_2(capsys):
    assert main(["train", "rollout.engine=2"]) == 2
    shown = capsys.readouterr().err
    assert shown.startswith("rlframe: ")
    assert "Traceback" not in shown


def test_dry_run_shows_the_plan_and_starts_nothing(capsys):
    assert main(["train", "experiment=sft_tiny", "--dry-run", "cluster.min_memory_gib=0"]) == 0
    assert "policy" in capsys.readouterr().out


@pytest.mark.parametrize(
    "verb", ["train", "eval", "explain", "config", "plan", "convert", "inspect", "doctor"]
)
def test_every_command_has_help(verb, capsys):
    with pytest.raises(SystemExit) as ended:
        main([verb, "--help"])
    assert ended.value.code == 0
    assert "usage" in capsys.readouterr().out


def test_train_help_teaches_groups_and_examples(capsys):
    with pytest.raises(SystemExit):
        main(["train", "--help"])
    shown = capsys.readouterr().out
    for word in ("experiment=smoke", "sft_tiny", "resume", "--dry-run"):
        assert word in shown


@pytest.mark.parametrize(
    "modules", ["rlframe, envs", "rlframe.cli.main, rlframe.config.compose, rlframe.config.check"]
)
def test_nothing_heavy_loads(modules):
    code = f"import sys, {modules}; print([m for m in {HEAVY!r} if m in sys.modules])"
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=60
    )
    assert done.stdout.strip() == "[]"
