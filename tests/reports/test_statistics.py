"""The bootstrap against a slow loop over resampled records, and what it must not depend on."""

import numpy as np
import pytest

from reports.aggregate import cluster_sums, group_scores
from reports.statistics import cluster_bootstrap, differences
from reports.strata import ALL, GROUPS, SMALL, members


def records(build, methods=("a", "b"), patients=12, effect=8.0):
    """Three data sets, several slices per patient, Dice correlated within the patient and between methods."""
    random = np.random.default_rng(5)
    rows = []
    for dataset in ("d", "e", "f"):
        for patient in range(patients):
            hard = random.normal(0, 15)
            for index in range(random.integers(1, 5)):
                area = int(random.choice([30, 60, 150]))
                for place, method in enumerate(methods):
                    dice = np.clip(65 + hard - effect * place + random.normal(0, 5), 0, 100) / 100
                    tp = round(area * dice)
                    ids = {"dataset": dataset, "image_id": f"{patient}-{index}", "patient": f"{patient}"}
                    rows.append({**ids, "method": method, "tp": tp, "fn": area - tp, "fp": area - tp})
    return build.frame(rows)


def paper_score(frame, group):
    """Table 2's number of one method from records, the plain way."""
    dice = 200 * frame["tp"] / (2 * frame["tp"] + frame["fp"] + frame["fn"])
    percent = 100 * frame["area_px"] / (frame["height"] * frame["width"])
    total = weights = 0.0
    for name in sorted(set(frame["dataset"])):
        mine = (frame["dataset"] == name).to_numpy()
        chosen = mine & ((percent >= group.lower) & (percent < group.upper)).to_numpy()
        if chosen.any():
            total += chosen.sum() / mine.sum() * dice[chosen].mean()
            weights += chosen.sum() / mine.sum()
    return total / weights


def resample(frame, weights):
    """Records with each patient's slices as often as `weights` (data set -> patient -> times) says."""
    places = []
    for place, (dataset, patient) in enumerate(zip(frame["dataset"], frame["patient"], strict=True)):
        places += [place] * int(weights[dataset][patient])
    return frame.iloc[places]


@pytest.mark.parametrize("group", [SMALL, ALL])
def test_weighting_patients_is_the_same_as_resampling_their_records(build, group):
    frame = records(build, methods=("a",))
    _, scores = build.scores(frame)
    sums = cluster_sums(scores, members(scores.cases["area_pct"]))
    random = np.random.default_rng(1)
    for _ in range(5):
        drawn = [random.multinomial(12, np.full(12, 1 / 12), size=1) for _ in sums]
        found = group_scores(sums, [weights.astype(float) for weights in drawn])[0, GROUPS.index(group), 0]
        names = sorted({str(p) for p in range(12)})
        times = {d: dict(zip(names, w[0], strict=True)) for d, w in zip("def", drawn, strict=True)}
        assert found == pytest.approx(paper_score(resample(frame, times), group))


def test_standard_error_against_a_loop(build):
    frame = records(build, methods=("a",))
    _, scores = build.scores(frame)
    found = cluster_bootstrap(scores, members(scores.cases["area_pct"]), draws=4000)
    random = np.random.default_rng(2)
    slow = []
    for _ in range(400):
        times = {}
        for dataset in "def":
            drawn = random.choice(12, size=12)
            times[dataset] = {str(patient): int((drawn == patient).sum()) for patient in range(12)}
        slow.append(paper_score(resample(frame, times), ALL))
    # 400 draws give the standard error to 1 / sqrt(800), 3.5%; four times that
    assert found.standard_error[GROUPS.index(ALL), 0] == pytest.approx(np.std(slow, ddof=1), rel=0.15)
    assert found.estimate[GROUPS.index(ALL), 0] == pytest.approx(paper_score(frame, ALL))


def test_clustering_matters(build):
    """Slices of one patient resemble each other: patients drawn whole vary more than slices drawn alone."""
    frame = records(build, methods=("a",))
    alone = frame.assign(patient=frame["patient"].astype("string") + frame["image_id"].astype("string"))
    errors = []
    for records_ in (frame, alone):
        _, scores = build.scores(records_)
        errors.append(cluster_bootstrap(scores, members(scores.cases["area_pct"])).standard_error[2, 0])
    assert errors[0] > 1.2 * errors[1]


def test_seeded_and_independent_of_record_order(build):
    frame = records(build)
    shuffled = frame.sample(frac=1, random_state=0).sort_values("method", kind="stable", ignore_index=True)
    found = []
    for version, seed in ((frame, 0), (shuffled, 0), (frame, 1)):
        _, scores = build.scores(version)
        found.append(cluster_bootstrap(scores, members(scores.cases["area_pct"]), draws=300, seed=seed).draws)
    assert np.allclose(found[0], found[1], equal_nan=True)
    assert not np.allclose(found[0], found[2], equal_nan=True)


def test_paired_differences(build):
    grid, scores = build.scores(records(build))
    bootstrap = cluster_bootstrap(scores, members(scores.cases["area_pct"]))
    table = differences(bootstrap, grid.rows, {"all": GROUPS.index(ALL)})
    assert len(table) == 1 and table.loc[0, "label"] == "b" and table.loc[0, "reference"] == "a"
    low, high = table.loc[0, "all_low"], table.loc[0, "all_high"]
    assert low < table.loc[0, "all"] < high < 0
    assert table.loc[0, "all"] == pytest.approx(bootstrap.estimate[2, 1] - bootstrap.estimate[2, 0])
    # what the patients have in common cancels: the pair is known better than either method
    assert (high - low) / 4 < 0.6 * bootstrap.standard_error[2].min()


def test_reference_is_the_first_method_on_the_same_backbone(build):
    rows = []
    for method, backbone in (("a", "s"), ("a", "b"), ("c", "b"), ("d", "-")):
        for patient in "pqr":
            ids = {"method": method, "backbone": backbone, "image_id": patient, "patient": patient}
            rows.append({**ids, "tp": 50, "fn": 5})
    grid, scores = build.scores(build.frame(rows))
    bootstrap = cluster_bootstrap(scores, members(scores.cases["area_pct"]), draws=10)
    table = differences(bootstrap, grid.rows, {"all": GROUPS.index(ALL)})
    assert table["reference"].tolist() == ["a+b", "a+s"]
    table = differences(bootstrap, grid.rows, {"all": GROUPS.index(ALL)}, reference="c")
    assert table[["label", "reference"]].to_numpy().tolist() == [["a+s", "c+b"], ["a+b", "c+b"], ["d", "c+b"]]


def test_a_row_with_a_gap_has_no_error_and_no_difference(build):
    frame = records(build)
    gone = (frame["method"] == "b") & (frame["dataset"] == "e") & (frame["patient"] == "3")
    grid, scores = build.scores(frame[~gone].reset_index(drop=True))
    bootstrap = cluster_bootstrap(scores, members(scores.cases["area_pct"]))
    assert np.isnan(bootstrap.standard_error[:, 1]).all() and np.isfinite(bootstrap.standard_error[2, 0])
    assert np.isnan(differences(bootstrap, grid.rows, {"all": 2}).loc[0, ["all", "all_low"]].astype(float)).all()
