"""An existing Ray cluster (`bench run --address`): what its nodes have, and whether trials can run on each of them."""

from __future__ import annotations

import contextlib
import json
import os
import socket
import tempfile
import uuid
from collections.abc import Collection, Iterator
from pathlib import Path
from typing import Any

from bench.atomic import read_json, write_json
from bench.environment import GIT_STATE, Hardware, git_state, package_versions
from bench.errors import UserError
from bench.sharing import leave_probe, outside, problem_with

PACKAGE_FOLDERS = ("bench", "models", "baselines", "experiments", "reports")
ANSWER = 120.0  # seconds for a node to say what it has; it may have to fetch our code first
REACHED = 5.0  # seconds for a head node to take a connection
TOLD = 3  # nodes with problems that one message names


def reach(address: str) -> None:
    """UserError where nobody listens at a HOST:PORT, or at the one that "auto" means: Ray itself would ask for
    minutes.
    """
    where, named = address, f"--address {address}"
    if address == "auto":
        where, by = _meant_by_auto()
        if not where:  # Ray looks for one among the processes
            return
        named += f" ({where} by {by})"
    host, _, port = where.rpartition(":")
    if "://" in where or not host or not port.isdigit():
        raise UserError(f"{named!r}: give auto, or HOST:PORT of the head node as `ray start` printed it")
    try:
        socket.create_connection((host, int(port)), REACHED).close()
    except OSError as error:
        raise UserError(
            f"{named}: no Ray answers there ({error}); start one with `ray start --head`, and run this on "
            "a machine of the cluster"
        ) from None


def _meant_by_auto() -> tuple[str, str]:
    """Where Ray would look, and what says so; two empty texts where nothing does."""
    if where := os.environ.get("RAY_ADDRESS", ""):
        return ("", "") if where == "auto" else (where, "RAY_ADDRESS")
    file = Path(os.environ.get("RAY_TMPDIR", tempfile.gettempdir())) / "ray" / "ray_current_cluster"
    try:
        where = file.read_text().strip()
    except OSError:
        return "", ""
    return ("", "") if _runs_here("gcs_server") else (where, str(file))  # Ray prefers one that it sees running


def _runs_here(program: str) -> bool:
    for file in Path("/proc").glob("[0-9]*/comm"):
        with contextlib.suppress(OSError):
            if file.read_text().strip() == program:
                return True
    return False


def our_code() -> dict[str, Any]:
    """The part of Ray's runtime environment that brings this very code to every node: our packages, neither data nor
    runs; and the commit that it is, which a copy cannot tell.
    """
    root = Path(__file__).resolve().parents[1]
    modules = [str(root / name) for name in PACKAGE_FOLDERS]
    return {
        "py_modules": modules,
        "excludes": ["**/__pycache__/**"],
        "env_vars": {GIT_STATE: json.dumps(git_state())},
    }


def hardware_of(address: str) -> Hardware:
    """What the cluster at `address` has. UserError where there is none."""
    from bench.tuning import ray_at

    with ray_at(address):
        return connected_hardware()


def connected_hardware() -> Hardware:
    """What the Ray has that this process is connected to, by node; those that take no work left out.

    UserError where no node takes work.
    """
    nodes = []
    for node in _working_nodes():
        there = node["Resources"]
        kinds = [name.removeprefix("accelerator_type:") for name in there if name.startswith("accelerator_type:")]
        gpus = (*kinds, "GPU")[:1] * int(there.get("GPU", 0))
        nodes.append(Hardware(int(there["CPU"]), there.get("memory", 0) / 2**30, gpus))
    if not nodes:
        raise UserError("no node of this Ray cluster has a CPU for trials: start nodes with `ray start --num-cpus N`")
    return Hardware(
        sum(node.cores for node in nodes),
        sum(node.memory_gib for node in nodes),
        tuple(gpu for node in nodes for gpu in node.gpus),
        tuple(nodes),
    )


def _working_nodes() -> list[dict[str, Any]]:
    """Ray's description of each node that takes work."""
    import ray

    return [node for node in ray.nodes() if node["Alive"] and node["Resources"].get("CPU")]


