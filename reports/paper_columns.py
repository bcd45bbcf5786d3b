"""The paper's numbers beside ours: Tables 1, 2 and 9 as columns of their own."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from experiments.paper import DATASET_LABELS, DATASETS, TABLE_1, TABLE_2, TABLE_9
from reports.grid import Grid
from reports.load import SuiteResults
from reports.strata import ALL, LARGE, SMALL
from reports.tables import MISSING, Column, Table

# the paper's names of our methods; {} is the backbone
TABLE_1_ROWS = {
    "nnunet": "nnU-Net",
    "biomedparse": "BiomedParse",
    "sam": "SAM+{} (text)",
    "sam2": "SAM2+{} (text)",
    "seem": "SEEM+{} (text)",
    "boltzformer": "BoltzFormer+{}",
}
TABLE_2_NAMES = {"sam": "SAM", "sam2": "SAM2", "seem": "SEEM", "boltzformer": "BoltzFormer"}
TABLE_2_GROUPS = {SMALL.label: "small", LARGE.label: "large", ALL.label: "all"}
REFERENCE_BACKBONE = "Hiera-S"  # the one on which the paper has every decoder, and its Table 2
ITS_OWN = "Paper: as published, on its data and at its scale"


def paper_row(method: str, backbone: str) -> str | None:
    """The row of Table 1 to set beside a method on a backbone (its label, such as "Hiera-BP"), None if there is none.

    On a backbone that the paper lacks it is the row on Hiera-S, where the paper has every decoder: the paper's
    numbers then differ by the decoder alone, as ours do.
    """
    if method not in TABLE_1_ROWS:
        return None
    name = TABLE_1_ROWS[method].format(backbone.replace("Focal-L", "FocalL"))
    return name if name in TABLE_1 else TABLE_1_ROWS[method].format(REFERENCE_BACKBONE)


def main_table_beside_paper(table: Table, results: SuiteResults, grid: Grid) -> Table:
    """Table 1: after each data set of the paper a column with its number, and which row of it that is; after Avg. only
    where all seven are there, for it averages over these.

    As it was where none of the data sets is the paper's.
    """
    found = [paper_row(row.method, results.backbones.get(row.backbone, row.backbone)) for row in grid.rows]
    if not any(found) or not any(dataset in table.frame for dataset in DATASETS):
        return table
    frame = table.frame.assign(paper_row=[name or MISSING for name in found])
    extra = {}
    whole = set(DATASETS) <= set(frame)
    for place, key in enumerate(("average", *DATASETS)):
        if key in frame and (whole or key != "average"):
            frame[f"paper {key}"] = [TABLE_1[name][place] if name else np.nan for name in found]
            # a wide table is scrolled, so each says whose number it is
            header = "Paper" if key == "average" else f"Paper, {DATASET_LABELS.get(key, key)}"
            extra[key] = [Column(f"paper {key}", header, 1, narrow=key == "average")]
    extra["method"] = [Column("paper_row", "Row of the paper", narrow=False)]
    note = f"{ITS_OWN}, of the row named; on a backbone it lacks, its row on {REFERENCE_BACKBONE}."
    return _insert(table, frame, extra, note)


def by_size_beside_paper(table: Table, grid: Grid) -> Table:
    """Table 2: after each method of the paper a column with its Dice and standard error, by size group; only where all
    seven data sets are there, for it averages over these.
    """
    if not set(DATASETS) <= set(grid.datasets):
        return table
    frame, extra = table.frame.copy(), {}
    for row in grid.rows:
        if row.method not in TABLE_2_NAMES:
            continue
        keys = [(TABLE_2_GROUPS.get(area), TABLE_2_NAMES[row.method]) for area in frame["area"]]
        pairs = np.array([TABLE_2.get(key, (np.nan, np.nan)) for key in keys])
        key = f"paper {row.label}"
        frame[key], frame[f"{key} SE"] = pairs.T
        extra[row.label] = [Column(key, f"Paper, {row.label}", 1, beside=f"{key} SE", narrow=False)]
    return (
        _insert(table, frame, extra, f"{ITS_OWN}, on {REFERENCE_BACKBONE}; it has no finer bins.") if extra else table
    )


def size_table_beside_paper(table: Table) -> Table:
    """Table 9: after each number a column with the paper's, for its data sets and objects."""
    keys = list(zip(table.frame["dataset"], table.frame["object"], strict=True))
    if not any(key in TABLE_9 for key in keys):
        return table
    frame, extra = table.frame.copy(), {}
    for place, column in enumerate(table.columns[2:]):
        frame[f"paper {column.key}"] = [TABLE_9[key][place] if key in TABLE_9 else np.nan for key in keys]
        extra[column.key] = [Column(f"paper {column.key}", "Paper", column.digits)]
    return _insert(table, frame, extra, f"{ITS_OWN}.")


def _insert(table: Table, frame, extra: dict[str, list[Column]], note: str) -> Table:
    """The table with each key's extra columns right after it; what is bold stays as it was."""
    columns = tuple(shown for column in table.columns for shown in (column, *extra.get(column.key, ())))
    return replace(table, frame=frame, columns=columns, caption=f"{table.caption} {note}")
