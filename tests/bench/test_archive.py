"""`bench archive`: the report of what was kept against the report of the run itself."""

import json
import shutil

import pytest

from bench.archive import archive_suite
from bench.errors import UserError

METHODS = "boltzformer,seem,sam,location_prior"


@pytest.fixture(scope="module")
def suite(toy_runs):
    return toy_runs / "runs" / "toy"


@pytest.fixture
def copied(suite, tmp_path):
    return shutil.copytree(suite, tmp_path / "copied")


def tables_of(report):
    return {file.name: file.read_bytes() for file in report.iterdir() if file.suffix in (".md", ".csv", ".tex")}


def state_of(folder):
    return {str(file.relative_to(folder)): file.read_bytes() for file in folder.rglob("*") if file.is_file()}


def test_the_report_of_an_archive_is_that_of_the_run_without_its_data(bench, suite, tmp_path):
    kept = tmp_path / "kept" / "toy"
    done = bench("archive", "toy", kept, "--runs-dir", suite.parent)
    assert done.returncode == 0 and f"{kept} (4 runs, 0." in done.stdout, done.stdout + done.stderr
    for folder in (suite, kept):
        assert bench("report", folder).returncode == 0
    assert tables_of(kept / "report") == tables_of(suite / "report")
    assert (kept / "report" / "curves.svg").read_bytes() == (suite / "report" / "curves.svg").read_bytes()


def test_nothing_in_it_is_large_or_names_a_place_on_this_machine(suite, toy_runs, tmp_path):
    kept = archive_suite(suite, tmp_path / "kept")
    files = state_of(kept.folder)
    assert kept.size == sum(map(len, files.values())) < 2**20
    assert not {file.rpartition("/")[2] for file in files} & {"model.pt", "predictions.parquet", "output.log", "lock"}
    for content in files.values():
        assert str(toy_runs).encode() not in content
    kept_suite = json.loads(files["suite.json"])
    assert kept_suite["data"] == {"toy": "toy"} and "id" not in kept_suite


@pytest.mark.parametrize(
    ("command", "kept"),
    [
        ("bench run --data '/my data/set' --runs-dir /scratch/runs --seeds 0,1", "bench run --data set --seeds 0,1"),
        ("bench run --data ../data/set --weights sam3=/w/sam3.pt", "bench run --data set --weights sam3=sam3.pt"),
        ("bench run --data s3://bucket/set --set steps=4", "bench run --data s3://bucket/set --set steps=4"),
        (
            "bench run --backbone-weights facebook/sam2-hiera-small",
            "bench run --backbone-weights facebook/sam2-hiera-small",
        ),
    ],
)
def test_the_command_names_no_folder_of_this_machine(copied, tmp_path, command, kept):
    suite = json.loads((copied / "suite.json").read_text())
    earlier = [{"command": command, "runs": suite["runs"][:1]}]
    (copied / "suite.json").write_text(json.dumps(suite | {"command": command, "earlier_commands": earlier}))
    archive_suite(copied, tmp_path / "kept")
    written = json.loads((tmp_path / "kept" / "suite.json").read_text())
    assert [written["command"], written["earlier_commands"][0]["command"]] == [kept, kept]


def test_the_same_command_goes_on_with_an_archive(bench, suite, toy_runs, tmp_path):
    archive_suite(suite, tmp_path / "runs" / "toy")
    words = ["run", "--suite", "smoke", "--data", toy_runs / "toy", "--name", "toy", "--executor", "local"]
    nobody = {"MLFLOW_TRACKING_URI": "http://127.0.0.1:9"}
    done = bench(*words, "--methods", METHODS, "--runs-dir", tmp_path / "runs", **nobody)
    assert done.returncode == 0 and "0 of 4 trials to run" in done.stdout, done.stdout + done.stderr
    assert json.loads((tmp_path / "runs" / "toy" / "suite.json").read_text())["data"] == {"toy": str(toy_runs / "toy")}


def test_masks_are_kept_where_they_are_asked_for(suite, tmp_path):
    kept = archive_suite(suite, tmp_path / "kept", masks=True)
    for run in kept.folder.glob("*-seed*"):
        assert (run / "predictions.parquet").read_bytes() == (suite / run.name / "predictions.parquet").read_bytes()


