"""Published per-mask results as rows of a table: `bench import-results`.

BiomedParse's authors publish <object>_metrics.csv for each test set: a mask file, its area in px of 1024 x 1024, and
the Dice of several methods on it. Counts are not published, so the records carry the Dice itself.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from pathlib import Path

import pandas as pd

from bench.data.official import patient_of
from bench.data.prompts import SITES, canonical
from bench.data.stats import PUBLISHED_SIDE, find_published, published_name
from bench.errors import UserError, unknown_name
from bench.external import files_hash, list_rows, new_suite, row_spec, same_suite, write_row
from bench.locks import locked
from bench.records import SCHEMA_VERSION
from bench.spec import Origin
from bench.suite_folder import read_suite
from reports.grid import CASE, TRUTH, check_grid
from reports.load import SuiteResults, load_suite

MARK = "(published)"
# column of the files -> row
METHODS_OF_COLUMNS = {
    "dice": "BiomedParse v1",
    "medsam_dice": "MedSAM + box",
    "sam_dice": "SAM + box",
    "dino_sam_dice": "Grounding DINO + SAM",
    "dino_medsam_dice": "Grounding DINO + MedSAM",
}
ORACLE = {column: "prompted with the true object's bounding box" for column in ("medsam_dice", "sam_dice")}
DEFAULT = ("dice", "medsam_dice", "sam_dice", "dino_sam_dice")
MASK = ["dataset", "object", "image_id"]


def import_results(
    source: Path, folder: Path, *, into: bool, label: str | None, columns: Sequence[str] | None, command: str
) -> str:
    """Writes the columns of the files below `source` as rows into `folder`; what was done, in a line.

    `into`: if `folder` is a suite already, the rows join its cases. `label` names the first row. UserError: files that
    are not such results, and a suite that has other cases.
    """
    files = find_published(source)
    if not files:
        raise UserError(f"{source} holds no <object>_metrics.csv: name a folder of published per-mask results")
    labels = choose_columns(files, columns, label)
    published = read_published(files, list(labels))
    digest = files_hash(source, files)
    notes: list[str] = []
    with locked(folder):
        if into and (folder / "suite.json").exists():
            published, notes = join(published, load_suite(folder))
            suite = read_suite(folder)
        else:
            data = {published_name(file.parent): file.parent for file in files}
            new = new_suite("published", "Published results", command, cases_hash(published), data, phantom=False)
            suite = same_suite(folder, new)
        rows = {}
        for column, name in labels.items():
            origin = Origin(kind="published", source=source.resolve().name, sha256=digest, column=column)
            spec = rows[name] = row_spec(name, origin, suite)
            records = published[[*MASK, "patient", "prompt", "area_px", "height", "width"]].assign(
                schema_version=SCHEMA_VERSION,
                spec_hash=spec.hash,
                split_hash=spec.split_hash,
                method=spec.row,
                backbone=spec.backbone,
                seed=spec.seed,
                dice=published[column],
            )
            write_row(folder, spec, records, notes=[*notes, *([ORACLE[column]] if column in ORACLE else [])])
        list_rows(folder, suite, rows)
    sets = published["dataset"].nunique()
    return f"{len(published):,} masks of {sets} data set{'s' * (sets != 1)}: {', '.join(rows)}"


def choose_columns(files: Sequence[Path], columns: Sequence[str] | None, label: str | None) -> dict[str, str]:
    """Column -> label of its row, `MARK` at the end; by default those of DEFAULT that every file has."""
    headers = {file: _header(file) for file in files}
    for column in columns or ():
        if column not in METHODS_OF_COLUMNS:
            raise unknown_name("column", column, METHODS_OF_COLUMNS)
    wanted = tuple(columns) if columns else tuple(c for c in DEFAULT if all(c in names for names in headers.values()))
    for file, names in headers.items():
        lacking = [column for column in ("file", "area", *(wanted or ("dice",))) if column not in names]
        if lacking:
            raise UserError(f"{file} has no column '{lacking[0]}': per-mask results need file, area and a Dice column")
    labels = [METHODS_OF_COLUMNS[column] for column in wanted]
    labels[0] = labels[0] if label is None else label.strip()
    marked = [name if name.endswith(MARK) else f"{name} {MARK}" for name in labels]
    if len(set(marked)) < len(marked):
        raise UserError(f"--as {label!r} names two rows: choose another name")
    return dict(zip(wanted, marked, strict=True))


def read_published(files: Sequence[Path], columns: Sequence[str]) -> pd.DataFrame:
    """One row per mask: MASK, patient (by the authors' file names), prompt, area_px, height, width, and `columns`.

    Dice are 0..1 as published, NaN where the file has none. UserError names the file and line that is wrong.
    """
    frames = []
    for file in files:
        name = file.name.removesuffix("_metrics.csv")
        ending = f"_{name}.png"
        try:
            table = pd.read_csv(file, usecols=["file", "area", *columns])
            numbers = table[["area", *columns]].astype("float64")
        except (OSError, ValueError) as error:  # pandas' errors of parsing are ValueErrors
            raise UserError(f"{file} cannot be read ({error}): fetch it again") from None
        area = numbers["area"]
        wrong = {
            f"is no mask of '{name}' (…{ending})": ~table["file"].astype(str).str.endswith(ending),
            "is there twice": table["file"].duplicated(),
            f"has an area that is no number of px of {PUBLISHED_SIDE} x {PUBLISHED_SIDE}": ~(
                area.between(1, PUBLISHED_SIDE**2) & (area % 1 == 0)
            ),
            **{
                f"has a {column} outside 0..1": ~(numbers[column].between(0, 1) | numbers[column].isna())
                for column in columns
            },
        }
        for what, lines in wrong.items():
            if lines.any():
                line = int(lines.to_numpy().argmax())
                raise UserError(f"{file} line {line + 2}: {table['file'][line]} {what}: mend it or take it out")
        dataset, label = published_name(file.parent), name.replace("+", " ")
        images = table["file"].str.removesuffix(ending)
        frames.append(
            pd.DataFrame(
                {
                    "dataset": dataset,
                    "object": label,
                    "image_id": images,
                    "patient": images.map(patient_of),
                    "prompt": canonical(dataset, label) if dataset in SITES else label,
                    "area_px": area.astype("int64"),
                    "height": PUBLISHED_SIDE,
                    "width": PUBLISHED_SIDE,
                    **{column: numbers[column] for column in columns},
                }
            )
        )
    return pd.concat(frames, ignore_index=True)


def join(published: pd.DataFrame, results: SuiteResults) -> tuple[pd.DataFrame, list[str]]:
    """The published results on the cases of a suite, with its patients and prompts, and notes on what was left out.

    Data sets that only one side has are left out (the suite's then show as gaps). UserError where a case of the suite
    was not published, or with another area or image size: they were not scored against the same truth.
    """
    refusal = f"{results.folder} cannot take these rows"
    fix = "leave --into out to have them in a folder of their own"
    if results.phantom:
        raise UserError(f"{refusal}: it was run on generated images; {fix}")
    cases = check_grid(results).cases
    if cases.empty:
        raise UserError(f"{refusal}: none of its runs is finished, so its cases are not known; {fix}")
    shared = sorted(set(cases["dataset"]) & set(published["dataset"]))
    if not shared:
        raise UserError(f"{refusal}: it has none of {', '.join(sorted(set(published['dataset'])))}; {fix}")
    cases = cases[cases["dataset"].isin(shared)]
    own = published.drop(columns=["patient", "prompt"])
    both = cases.merge(own, on=MASK, how="left", suffixes=("", "_published"))
    sizes = ["height", "width", "area_px"]
    for what, wrong in (
        ("not published", both["area_px_published"].isna()),
        *((f"published with another {size}", both[size] != both[f"{size}_published"]) for size in sizes),
    ):
        if wrong.any():
            first = both[wrong].iloc[0]
            where = f"{first['dataset']}/{first['image_id']} '{first['object']}'"
            count = f"{int(wrong.sum()):,} of its {len(both):,} masks"
            raise UserError(f"{refusal}: {count} are {what}, first {where}; {fix}")
    columns = [name for name in own if name not in (*MASK, *sizes)]
    found, count = len(cases[MASK].drop_duplicates()), int(published["dataset"].isin(shared).sum())
    notes = [f"on the {found:,} of {count:,} published masks that the suite has"] if found < count else []
    return both[[*CASE, *TRUTH, *columns]], notes


def cases_hash(published: pd.DataFrame) -> str:
    """The first 12 hex digits of a SHA-256 over data set, object, image and area of every mask: their split."""
    rows = published[[*MASK, "area_px"]].sort_values(MASK)
    return hashlib.sha256(rows.to_csv(index=False).encode()).hexdigest()[:12]


def _header(file: Path) -> set[str]:
    try:
        return set(pd.read_csv(file, nrows=0).columns)
    except (OSError, ValueError) as error:
        raise UserError(f"{file} cannot be read ({error}): fetch it again") from None
