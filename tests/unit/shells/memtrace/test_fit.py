"""Power law against exponential: planted laws are found with their parameters, and noise prefers none."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.optimize import curve_fit

from symbolic_residue.errors import ConfigError
from symbolic_residue.shells.memtrace import fit_decay

X = np.array([0, 1, 2, 4, 8, 16, 32, 64, 128], float)
LAWS = {"power law": lambda x, a, b: a * (1 + x) ** -b, "exponential": lambda x, a, b: a * np.exp(-b * x)}


@settings(max_examples=25, deadline=None)
@given(law=st.sampled_from(list(LAWS)), a=st.floats(0.5, 12), b=st.floats(0.05, 1.5))
def test_a_planted_law_is_found(law: str, a: float, b: float) -> None:
    b = b if law == "power law" else b / 10
    rows = {r["model"]: r for r in fit_decay(X, LAWS[law](X, a, b), [-1] * len(X), seed=0)}
    assert min(rows, key=lambda m: rows[m]["aic"]) == law
    assert rows[law]["difference"] == 0
    assert rows[law]["a"] == pytest.approx(a, rel=1e-4)
    assert rows[law]["b"] == pytest.approx(b, rel=1e-3)


def test_the_minimum_is_that_of_another_optimiser_and_aic_its_formula() -> None:
    rng = np.random.default_rng(1)
    y = LAWS["power law"](X, 6.0, 0.4) + rng.normal(0, 0.3, len(X))
    for row in fit_decay(X, y, [-1] * len(X), seed=0)[:2]:
        law = LAWS[str(row["model"])]
        (a, b), _ = curve_fit(law, X, y, p0=(5.0, 0.1), maxfev=20000)
        rss = float(((y - law(X, a, b)) ** 2).sum())
        assert row["rss"] == pytest.approx(rss, rel=1e-5)
        assert row["aic"] == pytest.approx(len(X) * np.log(rss / len(X)) + 2 * 3, abs=1e-4)


def test_draws_are_resampled_whole() -> None:
    rng = np.random.default_rng(2)
    x = np.concatenate([[0.0], *[X[1:]] * 6])
    draws = [-1, *(r for r in range(6) for _ in X[1:])]
    noise = np.concatenate([[0.0], *(np.full(len(X) - 1, rng.normal(0, 0.05)) for _ in range(6))])
    rows = fit_decay(x, LAWS["power law"](x, 6.0, 0.5) + noise, draws, seed=0)
    best = rows[0]
    assert best["model"] == "power law"
    assert best["preferred"] == 1.0
    assert best["b_low"] < 0.5 < best["b_high"]  # type: ignore[operator]
    assert best["n"] == len(x)
    assert best["distances"] == len(X)
    again = fit_decay(x, LAWS["power law"](x, 6.0, 0.5) + noise, draws, seed=0)
    assert rows == again


def test_what_does_not_fall_is_constant() -> None:
    rng = np.random.default_rng(3)
    rows = fit_decay(np.tile(X, 8), rng.normal(4.0, 0.2, 8 * len(X)), np.repeat(np.arange(8), len(X)).tolist(), seed=0)
    assert rows[2]["model"] == "constant"
    assert rows[2]["difference"] < 2  # type: ignore[operator]
    assert rows[2]["a"] == pytest.approx(4.0, abs=0.1)


def test_growth_is_not_called_decay() -> None:
    rows = fit_decay(X, 1 + 0.1 * X, [-1] * len(X), seed=0)
    assert rows[0]["b"] == 0
    assert rows[1]["b"] == 0
    assert rows[2]["difference"] == 0


def test_too_little_is_refused() -> None:
    with pytest.raises(ConfigError, match="three distances"):
        fit_decay([0, 1, 0], [1.0, 2.0, 1.0], [-1, -1, -1], seed=0)
    with pytest.raises(ConfigError):
        fit_decay([0, 1, 2], [1.0, float("nan"), 1.0], [-1, -1, -1], seed=0)
