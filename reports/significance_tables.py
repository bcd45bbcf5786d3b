"""The tables of `reports.significance`: paired differences with their tests, ranks, and seeds."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pandas as pd

from reports.aggregate import Scores
from reports.grid import Grid
from reports.load import SuiteResults
from reports.significance import ALPHA, Ranking, paired_tests, patient_means, rank_stability, seed_components
from reports.statistics import DRAWS, Bootstrap, Spread, differences, pooled_spread, rows_by_seeds
from reports.strata import ALL, GROUPS, SMALL, members
from reports.tables import Column, Table

TESTED = {"all": ALL, "small": SMALL}
UNLIKE = ("layers", "size")  # ablations whose rows may move more from seed to seed, or less, than the others do


def difference_table(
    results: SuiteResults, grid: Grid, scores: Scores, bootstrap: Bootstrap, by_seed: np.ndarray
) -> Table:
    """Paired differences to the reference method with interval, test and effect, on all objects and on small ones;
    by_seed: (S, G, R) of `seed_scores` over GROUPS.
    """
    inside = members(scores.cases["area_pct"], GROUPS)
    names = {name: GROUPS.index(group) for name, group in TESTED.items()}
    means = {name: patient_means(scores, inside[:, place]) for name, place in names.items()}
    columns = [Column("label", "Method"), Column("reference", "Reference")]
    for name in names:
        columns.append(Column(name, f"{name.capitalize()} objects", 1))
        columns += [Column(f"{name}_{end}", f"{end} ({name})", 1) for end in ("low", "high")]
        columns += [Column(f"{name}_p", f"p ({name})", 3, least=0.001), Column(f"{name}_effect", f"effect ({name})", 2)]
        columns.append(Column(f"{name}_patients", f"patients ({name})", 0))
    pooled = {name: suite_spread(results, grid, by_seed[:, place]) for name, place in names.items()}
    unlike = unlike_rows(results)
    frame = differences(bootstrap, grid.rows, names, results.reference, by_seed, pooled, unlike)
    tests = paired_tests(means, grid.rows, results.reference)  # the same pairs in the same order
    frame = pd.concat([frame, tests.drop(columns=["label", "reference"], errors="ignore")], axis=1)
    seeds = seed_words(scores, pooled["all"] is not None)
    caption = (
        "Difference in points of Dice (method minus reference, on the same backbone where the reference has one) with "
        f"its 95% interval: {DRAWS:,} bootstrap draws of patients within data sets, the same for both methods"
        f"{seeds}. "
        "Weighting as in the table by size. p: Wilcoxon's signed-rank test on the patients' mean Dice, two-sided, "
        "corrected by Holm over all p of this table; it holds no choice of seeds. Effect: matched-pairs rank-biserial "
        "correlation of the same, from -1 to 1 (all patients better). Interval and p can disagree: the one is of the "
        "weighted mean, uncorrected, and may hold seeds, the other of the patients' ranks."
    )
    frame = frame.reindex(columns=[column.key for column in columns])
    return Table("differences", "Paired differences", caption, frame, tuple(columns), results.phantom)


def suite_spread(results: SuiteResults, grid: Grid, by_seed: np.ndarray) -> Spread | None:
    """The spread over seeds of a difference, pooled over the rows of a suite of ablations, which are variants of one
    method, without `unlike_rows`, from (S, R) scores; None for a suite of methods: each has a spread of its own.
    """
    return pooled_spread(by_seed[:, _pooled_rows(results, grid)]) if results.ablations else None


def decoder_spread(places: Sequence[int], grid: Grid, by_seed: np.ndarray) -> Spread | None:
    """The spread over seeds of a difference, pooled over the decoders of a suite of methods (the rows on a backbone,
    which one recipe trains), from (S, R) scores; None where a row at `places` is none, or no other decoder is there.
    """
    decoders = np.flatnonzero([row.backbone != "-" for row in grid.rows])
    return pooled_spread(by_seed[:, decoders]) if len(decoders) > 2 and np.isin(places, decoders).all() else None


def unlike_rows(results: SuiteResults) -> set[str]:
    """The rows of a suite of ablations whose spread over seeds is not pooled with the others'."""
    return {row for name in UNLIKE for row in results.ablations.get(name, {}).values()} - {results.reference}


