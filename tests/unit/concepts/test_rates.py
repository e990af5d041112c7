"""How often a concept is called read out: without one at most 5 % of 200 sets, with a planted one as often as is stated here.

Planted: one direction of rank one, on which the positives move by ``shift`` standard deviations of a text's noise; topic moves both tellings of a scenario
together by five. Null: the same without the shift. Fixed seeds. A rate is refuted where the count lies above the 99.9 % point of the binomial of 5 %.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from scipy import stats as sps

from symbolic_residue.concepts import Design, draw_labels, held_out_scores, make_design
from symbolic_residue.concepts._held_out import fold_auc, held_out_null
from symbolic_residue.concepts._null import max_t_p, standardised, tail_p

SETS = 200
MOST = int(sps.binom.ppf(0.999, SETS, 0.05))  # 21 of 200


def design_of(kind: str) -> Design:
    if kind == "pairs":
        return make_design(["baseline", "joy"] * 16, [f"{i:02}" for i in range(16) for _ in range(2)], "joy")
    if kind == "others":
        return make_design(["joy", "fear", "hope"] * 12, [f"{i:02}" for i in range(12) for _ in range(3)], "joy", "others")
    return make_design(["joy"] * 14 + ["baseline"] * 18, [None] * 32, "joy")


def texts(design: Design, seed: int, shift: float, d: int = 30, layers: int = 1) -> np.ndarray:
    """``[layer, n, d]``: noise of unequal size in the dimensions, heavy tails, topic, and the concept."""
    rng = np.random.default_rng(seed)
    n, size = len(design.positive), np.linspace(0.3, 2, d)
    noise = size * rng.normal(size=(layers, n, d)) * np.sqrt(rng.chisquare(5, size=(layers, n, 1)) / 5) ** -1
    topic = 5 * rng.normal(size=(design.n_strata, 1))[design.stratum] * np.eye(d)[1]
    direction = np.linalg.qr(np.random.default_rng(7).normal(size=(d, 1)))[0][:, 0]
    return noise + topic + shift * design.positive[:, None] * direction


def calls(kind: str, shift: float, sets: int, n_draws: int = 199) -> int:
    design, count = design_of(kind), 0
    for seed in range(sets):
        labels = np.concatenate([design.positive[None], draw_labels(design, n_draws, seed)])
        _, shares, _ = held_out_null(texts(design, seed, shift)[0], design, labels)
        count += tail_p(shares) <= 0.05
    return count


@pytest.mark.parametrize("kind", ["pairs", "others", "unpaired"])
def test_permuted_labels_call_at_most_five_percent_of_sets_without_a_concept(kind: str) -> None:
    assert calls(kind, 0.0, SETS) <= MOST


@pytest.mark.parametrize("kind", ["pairs", "others", "unpaired"])
def test_a_planted_direction_is_called_in_nine_of_ten_sets(kind: str) -> None:
    """Shift 4; .95, .98 and 1.00 of 60 sets when this was written (shift 3: .72, .82, .78; shift 2: .37, .37, .33)."""
    assert calls(kind, 4.0, 60) >= 54


def test_the_layer_that_stands_out_is_called_in_at_most_five_percent_too() -> None:
    """Six layers of nothing: the smallest p over them, family-wise; uncorrected it would be about 26 %."""
    design, count, plain = design_of("pairs"), 0, 0
    for seed in range(SETS):
        labels = np.concatenate([design.positive[None], draw_labels(design, 199, seed)])
        shares = np.stack([held_out_null(x, design, labels)[1] for x in texts(design, seed, 0.0, d=12, layers=6)], axis=1)
        z = standardised(shares)
        count += bool((max_t_p(z[0], z.max(1)) <= 0.05).any())
        plain += min(tail_p(column) for column in shares.T) <= 0.05
    assert count <= MOST < plain


@pytest.mark.parametrize("estimator", ["difference", "lda", "logistic"])
def test_intervals_call_sets_without_a_concept_as_seldom_and_planted_ones_often(estimator: Any) -> None:
    """Called: the whole 95 % interval of the held-out AUC lies above one half (which may happen in 2.5 %). Planted: shift 4; power 0.9 or more."""
    design = design_of("pairs")

    def called(seed: int, shift: float) -> bool:
        found = fold_auc(held_out_scores(texts(design, seed, shift, d=10)[0], design, estimator), design)
        return found.low > 0.5

    assert sum(called(seed, 0.0) for seed in range(SETS)) <= MOST
    assert sum(called(seed, 4.0) for seed in range(40)) >= 36
