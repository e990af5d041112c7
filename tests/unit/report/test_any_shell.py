"""Any shell's tables are in the report, with their numbers; sections that the shell does not have are left out; suites are summed up by side."""

from __future__ import annotations

import re
from pathlib import Path

import polars as pl
import pytest
from report.synthetic_run import SCRIPT

from symbolic_residue.report import export_figures, render_report
from symbolic_residue.shells import judge, verdict_frame
from symbolic_residue.stats import Estimate, wilson
from symbolic_residue.store import RunFolder, TABLES


def tables(mode: str = "lost", value: float = 0.75, planted: bool = True, n_series: int = 2) -> dict[str, pl.DataFrame]:
    verdict = judge(
        "mirror", mode, quantity="share lost", unit="share", value=Estimate(value, value - 0.05, value + 0.05, 9), control="untouched",
        control_value=Estimate(0.1, 0.05, 0.15, 9), criterion=0.5, direction="above", criterion_source="preset",
    )  # fmt: skip
    names = [*(f"line {i}" for i in range(n_series)), "control"]
    return {
        "items": pl.DataFrame(
            {"prompt": ["ask"], "text": ["ask"], "chat": [False], "n_tokens": [2], "seed": [0], "status": ["done"], "error": [None], "summary": ["It is lost."]}
        ),
        "tokens": pl.DataFrame(
            {
                "position": [0, 1], "token_id": [5, 6], "token": ["as", SCRIPT], "region": ["sink", "text"], "char_start": [0, 2], "char_end": [2, 3],
                "influence": [None, None], "attention": [None, None],
            }
        ),
        "verdicts": verdict_frame([verdict]),
        "curves": pl.DataFrame(
            [("decay", name, float(x), "tokens", 1 / (x + 1), 0.0, 1.0, 9, "share") for name in names for x in (0, 10, 400)],
            schema=["curve", "series", "x", "x_unit", "value", "low", "high", "n", "unit"],
            orient="row",
        ),
        "maps": pl.DataFrame(
            [("received", layer, position, 0.125 * layer, "share") for layer in (0, 1) for position in (0, 1)],
            schema=["map", "layer", "position", "value", "unit"],
            orient="row",
        ),
        "head_scores": pl.DataFrame(
            [(1, head, "copying", 0.1 * head, 0.0, 1.0, 0.05, None, None, 9, "share") for head in range(15)],
            schema=["layer", "head", "score", "value", "low", "high", "control", "control_low", "control_high", "n", "unit"],
            orient="row",
        ),
        "shell_items": pl.DataFrame(
            [("mirror", "glass", "one", "k" if planted else "null", "k", "held-out", not planted, mode if planted else "")],
            schema=["shell", "benchmark", "benchmark_item", "kind", "frame", "split", "null", "planted"],
            orient="row",
        ),
    }  # fmt: skip


def write(folder: Path, *runs: dict[str, pl.DataFrame]) -> Path:
    with RunFolder.create(
        folder, kind="shells", command=["residue"], provenance={"model": "m"}, config={}, planned=len(runs)
    ) as run:
        for i, frames in enumerate(runs):
            run.write_item(f"mirror.{i}", frames)
    return folder


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> str:
    return render_report(write(tmp_path_factory.mktemp("any") / "run", tables())).read_text("utf-8")


def test_a_shell_shows_what_it_brings_and_nothing_else(page: str) -> None:
    for title in ("Curves", "By layer and token", "Scores of heads", "The prompt, token by token"):
        assert f">{title}</h3>" in page
    for title in ("Does it settle?", "Logit lens", "OV strength", "Sensitivity", "What would change this"):
        assert f">{title}" not in page
    assert "Not measured in this run" not in page
    assert "copying (share): 12 of 15 heads" in page
    assert "glass one (held-out): planted: lost" in page
    assert page.count('href="#item-1-') == 4
    assert SCRIPT not in page


def test_every_jump_leads_somewhere(page: str) -> None:
    for name in re.findall(r'href="#([^"]+)"', page):
        assert f'id="{name}"' in page


def test_curves_past_one_figure_are_cut_and_keep_their_control(tmp_path: Path) -> None:
    run = write(tmp_path / "run", tables(n_series=8))
    cut = [path for path in export_figures(run, ["svg"]) if "curve_decay" in path.name]
    assert len(cut) == 2
    assert all("control" in path.read_text("utf-8") for path in cut)


def test_a_suite_is_summed_up_by_side(tmp_path: Path) -> None:
    run = write(
        tmp_path / "run",
        tables(value=0.75),
        tables(value=0.95),
        tables(value=0.2),
        tables(value=0.3, planted=False),
        tables("other", value=0.9),
    )
    text = render_report(run).read_text("utf-8")
    said = " ".join(text.split())
    assert "What this model does on the benchmarks" in said
    rate = wilson(2, 3)
    rows = re.findall(r"<tr[^>]*>.*?</tr>", said[: said.index("</section>")])
    planted = next(row for row in rows if "<td>planted</td>" in row and ">lost<" in row)
    null = next(row for row in rows if "<td>null</td>" in row)
    other = [row for row in rows if "<td>other</td>" in row]
    assert f"2: {rate.value:.3g}"[:6] in planted
    assert ">3</td>" in planted
    assert "0: 0" in null
    assert other == []  # a mode that one item alone has is judged on that item


def test_a_suite_names_its_heads_by_numbers_and_shows_no_signs_for_its_own_spaces(tmp_path: Path) -> None:
    heads = pl.DataFrame(
        [(1, 2, "yes − no", 0.3, 0.2, True, "promotes"), (1, 3, "yes − no", 0.2, 0.1, False, "promotes")],
        schema=["layer", "head", "target", "dla", "ablation", "confirmed", "role"],
        orient="row",
    )
    missing = {
        name: pl.lit(3 if name == "n" else None, dtype)
        for name, dtype in TABLES["heads"].items()
        if name not in (*heads.columns, "item")
    }
    heads = heads.with_columns(**missing).select(name for name in TABLES["heads"] if name != "item")
    run = write(tmp_path / "run", *(tables(value=v) | {"heads": heads} for v in (0.75, 0.95)), tables(planted=False))
    said = " ".join(render_report(run).read_text("utf-8").split())
    part = said[said.index("What this model does on the benchmarks") : said.index("</section>")]
    assert "Heads confirmed on several items: 1.2 (2 of 2 items on which it was tested)." in part
    assert "no interval (n = 1)" in part  # one null item
    assert "built-in" not in said


def test_a_table_without_a_section_is_shown_cut_with_its_length(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    columns = {"item": pl.String(), "name": pl.String(), "amount": pl.Float64(), "kept": pl.Boolean()}
    monkeypatch.setitem(TABLES, "findings", columns)
    from symbolic_residue.store import _schema

    monkeypatch.setitem(_schema.MAY_BE_MISSING, "findings", frozenset({"amount"}))
    rows = [(f"row {i}", None if i == 1 else i / 4, i % 2 == 0) for i in range(60)]
    frame = pl.DataFrame(rows, schema={"name": pl.String, "amount": pl.Float64, "kept": pl.Boolean}, orient="row")
    text = render_report(write(tmp_path / "run", tables() | {"findings": frame})).read_text("utf-8")
    assert "findings: 60 rows" in text
    assert "The first 40 of 60" in text
    assert "row 39" in text
    assert "row 40" not in text
    assert "9.75" in text
    assert "yes" in text
