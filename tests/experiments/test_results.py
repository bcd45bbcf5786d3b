"""docs/results.md: its numbers are those of the reports that `bench report` writes of the archives."""

import json
import re
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from bench.archive import archive_suite
from bench.errors import UserError
from bench.spec import RunSpec
from bench.tuned import Budget, Trial, Tuned
from experiments.results import by_seed, hours, ledger, make_page, searched, side_by_side
from reports.build import build_report
from reports.load import load_suite

ROOT = Path(__file__).resolve().parents[2]
TEMPLATE = """# Results

{{ about("toy") }}

{{ table("toy", "main_table") }}

{{ figure("toy", "curves", "Training curves") }}

{{ ledger({"toy": "a toy"}) }}

{% if exists("later") %}
{{ table("later", "claims") }}
{% endif %}

{{ table("toy", "runs") }}
"""
README = "# A title\n<!-- results: begin -->\nan earlier table\n<!-- results: end -->\nthe rest\n"


@pytest.fixture
def root(toy_runs, tmp_path):
    archive_suite(toy_runs / "runs" / "toy", tmp_path / "docs" / "results" / "toy")
    (tmp_path / "docs" / "results.md.j2").write_text(TEMPLATE)
    (tmp_path / "docs" / "headline.md.j2").write_text('{{ table("toy", "by_size") }}\n')
    (tmp_path / "README.md").write_text(README)
    return tmp_path


def texts_of(page):
    return {str(path): text for path, text in page.texts.items()}


def test_tables_and_figures_are_those_of_the_report(root, tmp_path):
    page = make_page(root)
    report = build_report(root / "docs" / "results" / "toy", tmp_path / "report", paper=False)
    text = texts_of(page)["docs/results.md"]
    main = report.tables["main_table.md"].read_text()
    assert main.partition("\n\n")[2].strip() in text and "## Dice" not in text
    assert "![Training curves](figures/results/toy_curves.png)" in text
    (picture,) = page.pictures.items()
    assert str(picture[0]) == "docs/figures/results/toy_curves.png"
    assert picture[1] == report.figures["curves.png"].read_bytes()


def test_a_section_has_its_heading_and_not_the_notes_of_the_main_table_again(root):
    template = root / "docs" / "results.md.j2"
    template.write_text('{{ section("toy", "main_table") }}\n\n{{ section("toy", "by_size") }}\n')
    main, _, sizes = texts_of(make_page(root))["docs/results.md"].partition("### Dice by object size\n")
    assert main.startswith("### Dice by data set\n\nMean Dice in percent") and "| Object area |" in sizes
    assert main.count("- Alike for all methods") == 1 and "- Alike for all methods" not in sizes


def test_the_ledger_is_that_of_the_report(root):
    text = texts_of(make_page(root))["docs/results.md"]
    assert re.search(r"\| BoltzFormer is better than SEEM \(text\) \| 2\.3 \| a toy \| -?\d+\.\d\d \|", text)
    assert "| The text-conditioned prior helps | 1.4 | - | - | - | - | - | not run |" in text


def test_it_traces_to_runs_a_split_and_a_command(root):
    text = texts_of(make_page(root))["docs/results.md"]
    archive = root / "docs" / "results" / "toy"
    for run in archive.glob("*-seed*"):
        assert re.search(rf"\| {run.name} \| finished \| [\d.]+ \|.* \| [0-9a-f]{{10}}", text)
    assert "`bench run --suite smoke --data toy" in text and "4 of 4 runs" in text
    assert re.search(r"split `[0-9a-f]{12}`", text) and "archive `docs/results/toy`" in text


def test_numbers_in_the_text_are_those_of_the_report(root, tmp_path):
    template = root / "docs" / "results.md.j2"
    template.write_text('{{ dice("toy", "BoltzFormer+Hiera-XT") }} {{ hours("toy", "later") }}')
    seeds = pd.read_csv(build_report(root / "docs" / "results" / "toy", tmp_path / "report").tables["seeds.csv"])
    (mean,) = seeds.loc[seeds["label"] == "BoltzFormer+Hiera-XT", "mean"]
    assert texts_of(make_page(root))["docs/results.md"].split() == [f"{mean:.1f}", "0"]
    template.write_text('{{ dice("toy", "BoltzFormer") }}')
    with pytest.raises(UserError, match=r"no row 'BoltzFormer', it has .*BoltzFormer\+Hiera-XT"):
        make_page(root)


