"""Verdicts over prompts: planted effects found, absent ones not, and rarely a false one."""

from __future__ import annotations

import math
from functools import cache

import numpy as np
import polars as pl
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from parallel_trees import instrument, random_tree, tree_of

from symbolic_residue.errors import ConfigError, InstrumentError, PromptError
from symbolic_residue.instrument import AttentionBias, Edit
from symbolic_residue.parallel import arrange, Arranged, false_rates, measure_prompt, MeasureConfig, QUESTIONS, replay, verdicts
from symbolic_residue.parallel.measure import collapse, FORMS, HEADLINE, log_ratios, relabelled
from symbolic_residue.parallel.measure._auc import auc_rows, clustered_auc
from symbolic_residue.parallel.measure._infer import layer_rows, means, outcome_of, Rule
from symbolic_residue.parallel.measure._prompt import _Run
from symbolic_residue.store._schema import conform

QUICK = MeasureConfig(epsilons=(0.5,), biases=(), sizes=())


def sharing_bias(value: float):
    """Every key that shares its position with another key that the probe sees gets ``value``: a model that slights shared positions."""

    def edits(arranged: Arranged) -> list[Edit]:
        position, rows_of = arranged.layout.position[0], {}
        for row in arranged.rows:
            seen = arranged.visible[0, row].clone()
            seen[row] = False
            slots = seen.nonzero()[:, 0].tolist()
            where = [round(float(position[s]), 6) for s in slots]
            shared = tuple(s for s, p in zip(slots, where, strict=True) if where.count(p) > 1)
            rows_of.setdefault(shared, []).append(row)
        return [AttentionBias(value, keys=keys, rows=rows) for keys, rows in rows_of.items() if keys]

    return edits


@cache
def measured(name: str, planted: float = 0.0, prompts: int = 8) -> dict[str, pl.DataFrame]:
    ins = instrument(name, torch.float32)
    found: dict[str, list[pl.DataFrame]] = {}
    for i in range(prompts):
        tree = random_tree(i, steps=5, most=3)
        frames = measure_prompt(ins, tree, QUICK, edits=sharing_bias(planted) if planted else None, checked=i > 0)
        for table, frame in frames.items():
            found.setdefault(table, []).append(frame.with_columns(pl.lit(f"p{i}").alias("item")))
    return {table: pl.concat(some) for table, some in found.items()}


def verdict(frames: dict[str, pl.DataFrame], question: str) -> dict:
    table = verdicts(frames)["parallel_verdicts"]
    return table.filter((pl.col("question") == question) & (pl.col("quantity") == "verdict")).row(0, named=True)


@pytest.mark.parametrize("name", ["llama", "qwen3", "gemma3", "gpt_neox"])
def test_a_model_that_slights_shared_positions_is_found_out(name: str) -> None:
    found = verdict(measured(name, planted=-1.0), "shared position")
    assert found["outcome"] == "down-weighted"
    assert found["high"] < 1 and found["control_high"] < 1
    assert found["n"] == 8
    table = verdicts(measured(name, planted=-1.0))["parallel_verdicts"]
    only = table.filter(pl.col("quantity") == "beyond competition, shared against unique").row(0, named=True)
    assert only["outcome"] == "down-weighted" and only["n"] == 8
    assert found["value"] > math.exp(-1.0)  # the whole set is pressed, so a part of it cancels


def test_a_bias_the_other_way_is_found_as_that() -> None:
    assert verdict(measured("qwen3", planted=1.0), "shared position")["outcome"] == "up-weighted"


@pytest.mark.parametrize("name", ["llama", "qwen3", "gemma3", "gpt_neox", "mistral"])
def test_plain_models_are_not_found_guilty(name: str) -> None:
    assert verdict(measured(name), "shared position")["outcome"] in ("undecided", "no effect")
    table = verdicts(measured(name))["parallel_verdicts"]
    only = table.filter(pl.col("quantity") == "beyond competition, shared against unique").row(0, named=True)
    assert only["outcome"] in ("undecided", "no effect")
    rows = verdicts(measured(name))["parallel_layers"].filter((pl.col("question") == "competition") & (pl.col("layer") == 0))
    assert rows["outcome"].to_list() == ["no effect"]  # competition explains the first layer wholly
    np.testing.assert_allclose(rows["value"].to_numpy(), 1, atol=1e-3)


