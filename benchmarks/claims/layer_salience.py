"""Published statements about what models look at, on the items of ``attention-salience`` and on the package's ordinary texts.

n counts texts, never heads, layers or tokens. All three tests were written before any of these numbers was seen.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import polars as pl
import torch

from claims._common import Bench, Claim, Measured
from symbolic_residue.instrument import AttentionRead, Instrument
from symbolic_residue.prompts import build_prompt
from symbolic_residue.shells.layer_salience._cancel import cancel, effects, exchanged
from symbolic_residue.shells.layer_salience._references import reference_texts
from symbolic_residue.stats import bootstrap_mean, cluster_bootstrap, Estimate, wilson

SHELL = "layer-salience"
LENGTH, FIRST, FAR = 160, 64, 32
ABSOLUTE = 0.01


def within(value: Estimate, low: float, high: float, numbers: str) -> Measured:
    """Supported where the whole interval is between both bounds, contradicted where it is wholly outside them."""
    if value.above(low) and value.below(high):
        return Measured("supported", numbers)
    return Measured("contradicted" if value.below(low) or value.above(high) else "undecided", numbers)


def far_share(weights: torch.Tensor) -> np.ndarray:
    """``[layer, head]``: of the attention of rows from ``FIRST`` on, without sink and own key, the part that goes more than ``FAR`` tokens back.

    Args:
        weights: ``[layer, head, row, key]`` of one text, all rows.
    """
    n = weights.shape[-1]
    back = torch.arange(n)[:, None] - torch.arange(n)[None]
    counted = (back > 0) & (torch.arange(n)[None] > 0)
    rows = weights[:, :, FIRST:].double()
    total = (rows * counted[FIRST:]).sum((-1, -2))
    far = (rows * (counted & (back > FAR))[FIRST:]).sum((-1, -2))
    return (far / total.clamp_min(1e-12)).numpy()


def long_range(bench: Bench) -> Measured:
    """Share of heads that look mostly far back, one number a text."""
    instrument = Instrument(bench.loaded)
    shares, even = [], []
    read = AttentionRead(stats=("self",), rows=tuple(range(LENGTH)), weights=True)
    for text in reference_texts(LENGTH):
        ids = build_prompt(bench.loaded.tokenizer, text).ids[:LENGTH]
        table = instrument.run(torch.tensor([ids]), attention=read, keep_logits=1).attention
        assert table is not None
        shares.append(float((far_share(table["weights"][:, 0]) > 0.5).mean()))
        flat = torch.ones(LENGTH, LENGTH).tril()
        even.append(float(far_share((flat / flat.sum(1, keepdim=True))[None, None])[0, 0]))
    value = bootstrap_mean(shares, seed=0)
    numbers = (
        f"{value.value:.3f} [{value.low:.3f}, {value.high:.3f}] of the heads over {len(shares)} texts of {LENGTH} tokens; "
        f"a row that looks everywhere alike sends {np.mean(even):.2f} of its attention that far"
    )
    return within(value, 0.10, 0.20, numbers)


def negligible(bench: Bench) -> Measured:
    """Share of tokens that are neglected in the second half of the layers, one number an item."""
    shell, pairs = bench.of(SHELL)
    shares: list[float] = []
    before: list[float] = []
    frames: list[str] = []
    for item, residue in pairs:
        if item.split != "held-out":
            continue
        cells = residue.frames["cells"].filter(pl.col("counted")).with_columns(under=pl.col("relative") < residue.config.threshold)
        middle = sorted(cells["layer"].unique())[cells["layer"].n_unique() // 2]
        for later, kept in ((True, shares), (False, before)):
            half = cells.filter((pl.col("layer") >= middle) == later)
            tokens = half.group_by("position").agg(pl.col("under").mean())
            kept.append(float((tokens["under"] >= 0.5).mean()))  # type: ignore[arg-type]
        frames.append(item.frame)
    value = cluster_bootstrap(shares, frames, seed=0)
    numbers = (
        f"{value.value:.2f} [{value.low:.2f}, {value.high:.2f}] of the tokens over {len(shares)} texts (resampled by pattern), "
        f"in the first half of the layers {np.mean(before):.2f}; threshold {shell.config.threshold:g} of the uniform share"
    )
    return within(value, 0.50, 0.70, numbers)


def unchanged(bench: Bench) -> Measured:
    """Whether the top token stays when every cell with less than 0.01 attention is cancelled, one answer an item."""
    shell, pairs = bench.of(SHELL)
    same, control, kls, none = 0, 0, [], 0
    rng = np.random.default_rng(0)
    tested = 0
    for item, residue in pairs:
        prompt = build_prompt(bench.loaded.tokenizer, item.text)
        salience: Any = shell.sense_operation(item.text)
        at = list(salience.counted)
        cells = np.zeros(salience.received.shape, bool)
        cells[:, at] = salience.received[:, at] < ABSOLUTE
        if not cells.any():
            none += 1
            continue
        tested += 1
        found = cancel(shell.instrument, prompt, [np.zeros_like(cells), cells, *exchanged(cells, at, rng, 1)])
        top = found.argmax(-1).tolist()
        same += top[1] == top[0]
        control += top[2] == top[0]
        kls.append(float(effects(found[0], found[1:2], residue.asked.answer)[0][0]))
    if not tested:
        return Measured("undecided", f"no cell of {none} texts is under {ABSOLUTE}")
    value = wilson(same, tested)
    numbers = (
        f"{same}/{tested} = {value.value:.2f} [{value.low:.2f}, {value.high:.2f}] keep their top token, {control}/{tested} with as many random cells; "
        f"median KL {np.median(kls):.3f} nats; {none} texts have no such cell"
    )
    if value.above(0.95):
        return Measured("supported", numbers)
    return Measured("contradicted" if value.below(0.95) else "undecided", numbers)


CLAIMS = [
    Claim(
        "salience-long-range",
        "About 15 % of the heads are long-range.",
        f"The package's eight ordinary texts, cut to {LENGTH} tokens. Of a head's attention in rows from {FIRST} on, without the sink and the row's own key, the part that goes more than {FAR} tokens back; "
        "a head is long-range in a text if that is more than half. Number: share of long-range heads, n = texts. Supported if the whole interval is between 0.10 and 0.20, contradicted if it is wholly outside.",
        long_range,
    ),
    Claim(
        "salience-negligible",
        "About 60 % of the tokens are negligible after the middle layers.",
        "Held-out items. A token is negligible if it receives less than the shell's threshold (half of the uniform share) in at least half of the layers of the second half. Number: share of counted tokens "
        "(not the sink, not the last), n = texts, resampled by pattern. Supported if the whole interval is between 0.50 and 0.70, contradicted if it is wholly outside.",
        negligible,
    ),
    Claim(
        "salience-cancel",
        f"Cancelling tokens with less than {ABSOLUTE} attention leaves the output unchanged in 95 % of cases.",
        f"All items of both splits (no criterion enters). Every cell (layer, token) whose mean attention from later rows is under {ABSOLUTE}, absolute, is cancelled at once; unchanged means that the top token is the "
        "same. Texts without such a cell take no part. Number: share of texts unchanged, Wilson. Supported above 0.95, contradicted below. Beside it: the same with as many random cells.",
        unchanged,
    ),
]
