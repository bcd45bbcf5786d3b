"""Verdicts by their rule, effects against the paired differences, and which runs a claim finds."""

import json
import shutil
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from scipy.stats import binomtest

from experiments.paper import TABLES_3_TO_8
from reports.build import build_report
from reports.claims import MARGIN, MISSES, Measured, claims_table, related, verdict
from reports.grid import check_grid
from reports.load import load_suite
from reports.paper_claims import CLAIMS
from reports.significance_tables import decoder_spread
from reports.statistics import Effect, Spread, effect_of

NOWHERE = Path("nowhere.csv")
ALONE = "undecided: one seed; by patients alone: "
MAIN = {"seem": "SEEM", "boltzformer": "BoltzFormer", "nnunet": "nnU-Net"}
ABLATED = {"boltzformer": "BoltzFormer", "boltzformer prior=unconditioned": "unconditioned"}
PRIOR = {"unconditioned": "boltzformer prior=unconditioned", "text-conditioned": "boltzformer"}


@pytest.mark.parametrize(
    ("effect", "low", "high", "rule", "expected"),
    [
        (3, 1, 5, "more", "supported"),
        (-3, -5, -1, "more", "contradicted"),
        (2, -2, 6, "more", "some 400 patients would decide"),  # twice the precision: four times as many
        (-2, -6, 2, "more", "some 400 patients would decide"),
        (0, -1, 1, "more", "no effect to decide"),
        (0.3, -1.7, 2.3, "more", "some 4,500 patients would decide"),
        (0.1, -1.9, 2.1, "more", "over 100 times the patients would be needed"),
        (-0.2, -0.7, 0.3, "no less", "supported"),
        (-3, -5, -1.5, "no less", "contradicted"),
        (0, -4, 4, "no less", "some 1,600 patients would decide"),
        (5, 4, 6, "share", "contradicted"),
        (1.6, 1.2, 2, "share", "some 400 patients would decide"),
        (0.9, 0, 1.8, "share", "some 330 patients would decide"),  # 324
        (0.2, 0, 0.5, "share", "supported"),
        (0, 0, 1.3, "share", "supported"),
        (0, 0, 3.6, "share", "some 270 patients without a miss would decide"),  # 262
    ],
)
def test_the_rule(effect, low, high, rule, expected):
    of_patients = Measured(Effect(effect, low, high, (high - low) / 4), 100, 50)
    assert verdict(of_patients, rule) == f"{ALONE}{expected}"


def seeds_of(effect, patient_se, sd, seeds, freedom=None):
    """100 patients and some seeds, whose values have exactly this standard deviation."""
    values = np.linspace(-1, 1, seeds)
    by_seed = effect + values * sd / np.std(values, ddof=1)
    draws = effect + patient_se * np.array([-1.0, 1.0]) / np.sqrt(2)
    return Measured(effect_of(effect, draws, by_seed, freedom and Spread(sd, freedom)), 100, 50)


@pytest.mark.parametrize(
    ("effect", "patient_se", "sd", "freedom", "expected"),
    [
        (5, 1, 1, None, "supported"),
        # the patients alone would have decided: Student's t of three seeds is wide
        (5, 1, 3, None, "undecided: some 4 seeds would decide"),
        # pooled over many rows the same spread is known better
        (5, 1, 3, 40, "supported"),
        (1.9, 1, 0, None, "undecided: some 110 patients would decide"),
        (2.2, 1, 1, None, "undecided: some 130 patients or 5 seeds would decide"),
        # t(15) falls short with the patients there are, and so do any patients with three seeds
        (1, 1, 1, None, "undecided: some 520 patients with 16 seeds would decide"),
        (0.01, 1, 1, None, "undecided: over 100 times the patients and seeds would be needed"),
    ],
)
def test_seeds_are_a_part_of_the_interval(effect, patient_se, sd, freedom, expected):
    assert verdict(seeds_of(effect, patient_se, sd, 3, freedom), "more") == expected


@pytest.mark.parametrize(("effect", "patient_se", "sd"), [(5, 1, 3), (2.2, 1, 1), (-4, 0.5, 3)])
def test_the_seeds_that_would_decide_do(effect, patient_se, sd):
    told = int(verdict(seeds_of(effect, patient_se, sd, 3), "more").split(" seeds")[0].split()[-1])
    assert verdict(seeds_of(effect, patient_se, sd, told), "more") == ("supported" if effect > 0 else "contradicted")
    assert verdict(seeds_of(effect, patient_se, sd, told - 1), "more").startswith("undecided")


SUPPORTED = "supported by the spread over seeds of all decoders"


