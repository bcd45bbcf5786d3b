"""The command line as a user meets it."""

import json
import os
import subprocess
import sys
import time
import urllib.request
from pathlib import Path

import psutil
import pytest
from typer.testing import CliRunner

from bench import cli
from bench.errors import UserError

ROOT = Path(__file__).resolve().parents[2]
RUNNER = CliRunner()


def test_help_needs_nothing_heavy():
    heavy = ("torch", "ray", "mlflow", "pandas", "matplotlib", "numpy", "pydantic", "rich.console", "PIL")
    code = f"import sys; import bench.cli; print([name for name in {heavy} if name in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_suites_and_methods_are_listed_without_torch_ray_or_mlflow():
    code = "import sys; sys.argv = ['bench', 'list']\nfrom bench.cli import main\ntry: main()\n"
    code += "except SystemExit as e: assert not e.code\n"
    code += "print([n for n in ('torch', 'ray', 'mlflow') if n in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout.strip().endswith("[]")
    for word in ("main", "smoke", "boltzformer", "location_prior", "laptop", "paper"):
        assert word in done.stdout


@pytest.mark.parametrize(
    "command",
    [
        [],
        ["run"],
        ["predict"],
        ["profile"],
        ["report"],
        ["phrasings"],
        ["evaluate"],
        ["import-results"],
        ["list"],
        ["ui"],
        ["data", "check"],
        ["data", "split"],
        ["data", "stats"],
        ["data", "preview"],
    ],
)
def test_every_command_explains_itself_with_an_example(command):
    result = RUNNER.invoke(cli.app, [*command, "--help"])
    assert result.exit_code == 0
    assert "bench " + " ".join(command or ["run"]) in result.output
    assert "\b" not in result.output


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("run", "--suite", "mian"), "error: unknown suite 'mian': did you mean 'main'?"),
        (
            ("run", "--seeds", "0,x"),
            "error: --seeds '0,x' is no list of whole numbers: write e.g. --seeds 0,1,2",
        ),
        (("run", "--data", "nowhere"), "nowhere"),
        (("report", "nothing"), "error: no suite.json in nothing: "),
        (("data", "check", "nowhere"), "nowhere"),
        (("run", "--name", ".."), "error: --name '..' cannot be a folder of"),
        (("run", "--runs-dir", __file__), f"error: {__file__} is a file"),
        (("ui",), "mlflow.db does not exist: start with `bench run`"),
    ],
)
def test_a_users_mistake_is_one_line_and_exit_2(bench, tmp_path, words, message):
    runs = () if words[0] == "data" or "--runs-dir" in words else ("--runs-dir", tmp_path / "runs")
    done = bench(*words, *runs, MLFLOW_TRACKING_URI="")
    assert done.returncode == 2
    assert message in done.stderr and done.stderr.startswith("error: ")
    assert len(done.stderr.strip().splitlines()) == 1 and done.stdout == ""
    assert not (tmp_path / "runs").exists()


def test_a_full_disk_is_one_line_too(monkeypatch, capsys):
    def full():
        raise OSError(28, "No space left on device", "/somewhere/file")

    monkeypatch.setattr(cli, "app", full)
    with pytest.raises(SystemExit) as caught:
        cli.main()
    assert caught.value.code == 2
    assert capsys.readouterr().err == (
        "error: no space left on device while writing /somewhere/file: free some and run the same command again\n"
    )


def test_a_bug_is_not_dressed_as_a_users_mistake(monkeypatch):
    def bug():
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(cli, "app", bug)
    with pytest.raises(PermissionError):
        cli.main()


def test_options_reach_the_driver(monkeypatch, tmp_path):
    from bench import run as driver

    seen = []
    monkeypatch.setattr(driver, "run", lambda request, console: seen.append(request) or 7)
    words = [
        "run",
        "--data",
        "a",
        "--data",
        "b",
        "--methods",
        "sam, sam2",
        "--seeds",
        "3,4",
        "--executor",
        "local",
        "--weights",
        "biomedparse=a.pt",
        "--weights",
        "sam3=b.pt",
    ]
    assert RUNNER.invoke(cli.app, words).exit_code == 7
    (request,) = seen
    assert request.data == ("a", "b") and request.methods == ("sam", "sam2")
    assert (request.seeds, request.executor, request.profile) == ((3, 4), "local", None)
    assert request.weights == ("biomedparse=a.pt", "sam3=b.pt")
    assert RUNNER.invoke(cli.app, ["run", "--executor", "slurm"]).exit_code == 2


