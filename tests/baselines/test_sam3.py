"""transformers' own SAM 3, called by hand with the same features and text, one prompt at a time."""

import json

import pytest
import torch
from safetensors.torch import save_file
from torch.nn import functional as F
from torchvision.ops import box_convert, box_iou, generalized_box_iou
from transformers import Sam3Config, Sam3Model
from transformers.modeling_outputs import BaseModelOutputWithPooling
from transformers.models.sam3.modeling_sam3 import Sam3VisionEncoderOutput

from baselines.sam3 import WEIGHTS, Candidates, Sam3, detection_loss, package_config, target_boxes, try_weights
from bench.data.dataset import load_dataset
from bench.data.splits import make_splits
from bench.interface import Batch
from bench.methods import METHODS, make_spec
from bench.spec import Weights, sha256_of
from experiments import SUITES
from experiments.profiles import LAPTOP_MODEL, PROFILES, SMOKE
from models.checkpoints import CheckpointError, match
from models.config import FULL, ModelConfig
from models.losses import segmentation_loss

CONFIG = ModelConfig(
    width=32, heads=4, feedforward=64, layers=3, queries=4, pixel_layers=2, text_width=32, text_layers=1, text_heads=2
)
PROMPTS = ["nodule in lung CT", "the right one of both kidneys in abdominal MRI", "tumor"]
INDEX = torch.tensor([1, 0, 1])
OWN = ("detr_encoder.", "detr_decoder.", "dot_product_scoring.", "mask_decoder.")


def package(config: ModelConfig) -> Sam3Model:
    """The package's whole model, small: its image and text encoders are there but not asked."""
    sizes = package_config(config)
    vit = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    text = {"vocab_size": 50, "hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1}
    width = sizes.detr_encoder_config.hidden_size
    model = Sam3Model(
        Sam3Config(
            vision_config={
                "backbone_config": vit | {"model_type": "sam3_vit_model", "image_size": 28, "pretrain_image_size": 28},
                "fpn_hidden_size": width,
            },
            text_config=text | {"model_type": "clip_text_model", "num_attention_heads": 2, "projection_dim": 8},
            geometry_encoder_config={"hidden_size": width, "num_layers": 1, "intermediate_size": 16},
            detr_encoder_config=sizes.detr_encoder_config.to_dict(),
            detr_decoder_config=sizes.detr_decoder_config.to_dict(),
            mask_decoder_config=sizes.mask_decoder_config.to_dict(),
        )
    )
    for parameter in model.parameters():  # its own initial weights are nearly zero, so that nothing would differ
        torch.nn.init.normal_(parameter, std=0.2)
    return model.eval()


def published(model: Sam3Model, path, prefix="detector_model."):
    """A file of `model` as the hub has it: beside a tracker, all of the detector under a prefix."""
    tensors = {prefix + name: tensor.clone() for name, tensor in model.state_dict().items()}
    save_file(tensors | {"tracker_model.a": torch.zeros(1), "tracker_neck.b": torch.zeros(1)}, path)
    return path


@pytest.fixture
def model():
    torch.manual_seed(0)
    return Sam3("hiera_xt", CONFIG).eval()


@pytest.fixture
def batch():
    generator = torch.Generator().manual_seed(0)
    masks = torch.zeros(3, 64, 96)
    masks[0, 5:8, 7:8], masks[1, 30:50, 20:70], masks[2, 10:20, 60:90] = 1, 1, 1
    return Batch(torch.rand(2, 3, 64, 96, generator=generator) * 255, PROMPTS, INDEX, masks)


def by_hand(theirs, model, image, prompt):
    """The package's output for one prompt of one image, from our features in place of its encoders'."""
    features = model.image_encoder(image[None])
    levels = (features.semantic.map(), features.visual[2], features.visual[1])
    maps = [project(level) for project, level in zip(model.projections, levels, strict=True)]
    positions = [theirs.vision_encoder.neck.position_encoding(m.shape, m.device, m.dtype) for m in maps]
    tokens, padding = model.text_encoder([prompt])
    unasked = (maps[-1],)  # it drops the coarsest level
    return theirs(
        vision_embeds=Sam3VisionEncoderOutput(
            fpn_hidden_states=(*maps, *unasked), fpn_position_encoding=(*positions, *unasked)
        ),
        text_embeds=BaseModelOutputWithPooling(pooler_output=model.text_projection(tokens)),
        attention_mask=~padding,
    )


@pytest.mark.parametrize("prefix", ["", "detector_model."])
def test_with_the_package_s_weights_it_is_the_package(model, batch, tmp_path, prefix):
    theirs = package(CONFIG)
    report = model.load_own(published(theirs, tmp_path / "w.safetensors", prefix))
    assert set(report.loaded) == {f"decoder.{name}" for name in theirs.state_dict() if name.startswith(OWN)}
    with torch.no_grad():
        logits = model(batch.images, PROMPTS, INDEX)
        tokens, padding = model.text_encoder(PROMPTS)
        assert padding.any()
        found = model.candidates(
            model.image_encoder(batch.images), model.text_projection(tokens), ~padding, batch.image_index
        )
        for row, image in enumerate(INDEX.tolist()):
            output = by_hand(theirs, model, batch.images[image], PROMPTS[row])
            close(found.masks[row], output.pred_masks[0])
            close(found.scores[-1, row], output.pred_logits[0])
            close(box_convert(found.boxes[-1, row], "cxcywh", "xyxy"), output.pred_boxes[0])
            close(found.presence[-1, row], output.presence_logits[0, 0])
            score = output.pred_logits[0].sigmoid() * output.presence_logits[0].sigmoid()
            full = F.interpolate(output.pred_masks[:, score.argmax()][None], (64, 96), mode="bilinear")[0, 0]
            close(logits[row], full)


def close(ours, theirs):
    """To rounding, which is larger on some processors: 3e-5 of the largest value on an Intel Xeon."""
    torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-4 * theirs.abs().max().item())


