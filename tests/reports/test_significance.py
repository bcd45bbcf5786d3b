"""Tests and ranks against libraries called by hand and against simulations whose truth is known."""

import numpy as np
import pandas as pd
import pytest
from scipy import stats

from reports.aggregate import seed_scores
from reports.build import build_report
from reports.load import load_suite
from reports.significance import paired_tests, patient_means, rank_stability, ranking, seed_components
from reports.statistics import cluster_bootstrap, differences, effect_of, pooled_spread, rows_by_seeds
from reports.strata import ALL, GROUPS, SMALL, members


def records(build, random, effects, patients=30, datasets=("d", "e"), spread=12.0, noise=8.0):
    """Patients of unequal numbers of slices, Dice correlated within a patient and between methods."""
    rows = []
    for dataset in datasets:
        for patient in range(patients):
            hard = random.normal(0, spread)
            for index in range(random.integers(1, 5)):
                area = int(random.choice([60, 150]))
                for place, effect in enumerate(effects):
                    dice = np.clip(55 + hard + effect + random.normal(0, noise), 0, 100) / 100
                    tp = round(area * dice)
                    ids = {"dataset": dataset, "image_id": f"{patient}-{index}", "patient": f"{patient}"}
                    rows.append({**ids, "method": "abcdef"[place], "tp": tp, "fn": area - tp, "fp": area - tp})
    return build.frame(rows)


def all_objects(scores):
    return np.ones(len(scores.cases), bool)


def test_patients_means_by_hand(build):
    frame = records(build, np.random.default_rng(0), (0, 5), patients=4)
    _, scores = build.scores(frame)
    found = patient_means(scores, all_objects(scores))
    dice = 200 * frame["tp"] / (2 * frame["tp"] + frame["fp"] + frame["fn"])
    by_hand = dice.groupby([frame["dataset"], frame["patient"], frame["method"]]).mean().unstack()
    assert found.shape == (8, 2)
    np.testing.assert_allclose(found, by_hand.to_numpy(dtype=np.float64))


def test_a_case_without_dice_is_left_out_for_all_rows(build):
    rows = []
    for patient in "pq":
        for index, tps in enumerate([(5, 9), (0, 8)]):
            for method, tp in zip("ab", tps, strict=True):
                empty = patient == "p" and index == 1
                # a mask without truth: one method draws nothing there, the other something
                counts = {"tp": 0, "fn": 0, "fp": 0 if method == "a" else 3} if empty else {"tp": tp, "fn": 10 - tp}
                rows.append({"image_id": f"{patient}{index}", "patient": patient, "method": method, **counts})
    _, scores = build.scores(build.frame(rows))
    found = patient_means(scores, all_objects(scores))
    np.testing.assert_allclose(found[0], [100 * 10 / 15, 100 * 18 / 19])


def test_wilcoxon_holm_and_effect_by_hand(build):
    frame = records(build, np.random.default_rng(3), (0, 1, 6))
    grid, scores = build.scores(frame)
    inside = members(scores.cases["area_pct"])
    groups = {"all": patient_means(scores, inside[:, GROUPS.index(ALL)])}
    groups["small"] = patient_means(scores, inside[:, GROUPS.index(SMALL)])
    table = paired_tests(groups, grid.rows, "a")
    assert table["label"].tolist() == ["b", "c"] and set(table["reference"]) == {"a"}
    raw = []
    for name, means in groups.items():
        for place, row in ((1, 0), (2, 1)):
            difference = means[:, place] - means[:, 0]
            changed = difference[difference != 0]
            raw.append((stats.wilcoxon(changed).pvalue, table.loc[row, f"{name}_p"]))
            ranks = stats.rankdata(np.abs(changed))
            effect = (ranks[changed > 0].sum() - ranks[changed < 0].sum()) / ranks.sum()
            assert table.loc[row, f"{name}_effect"] == pytest.approx(effect)
            assert table.loc[row, f"{name}_patients"] == len(difference)
    raw.sort()
    highest = 0.0
    for place, (p, corrected) in enumerate(raw):  # Holm: the smallest times the number of tests, and so on
        highest = max(highest, min(1.0, p * (len(raw) - place)))
        assert corrected == pytest.approx(highest)
    assert table.loc[1, "all_p"] < 0.001 < table.loc[0, "all_p"]


