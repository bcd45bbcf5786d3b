"""The instance record: one row per (image, prompt). Counts only; every score is derived in `reports`.

Published results have no counts: there tp, fp and fn are null, and `dice` holds the number as published.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from bench.atomic import write_file

if TYPE_CHECKING:
    import pandas as pd

SCHEMA_VERSION = 2
READABLE_VERSIONS = (1, 2)  # 1 has none of ADDED_COLUMNS
PHRASINGS_FILE = "phrasings.parquet"  # records of a run's test masks, asked for in other words (`bench phrasings`)

# column -> dtype. Ids first, then counts in pixels of the original image.
RECORD_COLUMNS = {
    "schema_version": "int16",
    "spec_hash": "string",
    "split_hash": "string",
    "method": "string",
    "backbone": "string",
    "seed": "int64",
    "dataset": "string",
    "object": "string",
    "image_id": "string",
    "patient": "string",
    "prompt": "string",
    "tp": "Int64",  # tp, fp, fn: null where only a Dice was published
    "fp": "Int64",
    "fn": "Int64",
    "dice": "float64",  # 0..1, as published; null where there are counts
    "area_px": "int64",  # tp + fn, the object's
    "height": "int32",
    "width": "int32",
    "seconds": "float64",  # prediction of this prompt, image features shared among the image's prompts
    "confidence": "float64",  # mean probability over the mask, the highest where it is empty; null where there is none
    "nsd_1": "float64",  # 0..1; these and hd95 (px) as in bench.metrics.surfaces, null where not defined
    "nsd_2": "float64",
    "nsd_4": "float64",
    "hd95": "float64",
    "lesions": "Int32",  # connected parts of the truth, and how many are touched; null where only a Dice was published
    "found": "Int32",
    "detections": "Int32",  # connected parts of the prediction, and how many touch the truth
    "hits": "Int32",
}
ADDED_COLUMNS = ("dice", "confidence", "nsd_1", "nsd_2", "nsd_4", "hd95", "lesions", "found", "detections", "hits")


def write_table(rows: Sequence[dict] | pd.DataFrame, path: Path, columns: dict[str, str] | None = None) -> None:
    """Writes rows as parquet, whole or not at all. With `columns`, exactly these, in this order and dtype."""
    import pandas as pd

    frame = pd.DataFrame(rows)
    if columns is not None:
        frame = frame.reindex(columns=list(columns)).astype(columns)
    write_file(path, lambda handle: frame.to_parquet(handle, index=False))


def encode_mask(mask: np.ndarray) -> list[int]:
    """Run lengths of a (height, width) bool mask in row order, the first run being of zeros."""
    flat = np.ascontiguousarray(mask, dtype=bool).ravel()
    edges = np.flatnonzero(flat[1:] != flat[:-1]) + 1
    runs = np.diff(np.concatenate([[0], edges, [flat.size]])).tolist()
    return [0, *runs] if flat.size and flat[0] else runs


def decode_mask(runs: Sequence[int], height: int, width: int) -> np.ndarray:
    """The inverse of `encode_mask`: (height, width) bool."""
    values = np.arange(len(runs)) % 2 == 1
    return np.repeat(values, np.asarray(runs, dtype=np.int64)).reshape(height, width)
