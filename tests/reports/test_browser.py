"""The page in a real browser: it runs its own script and no other, sorts, filters, and works on a phone."""

import shutil

import pytest

from reports.build import build_report

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
METHODS = {"boltzformer": "BoltzFormer", "sam": "SAM", "nnunet": "nnU-Net"}


@pytest.fixture(scope="module")
def page(build, tmp_path_factory):
    """The report of a suite, one of whose objects is called <script>, open in headless Chromium."""
    if CHROMIUM is None:
        pytest.skip("needs Chromium (Debian: apt install chromium)")
    from playwright.sync_api import sync_playwright

    objects = {"LIDC-IDRI": ["nodule"], "zebra": ["<script>document.title='broken'</script>", "hoof"]}
    suite = build.suite(tmp_path_factory.mktemp("browser"), size=48, patients=6, objects=objects, methods=METHODS)
    build.change(suite / "suite.json", reference="boltzformer")
    report = build_report(suite)
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        opened = browser.new_page(viewport={"width": 390, "height": 844})
        opened.said, opened.asked = [], []
        opened.on("console", lambda message: opened.said.append(message.text))
        opened.on("pageerror", lambda error: opened.said.append(str(error)))
        opened.on("request", lambda request: opened.asked.append(request.url))
        opened.goto(report.html.as_uri())
        yield opened
        browser.close()


def column(page, table, number):
    cells = page.locator(f"#{table} tbody tr td:nth-child({number})").all_inner_texts()
    return [text.split(" ")[0] for text in cells]


def test_nothing_is_fetched_and_nothing_complained_of(page):
    assert page.said == []
    assert all(url.startswith(("file:", "data:")) for url in page.asked)
    assert page.title() == "Main comparison (phantom data)"


def test_text_from_the_data_stays_text(page):
    assert "<script>document.title='broken'</script>" in page.locator("#per_object").inner_text()
    assert page.locator("script").count() == 1


def test_a_script_of_somebody_else_does_not_run(page):
    """The page's policy names the hash of its own script."""
    page.evaluate(
        "document.body.appendChild(Object.assign(document.createElement('script'), {text: 'window.seen = 1'}))"
    )
    assert page.evaluate("window.seen") is None
    page.said.clear()


def test_tables_sort_both_ways(page):
    header = page.locator("#per_object th").nth(3)
    before = [float(text) for text in column(page, "per_object", 4)]
    header.locator("button").click()
    assert header.get_attribute("aria-sort") == "descending"
    assert [float(text) for text in column(page, "per_object", 4)] == sorted(before, reverse=True)
    header.locator("button").click()
    assert [float(text) for text in column(page, "per_object", 4)] == sorted(before)
    page.locator("#per_object th").nth(1).locator("button").press("Enter")  # by keyboard, text instead of numbers
    assert column(page, "per_object", 2) == sorted(column(page, "per_object", 2), reverse=True)


def test_gaps_are_sorted_last(page):
    button = page.locator("#claims th").nth(3).locator("button")
    for _ in range(2):
        button.click()
        values = column(page, "claims", 4)
        gaps = [place for place, text in enumerate(values) if text == "-"]
        assert gaps == list(range(len(values) - len(gaps), len(values))) and 0 < len(gaps) < len(values)


def test_cases_filter_and_sort(page):
    shown = page.locator("#cases li:visible")
    every = shown.count()
    assert every > 10 and page.locator("#cases output").inner_text() == f"{every} of {every} cases"
    page.select_option("#cases select[name=dataset]", "zebra")
    assert 0 < shown.count() < every
    page.select_option("#cases select[name=object]", "hoof")
    assert all("zebra, hoof" in text for text in shown.all_inner_texts()) and shown.count() > 0
    page.select_option("#cases select[name=method]", "SAM+Hiera-XT")
    for order, sign in (("worst", 1), ("best", -1)):
        page.select_option("#cases select[name=order]", order)
        texts = page.locator("#cases li:visible .chosen figcaption").all_inner_texts()
        dice = [float(text.rsplit(" ", 1)[1]) for text in texts]
        assert dice == sorted(dice, key=lambda value: sign * value) and len(set(dice)) > 1
    page.select_option("#cases select[name=object]", "nodule")  # not of this data set
    assert shown.count() == 0 and "0 of" in page.locator("#cases output").inner_text()


def test_the_page_is_no_wider_than_the_phone(page):
    assert page.evaluate("document.documentElement.scrollWidth") <= 390


def test_dark_and_light(page):
    colors = []
    for scheme in ("light", "dark"):
        page.emulate_media(color_scheme=scheme)
        colors.append(page.evaluate("getComputedStyle(document.body).backgroundColor"))
    assert colors == ["rgb(255, 255, 255)", "rgb(20, 23, 27)"]
