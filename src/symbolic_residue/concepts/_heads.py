"""Which heads carry a concept: per-head differences of means, each number beside its value under permuted labels.

1. ``x [text, head, d_head]`` is the heads' output at the pooled token. ``Δ_h`` = mean over positives − mean over negatives (paired: the mean of the scenarios'
   differences). ``raw_norm_h = ‖Δ_h‖``.
2. ``neg_std_h`` = √ of the trace of the sample covariance (ddof 1) of ``x_h`` over the negatives: unchanged by rotations of the head, in the units of a norm.
   ``selectivity_h = raw_norm_h / neg_std_h``; of independent texts without a concept it is about ``√(1/n₊ + 1/n₋)``. Pairs share their scenario, so their
   null is lower: the permutation's own mean is beside it.
3. ``head_concentration`` = share of the k largest raw norms in the sum of all, ``k = min(10, H)``; equal heads give ``k/H``, and heads of unequal noise
   more than that without any concept, so it is compared with permuted labels. ``participation_ratio = (Σ m)² / Σ m²`` with ``m = raw_norm²``: between 1 and H.
4. ``write_norm_h = ‖W_h Δ_h‖`` and ``direct_h = v · (W_h Δ_h)`` with the layer's unit direction v, both before any norm of the attention output, the block's
   constant factor in them. ``Σ_h W_h Δ_h`` is the difference of means of the attention output. ``share`` = |direct_h| / Σ |direct|.
   v comes from the same texts, so direct leans to positive values under the null too: its null makes v anew from the permuted labels (difference of means
   only).
5. Null: labels permuted within scenarios, the same draws in every layer. Selectivity and direct have family-wise p values (``_null``): ``p_layer`` over the
   heads of the layer, ``p_model`` over all heads of all layers decomposed.
6. All of it comes from sums over blocks of texts (``_rows``): memory does not grow with the number of texts but for the labels, one byte a draw and text.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from symbolic_residue.concepts._collect import Pooled, SkippedLayer
from symbolic_residue.concepts._design import Design, draw_labels, make_design
from symbolic_residue.concepts._directions import Directions
from symbolic_residue.concepts._null import max_t_p, standardised, tail_p
from symbolic_residue.concepts._rows import label_weights, Rows
from symbolic_residue.errors import ConfigError, ReadError

if TYPE_CHECKING:
    from symbolic_residue.models import Parts

__all__ = ["HeadDecomposition", "LayerHeads", "NullValue", "decompose_heads", "decompose_layer", "output_weights"]

Array = NDArray[np.float64]
TOP = 10


@dataclass(frozen=True, slots=True)
class NullValue:
    """What a number is under permuted labels: mean and sd over the draws, and the share of labelings (the observed among them) that reach it."""

    mean: float
    sd: float
    p: float

    @classmethod
    def of(cls, values: Array) -> NullValue:
        """From ``[1 + draw]``, the observed value first."""
        return cls(float(values[1:].mean()), float(values[1:].std(ddof=1)), tail_p(values))


@dataclass(frozen=True, eq=False)
class LayerHeads:
    """The heads of one layer for one concept.

    Attributes:
        delta: ``[head, d_head]``.
        raw_norm, neg_std, selectivity: ``[head]``.
        selectivity_expected: √(1/n₊ + 1/n₋).
        selectivity_null: ``[head]``: mean under permuted labels.
        p_layer, p_model: ``[head]``: family-wise p of selectivity over the layer's heads, and over those of all layers decomposed together.
        k, head_concentration, uniform, concentration_null: see the module's text.
        participation_ratio, participation_null: between 1 and H; the null's p counts draws at least as spread.
        total_norm, total_null: Σ raw_norm.
        write_norm, direct, share: ``[head]``.
        direct_null, direct_p: ``[head]``: mean under permuted labels, and family-wise p over the layer's heads; None where v is no difference of means.
    """

    layer: int
    delta: Array
    raw_norm: Array
    neg_std: Array
    selectivity: Array
    selectivity_expected: float
    selectivity_null: Array
    p_layer: Array
    p_model: Array
    k: int
    head_concentration: float
    uniform: float
    concentration_null: NullValue
    participation_ratio: float
    participation_null: NullValue
    total_norm: float
    total_null: NullValue
    write_norm: Array
    direct: Array
    share: Array
    direct_null: Array | None
    direct_p: Array | None

    @property
    def n_heads(self) -> int:
        """Query heads."""
        return len(self.raw_norm)


@dataclass(frozen=True, eq=False)
class HeadDecomposition:
    """A concept's heads in every layer that has some."""

    concept: str
    design: Design
    layers: dict[int, LayerHeads]
    skipped: tuple[SkippedLayer, ...]
    beside: tuple[SkippedLayer, ...]
    n_draws: int
    seed: int
    notes: tuple[str, ...] = ()


