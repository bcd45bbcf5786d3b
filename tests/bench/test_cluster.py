"""A real Ray cluster of two nodes on this machine: `bench run --address`, as a user calls it."""

import contextlib
import json
import logging
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pandas as pd
import psutil
import pytest

from bench import tuning
from bench.cluster import check_nodes, connected_hardware, reach
from bench.environment import package_versions
from bench.errors import UserError

ROOT = Path(__file__).resolve().parents[2]
STORE = 128 * 2**20  # bytes
WORDS = ("run", "--suite", "smoke", "--methods", "location_prior,boltzformer", "--name", "two")


@pytest.fixture
def cluster(request):
    """A head and a second node, each with one core; a parameter is the head's cores."""
    from ray.cluster_utils import Cluster

    logging.getLogger("ray").setLevel(logging.ERROR)
    node = {"num_cpus": 1, "object_store_memory": STORE}
    head = {"num_cpus": getattr(request, "param", 1), "include_dashboard": False}
    found = Cluster(initialize_head=True, head_node_args=node | head)
    try:
        found.second = found.add_node(**node)
        yield found
    finally:
        found.shutdown()


def test_trials_run_on_both_nodes_to_the_records_of_this_machine(bench, cluster, squares, tmp_path):
    for name, words in (("there", ["--address", cluster.address]), ("here", ["--executor", "local"])):
        # Ray's default runs a trial of one core in one thread; two threads would add up in another order
        done = bench(*WORDS, "--data", squares, "--runs-dir", tmp_path / name, *words, OMP_NUM_THREADS="1")
        assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]
        if name == "there":
            assert "2 nodes of a Ray cluster, 2 cores" in done.stdout and "2 side by side" in done.stdout
            suite = json.loads((tmp_path / "there/two/suite.json").read_text())
            assert f"--address {cluster.address}" in suite["command"]
    runs = {name: sorted((tmp_path / name / "two").glob("*-seed*")) for name in ("there", "here")}
    assert [run.name for run in runs["there"]] == [run.name for run in runs["here"]]
    assert len(runs["there"]) == 2
    environments = [json.loads((run / "env.json").read_text()) for run in runs["there"]]
    assert len({environment["node"] for environment in environments}) == 2, "both nodes had work"
    assert "node" not in json.loads((runs["here"][0] / "env.json").read_text())
    assert environments[0]["git"] == json.loads((runs["here"][0] / "env.json").read_text())["git"]
    for there, here in zip(runs["there"], runs["here"], strict=True):
        tables = [pd.read_parquet(run / "records.parquet").drop(columns="seconds") for run in (there, here)]
        pd.testing.assert_frame_equal(*tables)
    assert not list((tmp_path / "there/two").glob(".*")), "what the cluster needed is gone"


