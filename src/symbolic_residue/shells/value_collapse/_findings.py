"""Findings of VALUE-COLLAPSE: verdicts, attribution, and the tables that a run folder and a report are made of."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Any, TYPE_CHECKING

import numpy as np
import polars as pl

from symbolic_residue.shells._findings import Findings, quoted, short, state_of
from symbolic_residue.shells._verdict import Verdict
from symbolic_residue.shells.value_collapse._attribute import Attribution
from symbolic_residue.shells.value_collapse._residue import ValueCollapseResidue
from symbolic_residue.stats import bootstrap_columns, bound

if TYPE_CHECKING:
    from torch import Tensor

__all__ = ["ValueCollapseFindings", "attribution_frames", "changes_frame", "summarise"]


@dataclass(frozen=True)
class ValueCollapseFindings(Findings[ValueCollapseResidue]):
    """What VALUE-COLLAPSE found on one prompt.

    Attributes:
        attribution: who pulls which way.
    """

    attribution: Attribution = field(repr=False, kw_only=True)

    def tensors(self) -> dict[str, Tensor]:
        """``dla_heads [pair, variant, layer, head]``, ``dla_mlps [pair, variant, layer]``, ``toward [candidate, layer, head]``."""
        import torch

        a = self.attribution
        return {"dla_heads": torch.tensor(a.heads), "dla_mlps": torch.tensor(a.mlps), "toward": torch.tensor(a.toward)}


def summarise(verdicts: list[Verdict], tokens: list[str]) -> str:
    """One sentence that can be quoted."""
    fired = [v.mode for v in verdicts if v.outcome == "fires"]
    open_ones = [v.mode for v in verdicts if v.outcome == "undecided"]
    pair = f"{quoted(tokens[0])} and {quoted(tokens[1])}"
    if "flatness" in fired:
        head = f"Torn between {pair}"
    elif fired:
        head = f"Unsteady on {quoted(tokens[0])} (next best {quoted(tokens[1])})"
    elif "flatness" in open_ones:
        head = f"Not settled by this measurement: {pair} lead"
    else:
        head = f"Decided for {quoted(tokens[0])} over {quoted(tokens[1])}"
    return f"{head}: {state_of(verdicts)}."


def attribution_frames(
    attribution: Attribution, names: dict[int, str], candidates: list[int], seed: int
) -> dict[str, pl.DataFrame]:
    """Tables ``heads``, ``components``, ``dla_check`` and ``ov``."""
    _, n_variants, n_layers, n_heads = attribution.heads.shape
    tests = {(t.layer, t.head): t for t in attribution.tests}
    heads: list[dict[str, Any]] = []
    components: list[dict[str, Any]] = []
    checks: list[dict[str, Any]] = []
    for p, (a, b) in enumerate(attribution.pairs):
        target = f"{names[a]} − {names[b]}"
        flat = attribution.heads[p].reshape(n_variants, -1)
        # Layers without softmax attention have no heads.
        places = np.flatnonzero(~np.isnan(flat).all(0))
        value, low, high = bootstrap_columns(flat[:, places], seed=seed)
        for i, place in enumerate(places):
            layer, head = divmod(int(place), n_heads)
            test = tests.get((layer, head)) if p == 0 else None
            heads.append(
                {
                    "layer": layer,
                    "head": head,
                    "target": target,
                    "dla": float(value[i]),
                    "dla_low": bound(low[i]),
                    "dla_high": bound(high[i]),
                    "n": n_variants,
                    "ablation": test.ablation if test else None,
                    "ablation_low": bound(test.low) if test else None,
                    "ablation_high": bound(test.high) if test else None,
                    "control_ablation": attribution.random_effect if test and math.isfinite(attribution.random_effect) else None,
                    "control_n": attribution.random_n if test else None,
                    "p": test.p if test else None,
                    "q": test.q if test else None,
                    "specificity_p": test.specificity if test else None,
                    "patch_recovered": test.recovered if test else None,
                    "patch_control": test.recovered_control if test else None,
                    "role": "promotes" if value[i] >= 0 else "inhibits",
                    "confirmed": test.confirmed if test else None,
                }
            )
        pieces = [("embedding", -1, attribution.embedding[p, 0]), ("bias", -1, attribution.constant[p])]
        for layer in range(n_layers):
            pieces.append(("attention", layer, attribution.heads[p, 0, layer].sum()))
            pieces.append(("attention bias", layer, attribution.biases[p, 0, layer]))
            pieces.append(("mixer", layer, attribution.mixers[p, 0, layer]))
            pieces.append(("mlp", layer, attribution.mlps[p, 0, layer]))
        pieces = [piece for piece in pieces if not np.isnan(piece[2])]  # parts that the layer does not have
        components += [{"target": target, "component": c, "layer": layer, "contribution": float(x)} for c, layer, x in pieces]
        total, error = float(attribution.total[p, 0]), float(attribution.error[p, 0])
        checks.append({"target": target, "logit_difference": total, "sum_of_parts": total + error, "error": error})
    strength = attribution.toward.sum(-1)
    ov = [
        {"layer": layer, "token": names[token], "strength": float(strength[c, layer])}
        for c, token in enumerate(candidates[: strength.shape[0]])
        for layer in range(n_layers)
        if not np.isnan(strength[c, layer])
    ]
    floats = dict.fromkeys(
        (
            "dla",
            "dla_low",
            "dla_high",
            "ablation",
            "ablation_low",
            "ablation_high",
            "control_ablation",
            "p",
            "q",
            "specificity_p",
            "patch_recovered",
            "patch_control",
        ),
        pl.Float64,
    )
    overrides: dict[str, Any] = {**floats, "control_n": pl.Int64, "confirmed": pl.Boolean}
    return {
        "heads": pl.DataFrame(heads, schema_overrides=overrides),
        "components": pl.DataFrame(components),
        "dla_check": pl.DataFrame(checks),
        "ov": pl.DataFrame(ov),
    }


def changes_frame(findings_of: dict[str, Any]) -> pl.DataFrame:
    """What would change the verdict: the table ``changes``, strongest first within each kind.

    Args:
        findings_of: ``probability`` (top token's), ``threshold``, ``log_odds``, ``criterion``, ``names`` (top two tokens),
            ``sensitivity`` frame, ``tests`` (head tests), ``influence`` ``[token]``, ``tokens``, ``base`` (log-odds of the pair),
            ``control_log_odds``, ``control_text``.
    """
    f = findings_of
    rows: list[tuple[str, str, float, str, str]] = []
    p, threshold, first = f["probability"], f["threshold"], f["names"][0]
    if p <= threshold:  # YIELD asks for more than the threshold
        # A given candidate's probability may underflow to nothing.
        need = math.log(threshold / (1 - threshold)) - math.log(max(p, 1e-300) / (1 - p))
        rows.append(("isolate", f"Add to the logit of {quoted(first)} until YIELD returns it", need, f"P > {threshold:g}", "nats"))
    need = f["criterion"] - f["log_odds"]
    word = "more" if need > 0 else "less"
    rows.append(
        (
            "margin",
            f"{abs(need):.2f} nats {word} between the two best candidates would cross the flatness criterion",
            need,
            "flatness changes side",
            "nats",
        )
    )
    rows.append(
        (
            "control",
            f"The control prompt: {short(f['control_text'])}",
            f["control_log_odds"] - f["log_odds"],
            "change of the log-odds of the two best",
            "nats",
        )
    )
    flips = f["sensitivity"].filter(pl.col("changed"))
    for row in flips.sort("js", descending=True).head(3).iter_rows(named=True):
        rows.append(
            (
                "edit",
                f"{row['kind']}: {short(row['text'])}",
                row["js"],
                f"top token becomes {quoted(row['top_token'])}",
                "nats (JS)",
            )
        )
    for test in sorted(f["tests"], key=lambda t: -abs(t.ablation))[:3]:
        after = f["base"] + test.ablation
        state = "the pair changes order" if after * f["base"] < 0 else f"log-odds {f['base']:+.2f} → {after:+.2f}"
        confirmed = "" if test.confirmed else " (not confirmed)"
        rows.append(("head", f"Mean-ablate head {test.layer}.{test.head} at the last row{confirmed}", test.ablation, state, "nats"))
    influence = f["influence"]
    for i in np.argsort(-np.abs(influence))[:3].tolist():
        after = f["base"] - influence[i]
        state = "the pair changes order" if after * f["base"] < 0 else f"log-odds {f['base']:+.2f} → {after:+.2f}"
        rows.append(("token", f"Hide token {i} {quoted(f['tokens'][i])} from the last row", -float(influence[i]), state, "nats"))
    return pl.DataFrame(
        [(i + 1, *row) for i, row in enumerate(rows)],
        schema=["rank", "kind", "description", "needed", "effect", "unit"],
        orient="row",
    ).with_columns(pl.col("needed").cast(pl.Float64), pl.col("rank").cast(pl.Int64))
