"""Folders of somebody who means harm, through the command line: nothing in them runs, and nothing elsewhere is touched.

Each `victim` is a file outside the folder that is read; it must be there afterwards as it was.
"""

import json
import os
import pickle
import shutil
import zipfile

import numpy as np
import pytest
import torch
from PIL import Image

from baselines.nnunet_segmenter import check_architecture
from bench.checkpoint import newest_checkpoint
from bench.data.storage import mirror
from bench.errors import UserError
from bench.spec import sha256_of
from bench.suite_folder import read_spec
from bench.verify import verify_run
from reports.load import load_suite

GONE = "outside"


@pytest.fixture
def suite(toy_runs, tmp_path):
    """A copy of the smoke suite's runs on the toy data."""
    return shutil.copytree(toy_runs / "runs" / "toy", tmp_path / "runs" / "toy")


@pytest.fixture
def victim(tmp_path):
    """A run of another suite, with a file that must not be touched."""
    folder = tmp_path / GONE
    folder.mkdir()
    (folder / "precious").write_text("mine")
    return folder


def change(file, **values):
    file.write_text(json.dumps(json.loads(file.read_text()) | values))


def told(done, *words):
    """Exit code 2 and one line with these words."""
    assert done.returncode == 2, done.stdout + done.stderr
    assert done.stderr.startswith("error: ") and done.stderr.count("\n") == 1 and "Traceback" not in done.stdout
    assert all(word in done.stderr for word in words), done.stderr


class Trap:
    """A pickle that leaves a file when it is loaded."""

    def __init__(self, file):
        self.file = file

    def __reduce__(self):
        return os.mkdir, (str(self.file),)


COMMANDS = [("predict", False), ("phrasings", False), ("verify", False), ("verify", True)]


@pytest.mark.parametrize(("command", "plain"), COMMANDS)
def test_code_in_the_weights_of_a_run_does_not_run(bench, suite, tmp_path, command, plain):
    """Neither in torch's archive nor, `plain`, in a pickle alone."""
    run = next(suite.glob("sam-*"))
    trap = {"a": Trap(tmp_path / "caught")}
    torch.save(trap, run / "model.pt")
    if plain:
        (run / "model.pt").write_bytes(pickle.dumps(trap))
    image = tmp_path / "image.png"
    Image.new("L", (20, 20)).save(image)
    words = {
        "predict": ["predict", image, "--prompt", "block", "--checkpoint", run, "--out", tmp_path / "out"],
        "verify": ["verify", run],
        "phrasings": ["phrasings", suite],
    }
    told(bench(*words[command]), "model.pt", "can run code")
    assert not (tmp_path / "caught").exists()


def test_code_in_published_weights_does_not_run(bench, toy, tmp_path):
    torch.save({"model": Trap(tmp_path / "caught")}, tmp_path / "published.pt")
    words = ["--suite", "smoke", "--data", toy, "--methods", "sam", "--runs-dir", tmp_path / "runs"]
    told(bench("run", *words, "--backbone-weights", tmp_path / "published.pt"), "can run code")
    assert not (tmp_path / "caught").exists()


def test_code_in_a_checkpoint_to_go_on_from_does_not_run(tmp_path, capsys):
    """Even where somebody has named it after its bytes."""
    torch.save({"model": Trap(tmp_path / "caught")}, tmp_path / "new")
    (tmp_path / "new").rename(tmp_path / f"resume-00000001-{sha256_of(tmp_path / 'new')[:16]}.pt")
    assert newest_checkpoint(tmp_path) is None
    assert "of no use (Weights only load failed" in capsys.readouterr().out
    assert not (tmp_path / "caught").exists()


def test_a_checkpoint_to_go_on_from_that_is_packed_is_not_unpacked(tmp_path, capsys):
    torch.save({"model": torch.zeros(10**6)}, tmp_path / "whole")
    with zipfile.ZipFile(tmp_path / "whole") as whole:
        members = {name: whole.read(name) for name in whole.namelist()}
    with zipfile.ZipFile(tmp_path / "new", "w", zipfile.ZIP_DEFLATED) as packed:
        for name, content in members.items():
            packed.writestr(name, content)
    (tmp_path / "new").rename(tmp_path / f"resume-00000001-{sha256_of(tmp_path / 'new')[:16]}.pt")
    assert newest_checkpoint(tmp_path) is None
    assert "is packed" in capsys.readouterr().out


def test_code_in_a_prior_does_not_run(bench, suite, tmp_path):
    run = next(suite.glob("location_prior-*"))
    np.savez(run / "location_prior.npz", keys=np.array([Trap(tmp_path / "caught")], dtype=object))
    told(bench("verify", run), "location_prior.npz holds no location prior")
    assert not (tmp_path / "caught").exists()


@pytest.mark.parametrize(
    ("command", "name"),
    [
        *(("phrasings", name) for name in ("../../outside", "{}", "..", "sam/../../../outside")),
        ("report", "../../outside"),
        ("verify", "../../outside"),
    ],
)
def test_a_run_outside_the_suite_is_not_touched(bench, suite, victim, name, command):
    """Not even one that is sound: `bench phrasings` would write into it."""
    shutil.copytree(next(suite.glob("sam-*")), victim, dirs_exist_ok=True)
    before = {file: file.read_bytes() for file in victim.iterdir()}
    runs = json.loads((suite / "suite.json").read_text())["runs"]
    change(suite / "suite.json", runs=[*runs, name.format(victim)])
    told(bench(command, suite), "suite.json")
    assert {file: file.read_bytes() for file in victim.iterdir()} == before


