"""How many times fewer operations: sums and ratios of a profile whose numbers are made up."""

import pandas as pd
import pytest

from models.config import FULL
from reports.build import build_report
from reports.operations import QUERIES, SIDES, operation_lines

COLUMNS = ("scope", "method", "path", "image_size", "tokens", "queries", "sampling", "gflop")


def attention(queries):
    """Of each grid 30 GFLOP for all tokens and 2.6 for the sampled, beside rows that are not asked for."""
    for side in SIDES:
        case = (None, side**2, queries)
        yield "attention", "full", "plain", *case, None, 30.0
        yield "attention", "full", "auto", *case, None, 7.0
        yield "attention", "boltzformer", "plain", *case, 0.1, 31.0
        yield "attention", "boltzformer", "auto", *case, 0.1, 2.6
        yield "attention", "boltzformer", "auto", *case, 0.5, 5.0


DECODER = [
    ("decoder", "boltzformer", "fast", 1024, 16384, 101, 0.1, 2.0),
    ("decoder", "boltzformer", "fast", 1024, 16384, 10, 0.1, 0.5),
    ("decoder", "boltzformer", "fast", 512, 4096, 101, 0.1, 0.6),
    ("decoder", "seem", "plain", 1024, 16384, 101, None, 24.0),
    ("decoder", "seem", "fast", 1024, 16384, 101, None, 8.0),
    ("decoder", "sam", "package", 1024, 16384, None, None, 1.0),
]


@pytest.fixture
def profile(tmp_path):
    """profile(rows) -> the path of a profile.csv with these."""

    def write(rows):
        path = tmp_path / "profile" / "profile.csv"
        path.parent.mkdir(parents=True, exist_ok=True)
        frame = pd.DataFrame(rows, columns=COLUMNS).assign(phase="forward", dtype="fp32")
        training = frame.assign(phase="forward+backward", gflop=1e6)
        pd.concat([training, frame]).to_csv(path, index=False)
        return path

    return write


def by_claim(path):
    return {line["claim"]: (line["ours"], line["verdict"]) for line in operation_lines(path)}


def test_a_layer_on_all_three_grids_with_the_choice_of_tokens(profile):
    found = by_claim(profile([row for queries in QUERIES for row in attention(queries)]))
    for queries, verdict in ((10, "supported"), (32, "supported"), (101, "contradicted")):
        choice = 2 * queries * FULL.width * (1024 + 4096 + 16384) / 1e9
        line = found[f"Cross-attention of {queries} queries needs 10 x fewer operations"]
        assert line == (pytest.approx(90 / (7.8 + choice)), verdict)
    assert found["The decoder needs 10 x fewer operations than SEEM's"] == (None, "not run")


def test_a_decoder_against_those_as_published(profile):
    found = by_claim(profile(DECODER))
    assert found["The decoder needs 10 x fewer operations than SEEM's"] == (pytest.approx(12), "supported")
    assert found["The decoder needs 10 x fewer operations than SAM's (text)"] == (pytest.approx(0.5), "contradicted")
    assert found["The decoder needs 10 x fewer operations than SAM 2's (text)"] == (None, "not run")


@pytest.mark.parametrize("text", [None, "", "scope,method\nattention,full\n", "\x00\xff"])
def test_without_a_profile_nothing_was_run(tmp_path, text):
    path = tmp_path / "profile.csv"
    if text is not None:
        path.write_text(text)
    assert {verdict for _, verdict in by_claim(path).values()} == {"not run"}


def test_the_report_takes_the_profile_beside_the_suite(build, profile, tmp_path):
    profile(DECODER)
    folder = build.suite(tmp_path, size=48, patients=4, methods={"boltzformer": "BoltzFormer"})
    page = build_report(folder)
    claims = pd.read_csv(page.tables["claims.csv"]).set_index("claim")
    line = claims.loc["The decoder needs 10 x fewer operations than SEEM's"]
    assert line["verdict"] == "supported" and float(line["ours"]) == pytest.approx(12)
    html = page.html.read_text()
    assert html.index('id="claims"') < html.index('id="main_table"')