def test_an_archive_takes_the_place_of_an_older_one(copied, tmp_path):
    run_id = next(folder.name for folder in copied.glob("seem-*"))
    status = (copied / run_id / "status.json").read_text()
    (copied / run_id / "status.json").write_text(json.dumps(json.loads(status) | {"state": "interrupted"}))
    first = archive_suite(copied, tmp_path / "kept")
    assert (first.runs, first.finished) == (4, 3)
    (copied / run_id / "status.json").write_text(status)
    assert archive_suite(copied, tmp_path / "kept").finished == 4
    assert json.loads((tmp_path / "kept" / run_id / "status.json").read_text())["state"] == "finished"
    assert [path.name for path in tmp_path.iterdir() if "kept" in path.name] == ["kept"]


def test_finished_runs_are_not_lost(copied, tmp_path):
    archive_suite(copied, tmp_path / "kept")
    before = state_of(tmp_path / "kept")
    suite = json.loads((copied / "suite.json").read_text())
    gone = [run for run in suite["runs"] if run.startswith("sam-")]
    suite["runs"] = [run for run in suite["runs"] if run not in gone]
    (copied / "suite.json").write_text(json.dumps(suite))
    with pytest.raises(UserError, match=f"holds finished runs that .* lacks .{gone[0]}"):
        archive_suite(copied, tmp_path / "kept")
    assert state_of(tmp_path / "kept") == before


def test_a_broken_run_leaves_the_older_archive(copied, tmp_path):
    archive_suite(copied, tmp_path / "kept")
    before = state_of(tmp_path)
    next(copied.glob("seem-*/records.parquet")).write_bytes(b"PAR1")
    broken = {name: content for name, content in state_of(tmp_path).items() if not name.startswith("copied")}
    with pytest.raises(UserError, match=r"records\.parquet"):
        archive_suite(copied, tmp_path / "kept")
    after = {name: content for name, content in state_of(tmp_path).items() if not name.startswith("copied")}
    assert after == broken and set(after) <= set(before)


@pytest.mark.parametrize("left", ["lock", "seem/resume-00000010-0123456789abcdef.pt", "seem/model.pt", "cache/x"])
def test_a_suite_that_is_worked_on_is_no_archive(copied, tmp_path, left):
    other = tmp_path / "other"
    archive_suite(copied, other)
    (other / left).parent.mkdir(exist_ok=True)
    (other / left).write_text("mine")
    before = state_of(other)
    with pytest.raises(UserError, match="is a suite's own folder"):
        archive_suite(copied, other)
    assert state_of(other) == before


def test_killed_between_two_renames_the_older_archive_is_found_again(copied, tmp_path, monkeypatch):
    archive_suite(copied, tmp_path / "kept")
    (tmp_path / "kept").rename(tmp_path / ".kept.17.old")
    next(copied.glob("seem-*/records.parquet")).write_bytes(b"PAR1")
    with pytest.raises(UserError, match=r"records\.parquet"):
        archive_suite(copied, tmp_path / "kept")
    assert not (tmp_path / "kept").exists(), "nothing is touched for a suite that cannot be read"
    (broken,) = copied.glob("seem-*/records.parquet")
    shutil.copyfile(tmp_path / ".kept.17.old" / broken.relative_to(copied), broken)
    monkeypatch.setattr("bench.archive._copy", lambda *args: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        archive_suite(copied, tmp_path / "kept")
    assert (tmp_path / "kept" / "suite.json").exists()


@pytest.mark.parametrize("place", ["copied", "copied/within", "."])
def test_not_within_the_run(copied, tmp_path, place):
    with pytest.raises(UserError, match="lie one within the other"):
        archive_suite(copied, tmp_path / place)


@pytest.mark.parametrize("what", ["folder", "file"])
def test_what_is_no_archive_is_left_alone(copied, tmp_path, what):
    other = tmp_path / "other"
    if what == "folder":
        other.mkdir()
        (other / "thesis.tex").write_text("mine")
    else:
        other.write_text("mine")
    with pytest.raises(UserError, match="is no archive"):
        archive_suite(copied, other)
    assert (other.read_text() if what == "file" else (other / "thesis.tex").read_text()) == "mine"


def test_a_name_that_is_no_run_is_told_in_one_line(bench, tmp_path):
    done = bench("archive", "nothing", tmp_path / "kept", "--runs-dir", tmp_path)
    assert done.returncode == 2 and "no suite.json in" in done.stderr and "Traceback" not in done.stderr
