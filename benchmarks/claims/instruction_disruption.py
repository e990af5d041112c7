"""Published statements about two instructions at once.

"Failure" is behavioural: more than half of the answers to the pair do not follow both instructions. Items on which either instruction alone is not followed take no part.
A contradictory pair fails by logic, whatever its angle; so the numbers for items that one answer can follow (tension and null) stand beside.
"""

from __future__ import annotations

import math
from typing import Any

import polars as pl
import torch
from rich.progress import track

from claims._common import Bench, Claim, Measured
from claims._rule import beyond, Bound, Rule
from claims.material import alike, SAME
from symbolic_residue.shells import conflict_predicts_failure, InstructionDisruptionConfig, InstructionDisruptionShell
from symbolic_residue.shells.instruction_disruption import followed_alone, share_over_tasks
from symbolic_residue.stats import bootstrap_mean, Estimate, wilson

SHELL = "instruction-disruption"
THRESHOLD = 0.3
TENSE = 3
"""Every so-manieth added pair has examples that ignore the other instruction."""


def _judged(residue: Any, followed: float) -> tuple[float, bool] | None:
    """(geometric conflict, failed), None where an instruction alone is not followed."""
    answers = residue.frames["instruction_answers"]
    if any(e.value < followed for e in followed_alone(answers).values()):
        return None
    between = residue.frames["instruction_pairs"].filter((pl.col("one") == "a") & (pl.col("two") == "b"))
    both = answers.filter(pl.col("condition") == "conflict")
    return float(between["conflict"][0]), share_over_tasks(both, ~(pl.col("follows_a") & pl.col("follows_x"))).value > 0.5


def added_pairs(bench: Bench) -> list[tuple[str, Any]]:
    """(name, residue) of compatible pairs of low conflict, as many as make the share of contradictory pairs the same on both sides of the threshold."""

    def measure() -> list[tuple[str, Any]]:
        _, pairs = bench.of(SHELL)
        shell = InstructionDisruptionShell(loaded=bench.loaded, config=InstructionDisruptionConfig.quick(top_heads=0))
        known = [
            (
                item.level == 2,
                float(r.frames["instruction_pairs"].filter((pl.col("one") == "a") & (pl.col("two") == "b"))["conflict"][0]),
            )
            for item, r in pairs
        ]
        above = [contradictory for contradictory, conflict in known if conflict > THRESHOLD]
        below = [contradictory for contradictory, conflict in known if conflict <= THRESHOLD]
        wanted = max(0, round(sum(below) * len(above) / sum(above)) - len(below))

        def conflict(texts: list[str]) -> torch.Tensor:
            vectors = torch.stack([shell.distill_operation(text) for text in texts]).double()
            return 1 - torch.nn.functional.cosine_similarity(vectors[:, None], vectors[None], dim=-1)

        chosen = alike(conflict, [frozenset((item.a.text, item.b.text)) for item, _ in pairs], wanted, THRESHOLD)
        return [
            (
                f"{a.kind}{a.value and ' ' + a.value} + {b.kind}{b.value and ' ' + b.value}",
                shell.run(instructions=[a, b], joint=False if n % TENSE == 2 else None, seed=0),
            )
            for n, (a, b, _) in enumerate(track(chosen, "pairs of low conflict"))
        ]

    return bench.once("pairs of low conflict", measure)


def rate_difference(above: list[bool], below: list[bool]) -> Estimate:
    """Failure rate above the threshold minus below it, with Newcombe's interval (from Wilson's of each rate), in [−1, 1]."""
    if not above or not below:
        return Estimate(math.nan, math.nan, math.nan, len(above) + len(below), method="none: no item on one side")
    p, q = wilson(sum(above), len(above)), wilson(sum(below), len(below))
    value = p.value - q.value
    low = value - math.hypot(p.value - p.low, q.high - q.value)
    high = value + math.hypot(p.high - p.value, q.value - q.low)
    return Estimate(value, max(-1.0, low), min(1.0, high), len(above) + len(below), method="Newcombe")


def _numbers(rows: list[list[Any]], name: str) -> tuple[dict[str, Estimate], str]:
    above = [bool(row[4]) for row in rows if row[3] > THRESHOLD]
    below = [bool(row[4]) for row in rows if row[3] <= THRESHOLD]
    area = conflict_predicts_failure([row[3] for row in rows], [bool(row[4]) for row in rows])
    said = f"{sum(above)} of {len(above)} fail above {THRESHOLD}, {sum(below)} of {len(below)} below"
    return {f"difference{name}": rate_difference(above, below), f"AUC{name}": area}, said


