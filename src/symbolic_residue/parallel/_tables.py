"""Token trees as tables of a run folder."""

from __future__ import annotations

from typing import Any

import polars as pl

from symbolic_residue.parallel._tree import Tree

__all__ = ["tree_tables"]

_TOKENS = {
    "step": pl.Int64,
    "rank": pl.Int64,
    "token": pl.Int64,
    "text": pl.String,
    "probability": pl.Float64,
    "position": pl.Float64,
    "slot": pl.Int64,
    "gone": pl.Int64,
    "score": pl.Float64,
}
_STEPS = {
    "step": pl.Int64,
    "threshold": pl.Float64,
    "above": pl.Int64,
    "mass": pl.Float64,
    "entropy": pl.Float64,
    "disagreement": pl.Float64,
    "size": pl.Int64,
    "ending": pl.Float64,
}


def tree_tables(tree: Tree) -> dict[str, pl.DataFrame]:
    """``parallel_tokens`` (a row a token), ``parallel_steps`` (a row a step), ``parallel_trees`` (one row, the tree as JSON in it).

    A token deleted by recompute has slot −1; ``ending`` is the probability of end-of-text tokens that were recorded and not fed.
    """
    tokens: list[dict[str, Any]] = [
        {
            "step": step.number,
            "rank": rank,
            "token": t.id,
            "text": t.text,
            "probability": t.probability,
            "position": t.position,
            "slot": t.slot,
            "gone": t.gone,
            "score": t.score,
        }
        for step in tree.steps
        for rank, t in enumerate(step.tokens)
    ]
    steps = [
        {
            "step": step.number,
            "threshold": step.stats.threshold,
            "above": step.stats.above,
            "mass": step.stats.mass,
            "entropy": step.stats.entropy,
            "disagreement": step.stats.disagreement,
            "size": len(step.tokens),
            "ending": sum(e.probability for e in step.endings) if step.endings else None,
        }
        for step in tree.steps
    ]
    whole = {"text": tree.text, "alternatives": tree.rendered(), "stop": tree.stop, "keys": tree.n_keys, "tree": tree.to_json()}
    return {
        "parallel_tokens": pl.DataFrame(tokens, schema=_TOKENS),
        "parallel_steps": pl.DataFrame(steps, schema=_STEPS),
        "parallel_trees": pl.DataFrame([whole]),
    }
