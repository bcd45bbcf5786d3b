"""A step in parts is the step of the whole batch; what it leaves where a loss is not finite or memory ends."""

import json
import os
import subprocess
import sys
from itertools import islice
from pathlib import Path

import pytest
import torch

from bench import train
from bench.data.cache import decode, training_batches
from bench.data.dataset import load_dataset
from bench.data.splits import make_splits
from bench.errors import is_out_of_memory
from bench.execute import execute, run_state
from bench.interface import Batch
from bench.methods import METHODS
from bench.runlog import RunLog
from bench.spec import Recipe, RunSpec
from bench.step import Progress, Training, counted, parts_of, take_step
from bench.train import batch_loss
from bench.workers import Quiet, Workers
from models.boltzmann import SharedGenerator
from models.config import ModelConfig

MODEL = ModelConfig(
    width=32, heads=4, feedforward=64, layers=3, queries=4, pixel_layers=1, text_width=32, text_layers=1, text_heads=2
)
RECIPE = Recipe(
    image_size=64,
    steps=6,
    batch_images=5,
    prompts_per_image=2,
    learning_rate=2e-3,
    warmup_steps=3,
    validate_every=2,
    precision="fp32",
)
SEGMENTERS = [name for name, entry in METHODS.items() if entry.uses_backbone]


def spec_of(method, split_hash="0" * 12, **changes):
    names = {"suite": "test", "profile": "test", "method": method, "backbone": "hiera_xt", "seed": 0}
    return RunSpec(**names, split_hash=split_hash, recipe=RECIPE.model_copy(update=changes), model=MODEL)


@pytest.fixture(autouse=True)
def _one_thread():
    """So that what is compared differs by the split alone."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture
def batch(toy, tmp_path):
    """Five images with one or two prompts each; the mask of one is empty."""
    data = decode(load_dataset(toy).train, 64, tmp_path / "cache")
    made = next(training_batches(data, RECIPE, 3, workers=0))
    keep = torch.ones(len(made.prompts), dtype=torch.bool)
    keep[1] = False  # parts of one image then have unequal numbers of prompts
    made.masks[0] = 0
    prompts = [prompt for prompt, kept in zip(made.prompts, keep, strict=True) if kept]
    return Batch(made.images, prompts, made.image_index[keep], made.masks[keep])


def training_of(model):
    optimizer = torch.optim.SGD(model.parameters(), lr=1.0)  # what it takes away are the gradients
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 1.0)
    sampling = SharedGenerator()
    sampling.manual_seed(0)
    return Training(model, optimizer, schedule, sampling)


def one_step(method, batch, at_once, run_dir):
    """Loss, gradient norm, gradients and the generator's end state of a step, `at_once` images at a time."""
    torch.manual_seed(0)
    model = METHODS[method].build(spec_of(method)).build()
    before = [parameter.detach().clone() for parameter in model.parameters()]
    training = training_of(model)
    loss_of = lambda part: batch_loss(model, part, "fp32", training.sampling)  # noqa: E731
    now = Progress(micro_batch=at_once)
    loss, norm = take_step(training, counted(batch, Workers()), loss_of, 1e9, now, Workers(), Quiet(), run_dir)
    gradients = [old - new.detach() for old, new in zip(before, model.parameters(), strict=True)]
    return loss, norm, gradients, training.sampling.get_state()


@pytest.mark.parametrize("method", SEGMENTERS)
def test_the_gradients_of_the_parts_are_those_of_the_whole(method, batch, tmp_path, monkeypatch):
    """Also of Mask2Former where its loss has the same points for every mask; it draws them mask by mask."""
    if method == "mask2former":
        points = torch.rand(40_000, 2, generator=torch.Generator().manual_seed(0))
        monkeypatch.setattr(torch, "rand", lambda n, k, _, **__: points[:k].repeat(n, 1, 1))
    loss, norm, gradients, state = one_step(method, batch, None, tmp_path)
    for at_once in (1, 2, 3):
        other_loss, other_norm, others, other_state = one_step(method, batch, at_once, tmp_path)
        assert other_loss == pytest.approx(loss, rel=1e-5)
        assert other_norm == pytest.approx(norm, rel=1e-3)
        assert torch.equal(state, other_state)
        largest = max(gradient.abs().max() for gradient in gradients)
        for one, other in zip(gradients, others, strict=True):
            torch.testing.assert_close(other, one, rtol=1e-3, atol=1e-4 * largest.item())


def test_parts_have_every_image_and_prompt_once(batch):
    parts = list(parts_of(batch, 2))
    assert [len(part.images) for part in parts] == [2, 2, 1]
    assert torch.equal(torch.cat([part.images for part in parts]), batch.images)
    assert torch.equal(torch.cat([part.masks for part in parts]), batch.masks)
    assert [prompt for part in parts for prompt in part.prompts] == batch.prompts
    index = torch.cat([part.image_index + 2 * place for place, part in enumerate(parts)])
    assert torch.equal(index, batch.image_index)
    assert [part.part.first for part in parts] == [0, len(parts[0].prompts), sum(len(p.prompts) for p in parts[:2])]
    assert {part.part.total for part in parts} == {len(batch.prompts)}


