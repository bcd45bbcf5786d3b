"""One HTML file that opens offline: tables first, figures as data URIs, then how it was made."""

from __future__ import annotations

import base64
import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from importlib import resources

from bench.spec import flatten
from reports.cases import Case
from reports.drawing import Drawing
from reports.load import Run, SuiteResults
from reports.strata import BINS
from reports.tables import Table, to_html


@dataclass(frozen=True)
class Picture:
    """A figure of the report: file name without ending, title, caption and the drawing itself."""

    name: str
    title: str
    caption: str
    drawing: Drawing

    @property
    def uri(self) -> str:
        """The PNG as a data URI."""
        return "data:image/png;base64," + base64.b64encode(self.drawing.png).decode("ascii")


def render(
    results: SuiteResults,
    tables: Sequence[Table],
    pictures: Sequence[Picture],
    caveats: Sequence[str],
    gaps: Sequence[str],
    cases: Sequence[Case] = (),
) -> str:
    """The whole page as text. Everything that came from a file is escaped; nothing is fetched when it is
    opened."""
    import jinja2
    from markupsafe import Markup

    environment = jinja2.Environment(
        autoescape=True, trim_blocks=True, lstrip_blocks=True, undefined=jinja2.StrictUndefined
    )
    template = environment.from_string(resources.files("reports").joinpath("report.html.j2").read_text("utf-8"))
    script = resources.files("reports").joinpath("report.js").read_text("utf-8")
    digest = hashlib.sha256(script.encode()).digest()
    phantom = " (phantom data)" if results.phantom else ""
    return template.render(
        results=results,
        phantom=phantom,
        # to_html escapes every cell itself
        tables=[(table.name, table.title, Markup(to_html(table))) for table in tables],
        pictures=pictures,
        caveats=caveats,
        gaps=gaps,
        environment=environment_lines(results.runs),
        cases=cases,
        datasets=dict.fromkeys(case.dataset for case in cases),
        objects=sorted({case.object for case in cases}),
        sizes=[group.label for group in BINS if any(case.size == group.label for case in cases)],
        methods=_reference_first(cases, results),
        script=Markup(script),
        script_hash=base64.b64encode(digest).decode("ascii"),  # the page runs this script and no other
    )


def _reference_first(cases: Sequence[Case], results: SuiteResults) -> list[str]:
    """The methods of the case browser, the one that cases were chosen by first."""
    names = list(dict.fromkeys(overlay.method for case in cases for overlay in case.overlays))
    first = results.methods.get(results.reference or "", "")
    return sorted(names, key=lambda name: not (first and name.startswith(first)))


def environment_lines(runs: Sequence[Run]) -> list[tuple[str, list[tuple[str, int]]]]:
    """(key, [(value, number of runs with it), ...]) over all env.json, nested keys joined by dots."""
    seen: dict[str, dict[str, int]] = {}
    for run in runs:
        for key, item in flatten(run.env).items():
            value = item if isinstance(item, str) else json.dumps(item)
            counts = seen.setdefault(key, {})
            counts[value] = counts.get(value, 0) + 1
    return [(key, list(counts.items())) for key, counts in seen.items()]