def test_check_stats_and_preview_of_a_good_and_a_bad_data_set(squares, tmp_path):
    assert RUNNER.invoke(cli.app, ["data", "check", str(squares)]).exit_code == 0
    result = RUNNER.invoke(cli.app, ["data", "stats", str(squares)])
    assert result.exit_code == 0 and "dot" in result.output
    sheet = tmp_path / "sheet.png"
    result = RUNNER.invoke(cli.app, ["data", "preview", str(squares), "--out", str(sheet), "--count", "3"])
    assert result.exit_code == 0 and str(sheet) in result.output.replace("\n", "")
    assert sheet.read_bytes().startswith(b"\x89PNG")
    broken = sorted((squares / "test_mask").glob("*.png"))[:2]
    for mask in broken:
        mask.unlink()
    result = RUNNER.invoke(cli.app, ["data", "check", str(squares)])
    assert result.exit_code == 2 and "2 data problems" in result.output
    with pytest.raises(UserError, match="holds 2 data sets"):
        other = squares.parent / "second"
        other.mkdir()
        for item in ("train.json", "test.json"):
            (other / item).write_text((squares / item).read_text())
        RUNNER.invoke(cli.app, ["data", "preview", str(squares.parent)], catch_exceptions=False)


def test_run_report_and_list_by_the_command_line(bench, squares, tmp_path):
    runs = tmp_path / "runs"
    words = (
        "run",
        "--suite",
        "smoke",
        "--data",
        squares,
        "--methods",
        "location_prior",
        "--executor",
        "local",
    )
    done = bench(*words, "--runs-dir", runs, MLFLOW_TRACKING_URI="http://127.0.0.1:9")
    assert done.returncode == 0, done.stderr
    assert done.stderr.startswith("warning: MLflow at http://127.0.0.1:9") and len(done.stderr.splitlines()) == 1
    html = runs / "smoke-squares" / "report" / "index.html"
    html.unlink()
    for name in ("smoke-squares", runs / "smoke-squares"):
        result = RUNNER.invoke(cli.app, ["report", str(name), "--runs-dir", str(runs)])
        assert result.exit_code == 0 and html.is_file()
        html.unlink()
    result = RUNNER.invoke(cli.app, ["list", "runs", "--runs-dir", str(runs)], env={"COLUMNS": "300"})
    assert "smoke-squares" in result.output and "1/1" in result.output
    suite = json.loads((runs / "smoke-squares" / "suite.json").read_text())
    assert suite["command"].startswith("bench run --suite smoke --data ")


@pytest.mark.parametrize("uri", ["postgresql://me:secret@127.0.0.1/mlflow", "postgresql://127.0.0.1/mlflow"])
def test_ui_tells_nobody_the_password_of_the_store(uri, monkeypatch, tmp_path):
    """Neither on the command line of what it starts, which `ps` shows, nor in what it prints."""
    started = []

    def run(command, env, check):
        started.append((command, env))
        return subprocess.CompletedProcess(command, 0)

    monkeypatch.setenv("MLFLOW_TRACKING_URI", uri)
    monkeypatch.setattr(cli.subprocess, "run", run)
    result = RUNNER.invoke(cli.app, ["ui", "--runs-dir", str(tmp_path)])
    assert result.exit_code == 0 and "secret" not in result.output
    ((command, environment),) = started
    assert not any("postgresql" in word for word in command)
    assert environment["MLFLOW_BACKEND_STORE_URI"] == uri
    assert environment["MLFLOW_SERVER_ENABLE_JOB_EXECUTION"] == "false"


@pytest.mark.slow
def test_ui_serves_the_runs(free_port, tmp_path):
    from bench.tracking import Tracker, initialize_store

    uri = f"sqlite:///{tmp_path / 'mlflow.db'}"
    initialize_store(uri, tmp_path)
    Tracker(uri, "key", "a-run-to-be-seen").finish("FINISHED")
    port = free_port()
    environment = {name: value for name, value in os.environ.items() if name != "MLFLOW_TRACKING_URI"}
    server = subprocess.Popen(
        [sys.executable, "-m", "bench", "ui", "--port", str(port), "--runs-dir", str(tmp_path)],
        env=environment | {"PYTHONPATH": str(ROOT)},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    )
    try:
        body = json.dumps({"experiment_ids": ["1"]}).encode()
        address = f"http://127.0.0.1:{port}/api/2.0/mlflow/runs/search"
        query = urllib.request.Request(address, body, {"Content-Type": "application/json"})
        deadline = time.time() + 120
        while True:
            try:
                answer = urllib.request.urlopen(query, timeout=10).read().decode()
                break
            except OSError:
                assert time.time() < deadline and server.poll() is None
                time.sleep(0.5)
        assert "a-run-to-be-seen" in answer
        # neither MLflow nor what it starts shows the store's URI to `ps`
        processes = [psutil.Process(server.pid), *psutil.Process(server.pid).children(recursive=True)]
        lines = [" ".join(process.cmdline()) for process in processes]
        assert len(lines) > 1 and any("mlflow" in line for line in lines[1:])
        assert not any("sqlite:" in line for line in lines)
    finally:
        os.killpg(server.pid, 15)
        server.wait(30)