def test_every_trained_parameter_learns_and_no_other_acts(model, batch):
    def outcome():
        with torch.no_grad():
            return model.training_loss(batch, None), model(batch.images, PROMPTS, INDEX)

    model.training_loss(batch, None).backward()
    trained = {name: p for name, p in model.named_parameters() if p.requires_grad}
    assert [name for name, p in trained.items() if p.grad is None or not p.grad.any()] == []
    before = outcome()
    frozen = [p for p in model.parameters() if not p.requires_grad]
    assert len(frozen) == 6
    for parameter in frozen:
        torch.nn.init.normal_(parameter)
    assert all(torch.equal(a, b) for a, b in zip(before, outcome(), strict=True))


def test_queries_and_boxes_start_apart(model, batch):
    """By the package's own initial weights all boxes start within a hundredth of each other."""
    tokens, padding = model.text_encoder(PROMPTS)
    with torch.no_grad():
        found = model.candidates(model.image_encoder(batch.images), model.text_projection(tokens), ~padding, INDEX)
    assert found.boxes.std(dim=2).min() > 0.05


def slow_loss(found: Candidates, target: torch.Tensor) -> float:
    """SAM 3's loss with loops over layers, prompts and queries; Dice is the shared loss's."""

    def log_sigmoid(x):
        return F.logsigmoid(torch.tensor(x, dtype=torch.float64)).item()

    def focal(x, alpha, positive):
        p = torch.tensor(x, dtype=torch.float64).sigmoid().item()
        if positive:
            return -alpha * (1 - p) ** 2 * log_sigmoid(x)
        return -(1 - alpha) * p**2 * log_sigmoid(-x)

    layers, prompts, queries = found.scores.shape
    height, width = target.shape[-2:]
    seen = [row for row in range(prompts) if target[row].any()]
    total = 0.0
    for layer in range(layers):
        for row in range(prompts):
            logit = found.presence[layer, row].item()
            total += 20 * -0.5 * log_sigmoid(logit if row in seen else -logit) / prompts
        for row in seen:
            ys, xs = target[row].nonzero(as_tuple=True)
            corners = [xs.min() / width, ys.min() / height, (xs.max() + 1) / width, (ys.max() + 1) / height]
            truth = torch.tensor(corners)[None]
            centre = box_convert(truth, "xyxy", "cxcywh")[0]
            scores = found.scores[layer, row].tolist()
            boxes = box_convert(found.boxes[layer, row], "cxcywh", "xyxy")
            giou, iou = generalized_box_iou(boxes, truth)[:, 0].tolist(), box_iou(boxes, truth)[:, 0].tolist()
            l1 = [(box - centre).abs().sum().item() for box in found.boxes[layer, row]]
            costs = [
                2 * (focal(scores[q], 0.25, True) - focal(scores[q], 0.25, False)) + 5 * l1[q] - 2 * giou[q]
                for q in range(queries)
            ]
            best = costs.index(min(costs))
            total += (5 * l1[best] + 2 * (1 - giou[best])) / len(seen)
            for q in range(queries):
                if q != best:
                    loss = focal(scores[q], 0.0, False)
                else:
                    p = torch.tensor(scores[q]).sigmoid().item()
                    t = max(p**0.25 * iou[q] ** 0.75, 0.01)
                    loss = 10 * -(t * log_sigmoid(scores[q]) + (1 - t) * log_sigmoid(-scores[q]))
                total += 20 * loss / (200 * prompts)
            if layer == layers - 1:
                logits = F.interpolate(found.masks[row, best][None, None], (height, width), mode="bilinear")[0, 0]
                p = logits.sigmoid()
                pixels = zip(logits.flatten().tolist(), target[row].flatten().tolist(), strict=True)
                total += 200 * sum(focal(x, 0.25, t == 1) for x, t in pixels) / (height * width) / len(seen)
                dice = segmentation_loss(logits[None], target[row : row + 1]) - F.binary_cross_entropy(p, target[row])
                total += 10 * dice.item() / len(seen)
    return total


