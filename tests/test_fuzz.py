"""Files of others, altered at random: a UserError or an answer, never a traceback, and nothing written elsewhere.

`FUZZ=1 pytest tests/test_fuzz.py` tries twenty times as many, other ones each time.
"""

import contextlib
import copy
import io
import json
import os
import shutil

import nibabel
import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image
from safetensors.torch import save_file

from baselines.location_prior import LocationPrior
from bench.checkpoint import newest_checkpoint, save_checkpoint
from bench.data.check import check_datasets
from bench.data.dataset import load_dataset
from bench.data.images import read_image
from bench.data.splits import load_splits, make_splits
from bench.errors import UserError
from bench.phrasings import _choose
from bench.predict_image import load_segmenter, segmenter_spec
from bench.spec import sha256_of
from bench.suite_folder import read_suite
from bench.verify import runs_of
from models.checkpoints import CheckpointError, load_published, read_checkpoint
from models.config import ModelConfig
from models.segmenter import BoltzFormer
from reports.build import run_table
from reports.grid import check_grid
from reports.load import load_predictions, load_suite
from reports.sampling import load_cases

# what somebody who means harm, or a slip, puts where something else should be
NASTY = st.sampled_from(
    [
        *(None, True, -1, 0, 1e308, float("nan"), float("inf"), 2**40, 10**30, [], {}, [[]], "", ".", "..", "/", "\0"),
        *("../../outside", "/etc/passwd", "a\nb", "\ud800", "x" * 5000, "<script>alert(1)</script>", "seed", "-"),
        *([0] * 50, {"id": 0}, "nan", "%s%n", "{0.__class__}", "train/../../..", "C:\\x", "\x1b[2J", "=1+1"),
    ]
)
COUNTS = pytest.mark.parametrize(
    ("count", "again"),
    [
        pytest.param(3, True, id="few"),
        pytest.param(
            60, False, id="many", marks=pytest.mark.skipif("FUZZ" not in os.environ, reason="asked for by FUZZ=1")
        ),
    ],
)


def places(value, path=()):
    """The path of every value inside a JSON value."""
    yield path
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, item in items:
        yield from places(item, (*path, key))


@st.composite
def altered_json(draw, content):
    """`content` with one to three values replaced, taken out, doubled, or put under another name."""
    content = copy.deepcopy(content)
    for _ in range(draw(st.integers(1, 3))):
        *path, last = ("top", *draw(st.sampled_from(sorted(places(content), key=str))))
        holder = whole = {"top": content}
        for key in path:
            holder = holder[key]
        how = draw(st.sampled_from(["replace", "replace", "remove", "double", "wrap"]))
        if how == "remove" and path:
            del holder[last]
        elif how == "double" and isinstance(holder, list):
            holder.append(copy.deepcopy(holder[last]))
        elif how == "wrap":
            holder[last] = draw(st.sampled_from([lambda v: [v], lambda v: {"x": v}, str]))(holder[last])
        else:
            holder[last] = copy.deepcopy(draw(NASTY))
        content = whole["top"]
    return content


@st.composite
def altered_bytes(draw, content):
    """`content` with a few bytes changed, a piece cut out, doubled or filled, or its end missing."""
    content = bytearray(content)
    for _ in range(draw(st.integers(1, 4))):
        at = draw(st.integers(0, max(0, len(content) - 1)))
        at = draw(st.sampled_from([at, at % 64, at % 512, max(0, len(content) - 1 - at % 256)]))  # headers and ends
        length = draw(st.sampled_from([1, 1, 1, 2, 4, 8, 100]))
        how = draw(st.sampled_from(["set", "set", "bit", "cut", "end", "double"]))
        if how == "set":
            content[at : at + length] = draw(st.sampled_from([b"\xff", b"\0", b"\x7f", b"\x80", b"A"])) * length
        elif how == "bit" and at < len(content):
            content[at] ^= 1 << draw(st.integers(0, 7))
        elif how == "cut":
            del content[at : at + length]
        elif how == "end":
            del content[at:]
        else:
            content[at:at] = content[at : at + length]
    return bytes(content)


def fuzz(strategy, check, count, again):
    """Calls `check` with what `strategy` draws; the same every time with `again`."""

    @settings(
        max_examples=count,
        deadline=None,
        derandomize=again,
        database=None,
        suppress_health_check=list(HealthCheck),
        print_blob=False,
    )
    @given(strategy)
    def holds(value):
        check(value)

    holds()


def only(call, error_class=UserError):
    """What `call` returns; None for an error of the class, which must say something."""
    try:
        return call()
    except error_class as error:
        assert str(error).strip()  # the command line makes it one line


def write_json(file, content):
    file.write_text(json.dumps(content), encoding="utf-8")


def around(folder):
    """Everything beside `folder`, with size and time."""
    return {
        path: (path.lstat().st_size, path.lstat().st_mtime_ns)
        for path in folder.parent.rglob("*")
        if not path.is_relative_to(folder)
    }


