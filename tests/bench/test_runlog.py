"""The files a run log leaves: a curve without double points, a progress file that is not written too often."""

import itertools
import json
import math

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from bench import runlog
from bench.runlog import RunLog


class Sink:
    """Keeps what a tracker would be sent."""

    def __init__(self):
        self.points = []

    def log(self, step, values):
        self.points += [(step, name, value) for name, value in values.items()]


def history(run_dir):
    return [json.loads(line) for line in (run_dir / "history.jsonl").read_text().splitlines()]


def test_a_restarted_trial_replaces_the_steps_it_repeats(tmp_path):
    first = RunLog(tmp_path, Sink())
    first.metrics(10, train_loss=1.0)
    first.metrics(20, val_loss=2.0, val_dice=0.4)
    first.metrics(30, train_loss=0.9)
    again = RunLog(tmp_path, sink := Sink())
    for step, loss in ((20, 0.95), (30, 0.85), (40, 0.8)):
        again.metrics(step, train_loss=loss)
    again.metrics(30, val_dice=0.3)
    again.metrics(30, val_dice=0.2)  # told twice: the first stays
    rows = [{name: value for name, value in row.items() if name != "time"} for row in history(tmp_path)]
    assert rows == [
        {"step": 10, "train_loss": 1.0},
        {"step": 20, "train_loss": 0.95},
        {"step": 30, "train_loss": 0.85},
        {"step": 40, "train_loss": 0.8},
        {"step": 30, "val_dice": 0.3},
    ]
    # the tracker, which knows what the first start has sent, drops what is there already
    trained = [(20, "train_loss", 0.95), (30, "train_loss", 0.85), (40, "train_loss", 0.8)]
    assert sink.points == [*trained, (30, "val_dice", 0.3)]


def test_a_trial_that_goes_on_keeps_what_was_there(tmp_path):
    RunLog(tmp_path).metrics(10, train_loss=1.0)
    RunLog(tmp_path).metrics(20, train_loss=0.9)
    assert [row["step"] for row in history(tmp_path)] == [10, 20]


def test_a_line_that_cannot_be_read_does_not_stop_a_restart(tmp_path):
    RunLog(tmp_path).metrics(10, train_loss=1.0)
    with (tmp_path / "history.jsonl").open("a") as file:
        file.write("not json\n")
    RunLog(tmp_path).metrics(10, train_loss=0.5)
    assert [(row["step"], row["train_loss"]) for row in history(tmp_path)] == [(10, 0.5)]


@pytest.mark.parametrize(
    "line", ['{"step": 1e999}', '{"step": "5"}', '{"step": ' + "[" * 100_000, '{"step": 1, "time": 1e999}', "[1]"]
)
def test_what_somebody_else_has_written_there_is_no_traceback(line, tmp_path):
    (tmp_path / "history.jsonl").write_text(line + "\n")
    RunLog(tmp_path).metrics(10, train_loss=1.0)
    assert [row["step"] for _, row in runlog.read_history(tmp_path / "history.jsonl") if "train_loss" in row] == [10]


def test_a_torn_last_line_is_cut_off_and_its_step_is_logged_again(tmp_path):
    RunLog(tmp_path).metrics(1, train_loss=1.0)
    with (tmp_path / "history.jsonl").open("a") as handle:
        handle.write('{"step": 2, "train_lo')
    RunLog(tmp_path).metrics(2, train_loss=0.5)
    assert [(row["step"], row["train_loss"]) for row in history(tmp_path)] == [(1, 1.0), (2, 0.5)]


def test_a_loss_that_is_no_number_is_a_gap_in_valid_json(tmp_path):
    log = RunLog(tmp_path, sink := Sink())
    log.metrics(1, train_loss=math.nan, val_dice=0.5)
    assert "NaN" not in (tmp_path / "history.jsonl").read_text()
    assert history(tmp_path)[0]["train_loss"] is None
    assert sink.points == [(1, "val_dice", 0.5)]


@pytest.fixture
def clock(monkeypatch):
    """The time, in a list to be changed, and what has been written to progress.json."""
    now, writes = [1000.0], []
    monkeypatch.setattr(runlog.time, "time", lambda: now[0])
    monkeypatch.setattr(runlog, "write_json", lambda path, value, durable: writes.append(value))
    return now, writes


def test_progress_is_written_at_most_once_a_second_and_at_both_ends(tmp_path, clock):
    now, writes = clock
    log = RunLog(tmp_path)
    for step in range(1, 101):
        now[0] += 0.1
        log.progress("train", step, 100)
    # 10 s of steps: the first, then one a second, and the last
    assert 10 <= len(writes) <= 13
    assert (writes[0]["step"], writes[-1]["step"]) == (1, 100)
    gaps = [b["updated"] - a["updated"] for a, b in itertools.pairwise(writes[:-1])]
    assert min(gaps) == pytest.approx(1.0)
    log.progress("predict", 0, 7)
    assert writes[-1]["phase"] == "predict" and writes[-1]["phase_started"] == now[0]
    assert writes[-1]["started"] == 1000.0


def test_the_steps_of_all_experts_count_together_and_not_what_was_before_them(tmp_path, clock):
    now, writes = clock
    log = RunLog(tmp_path)
    for phase, step in (("prepare", 0), ("expert 1/2 liver", 10), ("expert 1/2 liver", 50), ("expert 2/2 spleen", 51)):
        now[0] += 100
        log.progress(phase, step, 1 if phase == "prepare" else 100)
    assert [(state["phase_started"], state["phase_first_step"]) for state in writes] == [
        (1100.0, 0),
        (1200.0, 10),
        (1200.0, 10),
        (1200.0, 10),
    ]
    now[0] += 100
    log.progress("predict", 0, 100)  # as many, and another kind
    assert (writes[-1]["phase_started"], writes[-1]["phase_first_step"]) == (1500.0, 0)


POINTS = st.lists(st.tuples(st.integers(0, 5), st.sampled_from(["train_loss", "val_dice"])), max_size=30)


@settings(max_examples=30, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(parts=st.lists(POINTS, max_size=4))
def test_however_often_it_is_restarted_no_point_is_there_twice(tmp_path_factory, parts):
    run_dir = tmp_path_factory.mktemp("run")
    for points in parts:
        log = RunLog(run_dir)
        for step, name in points:
            log.metrics(step, **{name: float(step)})
    expected: set[tuple[int, str]] = set()
    for points in parts:
        if points:
            expected = {(step, name) for step, name in expected if step < points[0][0]} | set(points)
    rows = history(run_dir) if (run_dir / "history.jsonl").exists() else []
    there = [(row["step"], name) for row in rows for name in row if name not in ("step", "time")]
    assert sorted(there) == sorted(expected)
