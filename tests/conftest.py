"""Fixtures of more than one test folder: the command line, tiny data sets, and the shared reference data."""

import fcntl
import json
import os
import random
import shutil
import socket
import subprocess
import sys
from pathlib import Path

import numpy as np
import psutil
import pytest
from PIL import Image

ROOT = Path(__file__).resolve().parents[1]

if "PYTEST_XDIST_WORKER" in os.environ:  # set before torch is imported: a core each, also for what the tests start
    os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.pop("COLUMNS", None)  # the width of the terminal that the tests are called from, by the shell or by xdist
os.unsetenv("COLUMNS")  # or by readline, which pytest imports, past os.environ


@pytest.fixture(scope="session")
def shared() -> Path:
    """The folder of real data and reference numbers beside the checkout."""
    folder = ROOT.parent / "shared"
    if not folder.is_dir():
        pytest.skip("needs the folder shared/ beside the checkout (real data and reference numbers)")
    return folder


@pytest.fixture(scope="session")
def bench():
    """The command line in a process of its own: bench(words, ...; environment) -> its outcome."""

    def run(*words, **environment):
        return subprocess.run(
            [sys.executable, "-m", "bench", *map(str, words)],
            capture_output=True,
            text=True,
            env=os.environ | {"PYTHONPATH": str(ROOT), "COLUMNS": "200"} | environment,
            timeout=240,
        )

    return run


@pytest.fixture(scope="session")
def free_port():
    """free_port() -> a port of this machine that nobody uses, and that nobody is handed who asks for any port.

    Below those that Linux gives to whoever asks (32768 and more) and above those of Ray's workers: a server that is
    away for a while, or slow to begin, finds its port again while other tests run.
    """

    def find():
        while True:
            port = random.SystemRandom().randrange(20_000, 32_000)
            with socket.socket() as probe:
                try:
                    probe.bind(("127.0.0.1", port))
                except OSError:
                    continue
                return port

    return find


@pytest.fixture(scope="session")
def is_alive():
    """is_alive(a psutil.Process or its number) -> whether it runs; one that waits for its parent to ask does not."""

    def look(process):
        try:
            process = psutil.Process(process) if isinstance(process, int) else process
            return process.status() != psutil.STATUS_ZOMBIE
        except psutil.NoSuchProcess:
            return False

    return look


@pytest.fixture(scope="session")
def made_once(tmp_path_factory):
    """made_once(name, make) -> the folder that `make(folder)` has made, once for all processes of a test run."""
    own = tmp_path_factory.getbasetemp()
    root = own.parent if "PYTEST_XDIST_WORKER" in os.environ else own

    def find(name, make):
        folder, made = root / name, root / f"{name}.made"
        with (root / f"{name}.lock").open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            if not made.exists():
                shutil.rmtree(folder, ignore_errors=True)  # another process failed in the middle
                folder.mkdir()
                make(folder)
                made.touch()
        return folder

    return find


@pytest.fixture(scope="session")
def curves_in_folder():
    """curves_in_folder(run folder) -> {name: [(step, value), ...]}, all that its history.jsonl holds."""

    def read(run_dir):
        found = {}
        for line in (run_dir / "history.jsonl").read_text().splitlines():
            row = json.loads(line)
            for name in row.keys() - {"step", "time"}:
                found.setdefault(name, []).append((row["step"], row[name]))
        return {name: sorted(points) for name, points in found.items()}

    return read


