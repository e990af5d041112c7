"""The report in a real browser: it asks for nothing, runs nothing from a prompt, fits the screen and the paper."""

from __future__ import annotations

import itertools
import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from report.concepts_run import write_concepts
from report.contrast_run import write_contrast
from report.parallel_run import write_measure, write_trees
from report.synthetic_run import write_run

pytestmark = pytest.mark.browser

OVERFLOW = "document.documentElement.scrollWidth - document.documentElement.clientWidth"


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    """Chromium by Playwright: the one named in RESIDUE_CHROMIUM, the system's, or Playwright's own."""
    api = pytest.importorskip("playwright.sync_api", reason="Playwright is not installed")
    path = os.environ.get("RESIDUE_CHROMIUM") or shutil.which("chromium") or shutil.which("chromium-browser")
    with api.sync_playwright() as playwright:
        if path is None and not Path(playwright.chromium.executable_path).exists():
            pytest.skip("no Chromium: none on the PATH, and Playwright has not installed its own")
        found = playwright.chromium.launch(executable_path=path, args=["--no-sandbox"])
        yield found
        found.close()


@pytest.fixture(scope="module")
def reports(tmp_path_factory) -> dict[str, str]:
    from symbolic_residue.report import render_report

    root = tmp_path_factory.mktemp("runs")
    runs = {
        "one": write_run(root / "one"),
        "nasty": write_run(root / "nasty", nasty=True, failed=1, n_layers=6, n_heads=4),
        "several": write_run(root / "several", items=3, failed=2, status="interrupted", n_layers=4, n_heads=3),
    }
    runs["contrast"] = write_contrast(root / "contrast", nasty=True)
    runs["trees"] = write_trees(root / "trees", captured=True)
    runs["nasty trees"] = write_trees(root / "nasty-trees", items=2, failed=1, nasty=True)
    runs["measure"] = write_measure(root / "measure", nasty=True)
    runs["concepts"] = write_concepts(root / "concepts", verdicts=True, causal=True)
    runs["nasty concepts"] = write_concepts(root / "nasty-concepts", nasty=True, watched=True, verdicts=True, causal=True)
    return {name: render_report(run).as_uri() for name, run in runs.items()}


@pytest.fixture
def visit(browser, reports) -> Iterator[Any]:
    """``visit(name, width, height)`` opens a report; every message of the console and every request is kept."""
    contexts = []

    def go(name: str, width: int = 1280, height: int = 800, **options: Any) -> Any:
        context = browser.new_context(viewport={"width": width, "height": height}, **options)
        contexts.append(context)
        page = context.new_page()
        page.messages, page.requests = [], []
        page.on("console", lambda message: page.messages.append(message.text))
        page.on("pageerror", lambda error: page.messages.append(str(error)))
        page.on("request", lambda request: page.requests.append(request.url))
        page.goto(reports[name])
        return page

    yield go
    for context in contexts:
        context.close()


@pytest.mark.parametrize(
    "name", ["one", "nasty", "several", "contrast", "trees", "nasty trees", "measure", "concepts", "nasty concepts"]
)
@pytest.mark.parametrize("width", [1280, 390])
def test_quiet_sealed_and_no_wider_than_the_screen(visit, reports, name, width):
    page = visit(name, width)
    page.get_by_role("button", name="expand all").click()
    page.wait_for_timeout(50)
    assert page.messages == []
    assert page.requests == [reports[name]]
    assert page.evaluate("window.pwned") is None
    assert page.evaluate(OVERFLOW) <= 0


def test_a_script_that_slipped_in_would_still_not_run(visit):
    page = visit("nasty")
    page.evaluate(
        "() => { const s = document.createElement('script'); s.textContent = 'window.pwned = 2'; document.body.append(s); }"
    )
    assert page.evaluate("window.pwned") is None
    assert any("Content Security Policy" in message for message in page.messages)


def test_the_verdict_and_its_four_cards_are_above_the_fold(visit):
    page = visit("one")
    for selector in (".verdict", ".sr-cards"):
        box = page.locator(selector).bounding_box()
        assert box["y"] + box["height"] <= 800
    assert page.locator(".sr-card").count() == 4


def test_a_measurement_answers_above_the_fold(visit):
    page = visit("measure")
    for selector in (".verdict", "table >> nth=0"):
        box = page.locator(selector).bounding_box()
        assert box["y"] + box["height"] <= 800
    page.get_by_role("link", name="Is a token looked at less because it shares its position?").click()
    assert page.locator("#position").is_visible()


def test_a_contrast_answers_above_the_fold(visit):
    page = visit("contrast")
    for selector in (".verdict", "table >> nth=0"):
        box = page.locator(selector).bounding_box()
        assert box["y"] + box["height"] <= 800
    assert page.locator("figure svg").count() == page.locator("svg").count() > 20
    page.get_by_role("link", name="Does it matter? Causal follow-ups").click()
    assert page.locator("#causal").is_visible()


