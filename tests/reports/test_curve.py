"""The curve of Dice against area: statsmodels' LOWESS, simulations whose truth is known, and what the report keeps."""

import io

import numpy as np
import pandas as pd
import pytest
from PIL import Image
from statsmodels.nonparametric.smoothers_lowess import lowess

from reports import curve, figures
from reports.build import build_report
from reports.curve import curve_figure, dice_vs_area, smooth


def clusters(patients, dataset="d"):
    return pd.DataFrame({"dataset": dataset, "patient": [str(patient) for patient in patients]}).astype("string")


@pytest.mark.parametrize("count", [10, 60])
def test_statsmodels_draws_the_same_curve(count):
    random = np.random.default_rng(count)
    x = random.normal(0, 1, count)
    y = 50 + 20 * np.sin(2 * x) + random.normal(0, 8, count)
    at = np.linspace(x.min(), x.max(), 13)
    found, _, _ = smooth(x, y[:, None], clusters(range(count)), at, draws=2)
    expected = lowess(y, x, frac=np.ceil(curve.SPAN * count) / count, it=0, xvals=at)
    assert found[:, 0] == pytest.approx(expected, abs=1e-3)  # it leaves out the last thousandth of a neighbourhood


def test_the_band_is_that_of_curves_through_the_patients_drawn():
    """Against statsmodels on repeated rows, a draw at a time; its neighbourhoods move with the draw, ours do not."""
    random = np.random.default_rng(3)
    patient = np.repeat(np.arange(40), 4)
    x = random.normal(0, 1, len(patient))
    y = 60 + 10 * x + random.normal(0, 12, 40)[patient] + random.normal(0, 4, len(patient))
    at = np.linspace(-1, 1, 5)
    _, low, high = smooth(x, y[:, None], clusters(patient), at, draws=2000)
    drawn = []
    for _ in range(400):
        rows = np.concatenate([np.flatnonzero(patient == one) for one in random.integers(0, 40, 40)])
        drawn.append(lowess(y[rows], x[rows], frac=curve.SPAN, it=0, xvals=at))
    slow_low, slow_high = np.quantile(drawn, [0.025, 0.975], axis=0)
    assert low[:, 0] == pytest.approx(slow_low, abs=0.2 * np.mean(slow_high - slow_low))
    assert high[:, 0] == pytest.approx(slow_high, abs=0.2 * np.mean(slow_high - slow_low))


def test_the_band_covers_a_known_curve():
    """A gentle curve, patients who differ, 6 masks each: at a point 95% of the bands should hold it."""
    random = np.random.default_rng(0)
    patient = np.repeat(np.arange(60), 6)
    at = np.linspace(-1, 1, 7)

    def known(x):
        return 60 + 15 * x

    covered = []
    for _ in range(150):
        x = random.uniform(-1.5, 1.5, len(patient))
        y = known(x) + random.normal(0, 10, 60)[patient] + random.normal(0, 5, len(patient))
        _, low, high = smooth(x, y[:, None], clusters(patient), at, draws=300)
        covered.append((low[:, 0] <= known(at)) & (known(at) <= high[:, 0]))
    assert 0.91 <= np.mean(covered) <= 0.98
    # a band that took masks for patients would be too narrow: patients matter
    x = random.uniform(-1.5, 1.5, len(patient))
    y = (known(x) + random.normal(0, 10, 60)[patient])[:, None]
    _, low, high = smooth(x, y, clusters(patient), at, draws=300)
    _, narrow, wide = smooth(x, y, clusters(range(len(patient))), at, draws=300)
    assert (high - low).mean() > 1.4 * (wide - narrow).mean()


def records(build, masks):
    """Records of a mask each: (image, patient, area_px, tp) and what else differs."""
    rows = [
        {"image_id": str(image), "patient": str(patient), "tp": tp, "fn": area - tp, **more}
        for image, patient, area, tp, more in masks
    ]
    return build.frame(rows)