def test_equal_methods_and_gaps_have_no_p(build):
    frame = records(build, np.random.default_rng(1), (0, 0, 0), patients=4)
    same = frame[frame["method"] == "a"]
    other = frame[(frame["method"] == "c") & (frame["dataset"] == "d")]
    pieces = [same, same.assign(method="b").astype({"method": "string"}), other]
    grid, scores = build.scores(build.frame([row for piece in pieces for row in piece.to_dict("records")]))
    table = paired_tests({"all": patient_means(scores, all_objects(scores))}, grid.rows)
    assert table["all_p"].isna().all() and table["all_patients"].tolist() == [8, 0]


def test_friedman_and_nemenyi_by_hand(build):
    _, scores = build.scores(records(build, np.random.default_rng(2), (0, 0, 9)))
    means = patient_means(scores, all_objects(scores))
    found = ranking(means)
    assert found.patients == 60 and found.places.tolist() == [0, 1, 2]
    assert found.p == pytest.approx(stats.friedmanchisquare(*means.T).pvalue)
    by_hand = np.array([stats.rankdata(-row) for row in means]).mean(axis=0)
    np.testing.assert_allclose(found.ranks, by_hand)
    # Nemenyi: the difference of mean ranks over its standard error is a studentised range of infinite freedom
    distance = abs(by_hand[0] - by_hand[2]) / np.sqrt(3 * 4 / (6 * 60))
    assert found.pairs[0, 2] == pytest.approx(stats.studentized_range.sf(distance * np.sqrt(2), 3, np.inf), rel=1e-3)
    assert found.pairs[0, 2] < 0.001 < found.pairs[0, 1]


def test_two_rows_have_ranks_but_no_friedman(build):
    _, scores = build.scores(records(build, np.random.default_rng(2), (0, 9)))
    found = ranking(patient_means(scores, all_objects(scores)))
    assert np.isnan(found.p) and found.ranks[1] < found.ranks[0]
    assert ranking(np.empty((0, 2))).patients == 0


def test_ranks_over_the_bootstrap(build):
    grid, scores = build.scores(records(build, np.random.default_rng(4), (0, 0.2, 15)))
    bootstrap = cluster_bootstrap(scores, members(scores.cases["area_pct"]), draws=500)
    place = GROUPS.index(ALL)
    table = rank_stability(bootstrap, grid.rows, place).set_index("label")
    assert table.loc["c"].tolist() == [1, 1, 1, 100]
    draws = bootstrap.draws[:, place]
    better = (draws[:, 0] > draws[:, 1]).mean()
    assert 0.02 < better < 0.98  # so both ranks are in the interval
    assert table.loc["a", ["rank_low", "rank_high"]].tolist() == [2, 3]
    assert table.loc["a", "first"] == 0


def test_intervals_hold_patients_and_seeds():
    random = np.random.default_rng(0)
    covered, trials, seeds = 0, 2000, 4
    for _ in range(trials):
        # truth 50; the patients drawn move all seeds together, each seed moves alone
        scores = 50 + random.normal(0, 1.5) + random.normal(0, 2.0, (1, seeds))
        line = seed_components(scores, np.array([1.5])).iloc[0]
        covered += line["low"] <= 50 <= line["high"]
    assert 0.93 < covered / trials < 0.97