def test_relabelled_arms_are_rarely_found_different() -> None:
    """Real measurements, arms exchanged by coins: each verdict may fire in 5 % of them, and the layers of a contrast together too."""
    draws = 80
    found = false_rates(measured("llama", planted=-1.0), draws=draws)
    questions = {"shared position", "isolation", "competition", "company", "sink"}
    layers = {name for name in found if name.startswith("layers: ")}
    assert set(found) == questions | layers and len(layers) == 4
    for name, rate in found.items():
        assert rate.n == draws
        assert rate.value * draws <= 0.05 * draws + 2.6 * math.sqrt(0.05 * 0.95 * draws), name


def test_relabelling_keeps_sizes_and_what_hangs_together() -> None:
    frames = measured("llama")
    other = relabelled(frames, 3)
    plain = frames["parallel_arms"].sort("item", maintain_order=True).rename({"value": "plain"})
    both = plain.with_columns(other["parallel_arms"].sort("item", maintain_order=True)["value"]).filter(pl.col("plain") != 0)
    sign = both.with_columns((pl.col("value") / pl.col("plain")).round(9).alias("sign"))
    assert set(sign["sign"]) == {-1.0, 1.0}
    assert sign.group_by("item").agg(pl.col("sign").n_unique())["sign"].to_list() == [1] * 8


def test_two_draws_of_random_company_are_not_told_apart() -> None:
    """A null of the model's own: the same top token among random tokens, drawn twice. Which draw is called the arm means nothing."""
    ins, fired, tried = instrument("llama", torch.float32), 0, 50
    values = []
    for i in range(tried * 6):
        tree = random_tree(i, steps=2, most=3)
        drawn = [_Run(ins, tree, MeasureConfig(seed=seed), None).replaced() for seed in (2 * i, 2 * i + 1)]
        seen = [replay(ins, arrange(tree, ids=ids)) for ids in drawn]
        sights = [s for s in seen[0].sights if s.rank == 0]
        found = log_ratios(*seen, len(tree.prompt), sights)[HEADLINE]
        values.append(float(collapse(found, [s.step for s in sights])[0].mean()))
    assert np.std(values) > 0.01
    for some in np.array(values).reshape(tried, 6):
        fired += outcome_of(means(some, Rule()), Rule()) in ("down-weighted", "up-weighted")
    assert fired <= 0.05 * tried + 2.6 * math.sqrt(0.05 * 0.95 * tried)


@settings(max_examples=20)
@given(st.integers(6, 40), st.integers(0, 10_000), st.sampled_from([0.02, 0.2]))
def test_outcomes_keep_their_definition(n: int, seed: int, spread: float) -> None:
    values = np.random.default_rng(seed).normal(0.0, spread, n)
    found = means(values, Rule())
    assert found is not None and found.low <= found.value <= found.high
    mirrored = means(-values, Rule())
    other = {"down-weighted": "up-weighted", "up-weighted": "down-weighted"}
    outcome = outcome_of(found, Rule())
    if abs(found.low + mirrored.high) < 1e-9 and abs(found.high + mirrored.low) < 1e-9:
        assert outcome_of(mirrored, Rule()) == other.get(outcome, outcome)
    inside = max(abs(found.low), abs(found.high)) < math.log(1.05)
    assert (outcome == "no effect") == inside
    assert found.ratio().low > 0


