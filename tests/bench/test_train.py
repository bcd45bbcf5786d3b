import json
from functools import partial
from itertools import islice, pairwise

import pytest
import torch

from bench.checkpoint import newest_checkpoint
from bench.data.cache import decode, training_batches
from bench.data.dataset import load_dataset, load_mask
from bench.data.splits import make_splits
from bench.errors import UserError
from bench.methods import METHODS
from bench.metrics import counts
from bench.prompts_first import learn_prompts
from bench.spec import Recipe, RunSpec, Weights, sha256_of
from bench.train import TrainedSegmenter, batch_loss, fingerprint, text_encoder_of, warmup_cosine
from models.backbones import build_backbone
from models.config import ModelConfig
from models.losses import segmentation_loss
from models.plain import plain_forward
from models.segmenter import build_text_encoder

MODEL = ModelConfig(
    width=32, heads=4, feedforward=64, layers=3, queries=4, pixel_layers=1, text_width=32, text_layers=1, text_heads=2
)
RECIPE = Recipe(
    image_size=64,
    steps=4,
    batch_images=4,
    prompts_per_image=2,
    learning_rate=2e-3,
    warmup_steps=5,
    validate_every=2,
    precision="fp32",
)
SEGMENTERS = [name for name, entry in METHODS.items() if entry.uses_backbone]


class Silent:
    def __init__(self):
        self.points = {}

    def progress(self, phase, step, total):
        pass

    def metrics(self, step, **values):
        self.points.setdefault(step, {}).update(values)


def spec_of(method, split_hash="0" * 12, **changes):
    recipe = RECIPE.model_copy(update=changes)
    names = {"suite": "test", "profile": "test", "method": method, "backbone": "hiera_xt", "seed": 0}
    return RunSpec(**names, split_hash=split_hash, recipe=recipe, model=MODEL)


def build(method, **changes) -> TrainedSegmenter:
    spec = spec_of(method, **changes)
    return METHODS[method].build(spec)


@pytest.mark.parametrize("path", ["projected", "absorbed", "gathered"])
@pytest.mark.parametrize("width", [32, 96])  # S made whole, and folded into the masks
@pytest.mark.parametrize("method", ["boltzformer", "seem"])
def test_the_fast_way_trains_as_the_plain_one(method, width, path, toy, tmp_path, monkeypatch):
    """The same draws, two optimizer steps: the losses and the weights stay together.

    With more, rounding grows beyond any tolerance for some batches: a threshold of the attention falls the other way.
    """
    monkeypatch.setattr("models.attention.cheapest_path", lambda *args: path)
    spec = spec_of(method)
    spec = spec.model_copy(update={"model": spec.model.model_copy(update={"width": width})})
    data = decode(load_dataset(toy).train[:4], 64, tmp_path / "cache")
    losses, weights = {}, {}
    for way in ("fast", "plain"):
        torch.manual_seed(0)
        model = METHODS[method].build(spec).build()
        forward = model if way == "fast" else partial(plain_forward, model)
        optimizer = torch.optim.SGD(model.parameters(), lr=0.05)  # Adam would turn rounding into steps
        batches, generator = training_batches(data, RECIPE, 0), torch.Generator().manual_seed(0)
        losses[way] = []
        for _ in range(2):
            loss = batch_loss(forward, next(batches), "fp32", generator)
            loss.backward()
            optimizer.step()
            optimizer.zero_grad()
            losses[way].append(loss.item())
        weights[way] = torch.cat([p.detach().flatten() for p in model.parameters()])
    assert losses["fast"] == pytest.approx(losses["plain"], rel=1e-4)
    assert losses["fast"][0] != losses["fast"][-1]
    torch.testing.assert_close(weights["fast"], weights["plain"], rtol=1e-3, atol=1e-4)


