"""Figures of concepts: the numbers drawn are those of the frame, and marks stand where p is small."""

from __future__ import annotations

from typing import Any

import polars as pl
import pytest

from symbolic_residue import figures
from symbolic_residue.errors import ConfigError


def drawn(chart: Any) -> list[dict[str, Any]]:
    return [row for rows in chart.to_dict()["datasets"].values() for row in rows]


def lines(n: int = 5, layers: int = 3) -> pl.DataFrame:
    return pl.DataFrame(
        [
            {"concept": f"concept {c}", "layer": i, "value": 0.6 + 0.01 * c + 0.1 * i, "low": 0.5, "high": 0.95, "null_mean": 0.5,
             "null_low": 0.4, "null_high": 0.6, "beside": 0.7 if c else None, "clear": i == 2}
            for c in range(n) for i in range(layers)
        ]
    )  # fmt: skip


def test_a_panel_a_concept_with_its_own_numbers() -> None:
    chart = figures.concept_layers(lines(), "held-out AUC", domain=(0.3, 1.0)).to_dict()
    assert [panel["title"]["text"] for panel in chart["concat"]] == [f"concept {c}" for c in range(5)] and chart["columns"] == 4
    for c, panel in enumerate(chart["concat"]):
        of_layers = [chart["datasets"][layer["data"]["name"]] for layer in panel["layer"] if layer["data"]]
        assert all(row["concept"] == f"concept {c}" for part in of_layers for row in part)
        line = next(x for x in panel["layer"] if x["mark"]["type"] == "line" and x["encoding"]["y"]["field"] == "value")
        assert [row["value"] for row in chart["datasets"][line["data"]["name"]]] == pytest.approx(
            [0.6 + 0.01 * c + 0.1 * i for i in range(3)]
        )
        dots = next(x for x in panel["layer"] if x["mark"]["type"] == "point")
        assert [row["layer"] for row in chart["datasets"][dots["data"]["name"]]] == [2]
        assert {x["encoding"]["y"]["scale"]["domain"][0] for x in panel["layer"]} == {0.3}
    svg = figures.to_svg(figures.concept_layers(lines(1, 1), "AUC"), label="one layer")
    assert svg.count("<svg") == 1 and "concept 0" in svg
    with pytest.raises(ConfigError, match="lacks the columns beside"):
        figures.concept_layers(lines().drop("beside"), "AUC")


def test_heads_are_marked_by_the_family_over_which_they_stand_out() -> None:
    rows = [
        {"layer": i, "head": h, "ratio": 1.0 + i + h, "clear_model": (i, h) == (1, 2), "clear_layer": i == 1}
        for i in range(2)
        for h in range(3)
    ]
    chart = figures.concept_heads(pl.DataFrame(rows)).to_dict()
    assert drawn(figures.concept_heads(pl.DataFrame(rows))) == rows
    outline, dots = chart["layer"][1], chart["layer"][2]
    assert outline["transform"] == [{"filter": "datum.clear_model"}] and "!datum.clear_model" in dots["transform"][0]["filter"]
    assert chart["layer"][0]["encoding"]["color"]["scale"]["domain"][:2] == [0, 1]
    assert "this or more" in chart["layer"][0]["encoding"]["color"]["title"]  # one head beyond the end of the scale
    with pytest.raises(ConfigError, match="no rows"):
        figures.concept_heads(pl.DataFrame(rows).clear())
