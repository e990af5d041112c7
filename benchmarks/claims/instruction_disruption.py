"""Published statements about two instructions at once, as tests stated before they are run.

"Failure" is behavioural: more than half of the answers to the pair do not follow both instructions. Items on which either instruction alone is not followed take no part.
A contradictory pair fails by logic, whatever its angle; so each test is made on all judged held-out items, and the numbers for items that one answer can follow
(tension and null) stand beside.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import polars as pl

from claims._common import Bench, Claim, Measured
from symbolic_residue.shells import conflict_predicts_failure
from symbolic_residue.shells.instruction_disruption._judge import followed_alone, share_over_tasks
from symbolic_residue.stats import Estimate, wilson

SHELL = "instruction-disruption"
THRESHOLD = 0.3
RESAMPLES = 4000


def judged_items(bench: Bench) -> list[tuple[Any, float, bool]]:
    """(item, geometric conflict, failed) of every judged held-out item."""
    shell, pairs = bench.of(SHELL)
    found = []
    for item, residue in pairs:
        if item.split != "held-out":
            continue
        answers, criteria = residue.frames["instruction_answers"], shell.config.criteria
        if any(e.value < criteria.followed for e in followed_alone(answers).values()):
            continue
        between = residue.frames["instruction_pairs"].filter((pl.col("one") == "a") & (pl.col("two") == "b"))
        both = answers.filter(pl.col("condition") == "conflict")
        failed = share_over_tasks(both, ~(pl.col("follows_a") & pl.col("follows_x"))).value > 0.5
        found.append((item, float(between["conflict"][0]), bool(failed)))
    return found


def rate_difference(above: list[bool], below: list[bool], seed: int = 0) -> Estimate:
    """Failure rate above the threshold minus below it, with Newcombe's interval (from Wilson's of each rate), in [−1, 1]."""
    if not above or not below:
        return Estimate(math.nan, math.nan, math.nan, len(above) + len(below), method="none: no item on one side")
    p, q = wilson(sum(above), len(above)), wilson(sum(below), len(below))
    value = p.value - q.value
    low = value - math.hypot(p.value - p.low, q.high - q.value)
    high = value + math.hypot(p.high - p.value, q.value - q.low)
    return Estimate(value, max(-1.0, low), min(1.0, high), len(above) + len(below), method="Newcombe")


def _said(rows: list[tuple[Any, float, bool]]) -> tuple[Estimate, Estimate, str]:
    above = [failed for _, conflict, failed in rows if conflict > THRESHOLD]
    below = [failed for _, conflict, failed in rows if conflict <= THRESHOLD]
    difference = rate_difference(above, below)
    area = conflict_predicts_failure([c for _, c, _ in rows], [f for *_, f in rows])
    words = f"failures above {THRESHOLD}: {sum(above)} of {len(above)}, below: {sum(below)} of {len(below)}"
    if difference.has_interval:
        words += f", difference {difference.value:+.2f} [{difference.low:+.2f}, {difference.high:+.2f}]"
    words += (
        f"; AUC {area.value:.2f} [{area.low:.2f}, {area.high:.2f}] over {area.n} items"
        if area.has_interval
        else f"; no AUC ({area.method})"
    )
    return difference, area, words


def threshold(bench: Bench) -> Measured:
    """Does a conflict above .3 come with failure?"""
    rows = judged_items(bench)
    difference, area, words = _said(rows)
    _, _, beside = _said([row for row in rows if row[0].level < 2])
    numbers = f"All judged held-out items: {words}. Without the contradictory ones: {beside}."
    if not difference.has_interval or not area.has_interval:
        return Measured("undecided", numbers)
    if difference.above(0.0) and area.above(0.5):
        return Measured("supported", numbers)
    if difference.below(0.1) or area.below(0.5):
        return Measured("contradicted", numbers)
    return Measured("undecided", numbers)


def later_wins(bench: Bench) -> Measured:
    """Does the instruction that comes later win?"""
    _, pairs = bench.of(SHELL)
    judged = {item.id for item, *_ in judged_items(bench) if item.level == 2}
    shares = []
    for item, residue in pairs:
        if item.id not in judged:
            continue
        both = residue.frames["instruction_answers"].filter(pl.col("condition") == "conflict")
        one = both.filter(pl.col("follows_a") != pl.col("follows_x"))
        if len(one) >= 6:
            later = pl.when(pl.col("order") == "ab").then(pl.col("follows_x")).otherwise(pl.col("follows_a"))
            shares.append(float(one.select(later.cast(pl.Float64).mean()).item()))
    if len(shares) < 6:
        return Measured("undecided", f"{len(shares)} contradictory items are judged, and six are needed.")
    x = np.array(shares)
    drawn = np.random.default_rng(0).choice(x, (RESAMPLES, len(x))).mean(1)
    low, high = (float(q) for q in np.quantile(drawn, (0.025, 0.975)))
    value = Estimate(float(x.mean()), min(low, float(x.mean())), max(high, float(x.mean())), len(x), method="bootstrap")
    numbers = f"The later instruction wins in {value.value:.2f} [{low:.2f}, {high:.2f}] of the answers that follow exactly one, mean over {value.n} items (0.5: neither order matters)."
    return Measured("supported" if value.above(0.5) else "contradicted" if value.below(0.5) else "undecided", numbers)


CLAIMS = [
    Claim(
        "instruction-conflict-threshold",
        "A cosine conflict above 0.3 between two instructions triggers failure.",
        f"Held-out items of instruction-conflict on which each instruction alone is followed (n counts items). Conflict: 1 − cosine of the two centred directions. Failure: more than half of the answers to the pair do not "
        f"follow both. Numbers: failure rate above {THRESHOLD} minus below (Newcombe's interval), and the AUC of the conflict for failure (DeLong). Supported if the difference is above 0 and the AUC above .5, each by its whole "
        "interval; contradicted if the difference is below .1 by its whole interval or the AUC below .5 by its whole interval. The same numbers without the contradictory items stand beside and do not decide.",
        threshold,
    ),
    Claim(
        "instruction-later-wins",
        "Of two contradictory instructions the later one wins.",
        "Held-out contradictory items on which each instruction alone is followed, and at least six answers follow exactly one. Number: share of these answers that follow the later one, mean over items, bootstrap over items. "
        "Supported above one half by the whole interval, contradicted below; undecided with fewer than six items.",
        later_wins,
    ),
]
