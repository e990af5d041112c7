"""Signatures: one vector for tables and readings, each component equal to what plain forwards say, and what is not measured is NaN."""

from __future__ import annotations

import math
import re
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny_models import build, tiny_tokenizer

from symbolic_residue.errors import ConfigError, PromptError
from symbolic_residue.instrument import Instrument
from symbolic_residue.models import wrap
from symbolic_residue.prompts import build_prompt
from symbolic_residue.shells import ValueCollapseConfig, ValueCollapseShell
from symbolic_residue.shells.signatures import (
    component_names,
    COMPONENTS,
    read_signature,
    read_signatures,
    READABLE_GROUPS,
    Signature,
    signature,
    signature_matrix,
    signatures,
)
from symbolic_residue.shells.signatures._measure import attention_values, attribution_values, lens_values, margin, spread

TEXT = "The mill stands where the river turns, and the miller keeps the key to the gate. The mill stands where the"
TEXTS = [TEXT, "One two three one two", "A boat left the harbour at dawn and nobody knew where it would land"]
FAMILIES = ["llama", "gemma3", "gpt2", "gpt_neox"]


def instrument(family: str) -> Instrument:
    return Instrument(wrap(build(family), tiny_tokenizer()))


def of(values: Signature, group: str) -> dict[str, float]:
    return {c.name: values[c.name] for c in COMPONENTS if c.group == group}


# -- the list ----------------------------------------------------------------------------------------------------------------


def test_components_are_named_once_and_have_a_range_unit_and_meaning() -> None:
    names = component_names()
    assert len(set(names)) == len(names) == len(COMPONENTS)
    for c in COMPONENTS:
        assert c.low < c.high and c.unit and c.meaning and c.name.startswith(c.group + ".")
    assert component_names(READABLE_GROUPS) == [n for n in names if n.split(".")[0] in READABLE_GROUPS]


def test_the_page_lists_every_component() -> None:
    page = (Path(__file__).parents[3] / "docs" / "signatures.md").read_text("utf-8")
    for c in COMPONENTS:
        assert f"| `{c.name}` | {c.unit} | {c.low:g} … {c.high:g} | {c.meaning} |" in page


def test_values_outside_their_range_and_unknown_names_are_refused() -> None:
    with pytest.raises(ConfigError, match=r"output\.top"):
        Signature.of("x", {"output.top": 1.2})
    with pytest.raises(ConfigError, match="no component"):
        Signature.of("x", {"output.bottom": 0.2})
    with pytest.raises(ConfigError, match="components"):
        Signature("x", np.zeros(3))


@given(st.dictionaries(st.sampled_from(component_names()), st.floats(0, 1), max_size=12))
def test_a_signature_goes_into_its_table_and_back(found: dict[str, float]) -> None:
    one = Signature.of("x", found, "reading")
    again = Signature.from_frame(one.tables()["signatures"].with_columns(item=pl.lit("x")))
    assert np.array_equal(one.values, again.values, equal_nan=True) and again.name == "x" and again.source == "reading"
    assert sorted(one.measured) == sorted(found)
    assert one.frame()["value"].null_count() == len(COMPONENTS) - len(found)
    assert np.array_equal(signature_matrix([one, again])[1], one.values, equal_nan=True)


def test_a_signatures_numbers_cannot_be_changed() -> None:
    mine = np.full(len(COMPONENTS), 0.5)
    one = Signature("x", mine)
    mine[0] = 0.9
    assert one.values[0] == 0.5
    with pytest.raises(ValueError, match="read-only"):
        one.values[0] = 0.1


# -- the formulas ------------------------------------------------------------------------------------------------------------


@settings(max_examples=60)
@given(st.integers(3, 30), st.integers(1, 6), st.integers(0, 10_000), st.floats(0.0, 0.98), st.floats(0, 0.5))
def test_attention_apart_from_the_sink_is_that_of_the_other_keys(n: int, heads: int, seed: int, sink: float, lost: float) -> None:
    """Oracle: renormalise each head's other weights, and average heads by what they spend there. ``lost`` goes to a sink logit."""
    rng = np.random.default_rng(seed)
    weights = rng.dirichlet(np.ones(n - 1), heads) * rng.uniform(0.5, 1, (heads, 1)) * (1 - sink)
    s = np.full(heads, sink) * (1 - lost)
    p = np.column_stack([s, weights * (1 - lost)])
    back = (n - 1) - np.arange(n)
    found = attention_values(
        np.zeros(heads, int), 3, n, total=p.sum(1), sink=s, own=p[:, -1], entropy=-np.where(p > 0, p * np.log(np.where(p > 0, p, 1)), 0).sum(1),
        distance=(p * back).sum(1) / p.sum(1),
    )  # fmt: skip
    rest = p[:, 1:]
    off = rest.sum(1)
    q = rest / off[:, None]
    want = {
        "entropy": (off * -(q * np.log(np.where(q > 0, q, 1))).sum(1)).sum() / off.sum() / math.log(n - 1),
        "distance": (off * (q * back[1:]).sum(1)).sum() / off.sum() / (n - 1),
        "self": p[:, -1].sum() / off.sum(),
    }
    assert found["attention.sink.early"] == pytest.approx(s.mean(), abs=1e-9)
    for name, value in want.items():
        assert found[f"attention.{name}.early"] == pytest.approx(value, abs=1e-6), name
    assert not any("late" in name or "middle" in name for name in found)


