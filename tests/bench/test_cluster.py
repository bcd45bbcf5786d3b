"""A real Ray cluster of two nodes on this machine: `bench run --address`, as a user calls it."""

import contextlib
import json
import logging
import os
import re
import shutil
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import pandas as pd
import psutil
import pytest

from bench import tuning
from bench.cluster import PACKAGE_FOLDERS, check_nodes, connected_hardware, reach
from bench.environment import Hardware, package_versions
from bench.errors import UserError
from bench.measured_cost import Measured, in_words
from bench.methods import METHODS
from bench.plan import Request, choose, make_plan

ROOT = Path(__file__).resolve().parents[2]
STORE = 128 * 2**20  # bytes
WORDS = ("run", "--suite", "smoke", "--name", "two")


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


@pytest.mark.parametrize(
    ("by", "trials"),
    [("HOST:PORT", ["location_prior,boltzformer"]), ("auto", ["location_prior", "--seeds", "0,1"])],
    ids=["HOST:PORT", "auto"],
)
def test_trials_run_on_both_nodes_to_the_records_of_this_machine(bench, cluster, squares, tmp_path, by, trials):
    address, environment = cluster.address, {"OMP_NUM_THREADS": "1"}
    if by == "auto":  # alone it might find the Ray of a test that runs at the same time
        address, environment = by, environment | {"RAY_ADDRESS": cluster.address}
    suite_words = [*WORDS, "--methods", *trials, "--data", squares]
    for name, words in (("there", ["--address", address]), ("here", ["--executor", "local"])):
        # Ray's default runs a trial of one core in one thread; two threads would add up in another order
        done = bench(*suite_words, "--runs-dir", tmp_path / name, *words, **environment)
        assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]
        if name == "there":
            assert "2 nodes of a Ray cluster, 2 cores" in done.stdout and "2 side by side" in done.stdout
            suite = json.loads((tmp_path / "there/two/suite.json").read_text())
            assert f"--address {address}" in suite["command"]
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


MARK = """

def _marked(work):
    def marked(*given):
        print("trained by the edited copy in", __file__)
        return work(*given)

    return marked


fit_and_predict = _marked(fit_and_predict)
"""


def test_the_code_of_the_driver_reaches_the_workers_and_nothing_beside_it(bench, cluster, squares, tmp_path):
    copy = tmp_path / "copy"
    for name in PACKAGE_FOLDERS:
        shutil.copytree(ROOT / name, copy / name, ignore=shutil.ignore_patterns("__pycache__"))
    with (copy / "bench/execute.py").open("a") as file:
        file.write(MARK)
    for folder in ("runs", "data", "tests", "bench/__pycache__"):
        (copy / folder).mkdir()
        (copy / folder / "stays.txt").touch()
    words = ["run", "--suite", "smoke", "--methods", "location_prior", "--data", squares, "--runs-dir", "runs"]
    # from another folder: Ray tells workers to look for modules where the driver was called
    (tmp_path / "elsewhere").mkdir()
    done = subprocess.run(
        [sys.executable, "-m", "bench", *map(str, words), "--address", cluster.address],
        cwd=tmp_path / "elsewhere",
        env=os.environ | {"PYTHONPATH": str(copy)},
        capture_output=True,
        text=True,
        timeout=240,
    )
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]
    (log,) = tmp_path.glob("elsewhere/runs/*/location_prior-*/output.log")
    ran = re.search(r"^trained by the edited copy in (.*)/bench/execute.py$", log.read_text(), re.MULTILINE)
    assert ran, log.read_text()
    arrived = Path(ran[1]).parent  # a folder for each package
    assert not arrived.is_relative_to(tmp_path)
    assert {place.name for place in arrived.glob("*/*")} == set(PACKAGE_FOLDERS)
    assert (arrived / ran[1] / "bench/data/splits.py").exists() and not list(arrived.rglob("stays.txt"))


