"""Made activations with a concept in named heads: 2 layers of 8 heads, paired scenarios that share a topic."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

Array = np.ndarray[Any, Any]
LAYERS, HEADS, D_HEAD, WIDTH = 2, 8, 8, 32
EVERY = tuple((layer, head) for layer in range(LAYERS) for head in range(HEADS))


def world(
    seed: int,
    *,
    scenarios: int = 24,
    planted: Sequence[tuple[int, int]] = (),
    size: float = 0.0,
    in_stream: float = 0.0,
    others: int = 0,
) -> tuple[dict[int, Array], dict[int, Array], list[str], list[str]]:
    """``(heads, resid, labels, scenarios)``: every planted head moves by ``size`` noise units along a direction of its own; ``in_stream`` moves the residual
    stream alone. ``others``: further concepts a scenario, with nothing in them."""
    rng = np.random.default_rng(seed)
    texts = 2 + others
    n = texts * scenarios
    labels = ["baseline", "joy", *(f"other {i}" for i in range(others))] * scenarios
    names = [f"{i:03}" for i in range(scenarios) for _ in range(texts)]
    joy = np.array([label == "joy" for label in labels])
    heads = {
        layer: np.repeat(rng.normal(size=(scenarios, HEADS, D_HEAD)), texts, axis=0) + rng.normal(size=(n, HEADS, D_HEAD))
        for layer in range(LAYERS)
    }
    for layer, head in planted:
        direction = rng.normal(size=D_HEAD)
        heads[layer][joy, head] += size * direction / np.linalg.norm(direction)
    resid, x = {}, 0.3 * rng.normal(size=(n, WIDTH))
    for layer in range(LAYERS):
        x = x + heads[layer].reshape(n, -1) @ rng.normal(size=(HEADS * D_HEAD, WIDTH)) / np.sqrt(HEADS * D_HEAD)
        resid[layer] = x.copy()
        resid[layer][joy, 0] += in_stream
    return heads, resid, labels, names