def test_the_shares_of_workers_are_the_batch(toy, tmp_path):
    data = decode(load_dataset(toy).train, 64, tmp_path / "cache")
    for count in (2, 3, 5):
        shares = [islice(training_batches(data, RECIPE, 0, share=(rank, count)), 3) for rank in range(count)]
        for whole, *parts in zip(training_batches(data, RECIPE, 0), *shares, strict=False):
            assert torch.equal(torch.cat([part.images for part in parts]), whole.images)
            assert torch.equal(torch.cat([part.masks for part in parts]), whole.masks)
            assert [prompt for part in parts for prompt in part.prompts] == whole.prompts
            ends = [part.part.first + len(part.prompts) for part in parts]
            assert [0, *ends] == [part.part.first for part in parts] + [len(whole.prompts)]
            assert max(len(part.images) for part in parts) - min(len(part.images) for part in parts) <= 1


def trained(spec, splits, run_dir, micro_batch=None):
    run_dir.mkdir(parents=True)
    method = METHODS[spec.method].build(spec)
    method.micro_batch = micro_batch
    method.fit(splits.train, splits.val, run_dir, RunLog(run_dir))
    return [json.loads(line) for line in (run_dir / "history.jsonl").read_text().splitlines()]


@pytest.mark.parametrize("method", ["boltzformer", "sam3"])
def test_a_run_by_accumulation_has_the_curve_of_the_whole_batches(method, toy, tmp_path):
    splits = make_splits([load_dataset(toy)])
    # at higher rates rounding grows: weights moved by 6e-8 of themselves are then as far apart after ten steps
    spec = spec_of(method, splits.hash, steps=10, learning_rate=1e-4)
    runs = [trained(spec, splits, tmp_path / f"{size}" / "run", size) for size in (None, 2)]
    assert len(runs[0]) == 6
    for row, other in zip(*runs, strict=True):
        assert other.keys() == row.keys()
        for name in {"step", "train_loss", "val_loss", "val_dice"} & row.keys():
            assert other[name] == pytest.approx(row[name], rel=1e-5, abs=1e-4)


def test_the_moving_average_is_that_of_a_slow_sum(toy, tmp_path, monkeypatch):
    """And it is what is validated and kept; the weights that are trained do not know of it."""
    states = []
    monkeypatch.setattr(train, "save_checkpoint", lambda run_dir, step, state: states.append((step, copied(state))))
    monkeypatch.setattr(train, "CHECKPOINT_INTERVAL", 0.0)
    splits = make_splits([load_dataset(toy)])
    spec = spec_of("boltzformer", splits.hash, ema=0.7)
    trained(spec, splits, tmp_path / "a" / "run")
    kept = torch.load(tmp_path / "a" / "run" / "model.pt", weights_only=True)
    with_average, states[:] = list(states), []
    trained(spec_of("boltzformer", splits.hash), splits, tmp_path / "b" / "run")
    weights = [{name: value.double() for name, value in state["model"].items()} for _, state in states]
    best = next(state for step, state in with_average if step == with_average[-1][1]["progress"]["best_step"])
    for step, state in with_average:
        decays = [0.7 ** (step - 1), *(0.3 * 0.7 ** (step - of) for of in range(2, step + 1))]
        for name in kept:
            expected = sum(share * weights[of][name] for of, share in enumerate(decays))
            torch.testing.assert_close(state["average"][f"module.{name}"].double(), expected, rtol=1e-4, atol=1e-6)
            assert torch.equal(state["model"][name], states[step - 1][1]["model"][name])
    assert all(torch.equal(kept[name], best["average"][f"module.{name}"]) for name in kept)
    assert any(not torch.equal(kept[name], best["model"][name]) for name in kept)


def copied(state):
    return {
        part: {k: v.clone() if isinstance(v, torch.Tensor) else v for k, v in state[part].items()}
        for part in ("model", "average", "progress")
        if part in state
    }


@pytest.mark.fault
def test_a_loss_that_is_not_finite_leaves_the_batch_that_gives_it_again(toy, tmp_path):
    """A learning rate that no training survives; the trial beside it goes on."""
    splits = make_splits([load_dataset(toy)])
    splits.save(tmp_path / "splits.json")
    broken = spec_of("boltzformer", splits.hash, learning_rate=1e12, warmup_steps=1)
    assert execute(broken, tmp_path, micro_batch=2) == "failed"
    assert execute(spec_of("sam", splits.hash), tmp_path) == "finished"
    error = run_state(tmp_path / broken.run_id)["error"]
    file = tmp_path / broken.run_id / "not-finite.pt"
    assert error.startswith("FloatingPointError: the training loss is ") and error.endswith(f"its batch is in {file}")
    left = torch.load(file, weights_only=True)
    assert f"at step {left['step']};" in error

    model = METHODS["boltzformer"].build(broken).build()
    model.load_state_dict(left["model"])
    sampling = SharedGenerator()
    sampling.set_state(left["random"]["sampling"])
    batch = Batch(left["images"], left["prompts"], left["image_index"], left["masks"])
    assert len(batch.images) == 5 and len(batch.prompts) == left["part"]["total"]
    losses = []
    for part in parts_of(batch, 2):
        sampling.set_state(left["random"]["sampling"])
        sampling.first, sampling.total = part.part.first, part.part.total
        losses.append(batch_loss(model.train(), part, "fp32", sampling).item())
    assert not all(torch.tensor(losses).isfinite())


