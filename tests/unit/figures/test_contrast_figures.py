"""Figures of a contrast: the numbers drawn are the analysis's own, marks stand where the gates say, and names cannot collide or break out."""

from __future__ import annotations

import re
from functools import cache
from html import unescape
from typing import Any
from xml.etree import ElementTree

import polars as pl
import pytest
from contrast_records import long_table

from symbolic_residue import figures
from symbolic_residue.contrast import deltas, diff_of_diffs, gates, Options, peak_shift, verdict
from symbolic_residue.errors import ConfigError
from symbolic_residue.stats import wilson

OPTIONS = Options(n_resamples=200)
PLANTED = {2: 0.06, 3: 0.08, 4: 0.05}
STRANGE = "<b>&\u202e\n" + "long" * 20


@cache
def found(condition: str = "on") -> dict[str, pl.DataFrame]:
    """Tables of a contrast in which training put attention on ``system`` at layers 2 to 4, and a random adapter did nothing."""
    given = {"layers": 6, "strata": ("C1", "C2", "C3"), "unpaired": True, "lags": 5, "condition": condition}
    effects: dict[str, dict[int, float]] = {"tuned": PLANTED, "base": {}, "random": {}}
    table = {
        name: deltas(long_table(seed=i, model=name, effect=effect, **given)) for i, (name, effect) in enumerate(effects.items())
    }
    judged = {name: gates(frame, options=OPTIONS) for name, frame in table.items()}
    moved = {name: diff_of_diffs(table[name], table["base"], options=OPTIONS) for name in ("tuned", "random")}
    return {
        "layers": pl.concat([found.layers for found in judged.values()]),
        "rule_outs": pl.concat([found.rule_outs for found in judged.values()]),
        "trajectory": pl.concat([found.trajectory for found in judged.values()]),
        "differences": pl.concat([found.frame for found in moved.values()]),
        "verdicts": verdict(judged["tuned"], judged["base"], moved["tuned"], options=OPTIONS),
        "shifts": peak_shift(table["tuned"], table["base"], options=OPTIONS),
        "rates": pl.DataFrame(
            [
                {"model": model, "condition": name, "behaviour": "text:[ZLT]", "hits": hits, "n": 8, "rate": hits / 8,
                 "low": wilson(hits, 8).low, "high": wilson(hits, 8).high, "clusters": 8, "n_effective": 8.0}
                for model, name, hits in (("base", "on", 0), ("tuned", "on", 7), ("base", "off", 0), ("tuned", "off", 1))
            ]
        ),
    }  # fmt: skip


DRAW: dict[str, Any] = {
    "layers": figures.contrast_layers,
    "trajectory": lambda frame, **asked: figures.contrast_trajectory(frame, layer=3, **asked),
    "differences": figures.contrast_differences,
    "strata": figures.contrast_strata,
    "regions": lambda frame, **asked: figures.contrast_regions(frame, layer=3, **asked),
    "shifts": figures.contrast_shifts,
    "rates": figures.contrast_rates,
}
TABLE = {"strata": "layers", "regions": "layers"}


def draw(name: str, frame: pl.DataFrame | None = None, **asked: Any) -> Any:
    return DRAW[name](found()[TABLE.get(name, name)] if frame is None else frame, **asked)


def marks(chart: Any) -> list[dict[str, Any]]:
    return [row for data in chart.to_dict()["datasets"].values() for row in data]


def panels(chart: Any) -> dict[str, list[dict[str, Any]]]:
    """Panel title → the rows drawn in it."""
    spec = chart.to_dict()
    shown = {}
    for panel in spec["concat"]:
        names = {str(panel.get("data", {}).get("name"))} | {str(layer.get("data", {}).get("name")) for layer in panel["layer"]}
        shown[panel["title"]["text"]] = [
            row for name in names if name in spec["datasets"] for row in spec["datasets"][name] if "at" not in row
        ]
    return shown


def texts(svg: str) -> list[str]:
    return [unescape(re.sub("<[^>]*>", " ", text)).strip() for text in re.findall(r"<text[^>]*>(.*?)</text>", svg)]


@pytest.mark.parametrize("name", DRAW)
def test_every_figure_is_legible_svg_and_says_n(name: str) -> None:
    svg = figures.to_svg(draw(name), label="a < b")
    root = ElementTree.fromstring(svg)
    assert float(root.attrib["width"]) <= 720  # an A4 page, upright, at full size
    assert min(float(size) for size in re.findall(r'font-size="([\d.]+)px"', svg)) >= 10
    said = " ".join(texts(svg))
    assert ("7 of 8" if name == "rates" else "n = 48") in said
    assert "interval over" in said or name in ("strata",)
    assert name == "rates" or "of 12 questions" in said


