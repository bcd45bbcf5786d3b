"""`bench predict` as a user runs it, on a trained run: the masks of the records, from every kind of file."""

import hashlib
import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import nibabel
import numpy as np
import pandas as pd
import pydicom
import pytest
import torch
from PIL import Image
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.uid import ExplicitVRLittleEndian, SecondaryCaptureImageStorage, generate_uid
from scipy import ndimage
from typer.testing import CliRunner

from bench import cli
from bench.data.dataset import load_dataset, load_image
from bench.data.geometry import image_to_square
from bench.errors import UserError
from bench.methods import METHODS
from bench.predict_image import find_run, image_id, overlay
from bench.records import decode_mask
from bench.spec import RunSpec

ROOT = Path(__file__).resolve().parents[2]
PROMPTS = ("block in toy image", "dark disc in toy image")  # in the order of the data set's targets
STEM = "p5-z0_toy"


def run_of(toy_runs, method):
    return next((toy_runs / "runs" / "toy").glob(f"{method}-*/spec.json")).parent


def toy_image(toy_runs):
    return toy_runs / "toy" / "test" / f"{STEM}.png"


def predict(toy_runs, out, *words, image=None, method="boltzformer", prompts=PROMPTS):
    """Runs the command in this process; its output. The masks lie in `out`."""
    words = [*words, *(word for prompt in prompts for word in ("--prompt", prompt))]
    words += ["--checkpoint", method, "--runs-dir", toy_runs / "runs", "--out", out]
    image = image or toy_image(toy_runs)
    result = CliRunner().invoke(cli.app, ["predict", *map(str, [image, *words])], env={"COLUMNS": "300"})
    if isinstance(result.exception, Exception):
        raise result.exception
    assert result.exit_code == 0, result.output
    return result.output


def masks_in(folder):
    masks = [np.asarray(Image.open(folder / f"{name}-in-toy-image-mask.png")) for name in ("block", "dark-disc")]
    assert all(mask.dtype == np.uint8 and set(np.unique(mask)) <= {0, 255} for mask in masks)
    return [mask > 0 for mask in masks]


@pytest.mark.parametrize("method", ["boltzformer", "seem", "sam"])
def test_the_masks_are_those_of_the_run_bit_for_bit(toy_runs, tmp_path, method):
    kept = pd.read_parquet(run_of(toy_runs, method) / "predictions.parquet").set_index(["image_id", "object"])
    rows = [kept.loc[(STEM, name)] for name in ("block", "dark disc")]
    expected = [decode_mask(row["runs"], row["height"], row["width"]) for row in rows]
    output = predict(toy_runs, tmp_path / "out", method=method)
    for mask, truth, prompt in zip(masks_in(tmp_path / "out"), expected, PROMPTS, strict=True):
        assert np.array_equal(mask, truth)
        assert re.search(rf"{prompt}.*{mask.sum()} px" if mask.any() else rf"{prompt} +at most .*empty", output)
    assert "40 x 48 px, 8-bit values as they are" in output
    again = predict(toy_runs, tmp_path / "again", method=method)
    assert again.replace("again", "out") == output
    for file in (tmp_path / "out").iterdir():
        assert file.read_bytes() == (tmp_path / "again" / file.name).read_bytes()


def secondary_capture(grey, file):
    header = Dataset()
    header.file_meta = FileMetaDataset()
    header.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    header.SOPClassUID, header.SOPInstanceUID = SecondaryCaptureImageStorage, generate_uid()
    header.Modality = "OT"
    header.set_pixel_data(grey, "MONOCHROME2", 8)
    header.save_as(file, enforce_file_format=True)


def test_the_same_pixels_give_the_same_masks_from_every_format(toy_runs, tmp_path):
    picture = np.asarray(Image.open(toy_image(toy_runs)))
    predict(toy_runs, tmp_path / "png")
    expected = masks_in(tmp_path / "png")
    assert any(mask.any() for mask in expected)
    # the axial slice of a RAS+ volume is shown from the other side of both of its axes
    volume = np.stack([np.zeros_like(picture.T), picture.T[::-1, ::-1], np.full_like(picture.T, 9)], axis=2)
    nibabel.save(nibabel.Nifti1Image(volume, np.diag([0.7, 0.7, 3, 1])), tmp_path / f"{STEM}.nii.gz")
    secondary_capture(picture, tmp_path / f"{STEM}.dcm")
    Image.fromarray(picture).convert("RGBA").save(tmp_path / f"{STEM}.png")
    for ending, words in (("nii.gz", ("--slice", 1, "--window", "127.5,255")), ("dcm", ()), ("png", ())):
        predict(toy_runs, tmp_path / ending, *words, image=tmp_path / f"{STEM}.{ending}")
        for mask, truth in zip(masks_in(tmp_path / ending), expected, strict=True):
            assert np.array_equal(mask, truth), ending
    assert pydicom.dcmread(tmp_path / f"{STEM}.dcm").pixel_array.shape == expected[0].shape


