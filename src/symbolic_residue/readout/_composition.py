"""Composition of heads: how much of what one head writes another one reads, as a query, a key or a value.

1. With the source's OV circuit ``A₁B₁`` and the target's ``A_Q A_Kᵀ`` and ``A₂B₂`` (norm gains folded in, scales left out):
   Q: ``‖A₁B₁ A_Q A_Kᵀ‖ / (‖A₁B₁‖ ‖A_Q A_Kᵀ‖)``, K: ``‖A₁B₁ A_K A_Qᵀ‖ / …``, V: ``‖A₁B₁ A₂B₂‖ / (‖A₁B₁‖ ‖A₂B₂‖)``, Frobenius norms.
2. Every norm is a trace of ``d_head × d_head`` matrices: ``‖X C Yᵀ‖² = tr(Cᵀ (XᵀX) C (YᵀY))``.
3. A score says little alone: random matrices of the same shapes do not score 0. Their mean and the interval that holds 95 % of the draws stand beside.

Source: Elhage et al. 2021 (A Mathematical Framework for Transformer Circuits), Q-, K- and V-composition; random baseline as suggested there.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import get_args, Literal, TYPE_CHECKING

import torch
from torch import Tensor

from symbolic_residue.errors import ConfigError
from symbolic_residue.readout._circuits import circuit_of, interval_of_draws, ov_circuit, rotation
from symbolic_residue.readout._rotary import Rotate
from symbolic_residue.stats import Estimate

if TYPE_CHECKING:
    from symbolic_residue.instrument import Instrument

__all__ = ["CompositionScores", "Kind", "composition_scores"]

Kind = Literal["q", "k", "v"]
Head = tuple[int, int]


@dataclass(frozen=True)
class CompositionScores:
    """Composition scores, between 0 and 1.

    Attributes:
        scores: kind → ``[source, target]`` float64; NaN where the source is not in an earlier layer.
        control: kind → random matrices of the same shapes: mean, and the interval that holds 95 % of the draws (n of them).
        sources, targets: ``(layer, head)`` along the axes.
        distance: that the QK circuits are for, or None.
    """

    scores: dict[str, Tensor]
    control: dict[str, Estimate]
    sources: tuple[Head, ...]
    targets: tuple[Head, ...]
    distance: int | None


@dataclass(frozen=True)
class _Pair:
    """A matrix ``left @ right`` as its factors' Grams; float64."""

    left: Tensor
    right: Tensor

    def norm(self) -> Tensor:
        return _norm(self.left, torch.eye(self.left.shape[1], dtype=torch.float64), self.right)


def _norm(left: Tensor, middle: Tensor, right: Tensor) -> Tensor:
    """``‖left middle right‖`` for ``[n, a]``, ``[a, b]``, ``[b, m]`` without forming ``[n, m]``."""
    inner = torch.einsum("ab,ac,cd,bd->", middle, left.mT @ left, middle, right @ right.mT)
    return inner.clamp_min(0.0).sqrt()


def composed(first: _Pair, second: _Pair) -> float:
    """``‖first second‖ / (‖first‖ ‖second‖)``."""
    return float(_norm(first.left, first.right @ second.left, second.right) / (first.norm() * second.norm()))


def composition_scores(
    instrument: Instrument,
    sources: Sequence[Head],
    targets: Sequence[Head],
    *,
    kinds: Sequence[Kind] = ("q", "k", "v"),
    distance: int | None = None,
    seed: int = 0,
    n_random: int = 100,
) -> CompositionScores:
    """Composition of every source head with every target head.

    Args:
        instrument: the model's instrument.
        sources: ``(layer, head)`` that write.
        targets: ``(layer, head)`` that read.
        kinds: ``"q"``, ``"k"``, ``"v"``.
        distance: for rotary positions: query position minus key position (q and k only).
        seed: of the random matrices.
        n_random: draws of them.

    Raises:
        ConfigError: an unknown kind, no heads, fewer than 20 draws; as :func:`qk_circuit`.
        ReadError: heads that have no fixed OV or QK matrix.
    """
    if unknown := [k for k in kinds if k not in get_args(Kind)]:
        raise ConfigError(f"{unknown[0]!r} is no kind of composition.", todo="Use 'q', 'k', 'v'.")
    if not sources or not targets or not kinds:
        raise ConfigError("Composition needs at least one source, one target and one kind.")
    if n_random < 20:
        raise ConfigError(f"{n_random} random draws are too few for an interval of 95 %.", todo="Draw at least 20.")
    parts = instrument.parts
    writes = []
    for layer, head in sources:
        ov = ov_circuit(parts, layer, head)
        writes.append(_pair(ov.into, ov.out_gained))
    scores = {kind: torch.full((len(sources), len(targets)), float("nan"), dtype=torch.float64) for kind in kinds}
    rotations: dict[int, Rotate | None] = {}
    for t, (layer, head) in enumerate(targets):
        reads: dict[str, _Pair] = {}
        if "v" in kinds:
            ov = ov_circuit(parts, layer, head)
            reads["v"] = _pair(ov.into, ov.out_gained)
        if "q" in kinds or "k" in kinds:
            if layer not in rotations:
                rotations[layer] = rotation(instrument, layer, distance)
            qk = circuit_of(parts.layers[layer], head, rotations[layer], distance)
            reads |= {"q": _pair(qk.query, qk.key.mT), "k": _pair(qk.key, qk.query.mT)}
        for s, (source_layer, _) in enumerate(sources):
            if source_layer < layer:
                for kind in kinds:
                    scores[kind][s, t] = composed(writes[s], reads[kind])
    generator = torch.Generator().manual_seed(seed)

    def drawn() -> _Pair:
        left = torch.randn(parts.d_model, parts.d_head, generator=generator, dtype=torch.float64)
        return _Pair(left, torch.randn(parts.d_head, parts.d_model, generator=generator, dtype=torch.float64))

    # The three kinds multiply matrices of the same shapes, so one null serves them all.
    null = interval_of_draws([composed(drawn(), drawn()) for _ in range(n_random)])
    return CompositionScores(scores, dict.fromkeys(kinds, null), tuple(sources), tuple(targets), distance)


def _pair(left: Tensor, right: Tensor) -> _Pair:
    return _Pair(left.double().cpu(), right.double().cpu())
