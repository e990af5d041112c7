"""Figures of token trees and of their measurement: the numbers drawn are those of the tables."""

from __future__ import annotations

from typing import Any

import polars as pl
import pytest
from report.parallel_run import make_tree, measured_tables, prompt_tables

from symbolic_residue import figures
from symbolic_residue.errors import ConfigError
from symbolic_residue.parallel import tree_tables


def test_steps_draw_their_own_numbers() -> None:
    steps = tree_tables(make_tree())["parallel_steps"]
    chart = figures.parallel_steps(steps).to_dict()
    lines, bars = (chart["datasets"][panel["data"]["name"]] for panel in chart["vconcat"])
    assert [row["value"] for row in lines if row["series"] == "entropy"] == steps["entropy"].to_list()
    assert [row["value"] for row in lines if row["series"] != "entropy"] == steps["disagreement"].to_list()
    assert [row["size"] for row in bars] == steps["size"].to_list()
    assert "<svg" in figures.to_svg(figures.parallel_steps(steps), label="steps")
    with pytest.raises(ConfigError, match="2 items"):
        figures.parallel_steps(pl.concat([steps.with_columns(item=pl.lit(name)) for name in "ab"]))


TABLES = measured_tables()


def drawn(chart: Any) -> list[dict[str, Any]]:
    """Every row of data in a chart."""
    return [row for rows in chart.to_dict()["datasets"].values() for row in rows]


def test_layers_are_filled_where_the_adjusted_p_is_small() -> None:
    found = [row for row in drawn(figures.parallel_layers(TABLES["parallel_layers"], "shared position")) if "clear" in row]
    assert [(row["x"], row["value"], row["low"], row["high"]) for row in found] == list(
        TABLES["parallel_layers"].select("layer", "value", "low", "high").iter_rows()
    )
    assert [row["clear"] for row in found] == [True, False, False]  # p adjusted 0.04, 0.08, 0.12; the raw ones are all ≤ 0.05
    with pytest.raises(ConfigError, match="no layers"):
        figures.parallel_layers(TABLES["parallel_layers"], "company")


def test_ratios_show_every_form_and_leave_the_verdict_out() -> None:
    found = [row for row in drawn(figures.parallel_ratios(TABLES["parallel_verdicts"], "shared position")) if "form" in row]
    assert [(row["form"], row["value"]) for row in found] == [
        ("all keys", 1.02), ("prompt excluded", 1.04), ("sink excluded", 0.98), ("distance matched", 1.01),
    ]  # fmt: skip
    classes = drawn(figures.parallel_ratios(TABLES["parallel_verdicts"], "shared position", heads=True))
    assert [row["value"] for row in classes if "form" in row] == [1.5]
    published = [row for row in drawn(figures.parallel_ratios(TABLES["parallel_verdicts"], "sink")) if "form" in row]
    assert [(row["quantity"], row["value"]) for row in published] == [
        ("published, with sink", 0.5),
        ("published, without sink", 1.25),
    ]
    with pytest.raises(ConfigError, match="no ratios"):
        figures.parallel_ratios(TABLES["parallel_verdicts"], "competition")


def test_auc_stands_beside_chance() -> None:
    found = drawn(figures.parallel_auc(TABLES["parallel_verdicts"]))
    assert [row["value"] for row in found if "quantity" in row] == [0.75, 0.625] and {"at": 0.5} in found
    with pytest.raises(ConfigError, match="no AUC"):
        figures.parallel_auc(TABLES["parallel_verdicts"].filter(question="sink"))


def test_curves_by_unit_and_series() -> None:
    curves = TABLES["curves"]
    bias = [row for row in drawn(figures.parallel_curve(curves, "parallel bias", unit="nats")) if "series" in row]
    assert {row["series"] for row in bias} == {"kl"} and [row["value"] for row in bias] == [0.5, 0.6, 0.7]
    chosen = drawn(figures.parallel_curve(curves, "parallel entropy", unit="share", series=("unique", "shared")))
    assert list(dict.fromkeys(row["series"] for row in chosen if "series" in row)) == ["unique", "shared"]
    with pytest.raises(ConfigError, match="8 series"):
        figures.parallel_curve(curves, "parallel entropy", unit="share")
    with pytest.raises(ConfigError, match="nothing to draw"):
        figures.parallel_curve(curves, "parallel offset", unit="nats")


def test_who_looks_at_whom_is_a_mean_over_prompts_and_layers() -> None:
    one = prompt_tables(0)["parallel_intra"]
    both = pl.concat([one.with_columns(item=pl.lit("a")), one.with_columns(item=pl.lit("b"), value=pl.col("value") + 0.2)])
    cells = {(r["mode"], r["size"], r["query_rank"], r["key_rank"]): r["value"] for r in drawn(figures.parallel_intra(both))}
    assert len(cells) == 2 * (4 + 9)
    assert cells["causal", 2, 1, 0] == pytest.approx(0.3) and cells["visible", 3, 0, 2] == pytest.approx(0.1)
    with pytest.raises(ConfigError, match="no set"):
        figures.parallel_intra(both.with_columns(size=pl.lit(9)))


def test_classes_of_heads_and_their_counts() -> None:
    chart = figures.parallel_heads(TABLES["parallel_heads"])
    assert sorted({row["kind"] for row in drawn(chart)}) == ["local: 3", "sink: 3"]


def test_the_trace_is_a_mean_over_prompts() -> None:
    frame = pl.concat([prompt_tables(i)["parallel_trace"].with_columns(item=pl.lit(f"p{i}")) for i in (0, 1)])
    chart = figures.parallel_trace(frame)
    assert "n = 2 prompts" in str(chart.to_dict()["title"])
    received = [row["value"] for row in drawn(chart) if row["series"] == "shared, top token"][:3]
    assert received == pytest.approx([0.625] * 3)  # 0.125 and 1.125
    assert sorted({row["value"] for row in drawn(chart) if row["layer"] == 2 and row["value"] < 0}) == [-6.0]


@pytest.mark.parametrize("name", ["layers", "ratios", "auc", "curve", "intra", "heads", "trace"])
def test_every_figure_is_drawn(name: str) -> None:
    chart = {
        "layers": lambda: figures.parallel_layers(TABLES["parallel_layers"], "shared position"),
        "ratios": lambda: figures.parallel_ratios(TABLES["parallel_verdicts"], "sink"),
        "auc": lambda: figures.parallel_auc(TABLES["parallel_verdicts"]),
        "curve": lambda: figures.parallel_curve(TABLES["curves"], "parallel offset", unit="ratio"),
        "intra": lambda: figures.parallel_intra(prompt_tables(0)["parallel_intra"]),
        "heads": lambda: figures.parallel_heads(TABLES["parallel_heads"]),
        "trace": lambda: figures.parallel_trace(prompt_tables(0)["parallel_trace"]),
    }[name]()
    assert figures.to_svg(chart, label=name).startswith("<svg")