def test_a_token_tree_is_read_along_its_top_path(visit):
    """Columns run left to right and wrap; within one the top token stands first, larger than a sibling of half its probability or less."""
    page = visit("trees")
    boxes = page.evaluate(
        """() => [...document.querySelectorAll('.tree .set')].map((set) => [...set.querySelectorAll('.t')].map((t) => {
            const box = t.getBoundingClientRect();
            return {x: box.x, y: box.y, right: box.right, top: t.classList.contains('top'), size: parseFloat(getComputedStyle(t).fontSize),
                p: parseFloat(t.querySelector('.p').textContent), line: getComputedStyle(t).textDecorationLine, gone: t.classList.contains('gone')};
        }))"""
    )
    assert len(boxes) == 30
    firsts = [column[0] for column in boxes]
    assert all(a["x"] < b["x"] or a["y"] < b["y"] for a, b in itertools.pairwise(firsts))
    for column in boxes:
        assert [t["top"] for t in column] == [True] + [False] * (len(column) - 1)
        assert all(a["y"] < b["y"] for a, b in itertools.pairwise(column))
        assert all(t["size"] < column[0]["size"] for t in column[1:] if t["p"] < column[0]["p"] / 2)
        assert all((t["line"] == "line-through") == t["gone"] and t["right"] <= 1280 for t in column)
    assert page.locator(".tree .end").inner_text() == "⟂ 0.12"


@pytest.mark.parametrize("scripts", [True, False])
def test_a_layer_is_chosen_with_or_without_scripts(visit, scripts):
    page = visit("concepts", java_script_enabled=scripts)
    maps = page.locator("#similarity ~ fieldset table.map")
    assert [one.is_visible() for one in maps.all()] == [False, True]  # of two layers the middle one is open
    page.locator("#similarity ~ fieldset label", has_text="0").click()
    assert [one.is_visible() for one in maps.all()] == [True, False]
    assert maps.first.locator("caption").inner_text() == "Layer 0"
    page.keyboard.press("ArrowRight")
    assert [one.is_visible() for one in maps.all()] == [False, True]


def test_the_map_of_cosines_can_be_read(visit):
    """Names stand along both sides, cells are of one size and their numbers fit."""
    page = visit("concepts")
    table = page.locator("#similarity ~ fieldset table.map >> visible=true")
    boxes = table.locator("tbody td").evaluate_all(
        "(cells) => cells.map((c) => ({w: c.getBoundingClientRect().width, h: c.getBoundingClientRect().height, over: c.scrollWidth > c.clientWidth}))"
    )
    assert len(boxes) == 25 and not any(box["over"] for box in boxes)
    assert all(box["w"] >= 40 and box["h"] >= 24 for box in boxes)
    names = table.locator("thead th.name")
    assert names.all_inner_texts() == table.locator("tbody th").all_inner_texts() == ["joy", "fear", "trust", "calm", "late"]
    assert all(name.evaluate("(e) => getComputedStyle(e).writingMode") == "vertical-rl" for name in names.all())


def test_each_concept_shows_its_own_texts_and_heads(visit):
    page = visit("concepts")
    for name in ("outliers", "heads"):
        field = page.locator(f"section[aria-labelledby='{name}'] fieldset")
        field.locator("label", has_text="trust").click()
        assert field.locator("caption >> visible=true").all_inner_texts()[0].startswith("trust")
        assert field.locator("table >> visible=true").count() == 1
    assert page.locator("section[aria-labelledby='heads'] svg >> visible=true").count() == 1
    with page.expect_download() as found:
        page.get_by_role("link", name="All layers as CSV").click()
    assert found.value.suggested_filename == "concepts-layers.csv"


def test_the_token_under_the_pointer_tells_its_numbers(visit):
    page = visit("one")
    readout = page.locator(".readout")
    assert readout.inner_text() == "Point at a token for its numbers."
    page.locator(".t", has_text="tomato").first.hover()
    assert "·tomato" in readout.inner_text()
    assert "influence" in readout.inner_text()


def test_details_open_by_one_button(visit):
    page = visit("one")
    assert page.locator("details[open]").count() == 0
    button = page.locator("header button")
    button.click()
    assert page.locator("details:not([open])").count() == 0
    button.click()
    assert page.locator("details[open]").count() == 0


def test_without_scripts_nothing_is_lost(visit):
    page = visit("one", java_script_enabled=False)
    assert page.locator("header button").count() == 0
    assert not page.locator(".readout").is_visible()
    assert page.locator(".t").nth(5).get_attribute("title").startswith("position 5")
    page.locator("summary").first.click()
    assert page.locator("details[open]").count() == 1


