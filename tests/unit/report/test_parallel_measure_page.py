"""The page of a measurement: verdicts first, each beside its control; the published metric labelled; what is not there is said."""

from __future__ import annotations

import re
from html import unescape
from pathlib import Path

import pytest
from report.parallel_run import write_measure

from symbolic_residue.report import export_figures, render_report


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> str:
    return render_report(write_measure(tmp_path_factory.mktemp("measure") / "run", failed=1)).read_text("utf-8")


def section(page: str, name: str) -> str:
    start = page.index(f'<section aria-labelledby="{name}">')
    return page[start : page.index("</section>", start)]


def words(part: str) -> str:
    return " ".join(unescape(re.sub("<[^>]*>", " ", part)).split())


def table_rows(part: str) -> list[list[str]]:
    return [
        [words(cell) for cell in re.findall(r"<t[dh][^>]*>(.*?)</t[dh]>", row, re.DOTALL)]
        for row in re.findall(r"<tr[^>]*>(.*?)</tr>", part, re.DOTALL)
    ]


def test_the_answer_comes_first_with_its_control(page: str) -> None:
    answer = section(page, "answer")
    assert (
        "looked at less because it shares its position: at equal distance the ratio is 0.812 [0.731, 0.894], over 12 prompts."
        in words(answer)
    )
    rows = {row[0]: row for row in table_rows(answer)}
    assert rows["shared position"][1:] == [
        "down-weighted", "0.812 [0.731, 0.894]", "12", "moved / unique", "shared against offset 0.5: 0.875 [0.75, 0.969]",
    ]  # fmt: skip
    assert rows["pruning"][2] == "0.125 [0.113, 0.138] AUC difference"
    assert rows["isolation"][1] == "no effect" and rows["competition"][2] == "—" and rows["competition"][3] == "0"
    assert "competition : The drop is too small." in words(answer)


def test_every_question_has_its_figures_and_numbers(page: str) -> None:
    figures = {
        "position": 3, "isolation": 1, "competition": 2, "sink": 1, "pruning": 1, "heads": 2, "entropy": 1, "trace": 1,
    }  # fmt: skip
    for name, count in figures.items():
        assert section(page, name).count("<svg") == count, name
    assert "Not measured in this run" in section(page, "company") and "Not measured in this run" in section(page, "bias")
    rows = table_rows(section(page, "position"))
    forms = [row[2] for row in rows if row[0] == "equal distance"]
    assert forms == ["all keys", "prompt excluded", "sink excluded", "distance matched"]
    assert any(
        row[:3] == ["equal distance, change before the softmax", "moved / unique", "score"] and row[4] == "nats" for row in rows
    )
    by_layer = [row for row in rows if len(row) == 7 and row[0] == "moved / unique"]
    assert [row[1] for row in by_layer] == ["0", "1", "2"] and by_layer[0][2] == "0.8 [0.7, 0.9]" and by_layer[0][4] == "0.04"
    assert page.count('role="img"') == len(re.findall("<svg", page))


def test_the_published_metric_is_labelled(page: str) -> None:
    sink = section(page, "sink")
    assert "Not controlled, for comparison only" in words(sink)
    rows = {row[0]: row for row in table_rows(sink)}
    assert rows["published, with sink"][3] == "0.5 [0.45, 0.55]" and rows["published, with sink"][-1] == "Misleads."


def test_prompts_and_failures_are_listed(page: str) -> None:
    rows = table_rows(section(page, "prompts"))
    assert [row[0] for row in rows[1:]] == ["story-00", "story-01", "story-02", "bad0"] and "too long" in rows[4][3]
    assert "3 prompts done, 1 failed" in words(page)


def test_a_stopped_run_says_that_nothing_is_judged(tmp_path: Path) -> None:
    page = render_report(write_measure(tmp_path / "run", judged=False)).read_text("utf-8")
    assert "This run was interrupted." in words(page) and "There are no verdicts yet" in page and "Nothing was judged yet." in page
    assert section(page, "isolation").count("<svg") == 0 and "<svg" in section(page, "trace")


def test_nothing_from_a_model_is_markup(tmp_path: Path) -> None:
    page = render_report(write_measure(tmp_path / "run", failed=1, nasty=True)).read_text("utf-8")
    body = page[: page.rindex("<script>")]
    assert "<script" not in body and "<img" not in body and "\u202e" not in page and "&lt;script&gt;" in page


def test_the_same_figures_are_exported(tmp_path: Path) -> None:
    run = write_measure(tmp_path / "run")
    assert render_report(run).read_bytes() == render_report(run).read_bytes()
    names = {file.name for file in export_figures(run, ["svg"])}
    assert {"parallel-position_layers.svg", "parallel-intra.svg", "parallel-heads.svg", "parallel-pruning_auc.svg"} <= names