@pytest.mark.fault
@pytest.mark.slow
@pytest.mark.parametrize("cluster", [0], indirect=True)
def test_a_trial_whose_node_is_lost_goes_on_on_another(bench, cluster, squares, tmp_path):
    third = cluster.add_node(num_cpus=1, object_store_memory=STORE)
    words = ["run", "--suite", "smoke", "--methods", "boltzformer", "--data", squares]
    running = subprocess.Popen(
        [
            sys.executable,
            "-m",
            "bench",
            *map(str, words),
            "--address",
            cluster.address,
            "--runs-dir",
            tmp_path / "lost",
        ],
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    deadline = time.time() + 180
    while not any(tmp_path.glob("lost/*/*/resume-00000010-*.pt")):
        assert running.poll() is None and time.time() < deadline
        time.sleep(0.02)
    (run_dir,) = tmp_path.glob("lost/*/boltzformer-*")
    begun = json.loads((run_dir / "env.json").read_text())["node"]
    lose({node.node_id: node for node in (cluster.second, third)}[begun])
    output = running.communicate(timeout=180)[0]
    assert running.returncode == 0, output[-2000:]
    assert "goes on from step 10" in (run_dir / "output.log").read_text()
    assert json.loads((run_dir / "env.json").read_text())["node"] != begun
    done = bench(*words, "--runs-dir", tmp_path / "whole", "--executor", "local", OMP_NUM_THREADS="1")
    assert done.returncode == 0, done.stderr
    (whole,) = tmp_path.glob("whole/*/boltzformer-*")
    tables = [pd.read_parquet(folder / "records.parquet").drop(columns="seconds") for folder in (run_dir, whole)]
    pd.testing.assert_frame_equal(*tables)


def lose(node):
    """As when a machine loses its power."""
    process = psutil.Process(node.all_processes["raylet"][0].process.pid)
    for one in [process, *process.children(recursive=True)]:
        with contextlib.suppress(psutil.NoSuchProcess):
            one.kill()


def test_nodes_are_asked_before_anything_trains(cluster, tmp_path, monkeypatch):
    with tuning.ray_at(cluster.address):
        hardware = connected_hardware()
        assert [node.cores for node in hardware.nodes] == [1, 1] and hardware.cores == 2
        check_nodes(tmp_path)
        other = {"torch": "1.0", "timm": package_versions()["timm"], "no-such-thing": "2.5+local"}
        monkeypatch.setattr("bench.cluster.package_versions", lambda: other)
        wanted = r"^node .* \(.*\): torch .*, no-such-thing missing: .*\(pip install torch==1.0 no-such-thing==2.5\)"
        with pytest.raises(UserError, match=wanted) as told:
            check_nodes(tmp_path)
        assert str(told.value).count("node ") == 2 and "timm" not in str(told.value)
        assert not list(tmp_path.iterdir())


@pytest.mark.skipif(
    subprocess.run(["unshare", "-m", "true"], capture_output=True, check=False).returncode != 0,
    reason="needs the right to make a mount namespace (root), for a node that sees other files",
)
def test_a_node_that_does_not_share_the_folder_is_named_with_the_fix(bench, squares, tmp_path):
    from ray.cluster_utils import Cluster

    runs = tmp_path / "runs"
    runs.mkdir()
    head = {"num_cpus": 1, "object_store_memory": STORE, "include_dashboard": False}
    cluster = Cluster(initialize_head=True, head_node_args=head)
    script = (
        'mount -t tmpfs none "$1" && mount -t tmpfs none "$2" && exec ray start --address "$3" --num-cpus 1 --block'
    )
    command = ["unshare", "-m", "sh", "-c", script, "-", runs, squares, cluster.address]
    path = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
    blind = subprocess.Popen(
        command, env=os.environ | {"PATH": path}, stdout=subprocess.DEVNULL, start_new_session=True
    )
    try:
        with tuning.ray_at(cluster.address):
            deadline = time.time() + 60
            while len(connected_hardware().nodes) < 2:
                assert blind.poll() is None and time.time() < deadline
                time.sleep(0.5)
        done = bench(*WORDS, "--data", squares, "--runs-dir", runs, "--address", cluster.address)
    finally:
        os.killpg(blind.pid, signal.SIGTERM)
        blind.wait()
        cluster.shutdown()
    assert done.returncode == 2, done.stdout[-2000:]
    assert re.search(
        rf"^error: node .*: does not see {runs}/two: give --runs-dir a folder that all nodes share, "
        rf"or --storage a URL; does not see {squares}: put the data",
        done.stderr,
        re.MULTILINE,
    ), done.stderr
    assert not list(runs.glob("two/*/env.json")), "nothing has begun"


@pytest.mark.parametrize("address", ["somewhere", "ray://host:10001", "host:port"])
def test_an_address_that_is_none(address):
    with pytest.raises(UserError, match=r"give auto, or HOST:PORT of the head node as `ray start` printed it"):
        reach(address)


def test_nobody_at_the_address_is_one_line(bench, tmp_path):
    # not "auto", which would find the Ray of a test that runs at the same time
    done = bench("run", "--suite", "smoke", "--address", "127.0.0.1:9", "--runs-dir", tmp_path)
    assert done.returncode == 2 and done.stderr.startswith("error: --address 127.0.0.1:9: no Ray answers there")
    assert done.stderr.count("\n") == 1
    done = bench("run", "--suite", "smoke", "--address", "auto", "--executor", "local")
    assert done.returncode == 2 and "leave one of them out" in done.stderr
