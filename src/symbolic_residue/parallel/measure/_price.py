"""What sets do to the next token, and what it costs to undo competition by a bias."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from symbolic_residue.parallel.measure._collapse import crossing
from symbolic_residue.parallel.measure._infer import Means, means
from symbolic_residue.stats import wilson

if TYPE_CHECKING:
    from symbolic_residue.parallel.measure._verdicts import Judge

__all__ = ["bias_rows", "prediction_rows"]


def bias_rows(judge: Judge) -> None:
    """The bias at which the mean over prompts is what siblings had alone, and its price."""

    frame = judge.frames.get("parallel_bias")
    if frame is None or frame.is_empty():
        return
    x = np.array(sorted(set(frame["bias"])))
    curves = {
        name: np.array([rows.sort("bias")[name].to_numpy() for rows in frame.partition_by("item") if len(rows) == len(x)])
        for name in ("ratio", "kl", "nll")
    }
    if not len(curves["ratio"]):
        return
    points = [means(column, judge.rule) for column in curves["ratio"].T]
    n = len(curves["ratio"])
    values = [crossing(x, np.array([getattr(p, k) for p in points if p], np.float64)) for k in ("value", "high", "low")]
    if values[0] is None:
        note = f"The largest bias, {x[-1]:g}, does not restore it."
        judge.add(
            "bias",
            "restoring bias",
            None,
            "undecided",
            reference="singleton",
            unit="nats",
            note=note,
        )
    else:
        whole = values[1] is not None and values[2] is not None
        note = "Where the interval of the mean ratio holds 1." if whole else f"No upper bound up to {x[-1]:g}."
        found = Means(values[0], values[1] if whole else None, values[2] if whole else None, None, n)
        judge.add(
            "bias", "restoring bias", found, "measured" if whole else "undecided", reference="singleton", unit="nats", note=note
        )
        for quantity, name in (("KL at that bias", "kl"), ("change of −ln p of the top path at that bias", "nll")):
            at = np.array([np.interp(values[0], x, row) - (row[0] if name == "nll" else 0.0) for row in curves[name]])
            mean = means(at, judge.rule)
            assert mean is not None
            mean = mean.within(0.0) if name == "kl" else mean
            judge.add(
                "bias",
                quantity,
                mean,
                "measured",
                reference="singleton",
                unit="nats",
                note="The bias is held at the value above.",
            )
    share = wilson(int((curves["ratio"] >= 0).any(1).sum()), n, judge.rule.level)
    note = "Siblings compete with each other, so a bias on all of them cannot always give each what it had alone."
    found = Means(share.value, share.low, share.high, None, n)
    judge.add("bias", "prompts that some bias restores", found, "measured", reference="singleton", unit="share", note=note)


def prediction_rows(judge: Judge) -> None:
    """KL from standard decoding, and the top path's probability."""
    import polars as pl

    frame = judge.frames.get("parallel_output")
    if frame is None or frame.is_empty():
        return
    plain = dict(frame.filter(pl.col("arm") == "standard").select("item", "nll").iter_rows())
    note = "The path is the tree's own, chosen with its sets in sight."
    for arm in sorted(a for a in set(frame["arm"]) - {"standard"} if not a.startswith("offset")):
        rows = frame.filter((pl.col("arm") == arm) & pl.col("item").is_in(list(plain)))
        kl = means(rows["kl"].to_numpy(), judge.rule)
        more = means(np.array([nll - plain[item] for item, nll in rows.select("item", "nll").iter_rows()]), judge.rule)
        kl = None if kl is None else kl.within(0.0)
        judge.add("prediction", "KL", kl, "measured", arm=arm, reference="standard", form="", unit="nats")
        judge.add("prediction", "perplexity of the top path", more, "measured", arm=arm, reference="standard", form="", note=note)
