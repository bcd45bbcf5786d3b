"""Pictures out of PNG, JPEG, NIfTI and DICOM, against Pillow, SimpleITK and pydicom's own pipeline."""

import gzip
import itertools
from pathlib import Path

import nibabel
import numpy as np
import pydicom
import pytest
import SimpleITK
from PIL import Image
from pydicom.data import get_testdata_file
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.pixels import apply_modality_lut, apply_windowing
from pydicom.sequence import Sequence
from pydicom.uid import CTImageStorage, ExplicitVRLittleEndian, generate_uid

from bench.data.images import WINDOWS, parse_window, read_image, to_grey
from bench.errors import UserError

AS_STORED = "127.5,255"  # the window that leaves 0..255 alone
RNG = np.random.default_rng(0)


def grey_of(file, *options):
    picture, note = read_image(file, *options)
    assert picture.dtype == np.uint8 and picture.shape[2] == 3
    assert (picture == picture[..., :1]).all()
    return picture[..., 0], note


@pytest.mark.parametrize(
    ("mode", "ending"),
    [*itertools.product(["L", "RGB", "RGBA", "LA", "P", "1"], ["png"]), ("L", "jpg"), ("RGB", "jpg"), ("CMYK", "jpg")],
)
def test_eight_bit_pictures_are_what_pillow_shows(tmp_path, mode, ending):
    file = tmp_path / f"a.{ending}"
    Image.fromarray(RNG.integers(0, 256, (9, 7, 3), dtype=np.uint8)).convert(mode).save(file)
    picture, note = read_image(file)
    assert np.array_equal(picture, np.asarray(Image.open(file).convert("RGB")))
    assert note == "8-bit values as they are"


def test_sixteen_bit_grey_fills_the_range_between_its_percentiles(tmp_path):
    values = RNG.integers(0, 4096, (40, 30), dtype=np.uint16)
    values[0, 0] = 65535  # one hot pixel must not darken the rest
    Image.fromarray(values).save(tmp_path / "a.png")
    grey, note = grey_of(tmp_path / "a.png")
    low, high = np.percentile(values[values > 0], [0.5, 99.5])
    assert high < 5000 and "percentile" in note
    expected = 255 * (values.astype(float).clip(low, high) - low) / (high - low)
    assert np.abs(grey - expected).max() <= 0.5 + 1e-9
    windowed, note = grey_of(tmp_path / "a.png", None, None, "2000,1000")
    assert (windowed[values <= 1500] == 0).all() and (windowed[values >= 2500] == 255).all()
    assert note == "window 2000,1000"


def stored_as(volume, order, signs, folder):
    """The same RAS+ volume written with its axes permuted and flipped, and an affine that says so."""
    spacing = np.diag([0.7, 0.8, 2.5, 1.0])
    image = nibabel.Nifti1Image(volume, spacing)
    orientation = np.array(list(zip(order, signs, strict=True)))
    turned = image.as_reoriented(nibabel.orientations.ornt_transform(orientation, [[0, 1], [1, 1], [2, 1]]))
    file = folder / f"{''.join(map(str, order))}{''.join('-+'[s > 0] for s in signs)}.nii.gz"
    nibabel.save(turned, file)
    return file


def test_a_slice_looks_the_same_however_the_volume_is_stored_and_as_simpleitk_has_it(tmp_path):
    volume = RNG.integers(0, 256, (5, 6, 7), dtype=np.uint8)
    codes = set()
    for order in itertools.permutations(range(3)):
        for signs in itertools.product((1, -1), repeat=3):
            file = stored_as(volume, order, signs, tmp_path)
            codes.add(nibabel.aff2axcodes(nibabel.load(file).affine))
            lps = SimpleITK.DICOMOrient(SimpleITK.ReadImage(str(file)), "LPS")  # right to left, front to back
            array = SimpleITK.GetArrayFromImage(lps)  # (z, y, x)
            assert np.array_equal(grey_of(file, 2, None, AS_STORED)[0], array[2])
            assert np.array_equal(grey_of(file, 2, "coronal", AS_STORED)[0], array[::-1, 5 - 2, :])
            assert np.array_equal(grey_of(file, 1, "sagittal", AS_STORED)[0], array[::-1, :, 4 - 1])
    assert len(codes) == 48
    assert read_image(file, window=AS_STORED)[1] == "axial slice 3 of 0 to 6, window 127.5,255"
    assert "coronal slice 3 of 0 to 5" in read_image(file, axis="coronal")[1]


