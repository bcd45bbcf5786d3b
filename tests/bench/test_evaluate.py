"""Masks of other tools, scored by the command line: against counts by hand, and against the run that made them."""

import shutil
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from PIL import Image
from typer.testing import CliRunner

from bench import cli
from bench.errors import UserError
from bench.records import decode_mask

RUNNER = CliRunner()


def evaluate(*words):
    result = RUNNER.invoke(cli.app, ["evaluate", *map(str, words)], catch_exceptions=False)
    assert result.exit_code == 0, result.output
    return result.output


def table_of(folder: Path) -> pd.DataFrame:
    return pd.read_csv(folder / "report" / "main_table.csv").set_index("method")


def read(file: Path) -> np.ndarray:
    return np.asarray(Image.open(file).convert("L")) > 0


def write(file: Path, mask: np.ndarray) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(mask.astype(np.uint8) * 255).save(file)


@pytest.fixture
def masks(squares, tmp_path) -> Path:
    """A tool that finds what is there, one row of pixels too low."""
    folder = tmp_path / "masks"
    for file in (squares / "test_mask").iterdir():
        write(folder / file.name, np.roll(read(file), 1, axis=0))
    return folder


@pytest.fixture
def words(masks, squares, tmp_path):
    return ("--predictions", masks, "--data", squares, "--as", "My tool", "--runs-dir", tmp_path / "runs")


def test_dice_by_hand(words, masks, squares, tmp_path):
    output = evaluate(*words)
    assert "My tool" in output and "Dice by data set" in output
    folder = tmp_path / "runs" / "evaluated-squares"
    # 8 x 10 px and 2 x 3 px, moved by a row: 7/8 and 1/2 of them are hit
    assert table_of(folder).loc["My tool", "squares"] == pytest.approx(100 * (7 / 8 + 1 / 2) / 2)
    run = next(folder.glob("my_tool-seed0-*"))
    records = pd.read_parquet(run / "records.parquet").set_index(["image_id", "object"])
    row = records.loc[("test0-z0_CT_chest", "dot")]
    assert row[["tp", "fp", "fn", "area_px"]].tolist() == [3, 3, 3, 6] and pd.isna(row["dice"])
    assert (row["prompt"], row["patient"]) == ("dot in toy image", "test-0")
    for stored in pd.read_parquet(run / "predictions.parquet").to_dict("records"):
        mask = decode_mask(stored["runs"], stored["height"], stored["width"])
        assert (mask == read(masks / Path(stored["mask_file"]).name)).all()
    for name in ("main_table", "by_size", "per_object", "differences", "cost", "fairness"):
        text = (folder / "report" / f"{name}.md").read_text()
        assert "Not run here, scored here (masks in masks, sha256 " in text, name
    assert (folder / "report" / "overlays.png").is_file()


def test_the_truth_itself_is_100_and_several_tools_share_a_table(words, squares, tmp_path):
    evaluate(*words)
    evaluate("--predictions", squares / "test_mask", *words[2:4], "--as", "Truth", *words[6:])
    table = table_of(tmp_path / "runs" / "evaluated-squares")
    assert list(table.index) == ["My tool", "Truth"] and table.loc["Truth", "average"] == 100
    evaluate(*words)  # again: the row is written again, not twice
    assert sorted(table_of(tmp_path / "runs" / "evaluated-squares").index) == ["My tool", "Truth"]


def test_the_masks_of_a_run_get_the_scores_that_the_run_gave_them(bench, squares, tmp_path):
    runs = tmp_path / "runs"
    run = ("run", "--suite", "smoke", "--data", squares, "--methods", "location_prior", "--executor", "local")
    run = (*run, "--name", "main", "--runs-dir", runs)
    offline = {"MLFLOW_TRACKING_URI": "http://127.0.0.1:9"}  # nobody there
    assert bench(*run, **offline).returncode == 0
    predictions = pd.read_parquet(next((runs / "main").glob("location_prior-*/predictions.parquet")))
    for stored in predictions.to_dict("records"):
        mask = decode_mask(stored["runs"], stored["height"], stored["width"])
        write(tmp_path / "exported" / Path(stored["mask_file"]).name, mask)
    output = evaluate("--predictions", tmp_path / "exported", "--as", "Exported", "--into", "main", "--runs-dir", runs)
    assert "Location prior" in output
    table = table_of(runs / "main")
    assert list(table.index) == ["Location prior", "Exported"]
    assert table.loc["Exported", "average"] == table.loc["Location prior", "average"] > 0
    assert bench(*run, **offline).returncode == 0
    assert list(table_of(runs / "main").index) == ["Location prior", "Exported"]  # the same command keeps the row

    shutil.copytree(squares, tmp_path / "other")
    with pytest.raises(UserError, match=r"is no data set of .*main, which has squares"):
        evaluate("--predictions", tmp_path / "exported", "--data", tmp_path / "other", "--as", "X", "--into", "main",
                 "--runs-dir", runs)  # fmt: skip


