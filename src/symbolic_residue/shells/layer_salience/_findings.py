"""Findings of LAYER-SALIENCE: verdicts, carriers, and the tables that a run folder and a report are made of."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import polars as pl

from symbolic_residue.shells._findings import Findings, quoted, state_of
from symbolic_residue.shells._verdict import Verdict
from symbolic_residue.shells.layer_salience._attribute import CarrierTest
from symbolic_residue.shells.layer_salience._judge import log_effective, tests_of
from symbolic_residue.shells.layer_salience._residue import LayerSalienceResidue
from symbolic_residue.shells.layer_salience._tokens import KINDS
from symbolic_residue.stats import bootstrap_mean

__all__ = ["LayerSalienceFindings", "curve_frame", "head_frame", "summarise"]

_CURVES = {
    "curve": pl.String,
    "series": pl.String,
    "x": pl.Float64,
    "x_unit": pl.String,
    "value": pl.Float64,
    "low": pl.Float64,
    "high": pl.Float64,
    "n": pl.Int64,
    "unit": pl.String,
}
_FEWEST = 6
"""Values below which an interval is not drawn."""
CONTROLS = {"random": "control: random positions", "matched": "control: matched distance"}


@dataclass(frozen=True)
class LayerSalienceFindings(Findings[LayerSalienceResidue]):
    """What LAYER-SALIENCE found on one text.

    Attributes:
        blamed: positions of the tokens whose CANCEL mattered.
        carriers: heads and layers that carry them.
    """

    blamed: tuple[int, ...] = field(default=(), kw_only=True)
    carriers: tuple[CarrierTest, ...] = field(default=(), repr=False, kw_only=True)

    def blame(self) -> dict[str, pl.DataFrame]:
        """Heads (all of them) by their share of attention on the blamed tokens, layers by its mean over heads, both with what hiding confirmed; tokens by the
        fall of ln P(answer) under CANCEL."""
        out: dict[str, pl.DataFrame] = {}
        if self.blamed:
            share = pl.col("share").fill_nan(None).fill_null(0.0)
            heads = self.residue.frames["carry"].select("layer", pl.col("head").cast(pl.String).alias("unit"), share.alias("score"))
            of_layer = heads.group_by("layer", maintain_order=True).agg(pl.col("score").mean())
            for level, frame in (("head", heads), ("layer", of_layer.select("layer", pl.lit("").alias("unit"), "score"))):
                mine = [t for t in self.carriers if (t.head is None) == (level == "layer")]
                tested = pl.DataFrame(
                    [(t.layer, "" if t.head is None else str(t.head), t.confirmed) for t in mine],
                    schema={"layer": pl.Int64, "unit": pl.String, "confirmed": pl.Boolean},
                    orient="row",
                )
                out[level] = frame.join(tested, on=["layer", "unit"], how="left", maintain_order="left").sort(
                    "layer", maintain_order=True
                )
        tested = self.residue.frames["salience"].filter(pl.col("fall").is_not_null())
        if len(tested):
            unit = pl.format("{} {}", pl.col("position"), pl.col("token"))
            out["token"] = tested.select(
                pl.lit(-1, pl.Int64).alias("layer"), unit.alias("unit"), pl.col("fall").clip(lower_bound=0.0).alias("score")
            )
        return out


def summarise(residue: LayerSalienceResidue, verdicts: Sequence[Verdict], blamed: Sequence[int]) -> str:
    """One sentence that can be quoted."""
    tokens = residue.frames["tokens"]["token"].to_list()
    by_mode = {v.mode: v for v in verdicts}
    needed = by_mode["premature deprioritization"]
    share = by_mode["salience collapse"].value
    if needed.outcome == "fires":
        names = ", ".join(quoted(tokens[j]) for j in blamed)
        head = f"Looks away from {names}, which {quoted(residue.asked.answer_text)} needs"
    elif by_mode["ghosts"].outcome == "fires":
        head = "Cells with nearly no attention move the output"
    else:
        head = f"Nothing needed was found among the tokens that it neglects ({share.value:.0%} of {share.n})"
    return f"{head}: {state_of(verdicts)}."


def curve_frame(residue: LayerSalienceResidue) -> pl.DataFrame:
    """Table ``curves``: dose and response, layer flow, effective number, and attention by kind of word. Bands of controls are quantiles of their draws."""
    rows: list[tuple[str, str, float, str, float, float | None, float | None, int, str]] = []
    frames, seed = residue.frames, residue.asked.seed
    for quantity, curve in (("kl", "KL when cancelled"), ("fall", "fall of ln P(answer) when cancelled")):
        for dose in sorted(frames["cancels"].filter(pl.col("kind") == "dose")["threshold"].unique()):
            value = tests_of(frames["cancels"], "dose", "none", threshold=dose)[quantity][0]
            rows.append((curve, "under the threshold", dose, "threshold (of the uniform share)", value, None, None, 1, "nats"))
            for control, name in CONTROLS.items():
                drawn = tests_of(frames["cancels"], "dose", control, threshold=dose)[quantity].to_numpy()
                if len(drawn):
                    low, high = np.quantile(drawn, (0.025, 0.975))
                    rows.append(
                        (
                            curve,
                            name,
                            dose,
                            "threshold (of the uniform share)",
                            float(drawn.mean()),
                            float(low),
                            float(high),
                            len(drawn),
                            "nats",
                        )
                    )
    cells = frames["cells"].filter(pl.col("counted"))
    kinds = dict(frames["salience"].select("position", "kind").iter_rows())
    n = cells["position"].n_unique()
    for layer in sorted(cells["layer"].unique()):
        here = cells.filter(pl.col("layer") == layer)
        relative = here["relative"].to_numpy()
        flow = frames["layers"].filter(pl.col("layer") == layer).row(0, named=True)
        for series, value in (("sink", flow["sink"]), ("own key", flow["own"]), ("other tokens", flow["others"])):
            rows.append(("layer flow", series, layer, "layer", value, None, None, 1, "share of attention"))
        for series, q in (("lowest tenth", 0.1), ("median", 0.5), ("highest tenth", 0.9)):
            rows.append(
                (
                    "distribution over tokens",
                    series,
                    layer,
                    "layer",
                    float(np.quantile(relative, q)),
                    None,
                    None,
                    n,
                    "of the uniform share",
                )
            )
        rows.append(
            (
                "tokens under the threshold",
                "this text",
                layer,
                "layer",
                float((relative < residue.config.threshold).mean()),
                None,
                None,
                n,
                "share",
            )
        )
        logs = log_effective(frames["rows"].filter(pl.col("layer") == layer)["effective"].to_numpy())
        if len(logs):
            number = bootstrap_mean(logs, seed=seed, n_resamples=500) if len(logs) >= _FEWEST else None
            low, high = (None, None) if number is None else (float(np.exp(number.low)), float(np.exp(number.high)))
            rows.append(
                (
                    "effective number of attended tokens",
                    "this text",
                    layer,
                    "layer",
                    float(np.exp(logs.mean())),
                    low,
                    high,
                    len(logs),
                    "tokens",
                )
            )
        of_kind = np.array([kinds[p] for p in here["position"]])
        for kind in KINDS:
            mine = relative[of_kind == kind]
            if len(mine):
                # A t interval of few values would reach below 0; the resampled means of six or more do not.
                mean = bootstrap_mean(mine, seed=seed, n_resamples=200) if len(mine) >= _FEWEST else None
                low, high = (None, None) if mean is None else (mean.low, mean.high)
                rows.append(
                    (
                        "attention received by kind of word",
                        kind,
                        layer,
                        "layer",
                        float(mine.mean()),
                        low,
                        high,
                        len(mine),
                        "of the uniform share",
                    )
                )
    return pl.DataFrame(rows, schema=_CURVES, orient="row")


def head_frame(tests: Sequence[CarrierTest], carry: pl.DataFrame | None) -> dict[str, pl.DataFrame]:
    """Table ``head_scores``: share of attention on the blamed tokens (all heads), and the effect of hiding them (heads tested); ``carriers``: all tests."""
    rows: list[dict[str, Any]] = [
        {"layer": r["layer"], "head": r["head"], "score": "attention on the cancelled tokens", "value": r["share"], "unit": "share"}
        for r in (carry.iter_rows(named=True) if carry is not None else ())
    ]
    tested: list[dict[str, Any]] = []
    for t in tests:
        low, high = map(float, np.quantile(t.drawn, (0.025, 0.975)))
        one = {"layer": t.layer, "head": t.head, "control": float(t.drawn.mean()), "control_low": low, "control_high": high}
        tested.append(
            one
            | {
                "share": t.share,
                "fall": t.fall,
                "control_n": len(t.drawn),
                "random_effect": t.random_effect,
                "p": t.p,
                "confirmed": t.confirmed,
            }
        )
        if t.head is not None:
            rows.append(one | {"score": "fall of ln P(answer) when hidden from the head", "value": t.fall, "unit": "nats"})
    floats = dict.fromkeys(("value", "low", "high", "control", "control_low", "control_high"), pl.Float64)
    scores = pl.DataFrame(
        [{"n": 1} | row for row in rows],
        schema={"layer": pl.Int64, "head": pl.Int64, "score": pl.String, **floats, "n": pl.Int64, "unit": pl.String},
    )
    carriers = pl.DataFrame(
        tested,
        schema={
            "layer": pl.Int64,
            "head": pl.Int64,
            **dict.fromkeys(("share", "fall", "control", "control_low", "control_high"), pl.Float64),
            "control_n": pl.Int64,
            "random_effect": pl.Float64,
            "p": pl.Float64,
            "confirmed": pl.Boolean,
        },
    )
    return {"head_scores": scores, "carriers": carriers}
