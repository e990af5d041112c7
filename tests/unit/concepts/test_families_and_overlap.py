"""Families of concepts compared exactly, and overlap of top heads against two nulls."""

from __future__ import annotations

from itertools import combinations, permutations

import hypothesis.strategies as st
import numpy as np
import pytest
from hypothesis import assume, given, settings

from symbolic_residue.concepts import compare_families, family_difference, head_overlap
from symbolic_residue.errors import ConfigError
from symbolic_residue.stats import wilson

NUMBERS = st.lists(st.floats(-5, 5).map(lambda x: round(x, 3)), min_size=4, max_size=4)


def refused(first: np.ndarray, second: np.ndarray, delta: float) -> tuple[float, float]:
    """One-sided p values of a shift delta, by listing every way."""
    pooled = np.concatenate([first, second - delta])
    n, n_b = len(pooled), len(second)
    gaps = [pooled[list(c)].mean() - np.delete(pooled, list(c)).mean() for c in combinations(range(n), n_b)]
    own = (second - delta).mean() - first.mean()
    return float(np.mean([g >= own - 1e-9 for g in gaps])), float(np.mean([g <= own + 1e-9 for g in gaps]))


@given(NUMBERS, NUMBERS)
@settings(max_examples=25)
def test_p_and_interval_are_those_of_every_way_listed(first: list[float], second: list[float]) -> None:
    a, b = np.array(first), np.array(second)
    assume(len(set(first + second)) == 8)
    found = family_difference(first, second)
    pooled = np.concatenate([a, b])
    gaps = [pooled[list(c)].mean() - np.delete(pooled, list(c)).mean() for c in combinations(range(8), 4)]
    assert found["ways"] == 70 and found["difference"] == pytest.approx(b.mean() - a.mean())
    assert found["p"] == pytest.approx(np.mean([abs(g) >= abs(found["difference"]) - 1e-9 for g in gaps]))
    assert found["low"] <= found["difference"] <= found["high"]
    step = 1e-6 * (1 + abs(found["low"]))
    above, below = refused(a, b, found["low"] - step)[0], refused(a, b, found["low"] + step)[0]
    assert above <= 0.025 < below
    above, below = refused(a, b, found["high"] + step)[1], refused(a, b, found["high"] - step)[1]
    assert above <= 0.025 < below


def test_six_against_six() -> None:
    rng = np.random.default_rng(0)
    falsely = held = found = 0
    for _ in range(300):
        a, b = rng.normal(size=6), rng.normal(size=6)
        plain, moved = family_difference(a, b), family_difference(a, b + 3)  # type: ignore[arg-type]
        falsely += plain["p"] <= 0.05
        held += plain["low"] <= 0 <= plain["high"]
        found += moved["p"] <= 0.05
        assert (plain["ways"] == 924 and (plain["p"] <= 0.048) == (not plain["low"] <= 0 <= plain["high"])) or 0.045 < plain[
            "p"
        ] < 0.055
        assert moved["difference"] == pytest.approx(plain["difference"] + 3) and moved["low"] == pytest.approx(plain["low"] + 3)
    assert wilson(falsely, 300).low <= 0.05 and wilson(held, 300).high >= 0.95 and found > 285


def test_the_detectable_difference_is_found_four_times_of_five() -> None:
    rng = np.random.default_rng(1)
    size = np.mean([family_difference(rng.normal(size=6), rng.normal(size=6))["detectable"] for _ in range(50)])  # type: ignore[arg-type]
    found = sum(family_difference(rng.normal(size=6), rng.normal(size=6) + size)["p"] <= 0.05 for _ in range(300))  # type: ignore[arg-type]
    assert 0.7 < found / 300 < 0.9


def test_too_few_and_too_many_concepts() -> None:
    assert family_difference([0, 1], [5, 6])["low"] is None and family_difference([0, 1], [5, 6])["smallest_p"] == pytest.approx(
        2 / 6
    )
    many = family_difference(range(12), range(3, 15))
    assert not many["exact"] and many["ways"] == 20_000 and many["low"] < 3 < many["high"]
    assert family_difference([1, 1], [1, 1])["p"] == 1 and family_difference([1, 1], [2, 2])["detectable"] is None
    for wrong in (([1], [1, 2]), ([1, np.nan], [1, 2])):
        with pytest.raises(ConfigError):
            family_difference(*wrong)


def block(concentration: float, strength: float) -> dict[str, dict[str, object]]:
    return {
        "participation_ratio": {"value": 100 * np.exp(concentration), "null": {"mean": 100.0}},
        "strength": {"value": np.exp(strength), "null": {"mean": 1.0}},
        "shares": {"value": 0.2 - concentration / 10, "null": {"mean": 0.1}},
    }


