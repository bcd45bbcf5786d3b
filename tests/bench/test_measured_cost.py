"""What `--measure` measures and makes of it."""

import json
from dataclasses import asdict, replace

import pytest
import torch

from bench import measured_cost
from bench.environment import Hardware
from bench.estimate import Workload
from bench.measured_cost import (
    Measured,
    images_at_once,
    measure,
    measure_apart,
    outcome,
    peak_of,
    random_batch,
    trial_seconds,
)
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


def test_memory_is_that_of_what_a_worker_has_at_once():
    paper = PROFILES["paper"]
    node = Hardware(16 * 12, 2048.0, ("A",) * 12)
    assert paper.workers_per_trial * images_at_once(spec_of("boltzformer", "paper"), paper, node) == 12 * 32
    assert images_at_once(spec_of("boltzformer", "paper"), paper.model_copy(update={"micro_batch": 5}), node) == 5
    assert images_at_once(spec_of("boltzformer", batch_images=16), PROFILES["laptop"], Hardware(2, 8.0, ())) == 16
    eight = PROFILES["gpu"].model_copy(update={"workers_per_trial": 8, "micro_batch": None})
    one = Hardware(16, 64.0, ("A",))
    assert images_at_once(spec_of("boltzformer", "gpu", batch_images=16), eight, one) == 16, "no room for others"
    assert peak_of(8, MEASURED) == 3000 + 4 * 400
    assert peak_of(2, MEASURED) == 3000, "less was not measured"
    one = replace(MEASURED, batch_images=1, image_mib=None)
    assert (peak_of(1, one), peak_of(2, one)) == (3000, None)


@pytest.mark.parametrize("method", ["boltzformer", "mask2former"])
def test_real_steps_are_measured_in_growing_batches(method):
    one, found = measure(spec_of(method, batch_images=2))
    assert one.batch_images == 1 and one.image_mib is None
    assert found.batch_images == 2 and found.train_image > 0 and found.predict_image > 0 and found.ended == ""
    assert found.peak_mib > 100 and found.image_mib >= 0
    assert found.device.startswith("CPU") != torch.cuda.is_available()


def test_the_batch_has_the_prompts_of_each_image_together():
    batch = random_batch(2, 3, 64, torch.device("cpu"))
    assert batch.images.shape == (2, 3, 64, 64) and batch.images.dtype == torch.uint8
    assert batch.image_index.tolist() == [0, 0, 0, 1, 1, 1] and len(batch.prompts) == 6
    assert batch.masks.shape == (6, 64, 64) and 0.005 < batch.masks.float().mean() < 0.02


def test_a_batch_that_does_not_fit_ends_the_growth(monkeypatch):
    whole = measured_cost.training_step

    def limited(*given):
        step = whole(*given)

        def at_most_two(batch):
            if len(batch.images) > 2:
                raise torch.OutOfMemoryError("no room")
            step(batch)

        return at_most_two

    monkeypatch.setattr(measured_cost, "training_step", limited)
    monkeypatch.setattr(measured_cost, "LIMIT", float("inf"))  # a busy machine would end the growth before
    found = list(measure(spec_of("boltzformer", batch_images=8)))
    assert [one.batch_images for one in found] == [1, 2, 2]
    assert found[-1] == replace(found[1], ended="4 images: no room")


def test_a_slow_device_has_one_step_of_two_images_for_their_memory(monkeypatch):
    monkeypatch.setattr(measured_cost, "LIMIT", -1.0)
    one, two = measure(spec_of("boltzformer", batch_images=8))
    assert (one.batch_images, two.batch_images) == (1, 2)
    assert two.train_image == one.train_image, "a step that warms up tells no time"
    assert two.image_mib == pytest.approx(max(0, two.peak_mib - one.peak_mib))


def killed_while_measuring(monkeypatch, tmp_path, after):
    """The real process, killed as by the kernel when it has written `after` lines."""
    script = tmp_path / "killed.py"
    script.write_text(
        "import os, signal\n"
        "from bench import measured_cost\n"
        "measure = measured_cost.measure\n"
        "def dying(spec):\n"
        f"    for number, found in zip(range({after}), measure(spec)):\n"
        "        yield found\n"
        "    os.kill(os.getpid(), signal.SIGKILL)\n"
        "measured_cost.measure = dying\n"
        "measured_cost.main()\n"
    )
    monkeypatch.setattr(measured_cost, "PROCESS", (str(script),))
    return measure_apart(spec_of("boltzformer", batch_images=4))


def test_what_was_found_stands_when_a_larger_batch_kills_the_process(monkeypatch, tmp_path):
    found = killed_while_measuring(monkeypatch, tmp_path, 2)
    assert found.batch_images == 2 and found.ended == "ended by signal 9: out of memory, it seems"


def test_the_process_has_the_threads_of_a_trial():
    found = measure_apart(spec_of("boltzformer", batch_images=1), threads=1)
    assert found.device.endswith(", 1 thread)") or torch.cuda.is_available()


def test_a_process_that_is_killed_at_the_first_image_is_told(monkeypatch, tmp_path):
    assert killed_while_measuring(monkeypatch, tmp_path, 0) == "ended by signal 9: out of memory, it seems"


def test_a_process_that_takes_too_long_is_ended(monkeypatch):
    monkeypatch.setattr(measured_cost, "STOPS_AT", 0.5)
    assert measure_apart(spec_of("boltzformer")) == "not measured within 0 s"


def test_half_a_line_counts_for_nothing():
    line = json.dumps(asdict(MEASURED))
    assert outcome(f"noise\n{line}\n{line[:40]}", "stopped") == replace(MEASURED, ended="stopped")
    assert outcome(line, "") == MEASURED
    assert outcome(line[:40], "") == "no answer"


def test_what_cannot_be_measured_is_told_in_its_row():
    broken = spec_of("boltzformer").model_copy(update={"backbone": "none-such"})
    assert "none-such" in measure_apart(broken)


def test_by_the_command_line(bench, squares, tmp_path):
    words = ["--suite", "smoke", "--methods", "seem,location_prior", "--data", squares, "--runs-dir", tmp_path / "runs"]
    done = bench("run", *words, "--measure")
    assert done.returncode == 0, done.stderr
    lines = {line.split()[0]: line for line in done.stdout.splitlines() if line.strip()}
    assert "(by table)" in lines["location_prior"]
    assert lines["all"].startswith("all trials that were measured: about ")
    assert "measured on" in done.stdout and "nothing was trained" in done.stdout
    assert not (tmp_path / "runs").exists()