def _pooled_rows(results: SuiteResults, grid: Grid) -> list[bool]:
    """(R,) of a suite of ablations: the rows that are not `unlike_rows`."""
    unlike = unlike_rows(results)
    return [row.method not in unlike for row in grid.rows]


def chance_words(results: SuiteResults, grid: Grid, by_seed: np.ndarray) -> str:
    """Whether the rows of a suite of ablations differ by more than chance in training, from (S, R) scores; empty for a
    suite of methods and with one seed.
    """
    found = rows_by_seeds(by_seed[:, _pooled_rows(results, grid)]) if results.ablations else None
    if found is None or np.isnan(found.p):
        return ""
    left_out = f" but those of {' and '.join(UNLIKE)}" if unlike_rows(results) else ""
    told = "differ more than trainings of one row do" if found.p < ALPHA else "are not told from trainings of one row"
    between, rest = found.freedom
    return (
        f" On these patients the {found.rows} rows{left_out} {told}: "
        f"F({between}, {rest}) = {found.f:.2f} of rows by seeds, p = {found.p:.2g}; beside what a seed does to all of "
        f"them, a training varies by {found.sd:.1f} points (standard deviation)."
    )


def seed_words(scores: Scores, pooled: bool) -> str:
    """What the caption of an interval says of seeds; pooled: their spread is `suite_spread`'s."""
    if len(scores.by_seed) < 2:
        return "; one seed, so it holds no choice of seeds"
    of = f", pooled over all rows but those of {' and '.join(UNLIKE)}, which have their own" if pooled else ""
    seeds = f"{len(scores.by_seed)} seeds, where both rows have them"
    return f", and the spread of the difference over {seeds} (Student's t{of})"


def rank_table(results: SuiteResults, grid: Grid, bootstrap: Bootstrap, ranking: Ranking) -> Table:
    """Who is first, and how sure that is: over redrawn patients, and by Friedman's and Nemenyi's tests."""
    frame = rank_stability(bootstrap, grid.rows, GROUPS.index(ALL))
    labels = frame["label"].tolist()
    frame.loc[ranking.places, "mean_rank"] = ranking.ranks
    frame["alike"] = "-"
    for place, p in zip(ranking.places, ranking.pairs, strict=True):
        alike = ranking.places[p > ALPHA]
        others = [labels[other] for other in alike if other != place]
        frame.loc[place, "alike"] = ", ".join(others) or "none"
    columns = (
        Column("label", "Method"),
        Column("rank", "Rank by Avg.", 0),
        Column("rank_low", "low", 0),
        Column("rank_high", "high", 0),
        Column("first", "Best in % of draws", 1),
        Column("mean_rank", "Mean rank over patients", 2),
        Column("alike", "Not told apart from"),
    )
    friedman = f"Friedman's test: p = {ranking.p:.2g}. " if ranking.p == ranking.p else ""
    caption = (
        f"Rank by the average over data sets with its 95% interval over {DRAWS:,} bootstrap draws of patients, and how "
        f"often a method is best in them. Mean rank of the mean Dice of {ranking.patients:,} patients. {friedman}"
        "Not told apart: Nemenyi's test of all pairs, p above 0.05 (with two methods: no such test)."
    )
    return Table("ranks", "Ranks", caption, frame, columns, results.phantom)


def seed_table(results: SuiteResults, grid: Grid, bootstrap: Bootstrap, by_seed: np.ndarray) -> Table:
    """The average over data sets with both its uncertainties: which patients, and which seeds; by_seed: (S, G, R)."""
    place = GROUPS.index(ALL)
    frame = seed_components(by_seed[:, place].T, bootstrap.standard_error[place])
    frame.insert(0, "label", pd.Series([row.label for row in grid.rows], dtype=object))
    columns = (
        Column("label", "Method"),
        Column("mean", "Avg.", 1),
        Column("seeds", "Seeds", 0),
        Column("sd", "SD over seeds", 2),
        Column("patient_se", "SE, patients", 2),
        Column("se", "SE, both", 2),
        Column("low", "low", 1),
        Column("high", "high", 1),
    )
    caption = (
        "Average over data sets, mean over seeds. SE, both: square root of the squared standard error over patients "
        "(bootstrap) plus the squared SD over seeds divided by their number. Interval: 95%, Student's t. With one seed "
        f"there is no telling what another seed would give.{chance_words(results, grid, by_seed[:, place])}"
    )
    return Table("seeds", "Patients and seeds", caption, frame, columns, results.phantom)