def test_a_run_of_two_archives_counts_once(root):
    suite = load_suite(root / "docs" / "results" / "toy")
    seconds = [json.loads(file.read_text())["seconds"] for file in suite.folder.glob("*/status.json")]
    assert hours([suite, suite]) == pytest.approx(sum(seconds) / 3600)


def test_an_object_stands_seed_by_seed_beside_all_others(root):
    """Dice by the counts of each mask; the location prior, which has no backbone, has no line."""
    found = load_suite(root / "docs" / "results" / "toy")
    hit = found.records.assign(tp=1 + np.arange(len(found.records)) % 50)  # so short a training finds nothing
    suite = replace(found, records=hit)
    records = pd.concat([hit, hit.assign(seed=1, fp=hit["fp"] + 500)], ignore_index=True)
    both = replace(suite, records=records, runs=(*suite.runs, *(replace(run, seed=1) for run in suite.runs)))
    records["dice"] = 100 * 2 * records["tp"] / (2 * records["tp"] + records["fp"] + records["fn"])
    header, _, *lines = by_seed({"short": suite, "long": both}, "block").splitlines()
    titles = [f"{what}, {where}" for where in ("short", "long") for what in ("Block", "All else")]
    assert header == f"| Method | {' | '.join(titles)} |" and len(lines) == 3
    for line in lines:
        label, *cells = line.strip("| ").split(" | ")
        mine = records[records["method"] == {name: key for key, name in suite.methods.items()}[label.split("+")[0]]]
        means = mine.groupby([mine["object"] == "block", "seed"])["dice"].mean()
        first, second = (f"{means[True, seed]:.1f}" for seed in (0, 1))
        rest = means[False, 0], (means[False, 0] + means[False, 1]) / 2
        assert cells == [first, f"{rest[0]:.1f}", f"{first}, {second}", f"{rest[1]:.1f}"] and first != second


def test_ledgers_of_several_reports_are_one_table():
    columns = ["claim", "unit", "paper", "ours", "low", "high", "cases", "seeds", "verdict"]
    first = [
        ("A is better", "points", 6.8, 1.5, 0.9, 2.2, 82, 3, "supported"),
        ("Cheaper", "x", 10.0, 61.0, None, None, None, None, "supported"),
        ("B helps", "points", 1.0, None, None, None, None, None, "not run"),
        ("C helps", "points", 2.0, None, None, None, None, None, "not run"),
    ]
    second = [
        ("A is better", "points", 6.8, -2, -3, -1, 60, 2, "contradicted"),
        ("Cheaper", "x", 10.0, None, None, None, None, None, "not run"),
        ("B helps", "points", 1.0, 3, 2, 4, 60, 2, "supported"),
        ("C helps", "points", 2.0, None, None, None, None, None, "not run"),
    ]
    frames = {"CT": pd.DataFrame(first, columns=columns), "phantom": pd.DataFrame(second, columns=columns)}
    assert ledger(frames).splitlines()[2:] == [
        "| A is better | 6.8 | CT | 1.50 | 0.90 to 2.20 | 82 | 3 | supported |",
        "|  |  | phantom | -2.00 | -3.00 to -1.00 | 60 | 2 | contradicted |",
        "| Cheaper (x) | 10.0 | counted | 61.00 | - | - | - | supported |",
        "| B helps | 1.0 | phantom | 3.00 | 2.00 to 4.00 | 60 | 2 | supported |",
        "| C helps | 2.0 | - | - | - | - | - | not run |",
    ]


def test_averages_of_several_reports_stand_side_by_side():
    first = pd.DataFrame(
        {"label": ["A", "B"], "mean": [68.44, 67.6], "patient_se": [0.7, 0.8], "se": [0.821, 0.92], "seeds": [3, 3]}
    )
    second = pd.DataFrame(
        {"label": ["B", "C", "D"], "mean": [30.0, 29.0, None], "patient_se": [1.0, 1.1, None], "se": None, "seeds": 1}
    )
    assert side_by_side({"CT": first, "phantom": second}).splitlines() == [
        "| Mean Dice (SE) | CT | phantom |",
        "| --- | ---: | ---: |",
        "| A | **68.4 (0.82)** | - |",
        "| B | 67.6 (0.92) | **30.0 (1.00)** |",
        "| C | - | 29.0 (1.10) |",
        "| D | - | - |",
    ]


def test_the_readme_is_changed_between_its_marks_alone(root):
    text = texts_of(make_page(root))["README.md"]
    assert text.startswith("# A title\n<!-- results: begin -->\n") and text.endswith(
        "<!-- results: end -->\nthe rest\n"
    )
    assert "an earlier table" not in text and "Object area" in text
    (root / "README.md").write_text(text)
    assert texts_of(make_page(root))["README.md"] == text