@pytest.mark.parametrize(
    ("effect", "own", "pooled", "expected"),
    [
        (5, 1, 1, "supported"),
        (-5, 1, 1, "contradicted"),
        (1, 0.01, 2, "undecided: supported by its own spread over seeds, not by that of all decoders (-1.58 to 3.58)"),
        (5, 3, 1, f"undecided: some 4 seeds would decide; {SUPPORTED} (3.70 to 6.30)"),
        (0.5, 1, 1, "undecided: some 21 seeds would decide"),
    ],
)
def test_a_small_spread_by_chance_decides_nothing(effect, own, pooled, expected):
    """Three seeds; the spread of all decoders has 10 degrees of freedom, the interval of the patients is 0.2 wide."""
    alone, all_of_them = (seeds_of(effect, 0.1, sd, 3, freedom) for sd, freedom in ((own, None), (pooled, 10)))
    assert verdict(Measured(alone.effect, 100, 50, all_of_them.effect), "more") == expected


def test_a_few_patients_decide_nothing():
    clear = Effect(69, 67, 70, 1)
    assert verdict(Measured(clear, 3, 50), "more") == "undecided: 3 patients have such objects, an interval needs 10"
    assert verdict(Measured(clear, 10, 50), "more") == f"{ALONE}supported"


def test_a_group_without_objects_is_told():
    nothing = Measured(Effect(np.nan, np.nan, np.nan, np.nan), 0, 50)
    assert verdict(nothing, "more") == "undecided: 0 patients have such objects, an interval needs 10"


def test_no_miss_among_a_few_patients_is_not_none_at_all(build, tmp_path):
    suite = build.suite(tmp_path, size=48, patients=8, methods={"boltzformer": "BoltzFormer"})
    line = lines_of(claims_table([load_suite(suite)], NOWHERE)).loc["BoltzFormer misses 1.4% of the targets completely"]
    assert line["ours"] == line["low"] == 0
    # what a binomial test allows of none among so many patients
    assert line["high"] / 100 == pytest.approx(binomtest(0, 3 * 8).proportion_ci(0.95).high)
    assert line["verdict"].startswith("undecided")


@pytest.mark.parametrize("rule", ["more", "no less", "share"])
def test_models_that_have_learned_nothing_decide_nothing(rule):
    assert verdict(Measured(Effect(0, 0, 0, 0), 100, 0.2), rule) == "undecided: trained too little, to a Dice of 0.2"


@pytest.fixture
def suite(build, tmp_path):
    """SEEM the best, then BoltzFormer, then nnU-Net, as `write_suite` shifts them."""
    folder = build.suite(tmp_path, size=48, patients=8, methods=MAIN)
    content = json.loads((folder / "suite.json").read_text())
    (folder / "suite.json").write_text(json.dumps(content | {"reference": "boltzformer"}))
    return folder


def lines_of(table):
    return table.frame.set_index("claim")


def test_effects_are_the_paired_differences(suite):
    results = load_suite(suite)
    lines = lines_of(claims_table([results], NOWHERE))
    differences = build_report(suite).tables["differences.csv"]
    paired = pd.read_csv(differences).set_index("label")
    seem, nnunet = lines.loc["BoltzFormer is better than SEEM (text)"], lines.loc["BoltzFormer is better than nnU-Net"]
    assert seem["ours"] == pytest.approx(-paired.loc["SEEM+Hiera-XT", "all"])
    assert nnunet["ours"] == pytest.approx(-paired.loc["nnU-Net", "all"])
    # the same draws, from the other side
    assert seem["low"] == pytest.approx(-paired.loc["SEEM+Hiera-XT", "all_high"])
    assert (seem["verdict"], nnunet["verdict"]) == (f"{ALONE}contradicted", f"{ALONE}supported")
    assert seem["cases"] == 3 * 8 and seem["seeds"] == 1
    assert lines.loc["BoltzFormer is better than SAM (text)", "verdict"] == "not run"
    cases = results.records[results.records["method"] == "seem"]
    small = 100 * cases["area_px"] / (cases["height"] * cases["width"]) < 1
    patients = cases["patient"].astype("string")
    fewer = min(patients[small].nunique(), patients[~small].nunique())
    assert lines.loc["It gains more over SEEM on small objects than on large", "cases"] == fewer < 3 * 8


def test_the_spread_of_all_decoders_has_nothing_of_methods_without_a_backbone(suite, build, tmp_path):
    rows = {"seem": "SEEM", "boltzformer": "BoltzFormer", "sam": "SAM", "nnunet": "nnU-Net"}
    grid = check_grid(load_suite(build.suite(tmp_path / "four", size=48, patients=8, methods=rows)))
    by_seed = np.array([[70.0, 72, 65, 10], [71, 72, 68, 80], [70.5, 75, 64, 40]])
    rest = by_seed[:, :3] - by_seed[:, :3].mean(0) - by_seed[:, :3].mean(1, keepdims=True) + by_seed[:, :3].mean()
    assert decoder_spread((0, 1), grid, by_seed).sd == pytest.approx(np.sqrt(2 * (rest**2).sum() / 4))
    assert decoder_spread((1, 3), grid, by_seed) is None
    two = check_grid(load_suite(suite))  # SEEM and BoltzFormer tell no more than their own
    assert decoder_spread((0, 1), two, by_seed[:, [0, 1, 3]]) is None


