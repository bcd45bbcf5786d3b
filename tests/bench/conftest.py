"""Fixtures of the tests that look into MLflow or at remote places, and of those that start processes."""

import contextlib
import socket
import subprocess
import sys
import textwrap
import time
from pathlib import Path

import psutil
import pytest

from bench.data.dataset import load_dataset
from bench.data.splits import make_splits
from bench.methods import make_spec
from bench.tracking import initialize_store
from experiments import SUITES
from experiments.profiles import PROFILES

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    """The URI of a new SQLite store; making its tables takes seconds, so the tests of a file share it."""
    runs = tmp_path_factory.mktemp("runs")
    uri = f"sqlite:///{runs / 'mlflow.db'}"
    assert initialize_store(uri, runs)
    return uri


@pytest.fixture
def split_squares(squares, tmp_path):
    """A suite folder with the squares' splits in it, and the splits."""
    folder = tmp_path / "runs" / "suite"
    folder.mkdir(parents=True)
    splits = make_splits([load_dataset(squares)])
    splits.save(folder / "splits.json")
    return folder, splits


@pytest.fixture
def two_priors(split_squares):
    """A suite folder with splits, and the specs of two location priors."""
    folder, splits = split_squares
    suite, profile = SUITES["smoke"], PROFILES["smoke"]
    return folder, [make_spec(suite, profile, "location_prior", "-", seed, splits.hash) for seed in (0, 1)]


@pytest.fixture(scope="session")
def told_without():
    """told_without(package, module, call): the UserError of a call of a module's function where `package` is missing.

    In a process of its own: where a test before has used the package, fsspec keeps it.
    """

    def tell(package, module, call):
        code = f"""
            import sys
            from bench.errors import UserError
            from {module} import {call.partition("(")[0]}
            sys.modules[{package!r}] = None
            try:
                {call}
            except UserError as error:
                print(error, end="")
        """
        command = [sys.executable, "-c", textwrap.dedent(code)]
        done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        return done.stdout

    return tell


@pytest.fixture
def started():
    """started(command, as for Popen) -> the process: it, and all below it, are killed when the test has ended, however
    it ended.
    """
    processes = []

    def start(command, **options):
        processes.append(subprocess.Popen([str(word) for word in command], **options))
        return processes[-1]

    yield start
    for process in processes:
        if process.poll() is not None:
            continue
        for one in [*psutil.Process(process.pid).children(recursive=True), process]:
            with contextlib.suppress(psutil.NoSuchProcess):
                one.kill()
        process.wait()


@pytest.fixture(scope="module")
def storage(tmp_path_factory, free_port):
    """storage("file" | "memory" | "ftp" | "s3") -> (URL that can be written, environment that it needs)."""
    servers = []

    def serve(*words):
        port = free_port()
        quiet = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
        servers.append(subprocess.Popen([sys.executable, "-m", *map(str, words), "-p", str(port)], **quiet))
        deadline = time.time() + 60
        while True:
            try:
                socket.create_connection(("127.0.0.1", port), 1).close()
                return port
            except OSError:
                assert servers[-1].poll() is None and time.time() < deadline
                time.sleep(0.1)

    def place(protocol):
        folder = tmp_path_factory.mktemp("storage")
        if protocol == "ftp":
            pytest.importorskip("pyftpdlib", reason="needs an FTP server: pip install pyftpdlib")
            port = serve("pyftpdlib", "-w", "-i", "127.0.0.1", "-d", folder)
            return f"ftp://127.0.0.1:{port}/place", {}
        if protocol == "s3":
            for package in ("s3fs", "moto"):
                pytest.importorskip(package, reason="needs an S3 server: pip install s3fs 'moto[server]'")
            import s3fs

            port = serve("moto.server")
            settings = {"endpoint_url": f"http://127.0.0.1:{port}", "key": "test", "secret": "test"}
            s3fs.S3FileSystem(**settings).mkdir("bucket")
            return "s3://bucket/place", {f"FSSPEC_S3_{name.upper()}": value for name, value in settings.items()}
        return (f"file://{folder}" if protocol == "file" else "memory://place"), {}

    yield place
    for server in servers:
        server.kill()
        server.wait()
