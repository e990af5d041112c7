"""The answer of a concepts run in words, from its numbers alone.

1. *Above chance*: p ≤ 0.05 over all layers (largest standardised statistic) and all ranked concepts (Holm).
2. *Beside words alone*: the share of scenarios whose telling scores above its neutral one, against the same share by words without any model. Called more or
   fewer only where the two intervals lie apart; both count scenarios.
3. Heads and causal checks speak through their own verdicts; what was not asked is said, with the command that asks it.
"""

from __future__ import annotations

from typing import Any

from symbolic_residue.figures import interval_text, number
from symbolic_residue.report._concepts_load import ConceptsRun

__all__ = ["answer", "beside_words", "listed", "measured", "p_text", "span", "with_null"]

READ, CHANCE, UNKNOWN = "above chance", "not told from chance", "no null"


def measured(block: dict[str, Any] | None, key: str = "value", between: str = " ", *, signed: bool = False) -> str:
    """A value with its interval; ``—`` where there is none.

    Args:
        block: an estimate.
        key: its value's name.
        between: what stands between value and interval; a line feed puts the interval on a line of its own in a table.
        signed: with a plus sign.
    """
    if block is None or block.get(key) is None:
        return "—"
    return f"{number(block[key], signed=signed)}{between}{span(block, signed=signed)}"


def span(block: dict[str, Any], low: str = "low", high: str = "high", *, signed: bool = False) -> str:
    """An interval, or why there is none."""
    return interval_text(block.get(low), block.get(high), block.get("n"), signed=signed).replace("\xa0", " ")


def p_text(p: float | None) -> str:
    """A p value to three decimals; smaller ones in full."""
    return "—" if p is None else number(p) if p < 0.0005 else f"{p:.3f}"


def with_null(block: dict[str, Any]) -> str:
    """Value, and on a second line its mean under the null and p; ``—`` where there is no value."""
    if block.get("value") is None:
        return "—"
    null = "no null" if block.get("null_mean") is None else f"({number(block['null_mean'])}; {p_text(block.get('p'))})"
    return f"{number(block['value'])}\n{null}"


def listed(names: list[str], most: int = 12) -> str:
    """Names in a row; a long list is cut and says how long it is."""
    return ", ".join(names) if len(names) <= most else f"{', '.join(names[:most])} and {len(names) - most} more"


def beside_words(run: ConceptsRun, concept: str) -> str | None:
    """``more``, ``fewer`` or ``as many`` pairs in order than words alone; None where one of them was not measured."""
    pairs, words = run.at(concept).get("pairs_in_order"), run.words(concept, run.quality["against"])
    if pairs is None or words is None or None in (pairs["low"], pairs["high"], words["low"], words["high"]):
        return None
    return "more" if pairs["low"] > words["high"] else "fewer" if pairs["high"] < words["low"] else "as many"


def answer(run: ConceptsRun) -> tuple[str, list[str]]:
    """The headline, and the sentences that go on from it."""
    groups: dict[bool | None, list[str]] = {True: [], False: [], None: []}
    for concept in run.concepts:
        groups[run.above_chance(concept)].append(concept)
    read, chance, unknown = groups[True], groups[False], groups[None]
    n_tested = len(read) + len(chance)
    if not n_tested:
        headline = f"Whether any concept is read above chance was not tested: {_why_no_null(run)}"
    elif not read:
        headline = f"No concept is read above chance: 0 of {n_tested} (p ≤ 0.05 over {_layers(run)} and {_count(n_tested)})."
    else:
        headline = (
            f"{len(read)} of {n_tested} concepts {'is' if len(read) == 1 else 'are'} read from the residual stream above chance"
            f" (p ≤ 0.05 over {_layers(run)} and {_count(n_tested)}): held-out AUC {_span(run, read)}."
        )
    more = []
    if read and chance:
        more.append(f"Not told from chance: {listed(chance)}.")
    if n_tested and unknown:
        more.append(f"Not tested: {listed(unknown)} (fewer than 5 positives, or no null).")
    more += [_words(run), _rival(run), _fixed(run), _heads(run), _causal(run)]
    return headline, [line for line in more if line]


