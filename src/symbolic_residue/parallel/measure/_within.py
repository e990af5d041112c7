"""Who looks at whom within a set: k × k attention of siblings, by mode.

The weight of one sibling's row on another sibling's key, as a share of what the row leaves for keys other than the sink (the own key on the diagonal
included), mean over heads and over the sets of one size. Isolated siblings give 0 off the diagonal exactly.
"""

from __future__ import annotations

import torch

from symbolic_residue.parallel._prune import sink_free
from symbolic_residue.parallel._tree import Tree
from symbolic_residue.parallel.measure._replay import Seen

__all__ = ["intra_rows", "set_slots"]

_MOST = 8
"""Ranks shown of a set."""


def set_slots(tree: Tree) -> list[tuple[int, list[int]]]:
    """(step, slots of its first ranks) of every set with several tokens, in an arrangement of all tokens."""
    out, at = [], len(tree.prompt)
    for s, step in enumerate(tree.steps):
        if len(step.tokens) > 1:
            out.append((s, list(range(at, at + min(len(step.tokens), _MOST)))))
        at += len(step.tokens)
    return out


def intra_rows(mode: str, seen: Seen, tree: Tree) -> list[dict]:
    """Rows of ``parallel_intra``; ``seen.extra`` holds the rows of :func:`set_slots`, in that order."""
    assert seen.extra is not None
    shares = sink_free(seen.extra, seen.extra[..., 0]).nanmean(1)  # [layer, row, slot]
    by_size: dict[int, list[torch.Tensor]] = {}
    at = 0
    for s, slots in set_slots(tree):
        block = shares[:, at : at + len(slots)][..., slots]
        by_size.setdefault(len(tree.steps[s].tokens), []).append(block)
        at += len(slots)
    out = []
    for size, blocks in sorted(by_size.items()):
        mean = torch.stack(blocks).nanmean(0)
        for i, layer in enumerate(seen.layers):
            for q in range(mean.shape[1]):
                for k in range(mean.shape[2]):
                    value = float(mean[i, q, k])
                    if value == value:
                        row = {"mode": mode, "size": size, "layer": layer, "query_rank": q, "key_rank": k}
                        out.append(row | {"value": value, "n": len(blocks)})
    return out