@COUNTS
def test_data_set_json(toy, count, again):
    (toy.parent / "outside.png").write_bytes(b"not ours")
    whole, before = json.loads((toy / "train.json").read_text()), around(toy)
    write_json(toy.parent / "splits.json", {})

    def check(content):
        write_json(toy / "train.json", content)
        problems = check_datasets([toy])
        assert all("\n" not in str(problem).strip() for problem in problems)
        dataset = only(lambda: load_dataset(toy))
        if dataset is not None:
            only(lambda: make_splits([dataset]).save(toy / "splits.json"))
            assert all(sample.image_file.is_relative_to(toy / "train") for sample in dataset.train)

    fuzz(altered_json(whole), check, 60 * count, again)
    (toy.parent / "splits.json").unlink()
    assert around(toy) == before


@COUNTS
def test_broken_json_and_deep_json(toy, count, again):
    text = (toy / "test.json").read_bytes()

    def check(content):
        (toy / "test.json").write_bytes(content)
        check_datasets([toy])
        only(lambda: load_dataset(toy))

    fuzz(st.one_of(altered_bytes(text), st.binary(max_size=50)), check, 40 * count, again)
    for opening in ("[", '{"a":'):
        check(opening.encode() * 200_000)


@COUNTS
def test_splits_json(toy, tmp_path, count, again):
    file = tmp_path / "splits.json"
    make_splits([load_dataset(toy)]).save(file)
    fuzz(
        altered_json(json.loads(file.read_text())),
        lambda content: (write_json(file, content), only(lambda: load_splits(file))),
        40 * count,
        again,
    )


def picture(kind):
    buffer = io.BytesIO()
    pixels = np.random.default_rng(0).integers(0, 255, (24, 20, 3), dtype=np.uint8)
    Image.fromarray(pixels if kind != "PNG" else pixels[..., 0].astype(np.uint16) * 200).save(buffer, kind)
    return buffer.getvalue()


def volume(tmp_path, ending):
    file = tmp_path / f"whole{ending}"
    nibabel.save(nibabel.Nifti1Image(np.arange(6 * 5 * 4, dtype=np.int16).reshape(6, 5, 4), np.eye(4)), file)
    return file.read_bytes()


def dicom(tmp_path):
    from pydicom.dataset import FileDataset, FileMetaDataset
    from pydicom.uid import CTImageStorage, ExplicitVRLittleEndian

    meta = FileMetaDataset()
    meta.MediaStorageSOPClassUID, meta.MediaStorageSOPInstanceUID = CTImageStorage, "1.2.3"
    meta.TransferSyntaxUID = ExplicitVRLittleEndian
    header = FileDataset(None, {}, file_meta=meta, preamble=b"\0" * 128)
    header.Rows, header.Columns, header.SamplesPerPixel, header.Modality = 6, 5, 1, "CT"
    header.BitsAllocated = header.BitsStored = 16
    header.HighBit, header.PixelRepresentation, header.PhotometricInterpretation = 15, 1, "MONOCHROME2"
    header.WindowCenter, header.WindowWidth, header.RescaleSlope, header.RescaleIntercept = 40, 400, 1, -1024
    header.PixelData = np.arange(30, dtype=np.int16).tobytes()
    header.save_as(tmp_path / "whole.dcm", enforce_file_format=True)
    return (tmp_path / "whole.dcm").read_bytes()


@COUNTS
@pytest.mark.parametrize("kind", ["a.png", "a.jpg", "a.tif", "a.nii", "a.nii.gz", "a.dcm"])
def test_images(tmp_path, kind, count, again):
    file, ending = tmp_path / kind, kind.removeprefix("a")
    formats = {".png": "PNG", ".jpg": "JPEG", ".tif": "TIFF"}
    whole = (
        picture(formats[ending])
        if ending in formats
        else dicom(tmp_path)
        if ending == ".dcm"
        else volume(tmp_path, ending)
    )

    def check(content):
        file.write_bytes(content)
        found = only(lambda: read_image(file))
        assert found is None or (found[0].dtype == np.uint8 and found[0].ndim == 3)

    check(whole)
    fuzz(altered_bytes(whole), check, 60 * count, again)


@COUNTS
@pytest.mark.parametrize("kind", ["a.pt", "old.pt", "a.safetensors"])
def test_published_checkpoints(tmp_path, kind, count, again):
    file = tmp_path / kind
    state = {"image_encoder.trunk.a": torch.ones(3, 4), "b": torch.zeros(2, dtype=torch.bfloat16)}
    if kind == "a.safetensors":
        save_file(state, file)
    else:
        torch.save({"model": state}, file, _use_new_zipfile_serialization=kind == "a.pt")
    small = ModelConfig(width=32, heads=2, feedforward=16, layers=1, queries=2, pixel_layers=1, text_width=16)
    small = small.model_copy(update={"text_layers": 1, "text_heads": 2})
    with torch.device("meta"):
        model = BoltzFormer("hiera_xt", small)
    before = around(file)

    def check(content):
        file.write_bytes(content)
        only(lambda: read_checkpoint(file), CheckpointError)

    def check_fit(content):  # looks for the backbone that a file is of, which takes its time
        file.write_bytes(content)
        only(lambda: load_published(model, file), CheckpointError)

    whole = file.read_bytes()
    fuzz(altered_bytes(whole), check, 60 * count, again)
    fuzz(altered_bytes(whole), check_fit, count, again)
    assert around(file) == before


