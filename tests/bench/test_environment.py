"""What the machine offers: cores by quota, GPUs by what nvidia-smi says, seeds, versions."""

import importlib.metadata
import os
import random
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from bench import environment
from bench.environment import (
    Hardware,
    count_cores,
    detect_hardware,
    git_state,
    package_versions,
    seed_everything,
)

ROOT = Path(__file__).resolve().parents[2]


@pytest.mark.parametrize(
    ("quota", "cores"),
    [
        ("max 100000", 8),
        ("200000 100000", 2),
        ("150000 100000", 2),
        ("1000 100000", 1),
        ("6400000 100000", 8),
    ],
)
def test_a_containers_quota_counts(tmp_path, monkeypatch, quota, cores):
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: set(range(8)))
    (tmp_path / "cpu.max").write_text(quota + "\n")
    assert count_cores(tmp_path) == cores


def test_a_quota_of_the_first_cgroup_version_counts(tmp_path, monkeypatch):
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: set(range(8)))
    (tmp_path / "cpu").mkdir()
    (tmp_path / "cpu" / "cpu.cfs_period_us").write_text("100000")
    for quota, cores in (("-1", 8), ("300000", 3)):
        (tmp_path / "cpu" / "cpu.cfs_quota_us").write_text(quota)
        assert count_cores(tmp_path) == cores
    assert count_cores(tmp_path / "no cgroup here") == 8


@pytest.mark.parametrize(
    ("visible", "names"),
    [
        (None, ("Card A", "Card B")),
        ("1", ("Card B",)),
        ("1,0", ("Card B", "Card A")),
        ("GPU-aaa", ("Card A",)),
        ("", ()),
        ("-1", ()),
    ],
)
def test_gpus_by_nvidia_smi(tmp_path, monkeypatch, visible, names):
    tool = tmp_path / "nvidia-smi"
    tool.write_text("#!/bin/sh\necho '0, GPU-aaa1, Card A'\necho '1, GPU-bbb2, Card B'\n")
    tool.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    if visible is None:
        monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    else:
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
    assert detect_hardware().gpus == names


def test_a_driver_that_fails_means_no_gpu(tmp_path, monkeypatch):
    tool = tmp_path / "nvidia-smi"
    tool.write_text("#!/bin/sh\necho 'cannot talk to the driver'\nexit 9\n")
    tool.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    assert detect_hardware().gpus == ()


def test_hardware_in_words():
    assert str(Hardware(2, 7.6, ())) == "2 cores, 8 GiB memory, no GPU"
    assert str(Hardware(1, 64.0, ("A", "B"))) == "1 core, 64 GiB memory, A, B"


def test_one_seed_one_sequence():
    def draw(seed):
        seed_everything(seed)
        return random.random(), np.random.rand(), torch.rand(()).item()

    assert draw(1) == draw(1)
    assert not set(draw(1)) & set(draw(2))


def test_versions_are_those_installed():
    versions = package_versions(("numpy", "torch", "no-such-package-here"))
    assert versions == {"numpy": np.__version__, "torch": importlib.metadata.version("torch")}


def test_git_state_of_a_checkout_clean_and_dirty_and_of_none(tmp_path):
    assert git_state(tmp_path) == {}

    def git(*words):
        identity = ["-c", "user.name=a", "-c", "user.email=a@b.c"]
        return subprocess.run(["git", *identity, *words], cwd=tmp_path, check=True, capture_output=True, text=True)

    git("init", "-q")
    (tmp_path / "file").write_text("1")
    git("add", "file")
    git("commit", "-qm", "first")
    commit = git("rev-parse", "HEAD").stdout.strip()
    assert git_state(tmp_path) == {"commit": commit, "dirty": False}
    (tmp_path / "file").write_text("2")
    assert git_state(tmp_path) == {"commit": commit, "dirty": True}
    installed = tmp_path / "site-packages"
    installed.mkdir()
    (installed / "module.py").write_text("")
    assert git_state(installed) == {}, "a copy that the checkout does not track is not of its commit"


def test_describe_is_plain_and_complete():
    import json

    described = json.loads(json.dumps(environment.describe(7)))
    assert described["seed"] == 7 and described["threads"] == torch.get_num_threads()
    assert described["versions"]["torch"] == importlib.metadata.version("torch")
    listed = subprocess.run(["lscpu"], capture_output=True, text=True, check=False).stdout
    if "Model name:" in listed:
        assert described["processor"] in listed and described["processor"]
    assert described["instructions"] in torch.__config__.show()


def test_hardware_is_found_without_torch():
    code = "import sys; from bench.environment import detect_hardware\n"
    code += "detect_hardware(); print('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"
