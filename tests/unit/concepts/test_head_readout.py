"""Readouts of heads: equal to a discriminant on the activations themselves; heads chosen inside folds; intervals at their level."""

from __future__ import annotations

import hypothesis.strategies as st
import numpy as np
import pytest
from head_worlds import D_HEAD, EVERY, HEADS, world
from hypothesis import given, settings

from symbolic_residue.concepts import Design, draw_labels, fit, make_design, scenario_differences
from symbolic_residue.concepts._gram_readout import discriminant_scores, Grams
from symbolic_residue.concepts._head_readout import head_selectivity, read_heads, residual_read
from symbolic_residue.concepts._held_out import auc_of_draws
from symbolic_residue.errors import ConfigError
from symbolic_residue.stats import wilson


def relabelled(design: Design, positive: np.ndarray) -> Design:
    return Design(
        design.concept, design.against, design.rows, positive, design.stratum, design.fold, design.paired, design.left_out
    )


def flat(heads: dict[int, np.ndarray], design: Design) -> list[np.ndarray]:
    return [heads[layer][design.rows][:, head] for layer, head in EVERY]


@given(st.integers(0, 10**6), st.booleans())
@settings(max_examples=15)
def test_scores_are_those_of_the_discriminant_on_activations(seed: int, permuted: bool) -> None:
    heads, _, labels, scenarios = world(seed, scenarios=7, planted=[(0, 1)], size=2.0)
    design = make_design(labels, scenarios, "joy")
    rng = np.random.default_rng(seed)
    groups = [x * 10 ** rng.uniform(-2, 2) + 5 * rng.normal() for x in flat(heads, design)[:5]]
    grams = Grams(groups, design)
    drawn_labels = draw_labels(design, 1, seed) if permuted else design.positive[None]
    drawn = grams.drawn(drawn_labels)
    sets = np.array([rng.permutation(5)[:3] for _ in range(7)])
    parts = [grams.chosen(drawn, sets[None, :, j]) for j in range(3)]
    total = [a + b + c for a, b, c in zip(*parts, strict=True)]
    scores = discriminant_scores(total[0], total[1], total[2], design.fold)[0]
    plain = discriminant_scores(total[0], total[1], total[2], design.fold, plain_mean=True)[0]
    fixed = discriminant_scores(*grams.fixed(drawn, [0, 3]), design.fold)[0]
    design = relabelled(design, drawn_labels[0])
    for f in range(7):
        out = design.fold == f
        train = design.without(f)

        def oracle(members: np.ndarray, estimator: str, out: np.ndarray = out, train: Design = train) -> np.ndarray:
            columns = []
            for g in members:
                x = groups[g]
                scale = np.sqrt(((x[~out] - x[~out].mean(0)) ** 2).sum(1).mean())
                columns.append(x / scale)
            x = np.concatenate(columns, axis=1)
            v = fit(x[~out], train, estimator)  # type: ignore[arg-type]
            return (x[out] - x[~out].mean(0)) @ v / np.linalg.norm(v)

        np.testing.assert_allclose(scores[out], oracle(sets[f], "lda"), rtol=1e-6, atol=1e-8)
        np.testing.assert_allclose(plain[out], oracle(sets[f], "difference"), rtol=1e-6, atol=1e-8)
        np.testing.assert_allclose(fixed[out], oracle(np.array([0, 3]), "lda"), rtol=1e-6, atol=1e-8)


@pytest.mark.parametrize("against", ["baseline", "others", "all"])
def test_selectivity_without_a_fold_is_that_of_the_other_texts(against: str) -> None:
    heads, _, labels, scenarios = world(3, scenarios=6, planted=[(0, 1)], size=2.0, others=3)
    labels[5 * 2 + 4] = "joy"  # scenario 2 holds two positives
    design = make_design(labels, scenarios, "joy", against)  # type: ignore[arg-type]
    groups = flat(heads, design)[:4]
    labelings = np.concatenate([design.positive[None], draw_labels(design, 3, 0)])
    drawn = Grams(groups, design).drawn(labelings)
    whole = head_selectivity(np.stack(groups, axis=1), design, labelings)
    for d, positive in enumerate(labelings):
        for f in range(6):
            keep = design.fold != f
            train = relabelled(design, positive).without(f)
            for h, x in enumerate(groups):
                raw = np.linalg.norm(train.weights() @ x[keep])
                spread = np.sqrt(np.trace(np.cov(x[keep][~train.positive].T, ddof=1)))
                assert drawn.raw[d, f, h] == pytest.approx(raw, rel=1e-9)
                flipped = (scenario_differences(x[keep], train) ** 2).sum() / train.n_strata**2
                assert drawn.paired[d, f, h] == pytest.approx(raw**2 / flipped, rel=1e-9)
                assert drawn.selectivity[d, f, h] == pytest.approx(raw / spread, rel=1e-9)
        own = relabelled(design, positive)
        for h, x in enumerate(groups):
            spread = np.sqrt(np.trace(np.cov(x[~positive].T, ddof=1)))
            assert whole[d, h] == pytest.approx(np.linalg.norm(own.weights() @ x) / spread, rel=1e-9)


