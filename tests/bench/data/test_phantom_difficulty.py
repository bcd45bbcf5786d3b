"""`bench data phantom`: difficulties and objects, through the command line."""

from __future__ import annotations

import json
from pathlib import Path

from PIL import Image

from bench.data.phantom.picture import draw_picture


def test_a_phantom_of_each_difficulty_is_written_and_sound(bench, tmp_path):
    written = {}
    for difficulty in ("easy", "hard"):
        out = tmp_path / difficulty
        words = ("--out", out, "--patients", 3, "--slices", 1, "--size", 64)
        done = bench("data", "phantom", "--difficulty", difficulty, *words)
        assert done.returncode == 0, done.stderr
        assert len(done.stdout.split()) == 7
        written[difficulty] = json.loads((out / "phantom.json").read_text())["difficulty"]
    assert bench("data", "check", out).returncode == 0
    assert written["easy"]["contrast"] > 1 > written["hard"]["contrast"]
    assert written["easy"]["noise"] < 1 < written["hard"]["noise"]


def test_an_unknown_difficulty_is_one_clear_line(bench, tmp_path):
    done = bench("data", "phantom", "--difficulty", "herd", "--out", tmp_path / "p")
    assert done.returncode == 2 and "did you mean 'hard'" in done.stderr and "Traceback" not in done.stderr
    assert not (tmp_path / "p").exists()


def test_a_phantom_of_chosen_objects_and_patients(bench, tmp_path):
    words = ("--patients", 3, "--test-patients", 5, "--slices", 1, "--size", 64, "--out", tmp_path / "lesions")
    done = bench("data", "phantom", "--objects", "nodule, tumor,vessel", *words)
    assert done.returncode == 0, done.stderr
    shown, patients = {}, {}
    for folder in map(Path, done.stdout.split()):
        test = json.loads((folder / "test.json").read_text())
        masks = [file.stem for side in ("train", "test") for file in (folder / f"{side}_mask").iterdir()]
        shown[folder.name] = {mask.rpartition("_")[2] for mask in masks}
        patients[folder.name] = len({annotation["patient"] for annotation in test["annotations"]})
    assert shown == {
        "LIDC-IDRI": {"nodule"},
        "MSD-Lung": {"tumor"},
        "MSD-Pancreas": {"tumor"},
        "MSD-HepaticVessel": {"vessel", "tumor"},
        "MSD-Colon": {"tumor"},
    }
    assert set(patients.values()) == {5}


def test_an_unknown_object_is_one_clear_line(bench, tmp_path):
    done = bench("data", "phantom", "--objects", "nodul", "--out", tmp_path / "p")
    assert done.returncode == 2 and "did you mean 'nodule'" in done.stderr and "Traceback" not in done.stderr
    assert not (tmp_path / "p").exists()


def test_a_suite_takes_a_phantom_by_name(bench, tmp_path):
    words = ("run", "--suite", "smoke", "--dry-run", "--runs-dir", tmp_path / "runs")
    done = bench(*words, "--data", "phantom-hard")
    assert done.returncode == 0 and "phantom-hard, to be generated" in done.stdout
    done = bench(*words, "--data", "phantom-hard", "--data", tmp_path)
    assert done.returncode == 2 and "stands alone" in done.stderr


def test_the_picture_is_small_enough_for_the_readme(tmp_path):
    file = draw_picture(tmp_path / "phantom.png")
    assert file.stat().st_size < 300_000 and Image.open(file).width > 800