def test_confidence_is_the_mean_probability_over_the_mask(toy_runs, tmp_path):
    output = predict(toy_runs, tmp_path / "out", method="sam")
    spec = RunSpec.model_validate_json((run_of(toy_runs, "sam") / "spec.json").read_text())
    model = METHODS["sam"].build(spec).load(run_of(toy_runs, "sam")).model.eval()
    square = image_to_square(load_image(toy_image(toy_runs)), spec.recipe.image_size)
    images = torch.from_numpy(square.copy()).permute(2, 0, 1)[None].float()
    with torch.inference_mode():
        logits = model(images, list(PROMPTS), torch.zeros(2, dtype=torch.int64))
    full = torch.nn.functional.interpolate(logits[:, None], size=(48, 48), mode="bicubic", antialias=True)[:, 0, :, :40]
    for prompt, probability in zip(PROMPTS, full.sigmoid(), strict=True):
        inside = probability[probability > 0.5]
        expected = inside.mean() if len(inside) else probability.max()
        shown = float(re.search(rf"{prompt} +(?:at most )?(\d\.\d+)", output)[1])
        assert shown == pytest.approx(expected.item(), abs=0.02)  # bf16 where the hardware has it


def test_sampling_is_drawn_and_changes_no_mask(toy_runs, tmp_path):
    for method in ("boltzformer", "seem"):
        predict(toy_runs, tmp_path / "plain", method=method)
        output = predict(toy_runs, tmp_path / "shown", "--show-sampling", method=method)
        assert "sampling.png" in output and "sampling.gif" in output
        for file in (tmp_path / "plain").iterdir():
            assert file.read_bytes() == (tmp_path / "shown" / file.name).read_bytes()
        layers = json.loads((run_of(toy_runs, method) / "spec.json").read_text())["model"]["layers"]
        with Image.open(tmp_path / "shown" / "sampling.gif") as film:
            assert film.n_frames == layers and film.info["loop"] == 0
        with Image.open(tmp_path / "shown" / "sampling.png") as sheet:
            assert sheet.width > layers * 176


def test_a_target_is_outlined_instead_of_the_mask(toy_runs, tmp_path):
    targets = [toy_runs / "toy" / "test_mask" / f"{STEM}_{name}.png" for name in ("block", "dark+disc")]
    words = [word for target in targets for word in ("--target", target)]
    predict(toy_runs, tmp_path / "a", "--show-sampling")
    predict(toy_runs, tmp_path / "b", "--show-sampling", *words)
    sheets = [np.asarray(Image.open(tmp_path / name / "sampling.png").convert("RGB")).astype(int) for name in "ab"]
    red = [(sheet[..., 0] > 200) & (sheet[..., 1:] < 60).all(axis=2) for sheet in sheets]
    # one outline in the image and in each layer, for each prompt
    assert ndimage.label(red[1], np.ones((3, 3)))[1] == 2 * (1 + 6)
    assert not np.array_equal(*red)


def test_overlay_leaves_the_object_to_be_seen():
    image = np.random.default_rng(0).integers(0, 256, (30, 20, 3), dtype=np.uint8)
    mask = np.zeros((30, 20), bool)
    mask[10:13, 5:9] = True
    picture = overlay(image, mask)
    factor = 768 // 30
    assert picture.shape == (30 * factor, 20 * factor, 3)
    line = (picture == (0, 200, 83)).all(axis=2)
    big = np.kron(mask, np.ones((factor, factor))) > 0
    assert line.any() and not (line & big).any() and (ndimage.binary_fill_holes(line) & ~line)[big].all()
    inside = picture[big].reshape(-1, 3).astype(float)
    own = np.kron(image, np.ones((factor, factor, 1)))[big]
    assert np.corrcoef(inside.ravel(), own.ravel())[0, 1] > 0.9
    assert np.array_equal(overlay(image, np.zeros_like(mask)), image.repeat(factor, 0).repeat(factor, 1))


def test_runs_are_found_by_folder_file_and_beginning(toy_runs, tmp_path):
    runs = toy_runs / "runs"
    folder = run_of(toy_runs, "seem")
    for name in (folder, folder / "model.pt", folder.name, "seem", f"toy/{folder.name}", "toy/se"):
        assert find_run(str(name), runs).samefile(folder)
    with pytest.raises(UserError, match=r"'s' is the beginning of toy/sam-.*, toy/seem-.*: write more"):
        find_run("s", runs)
    with pytest.raises(UserError, match="unknown run 'boltsformer': did you mean 'boltzformer'"):
        find_run("boltsformer", runs)
    with pytest.raises(UserError, match="holds several runs: name one of boltzformer-"):
        find_run(str(runs / "toy"), runs)
    with pytest.raises(UserError, match="holds none; start with `bench run`"):
        find_run("seem", runs / "toy" / "report")
    lonely = tmp_path / "model.pt"
    shutil.copy(folder / "model.pt", lonely)
    for file in (__file__, lonely):
        with pytest.raises(UserError, match=r"is no run: give a run's folder, or the model.pt in it"):
            find_run(str(file), runs)