def test_ct_volumes_get_the_abdominal_window_and_others_their_percentiles(tmp_path):
    volume = RNG.normal(60, 300, (20, 20, 3)).round().astype(np.int16)
    volume[0, 0, 0] = -1024
    for name, values in (("ct", volume), ("mr", np.abs(volume)), ("scores", volume / 300.0)):
        nibabel.save(nibabel.Nifti1Image(values, np.eye(4)), tmp_path / f"{name}.nii")
    shown = SimpleITK.IntensityWindowing(
        SimpleITK.ReadImage(str(tmp_path / "ct.nii"), SimpleITK.sitkFloat64), -150, 250
    )
    expected = SimpleITK.GetArrayFromImage(shown)[1]  # identity affine: RAS+ against SimpleITK's LPS+
    grey, note = grey_of(tmp_path / "ct.nii")
    assert np.abs(grey - expected[::-1, ::-1]).max() <= 0.5
    assert note == "axial slice 1 of 0 to 2, CT in window abdomen (-150 to 250 HU)"
    for name in ("mr", "scores"):
        assert "percentile" in read_image(tmp_path / f"{name}.nii")[1]
    lung, note = grey_of(tmp_path / "ct.nii", 1, None, "lung")
    assert np.array_equal(lung, grey_of(tmp_path / "ct.nii", 1, None, "0,2000")[0]) and "window lung" in note
    assert not np.array_equal(lung, grey)


def test_two_dimensions_and_a_last_axis_of_one_are_a_picture(tmp_path):
    values = RNG.integers(0, 256, (6, 5), dtype=np.uint8)
    for name, shape in (("two", (6, 5)), ("three", (6, 5, 1)), ("four", (6, 5, 1, 1))):
        nibabel.save(nibabel.Nifti1Image(values.reshape(shape), np.eye(4)), tmp_path / f"{name}.nii")
        assert np.array_equal(grey_of(tmp_path / f"{name}.nii", None, None, AS_STORED)[0], values[::-1, ::-1].T)


def dicom(pixels, file, photometric="MONOCHROME2", modality="CT", **attributes):
    """Writes a DICOM file with the given pixels and header."""
    header = Dataset()
    header.file_meta = FileMetaDataset()
    header.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    header.SOPClassUID, header.SOPInstanceUID = CTImageStorage, generate_uid()
    header.Modality = modality
    header.set_pixel_data(pixels, photometric, 8 * pixels.itemsize)
    for name, value in attributes.items():
        setattr(header, name, value)
    header.save_as(file, enforce_file_format=True)
    return file


def as_pydicom_shows(header, stored):
    """pydicom's own modality and window stages, from the range it works in to 0..255."""
    values = apply_modality_lut(stored, header)
    shown = apply_windowing(values, header)
    bits = header.BitsStored
    ends = (-(2 ** (bits - 1)), 2 ** (bits - 1) - 1) if header.PixelRepresentation else (0, 2**bits - 1)
    low, high = (end * float(header.get("RescaleSlope", 1)) + float(header.get("RescaleIntercept", 0)) for end in ends)
    return 255 * (shown - low) / (high - low)


@pytest.mark.parametrize("function", [None, "LINEAR", "LINEAR_EXACT"])
def test_dicom_is_rescaled_and_windowed_as_pydicom_does(tmp_path, function):
    stored = RNG.integers(-200, 3000, (12, 10)).astype(np.int16)
    header = {"RescaleSlope": 2, "RescaleIntercept": -1024, "WindowCenter": [40, 500], "WindowWidth": [400, 2000]}
    header |= {} if function is None else {"VOILUTFunction": function}
    file = dicom(stored, tmp_path / "a.dcm", **header)
    grey, note = grey_of(file)
    assert np.abs(grey - as_pydicom_shows(pydicom.dcmread(file), stored)).max() <= 0.5 + 1e-6
    assert note == "the header's window (center 40, width 400)"
    assert np.array_equal(grey_of(file, None, None, "abdomen")[0], to_grey(2.0 * stored - 1024, -150, 250))