def write_layout(root: Path, split: str, items: list[tuple[str, str, np.ndarray, dict[str, np.ndarray]]]) -> None:
    """One side of a data set: (image stem, patient, image (H, W) uint8, {object: mask (H, W) bool}) each."""
    (root / split).mkdir(parents=True)
    (root / f"{split}_mask").mkdir()
    images, annotations = [], []
    for stem, patient, image, masks in items:
        Image.fromarray(image).save(root / split / f"{stem}.png")
        height, width = image.shape
        images.append({"id": len(images), "file_name": f"{stem}.png", "height": height, "width": width})
        for label, mask in masks.items():
            mask_file = f"{stem}_{label.replace(' ', '+')}.png"
            Image.fromarray(mask.astype(np.uint8) * 255).save(root / f"{split}_mask" / mask_file)
            annotations.append(
                {
                    "id": len(annotations),
                    "image_id": images[-1]["id"],
                    "mask_file": mask_file,
                    "file_name": f"{stem}.png",
                    "split": split,
                    "sentences": [{"raw": f"{label} in toy image"}, {"raw": f"the {label}"}],
                    "area": int(mask.sum()),
                    "patient": patient,
                }
            )
    content = {"info": {"description": "toy"}, "images": images, "annotations": annotations}
    (root / f"{split}.json").write_text(json.dumps(content))


@pytest.fixture(scope="session")
def layout():
    """`write_layout`, for data sets of a test's own."""
    return write_layout


def write_toy(root: Path) -> Path:
    """Bright squares ("block") and dark discs ("dark disc") anywhere on noise: 5 + 2 patients of 2 slices."""
    rng = np.random.default_rng(0)
    height, width = 48, 40
    y, x = np.mgrid[:height, :width]

    def item(patient: int, place: int):
        image = rng.normal(110, 8, (height, width))
        top, left = rng.integers(2, (height - 12, width - 12))
        block = np.zeros((height, width), bool)
        block[top : top + 8, left : left + 6] = True
        cy, cx = rng.integers(8, (height - 8, width - 8))
        disc = ((y - cy) ** 2 + (x - cx) ** 2 <= 16) & ~block
        image[block], image[disc] = 220, 20
        masks = {"block": block, "dark disc": disc}
        return f"p{patient}-z{place}_toy", f"p{patient}", image.clip(0, 255).astype(np.uint8), masks

    for split, patients in (("train", range(5)), ("test", range(5, 7))):
        write_layout(root, split, [item(patient, place) for patient in patients for place in range(2)])
    return root


@pytest.fixture
def toy(tmp_path) -> Path:
    """The data set of `write_toy`."""
    return write_toy(tmp_path / "toy")


@pytest.fixture(scope="session")
def toy_runs(tmp_path_factory) -> Path:
    """A folder with toy/ and runs/: the smoke suite's text-prompted decoders and the floor, by the command line."""
    folder = tmp_path_factory.mktemp("toy_runs")
    write_toy(folder / "toy")
    methods = "boltzformer,seem,sam,location_prior"
    command = [sys.executable, "-m", "bench", "run", "--suite", "smoke", "--data", "toy", "--methods", methods]
    command += ["--executor", "local", "--name", "toy"]
    environment = os.environ | {"PYTHONPATH": str(ROOT), "MLFLOW_TRACKING_URI": "http://127.0.0.1:9"}  # nobody there
    done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]
    return folder


def write_squares(root: Path) -> Path:
    """A square that stays where it is and a dot that moves with the patient: 5 + 2 patients, 20 x 30 px.

    Small enough to run every trial of a test in a second.
    """

    def item(split: str, patient: int):
        square, dot = np.zeros((2, 20, 30), bool)
        square[4:12, 5:15] = True
        place = 3 + patient if split == "train" else 12 + patient  # no test image is a training image again
        dot[14:16, place : place + 3] = True
        image = (40 + 100 * square + 60 * dot).astype(np.uint8)
        return f"{split}{patient}-z0_CT_chest", f"{split}-{patient}", image, {"large square": square, "dot": dot}

    for split, patients in (("train", 5), ("test", 2)):
        write_layout(root, split, [item(split, patient) for patient in range(patients)])
    return root


@pytest.fixture
def squares(tmp_path) -> Path:
    """The data set of `write_squares`."""
    return write_squares(tmp_path / "data" / "squares")


@pytest.fixture(scope="session")
def datasets(made_once) -> Path:
    """A folder with squares/ and toy/, for tests that only read them."""

    def make(folder):
        write_squares(folder / "squares")
        write_toy(folder / "toy")

    return made_once("datasets", make)