def _why_no_null(run: ConceptsRun) -> str:
    if all(not one["ranked"] for one in run.quality["concepts"].values()):
        return "no concept has 5 positives."
    return f"permuted labels give a null for the difference of means only, and these directions are by {run.quality['estimator']}."


def _layers(run: ConceptsRun) -> str:
    return f"{len(run.layers)} layer{'' if len(run.layers) == 1 else 's'}"


def _count(n: int) -> str:
    return f"{n} concept{'' if n == 1 else 's'}"


def _span(run: ConceptsRun, concepts: list[str]) -> str:
    ordered = sorted(concepts, key=lambda c: run.at(c)["auc"]["value"])
    ends = [f"{measured(run.at(c)['auc'])} ({c}, layer {run.chosen(c)})" for c in (ordered[0], ordered[-1])]
    return ends[0] if len(concepts) == 1 else f"from {ends[0]} to {ends[1]}"


def _words(run: ConceptsRun) -> str:
    found: dict[str, list[str]] = {"more": [], "fewer": [], "as many": []}
    for concept in run.concepts:
        if (said := beside_words(run, concept)) is not None:
            found[said].append(concept)
    if not any(found.values()):
        return "What words alone tell was not measured against these negatives: the readout may have read no more than other words."
    values = [words["value"] for c in run.concepts if (words := run.words(c, run.quality["against"]))]
    n = sum(len(names) for names in found.values())
    parts = [f"is not told apart from them for {len(found['as many'])} of {n}"] if found["as many"] else []
    parts += [f"puts {key} pairs in order for {listed(found[key])}" for key in ("more", "fewer") if found[key]]
    ends = f"{number(min(values))} to {number(max(values))}" if len(values) > 1 else number(values[0])
    return (
        f"Words alone, without any model, tell a telling from {_RIVAL[run.quality['against']]} of the same scenario with AUC {ends}; "
        f"the readout, judged in the same way, {'; it '.join(parts)}."
    )


_RIVAL = {"baseline": "the neutral one", "others": "those of other concepts"}


def _rival(run: ConceptsRun) -> str:
    """Against the other kind of negatives, in the same layers."""
    found = {
        c: auc for c in run.concepts if (auc := run.quality["concepts"][c]["other_negatives"]["auc"]) and auc["value"] is not None
    }
    if not found:
        return ""
    other = "baseline" if run.quality["against"] == "others" else "others"
    low, high = (pick(found, key=lambda c: found[c]["value"]) for pick in (min, max))
    said = (
        f"from {number(found[low]['value'])} ({low}) to {number(found[high]['value'])} ({high})"
        if len(found) > 1
        else number(found[low]["value"])
    )
    which = {
        "others": "the other concepts' tellings, which takes out what all tellings under a concept share",
        "baseline": "the neutral tellings",
    }[other]
    return f"Against {which}, AUC in the same layers is {said}."


def _fixed(run: ConceptsRun) -> str:
    layer, quality = run.middle, run.quality["concepts"]
    tested = [c for c in run.concepts if run.above_chance(c) is not None and str(layer) in quality[c]["layers"]]
    values = [auc["value"] for c in tested if (auc := run.at(c, layer)["auc"])["value"] is not None]
    if not values or len(run.layers) == 1:
        return ""
    ends = f"{number(min(values))} to {number(max(values))}" if len(values) > 1 else number(values[0])
    return f"The layers were chosen by looking; in the middle layer ({layer}), which was not, AUC is {ends}."


def _heads(run: ConceptsRun) -> str:
    return f"Whether a few heads carry them was not asked yet: residue concepts heads {run.path.name}." if run.heads is None else ""


def _causal(run: ConceptsRun) -> str:
    return f"No causal check was made yet: residue concepts check {run.path.name}." if run.causal is None else ""
