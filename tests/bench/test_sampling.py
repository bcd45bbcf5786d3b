"""What is recorded is what the decoder attends to, and what a trial leaves for the report."""

import numpy as np
import pandas as pd
import pytest
import torch

from bench.data.dataset import load_dataset, load_image, load_mask
from bench.data.geometry import image_to_square
from bench.methods import METHODS
from bench.predict import generator_for, predict_logits
from bench.predict_image import find_run
from bench.sampling import chooses_tokens, predict_sampled, small_medium_large
from bench.spec import RunSpec
from reports.build import build_report
from reports.sampling import load_cases


def loaded(toy_runs, method):
    folder = find_run(method, toy_runs / "runs")
    return METHODS[method].build(RunSpec.model_validate_json((folder / "spec.json").read_text())).load(folder)


@pytest.mark.parametrize("method", ["boltzformer", "seem"])
def test_the_recorded_tokens_are_those_the_layers_attend_to(toy_runs, method):
    trained = loaded(toy_runs, method)
    model, size = trained.model.eval(), trained.recipe.image_size
    attended = []
    for attention in model.decoder.cross_attention:
        attention.register_forward_pre_hook(lambda module, inputs: attended.append(inputs[-1].clone()))
    square = np.random.default_rng(0).integers(0, 256, (size, size, 3), dtype=np.uint8)
    prompts = ["block in toy image", "dark disc", "the block"]
    args = (model, square, prompts, "fp32")
    logits, layers = predict_sampled(*args, [generator_for("a", prompt, 0, torch.device("cpu")) for prompt in prompts])
    config = model.decoder.config
    assert len(layers) == 3 and {len(of_prompt) for of_prompt in layers} == {config.layers}
    for place, of_prompt in enumerate(layers):
        for number, layer in enumerate(of_prompt):
            grid = (size // 32, size // 16, size // 8)[number % 3]
            keep = attended[number][place]
            assert keep.shape == (config.queries, grid * grid)
            expected = np.zeros((grid, grid))
            for query in keep.tolist():
                for token, kept in enumerate(query):
                    expected[token // grid, token % grid] += kept / config.queries
            np.testing.assert_allclose(layer.share, expected, atol=1e-6)
    rules = {"boltzformer": ["temperature 1", "temperature 0.5", "temperature 0.33"], "seem": ["threshold 0.5"] * 3}
    assert [layer.rule for layer in layers[0][:3]] == rules[method]
    recorded = list(attended)
    plain = predict_logits(*args, [generator_for("a", prompt, 0, torch.device("cpu")) for prompt in prompts])
    assert torch.equal(plain, logits)
    assert all(torch.equal(a, b) for a, b in zip(recorded, attended[len(recorded) :], strict=True))


def test_sam_has_nothing_to_show(toy_runs):
    assert not chooses_tokens(loaded(toy_runs, "sam").model)
    runs = [spec.parent for spec in (toy_runs / "runs" / "toy").glob("*/spec.json")]
    names = {run.name.split("-")[0]: (run / "sampling.npz").is_file() for run in runs}
    assert names == {"boltzformer": True, "seem": True, "sam": False, "location_prior": False}


def test_a_trial_leaves_a_small_a_medium_and_a_large_object_with_the_tokens_of_its_prediction(toy_runs):
    dataset = load_dataset(toy_runs / "toy")
    areas = {
        (sample.image_id, target.object): load_mask(target.mask_file).sum()
        for sample in dataset.test
        for target in sample.targets
    }
    ordered = sorted(areas, key=lambda key: (areas[key], key))
    expected = list(dict.fromkeys(ordered[int(len(ordered) * third)] for third in (1 / 6, 3 / 6, 5 / 6)))
    assert len(expected) > 1
    for method in ("boltzformer", "seem"):
        cases = load_cases(find_run(method, toy_runs / "runs") / "sampling.npz")
        assert [(case.image_id, case.object) for case in cases] == expected
        trained = loaded(toy_runs, method)
        for case in cases:
            assert (dataset.root / case.image_file).is_file() and (dataset.root / case.mask_file).is_file()
            sample = next(sample for sample in dataset.test if sample.image_id == case.image_id)
            square = image_to_square(load_image(sample.image_file), trained.recipe.image_size)
            prompts = [target.prompts[0] for target in sample.targets]
            seed = trained.spec.seed
            generators = [generator_for(case.image_id, prompt, seed, torch.device("cpu")) for prompt in prompts]
            _, layers = predict_sampled(trained.model.eval(), square, prompts, trained.recipe.precision, generators)
            place = [target.object for target in sample.targets].index(case.object)
            for kept, again in zip(case.layers, layers[place], strict=True):
                assert np.array_equal(kept.share, again.share) and kept.rule == again.rule


def test_the_cases_are_chosen_by_the_truth_alone():
    rng = np.random.default_rng(0)
    rows = [
        {"dataset": f"d{i % 6}", "image_id": f"i{i}", "object": "o", "height": 100, "width": 50 + 50 * (i % 2)}
        | {"area_px": int(area)}
        for i, area in enumerate(rng.integers(0, 900, 60))
    ]
    frame = pd.DataFrame(rows).query("area_px > 0")
    frame["share"] = frame["area_px"] / (frame["height"] * frame["width"])
    thirds = np.array_split(frame.sort_values(["share", "dataset", "image_id"])["image_id"].to_numpy(), 3)
    expected = [part[len(part) // 2] for part in thirds]
    places = small_medium_large(rows)
    assert [rows[place]["image_id"] for place in places] == expected
    turned = rows[::-1]
    assert [turned[place]["image_id"] for place in small_medium_large(turned)] == expected
    assert small_medium_large([row | {"area_px": 0} for row in rows]) == []
    assert small_medium_large(rows[1:2]) == [0]


def test_the_report_of_a_suite_shows_the_sampling_of_both_methods(toy_runs, tmp_path):
    report = build_report(toy_runs / "runs" / "toy", tmp_path / "report")
    assert "sampling.png" in report.figures and 'id="sampling"' in report.html.read_text()
    assert not report.notes
