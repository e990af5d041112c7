"""How often the verdicts speak where nothing can be true.

In each prompt a coin decides whether arm and reference exchange their names: the log ratios of all contrasts, forms, layers and heads of the prompt change
their sign together, so what hangs together stays so. Exchanged arms have no effect of either sign; a verdict of an effect is false.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

from symbolic_residue.parallel.measure._verdicts import HEADLINE, verdicts
from symbolic_residue.stats import Estimate, generator, wilson

if TYPE_CHECKING:
    import polars as pl

__all__ = ["false_rates", "relabelled"]

_SIGNED = {
    "parallel_arms": ("value",),
    "parallel_competition": ("drop", "by_competition", "beyond", "excess"),
    "parallel_published": ("value",),
}
_EFFECTS = ("down-weighted", "up-weighted")


def relabelled(frames: Mapping[str, pl.DataFrame], seed: int) -> dict[str, pl.DataFrame]:
    """The prompts' tables with arms and references exchanged by coins; tables that compare no arms are left out."""
    import polars as pl

    items = sorted(set(frames["parallel_arms"]["item"]))
    sign = pl.DataFrame({"item": items, "sign": generator(seed).choice([-1.0, 1.0], len(items))})
    return {
        table: frames[table].join(sign, on="item").with_columns(pl.col(c) * pl.col("sign") for c in columns).drop("sign")
        for table, columns in _SIGNED.items()
        if table in frames
    }


def false_rates(
    frames: Mapping[str, pl.DataFrame], *, draws: int = 200, seed: int = 0, margin: float = 0.05
) -> dict[str, Estimate]:
    """Question → share of relabelled sets of prompts in which its verdict says that there is an effect, with Wilson's interval; ``layers``: in which some layer
    of some contrast does. n is the number of draws.
    """
    import polars as pl

    held = dict(frames) | {"parallel_arms": frames["parallel_arms"].filter(pl.col("form") == HEADLINE)}
    count: dict[str, int] = {}
    for draw in range(draws):
        out = verdicts(relabelled(held, seed + draw), margin=margin)
        rows = out["parallel_verdicts"].filter((pl.col("quantity") == "verdict") & (pl.col("question") != "pruning"))
        for question, outcome in rows.select("question", "outcome").iter_rows():
            count[question] = count.get(question, 0) + (outcome in _EFFECTS)
        for (question, arm, reference), some in out["parallel_layers"].group_by("question", "arm", "reference"):
            name = f"layers: {question}, {arm} against {reference}"
            count[name] = count.get(name, 0) + int(some["outcome"].is_in(list(_EFFECTS)).any())
    return {name: wilson(hits, draws) for name, hits in sorted(count.items())}
