"""`bench run --storage` on real Ray nodes with folders of their own: what stands at the URL is all that they share."""

import contextlib
import json
import logging
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pandas as pd
import psutil
import pytest

from bench import tuning
from bench.cluster import check_nodes
from bench.errors import UserError

ROOT = Path(__file__).resolve().parents[2]
STORE = 128 * 2**20  # bytes
SUITE = ("run", "--suite", "smoke", "--name", "two")
WORDS = (*SUITE, "--methods", "location_prior,boltzformer")
BLINDS = subprocess.run(["unshare", "-m", "true"], capture_output=True, check=False).returncode == 0


@contextlib.contextmanager
def cluster_of(folder, hidden=(), head_cores=1):
    """A head and a second node, each with a temporary folder of its own; the second one does not see `hidden`."""
    import ray
    from ray.cluster_utils import Cluster

    logging.getLogger("ray").setLevel(logging.ERROR)
    for name in ("head", "second"):
        (folder / name).mkdir()
    head = {"num_cpus": head_cores, "object_store_memory": STORE, "include_dashboard": False}
    cluster = Cluster(
        initialize_head=True,
        head_node_args=head | {"env_vars": {"TMPDIR": str(folder / "head")}},
        shutdown_at_exit=False,
    )
    script = 'address=$1; shift; for one in "$@"; do mount -t tmpfs none "$one" || exit 1; done; '
    script += 'exec ray start --address "$address" --num-cpus 1 --block'
    command = ["sh", "-c", script, "-", cluster.address, *(hidden if BLINDS else ())]
    environment = os.environ | {
        "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
        "TMPDIR": str(folder / "second"),
    }

    def begin():
        words = [*(["unshare", "-m"] if BLINDS else []), *map(str, command)]
        return subprocess.Popen(words, env=environment, stdout=subprocess.DEVNULL, start_new_session=True)

    second = begin()
    try:
        with tuning.ray_at(cluster.address):
            deadline = time.time() + 180
            while sum(node["Alive"] for node in ray.nodes()) < 2:
                assert time.time() < deadline
                if second.poll() is not None:
                    second = begin()  # Ray gives up after 30 s, which beside other tests may be too few
                time.sleep(0.5)
        yield cluster, second
    finally:
        lose(second)
        second.wait()
        cluster.shutdown()


def lose(node):
    """As when a machine loses its power; nothing of one that is gone already."""
    with contextlib.suppress(psutil.NoSuchProcess):
        for one in [*psutil.Process(node.pid).children(recursive=True), psutil.Process(node.pid)]:
            with contextlib.suppress(psutil.NoSuchProcess):
                one.kill()


def records(run_dir):
    return pd.read_parquet(run_dir / "records.parquet").drop(columns="seconds")


def same_runs(there, here):
    runs = [sorted(folder.glob("*-seed*")) for folder in (there, here)]
    assert [run.name for run in runs[0]] == [run.name for run in runs[1]] and runs[0]
    for one, other in zip(*runs, strict=True):
        pd.testing.assert_frame_equal(records(one), records(other))
    return len(runs[0])


@pytest.mark.parametrize(
    "protocol", ["file", pytest.param("ftp", marks=pytest.mark.slow), pytest.param("s3", marks=pytest.mark.slow)]
)
def test_nodes_without_a_shared_folder_make_the_same_records(bench, storage, squares, tmp_path, protocol, monkeypatch):
    url, environment = storage(protocol)
    for name, value in environment.items():
        monkeypatch.setenv(name, value)  # of the nodes: credentials do not travel
    runs = tmp_path / "runs"
    runs.mkdir()
    data = squares
    if protocol == "ftp":  # data of a URL are copied under the runs folder, which nodes do not see
        import fsspec

        data = url.replace("/place", "/squares")
        fsspec.filesystem("ftp", host="127.0.0.1", port=int(re.search(r":(\d+)/", url)[1])).put(
            str(squares), "/squares", recursive=True
        )
    with cluster_of(tmp_path, hidden=[runs]) as (cluster, _):
        words = (*WORDS, "--data", data, "--storage", url)
        done = bench(*words, "--runs-dir", runs, "--address", cluster.address, OMP_NUM_THREADS="1")
        assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]
    assert f"--storage {url}" in json.loads((runs / "two/suite.json").read_text())["command"]
    done = bench(
        *WORDS, "--data", squares, "--runs-dir", tmp_path / "local", "--executor", "local", OMP_NUM_THREADS="1"
    )
    assert done.returncode == 0, done.stderr[-2000:]
    assert same_runs(runs / "two", tmp_path / "local/two") == 2
    environments = [json.loads(file.read_text()) for file in runs.glob("two/*/env.json")]
    assert len({environment["node"] for environment in environments}) == 2, "both nodes had work"
    for node in ("head", "second"):
        (home,) = (tmp_path / node).glob("boltzbench-*/*")
        assert not list(home.glob("trial-*")), "what a trial needed is gone"
        assert (home / "data").exists() == (protocol == "ftp")

    # a new machine finds what is finished, and trains nothing again
    began = {file.parent.name: json.loads(file.read_text())["started"] for file in runs.glob("two/*/status.json")}
    shutil.rmtree(runs / "two")
    done = bench(*words, "--runs-dir", tmp_path / "new", "--executor", "local")
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]
    assert "0 of 2 trials to run" in done.stdout or "nothing" in done.stdout, done.stdout
    after = {
        file.parent.name: json.loads(file.read_text())["started"] for file in tmp_path.glob("new/two/*/status.json")
    }
    assert after == began
    assert same_runs(tmp_path / "new/two", tmp_path / "local/two") == 2
    assert (tmp_path / "new/two/report/index.html").exists()