@dataclass(frozen=True, eq=False)
class _Drawn:
    """One layer's statistics for the observed labels (first) and every draw, ``[1 + draw, head]``."""

    raw: Array
    selectivity: Array
    direct: Array | None
    neg_std: Array
    """``[head]``, of the observed labels."""

    delta: Array
    """``[head, d_head]``, of the observed labels."""


def output_weights(parts: Parts, layer: int) -> Array:
    """``W_h`` of every head with the block's constant factor, ``[head, d_head, d_model]`` float64: ``z_h @ W_h`` is what the head writes."""
    found = parts.layers[layer]
    return np.stack([found.w_o(h).double().cpu().numpy() for h in range(found.n_heads)]) * found.attn_scale


def decompose_layer(
    x: NDArray[np.floating],
    w_o: Array,
    v: NDArray[np.floating],
    design: Design,
    drawn: NDArray[np.bool_],
    *,
    layer: int = 0,
    k: int = TOP,
    resid: NDArray[np.floating] | None = None,
) -> LayerHeads:
    """One layer by itself, from arrays; ``p_model`` is then ``p_layer``.

    Args:
        x: ``[n, head, d_head]``: the design's rows, in its order.
        w_o: ``[head, d_head, d_model]``.
        v: the layer's unit direction ``[d_model]``.
        design: labels and strata.
        drawn: ``[draw, n]`` labels of :func:`draw_labels`.
        layer: its number.
        k: heads counted as the top.
        resid: ``[n, d_model]``: the residual stream that v is the difference of means of, for the null of direct.

    Raises:
        ConfigError: rows that do not fit, fewer than two negatives, or negatives that are all the same.
    """
    statistics = _draw(Rows.of(x), w_o, design, drawn, None if resid is None else Rows.of(resid))
    z = standardised(statistics.selectivity)
    p = max_t_p(z[0], z.max(1))
    return _layer(_write(statistics.delta, w_o, v), design, statistics, layer, k, p, p)