def test_a_head_that_sees_nothing_but_the_sink_says_nothing() -> None:
    one = np.ones(2)
    found = attention_values(np.zeros(2, int), 1, 9, total=one, sink=one, own=0 * one, entropy=0 * one, distance=8 * one)
    assert found == {"attention.sink.early": 1.0}
    mixed = np.array([1.0, 0.0])
    found = attention_values(
        np.zeros(2, int),
        1,
        9,
        total=one,
        sink=mixed,
        own=np.array([0.0, 0.25]),
        entropy=np.array([0.0, 1.0]),
        distance=np.array([8.0, 2.0]),
    )
    assert found["attention.distance.early"] == pytest.approx(2 / 8) and found["attention.self.early"] == pytest.approx(0.25)


def test_the_lens_components_of_a_story_told_by_hand() -> None:
    top = ["a", "b", "c", "c", "d", "c", "c"]
    found = lens_values(top, np.array([0.9, 0.5, 0.2, 0.3, 0.7, 0.4, 0.8]), np.full(7, 2.0), np.linspace(0, 0.6, 7))
    assert found["lens.answer_depth"] == 5 / 6 and found["lens.changes"] == 4 / 6
    assert found["lens.overruled"] == 0.7  # the embedding's own 0.9 does not count
    assert found["lens.entropy.middle"] == 0.5
    assert found["lens.answer.early"] == pytest.approx(0.15) and found["lens.answer.late"] == pytest.approx(0.55)
    settled = lens_values(["c"] * 4, np.ones(4), np.zeros(4), np.ones(4))
    assert settled["lens.answer_depth"] == settled["lens.changes"] == settled["lens.overruled"] == 0


@given(st.lists(st.floats(-5, 5), min_size=2, max_size=40))
def test_attribution_components_keep_their_range(dla: list[float]) -> None:
    values = np.array(dla)
    found = attribution_values(np.arange(len(dla)), values, len(dla), np.array([1.0, -1.0]))
    if not np.abs(values).sum() > 0:
        assert found == {}
        return
    assert all(0 <= v <= 1 for v in found.values())
    assert attribution_values(np.arange(len(dla)), -values, len(dla), None).get("attribution.against") == pytest.approx(
        1 - found["attribution.against"]
    )


def test_spread_is_the_effective_number() -> None:
    assert spread(np.array([1.0, 1, 1, 1])) == pytest.approx(1) and spread(np.array([1.0, 0, 0, 0])) == pytest.approx(0.25)
    assert math.isnan(spread(np.zeros(3)))


@given(st.floats(-3, 3), st.floats(0, 2), st.floats(0, 2), st.floats(-3, 3), st.sampled_from(["above", "below"]))
def test_a_margin_passes_one_half_where_the_verdict_fires(
    value: float, below: float, above: float, criterion: float, direction: Any
) -> None:
    from symbolic_residue.stats import decide, Estimate

    row = {"value": value, "low": value - below, "high": value + above, "criterion": criterion, "direction": direction}
    found = margin(row)
    assert -1 <= found <= 1
    near = min(abs(criterion - row["low"]), abs(criterion - row["high"])) < 1e-9 or value == criterion
    if not near:
        outcome = decide(Estimate(value, row["low"], row["high"], 9), criterion, direction)
        assert (found > 0.5 + 1e-12) <= (outcome == "fires") <= (found > 0.5 - 1e-12)
        assert (found < -0.5 - 1e-12) <= (outcome == "absent") <= (found < -0.5 + 1e-12)
    assert math.isnan(margin(row | {"low": None}))


