"""`sbatch cluster/slurm.sh` on a real SLURM: two nodes of one core each, both of them this machine."""

import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pandas as pd
import pytest

ROOT = Path(__file__).resolve().parents[2]
SCRIPT = ROOT / "cluster" / "slurm.sh"
PROGRAMS = ("munged", "slurmctld", "slurmd", "sbatch")
SEARCHED = f"{os.environ['PATH']}:/usr/sbin"

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(
        not all(shutil.which(name, path=SEARCHED) for name in PROGRAMS), reason="needs SLURM (apt install slurm-wlm)"
    ),
    pytest.mark.skipif(
        subprocess.run(["unshare", "-m", "true"], capture_output=True, check=False).returncode != 0,
        reason="needs the right to make a mount namespace (root), for the nodes' names in /etc/hosts",
    ),
]

CONFIGURATION = """
ClusterName=test
SlurmctldHost={host}(127.0.0.1)
SlurmctldPort={ports[0]}
SlurmUser=root
SlurmdUser=root
AuthType=auth/munge
AuthInfo=socket={folder}/munge.socket
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool-%n
SlurmctldPidFile={folder}/ctld.pid
SlurmdPidFile={folder}/slurmd-%n.pid
SlurmctldLogFile={folder}/ctld.log
SlurmdLogFile={folder}/slurmd-%n.log
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
SelectType=select/cons_tres
SelectTypeParameters=CR_Core
MpiDefault=none
SchedulerParameters=sched_interval=1
NodeName=n1,n2 NodeHostname={host} NodeAddr=127.0.0.1 Port={ports[1]},{ports[2]} CPUs=1
PartitionName=all Nodes=ALL Default=YES State=UP
"""
START = """
mount --bind hosts /etc/hosts
munged --foreground --force --key-file=$PWD/key --socket=$PWD/munge.socket --pid-file=$PWD/munged.pid \
  --log-file=$PWD/munged.log --seed-file=$PWD/seed &
sleep 1
slurmctld -D -c &
slurmd -D -N n1 &
slurmd -D -N n2 &
wait
"""


@pytest.fixture(scope="module")
def slurm(free_port, tmp_path_factory):
    """slurm(program, words...): what it prints, on a SLURM whose two nodes are idle."""
    folder = tmp_path_factory.mktemp("slurm")
    (folder / "state").mkdir()
    (folder / "key").write_bytes(os.urandom(128))
    (folder / "key").chmod(0o600)
    (folder / "hosts").write_text(Path("/etc/hosts").read_text() + "\n127.0.0.1 n1 n2\n")
    host = socket.gethostname().partition(".")[0]
    ports = [free_port() for _ in range(3)]
    (folder / "slurm.conf").write_text(CONFIGURATION.format(host=host, folder=folder, ports=ports))
    # the job's environment is the caller's; whatever Ray another test has left is none of its business
    environment = {name: value for name, value in os.environ.items() if not name.startswith("RAY_")}
    environment |= {"SLURM_CONF": str(folder / "slurm.conf"), "PATH": SEARCHED, "PYTHONPATH": str(ROOT)}
    environment |= {"VENV": sys.prefix, "OMP_NUM_THREADS": "1"}

    def call(*words, cwd=folder):
        done = subprocess.run(words, capture_output=True, text=True, env=environment, cwd=cwd, check=False)
        return done.stdout + done.stderr

    with (folder / "daemons.log").open("w") as log:
        daemons = subprocess.Popen(
            ["unshare", "-m", "bash", "-c", START],
            cwd=folder,
            env=environment,
            stdout=log,
            stderr=log,
            start_new_session=True,
        )
    try:
        deadline = time.time() + 60
        while "2 idle" not in " ".join(call("sinfo", "--noheader", "--format=%D %t").split()):
            assert daemons.poll() is None and time.time() < deadline, (folder / "daemons.log").read_text()
            time.sleep(0.5)
        yield call
    finally:
        call("scancel", "--full", "--signal=KILL", "--state=RUNNING")
        os.killpg(daemons.pid, signal.SIGTERM)
        daemons.wait()


