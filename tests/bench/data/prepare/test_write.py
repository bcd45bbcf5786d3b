import fcntl
import gzip
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import nibabel
import numpy as np
import psutil
import pytest

from bench.data.prepare.recipe import VERSION

ROOT = Path(__file__).resolve().parents[4]


def prepare(bench, source, out, *more):
    return bench("data", "prepare", "msd", "--source", source, "--out", out, "--size", 32, "--workers", 1, *more)


def manifest_of(folder):
    return json.loads((folder / "manifest.json").read_text())


def test_the_folder_says_where_it_came_from(task, bench, tmp_path):
    """sha256 as the system's own tool counts it; areas and sizes as the PNGs have them."""
    source, folder = task(3), tmp_path / "out" / "MSD-Lung"
    assert prepare(bench, source, tmp_path / "out", "--seed", 3).returncode == 0
    manifest = manifest_of(folder)
    expected = {
        "recipe": VERSION,
        "size": 32,
        "keep_empty": 0,
        "min_share": 0.1,
        "window": None,
        "channel": None,
        "seed": 3,
    }
    assert manifest["settings"] == expected
    files = {
        name: entry["sha256"] for record in manifest["volumes"].values() for name, entry in record["files"].items()
    }
    names = sorted(path.relative_to(source).as_posix() for path in source.glob("*Tr/*"))
    assert sorted(files) == names
    sums = subprocess.run(["sha256sum", *names], cwd=source, capture_output=True, text=True, check=True).stdout
    assert sums.split() == [word for name in names for word in (files[name], name)]
    written = sorted(path.name for path in folder.glob("*/*.png"))
    images = [image for record in manifest["volumes"].values() for image in record["images"]]
    assert written == sorted(row["file"] for image in images for row in (image, *image["masks"]))
    assert bench("data", "check", folder).returncode == 0


@pytest.mark.parametrize("workers", [1, 3])
def test_the_same_files_whatever_the_workers(task, bench, tmp_path, content, workers):
    source = task(6)
    for out, number in (("a", 2), ("b", workers)):
        assert prepare(bench, source, tmp_path / out, "--workers", number).returncode == 0
    assert content(tmp_path / "a") == content(tmp_path / "b")


def test_the_same_files_whatever_the_threads(bench, tmp_path, content):
    """BLAS sums in another order with more threads, which moved single grey levels at a picture's usual size."""
    source, rng = tmp_path / "Task06_Lung", np.random.default_rng(0)
    label = np.zeros((512, 512, 12), np.uint8)
    label[200:230, 240:280] = 1
    names = ["lung_001.nii.gz", "lung_002.nii.gz"]
    for folder in ("imagesTr", "labelsTr"):
        (source / folder).mkdir(parents=True)
        for name in names:
            array = label if folder == "labelsTr" else rng.normal(-600, 200, label.shape).astype(np.int16)
            nibabel.save(nibabel.Nifti1Image(array, np.eye(4)), source / folder / name)
    listed = [{"image": f"imagesTr/{name}", "label": f"labelsTr/{name}"} for name in names]
    description = {"name": "Lung", "modality": {"0": "CT"}, "labels": {"1": "cancer"}, "training": listed}
    (source / "dataset.json").write_text(json.dumps(description))
    for threads in "12":
        words = ["data", "prepare", "msd", "--source", source, "--out", tmp_path / threads, "--workers", 1]
        assert bench(*words, OMP_NUM_THREADS=threads, OPENBLAS_NUM_THREADS=threads).returncode == 0
    assert content(tmp_path / "1") == content(tmp_path / "2")


def test_what_is_done_is_kept(task, bench, tmp_path, content):
    """Nothing changes; then one volume does, and nothing else is written again."""
    source, folder = task(5), tmp_path / "out" / "MSD-Lung"
    prepare(bench, source, tmp_path / "out")
    before, times = content(folder), {p: p.stat().st_mtime_ns for p in folder.glob("*/*.png")}
    done = prepare(bench, source, tmp_path / "out")
    assert "5 scans had been written before" in done.stdout
    assert content(folder) == before
    assert {p: p.stat().st_mtime_ns for p in folder.glob("*/*.png")} == times
    os.utime(source / "imagesTr" / "lung_000.nii.gz")  # touched, not changed
    assert "5 scans had been written before" in prepare(bench, source, tmp_path / "out").stdout
    other = source / "imagesTr" / "lung_003.nii.gz"
    (source / "imagesTr" / "lung_002.nii.gz").write_bytes(other.read_bytes())
    assert "4 scans had been written before" in prepare(bench, source, tmp_path / "out").stdout
    again = {p: p.stat().st_mtime_ns for p in folder.glob("*/*.png")}
    assert {p.name.split("_")[1] for p in again if again[p] != times[p]} == {"002"}