def test_false_positives_and_power_over_simulated_prompts() -> None:
    rng, rule = np.random.default_rng(1), Rule()
    null = rng.standard_t(3, size=(400, 20)) * 0.2
    fired = sum(outcome_of(means(row, rule), rule) in ("down-weighted", "up-weighted") for row in null)
    assert fired <= 0.05 * 400 + 2.6 * math.sqrt(0.05 * 0.95 * 400)
    hit = sum(outcome_of(means(row, rule), rule) == "down-weighted" for row in rng.normal(-0.2, 0.2, (100, 20)))
    assert hit >= 95
    same = sum(outcome_of(means(row, rule), rule) == "no effect" for row in rng.normal(-0.005, 0.02, (100, 20)))
    assert same >= 95


def test_layers_hold_their_error_together() -> None:
    rng, rule, fired = np.random.default_rng(2), Rule(), 0
    for _ in range(60):
        shared = rng.normal(0, 0.3, (10, 1)) + rng.normal(0, 0.3, (10, 12))
        rows = layer_rows(shared, list(range(12)), rule)
        fired += any(r["outcome"] in ("down-weighted", "up-weighted") for r in rows)
    assert fired <= 0.05 * 60 + 2.6 * math.sqrt(0.05 * 0.95 * 60)
    planted = rng.normal(0, 0.1, (12, 5))
    planted[:, 3] -= 0.5
    planted[:, 0] += 0.5
    found = layer_rows(planted, [2, 4, 6, 8, 10], rule)
    assert [r["layer"] for r in found if r["outcome"] == "down-weighted"] == [8]
    assert [r["layer"] for r in found if r["outcome"] == "up-weighted"] == [2]


def test_five_prompts_decide_nothing() -> None:
    frames = {k: v.filter(pl.col("item") != "p7") for k, v in measured("llama", planted=-1.0).items()}
    six = {k: v.filter(~pl.col("item").is_in(["p5", "p6"])) for k, v in frames.items()}
    table = verdicts(six)["parallel_verdicts"]
    assert set(table["outcome"]) == {"undecided"}
    assert table["low"].null_count() == len(table)
    found = verdict(six, "shared position")
    assert "5 prompts decide nothing" in found["note"] and found["value"] is not None
    assert set(verdicts(six)["parallel_layers"]["outcome"]) == {"undecided"}


def test_tables_are_those_of_the_run_folder() -> None:
    ins = instrument("llama", torch.float32)
    frames = measure_prompt(ins, tree_of(((61, 90), (17,), (30, 31, 250), (70, 8), (99,), (14, 15), (16,))))
    assert all(len(frame) for frame in frames.values()), {k: len(v) for k, v in frames.items()}
    for table, frame in frames.items():
        conform(table, frame, "p")
    arms = frames["parallel_arms"]
    assert set(arms["form"]) == set(FORMS)
    pairs = set(arms.select("arm", "reference").iter_rows())
    others = {"offset 0.001", "offset 0.01", "offset 0.1", "offset 0.25", "offset 0.5"}
    others |= {"unique", "visible", "singleton", "unrelated", "standard"}
    assert pairs == {("shared", o) for o in others} | {("moved", "unique"), ("expanded", "unexpanded")}
    for table, frame in verdicts(measured("llama")).items():
        conform(table, frame, "all")
    asked = set(verdicts(measured("llama"))["parallel_verdicts"]["question"])
    assert asked == set(QUESTIONS) - {"bias"}  # no sweep was asked for


def test_the_same_seed_gives_the_same_tables() -> None:
    ins, tree = instrument("llama", torch.float32), tree_of()
    first, again = (measure_prompt(ins, tree, QUICK) for _ in range(2))
    assert all(first[k].equals(again[k]) for k in first)
    other = measure_prompt(ins, tree, MeasureConfig(epsilons=(0.5,), biases=(), sizes=(), seed=5))
    assert not first["parallel_arms"].equals(other["parallel_arms"])


