"""Lines with intervals and layer × token maps: what is drawn, and what is refused."""

from __future__ import annotations

import polars as pl
import pytest

from symbolic_residue import figures
from symbolic_residue.errors import ConfigError


def lines(series: list[str], curve: str = "P(answer)") -> pl.DataFrame:
    return pl.DataFrame(
        [
            {
                "item": "q",
                "curve": curve,
                "series": name,
                "x": float(x),
                "x_unit": "distance (tokens)",
                "value": 0.5,
                "low": None if x == 0 else 0.25,
                "high": None if x == 0 else 0.75,
                "n": 8,
                "unit": "probability",
            }
            for name in series
            for x in (0, 16, 64)
        ],
        schema_overrides={"low": pl.Float64, "high": pl.Float64},
    )


TOKENS = pl.DataFrame({"item": ["q"] * 3, "position": [0, 1, 2], "token": [" the", "<b>", " gate"]})
MAP = pl.DataFrame(
    {
        "item": ["q"] * 6,
        "map": ["attention received"] * 6,
        "layer": [0, 0, 0, 1, 1, 1],
        "position": [0, 1, 2] * 2,
        "value": [0.5, 0.25, 0.25, 0.0, 0.0, 1.0],
        "unit": ["share"] * 6,
    }
)


def test_curves_say_what_they_show() -> None:
    svg = figures.to_svg(figures.curves(lines(["repetitive", "control: no gap"]), log_x=True), label="decay")
    for text in ("distance (tokens)", "P(answer) (probability)", "repetitive", "control: no gap"):
        assert text in svg


def test_a_control_is_grey_and_a_series_is_not() -> None:
    scale = figures.curves(lines(["repetitive", "control: no gap"])).to_dict()["layer"][1]["encoding"]["color"]["scale"]
    assert dict(zip(scale["domain"], scale["range"], strict=True))["control: no gap"] == "#8a8a8e"
    assert len(set(scale["range"])) == 2


def test_a_curve_is_chosen_by_name() -> None:
    both = pl.concat([lines(["a"]), lines(["b"], "entropy")])
    assert "entropy" in figures.to_svg(figures.curves(both, "entropy"), label="x")
    with pytest.raises(ConfigError, match="no curve"):
        figures.curves(both)
    with pytest.raises(ConfigError, match="7 series"):
        figures.curves(lines(list("abcdefg")))


def test_a_map_has_a_cell_for_each_layer_and_token() -> None:
    chart = figures.layer_token_map(MAP, TOKENS)
    assert len(chart.data.values) == 6
    svg = figures.to_svg(chart, label="map")
    assert "attention received (share)" in svg
    assert "<b>" not in svg
    assert len(figures.layer_token_map(MAP, TOKENS, last=2).data.values) == 4


def test_maps_refuse_what_they_cannot_show() -> None:
    with pytest.raises(ConfigError, match="no map"):
        figures.layer_token_map(MAP, TOKENS, "salience")
    with pytest.raises(ConfigError, match="at least one"):
        figures.layer_token_map(MAP, TOKENS, last=0)
    with pytest.raises(ConfigError, match="no rows"):
        figures.layer_token_map(MAP.clear(), TOKENS)