def test_the_recipe_is_that_of_the_runs(root):
    template = root / "docs" / "results.md.j2"
    template.write_text(template.read_text() + '\n{{ recipe("toy") }}\n')
    lines = texts_of(make_page(root))["docs/results.md"].splitlines()
    spec = json.loads(next((root / "docs" / "results" / "toy").glob("boltzformer-*/spec.json")).read_text())
    for name in ("image_size", "steps", "learning_rate", "patience"):
        assert f"| `{name}` | {spec['recipe'][name]} |" in lines
    assert f"| `model.queries` | {spec['model']['queries']} |" in lines


def test_searches_stand_method_by_method(tmp_path):
    budget = Budget(space=("learning_rate=0.001,0.0003",), configurations=2, steps=40, rungs=(20,))
    names = {"run": "r", "best_step": 40, "curve": ()}
    trials = {
        "seem": [(1e-3, "stopped", 20, 0.5), (5e-5, "trained", 40, 0.671)],
        "boltzformer": [(1e-3, "diverged", 7, None), (5e-5, "trained", 40, 0.6)],
    }
    for method, found in trials.items():
        made = [
            Trial(configuration={"learning_rate": rate}, outcome=how, steps=steps, val_loss=1, val_dice=dice, **names)
            for rate, how, steps, dice in found
        ]
        base = RunSpec(suite="tune", profile="laptop", method=method, backbone="hiera_xt", seed=0, split_hash="a" * 64)
        Tuned(base=base, budget=budget, best={"learning_rate": 5e-5}, trials=tuple(made), versions={}).save(tmp_path)
    assert searched(tmp_path).splitlines() == [
        "| Method | lr=5e-05 | lr=0.001 |",
        "| --- | ---: | ---: |",
        "| `boltzformer`, hiera_xt | **60.0** | - (diverged at 7) |",
        "| `seem`, hiera_xt | **67.1** | 50.0 (stopped at 20) |",
        "",
        f"Each: 2 configurations x 40 steps, ASHA, split `{'a' * 64}`.",
    ]


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("main_table", "main_tabel", "has no main_tabel"),
        ('about("toy")', 'about("toys")', "toys is not a suite folder"),
        ('ledger({"toy"', 'ledger({"toys"', "no archive in docs/results"),
    ],
)
def test_what_is_not_there_is_told(root, old, new, message):
    template = root / "docs" / "results.md.j2"
    template.write_text(template.read_text().replace(old, new))
    with pytest.raises(UserError, match=message):
        make_page(root)


def test_a_readme_without_a_place_is_told(root):
    (root / "README.md").write_text("# A title\n")
    with pytest.raises(UserError, match="has no place for the headline"):
        make_page(root)


@pytest.mark.parametrize("parts", [("openkbp",), ("openkbp", "idrid", "openkbp-700")])
def test_the_templates_of_this_repository_hold_what_is_there(root, parts):
    for name in ("results.md.j2", "headline.md.j2"):
        shutil.copyfile(ROOT / "docs" / name, root / "docs" / name)
    for part in parts:
        shutil.copytree(root / "docs" / "results" / "toy", root / "docs" / "results" / part)
    page = make_page(root)
    text, readme = (texts_of(page)[name] for name in ("docs/results.md", "README.md"))
    assert ("IDRiD (fundus)" in readme) == ("idrid" in parts) and "| Mean Dice (SE) | OpenKBP (CT) |" in readme
    assert ("**The number of steps.**" in text) == ("openkbp-700" in parts)
    assert "**The learning rate.**" not in text and "## Ablations" not in text and "## Phantom" not in text
    assert "| BoltzFormer is better than SEEM (text) | 2.3 | OpenKBP (CT) |" in text
    assert [str(path).rpartition("_")[0] for path in page.pictures if "curves" in str(path)] == [
        f"docs/figures/results/{part}" for part in parts if part != "openkbp-700"
    ]
    for picture in page.pictures:
        assert f"]({picture.relative_to('docs')})" in text


@pytest.mark.skipif(not (ROOT / "docs/results.md").is_file(), reason="no results have been published yet")
def test_the_published_page_is_what_its_archives_give():
    page = make_page(ROOT)
    for path, text in page.texts.items():
        assert (ROOT / path).read_text("utf-8") == text, f"{path}: run `python -m experiments.results`"
    drawn = {path.relative_to(ROOT) for path in (ROOT / "docs/figures/results").iterdir()}
    assert drawn == set(page.pictures)
