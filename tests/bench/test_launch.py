"""Real Ray Train on this machine: two workers by gloo train to the curve, and end as, one process does."""

import json

import pytest
import torch

from bench import tuning
from bench.data.dataset import load_dataset
from bench.data.splits import make_splits
from bench.environment import Hardware
from bench.execute import run_state
from bench.methods import make_spec
from experiments import SUITES
from experiments.profiles import PROFILES

TWO_CORES = Hardware(2, 8.0, ())
RECIPE = PROFILES["smoke"].recipe.model_copy(
    update={"batch_images": 8, "steps": 20, "validate_every": 5, "warmup_steps": 10, "precision": "fp32"}
)
TWO_WORKERS = PROFILES["smoke"].model_copy(
    update={"recipe": RECIPE, "workers_per_trial": 2, "cpus_per_trial": 1, "memory_gib_per_trial": 0}
)


@pytest.fixture(autouse=True)
def _one_thread(monkeypatch):
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture
def suite(toy, tmp_path):
    """suite(name): a folder with splits of the toy data, and their hash."""
    splits = make_splits([load_dataset(toy)])

    def make(name):
        folder = tmp_path / name
        folder.mkdir()
        splits.save(folder / "splits.json")
        return folder, splits.hash

    return make


def specs_of(methods, split_hash, profile=TWO_WORKERS):
    return [make_spec(SUITES["smoke"], profile, method, "hiera_xt", 0, split_hash) for method in methods]


def curves(run_dir):
    """{step: {name: value}} of history.jsonl."""
    rows = [json.loads(line) for line in (run_dir / "history.jsonl").read_text().splitlines()]
    return {row["step"]: {name: row[name] for name in row if name not in ("step", "time")} for row in rows}


def test_two_workers_of_four_images_train_as_one_of_eight(suite):
    (together, split_hash), (alone, _) = suite("together"), suite("alone")
    specs = specs_of(("boltzformer", "sam", "sam3"), split_hash)
    tuning.run_trials(specs, together, TWO_WORKERS, TWO_CORES)
    tuning.run_trials_here(specs, alone)
    for spec in specs:
        runs = [folder / spec.run_id for folder in (together, alone)]
        states = [run_state(run) for run in runs]
        assert [state["state"] for state in states] == ["finished"] * 2, states
        two, one = (curves(run) for run in runs)
        print(two, one)
        assert two.keys() == one.keys()
        for step in one:
            assert two[step] == pytest.approx(one[step], abs=1e-4), (spec.method, step)
