"""Which heads fetch the fact: ranked by what was read, confirmed by interventions at the last row.

1. Heads are ranked by *retrieval* beyond its control: (attention to the answer's token − mean attention to a token of the padding) × direct contribution to
   ``answer − foil``, mean over draws. The ``top_heads`` with the largest positive score are tested.
2. They are mean-ablated, patched from the text without distance, held against random heads, and tested for specificity (``shells._confirm``). n counts draws of
   padding around one fact: q says "the same whatever the padding", not "this head fetches facts in general".
3. ANCHOR and INHIBIT: the log-odds of the answer when the odds of the fact's keys are multiplied, for the last row in all layers and heads; the control is the
   same for as many tokens of the padding, drawn at random.

What acts on the last row leaves earlier rows as they are: a fact that was carried on by them is not undone.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import polars as pl
import torch
from numpy.typing import NDArray
from torch import Tensor

from symbolic_residue.instrument import AttentionBias, AttentionMask, collate, Edit, Instrument, LastRow, Prefix
from symbolic_residue.shells._confirm import confirm_heads, draw_heads, HeadConfirmation, PairRuns
from symbolic_residue.shells._rows import LastRows
from symbolic_residue.shells.memtrace._observe import Begun, heads_at
from symbolic_residue.shells.memtrace._residue import MemtraceResidue
from symbolic_residue.shells.memtrace._tables import DIRECT, RETRIEVAL
from symbolic_residue.shells.memtrace._text import Passage
from symbolic_residue.stats import bootstrap_mean, bound

__all__ = ["DOSE", "Interventions", "begin_again", "heads_frame", "intervene"]

Array = NDArray[np.float64]
DOSE = "ANCHOR and INHIBIT"


@dataclass(frozen=True)
class Interventions:
    """What interventions showed: the heads' tests, their (layer, head) in order of retrieval, and the dose-response rows of ``curves``."""

    found: HeadConfirmation
    chosen: list[tuple[int, int]]
    dose: pl.DataFrame


def begin_again(instrument: Instrument, residue: MemtraceResidue, one: Passage) -> Begun:
    """The beginnings at the judged kind of padding, and the text without distance."""
    batch = one.beginnings(residue.asked.paddings[0], residue.asked.distances[-1])
    near = instrument.run(torch.tensor([[*one.head, *_to_answer(one)]]), reads=("z.*",), keep_logits=1)
    found = heads_at(instrument, near, -1), near["logits"][0, -1]
    return Begun(Prefix(instrument, batch) if batch is not None else None, found)


def _to_answer(one: Passage) -> list[int]:
    """The tail up to the row that predicts the first field."""
    return one.tail[: len(one.tail) + one.rows[0] + 1]


def intervene(
    instrument: Instrument,
    residue: MemtraceResidue,
    one: Passage,
    begun: Begun,
    means: tuple[Tensor, Tensor],
    foil: int,
    *,
    progress: Callable[[str, float], None] = lambda what, share: None,
) -> Interventions:
    """Test the heads and the doses; see the module.

    Args:
        begun: what has been run of the fact's side.
        means: of :func:`head_means` over unrelated prompts.
        foil: the token that the answer is held against.
    """
    asked, config = residue.asked, residue.config
    tail = _to_answer(one)
    d, kind = asked.distance, asked.paddings[0]
    if d == 0 or begun.prefix is None:
        last, logits = LastRow(instrument, collate([[*one.head, *tail]])), begun.near[1][None]
    else:
        last = begun.prefix.last_row(torch.tensor([tail] * len(one.pads[kind])), drop=asked.distances[-1] - d)
        logits = begun.logits
    runs = PairRuns(instrument, last.size, (asked.fields[0].token, foil), rows=LastRows.prepared(last, logits))

    scores = residue.frames["head_scores"]
    ranked = scores.filter(pl.col("score") == RETRIEVAL).with_columns(beyond=pl.col("value") - pl.col("control").fill_null(0.0))
    ranked = ranked.sort("beyond", "layer", "head", descending=[True, False, False])
    order = [(row["layer"], row["head"]) for row in ranked.iter_rows(named=True)]
    chosen = [(row["layer"], row["head"]) for row in ranked.head(config.top_heads).iter_rows(named=True) if row["beyond"] > 0]
    direct = {(r["layer"], r["head"]): r["value"] for r in scores.filter(pl.col("score") == DIRECT).iter_rows(named=True)}
    rng = np.random.default_rng(asked.seed)
    drawn = draw_heads([head for head in order if head not in chosen], config.random_heads, rng)
    mean, each = means
    settled, log_odds = begun.near[0], begun.near[1].double()
    found = confirm_heads(
        runs,
        chosen,
        drawn,
        means=mean,
        contribution=np.array([direct[head] for head in chosen]),
        seed=asked.seed,
        rng=rng,
        settled=settled,
        settled_log_odds=float(log_odds[asked.fields[0].token] - log_odds[foil]),
        unrelated=each[int(rng.integers(len(each)))],
        progress=progress,
    )
    return Interventions(found, chosen, _dose(last, runs(), residue, one, foil, rng))


