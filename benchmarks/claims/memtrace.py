"""Published statements about how memory falls with distance, on the items of ``memory-degradation``.

Facts are the unit throughout: n counts facts (items), resampled by the facts' sentence pattern. Both tests were written before any of these numbers was seen. That the
text without padding is left out comes from three calibration items on which memory grew from none to 56 tokens of padding.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import polars as pl

from claims._common import Bench, Claim, compared, Measured
from symbolic_residue.shells import MemtraceConfig, MemtraceShell
from symbolic_residue.shells.memtrace import fit_decay
from symbolic_residue.stats import cluster_bootstrap, Estimate

DISTANCES = (0, 1, 4, 16, 64, 256)
DRAWS = 3
TYPES = ("name", "number", "word")


_KEPT: dict[int, list[tuple[Any, pl.DataFrame]]] = {}


def curves(bench: Bench) -> list[tuple[Any, pl.DataFrame]]:
    """Memory against distance of every held-out one-value item whose padding stands between fact and question (21 facts); measured once."""
    if id(bench.loaded) not in _KEPT:
        config = MemtraceConfig.make(distances=DISTANCES, draws=DRAWS, top_heads=0)
        shell = MemtraceShell(loaded=bench.loaded, config=config)
        items = [i for i in shell.items() if i.split == "held-out" and i.kind in ("repetitive", "natural", "adversarial")]
        frames = [shell.run_item(item).frames["curves"] for item in items]
        _KEPT[id(bench.loaded)] = [
            (item, frame.filter((pl.col("curve") == "memory") & (pl.col("series") == item.padding)).sort("x"))
            for item, frame in zip(items, frames, strict=True)
        ]
    return _KEPT[id(bench.loaded)]


def power_law(bench: Bench) -> Measured:
    """AIC of the exponential minus that of the power law, one number a fact, on its mean memory at each distance from 1 on."""
    differences, flat, frames = [], 0, []
    found = curves(bench)
    for item, frame in found:
        frame = frame.filter(pl.col("x") >= 1)  # without padding the text is another kind of text
        rows = {r["model"]: r for r in fit_decay(frame["x"].to_numpy(), frame["value"].to_numpy(), [-1] * len(frame), seed=0)}
        if rows["constant"]["difference"] == 0:
            flat += 1  # what does not fall follows neither law
            continue
        differences.append(float(rows["exponential"]["aic"]) - float(rows["power law"]["aic"]))
        frames.append(item.frame)
    said = f"{flat} of {len(found)} facts do not fall (a constant has the smallest AIC) and take no part"
    if len(differences) < 6:
        return Measured("undecided", f"{said}; {len(differences)} are left, fewer than 6")
    value = cluster_bootstrap(differences, frames, seed=0)
    wins = float(np.mean(np.array(differences) > 0))
    numbers = (
        f"AIC(exponential) − AIC(power law) = {value.value:+.2f} [{value.low:+.2f}, {value.high:+.2f}] over {len(differences)} facts (resampled by "
        f"pattern), above 0 in {wins:.2f} of them; {said}"
    )
    return compared(value, above=2.0, otherwise=-2.0, numbers=numbers)


def types(bench: Bench) -> Measured:
    """Retention by the type of the answer: memory at the longest distance over the largest memory up to there, cut to [0, 1]."""
    kept: dict[str, list[float]] = {t: [] for t in TYPES}
    frames: dict[str, list[str]] = {t: [] for t in TYPES}
    for item, frame in curves(bench):
        memory = frame["value"].to_numpy()
        if memory.max() <= 1.0:  # one nat, as the shell's own floor: nothing to retain
            continue
        kept[item.token_type].append(float(np.clip(memory[-1] / memory.max(), 0.0, 1.0)))
        frames[item.token_type].append(item.frame)
    said = ", ".join(f"{t} {np.mean(v):.2f} (n = {len(v)})" for t, v in kept.items() if v)
    if min(map(len, kept.values())) < 3:
        return Measured("undecided", f"too few facts were remembered at all: {said}")
    rng = np.random.default_rng(0)

    def gap(a: str, b: str) -> Estimate:
        """Difference of mean retention; facts are resampled within each type (two patterns a type are too few to resample patterns)."""
        x, y = np.array(kept[a]), np.array(kept[b])
        drawn = rng.choice(x, (4000, len(x))).mean(1) - rng.choice(y, (4000, len(y))).mean(1)
        low, high = np.quantile(drawn, (0.0125, 0.9875))  # two comparisons share the 5 %
        return Estimate(
            float(x.mean() - y.mean()),
            float(low),
            float(high),
            len(x) + len(y),
            level=0.975,
            method="bootstrap over facts, two samples",
        )

    first, second = gap("name", "word"), gap("word", "number")
    numbers = (
        f"retention {said}; name − word {first.value:+.2f} [{first.low:+.2f}, {first.high:+.2f}], word − number {second.value:+.2f} "
        f"[{second.low:+.2f}, {second.high:+.2f}] (97.5 % intervals over facts)"
    )
    outcomes = [compared(e, above=0.0, numbers=numbers).outcome for e in (first, second)]
    if "contradicted" in outcomes:
        return Measured("contradicted", numbers)
    return Measured("supported" if outcomes == ["supported"] * 2 else "undecided", numbers)


CLAIMS = [
    Claim(
        "memtrace-power-law",
        "Memory retention falls with distance by a power law rather than exponentially.",
        f"Held-out facts of one value, three kinds of padding, distances {', '.join(map(str, DISTANCES[1:]))} tokens (that without padding is left out: another kind of text), mean memory over {DRAWS} draws: "
        "ln P(answer | fact) − ln P(answer | another fact). Both laws and a constant are fitted by least squares to each fact; facts for which the constant has the smallest AIC do not fall and take no part. "
        "Number: AIC(exponential) − AIC(power law), mean over facts, resampled by pattern. Supported above +2, contradicted below −2; undecided with fewer than six falling facts.",
        power_law,
    ),
    Claim(
        "memtrace-types",
        "Names are retained longer than arbitrary facts, and numbers are lost first.",
        f"The same facts: names, words (colours, foods and materials, as the arbitrary facts) and single digits. Retention: memory at {DISTANCES[-1]} tokens over the largest memory at any distance, cut to [0, 1], for facts "
        "worth more than one nat somewhere. Supported if both name − word and word − number are above 0 by their whole 97.5 % intervals over facts; contradicted if either is below 0; undecided with fewer than "
        "three facts of a type.",
        types,
    ),
]
