"""Figures of the causal follow-ups: the pooled numbers are drawn, outlines need what the control does not have, and strange names stay apart."""

from __future__ import annotations

import re
from functools import cache
from html import unescape
from typing import Any
from xml.etree import ElementTree

import polars as pl
import pytest
from report.contrast_run import causal, HEADS, LAYERS

from symbolic_residue import figures
from symbolic_residue.contrast.causal import pool_effects
from symbolic_residue.errors import ConfigError

DRAW: dict[str, Any] = {
    "lens": figures.contrast_lens,
    "components": figures.contrast_components,
    "patch": figures.contrast_patching,
    "knock-out": figures.contrast_knock_out,
    "surgery": figures.contrast_surgery,
}


@cache
def effects() -> pl.DataFrame:
    return pool_effects(causal(), seed=0, n_resamples=200)


def mine(analysis: str, **wanted: Any) -> pl.DataFrame:
    return effects().filter(
        *(pl.col(name) == value for name, value in {"analysis": analysis, "condition": "pirate", **wanted}.items())
    )


def marks(chart: Any) -> list[dict[str, Any]]:
    return [row for data in chart.to_dict()["datasets"].values() for row in data]


def texts(svg: str) -> list[str]:
    return [unescape(re.sub("<[^>]*>", " ", text)).strip() for text in re.findall(r"<text[^>]*>(.*?)</text>", svg)]


@pytest.mark.parametrize("name", DRAW)
def test_every_figure_is_legible_svg_and_says_n(name: str) -> None:
    svg = figures.to_svg(DRAW[name](effects(), condition="pirate"), label="a < b")
    assert float(ElementTree.fromstring(svg).attrib["width"]) <= 720
    assert min(float(size) for size in re.findall(r'font-size="([\d.]+)px"', svg)) >= 10
    assert "n = 8 examples of 4 questions" in " ".join(texts(svg))


@pytest.mark.parametrize("name", DRAW)
def test_what_is_not_there_is_refused(name: str) -> None:
    with pytest.raises(ConfigError, match="no effects of"):
        DRAW[name](effects().filter(pl.col("analysis") != name), condition="pirate")
    with pytest.raises(ConfigError, match="2 values of condition"):
        DRAW[name](effects())
    with pytest.raises(ConfigError, match="twice"):
        DRAW[name](pl.concat([effects(), effects()]), condition="pirate")


def test_the_lens_draws_both_models_and_their_control() -> None:
    rows = [row for row in marks(figures.contrast_lens(effects(), condition="pirate")) if "series" in row]
    expected = mine("lens")
    assert {(row["series"], row["layer"]): (row["value"], row["control"]) for row in rows} == {
        (row["model"], row["layer"]): (row["value"], row["control"]) for row in expected.iter_rows(named=True)
    }


def test_components_are_a_map_with_the_planted_head_outlined() -> None:
    chart = figures.contrast_components(effects(), condition="pirate")
    cells = {(row["layer"], row["column"]): row for row in marks(chart) if "column" in row}
    assert set(cells) == {(layer, column) for layer in range(LAYERS) for column in (*map(str, range(HEADS)), "mlp")}
    outlined = {at for at, row in cells.items() if row["found"]}
    assert outlined == {(row["layer"], "mlp" if row["head"] is None else str(row["head"])) for row in mine("components").iter_rows(named=True)
                        if row["layer"] is not None and row["p"] is not None and row["p"] <= 0.05}  # fmt: skip
    assert cells[3, "1"]["value"] == pytest.approx(2.0, abs=0.1)
    assert any("embedding +0" in text for text in texts(figures.to_svg(chart)))


def test_patches_are_outlined_where_the_control_does_less() -> None:
    rows = [row for row in marks(figures.contrast_patching(effects(), condition="pirate")) if "column" in row]
    outlined = {(row["column"], int(row["layer"])) for row in rows if row["found"]}
    assert outlined >= {("emitting row", layer) for layer in (3, 4, 5)}
    same = effects().with_columns(control_low=pl.col("low"), control_high=pl.col("high"))
    assert not any(row["found"] for row in marks(figures.contrast_patching(same, condition="pirate")) if "found" in row)
    bare = effects().with_columns(control_low=pl.lit(None, pl.Float64), control_high=pl.lit(None, pl.Float64))
    assert not any(row["found"] for row in marks(figures.contrast_patching(bare, condition="pirate")) if "found" in row)
    with pytest.raises(ConfigError, match="patches base into tuned"):
        figures.contrast_patching(effects(), model="base into tuned", condition="pirate")


def test_shares_are_not_drawn_among_nats() -> None:
    assert set(mine("patch")["unit"]) >= {"nats", "share"}
    rows = [row for row in marks(figures.contrast_patching(effects(), condition="pirate")) if "column" in row]
    assert len(rows) == len(mine("patch", unit="nats", model="tuned into base").filter(pl.col("part") != "total"))


def test_a_knock_out_has_a_line_a_model_and_dose() -> None:
    rows = [row for row in marks(figures.contrast_knock_out(effects(), condition="pirate")) if "series" in row]
    assert {row["series"] for row in rows} == {"tuned, region", "base, region"}
    drop = {(row["series"], row["dose"]): row["value"] for row in rows}
    assert drop["tuned, region", 1.0] == pytest.approx(-3.0, abs=0.1)
    assert drop["base, region", 1.0] == pytest.approx(-0.1, abs=0.1)


def test_surgery_draws_the_tuned_adapter_with_the_null_as_ticks() -> None:
    rows = [row for row in marks(figures.contrast_surgery(effects(), condition="pirate")) if "place" in row]
    assert {row["model"] for row in rows} == {"tuned"}
    shown = {(row["part"], row["place"]): (row["value"], row["control"]) for row in rows}
    assert shown["q,k", "all layers"] == pytest.approx((6.0, 0.1), abs=0.1)


@pytest.mark.parametrize("name", DRAW)
def test_strange_names_are_shown_as_signs_and_stay_apart(name: str) -> None:
    strange = "<b>&\u202e\n" + "long" * 20
    twins = {
        "all layers": f"{strange}1",
        "layers 0–2": f"{strange}2",
        "emitting row": f"{strange}1",
        "system": f"{strange}2",
        "pirate": strange,
    }
    frame = effects().with_columns(pl.col("place", "part", "condition").replace(twins))
    svg = figures.to_svg(DRAW[name](frame, condition=strange), label="x")
    ElementTree.fromstring(svg)
    assert "\u202e" not in svg
    assert "<b>" not in svg