# -- readings ----------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("family", FAMILIES)
def test_a_reading_is_what_plain_forwards_say(family: str) -> None:
    model, tokenizer = build(family), tiny_tokenizer()
    read = read_signature(Instrument(wrap(model, tokenizer)), TEXT, name="mill")
    assert read.name == "mill" and read.source == "reading"
    ids = build_prompt(tokenizer, TEXT).ids
    model.set_attn_implementation("eager")
    with torch.no_grad():
        out = model(input_ids=torch.tensor([ids]), use_cache=False, output_attentions=True)
    p = torch.softmax(out.logits[0, -1].double(), -1)
    best = out.logits[0, -1].double().topk(2).values
    odds = float(best[0] - best[1])
    entropy = float(-(p * p.log()).sum())
    assert read["output.top"] == pytest.approx(float(p.max()), abs=1e-5)
    assert read["output.log_odds"] == pytest.approx(odds / (odds + 2), abs=1e-5)
    assert read["output.entropy"] == pytest.approx(entropy / (entropy + 2), abs=1e-5)
    assert read["output.in_context"] == pytest.approx(float(p[sorted(set(ids))].sum()), abs=1e-5)
    n = len(ids)
    for layer, name in ((0, "early"), (1, "middle")):  # of two layers, one is in the first third and one in the second
        w = out.attentions[layer][0, :, -1].double().numpy()
        off = w[:, 1:].sum(1)
        q = w[:, 1:] / off[:, None]
        assert read[f"attention.sink.{name}"] == pytest.approx(w[:, 0].mean(), abs=1e-5)
        assert read[f"attention.self.{name}"] == pytest.approx(w[:, -1].sum() / off.sum(), abs=1e-5)
        h = -np.where(q > 0, q * np.log(np.where(q > 0, q, 1)), 0).sum(1)
        assert read[f"attention.entropy.{name}"] == pytest.approx((off * h).sum() / off.sum() / math.log(n - 1), abs=1e-4)
        d = (q * (n - 1 - np.arange(1, n))).sum(1)
        assert read[f"attention.distance.{name}"] == pytest.approx((off * d).sum() / off.sum() / (n - 1), abs=1e-4)
    assert math.isnan(read["attention.sink.late"])
    assert read["context.length"] == n / (n + 64) and read["context.repeated"] == 1 - len(set(ids)) / n


@pytest.mark.parametrize("family", [*FAMILIES, "gpt_oss", "qwen3_next"])
def test_a_batch_reads_what_single_prompts_read(family: str) -> None:
    one = instrument(family)
    together = read_signatures(one, TEXTS, names=["a", "b", "c"])
    assert [s.name for s in together] == ["a", "b", "c"]
    for text, found in zip(TEXTS, together, strict=True):
        np.testing.assert_allclose(found.values, read_signature(one, text).values, atol=2e-4)
    assert all(np.isfinite(s["lens.answer_depth"]) and np.isfinite(s["attribution.depth"]) for s in together)


def test_a_run_and_a_reading_of_the_same_text_agree() -> None:
    """The point of one list: a shell's tables and a plain forward give the same components."""
    shell = ValueCollapseShell(
        build("llama"), tiny_tokenizer(), ValueCollapseConfig.make(variants=3, steps=2, top_heads=2, random_heads=2)
    )
    findings = shell.analyze_residue(shell.run(TEXT))
    run, read = signature(findings, name="mill"), read_signature(shell.instrument, TEXT)
    assert run.name == "mill" and run.source == "tables"
    for group in ("attention", "lens", "output", "context"):
        for name, value in of(run, group).items():
            if name == "output.in_context":
                assert math.isnan(value)  # no table holds the whole distribution
            else:
                assert value == pytest.approx(read[name], abs=2e-4, nan_ok=True), name
    modes = {"flatness", "oscillation", "value_collapse", "confidence_fragility"}
    measured = {name for name in run.measured if name.startswith("verdict.")}
    assert measured == {f"verdict.{m}" for m in modes} - {
        f"verdict.{v.mode.replace(' ', '_')}" for v in findings.verdicts if not v.value.has_interval
    }
    assert not any(name.startswith("verdict.") for name in read.measured)
    assert {"sensitivity.divergence", "sensitivity.changed", "attribution.depth", "attribution.heads", "heads.confirmed"} <= {
        *run.measured, "heads.confirmed",
    }  # fmt: skip


@pytest.mark.parametrize(
    ("shell", "groups"),
    [
        ("memtrace", {"lens", "output", "attribution", "context", "curves", "maps", "heads", "verdict"}),
        ("layer-salience", {"context", "curves", "maps", "verdict"}),
        ("temporal-inference", {"context", "curves", "maps", "verdict"}),
        ("instruction-disruption", {"lens", "output", "curves"}),
    ],
)
def test_the_runs_of_every_shell_have_a_signature_and_what_they_lack_is_missing(shell: str, groups: set[str]) -> None:
    from symbolic_residue.shells._registry import config_class, make_shell, shell_class

    loaded = wrap(build("llama", max_position_embeddings=2048, num_hidden_layers=3), tiny_tokenizer())
    made = make_shell(shell, loaded, config_class(shell).quick(top_heads=0))
    item = next(i for i in shell_class(shell).items() if i.split == "calibration" and not i.null)
    found = signature(made.analyze_residue(made.run_item(item)), name=item.id)
    assert {name.split(".")[0] for name in found.measured} == groups
    assert not any(found[name] == 0 for name in component_names() if name not in found.measured)
    page = (Path(__file__).parents[3] / "docs" / "signatures.md").read_text("utf-8")
    row = next(line for line in page.splitlines() if line.startswith(f"| {shell} | `"))
    assert {g for g in groups if g != "heads"} <= set(re.findall(r"`(\w+)`", row))