def test_the_name_of_an_image():
    names = {
        "a/scan.nii.gz": "scan",
        "p0-z1.5_CT.png": "p0-z1.5_CT",
        "IM.DCM": "IM",
        "SCAN.NII.GZ": "SCAN",
        "1.2.840.10": "1.2.840.10",
    }
    assert {name: image_id(Path(name)) for name in names} == names
    assert all(image_id(Path(name)) == Path(name).stem for name in ("x.png", "x.y.jpg"))


def digest(folder):
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    return {path: hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--checkpoint", "location_prior"], "which takes no prompt on a new image; these do: sam, "),
        (["--checkpoint", "sam", "--show-sampling"], "sam attends to every token; boltzformer and seem choose some"),
        (["--checkpoint", "nowhere"], "unknown run 'nowhere': "),
        (["--target", "mask.png"], "add --show-sampling, or leave --target out"),
        (["--show-sampling", "--target", "mask.png"], "1 --target for 2 --prompt"),
        (
            ["--show-sampling", "--target", "mask.png", "--target", "mask.png"],
            "mask.png is 7 x 5 px, the image 40 x 48",
        ),
        (["--prompt", " "], "--prompt is empty"),
        (["--slice", "3"], "is a single picture"),
        (["--out", "taken"], "taken cannot be made"),
        (["--out", "/proc/nowhere"], "/proc/nowhere cannot be made"),
        (["--prompt", "word " * 200], "tokens and the model reads 32: shorten it"),
    ],
)
def test_a_mistake_is_one_line_and_leaves_nothing(toy_runs, tmp_path, words, message):
    Image.new("L", (7, 5)).save(tmp_path / "mask.png")
    (tmp_path / "taken").write_text("a file")
    words = ["predict", toy_image(toy_runs), "--prompt", PROMPTS[0], "--prompt", PROMPTS[1], *words]
    words += [] if "--checkpoint" in words else ["--checkpoint", "boltzformer"]
    before = digest(tmp_path)
    done = subprocess.run(
        [sys.executable, "-m", "bench", *map(str, words), "--runs-dir", str(toy_runs / "runs")],
        cwd=tmp_path, env=os.environ | {"PYTHONPATH": str(ROOT)}, capture_output=True, text=True,
    )  # fmt: skip
    assert done.returncode == 2 and done.stdout == ""
    assert message in done.stderr and len(done.stderr.splitlines()) == 1 and done.stderr.startswith("error: ")
    assert digest(tmp_path) == before


def test_the_input_is_never_overwritten(toy_runs, tmp_path):
    image = tmp_path / "block-in-toy-image-mask.png"
    shutil.copy(toy_image(toy_runs), image)
    before = digest(tmp_path)
    with pytest.raises(UserError, match="is one of the inputs and would be overwritten: name another folder"):
        predict(toy_runs, tmp_path, image=image)
    assert digest(tmp_path) == before


def begun(run):
    (run / "model.pt").unlink()
    (run / "status.json").write_text('{"state": "interrupted"}')


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda run: (run / "model.pt").unlink(), "has no model.pt: it was finished, so this is an archive"),
        (begun, "has no model.pt: its training has not come so far; finish the suite"),
        (lambda run: (run / "model.pt").write_bytes(b"PK\x03\x04 cut"), "does not fit .* or is broken"),
        (lambda run: torch.save({"other": torch.zeros(1)}, run / "model.pt"), "does not fit the model of its spec"),
        (lambda run: (run / "spec.json").write_text('{"method": "sam"}'), "is not a run's spec: it has no 'suite'"),
        (lambda run: (run / "spec.json").write_text("{"), "cannot be read"),
    ],
)
def test_a_run_that_cannot_be_used_is_said_in_a_line(toy_runs, tmp_path, damage, message):
    run = tmp_path / "run"
    shutil.copytree(run_of(toy_runs, "boltzformer"), run)
    damage(run)
    with pytest.raises(UserError, match=message) as caught:
        predict(toy_runs, tmp_path / "out", method=run)
    assert "\n" not in str(caught.value) and not (tmp_path / "out").exists()


def test_prompts_of_one_name_get_files_of_their_own(toy_runs, tmp_path):
    prompts = ("Block!", "block", "block", "結節")
    output = predict(toy_runs, tmp_path / "out", prompts=prompts)
    names = {"block", "block-2", "結節"}
    expected = {f"{name}-{what}.png" for name in names for what in ("mask", "overlay")}
    assert {file.name for file in (tmp_path / "out").iterdir()} == expected
    assert output.count("block") > 1


def test_a_real_volume(toy_runs, tmp_path, shared):
    file = min((shared / "data/msd_raw/Task04_Hippocampus/imagesTr").glob("hippocampus_*.nii.gz"))
    output = predict(toy_runs, tmp_path / "out", "--axis", "sagittal", "--slice", 5, image=file)
    _, depth, height = nibabel.as_closest_canonical(nibabel.load(file)).shape
    assert masks_in(tmp_path / "out")[0].shape == (height, depth)
    assert f"{depth} x {height} px, sagittal slice 5 of 0 to" in output


def test_the_data_set_has_the_prompts_in_this_order(toy_runs):
    sample = next(sample for sample in load_dataset(toy_runs / "toy").test if sample.image_id == STEM)
    assert tuple(target.prompts[0] for target in sample.targets) == PROMPTS
