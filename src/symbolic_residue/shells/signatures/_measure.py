"""From numbers to components: the one place where a component is computed, for tables and readings alike.

1. *Attention apart from the sink.* A row's weights sum to ``t`` over keys (1 but for models with a sink logit), ``s`` of it on the sink, the prompt's first
   token, ``r = t − s`` on the others. With the row's entropy ``H = −Σ p ln p`` and mean distance ``d`` over all keys, the others alone have
   ``r H' = H + s ln s + r ln r`` and ``r d' = t d − s (n − 1)``. Heads are averaged with weight ``r``, so a head that looks at nothing but the sink says
   nothing; where all of a third do (mean ``r`` under 0.001) there is nothing to divide by, and the component is not measured.
2. *Lens*: depth 0 is the embedding and belongs to no third; depth ``d`` is what layer ``d − 1`` left.
3. *Margin of a verdict*: with ``x`` the distance of the value past its criterion and ``h`` the half of the interval that faces the criterion,
   ``x / (|x| + h)``: above one half exactly where the interval is wholly past the criterion. Without an interval it is not measured.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import Any

import numpy as np
from numpy.typing import NDArray

from symbolic_residue.shells.signatures._components import LENGTH_SCALE, NATS_SCALE, squash, THIRDS

__all__ = ["attention_values", "attribution_values", "context_values", "lens_values", "margin", "output_values", "spread", "third"]

Array = NDArray[np.float64]
_LEAST_OFF_SINK = 1e-3


def third(layers: NDArray[Any], n_layers: int) -> Array:
    """0 early, 1 middle, 2 late, for layer numbers of a model of ``n_layers``."""
    return np.minimum(3 * np.asarray(layers) // n_layers, 2)


def _plogp(p: Array) -> Array:
    safe = np.where(p > 0, p, 1.0)
    return np.where(p > 0, p * np.log(safe), 0.0)


def attention_values(
    layers: NDArray[Any],
    n_layers: int,
    n_tokens: int,
    *,
    total: Array,
    sink: Array,
    own: Array | None,
    entropy: Array,
    distance: Array,
) -> dict[str, float]:
    """The ``attention`` group.

    Args:
        layers: layer number of each row that follows, ``[layer·head]``.
        n_layers: of the model.
        n_tokens: length of the prompt; the last row is at ``n_tokens − 1``.
        total, sink, own: weight on all keys, on the sink, on the row itself (None: not read), ``[layer·head]``.
        entropy: nats, over all keys; ``distance``: tokens, mean over all keys.
    """
    found: dict[str, float] = {}
    if n_tokens < 3:  # fewer than two keys beside the sink
        return found
    rest = np.clip(total - sink, 0.0, None)
    parts = {
        "entropy": (entropy + _plogp(sink) + _plogp(rest)) / math.log(n_tokens - 1),
        "distance": (total * distance - sink * (n_tokens - 1)) / (n_tokens - 1),
    }
    if own is not None:
        parts["self"] = own
    where = third(layers, n_layers)
    for i, name in enumerate(THIRDS):
        mine = where == i
        if not mine.any():
            continue
        found[f"attention.sink.{name}"] = _within(sink[mine].mean())
        off = rest[mine].mean()
        if off >= _LEAST_OFF_SINK:
            found |= {f"attention.{part}.{name}": _within(values[mine].mean() / off) for part, values in parts.items()}
    return found


def lens_values(top: Sequence[object], probability: Array, entropy: Array, answer: Array) -> dict[str, float]:
    """The ``lens`` group, from the last row's lens by depth.

    Args:
        top: the top token at each depth, the embedding first.
        probability: of that token; ``entropy`` in nats; ``answer``: probability of the final top token; all ``[depth]``.
    """
    n_layers = len(top) - 1
    found: dict[str, float] = {}
    if n_layers < 1:
        return found
    is_final = np.array([t == top[-1] for t in top])
    wrong = np.flatnonzero(~is_final)
    found["lens.answer_depth"] = float((wrong[-1] + 1 if len(wrong) else 0) / n_layers)
    found["lens.changes"] = sum(a != b for a, b in pairwise(top)) / n_layers
    others = probability[1:][~is_final[1:]]
    found["lens.overruled"] = _within(others.max()) if len(others) else 0.0
    where = third(np.arange(n_layers), n_layers)
    for i, name in enumerate(THIRDS):
        if (mine := where == i).any():
            found[f"lens.entropy.{name}"] = squash(float(max(entropy[1:][mine].mean(), 0.0)), NATS_SCALE)
            found[f"lens.answer.{name}"] = _within(answer[1:][mine].mean())
    return found


def output_values(entropy: float, top: float) -> dict[str, float]:
    """``output.entropy`` and ``output.top`` from nats and a probability."""
    return {"output.entropy": squash(max(entropy, 0.0), NATS_SCALE), "output.top": _within(top)}


def context_values(ids: Sequence[int]) -> dict[str, float]:
    """The ``context`` group from the prompt's token ids."""
    n, pairs = len(ids), list(pairwise(ids))
    found = {"context.length": squash(n, LENGTH_SCALE), "context.repeated": 1 - len(set(ids)) / n}
    if pairs:
        found["context.repeated_pairs"] = 1 - len(set(pairs)) / len(pairs)
    return found


def attribution_values(layers: NDArray[Any], dla: Array, n_layers: int, mlps: Array | None) -> dict[str, float]:
    """The ``attribution`` group.

    Args:
        layers, dla: layer and direct logit attribution of every head, ``[layer·head]``.
        n_layers: of the model.
        mlps: attribution of every MLP, None where it was not kept.
    """
    size = np.abs(dla)
    total = size.sum()
    if not total > 0:
        return {}
    found = {
        "attribution.against": _within(size[dla < 0].sum() / total),
        "attribution.spread": spread(size),
    }
    if n_layers > 1:
        found["attribution.depth"] = _within((size * layers).sum() / total / (n_layers - 1))
    if mlps is not None:
        found["attribution.heads"] = _within(total / (total + np.abs(mlps).sum()))
    return found


def spread(size: Array) -> float:
    """Effective number of entries, exp(entropy of their shares), as a share of how many there are; NaN where all are 0."""
    total = size.sum()
    if not total > 0:
        return math.nan
    return _within(math.exp(-float(_plogp(size / total).sum())) / len(size))


def margin(row: Mapping[str, object]) -> float:
    """A row of the table ``verdicts`` as a margin in [−1, 1]; NaN without an interval."""
    value, low, high, criterion = (row[name] for name in ("value", "low", "high", "criterion"))
    if any(not isinstance(x, int | float) or not math.isfinite(x) for x in (value, low, high, criterion)):
        return math.nan
    past, half_below, half_above = value - criterion, value - low, high - value  # type: ignore[operator]
    if row["direction"] == "below":
        past, half_below, half_above = -past, half_above, half_below
    half = max(half_below if past > 0 else half_above, 0.0)
    if past == 0:
        return 0.0
    return float(past / (abs(past) + half))


def _within(x: float) -> float:
    """Rounding may leave 1 + 1e-7."""
    return float(min(max(x, 0.0), 1.0))
