"""The verdict cards: everything a verdict needs is on its card, and everything from a table is escaped."""

from __future__ import annotations

import re
from html import unescape
from xml.etree import ElementTree

import polars as pl
import pytest
from report.synthetic_run import item_tables, SCRIPT

from symbolic_residue.errors import ConfigError
from symbolic_residue.figures import verdict_cards_html
from symbolic_residue.figures._interval import interval_svg


@pytest.fixture(scope="module")
def verdicts():
    return item_tables("q", n_layers=1, n_heads=1)["verdicts"]


def plain(html: str) -> str:
    return re.sub(r"\s+", " ", unescape(re.sub(r"<[^>]+>", " ", re.sub(r"<style>.*?</style>|<svg.*?</svg>", "", html, flags=re.S))))


def test_a_card_holds_value_interval_n_control_criterion_and_source(verdicts):
    text = plain(verdict_cards_html(verdicts.filter(mode="flatness")))
    for part in (
        "flatness", "▲ fires", "0.07 nats", "[0.02, 0.12]", "log-odds of the top two, n = 24", "2.31 nats [1.9, 2.8] , n = 200",
        "clear-cut prompts", "below 0.5 nats", "at most 5% of 200", "entropy over the candidates",
    ):  # fmt: skip
        assert part in text


def test_no_interval_is_said(verdicts):
    assert "no interval (n = 1)" in plain(verdict_cards_html(verdicts.filter(mode="confidence fragility")))


def test_no_control_is_said(verdicts):
    frame = verdicts.head(1).with_columns(control_value=None, control_low=None, control_high=None, control_n=None, control=None)
    html = verdict_cards_html(frame)
    assert "control none" in plain(html)
    assert ">none</text>" in html


def test_outcomes_differ_by_word_shape_and_class(verdicts):
    html = verdict_cards_html(verdicts)
    for outcome, sign in (("fires", "▲"), ("absent", "○"), ("undecided", "◐")):
        assert f"sr-{outcome}" in html
        assert f"{sign}</span> {outcome}" in html


def test_text_from_the_table_is_escaped_everywhere(verdicts):
    texts = {name: pl.lit(SCRIPT + '"\u202e\x00') for name in ("mode", "quantity", "unit", "control", "criterion_source", "note")}
    html = verdict_cards_html(verdicts.with_columns(**texts))
    assert "<script" not in html
    assert "\u202e" not in html
    assert "\x00" not in html
    assert "window.pwned" in html


def test_the_style_can_be_left_out_and_headings_chosen(verdicts):
    assert "<style>" in verdict_cards_html(verdicts)
    bare = verdict_cards_html(verdicts, style=False, heading=4)
    assert "<style>" not in bare
    assert bare.count("<h4>") == verdicts.height
    with pytest.raises(ConfigError, match="heading"):
        verdict_cards_html(verdicts, heading=1)
    with pytest.raises(ConfigError, match="criterion_source"):
        verdict_cards_html(verdicts.drop("criterion_source"))


def test_several_shells_are_named(verdicts):
    both = pl.concat([verdicts.head(1), verdicts.head(1).with_columns(shell=pl.lit("memtrace"))])
    text = plain(verdict_cards_html(both))
    assert "memtrace: oscillation" in text
    assert "value-collapse: oscillation" in text


def test_the_drawing_places_the_numbers_in_order(verdicts):
    row = verdicts.filter(mode="flatness").to_dicts()[0]
    root = ElementTree.fromstring(interval_svg(row))
    space = {"s": "http://www.w3.org/2000/svg"}
    circle = float(root.find("s:circle", space).attrib["cx"])
    criterion = next(float(line.attrib["x1"]) for line in root.findall("s:line", space) if "stroke-dasharray" in line.attrib)
    control = float(re.match(r"M([\d.]+) ", root.find("s:path", space).attrib["d"])[1])
    assert circle < criterion < control  # 0.07 < 0.5 < 2.31
    tint = root.find("s:rect", space)
    assert float(tint.attrib["x"]) + float(tint.attrib["width"]) == pytest.approx(
        criterion, abs=0.02
    )  # fires below: tinted to the left


@pytest.mark.parametrize("value", [None, float("nan"), float("inf")])
def test_no_value_no_drawing(verdicts, value):
    assert interval_svg({**verdicts.to_dicts()[0], "value": value}) == ""


def test_equal_numbers_still_draw(verdicts):
    same = dict.fromkeys(("value", "low", "high", "control_value", "control_low", "control_high", "criterion"), 0.0)
    root = ElementTree.fromstring(interval_svg({**verdicts.to_dicts()[0], **same}))
    assert root.attrib["aria-label"].startswith("oscillation: value 0")
