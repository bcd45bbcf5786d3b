"""The whole report from a suite folder: the files, the gaps, the imports, the time."""

import json
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from bench.errors import UserError
from reports.build import build_report
from reports.load import load_suite

TABLES = ["claims", "main_table", "by_size", "differences", "ranks", "seeds", "per_object", "object_sizes"]
TABLES += ["quality", "detection", "cost", "fairness", "runs"]
FIGURES = ["dice_vs_size", "dice_vs_area", "dice_vs_cost", "critical_difference", "curves", "overlays"]
FILES = {f"{name}.{form}" for name in TABLES for form in ("md", "csv", "tex")}
FILES |= {f"{name}.{form}" for name in FIGURES for form in ("png", "svg")} | {"dice_vs_area.csv", "index.html"}
DATASETS = ["LIDC-IDRI", "AMOS22-CT", "zebra"]


def run_folder(suite, method):
    return next(path for path in suite.iterdir() if path.name.startswith(f"{method}-"))


@pytest.fixture
def suite(build, tmp_path):
    return build.suite(tmp_path, size=48)


def test_every_run_has_its_own_average(suite, build):
    failed = run_folder(suite, "sam")
    build.change(failed / "status.json", state="failed", error="out of memory", fit=None)
    trained = run_folder(suite, "boltzformer")
    for folder, git in ((trained, {"commit": "c" * 40, "dirty": True}), (failed, "none")):
        (folder / "env.json").write_text(json.dumps({"git": git}))
    tables = build_report(suite).tables
    runs, main = (pd.read_csv(tables[name], na_values="-") for name in ("runs.csv", "main_table.csv"))
    runs, main = runs.set_index("run"), main.set_index("method")
    line, other = runs.loc[trained.name], runs.loc[failed.name]
    assert line["average"] == pytest.approx(float(main.loc["BoltzFormer+Hiera-XT", "average"]))
    assert runs.loc[run_folder(suite, "nnunet").name, "average"] != pytest.approx(line["average"])
    assert line["commit"] == "cccccccccc and changes"
    assert np.isnan(other["average"]) and other["error"] == "out of memory" and pd.isna(other["commit"])


def test_a_suite_without_runs_has_a_report(suite):
    content = json.loads((suite / "suite.json").read_text())
    (suite / "suite.json").write_text(json.dumps(content | {"runs": []}))
    assert build_report(suite).tables["runs.csv"].read_text().startswith("run,state,average")


def test_report_is_written_whole(suite):
    report = build_report(suite)
    folder = suite / "report"
    assert {path.name for path in folder.iterdir()} == FILES
    assert {*report.tables, *report.figures, report.html.name} == FILES
    assert all(path.is_file() and path.parent == folder for path in report.tables.values())
    assert report.gaps == () and report.notes == ()
    # the paper's data sets first, in its order
    assert list(report.frame.columns[:6]) == ["method", "average", "average SE", *DATASETS]
    assert report.frame["method"].tolist() == ["BoltzFormer+Hiera-XT", "SAM+Hiera-XT", "nnU-Net"]
    for path in report.tables.values():
        assert "phantom" in path.read_text()
    page = report.html.read_text()
    assert page.count("data:image/png;base64,") == 6 and "reduced to 2 epochs &amp; 2D" in page


def test_main_table_agrees_with_a_loop_over_the_records(suite):
    frame = pd.read_csv(build_report(suite).tables["main_table.csv"])
    records = load_suite(suite).records
    for place, method in enumerate(["boltzformer", "sam", "nnunet"]):
        means = []
        for dataset in DATASETS:
            mine = records[(records["method"] == method) & (records["dataset"] == dataset)]
            dice = [200 * r.tp / (2 * r.tp + r.fp + r.fn) for r in mine.itertuples()]
            means.append(sum(dice) / len(dice))
            assert frame.loc[place, dataset] == pytest.approx(means[-1])
        assert frame.loc[place, "average"] == pytest.approx(sum(means) / 3)
    assert frame["ms_per_prompt"].tolist() == pytest.approx([16, 22, 28])
    assert frame["train_seconds"].tolist() == [61.5] * 3 and frame["parameters"].tolist() == [1234567] * 3


def test_two_builds_are_byte_for_byte_the_same(suite, tmp_path):
    first, second = build_report(suite, tmp_path / "a"), build_report(suite, tmp_path / "b")
    for name in sorted(FILES):
        assert (first.html.parent / name).read_bytes() == (second.html.parent / name).read_bytes(), name


def test_gaps_are_shown_and_never_averaged(suite, build):
    shutil.rmtree(run_folder(suite, "sam"))
    build.change(run_folder(suite, "nnunet") / "status.json", state="failed", error="out of memory", fit=None)
    path = run_folder(suite, "boltzformer") / "records.parquet"
    report = build_report(suite)
    table = report.frame.set_index("method")
    assert set(table.loc["SAM+Hiera-XT", ["average", *DATASETS]]) == {"-"}
    assert set(table.loc["nnU-Net", ["average", *DATASETS, "budget"]]) == {"failed"}
    assert "not run" in report.gaps[0] and "failed: out of memory" in report.gaps[1]
    assert "The grid has gaps" in report.html.read_text() and "out of memory" in report.html.read_text()
    sizes = pd.read_csv(report.tables["by_size.csv"])
    assert set(sizes["SAM+Hiera-XT"]) == {"-"} and set(sizes["nnU-Net"]) == {"failed"}

    build.change(run_folder(suite, "nnunet") / "status.json", state="finished")
    records = pd.read_parquet(path)
    records[records["dataset"] != "zebra"].to_parquet(path)
    table = build_report(suite).frame.set_index("method")
    row = table.loc["BoltzFormer+Hiera-XT"]
    assert row["zebra"] == "-" and row["average"] == "-" and row["LIDC-IDRI"] > 0
    assert table.loc["nnU-Net", "average"] > 0