def test_monochrome1_is_turned_over(tmp_path):
    stored = RNG.integers(0, 4096, (12, 10)).astype(np.uint16)
    plain, turned = (
        grey_of(dicom(stored, tmp_path / name, name, "DX", WindowCenter=2000, WindowWidth=3000))[0]
        for name in ("MONOCHROME2", "MONOCHROME1")
    )
    assert np.array_equal(turned, 255 - plain) and plain.std() > 10


def test_frames_of_an_enhanced_file_have_their_own_rescale_and_window(tmp_path):
    stored = RNG.integers(0, 1000, (3, 8, 9)).astype(np.uint16)
    frames = []
    for slope, center in ((1, 100), (2, 500), (3, 900)):
        group, rescale, window = Dataset(), Dataset(), Dataset()
        rescale.RescaleSlope, rescale.RescaleIntercept = slope, -10
        window.WindowCenter, window.WindowWidth = center, 800
        group.PixelValueTransformationSequence = Sequence([rescale])
        group.FrameVOILUTSequence = Sequence([window])
        frames.append(group)
    file = dicom(stored, tmp_path / "a.dcm", modality="MR", PerFrameFunctionalGroupsSequence=Sequence(frames))
    for frame, (slope, center) in enumerate(((1, 100), (2, 500), (3, 900))):
        grey, note = grey_of(file, frame)
        expected = to_grey(slope * stored[frame].astype(float) - 10, center - 400, center + 399)
        assert np.array_equal(grey, expected)
        assert note.startswith(f"frame {frame} of 0 to 2, the header's window (center {center}")
    assert np.array_equal(read_image(file)[0], read_image(file, 1)[0])


def test_without_a_window_ct_is_abdominal_and_eight_bits_stay(tmp_path):
    stored = RNG.integers(800, 1400, (8, 8)).astype(np.int16)
    grey, note = grey_of(dicom(stored, tmp_path / "ct", RescaleSlope=1, RescaleIntercept=-1024))  # no ending
    assert np.array_equal(grey, to_grey(stored - 1024.0, -150, 250)) and note.startswith("CT in window abdomen")
    eight = RNG.integers(0, 256, (8, 8), dtype=np.uint8)
    assert np.array_equal(grey_of(dicom(eight, tmp_path / "us.dcm", modality="US"))[0], eight)
    colours = RNG.integers(0, 256, (8, 8, 3), dtype=np.uint8)
    assert np.array_equal(read_image(dicom(colours, tmp_path / "rgb.dcm", "RGB", "US"))[0], colours)


@pytest.mark.parametrize("name", ["CT_small.dcm", "MR_small.dcm", "MR_small_RLE.dcm", "693_J2KI.dcm"])
def test_files_of_real_scanners(name):
    file = Path(get_testdata_file(name, download=False))
    header = pydicom.dcmread(file)
    grey, _ = grey_of(file)
    assert grey.shape == (header.Rows, header.Columns) and grey.std() > 10
    if "WindowCenter" in header:
        assert np.abs(grey - as_pydicom_shows(header, header.pixel_array)).max() <= 0.5 + 1e-6


def test_real_volumes_are_read(shared):
    for file in sorted((shared / "data/msd_raw/Task04_Hippocampus/imagesTr").glob("hippocampus_*.nii.gz"))[:3]:
        lps = SimpleITK.DICOMOrient(SimpleITK.ReadImage(str(file)), "LPS")
        array = SimpleITK.GetArrayFromImage(lps)
        grey, note = grey_of(file, 10)
        low, high = np.percentile(array[10][array[10] > 0], [0.5, 99.5])
        assert np.array_equal(grey, to_grey(array[10], low, high)) and "axial slice 10" in note


def test_windows_by_number_and_by_name():
    assert parse_window("-600,1500") == (-1350, 150)
    assert parse_window("40.5, 1") == (40, 41)
    assert parse_window("brain") == WINDOWS["brain"]
    values = np.array([[np.nan, -np.inf, 0, 10, 20, np.inf]])
    assert to_grey(values, 0, 20).tolist() == [[0, 0, 0, 128, 255, 255]]
    assert to_grey(np.full((2, 2), 7), 7, 7).max() == 0


