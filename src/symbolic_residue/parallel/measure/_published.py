"""The published metric, kept for comparison: why its number says little.

One mean of raw weights over layers × heads × keys for tokens of sets, one for all other keys, and their ratio. It misleads three times:

1. The sequence's first token is among the other keys. Attention sinks put half and more of the weight there, so the other keys look well attended whatever
   happens to sets. ``without sink`` leaves it out and takes shares of what remains.
2. The tokens differ, in what they are and in how far they stand from the row: no arm is compared with another on the same token.
3. Layers, heads and keys of one text are counted as samples (``naive_p``, Welch's t test), though they are one text.

It is taken in standard decoding too, where no set was ever in the sequence (the published runs were of this kind): tokens that had alternatives against
tokens that had none. What shows there has nothing to do with shared positions.
"""

from __future__ import annotations

import math

import numpy as np
from scipy import stats as sps

from symbolic_residue.parallel._tree import Tree
from symbolic_residue.parallel.measure._arms import sets_of
from symbolic_residue.parallel.measure._replay import Seen

__all__ = ["published_rows"]


def published_rows(arm: str, seen: Seen, tree: Tree) -> list[dict]:
    """Rows of ``parallel_published``, none where a prompt has no keys of one kind."""
    n = len(tree.prompt)
    several = set(sets_of(tree))
    among: list[int] = []
    at = n
    for s, step in enumerate(tree.steps):
        if s in several:
            among += range(at, at + len(step.tokens))
        at += len(step.tokens)
    visible = ~seen.distance.isnan()
    out = []
    for keys in ("with sink", "without sink"):
        weights = seen.weights
        if keys == "without sink":
            rest = weights.sum(-1) + seen.own - weights[..., 0]
            weights = weights / rest.clamp_min(1e-12)[..., None]
        # A key's sample: its mean weight over the rows that see it, in one layer and head.
        per_key = ((weights * visible).sum(2) / visible.sum(0).clamp_min(1)).numpy()
        seen_keys = np.flatnonzero(visible.any(0).numpy())
        if keys == "without sink":
            seen_keys = seen_keys[seen_keys != 0]
        inside = np.isin(seen_keys, among)
        first, second = per_key[..., seen_keys[inside]].ravel(), per_key[..., seen_keys[~inside]].ravel()
        if not len(first) or not len(second) or first.mean() <= 0 or second.mean() <= 0:
            continue
        p, spread = math.nan, [float(x.std(ddof=1)) if len(x) > 1 else 0.0 for x in (first, second)]
        if all(len(x) > 1 for x in (first, second)) and max(spread) > 0:
            welch = sps.ttest_ind_from_stats(
                first.mean(), spread[0], len(first), second.mean(), spread[1], len(second), equal_var=False
            )
            p = float(welch[1])  # type: ignore[arg-type]
        out.append(
            {
                "arm": arm,
                "keys": keys,
                "sets": float(first.mean()),
                "others": float(second.mean()),
                "value": math.log(first.mean() / second.mean()),
                "naive_p": p,
                "samples": len(first) + len(second),
            }
        )
    return out
