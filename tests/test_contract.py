"""What every method has to hold, over all of METHODS: a new entry is tested by being there.

The decoders on the shared backbone learn two images by heart, with the laptop profile's model, and are then looked at
with what they have learned.
"""

from dataclasses import dataclass

import numpy as np
import pytest
import torch
from PIL import Image

from bench.data.cache import decode, evaluation_batches
from bench.data.dataset import load_mask
from bench.interface import Batch, Sample, Target
from bench.methods import METHODS, make_spec
from bench.predict import autocast
from bench.train import (
    CHECKPOINT,
    TrainedSegmenter,
    _parameter_groups,
    attention_kernels,
    batch_loss,
    save_weights,
    starting_point,
)
from experiments import SUITES
from experiments.profiles import LAPTOP, PROFILES
from models.text_encoder import TextEncoder

SEGMENTERS = [name for name, entry in METHODS.items() if entry.uses_backbone]
OTHERS = [name for name, entry in METHODS.items() if not entry.uses_backbone and not entry.needs_weights]
CPU = torch.device("cpu")
SIZE = 64  # px; the laptop profile's 256 is slow
HEIGHT = 60  # px of the images, which are then enlarged for training and the masks made smaller again
STEPS, LOOK_EVERY = 1000, 25  # at most; 75 to 150 are needed at SIZE, 125 to 350 at 256 px (675 by `mask2former`)
LEARNING_RATE = 5e-4  # under the laptop profile's: it stays where it is, and some decoders then lose the dot for long
# at 256 px the dot is 0.005% of the image: at 5e-4 `sam3` needs 150 to more than 1000 steps, as rounding falls
LAPTOP_LEARNING_RATE = 2e-4
DOT = "dot"  # the object of three pixels
LONG = "the left one of the two blocks that are brighter than all the rest of the toy image"


class Silent:
    def progress(self, phase, step, total):
        pass

    def metrics(self, step, **values):
        pass


def write_scene(folder, size, height):
    """Two images, higher than wide and at most `size`: a block and a disc each, and in one a dot of three pixels.

    Objects are where no other image has them, and nothing but the prompt says which one is meant.
    """
    width = size - size // 8
    y, x = np.mgrid[:height, :width] / size
    samples = []
    for number, (left, centre) in enumerate([(0.1, (0.65, 0.3)), (0.45, (0.3, 0.2))]):
        masks = {
            "block": (abs(y - 0.25 - 0.4 * number) < 0.15) & (abs(x - left - 0.13) < 0.13),
            "dark disc": (y - centre[0]) ** 2 + (x - centre[1]) ** 2 < 0.15**2,
        }
        if number == 0:
            masks[DOT] = np.zeros((height, width), bool)
            row, column = round(0.2 * size), round(0.6 * size)
            masks[DOT][[row, row, row + 1], [column, column + 1, column]] = True
        image = np.random.default_rng(number).normal(110, 8, (height, width))
        for label, value in (("block", 220), ("dark disc", 20), (DOT, 250)):
            if label in masks:
                image[masks[label]] = value
        file = folder / f"{number}.png"
        Image.fromarray(image.clip(0, 255).astype(np.uint8)).save(file)
        targets = []
        for label, mask in masks.items():
            Image.fromarray(mask.astype(np.uint8) * 255).save(folder / f"{number} {label}.png")
            targets.append(Target(label, (f"{label} in toy image",), folder / f"{number} {label}.png"))
        samples.append(Sample("toy", str(number), str(number), file, height, width, tuple(targets)))
    return samples


def spec_of(method, size):
    recipe = LAPTOP.recipe.model_copy(update={"image_size": size})
    profile = LAPTOP.model_copy(update={"recipe": recipe})
    return make_spec(SUITES["main"], profile, method, "hiera_xt", 0, "0" * 12)


def dice_by_object(method, samples):
    """(image, object) -> Dice at the image's own resolution, by the way a run predicts."""
    dice = {}
    for prediction in method.predict(samples, Silent()):
        truth = load_mask(prediction.target.mask_file)
        both = (prediction.mask & truth).sum()
        dice[prediction.sample.image_id, prediction.target.object] = 2 * both / (prediction.mask.sum() + truth.sum())
    return dice


@dataclass
class Learned:
    name: str
    method: TrainedSegmenter
    samples: list[Sample]
    batch: Batch
    losses: list[float]
    dice: dict[tuple[str, str], float]

    @property
    def model(self):
        return self.method.model


