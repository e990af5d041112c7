"""How well a score parts pruned from surviving tokens, with intervals over prompts.

AUC: the chance that a surviving token scores above a pruned one, ties half, over all such pairs of all prompts. Prompts are drawn whole (bootstrap), for
both scores alike, so their difference is paired. Intervals are percentiles, in the range by construction; none is given where fewer than 6 prompts hold a
pruned (or a surviving) token, or where every draw gives the same.
"""

from __future__ import annotations

from typing import Any, TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from symbolic_residue.parallel.measure._infer import LEAST_PROMPTS, Rule
from symbolic_residue.stats import generator

if TYPE_CHECKING:
    import polars as pl

__all__ = ["auc_rows", "clustered_auc"]

_DRAWS = 2000


def _wins(scores: NDArray[np.float64], pruned: NDArray[np.bool_], prompt: NDArray[np.intp], n: int) -> NDArray[np.float64]:
    """``[prompt, prompt]``: pairs (survivor of the first, pruned of the second) that the survivor wins, ties half."""
    kept, gone = np.flatnonzero(~pruned), np.flatnonzero(pruned)
    win = np.sign(scores[kept][:, None] - scores[gone][None, :]) / 2 + 0.5
    inside, outside = np.eye(n)[prompt[kept]], np.eye(n)[prompt[gone]]
    return inside.T @ win @ outside


def clustered_auc(
    scores: NDArray[np.float64], pruned: NDArray[np.bool_], prompt: NDArray[np.intp], weights: NDArray[np.float64]
) -> NDArray[np.float64]:
    """AUC under each row of ``weights [draw, prompt]`` (how often each prompt counts); NaN where a draw has one class only."""
    n = weights.shape[1]
    won = _wins(scores, pruned, prompt, n)
    pairs = np.outer(np.bincount(prompt[~pruned], minlength=n), np.bincount(prompt[pruned], minlength=n)).astype(float)
    top, bottom = (
        np.einsum("dp,pq,dq->d", weights, won, weights, optimize=True),
        np.einsum("dp,pq,dq->d", weights, pairs, weights, optimize=True),
    )
    return np.where(bottom > 0, top / np.maximum(bottom, 1), np.nan)


def auc_rows(frame: pl.DataFrame | None, rule: Rule) -> list[dict[str, Any]]:
    """Rows of ``parallel_verdicts`` for the question ``pruning``."""
    common = {"question": "pruning", "arm": "shared", "reference": "", "form": "sink excluded", "unit": "AUC"}
    if frame is None or frame.is_empty() or frame["pruned"].n_unique() < 2:
        note = "No token was pruned, or none survived: there is nothing to tell apart."
        return [{**common, "quantity": "verdict", "outcome": "undecided", "n": 0, "note": note}]
    items = sorted(frame["item"].unique())
    prompt = np.array([items.index(i) for i in frame["item"]])
    pruned, n = frame["pruned"].to_numpy(), len(items)
    rng = generator(rule.seed)
    draws = np.concatenate([np.ones((1, n)), rng.multinomial(n, np.full(n, 1 / n), size=_DRAWS).astype(np.float64)])
    of = {name: clustered_auc(frame[name].to_numpy(), pruned, prompt, draws) for name in ("attention", "probability")}
    of["difference"] = of["attention"] - of["probability"]
    least = min(len(set(prompt[pruned])), len(set(prompt[~pruned])))
    note = f"{int(pruned.sum())} pruned and {int((~pruned).sum())} surviving tokens; the rarer kind is in {least} prompts."
    held = {}
    for name, values in of.items():
        drawn = values[1:][np.isfinite(values[1:])]
        low, high = None, None
        if least >= LEAST_PROMPTS and np.ptp(drawn) > 0:  # all draws alike: no spread is no certainty
            low, high = (float(q) for q in np.quantile(drawn, [(1 - rule.level) / 2, (1 + rule.level) / 2]))
        held[name] = {"value": float(values[0]), "low": low, "high": high, "n": n, "note": note}
    decided = "measured" if held["difference"]["low"] is not None else "undecided"
    out = [{**common, "quantity": f"AUC of {name}", "outcome": decided, **held[name]} for name in ("attention", "probability")]
    control = {f"control_{k}": held["probability"][k] for k in ("value", "low", "high")}
    out.append(
        {**common, "quantity": "verdict", "outcome": decided, **held["difference"], "control": "AUC of probability", **control}
    )
    out[-1]["unit"] = "AUC difference"
    return out