@COUNTS
def test_the_checkpoint_a_run_goes_on_from(tmp_path, count, again):
    """One whose name has the hash of its bytes, whoever computed it: it is taken or passed over, and never an error."""
    run = tmp_path / "run"
    run.mkdir()
    save_checkpoint(run, 3, {"model": {"a": torch.ones(3)}, "progress": {"step": 3}})
    whole = next(run.iterdir()).read_bytes()

    def check(content):
        for file in run.iterdir():
            file.unlink()
        (run / "new").write_bytes(content)
        (run / "new").rename(run / f"resume-00000003-{sha256_of(run / 'new')[:16]}.pt")
        with contextlib.redirect_stdout(None):
            newest_checkpoint(run)
        assert len(list(tmp_path.iterdir())) == 1

    fuzz(altered_bytes(whole), check, 40 * count, again)


@pytest.fixture(scope="module")
def suite(toy_runs, tmp_path_factory):
    """A copy of the smoke suite's runs in a folder of its own, with something beside it to be spared."""
    home = tmp_path_factory.mktemp("home")
    (home / "outside").mkdir()
    (home / "outside" / "spec.json").write_text("{}")
    return shutil.copytree(toy_runs / "runs" / "toy", home / "runs" / "toy")


def read_all(suite):
    """What the commands that read a suite folder do before they draw or predict."""
    only(lambda: read_suite(suite))
    results = only(lambda: load_suite(suite))
    if results is not None:
        only(lambda: check_grid(results))
        only(lambda: run_table(results))
        for run in results.runs:
            only(lambda run=run: load_predictions(run, ["p5-z0_toy"]))
    only(lambda: _choose(suite))
    only(lambda: runs_of(suite))


@COUNTS
@pytest.mark.parametrize("name", ["suite.json", "spec.json", "status.json", "env.json"])
def test_a_suite_folder(suite, name, count, again):
    file = suite / name if name == "suite.json" else next(suite.glob("sam-*")) / name
    whole, before = file.read_text(), around(suite)

    def check(content):
        write_json(file, content)
        read_all(suite)
        if name == "spec.json" and (spec := only(lambda: segmenter_spec(file.parent))) is not None:
            assert "/" not in spec.run_id

    try:
        fuzz(altered_json(json.loads(whole)), check, 25 * count, again)
        file.write_text("[" * 100_000)
        read_all(suite)
    finally:
        file.write_text(whole)
    assert around(suite) == before


@COUNTS
@pytest.mark.parametrize("name", ["records.parquet", "predictions.parquet", "history.jsonl"])
def test_tables_of_a_run(suite, name, count, again):
    file = next(suite.glob("sam-*")) / name
    whole = file.read_bytes()

    def check(content):
        file.write_bytes(content)
        read_all(suite)

    try:
        fuzz(altered_bytes(whole), check, 25 * count, again)
    finally:
        file.write_bytes(whole)


@COUNTS
def test_arrays_of_a_run(suite, count, again):
    prior, drawn = next(suite.glob("location*")) / "location_prior.npz", next(suite.glob("boltz*")) / "sampling.npz"
    for file, read in ((prior, lambda: LocationPrior().load(prior.parent)), (drawn, lambda: load_cases(drawn))):
        whole = file.read_bytes()
        try:
            fuzz(altered_bytes(whole), lambda content: (file.write_bytes(content), only(read)), 40 * count, again)  # noqa: B023
        finally:
            file.write_bytes(whole)


@COUNTS
def test_the_weights_of_a_run(suite, count, again):
    run = next(suite.glob("boltzformer-*"))
    file, spec = run / "model.pt", segmenter_spec(run)
    whole, written = file.read_bytes(), json.loads((run / "spec.json").read_text())
    head = 4096  # the rest is numbers

    def check(content):
        file.write_bytes(content + whole[head:])
        only(lambda: load_segmenter(spec, run))

    def check_spec(content):
        write_json(run / "spec.json", content)
        only(lambda: load_segmenter(segmenter_spec(run), run))

    try:
        fuzz(altered_bytes(whole[:head]), check, 10 * count, again)
        file.write_bytes(whole)
        fuzz(altered_json(written), check_spec, 15 * count, again)
    finally:
        file.write_bytes(whole)
        write_json(run / "spec.json", written)
