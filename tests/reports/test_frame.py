"""All records in one frame, against pandas' own reading and joining of the same files."""

import pandas as pd
import pytest

from bench.errors import UserError
from bench.records import RECORD_COLUMNS, write_table
from reports.frame import CHECKED, FRAME_COLUMNS, IDS, RecordFile, empty_records, read_records

HOLES = ("seconds", "confidence", "dice", "nsd_1", "nsd_2", "nsd_4", "hd95", "lesions", "found", "detections", "hits")


def write(folder, build, name, rows, **columns):
    frame = build.frame(rows).astype(dict.fromkeys(IDS, "string"))
    path = folder / f"{name}.parquet"
    write_table(frame.assign(schema_version=2, spec_hash="h", split_hash="s", **columns), path, RECORD_COLUMNS)
    return RecordFile(path, {"split_hash": "s"}, HOLES)


def test_files_of_different_texts_and_holes_are_joined_as_pandas_joins_them(tmp_path, build):
    files = [
        write(tmp_path, build, "one", [{"image_id": "z", "tp": 3}, {"image_id": "b", "object": "x", "seconds": None}]),
        write(tmp_path, build, "two", [{"image_id": "a", "fp": 7}, {"image_id": "z", "patient": "ä"}], hd95=1.5),
        write(tmp_path, build, "none", []),
    ]
    records = read_records(files)
    naive = pd.concat([pd.read_parquet(file.path) for file in files], ignore_index=True).drop(columns=list(CHECKED))
    assert list(records.columns) == list(FRAME_COLUMNS)
    for name in records:
        if name in IDS:
            assert records[name].tolist() == naive[name].tolist()
            assert list(records[name].cat.categories) == sorted(set(naive[name]))
        else:
            assert str(records[name].dtype) == FRAME_COLUMNS[name]
            expected = naive[name].astype("float64" if name in HOLES else FRAME_COLUMNS[name])
            pd.testing.assert_series_equal(records[name], expected, check_exact=True)


def test_no_file_is_an_empty_frame():
    pd.testing.assert_frame_equal(read_records([]), empty_records(), check_categorical=False)


def test_a_hole_is_named(tmp_path, build):
    file = write(tmp_path, build, "one", [{"seconds": None}])
    assert len(read_records([file])) == 1
    with pytest.raises(UserError, match=r"one\.parquet has empty values in seconds: delete"):
        read_records([RecordFile(file.path, {}, HOLES[1:])])
