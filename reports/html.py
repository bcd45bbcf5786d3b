"""One HTML file that opens offline: tables first, figures as data URIs, then how it was made."""

from __future__ import annotations

import base64
import json
from collections.abc import Sequence
from dataclasses import dataclass
from importlib import resources

from bench.spec import flatten
from reports.load import Run, SuiteResults
from reports.tables import Table, to_html


@dataclass(frozen=True)
class Picture:
    """A figure of the report: file name without ".png", title, caption and the PNG itself."""

    name: str
    title: str
    caption: str
    png: bytes

    @property
    def uri(self) -> str:
        """The PNG as a data URI."""
        return "data:image/png;base64," + base64.b64encode(self.png).decode("ascii")


def render(
    results: SuiteResults,
    tables: Sequence[Table],
    pictures: Sequence[Picture],
    caveats: Sequence[str],
    gaps: Sequence[str],
) -> str:
    """The whole page as text. Everything that came from a file is escaped; nothing is fetched when it is
    opened."""
    import jinja2
    from markupsafe import Markup

    environment = jinja2.Environment(
        autoescape=True, trim_blocks=True, lstrip_blocks=True, undefined=jinja2.StrictUndefined
    )
    template = environment.from_string(resources.files("reports").joinpath("report.html.j2").read_text("utf-8"))
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
    )


def environment_lines(runs: Sequence[Run]) -> list[tuple[str, list[tuple[str, int]]]]:
    """(key, [(value, number of runs with it), ...]) over all env.json, nested keys joined by dots."""
    seen: dict[str, dict[str, int]] = {}
    for run in runs:
        for key, item in flatten(run.env).items():
            value = item if isinstance(item, str) else json.dumps(item)
            counts = seen.setdefault(key, {})
            counts[value] = counts.get(value, 0) + 1
    return [(key, list(counts.items())) for key, counts in seen.items()]
