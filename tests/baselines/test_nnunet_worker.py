"""The child process of nnU-Net, in whose place one stands that forks as nnU-Net does: nothing of it is left behind."""

import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from baselines.nnunet import run_child

ROOT = Path(__file__).resolve().parents[2]
FORKS = """
import os, signal, sys, time
from pathlib import Path
from baselines import nnunet_worker

def run_job(job, emit):
    emit("begun", expert="a")
    if not (augmenter := os.fork()):
        time.sleep(600)
    (Path(job["folder"]) / "augmenter").write_text(str(augmenter))
    emit("progress", expert="a", step=1)
    if job["ends"]:
        os.kill(os.getpid(), signal.SIGKILL)
    time.sleep(600)

nnunet_worker.run_job = run_job
nnunet_worker.main(sys.argv[1])
"""
PARENT = """
import sys
from baselines.nnunet import run_child
for event in run_child({"folder": sys.argv[1], "ends": False}, [{"name": "a"}]):
    print(event, flush=True)
"""


@pytest.fixture
def forking(tmp_path, monkeypatch):
    """`sys.executable` is a Python whose nnU-Net forks; the real one."""
    real = sys.executable
    (tmp_path / "forks.py").write_text(FORKS)
    python = tmp_path / "python"
    python.write_text(f'#!/bin/sh\nexec {sys.executable} {tmp_path / "forks.py"} "$3"\n')
    python.chmod(0o755)
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    monkeypatch.setattr(sys, "executable", str(python))
    return real


@pytest.fixture
def assert_gone(is_alive):
    """assert_gone(folder): the process of nnU-Net whose number stands there ends within 30 seconds."""

    def wait(folder):
        process = int((folder / "augmenter").read_text())
        deadline = time.time() + 30
        while is_alive(process):
            assert time.time() < deadline
            time.sleep(0.05)

    return wait


@pytest.mark.timeout(120)
def test_a_child_that_dies_is_noticed_though_its_own_live_on(forking, assert_gone, tmp_path):
    with pytest.raises(RuntimeError, match="nnU-Net's a failed"):
        list(run_child({"folder": str(tmp_path), "ends": True}, [{"name": "a"}]))
    assert_gone(tmp_path)


@pytest.mark.timeout(120)
def test_who_stops_listening_ends_them_all(forking, assert_gone, tmp_path):
    events = run_child({"folder": str(tmp_path), "ends": False}, [{"name": "a"}])
    assert [next(events)["event"] for _ in range(2)] == ["begun", "progress"]
    events.close()
    assert_gone(tmp_path)


@pytest.mark.timeout(120)
def test_a_parent_that_is_killed_leaves_none(forking, assert_gone, tmp_path):
    code = f"import sys; sys.executable = {sys.executable!r}\n{PARENT}"
    running = subprocess.Popen([forking, "-c", code, tmp_path], stdout=subprocess.PIPE, text=True)
    assert "begun" in running.stdout.readline() and "progress" in running.stdout.readline()
    running.send_signal(signal.SIGKILL)
    running.wait()
    running.stdout.close()
    assert_gone(tmp_path)
