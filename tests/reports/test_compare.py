"""Two suites side by side, against each one's own report."""

import json
import shutil

import pandas as pd
import pytest

from bench.errors import UserError
from reports.build import build_report
from reports.compare import compare, compare_table
from reports.load import load_suite


@pytest.fixture
def suites(build, tmp_path):
    """The same masks; in the second suite BoltzFormer and SAM have changed places, and nnU-Net was not run."""
    first = build.suite(tmp_path, size=48, patients=6)
    second = tmp_path / "later"
    shutil.copytree(first, second)
    records = {}
    for folder in second.iterdir():
        if folder.name.startswith("nnunet-"):
            shutil.rmtree(folder)
        elif folder.is_dir():
            records[folder.name.partition("-")[0]] = folder / "records.parquet"
    frames = {name: pd.read_parquet(path) for name, path in records.items()}
    for name, other in (("boltzformer", "sam"), ("sam", "boltzformer")):
        frame = frames[other].assign(method=name)
        frame.to_parquet(records[name])
    suite = json.loads((second / "suite.json").read_text())
    suite["runs"] = [run for run in suite["runs"] if not run.startswith("nnunet-")]
    (second / "suite.json").write_text(json.dumps(suite))
    return first, second


def test_what_changed_between_two_suites(suites):
    first, second = suites
    table, files = compare(first, second)
    frame = table.frame.set_index("method")
    assert list(frame.index) == ["BoltzFormer+Hiera-XT", "SAM+Hiera-XT"]  # nnU-Net is not in both
    for side, folder in enumerate(suites):
        main = build_report(folder).frame.set_index("method")["average"]
        for method in frame.index:
            assert frame.loc[method, f"all {side}"] == pytest.approx(main[method])
    line, other = frame.loc["BoltzFormer+Hiera-XT"], frame.loc["SAM+Hiera-XT"]
    assert line["all difference"] == pytest.approx(line["all 1"] - line["all 0"])
    assert line["all difference"] == pytest.approx(-other["all difference"])
    assert line["all low"] < line["all difference"] < line["all high"] < 0 and line["all p"] < 0.05
    assert {file.name for file in files} == {"compare-later.md", "compare-later.csv", "compare-later.tex"}
    assert all(file.is_file() for file in files)


def test_a_suite_has_not_changed_from_itself(suites):
    results = load_suite(suites[0])
    frame = compare_table(results, results).frame
    assert len(frame) == 3 and (frame["all difference"] == 0).all() and frame["all p"].isna().all()


def test_seeds_that_only_one_suite_has_are_left_out(build, tmp_path):
    several = load_suite(build.suite(tmp_path, size=48, patients=6, seeds=(0, 1, 2)))
    first = load_suite(build.suite(tmp_path / "first", size=48, patients=6, seeds=(0,)))
    other = load_suite(build.suite(tmp_path / "other", size=48, patients=6, seeds=(7,)))
    frame = compare_table(several, first).frame
    assert (frame["all difference"] == 0).all(), "seed 0 against seed 0"
    # where they share none, all of each
    frame = compare_table(several, other).frame
    assert (frame["all difference"] != 0).all() and frame["all 0"].tolist() == pytest.approx(
        build_report(several.folder).frame["average"].tolist()
    )


def test_other_data_are_no_comparison(suites, build):
    first, second = suites
    for folder in second.glob("*seed*"):
        shutil.rmtree(folder)
    build.change(second / "suite.json", split_hash="another")
    with pytest.raises(UserError, match="run both on the same data and split"):
        compare(first, second)


def test_from_the_command_line(suites, bench):
    first, second = suites
    done = bench("report", "suite", "--compare", second, "--runs-dir", first.parent)
    assert done.returncode == 0, done.stderr
    assert "later against suite" in done.stdout and "compare-later.md" in done.stdout
    done = bench("report", "suite", "--compare", "nothing", "--runs-dir", first.parent)
    assert done.returncode == 2 and "no suite.json in nothing" in done.stderr