def test_fit_predict_and_load(toy, tmp_path):
    splits = make_splits([load_dataset(toy)])
    spec = spec_of("boltzformer", splits.hash, steps=6)
    method, log = METHODS["boltzformer"].build(spec), Silent()
    run_dir = tmp_path / "suite" / spec.run_id
    run_dir.mkdir(parents=True)
    summary = method.fit(splits.train, splits.val, run_dir, log)
    assert summary.images_seen == 24
    assert summary.parameters == sum(p.numel() for p in method.build().parameters() if p.requires_grad)
    assert not any(p.requires_grad for p in method.model.parameters())
    assert {step for step, point in log.points.items() if "val_dice" in point} == {2, 4, 6}
    predictions = list(method.predict(splits.test, log))
    assert [(p.sample.image_id, p.target.object) for p in predictions] == [
        (s.image_id, t.object) for s in splits.test for t in s.targets
    ]
    assert all(p.mask.shape == (48, 40) and p.mask.dtype == bool and p.seconds > 0 for p in predictions)
    truth = load_mask(predictions[0].target.mask_file)
    tp, _, fn = counts(predictions[0].mask, truth)
    assert tp + fn == truth.sum()

    again = METHODS["boltzformer"].build(spec).load(run_dir)
    backwards = {(p.sample.image_id, p.target.object): p.mask for p in again.predict(splits.test[::-1], log)}
    for p in predictions:
        assert (backwards[p.sample.image_id, p.target.object] == p.mask).all()


def test_equal_seeds_train_to_equal_weights(toy, tmp_path):
    splits = make_splits([load_dataset(toy)])
    weights = []
    for folder in ("a", "b"):
        method = build("boltzformer")
        run_dir = tmp_path / folder / "run"
        run_dir.mkdir(parents=True)
        method.fit(splits.train, splits.val, run_dir, Silent())
        weights.append(torch.load(run_dir / "model.pt", weights_only=True))
    assert all(torch.equal(weights[0][name], weights[1][name]) for name in weights[0])


def test_the_optimizer_has_the_recipes_betas(toy, tmp_path):
    splits = make_splits([load_dataset(toy)])
    method = build("boltzformer", beta2=0.9, steps=2)
    (tmp_path / "run").mkdir()
    method.fit(splits.train, splits.val, tmp_path / "run", Silent())
    _, state = newest_checkpoint(tmp_path / "run")
    assert [group["betas"] for group in state["optimizer"]["param_groups"]] == [(0.9, 0.9)] * 2


def test_patience_stops_and_the_best_weights_are_kept(toy, tmp_path, monkeypatch):
    import bench.train as module

    losses = iter([3.0, 1.0, 2.0, 2.0])
    monkeypatch.setattr(module, "validate", lambda *_: (next(losses), 0.5))
    splits = make_splits([load_dataset(toy)])
    method = build("sam", steps=40, validate_every=2, patience=2)
    run_dir = tmp_path / "suite" / "run"
    run_dir.mkdir(parents=True)
    summary = method.fit(splits.train, splits.val, run_dir, Silent())
    assert summary.budget == "8 steps x 4 images (weights of step 4, stopped at 8)"


def test_a_loss_that_is_not_finite_stops_the_run(toy, tmp_path, monkeypatch):
    import bench.train as module

    monkeypatch.setattr(
        module, "segmentation_loss", lambda logits, target: segmentation_loss(logits, target) * torch.nan
    )
    splits = make_splits([load_dataset(toy)])
    method = build("sam")
    (tmp_path / "suite" / "run").mkdir(parents=True)
    with pytest.raises(FloatingPointError, match="at step 1"):
        method.fit(splits.train, splits.val, tmp_path / "suite" / "run", Silent())


def test_schedule_warms_up_and_ends_at_zero():
    recipe = RECIPE.model_copy(update={"steps": 100, "warmup_steps": 10})
    factors = [warmup_cosine(step, recipe) for step in range(101)]
    assert factors[:10] == pytest.approx([(i + 1) / 10 for i in range(10)])
    assert factors[10] == 1.0
    assert all(a >= b for a, b in pairwise(factors[10:]))
    assert factors[100] == 0


def test_methods_see_the_same_batches(toy, tmp_path):
    data = decode(load_dataset(toy).train, 64, tmp_path / "cache")
    first, second = (list(islice(training_batches(data, RECIPE, 0), 3)) for _ in SEGMENTERS[:2])
    assert all(
        torch.equal(a.images, b.images) and torch.equal(a.masks, b.masks) for a, b in zip(first, second, strict=True)
    )