def decompose_heads(
    pooled: Pooled,
    labels: Sequence[str],
    scenarios: Sequence[str | None],
    concept: str,
    parts: Parts,
    directions: Directions,
    *,
    k: int = TOP,
    n_draws: int = 1000,
    seed: int = 0,
) -> HeadDecomposition:
    """One concept over all layers with heads.

    Args:
        pooled: of :func:`collect` with heads.
        labels, scenarios: one a text.
        concept: which.
        parts: the model's parts, for the output weights.
        directions: of the same model and texts; they say what the negatives are.
        k: heads counted as the top (all, where there are fewer).
        n_draws: permutations of the labels; 1000 or more.
        seed: of the permutations.

    Raises:
        ReadError: no heads were collected.
        ConfigError: too few draws, no such concept, or fewer than two negatives.
    """
    if not pooled.heads:
        raise ReadError("No heads were collected.", todo="Collect with heads=True from a model with softmax attention.")
    if n_draws < 1000:
        raise ConfigError(f"{n_draws} permutations are too few.", why="The tails would be noise.", todo="Draw 1000 or more.")
    if k < 1:
        raise ConfigError(f"The top {k} heads are none.", todo="Give k of 1 or more.")
    design = make_design(labels, scenarios, concept, directions.against)
    drawn = draw_labels(design, n_draws, seed)
    written: dict[int, tuple[Array, Array]] = {}
    statistics: dict[int, _Drawn] = {}
    for i in sorted(pooled.heads):
        w_o = output_weights(parts, i)
        resid = Rows(pooled.resid[i], design.rows) if directions.estimator == "difference" else None
        statistics[i] = found = _draw(Rows(pooled.heads[i], design.rows), w_o, design, drawn, resid)
        written[i] = _write(found.delta, w_o, directions.vector(concept, i))
    scores = {i: standardised(s.selectivity) for i, s in statistics.items()}
    of_model = np.max([z.max(1) for z in scores.values()], axis=0)
    layers = {
        i: _layer(written[i], design, s, i, k, max_t_p(scores[i][0], scores[i].max(1)), max_t_p(scores[i][0], of_model))
        for i, s in statistics.items()
    }
    return HeadDecomposition(concept, design, layers, pooled.skipped, pooled.beside, n_draws, seed, _notes(parts, tuple(layers)))


def _draw(x: Rows, w_o: Array, design: Design, drawn: NDArray[np.bool_], resid: Rows | None) -> _Drawn:
    """All statistics of one layer from sums over blocks of texts: memory is labelings × (2 · heads · d_head + d_model)."""
    if len(x.shape) != 3 or len(x) != len(design.positive) or w_o.shape[:2] != x.shape[1:]:
        raise ConfigError(f"Heads {x.shape} do not fit {len(design.positive)} texts and output weights {w_o.shape}.")
    n_neg = design.n_neg
    if n_neg < 2:
        raise ConfigError(f"{design.concept!r} has {n_neg} negative.", why="One text has no spread.", todo="Give two or more.")
    labels = np.concatenate([design.positive[None], drawn])
    weights, mean, (n_heads, d_head) = label_weights(design, labels), x.mean(), x.shape[1:]
    delta, negatives = (np.zeros((len(labels), n_heads, d_head)) for _ in range(2))
    of_negatives, scale = np.zeros((len(labels), n_heads)), np.zeros(n_heads)
    for at, block in x.blocks():
        block -= mean  # changes neither differences nor covariances, and keeps their digits
        flat, negative = block.reshape(len(block), -1), (~labels[:, at]).astype(np.float64)
        delta += (weights(at) @ flat).reshape(delta.shape)
        negatives += (negative @ flat).reshape(delta.shape)
        lengths = np.einsum("nhd,nhd->nh", block, block)
        of_negatives += negative @ lengths
        scale += lengths.sum(0) / len(x)
    raw = np.sqrt(np.einsum("rhd,rhd->rh", delta, delta))
    spread = (of_negatives - np.einsum("rhd,rhd->rh", negatives, negatives) / n_neg) / (n_neg - 1)
    std = np.sqrt(np.where(spread > 1e-12 * scale, spread, 0.0))
    if bool(((std[0] == 0) & (raw[0] > 1e-9 * np.sqrt(scale)) & (scale > 0)).any()):
        raise ConfigError(
            f"The negatives of {design.concept!r} are all the same in some head.", todo="Look for a text given twice."
        )
    selectivity = np.divide(raw, std, out=np.zeros_like(raw), where=std > 0)
    direct = None if resid is None else _direct(delta, w_o, resid, weights)
    return _Drawn(raw, selectivity, direct, std[0], delta[0].copy())


