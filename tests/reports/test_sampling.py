"""The sampling figure: brightness follows the queries, outlines follow the mask, old runs have none."""

import io

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from bench.errors import UserError
from reports.build import build_report
from reports.load import load_suite
from reports.sampling import (
    SampledCase,
    SampledLayer,
    SamplingRow,
    load_cases,
    outline,
    sampling_gif,
    sampling_png,
    save_cases,
    suite_rows,
)

SIDE, GAP = 128, 6
LAYERS = [SampledLayer(np.array([[0, 0.1], [0.5, 1]], np.float32), "temperature 1")]


def picture_of(png):
    return np.asarray(Image.open(io.BytesIO(png)).convert("RGB")).astype(int)


def panels(png, count):
    """The panels of a figure with one row, cut out below its two lines of text."""
    picture = picture_of(png)
    top = np.flatnonzero((picture[:, :SIDE] < 250).all(axis=(1, 2)))[0]
    return [picture[top:, place * (SIDE + GAP) : place * (SIDE + GAP) + SIDE] for place in range(count)]


def is_red(picture):
    return (picture[..., 0] > 200) & (picture[..., 1:] < 80).all(axis=-1)


@pytest.mark.parametrize("grey", [0, 120, 240])
def test_the_more_queries_keep_a_patch_the_brighter_it_is(grey):
    image = np.full((64, 64, 3), grey, np.uint8)
    row = SamplingRow("", image, np.zeros((64, 64), bool), LAYERS)
    whole, layer = panels(sampling_png([row], "", SIDE), 2)
    assert (whole[:SIDE] == grey).all()
    corners = [layer[y, x, 0] for y, x in ((10, 10), (10, 100), (100, 10), (100, 100))]  # shares 0, 0.1, 0.5, 1
    assert corners == sorted(corners) and corners[1] > corners[0] + 30
    assert layer[:64, :64].std() == 0 and (grey == 0 or corners[3] > corners[2] > corners[1])


