"""The page of token trees: every set in its column, the top path first, pruned and ending tokens marked, nothing from a model as markup."""

from __future__ import annotations

import re
from html import unescape
from pathlib import Path

import pytest
from report.parallel_run import make_tree, write_trees

from symbolic_residue.report import export_figures, render_report
from symbolic_residue.report._parallel_tree import shade


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> str:
    return render_report(write_trees(tmp_path_factory.mktemp("trees") / "run", captured=True)).read_text("utf-8")


def columns(page: str) -> list[str]:
    tree = page[page.index('<ol class="tree"') : page.index("</ol>")]
    return re.findall(r"<li.*?</li>", tree, re.DOTALL)


def test_every_set_is_a_column_in_falling_probability(page: str) -> None:
    tree = make_tree()
    found = columns(page)
    assert len(found) == len(tree.steps)
    for column, step in zip(found, tree.steps, strict=True):
        tokens = re.findall(r'<span class="(t[^"]*)" style="([^"]*)" title="([^"]*)">(.*?)<span class="p">([\d.]+)', column)
        assert len(tokens) == len(step.tokens) and ("several" in column) == (len(step.tokens) > 1)
        for rank, ((kind, style, title, text, p), token) in enumerate(zip(tokens, step.tokens, strict=True)):
            assert unescape(text) == token.text.replace(" ", "·").replace("\n", "⏎")
            assert p == f"{token.probability:.2f}" and shade(token.probability) in style
            assert ("top" in kind.split()) == (rank == 0) and ("gone" in kind.split()) == (token.gone is not None)
            assert f"token {token.id}," in title and f"slot {token.slot}" in title and f"position {token.position:g}," in title
            assert ("taken out before step" in title) == (token.gone is not None)
        assert ("⟂ 0.12" in column) == bool(step.endings)
    sizes = [float(s) for s in re.findall(r"font-size:([\d.]+)px", "".join(found))]
    assert 12 <= min(sizes) < max(sizes) <= 19


def test_text_alternatives_and_numbers(page: str) -> None:
    tree = make_tree()
    plain = unescape(re.sub("<[^>]*>", "", page))
    assert f"The cat sat on{tree.text}".replace("\n", "⏎") in plain and tree.rendered().replace("\n", "⏎") in plain
    tokens = sum(len(s.tokens) for s in tree.steps)
    gone = sum(t.gone is not None for s in tree.steps for t in s.tokens)
    assert f"30 steps, {tokens} tokens," in plain and f"{gone} taken out" in plain and "1 steps could end the text" in plain
    assert page.count("<svg") == 1 and "The attention of 2 steps is kept" in plain


def test_shade_follows_probability_and_keeps_text_readable() -> None:
    light = [sum(int(shade(p)[i : i + 2], 16) for i in (1, 3, 5)) for p in (0, 0.01, 0.1, 0.5, 1.0)]
    assert light == sorted(light, reverse=True) and shade(0) == "#ffffff" and shade(2) == shade(1)

    def luminance(colour: str) -> float:
        channels = [int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5)]
        r, g, b = (c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in channels)
        return 0.2126 * r + 0.7152 * g + 0.0722 * b

    for ink in ("#16181d", "#3c3c42"):
        assert (luminance(shade(1)) + 0.05) / (luminance(ink) + 0.05) >= 4.5


def test_nothing_from_a_model_is_markup(tmp_path: Path) -> None:
    page = render_report(write_trees(tmp_path / "run", items=2, failed=1, nasty=True)).read_text("utf-8")
    body = page[: page.rindex("<script>")]
    assert "<script" not in body and "<img" not in body and "\u202e" not in page and "&lt;script&gt;" in page
    assert "1 prompt failed" in page and 'href="#item-2"' in page


def test_the_overview_is_of_all_and_the_first_are_shown_in_full(tmp_path: Path) -> None:
    page = render_report(write_trees(tmp_path / "run", items=32, n_steps=3)).read_text("utf-8")
    assert page.count('<ol class="tree"') == 30 and page.count('<th scope="row"><a href="#item-') == 30
    assert "p031" in page and "The first 30 are shown in full" in page


def test_a_very_long_tree_is_cut_and_says_so(tmp_path: Path) -> None:
    page = render_report(write_trees(tmp_path / "run", n_steps=403)).read_text("utf-8")
    assert len(columns(page)) == 400 and "3 further steps are in the tables" in page


def test_the_same_folder_gives_the_same_bytes_and_figures(tmp_path: Path) -> None:
    run = write_trees(tmp_path / "run", items=2)
    assert render_report(run).read_bytes() == render_report(run).read_bytes()
    files = export_figures(run, ["svg"])
    assert [file.name for file in files] == ["p000-steps.svg", "p001-steps.svg"]
