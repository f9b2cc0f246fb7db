"""The terminal view and the rest of what a person sees: shown numbers, warnings, summary, pictures."""

import io
import json
import math
import re
import struct
import threading
from xml.etree import ElementTree

import pytest
from hypothesis import given
from hypothesis import strategies as st
from rich.console import Console

from rlframe import plots
from rlframe.advice import PATIENCE, advice
from rlframe.live import View, save_picture
from rlframe.live_panel import BARS, duration, number, sparkline, step_line
from rlframe.metrics import Metrics
from rlframe.summary import summarise, write_summary


def step_values(step: int, **more: float) -> dict[str, float]:
    return {
        "reward/mean": step / 100,
        "reward/gcd": step / 50,
        "reward/sort": 0.0,
        "rollout/tokens": 1000.0,
        "rollout/actions": 200.0,
        "staleness/mean": 0.0,
        "policy/kl": 1.5e-3,
        "policy/entropy": 1.5,
        "critic/explained_variance": 0.75,
        "gap/mean": 2e-7,
        "gap/max": 3.25e-6,
        **more,
    }


def history(steps: int, **more: float) -> list[dict]:
    lines = [{"event": "held_out", "step": 0, "held_out/mean": 0.125, "held_out/gcd": 0.25}]
    for step in range(1, steps + 1):
        timing = {"time/rollout_s": 0.75, "time/update_s": 0.25, "time/total_s": 1.0}
        rates = {"throughput/tokens_per_s": 1000.0}
        lines.append(
            {"event": "step", "step": step, **step_values(step, **more), **timing, **rates}
        )
    lines.append({"event": "held_out", "step": steps, "held_out/mean": 0.5, "held_out/gcd": 0.75})
    return lines


def sft_history(steps: int) -> list[dict]:
    return [
        {"event": "step", "step": s, "sft/loss": 3.0 / s, "sft/held_out_loss": 4.0 / s}
        for s in range(1, steps + 1)
    ]


def console(*, terminal: bool) -> Console:
    return Console(file=io.StringIO(), width=100, force_terminal=terminal, color_system=None)


def shown(view_console: Console) -> str:
    return re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", view_console.file.getvalue())


def test_the_panel_shows_what_a_person_asks_for(tmp_path):
    out = console(terminal=True)
    with View(title="smoke", total_steps=10, live="auto", console=out) as view:
        metrics = Metrics(tmp_path / "m.jsonl", sinks=[view], on_span=view.phase)
        metrics.log(0, {"held_out/mean": 0.125}, event="held_out")
        with metrics.span("rollout"):
            view.progress(87, 128)
            text = _rendered(view)
            assert "now  rollout 87/128" in text
        metrics.log(1, step_values(1))
        metrics.log(2, step_values(2))
        text = _rendered(view)
        metrics.close()
    for expected in (
        "step 2/10", "0.020", "▁", "held out", "0.125", "gcd 0.040", "rollout", "tokens/s",
        "staleness", "KL", "1.5e-03", "entropy", "1.500", "explained var.", "0.750",
        "largest gap", "3.2e-06", "left",
    ):  # fmt: skip
        assert expected in text, expected
    assert "step 2/10" in shown(out), "the last panel stays on the terminal"


def _rendered(view: View) -> str:
    out = console(terminal=False)
    out.print(view.render())
    return out.file.getvalue()


def test_without_a_terminal_there_is_one_line_a_step():
    out = console(terminal=False)
    with View(title="smoke", total_steps=10, live="auto", console=out) as view:
        view.say("2 engines are up [1/2]")
        view.write("step", 1, step_values(1) | {"time/rollout_s": 0.75, "time/total_s": 1.0})
        view.write("held_out", 1, {"held_out/mean": 0.5, "held_out/gcd": 0.25})
    start, step, held_out = shown(out).splitlines()
    assert start == "2 engines are up [1/2]"
    assert step.startswith("step 1/10  reward 0.010  ")
    assert step.endswith("1.00 s (rollout 0.75)")
    assert held_out == "step 1  held-out reward 0.500  (gcd 0.250)"


@pytest.mark.parametrize(("live", "terminal", "panels"), [("off", True, 0), ("on", False, 1)])
def test_live_can_be_forced(live, terminal, panels):
    out = console(terminal=terminal)
    with View(title="forced", total_steps=10, live=live, console=out) as view:
        view.write("step", 1, step_values(1))
    assert ("forced" in shown(out)) == bool(panels)


def test_a_resumed_run_shows_its_whole_curve():
    view = View(title="smoke", total_steps=10, live="off", console=console(terminal=False))
    view.restore(history(4))
    assert "step 4/10" in _rendered(view)
    assert "from 0.125 at step 0" in _rendered(view)


