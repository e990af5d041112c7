"""The report's pure parts: the sentence, the differences in wording, the choice of heads, the settings as rows."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from symbolic_residue.report._prompt import prompt_view
from symbolic_residue.report._sections import changed_words, flatten, head_rows, sensitivity_rows, sink_mass
from symbolic_residue.report._sentence import verdict_sentence

PAIR = [{"token": " no", "rank": 1}, {"token": " yes", "rank": 0}]


def verdict(mode, outcome):
    return {"mode": mode, "outcome": outcome, "quantity": "Q", "unit": "nats", "value": 0.5, "low": 0.4, "high": 0.6, "n": 9}


@pytest.mark.parametrize(
    ("verdicts", "sentence"),
    [
        ([verdict("flatness", "fires"), verdict("oscillation", "absent")],
         "Undecided between “ yes” and “ no”: flatness fires (Q 0.5 nats [0.4, 0.6]); oscillation absent."),
        ([verdict("flatness", "absent"), verdict("oscillation", "absent"), verdict("collapse", "absent")],
         "Decides for “ yes” over “ no”: flatness, oscillation and collapse absent."),
        ([verdict("flatness", "undecided"), verdict("oscillation", "absent")],
         "Leans to “ yes” over “ no”: flatness undecided; oscillation absent."),
        ([verdict("oscillation", "fires")], "Leans to “ yes” over “ no”: oscillation fires (Q 0.5 nats [0.4, 0.6])."),
        ([], "Leans to “ yes” over “ no”; no verdict was reached in this run."),
    ],
)  # fmt: skip
def test_sentence(verdicts, sentence):
    assert verdict_sentence("", verdicts, PAIR) == sentence


def test_sentence_without_candidates_and_with_a_summary():
    assert verdict_sentence(None, [verdict("decay", "undecided")], []) == "Decay undecided."
    assert verdict_sentence(" Mine. ", [verdict("decay", "fires")], PAIR) == "Mine."
    missing = {**verdict("decay", "fires"), "low": None, "high": None, "n": 1, "unit": ""}
    assert verdict_sentence("", [missing], []) == "Decay fires (Q 0.5 no interval (n\xa0=\xa01))."


words = st.lists(st.sampled_from(["a", "say", "no", ".", " ", "\n", "é"]), max_size=60).map("".join)


@given(words, words)
def test_changed_words_loses_nothing_near_a_change(before, after):
    pieces = changed_words(before, after, context=10**6)
    assert "".join(text for kind, text in pieces if kind != "del") == after
    assert "".join(text for kind, text in pieces if kind != "ins") == before


@given(words, words)
def test_changed_words_leaves_out_only_what_is_unchanged(before, after):
    pieces = changed_words(before, after)
    full = changed_words(before, after, context=10**6)
    for kind in ("ins", "del"):
        assert [text for k, text in pieces if k == kind] == [text for k, text in full if k == kind]
    position = 0
    for kind, text in pieces:
        if kind in ("same", "ins"):
            assert text in after[position:]
            position = after.index(text, position) + len(text)


def test_changed_words_cuts_long_context():
    before = " ".join(f"w{i}" for i in range(40))
    after = before.replace("w20", "x20")
    pieces = changed_words(before, after, context=2)
    assert [kind for kind, _ in pieces] == ["gap", "same", "del", "ins", "same", "gap"]
    assert ("del", "w20") in pieces
    assert ("ins", "x20") in pieces


def test_sensitivity_is_ordered_and_scaled():
    rows = [
        {"variant": 2, "text": "ab!", "js": 0.2},
        {"variant": 1, "text": "ab?", "js": 0.1},
        {"variant": 0, "text": "ab.", "js": 0.0},
    ]
    shown = sensitivity_rows(rows, "not used: variant 0 is the base")
    assert [row["variant"] for row in shown] == [0, 1, 2]
    assert [row["share"] for row in shown] == [0.0, 0.5, 1.0]
    assert shown[1]["diff"][-2:] == [("del", "."), ("ins", "?")]
    assert sensitivity_rows([], "x") == []


def test_heads_listed_are_the_largest_and_all_confirmed():
    heads = [
        {"target": "t", "layer": 0, "head": i, "dla": float(i - 20), "confirmed": i == 20, "ablation": 1.0 if i < 5 else None}
        for i in range(40)
    ]
    group = head_rows(heads)[0]
    listed = [row["head"] for row in group["rows"]]
    assert listed[0] == 0
    assert listed[-1] == 20  # dla 0, but confirmed
    assert len(listed) == 13
    assert (group["n_heads"], group["n_confirmed"], group["n_tested"]) == (40, 1, 5)


def test_sink_mass():
    assert sink_mass(
        [{"region": "sink", "mass": 0.5}, {"region": "sink", "mass": 0.7}, {"region": "user", "mass": 0.1}]
    ) == pytest.approx(0.6)
    assert sink_mass([{"region": "user", "mass": 0.1}]) is None


def test_flatten_leaves_nothing_out():
    value = {"a": {"b": 1, "c": {}}, "d": [1, 2], "e": [{"f": None}], "g": []}
    assert flatten(value) == [("a.b", "1"), ("a.c", "none"), ("d", "1, 2"), ("e[0].f", "none"), ("g", "(empty)")]


def row(position, token, region, influence):
    return {"position": position, "token": token, "token_id": 1, "region": region, "influence": influence, "attention": 0.1}


def test_prompt_view_groups_regions_and_scales_colours():
    tokens = [row(1, " b\n", "user", -0.2), row(0, "a", "sink", None), row(2, "c", "user", 0.1), row(3, "d", "answer", 0.0)]
    view = prompt_view(tokens, PAIR)
    assert [(run["region"], len(run["tokens"])) for run in view["runs"]] == [("sink", 1), ("user", 2), ("answer", 1)]
    assert view["limit"] == 0.2
    assert view["pair"] == [" yes", " no"]
    assert view["unmeasured"] == 1
    assert [item["position"] for item in view["largest"]] == [1, 2, 3]
    token = view["runs"][1]["tokens"][0]
    assert [piece["text"] for piece in token["pieces"]] == [" ", "b⏎"]
    assert token["breaks"] == 1
    assert view["runs"][0]["tokens"][0]["colour"] is None
    assert prompt_view([], PAIR) is None
