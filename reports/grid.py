"""The grid check: every method x data set x object x image x prompt x seed is there exactly once, or it is a
gap."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pandas as pd

from bench.errors import UserError
from experiments.paper import DATASETS
from reports.load import SuiteResults

CASE = ["dataset", "object", "image_id", "prompt"]
RUN = ["method", "backbone", "seed"]
TRUTH = ["patient", "area_px", "height", "width"]  # of the case, so the same in every run
GAP_COLUMNS = [*RUN, "dataset", "missing", "expected", "reason"]


@dataclass(frozen=True)
class Row:
    """One row of the main table: a method on a backbone, with all its seeds.

    `gap` is what stands where a number is missing: "failed" if one of its runs failed, else "-".
    """

    method: str
    backbone: str
    label: str
    seeds: tuple[int, ...]
    gap: str


@dataclass(frozen=True)
class Grid:
    """C cases times R rows.

    cases: frame with CASE and TRUTH, one row per case, sorted; case_code, row_code: (n,) int64 per record,
    its place in the grid; present: (C, R) bool, true where every seed of the row has the case; gaps: frame
    with GAP_COLUMNS, one row per run and data set that lacks cases; datasets: the columns of the main table,
    those without any case too.
    """

    cases: pd.DataFrame
    rows: tuple[Row, ...]
    datasets: tuple[str, ...]
    case_code: np.ndarray
    row_code: np.ndarray
    present: np.ndarray
    gaps: pd.DataFrame


def check_grid(results: SuiteResults) -> Grid:
    """Places every record in the grid. The expected cases are those that any finished run has.

    Raises UserError for a record that is there twice, and for two runs that disagree on a case's patient,
    area or image size (they were not scored against the same truth).
    """
    records = results.records
    case_code = _codes(records, CASE)
    first = _first_of_each(case_code)
    cases = records[[*CASE, *TRUTH]].iloc[first].reset_index(drop=True)
    cases = cases.astype(dict.fromkeys((*CASE, "patient"), "string"))
    rows = _rows(results)
    row_code = _row_codes(records, rows)
    _refuse_duplicates(records, case_code, row_code)
    _refuse_disagreement(records, case_code, first)
    found = np.bincount(case_code * len(rows) + row_code, minlength=len(cases) * len(rows))
    present = found.reshape(len(cases), len(rows)) == np.array([len(row.seeds) for row in rows])
    return Grid(
        cases=cases,
        rows=rows,
        datasets=dataset_order({*results.data, *cases["dataset"]}),
        case_code=case_code,
        row_code=row_code,
        present=present,
        gaps=_gaps(results, cases),
    )


def dataset_order(names: set[str]) -> tuple[str, ...]:
    """The paper's data sets in its order, then the others alphabetically."""
    return (*(name for name in DATASETS if name in names), *sorted(names - set(DATASETS)))


def _rows(results: SuiteResults) -> tuple[Row, ...]:
    """Methods on backbones in the order of the suite's runs."""
    runs: dict[tuple[str, str], list] = {}
    for run in results.runs:
        runs.setdefault((run.method, run.backbone), []).append(run)
    return tuple(
        Row(
            method=method,
            backbone=backbone,
            label=results.label(method, backbone),
            seeds=tuple(run.seed for run in group),
            gap="failed" if any(run.state == "failed" for run in group) else "-",
        )
        for (method, backbone), group in runs.items()
    )


def _codes(records: pd.DataFrame, columns: list[str]) -> np.ndarray:
    """(n,) int64: the number of each record's group, groups in the order of their values."""
    return records.groupby(columns, sort=True, observed=True).ngroup().to_numpy(dtype=np.int64)


def _first_of_each(codes: np.ndarray) -> np.ndarray:
    """Where each of the codes 0 .. m - 1 stands first: (n,) -> (m,) int64."""
    first = np.empty(codes.max(initial=-1) + 1, dtype=np.int64)
    first[codes[::-1]] = np.arange(len(codes) - 1, -1, -1)
    return first


def _row_codes(records: pd.DataFrame, rows: tuple[Row, ...]) -> np.ndarray:
    """(n,) int64: the place in `rows` of each record's row."""
    codes = _codes(records, ["method", "backbone"])
    places = {(row.method, row.backbone): place for place, row in enumerate(rows)}
    pairs = records[["method", "backbone"]].iloc[_first_of_each(codes)].itertuples(index=False, name=None)
    return np.array([places[pair] for pair in pairs], dtype=np.int64)[codes]


def _refuse_duplicates(records: pd.DataFrame, case_code: np.ndarray, row_code: np.ndarray) -> None:
    seeds, seed_code = np.unique(records["seed"].to_numpy(), return_inverse=True)
    run_code = row_code * len(seeds) + seed_code
    if np.bincount(case_code * (run_code.max(initial=0) + 1) + run_code).max(initial=0) < 2:
        return
    twice = records.duplicated([*RUN, *CASE])
    first = records.loc[twice].iloc[0]
    raise UserError(
        f"{int(twice.sum())} records are there twice, first {first['method']} seed {first['seed']} on "
        f"{first['dataset']}/{first['image_id']} '{first['object']}' ('{first['prompt']}'): "
        "delete the run's folder and run the suite again"
    )


def _refuse_disagreement(records: pd.DataFrame, case_code: np.ndarray, first: np.ndarray) -> None:
    for field in TRUTH:
        values = _codes(records, [field]) if field == "patient" else records[field].to_numpy()
        differs = values != values[first][case_code]
        if differs.any():
            other = records.iloc[int(differs.argmax())]
            one = records.iloc[first[case_code[int(differs.argmax())]]]
            raise UserError(
                f"{one['method']} and {other['method']} disagree on {field} of "
                f"{one['dataset']}/{one['image_id']} '{one['object']}' ({one[field]} and "
                f"{other[field]}): they were not scored against the same data; delete their run folders and run "
                "the suite again"
            )


def _gaps(results: SuiteResults, cases: pd.DataFrame) -> pd.DataFrame:
    """What each run lacks, data set by data set."""
    datasets = dataset_order({*results.data, *cases["dataset"]})
    expected = cases["dataset"].value_counts()
    found = results.records.groupby([*RUN, "dataset"], observed=True).size()
    reasons = {
        "finished": "no records",
        "running": "still running",
        "interrupted": "interrupted",
        "missing": "not run",
    }
    gaps = []
    for run in results.runs:
        for dataset in datasets:
            wanted = int(expected.get(dataset, 0))
            missing = wanted - int(found.get((run.method, run.backbone, run.seed, dataset), 0))
            if missing or not wanted:
                if run.state == "left out":
                    reason = run.error
                else:
                    reason = reasons.get(run.state) or f"failed: {run.error or 'no reason given'}"
                gaps.append((run.method, run.backbone, run.seed, dataset, missing, wanted, reason))
    return pd.DataFrame(gaps, columns=GAP_COLUMNS)