def weights_for(backbone, file):
    """Published-looking weights of `backbone` in SAM 2's names, and what a spec keeps of them."""
    trunk = build_backbone(backbone).trunk.state_dict()
    state = {f"image_encoder.trunk.{name.removeprefix('model.')}": torch.randn(v.shape) for name, v in trunk.items()}
    state = {k.replace("mlp.fc1", "mlp.layers.0").replace("mlp.fc2", "mlp.layers.1"): v for k, v in state.items()}
    torch.save({"model": state}, file)
    return state, Weights(file=file.name, sha256=sha256_of(file), parts=("backbone",))


def suite_with(folder, file):
    (folder / "run").mkdir(parents=True, exist_ok=True)
    (folder / "suite.json").write_text(json.dumps({"backbone_weights": str(file)}))
    return folder / "run"


@pytest.mark.parametrize("method", SEGMENTERS)
def test_training_starts_from_the_published_weights(method, toy, tmp_path):
    state, weights = weights_for("hiera_xt", tmp_path / "sam2.pt")
    run_dir = suite_with(tmp_path / "suite", tmp_path / "sam2.pt")
    splits = make_splits([load_dataset(toy)])
    # at learning rate 0 training ends with what it started from
    spec = spec_of(method, learning_rate=0.0, steps=1, validate_every=1).model_copy(update={"weights": weights})
    summary = METHODS[method].build(spec).fit(splits.train, splits.val, run_dir, Silent())
    trained = torch.load(run_dir / "model.pt", weights_only=True)
    trunk = "image_encoder.backbone.trunk.model."
    assert torch.equal(trained[f"{trunk}pos_embed"], state["image_encoder.trunk.pos_embed"])
    fc1 = "blocks.1.mlp.layers.0.weight"
    assert torch.equal(trained[f"{trunk}blocks.1.mlp.fc1.weight"], state[f"image_encoder.trunk.{fc1}"])
    (note,) = summary.notes
    assert note.startswith("sam2.pt (SAM 2): ") and "into backbone; random: " in note
    assert "text_encoder" in note and ("pixel_decoder" in note) == (method != "mask2former")


@pytest.mark.parametrize("method", SEGMENTERS)
def test_every_decoder_begins_with_the_same_words(method, toy, tmp_path, monkeypatch):
    """Those of the encoder taught by itself; without steps, or with a published text encoder, as they were."""
    begun = []

    def stop(model, recipe):
        begun.append(fingerprint(text_encoder_of(model)))
        raise KeyboardInterrupt

    monkeypatch.setattr("bench.train._parameter_groups", stop)
    monkeypatch.setattr("bench.train.load_weights", lambda *args: "")
    splits = make_splits([load_dataset(toy)])
    steps = spec_of(method, text_steps=3)
    published = steps.model_copy(update={"weights": Weights(file="w", sha256="0" * 64, parts=("text_encoder",))})
    for spec in (steps, spec_of(method), published):
        with pytest.raises(KeyboardInterrupt):
            METHODS[method].build(spec).fit(splits.train, splits.val, tmp_path / "run", Silent())
    torch.manual_seed(0)
    encoder = build_text_encoder(steps.model)
    as_drawn = fingerprint(encoder)
    learn_prompts(encoder, splits.train, 3, Silent())
    assert begun == [fingerprint(encoder), as_drawn, as_drawn]


def test_weights_that_changed_or_went_since_the_plan_are_refused(toy, tmp_path):
    file = tmp_path / "sam2.pt"
    _, weights = weights_for("hiera_xt", file)
    run_dir = suite_with(tmp_path / "suite", file)
    splits = make_splits([load_dataset(toy)])
    method = METHODS["sam"].build(spec_of("sam").model_copy(update={"weights": weights}))
    file.write_bytes(file.read_bytes() + b"x")
    with pytest.raises(UserError, match=f"{file} has changed since this run was planned"):
        method.fit(splits.train, splits.val, run_dir, Silent())
    file.unlink()
    with pytest.raises(UserError, match=f"{file} is gone"):
        method.fit(splits.train, splits.val, run_dir, Silent())