def test_a_run_that_is_a_link_to_elsewhere_is_not_touched(bench, suite, victim):
    run = next(suite.glob("sam-*"))
    shutil.copytree(run, victim, dirs_exist_ok=True)
    shutil.rmtree(run)
    run.symlink_to(victim)
    told(bench("phrasings", suite), "lies outside")
    assert not (victim / "phrasings.parquet").exists()


FIELDS = [{"backbone": "../../../outside"}, {"seed": 2**70}, {"seed": -1}, {"model": {"width": 10**9}}, {"method": 3}]


@pytest.mark.parametrize("field", FIELDS)
def test_a_spec_that_is_none(suite, field):
    run = next(suite.glob("sam-*"))
    change(run / "spec.json", **field)
    for read in (lambda: read_spec(run), lambda: load_suite(suite), lambda: verify_run(run, None)):
        with pytest.raises(UserError, match=r"spec\.json is not a run's spec"):
            read()


@pytest.mark.parametrize("place", ["image", "mask", "link"])
def test_pictures_outside_the_data_set_are_not_read(bench, toy, tmp_path, victim, place):
    (victim / "a.png").write_bytes(next((toy / "train").iterdir()).read_bytes())
    content = json.loads((toy / "train.json").read_text())
    if place == "image":
        content["images"][0]["file_name"] = "../../outside/a.png"
    elif place == "mask":
        content["annotations"][0]["mask_file"] = str(victim / "a.png")
    else:
        image = toy / "train" / content["images"][0]["file_name"]
        image.unlink()
        image.symlink_to(victim / "a.png")
    (toy / "train.json").write_text(json.dumps(content))
    done = bench("data", "check", toy, "--json", tmp_path / "problems.json")
    assert done.returncode == 2
    problems = json.loads((tmp_path / "problems.json").read_text())["problems"]
    assert "outside folder" in {problem["kind"] for problem in problems}


@pytest.mark.parametrize("what", ["patient", "image", "mask", "object"])
def test_preparing_a_data_set_removes_and_writes_nothing_elsewhere(bench, toy, tmp_path, victim, what):
    """A patient's images are put together in a folder of the patient's name, which is emptied first."""
    content = json.loads((toy / "train.json").read_text())
    row = {"patient": "../../outside", "object": "../../outside/x", "mask": "../../outside/precious"}.get(what)
    if what == "image":
        content["images"][0]["file_name"] = "../../outside/precious"
    else:
        content["annotations"][0][{"mask": "mask_file"}.get(what, what)] = row
        content["annotations"][1]["patient"] = content["annotations"][0]["patient"]
    (toy / "train.json").write_text(json.dumps(content))
    done = bench("data", "prepare", "biomedparse", "--source", toy, "--out", tmp_path / "prepared")
    assert done.returncode in (0, 2) and "Traceback" not in done.stderr, done.stderr
    assert done.returncode == 2 or what == "object", done.stdout
    assert [file.name for file in victim.iterdir()] == ["precious"] and (victim / "precious").read_text() == "mine"


def test_the_log_of_a_mirror_names_no_file_outside(tmp_path, victim, toy):
    """What is gone from the storage is removed from the copy, by a list that lies in the copy."""
    import fsspec

    storage = fsspec.filesystem("memory")
    storage.put(str(toy), "/bucket/toy", recursive=True)
    folder = mirror("memory://bucket/toy", tmp_path / "cache")
    line = json.dumps([os.path.relpath(victim / "precious", folder), [4, ""]])
    with (folder / ".mirror.jsonl").open("a") as log:
        log.write(f"{line}\n")
    mirror("memory://bucket/toy", tmp_path / "cache")
    assert (victim / "precious").read_text() == "mine"


NETWORK = "dynamic_network_architectures.architectures.unet.PlainConvUNet"
LAYERS = {"conv_op": "torch.nn.modules.conv.Conv2d", "dropout_op": None, "nonlin": "torch.nn.LeakyReLU"}


@pytest.mark.parametrize(
    "network",
    [
        {"network_class_name": "os.system"},
        {"arch_kwargs": LAYERS | {"nonlin": "subprocess.Popen"}},
        {"_kw_requires_import": None},
        {"arch_kwargs": {}},
    ],
)
def test_plans_of_nnunet_that_name_code(tmp_path, network):
    sound = {"network_class_name": NETWORK, "arch_kwargs": LAYERS, "_kw_requires_import": list(LAYERS)}
    plans = {"configurations": {"2d": {"architecture": sound}}}
    check_architecture(plans, tmp_path / "plans.json")
    plans["configurations"]["2d"]["architecture"] = sound | network
    with pytest.raises(UserError, match=r"plans\.json"):
        check_architecture(plans, tmp_path / "plans.json")


def test_a_terminal_gets_no_commands(bench, tmp_path):
    done = bench("data", "check", tmp_path / "\x1b[2Jtoy")
    assert done.returncode == 2 and "\x1b" not in done.stderr and r"\x1b[2Jtoy" in done.stderr