def test_families_of_planted_concentration() -> None:
    rng = np.random.default_rng(0)
    names = [f"c{i}" for i in range(12)]
    families = dict(zip(names, ["basic"] * 6 + ["relational"] * 6, strict=True))
    fewer = {c: block(-0.5 * (i >= 6) + 0.1 * rng.normal(), 0.3 * rng.normal()) for i, c in enumerate(names)}
    found = compare_families(fewer, families, dict.fromkeys(names, True))
    assert found["answer"] == "fewer" and found["families"] == ["basic", "relational"] and "strength" not in found["reason"]
    assert found["statistics"]["concentration"]["difference"] == pytest.approx(-0.5, abs=0.15)
    assert found["statistics"]["share"]["difference"] > 0 and found["only_read"]["statistics"] is not None
    more = compare_families({c: fewer[c] for c in names}, {c: "basic" if i >= 6 else "relational" for i, c in enumerate(names)})
    assert more["answer"] == "more" if more["families"][0] == "basic" else more["answer"] in ("fewer", "more")
    by_strength = {
        c: block(-0.5 * (i >= 6) + 0.02 * rng.normal(), 1.0 * (i >= 6) + 0.02 * rng.normal()) for i, c in enumerate(names)
    }
    found = compare_families(by_strength, families)
    assert found["answer"] == "fewer" and "not apart from strength" in found["reason"]
    none = compare_families(
        {c: block(0.1 * rng.normal(), 0.1 * rng.normal()) for c in names}, families, {c: c in ("c0", "c1") for c in names}
    )
    assert none["answer"] == "undecided" and "four times of five" in none["reason"] and none["only_read"]["statistics"] is None
    assert compare_families({"c0": block(0, 0), "c7": block(0, 0)}, families)["answer"] is None


LABELS = ("baseline", "joy", "fear", "trust")


def heads_with(shared: float, own: float, seed: int, scenarios: int = 12) -> tuple[dict[int, np.ndarray], list[str], list[str]]:
    """Joy and fear move heads (0, 2) to (0, 4) alike by ``shared``; every concept moves one head of its own, (1, its number)."""
    rng = np.random.default_rng(seed)
    labels = list(LABELS) * scenarios
    names = [f"{s:02}" for s in range(scenarios) for _ in LABELS]
    heads = {layer: rng.normal(size=(len(labels), 8, 4)) for layer in range(2)}
    for i, label in enumerate(labels):
        heads[0][i, 2:5, 0] += shared * (label in ("joy", "fear"))
        if label != "baseline":
            heads[1][i, LABELS.index(label), 0] += own
    return heads, labels, names


def test_a_shared_head_is_an_overlap_and_shared_neutral_texts_alone_are_none() -> None:
    heads, labels, names = heads_with(shared=6.0, own=0.0, seed=0)
    found = head_overlap(heads, labels, names, LABELS[1:], 3, n_draws=200)
    pairs = {(one["first"], one["second"]): one for one in found["pairs"]}
    assert (
        sorted(found["top"]["joy"]) == sorted(found["top"]["fear"]) == [[0, 2], [0, 3], [0, 4]]
        and pairs["joy", "fear"]["jaccard"] == 1.0
    )
    assert pairs["joy", "fear"]["p_pairs"] <= 0.05 and pairs["joy", "fear"]["p_chance"] == pytest.approx(1 / 560)
    assert pairs["joy", "trust"]["overlap"] <= 1 and pairs["joy", "trust"]["p_pairs"] > 0.3
    apart = head_overlap(*heads_with(shared=0.0, own=6.0, seed=0), LABELS[1:], 1, n_draws=200)
    assert apart["top"] == {"joy": [[1, 1]], "fear": [[1, 2]], "trust": [[1, 3]]} and apart["mean"] == 0
    falsely = by_chance = 0
    for seed in range(60):
        one = head_overlap(*heads_with(0.0, 0.0, seed), LABELS[1:], 4, n_draws=100, seed=seed)
        falsely += min(pair["p_pairs"] for pair in one["pairs"]) <= 0.05
        by_chance += one["mean"] / one["expected"]
    assert wilson(falsely, 60).low <= 0.05
    assert by_chance / 60 > 1.2  # shared neutral texts alone make more overlap than chance does


def test_overlap_does_not_see_how_heads_are_numbered() -> None:
    heads, labels, names = heads_with(3.0, 2.0, 1)
    order = next(iter(permutations((3, 1, 0, 2, 7, 6, 5, 4))))
    turned = {layer: x[:, list(order)] * 3.0 for layer, x in heads.items()}
    a, b = (head_overlap(x, labels, names, LABELS[1:], 3, n_draws=100) for x in (heads, turned))
    assert [one["overlap"] for one in a["pairs"]] == [one["overlap"] for one in b["pairs"]]
    assert [one["p"] for one in a["pairs"]] == [one["p"] for one in b["pairs"]]
    others = head_overlap(heads, labels, names, LABELS[1:], 3, against="others", n_draws=100)
    assert others["against"] == "others" and len(others["pairs"]) == 3


def test_refusals() -> None:
    heads, labels, names = heads_with(0.0, 0.0, 0)
    for wrong in ({"concepts": ["joy"]}, {"k": 16}, {"k": 0}, {"n_draws": 50}, {"concepts": ["joy", "none"]}):
        options = {"concepts": LABELS[1:], "k": 2, "n_draws": 100} | wrong
        with pytest.raises(ConfigError):
            head_overlap(heads, labels, names, options.pop("concepts"), options.pop("k"), **options)  # type: ignore[arg-type]