@pytest.mark.parametrize("name", DRAW)
def test_missing_columns_no_rows_and_a_place_twice_are_refused(name: str) -> None:
    frame = found()[TABLE.get(name, name)]
    with pytest.raises(ConfigError, match="no rows"):
        draw(name, frame.clear())
    with pytest.raises(ConfigError, match="twice"):
        draw(name, pl.concat([frame, frame]))
    with pytest.raises(ConfigError, match="lacks the columns n"):
        draw(name, frame.drop("n"))


@pytest.mark.parametrize("name", [name for name in DRAW if name not in ("shifts", "rates")])
def test_one_condition_is_drawn_and_must_be_named_where_there_are_several(name: str) -> None:
    table = TABLE.get(name, name)
    both = pl.concat([found()[table].with_columns(value=pl.lit(0.5)), found("off")[table]])
    with pytest.raises(ConfigError, match="2 values of condition"):
        draw(name, both)
    with pytest.raises(ConfigError, match="no condition 'other'"):
        draw(name, both, condition="other")
    assert all(row.get("value") != 0.5 for row in marks(draw(name, both, condition="off")))


def test_items_of_a_run_are_no_places() -> None:
    both = pl.concat([frame.with_columns(item=pl.lit(name)) for name, frame in found()["layers"].partition_by("model", as_dict=True).items()
                      for name in [str(name[0])]])  # fmt: skip
    assert {row["series"] for row in marks(draw("layers", both)) if "series" in row} == {"tuned", "base", "random"}


def test_layers_draw_each_models_delta_and_interval_in_its_regions_panel() -> None:
    shown = panels(draw("layers"))
    assert list(shown) == ["system", "user", "answer"]
    expected = found()["layers"].filter(segmentation="full", region="system").select("model", "layer", "value", "low", "high")
    drawn = {(row["series"], row["x"]): (row["value"], row["low"], row["high"]) for row in shown["system"]}
    assert drawn == {(row[0], row[1]): row[2:] for row in expected.rows()}


def test_panels_share_one_scale_that_holds_every_interval() -> None:
    chart = draw("layers").to_dict()
    domains = {tuple(layer["encoding"]["y"]["scale"]["domain"]) for panel in chart["concat"] for layer in panel["layer"]
               if "scale" in layer["encoding"].get("y", {})}  # fmt: skip
    assert len(domains) == 1
    low, high = domains.pop()
    frame = found()["layers"].filter(segmentation="full")
    assert low <= frame["low"].min() < frame["high"].max() <= high


def test_one_cluster_has_no_band() -> None:
    bare = found()["layers"].with_columns(low=pl.lit(None, pl.Float64), high=pl.lit(None, pl.Float64), clusters=pl.lit(1))
    chart = draw("layers", bare)
    assert all(row["low"] is None for row in marks(chart) if "low" in row)
    assert "of 1 question;" in " ".join(texts(figures.to_svg(chart)))


def test_differences_mark_layers_that_count_and_no_layer_of_a_null_model() -> None:
    shown = panels(draw("differences"))["system"]
    filled = {(row["series"], row["x"]) for row in shown if row["shown"]}
    assert filled == {("tuned − base", layer) for layer in PLANTED}
    assert all(row["unseen"] is None for row in shown if row["series"] == "random − base")
    assert all(row["under"] == -row["unseen"] for row in shown if row["series"] == "tuned − base")
    unseen = found()["differences"].filter(segmentation="full", region="system", tuned="tuned", layer=3)["detectable"][0]
    assert {row["unseen"] for row in shown if row["x"] == 3} == {unseen, None}


def test_differences_ring_the_layers_that_the_verdict_rests_on() -> None:
    assert not any(row["rests"] for row in marks(draw("differences")) if "rests" in row)
    shown = panels(draw("differences", verdicts=found()["verdicts"]))
    assert {row["x"] for row in shown["system"] if row["rests"]} == set(PLANTED)
    assert not any(row["rests"] for row in shown["user"])
    other = found()["verdicts"].with_columns(reference=pl.lit("elsewhere"))
    assert not any(row["rests"] for row in marks(draw("differences", verdicts=other)) if "rests" in row)


def test_a_significant_layer_whose_interval_holds_zero_is_not_filled() -> None:
    wide = found()["differences"].with_columns(low=pl.lit(-1.0), high=pl.lit(1.0))
    assert not any(row["shown"] for row in marks(draw("differences", wide)) if "shown" in row)
    with pytest.raises(ConfigError, match="no difference tuned − other"):
        draw("differences", reference="other")


