"""What a run stands on: hardware, seeds, device, package versions, git commit. Importing this imports no
torch.
"""

from __future__ import annotations

import importlib.metadata
import json
import os
import platform
import random
import shutil
import subprocess
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any

PACKAGES = (
    *("torch", "torchvision", "timm", "transformers", "nnunetv2", "segment-anything", "sam2", "monai"),
    *("open-clip-torch", "ray", "mlflow", "numpy", "pandas", "pyarrow", "scipy", "pillow", "boltzbench"),
)
CGROUP = Path("/sys/fs/cgroup")
NODE = "BOLTZBENCH_NODE"  # in the environment of a trial on a cluster: which node it runs on
GIT_STATE = "BOLTZBENCH_GIT"  # in the environment of a node that runs a copy of a checkout: its `git_state`, JSON


@dataclass(frozen=True)
class Hardware:
    """What there is to use: whole cores, memory in GiB, the names of the GPUs. Of a cluster in all, and by `nodes`."""

    cores: int
    memory_gib: float
    gpus: tuple[str, ...]
    nodes: tuple[Hardware, ...] = ()  # () is one machine

    def __str__(self) -> str:
        gpus = ", ".join(f"{count} x {name}" if count > 1 else name for name, count in Counter(self.gpus).items())
        nodes = f"{len(self.nodes)} node{'s' * (len(self.nodes) != 1)} of a Ray cluster, " if self.nodes else ""
        cores = f"{self.cores} core{'s' * (self.cores != 1)}"
        return f"{nodes}{cores}, {self.memory_gib:.0f} GiB memory, {gpus or 'no GPU'}"


def detect_hardware() -> Hardware:
    """Counts what is really available: CPU affinity and container quotas, and GPUs without importing
    torch.
    """
    return Hardware(count_cores(), _memory_gib(), _gpu_names())


def count_cores(cgroup: Path = CGROUP) -> int:
    """Cores by affinity, fewer where a cgroup (v2 or v1) quota allows fewer; at least 1."""
    affinity = getattr(os, "sched_getaffinity", None)  # Linux only
    cores = len(affinity(0)) if affinity else os.cpu_count() or 1
    quota = _first_line(cgroup / "cpu.max")
    if not quota:
        pair = [_first_line(cgroup / "cpu" / f"cpu.cfs_{part}_us") for part in ("quota", "period")]
        quota = " ".join(pair) if all(pair) else ""
    words = quota.split()
    if len(words) == 2 and words[0] not in ("max", "-1"):
        cores = min(cores, int(int(words[0]) / int(words[1]) + 0.5))
    return max(1, cores)


def _processor() -> str:
    """The processor's name, "" where the system does not tell."""
    lines = Path("/proc/cpuinfo").read_text().splitlines() if Path("/proc/cpuinfo").is_file() else []
    names = (line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    return next(names, platform.processor())


def _memory_gib() -> float:
    """Physical memory, or a cgroup's limit where that is less. GiB."""
    try:
        total = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (ValueError, OSError, AttributeError):
        return 0.0
    for file in ("memory.max", "memory/memory.limit_in_bytes"):
        limit = _first_line(CGROUP / file)
        if limit.isdigit():
            total = min(total, int(limit))
    return total / 2**30


def _gpu_names() -> tuple[str, ...]:
    """The visible GPUs as nvidia-smi names them, CUDA_VISIBLE_DEVICES respected; () without a driver."""
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    if visible is not None and visible.strip() in ("", "-1"):
        return ()
    if shutil.which("nvidia-smi") is None:
        return ()
    output = _output_of(["nvidia-smi", "--query-gpu=index,uuid,name", "--format=csv,noheader"])
    rows = [[part.strip() for part in line.split(",", 2)] for line in output.splitlines() if line.count(",") >= 2]
    if visible is None:
        return tuple(name for _, _, name in rows)
    wanted = [part.strip() for part in visible.split(",")]
    return tuple(name for key in wanted for index, uuid, name in rows if key == index or uuid.startswith(key))


def torch_device() -> str:
    """ "cuda" where torch sees a GPU, else "cpu". MPS is left out: nnU-Net and our checks do not cover it."""
    import torch

    return "cuda" if torch.cuda.is_available() else "cpu"


def seed_everything(seed: int) -> None:
    """Seeds Python, NumPy and torch (CPU and every GPU), and asks torch for repeatable kernels."""
    import numpy as np
    import torch

    random.seed(seed)
    np.random.seed(seed % 2**32)  # packages we train with draw from the global state
    torch.manual_seed(seed)
    torch.backends.cudnn.benchmark = False
    torch.backends.cudnn.deterministic = True


def package_versions(names: tuple[str, ...] = PACKAGES) -> dict[str, str]:
    """Installed versions by distribution name; packages that are not installed are left out."""
    versions = {}
    for name in names:
        try:
            versions[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return versions


def git_state(folder: Path | None = None) -> dict[str, Any]:
    """{"commit": ..., "dirty": bool} of the checkout this code stands in, {} where it stands in none."""
    if folder is None and GIT_STATE in os.environ:
        return json.loads(os.environ[GIT_STATE])
    folder = folder or Path(__file__).resolve().parent
    commit = _output_of(["git", "-C", str(folder), "rev-parse", "HEAD"]).strip()
    # an installed copy inside somebody else's checkout must not take that checkout's commit for its own
    tracked = _output_of(["git", "-C", str(folder), "ls-files", "--", "."]).strip()
    if not commit or not tracked:
        return {}
    return {
        "commit": commit,
        "dirty": bool(_output_of(["git", "-C", str(folder), "status", "--porcelain"]).strip()),
    }


def describe(seed: int) -> dict[str, Any]:
    """What goes into a run's env.json: a plain dict of versions, hardware, device, threads, commit and
    seeds.
    """
    import torch

    hardware = detect_hardware()
    node = os.environ.get(NODE)
    return {
        "python": platform.python_version(),
        "platform": platform.platform(),
        "machine": platform.machine(),
        "processor": _processor(),
        "instructions": torch.backends.cpu.get_cpu_capability(),  # the widest that torch uses: rounding depends on it
        "cores": hardware.cores,
        "memory_gib": round(hardware.memory_gib, 1),
        "gpus": list(hardware.gpus),
        "device": torch_device(),
        "threads": torch.get_num_threads(),
        "git": git_state(),
        "seed": seed,
        **({"node": node} if node else {}),
        "versions": package_versions(),
    }


def _output_of(command: list[str]) -> str:
    """Standard output of a short command, "" where it fails or is not there."""
    try:
        return subprocess.run(command, capture_output=True, text=True, timeout=20, check=True).stdout
    except (OSError, subprocess.SubprocessError):
        return ""


def _first_line(file: Path) -> str:
    try:
        return file.read_text().strip()
    except OSError:
        return ""