def test_tokens_lie_where_the_padded_square_has_them():
    """A wide image fills the upper half of its square: the lower row of tokens is not to be seen."""
    row = SamplingRow("", np.full((40, 80, 3), 200, np.uint8), np.zeros((40, 80), bool), LAYERS)
    _, layer = panels(sampling_png([row], "", SIDE), 2)
    upper = layer[: SIDE // 2]
    assert (upper[:, :64] == upper[0, 0]).all() and (upper[:, 64:] == upper[0, 64]).all()
    assert upper[0, 64, 0] > upper[0, 0, 0]
    assert (layer[SIDE // 2 + 1, :] == 255).any()  # white, and the caption


def test_the_mask_is_outlined_in_every_panel_even_a_single_pixel():
    mask = np.zeros((1000, 1000), bool)
    mask[300, 700] = True
    row = SamplingRow("", np.zeros((1000, 1000, 3), np.uint8), mask, LAYERS * 2)
    for panel in panels(sampling_png([row], "", SIDE), 3):
        ys, xs = np.nonzero(is_red(panel))
        assert len(ys) and abs(ys.mean() - 300 * SIDE / 1000) < 1.5 and abs(xs.mean() - 700 * SIDE / 1000) < 1.5


@settings(max_examples=30, deadline=None)
@given(st.integers(1, 3), st.integers(0, 10**6))
def test_an_outline_is_what_lies_within_its_width_of_the_mask(width, seed):
    mask = np.random.default_rng(seed).random((12, 11)) < 0.1
    expected = np.zeros_like(mask)
    for y, x in np.argwhere(mask):
        expected[max(0, y - width) : y + width + 1, max(0, x - width) : x + width + 1] = True
    assert np.array_equal(outline(mask, width), expected & ~mask)


def test_the_film_has_a_frame_per_layer_and_all_rows():
    layers = [SampledLayer(np.eye(grid, dtype=np.float32), f"rule {grid}") for grid in (2, 4, 8)]
    image = np.full((30, 30, 3), 99, np.uint8)
    rows = [SamplingRow(f"prompt {i}", image, np.zeros((30, 30), bool), layers) for i in range(4)]
    with Image.open(io.BytesIO(sampling_gif(rows, "title", SIDE))) as film:
        assert (film.n_frames, film.info["loop"]) == (3, 0)
        assert film.width == 3 * SIDE + 2 * GAP and film.height > 2 * SIDE  # four rows: three and one
        frames, times = [], []
        for number in range(3):
            film.seek(number)
            frames.append(np.asarray(film.convert("RGB")).astype(int))
            times.append(film.info["duration"])
    assert times[0] == times[1] < times[2]
    assert not np.array_equal(frames[0], frames[1]) and not np.array_equal(frames[1], frames[2])


def case_of(patient, layers=LAYERS, **changes):
    fields = {"dataset": "LIDC-IDRI", "object": "nodule", "image_id": f"p{patient}_0", "height": 48, "width": 48}
    files = {"image_file": f"test/p{patient}_0.png", "mask_file": f"test_mask/p{patient}_0_0.png"}
    return SampledCase(**{**fields, **files, **changes}, layers=layers)


@pytest.fixture
def suite(build, tmp_path):
    return build.suite(tmp_path, size=48, seeds=(0, 1))


def folders(suite, method):
    return sorted(path for path in suite.iterdir() if path.name.startswith(f"{method}-"))


def test_cases_come_back_as_they_were_saved(tmp_path):
    rng = np.random.default_rng(0)
    layers = [SampledLayer(rng.random((grid, grid), dtype=np.float32), f"rule {grid}") for grid in (2, 4, 8, 2)]
    cases = [case_of(0, layers), case_of(1, layers[:1], object="größerer Knoten")]
    save_cases(cases, tmp_path / "sampling.npz")
    again = load_cases(tmp_path / "sampling.npz")
    assert [case.object for case in again] == ["nodule", "größerer Knoten"]
    for case, other in zip(cases, again, strict=True):
        for layer, kept in zip(case.layers, other.layers, strict=True):
            assert np.array_equal(layer.share, kept.share) and layer.rule == kept.rule
    save_cases([], tmp_path / "none.npz")
    assert load_cases(tmp_path / "none.npz") == []


def test_methods_stand_below_each_other_case_by_case(suite):
    for method in ("boltzformer", "sam"):
        for folder in folders(suite, method):
            save_cases([case_of(0), case_of(1)], folder / "sampling.npz")
    rows, notes = suite_rows(load_suite(suite))
    labels = [row.label.split(":")[0] for row in rows]
    assert labels == ["BoltzFormer+Hiera-XT", "SAM+Hiera-XT"] * 2 and notes == []
    assert np.array_equal(rows[0].mask, rows[1].mask) and not np.array_equal(rows[0].mask, rows[2].mask)
    assert rows[0].label.endswith(f"LIDC-IDRI, nodule, {100 * rows[0].mask.mean():.2g}% of the image")


def test_no_more_cases_than_there_are_lines_for(suite, monkeypatch):
    for method in ("boltzformer", "sam"):
        save_cases([case_of(0), case_of(1), case_of(2)], folders(suite, method)[0] / "sampling.npz")
    for lines, shown, left in ((6, 6, 0), (5, 4, 1), (1, 2, 2)):
        monkeypatch.setattr("reports.sampling.LINES", lines)
        rows, notes = suite_rows(load_suite(suite))
        assert len(rows) == shown and [note.split()[1] for note in notes] == ([str(left)] if left else [])


def test_the_report_has_the_figure_where_a_run_left_its_tokens(suite, tmp_path):
    before = build_report(suite, tmp_path / "before")
    assert "sampling.png" not in before.figures and 'id="sampling"' not in before.html.read_text() and not before.notes
    for folder in folders(suite, "boltzformer"):
        save_cases([case_of(0)], folder / "sampling.npz")
    after = build_report(suite, tmp_path / "after")
    assert set(after.figures) - set(before.figures) == {"sampling.png", "sampling.svg"}
    page = after.html.read_text()
    assert 'href="#sampling"' in page and "Sampled patches (phantom data)" in page
    for name, path in before.tables.items():
        assert path.read_bytes() == after.tables[name].read_bytes()


def test_what_cannot_be_drawn_is_a_note_and_the_rest_is_drawn(suite, tmp_path):
    boltzformer, sam = folders(suite, "boltzformer")[0], folders(suite, "sam")[0]
    gone = case_of(2, image_file="test/gone.png")
    save_cases([case_of(0), gone, case_of(1, height=9)], boltzformer / "sampling.npz")
    (sam / "sampling.npz").write_bytes(b"PK\x03\x04 cut short")
    report = build_report(suite, tmp_path / "report")
    assert "sampling.png" in report.figures and len(report.notes) == 3
    for note, part in zip(report.notes, ("gone.png", "no longer 9 x 48 px", "SAM+Hiera-XT is not drawn"), strict=True):
        assert note.startswith("sampling: ") and part in note
        assert part in report.html.read_text()


def test_a_file_with_code_in_it_is_not_run(tmp_path):
    class Harmful:
        def __reduce__(self):
            return (open, (str(tmp_path / "harm"), "w"))

    np.savez(tmp_path / "sampling.npz", cases=np.array([Harmful()], dtype=object))
    with pytest.raises(UserError, match=r"sampling.npz cannot be read"):
        load_cases(tmp_path / "sampling.npz")
    assert not (tmp_path / "harm").exists()
