"""What the display reads from the run folders, and that it says so on a terminal and in a log file."""

import io
import json
import time

import pytest
from rich.console import Console

from bench.display import Display, TrialState, read_trial, suite_left, time_left
from bench.methods import make_spec
from bench.runlog import RunLog
from experiments import SUITES
from experiments.profiles import PROFILES

SPECS = [make_spec(SUITES["smoke"], PROFILES["smoke"], m, "hiera_xt", 0, "0" * 12) for m in ("sam", "nnunet")]


def write_status(folder, spec, **status):
    (folder / spec.run_id).mkdir(parents=True, exist_ok=True)
    (folder / spec.run_id / "status.json").write_text(json.dumps(status))


def progress(phase="train", step=50, total=100, started=0.0, phase_started=0.0, updated=100.0):
    return {
        "phase": phase,
        "step": step,
        "total": total,
        "started": started,
        "phase_started": phase_started,
        "phase_first_step": 0,
        "updated": updated,
    }


def test_the_pace_of_a_phase_tells_the_time_left():
    # half of 100 steps in 100 s: another 100 s, and a tenth of the estimate for what follows
    assert time_left(progress(), expected=400.0, now=100.0) == pytest.approx(100 + 40)
    assert time_left(progress(), expected=400.0, now=110.0) == pytest.approx(90 + 40)
    assert time_left(progress("predict"), expected=400.0, now=100.0) == pytest.approx(100)
    # too young to have a pace: the estimate
    assert time_left(progress(step=1, updated=1.0), expected=400.0, now=1.0) == pytest.approx(399)


def test_what_a_trial_waited_before_its_experts_is_no_part_of_their_pace():
    state = progress("waiting", step=0, updated=0.0)
    assert time_left(state, expected=400.0, now=300.0) == 400.0
    state = progress("expert 3/4 nodule", step=50, total=100, phase_started=60.0, updated=110.0)
    assert time_left(state, expected=400.0, now=110.0) == pytest.approx(50 + 40)


def test_a_trial_is_read_from_its_folder(tmp_path):
    spec = SPECS[0]
    now = time.time()
    assert read_trial(spec, tmp_path, 60.0, now).state == "waiting"
    write_status(tmp_path, spec, state="running")
    assert read_trial(spec, tmp_path, 60.0, now).left == 60.0
    log = RunLog(tmp_path / spec.run_id)
    log.progress("train", 7, 20)
    log.metrics(7, val_dice=0.625)
    trial = read_trial(spec, tmp_path, 60.0, now)
    assert (trial.state, trial.phase, trial.step, trial.total, trial.val_dice) == (
        "running",
        "train",
        7,
        20,
        0.625,
    )
    write_status(tmp_path, spec, state="failed", error="ValueError: no", seconds=3.0)
    trial = read_trial(spec, tmp_path, 60.0, now)
    assert (trial.state, trial.error, trial.left) == ("failed", "ValueError: no", 0.0)


def test_waiting_trials_start_when_a_lane_is_free():
    trials = [TrialState(SPECS[0], "running", left=left) for left in (10.0, 50.0)]
    trials += [TrialState(SPECS[0], "waiting", left=left) for left in (5.0, 30.0)]
    trials += [TrialState(SPECS[0], "finished", left=0.0)]
    # two lanes: 10 + 30 = 40, then 5 more = 45; the other ends at 50
    assert suite_left(trials, 2) == 50.0
    assert suite_left(trials[:1] + trials[2:], 1) == 45.0
    # seed by seed: 1 on the first lane, then 10 and 90 on whichever is free; the longest first would end at 90
    later = SPECS[0].model_copy(update={"seed": 1})
    trials = [TrialState(SPECS[0], "running", left=1.0), TrialState(SPECS[0], "waiting", left=10.0)]
    assert suite_left([*trials, TrialState(later, "waiting", left=90.0)], 2) == 91.0


def test_without_a_terminal_each_change_is_one_line(tmp_path):
    output = io.StringIO()
    expected = {spec.run_id: 60.0 for spec in SPECS}
    display = Display(Console(file=output, width=200), tmp_path, SPECS, expected, 2, "smoke")
    display.print_lines(display.trials())
    assert output.getvalue() == ""
    write_status(tmp_path, SPECS[0], state="running")
    RunLog(tmp_path / SPECS[0].run_id).progress("train", 7, 20)
    for _ in range(3):
        display.print_lines(display.trials())
    write_status(tmp_path, SPECS[0], state="failed", error="ValueError: [no]", seconds=3.0)
    write_status(tmp_path, SPECS[1], state="finished", seconds=4.0)
    display.print_lines(display.trials())
    lines = output.getvalue().splitlines()
    assert len(lines) == 3
    assert lines[0].startswith("sam hiera_xt seed 0: train 7/20, about ")
    assert lines[1] == "sam hiera_xt seed 0: failed after 3 s: ValueError: [no]"
    assert lines[2] == "nnunet seed 0: finished after 4 s"


def test_in_a_log_a_trials_end_says_how_far_the_suite_is(tmp_path):
    output = io.StringIO()
    expected = {spec.run_id: 600.0 for spec in SPECS}
    display = Display(Console(file=output, width=200), tmp_path, SPECS, expected, 2, "smoke")
    write_status(tmp_path, SPECS[0], state="finished", seconds=4.0)
    display.print_lines(display.trials())
    assert output.getvalue() == "sam hiera_xt seed 0: finished after 4 s (1 of 2 trials; about 10 min left)\n"


def test_waiting_trials_are_as_much_slower_than_their_estimate_as_those_that_train(tmp_path):
    specs = [SPECS[0].model_copy(update={"seed": seed}) for seed in range(3)]
    display = Display(Console(file=io.StringIO()), tmp_path, specs, {s.run_id: 600.0 for s in specs}, 1, "smoke")
    assert [trial.left for trial in display.trials()] == [600.0] * 3
    now = time.time()
    for step, factor in ((1, 1), (30, 2)):  # one step has no pace; 30 of 100 in 324 s: 18 minutes, 9 estimated
        write_status(tmp_path, specs[0], state="running")
        state = progress(step=step, started=now - 324, phase_started=now - 324, updated=now)
        (tmp_path / specs[0].run_id / "progress.json").write_text(json.dumps(state))
        display.trials()
        assert display.trials()[1].left == pytest.approx(600 * factor)
    write_status(tmp_path, specs[0], state="finished", seconds=1.0)
    assert [trial.left for trial in display.trials()] == pytest.approx([0.0, 1200.0, 1200.0])


def test_on_a_terminal_the_table_lives_and_ends_with_the_last_state(tmp_path):
    output = io.StringIO()
    console = Console(file=output, width=120, height=40, force_terminal=True, color_system=None)
    expected = {spec.run_id: 60.0 for spec in SPECS}
    with Display(console, tmp_path, SPECS, expected, 2, "smoke"):
        write_status(tmp_path, SPECS[0], state="running")
        log = RunLog(tmp_path / SPECS[0].run_id)
        log.metrics(7, val_dice=0.625)
        log.progress("train", 7, 20)
        time.sleep(1.2)
        for spec in SPECS:
            write_status(tmp_path, spec, state="finished", seconds=4.0)
    text = output.getvalue()
    assert "7/20" in text and "62.5" in text and "0/2 trials" in text
    assert "2/2 trials" in text[text.rindex("method") :]