def random_candidates(seed, prompts=3):
    generator = torch.Generator().manual_seed(seed)
    centres, sizes = torch.rand(2, 2, prompts, 5, 2, generator=generator) * 0.4
    return Candidates(
        scores=4 * torch.randn(2, prompts, 5, generator=generator),
        boxes=torch.cat((centres + 0.3, sizes + 0.05), dim=-1),
        presence=3 * torch.randn(2, prompts, generator=generator),
        masks=3 * torch.randn(prompts, 5, 6, 8, generator=generator),
    )


@pytest.mark.parametrize("seed", range(5))
def test_its_loss_is_that_of_loops(seed):
    target = torch.zeros(3, 24, 32)
    target[0, 3:9, 4:20], target[2, 11:12, 17:18] = 1, 1  # and one that a crop has lost
    found = random_candidates(seed)
    assert detection_loss(found, target).item() == pytest.approx(slow_loss(found, target), rel=1e-4)


def test_where_no_object_is_left_only_presence_is_trained():
    found = Candidates(*(value.requires_grad_() for value in random_candidates(0)))
    loss = detection_loss(found, torch.zeros(3, 24, 32))
    loss.backward()
    assert loss.item() == pytest.approx(slow_loss(found, torch.zeros(3, 24, 32)), rel=1e-4)
    assert found.presence.grad.all()
    assert not any(value.grad.any() for value in (found.scores, found.boxes, found.masks) if value.grad is not None)


def test_a_box_goes_around_its_pixels():
    masks = torch.zeros(2, 10, 20)
    masks[0, 3, 5] = 1
    masks[1, 2:8, 10:20] = 1
    expected = torch.tensor([[5.5 / 20, 3.5 / 10, 1 / 20, 1 / 10], [15 / 20, 5 / 10, 10 / 20, 6 / 10]])
    torch.testing.assert_close(target_boxes(masks), expected)


def test_gradient_checkpointing_changes_nothing(model, batch):
    gradients = []
    for recompute in (False, True):
        model.image_encoder.recompute = recompute
        model.zero_grad()
        model.training_loss(batch, None).backward()
        gradients.append([p.grad.clone() for p in model.image_encoder.parameters()])
    assert all(torch.allclose(a, b, atol=1e-5) for a, b in zip(*gradients, strict=True))


