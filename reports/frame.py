"""The records of all runs in one frame, column by column: texts as categories, what no table reads left out.

A test set of 40,000 masks with twelve methods and twenty seeds is ten million records; `python
tests/benchmarks/report_size.py` measures what a report of so many takes.
"""

from __future__ import annotations

from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd

from bench.errors import UserError
from bench.records import ADDED_COLUMNS, READABLE_VERSIONS, RECORD_COLUMNS

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    import pyarrow

IDS = ("method", "backbone", "dataset", "object", "image_id", "patient", "prompt")
COUNTS = ("tp", "fp", "fn")
NUMBERS = (*COUNTS, *ADDED_COLUMNS)
CHECKED = ("schema_version", "spec_hash", "split_hash")  # when a file is read, and not kept
# In memory: categories in alphabetical order, and NaN where there is no number.
FRAME_COLUMNS = {
    name: "category" if name in IDS else "float64" if name in NUMBERS else dtype
    for name, dtype in RECORD_COLUMNS.items()
    if name not in CHECKED
}
MAX_ROWS = 10_000_000  # of one run
VERSIONS = " and ".join(map(str, READABLE_VERSIONS))


def empty_records() -> pd.DataFrame:
    """No rows, all FRAME_COLUMNS with their dtypes."""
    return pd.DataFrame(columns=list(FRAME_COLUMNS)).astype(FRAME_COLUMNS)


@dataclass(frozen=True)
class RecordFile:
    """A records.parquet, what one value its columns `expected` must have, and which may have holes."""

    path: Path
    expected: dict[str, str | int]
    may_be_empty: tuple[str, ...]


def read_records(files: Sequence[RecordFile]) -> pd.DataFrame:
    """The records of all files in one frame with FRAME_COLUMNS.

    Raises UserError for a file that cannot be read, lacks columns, is of another schema version, has another value than
    expected, or holes where it may have none.
    """
    starts = np.cumsum([0, *(_rows(file.path) for file in files)])
    # filled file by file, and texts as codes, so that nothing is in memory twice
    columns = {name: np.empty(starts[-1], np.int32 if name in IDS else kind) for name, kind in FRAME_COLUMNS.items()}
    texts = {name: pd.Index([], dtype="str") for name in IDS}
    for file, start, stop in zip(files, starts[:-1], starts[1:], strict=True):
        table = _read(file)
        for name, column in columns.items():
            if name in IDS:
                values = table[name].to_pandas().cat
                texts[name] = texts[name].append(values.categories.difference(texts[name], sort=False))
                column[start:stop] = texts[name].get_indexer(values.categories)[values.codes]
            elif name in table.column_names:
                column[start:stop] = table[name].to_pandas().to_numpy(dtype=column.dtype, na_value=np.nan)
            else:
                column[start:stop] = np.nan
    for name, values in texts.items():
        order = values.argsort()
        places = np.empty(len(order), np.int32)
        places[order] = np.arange(len(order))
        columns[name] = pd.Categorical.from_codes(places[columns[name]], values[order])
    return pd.DataFrame(columns, copy=False)


@contextmanager
def readable(path: Path) -> Iterator[None]:
    """Whatever pyarrow raises for a broken file is a UserError."""
    try:
        yield
    except Exception as error:  # pyarrow's errors have several bases
        raise fault(path, f"cannot be read ({_first_line(error)})") from error


def _rows(path: Path) -> int:
    import pyarrow.parquet as pq

    with readable(path):
        rows = pq.read_metadata(path).num_rows
    if rows > MAX_ROWS:  # a few bytes can say that a value comes a billion times
        raise fault(path, f"has {rows:,} rows, of {MAX_ROWS:,} that can be read")
    return rows


def _read(file: RecordFile) -> pyarrow.Table:
    """The checked table, texts as dictionaries."""
    import pyarrow.compute as pc
    import pyarrow.parquet as pq

    path = file.path
    texts = [name for name, dtype in RECORD_COLUMNS.items() if dtype == "string"]
    with readable(path):
        table = pq.read_table(path, read_dictionary=texts)
    there = set(table.column_names)
    lacking = [name for name in RECORD_COLUMNS if name not in there and name not in ADDED_COLUMNS]
    if lacking:
        raise fault(path, f"lacks the columns {', '.join(lacking)}")
    versions = set(pc.unique(table["schema_version"]).to_pylist())
    if unknown := versions - set(READABLE_VERSIONS):
        raise fault(path, f"has schema_version {min(unknown, key=str)}, this version reads {VERSIONS}")
    # an empty file has no values to disagree; the grid check then shows it as a gap
    for name, value in file.expected.items():
        if other := [found for found in pc.unique(table[name]).to_pylist() if found != value]:
            raise fault(path, f"has {name} {'empty' if other[0] is None else other[0]}, expected {value}")
    optional = file.may_be_empty
    holes = [name for name in RECORD_COLUMNS if name in there and name not in optional and table[name].null_count]
    if holes:
        raise fault(path, f"has empty values in {', '.join(holes)}")
    return table


def fault(path: Path, what: str) -> UserError:
    """All faults of a run have one fix."""
    return UserError(f"{path} {what}: delete {path.parent} and run the suite again")


def _first_line(error: Exception) -> str:
    """What an error says, in one line."""
    return (str(error).splitlines() or [type(error).__name__])[0]