def threshold(bench: Bench) -> Measured:
    """Does a conflict above .3 come with failure?"""
    shell, pairs = bench.of(SHELL)
    followed = shell.config.criteria.followed
    rows: list[list[Any]] = []
    weak = 0
    items = [(item.id, item.split, item.level, r) for item, r in pairs] + [(name, "added", 0, r) for name, r in added_pairs(bench)]
    for name, split, level, residue in items:
        found = _judged(residue, followed)
        if found is None:
            weak += 1
            continue
        rows.append([name, split, level, round(found[0], 5), int(found[1])])
    return conflict_numbers(rows, weak)


def conflict_numbers(rows: list[list[Any]], weak: int) -> Measured:
    """From the rows of judged items (name, split or ``added``, level, conflict, failed) to the numbers."""
    numbers: dict[str, Estimate] = {}
    counts: dict[str, float | int | str] = {"items": len(rows), "weak": weak, "added": sum(row[1] == "added" for row in rows)}
    counts["kinds"] = len({" + ".join(sorted(p.split()[0] for p in row[0].split(" + "))) for row in rows if row[1] == "added"})
    for key, name, some in (
        ("all", "", rows),
        ("compatible", " without contradictions", [row for row in rows if row[2] < 2]),
        ("own", " of the benchmark", [row for row in rows if row[1] != "added"]),
        ("first", " held out", [row for row in rows if row[1] == "held-out"]),
    ):
        found, counts[key] = _numbers(some, name)
        numbers |= found
    return Measured(numbers, counts, rows)


def later_wins(bench: Bench) -> Measured:
    """Does the instruction that comes later win?"""
    shell, pairs = bench.of(SHELL)
    units: list[list[Any]] = []
    for item, residue in pairs:
        if item.split != "held-out" or item.level != 2 or _judged(residue, shell.config.criteria.followed) is None:
            continue
        both = residue.frames["instruction_answers"].filter(pl.col("condition") == "conflict")
        one = both.filter(pl.col("follows_a") != pl.col("follows_x"))
        if len(one) >= 6:
            later = pl.when(pl.col("order") == "ab").then(pl.col("follows_x")).otherwise(pl.col("follows_a"))
            units.append([item.id, len(one), float(one.select(later.cast(pl.Float64).mean()).item())])
    return Measured({"share": bootstrap_mean([u[2] for u in units], seed=0)} if units else {}, {"items": len(units)}, units)


CLAIMS = [
    Claim(
        "instruction-conflict-threshold",
        "A cosine conflict above 0.3 between two instructions triggers failure.",
        "Items of instruction-conflict (both splits; no verdict's criterion enters) on which each instruction alone is followed, and compatible pairs of different demands (kind or value; of kinds that leave a mark, since prohibitions are followed untold) whose conflict is at most "
        f"{THRESHOLD}, least first, at most {SAME} of the same two kinds, as many as make contradictory pairs as frequent below {THRESHOLD} as above (every third with examples that ignore the other instruction); chosen by their "
        "geometry before anything was asked. n counts items. Conflict: 1 − cosine of the two centred directions. Failure: more than half of the answers to the pair do not follow both. Numbers: difference = failure rate "
        f"above {THRESHOLD} minus below (Newcombe's interval), and the AUC of the conflict for failure (DeLong). The same numbers without the contradictory items, and of the held-out items alone, stand beside and do not decide.",
        Rule(
            (Bound("difference", "above", 0.0), Bound("AUC", "above", 0.5)),
            (Bound("difference", "below", 0.1), Bound("AUC", "below", 0.5)),
        ),
        "{all}: difference {difference:+.2f}, AUC {AUC:.2f} over {items} items ({added} of them added, of {kinds} combinations of kinds; {weak} not judged). Without contradictions: {compatible}: difference {difference without "
        "contradictions:+.2f}, AUC {AUC without contradictions:.2f}. Without the added pairs: {own}: difference {difference of the benchmark:+.2f}, AUC {AUC of the benchmark:.2f}. Held out alone: {first}: difference {difference held out:+.2f}, AUC {AUC held out:.2f}",
        threshold,
        "The first run had the held-out items alone, and was undecided: difference −0.18 [−0.46, +0.22], AUC 0.50 [0.33, 0.67] over 45 items, six of them below the limit. That was known when the "
        "calibration items and pairs of low conflict were added, and no failure of theirs; measure and limits are as they were before the first run.",
        "The verdict hangs on the added pairs, and nearly all compatible instructions that point alike are of two combinations of kinds (two words to mention; a first and a last word), which this model follows badly together. "
        "Without them the statement is undecided, as in the first run. So: a small angle is no sign that two instructions go together; that a large one protects does not follow.",
    ),
    Claim(
        "instruction-later-wins",
        "Of two contradictory instructions the later one wins.",
        "Held-out contradictory items on which each instruction alone is followed, and at least six answers follow exactly one. Number: share of these answers that follow the later one, mean over items, bootstrap over items.",
        beyond("share", 0.5, least=6),
        "the later instruction wins in {share:.2f} of the answers that follow exactly one, mean over {items} items (0.5: neither order matters)",
        later_wins,
    ),
]
