"""Text made visible, numbers, colours: pure functions, by property where there is one."""

from __future__ import annotations

import math
import unicodedata

import pytest
from hypothesis import given
from hypothesis import strategies as st

from symbolic_residue.figures import diverging_colour, interval_text, number, region_colours, visible
from symbolic_residue.figures._palette import AGAINST, FOR, INK, NEUTRAL, OUTCOMES
from symbolic_residue.figures._text import display_width, fit


@given(st.text(st.characters(exclude_categories=())))
def test_visible_leaves_nothing_hidden_and_is_idempotent(text):
    shown = visible(text)
    assert not [c for c in shown if unicodedata.category(c) in ("Cc", "Cf", "Cs", "Co", "Cn", "Zl", "Zp")]
    assert visible(shown) == shown
    shown.encode("utf-8")  # lone surrogates are gone too


@given(st.text(st.characters(categories=("L", "N", "P", "S"))))
def test_visible_changes_nothing_that_can_be_seen(text):
    assert visible(text) == text


@pytest.mark.parametrize(
    ("text", "shown"),
    [("\x00", "␀"), ("a\nb", "a⏎b"), ("\t", "⇥"), ("\x1b[31m", "␛[31m"), ("\u202eevil", "⟨U+202E⟩evil"), ("\u2067x\u2069", "⟨U+2067⟩x⟨U+2069⟩"),
     ("\u200b", "⟨U+200B⟩"), ("\ud800", "⟨U+D800⟩"), ("\x85", "⟨U+0085⟩"), ("\u2028", "⟨U+2028⟩"), ("<b>", "<b>")],
)  # fmt: skip
def test_visible_names_what_it_hides(text, shown):
    assert visible(text) == shown


def test_visible_spaces():
    assert visible(" a b ", spaces="all") == "·a·b·"
    assert visible(" a b ", spaces="ends") == "·a b·"
    assert visible("  ", spaces="ends") == "··"
    assert visible(" a ") == " a "


@given(st.text(max_size=40), st.floats(0, 20))
def test_fit_fits(text, ems):
    assert display_width(fit(text, ems)) <= ems + 1e-9


@pytest.mark.parametrize(
    ("value", "text"),
    [(0.0, "0"), (2, "2"), (-0.41, "−0.41"), (0.0721, "0.0721"), (12.345, "12.3"), (1234.5, "1,234"), (3e-6, "3.0e−6"),
     (float("nan"), "—"), (None, "—"), (float("inf"), "—"), (1000, "1,000"), (-3.0, "−3")],
)  # fmt: skip
def test_number(value, text):
    assert number(value) == text


def test_number_signed():
    assert number(0.5, signed=True) == "+0.5"
    assert number(0.0, signed=True) == "0"
    assert number(-2.0, signed=True) == "−2"


@given(st.floats(-1e300, 1e300))
def test_number_keeps_the_value_to_three_digits(value):
    read = float(number(value).replace("−", "-").replace(",", ""))
    assert math.isclose(read, value, rel_tol=0.06, abs_tol=0)  # two digits in scientific notation, three elsewhere


def test_interval_text_says_why_there_is_none():
    assert interval_text(0.1, 0.2, 5) == "[0.1, 0.2]"
    assert interval_text(float("nan"), float("nan"), 1) == "no interval (n\xa0=\xa01)"
    assert interval_text(None, None, None) == "no interval"


def contrast(a: str, b: str) -> float:
    """WCAG 2 contrast of two colours."""

    def light(colour: str) -> float:
        channels = [int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5)]
        linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in channels]
        return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]

    high, low = sorted((light(a), light(b)), reverse=True)
    return (high + 0.05) / (low + 0.05)


@given(st.floats(-5, 5), st.floats(0, 3))
def test_dark_text_is_legible_on_every_diverging_colour(value, limit):
    colour = diverging_colour(value, limit)
    assert colour is not None
    assert contrast(colour, INK) >= 4.5


def test_diverging_colour_ends_and_middle():
    assert diverging_colour(1, 1) == FOR
    assert diverging_colour(-2, 1) == AGAINST
    assert diverging_colour(0, 1) == NEUTRAL
    assert diverging_colour(1, 0) == NEUTRAL  # no scale: nothing to show
    assert diverging_colour(None, 1) is None
    assert diverging_colour(float("nan"), 1) is None


def test_outcome_colours_are_legible_on_white():
    assert all(contrast(colour, "#ffffff") >= 4.5 for colour in OUTCOMES.values())


def test_regions_get_different_colours_and_the_sink_is_grey():
    names = ["sink", "system", "user", "assistant_header", "answer", "special", "self", "fact", "decoy"]
    colours = region_colours(names)
    assert len(set(colours.values())) == len(names)
    red, green, blue = (int(colours["sink"][i : i + 2], 16) for i in (1, 3, 5))
    assert max(red, green, blue) - min(red, green, blue) < 8
