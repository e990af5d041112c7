"""Three estimators of a concept's direction from activations ``x [n, d]`` and a design.

1. ``difference``: the difference of means, paired within scenarios where there are pairs: ``w @ x``.
2. ``logistic``: minimises mean log-loss + (λ/2)‖v‖² with λ = 0.01, by L-BFGS, on ``x`` with its stratum's middle (half-way between its two class means)
   taken out and scaled to a mean squared norm of 1; with the middle gone no intercept is needed.
3. ``lda``: Fisher's linear discriminant, ``Σ⁻¹ Δ``, with the within-class covariance shrunk towards a multiple of the identity by the amount of Ledoit and Wolf
   2004 (A well-conditioned estimator for large-dimensional covariance matrices). Residuals are from the class mean within the stratum; in strata of one
   positive and one negative those are all zero, and the scenarios' differences about their mean are taken instead.
4. With fewer texts than dimensions the solution lies in the span of the texts, so 2 and 3 are solved there: ``n`` unknowns, not ``d``.
"""

from __future__ import annotations

from typing import get_args, Literal

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import minimize
from scipy.special import expit

from symbolic_residue.concepts._design import Design
from symbolic_residue.concepts._rows import group_sums, Rows
from symbolic_residue.errors import ConfigError

__all__ = ["Estimator", "fit", "scenario_differences"]

Estimator = Literal["difference", "logistic", "lda"]
Array = NDArray[np.float64]
_PENALTY = 0.01


def fit(x: NDArray[np.floating] | Rows, design: Design, estimator: Estimator = "difference") -> Array:
    """The direction, not normalised, ``[d]`` float64; it points from the negatives to the positives.

    Args:
        x: ``[n, d]``: the design's rows, in its order; ``difference`` reads them by blocks, the others hold them in float64.
        design: labels and strata.
        estimator: see the module's text.

    Raises:
        ConfigError: an unknown estimator, rows that do not fit the design, or texts that do not differ at all.
    """
    if estimator not in get_args(Estimator):
        raise ConfigError(f"{estimator!r} is no estimator.", todo=f"Use one of: {', '.join(get_args(Estimator))}.")
    if len(x) != len(design.positive):
        raise ConfigError(f"There are {len(x)} activations for the {len(design.positive)} texts of the design.")
    rows, weights = Rows.of(x), design.weights()[None]
    delta = rows.sums(lambda at: weights[:, at])[0]
    if not np.linalg.norm(delta) > 0:
        raise ConfigError(
            f"The positives and negatives of {design.concept!r} have the same mean.", why="There is no direction between them."
        )
    if estimator == "difference":
        return delta
    return _logistic(rows.all(), design) if estimator == "logistic" else _lda(rows.all(), design, delta)


def scenario_differences(x: NDArray[np.floating], design: Design) -> Array:
    """Mean positive − mean negative of each scenario, ``[scenario, d]``; their mean is the difference of means."""
    weights = design.weights() * design.n_strata
    return group_sums(np.asarray(x, dtype=np.float64) * weights[:, None], design.stratum)


def _middles(x: Array, design: Design) -> Array:
    """Half-way between the class means of each text's stratum, ``[n, d]``."""
    weights = np.abs(design.weights()) * design.n_strata / 2
    return group_sums(x * weights[:, None], design.stratum)[design.stratum]


def _logistic(x: Array, design: Design) -> Array:
    centred = x - _middles(x, design)
    scale = float(np.sqrt((centred**2).sum(1).mean()))
    _, singular, axes = np.linalg.svd(centred / scale, full_matrices=False)
    keep = singular > singular[0] * 1e-10
    axes = axes[keep]
    z = (centred / scale) @ axes.T
    sign = np.where(design.positive, 1.0, -1.0)

    def loss(v: Array) -> tuple[float, Array]:
        margin = sign * (z @ v)
        value = float(np.logaddexp(0, -margin).mean() + _PENALTY / 2 * v @ v)
        return value, -(z.T @ (sign * expit(-margin))) / len(z) + _PENALTY * v

    found = minimize(
        loss, np.zeros(z.shape[1]), jac=True, method="L-BFGS-B", options={"maxiter": 2000, "ftol": 1e-14, "gtol": 1e-9}
    )
    return (found.x @ axes) / scale


def _shrinkage(residuals: Array) -> tuple[float, float]:
    """Ledoit and Wolf's share γ of the identity in the covariance of ``residuals [n, d]``, and the identity's scale μ (mean variance of a dimension)."""
    n, d = residuals.shape
    gram = residuals @ residuals.T / n
    mu = float(np.trace(gram)) / d
    squared = float((gram**2).sum())  # the Frobenius norm of the covariance, squared
    spread = squared - d * mu * mu
    noise = (float((np.diag(gram) ** 2).sum()) - squared / n) if n > 1 else 0.0  # Σ‖r‖⁴ / n² − ‖S‖² / n
    return (1.0 if spread <= 0 else min(1.0, max(0.0, noise / spread))), mu


def _lda(x: Array, design: Design, delta: Array) -> Array:
    residuals = _residuals(x, design)
    n = len(residuals)
    shrink, mu = _shrinkage(residuals)
    if mu <= 0 or shrink >= 1:
        return delta / mu if mu > 0 else delta
    if shrink <= 0:
        shrink = 1e-6
    ridge = shrink * mu
    # ((1 − γ) RᵀR / n + ridge I)⁻¹ Δ in the span of the residuals (Woodbury).
    inner = np.eye(n) * (ridge * n / (1 - shrink)) + residuals @ residuals.T
    return (delta - residuals.T @ np.linalg.solve(inner, residuals @ delta)) / ridge


def _residuals(x: Array, design: Design) -> Array:
    group = 2 * design.stratum + design.positive
    sums = np.zeros((2 * design.n_strata, x.shape[1]))
    np.add.at(sums, group, x)
    counts = np.bincount(group, minlength=2 * design.n_strata)
    if design.paired and counts.max() == 1:
        differences = scenario_differences(x, design)
        return (differences - differences.mean(0)) / np.sqrt(2)
    return x - (sums / np.maximum(counts, 1)[:, None])[group]
