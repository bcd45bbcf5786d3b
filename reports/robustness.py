"""How much the Dice of a mask changes when its object is asked for in other words (`bench phrasings`)."""

from __future__ import annotations

import numpy as np
import pandas as pd

from reports.aggregate import Scores, record_dice
from reports.grid import CASE, Grid
from reports.load import SuiteResults, load_phrasings
from reports.statistics import cluster_bootstrap
from reports.tables import Column, Table

MOVED = 10.0  # points of Dice; a mask that moves by more is counted
LEAST = 5  # masks; a phrasing asked of fewer is not called the worst
ROW = ["method", "backbone"]
MASK = ["dataset", "object", "image_id"]
PHRASE = ["dataset", "object", "prompt"]
SPREAD = ("first", "mean", "sd", "range", "moved")


def prompt_tables(results: SuiteResults, grid: Grid) -> list[Table]:
    """`prompts`, a line per method, and `phrasings`, a line per phrasing; none where no mask was asked for in several
    phrasings.
    """
    records = several_phrasings(load_phrasings(results), grid)
    if records.empty:
        return []
    return [prompt_table(results, grid, records), phrasing_table(results, grid, records)]


def several_phrasings(records: pd.DataFrame, grid: Grid) -> pd.DataFrame:
    """The records of the masks with a target that a run was asked for in two phrasings or more.

    Columns method, backbone, seed, dataset, object, image_id, patient, prompt, dice (percent), first (bool: by the
    phrasing of the tables) and change (points of Dice from that phrasing to this).
    """
    records = records.loc[(records["area_px"] > 0).to_numpy()]
    frame = records[[*ROW, "seed", *MASK, "patient", "prompt"]].assign(dice=record_dice(records))
    frame = frame.astype(dict.fromkeys((*ROW, *MASK, "patient", "prompt"), "string"))
    frame["first"] = pd.MultiIndex.from_frame(frame[CASE]).isin(pd.MultiIndex.from_frame(grid.cases[CASE]))
    masks = frame.groupby([*ROW, "seed", *MASK])
    frame["change"] = frame["dice"] - frame["dice"].where(frame["first"]).groupby(masks.ngroup()).transform("mean")
    return frame[masks["dice"].transform("size") > 1]


def spreads(records: pd.DataFrame) -> pd.DataFrame:
    """Of every row and mask, in points of Dice and averaged over seeds: columns SPREAD, indexed by ROW, MASK, patient.

    first: Dice by the phrasing of the tables; mean, sd (n - 1) and range (highest less lowest) over all phrasings;
    moved: 100 where the range is above MOVED, else 0.
    """
    dice = records.assign(first=records["dice"].where(records["first"]))
    over_phrasings = dice.groupby([*ROW, "seed", *MASK, "patient"])
    spread = over_phrasings.agg(
        first=("first", "mean"), mean=("dice", "mean"), sd=("dice", "std"), low=("dice", "min"), high=("dice", "max")
    )
    spread["range"] = spread["high"] - spread["low"]
    spread["moved"] = 100.0 * (spread["range"] > MOVED)
    return spread[list(SPREAD)].groupby([*ROW, *MASK, "patient"]).mean()