def _dose(last: LastRow, base: Array, residue: MemtraceResidue, one: Passage, foil: int, rng: np.random.Generator) -> pl.DataFrame:
    """Rows of ``curves``: the log-odds of the answer with the odds of keys multiplied, minus without (``base [draw]``)."""
    asked, strengths = residue.asked, list(residue.config.strengths)
    # The row's own key and the sink stay: a row must see something, and the sink is no part of the fact.
    own = len(one.head) + asked.distance + len(one.tail) + one.rows[0]
    fact = [p for p in one.at(one.fact, asked.distance) if 0 < p < own]
    padding = [p for p in range(len(one.head), len(one.head) + asked.distance) if p > 0]
    sets = {"fact": fact}
    if padding:
        sets["control, padding"] = sorted(int(i) for i in rng.choice(padding, min(len(fact), len(padding)), replace=False))
    cells = [(name, s) for name, keys in sets.items() if keys for s in strengths]
    rows: list[dict[str, Any]] = []
    if cells:
        copies = len(cells)
        edits: list[Edit] = []
        for c, (name, s) in enumerate(cells):
            batch = range(c, last.size * copies, copies)
            if s == 0:
                edits.append(AttentionMask(sets[name], rows=(-1,), batch=batch))
            elif s != 1:
                edits.append(AttentionBias(math.log(s), sets[name], rows=(-1,), batch=batch))
        logits = last.run(edits, copies=copies)["logits"][:, -1].double().cpu()
        odds = (logits[:, asked.fields[0].token] - logits[:, foil]).reshape(last.size, copies).numpy()
        moved = odds - base[:, None]
        for c, (name, s) in enumerate(cells):
            some = bootstrap_mean(moved[:, c], seed=asked.seed) if last.size > 1 else None
            rows.append(
                {
                    "curve": DOSE,
                    "series": name,
                    "x": float(s),
                    "x_unit": "factor on the odds of the keys",
                    "value": float(moved[:, c].mean()),
                    "low": some.low if some is not None else None,
                    "high": some.high if some is not None else None,
                    "n": last.size,
                    "unit": "nats",
                }
            )
    floats = dict.fromkeys(("x", "value", "low", "high"), pl.Float64)
    texts = dict.fromkeys(("curve", "series", "x_unit", "unit"), pl.String)
    order = ["curve", "series", "x", "x_unit", "value", "low", "high", "n", "unit"]
    return pl.DataFrame(rows, schema={name: (floats | texts | {"n": pl.Int64})[name] for name in order})


def heads_frame(residue: MemtraceResidue, target: str, found: Interventions | None) -> pl.DataFrame:
    """The table ``heads``: direct attribution of every head, and the tests of those that were tested."""
    tests = {(t.layer, t.head): t for t in found.found.tests} if found is not None else {}
    random_effect = found.found.random_effect if found is not None else math.inf
    rows: list[dict[str, Any]] = []
    for r in residue.frames["head_scores"].filter(pl.col("score") == DIRECT).iter_rows(named=True):
        test = tests.get((r["layer"], r["head"]))
        rows.append(
            {
                "layer": r["layer"],
                "head": r["head"],
                "target": target,
                "dla": r["value"],
                "dla_low": r["low"],
                "dla_high": r["high"],
                "n": r["n"],
                "ablation": test.ablation if test else None,
                "ablation_low": bound(test.low) if test else None,
                "ablation_high": bound(test.high) if test else None,
                "control_ablation": random_effect if test and math.isfinite(random_effect) else None,
                "control_n": found.found.random_n if test and found else None,
                "p": test.p if test else None,
                "q": test.q if test else None,
                "specificity_p": test.specificity if test else None,
                "patch_recovered": test.recovered if test else None,
                "patch_control": test.recovered_control if test else None,
                "role": "promotes" if r["value"] >= 0 else "inhibits",
                "confirmed": test.confirmed if test else None,
            }
        )
    maybe = (
        *("dla_low", "dla_high", "ablation", "ablation_low", "ablation_high", "control_ablation", "p", "q"),
        *("specificity_p", "patch_recovered", "patch_control"),
    )
    overrides: dict[str, Any] = {**dict.fromkeys(maybe, pl.Float64), "control_n": pl.Int64, "confirmed": pl.Boolean}
    return pl.DataFrame(rows, schema_overrides=overrides)
