"""The numbers of the smoke suite on a CPU against tests/golden/smoke.json: a change of them is a decision.

Where they are to change, renew the file and commit it with what changed them:

    RENEW_GOLDEN=1 pytest -n 0 tests/test_golden.py

fp32 and one thread, whatever the machine: what is left between processors is rounding, which training makes larger step
by step. TOLERANCES are 2.5 times and more of the largest difference seen between one and two threads, between AVX-512,
AVX2 and SSE4 and between an AMD EPYC and an Intel Xeon: 0.000001 in the training loss of step 10, 0.007 in later losses
(0.002 on one processor), 1.8 points of Dice. Repeated runs are equal.
"""

import json
import os
import platform
from pathlib import Path

import pandas as pd
import pytest
import torch

from bench.atomic import write_json
from bench.data.dataset import load_dataset
from bench.data.phantom import generate
from bench.data.splits import make_splits
from bench.environment import package_versions
from bench.execute import execute, run_state
from bench.methods import make_spec
from experiments import SUITES
from experiments.profiles import PROFILES
from reports.aggregate import dice_percent

FILE = Path(__file__).parent / "golden" / "smoke.json"
METHODS = ("location_prior", "boltzformer", "seem", "sam", "sam2")
# large enough to be learned in 40 steps, and one that is not
OBJECTS = {"AMOS22-CT": ("liver", "spleen"), "AMOS22-MRI": ("spleen", "aorta"), "LIDC-IDRI": ("nodule",)}
RECIPE = {"precision": "fp32", "steps": 40, "validate_every": 20, "warmup_steps": 5}
TOLERANCES = {"parameters": 0, "train_loss_10": 1e-4, "train_loss": 2e-2, "val_loss": 2e-2, "dice": 5.0}


@pytest.fixture(scope="module")
def suite(tmp_path_factory):
    """A suite folder with the phantom's split, and its hash."""
    return make_suite(tmp_path_factory.mktemp("golden"))


def make_suite(folder):
    profile = PROFILES["smoke"]
    splits = make_splits([load_dataset(path) for path in generate(folder / "data", profile.phantom, OBJECTS)])
    splits.save(folder / "splits.json")
    return folder, splits.hash


def numbers(method, suite, recipe=(), model=()):
    """Trains a method of the smoke suite, with changes to recipe and model, and returns {what: number}."""
    folder, split_hash = suite
    profile = PROFILES["smoke"]
    spec = make_spec(SUITES["smoke"], profile, method, profile.backbones[0], 0, split_hash)
    if spec.recipe is not None:
        changes = {"recipe": spec.recipe.model_copy(update=RECIPE | dict(recipe))}
        changes["model"] = spec.model.model_copy(update=dict(model))
        spec = spec.model_copy(update=changes)
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        assert execute(spec, folder) == "finished", run_state(folder / spec.run_id)
    finally:
        torch.set_num_threads(threads)
    run = folder / spec.run_id
    found = {"parameters": run_state(run)["fit"]["parameters"]}
    if spec.recipe is not None:
        for point in map(json.loads, (run / "history.jsonl").read_text().splitlines()):
            found |= {f"{n}_{point['step']}": round(point[n], 6) for n in ("train_loss", "val_loss") if n in point}
    records = pd.read_parquet(run / "records.parquet")
    dice = pd.Series(dice_percent(records["tp"], records["fp"], records["fn"])).groupby(records["dataset"]).mean()
    return found | {f"dice {name}": round(value, 3) for name, value in dice.items()}


def tolerance(name):
    """The longest of TOLERANCES' names that `name` begins with."""
    return TOLERANCES[max((known for known in TOLERANCES if name.startswith(known)), key=len)]


def moved(found, golden):
    """{what: (golden, found)} of the numbers that are further apart than the tolerance, or on one side only."""
    both = {name: (golden.get(name), found.get(name)) for name in {**golden, **found}}
    return {n: (a, b) for n, (a, b) in both.items() if a is None or b is None or abs(a - b) > tolerance(n)}


def renew(method, found):
    """Puts the numbers of a method into the file, with what they were made on."""
    golden = json.loads(FILE.read_text()) if FILE.exists() else {"methods": {}}
    versions = package_versions(("torch", "torchvision", "timm", "numpy", "pillow", "segment-anything", "sam2"))
    machine = f"{platform.system()} {platform.machine()}, torch's kernels for {torch.backends.cpu.get_cpu_capability()}"
    methods = {name: value for name, value in (golden["methods"] | {method: found}).items() if name in METHODS}
    write_json(FILE, {"made_on": machine, "versions": versions, "methods": methods})


@pytest.mark.parametrize("method", METHODS)
def test_the_numbers_are_those_in_the_repository(method, suite):
    found = numbers(method, suite)
    if os.environ.get("RENEW_GOLDEN"):
        renew(method, found)
        pytest.skip(f"renewed {FILE}")
    golden = json.loads(FILE.read_text())
    changed = moved(found, golden["methods"][method])
    here = package_versions()
    packages = {name: (was, here.get(name)) for name, was in golden["versions"].items() if here.get(name) != was}
    assert not changed, (
        f"{method} has other numbers (golden, now): {changed}; packages that differ: {packages}. If that is meant, "
        "renew them with `RENEW_GOLDEN=1 pytest -n 0 tests/test_golden.py` and commit the file with what changed them"
    )


@pytest.mark.parametrize(
    ("method", "changes"),
    [
        ("sam", {"recipe": {"learning_rate": 1.5 * PROFILES["smoke"].recipe.learning_rate}}),
        ("boltzformer", {"model": {"temperature": 0.5}}),
    ],
    ids=["learning rate x 1.5", "temperature 0.5"],
)
def test_a_real_change_is_noticed(method, changes, suite):
    golden = json.loads(FILE.read_text())["methods"][method]
    changed = moved(numbers(method, suite, **changes), golden)
    was, now = changed["train_loss_10"]
    assert abs(was - now) > 10 * TOLERANCES["train_loss_10"]