def test_several_data_sets_have_a_folder_each(words, masks, squares, toy, tmp_path):
    with pytest.raises(UserError, match="has no folder squares: with several data sets each needs one"):
        evaluate(*words, "--data", toy)
    for name, source in (("squares", masks), ("toy", toy / "test_mask")):
        shutil.copytree(source, tmp_path / "both" / name)
    evaluate("--predictions", tmp_path / "both", *words[2:], "--data", toy)
    table = table_of(tmp_path / "runs" / "evaluated-squares-toy")
    assert table.loc["My tool", ["squares", "toy"]].tolist() == [pytest.approx(68.75), 100]


def test_missing_masks_are_all_counted_or_count_as_empty(words, masks, tmp_path):
    for file in sorted(masks.glob("*dot.png")):
        file.unlink()
    with pytest.raises(UserError) as caught:
        evaluate(*words)
    first = masks / "test0-z0_CT_chest_dot.png"
    assert f"2 of 4 masks are missing, first {first} (--missing empty counts them as empty masks)" in str(caught.value)
    assert not (tmp_path / "runs").exists()
    evaluate(*words, "--missing", "empty")
    folder = tmp_path / "runs" / "evaluated-squares"
    assert table_of(folder).loc["My tool", "squares"] == pytest.approx(100 * (7 / 8) / 2)
    assert "My tool: 2 of 4 masks are missing and count as empty" in (folder / "report" / "main_table.md").read_text()


def test_a_wrong_name_is_missing_here_and_too_much_there(words, masks):
    (masks / "test0-z0_CT_chest_dot.png").rename(masks / "test0-z0_CT_chest_dots.png")
    with pytest.raises(UserError) as caught:
        evaluate(*words)
    assert "1 of 4 masks are missing" in str(caught.value)
    assert "1 files are no mask of the test split: test0-z0_CT_chest_dots.png (--extra ignore" in str(caught.value)
    evaluate(*words, "--missing", "empty", "--extra", "ignore")


def shrink(file):
    write(file, read(file)[::2, ::2])
    return "is 15 x 10 px, its image 30 x 20; resize the mask to the image"


def soften(file):
    Image.fromarray((read(file) * np.arange(30)).astype(np.uint8)).save(file)
    return "is not binary, it holds several values beside 0; write 0 and 255 only"


def truncate(file):
    file.write_bytes(file.read_bytes()[:60])
    return "cannot be read as an image (truncated"


@pytest.mark.parametrize("damage", [shrink, soften, truncate])
def test_a_file_that_is_no_mask_of_its_image_is_one_line(bench, words, masks, tmp_path, damage):
    file = masks / "test1-z0_CT_chest_large+square.png"
    message = damage(file)
    done = bench("evaluate", *words)
    assert done.returncode == 2 and len(done.stderr.strip().splitlines()) == 1
    assert done.stderr.startswith(f"error: {file}: ") and message in done.stderr
    assert not list((tmp_path / "runs").rglob("*.*"))  # nothing half written


def test_any_one_value_and_any_alpha_is_a_mask(words, masks, tmp_path):
    for value, file in enumerate(sorted(masks.iterdir()), 1):
        mask = read(file)
        Image.fromarray(np.dstack([mask * np.uint8(value)] * 3 + [np.full_like(mask, 9, np.uint8)])).save(file)
    evaluate(*words)
    assert table_of(tmp_path / "runs/evaluated-squares").loc["My tool", "squares"] == pytest.approx(68.75)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"--as": "SEEM (text)"}, "--as 'SEEM (text)' is a method of this program: choose another name"),
        ({"--as": "sam2"}, "--as 'sam2' is a method of this program"),
        ({"--as": "?"}, "--as '?' has no letter or digit"),
        ({"--predictions": "nowhere"}, "nowhere: no such folder"),
        ({"--data": None}, "nothing to score against: name data set folders with --data, or a run with --into"),
    ],
)
def test_options_that_cannot_be_used(words, change, message):
    options = dict(zip(words[::2], words[1::2], strict=True)) | change
    with pytest.raises(UserError) as caught:
        evaluate(*(word for pair in options.items() if pair[1] is not None for word in pair))
    assert message in str(caught.value)


def test_published_results_have_no_images_to_score_against(words, tmp_path):
    results = tmp_path / "results" / "Task06_Lung"
    results.mkdir(parents=True)
    (results / "tumor_metrics.csv").write_text("file,area,dice\nlung_001_5_CT_lung_tumor.png,9,0.5\n")
    imported = ["import-results", str(results.parent), "--runs-dir", str(tmp_path / "runs")]
    assert RUNNER.invoke(cli.app, imported).exit_code == 0
    with pytest.raises(UserError, match="holds published results only"):
        evaluate(*words, "--into", "results")


def test_data_that_have_changed_are_another_table(words, squares, tmp_path):
    evaluate(*words)
    file = squares / "test_mask" / "test0-z0_CT_chest_dot.png"
    write(file, np.roll(read(file), 3, axis=0))
    with pytest.raises(UserError, match=r"has split_hash .* name another folder with --into, or remove"):
        evaluate(*words)


def test_a_real_data_set(shared, tmp_path):
    data = shared / "data" / "idrid"
    evaluate("--predictions", data / "test_mask", "--data", data, "--as", "Truth", "--runs-dir", tmp_path)
    assert table_of(tmp_path / "evaluated-idrid").loc["Truth", "idrid"] == 100