def test_volumes_that_are_gone_go(task, bench, tmp_path, content):
    source = task(6)
    prepare(bench, source, tmp_path / "out")
    file = source / "dataset.json"
    description = json.loads(file.read_text())
    file.write_text(json.dumps(description | {"training": description["training"][:4]}))
    prepare(bench, source, tmp_path / "out")
    prepare(bench, source, tmp_path / "fresh")
    assert content(tmp_path / "out") == content(tmp_path / "fresh")


def test_an_unreadable_volume_is_left_out_until_it_is_mended(task, bench, tmp_path, content):
    source, folder = task(5), tmp_path / "out" / "MSD-Lung"
    file = source / "imagesTr" / "lung_003.nii.gz"  # for training
    whole = file.read_bytes()
    file.write_bytes(whole[: len(whole) // 2])
    done = prepare(bench, source, tmp_path / "out")
    assert done.returncode == 0
    assert "1 left out" in done.stdout and "lung_003_CT_lung" in done.stdout
    reason = manifest_of(folder)["skipped"]["lung_003_CT_lung"]
    assert f"{file} cannot be read as a NIfTI volume" in reason and "download it again" in reason
    assert not list(folder.glob("*/lung_003*"))
    assert bench("data", "check", folder).returncode == 0
    file.write_bytes(whole)
    prepare(bench, source, tmp_path / "out")
    prepare(bench, source, tmp_path / "fresh")
    assert content(tmp_path / "out") == content(tmp_path / "fresh")


def test_nothing_readable_is_an_error(task, bench, tmp_path):
    source = task(2)
    for file in source.glob("imagesTr/*"):
        file.write_bytes(gzip.compress(b"no volume"))
    done = prepare(bench, source, tmp_path / "out")
    assert done.returncode == 2
    assert "nothing could be prepared; the first reason" in done.stderr


def test_another_recipe_is_refused(task, bench, tmp_path, content):
    source = task(3)
    prepare(bench, source, tmp_path / "out")
    before = content(tmp_path / "out")
    done = prepare(bench, source, tmp_path / "out", "--size", 64)
    assert done.returncode == 2
    assert "was prepared differently (size 32, now 64): name another --out" in done.stderr
    assert content(tmp_path / "out") == before


def test_a_folder_of_something_else_is_refused(task, bench, tmp_path):
    other = tmp_path / "out" / "MSD-Lung" / "train"
    other.mkdir(parents=True)
    done = prepare(bench, task(3), tmp_path / "out")
    assert done.returncode == 2 and "holds files but no manifest.json" in done.stderr


def test_two_at_once_are_refused(task, bench, tmp_path):
    folder = tmp_path / "out" / "MSD-Lung"
    folder.mkdir(parents=True)
    with (folder / ".lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        done = prepare(bench, task(3), tmp_path / "out")
    assert done.returncode == 2 and "is being written by another" in done.stderr


@pytest.mark.parametrize("workers", [1, 2])
def test_killed_in_the_middle_it_goes_on(shared, bench, tmp_path, content, is_alive, workers):
    """kill -9 while volumes are written: none is half there, and the next call ends where an undisturbed one ends."""
    source = shared / "data" / "msd_raw" / "Task04_Hippocampus"
    folder = tmp_path / "out" / "MSD-Hippocampus"
    words = ["data", "prepare", "msd", "--source", source, "--size", 96, "--workers", workers, "--out"]
    command = [sys.executable, "-m", "bench", *map(str, words), str(tmp_path / "out")]
    running = subprocess.Popen(command, env=os.environ | {"PYTHONPATH": str(ROOT)})
    staging = folder / ".unfinished"
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline and len(list(staging.glob("*/scan.json"))) < 5:
        time.sleep(0.02)
    below = psutil.Process(running.pid).children(recursive=True)
    running.kill()
    assert running.wait() == -signal.SIGKILL
    deadline = time.monotonic() + 30
    while any(map(is_alive, below)):  # workers end by themselves
        assert time.monotonic() < deadline, "a worker outlived the killed command"
        time.sleep(0.05)

    assert not (folder / "train.json").exists() and not list(folder.glob("t*/*.png"))
    whole = [path for path in staging.iterdir() if path.suffix != ".tmp"]
    assert 5 <= len(whole) < 40
    for unit in whole:
        record = json.loads((unit / "scan.json").read_text())
        listed = [row["file"] for image in record["images"] for row in (image, *image["masks"])]
        assert sorted(listed) == sorted(path.name for path in unit.glob("*/*.png"))

    done = bench(*words, tmp_path / "out")
    assert done.returncode == 0, done.stderr
    assert f"{len(whole)} scans had been written before" in done.stdout
    bench(*words, tmp_path / "fresh")
    assert content(tmp_path / "out") == content(tmp_path / "fresh")