def test_a_reading_of_a_run_without_verdicts_gives_the_attention(tmp_path: Any) -> None:
    from symbolic_residue.diagnose import read_item
    from symbolic_residue.prompts import PromptItem

    loaded = wrap(build("llama"), tiny_tokenizer())
    item = read_item(loaded, PromptItem(id="mill", prompt=TEXT))
    found, read = signature(item.tables), read_signature(Instrument(loaded), TEXT)
    for name, value in of(found, "attention").items():
        assert value == pytest.approx(read[name], abs=1e-5, nan_ok=True), name
    early = read_item(loaded, PromptItem(id="mill", prompt=TEXT), rows=(2,))  # the last row was not asked for
    assert not any(name.startswith("attention") for name in signature(early.tables).measured)


def test_refusals() -> None:
    with pytest.raises(ConfigError, match="No table"):
        signature({"nothing": pl.DataFrame({"a": [1]})})
    lines = pl.DataFrame({"item": ["a", "b"], "variant": [1, 1], "js": [0.1, 0.2], "changed": [True, False]})
    with pytest.raises(ConfigError, match="2 items"):
        signature({"sensitivity": lines})
    both = signatures({"sensitivity": lines})
    assert [s.name for s in both] == ["a", "b"] and [s["sensitivity.changed"] for s in both] == [1, 0]
    with pytest.raises(ConfigError, match="item column"):
        signatures({"sensitivity": lines.drop("item")})
    with pytest.raises(PromptError):
        read_signature(instrument("llama"), "")
    assert read_signatures(instrument("llama"), []) == []


# -- tables of any shell -----------------------------------------------------------------------------------------------------


def test_curves_maps_and_head_scores_of_any_shell() -> None:
    curves = pl.DataFrame(
        [("P", "natural", 0.0, 0.8), ("P", "natural", 64.0, 0.2), ("P", "control", 0.0, 0.5), ("P", "control", 64.0, 0.5)],
        schema=["curve", "series", "x", "value"],
        orient="row",
    )
    maps = pl.DataFrame({"map": ["m"] * 4, "layer": [0, 0, 3, 3], "position": [0, 1, 0, 1], "value": [0.0, 0.0, -2.0, 2.0]})
    scores = pl.DataFrame(
        {
            "layer": [0, 1, 3],
            "head": [0, 0, 0],
            "low": [0.5, 0.1, None],
            "control": [0.2, 0.2, 0.1],
            "control_high": [0.3, None, 0.2],
        }
    )
    found = signature({"curves": curves, "maps": maps, "head_scores": scores})
    assert found["curves.change"] == pytest.approx(-0.6) and found["curves.control_change"] == 0
    assert found["maps.depth"] == 1 and found["maps.spread"] == pytest.approx(1)
    assert found["heads.above_control"] == 0.5 and found["heads.depth"] == 0
    assert set(found.measured) == {
        "curves.change",
        "curves.control_change",
        "maps.depth",
        "maps.spread",
        "heads.above_control",
        "heads.depth",
    }


def test_verdicts_of_a_shell_of_ones_own_have_a_place() -> None:
    row = {
        "shell": "mine",
        "mode": "drift",
        "outcome": "fires",
        "value": 3.0,
        "low": 2.0,
        "high": 4.0,
        "criterion": 1.0,
        "direction": "above",
    }
    found = signature(
        {"verdicts": pl.DataFrame([row, row | {"shell": "temporal-inference", "value": 0.0, "low": -1.0, "high": 1.0}])}
    )
    assert found["verdict.other"] == pytest.approx(2 / 3) and found["verdict.drift"] == pytest.approx(-0.5)


def test_a_list_of_chosen_heads_is_no_attribution() -> None:
    heads = pl.DataFrame({"layer": [0, 1], "head": [3, 0], "target": ["t"] * 2, "dla": [1.0, -1.0], "confirmed": [True, None]})
    found = signature({"heads": heads})
    assert found.measured == ["heads.confirmed"] and found["heads.confirmed"] == 1
