"""The cases of the scopes at small sizes: what is compared computes the same, and every method has its rows."""

import pytest
import torch

from bench.profiling import attention, decoder, harness, model
from bench.profiling.measure import FAST, FORWARD, PLAIN, TRAINING, Pace
from bench.profiling.report import BARS, frame_of
from experiments.profiles import LAPTOP, LAPTOP_MODEL
from models.config import ModelConfig

ONCE = Pace(1, 1, 0)
SMALL = ModelConfig(
    width=32, heads=4, feedforward=64, layers=3, queries=6, pixel_layers=1, text_width=32, text_layers=1, text_heads=2
)


@pytest.mark.parametrize("ratio", [0.1, 0.5])
def test_ratios_keep_about_one_minus_exp(ratio):
    keep = attention.sampled((64, 64), 8, ratio, torch.Generator().manual_seed(0))
    assert keep.float().mean().item() == pytest.approx(1 - torch.tensor(-ratio).exp().item(), rel=0.05)


@pytest.mark.parametrize("side", [32, 64, 128])
def test_concentrated_keeps_a_hundredth_around_one_place(side):
    keep = attention.sampled((side, side), 10, attention.CONCENTRATED, torch.Generator().manual_seed(0))
    assert 0.005 < keep.float().mean().item() < 0.015
    near = 0
    for row in keep[0].view(10, side, side):
        places = row.nonzero().float()
        near += (torch.linalg.vector_norm(places - places.median(0).values, dim=1) < 0.15 * side).float().mean() / 10
    assert near > 0.7  # the rest is what the sampler draws from everywhere else


@pytest.mark.parametrize(("phase", "dtype"), [(FORWARD, "fp32"), (TRAINING, "fp32"), (FORWARD, "bf16")])
def test_attention_has_every_form_and_the_choice_is_one_of_them(monkeypatch, phase, dtype):
    monkeypatch.setattr(attention, "FULL", SMALL)
    result = attention._run(16, 5, phase, dtype, 1, (0.1, 0.5), ONCE)
    frame = frame_of(result.rows)
    ours = frame[frame["method"] == "boltzformer"]
    for _, case in ours.groupby("sampling"):
        assert list(case["path"]) == [*case["path"].unique()]
        assert set(case["path"]) == {PLAIN, *attention.FORMS, attention.AUTO}
        auto = case[case["path"] == "auto"].iloc[0]
        assert (case[case["path"].isin(attention.FORMS)]["seconds"] == auto["seconds"]).any()
    assert set(ours["sampling"]) == {0.01, 0.1, 0.5}
    assert set(frame[frame["method"] == "full"]["path"]) == {PLAIN, attention.AUTO}
    assert (frame["gflop"] > 0).all() and (frame["seconds"] > 0).all()
    assert (frame["tokens"] == 256).all() and (frame["phase"] == phase).all() and (frame["dtype"] == dtype).all()


def test_a_bad_choice_is_told():
    rows = attention._run(16, 5, FORWARD, "fp32", 1, (0.1,), ONCE).rows
    forms = [row for row in rows if row.path in attention.FORMS and row.sampling == 0.1]
    slowest, fastest = max(forms, key=lambda row: row.seconds), min(forms, key=lambda row: row.seconds)
    result = attention.Result()
    attention._add_choice(result, forms, fastest.path)
    assert result.notes == [] and result.rows[0].path == attention.AUTO
    slow = [attention.Row(**vars(row) | {"seconds": 10.0 if row is slowest else 1.0}) for row in forms]
    attention._add_choice(result, slow, slowest.path)
    assert result.notes[0].startswith(f"the rule takes {slowest.path}, 10.0 x as long as ")


@pytest.mark.parametrize("config", [SMALL, SMALL.model_copy(update={"attention": "full"}), "seem"])
def test_plain_and_fast_decoders_that_are_timed_compute_the_same(monkeypatch, config):
    if config == "seem":
        config = SMALL.model_copy(update={"attention": "threshold", "text_prior": False, "pigma": False})
    monkeypatch.setattr(decoder, "FULL", SMALL)
    plain = decoder._inputs(64, FORWARD, "fp32", torch.contiguous_format)
    fast = decoder._inputs(64, FORWARD, "fp32", torch.channels_last)
    built, head = decoder._build(config)
    for one in (head, "candidates"):
        expected, found = decoder._plain(built, one, plain), decoder._fast(built, one, fast)
        torch.testing.assert_close(found.squeeze(), expected.squeeze(), rtol=1e-4, atol=1e-4)


def test_another_ratio_is_another_decoder_with_the_same_weights():
    built, _ = decoder._build(SMALL)
    other = decoder._with_ratio(built, 0.5)
    assert (built.config.sampling_ratio, other.config.sampling_ratio) == (0.1, 0.5)
    assert all(a is b for a, b in zip(built.parameters(), other.parameters(), strict=True))


@pytest.mark.parametrize(("phase", "dtype"), [(FORWARD, "fp32"), (FORWARD, "bf16"), (TRAINING, "fp32")])
def test_every_method_has_its_decoder_rows(monkeypatch, phase, dtype):
    monkeypatch.setattr(decoder, "FULL", SMALL)
    frame = frame_of(decoder._run(64, 4, phase, dtype, 1, (0.1, 0.5), ONCE, True).rows)
    paths = {method: set(rows["path"]) for method, rows in frame.groupby("method")}
    both = {PLAIN, FAST}
    assert paths == {
        "boltzformer": both, decoder.CANDIDATES: both, "seem": both, "full": both,
        "sam": {decoder.PACKAGE}, "sam2": {decoder.PACKAGE},
    }  # fmt: skip
    ours = frame[frame["method"] == "boltzformer"]
    assert sorted(zip(ours["path"], ours["sampling"], strict=True)) == sorted(
        (path, ratio) for path in both for ratio in (0.1, 0.5)
    )
    assert frame["speedup"].notna().sum() == len(frame) - 2  # SAM and SAM 2 have no plain path
    assert (frame["gflop"] > 0).all()