def test_choosing_heads_on_the_texts_that_judge_them_reads_noise_and_choosing_inside_folds_does_not() -> None:
    leaky, nested = [], []
    for seed in range(60):
        heads, _, labels, scenarios = world(seed, scenarios=12)
        design = make_design(labels, scenarios, "joy")
        grams = Grams(flat(heads, design), design)
        drawn = grams.drawn(design.positive[None])
        everything = np.argsort(-head_selectivity(np.stack(flat(heads, design), 1), design, design.positive[None])[0])[:2]
        leaky.append(auc_of_draws(discriminant_scores(*grams.fixed(drawn, everything), design.fold), design.positive[None])[0])
        inside = np.argsort(-drawn.selectivity, axis=2)[:, :, :2]
        one, two = (grams.chosen(drawn, inside[:, :, j]) for j in range(2))
        scores = discriminant_scores(one[0] + two[0], one[1] + two[1], one[2] + two[2], design.fold)
        nested.append(auc_of_draws(scores, design.positive[None])[0])
    error = np.std(leaky, ddof=1) / np.sqrt(60)
    assert np.mean(leaky) - 0.5 > 4 * error
    assert abs(np.mean(nested) - 0.5) < 3 * np.std(nested, ddof=1) / np.sqrt(60)


def test_the_readout_numbers_are_those_of_their_definitions() -> None:
    heads, resid, labels, scenarios = world(1, scenarios=10, planted=[(1, 3)], size=4.0)
    design = make_design(labels, scenarios, "joy")
    found = read_heads(heads, resid, design, 2, n_draws=199, n_draws_readout=39, n_random=30, seed=5)
    assert found.top[0] == (1, 3) and found.chosen_share[0] == 1.0 and found.p[found.heads.index((1, 3))] <= 0.05
    assert [one.k for one in found.curve] == [1, 2, 4, 8] and found.few is found.curve[1].reading
    squares = np.sort(found.selectivity**2)
    assert found.shares[0] == pytest.approx(squares[-2:].sum() / squares.sum())
    assert found.participation[0] == pytest.approx(squares.sum() ** 2 / (squares**2).sum())
    assert found.strength[0] == pytest.approx(squares.sum())
    assert found.few.null is not None and found.few.null.p == 1 / 40 and found.rest.null is not None and found.rest.null.p > 0.05
    assert (found.few.dims, found.all.dims, found.rest.dims, found.residual.dims) == (2 * D_HEAD, 16 * D_HEAD, 14 * D_HEAD, 64)
    assert found.few.auc.value > 0.85 and abs(found.random.auc.value - 0.5) < 0.15 and found.random_reach == 0
    for name in ("all", "rest", "next", "random", "random_norm", "residual"):
        assert found.minus(name).value == pytest.approx(found.few.auc.value - getattr(found, name).auc.value)
    again = read_heads(heads, resid, design, 2, n_draws=199, n_draws_readout=39, n_random=30, seed=5)
    assert again.few.null == found.few.null and again.random_norm.auc.value == found.random_norm.auc.value


@pytest.mark.parametrize("by", ["raw_norm", "paired"])
def test_other_measures_to_choose_by(by: str) -> None:
    heads, resid, labels, scenarios = world(1, scenarios=10, planted=[(1, 3)], size=4.0)
    design = make_design(labels, scenarios, "joy")
    heads[0][:, 5] *= 50  # loud, and without the concept: most raw norm
    found = read_heads(heads, resid, design, 1, by=by, n_draws=99, n_draws_readout=39, n_random=7)  # type: ignore[arg-type]
    assert found.top == (((0, 5),) if by == "raw_norm" else ((1, 3),)) and found.chosen_share == (1.0,)
    assert (found.few.auc.value > 0.8) == (by == "paired")


def test_one_layer_is_read_beside_its_own_residual_stream() -> None:
    heads, resid, labels, scenarios = world(1, scenarios=10, planted=[(1, 3)], size=4.0)
    design = make_design(labels, scenarios, "joy")
    found = read_heads(heads, resid, design, 1, layer=1, n_draws=99, n_draws_readout=39, n_random=7)
    assert found.heads == tuple((1, h) for h in range(HEADS)) and found.top == ((1, 3),) and found.residual.dims == 32
    small = found.residual_small
    assert small is not None and small.dims == 8 and found.minus("residual_small").value == found.few.auc.value - small.auc.value
    assert 0.4 < small.auc.value <= found.residual.auc.value + 0.1  # a quarter of the directions holds a part of it
    assert read_heads(heads, resid, design, 1, layer=0, n_draws=99, n_draws_readout=39, n_random=7).few.auc.value < 0.8


def test_what_the_residual_stream_reads_is_family_wise_over_layers() -> None:
    heads, resid, labels, scenarios = world(2, scenarios=12)
    design = make_design(labels, scenarios, "joy")
    del heads
    falsely = sum(
        residual_read(world(s, scenarios=8)[1], make_design(*world(s, scenarios=8)[2:], "joy"), n_draws=39).p <= 0.05
        for s in range(100)
    )
    assert wilson(falsely, 100).low <= 0.05
    resid[1][design.rows[design.positive], 0] += 4.0
    found = residual_read(resid, design, n_draws=99)
    assert found.p == 1 / 100 and found.best == 1 and found.p_layer[1] == 1 / 100 and found.auc[1] > 0.8 > found.auc[0]


def test_refusals() -> None:
    heads, resid, labels, scenarios = world(0, scenarios=6)
    design = make_design(labels, scenarios, "joy")
    for wrong in (
        {"k": 9},
        {"k": 0},
        {"layer": 5},
        {"by": "size"},
        {"n_draws_readout": 5},
        {"n_draws": 50, "n_draws_readout": 60},
        {"n_random": 0},
    ):
        options = {"k": 1, "n_draws": 99, "n_draws_readout": 39} | wrong
        with pytest.raises(ConfigError):
            read_heads(heads, resid, design, options.pop("k"), **options)  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match="5 scenarios"):
        Grams([np.zeros((10, 2))], make_design(labels[:10], scenarios[:10], "joy"))
    with pytest.raises(ConfigError, match="not paired"):
        Grams([np.zeros((12, 2))], make_design(labels, [None] * 12, "joy"))
    with pytest.raises(ConfigError, match="do not fit"):
        Grams([np.zeros((11, 2))], design)