def learn(name, size, folder, height, learning_rate=LEARNING_RATE):
    """Trains `name` on the scene until it knows it by heart, for STEPS steps at most."""
    spec = spec_of(name, size)
    method = METHODS[name].build(spec)
    samples = write_scene(folder, size, height)
    batch, _ = next(evaluation_batches(decode(samples, size, folder / "cache"), len(samples)))
    torch.manual_seed(0)
    method.model = method.build()
    optimizer = torch.optim.AdamW(_parameter_groups(method.model, spec.recipe))
    generator = torch.Generator().manual_seed(0)
    learned = Learned(name, method, samples, batch, [], {})
    for step in range(1, STEPS + 1):
        for group in optimizer.param_groups:
            group["lr"] = learning_rate * min(1, step / spec.recipe.warmup_steps)
        learned.losses.append(training_step(method.model, batch, spec.recipe, optimizer, generator))
        if step % LOOK_EVERY == 0:
            learned.dice = dice_by_object(method, samples)
            if mean_dice(learned.dice) > 0.92 and learned.dice["0", DOT] > 0.5:
                break
    method.model.eval()
    return learned


def training_step(model, batch, recipe, optimizer, generator):
    model.train()
    with attention_kernels(CPU, recipe):
        loss = batch_loss(model, batch, recipe.precision, generator)
        loss.backward()
    torch.nn.utils.clip_grad_norm_(model.parameters(), recipe.clip_norm)
    optimizer.step()
    optimizer.zero_grad()
    return loss.item()


def mean_dice(dice):
    return np.mean(list(dice.values()))


def logits_of(model, images, prompts, index, precision="fp32"):
    with torch.inference_mode(), autocast(CPU, precision):
        return model(images, prompts, torch.as_tensor(index), generator=torch.Generator().manual_seed(0)).float()


def text_encoder_of(model):
    return next(module for module in model.modules() if isinstance(module, TextEncoder))


@pytest.fixture(scope="module", params=SEGMENTERS)
def learned(request, tmp_path_factory):
    return learn(request.param, SIZE, tmp_path_factory.mktemp(request.param), HEIGHT)


@pytest.fixture
def equal_draws(monkeypatch):
    """What a decoder draws in evaluation is the same for each prompt, so that only its place in the batch differs."""

    def rand(*shape, generator=None, device=None):
        shape = shape[0] if len(shape) == 1 else shape
        return torch.linspace(0.01, 0.99, shape[-1]).expand(shape)

    monkeypatch.setattr(torch, "rand", rand)


def assert_learned(learned):
    assert np.isfinite(learned.losses).all()
    assert learned.losses[-1] < learned.losses[0] / 2
    assert mean_dice(learned.dice) > 0.9, learned.dice
    assert learned.dice["0", DOT] > 0.5, learned.dice


def test_a_batch_is_learned_by_heart_with_its_object_of_three_pixels(learned):
    assert_learned(learned)


@pytest.mark.slow
@pytest.mark.parametrize("name", SEGMENTERS)
def test_a_batch_is_learned_by_heart_at_laptop_size(name, tmp_path):
    size = LAPTOP.recipe.image_size
    # images of the size of training: whether a dot of three pixels outlives being resized is chance, not learning
    assert_learned(learn(name, size, tmp_path, height=size, learning_rate=LAPTOP_LEARNING_RATE))


def test_a_prompt_changes_the_mask(learned):
    images = learned.batch.images[1:].float()
    block, disc = logits_of(learned.model, images, ["block in toy image", "dark disc in toy image"], [0, 0]) > 0
    assert block.any()
    assert disc.any()
    assert (block & disc).sum() <= 0.05 * min(block.sum(), disc.sum())


def test_evaluation_is_deterministic(learned):
    first = [p.mask for p in learned.method.predict(learned.samples, Silent())]
    torch.rand(7)  # another state of torch's own generator
    again = [p.mask for p in learned.method.predict(learned.samples, Silent())]
    backwards = [p.mask for p in learned.method.predict(learned.samples[::-1], Silent())]
    count = len(learned.samples[0].targets)
    for masks in (again, backwards[-count:] + backwards[:-count]):
        assert all(np.array_equal(a, b) for a, b in zip(first, masks, strict=True))


def test_the_order_of_a_batch_does_not_matter(learned, equal_draws):
    batch = learned.batch
    images, index = batch.images.float(), batch.image_index
    forth = logits_of(learned.model, images, batch.prompts, index)
    back = logits_of(learned.model, images.flip(0), batch.prompts[::-1], (len(images) - 1 - index).flip(0))
    assert close(back.flip(0), forth)


