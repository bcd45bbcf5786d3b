"""Published results as rows: the authors' files against the paper, small ones against numbers worked out by hand."""

import json
import shutil
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from typer.testing import CliRunner

from bench import cli
from bench.errors import UserError
from experiments.paper import TABLE_9

RUNNER = CliRunner()
AREA = 300  # px of every mask of `lung`


def import_results(*words):
    result = RUNNER.invoke(cli.app, ["import-results", *map(str, words)], catch_exceptions=False)
    assert result.exit_code == 0, result.output
    return result.output


def tables(report: Path) -> list[Path]:
    """Every table in Markdown but that of the paper's claims, which is about suites and has no row of a method."""
    return [file for file in report.glob("*.md") if file.name != "claims.md"]


@pytest.fixture(scope="module")
def imported(shared, tmp_path_factory):
    """The report of BiomedParse's published results, imported by the command line."""
    runs = tmp_path_factory.mktemp("runs")
    source = shared / "data" / "biomedparse_results"
    output = import_results(source, "--as", "BiomedParse v1 (published)", "--runs-dir", runs)
    return runs / source.name, output


def test_the_paper_s_table_9_comes_out_exactly(imported):
    sizes = pd.read_csv(imported[0] / "report" / "object_sizes.csv").set_index(["dataset", "object"])
    assert list(sizes.index) == list(TABLE_9) and len(sizes) == 38 and sizes["support"].sum() == 40339
    for key, (*expected, support) in TABLE_9.items():
        row = sizes.loc[key]
        found = [round(row[f"area_{name}_pct"], 3) for name in ("mean", "median", "min", "max")]
        assert (found, row["support"]) == (expected, support), key


def test_the_numbers_of_biomedparse_come_out(imported):
    folder, output = imported
    assert "40,339 masks of 7 data sets" in output
    table = pd.read_csv(folder / "report" / "main_table.csv").set_index("method")
    rows = ["BiomedParse v1", "MedSAM + box", "SAM + box", "Grounding DINO + SAM"]
    assert list(table.index) == [f"{name} (published)" for name in rows]
    expected = {"LIDC-IDRI": 73.8, "AMOS22-CT": 91.9, "AMOS22-MRI": 87.6, "MSD-Lung": 66.1, "MSD-Colon": 66.5}
    expected |= {"MSD-Pancreas": 61.6, "MSD-HepaticVessel": 62.8, "average": 72.9}
    assert {name: round(float(table.iloc[0][name]), 1) for name in expected} == expected
    assert "MedSAM + box (published): prompted with the true object's bounding box" in output.replace("\n", "")
    objects = pd.read_csv(folder / "report" / "per_object.csv").set_index(["dataset", "object"])
    tumor = objects.loc[("MSD-Pancreas", "tumor")]
    assert tumor["BiomedParse v1 (published)"] == pytest.approx(27.7, abs=0.05)
    assert tumor["BiomedParse v1 (published) median"] == pytest.approx(1.7, abs=0.05)


def test_bench_report_on_the_folder_writes_the_same(imported):
    report = imported[0] / "report"
    before = {file.name: file.read_bytes() for file in report.iterdir()}
    shutil.rmtree(report)
    assert RUNNER.invoke(cli.app, ["report", str(imported[0])]).exit_code == 0
    assert {file.name: file.read_bytes() for file in report.iterdir()} == before and len(before) > 15


def test_every_table_says_that_it_was_imported(imported):
    folder = imported[0]
    digest = json.loads(next(folder.glob("biomedparse_v1*/spec.json")).read_text())["origin"]["sha256"][:12]
    for file in (*tables(folder / "report"), *(folder / "report").glob("*.tex"), folder / "report/index.html"):
        text = file.read_text().replace(r"\_", "_")
        assert f"Imported, not run here (Dice as published in biomedparse_results, sha256 {digest})" in text, file


def test_records_hold_what_was_published_and_no_counts(imported, shared):
    records = pd.read_parquet(next(imported[0].glob("sam_box*/records.parquet")))
    assert records[["tp", "fp", "fn", "seconds"]].isna().all(axis=None) and len(records) == 40339
    file = shared / "data/biomedparse_results/amos22/CT/left+kidney_metrics.csv"
    published = pd.read_csv(file).set_index("file")
    ours = records[(records["dataset"] == "AMOS22-CT") & (records["object"] == "left kidney")].set_index("image_id")
    ours.index += "_left+kidney.png"
    assert (ours["dice"] == published["sam_dice"].reindex(ours.index)).all() and len(ours) == len(published)
    assert (ours["area_px"] == published["area"].reindex(ours.index)).all()
    assert ours["patient"].nunique() == len({name.split("_")[1] for name in published.index})
    assert records["patient"].nunique() == 159 + 50 + 7 + 26 + 61 + 13 + 57