def test_links_of_the_overview_lead_to_the_items(visit):
    page = visit("several")
    page.get_by_role("link", name="q002").click()
    assert page.url.endswith("#item-3")
    assert page.locator("#item-3").is_visible()


@pytest.mark.parametrize("name", ["one", "trees", "concepts"])
def test_text_is_not_smaller_than_ten_pixels(visit, name):
    page = visit(name)
    smallest = page.evaluate(
        """() => Math.min(...[...document.querySelectorAll('body *')]
            .filter((e) => e.checkVisibility() && [...e.childNodes].some((n) => n.nodeType === 3 && n.data.trim()))
            .map((e) => parseFloat(getComputedStyle(e).fontSize)
                * (e.ownerSVGElement ? Math.hypot(e.getScreenCTM().a, e.getScreenCTM().b) : 1)))"""
    )
    assert smallest >= 9.9


@pytest.mark.parametrize("name", ["one", "trees", "concepts"])
def test_contrast_of_text_on_its_own_background(visit, name):
    page = visit(name)
    worst = page.evaluate(
        """() => {
        const parse = (c) => (c.match(/[\\d.]+/g) || []).map(Number);
        const light = (c) => { const [r, g, b] = c.map((v) => { v /= 255; return v <= 0.04045 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4; });
            return 0.2126 * r + 0.7152 * g + 0.0722 * b; };
        let worst = [99, ''];
        for (const e of document.querySelectorAll('main *:not(svg *), header *')) {
            if (![...e.childNodes].some((n) => n.nodeType === 3 && n.data.trim()) || e.closest('.prompt i, .legend i')) continue;
            let at = e, back = [0, 0, 0, 0];
            while (at && (back.length > 3 && back[3] === 0)) { back = parse(getComputedStyle(at).backgroundColor); at = at.parentElement; }
            if (back.length > 3 && back[3] === 0) back = [255, 255, 255];
            const [a, b] = [light(parse(getComputedStyle(e).color).slice(0, 3)), light(back.slice(0, 3))].sort((x, y) => y - x);
            const contrast = (a + 0.05) / (b + 0.05);
            if (contrast < worst[0]) worst = [contrast, e.outerHTML.slice(0, 120)];
        }
        return worst; }"""
    )
    assert worst[0] >= 4.5, worst


@pytest.mark.parametrize("name", ["one", "nasty", "several", "trees", "concepts"])
def test_prints_on_a4_with_nothing_wider_than_the_page(visit, name):
    page = visit(name)
    pdf = page.pdf(prefer_css_page_size=True)
    assert pdf.startswith(b"%PDF")
    assert pdf.count(b"/Type /Page\n") + pdf.count(b"/Type /Page ") + pdf.count(b"/Type/Page/") >= 3
    # The same layout at the width that A4 leaves (184 mm at 96 px an inch): no table or figure sticks out.
    page.set_viewport_size({"width": 695, "height": 1000})
    page.emulate_media(media="print")
    wide = page.evaluate(
        """() => [...document.querySelectorAll('main table, figure:not(.wide) svg, .prompt, pre, .kv')]
            .filter((e) => e.getClientRects().length && (e.getBoundingClientRect().right > innerWidth + 1
                || e.parentElement.scrollWidth > e.parentElement.clientWidth + 1))
            .map((e) => e.closest('section').getAttribute('aria-labelledby') + ' ' + e.tagName)"""
    )
    assert wide == []


def test_measures_across_shells_are_sections_one_can_see(browser, tmp_path_factory):
    from report.across_run import write_across

    from symbolic_residue.report import render_report

    page = browser.new_page(viewport={"width": 1280, "height": 800})
    page.goto(render_report(write_across(tmp_path_factory.mktemp("runs") / "across")).as_uri())
    for name, figure in (("silence", True), ("disruption", True), ("errors", True), ("cross-run", False), ("attention", True)):
        section = page.locator(f"section[aria-labelledby='item-1-{name}']")
        assert section.is_visible()
        assert "n = 7 (" in section.inner_text()
        assert "Control:" in section.inner_text()
        assert section.locator("svg").count() >= figure
        for svg in section.locator("svg").all():
            box = svg.bounding_box()
            assert box["width"] > 100
            assert box["height"] > 40
        if name != "errors":
            assert section.locator("tbody tr").first.is_visible()
    empty = page.locator("section[aria-labelledby='item-1-ghosts']")
    assert empty.is_visible()
    assert "Nothing measured: no silent prompt has a control." in empty.inner_text()
    page.set_viewport_size({"width": 390, "height": 800})
    assert page.evaluate(OVERFLOW) <= 0
    page.close()