def broken(kind, folder):
    """A file of each kind of trouble."""
    file = folder / {"folder": "folder", "absent": "absent.png", "text": "text.png"}.get(kind, kind)
    if kind == "folder":
        file.mkdir()
    elif kind in ("text", "text.dcm"):
        file.write_text("no image")
    elif kind == "cut.nii.gz":
        nibabel.save(nibabel.Nifti1Image(RNG.normal(size=(9, 9, 9)), np.eye(4)), file)
        file.write_bytes(file.read_bytes()[:900])
    elif kind == "text.nii.gz":
        file.write_bytes(gzip.compress(b"no volume"))
    elif kind == "four.nii":
        nibabel.save(nibabel.Nifti1Image(np.zeros((4, 4, 3, 2), np.int16), np.eye(4)), file)
    elif kind == "rgb.nii":
        colours = np.zeros((4, 4, 3), dtype=[("R", "u1"), ("G", "u1"), ("B", "u1")])
        nibabel.save(nibabel.Nifti1Image(colours, np.eye(4)), file)
    elif kind == "ct.nii":
        nibabel.save(nibabel.Nifti1Image(np.zeros((4, 5, 6), np.int16), np.eye(4)), file)
    elif kind == "one.dcm":
        dicom(np.zeros((4, 4), np.int16), file)
    elif kind == "two.dcm":
        dicom(np.zeros((2, 4, 4), np.int16), file)
    elif kind == "rgb.png":
        Image.new("RGB", (4, 4)).save(file)
    return file


@pytest.mark.parametrize(
    ("kind", "options", "message"),
    [
        ("absent", {}, "absent.png does not exist: name an image file"),
        ("folder", {}, "folder is a folder: name one file in it"),
        ("text", {}, "cannot be read as an image"),
        ("text.dcm", {}, "cannot be read as a DICOM image"),
        ("cut.nii.gz", {}, "cannot be read as a NIfTI volume"),
        ("text.nii.gz", {}, "cannot be read as a NIfTI volume"),
        ("four.nii", {}, r"4 dimensions \(4 x 4 x 3 x 2\), not 3: save one of its volumes by itself"),
        ("rgb.nii", {}, "not one number a voxel"),
        ("ct.nii", {"index": 6}, "--slice 6: .*ct.nii has axial slices 0 to 5"),
        ("ct.nii", {"index": 4, "axis": "sagittal"}, "sagittal slices 0 to 3"),
        ("ct.nii", {"index": -1}, "--slice -1"),
        ("ct.nii", {"window": "lnug"}, "unknown window 'lnug': did you mean 'lung'"),
        ("ct.nii", {"window": "40"}, "--window '40' is no center and width: write --window 40,400"),
        ("ct.nii", {"window": "40,0"}, "no center and width"),
        ("one.dcm", {"index": 0}, "has one frame; leave the option out"),
        ("two.dcm", {"index": 2}, "has frames 0 to 1"),
        ("two.dcm", {"axis": "axial"}, "is no NIfTI volume"),
        ("rgb.png", {"index": 0}, "is a single picture; leave the option out"),
        ("rgb.png", {"window": "lung"}, "8-bit colours, shown as they are"),
    ],
)
def test_what_cannot_be_read_is_said_in_a_line(tmp_path, kind, options, message):
    with pytest.raises(UserError, match=message) as caught:
        read_image(broken(kind, tmp_path), **options)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("MR_small_jpeg_ls_lossless.dcm", "compressed .JPEG-LS Lossless.*pip install pylibjpeg pylibjpeg-libjpeg"),
        ("MR_truncated.dcm", "cannot be read as a DICOM image .*fewer|less"),
        ("test-SR.dcm", "cannot be read as a DICOM image .*no 'Pixel Data'"),
    ],
)
def test_dicom_files_without_pixels_that_can_be_had(name, message):
    if "jpeg_ls" in name and pydicom.pixels.get_decoder("1.2.840.10008.1.2.4.80").is_available:
        pytest.skip("a decoder of JPEG-LS is installed")
    with pytest.raises(UserError, match=message):
        read_image(Path(get_testdata_file(name, download=False)))