def write_published(folder: Path, rows: list[tuple], columns=("dice", "medsam_dice")) -> Path:
    """Task06_Lung/tumor_metrics.csv with rows (image stem, area, Dice, ...)."""
    task = folder / "Task06_Lung"
    task.mkdir(parents=True, exist_ok=True)
    frame = pd.DataFrame(rows, columns=["file", "area", *columns])
    frame["file"] += "_tumor.png"
    frame.to_csv(task / "tumor_metrics.csv", index=False)
    return folder


ROWS = [
    ("lung_001_5_CT_lung", AREA, 0.5, 1.0),
    ("lung_001_6_CT_lung", AREA, 0.25, 0.0),
    ("lung_002_9_CT_lung", 7, 1, 0),
]


def test_a_small_file_by_hand(tmp_path):
    source = write_published(tmp_path / "results", ROWS)
    output = import_results(source, "--runs-dir", tmp_path / "runs", "--as", "Mine")
    assert "3 masks of 1 data set: Mine (published), MedSAM + box (published)" in output
    table = pd.read_csv(tmp_path / "runs/results/report/main_table.csv").set_index("method")
    assert table.loc["Mine (published)", "MSD-Lung"] == pytest.approx(100 * 1.75 / 3)
    assert table.loc["MedSAM + box (published)", "average"] == pytest.approx(100 / 3)
    records = pd.read_parquet(next((tmp_path / "runs/results").glob("mine*/records.parquet")))
    assert records["patient"].tolist() == ["lung_001", "lung_001", "lung_002"]
    assert set(records["prompt"]) == {"tumor in lung CT"}


def test_only_the_columns_asked_for(tmp_path):
    source = write_published(tmp_path / "results", ROWS)
    import_results(source, "--runs-dir", tmp_path / "runs", "--only", "medsam_dice", "--into", "other")
    table = pd.read_csv(tmp_path / "runs/other/report/main_table.csv")
    assert table["method"].tolist() == ["MedSAM + box (published)"]


def test_a_mask_without_dice_is_left_out_and_told(tmp_path):
    source = write_published(tmp_path / "results", [*ROWS, ("lung_003_1_CT_lung", 9, None, 1.0)])
    import_results(source, "--runs-dir", tmp_path / "runs")
    table = pd.read_csv(tmp_path / "runs/results/report/main_table.csv").set_index("method")
    assert table.loc["BiomedParse v1 (published)", "MSD-Lung"] == pytest.approx(100 * 1.75 / 3)
    assert table.loc["MedSAM + box (published)", "MSD-Lung"] == pytest.approx(50)
    page = (tmp_path / "runs/results/report/index.html").read_text()
    assert "BiomedParse v1 (published): 1 published records have no Dice, left out." in page


def test_the_same_import_again_changes_nothing_and_another_is_not_mixed_in(tmp_path):
    source, words = write_published(tmp_path / "results", ROWS), ("--runs-dir", tmp_path / "runs")
    import_results(source, *words)
    folder = tmp_path / "runs" / "results"
    before = {file: file.read_bytes() for file in folder.rglob("*") if file.suffix in (".json", ".parquet", ".md")}
    import_results(source, *words)
    assert {file: file.read_bytes() for file in before} == before and len(before) > 10
    write_published(source, [*ROWS, ("lung_003_1_CT_lung", 9, 1.0, 1.0)])
    with pytest.raises(UserError, match=r"has split_hash .* name another folder with --into, or remove"):
        import_results(source, *words)


@pytest.mark.parametrize(
    ("rows", "words", "message"),
    [
        ([("a", 5, 1.5, 0)], (), "line 2: a_tumor.png has a dice outside 0..1"),
        ([("a", 5, 1, 0), ("b", 0, 1, 0)], (), "line 3: b_tumor.png has an area that is no number of px"),
        ([("a", 5, 1, 0), ("a", 5, 1, 0)], (), "line 3: a_tumor.png is there twice"),
        ([("a", "x", 1, 0)], (), "tumor_metrics.csv cannot be read"),
        (ROWS, ("--only", "medsam"), "unknown column 'medsam': did you mean 'medsam_dice'?"),
        (ROWS, ("--only", "sam_dice"), "has no column 'sam_dice'"),
        (ROWS, ("--as", "MedSAM + box"), "names two rows"),
    ],
)
def test_files_that_cannot_be_used_are_one_line(tmp_path, rows, words, message):
    source = write_published(tmp_path / "results", rows)
    with pytest.raises(UserError) as caught:
        import_results(source, "--runs-dir", tmp_path / "runs", *words)
    assert message in str(caught.value) and "\n" not in str(caught.value)
    assert not (tmp_path / "runs").exists()


def test_a_mask_of_another_object_and_a_folder_without_results(tmp_path):
    source = write_published(tmp_path / "results", ROWS)
    (source / "Task06_Lung/tumor_metrics.csv").rename(source / "Task06_Lung/nodule_metrics.csv")
    with pytest.raises(UserError, match=r"lung_001_5_CT_lung_tumor\.png is no mask of 'nodule'"):
        import_results(source, "--runs-dir", tmp_path / "runs")
    with pytest.raises(UserError, match=r"holds no <object>_metrics\.csv"):
        import_results(tmp_path / "nowhere", "--runs-dir", tmp_path / "runs")