@pytest.mark.parametrize(("seeds", "rows"), [(3, 2), (2, 12)])
def test_intervals_of_differences_hold_patients_and_seeds(seeds, rows):
    """A difference of nothing, of two rows with three seeds and of two out of twelve variants with two."""
    random = np.random.default_rng(2)
    covered, alone, trials = 0, 0, 2000
    for _ in range(trials):
        # what a seed and a patient do to all rows cancels; what they do to one row does not
        by_seed = 50 + random.normal(0, 4, (seeds, 1)) + random.normal(0, 2, (seeds, rows))
        by_seed += random.normal(0, 1, rows)  # the patients tested
        difference = by_seed[:, 0] - by_seed[:, 1]
        draws = difference.mean() + random.normal(0, np.sqrt(2), 400)
        pooled = pooled_spread(by_seed) if rows > 2 else None
        found = effect_of(difference.mean(), draws, difference, pooled)
        covered += found.low <= 0 <= found.high
        patients = effect_of(difference.mean(), draws, difference[:1])
        alone += patients.low <= 0 <= patients.high
    assert 0.93 < covered / trials < 0.97
    assert alone / trials < 0.85, "patients alone promise too much"


def test_a_spread_of_two_rows_is_that_of_their_difference():
    by_seed = np.random.default_rng(0).normal(0, 1, (4, 2))
    found = pooled_spread(by_seed)
    assert found.sd == pytest.approx(np.std(by_seed[:, 0] - by_seed[:, 1], ddof=1)) and found.freedom == 3
    # a row that lacks a seed has no say
    assert pooled_spread(np.c_[by_seed, [1, 2, np.nan, 3]]) == found
    assert pooled_spread(by_seed[:1]) is None and pooled_spread(by_seed[:, :1]) is None


def test_rows_by_seeds_is_the_test_of_two_nested_models():
    """The same F by least squares: does a model with a mean for each row fit better than one of the seeds alone?"""
    random = np.random.default_rng(4)
    by_seed = random.normal(50, 2, (3, 1)) + random.normal(0, 1, 6) + random.normal(0, 1.5, (3, 6))
    seed, row = (place.ravel() for place in np.indices(by_seed.shape))
    of_seeds = np.eye(3)[seed]
    rest = [
        np.linalg.lstsq(design, by_seed.ravel(), rcond=None)[1].item()
        for design in (of_seeds, np.c_[of_seeds, np.eye(6)[row][:, 1:]])
    ]
    found = rows_by_seeds(by_seed)
    assert (found.rows, found.freedom) == (6, (5, 10))
    assert found.f == pytest.approx((rest[0] - rest[1]) / 5 / (rest[1] / 10))
    assert found.sd == pytest.approx(np.sqrt(rest[1] / 10))


def test_rows_by_seeds_is_right_as_often_as_it_says():
    random = np.random.default_rng(5)
    alike = [random.normal(50, 4, (2, 1)) + random.normal(0, 1.5, (2, 17)) for _ in range(2000)]
    assert 0.035 < np.mean([rows_by_seeds(scores).p < 0.05 for scores in alike]) < 0.065
    apart = [scores + np.linspace(0, 10, 17) for scores in alike]
    assert np.mean([rows_by_seeds(scores).p < 0.05 for scores in apart]) > 0.95


def test_differences_tell_seeds(build):
    """Paired seed by seed: what both rows have in common does not widen the interval."""
    random = np.random.default_rng(6)
    base = records(build, random, (0, 4), patients=12)
    together, apart = (
        build.frame(
            [
                {**row, "seed": seed, "tp": max(0, row["tp"] - loss), "fn": row["fn"] + min(loss, row["tp"])}
                for seed, losses in enumerate(by_seed)
                for row in base.to_dict("records")
                for loss in [losses["ab".index(row["method"])]]
            ]
        )
        for by_seed in ([(0, 0), (9, 9), (18, 18)], [(0, 9), (9, 0), (18, 18)])
    )
    widths = []
    for frame in (together, apart):
        grid, scores = build.scores(frame)
        inside = members(scores.cases["area_pct"])
        bootstrap = cluster_bootstrap(scores, inside, draws=500)
        by_seed = seed_scores(scores, inside)
        for seed in range(3):
            _, alone = build.scores(frame[frame["seed"] == seed].reset_index(drop=True))
            estimate = cluster_bootstrap(alone, inside, draws=1).estimate
            np.testing.assert_allclose(by_seed[seed], estimate)
        line = differences(bootstrap, grid.rows, {"all": GROUPS.index(ALL)}, "a", by_seed).iloc[0]
        assert line["all"] == pytest.approx((line["all_low"] + line["all_high"]) / 2)
        widths.append(line["all_high"] - line["all_low"])
    assert widths[1] > 3 * widths[0]