def prompt_table(results: SuiteResults, grid: Grid, records: pd.DataFrame) -> Table:
    """The spread of Dice over the phrasings of a mask, method by method, and the phrasing that costs most."""
    spread = spreads(records).unstack(ROW)  # masks x (what, method, backbone)
    values = spread.to_numpy()
    there = np.isfinite(values)
    none = np.zeros(values.shape[1])
    cases = spread.index.to_frame(index=False)
    scores = Scores(cases, values, values[None], there, there.all(axis=0), none, none)
    bootstrap = cluster_bootstrap(scores, np.ones((len(values), 1), bool))
    estimate = pd.Series(bootstrap.estimate[0], spread.columns)
    error = pd.Series(bootstrap.standard_error[0], spread.columns)
    lines = []
    for row in grid.rows:
        mine = records[(records["method"] == row.method) & (records["backbone"] == row.backbone)]
        if mine.empty:
            continue
        sizes = {"objects": PHRASE[:2], "phrasings": PHRASE, "masks": MASK}
        line: dict[str, object] = {"method": row.label}
        line |= {name: len(mine[columns].drop_duplicates()) for name, columns in sizes.items()}
        for name in SPREAD:
            line |= {
                name: estimate[name, row.method, row.backbone],
                f"{name} SE": error[name, row.method, row.backbone],
            }
        lines.append(line | _worst(mine))
    columns = (
        Column("method", "Method"),
        Column("objects", "Objects", 0, narrow=False),
        Column("phrasings", "Phrasings", 0, narrow=False),
        Column("masks", "Masks", 0, narrow=False),
        Column("first", "First phrasing (SE)", 1, beside="first SE"),
        Column("mean", "All phrasings (SE)", 1, beside="mean SE", narrow=False),
        Column("sd", "SD (SE)", 1, beside="sd SE"),
        Column("range", "Range (SE)", 1, beside="range SE"),
        Column("moved", f"Moved >{MOVED:g}, % (SE)", 1, beside="moved SE"),
        Column("worst", "Worst phrasing"),
        Column("worst_dice", "Worst, Dice", 1),
        Column("worst_first", "First there, Dice", 1, narrow=False),
    )
    caption = (
        "The same test masks asked for in all phrasings of their object. Mean Dice in percent by the first phrasing, "
        "which all other tables use, and over all; mean over masks of the standard deviation and of the range of a "
        f"mask's Dice over its phrasings, in points; share of masks whose range is above {MOVED:g} points. Unweighted "
        "over data sets, each seed's spread first and then their mean, standard errors over patients. Worst: of the "
        f"phrasings asked of at least {LEAST} masks the one that loses most Dice against the first on the same masks. "
        "A model that does not read its prompt has a spread of 0, too."
    )
    return Table("prompts", "Prompt robustness", caption, pd.DataFrame(lines), columns, results.phantom)


def phrasing_table(results: SuiteResults, grid: Grid, records: pd.DataFrame) -> Table:
    """Mean Dice of every phrasing of every object, method by method."""
    means = records.groupby([*PHRASE, *ROW])["dice"].mean().unstack(ROW)
    masks = records.groupby(PHRASE)
    frame = means.index.to_frame(index=False)
    frame["first"] = np.where(masks["first"].any().reindex(means.index), "yes", "")
    frame["support"] = (
        records.drop_duplicates([*PHRASE, "image_id"]).groupby(PHRASE).size().reindex(means.index).to_numpy()
    )
    asked = [row for row in grid.rows if (row.method, row.backbone) in means.columns]
    for row in asked:
        frame[row.label] = means[row.method, row.backbone].to_numpy()
    order = ["dataset", "object", "first", "prompt"]
    frame = frame.sort_values(order, ascending=[True, True, False, True], ignore_index=True)
    columns = (
        Column("dataset", "Data set"),
        Column("object", "Object"),
        Column("prompt", "Phrasing"),
        Column("first", "First"),
        Column("support", "Masks", 0),
        *(Column(row.label, row.label, 1, heat=True) for row in asked),
    )
    caption = (
        "Mean Dice in percent over the masks asked for by each phrasing. First: the one that all other tables use."
    )
    return Table("phrasings", "Dice by phrasing", caption, frame, columns, results.phantom)


def _worst(records: pd.DataFrame) -> dict[str, object]:
    """The phrasing of one row's records that loses most against the first one, with the Dice of both; "-" without."""
    others = records[~records["first"]].assign(before=lambda frame: frame["dice"] - frame["change"])
    by_phrase = others.groupby(PHRASE)
    means = by_phrase[["dice", "change", "before"]].mean()[by_phrase["image_id"].nunique() >= LEAST]
    if means["change"].isna().all():
        return {"worst": "-", "worst_dice": np.nan, "worst_first": np.nan}
    dataset, _, prompt = worst = means["change"].idxmin()
    return {
        "worst": f"{prompt} ({dataset})",
        "worst_dice": means.loc[worst, "dice"],
        "worst_first": means.loc[worst, "before"],
    }