def test_constant_dice_is_flat(build):
    masks = [(place, place // 2, 2 * (place + 1), place + 1, {}) for place in range(30)]
    grid, scores = build.scores(records(build, masks))
    curves = dice_vs_area(scores, grid, draws=50)
    assert len(curves) == curve.POINTS and set(curves["part"]) == {"all"}
    for name in ("dice", "low", "high"):
        assert curves[name].to_numpy() == pytest.approx(100 * 2 / 3)
    assert curves["area_pct"].iloc[[0, -1]].tolist() == pytest.approx([0.02, 0.6])


@pytest.mark.parametrize(
    "masks",
    [
        [(0, 0, 50, 20, {})],
        [(place, place, 50, 10 * place, {}) for place in range(5)],  # equal areas
        [(0, 0, 1, 1, {}), (1, 1, 5000, 10, {})],
    ],
)
def test_few_masks_and_equal_areas_make_no_holes(build, masks):
    grid, scores = build.scores(records(build, masks))
    curves = dice_vs_area(scores, grid, draws=100)
    numbers = curves[["area_pct", "dice", "low", "high"]].to_numpy()
    assert len(curves) and np.isfinite(numbers).all()
    assert (curves["low"] <= curves["dice"] + 1e-9).all() and (curves["dice"] <= curves["high"] + 1e-9).all()
    assert curves["dice"].between(scores.dice.min() - 1e-9, scores.dice.max() + 1e-9).all()
    assert curve_figure(curves, grid, False) is not None


def test_a_mask_counts_once_whatever_it_was_asked_by(build):
    """Three prompts and two seeds of one mask are one point: their mean."""
    often = [
        (0, 0, 50, tp, {"prompt": text, "seed": s})
        for s in (0, 1)
        for text, tp in zip("abc", (10, 20, 30), strict=True)
    ]
    other = [(1, 1, 50, 50, {"prompt": "a", "seed": seed}) for seed in (0, 1)]
    grid, scores = build.scores(records(build, often + other))
    curves = dice_vs_area(scores, grid, draws=10)
    mean = np.mean([100 * 2 * tp / (tp + 50) for tp in (10, 20, 30)])
    assert len(curves) == 1 and curves["dice"].iloc[0] == pytest.approx((mean + 100) / 2)


def test_no_curve_of_a_gap_or_of_nothing(build):
    masks = [(place, place, 50, 20, {"method": name}) for name in "ab" for place in range(4)]
    grid, scores = build.scores(records(build, masks[:-1]))
    assert set(dice_vs_area(scores, grid, draws=10)["method"]) == {"a"}
    grid, scores = build.scores(build.frame([]))
    empty = dice_vs_area(scores, grid)
    assert empty.empty and curve_figure(empty, grid, False) is None


def test_parts_are_data_sets_and_modalities(build):
    names = ("LIDC-IDRI", "AMOS22-CT", "AMOS22-MRI", "zebra")
    masks = [(place, place, 20 + place, 10, {"dataset": name}) for name in names for place in range(3)]
    grid, scores = build.scores(records(build, masks))
    assert list(dict.fromkeys(dice_vs_area(scores, grid, draws=10)["part"])) == ["all", *grid.datasets, "CT", "MRI"]


def test_the_report_has_figure_and_points(build, tmp_path):
    suite = build.suite(tmp_path, size=48)
    report = build_report(suite)
    frame = pd.read_csv(report.tables["dice_vs_area.csv"])
    assert list(frame.columns) == ["part", "area_pct", "method", "dice", "low", "high", "data"]
    assert set(frame["data"]) == {"phantom"} and frame["method"].nunique() == 3
    picture = np.asarray(Image.open(io.BytesIO(report.figures["dice_vs_area.png"].read_bytes())).convert("RGB"))
    for color in figures.COLORS[:3]:
        wanted = [int(color[at : at + 2], 16) for at in (1, 3, 5)]
        assert (np.abs(picture.astype(int) - wanted).max(axis=2) < 8).sum() > 100
    first = report.tables["dice_vs_area.csv"].read_bytes()
    assert build_report(suite).tables["dice_vs_area.csv"].read_bytes() == first
