"""The page opens offline, is well formed, and shows file contents as text."""

import base64
import dataclasses
from html.parser import HTMLParser

import pandas as pd
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from reports.cases import Case, Overlay
from reports.drawing import Drawing
from reports.html import Picture, environment_lines, render
from reports.load import load_suite
from reports.tables import Column, Table

VOID = {"meta", "img", "br", "link", "input", "hr"}


class Page(HTMLParser):
    def __init__(self):
        super().__init__()
        self.open, self.ids, self.sources, self.targets = [], [], [], []

    def handle_starttag(self, tag, attrs):
        values = dict(attrs)
        if tag not in VOID:
            self.open.append(tag)
        self.ids += [values["id"]] if "id" in values else []
        self.sources += [values[name] for name in ("src", "srcset", "data", "poster") if name in values]
        self.targets += [values["href"]] if "href" in values else []

    def handle_endtag(self, tag):
        assert self.open.pop() == tag


@pytest.fixture
def page(build, tmp_path):
    suite = build.suite(tmp_path, patients=2, slices=1, size=16)
    build.change(suite / "suite.json", title="<script>alert(1)</script>", command="bench run --data 'a & b'")
    table = Table("main_table", "Dice", "c", pd.DataFrame({"a": ["<script>"]}), (Column("a", "A"),), True)
    picture = Picture("curves", "Curves", "caption", Drawing(b"\x89PNG", b"<svg/>"))
    return render(load_suite(suite), [table], [picture], ["caveat <x>"], ["gap <y>"])


def test_well_formed_and_offline(page):
    parser = Page()
    parser.feed(page)
    assert parser.open == []
    assert parser.sources == ["data:image/png;base64," + base64.b64encode(b"\x89PNG").decode()]
    assert "http://" not in page and "https://" not in page and "@import" not in page and "url(" not in page
    inside = [target[1:] for target in parser.targets if target.startswith("#")]
    assert set(inside) <= set(parser.ids) and "main_table" in inside and "curves" in inside


def test_everything_from_files_is_escaped(page):
    assert page.count("<script") == 1 and "<x>" not in page and "<y>" not in page
    assert "&lt;script&gt;alert(1)" in page and "a &amp; b" in page


class Shape(HTMLParser):
    """The elements of a page with their attributes' names, in their order, and its text."""

    def __init__(self, page):
        super().__init__()
        self.elements, self.texts = [], []
        self.feed(page)

    def handle_starttag(self, tag, attrs):
        self.elements.append((tag, tuple(name for name, _ in attrs)))

    def handle_data(self, data):
        self.texts.append(data)


def test_no_name_of_a_file_makes_an_element(build, tmp_path):
    """Whatever stands in suite.json, spec.json, env.json and the data: the page has the same elements, with the same
    attributes, as with harmless names.
    """
    suite = load_suite(build.suite(tmp_path, patients=2, slices=1, size=16))

    def page(text):
        names = dict.fromkeys(("title", "suite", "profile"), text) | {"commands": (text,)}
        runs = tuple(
            dataclasses.replace(run, error=text, env={"versions": {"x": text}, "z": text}) for run in suite.runs
        )
        methods = dict.fromkeys(suite.methods, text)
        results = dataclasses.replace(suite, **names, runs=runs, methods=methods, data={text: tmp_path})
        table = Table(text, text, text, pd.DataFrame({"a": [text]}), (Column("a", text),), True)
        picture = Picture("curves", text, text, Drawing(b"\x89PNG", b"<svg/>"))
        case = Case(text, text, text, text, text, 1.0, "data:,", (Overlay(text, "data:,", 1.0),))
        return Shape(render(results, [table], [picture], [text], [text], [case]))

    plain = page("plain")

    @settings(max_examples=60, deadline=None)
    @given(st.text(st.sampled_from("<>\"'&/=!-[]{}%;#` abscript\n\0\u2028"), min_size=1, max_size=30))
    @example("<script>alert(1)</script>")
    @example('"><img src=x onerror=alert(1)>')
    @example("' onmouseover='alert(1)")
    @example("</title></style></script><svg onload=alert(1)>")
    @example("{{ 7 * 7 }}{% raw %}")
    @example("-->]]>&lt;b&gt;")
    def same(text):
        found = page(text)
        assert found.elements == plain.elements

    same()
    assert "{{ 7 * 7 }}" in "".join(page("{{ 7 * 7 }}").texts)


def test_says_how_it_was_made(page):
    for text in (
        "split0123",
        "phantom",
        "versions.torch",
        "2.9.1",
        "caveat",
        "gap",
        "prefers-color-scheme: dark",
    ):
        assert text in page


def test_environments_that_differ_are_counted(build, tmp_path):
    suite = build.suite(tmp_path, patients=2, slices=1, size=16)
    first = next(path for path in suite.iterdir() if path.name.startswith("sam-"))
    build.change(first / "env.json", versions={"torch": "2.8.0"}, device=None)
    lines = dict(environment_lines(load_suite(suite).runs))
    assert lines["versions.torch"] == [("2.9.1", 2), ("2.8.0", 1)]
    assert lines["cores"] == [("2", 3)] and lines["device"] == [("cpu", 2), ("null", 1)]