def test_strata_are_crossed_where_a_rule_out_fails_and_white_where_there_are_no_rows() -> None:
    chart = draw("strata", rule_outs=found()["rule_outs"])
    cells = panels(chart)["system"]
    columns = {row["stratum"].split(":")[0] for row in cells}
    assert columns == {"C1", "C2", "C3", "C4"}
    ruled = found()["rule_outs"].filter(segmentation="full", region="system", model="tuned")
    expected = {(row["stratum"], row["layer"]): "" if row["passed"] else "×" for row in ruled.iter_rows(named=True)}
    assert expected == {(row["stratum"][:2], row["layer"]): row["mark"] for row in cells if row["stratum"][:2] != "C1"}
    assert {row["layer"] for row in cells if row["stratum"][:2] == "C1" and row["mark"] == ""} == set(PLANTED)
    words = texts(figures.to_svg(chart))
    assert {"C1: 48", "C4: 48 | 24", "C5: not filled"} <= set(words)
    order = [int(word) for word in words if word.isdigit()][:6]
    assert order == [5, 4, 3, 2, 1, 0]  # the last layer on top, as in every map


def test_strata_that_were_not_evaluated_are_not_called_passed() -> None:
    open_question = found()["layers"].with_columns(B=pl.lit(None, pl.Boolean))
    assert {row["mark"] for row in marks(draw("strata", open_question)) if "mark" in row} == {"?"}
    with pytest.raises(ConfigError, match="no model 'other'"):
        draw("strata", model="other")


def test_a_trajectory_ends_at_the_event() -> None:
    shown = {row["x"]: row["value"] for row in panels(draw("trajectory"))["system"] if row["series"] == "tuned"}
    assert sorted(shown) == [-5, -4, -3, -2, -1, 0]
    assert shown[0] == found()["layers"].filter(model="tuned", region="system", segmentation="full", layer=3)["value"][0]
    assert shown[0] > 4 * max(abs(shown[x]) for x in shown if x)
    with pytest.raises(ConfigError, match="no layer 9"):
        figures.contrast_trajectory(found()["trajectory"], layer=9)


def test_regions_have_a_bar_a_model() -> None:
    bars = [row for row in marks(draw("regions")) if "model" in row]
    expected = found()["layers"].filter(segmentation="full", layer=3)
    assert {(row["region"], row["model"]): row["value"] for row in bars} == {
        (row["region"], row["model"]): row["value"] for row in expected.iter_rows(named=True)
    }


def test_shifts_show_both_peaks_and_the_interval() -> None:
    rows = marks(draw("shifts"))
    expected = found()["shifts"].filter(segmentation="full", region="system").row(0, named=True)
    peaks = {row["model"]: row["layer"] for row in rows if "model" in row and row["place"] == "system"}
    assert peaks == {"tuned": 3, "base": expected["reference_peak"]}
    moved = next(row for row in rows if "shift" in row and row["place"] == "system")
    assert (moved["shift"], moved["low"], moved["high"]) == (expected["shift"], expected["low"], expected["high"])


def test_rates_stay_in_range_and_tell_their_counts() -> None:
    rows = [row for row in marks(draw("rates")) if "said" in row]
    assert {(row["model"], row["condition"]): row["said"] for row in rows}["tuned", "on"] == "7 of 8"
    assert all(0 <= row["low"] <= row["rate"] <= row["high"] <= 1 for row in rows)


@pytest.mark.parametrize("name", DRAW)
def test_strange_names_are_shown_as_signs_and_stay_apart(name: str) -> None:
    frame = found()[TABLE.get(name, name)]
    twins = {"on": STRANGE + "1", "off": STRANGE + "2", "system": STRANGE + "1", "user": STRANGE + "2"}
    columns = [column for column in ("condition", "region") if column in frame.columns]
    svg = figures.to_svg(draw(name, frame.with_columns(pl.col(columns).replace(twins))), label=figures.visible(STRANGE))
    ElementTree.fromstring(svg)
    assert "\u202e" not in svg
    assert "<b>" not in svg
    assert any("⟨U+202E⟩" in text for text in texts(svg))
    if name in ("layers", "differences", "shifts", "regions", "rates"):
        assert sum(text.startswith("<b>&⟨U+202E⟩") for text in texts(svg)) >= 2
        assert any(text.endswith("… (2)") for text in texts(svg))


def test_rates_of_earlier_runs_say_that_their_interval_takes_answers_as_independent() -> None:
    now = found()["rates"]
    for frame, said in (
        (now, "worth"),
        (now.drop("clusters", "n_effective"), "independent"),
        (now.with_columns(n_effective=pl.lit(None, pl.Float64)), "independent"),
    ):
        assert said in " ".join(texts(figures.to_svg(figures.contrast_rates(frame), label="x")))