def _direct(delta: Array, w_o: Array, resid: Rows, weights: Callable[[slice], Array]) -> Array:
    """``v · (W_h Δ_h)`` of every labeling, v its own difference of means: W goes to the texts or to the sums, whichever are fewer."""
    flat, mean = w_o.reshape(-1, w_o.shape[2]).T, resid.mean()
    v = resid.sums(weights, mean)
    if len(resid) < len(v):
        pulled = np.zeros((len(v), flat.shape[1]))
        for at, block in resid.blocks():
            pulled += weights(at) @ ((block - mean) @ flat)
    else:
        pulled = v @ flat
    direct = np.einsum("rhd,rhd->rh", pulled.reshape(delta.shape), delta)
    norm = np.linalg.norm(v, axis=1)[:, None]
    return np.divide(direct, norm, out=np.zeros_like(direct), where=norm > 0)


def _write(delta: Array, w_o: Array, v: NDArray[np.floating]) -> tuple[Array, Array]:
    """``write_norm`` and ``direct``, ``[head]``."""
    write = np.einsum("hd,hdm->hm", delta, w_o)
    return np.linalg.norm(write, axis=1), write @ np.asarray(v, dtype=np.float64)


def _layer(
    written: tuple[Array, Array], design: Design, drawn: _Drawn, layer: int, k: int, p_layer: Array, p_model: Array
) -> LayerHeads:
    write_norm, direct = written
    n_heads = len(direct)
    k = min(k, n_heads)
    concentration = _concentration(drawn.raw, k)
    participation = _participation(drawn.raw)
    total = drawn.raw.sum(1)
    raw, selectivity = drawn.raw[0], drawn.selectivity[0]
    size = np.abs(direct).sum()
    direct_null, direct_p = None, None
    if drawn.direct is not None:
        z = standardised(drawn.direct)
        direct_null, direct_p = drawn.direct[1:].mean(0), max_t_p(z[0], z.max(1))
    spread = NullValue.of(-participation)
    return LayerHeads(
        layer=layer,
        delta=drawn.delta,
        raw_norm=raw,
        neg_std=drawn.neg_std,
        selectivity=selectivity,
        selectivity_expected=float(np.sqrt(1 / design.n_pos + 1 / design.n_neg)),
        selectivity_null=drawn.selectivity[1:].mean(0),
        p_layer=p_layer,
        p_model=p_model,
        k=k,
        head_concentration=float(concentration[0]),
        uniform=k / n_heads,
        concentration_null=NullValue.of(concentration),
        participation_ratio=float(participation[0]),
        participation_null=NullValue(-spread.mean, spread.sd, spread.p),
        total_norm=float(total[0]),
        total_null=NullValue.of(total),
        write_norm=write_norm,
        direct=direct,
        share=np.abs(direct) / size if size > 0 else np.zeros(n_heads),
        direct_null=direct_null,
        direct_p=direct_p,
    )


def _concentration(raw: Array, k: int) -> Array:
    """Share of the k largest in the sum, ``[draw, head] -> [draw]``; 0 where all are 0."""
    total = raw.sum(1)
    return np.divide(np.sort(raw, axis=1)[:, -k:].sum(1), total, out=np.zeros_like(total), where=total > 0)


def _participation(raw: Array) -> Array:
    m = raw**2
    squares = (m**2).sum(1)
    return np.divide(m.sum(1) ** 2, squares, out=np.zeros_like(squares), where=squares > 0)


def _notes(parts: Parts, layers: Sequence[int]) -> tuple[str, ...]:
    notes = []
    if any(parts.layers[i].post_attn_norm is not None for i in layers):
        notes.append(
            "The attention output passes a norm before it joins the residual stream: write norms and direct are before that norm."
        )
    if any(parts.layers[i].qkv_layout == "gated" for i in layers):
        notes.append("A gate acts on the heads' outputs before the output projection: it is inside these numbers.")
    if parts.n_kv_heads < parts.n_heads:
        notes.append(f"{parts.n_heads} query heads share {parts.n_kv_heads} key-value heads; heads here are query heads.")
    return tuple(notes)
