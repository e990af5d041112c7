"""Figures of token trees and of their measurement: the numbers drawn are those of the tables."""

from __future__ import annotations

import polars as pl
import pytest
from report.parallel_run import make_tree

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