def test_published_weights_fit_at_full_size():
    """By names and shapes of the package's default model, which are facebook/sam3's, without storage."""
    with torch.device("meta"):
        theirs, ours = Sam3Model(Sam3Config()), Sam3("hiera_s", FULL)
    tensors = {f"detector_model.{name}": tensor for name, tensor in theirs.state_dict().items()}
    report = match(ours, tensors, "model.safetensors", WEIGHTS.fills, WEIGHTS)[1]
    assert report.parameters == sum(p.numel() for p in ours.decoder.parameters()) > 24e6
    assert len(report.loaded) + len(report.ignored) == len(tensors)
    assert not any(name.removeprefix("detector_model.").startswith(OWN) for name in report.ignored)


def spec_of(profile, own_weights=None):
    suite = SUITES["main"]
    return make_spec(suite, profile, "sam3", "hiera_xt", 0, "0" * 12, own_weights=own_weights)


def test_training_starts_from_its_own_published_weights(toy, tmp_path):
    theirs = package(LAPTOP_MODEL)
    file = published(theirs, tmp_path / "model.safetensors")
    given = Weights(file=file.name, sha256=sha256_of(file), parts=("decoder",))
    # at learning rate 0 training ends with what it started from
    changes = {"learning_rate": 0.0, "steps": 1, "validate_every": 1}
    profile = SMOKE.model_copy(update={"recipe": SMOKE.recipe.model_copy(update=changes)})
    suite = tmp_path / "suite"
    (suite / "run").mkdir(parents=True)
    (suite / "suite.json").write_text(json.dumps({"own_weights": {"sam3": str(file)}}))
    splits = make_splits([load_dataset(toy)])
    summary = METHODS["sam3"].build(spec_of(profile, given)).fit(splits.train, splits.val, suite / "run", Silent())
    trained = torch.load(suite / "run" / "model.pt", weights_only=True)
    for name, tensor in theirs.state_dict().items():
        if name.startswith(OWN):
            assert torch.equal(trained[f"decoder.{name}"], tensor)
    (note,) = summary.notes
    assert note.startswith("model.safetensors (SAM 3): ")
    assert "into decoder; random: text_projection, projections; " in note and note.endswith("of the file are not used")


class Silent:
    def progress(self, phase, step, total):
        pass

    def metrics(self, step, **values):
        pass


def test_weights_of_another_size_or_kind_are_refused_with_the_fix(tmp_path):
    theirs = package(CONFIG)
    small = published(theirs, tmp_path / "small.safetensors")
    spec = spec_of(SMOKE.model_copy(update={"model": CONFIG}))
    assert try_weights(spec, small).filled == ("decoder",)
    cases = {
        "has width 32 and the model of profile smoke 96: give a profile": (spec_of(SMOKE), small),
        "no detector by the names of transformers": (spec, save(tmp_path / "sam3.pt", {"detector.a": torch.ones(1)})),
        "1 missing: decoder.mask_decoder.mask_embedder.layers.2.bias": (
            spec,
            save(tmp_path / "cut.pt", {n: t for n, t in theirs.state_dict().items() if "embedder.layers.2.b" not in n}),
        ),
        "1 unexpected: mask_decoder_2.weight": (
            spec,
            save(tmp_path / "more.pt", theirs.state_dict() | {"mask_decoder_2.weight": torch.ones(1)}),
        ),
    }
    for message, (asked, file) in cases.items():
        with pytest.raises(CheckpointError) as caught:
            try_weights(asked, file)
        assert message in str(caught.value) and "\n" not in str(caught.value)


def save(path, tensors):
    torch.save(tensors, path)
    return path


def test_at_the_command_line_a_width_that_does_not_fit_names_the_profiles_that_do(bench, squares, tmp_path):
    file = save(tmp_path / "w.pt", {"detector_model.detr_decoder.presence_token.weight": torch.zeros(1, 256)})
    options = ["--suite", "smoke", "--data", squares, "--methods", "sam3", "--runs-dir", tmp_path / "runs"]
    done = bench("run", *options, "--weights", f"sam3={file}")
    assert done.returncode == 2 and len(done.stderr.strip().splitlines()) == 1
    assert done.stderr.startswith("error: --weights sam3: w.pt (SAM 3) has width 256 and the model of profile smoke 96")
    fitting = {name for name, p in PROFILES.items() if package_config(p.model).detr_encoder_config.hidden_size == 256}
    assert {name for name in PROFILES if f"--profile {name}" in done.stderr} == fitting
    assert not (tmp_path / "runs").exists()
