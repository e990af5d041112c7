"""Which heads are tried, and which others stand against them.

1. Scores of a head on a design's texts: ``selectivity`` and ``raw_norm`` as in ``_heads``; ``write`` = ‖W_h Δ_h‖; ``direct`` = v · (W_h Δ_h) with the
   direction v of the readout layer. The chosen are the ``k`` highest among all layers up to the readout layer: later heads cannot write to it.
2. ``disturbance_h`` = √ mean over the design's texts of ‖W_h (z_h − mean of the negatives)‖²: how far mean ablation of the head moves the residual
   stream. Of a set of heads it is the root of the sum of squares.
3. A control is a set of other heads, in each layer as many as were chosen there, whose disturbance is the chosen set's within a factor of 1.25. Sets
   are drawn at random; where too few of them fit, the nearest are taken, and each control's ratio says so. A layer with too few other heads borrows
   from the nearest layer that has some.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import get_args, Literal, TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from symbolic_residue.concepts._collect import Pooled
from symbolic_residue.concepts._design import Design
from symbolic_residue.concepts._heads import output_weights
from symbolic_residue.errors import ConfigError, ReadError
from symbolic_residue.stats import generator

if TYPE_CHECKING:
    from symbolic_residue.models import Parts

__all__ = ["ChooseBy", "Head", "HeadScores", "MatchedSet", "by_layer", "check_heads", "choose_heads", "matched_sets", "score_heads"]

Array = NDArray[np.float64]
Head = tuple[int, int]
"""Layer and query head."""

ChooseBy = Literal["selectivity", "raw_norm", "write", "direct"]
NORM_FACTOR = 1.25
"""How far a control's disturbance may be from the chosen set's: a quarter, small beside the spread of single heads (severalfold)."""
_DRAWS = 4000


@dataclass(frozen=True, eq=False)
class HeadScores:
    """The heads of one layer on a design's texts.

    Attributes:
        delta: ``[head, d_head]``, difference of means.
        written: ``[head, d_model]``, ``W_h Δ_h``.
        negative_mean: ``[head, d_head]``.
        selectivity, raw_norm, write, direct, disturbance: ``[head]``, see the module.
    """

    delta: Array
    written: Array
    negative_mean: Array
    selectivity: Array
    raw_norm: Array
    write: Array
    direct: Array
    disturbance: Array


@dataclass(frozen=True, slots=True)
class MatchedSet:
    """A control's heads, and its disturbance over the chosen set's."""

    heads: tuple[Head, ...]
    ratio: float


def by_layer(heads: Sequence[Head]) -> dict[int, tuple[int, ...]]:
    """Layer → its heads in order."""
    found: dict[int, list[int]] = {}
    for layer, head in heads:
        found.setdefault(layer, []).append(head)
    return {layer: tuple(sorted(some)) for layer, some in sorted(found.items())}


def check_heads(heads: Sequence[Head], parts: Parts, layers: Sequence[int] | None = None) -> tuple[Head, ...]:
    """Heads that a caller named, in order.

    Raises:
        ConfigError: none, one named twice, a layer or head that the model does not have, or one outside of ``layers``.
        ReadError: a layer without softmax attention.
    """
    found = [(int(layer), int(head)) for layer, head in heads]
    if not found:
        raise ConfigError("No head was named.", todo="Name heads as (layer, head), or leave them out to have them chosen.")
    if len(set(found)) < len(found):
        raise ConfigError("A head is named twice.")
    for layer, head in found:
        if not 0 <= layer < parts.n_layers:
            raise ConfigError(f"There is no layer {layer}.", todo=f"The model has layers 0 to {parts.n_layers - 1}.")
        if (reason := parts.layers[layer].absent("z")) is not None:
            raise ReadError(f"Layer {layer} has no heads.", why=reason, todo="Name heads of layers with softmax attention.")
        if not 0 <= head < parts.layers[layer].n_heads:
            raise ConfigError(
                f"Layer {layer} has no head {head}.", todo=f"It has query heads 0 to {parts.layers[layer].n_heads - 1}."
            )
        if layers is not None and layer not in layers:
            raise ConfigError(
                f"Head {head} of layer {layer} cannot be tried here.",
                why="Its layer was not collected, or comes after the readout layer, to which it cannot write.",
                todo=f"Layers here: {', '.join(map(str, layers))}.",
            )
    return tuple(sorted(found))


def score_heads(
    pooled: Pooled, design: Design, parts: Parts, layers: Sequence[int], v: NDArray[np.floating]
) -> dict[int, HeadScores]:
    """Layer → scores of its heads on the design's texts.

    Args:
        pooled: of the whole corpus, with heads.
        design: which texts.
        parts: of the model, for the output weights.
        layers: which.
        v: unit direction of the readout layer ``[d_model]``, for ``direct``.
    """
    found = {}
    for layer in layers:
        x, w_o = np.asarray(pooled.heads[layer][design.rows], dtype=np.float64), output_weights(parts, layer)
        negative = x[~design.positive]
        delta = np.einsum("n,nhd->hd", design.weights(), x)
        mean = negative.mean(0)
        spread = np.sqrt(((negative - mean) ** 2).sum(2).sum(0) / max(1, len(negative) - 1))
        raw = np.linalg.norm(delta, axis=1)
        written = np.einsum("hd,hdm->hm", delta, w_o)
        gram = np.einsum("hdm,hem->hde", w_o, w_o)
        moved = np.einsum("nhd,hde,nhe->h", x - mean, gram, x - mean, optimize=True) / len(x)
        found[layer] = HeadScores(
            delta,
            written,
            mean,
            np.divide(raw, spread, out=np.zeros_like(raw), where=spread > 0),
            raw,
            np.linalg.norm(written, axis=1),
            written @ np.asarray(v, dtype=np.float64),
            np.sqrt(np.maximum(moved, 0)),
        )
    return found


def choose_heads(scores: Mapping[int, HeadScores], k: int, by: ChooseBy = "selectivity") -> tuple[Head, ...]:
    """The k heads with the highest score, best first; ties go to the earlier head.

    Raises:
        ConfigError: an unknown score, or as many heads as there are (none would be left to compare with).
    """
    if by not in get_args(ChooseBy):
        raise ConfigError(f"{by!r} is no score of heads.", todo=f"Use one of: {', '.join(get_args(ChooseBy))}.")
    values = [(-float(value), layer, head) for layer, one in scores.items() for head, value in enumerate(getattr(one, by))]
    if not 1 <= k < len(values):
        raise ConfigError(f"{k} heads cannot be chosen of {len(values)}.", todo="Give 1 or more, and leave others to compare with.")
    return tuple((layer, head) for _, layer, head in sorted(values)[:k])


def set_disturbance(scores: Mapping[int, HeadScores], heads: Sequence[Head]) -> float:
    """Root of the summed squares over a set of heads."""
    return float(np.sqrt(sum(scores[layer].disturbance[head] ** 2 for layer, head in heads)))


def matched_sets(scores: Mapping[int, HeadScores], chosen: Sequence[Head], n: int, seed: int) -> list[MatchedSet]:
    """Different random sets of other heads that disturb as much as the chosen ones.

    Args:
        scores: of all layers that heads may come from.
        chosen: the heads to be matched.
        n: how many sets.
        seed: of the draws.

    Returns:
        At most ``n`` sets, fewer where there are no more; those within the factor first, in random order.
    """
    rng = generator(seed)
    size = set_disturbance(scores, chosen)
    plan = _plan(scores, chosen)
    if plan is None:
        return []
    columns = []
    for layer, others, count in plan:
        keys = rng.random((_DRAWS, len(others))).argsort(axis=1)[:, :count]
        columns.append(np.asarray(layer)[keys] * 10_000 + np.asarray(others)[keys])
    drawn = np.unique(np.sort(np.concatenate(columns, axis=1), axis=1), axis=0)
    drawn = drawn[rng.permutation(len(drawn))]
    squares = {layer * 10_000 + head: value**2 for layer, one in scores.items() for head, value in enumerate(one.disturbance)}
    ratios = np.sqrt(np.vectorize(squares.__getitem__)(drawn).sum(1)) / size if size > 0 else np.ones(len(drawn))
    distance = np.abs(np.log(np.maximum(ratios, 1e-12)))
    fits = distance <= np.log(NORM_FACTOR) + 1e-12
    order = [*np.flatnonzero(fits), *sorted(np.flatnonzero(~fits), key=lambda i: distance[i])][:n]
    return [MatchedSet(tuple((int(c) // 10_000, int(c) % 10_000) for c in drawn[i]), float(ratios[i])) for i in order]


def _plan(scores: Mapping[int, HeadScores], chosen: Sequence[Head]) -> list[tuple[list[int], list[int], int]] | None:
    """Groups to draw from: (layers, heads) of the candidates, and how many of them; None where there are too few heads in all."""
    wanted = by_layer(chosen)
    spare = {layer: [h for h in range(len(one.raw_norm)) if h not in wanted.get(layer, ())] for layer, one in scores.items()}
    if sum(map(len, spare.values())) < len(chosen):
        return None
    counts = dict.fromkeys(scores, 0)
    for layer, heads in wanted.items():
        missing = len(heads)
        for other in sorted(scores, key=lambda i: (i != layer, i in wanted, abs(i - layer), i)):
            reserved = len(wanted.get(other, ())) if other > layer else 0  # for its own turn
            more = min(missing, max(0, len(spare[other]) - counts[other] - reserved))
            counts[other] += more
            missing -= more
        if missing:
            return None
    return [([layer] * len(spare[layer]), spare[layer], count) for layer, count in counts.items() if count]
