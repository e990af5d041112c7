"""Published statements about coherence and gaps in time, on the items of ``temporal-coherence``.

Texts are the unit throughout: n counts texts (items), resampled by genre and opening where a pattern is shared. All tests were written before any of these numbers was seen on
held-out items.
"""

from __future__ import annotations

import numpy as np
import polars as pl

from claims._common import Bench, Claim, compared, Measured
from symbolic_residue.prompts import build_prompt
from symbolic_residue.shells.temporal_inference._judge import break_of
from symbolic_residue.shells.temporal_inference._runs import TextRuns
from symbolic_residue.shells.temporal_inference._shift import coherence, places
from symbolic_residue.stats import bootstrap_mean, Estimate

LENGTHS = (60, 300)


def _null_texts(bench: Bench) -> list[tuple[object, object]]:
    """(item, residue) of the held-out texts in which nothing is planted."""
    _, pairs = bench.of("temporal-inference")
    return [(item, residue) for item, residue in pairs if item.kind == "null-text" and item.split == "held-out"]


def context_length(bench: Bench) -> Measured:
    """Coherence after dropping 15 tokens with a long context before, minus that with a short one: one number a text."""
    shell, _ = bench.of("temporal-inference")
    texts = [item.text for item, _ in _null_texts(bench)]  # type: ignore[attr-defined]
    differences = []
    for i, text in enumerate(texts):
        ids = build_prompt(shell.tokenizer, text).ids
        before: list[int] = []
        for k in range(1, len(texts)):  # other held-out texts in front, whose words are not this one's
            if len(before) >= max(LENGTHS) - LENGTHS[0]:
                break
            before += build_prompt(shell.tokenizer, texts[(i + 8 * k) % len(texts)] + "\n\n").ids
        found = []
        for whole in (ids, before[-(max(LENGTHS) - LENGTHS[0]) :] + ids):
            runs = TextRuns(shell.instrument, whole)
            cuts = places(len(whole), 15, shell.config)
            found.append(float(coherence(runs, cuts, [15], "forward", "tokens", [shell.config.window])[0].mean()))
        differences.append(found[1] - found[0])
    value = bootstrap_mean(differences, seed=0)
    said = f"coherence with {max(LENGTHS) - LENGTHS[0]} tokens more in front minus without {value.value:+.3f} [{value.low:+.3f}, {value.high:+.3f}] nats a token"
    return compared(value, below=0.0, numbers=f"{said} over {value.n} texts")


def sharp_near_thirty(bench: Bench) -> Measured:
    """Fall of coherence from 24 to 31 tokens minus the mean fall of the other steps of the grid, per token of distance: one number a text."""
    excess = []
    for _, residue in _null_texts(bench):
        frame = residue.frames["shifts"].filter(  # type: ignore[attr-defined]
            (pl.col("side") == "text") & (pl.col("mode") == "tokens") & (pl.col("direction") == "forward") & (pl.col("token") < 6)
        )
        mean = frame.group_by("distance").agg(pl.col("coherence").mean()).sort("distance")
        x, y = mean["distance"].to_numpy().astype(float), mean["coherence"].to_numpy()
        if 24 not in x or 31 not in x:
            continue
        slope = np.diff(y) / np.diff(x)
        at = int(np.flatnonzero(x == 24)[0])
        excess.append(float(slope[at] - np.delete(slope, at).mean()))
    if len(excess) < 6:
        return Measured("undecided", f"{len(excess)} texts are long enough, fewer than 6")
    value = bootstrap_mean(excess, seed=0)
    steps = [change for change in (break_of(residue, "text")[0] for _, residue in _null_texts(bench)) if change is not None]  # type: ignore[arg-type]
    there = sum(change.before == 24 for change in steps)
    numbers = (
        f"slope from 24 to 31 tokens minus the mean of the other slopes {value.value:+.4f} [{value.low:+.4f}, {value.high:+.4f}] nats a token per token of shift, "
        f"n = {value.n} texts; the best step of the curve stands there in {there} of {len(steps)}"
    )
    return compared(value, below=-0.02, otherwise=0.0, numbers=numbers)


def forward_against_backward(bench: Bench) -> Measured:
    """Coherence after 15 tokens forward minus after 15 backward: one number a text."""
    differences, by_genre = [], {}
    for item, residue in _null_texts(bench):
        frame = residue.frames["shifts"].filter(  # type: ignore[attr-defined]
            (pl.col("side") == "text") & (pl.col("mode") == "tokens") & (pl.col("distance") == 15) & (pl.col("token") < 6)
        )
        mean = dict(frame.group_by("direction").agg(pl.col("coherence").mean()).rows())
        differences.append(mean["forward"] - mean["backward"])
        by_genre.setdefault(item.genre, []).append(differences[-1])  # type: ignore[attr-defined]
    value: Estimate = bootstrap_mean(differences, seed=0)
    genres = ", ".join(f"{genre} {np.mean(v):+.2f}" for genre, v in by_genre.items())
    numbers = f"coherence forward − backward {value.value:+.3f} [{value.low:+.3f}, {value.high:+.3f}] nats a token over {value.n} texts ({genres})"
    return compared(value, above=0.0, numbers=numbers)


CLAIMS = [
    Claim(
        "temporal-context-length",
        "Temporal stability falls with the length of the context.",
        "On the 24 held-out null texts, coherence after a shift of 15 tokens forward is measured with the text alone and with 240 tokens of other null texts in front. n counts texts. "
        "Supported if the whole 95 % interval of (long − alone) is below 0, contradicted if it is above 0.",
        context_length,
    ),
    Claim(
        "temporal-sharp-at-30",
        "Coherence drops sharply near a shift of 30 tokens.",
        "On the held-out null texts, the slope of coherence between shifts of 24 and 31 tokens forward minus the mean slope of the other steps of the grid (2 to 38 tokens). n counts texts. "
        "Supported if the whole 95 % interval is below −0.02 nats a token per token of shift, contradicted if it is above 0.",
        sharp_near_thirty,
    ),
    Claim(
        "temporal-forward-backward",
        "Shifts forward hurt less than shifts backward.",
        "On the 24 held-out null texts, coherence after a shift of 15 tokens forward (dropped) minus after 15 backward (read twice). n counts texts. Supported if the whole 95 % interval is "
        "above 0, contradicted if it is below 0.",
        forward_against_backward,
    ),
]
