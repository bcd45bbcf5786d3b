"""The paper's Tables 3 to 8 from the runs of `bench ablate`, and a figure of each: ours beside the paper's."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import pandas as pd

from bench.fairness import COSTS
from bench.spec import Ablation
from experiments.ablations import ABLATIONS
from experiments.paper import PAPER_DEFAULTS, TABLES_3_TO_8
from reports.aggregate import score, seed_scores
from reports.cost import cost_table
from reports.drawing import COLORS, Drawing, drawing_of
from reports.grid import Grid, check_grid
from reports.html import Picture
from reports.load import SuiteResults
from reports.significance import paired_tests, patient_means
from reports.significance_tables import UNLIKE, seed_words, suite_spread
from reports.statistics import DRAWS, Spread, cluster_bootstrap, differences
from reports.strata import ALL, GROUPS, LARGE, SMALL, members
from reports.tables import Column, Table, highlight

COST_KEYS = ["train_seconds", *COSTS]
SIZES = {"all": ALL, "small": SMALL, "large": LARGE}


def ablation_tables(
    results: SuiteResults, grid: Grid, by_seed: np.ndarray, paper: bool = True
) -> list[tuple[Table, Picture | None]]:
    """A table, and a figure where there is a difference to draw, of every ablation the suite has run.

    by_seed: (S, G, R) of `seed_scores`; paper: with the paper's numbers.
    """
    made = []
    spread = suite_spread(results, grid, by_seed[:, GROUPS.index(ALL)])
    for name, values in results.ablations.items():
        ablation, pooled = ABLATIONS[name], None if name in UNLIKE else spread
        table = ablation_table(ablation, values, results, results.reference or "", pooled, paper)
        drawing = ablation_figure(ablation, table)
        caption = "Difference to the profile's own value with its 95% interval."
        if "paper" in table.frame:
            caption += " Diamonds: the paper's, at its scale."
        made.append((table, Picture(table.name, table.title, caption, drawing) if drawing is not None else None))
    return made


def ablation_table(
    ablation: Ablation,
    values: Mapping[str, str],
    results: SuiteResults,
    own: str,
    spread: Spread | None = None,
    paper: bool = True,
) -> Table:
    """One line per value and backbone: Dice by size, difference to the profile's own value, the paper's, cost.

    values: what the table shows -> row of the suite ("boltzformer temperature=0.25"); own: the row of the profile's own
    values ("boltzformer"), which the others are compared with; spread: of a difference over seeds, pooled over the
    suite (`suite_spread`), None where each pair has its own; paper: with the paper's numbers. Gaps are shown as in
    every table.
    """
    part = results.only({*values.values(), own})
    grid = check_grid(part)
    scores = score(part.records, grid)
    inside = members(scores.cases["area_pct"], GROUPS)
    bootstrap = cluster_bootstrap(scores, inside)
    costs = cost_table(part, grid).frame  # a line per row of the grid
    everything = np.ones(len(scores.cases), bool)
    by_seed = seed_scores(scores, inside)
    alone = len(by_seed) < 2  # a test over patients would be read as one that holds seeds
    tests = paired_tests({"all": patient_means(scores, everything)}, grid.rows, own) if alone else pd.DataFrame()
    effects = differences(bootstrap, grid.rows, {"all": GROUPS.index(ALL)}, own, by_seed, {"all": spread})
    compared = effects.assign(p=tests.get("all_p")).set_index("label") if len(effects) else pd.DataFrame()
    beside = paper and ablation.table is not None
    own_value = next((value for value, row in values.items() if row == own), None)
    lines = []
    for backbone in dict.fromkeys(row.backbone for row in grid.rows):
        for value, name in values.items():
            place = next((p for p, row in enumerate(grid.rows) if (row.method, row.backbone) == (name, backbone)), None)
            if place is None:
                continue
            row = grid.rows[place]
            line: dict[str, object] = {"value": value, "backbone": results.backbones.get(backbone, backbone)}
            for key, group in SIZES.items():
                estimate = bootstrap.estimate[GROUPS.index(group), place]
                line[key] = row.gap if np.isnan(estimate) else estimate
                line[f"{key} SE"] = bootstrap.standard_error[GROUPS.index(group), place]
            if row.label in compared.index:
                found = compared.loc[row.label]
                line |= {
                    "difference": found["all"],
                    "low": found["all_low"],
                    "high": found["all_high"],
                    "p": found["p"],
                }
            line |= (_paper(ablation.name, value, own_value) if beside else {}) | costs.loc[place, COST_KEYS].to_dict()
            line["own"] = "yes" if name == own else ""
            lines.append(line)
    columns = [Column("value", ablation.title), Column("own", "own")]
    columns += [Column("backbone", "Backbone")] if len({line["backbone"] for line in lines}) > 1 else []
    columns += [Column(key, f"{group.label} (SE)", 1, beside=f"{key} SE") for key, group in SIZES.items()]
    columns += [Column("difference", "Difference", 1), Column("low", "low", 1), Column("high", "high", 1)]
    columns += [Column("p", "p", 3, least=0.001)] if alone else []
    if beside:
        columns += [
            Column("paper", "Paper (SE)", 1, beside="paper SE"),
            Column("paper_difference", "Paper's difference", 1),
        ]
    columns += [
        Column("train_seconds", "Training, s", 0, narrow=False),
        *(Column(key, text, 1, narrow=False) for key, text in COSTS.items()),
    ]
    keys = [key for column in columns for key in (column.key, column.beside) if key]
    seeds = seed_words(scores, spread is not None)
    caption = (
        "Mean Dice in percent by object size, weighted as in the table by size. Difference: to the profile's own "
        f"value ('own'), with its 95% interval ({DRAWS:,} bootstrap draws of patients{seeds})"
    )
    if alone:
        caption += (
            " and p of Wilcoxon's signed-rank test on patients, corrected by Holm over the values of this table; it "
            "holds no choice of seeds"
        )
    elif spread is None:
        caption += "; each pair's spread is its own, by which a few seeds hardly tell anything"
    caption += "."
    if beside:
        caption += f" Paper: its Table {ablation.table}, at its scale and on its data."
    frame = pd.DataFrame(lines).reindex(columns=keys)
    table = Table(
        f"ablation_{ablation.name}", f"Ablation: {ablation.title}", caption, frame, tuple(columns), results.phantom
    )
    return highlight(table, "column", list(SIZES))


def ablation_figure(ablation: Ablation, table: Table) -> Drawing | None:
    """The differences to the profile's own value, with 95% intervals, and of the paper's; None without any."""
    from matplotlib.figure import Figure

    frame = table.frame.drop_duplicates("value").reset_index(drop=True)  # the first backbone
    ours = pd.to_numeric(frame["difference"], errors="coerce").where(frame["own"] != "yes", 0.0)
    if not ours.drop(index=frame.index[frame["own"] == "yes"]).notna().any():
        return None
    figure = Figure(figsize=(6.4, 3.4), layout="constrained")
    axes = figure.add_subplot()
    axes.axhline(0, color="0.6", linewidth=0.8)
    places = np.arange(len(frame))
    spread = np.abs(frame[["low", "high"]].to_numpy(dtype=np.float64).T - ours.to_numpy())
    axes.errorbar(places - 0.06, ours, np.nan_to_num(spread), fmt="o", color=COLORS[0], capsize=3, label="here")
    if "paper_difference" in frame:
        axes.plot(places + 0.06, frame["paper_difference"], "D", color=COLORS[1], label="paper")
    axes.set_xticks(
        places, [f"{value}\n(own)" if own else value for value, own in zip(frame["value"], frame["own"], strict=True)]
    )
    axes.set_xlim(-0.5, len(frame) - 0.5)
    axes.set_ylabel("difference in Dice, points")
    axes.set_title(f"{ablation.title}{' (phantom data)' if table.phantom else ''}", fontsize=10)
    axes.grid(axis="y", alpha=0.25, linewidth=0.6)
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(frameon=False, fontsize=8)
    return drawing_of(figure)


def _paper(name: str, value: str, own: str | None) -> dict[str, float]:
    """The paper's number of a value, and its difference to our own value, to the paper's where it has not got ours."""
    if (name, value) not in TABLES_3_TO_8:
        return {}
    dice, error = TABLES_3_TO_8[name, value]
    against = TABLES_3_TO_8.get((name, own or ""), TABLES_3_TO_8[name, PAPER_DEFAULTS[name]])
    return {"paper": dice, "paper SE": error, "paper_difference": dice - against[0]}