@pytest.mark.fault
@pytest.mark.slow
@pytest.mark.parametrize("cluster", [0], indirect=True)
@pytest.mark.parametrize("lost", ["node", "driver"])
def test_a_trial_whose_node_or_driver_is_lost_goes_on(lost, bench, cluster, started, squares, tmp_path):
    """On another node by itself; without its driver when the same command comes, for the cluster ends its work."""
    third = cluster.add_node(num_cpus=1, object_store_memory=STORE)
    words = ["run", "--suite", "smoke", "--methods", "boltzformer", "--data", squares]
    running = started(
        [sys.executable, "-m", "bench", *words, "--address", cluster.address, "--runs-dir", tmp_path / "lost"],
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
    if lost == "node":
        lose({node.node_id: node for node in (cluster.second, third)}[begun])
        output = running.communicate(timeout=300)[0]
        assert running.returncode == 0, output[-2000:]
        assert json.loads((run_dir / "env.json").read_text())["node"] != begun
    else:
        running.kill()
        running.communicate()
        again = bench(*words, "--address", cluster.address, "--runs-dir", tmp_path / "lost")
        assert again.returncode == 0, again.stdout[-2000:] + again.stderr[-2000:]
    assert "goes on from step 10" in (run_dir / "output.log").read_text()
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
        # a method of another package: only a suite that has it asks for that package
        monkeypatch.setattr("bench.cluster.package_versions", package_versions)
        for name, package in {"there": f"pytest {pytest.__version__}", "lacking": "no-such-thing 2.5"}.items():
            monkeypatch.setitem(METHODS, name, replace(METHODS["sam"], package=package))
        check_nodes(tmp_path, methods=("sam", "there"))
        with pytest.raises(UserError, match=r"^node .*: no-such-thing missing: .*\(pip install no-such-thing==2.5\)"):
            check_nodes(tmp_path, methods=("sam", "there", "lacking"))
        assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("cluster", [0], indirect=True)
def test_a_node_without_cpus_is_asked_where_it_may_get_a_trial_that_waits(cluster, tmp_path, monkeypatch):
    with tuning.ray_at(cluster.address):
        monkeypatch.setattr("bench.cluster.package_versions", lambda: {"torch": "1.0"})
        for waiting, count in ((False, 1), (True, 2)):
            with pytest.raises(UserError) as told:
                check_nodes(tmp_path, waiting=waiting)
            assert str(told.value).count("node ") == count


def test_a_method_of_a_package_that_the_nodes_lack_is_one_line_before_anything_trains(
    bench, cluster, squares, tmp_path
):
    info = tmp_path / "packages/mine-1.0.dist-info"
    info.mkdir(parents=True)
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: mine\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text("[boltzbench.methods]\nmy_method = mine:ENTRY\n")
    entry = "from bench.interface import MethodEntry\n"
    entry += "ENTRY = MethodEntry('Mine', print, 'here', uses_backbone=False)\n"
    (info.parent / "mine.py").write_text(entry)
    words = ["run", "--suite", "smoke", "--methods", "my_method", "--data", squares, "--runs-dir", tmp_path / "runs"]
    done = bench(*words, "--address", cluster.address, PYTHONPATH=f"{info.parent}:{ROOT}")
    assert done.returncode == 2, done.stdout[-2000:] + done.stderr[-2000:]
    (line,) = re.findall("^error: .*", done.stderr, re.MULTILINE)
    assert line.count("mine missing: install what the driver has (pip install mine==1.0)") == 2, line
    assert not list(tmp_path.glob("runs/*/*/spec.json")), "nothing has begun"


@pytest.mark.parametrize("cluster", [0], indirect=True)
def test_workers_that_cannot_train_a_trial_together_are_refused_before_anything_is_made(bench, cluster, tmp_path):
    # GPUs that Ray alone believes in
    cluster.add_node(num_cpus=2, num_gpus=32, memory=64 * 2**30, object_store_memory=STORE)
    runs, url = tmp_path / "runs", f"file://{tmp_path / 'place'}"
    common = ["--address", cluster.address, "--runs-dir", runs]
    storage = ["--storage", url]
    paper = ["--set", "cpus_per_trial=1"]  # else two cores had room for one worker of it
    two = ["--suite", "smoke", "--set", "workers_per_trial=2", "--set", "gpus_per_trial=0.5"]
    shared = "which share its folder: train it on one with --set workers_per_trial=1, or leave --storage out"
    gpu = "with 0.5 of a GPU each, .* give each its own with --set gpus_per_trial=1"
    for words, told in {
        ("run", *paper, *storage, "--dry-run"): rf"profile paper trains a trial on 2 workers, {shared}",
        ("run", *two, *storage): rf"profile smoke trains a trial on 2 workers, {shared}",
        ("tune", "boltzformer", *paper, *storage, "--dry-run"): shared,
        ("ablate", "samples", *paper, *storage, "--dry-run"): shared,
        ("run", *two, "--dry-run"): rf"profile smoke trains a trial on 2 workers {gpu}",
        ("run", *two): gpu,
    }.items():
        done = bench(*words, *common)
        assert done.returncode == 2, (words, done.stdout[-2000:])
        assert re.fullmatch(rf"error: .*{told}.*\n", done.stderr), done.stderr
        assert not done.stdout and not list(tmp_path.iterdir()), words
    for words, said in {
        ("run", *paper, *storage, "--set", "workers_per_trial=1"): "profile  paper: ",
        ("run", *two[:-1], "gpus_per_trial=1"): "2 train each trial",
        ("run", *two, *storage, "--methods", "location_prior"): "1 of 1 trials to run",  # no workers train it
        ("run", *two, *storage, "--executor", "local"): "1 train each trial",
    }.items():
        done = bench(*words, "--dry-run", *(common[2:] if "local" in words else common))
        assert done.returncode == 0 and said in done.stdout, (words, done.stderr)


def test_what_is_measured_here_is_not_taken_for_the_nodes():
    request, cluster = Request(suite="smoke", methods=("seem",)), Hardware(2, 8.0, ("A",), (Hardware(2, 8.0, ("A",)),))
    measured = Measured(4, 0.5, 0.2, 3000.0, 400.0, "a device")
    hint = "measured on the machine of this command, not on the cluster's nodes: for theirs call --measure on one of "
    for hardware, found in ((cluster, True), (cluster.nodes[0], False)):
        plan = make_plan(choose(request, hardware), request, None)
        keys = {(spec.row, spec.backbone) for spec in plan.specs}
        assert any(line.startswith(hint) for line in in_words(plan, plan.specs, dict.fromkeys(keys, measured))) == found
        assert not any(hint in line for line in in_words(plan, plan.specs, dict.fromkeys(keys, "no answer")))


@pytest.mark.skipif(
    subprocess.run(["unshare", "-m", "true"], capture_output=True, check=False).returncode != 0,
    reason="needs the right to make a mount namespace (root), for a node that sees other files",
)
def test_a_node_that_does_not_share_the_folder_is_named_with_the_fix(bench, started, squares, tmp_path):
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

    def begin():
        return started(command, env=os.environ | {"PATH": path}, stdout=subprocess.DEVNULL)

    blind = begin()
    try:
        with tuning.ray_at(cluster.address):
            deadline = time.time() + 180
            while len(connected_hardware().nodes) < 2:
                assert time.time() < deadline
                if blind.poll() is not None:
                    blind = begin()  # Ray gives up after 30 s, which beside other tests may be too few
                time.sleep(0.5)
        done = bench(
            *WORDS, "--methods", "location_prior", "--data", squares, "--runs-dir", runs, "--address", cluster.address
        )
    finally:
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


@pytest.mark.parametrize("by", ["RAY_ADDRESS", "the file of `ray start`"])
def test_a_cluster_that_is_gone_is_told_at_once_with_auto(by, tmp_path, monkeypatch):
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    monkeypatch.setenv("RAY_TMPDIR", str(tmp_path))
    reach("auto")  # nothing names one: Ray looks for it
    if by == "RAY_ADDRESS":
        monkeypatch.setenv(by, "127.0.0.1:9")
    else:
        by = tmp_path / "ray" / "ray_current_cluster"
        by.parent.mkdir()
        by.write_text("127.0.0.1:9")
        # not what runs here: tests beside this one have a Ray
        monkeypatch.setattr("bench.cluster._runs_here", lambda program: True)
        reach("auto")  # Ray takes that one
        monkeypatch.setattr("bench.cluster._runs_here", lambda program: False)
    with pytest.raises(UserError, match=rf"^--address auto \(127.0.0.1:9 by {by}\): no Ray answers there"):
        reach("auto")


def test_nobody_at_the_address_is_one_line(bench, tmp_path):
    # not "auto", which would find the Ray of a test that runs at the same time
    done = bench("run", "--suite", "smoke", "--address", "127.0.0.1:9", "--runs-dir", tmp_path)
    assert done.returncode == 2 and done.stderr.startswith("error: --address 127.0.0.1:9: no Ray answers there")
    assert done.stderr.count("\n") == 1
    done = bench("run", "--suite", "smoke", "--address", "auto", "--executor", "local")
    assert done.returncode == 2 and "leave one of them out" in done.stderr
