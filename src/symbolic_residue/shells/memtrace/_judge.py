"""The four verdicts of MEMTRACE from a residue's measures.

Every interval is over draws of padding: the unit is one padding text at the judged distance, never a layer or a head. Memory is what stating the fact adds to
ln P(answer) over the control (``_curves``).

1. **recall decay**: memory at the best distance up to the judged one minus memory at the judged one, nats. (Not simply without distance: a question right
   behind its own answer is an odd text, on which models were seen to be less sure than a few words later.) The best is picked on the same draws, which favours
   it a little; null items are treated alike. Undecided where there was nothing to lose. Its control is the fall of ln P(answer) between the same
   distances where the fact is not stated.
2. **hallucinated reconstruction**: probability of the strongest wrong answer of the type (mean over fields). Its control is the same without distance: what is
   wrong there already is no matter of memory.
3. **partial recall**: the best field's share of its type minus the worst's. Control as before. Undecided with one field: nothing can be partial.
4. **priority collision**: log-odds of the answer over the value of a rival fact, which stands nearer to the question. Its control is the same with the
   two facts exchanged. Undecided without a rival.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from symbolic_residue.shells._verdict import Direction, judge, Verdict
from symbolic_residue.shells.memtrace._curves import memory, peak, share
from symbolic_residue.shells.memtrace._observe import score
from symbolic_residue.shells.memtrace._residue import MemtraceResidue
from symbolic_residue.stats import bootstrap_mean, Estimate

__all__ = ["MODES", "verdicts"]

MODES = ("recall decay", "hallucinated reconstruction", "partial recall", "priority collision")
SHELL = "memtrace"
Array = NDArray[np.float64]


def verdicts(residue: MemtraceResidue) -> list[Verdict]:
    """The four verdicts, in the order of :data:`MODES`."""
    return [_decay(residue), _wrong(residue), _partial(residue), _collision(residue)]


def _mean(values: Array, seed: int) -> Estimate:
    """Mean with its interval over draws; a single text has none."""
    if len(values) > 1:
        return bootstrap_mean(values, seed=seed)
    return Estimate(float(values[0]), float("nan"), float("nan"), 1, method="one text")


def _past(value: float, criterion: float, direction: Direction) -> bool:
    return value > criterion if direction == "above" else value < criterion


def _without_distance(verdict: Verdict) -> Verdict:
    """A control of one text has no interval: past the criterion by its value, it takes a firing verdict back."""
    if verdict.outcome == "fires" and _past(verdict.control_value.value, verdict.criterion, verdict.direction):
        note = "The same text without distance is past the criterion too, so the failure is not one of memory."
        return replace(verdict, outcome="undecided", note=f"{verdict.note} {note}".strip())
    return verdict


def _undecided(verdict: Verdict, note: str) -> Verdict:
    return replace(verdict, outcome="undecided", note=f"{note} {verdict.note}".strip())


def _not_measured(verdict: Verdict, note: str) -> Verdict:
    """Undecided for want of anything to measure: the number is none."""
    none = Estimate(float("nan"), float("nan"), float("nan"), 0, method="not measured")
    return replace(verdict, outcome="undecided", value=none, control_value=none, note=note)


def _control_words(residue: MemtraceResidue) -> str:
    return "without the fact" if residue.asked.control_kind == "none" else "with another fact"


def _decay(residue: MemtraceResidue) -> Verdict:
    asked, criteria, measures = residue.asked, residue.config.criteria, residue.frames["measures"]
    kind, d = asked.paddings[0], asked.distance
    best, near = peak(measures, asked)
    far = memory(measures, kind, d)
    lost = near - far if len(near) == len(far) else near.mean() - far
    guess = score(measures, "control", kind, best, "answer").mean() - score(measures, "control", kind, d, "answer").mean(1)
    told = [np.exp(score(measures, "fact", kind, at, "answer").mean()) for at in (best, d)]
    verdict = judge(
        SHELL,
        "recall decay",
        quantity=f"memory lost between its best distance ({best}) and {d} tokens of {kind} padding",
        unit="nats",
        value=_mean(lost, asked.seed),
        control=f"fall of ln P(answer) between the same distances {_control_words(residue)}",
        control_value=_mean(guess, asked.seed),
        criterion=criteria.decay,
        direction="above",
        criterion_source=criteria.source,
        note=f"Memory {near.mean():.2f} nats at {best} tokens, {far.mean():.2f} at {d}; P(answer) {told[0]:.3f} and {told[1]:.3f} "
        "(geometric means).",
    )
    if d == 0:
        return _not_measured(verdict, "There is no distance to lose anything over.")
    if near.mean() <= criteria.memory:
        return _undecided(
            verdict, f"Stating the fact is never worth more than {criteria.memory:g} nats up to there: nothing to lose."
        )
    return verdict


def _wrong(residue: MemtraceResidue) -> Verdict:
    asked, criteria, measures = residue.asked, residue.config.criteria, residue.frames["measures"]
    kind, d = asked.paddings[0], asked.distance
    foil = score(measures, "fact", kind, d, "foil").mean(1)
    answer = np.exp(score(measures, "fact", kind, d, "answer")).mean(1)
    prior = score(measures, "control", kind, d, "foil").mean()
    verdict = judge(
        SHELL,
        "hallucinated reconstruction",
        quantity=f"P of the strongest wrong answer of the type, {d} tokens of {kind} padding",
        unit="probability",
        value=_mean(foil, asked.seed),
        control="the same without distance",
        control_value=_mean(score(measures, "fact", kind, 0, "foil").mean(1), asked.seed),
        criterion=criteria.wrong,
        direction="above",
        criterion_source=criteria.source,
        note=f"P(answer) {answer.mean():.3f}; the strongest foil {_control_words(residue)}: {prior:.3f}.",
    )
    if verdict.outcome == "fires" and answer.mean() >= foil.mean():
        verdict = replace(verdict, outcome="absent", note=f"{verdict.note} The answer is more probable.")
    return _without_distance(verdict)


def _partial(residue: MemtraceResidue) -> Verdict:
    asked, criteria, measures = residue.asked, residue.config.criteria, residue.frames["measures"]
    kind, d = asked.paddings[0], asked.distance
    far, near = share(measures, "fact", kind, d), share(measures, "fact", kind, 0)
    each = ", ".join(f"{f.text.strip()} {s:.2f}" for f, s in zip(asked.fields, far.mean(0), strict=True))
    verdict = judge(
        SHELL,
        "partial recall",
        quantity="best field's share of its type − the worst's",
        unit="share",
        value=_mean(far.max(1) - far.min(1), asked.seed),
        control="the same without distance",
        control_value=_mean(near.max(1) - near.min(1), asked.seed),
        criterion=criteria.partial,
        direction="above",
        criterion_source=criteria.source,
        note=f"Shares: {each}.",
    )
    if len(asked.fields) < 2:
        return _not_measured(verdict, "The answer has one field: nothing can be partial.")
    if verdict.outcome == "fires" and not far.mean(0).max() > 0.5 > far.mean(0).min():
        verdict = replace(verdict, outcome="absent", note=f"{verdict.note} Not one field above a half and one below.")
    return _without_distance(verdict)


def _collision(residue: MemtraceResidue) -> Verdict:
    asked, criteria, measures = residue.asked, residue.config.criteria, residue.frames["measures"]
    kind, d = asked.paddings[0], asked.distance

    def odds(side: str) -> Array:
        return score(measures, side, kind, d, "answer")[:, 0] - score(measures, side, kind, d, "rival")[:, 0]

    there = asked.fields[0].rival is not None
    side = asked.sides["fact"]
    text = side.opening + side.closing
    where = "nearer" if text.rfind(asked.rival or asked.fact) >= text.rfind(asked.fact) else "farther"
    far, near = (odds("fact"), odds("swapped")) if there else (np.zeros(1), np.zeros(1))
    verdict = judge(
        SHELL,
        "priority collision",
        quantity=f"log-odds of the answer over the rival's value, the rival {where} to the question",
        unit="nats",
        value=_mean(far, asked.seed),
        control="the same with fact and rival exchanged",
        control_value=_mean(near, asked.seed),
        criterion=criteria.collision,
        direction="below",
        criterion_source=criteria.source,
        note=f"The order is worth {abs(near.mean() - far.mean()) / 2:.2f} nats." if there else "",
    )
    return verdict if there else _not_measured(verdict, "There is no second fact to collide with.")