def check_nodes(
    suite_dir: Path, storage: str | None = None, methods: Collection[str] = (), waiting: bool = False
) -> None:
    """UserError unless each node that may get a trial has the packages of this machine, those that offer some of
    `methods` among them, sees the data, and can read and write the suite's folder, or the URL `storage` instead of it.

    Before anything trains: a node that lacks something would fail every trial that lands there. Nodes without a CPU get
    none but those that wait for their experts or workers, if there are such (`waiting`).
    """
    import ray
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    suite_file = suite_dir / "suite.json"
    data = read_json(suite_file, "run `bench run` again").get("data", {}) if suite_file.exists() else {}
    versions = {name: version for name, version in package_versions().items() if name != "boltzbench"}
    versions |= _offering(methods)
    roots = sorted(data.values()) if storage is None else outside(data, suite_dir)
    with _probe(suite_dir, storage) as probe:
        ask = ray.remote(num_cpus=0, max_retries=0)(_problems_here)
        nodes = [node for node in ray.nodes() if node["Alive"]] if waiting else _working_nodes()
        answers = [
            ask.options(scheduling_strategy=NodeAffinitySchedulingStrategy(node["NodeID"], soft=False)).remote(
                versions, probe, storage, roots
            )
            for node in nodes
        ]
        ray.wait(answers, num_returns=len(answers), timeout=ANSWER)
        found = [(node, problems) for node, answer in zip(nodes, answers, strict=True) if (problems := _answer(answer))]
    if found:
        told = [
            f"node {node['NodeManagerHostname']} ({node['NodeManagerAddress']}): {'; '.join(problems)}"
            for node, problems in found[:TOLD]
        ]
        told += [f"and {len(found) - TOLD} more nodes"] if len(found) > TOLD else []
        raise UserError("; ".join(told))


def _offering(methods: Collection[str]) -> dict[str, str]:
    """The other packages that some of `methods` come from (`bench.plugins`), which `our_code` does not bring."""
    from bench.methods import METHODS

    return dict(package.split() for method in methods if (package := METHODS[method].package) != "boltzbench")


def _answer(answer: Any) -> list[str]:
    import ray
    from ray.exceptions import GetTimeoutError, RayError

    try:
        return ray.get(answer, timeout=0)
    except GetTimeoutError:
        return [f"does not answer within {ANSWER:.0f} s; see its logs (`ray logs`)"]
    except RayError as error:
        return [" ".join(str(error).split())[:300]]


@contextlib.contextmanager
def _probe(suite_dir: Path, storage: str | None) -> Iterator[str]:
    """A file that nodes are to find: in the suite's folder, or at the URL. Its folder, or its name there."""
    if storage is None:
        with tempfile.TemporaryDirectory(prefix=".probe-", dir=suite_dir) as probe:
            write_json(Path(probe) / "from-driver.json", {"written": probe})
            yield probe
        return
    probe = uuid.uuid4().hex
    remove = leave_probe(storage, probe)
    try:
        yield probe
    finally:
        remove()


def _problems_here(versions: dict[str, str], probe: str, storage: str | None, data: list[str]) -> list[str]:
    """What keeps trials from running on this node, each with its fix; run there."""
    import ray

    problems = []
    here = package_versions(tuple(versions))
    # 2.9.0+cu128 and 2.9.0+cpu are one version for two kinds of machine
    other = {name: v for name, v in versions.items() if here.get(name, "").partition("+")[0] != v.partition("+")[0]}
    if other:
        has = ", ".join(f"{name} {here.get(name, 'missing')}" for name in other)
        wanted = " ".join(f"{name}=={version.partition('+')[0]}" for name, version in other.items())
        problems.append(f"{has}: install what the driver has (pip install {wanted})")
    if storage is None:
        problems += _problems_with_folder(Path(probe))
    elif problem := problem_with(storage, probe, ray.get_runtime_context().get_node_id()):
        problems.append(problem)
    missing = [root for root in data if not (Path(root) / "train.json").exists()]
    if missing:
        problems.append(f"does not see {', '.join(missing)}: put the data where all nodes see them by the same path")
    return problems


def _problems_with_folder(probe: Path) -> list[str]:
    """What keeps this node from reading and writing the suite's folder, in which the driver left `probe`."""
    try:
        seen = json.loads((probe / "from-driver.json").read_text())["written"] == str(probe)
    except (OSError, ValueError):
        seen = False
    if not seen:
        return [f"does not see {probe.parent}: give --runs-dir a folder that all nodes share, or --storage a URL"]
    if not os.access(probe, os.W_OK):
        return [f"cannot write to {probe.parent}: give its user the right to"]
    return []
