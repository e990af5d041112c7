"""Do a few heads carry a concept, or is it spread? One word for a concept, by a rule that was written before any model's heads were looked at.

1. ``k``, a few: an eighth of the heads looked at, 1 at least and 10 at most.
2. ``not read``: the residual stream does not tell the concept from permuted labels (largest layer, family-wise over layers). No question about heads then.
3. ``few heads``: all conditions of :data:`CONDITIONS` hold: concentrated, selective, works, enough (against all heads; over the whole model also against the
   residual stream), not any heads (random sets of as many, and matched in norm), needed (all other heads
   together, and the next k, read worse).
4. ``redundant``: the few work and are enough against all heads, and the rest, the next k, or random sets of as many are enough against the few.
5. ``spread``: all heads work, and the few are worse than all.
6. ``undecided`` else: what failed, and the scenarios at which it would hold if the estimate stayed.

Every inequality is a one-sided 95 % bound over scenarios; every p is by permutation within scenarios. Conditions that must all hold at .05 each make a test at
.05 (Berger 1982).
A readout says where a concept can be read, not what causes it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from symbolic_residue.concepts._auc_difference import AucDifference
from symbolic_residue.concepts._design import Against, Design, make_design
from symbolic_residue.concepts._head_readout import ChooseBy, HeadReadout, LayerRead, read_heads, Reading, residual_read
from symbolic_residue.concepts._heads import NullValue

__all__ = ["CONDITIONS", "HeadVerdict", "few_heads", "head_verdict", "judge_heads", "verdict_block"]

Word = Literal["not read", "few heads", "redundant", "spread", "undecided"]
LEVEL = 0.05
"""Of every test by itself."""
MARGIN = 0.10
"""AUC that counts as no loss. At 24 scenarios a paired difference of AUCs has a standard error of .03 to .10, so .05 could hardly be shown."""
STRICT_MARGIN = 0.05
"""The verdict at this margin stands beside."""
FEW_MOST, FEW_SHARE = 10, 8
"""A few heads: at most ten, and at most one in eight of those looked at."""
CHANCE = 0.5

CONDITIONS: dict[str, str] = {
    "concentrated": "the k largest shares of the sum of selectivity^2 above their permutation null",
    "selective": "some head's selectivity above the largest head of permuted labels",
    "works": "AUC of the few above the null of the whole procedure, choice of heads included",
    "enough_all": "AUC of the few - all heads above -margin",
    "enough_residual": "AUC of the few - residual stream above -margin (whole model only)",
    "not_any": "AUC of the few - random sets of as many other heads above 0",
    "not_any_norm": "AUC of the few - sets of other heads of about the same raw norm above 0",
    "needed": "AUC of the few - all other heads together above 0",
    "not_next": "AUC of the few - the next k heads above 0",
}


@dataclass(frozen=True, slots=True)
class Condition:
    """One condition: whether it holds, and the number that says so.

    ``bound`` is a p, or the one-sided bound of ``value``; ``scenarios_needed``: at which it would hold if the estimate stayed (None: it would not, or p
    decides).
    """

    name: str
    holds: bool
    value: float
    bound: float
    criterion: float
    scenarios_needed: int | None


@dataclass(frozen=True, eq=False)
class HeadVerdict:
    """A concept's verdict over one set of heads.

    Attributes:
        word: the verdict; ``strict`` at the margin of .05.
        reason: a sentence.
        conditions: those of ``few heads``, in order.
        read: what the residual stream says; ``read_p`` is the p that decided.
        readout: the numbers.
    """

    concept: str
    against: Against
    layer: int | None
    word: Word
    strict: Word
    reason: str
    conditions: tuple[Condition, ...]
    read: LayerRead
    read_p: float
    readout: HeadReadout


def few_heads(n_heads: int) -> int:
    """How many of so many heads are a few."""
    return min(FEW_MOST, max(1, n_heads // FEW_SHARE))


def head_verdict(
    heads: Mapping[int, NDArray[np.floating]],
    resid: Mapping[int, NDArray[np.floating]],
    labels: Sequence[str],
    scenarios: Sequence[str | None],
    concept: str,
    *,
    against: Against = "baseline",
    layer: int | None = None,
    k: int | None = None,
    by: ChooseBy = "selectivity",
    n_draws: int = 1000,
    n_draws_readout: int = 200,
    n_random: int = 100,
    seed: int = 0,
    read: LayerRead | None = None,
) -> HeadVerdict:
    """The verdict of one concept, from the pooled activations of all texts.

    Args:
        heads: layer → ``[text, head, d_head]``: ``Pooled.heads``.
        resid: layer → ``[text, d_model]``: ``Pooled.resid``.
        labels, scenarios: one a text.
        concept: which.
        against: the negatives.
        layer: one layer's heads; None is the whole model.
        k: heads that are a few; None is the rule's.
        by: what heads are chosen by.
        n_draws, n_draws_readout, n_random, seed: see :func:`read_heads`.
        read: of :func:`residual_read` on the same design, where it was made already.

    Raises:
        ConfigError: see :func:`read_heads`.
    """
    design: Design = make_design(labels, scenarios, concept, against)
    n_heads = sum(x.shape[1] for i, x in heads.items() if layer in (None, i))
    readout = read_heads(
        heads, resid, design, few_heads(n_heads) if k is None else k, layer=layer, by=by, n_draws=n_draws,
        n_draws_readout=n_draws_readout, n_random=n_random, seed=seed,
    )  # fmt: skip
    return judge_heads(readout, residual_read(resid, design, n_draws=n_draws_readout, seed=seed) if read is None else read, against)


def judge_heads(readout: HeadReadout, read: LayerRead, against: Against) -> HeadVerdict:
    """The rule applied to the numbers."""
    read_p = read.p if readout.layer is None else float(read.p_layer[read.layers.index(readout.layer)])
    conditions = _conditions(readout, MARGIN)
    word, reason = _word(readout, conditions, read_p, MARGIN)
    strict, _ = _word(readout, _conditions(readout, STRICT_MARGIN), read_p, STRICT_MARGIN)
    return HeadVerdict(readout.concept, against, readout.layer, word, strict, reason, conditions, read, read_p, readout)


def _conditions(readout: HeadReadout, margin: float) -> tuple[Condition, ...]:
    works = readout.few.null
    assert works is not None
    found = [
        _by_p("concentrated", readout.shares[0], readout.shares[1].p),
        _by_p("selective", float(readout.selectivity[int(np.argmin(readout.p))]), float(readout.p.min())),
        _by_p("works", readout.few.auc.value, works.p),
        _by_bound("enough_all", readout.minus("all"), -margin),
    ]
    if readout.layer is None:
        found.append(_by_bound("enough_residual", readout.minus("residual"), -margin))
    for name, other in (("not_any", "random"), ("not_any_norm", "random_norm"), ("needed", "rest"), ("not_next", "next")):
        found.append(_by_bound(name, readout.minus(other), 0.0))
    return tuple(found)


def _by_p(name: str, value: float, p: float) -> Condition:
    return Condition(name, p <= LEVEL, value, p, LEVEL, None)


def _by_bound(name: str, gap: AucDifference, criterion: float) -> Condition:
    holds = gap.lower > criterion
    return Condition(name, holds, gap.value, gap.lower, criterion, None if holds else gap.scenarios_needed(criterion))


def _word(readout: HeadReadout, conditions: Sequence[Condition], read_p: float, margin: float) -> tuple[Word, str]:
    held = {one.name: one.holds for one in conditions}
    k, where = readout.k, "of the model" if readout.layer is None else f"of layer {readout.layer}"
    heads = f"{k} of {len(readout.heads)} heads {where}"
    if read_p > LEVEL:
        return "not read", f"The residual stream does not tell the concept (p = {read_p:.2g}); heads are not asked."
    if all(held.values()):
        return "few heads", f"{heads} read it as well as everything does, and the others do not."
    if held["works"] and held["enough_all"]:
        sets = {"rest": "all other heads together", "next": f"the next {k}", "random": f"{k} other heads drawn at random"}
        others = [text for name, text in sets.items() if _reads(getattr(readout, name)) and -readout.minus(name).upper > -margin]
        if others:
            return "redundant", f"Spread: {heads} are enough, but {' and '.join(others)} read it as well."
    all_null = readout.all.null
    assert all_null is not None
    if all_null.p <= LEVEL and readout.minus("all").upper < 0:
        return "spread", f"Spread: {heads} read it worse than all heads do."
    return "undecided", _why_undecided(conditions)


def _reads(reading: Reading) -> bool:
    return reading.auc.bounds(1 - 2 * LEVEL)[0] > CHANCE


def _why_undecided(conditions: Sequence[Condition]) -> str:
    failed = [one for one in conditions if not one.holds]
    parts = [f"{one.name} (p = {one.bound:.2g})" for one in failed if one.name in ("concentrated", "selective", "works")]
    left = failed[len(parts) :]
    parts += [
        f"{one.name} ({one.value:+.2f}; {one.scenarios_needed} scenarios would do)"
        for one in left
        if one.scenarios_needed is not None
    ]
    if wrong := [f"{one.name} ({one.value:+.2f})" for one in left if one.scenarios_needed is None]:
        parts.append("and beyond more scenarios " + ", ".join(wrong))
    return "Not shown: " + "; ".join(parts) + "."


def verdict_block(found: HeadVerdict) -> dict[str, Any]:
    """Plain data for ``heads.json``."""
    r = found.readout
    return {
        "concept": found.concept,
        "against": found.against,
        "layer": found.layer,
        "verdict": found.word,
        "verdict_strict": found.strict,
        "reason": found.reason,
        "level": LEVEL,
        "margin": MARGIN,
        "margin_strict": STRICT_MARGIN,
        "n_scenarios": r.n_scenarios,
        "n_heads": len(r.heads),
        "k": r.k,
        "by": r.by,
        "n_draws": r.n_draws,
        "n_draws_readout": r.n_draws_readout,
        "n_random": r.n_random,
        "seed": r.seed,
        "conditions": [
            {"name": c.name, "meaning": CONDITIONS[c.name], "holds": c.holds, "value": c.value, "p_or_bound": c.bound, "criterion": c.criterion,
             "scenarios_needed": c.scenarios_needed}
            for c in found.conditions
        ],
        "read": {"p": found.read_p, "best_layer": found.read.best, "n_draws": found.read.n_draws,
                 "layers": [[i, float(a), float(p)] for i, a, p in zip(found.read.layers, found.read.auc, found.read.p_layer, strict=True)]},
        "readouts": {name: _reading(getattr(r, name)) for name in ("few", "all", "rest", "next", "random", "random_norm", "residual")}
        | {"residual_small": None if r.residual_small is None else _reading(r.residual_small), "random_reach": r.random_reach},
        "few_minus": {name: _gap(r.minus(name)) for name in ("all", "rest", "next", "random", "random_norm", "residual")},
        "curve": [{"k": one.k} | _reading(one.reading) for one in r.curve],
        "top_heads": [
            {"layer": i, "head": h, "selectivity": float(r.selectivity[at]), "p": float(r.p[at]), "chosen_share": share}
            for (i, h), share in zip(r.top, r.chosen_share, strict=True)
            for at in [r.heads.index((i, h))]
        ],
        "n_selective": int((r.p <= LEVEL).sum()),
        "shares": _with_null(r.shares) | {"uniform": r.k / len(r.heads)},
        "participation_ratio": _with_null(r.participation),
        "strength": _with_null(r.strength),
    }  # fmt: skip


def _null(null: NullValue | None) -> dict[str, float] | None:
    return None if null is None else {"mean": null.mean, "sd": null.sd, "p": null.p}


def _with_null(pair: tuple[float, NullValue]) -> dict[str, Any]:
    return {"value": pair[0], "null": _null(pair[1])}


def _reading(reading: Reading) -> dict[str, Any]:
    low, high = reading.auc.bounds()
    return {
        "auc": reading.auc.value,
        "low": low,
        "high": high,
        "null": _null(reading.null),
        "n_heads": reading.n_heads,
        "dims": reading.dims,
    }


def _gap(gap: AucDifference) -> dict[str, float | int]:
    return {
        "value": gap.value,
        "low": gap.low,
        "high": gap.high,
        "lower": gap.lower,
        "upper": gap.upper,
        "error": gap.error,
        "n": gap.n,
    }
