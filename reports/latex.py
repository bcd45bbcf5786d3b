"""Tables as LaTeX, to be `\\input` in a paper of one or two columns."""

from __future__ import annotations

import re
import unicodedata
from itertools import compress

from reports.tables import Cell, Table, cells

PREAMBLE = r"% needs \usepackage{booktabs,graphicx}; letters that are not Latin need xelatex or lualatex"
ONE_COLUMN = 6  # columns of a table that a text column of a paper has room for
# shrunk where it is too wide, never blown up
FIT = r"\resizebox{\ifdim\width>\linewidth\linewidth\else\width\fi}{!}{%"
SPECIAL = {
    "\\": r"\textbackslash{}",
    "&": r"\&",
    "%": r"\%",
    "$": r"\$",
    "#": r"\#",
    "_": r"\_",
    "{": r"\{",
    "}": r"\}",
    "~": r"\textasciitilde{}",
    "^": r"\textasciicircum{}",
    "<": r"\textless{}",
    ">": r"\textgreater{}",
    "|": r"\textbar{}",
    "`": r"\textasciigrave{}",
    "[": "{[}",  # behind the end of a row it would be that row's argument
    "*": "{*}",
}


def to_latex(table: Table) -> str:
    r"""A table environment: best in \textbf, best per group in \underline; only the columns for narrow places.

    One of more than six columns is a `table*`: as wide as the page where the paper has two columns.
    """

    def show(cell: Cell) -> str:
        text = latex_escape(cell.text)
        text = rf"\textbf{{{text}}}" if cell.bold else text
        return rf"\underline{{{text}}}" if cell.underline else text

    shown = [column.narrow for column in table.columns]
    columns = list(compress(table.columns, shown))
    alignment = "".join("l" if column.digits is None else "r" for column in columns)
    environment = "table" if len(columns) <= ONE_COLUMN else "table*"
    caption = f"{table.full_title}. {table.full_caption}"
    notes = [rf"\par\smallskip\parbox{{\linewidth}}{{\footnotesize {latex_escape(note)}}}" for note in table.notes]
    body = [" & ".join(show(cell) for cell in compress(row, shown)) + r" \\" for row in cells(table)]
    lines = [
        PREAMBLE,
        rf"\begin{{{environment}}}",
        r"\centering\small",
        rf"\caption[{{{latex_escape(table.full_title)}}}]{{{latex_escape(caption)}}}",
        rf"\label{{tab:{table.name.replace('_', '-')}}}",
        FIT,
        rf"\begin{{tabular}}{{{alignment}}}",
        r"\toprule",
        " & ".join(latex_escape(column.header) for column in columns) + r" \\",
        r"\midrule",
        *body,
        r"\bottomrule",
        r"\end{tabular}}",
        *notes,
        rf"\end{{{environment}}}",
    ]
    return "\n".join(lines) + "\n"


def latex_escape(text: str) -> str:
    """Text in one line with LaTeX's special characters made plain; control and formatting characters are dropped."""
    line = " ".join(text.split())
    visible = "".join(character for character in line if unicodedata.category(character) not in ("Cc", "Cf", "Cs"))
    plain = "".join(SPECIAL.get(character, character) for character in visible)
    plain = re.sub("-(?=-)", "-{}", plain)  # two hyphens are not a dash
    return plain.replace(rf"{SPECIAL['>']}=", r"$\geq$")
