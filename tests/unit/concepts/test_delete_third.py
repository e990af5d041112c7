"""Intervals of held-out AUCs: parts of the scenarios are what doing everything again on them gives, and intervals hold what they say."""

from __future__ import annotations

import numpy as np
import pytest
from head_worlds import EVERY, world
from scipy import stats as sps

from symbolic_residue.concepts import Design, make_design
from symbolic_residue.concepts._auc_difference import AucDifference, difference, HeldOutAuc
from symbolic_residue.concepts._delete_third import DeleteThird, draw_thirds
from symbolic_residue.concepts._gram_readout import discriminant_scores, Drawn, Grams
from symbolic_residue.concepts._held_out import auc_of_draws
from symbolic_residue.concepts._random_heads import norm_sets, projected_reading, random_sets
from symbolic_residue.stats import wilson

Sums = tuple[np.ndarray, np.ndarray, np.ndarray]


def made(seed: int, against: str = "baseline", **options: object) -> tuple[list[np.ndarray], Design, Grams, Drawn]:
    heads, _, labels, names = world(seed, **options)  # type: ignore[arg-type]
    design = make_design(labels, names, "joy", against)  # type: ignore[arg-type]
    groups = [heads[layer][design.rows][:, head] for layer, head in EVERY]
    grams = Grams(groups, design)
    return groups, design, grams, grams.drawn(design.positive[None])


def add(a: Sums, b: Sums, sign: int = 1) -> Sums:
    return a[0] + sign * b[0], a[1] + sign * b[1], a[2] + sign * b[2]


def test_thirds() -> None:
    stay = draw_thirds(24, 50, 3)
    assert stay.shape == (50, 16) and (np.diff(stay, axis=1) > 0).all() and len({tuple(row) for row in stay}) == 50
    assert draw_thirds(7, 5, 0).shape == (5, 5) and (draw_thirds(24, 50, 3) == stay).all()


@pytest.mark.parametrize("against", ["baseline", "all"])
def test_a_part_is_what_everything_done_again_on_its_scenarios_gives(against: str) -> None:
    groups, design, grams, drawn = made(1, against, scenarios=9, planted=[(0, 1)], size=2.0, others=2)
    if against == "all":  # a scenario with fewer texts than the others
        keep = np.ones(len(design.positive), dtype=bool)
        keep[np.flatnonzero((design.stratum == 4) & ~design.positive)[0]] = False
        design = Design("joy", "all", design.rows[keep], design.positive[keep], design.stratum[keep], design.fold[keep], True, 0)
        groups = [x[keep] for x in groups]
        grams = Grams(groups, design)
        drawn = grams.drawn(design.positive[None])
    stay = draw_thirds(9, 3, 0)
    parts = DeleteThird(grams, drawn, stay)
    order = np.argsort(-parts.selectivity, axis=1)
    two = add(parts.chosen(order[None, :, 0]), parts.chosen(order[None, :, 1]))
    found, whole = parts.aucs(two)[0], parts.aucs(parts.fixed())[0]
    rest = parts.aucs(add(parts.fixed(), two, -1))[0]
    assert (parts.n_parts, parts.n_out) == (3, 3)
    for b in range(3):
        inside = np.isin(design.fold, stay[b])
        strata = np.unique(design.stratum[inside], return_inverse=True)[1]
        sub = Design("joy", design.against, design.rows[inside], design.positive[inside], strata, strata, True, 0)
        again = Grams([x[inside] for x in groups], sub)
        of = again.drawn(sub.positive[None])
        np.testing.assert_allclose(parts.selectivity.reshape(3, 6, -1)[b], of.selectivity[0], rtol=1e-8)
        np.testing.assert_allclose(parts.raw.reshape(3, 6, -1)[b], of.raw[0], rtol=1e-8)
        np.testing.assert_allclose(parts.paired.reshape(3, 6, -1)[b], of.paired[0], rtol=1e-8)
        chosen = np.argsort(-of.selectivity, axis=2)
        pair = add(again.chosen(of, chosen[:, :, 0]), again.chosen(of, chosen[:, :, 1]))
        for value, sums in ((found[b], pair), (whole[b], again.fixed(of)), (rest[b], add(again.fixed(of), pair, -1))):
            assert value == pytest.approx(auc_of_draws(discriminant_scores(*sums, sub.fold), sub.positive[None])[0], abs=1e-9)


def gaps(seed: int, scenarios: int, planted: object, size: float) -> list[AucDifference]:
    """Two chosen heads minus: the next two, all heads, all others."""
    _, design, grams, drawn = made(seed, scenarios=scenarios, planted=planted, size=size)
    parts = DeleteThird(grams, drawn, draw_thirds(scenarios, 40, 0))

    def sets(kind: str) -> list[Sums]:
        chosen, every, order = (
            (lambda i: grams.chosen(drawn, i), grams.fixed(drawn), np.argsort(-drawn.selectivity, axis=2))
            if kind == "whole"
            else (parts.chosen, parts.fixed(), np.argsort(-parts.selectivity, axis=1)[None])
        )
        few, later = (add(chosen(order[:, :, j]), chosen(order[:, :, j + 1])) for j in (0, 2))
        return [few, later, every, add(every, few, -1)]

    whole = [auc_of_draws(discriminant_scores(*one, design.fold), design.positive[None])[0] for one in sets("whole")]
    found = [HeldOutAuc(value, parts.aucs(one)[0], scenarios, parts.n_out) for value, one in zip(whole, sets("parts"), strict=True)]
    return [difference(found[0], one) for one in found[1:]]