def test_a_prompt_does_not_see_the_rest_of_the_batch(learned, equal_draws):
    """Neither longer prompts, which make padding, nor other images."""
    batch = learned.batch
    images = batch.images.float()
    prompts, index = [*batch.prompts, LONG], [*batch.image_index.tolist(), 0]
    together = logits_of(learned.model, images, prompts, index)
    for row in (0, len(batch.prompts) - 1):
        image = index[row]
        alone = logits_of(learned.model, images[image : image + 1], [prompts[row]], [0])
        assert close(alone, together[row : row + 1])


def close(a, b):
    return torch.allclose(a, b, rtol=1e-3, atol=1e-3 * b.abs().max().item())


def test_saved_weights_are_the_model(learned, tmp_path):
    batch = learned.batch
    save_weights(learned.model, tmp_path / CHECKPOINT)
    torch.manual_seed(1)
    again = METHODS[learned.name].build(learned.method.spec).load(tmp_path).model.eval()
    # a loaded model remembers its prompts, each encoded alone
    text_encoder_of(again).requires_grad_(True)
    expected, got = (logits_of(m, batch.images, batch.prompts, batch.image_index) for m in (learned.model, again))
    assert torch.equal(expected, got)


def test_bf16_is_close_to_fp32(learned):
    batch = learned.batch
    args = (learned.model, batch.images.float(), batch.prompts, batch.image_index)
    full, half = (logits_of(*args, precision) > 0 for precision in ("fp32", "bf16"))
    assert 2 * (full & half).sum() / (full.sum() + half.sum()) > 0.95


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_gradients_reach_every_trainable_parameter(learned, precision):
    """From some start: where the best of several masks is trained, one of them may be the best of all prompts."""
    missing = None
    for seed in range(8):
        torch.manual_seed(seed)
        model = learned.method.build()
        batch_loss(model, learned.batch, precision, torch.Generator().manual_seed(0)).backward()
        trained = {name: p.grad for name, p in model.named_parameters() if p.requires_grad}
        assert all(gradient is not None and gradient.isfinite().all() for gradient in trained.values())
        without = {name for name, gradient in trained.items() if not gradient.any()}
        missing = without if missing is None else missing & without
        if not missing:
            break
    assert missing == set()


def test_a_frozen_text_encoder_stays_and_the_rest_trains(learned):
    torch.manual_seed(1)
    model = learned.method.build()
    text = text_encoder_of(model).requires_grad_(False)
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    recipe = learned.method.recipe
    optimizer = torch.optim.AdamW(_parameter_groups(model, recipe), lr=1e-3)
    for _ in range(2):
        training_step(model, learned.batch, recipe, optimizer, torch.Generator().manual_seed(0))
    changed = {name for name, p in model.named_parameters() if not torch.equal(p, before[name])}
    frozen = {id(p) for p in text.parameters()}
    assert not {name for name, p in model.named_parameters() if id(p) in frozen} & changed
    part = lambda name: name.split(".")[0]  # noqa: E731
    assert {part(name) for name in changed} == {part(n) for n, p in model.named_parameters() if p.requires_grad}


def test_all_decoders_start_from_the_same_shared_weights():
    """With one seed, whatever else they draw: backbone, text encoder, and what they have of the pixel decoder."""
    parts, starts = {}, {}
    for name in SEGMENTERS:
        torch.manual_seed(3)
        model = METHODS[name].build(spec_of(name, SIZE)).build()
        starts[name] = starting_point(model)
        encoder = {key: value for key, value in model.state_dict().items() if key.startswith("image_encoder.")}
        for key, value in encoder.items():
            assert torch.equal(value, parts.setdefault(key, value)), (name, key)
    assert len({tuple(start.items()) for start in starts.values()}) == 1, starts


# nnU-Net trains in processes of its own, which takes a minute
@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=[pytest.mark.slow] if METHODS[name].trained else []) for name in OTHERS]
)
def test_a_method_of_its_own_keeps_what_it_has_learned(name, tmp_path):
    spec = make_spec(SUITES["smoke"], PROFILES["smoke"], name, "hiera_xt", 0, "0" * 12)
    samples = write_scene(tmp_path, SIZE, HEIGHT)
    method = METHODS[name].build(spec)
    method.fit(samples, samples, tmp_path, Silent())
    again = METHODS[name].build(spec)
    again.load(tmp_path)
    forth = {(p.sample.image_id, p.target.object): p.mask for p in method.predict(samples, Silent())}
    back = {(p.sample.image_id, p.target.object): p.mask for p in again.predict(samples[::-1], Silent())}
    assert len(forth) == sum(len(sample.targets) for sample in samples)
    assert forth.keys() == back.keys()
    assert all(np.array_equal(forth[key], back[key]) for key in forth)