def test_one_seed_says_nothing_of_seeds():
    table = seed_components(np.array([[50.0, np.nan], [40.0, 44.0], [np.nan, np.nan]]), np.array([1.0, 1.0, 1.0]))
    assert table["seeds"].tolist() == [1, 2, 0] and table["mean"].tolist()[:2] == [50, 42]
    assert table.loc[0, ["sd", "se", "low", "high"]].isna().all()
    assert table.loc[1, "se"] == pytest.approx(np.sqrt(1 + 8 / 2))


@pytest.mark.slow
def test_coverage_and_false_alarms(build):
    """Over suites drawn anew, the 95% interval of a difference holds the truth in 93 to 97%, and no difference is
    called one in at most 5% (with two standard errors of the simulation)."""
    random = np.random.default_rng(11)
    trials, covered, alarms = 1000, 0, 0
    base = records(build, random, (0, 0), patients=40, datasets=("d",))
    grid, scores = build.scores(base)
    groups = members(scores.cases["area_pct"])[:, [GROUPS.index(ALL)]]
    codes = scores.cases.groupby("patient").ngroup().to_numpy()
    for trial in range(trials):
        # the same slices, Dice drawn anew: patient, patient x method and slice each have their share
        patient = random.normal(0, 12, 40)[codes][:, None]
        own = random.normal(0, 6, (40, 2))[codes]
        object.__setattr__(scores, "dice", 50 + patient + own + random.normal(0, 8, scores.dice.shape))
        bootstrap = cluster_bootstrap(scores, groups, draws=1000, seed=trial)
        line = differences(bootstrap, grid.rows, {"all": 0}).iloc[0]
        covered += line["all_low"] <= 0 <= line["all_high"]
        p = paired_tests({"all": patient_means(scores, groups[:, 0])}, grid.rows).loc[0, "all_p"]
        alarms += p < 0.05
    assert 0.93 < covered / trials < 0.97
    assert alarms / trials < 0.05 + 2 * np.sqrt(0.05 * 0.95 / trials)


def test_the_report_tells_who_is_told_apart(build, tmp_path):
    """The tables as written: p under a thousandth is not shown as 0, seeds have their own uncertainty."""
    report = build_report(build.suite(tmp_path, size=48, patients=12, seeds=(0, 1)))
    text = report.tables["differences.md"].read_text()
    assert "<0.001" in text.replace("\\", "") and "| 0.000 |" not in text
    differences_, ranks, seeds = (
        pd.read_csv(report.tables[f"{name}.csv"]) for name in ("differences", "ranks", "seeds")
    )
    assert (differences_["all_p"] < 0.05).all() and (differences_["all_effect"] < 0).all()
    assert ranks["rank"].tolist() == [1, 2, 3] and ranks.loc[0, "alike"] == "none"
    frame = report.frame
    assert seeds["mean"].tolist() == pytest.approx(frame["average"].tolist())
    records = load_suite(report.html.parents[1]).records
    dice = 200 * records["tp"] / (2 * records["tp"] + records["fp"] + records["fn"])
    averages = (
        dice.groupby([records["method"], records["seed"], records["dataset"]]).mean().groupby(level=[0, 1]).mean()
    )
    assert seeds["sd"].tolist() == pytest.approx([averages[m].std() for m in ("boltzformer", "sam", "nnunet")])
    assert "critical_difference.png" in report.figures