def test_fewer_misses_are_more(suite):
    """As counted on the records, and from the other side: SEEM, of masks shifted less, misses no more."""
    records = load_suite(suite).records
    missed = (records["tp"] == 0).groupby([records["method"], records["dataset"]]).mean().unstack().mean(axis=1)
    line = lines_of(claims_table([load_suite(suite)], NOWHERE)).loc["Misses fewer targets than nnU-Net"]
    assert line["ours"] == pytest.approx(100 * (missed["nnunet"] - missed["boltzformer"])) and line["ours"] > 0
    assert line["low"] <= line["ours"] <= line["high"] and pd.isna(line["paper"])


def test_misses_are_counted_by_data_set(suite):
    records = load_suite(suite).records
    mine = records[records["method"] == "boltzformer"]
    shares = (mine["tp"] == 0).groupby(mine["dataset"]).mean()
    line = lines_of(claims_table([load_suite(suite)], NOWHERE)).loc["BoltzFormer misses 1.4% of the targets completely"]
    assert line["ours"] == pytest.approx(100 * shares.mean()) and line["paper"] == MISSES
    assert line["low"] <= line["ours"] <= line["high"]


def test_ablations_beside_the_suite_are_found(suite, build, tmp_path):
    other = build.suite(tmp_path / "more", size=48, patients=8, methods=ABLATED)
    content = json.loads((other / "suite.json").read_text()) | {"ablations": {"prior": PRIOR}}
    beside = suite.parent / "ablate"
    other.rename(beside)
    (beside / "suite.json").write_text(json.dumps(content))
    assert [found.folder.name for found in related(load_suite(suite))] == ["suite", "ablate"]
    line = lines_of(claims_table(related(load_suite(suite)), NOWHERE)).loc["The text-conditioned prior helps"]
    assert line["verdict"] == f"{ALONE}supported" and line["ours"] > 0
    paper = TABLES_3_TO_8["prior", "text-conditioned"][0] - TABLES_3_TO_8["prior", "unconditioned"][0]
    assert line["paper"] == pytest.approx(paper)
    # at another scale it is no part of this comparison
    (beside / "suite.json").write_text(json.dumps(content | {"profile": "gpu"}))
    assert len(related(load_suite(suite))) == 1


def test_ablations_of_another_recipe_are_no_part_of_this_comparison(suite, build):
    """The reference was run in both, and its id, which holds the whole recipe, differs."""
    beside = suite.parent / "ablate"
    shutil.copytree(suite, beside)
    build.change(beside / "suite.json", ablations={"prior": PRIOR})
    assert len(related(load_suite(suite))) == 2
    (run,) = beside.glob("boltzformer-*")
    other = f"{run.name}2"
    run.rename(beside / other)
    content = json.loads((beside / "suite.json").read_text())
    names = [other if name == run.name else name for name in content["runs"]]
    build.change(beside / "suite.json", runs=names)
    assert len(related(load_suite(suite))) == 1


def test_full_attention_of_a_main_suite_is_that_of_the_ablation(build, tmp_path):
    methods = {"boltzformer": "BoltzFormer", "full_attention": "Full attention"}
    lines = lines_of(claims_table([load_suite(build.suite(tmp_path, size=48, patients=8, methods=methods))], NOWHERE))
    line = lines.loc["Boltzmann sampling is better than full attention"]
    assert line["verdict"] in (f"{ALONE}supported", f"{ALONE}contradicted") and line["cases"] == 3 * 8
    assert lines.loc["Boltzmann sampling is better than a threshold", "verdict"] == "not run"


def test_claims_of_small_objects_are_the_paired_differences_of_their_group(suite):
    lines = lines_of(claims_table([load_suite(suite)], NOWHERE))
    paired = pd.read_csv(build_report(suite).tables["differences.csv"]).set_index("label").loc["SEEM+Hiera-XT"]
    small = lines.loc["Better than SEEM (text) on small objects"]
    assert (small["ours"], small["low"]) == pytest.approx((-paired["small"], -paired["small_high"]))
    assert lines.loc["Better than SEEM (text) on large objects", "ours"] != pytest.approx(small["ours"])


def test_claims_of_the_paper_have_its_numbers():
    for claim in CLAIMS:  # what it found supports what it claims
        assert claim.paper is None or claim.paper > (-MARGIN if claim.rule == "no less" else -1e-9)
    without = [claim.text for claim in CLAIMS if claim.paper is None and not claim.misses]
    assert without == ["Annealing is better than one temperature"]
    by_text = {claim.text: claim.paper for claim in CLAIMS}
    assert by_text["BoltzFormer is better than SEEM (text)"] == pytest.approx(73.8 - 71.5)
    assert by_text["Better than SAM 2 (text) on small objects"] == pytest.approx(71.4 - 62.1)
    assert by_text["Better than SEEM (text) on large objects"] == pytest.approx(87.5 - 87.1)
    assert by_text["5% of the tokens are enough (against 10%)"] == pytest.approx(72.9 - 73.7)
    assert by_text["It gains more over SEEM on small objects than on large"] == pytest.approx(2.5 - 0.4)
