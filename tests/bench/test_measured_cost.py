"""What `--measure` measures and makes of it."""

from dataclasses import replace

import pytest
import torch

from bench import measured_cost
from bench.estimate import Workload
from bench.measured_cost import Measured, measure, measure_apart, random_batch, trial_seconds, whole_batch
from bench.methods import make_spec
from experiments import SUITES
from experiments.profiles import PROFILES

WORK = Workload(80, 20, 40, 60, {}, 256)
MEASURED = Measured(
    batch_images=4, train_image=0.5, predict_image=0.2, peak_mib=3000.0, image_mib=400.0, device="a device"
)


def spec_of(method, profile="smoke", **recipe):
    spec = make_spec(SUITES["main"], PROFILES[profile], method, "hiera_xt", 0, "0" * 12)
    return spec.model_copy(update={"recipe": spec.recipe.model_copy(update=recipe)})


def test_a_trial_is_its_steps_validations_and_predictions():
    spec = spec_of("boltzformer", steps=100, batch_images=8, validate_every=30)
    # validated at 30, 60, 90 and at the last step
    assert trial_seconds(spec, WORK, MEASURED) == pytest.approx(100 * 8 * 0.5 + 4 * 20 * 0.2 + 40 * 0.2)
    assert whole_batch(spec, MEASURED) == 3000 + 4 * 400
    assert whole_batch(spec_of("boltzformer", batch_images=2), MEASURED) == 3000, "less was not measured"
    assert whole_batch(spec, replace(MEASURED, image_mib=None)) is None


@pytest.mark.parametrize("method", ["boltzformer", "mask2former"])
def test_real_steps_are_measured_in_growing_batches(method):
    found = measure(spec_of(method, batch_images=2))
    assert found.batch_images == 2 and found.train_image > 0 and found.predict_image > 0
    assert found.peak_mib > 100 and found.image_mib >= 0
    assert found.device.startswith("CPU") != torch.cuda.is_available()


def test_the_batch_has_the_prompts_of_each_image_together():
    batch = random_batch(2, 3, 64, torch.device("cpu"))
    assert batch.images.shape == (2, 3, 64, 64) and batch.images.dtype == torch.uint8
    assert batch.image_index.tolist() == [0, 0, 0, 1, 1, 1] and len(batch.prompts) == 6
    assert batch.masks.shape == (6, 64, 64) and 0.005 < batch.masks.float().mean() < 0.02


def test_a_batch_that_does_not_fit_ends_the_growth(monkeypatch):
    step = measured_cost.training_step

    def limited(model, batch, spec):
        if len(batch.images) > 2:
            raise torch.OutOfMemoryError("no room")
        return step(model, batch, spec)

    monkeypatch.setattr(measured_cost, "training_step", limited)
    assert measure(spec_of("boltzformer", batch_images=8)).batch_images == 2


def test_what_cannot_be_measured_is_told_in_its_row():
    broken = spec_of("boltzformer").model_copy(update={"backbone": "none-such"})
    assert "none-such" in measure_apart(broken)


def test_by_the_command_line(bench, squares, tmp_path):
    words = ["--suite", "smoke", "--methods", "seem,location_prior", "--data", squares, "--runs-dir", tmp_path / "runs"]
    done = bench("run", *words, "--measure")
    assert done.returncode == 0, done.stderr
    lines = {line.split()[0]: line for line in done.stdout.splitlines() if line.strip()}
    assert "(by table)" in lines["location_prior"]
    assert lines["all"].startswith("all trials: about ")
    assert "measured on" in done.stdout and "nothing was trained" in done.stdout
    assert not (tmp_path / "runs").exists()
