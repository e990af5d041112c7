"""From per-prompt numbers to intervals and outcomes. The prompt is the unit, always.

1. Collapse, fixed before anything was measured: a prompt's value in a layer is the mean over sets, siblings and heads of the log ratio; its headline is the
   mean over layers. Nothing below the prompt is counted as a sample.
2. A mean log ratio becomes a geometric-mean ratio by exp; its interval inverts the sign-flip test over prompts (``stats.flip_columns``).
3. Outcome, with the margin m (5 % by default): ``no effect`` where the whole interval lies within [1 / (1 + m), 1 + m]; else ``down-weighted`` or
   ``up-weighted`` where it leaves out 1; else ``undecided``. Fewer than 6 prompts have no flip interval at 95 %, so they decide nothing.
4. Layers: sign-flip p, adjusted over layers by the step-down maximum (``stats.max_t``); an outcome other than ``no effect`` needs the adjusted p.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from symbolic_residue.stats import flip_columns, max_t, sign_flip_test

__all__ = ["LEAST_PROMPTS", "Means", "Rule", "layer_rows", "means", "outcome_of"]

LEAST_PROMPTS = 6


@dataclass(frozen=True)
class Rule:
    """How verdicts are made: equivalence margin (a share), level of the intervals, seed of the flips."""

    margin: float = 0.05
    level: float = 0.95
    seed: int = 0


@dataclass(frozen=True)
class Means:
    """A mean over prompts with its interval; bounds and p are None where there are too few prompts."""

    value: float
    low: float | None
    high: float | None
    p: float | None
    n: int

    def ratio(self) -> Means:
        """The same as a geometric-mean ratio."""
        low, high = (None if b is None else math.exp(b) for b in (self.low, self.high))
        return Means(math.exp(self.value), low, high, self.p, self.n)

    def within(self, least: float, most: float = math.inf) -> Means:
        """Bounds cut to the quantity's range."""
        low, high = (None if b is None else min(max(b, least), most) for b in (self.low, self.high))
        return Means(self.value, low, high, self.p, self.n)


def means(values: NDArray[np.float64], rule: Rule) -> Means | None:
    """Mean of ``values [prompt]``; None where there are none."""
    x = np.asarray(values, np.float64)
    x = x[np.isfinite(x)]
    n = len(x)
    if not n:
        return None
    if n < LEAST_PROMPTS:
        return Means(float(x.mean()), None, None, None, n)
    value, low, high = flip_columns(x[:, None], seed=rule.seed, level=rule.level)
    return Means(float(value[0]), float(low[0]), float(high[0]), float(sign_flip_test(x, seed=rule.seed)), n)


def outcome_of(found: Means | None, rule: Rule) -> str:
    """The outcome of a mean log ratio."""
    if found is None or found.low is None or found.high is None:
        return "undecided"
    margin = math.log1p(rule.margin)
    if -margin < found.low and found.high < margin:
        return "no effect"
    return "down-weighted" if found.high < 0 else "up-weighted" if found.low > 0 else "undecided"


def layer_rows(matrix: NDArray[np.float64], layers: list[int], rule: Rule) -> list[dict[str, Any]]:
    """``layer value low high p p_adjusted n outcome`` of ``matrix [prompt, layer]`` of log ratios, as ratios; no NaN in it."""
    n = len(matrix)
    if not n or not layers:
        return []
    margin = math.log1p(rule.margin)
    if n < LEAST_PROMPTS:
        nothing = {"low": None, "high": None, "p": None, "p_adjusted": None, "n": n, "outcome": "undecided"}
        return [{"layer": i, "value": float(np.exp(v)), **nothing} for i, v in zip(layers, matrix.mean(0), strict=True)]
    value, low, high = flip_columns(matrix, seed=rule.seed, level=rule.level)
    p, adjusted = sign_flip_test(matrix, seed=rule.seed), max_t(matrix, seed=rule.seed)
    out = []
    for i, layer in enumerate(layers):
        if -margin < low[i] and high[i] < margin:
            outcome = "no effect"
        elif adjusted[i] <= 1 - rule.level:
            outcome = "down-weighted" if value[i] < 0 else "up-weighted"
        else:
            outcome = "undecided"
        ratio = {name: float(np.exp(b[i])) for name, b in (("value", value), ("low", low), ("high", high))}
        out.append({"layer": layer, **ratio, "p": float(p[i]), "p_adjusted": float(adjusted[i]), "n": n, "outcome": outcome})
    return out
