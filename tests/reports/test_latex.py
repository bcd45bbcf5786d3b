"""LaTeX tables: what is escaped comes back, and a report's tables compile."""

import json
import re
import shutil
import subprocess

import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st

from reports.build import build_report
from reports.latex import latex_escape, to_latex
from reports.tables import Column, Table, highlight

NASTY = r"[*] a|b & <i>50%_#$ {x} \~^ `--` Zoë"
MACROS = {
    r"\textbackslash{}": "\\",
    r"\textasciitilde{}": "~",
    r"\textasciicircum{}": "^",
    r"\textless{}": "<",
    r"\textgreater{}": ">",
    r"\textbar{}": "|",
    r"\textasciigrave{}": "`",
    r"$\geq$": ">=",
    "-{}": "-",
    "{[}": "[",
    "{*}": "*",
    **{f"\\{character}": character for character in "&%$#_{}"},
}
MACRO = re.compile("|".join(map(re.escape, sorted(MACROS, key=len, reverse=True))))
LATEX = shutil.which("pdflatex")
BOOKTABS = LATEX and subprocess.run(["kpsewhich", "booktabs.sty"], capture_output=True, check=False).returncode == 0


def example(columns=2):
    numbers = {f"n{place}": [71.24, 71.16, "failed", 60.0] for place in range(columns - 1)}
    errors = {"n0 SE": [0.521, np.nan, np.nan, 0.004]}
    frame = pd.DataFrame({"name": ["S", "T", NASTY, "N"], "hidden": "secret"} | numbers | errors)
    shown = (
        Column("name", "Name"),
        Column("hidden", "Hidden", narrow=False),
        *(Column(key, "Dice, %", 1, beside="n0 SE" if key == "n0" else None) for key in numbers),
    )
    table = Table("main_table", "Dice & more", "Mean.", frame, shown, phantom=True, notes=("one_note",))
    return highlight(table, "column", ["n0"], ["x", "x", "x", "-"])


def test_a_table_is_balanced_and_says_what_it_must():
    text = to_latex(example())
    assert re.findall(r"\\begin\{([\w*]+)\}", text) == ["table", "tabular"]
    bare = re.sub(r"\\[\\{}&%$#_]", "", text)
    assert bare.count("{") == bare.count("}")
    body = text[text.index(r"\toprule") : text.index(r"\bottomrule")]
    lines = [line for line in body.splitlines() if line.endswith(r"\\")]
    assert {len(re.findall(r"(?<!\\)&", line)) for line in lines} == {1} and len(lines) == 5
    assert r"\underline{\textbf{71.2 (0.52)}}" in body and r"\begin{tabular}{lr}" in text
    assert "phantom" in text and r"one\_note" in text
    assert "secret" not in text and "Hidden" not in text


def test_a_wide_table_spans_the_page():
    assert r"\begin{table}" in to_latex(example(6)) and r"\begin{table*}" in to_latex(example(7))


@given(st.text(alphabet="ab\\&%$#_{}~^<>|=-[]*` ", max_size=12))
def test_what_is_escaped_comes_back(text):
    escaped = latex_escape(text)
    assert MACRO.sub(lambda found: MACROS[found[0]], escaped) == " ".join(text.split())
    assert not set(MACRO.sub("", escaped)) & set("\\&%$#_{}~^<>|`[*")


def test_what_cannot_be_seen_is_dropped():
    assert latex_escape("a\u202eb\x07c\n d\u200b") == "abc d"
    assert latex_escape("Large (>=1%)") == r"Large ($\geq$1\%)"


@pytest.mark.skipif(not BOOKTABS, reason="no pdflatex with booktabs here (Debian: texlive-latex-recommended)")
def test_the_tables_of_a_report_compile(build, tmp_path):
    """With an ablation, names full of special characters, and the paper's columns; nothing is wider than the page."""
    rows = {"boltzformer": f"BoltzFormer {NASTY}", "boltzformer temperature=2": "temperature 2", "sam": "SAM"}
    folder = build.suite(
        tmp_path, objects={"MSD-Lung": [NASTY.replace("/", ""), "nodule"]}, size=48, patients=6, methods=rows
    )
    content = json.loads((folder / "suite.json").read_text())
    content["ablations"] = {"temperature": {"1": "boltzformer", "2": "boltzformer temperature=2"}}
    (folder / "suite.json").write_text(json.dumps(content | {"reference": "boltzformer"}))
    report = build_report(folder)
    tables = sorted(path for path in report.tables.values() if path.suffix == ".tex")
    needed = "main_table by_size object_sizes differences ranks claims cost ablation_temperature"
    assert set(needed.split()) <= {path.stem for path in tables}
    paper = [r"\documentclass[twocolumn]{article}", r"\usepackage{booktabs,graphicx}", r"\begin{document}"]
    paper += [rf"\input{{{path.as_posix()}}}\clearpage" for path in tables] + [r"\end{document}"]
    (tmp_path / "paper.tex").write_text("\n".join(paper))
    done = subprocess.run(
        [LATEX, "-interaction=nonstopmode", "-halt-on-error", "paper.tex"], cwd=tmp_path, capture_output=True
    )
    log = (tmp_path / "paper.log").read_text(errors="replace")
    assert done.returncode == 0, "\n".join(line for line in log.splitlines() if line.startswith(("!", "l.")))
    assert "Missing character" not in log
    assert "Overfull" not in log
    assert (tmp_path / "paper.pdf").read_bytes().startswith(b"%PDF")
    assert int(re.search(r"Output written on paper.pdf \((\d+) page", log)[1]) >= len(tables)