def test_coins_and_random_tokens_are_each_prompts_own() -> None:
    ins = instrument("llama", torch.float32)
    sets = ((61, 90), (30, 31), (17,))
    runs = [
        _Run(ins, tree_of(sets, prompt), MeasureConfig(seed=seed), None) for prompt, seed in (((5, 6), 0), ((5, 7), 0), ((5, 6), 1))
    ]
    drawn = [run.replaced() for run in runs]
    assert drawn[0] == runs[0].replaced()
    assert len({str(d) for d in drawn}) == len({run.seed for run in runs}) == 3
    for ids in drawn:
        assert [row[0] for row in ids] == [61, 30, 17] and [len(row) for row in ids] == [2, 2, 1]
        assert 90 not in ids[0] and 31 not in ids[1]


def test_refusals() -> None:
    ins = instrument("llama", torch.float32)
    with pytest.raises(PromptError, match="no set of several tokens"):
        measure_prompt(ins, tree_of(((61,), (17,), (30, 31))))
    with pytest.raises(PromptError, match="outside of the model's 0 to"):
        measure_prompt(ins, tree_of(((61, 90000), (17,))))
    with pytest.raises(ConfigError, match="no measured prompt"):
        verdicts({})
    with pytest.raises(ConfigError, match="margin"):
        verdicts(measured("llama"), margin=0)
    with pytest.raises(ConfigError, match=r"0\.5 among them"):
        MeasureConfig(epsilons=(0.1,))
    with pytest.raises(ConfigError, match="do not rise"):
        MeasureConfig(sizes=(5, 3))
    ins.model.train()
    with pytest.raises(InstrumentError, match="training mode"):
        measure_prompt(ins, tree_of(), checked=True)


def test_auc_counts_pairs_and_weighs_prompts() -> None:
    scores = np.array([0.9, 0.2, 0.5, 0.5, 0.1])
    pruned = np.array([False, True, False, True, True])
    prompt = np.array([0, 0, 1, 1, 1])
    pairs = [(i, j) for i in range(5) for j in range(5) if not pruned[i] and pruned[j]]
    for weight in (np.ones(2), np.array([2.0, 0.0]), np.array([1.0, 3.0])):
        won = sum(
            weight[prompt[i]] * weight[prompt[j]] * (0.5 * (scores[i] == scores[j]) + (scores[i] > scores[j])) for i, j in pairs
        )
        total = sum(weight[prompt[i]] * weight[prompt[j]] for i, j in pairs)
        assert clustered_auc(scores, pruned, prompt, weight[None])[0] == pytest.approx(won / total)


def bias_frames(slope: float, start: float, prompts: int = 8) -> dict[str, pl.DataFrame]:
    frames = measured("llama")
    rows = [
        {"item": f"p{i}", "bias": b, "ratio": start + 0.01 * (i - (prompts - 1) / 2) + slope * b, "kl": b * b, "nll": 2 + b, "n": 4}
        for i in range(prompts)
        for b in (0.0, 1.0, 2.0)
    ]
    return {"parallel_arms": frames["parallel_arms"], "parallel_bias": pl.DataFrame(rows)}


def test_the_restoring_bias_is_where_the_mean_reaches_one() -> None:
    def rows(slope: float, start: float) -> dict[str, dict]:
        table = verdicts(bias_frames(slope, start))["parallel_verdicts"].filter(pl.col("question") == "bias")
        return {row["quantity"]: row for row in table.iter_rows(named=True)}

    found = rows(0.5, -0.3)
    assert found["restoring bias"]["value"] == pytest.approx(0.6)
    assert found["restoring bias"]["low"] < 0.6 < found["restoring bias"]["high"] < 0.7
    assert found["KL at that bias"]["value"] == pytest.approx(0.6)  # by a line between the points 0 and 1
    assert found["change of −ln p of the top path at that bias"]["value"] == pytest.approx(0.6)
    assert found["prompts that some bias restores"]["value"] == 1
    never = rows(0.1, -0.9)
    assert never["restoring bias"]["outcome"] == "undecided" and never["restoring bias"]["value"] is None
    assert never["prompts that some bias restores"]["value"] == 0
    already = rows(0.1, 0.5)
    assert already["restoring bias"]["value"] == 0