def submit(slurm, folder, *words, export="ALL"):
    """The number of a job of two nodes in `folder`."""
    options = ["--nodes=2", "--cpus-per-task=1", "--gpus-per-task=0", "--mem=0", "--time=10", f"--export={export}"]
    said = slurm("sbatch", *options, SCRIPT, *words, cwd=folder)
    found = re.fullmatch(r"Submitted batch job (\d+)\n", said)
    assert found, said
    return found[1]


def wait_for_job(slurm, job, folder):
    """(state, exit code, log) of a job that has ended."""
    deadline = time.time() + 240
    while True:
        told = slurm("scontrol", "show", "job", job)
        state, code = re.search(r"JobState=(\S+)", told)[1], int(re.search(r" ExitCode=(\d+):", told)[1])
        file = folder / f"boltzbench-{job}.log"
        log = file.read_text() if file.exists() else ""
        if state not in ("PENDING", "RUNNING", "COMPLETING", "CONFIGURING"):
            return state, code, log
        assert time.time() < deadline, log
        time.sleep(0.5)


def test_a_suite_on_two_nodes_and_the_time_limit(slurm, bench, squares, tmp_path):
    """Ended by the SIGTERM of the time limit, the same sbatch goes on, to the records of this machine alone."""
    words = ["--suite", "smoke", "--methods", "boltzformer,location_prior", "--data", squares]
    job = submit(slurm, tmp_path, *words, "--runs-dir", "runs")
    deadline = time.time() + 240
    while not any(tmp_path.glob("runs/*/*/resume-00000010-*.pt")):
        assert time.time() < deadline, (tmp_path / f"boltzbench-{job}.log").read_text()
        time.sleep(0.02)
    slurm("scancel", "--batch", "--signal=TERM", job)
    state, code, log = wait_for_job(slurm, job, tmp_path)
    assert (state, code) == ("FAILED", 130), log
    assert "2 nodes of a Ray cluster, 2 cores" in log and "Go on where it stopped with" in log

    state, code, log = wait_for_job(slurm, submit(slurm, tmp_path, *words, "--runs-dir", "runs"), tmp_path)
    assert (state, code) == ("COMPLETED", 0), log
    assert "report" in log
    done = bench("run", *words, "--runs-dir", tmp_path / "here", "--executor", "local", OMP_NUM_THREADS="1")
    assert done.returncode == 0, done.stderr
    runs = [sorted(tmp_path.glob(f"{name}/*/*-seed*")) for name in ("runs", "here")]
    for there, here in zip(*runs, strict=True):
        assert json.loads((there / "env.json").read_text())["node"]
        tables = [pd.read_parquet(run / "records.parquet").drop(columns="seconds") for run in (there, here)]
        pd.testing.assert_frame_equal(*tables)
    (trained,) = tmp_path.glob("runs/*/boltzformer-*")
    assert "goes on from step 1" in (trained / "output.log").read_text()


def test_a_ray_that_does_not_begin_ends_the_job(slurm, tmp_path):
    """Instead of holding the machines until the time limit."""
    programs = tmp_path / "venv" / "bin"
    programs.mkdir(parents=True)
    (programs / "activate").write_text(f"PATH={programs}:$PATH\n")
    (programs / "ray").write_text("#!/bin/sh\necho no Ray here >&2\nexit 1\n")
    (programs / "ray").chmod(0o755)
    job = submit(slurm, tmp_path, "--suite", "smoke", export=f"ALL,VENV={tmp_path / 'venv'}")
    state, code, log = wait_for_job(slurm, job, tmp_path)
    assert (state, code) == ("FAILED", 1), log
    assert "no Ray here" in log and "error: Ray does not begin on n1: see above" in log
