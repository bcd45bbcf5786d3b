"""Real Ray that ends its workers because it believes that memory ran out."""

import re
import time

import pytest

from bench import tuning
from bench.environment import Hardware
from bench.errors import UserError
from bench.execute import run_state
from experiments.profiles import PROFILES

TWO_CORES = Hardware(2, 4.0, ())
PROFILE = PROFILES["smoke"]


def hold(spec, suite_dir, run_dir, tracker, spread, micro_batch=None):
    """A trial's work: the first time that of seed 1 is begun, it stays until its process is ended."""
    tries = len(list(suite_dir.glob(f"begun-{spec.seed}-*")))
    (suite_dir / f"begun-{spec.seed}-{tries}").touch()
    if spec.seed == 1 and tries == 0:
        time.sleep(240)
    return {}


@pytest.fixture
def short_of_memory(monkeypatch):
    """short_of_memory(times): the next Rays of our own believe, 20 seconds after they began, that memory ran out."""
    ray_here = tuning._ray

    def begin(times):
        left = iter(range(times))

        def believing(*arguments):
            believes = next(left, None) is not None
            for name, value in (("usage_threshold", "0.001"), ("monitor_refresh_ms", "20000")):
                variable = f"RAY_memory_{name}"
                monkeypatch.setenv(variable, value) if believes else monkeypatch.delenv(variable)
            return ray_here(*arguments)

        monkeypatch.setattr(tuning, "_ray", believing)

    return begin


def test_trials_that_ray_ends_for_want_of_memory_begin_again(two_priors, short_of_memory, monkeypatch, capsys):
    """As often as it happens: Tune itself ends with the first."""
    folder, specs = two_priors
    monkeypatch.setattr(tuning, "PAUSE", 1.0)
    short_of_memory(1)
    tuning.run_trials(specs, folder, PROFILE, TWO_CORES, work=hold)
    assert [run_state(folder / spec.run_id)["state"] for spec in specs] == ["finished"] * 2
    assert sorted(file.name for file in folder.glob("begun-*")) == ["begun-0-0", "begun-1-0", "begun-1-1"]
    said = capsys.readouterr().err
    assert re.fullmatch(r"warning: memory ran out \(\S+GB of \S+GB used; most, .+ in 1 s; end what .+\n", said), said


@pytest.mark.slow
def test_memory_that_runs_out_again_and_again_is_told_in_a_line(two_priors, short_of_memory, monkeypatch):
    folder, specs = two_priors
    monkeypatch.setattr(tuning, "LOST", 0)
    short_of_memory(1)
    with pytest.raises(UserError, match=r"^memory ran out 1 times \(.+ run the same command again$"):
        tuning.run_trials(specs, folder, PROFILE, TWO_CORES, work=hold)
    assert [run_state(folder / spec.run_id)["state"] for spec in specs] == ["finished", "interrupted"]