@pytest.mark.parametrize("scenarios", [12, 24])
@pytest.mark.parametrize(("planted", "size"), [((), 0.0), (((1, 3),), 3.0), (EVERY, 1.0)])
def test_intervals_of_differences_hold_what_they_say_where_heads_are_chosen(scenarios: int, planted: object, size: float) -> None:
    n = 80
    found = [gaps(seed, scenarios, planted, size) for seed in range(n)]
    for place in range(3):
        here = [one[place] for one in found]
        truth = float(np.mean([one.value for one in here]))
        assert wilson(sum(one.low <= truth <= one.high for one in here), n).high >= 0.95
        assert wilson(sum(one.lower > truth for one in here), n).low <= 0.05
        assert wilson(sum(one.upper < truth for one in here), n).low <= 0.05
        spread = np.std([one.value for one in here]) / np.sqrt(np.mean([one.error**2 for one in here]))
        assert 0.3 < spread < 1.15, spread


def test_errors_by_hand() -> None:
    parts = np.array([0.6, 0.8, 0.7, 0.7])
    found = HeldOutAuc(0.75, parts, 24, 8)
    assert found.error == pytest.approx(np.sqrt(parts.var(ddof=1) / (1.5**1.5 - 1)))
    half = sps.t.ppf(0.975, 23) * found.error / (0.75 * 0.25)
    assert found.bounds() == pytest.approx(tuple(1 / (1 + np.exp(-(np.log(3) + s * half))) for s in (-1, 1)))
    perfect = HeldOutAuc(1.0, np.ones(4), 24, 8)
    assert perfect.error == 0.5 / 24 and 0.8 < perfect.bounds()[0] < 1 and perfect.bounds()[1] == 1
    gap = difference(perfect, found)
    assert (
        gap.value == 0.25
        and gap.error == pytest.approx(found.error)
        and gap.lower == pytest.approx(0.25 - sps.t.ppf(0.95, 23) * gap.error)
    )
    far = difference(perfect, HeldOutAuc(0.0, np.array([0.0, 1.0, 0.0, 1.0]), 24, 8))
    assert far.high == 1.0 and far.upper == 1.0


def test_scenarios_needed_is_where_the_bound_would_pass() -> None:
    gap = difference(HeldOutAuc(0.8, np.array([0.7, 0.8, 0.9]), 24, 8), HeldOutAuc(0.75, np.array([0.75, 0.75, 0.7]), 24, 8))
    needed = gap.scenarios_needed(gap.value - 0.02)
    assert needed is not None and needed == pytest.approx((1.65 * gap.error * np.sqrt(24) / 0.02) ** 2, rel=0.02)
    assert gap.scenarios_needed(gap.value + 0.1) is None and gap.scenarios_needed(gap.value + 0.1, above=False) is not None
    assert gap.scenarios_needed(gap.value - 1e-6) is None


def test_a_projected_residual_stream_is_the_mean_over_projections() -> None:
    rng = np.random.default_rng(0)
    design = make_design(["baseline", "joy"] * 9, [f"{i}" for i in range(9) for _ in range(2)], "joy")
    x = rng.normal(size=(18, 12)) + 3.0 * np.outer(design.positive, np.ones(12))
    stay = draw_thirds(9, 20, 0)
    found = projected_reading(x, design, 11, stay, 1)
    assert found is not None and found.value > 0.95 and len(found.parts) == 20 and found.n_out == 3
    assert projected_reading(x, design, 12, stay, 1) is None
    one = np.zeros((18, 12))
    one[:, 0] = rng.normal(size=18) + 3.0 * design.positive
    turned = (
        one @ np.linalg.qr(rng.normal(size=(12, 12)))[0]
    )  # which directions carry it does not matter: all of rank one read it wholly
    both = [projected_reading(y, design, 3, stay, 1) for y in (one, turned)]
    assert both[0] is not None and both[1] is not None and both[0].value == pytest.approx(both[1].value) and both[0].value > 0.9


def test_random_sets_are_of_other_heads_and_matched_ones_are_near() -> None:
    rng = np.random.default_rng(0)
    order, raw = np.argsort(rng.random((5, 40)), axis=1), 10 ** rng.normal(size=(5, 40))
    sets, _ = random_sets((order, order), 4, 30, 1)
    near, on_parts = norm_sets((order, order), (raw, raw), 4, 30, 1)
    assert sets.shape == near.shape == (30, 5, 4) and on_parts.shape == (10, 5, 4) and (on_parts == near[:10]).all()
    for found in (sets, near):
        for f in range(5):
            assert all(len(set(one[f])) == 4 and not set(one[f]) & set(order[f, :4]) for one in found)
    for f in range(5):
        first = order[f, 0]
        others = sorted(order[f, 4:], key=lambda h: abs(np.log(raw[f, h] / raw[f, first])))[:10]
        assert set(near[:, f, 0]) <= set(others) and len(set(near[:, f, 0])) > 5
    few = np.argsort(rng.random((5, 8)), axis=1)
    assert {tuple(sorted(one)) for one in norm_sets((few, few), (raw[:, :8], raw[:, :8]), 4, 3, 0)[0][:, 0]} == {
        tuple(sorted(few[0, 4:]))
    }
