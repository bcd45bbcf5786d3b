"""How often sampled tokens lie on the object, against a count of the boolean masks in the decoder itself."""

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from bench.data.dataset import load_image, load_mask
from bench.data.geometry import image_to_square, mask_to_square
from bench.data.splits import load_splits
from bench.errors import UserError
from bench.predict import generator_for, predict_logits
from bench.predict_image import find_run, load_segmenter, segmenter_spec
from experiments.object_tokens import kept_of, object_tokens

ROOT = Path(__file__).resolve().parents[2]


def test_shares_are_means_over_all_tokens_and_over_those_the_mask_touches():
    share = np.array([[0.1, 0.2], [0.3, 1.0]])
    mask = np.zeros((8, 8), bool)
    mask[7, 7] = mask[3, 4] = True  # the last token, and one corner of the second
    assert kept_of(share, mask) == pytest.approx((0.4, 0.6))
    assert kept_of(share, np.ones((8, 8), bool)) == pytest.approx((0.4, 0.4))


def test_counts_are_those_of_the_decoders_own_masks(toy_runs):
    run_dir = find_run("boltzformer", toy_runs / "runs")
    found = object_tokens(run_dir, 1000)
    spec = segmenter_spec(run_dir)
    method = load_segmenter(spec, run_dir)
    model, size = method.model.eval(), method.recipe.image_size
    counts = []
    for sample in load_splits(run_dir.parent / "splits.json").test:
        square = image_to_square(load_image(sample.image_file), size)
        for target in sample.targets:
            mask = torch.from_numpy(mask_to_square(load_mask(target.mask_file), size)).float()[None]
            generator = generator_for(sample.image_id, target.prompts[0], spec.seed, torch.device("cpu"))
            layers = []

            def choose(layer, logits, generator=generator, mask=mask, layers=layers):
                keep = model.decoder.choose_tokens(layer, logits, generator)
                grid = int(keep.shape[-1] ** 0.5)
                touched = F.adaptive_max_pool2d(mask, grid).flatten() > 0
                layers.append((keep.float().mean().item(), keep[..., touched].float().mean().item()))
                return keep

            predict_logits(model, square, target.prompts[:1], method.recipe.precision, [generator], choose=choose)
            counts.append(layers)
    kept, on_object = 100 * np.mean(counts, axis=0).T
    np.testing.assert_allclose(found["kept_pct"], kept, rtol=1e-5)
    np.testing.assert_allclose(found["object_pct"], on_object, rtol=1e-5)
    np.testing.assert_allclose(found["times"], on_object / kept, rtol=1e-5)
    assert len(object_tokens(run_dir, 1)) == len(found)


def test_a_method_that_attends_to_everything_is_refused(toy_runs):
    with pytest.raises(UserError, match="attends to every token"):
        object_tokens(find_run("sam", toy_runs / "runs"), 10)


def test_the_command_prints_a_table_and_one_line_for_a_mistake(toy_runs):
    def command(*words):
        line = [sys.executable, "-m", "experiments.object_tokens", *words, "--runs-dir", str(toy_runs / "runs")]
        return subprocess.run(line, cwd=ROOT, capture_output=True, text=True, timeout=240)

    told = command("boltzformer", "--masks", "3")
    assert told.returncode == 0, told.stderr
    assert "kept of the object's, %" in told.stdout and "temperature 1" in told.stdout
    mistaken = command("nothing")
    assert mistaken.returncode == 2
    assert mistaken.stderr.startswith("error: ") and mistaken.stderr.count("\n") == 1