@pytest.fixture
def small_model(monkeypatch):
    monkeypatch.setattr(model, "FULL", SMALL)
    monkeypatch.setattr(model, "BACKBONE", "hiera_xt")
    monkeypatch.setattr(model, "PACE", ONCE)
    model._models.cache_clear()
    yield
    model._models.cache_clear()


def test_fifteen_plain_calls_are_fifteen_prompts_one_after_the_other(small_model, monkeypatch):
    words = []
    plain = model.plain_forward

    def listen(*arguments):
        words.append(arguments[2])
        return plain(*arguments)

    monkeypatch.setattr(model, "plain_forward", listen)
    result = model._inference(64, 1, SMALL.queries, True)
    turns = words[2 : 2 + model.MANY]  # after the two that warm up
    assert sorted(word for (word,) in turns) == sorted(model.WORDS)
    frame = frame_of(result.rows)
    plain_rows = frame[(frame["path"] == PLAIN)].set_index("prompts")
    assert plain_rows["gflop"][15] == pytest.approx(15 * plain_rows["gflop"][1])
    assert plain_rows["seconds"][15] > 7 * plain_rows["seconds"][1]  # their sum, of which 1 has the median
    fast = frame[(frame["path"] == FAST) & (frame["dtype"] == "fp32")].set_index("prompts")
    assert fast["gflop"][15] < plain_rows["gflop"][15]


def test_masks_of_the_fast_model_are_those_of_the_plain_one(small_model):
    fp32, bf16 = model._inference(64, 1, SMALL.queries, True).outcomes
    assert "fp32" in fp32.work and fp32.reached and float(fp32.measured.rstrip("%")) < 0.1
    assert "bf16" in bf16.work and bf16.measured.endswith("%")


def test_parts_add_up_to_the_whole(small_model):
    parts = frame_of(model._parts(64, 1).rows)
    whole = frame_of(model._inference(64, 1, SMALL.queries, True).rows)
    whole = whole[(whole["prompts"] == 1) & (whole["dtype"] == "fp32")].set_index("path")["gflop"]
    assert set(parts["phase"]) == {
        f"forward: {part}" for part in ("backbone", "pixel decoder", "text encoder", "decoder", "PiGMA")
    }
    summed = parts.groupby("path")["gflop"].sum()
    assert summed[PLAIN] == pytest.approx(whole[PLAIN], rel=1e-6)
    # kept tokens differ by a few where a score near a draw is rounded otherwise
    assert summed[FAST] == pytest.approx(whole[FAST], rel=0.02)


def test_training_and_the_other_methods_have_rows(small_model):
    assert {row.path for row in model._training(64, 1).rows} == {PLAIN, FAST}
    others = model._others(64, 1, True).rows
    assert sorted((row.method, row.prompts) for row in others) == [
        (method, prompts) for method in ("sam", "sam2", "seem") for prompts in (1, 15)
    ]


def test_harness_steps_have_the_same_samples_however_they_are_grouped(monkeypatch):
    small = LAPTOP.model_copy(
        update={"model": SMALL, "recipe": LAPTOP.recipe.model_copy(update={"image_size": 64, "batch_images": 8})}
    )
    monkeypatch.setattr(harness, "LAPTOP", small)
    monkeypatch.setattr(harness, "SAMPLES", 8)
    frame = frame_of(harness._run((2, 4), "fp32", 1, ONCE).rows)
    assert sorted(zip(frame["path"], frame["prompts"], strict=True)) == [
        (path, k) for path in (harness.SINGLY, PLAIN, harness.TOGETHER) for k in (2, 4)
    ]
    assert frame["speedup"].notna().all()
    gflop = {path: rows["gflop"].tolist() for path, rows in frame.groupby("path")}
    assert (
        gflop[harness.SINGLY][0] == gflop[harness.SINGLY][1] > gflop[harness.TOGETHER][0] > gflop[harness.TOGETHER][1]
    )


def test_harness_is_the_laptop_profile():
    assert harness.LAPTOP is LAPTOP and LAPTOP.model is LAPTOP_MODEL
    assert LAPTOP.recipe.batch_images * LAPTOP.recipe.prompts_per_image == 2 * harness.SAMPLES


@pytest.mark.parametrize("scope", [attention, decoder, model, harness])
def test_full_cases_hold_the_sizes_of_the_bars(scope):
    threads = (1, 2)
    quick, full = scope.cases(True, threads), scope.cases(False, threads)
    assert 0 < len(quick) < len(full)
    assert len({case.title for case in full}) == len(full)
    assert sum(case.expected for case in quick) < sum(case.expected for case in full) < 7200
    name = scope.__name__.rsplit(".", 1)[1]
    titles = " | ".join(case.title for case in full)
    for bar in (bar for bar in BARS if bar.case["scope"] == name):
        if "queries" in bar.case:
            every = "1 and 15 prompts" if scope is model else f"{bar.case['phase']}, {bar.case['dtype']}"
            assert f"{bar.case['queries']} queries, {every}" in titles
