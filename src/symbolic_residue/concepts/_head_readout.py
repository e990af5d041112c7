"""Can a few heads read a concept? Held-out readouts of chosen heads, beside all heads, the rest, random heads and the residual stream.

1. Everything is done without one scenario at a time. Within the training scenarios heads are put in order (by selectivity; or by raw norm, or ``paired``: raw
   norm² over what it is on average where scenarios' differences are flipped), the first k are chosen, and a shrunk discriminant on their outputs is found; it
   scores the scenario left out (``_gram_readout``). Heads chosen on the texts that judge them would read noise.
2. The same discriminant reads: ``all`` heads looked at; the ``rest`` (all but the chosen, fold by fold); the ``next`` k of the fold's order; ``random`` sets of
   as many of the rest; ``random_norm``, each chosen head replaced by one of the ten heads of the rest nearest in raw norm; ``residual``, of all layers side by
   side or of the one layer asked for.
   Random sets are drawn by place in the fold's order, so the order in which heads are numbered changes nothing.
3. AUC over all held-out scores; intervals and paired differences by doing everything again on two thirds of the scenarios (``_delete_third``).
4. Null: labels permuted within scenarios, and *everything from the choice of heads on* done again. ``random`` sets have no null of their own.
5. Beside the readouts, of all texts and with their nulls: ``shares``, the k largest selectivity² in the sum over all heads; the participation ratio of
   selectivity²; the family-wise p of every head's selectivity.
6. Whether there is anything to ask: the difference of means of the residual stream, layer by layer, held out; p of the largest layer against the largest layer
   of every permutation.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import get_args, Literal

import numpy as np
from numpy.typing import NDArray

from symbolic_residue.concepts._auc_difference import AucDifference, difference, HeldOutAuc
from symbolic_residue.concepts._delete_third import DeleteThird, draw_thirds
from symbolic_residue.concepts._design import Design, draw_labels
from symbolic_residue.concepts._estimators import scenario_differences
from symbolic_residue.concepts._gram_readout import discriminant_scores, Drawn, Grams
from symbolic_residue.concepts._heads import NullValue
from symbolic_residue.concepts._held_out import auc_of_draws
from symbolic_residue.concepts._null import max_t_p, squared_norms, standardised
from symbolic_residue.concepts._random_heads import norm_sets, projected_reading, random_sets, set_readings
from symbolic_residue.errors import ConfigError

__all__ = ["ChooseBy", "CurvePoint", "HeadReadout", "LayerRead", "Reading", "head_selectivity", "read_heads", "residual_read"]

Array = NDArray[np.float64]
Indices = NDArray[np.intp]
Labels = NDArray[np.bool_]
ChooseBy = Literal["selectivity", "raw_norm", "paired"]
_CURVE = (1, 2, 4, 8, 16, 32, 64)
_THIRDS = 60
"""Parts of the scenarios on which everything is done again."""


@dataclass(frozen=True, eq=False)
class Reading:
    """A readout: its AUC over held-out scenarios, and what the AUC is under permuted labels (None where that was not made).

    Attributes:
        auc: value, and on parts of the scenarios.
        null: of the whole procedure.
        n_heads: heads in it; 0 for the residual stream.
        dims: numbers a text is read by.
    """

    auc: HeldOutAuc
    null: NullValue | None
    n_heads: int
    dims: int


@dataclass(frozen=True, eq=False)
class CurvePoint:
    """The readout of the first ``k`` heads."""

    k: int
    reading: Reading


@dataclass(frozen=True, eq=False)
class HeadReadout:
    """One concept's readouts over a set of heads.

    Attributes:
        concept, against: which comparison.
        layer: of which layer the heads are; None is all layers.
        heads: ``(layer, head)`` of every head looked at.
        k: how many are "a few".
        by: what they are chosen by.
        n_scenarios: the unit.
        few, all, rest, next, random, random_norm, residual: readouts.
        residual_small: of one layer: its residual stream on as many random directions as the few heads have numbers; None for the whole model, or where
            it has no more.
        random_reach: share of random sets whose AUC is at least that of the few.
        curve: by number of heads chosen.
        top: the first k heads on all texts: ``(layer, head)``.
        chosen_share: in what share of the folds each of ``top`` was chosen.
        selectivity, p: ``[head]`` on all texts, with family-wise p over the heads looked at.
        shares, participation: with their nulls; the null's p of participation counts labelings at least as concentrated.
        strength: Σ selectivity² with its null.
        n_draws, n_draws_readout, n_random, seed: how it was made.
    """

    concept: str
    against: str
    layer: int | None
    heads: tuple[tuple[int, int], ...]
    k: int
    by: ChooseBy
    n_scenarios: int
    few: Reading
    all: Reading
    rest: Reading
    next: Reading
    random: Reading
    random_norm: Reading
    residual: Reading
    residual_small: Reading | None
    random_reach: float
    curve: tuple[CurvePoint, ...]
    top: tuple[tuple[int, int], ...]
    chosen_share: tuple[float, ...]
    selectivity: Array
    p: Array
    shares: tuple[float, NullValue]
    participation: tuple[float, NullValue]
    strength: tuple[float, NullValue]
    n_draws: int
    n_draws_readout: int
    n_random: int
    seed: int

    def minus(self, name: str) -> AucDifference:
        """AUC of the few minus that of ``all``, ``rest``, ``next``, ``random``, ``random_norm`` or ``residual``."""
        return difference(self.few.auc, getattr(self, name).auc)


@dataclass(frozen=True, eq=False)
class LayerRead:
    """What the residual stream says, layer by layer.

    Attributes:
        layers: in order.
        auc: ``[layer]`` held out, difference of means.
        p_layer: ``[layer]`` by itself.
        p: of the largest standardised layer against that of every labeling: family-wise over the layers.
        best: the layer that is largest so; chosen by looking, which ``p`` counts.
    """

    layers: tuple[int, ...]
    auc: Array
    p_layer: Array
    p: float
    best: int
    n_draws: int


def residual_read(resid: Mapping[int, NDArray[np.floating]], design: Design, *, n_draws: int = 200, seed: int = 0) -> LayerRead:
    """Whether the residual stream reads the concept at all.

    Args:
        resid: layer → ``[text, d_model]`` of the whole corpus.
        design: which rows, and their labels.
        n_draws: permutations of the labels.
        seed: of them.
    """
    layers = tuple(sorted(resid))
    grams = Grams([resid[i][design.rows] for i in layers], design)
    labels = _labels(design, n_draws, seed)
    aucs = np.zeros((len(labels), len(layers)))
    for start in range(0, len(labels), step := grams.chunk()):
        part = slice(start, start + step)
        drawn = grams.drawn(labels[part])
        for g in range(len(layers)):
            scores = discriminant_scores(*grams.fixed(drawn, [g]), design.fold, plain_mean=True)
            aucs[part, g] = auc_of_draws(scores, labels[part])
    z = standardised(aucs)
    p = max_t_p(z[0], z.max(1))
    best = int(np.argmax(z[0]))
    alone = np.array([NullValue.of(aucs[:, g]).p for g in range(len(layers))])
    return LayerRead(layers, aucs[0], alone, float(p[best]), layers[best], n_draws)


def head_selectivity(activations: NDArray[np.floating], design: Design, labels: Labels) -> Array:
    """Selectivity of every head under every labeling, ``[draw, head]`` from activations ``[n, head, d_head]``; 0 for a head that does not vary."""
    x: Array = np.array(activations, dtype=np.float64)
    x -= x.mean(0)
    raw2 = squared_norms(x, design.weights(labels))
    negative, n_neg = (~labels).astype(np.float64), design.n_neg
    lengths = (x**2).sum(2)
    spread = (negative @ lengths - n_neg * squared_norms(x, negative / n_neg)) / max(n_neg - 1, 1)
    good = spread > 1e-12 * lengths.mean(0)
    return np.sqrt(np.divide(raw2, spread, out=np.zeros_like(raw2), where=good))


def read_heads(
    heads: Mapping[int, NDArray[np.floating]],
    resid: Mapping[int, NDArray[np.floating]],
    design: Design,
    k: int,
    *,
    layer: int | None = None,
    by: ChooseBy = "selectivity",
    n_draws: int = 1000,
    n_draws_readout: int = 200,
    n_random: int = 100,
    seed: int = 0,
) -> HeadReadout:
    """Readouts of one concept's heads.

    Args:
        heads: layer → ``[text, head, d_head]`` of the whole corpus.
        resid: layer → ``[text, d_model]``.
        design: which rows, and their labels; paired within 6 scenarios or more.
        k: how many heads are a few: at most half of those looked at.
        layer: look at one layer's heads, beside its residual stream; None looks at all.
        by: what heads are chosen by.
        n_draws: permutations for selectivity and its shares.
        n_draws_readout: permutations for the readouts, the first of the same ones.
        n_random: random sets of each kind.
        seed: of everything drawn.

    Raises:
        ConfigError: no such layer or choice, k out of range, too few draws, or a design without enough paired scenarios.
    """
    if by not in get_args(ChooseBy):
        raise ConfigError(f"Heads cannot be chosen by {by!r}.", todo=f"Use one of: {', '.join(get_args(ChooseBy))}.")
    if layer is not None and (layer not in heads or layer not in resid):
        raise ConfigError(
            f"No heads were collected in layer {layer}.", todo=f"Layers with heads: {', '.join(map(str, sorted(heads)))}."
        )
    if not 20 <= n_draws_readout <= n_draws:
        raise ConfigError(
            f"{n_draws_readout} permutations of {n_draws} cannot be had.", todo="Give 20 or more, and at most as many as in all."
        )
    if n_random < 1:
        raise ConfigError(f"{n_random} random sets are none.", todo="Give 1 or more.")
    layers = sorted(heads) if layer is None else [layer]
    names = tuple((i, h) for i in layers for h in range(heads[i].shape[1]))
    if not 1 <= k <= len(names) // 2:
        raise ConfigError(
            f"{k} of {len(names)} heads cannot be compared with as many others.", todo=f"Give k from 1 to {len(names) // 2}."
        )
    rows = {i: np.asarray(heads[i][design.rows], dtype=np.float64) for i in layers}
    labels = _labels(design, n_draws, seed)
    selectivity = np.concatenate([head_selectivity(rows[i], design, labels) for i in layers], axis=1)
    grams = Grams([rows[i][:, h] for i, h in names], design)
    stream = Grams([resid[i][design.rows] for i in (sorted(resid) if layer is None else layers)], design)
    few_labels = labels[: 1 + n_draws_readout]
    ks = sorted({*(one for one in _CURVE if one < len(names)), k})
    aucs: dict[int | str, list[Array]] = {one: [] for one in (*ks, "all", "rest", "next", "residual")}
    orders: Indices | None = None
    observed: Drawn | None = None
    for start in range(0, len(few_labels), step := min(grams.chunk(), stream.chunk())):
        part = few_labels[start : start + step]
        drawn = grams.drawn(part)
        order = _order(_measure(drawn, by))
        scores = _scores(grams, drawn, order, ks, k)
        scores["residual"] = discriminant_scores(*stream.fixed(stream.drawn(part)), design.fold)
        for name, found in scores.items():
            aucs[name].append(auc_of_draws(found, part))
        if start == 0:
            orders, observed = order[0], drawn.first()
    assert orders is not None and observed is not None
    n, d_all = len(names), int(grams.dims.sum())
    stay = draw_thirds(design.n_folds, _THIRDS, seed)
    parts = DeleteThird(grams, observed, stay)
    parts_order = _order(_measure(parts, by))
    part_aucs = _on_parts(parts, parts_order, ks, k)
    of_stream = DeleteThird(stream, stream.drawn(labels[:1]), stay)
    part_aucs["residual"] = of_stream.aucs(of_stream.fixed())[0]

    def reading(name: int | str, n_heads: int, dims: int) -> Reading:
        every = np.concatenate(aucs[name])
        return Reading(
            HeldOutAuc(float(every[0]), part_aucs[name], design.n_folds, parts.n_out), NullValue.of(every), n_heads, dims
        )

    dims = [int(np.sort(grams.dims)[::-1][:one].sum()) for one in ks]
    curve = tuple(CurvePoint(one, reading(one, one, d)) for one, d in zip(ks, dims, strict=True))
    few = curve[ks.index(k)].reading
    by_place = random_sets((orders, parts_order), k, n_random, seed)
    by_norm = norm_sets((orders, parts_order), (observed.raw[0], parts.raw), k, n_random, seed + 1)
    (random_aucs, random), (_, matched) = (set_readings(grams, observed, parts, sets) for sets in (by_place, by_norm))
    small = None if layer is None else projected_reading(resid[layer][design.rows], design, few.dims, stay, seed)
    z = standardised(selectivity)
    order_all = _order(selectivity[0] if by == "selectivity" else _of_all(rows, layers, design, by))[:k]
    squares = selectivity**2
    shares = _share(squares, k)
    participation = _participation(squares)
    spread = NullValue.of(-participation)
    return HeadReadout(
        concept=design.concept,
        against=design.against,
        layer=layer,
        heads=names,
        k=k,
        by=by,
        n_scenarios=design.n_folds,
        few=few,
        all=reading("all", n, d_all),
        rest=reading("rest", n - k, d_all - few.dims),
        next=reading("next", k, few.dims),
        random=Reading(random, None, k, few.dims),
        random_norm=Reading(matched, None, k, few.dims),
        residual=reading("residual", 0, int(stream.dims.sum())),
        residual_small=None if small is None else Reading(small, None, 0, few.dims),
        random_reach=float(np.mean(random_aucs >= few.auc.value - 1e-12)),
        curve=curve,
        top=tuple(names[h] for h in order_all),
        chosen_share=tuple(float((orders[:, :k] == h).any(1).mean()) for h in order_all),
        selectivity=selectivity[0],
        p=max_t_p(z[0], z.max(1)),
        shares=(float(shares[0]), NullValue.of(shares)),
        participation=(float(participation[0]), NullValue(-spread.mean, spread.sd, spread.p)),
        strength=(float(squares[0].sum()), NullValue.of(squares.sum(1))),
        n_draws=n_draws,
        n_draws_readout=n_draws_readout,
        n_random=n_random,
        seed=seed,
    )


def _labels(design: Design, n_draws: int, seed: int) -> Labels:
    return np.concatenate([design.positive[None], draw_labels(design, n_draws, seed)])


def _scores(grams: Grams, drawn: Drawn, order: Indices, ks: Sequence[int], k: int) -> dict[int | str, Array]:
    """Held-out scores ``[draw, n]`` of the first heads for each number of them, of all heads, of all but the first k, and of the next k."""
    fold = grams.design.fold
    found: dict[int | str, Array] = {}
    every = grams.fixed(drawn)
    found["all"] = discriminant_scores(*every, fold)
    total: list[Array] | None = None
    later: list[Array] | None = None
    for place in range(max(*ks, 2 * k)):
        one = grams.chosen(drawn, order[:, :, place])
        if k <= place < 2 * k:
            later = list(one) if later is None else [a + b for a, b in zip(later, one, strict=True)]
        total = list(one) if total is None else [a + b for a, b in zip(total, one, strict=True)]
        if place + 1 in ks:
            found[place + 1] = discriminant_scores(total[0], total[1], total[2], fold)
        if place + 1 == k:
            rest = [a - b for a, b in zip(every, total, strict=True)]
            found["rest"] = discriminant_scores(rest[0], rest[1], rest[2], fold)
    assert later is not None
    found["next"] = discriminant_scores(later[0], later[1], later[2], fold)
    return found


def _on_parts(parts: DeleteThird, order: Indices, ks: Sequence[int], k: int) -> dict[int | str, Array]:
    """The AUCs of :func:`_scores` on every part, ``[part]`` each; ``order [entry, head]``."""
    found: dict[int | str, Array] = {}
    every = parts.fixed()
    found["all"] = parts.aucs(every)[0]
    total: list[Array] | None = None
    later: list[Array] | None = None
    for place in range(max(*ks, 2 * k)):
        one = parts.chosen(order[None, :, place])
        if k <= place < 2 * k:
            later = list(one) if later is None else [a + b for a, b in zip(later, one, strict=True)]
        total = list(one) if total is None else [a + b for a, b in zip(total, one, strict=True)]
        if place + 1 in ks:
            found[place + 1] = parts.aucs((total[0], total[1], total[2]))[0]
        if place + 1 == k:
            rest = [a - b for a, b in zip(every, total, strict=True)]
            found["rest"] = parts.aucs((rest[0], rest[1], rest[2]))[0]
    assert later is not None
    found["next"] = parts.aucs((later[0], later[1], later[2]))[0]
    return found


def _measure(of: Drawn | DeleteThird, by: ChooseBy) -> Array:
    return {"selectivity": of.selectivity, "raw_norm": of.raw, "paired": of.paired}[by]


def _order(measure: Array) -> Indices:
    """Heads by falling measure, along the last axis."""
    return np.argsort(-measure, axis=-1, kind="stable")


def _of_all(rows: Mapping[int, Array], layers: Sequence[int], design: Design, by: ChooseBy) -> Array:
    """Raw norm squared, or paired, of every head on all texts."""
    found = []
    for i in layers:
        raw2 = squared_norms(rows[i] - rows[i].mean(0), design.weights()[None])[0]
        lengths = np.array([(scenario_differences(one, design) ** 2).sum() for one in rows[i].transpose(1, 0, 2)])
        flipped = lengths / design.n_strata**2
        found.append(raw2 if by == "raw_norm" else np.divide(raw2, flipped, out=np.zeros_like(raw2), where=flipped > 0))
    return np.concatenate(found)


def _share(squares: Array, k: int) -> Array:
    total = squares.sum(1)
    return np.divide(np.sort(squares, axis=1)[:, -k:].sum(1), total, out=np.zeros_like(total), where=total > 0)


def _participation(squares: Array) -> Array:
    fourth = (squares**2).sum(1)
    return np.divide(squares.sum(1) ** 2, fourth, out=np.zeros_like(fourth), where=fourth > 0)