def arms_of(effects: dict[tuple[str, str], float], prompts: int = 8) -> dict[str, pl.DataFrame]:
    """Two layers of two heads, every form alike: the effect, and a spread of 0.01 over prompts."""
    rows = [
        {"item": f"p{i}", "arm": arm, "reference": reference, "form": form, "layer": layer, "head": head}
        | {"value": value + 0.01 * (i - (prompts - 1) / 2) + (0.1 if head else -0.1), "n": 3}
        for (arm, reference), value in effects.items()
        for i in range(prompts)
        for form in FORMS
        for layer in (1, 3)
        for head in (0, 1)
    ]
    return {"parallel_arms": pl.DataFrame(rows)}


@pytest.mark.parametrize(
    ("first", "second", "outcome"),
    [
        (-0.3, -0.2, "down-weighted"),
        (0.3, 0.2, "up-weighted"),
        (0.0, 0.0, "no effect"),
        (-0.3, 0.0, "undecided"),
        (-0.3, 0.3, "undecided"),
        (0.0, -0.3, "undecided"),
        (-0.3, None, "undecided"),
    ],
)
def test_both_comparisons_must_say_the_same(first: float, second: float | None, outcome: str) -> None:
    effects = {("moved", "unique"): first} | ({} if second is None else {("shared", "offset 0.5"): second})
    found = verdict(arms_of(effects), "shared position")
    assert found["outcome"] == outcome
    assert found["value"] == pytest.approx(math.exp(first))
    assert found["low"] < found["value"] < found["high"] and found["n"] == 8
    if second is not None:
        assert found["control_value"] == pytest.approx(math.exp(second))


def test_layers_that_only_some_prompts_have_are_not_tested_but_counted() -> None:
    frames = arms_of({("shared", "visible"): -0.2})
    cut = frames["parallel_arms"].filter(~((pl.col("item") == "p2") & (pl.col("layer") == 3)))
    out = verdicts({"parallel_arms": cut})
    assert out["parallel_layers"].filter(pl.col("question") == "isolation")["layer"].to_list() == [1]
    rows = out["parallel_verdicts"].filter((pl.col("question") == "isolation") & (pl.col("quantity") == "verdict"))
    assert rows["n"].to_list() == [8] and rows["outcome"].to_list() == ["down-weighted"]


def pruning_frame(prompts: int, pruned_in: int, seed: int = 0) -> pl.DataFrame:
    """Attention knows what was pruned, probability does not."""
    rng = np.random.default_rng(seed)
    rows = []
    for i in range(prompts):
        for rank in range(1, 9):
            pruned = i < pruned_in and rank > 5
            attention = float(rng.normal(0.1 if pruned else 0.2, 0.05))
            row = {"item": f"p{i}", "step": 0, "rank": rank, "probability": float(rng.random()), "judged": attention}
            rows.append(row | {"attention": attention, "pruned": pruned})
    return pl.DataFrame(rows)


def test_what_attention_knows_of_pruning_is_found_and_needs_prompts() -> None:
    def rows(frame: pl.DataFrame) -> dict[str, dict]:
        return {row["quantity"]: row for row in auc_rows(frame, Rule())}

    found = rows(pruning_frame(12, 12))
    assert found["AUC of attention"]["low"] > 0.8 and found["AUC of attention"]["high"] <= 1
    assert found["AUC of probability"]["low"] < 0.5 < found["AUC of probability"]["high"]
    assert found["verdict"]["outcome"] == "measured" and found["verdict"]["low"] > 0 and found["verdict"]["n"] == 12
    few = rows(pruning_frame(12, 5))
    assert {row["outcome"] for row in few.values()} == {"undecided"} and few["verdict"]["low"] is None
    assert "in 5 prompts" in few["verdict"]["note"]
    apart = pruning_frame(8, 8).with_columns(pl.when("pruned").then(0.1).otherwise(0.9).alias("attention"))
    assert rows(apart)["AUC of attention"]["value"] == 1 and rows(apart)["AUC of attention"]["low"] is None
    assert rows(pruning_frame(8, 0))["verdict"]["outcome"] == "undecided"
