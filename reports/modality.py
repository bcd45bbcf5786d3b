"""Dice by imaging modality: the data sets of the paper's suite by what they were taken with."""

from __future__ import annotations

import numpy as np
import pandas as pd

from bench.data.prompts import SITES
from reports.aggregate import Scores, only_cases
from reports.grid import Grid
from reports.load import SuiteResults
from reports.statistics import cluster_bootstrap
from reports.strata import ALL, SMALL, members
from reports.tables import Column, Table, highlight

MODALITIES = {dataset: modality for dataset, (modality, _, _) in SITES.items()}


def modalities_of(cases: pd.DataFrame) -> dict[str, np.ndarray]:
    """Modality -> (C,) bool, its cases; those of data sets that declare none (all but the suite's own) are in none."""
    declared = cases["dataset"].map(MODALITIES)
    return {name: (declared == name).to_numpy(dtype=bool) for name in sorted(declared.dropna().unique())}


def modality_table(results: SuiteResults, grid: Grid, scores: Scores) -> Table | None:
    """Mean Dice by modality, on all and on small objects; None where the cases are not of several modalities."""
    parts = modalities_of(scores.cases)
    if len(parts) < 2:
        return None
    lines = []
    for modality, inside in parts.items():
        part = only_cases(scores, inside)
        groups = members(part.cases["area_pct"], (ALL, SMALL))
        bootstrap = cluster_bootstrap(part, groups)
        names = ", ".join(dataset for dataset in grid.datasets if MODALITIES.get(dataset) == modality)
        for place, what in enumerate(("all", "small (<1%)")):
            line = {"modality": modality, "datasets": names, "area": what, "support": int(groups[:, place].sum())}
            for number, row in enumerate(grid.rows):
                estimate = bootstrap.estimate[place, number]
                line[row.label] = row.gap if np.isnan(estimate) else estimate
                line[f"{row.label} SE"] = bootstrap.standard_error[place, number]
            lines.append(line)
    columns = (
        Column("modality", "Modality"),
        Column("datasets", "Data sets", narrow=False),
        Column("area", "Object area"),
        Column("support", "Masks", 0),
        *(Column(row.label, row.label, 1, beside=f"{row.label} SE") for row in grid.rows),
    )
    caption = (
        "Mean Dice in percent (standard error over patients) of the data sets of one modality, weighted as in the "
        "table by size. Best in bold."
    )
    without = [dataset for dataset in grid.datasets if dataset not in MODALITIES]
    caption += f" No modality is known of {', '.join(without)}." if without else ""
    table = Table("by_modality", "Dice by modality", caption, pd.DataFrame(lines), columns, results.phantom)
    return highlight(table, "row", [row.label for row in grid.rows])
