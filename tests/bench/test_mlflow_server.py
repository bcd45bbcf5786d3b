"""A real `mlflow server`, started here: eight trials at once on a real PostgreSQL, and a server that goes away."""

import json
import os
import pwd
import shutil
import signal
import subprocess
import sys
import time
import urllib.request
from pathlib import Path

import pytest

from bench import tracking

ROOT = Path(__file__).resolve().parents[2]
BINARIES = sorted(Path("/usr/lib/postgresql").glob("*/bin/initdb"))
SECRET = "s3cret-of-the-server"
DEADLINE = 180  # seconds for a server to answer; MLflow makes its tables first

pytestmark = pytest.mark.slow


@pytest.fixture
def postgres(free_port):
    """The URI of an empty PostgreSQL database."""
    if not BINARIES:
        pytest.skip("needs PostgreSQL (apt install postgresql)")
    pytest.importorskip("psycopg2", reason="MLflow reaches PostgreSQL through psycopg2-binary")
    # PostgreSQL does not run as root, and its user does not see pytest's folders
    user = {}
    if os.geteuid() == 0:
        try:
            entry = pwd.getpwnam("postgres")
        except KeyError:
            pytest.skip("PostgreSQL does not run as root, and there is no user postgres")
        user = {"user": entry.pw_uid, "group": entry.pw_gid, "extra_groups": []}
    folder = Path("/tmp") / f"boltzbench-postgres-{os.getpid()}"
    folder.mkdir()
    if user:
        os.chown(folder, user["user"], user["group"])
    binaries, port = BINARIES[-1].parent, free_port()
    run = {"cwd": folder, "stdout": subprocess.DEVNULL, **user}
    server = None
    try:
        subprocess.run([binaries / "initdb", "-D", folder / "data", "-A", "trust", "-U", "mlflow"], check=True, **run)
        options = ["-h", "127.0.0.1", "-p", str(port), "-k", str(folder)]
        server = subprocess.Popen(
            [binaries / "postgres", "-D", folder / "data", *options], stderr=subprocess.DEVNULL, **run
        )
        create = [binaries / "createdb", "-h", "127.0.0.1", "-p", str(port), "-U", "mlflow", "mlflow"]
        wait_until(lambda: subprocess.run(create, stderr=subprocess.DEVNULL, **run).returncode == 0, server)
        yield f"postgresql+psycopg2://mlflow@127.0.0.1:{port}/mlflow"
    finally:
        if server is not None:
            server.send_signal(signal.SIGINT)  # SIGTERM waits for those who are connected
            server.wait(timeout=60)
        shutil.rmtree(folder, ignore_errors=True)


class Server:
    """`mlflow server` that can be stopped and started again on the same port; folder: for artifacts and its output."""

    def __init__(self, database, folder, port, workers):
        self.process = None
        self.uri = f"http://127.0.0.1:{port}"
        self.output = folder / "server.txt"
        self.database = Path(database.removeprefix("sqlite:///"))
        self.command = [sys.executable, "-m", "mlflow", "server", "--backend-store-uri", database]
        self.command += ["--artifacts-destination", str(folder), "--port", str(port), "--workers", str(workers)]

    def start(self):
        environment = os.environ | {"MLFLOW_DISABLE_TELEMETRY": "true", "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false"}
        with self.output.open("a") as output:
            streams = {"stdout": output, "stderr": output}
            self.process = subprocess.Popen(self.command, env=environment, start_new_session=True, **streams)
        wait_until(self._answers, self.process, self.output)

    def _answers(self):
        try:
            return urllib.request.urlopen(f"{self.uri}/health", timeout=2).status == 200
        except OSError:
            return False

    def stop(self):
        if self.process is not None:
            os.killpg(self.process.pid, signal.SIGKILL)  # asked, it would first answer whoever is waiting
            self.process.wait(timeout=60)
            self.process = None


def wait_until(true, process, output=None):
    deadline = time.time() + DEADLINE
    while not true():
        assert process.poll() is None and time.time() < deadline, output and output.read_text()[-3000:]
        time.sleep(0.3)


@pytest.fixture
def serve(free_port, tmp_path):
    """serve(database, workers) -> a server on it that answers."""
    servers = []

    # several workers are watched by one more process, which begins those anew that are slow to begin: a busy machine
    # may never get to the end of that
    def begin(database, workers=1):
        (tmp_path / "server").mkdir()
        servers.append(Server(database, tmp_path / "server", free_port(), workers))
        servers[-1].start()
        return servers[-1]

    yield begin
    for server in servers:
        server.stop()


def curves_in_mlflow(uri, run_dir, names):
    client = tracking.client(uri)
    status = json.loads((run_dir / "status.json").read_text())
    history = {name: client.get_metric_history(status["in_mlflow"], name) for name in names}
    return {name: sorted((point.step, point.value) for point in points) for name, points in history.items()}


