"""Pruned against surviving tokens: does later attention tell them apart, and better than probability does?

1. A sibling is judged as in decoding (see ``_prune``): by the attention of the ``after`` steps behind its set, shares without the sink, mean over layers
   and heads. Where the tree itself was pruned, its own removals are the labels.
2. The attention that is tested is that of *other* rows: up to 5 steps behind the ones that judged. Nothing is removed in the replay, so pruned tokens can
   still be looked at. Judging and testing by the same rows would find the rule again and no more.
3. Top tokens are never pruned and are left out.
"""

from __future__ import annotations

from symbolic_residue.parallel._config import Pruning
from symbolic_residue.parallel._prune import sink_free
from symbolic_residue.parallel._tree import Tree
from symbolic_residue.parallel.measure._replay import Seen

__all__ = ["pruning_rows"]

LATER = 5


def pruning_rows(seen: Seen, tree: Tree, pruning: Pruning) -> list[dict]:
    """Rows of ``parallel_pruning`` from the shared arm."""
    looks = sink_free(seen.weights, seen.weights[..., 0]).nanmean((0, 1))  # [row, place]
    row_of = {step: i for i, step in enumerate(seen.arranged.steps)}
    was_pruned = any(t.gone is not None for step in tree.steps for t in step.tokens)
    out, at = [], len(tree.prompt)
    for s, step in enumerate(tree.steps):
        size = len(step.tokens)
        first, at = at, at + size
        judges = [row_of[t] for t in range(s + 1, s + pruning.after + 1) if t in row_of]
        later = [row_of[t] for t in range(s + pruning.after + 1, s + pruning.after + LATER + 1) if t in row_of]
        if size < 2 or len(judges) < pruning.after or not later:
            continue
        judged = looks[judges, first : first + size].mean(0)
        tested = looks[later, first : first + size].nanmean(0)
        bound = pruning.least * (float(judged.max()) if pruning.rule == "relative" else 1.0)
        for rank in range(1, size):
            token = step.tokens[rank]
            score, attention = float(judged[rank]), float(tested[rank])
            if score != score or attention != attention:
                continue
            pruned = token.gone is not None if was_pruned else score < bound
            row = {"step": s, "rank": rank, "probability": token.probability, "judged": score}
            out.append(row | {"attention": attention, "pruned": pruned})
    return out