@pytest.mark.slow
def test_a_search_on_nodes_without_a_shared_folder(bench, storage, squares, tmp_path):
    url, _ = storage("file")
    runs = tmp_path / "runs"
    runs.mkdir()
    words = ["tune", "boltzformer", "--suite", "smoke", "--space", "lr=1e-4,1e-3,1e-2", "--data", squares]
    with cluster_of(tmp_path, hidden=[runs]) as (cluster, _):
        done = bench(*words, "--runs-dir", runs, "--address", cluster.address, "--storage", url)
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]
    (tuned,) = runs.glob("*/tuned-boltzformer-*.json")
    assert len(json.loads(tuned.read_text())["trials"]) == 3
    assert (Path(url.removeprefix("file://")) / tuned.relative_to(runs)).read_bytes() == tuned.read_bytes()


@pytest.mark.fault
@pytest.mark.slow
def test_a_trial_whose_node_is_lost_goes_on_from_the_storage(bench, started, storage, tmp_path):
    url, _ = storage("file")
    runs, place = tmp_path / "runs", Path(url.removeprefix("file://"))
    runs.mkdir()
    # the phantom, generated under the runs folder, which the second node does not see
    words = [*SUITE, "--methods", "boltzformer", "--storage", url]
    with cluster_of(tmp_path, hidden=[runs], head_cores=0) as (cluster, second):
        command = [sys.executable, "-m", "bench", *words, "--address", cluster.address, "--runs-dir", str(runs)]
        running = started(
            command,
            env=os.environ | {"PYTHONPATH": str(ROOT)},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        deadline = time.time() + 180
        while not list(place.glob("two/*/resume-00000010-*.pt")):
            assert running.poll() is None and time.time() < deadline
            time.sleep(0.02)
        begun = json.loads(next(place.glob("two/*/env.json")).read_text())["node"]
        lose(second)
        shutil.rmtree(tmp_path / "second")
        cluster.add_node(num_cpus=1, object_store_memory=STORE, env_vars={"TMPDIR": str(tmp_path / "head")})
        output = running.communicate(timeout=300)[0]
        assert running.returncode == 0, output[-2000:]
    (run_dir,) = runs.glob("two/boltzformer-*")
    assert re.search(r"goes on from step \d+", (run_dir / "output.log").read_text())
    assert json.loads((run_dir / "env.json").read_text())["node"] != begun
    assert not list(place.glob("two/*/resume-*")), "what was pruned is gone at the storage, too"
    done = bench(
        *SUITE, "--methods", "boltzformer", "--runs-dir", tmp_path / "whole", "--executor", "local", OMP_NUM_THREADS="1"
    )
    assert done.returncode == 0, done.stderr
    assert same_runs(runs / "two", tmp_path / "whole/two") == 1


@pytest.mark.slow
def test_a_stopped_suite_goes_on_on_another_machine(bench, started, storage, squares, tmp_path):
    url, _ = storage("file")
    words = [*SUITE, "--methods", "boltzformer", "--data", str(squares), "--executor", "local", "--storage", url]
    command = [sys.executable, "-m", "bench", *words, "--runs-dir", str(tmp_path / "one")]
    running = started(
        command, env=os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}, stderr=subprocess.PIPE, text=True
    )
    place = Path(url.removeprefix("file://"))
    deadline = time.time() + 120
    while not list(place.glob("two/*/resume-*.pt")):
        assert running.poll() is None and time.time() < deadline
        time.sleep(0.02)
    running.send_signal(signal.SIGINT)
    told = running.communicate(timeout=60)[1]
    assert running.returncode == 130 and "Go on where it stopped" in told and f"--storage {url}" in told
    assert not (place / "two/stop").exists()
    (status,) = place.glob("two/*/status.json")
    assert json.loads(status.read_text())["state"] == "interrupted"
    assert len(list(tmp_path.glob("one/two/*/resume-*.pt"))) == 2, "checkpoints have come here"

    done = bench(*words, "--runs-dir", tmp_path / "other", OMP_NUM_THREADS="1")
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]
    (log,) = tmp_path.glob("other/two/*/output.log")
    assert "goes on from step" in log.read_text()
    whole = [*SUITE, "--methods", "boltzformer", "--data", squares, "--executor", "local"]
    assert bench(*whole, "--runs-dir", tmp_path / "whole", OMP_NUM_THREADS="1").returncode == 0
    assert same_runs(tmp_path / "other/two", tmp_path / "whole/two") == 1


@pytest.mark.skipif(not BLINDS, reason="needs the right to make a mount namespace (root), for a node that sees less")
def test_a_node_that_does_not_reach_the_storage_is_named(storage, tmp_path):
    url, _ = storage("file")
    suite, place = tmp_path / "runs/two", Path(url.removeprefix("file://"))
    suite.mkdir(parents=True)
    with cluster_of(tmp_path, hidden=[place]) as (cluster, _), tuning.ray_at(cluster.address):
        with pytest.raises(UserError, match=rf"^node .*: does not see at {url} what .*give --storage a URL") as told:
            check_nodes(suite, url)
        assert str(told.value).count("node ") == 1
        inside, outside = suite.parent / "data/phantom", tmp_path / "data"
        (suite / "suite.json").write_text(json.dumps({"data": {"phantom": str(inside), "mine": str(outside)}}))
        with pytest.raises(UserError, match=rf"does not see {outside}: put the data"):
            check_nodes(suite, url)
    assert not list(place.rglob("*")), "what was asked with is gone"