def test_the_view_is_written_from_several_threads():
    out = console(terminal=True)
    with View(title="smoke", total_steps=1000, live="on", console=out) as view:

        def tick(part: int) -> None:
            for i in range(50):
                view.progress(i, 50)
                view.write("step", part * 50 + i, step_values(1))
                view.render()

        threads = [threading.Thread(target=tick, args=(k,)) for k in range(3)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert len(view._history) == 150


def test_an_empty_run_and_an_sft_run_can_be_shown():
    view = View(title="sft", total_steps=10, live="off", console=console(terminal=False))
    assert "starting" in _rendered(view)
    view.restore(sft_history(3))
    text = _rendered(view)
    assert "loss" in text
    assert "1.000" in text
    assert "held-out loss" in text
    assert "loss 1.000" in step_line({"sft/loss": 1.0}, step=1, total_steps=2)


@given(st.lists(st.floats(-1e6, 1e6), max_size=200), st.integers(1, 60))
def test_a_sparkline_has_its_width_and_only_bars(values, width):
    line = sparkline(values, width)
    assert len(line) == min(width, len(values))
    assert set(line) <= set(BARS)


def test_rewards_keep_the_scale_from_0_to_1():
    assert sparkline([0.0, 0.5, 1.0], 3) == "▁▅█"
    assert sparkline([0.0, 0.0], 2) == "▁▁"
    assert sparkline([10.0, 20.0], 2) == "▁█"


@pytest.mark.parametrize(
    ("value", "text"),
    [(0.0, "0.000"), (0.5, "0.500"), (1.5e-3, "1.5e-03"), (-3e-7, "-3.0e-07"), (123.456, "123.5"),
     (12345.6, "12,346"), (math.nan, "nan")],
)  # fmt: skip
def test_numbers(value, text):
    assert number(value) == text


def test_durations():
    assert [duration(s) for s in (0, 61, 3723)] == ["0:00", "1:01", "1:02:03"]


@pytest.mark.parametrize(
    ("name", "bad", "good", "says"),
    [
        ("critic/explained_variance", -0.5, 0.5, "trainer.critic.lr"),
        ("rollout/truncated", 0.75, 0.25, "max_new_tokens"),
        ("policy/kl", 0.5, 0.01, "trainer.policy.lr"),
        ("gap/mean", 0.05, 1e-3, "rollout.engine_args"),
    ],
)
def test_advice_comes_after_patience_and_names_what_to_change(name, bad, good, says):
    def run(*values: float) -> dict[str, str]:
        return advice([{"event": "step", "step": i, name: v} for i, v in enumerate(values)])

    (text,) = run(*[bad] * PATIENCE).values()
    assert says in text
    assert not run(*[bad] * (PATIENCE - 1)), "too early"
    assert not run(*[bad] * PATIENCE, good), "it is over"


@pytest.mark.parametrize(
    ("name", "says"),
    [
        ("attempts/infra_error_share", "lost by our side"),
        ("attempts/failed_share", "rlframe inspect"),
    ],
)
def test_a_rate_of_lost_attempts_is_an_alarm_at_once(name, says):
    def run(*values: float) -> dict[str, str]:
        return advice([{"event": "step", "step": i, name: v} for i, v in enumerate(values)])

    (text,) = run(0.5).values()
    assert "50% of the attempts of the last 1 steps" in text
    assert says in text
    assert not run(*[0.5] * 3, *[0.0] * 5), "it is over"
    assert not run(*[0.0] * 4, 0.05), "one in twenty is no alarm"


def test_a_skipped_update_is_said_at_once():
    assert "step 3" in advice([{"event": "step", "step": 3, "policy/skipped": 1.0}])["updates_are_skipped"]  # fmt: skip
    assert not advice([{"event": "step", "step": 3, "policy/skipped": 0.0}])


def test_a_warning_is_said_once():
    out = console(terminal=False)
    with View(title="smoke", total_steps=10, live="off", console=out) as view:
        for step in range(2):
            view.warn("the disk is nearly full: free some space")
            view.write("step", step, {"policy/skipped": 1.0})
    assert shown(out).count("warning: ") == 2


def test_the_summary_counts_and_compares_the_ends(tmp_path):
    summary = summarise(history(20))
    assert summary["steps"] == 20
    assert summary["tokens"] == 20_000
    assert summary["actions"] == 4_000
    assert summary["tokens_per_s"] == 1000.0
    assert summary["phase_seconds"] == {"rollout": 15.0, "update": 5.0}
    assert summary["largest_logprob_gap"] == 3.25e-6
    assert summary["reward"]["first"] == pytest.approx(0.03)
    assert summary["reward"]["last"] == pytest.approx(0.18)
    assert summary["held_out"]["first"] == 0.125
    assert summary["held_out"]["last"] == 0.5
    assert summary["held_out"]["domains"]["gcd"]["last"] == 0.75
    path = tmp_path / "summary.json"
    write_summary(path, summary)
    assert json.loads(path.read_text()) == summary


@pytest.mark.parametrize("lines", [[], history(0)[:1], history(1), sft_history(30)])
def test_any_history_can_be_summed_up_shown_and_drawn(lines, tmp_path):
    out = console(terminal=False)
    view = View(title="smoke", total_steps=10, live="off", console=out)
    view.restore(lines)
    view.summary(summarise(lines), files={"curve": "reward.png"})
    assert "reward.png" in shown(out)
    plots.reward_curve(lines, tmp_path / "reward.png", title="smoke")
    save_picture(tmp_path / "view.svg", lines, title="smoke", total_steps=10)


def test_the_curve_is_a_png_of_some_size(tmp_path):
    path = tmp_path / "reward.png"
    plots.reward_curve(history(30), path, title="smoke")
    head = path.read_bytes()[:24]
    assert head.startswith(b"\x89PNG")
    assert struct.unpack(">II", head[16:]) == (1200, 675)


def test_the_picture_of_the_terminal_is_an_svg_that_fetches_nothing(tmp_path):
    path = tmp_path / "view.svg"
    lines = history(30)
    save_picture(path, lines, title="smoke", total_steps=60, summary=summarise(lines))
    text = path.read_text()
    tree = ElementTree.fromstring(text)
    words = " ".join(tree.itertext()).replace("\xa0", " ")
    assert "step 30/60" in words
    assert "0.500" in words
    assert "@font-face" not in text
    assert [u for u in re.findall(r"https?://[^\"' )]+", text) if "w3.org" not in u] == []


def test_smoothing_is_the_mean_of_the_last_values():
    assert plots.smoothed([(1, 1.0), (2, 3.0), (3, 5.0)], 2) == [(1, 1.0), (2, 2.0), (3, 4.0)]