# each point is sent at once, and a server that did not answer is asked again after a second instead of a minute
IMPATIENT = "from bench import cli, tracking as t; t.FLUSH_INTERVAL, t.RETRY_INTERVAL = 0.0, 1.0; cli.main()"


def command(words, data, runs, module=("-m", "bench")):
    words = ["run", "--suite", "smoke", "--data", data, "--runs-dir", runs, *words]
    return [sys.executable, *module, *map(str, words)]


def test_eight_trials_at_once_lose_nothing(serve, postgres, squares, curves_in_folder, tmp_path):
    """Eight commands of one trial each, at once, whatever the number of cores."""
    server = serve(postgres, workers=2)
    environment = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    words = ["--methods", "boltzformer", "--executor", "local", "--tracking-uri", server.uri, "--seeds"]
    running = [
        subprocess.Popen(
            command([*words, seed, "--name", f"of{seed}"], squares, tmp_path / "runs"),
            env=environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        for seed in range(8)
    ]
    for process in running:
        output = process.communicate(timeout=600)[0]
        assert process.returncode == 0 and "warning" not in output, output[-2000:]
    runs = sorted(tmp_path.glob("runs/of*/boltzformer-*"))
    assert len(runs) == 8
    for run_dir in runs:
        curves = curves_in_folder(run_dir)
        assert curves_in_mlflow(server.uri, run_dir, curves) == curves


@pytest.fixture
def begun(serve, started, squares, tmp_path):
    """begun(words) -> (server, a command that trains with it and has a checkpoint, its words and environment)."""

    def begin(*more, module=("-m", "bench")):
        server = serve(f"sqlite:///{tmp_path / 'server.db'}")
        uri = server.uri.replace("://", f"://me:{SECRET}@")
        environment = os.environ | {"PYTHONPATH": str(ROOT), "MLFLOW_TRACKING_URI": uri}
        words = ["--methods", "boltzformer,location_prior", "--executor", "local", *more]
        words = command(words, squares, tmp_path / "runs", module)
        running = started(words, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
        wait_until(lambda: any(tmp_path.glob("runs/*/boltzformer-*/resume-*.pt")), running)
        return server, running, words, environment

    return begin


def assert_all_arrived(server, run_dir, curves):
    """And the password nowhere: neither in the folder nor in what the server keeps."""
    assert len(curves) == 5
    assert curves_in_mlflow(server.uri, run_dir, curves) == curves
    for folder in (run_dir.parents[1], server.output.parent):
        files = [file for file in folder.rglob("*") if file.is_file()]
        assert files and not [file for file in files if SECRET.encode() in file.read_bytes()]
    assert SECRET.encode() not in server.database.read_bytes()


@pytest.mark.fault
def test_a_server_that_comes_back_while_trials_run_has_everything(begun, curves_in_folder, tmp_path):
    """What is measured from then on arrives while it is measured, what was missed in the end."""
    server, running, *_ = begun("--set", "steps=200", "--set", "patience=1000", module=("-c", IMPATIENT))
    server.stop()
    (run_dir,) = tmp_path.glob("runs/*/boltzformer-*")

    def measured():
        return {json.loads(line)["step"] for line in (run_dir / "history.jsonl").read_text().splitlines()}

    before = measured()
    wait_until(lambda: len(measured() - before) > 1, running)
    running.send_signal(signal.SIGSTOP)  # a server takes longer to begin than these trials to end
    server.start()
    steps = measured()
    running.send_signal(signal.SIGCONT)
    client = tracking.client(server.uri)
    experiment = client.get_experiment_by_name(tracking.EXPERIMENT).experiment_id
    (run,) = [run for run in client.search_runs([experiment]) if "train_loss" in run.data.metrics]

    def arrived():
        return {point.step for point in client.get_metric_history(run.info.run_id, "train_loss")}

    wait_until(lambda: max(arrived()) > max(steps), running)
    assert steps - arrived() and running.poll() is None, "what was missed is sent when it ends"
    output = running.communicate(timeout=300)[0]
    assert running.returncode == 0 and SECRET not in output, output[-2000:]
    assert_all_arrived(server, run_dir, curves_in_folder(run_dir))


@pytest.mark.fault
def test_a_server_that_goes_away_in_the_middle_has_everything_in_the_end(begun, curves_in_folder, tmp_path):
    """Away from the first steps on, and back before the suite is asked for again."""
    server, running, words, environment = begun()
    server.stop()
    output = running.communicate(timeout=300)[0]
    assert running.returncode == 0 and SECRET not in output, output[-2000:]
    (run_dir,) = tmp_path.glob("runs/*/boltzformer-*")
    assert "in_mlflow" not in json.loads((run_dir / "status.json").read_text())
    server.start()
    again = subprocess.run(words, env=environment, capture_output=True, text=True, timeout=300)
    assert again.returncode == 0 and "0 of 2 trials to run" in again.stdout, again.stdout + again.stderr
    assert_all_arrived(server, run_dir, curves_in_folder(run_dir))
