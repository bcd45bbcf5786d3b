"""How many times fewer operations: sums and ratios of a profile whose numbers are made up."""

import pandas as pd
import pytest

from models.config import FULL
from reports.build import build_report
from reports.operations import QUERIES, SIDES, operation_lines

COLUMNS = ("scope", "method", "path", "tokens", "queries", "sampling", "phase", "dtype", "gflop")
WRITTEN = {10: (3, 12, 60), 32: (4, 16, 60), 101: (5, 20, 70)}  # GFLOP with all tokens, grid by grid
CHEAPEST = {10: (1, 3, 8), 32: (2, 7, 30), 101: (5, 20, 70)}
SAMPLED = {10: (0.1, 0.3, 0.9), 32: (0.3, 0.9, 2.7), 101: (0.9, 2.7, 8.1)}


def rows():
    """What is asked for, after rows that differ in one thing each and must not be taken."""
    for queries in QUERIES:
        for place, side in enumerate(SIDES):
            asked = [
                ("full", "plain", None, WRITTEN[queries][place]),
                ("full", "auto", None, CHEAPEST[queries][place]),
                ("boltzformer", "auto", 0.1, SAMPLED[queries][place]),
            ]
            for method, path, sampling, gflop in asked:
                yield "decoder", method, path, side**2, queries, sampling, "forward", "fp32", 1e6
                yield "attention", method, path, side**2, queries, sampling, "forward+backward", "fp32", 1e6
                yield "attention", method, path, side**2, queries, sampling, "forward", "bf16", 1e6
                yield "attention", method, "projected", side**2, queries, sampling, "forward", "fp32", 1e6
                yield "attention", "seem", path, side**2, queries, sampling, "forward", "fp32", 1e6
                yield "attention", method, path, side**2 + 1, queries, sampling, "forward", "fp32", 1e6
                if sampling:
                    yield "attention", method, path, side**2, queries, 0.5, "forward", "fp32", 1e6
                yield "attention", method, path, side**2, queries, sampling, "forward", "fp32", gflop


@pytest.fixture
def profile(tmp_path):
    """profile(rows) -> the path of a profile.csv with these."""

    def write(found):
        path = tmp_path / "profile" / "profile.csv"
        path.parent.mkdir(parents=True, exist_ok=True)
        pd.DataFrame(list(found), columns=COLUMNS).to_csv(path, index=False)
        return path

    return write


def by_claim(path):
    return {line["claim"]: (line["ours"], line["verdict"]) for line in operation_lines(path)}


@pytest.mark.parametrize(
    ("form", "full", "verdicts"),
    [
        ("as usually written", WRITTEN, ["supported", "supported", "contradicted"]),
        ("in its own cheapest form", CHEAPEST, ["contradicted"] * 3),
    ],
)
def test_a_layer_on_all_three_grids_with_the_choice_of_tokens(profile, form, full, verdicts):
    found = by_claim(profile(rows()))
    for queries, verdict in zip(QUERIES, verdicts, strict=True):
        # by Eq. 3 three linear layers, by Eq. 1 a product with every place of S
        choice = queries * FULL.width * 2 * (3 * 3 * FULL.width + 1024 + 4096 + 16384) / 1e9
        line = found[f"10% of the tokens: 10 x fewer operations than all, {form} ({queries} queries)"]
        assert line == (pytest.approx(sum(full[queries]) / (sum(SAMPLED[queries]) + choice)), verdict)


def test_a_grid_that_was_not_counted_leaves_its_claims_open(profile):
    found = by_claim(profile(row for row in rows() if (row[3], row[4]) != (64**2, 32)))
    assert [ours is None for ours, _ in found.values()] == [False, True, False] * 2
    assert [verdict == "not run" for _, verdict in found.values()] == [False, True, False] * 2


@pytest.mark.parametrize(
    "text", [None, "", "scope,method\nattention,full\n", ",".join(COLUMNS) + "\n" + "a," * 8 + "b"]
)
def test_without_a_profile_nothing_was_run(tmp_path, text):
    path = tmp_path / "profile.csv"
    if text is not None:
        path.write_text(text)
    assert set(by_claim(path).values()) == {(None, "not run")}


def test_the_report_takes_the_profile_beside_the_suite(build, profile, tmp_path, monkeypatch):
    profile(rows())
    folder = build.suite(tmp_path, size=48, patients=4, methods={"boltzformer": "BoltzFormer"})
    monkeypatch.chdir(folder)
    page = build_report(folder.relative_to(folder))
    claims = pd.read_csv(page.tables["claims.csv"]).set_index("claim")
    line = claims.loc["10% of the tokens: 10 x fewer operations than all, as usually written (10 queries)"]
    assert line["verdict"] == "supported" and float(line["ours"]) > 10
    html = page.html.read_text()
    assert html.index('id="claims"') < html.index('id="main_table"')