@pytest.fixture(scope="module")
def lung(bench, layout, tmp_path_factory) -> Path:
    """A folder with runs/main: the location prior on a data set MSD-Lung whose test masks are those of ROWS[:2]."""
    folder = tmp_path_factory.mktemp("lung")

    def item(stem: str, shift: int):
        mask = np.zeros((1024, 1024), bool)
        mask[500 + shift : 510 + shift, 500:530] = True
        assert mask.sum() == AREA
        return stem, f"who-{stem[:8]}", (40 + 100 * mask).astype(np.uint8), {"tumor": mask}

    train = [item(f"lung_01{patient}_3_CT_lung", 3 * patient) for patient in range(3)]
    layout(folder / "MSD-Lung", "train", train)
    layout(folder / "MSD-Lung", "test", [item(row[0], 20 + 2 * place) for place, row in enumerate(ROWS[:2])])
    words = ("run", "--suite", "smoke", "--data", folder / "MSD-Lung", "--methods", "location_prior", "--name", "main")
    done = bench(*words, "--executor", "local", "--runs-dir", folder / "runs", MLFLOW_TRACKING_URI="http://127.0.0.1:9")
    assert done.returncode == 0, done.stdout + done.stderr
    return folder


@pytest.fixture
def runs(lung, tmp_path) -> Path:
    shutil.copytree(lung / "runs", tmp_path / "runs")
    return tmp_path / "runs"


def test_rows_join_a_run_on_the_same_masks(runs, lung, tmp_path, bench):
    source = write_published(tmp_path / "results", ROWS)  # one mask more than the run has
    import_results(source, "--runs-dir", runs, "--into", "main")
    report = runs / "main" / "report"
    table = pd.read_csv(report / "main_table.csv").set_index("method")
    assert list(table.index) == ["Location prior", "BiomedParse v1 (published)", "MedSAM + box (published)"]
    assert table.loc["BiomedParse v1 (published)", "MSD-Lung"] == pytest.approx(37.5)
    text = (report / "main_table.md").read_text()
    assert "BiomedParse v1 (published): on the 2 of 3 published masks that the suite has" in text
    line = "Imported, not run here (Dice as published in results"
    assert all(line in file.read_text() for file in tables(report))
    assert "Unlike the others" not in text  # what imported rows were given is not known, and no difference
    records = pd.read_parquet(next((runs / "main").glob("biomedparse*/records.parquet")))
    assert set(records["patient"]) == {"who-lung_001"} and set(records["prompt"]) == {"tumor in toy image"}

    words = ("run", "--suite", "smoke", "--data", lung / "MSD-Lung", "--methods", "location_prior", "--name", "main")
    done = bench(*words, "--executor", "local", "--runs-dir", runs, MLFLOW_TRACKING_URI="http://127.0.0.1:9")
    assert done.returncode == 0, done.stderr
    assert list(pd.read_csv(report / "main_table.csv")["method"]) == list(table.index)  # the same command keeps them

    write_published(source, [(*row[:2], 1.0, 0.5) for row in ROWS])
    import_results(source, "--runs-dir", runs, "--into", "main", "--only", "dice")
    table = pd.read_csv(report / "main_table.csv").set_index("method")
    assert sorted(table["MSD-Lung"].astype(float).round(1))[-1] == 100.0 and len(table) == 3  # replaced, not added


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        (ROWS[:1], "1 of its 2 masks are not published, first MSD-Lung/lung_001_6_CT_lung 'tumor'"),
        ([ROWS[0], (*ROWS[1][:1], AREA + 1, 0, 0)], "1 of its 2 masks are published with another area_px"),
    ],
)
def test_other_masks_are_refused(runs, tmp_path, rows, message):
    source = write_published(tmp_path / "results", rows)
    before = (runs / "main" / "suite.json").read_bytes()
    with pytest.raises(UserError) as caught:
        import_results(source, "--runs-dir", runs, "--into", "main")
    assert message in str(caught.value)
    assert str(caught.value).endswith("leave --into out to have them in a folder of their own")
    assert (runs / "main" / "suite.json").read_bytes() == before
    assert len(list((runs / "main").glob("*seed0*"))) == 1


def test_other_data_and_phantoms_are_refused(runs, tmp_path):
    source = write_published(tmp_path / "results", ROWS)
    (source / "Task06_Lung").rename(source / "Task10_Colon")
    with pytest.raises(UserError, match="it has none of MSD-Colon"):
        import_results(source, "--runs-dir", runs, "--into", "main")
    file = runs / "main" / "suite.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {"phantom": True}))
    with pytest.raises(UserError, match="it was run on generated images"):
        import_results(source, "--runs-dir", runs, "--into", "main")
