"""Do the concepts of one family sit in fewer heads than those of another? An exact permutation test over concepts.

1. The unit is the concept. Statistic of a concept: log participation ratio of selectivity² over all heads of the model, minus the log of its mean under
   permuted labels: negative is more concentrated than noise. ``share``, the second: the k largest shares of Σ selectivity² minus their null mean.
2. Difference of the families' means; p: every way to name as many of the concepts the second family, two-sided (drawn where there are more than 20,000 ways).
3. Interval: the shifts δ that this test does not refuse. Exchanging j concepts of the one family for j of the other gives a difference at least as large
   exactly where δ is at least the difference of the exchanged means, so the bounds are order statistics of these (Hartigan 1969's idea; exact).
4. A strong concept may look concentrated for its strength alone. ``strength``, log Σ selectivity² over its null mean, is tested in the same way; ``adjusted``
   is the statistic with its regression on strength over all concepts taken out.
5. What could have been found: the difference that Student's test of level .05 finds four times of five at the spread within families seen here.
6. Concepts share neutral texts and scenarios, so they are not independent draws; exchangeability of names under the null is what the test needs.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from itertools import combinations
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import optimize
from scipy import stats as sps

from symbolic_residue.errors import ConfigError
from symbolic_residue.stats import generator

__all__ = ["compare_families", "family_difference"]

Array = NDArray[np.float64]
_MOST_WAYS = 20_000
_POWER = 0.8


def family_difference(first: Sequence[float], second: Sequence[float], *, level: float = 0.95, seed: int = 0) -> dict[str, Any]:
    """Mean of the second minus mean of the first, with exact p and interval.

    Args:
        first, second: one number a concept; two or more each.
        level: of the interval.
        seed: of the draws, where there are too many ways to list.

    Returns:
        ``difference low high p smallest_p n_first n_second ways detectable``; bounds are None where the ways are too few for the level.

    Raises:
        ConfigError: fewer than two numbers in a family, or numbers that are not finite.
    """
    a, b = np.asarray(first, dtype=np.float64), np.asarray(second, dtype=np.float64)
    if min(len(a), len(b)) < 2 or not (np.isfinite(a).all() and np.isfinite(b).all()):
        raise ConfigError("A family needs two concepts or more, with finite numbers.", todo="Ask about more concepts.")
    pooled = np.concatenate([a, b])
    n, n_b = len(pooled), len(b)
    count = math.comb(n, n_b)
    if count <= _MOST_WAYS:
        inside = np.zeros((count, n), dtype=bool)
        for row, chosen in enumerate(combinations(range(n), n_b)):
            inside[row, list(chosen)] = True
    else:
        ranks = generator(seed).random((_MOST_WAYS - 1, n)).argsort(axis=1).argsort(axis=1)
        own = np.arange(n) >= len(a)
        inside = np.concatenate([own[None], ranks < n_b])
    total = pooled.sum()
    sums = inside @ pooled
    gaps = sums / n_b - (total - sums) / len(a)
    value = float(b.mean() - a.mean())
    slack = 1e-9 * max(1e-300, float(np.abs(gaps).max()))
    p = float((np.abs(gaps) >= abs(value) - slack).mean())
    # Of each way: concepts of the second family named first, and of the first named second; as many of both.
    left, came = ~inside[:, len(a) :], inside[:, : len(a)]
    moved = left.sum(1)
    swapped = moved > 0
    bounds = np.sort((left[swapped] @ b - came[swapped] @ a) / moved[swapped])
    ways, same = len(inside), int((~swapped).sum())
    rank = math.floor((1 - level) / 2 * ways - same + 1e-9)
    low, high = (float(bounds[rank]), float(bounds[-1 - rank])) if 0 <= rank < len(bounds) / 2 else (None, None)
    smallest = float((np.abs(gaps) >= np.abs(gaps).max() - slack).mean())
    return {
        "difference": value, "low": low, "high": high, "level": level, "p": p, "smallest_p": smallest, "n_first": len(a), "n_second": n_b,
        "ways": ways, "exact": count <= _MOST_WAYS, "detectable": _detectable(a, b),
    }  # fmt: skip


def _detectable(a: Array, b: Array) -> float | None:
    df = len(a) + len(b) - 2
    spread = math.sqrt((a.var() * len(a) + b.var() * len(b)) / df * (1 / len(a) + 1 / len(b)))
    limit = float(sps.t.ppf(0.975, df))

    def short(d: float) -> float:
        return float(sps.nct.sf(limit, df, d)) - _POWER

    return float(optimize.brentq(short, 0.01, 30)) * spread if spread > 0 else None  # type: ignore[arg-type]


def compare_families(
    blocks: Mapping[str, Mapping[str, Any]], families: Mapping[str, str], read: Mapping[str, bool] | None = None, *, seed: int = 0
) -> dict[str, Any]:
    """The question about two families: plain data.

    Args:
        blocks: concept → :func:`verdict_block` over all heads of the model.
        families: concept → family; the first to appear is the one compared with.
        read: concept → whether the residual stream reads it, for the part with those alone.
        seed: where ways must be drawn.

    Returns:
        ``families question answer reason statistics {concentration share strength adjusted}`` with both families' values, ``only_read``. Where there are
        not two families of two concepts: ``answer`` None and the reason.
    """
    names = list(dict.fromkeys(families[c] for c in blocks if c in families))
    groups = [[c for c in blocks if families.get(c) == name] for name in names]
    if len(names) != 2 or min(len(g) for g in groups) < 2:
        return {
            "families": names,
            "answer": None,
            "reason": "Two families of two concepts or more are needed.",
            "statistics": {},
            "only_read": None,
        }
    values = _values(blocks)
    found = _compare(values, groups, seed)
    main, other = found["concentration"], found["adjusted"]
    first, second = names
    answer = "undecided" if main["p"] > 0.05 else "fewer" if main["difference"] < 0 else "more"
    where = f"{second} concepts against {first} ones ({main['n_second']} and {main['n_first']})"
    reason = f"p = {main['p']:.2g}, {where}"
    if answer == "undecided" and main["detectable"] is not None:
        reason += f"; a difference of {main['detectable']:.2f} would have been found four times of five"
    if answer != "undecided" and (other["p"] > 0.05 or other["difference"] * main["difference"] <= 0):
        reason += "; not apart from strength: with strength regressed out it is not shown"
    only = None
    if read is not None:
        kept = [[c for c in g if read.get(c)] for g in groups]
        few = min(len(g) for g in kept) < 2
        only = {"concepts": kept, "statistics": None if few else _compare(values, kept, seed)}
    return {
        "families": names, "concepts": groups, "question": f"Do {second} concepts sit in fewer heads than {first} ones?", "answer": answer,
        "reason": reason + ".", "values": values, "statistics": found, "only_read": only,
    }  # fmt: skip


def _values(blocks: Mapping[str, Mapping[str, Any]]) -> dict[str, dict[str, float]]:
    """Statistic → concept → number."""
    tiny = 1e-300
    rows: dict[str, dict[str, float]] = {"concentration": {}, "share": {}, "strength": {}}
    for concept, one in blocks.items():
        for name, of in (("concentration", one["participation_ratio"]), ("strength", one["strength"])):
            rows[name][concept] = math.log(max(of["value"], tiny) / max(of["null"]["mean"], tiny))
        rows["share"][concept] = one["shares"]["value"] - one["shares"]["null"]["mean"]
    return rows


def _compare(values: Mapping[str, Mapping[str, float]], groups: Sequence[Sequence[str]], seed: int) -> dict[str, Any]:
    found = {name: family_difference(*([row[c] for c in g] for g in groups), seed=seed) for name, row in values.items()}
    order = [c for g in groups for c in g]
    x, y = (np.array([values[name][c] for c in order]) for name in ("strength", "concentration"))
    x = x - x.mean()
    slope = float(x @ y / (x @ x)) if x @ x > 0 else 0.0
    left = y - y.mean() - slope * x
    found["adjusted"] = family_difference(left[: len(groups[0])].tolist(), left[len(groups[0]) :].tolist(), seed=seed) | {
        "slope": slope
    }
    return found
