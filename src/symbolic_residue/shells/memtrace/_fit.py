"""How memory falls with distance: power law, exponential, or not at all.

1. ``y(d)``: memory in nats. Models: ``a (1 + d)^(−b)``, ``a e^(−b d)`` (b ≥ 0), and the constant ``a``. ``b`` is searched on a logarithmic grid and then on a
   finer one around the best; for each ``b`` the best ``a`` is the least-squares one, so the search is exact in ``a``.
2. Every draw's value at every distance counts as one point; without distance all draws are one text, hence one point.
3. ``AIC = n ln(RSS / n) + 2 k`` with k parameters, the error's variance among them; smaller is better, and a difference under 2 tells nothing.
4. Draws are resampled whole; ``preferred`` is the share of resamples in which a model has the smallest AIC, and b's interval is their percentiles.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import polars as pl
from numpy.typing import ArrayLike, NDArray

from symbolic_residue.errors import ConfigError

__all__ = ["MODELS", "fit_decay", "fit_frame"]

Array = NDArray[np.float64]
MODELS = ("power law", "exponential", "constant")
_PARAMETERS = {"power law": 3, "exponential": 3, "constant": 2}
_GRID = 241
_SMALLEST = 1e-24
"""RSS below this share of the sum of squares is rounding."""


def _shape(model: str, x: Array, b: Array) -> Array:
    """``[b, x]``."""
    if model == "power law":
        return (1.0 + x)[None] ** -b[:, None]
    if model == "exponential":
        return np.exp(-b[:, None] * x[None])
    return np.ones((len(b), len(x)))


def _search(model: str, x: Array, y: Array, weights: Array, rates: Array) -> tuple[Array, Array, Array]:
    """Best (a, b, RSS), each ``[resample]``, over the given rates; ``weights [resample, x]``."""
    f = _shape(model, x, rates)
    wy = weights * y
    norm = np.maximum(weights @ (f * f).T, 1e-300)
    a = (wy @ f.T) / norm
    rss = (wy * y).sum(1)[:, None] - a * a * norm
    best = rss.argmin(1)
    rows = np.arange(len(rss))
    return a[rows, best], rates[best], rss[rows, best]


def _fit(model: str, x: Array, y: Array, weights: Array) -> tuple[Array, Array, Array]:
    if model == "constant":
        return _search(model, x, y, weights, np.zeros(1))
    far = max(float(x.max()), 1.0)
    scale = 1.0 if model == "power law" else 1.0 / np.log1p(far)
    top = 8.0 if model == "power law" else 8.0 * scale
    rates = np.concatenate([[0.0], np.geomspace(1e-5 * scale, top, _GRID)])
    a, b, rss = _search(model, x, y, weights, rates)
    step = float(rates[2] / rates[1])
    for i in range(len(b)):
        near = np.concatenate([[b[i]], np.linspace(b[i] / step, b[i] * step, _GRID)])
        for _ in range(2):
            a1, b1, r1 = _search(model, x, y, weights[i : i + 1], near)
            a[i], b[i], rss[i] = a1[0], b1[0], r1[0]
            near = np.linspace(b[i] * 0.9995, b[i] * 1.0005, _GRID)
    return a, b, np.maximum(rss, _SMALLEST * np.maximum((weights * y * y).sum(1), 1e-300))


def fit_decay(
    x: ArrayLike, y: ArrayLike, draws: Sequence[int], *, seed: int, resamples: int = 200
) -> list[dict[str, float | str | int | None]]:
    """The three models on points ``(x, y)``; one row each, in the order of :data:`MODELS`.

    Args:
        x: distances; ``y`` values.
        draws: which draw each point belongs to; −1 for points that belong to all.
        seed: of the resamples.

    Raises:
        ConfigError: fewer than three distances, values that are not finite, or lengths that differ.
    """
    x, y = np.asarray(x, float), np.asarray(y, float)
    names = np.asarray(draws)
    if not len(x) == len(y) == len(names) or not np.isfinite(y).all() or len(np.unique(x)) < 3:
        raise ConfigError("A decay is fitted to finite values at three distances or more.")
    units = sorted(set(names[names >= 0].tolist()))
    rng = np.random.default_rng(seed)
    weights = np.ones((1 + (resamples if len(units) > 1 else 0), len(x)))
    for row in weights[1:]:
        counts = np.bincount(rng.integers(len(units), size=len(units)), minlength=len(units))
        for unit, count in zip(units, counts, strict=True):
            row[names == unit] = count
    found = {model: _fit(model, x, y, weights) for model in MODELS}
    n = weights.sum(1)
    aic = {m: n * np.log(found[m][2] / n) + 2 * _PARAMETERS[m] for m in MODELS}
    table = np.stack([aic[m] for m in MODELS])
    wins = table.argmin(0)
    least = float(table[:, 0].min())
    out: list[dict[str, float | str | int | None]] = []
    for i, model in enumerate(MODELS):
        a, b, rss = found[model]
        spread = np.quantile(b[1:], [0.025, 0.975]) if len(b) > 1 and model != "constant" else None
        out.append(
            {
                "model": model,
                "a": float(a[0]),
                "b": float(b[0]),
                "b_low": None if spread is None else float(min(spread[0], b[0])),
                "b_high": None if spread is None else float(max(spread[1], b[0])),
                "rss": float(rss[0]),
                "aic": float(table[i, 0]),
                "difference": float(table[i, 0]) - least,
                "preferred": float((wins[1:] == i).mean()) if len(wins) > 1 else None,
                "n": len(x),
                "distances": len(np.unique(x)),
            }
        )
    return out


def fit_frame(rows: list[dict[str, float | str | int | None]]) -> pl.DataFrame:
    """Rows of :func:`fit_decay` with a ``series`` each, as the table ``fits``."""
    floats = ("a", "b", "b_low", "b_high", "rss", "aic", "difference", "preferred")
    schema = {"series": pl.String, "model": pl.String, **dict.fromkeys(floats, pl.Float64), "n": pl.Int64, "distances": pl.Int64}
    return pl.DataFrame(rows, schema=schema)