def test_a_gradient_that_is_not_finite_does_not_reach_the_weights(batch, tmp_path):
    """A loss may be finite where its slope is not, as that of a square root at 0."""
    model = torch.nn.Linear(1, 1)
    torch.nn.init.zeros_(model.weight)
    training = training_of(model)
    with pytest.raises(FloatingPointError, match=r"^the gradient's norm is (inf|nan) at step 1; its batch is in "):
        take_step(
            training, batch, lambda part: model.weight.sqrt().sum(), 1.0, Progress(), Workers(), Quiet(), tmp_path
        )
    assert model.weight.item() == 0
    left = torch.load(tmp_path / "not-finite.pt", weights_only=True)
    assert torch.equal(left["images"], batch.images) and left["model"]["weight"].item() == 0


LIMITED = """
import json, resource, sys
from pathlib import Path
import torch
sys.path.insert(0, sys.argv[1])
from test_step import Batch, Progress, Quiet, SharedGenerator, Training, Workers, METHODS, spec_of, take_step
from bench.train import batch_loss

class Points(Quiet):
    def metrics(self, step, **values):
        points.append([step, values])

def figure(name):
    return next(int(l.split()[1]) * 1024 for l in Path("/proc/self/status").read_text().splitlines() if name in l)

torch.set_num_threads(1)
points = []
generator = torch.Generator().manual_seed(0)
images = torch.rand(8, 3, 192, 192, generator=generator) * 255
masks = (torch.rand(8, 192, 192, generator=generator) < 0.1).float()
batch = Batch(images, [f"object {n}" for n in range(8)], torch.arange(8), masks)

def step(at_once):
    torch.manual_seed(0)
    model = METHODS["boltzformer"].build(spec_of("boltzformer")).build()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    sampling = SharedGenerator()
    sampling.manual_seed(0)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 1.0)
    training, now = Training(model, optimizer, schedule, sampling), Progress(micro_batch=at_once)
    loss_of = lambda part: batch_loss(model, part, "fp32", sampling)
    Path("/proc/self/clear_refs").write_text("5")  # the peak is that of this step
    begin = figure("VmRSS")
    loss, norm = take_step(training, batch, loss_of, 1e9, now, Workers(), Points(), Path("."))
    return loss, norm, now.micro_batch, figure("VmHWM") - begin

# freed memory goes back to the system, for MALLOC_MMAP_THRESHOLD_ is set
step(1)
whole, half = step(None), step(4)
quarter = step(2)
limit = figure("VmSize") + (whole[3] + half[3]) // 2
resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
limited = step(None)
limit = figure("VmSize") + quarter[3] // 4
resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
try:
    step(8)
    failure = None
except Exception as error:
    failure = f"{type(error).__name__}: {error}"
print(json.dumps([whole, half, limited, points, failure]))
"""


@pytest.mark.fault
@pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="needs Linux's /proc")
def test_a_step_out_of_memory_is_done_again_in_halves(tmp_path):
    """Under a real limit between what the whole batch and what its halves take."""
    outcome = subprocess.run(
        [sys.executable, "-c", LIMITED, str(Path(__file__).parent)],
        env=os.environ | {"PYTHONPATH": str(Path(__file__).resolve().parents[2]), "MALLOC_MMAP_THRESHOLD_": "65536"},
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert outcome.returncode == 0, outcome.stderr[-2000:]
    *said, numbers = outcome.stdout.splitlines()
    whole, half, limited, points, failure = json.loads(numbers)
    assert whole[3] > 1.3 * half[3], "halves take less memory"
    assert limited[:3] == half[:3] and half[0] == pytest.approx(whole[0], rel=1e-5)
    assert points[0] == [1, {"images_at_once": 4}]
    assert said[0] == "out of memory at step 1: again with 4 images at a time, to the same batch"
    assert failure.startswith("OutOfMemoryError: out of memory at step 1, 4 images at a time: ")


def test_what_counts_as_out_of_memory():
    with pytest.raises(RuntimeError) as caught:
        torch.empty(2**60)
    assert is_out_of_memory(caught.value)
    assert is_out_of_memory(MemoryError()) and is_out_of_memory(torch.OutOfMemoryError("CUDA out of memory"))
    with pytest.raises(RuntimeError) as caught:
        torch.ones(2) @ torch.ones(3)
    assert not is_out_of_memory(caught.value) and not is_out_of_memory(ValueError("can't allocate memory"))
