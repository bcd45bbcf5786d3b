"""Bombs and absurd sizes, each made by hand: an error of one line, in little time and memory."""

import gzip
import json
import struct
import time
import zipfile
import zlib

import nibabel
import numpy as np
import pytest
import torch
from PIL import Image

from bench.data.dataset import load_dataset, load_image, open_image
from bench.data.images import read_image
from bench.errors import UserError
from bench.limits import MAX_PIXELS, check_pixels, load_arrays, load_json
from models.checkpoints import CheckpointError, read_checkpoint


@pytest.fixture(autouse=True)
def quick():
    """What is refused by its header is refused at once."""
    started = time.perf_counter()
    yield
    assert time.perf_counter() - started < 5


def chunk(kind, data):
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def png(width, height):
    """A PNG of so many grey pixels by its header, with the rows of few."""
    header = struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0)
    rows = zlib.compress(b"\0" * 10_000)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", rows) + chunk(b"IEND", b"")


@pytest.mark.parametrize(
    ("width", "height"), [(8193, 8192), (10_000, 10_000), (2**31 - 1, 2**31 - 1), (MAX_PIXELS + 1, 1)]
)
def test_a_picture_that_its_header_makes_too_large(tmp_path, width, height):
    file = tmp_path / "bomb.png"
    file.write_bytes(png(width, height))
    for read in (open_image, load_image, read_image):
        with pytest.raises(UserError, match=r"bomb\.png") as error:
            read(file)
        assert "the limit is" in str(error.value) or "exceeds limit" in str(error.value)


def test_the_largest_picture_is_allowed():
    check_pixels(8192, 8192)
    with pytest.raises(ValueError, match="8192 x 8193 px, the limit is 67,108,864 in all"):
        check_pixels(8192, 8193)


def test_a_picture_of_a_format_that_starts_a_program(tmp_path):
    """Pillow gives PostScript to Ghostscript, by content and whatever the name."""
    file = tmp_path / "image.png"
    Image.new("RGB", (8, 8)).save(file, "EPS")
    with pytest.raises(UserError, match="cannot be read as an image"):
        open_image(file)


def nifti(shape, extra=b""):
    header = nibabel.Nifti1Header()
    header.set_data_dtype(np.int16)
    header["dim"][: len(shape) + 1] = [len(shape), *shape]
    header["vox_offset"] = 352
    return header.binaryblock + b"\0" * 4 + extra


@pytest.mark.parametrize("shape", [(32767, 32767, 32767), (1024, 1024, 1024), (512, 512, 512), (-5, 10, 10), (0, 4, 4)])
@pytest.mark.parametrize("ending", [".nii", ".nii.gz"])
def test_a_volume_that_its_header_makes_too_large(tmp_path, shape, ending):
    file = tmp_path / f"bomb{ending}"
    content = nifti(shape, b"\0" * 1000)
    file.write_bytes(gzip.compress(content) if ending == ".nii.gz" else content)
    with pytest.raises(UserError, match="cannot be read as a NIfTI volume"):
        read_image(file)


@pytest.mark.parametrize("sides", [{"Rows": 65535, "Columns": 65535}, {"NumberOfFrames": 2**31}])
def test_a_dicom_file_that_its_header_makes_too_large(tmp_path, sides):
    from pydicom.dataset import FileDataset, FileMetaDataset
    from pydicom.uid import CTImageStorage, RLELossless

    meta = FileMetaDataset()
    meta.MediaStorageSOPClassUID, meta.MediaStorageSOPInstanceUID = CTImageStorage, "1.2.3"
    meta.TransferSyntaxUID = RLELossless
    header = FileDataset(None, {}, file_meta=meta, preamble=b"\0" * 128)
    header.Rows = header.Columns = 16
    header.SamplesPerPixel, header.BitsAllocated, header.PhotometricInterpretation = 1, 8, "MONOCHROME2"
    for name, value in sides.items():
        setattr(header, name, value)
    header.save_as(tmp_path / "bomb.dcm", enforce_file_format=True)
    with pytest.raises(UserError, match="the limit is"):
        read_image(tmp_path / "bomb.dcm")


@pytest.mark.parametrize("text", ["[" * 200_000, '{"a":' * 200_000, '["\\ud800"]', "1" * 10_000, "{", "\xff"])
def test_json_that_is_none(tmp_path, text):
    file = tmp_path / "a.json"
    file.write_text(text, encoding="latin-1")
    with pytest.raises(ValueError):
        load_json(file)


def test_json_that_is_too_large(tmp_path):
    with (tmp_path / "a.json").open("wb") as file:
        file.truncate(2**28 + 1)  # a hole: it takes no place on the disk
    with pytest.raises(ValueError, match="the limit is 268,435,456"):
        load_json(tmp_path / "a.json")


def test_arrays_that_unpack_to_too_much(tmp_path):
    file = tmp_path / "bomb.npz"
    with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as archive, archive.open("a.npy", "w") as member:
        for _ in range(257):
            member.write(bytes(2**20))
    assert file.stat().st_size < 2**20
    with pytest.raises(ValueError, match="more than"):
        load_arrays(file)


def test_arrays_of_objects_are_not_loaded(tmp_path):
    np.savez(tmp_path / "a.npz", a=np.array([{}], dtype=object))
    with pytest.raises(ValueError, match="allow_pickle=False"):
        load_arrays(tmp_path / "a.npz")


def packed(file):
    """The checkpoint `file` with its members deflated."""
    with zipfile.ZipFile(file) as archive:
        members = {name: archive.read(name) for name in archive.namelist()}
    with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in members.items():
            archive.writestr(name, content)


def overlapping(file):
    """The checkpoint `file` with its largest member listed a thousand times."""
    with zipfile.ZipFile(file, "a") as archive:
        largest = max(archive.infolist(), key=lambda member: member.file_size)
        archive.filelist += [largest] * 1000
        archive.writestr("end", b"")  # so that the directory is written again


@pytest.mark.parametrize("make", [packed, overlapping])
def test_a_checkpoint_that_unpacks_to_more_than_it_is(tmp_path, make):
    file = tmp_path / "a.pt"
    torch.save({"a": torch.zeros(1000, 1000)}, file)
    assert read_checkpoint(file)["a"].shape == (1000, 1000)
    make(file)
    with pytest.raises(CheckpointError, match="is packed, as torch packs no file: give another"):
        read_checkpoint(file)


@pytest.mark.parametrize("side", ["height", "width"])
@pytest.mark.parametrize("value", [0, -3, 10**9, float("inf"), float("nan"), "wide"])
def test_an_absurd_size_in_the_annotations(bench, toy, side, value):
    content = json.loads((toy / "train.json").read_text())
    content["images"][2][side] = value
    (toy / "train.json").write_text(json.dumps(content))
    with pytest.raises(UserError, match=r"train\.json: no usable"):
        load_dataset(toy)
