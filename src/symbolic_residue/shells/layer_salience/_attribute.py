"""Which heads and layers carry the cancelled tokens to the output: ranked by what they attend to, confirmed by hiding.

1. The tokens in question are those whose CANCEL mattered (``blamed``). Heads are ranked by the share of the last row's value-weighted attention that
   goes to them, layers by the mean of that share over heads. In gated layers there is none, and nothing is ranked.
2. Each of the first ``top_heads`` (``top_layers``) is tested: the tokens are hidden from the last row in that head (layer) alone; effect = fall of ln
   P(answer), nats.
3. *Keys drawn at random*: the same head with as many other counted tokens hidden, ``head_draws`` times; every head gets the same draws. p is
   family-wise: the share of draws (plus one) in which *any* tested head's absolute effect is at least as large.
4. *Heads drawn at random*: the same tokens hidden in other heads; the 95th percentile of their absolute effects is the size to exceed. Layers have no
   such control.
5. Confirmed: p ≤ 0.05, larger than 0.01 nats, and for heads larger than the random heads' size. A head whose hiding *raises* ln P(answer) can be confirmed too;
   the sign says which way.

Interventions act on the last row only: heads that moved the token's content to other rows earlier are not seen here, but count in CANCEL.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import polars as pl
from numpy.typing import NDArray

from symbolic_residue.instrument import AttentionMask, collate, Edit, Instrument, LastRow
from symbolic_residue.prompts import Prompt
from symbolic_residue.shells._confirm import draw_heads, SMALLEST
from symbolic_residue.shells.layer_salience._config import LayerSalienceConfig
from symbolic_residue.shells.layer_salience._observe import hidden_from_last
from symbolic_residue.stats import empirical_p

__all__ = ["CarrierTest", "attribute"]

Array = NDArray[np.float64]
Place = tuple[int, int | None]


@dataclass(frozen=True)
class CarrierTest:
    """One head's (or layer's, ``head`` None) test.

    Attributes:
        share: of the last row's value-weighted attention on the tokens.
        fall: of ln P(answer) when the tokens are hidden there, nats.
        drawn: the same for random keys, ``[draw]``.
        p: family-wise over the places tested.
        random_effect: 95th percentile of random heads' absolute effects; None for layers.
        confirmed: see the module.
    """

    layer: int
    head: int | None
    share: float
    fall: float
    drawn: Array
    p: float
    random_effect: float | None
    confirmed: bool | None


def attribute(
    instrument: Instrument,
    prompt: Prompt,
    tokens: Sequence[int],
    counted: Sequence[int],
    carry: pl.DataFrame,
    config: LayerSalienceConfig,
    answer: int,
    seed: int,
    progress: Callable[[str, float], None] = lambda what, share: None,
) -> list[CarrierTest]:
    """Heads first, then layers; see the module. Nothing where nothing was cancelled, or where too few other tokens are there to draw from."""
    others = [j for j in counted if j not in set(tokens)]
    ranked = carry.filter(pl.col("share") > 0)
    if not tokens or not config.top_heads or len(others) < len(tokens) or not len(ranked):
        return []
    rng = np.random.default_rng(seed)
    draws = [sorted(others[int(i)] for i in rng.permutation(len(others))[: len(tokens)]) for _ in range(config.head_draws)]
    best = ranked.sort("share", "layer", "head", descending=[True, False, False]).head(config.top_heads)
    heads: list[Place] = [(row["layer"], row["head"]) for row in best.iter_rows(named=True)]
    of_layer = ranked.group_by("layer").agg(pl.col("share").mean()).sort("share", "layer", descending=[True, False])
    layers: list[Place] = [(layer, None) for layer in of_layer["layer"].head(config.top_layers)]
    every = [(layer, head) for layer in instrument.attention_layers for head in range(instrument.parts.n_heads)]
    drawn_heads: list[Place] = list(draw_heads([cell for cell in every if cell not in heads], config.random_heads, rng))

    places = [*heads, *layers]
    sets: list[tuple[Place, Sequence[int]]] = [(place, tokens) for place in places]
    sets += [(place, keys) for place in places for keys in draws]
    sets += [(place, tokens) for place in drawn_heads]
    row = LastRow(instrument, collate([prompt]))
    progress("hiding tokens head by head", 0.0)
    found = hidden_from_last(row, [[], *([_mask(place, keys)] for place, keys in sets)])
    progress("hiding tokens head by head", 1.0)
    fall = (found[0, answer] - found[1:, answer]).numpy()
    n = len(places)
    own, controls, of_random = fall[:n], fall[n : n + n * len(draws)].reshape(n, -1), np.abs(fall[n + n * len(draws) :])
    limit = float(np.quantile(of_random, 0.95, method="higher")) if len(of_random) else None
    shares = {(r["layer"], r["head"]): r["share"] for r in carry.iter_rows(named=True)}
    by_layer = dict(of_layer.iter_rows())
    tests = []
    for family in (slice(0, len(heads)), slice(len(heads), n)):
        if not places[family]:
            continue
        null = np.abs(controls[family]).max(0)
        for place, effect, drawn in zip(places[family], own[family], controls[family], strict=True):
            layer, head = place
            p = float(empirical_p(abs(float(effect)), null, "greater"))
            size = limit if head is not None else None
            sayable = head is None or limit is not None
            tests.append(
                CarrierTest(
                    layer,
                    head,
                    by_layer[layer] if head is None else shares[layer, head],
                    float(effect),
                    drawn,
                    p,
                    size,
                    bool(p <= 0.05 and abs(effect) > max(size or 0.0, SMALLEST)) if sayable else None,
                )
            )
    return tests


def _mask(place: Place, keys: Sequence[int]) -> Edit:
    layer, head = place
    return AttentionMask(list(keys), rows=(-1,), layers=(layer,), heads=None if head is None else (head,))