def test_a_run_that_was_left_out_has_a_row_and_the_reason(suite, build):
    (run_folder(suite, "sam") / "records.parquet").unlink()
    build.change(run_folder(suite, "sam") / "status.json", state="left out", error="no weights: give them", fit=None)
    report = build_report(suite)
    row = report.frame.set_index("method").loc["SAM+Hiera-XT"]
    assert set(row[["average", *DATASETS, "budget"]]) == {"-"}
    assert len(report.gaps) == 1 and "SAM+Hiera-XT, seed 0: no weights: give them (missing: " in report.gaps[0]
    assert report.gaps[0] in report.html.read_text()


def test_a_suite_of_which_nothing_has_run(suite):
    for method in ("boltzformer", "sam", "nnunet"):
        shutil.rmtree(run_folder(suite, method))
    report = build_report(suite)
    assert set(report.frame["average"]) == {"-"} and set(report.frame["LIDC-IDRI"]) == {"-"}
    assert len(report.gaps) == 3 and report.html.is_file()


def test_real_data_are_not_called_phantom(build, tmp_path):
    report = build_report(build.suite(tmp_path, size=24, patients=2, slices=1, phantom=False))
    for path in (*report.tables.values(), report.html):
        assert "phantom" not in path.read_text()


def test_several_seeds(build, tmp_path):
    suite = build.suite(tmp_path, size=32, seeds=(0, 1))
    frame = build_report(suite).frame
    assert len(frame) == 3 and set(frame["seeds"]) == {2}
    records = load_suite(suite).records
    mine = records[(records["method"] == "sam") & (records["dataset"] == "zebra")]
    dice = 200 * mine["tp"] / (2 * mine["tp"] + mine["fp"] + mine["fn"])
    assert frame.loc[1, "zebra"] == pytest.approx(dice.mean())


def test_out_that_cannot_be_written(suite, tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="cannot be written"):
        build_report(suite, tmp_path / "file" / "report")


def test_reports_import_neither_torch_nor_ray_nor_mlflow(suite):
    code = (
        "import sys; from pathlib import Path; from reports.build import build_report; "
        "build_report(Path(sys.argv[1])); "
        "sys.exit({'torch', 'ray', 'mlflow'} & set(sys.modules) or 0)"
    )
    root = Path(__file__).resolve().parents[2]
    done = subprocess.run([sys.executable, "-c", code, suite], cwd=root, capture_output=True, text=True)
    assert done.returncode == 0 and done.stderr.strip() == "", done.stderr


def numbers(suite):
    return pd.read_csv(build_report(suite).tables["main_table.csv"], index_col="method")


def test_a_suite_stopped_after_a_seed_is_a_whole_comparison_on_that_seed(build, tmp_path):
    folders = [tmp_path / name for name in ("three", "one")]
    for folder in folders:
        folder.mkdir()
    three = build.suite(folders[0], size=32, patients=2, slices=1, seeds=(0, 1, 2))
    one = build.suite(folders[1], size=32, patients=2, slices=1)
    build.change(next(three.glob("sam-*-seed1-*")) / "status.json", state="interrupted")
    shutil.rmtree(next(three.glob("nnunet-seed2-*")))
    pd.testing.assert_frame_equal(numbers(three), numbers(one))
    report = build_report(three)
    assert report.gaps == ("In no table yet: seeds 1, 2, of which 2 of 6 runs are still to come.",)
    assert report.gaps[0] in report.tables["differences.md"].read_text()
    assert len(pd.read_csv(report.tables["runs.csv"])) == 9
    # where no seed is whole: the first
    build.change(next(three.glob("sam-*-seed0-*")) / "status.json", state="running")
    found, whole = numbers(three)["average"], numbers(one)["average"]
    assert found["SAM+Hiera-XT"] == "-"
    assert float(found["nnU-Net"]) == whole["nnU-Net"]


def test_a_run_that_failed_is_not_waited_for(build, tmp_path):
    suite = build.suite(tmp_path, size=32, patients=2, slices=1, seeds=(0, 1))
    build.change(next(suite.glob("sam-*-seed1-*")) / "status.json", state="failed", error="out of memory")
    assert numbers(suite).loc["SAM+Hiera-XT", "average"] == "failed"
    assert numbers(suite).loc["nnU-Net", "seeds"] == 2


def test_what_seeds_were_given_is_named_where_they_differ(build, tmp_path):
    suite = build.suite(tmp_path, size=48, seeds=(0, 1), methods={"boltzformer": "BoltzFormer", "nnunet": "nnU-Net"})
    for seed, step in ((0, 300), (1, 400)):
        (run,) = suite.glob(f"boltzformer-*seed{seed}-*")
        fit = json.loads((run / "status.json").read_text())["fit"]
        build.change(run / "status.json", fit=fit | {"budget": f"400 steps (weights of step {step})"})
    main = build_report(suite).frame.set_index("method")
    assert main.loc["BoltzFormer+Hiera-XT", "budget"] == "400 steps (weights of step 300 or weights of step 400)"
    assert main.loc["nnU-Net", "budget"] == "400 steps x 16 images"
    # a run that was left out has trained nothing
    (run,) = suite.glob("nnunet-*seed1-*")
    build.change(run / "status.json", state="left out")
    assert build_report(suite).frame.set_index("method").loc["nnU-Net", "seeds"] == 1
