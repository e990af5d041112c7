"""What an ablation's numbers say: losses by layer with their controls, and the verdict (the rules are in ``_ablate``)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from symbolic_residue.concepts._ablate_run import Tokens
from symbolic_residue.concepts._choose import Head, MatchedSet
from symbolic_residue.stats import bootstrap_ratio, empirical_p, Estimate, t_interval

__all__ = [
    "ALPHA",
    "CHOSEN",
    "FEWEST_CONTROLS",
    "FIRST",
    "LEAST_SHARE",
    "OWN",
    "PLAIN",
    "SELF",
    "Ablation",
    "LayerLoss",
    "Tried",
    "judge",
]

Array = NDArray[np.float64]
LEAST_SHARE = 0.10
"""Of the contrast: about what 10 of the demo model's 144 heads up to its middle layer would take (7 %) if all took the same."""
ALPHA = 0.05
FEWEST_CONTROLS = 19
"""With fewer the smallest p is above .05."""
CausalVerdict = Literal["carry", "not", "undecided"]


PLAIN, CHOSEN, SELF, OWN, FIRST = range(5)
"""Rows of what was tried: nothing changed, the chosen heads at their mean, at their own output, at their class's mean, the first control."""


@dataclass(frozen=True, eq=False)
class LayerLoss:
    """What ablation takes from the contrast in one readout layer; shares of the unablated contrast, intervals over scenarios.

    Attributes:
        layer: read at ``resid_post`` of this layer.
        contrast: unablated and held out, in the residual stream's units.
        lost: share lost with the chosen heads; NaN where the contrast's interval touches 0.
        control: share lost with the controls, their mean.
        excess: lost − control.
        controls: share lost with each control.
        p: rank of the chosen heads among the controls, one-sided.
    """

    layer: int
    contrast: Estimate
    lost: Estimate
    control: Estimate
    excess: Estimate
    controls: tuple[float, ...]
    p: float


@dataclass(frozen=True, eq=False)
class Ablation:
    """The heads of one concept, ablated.

    Attributes:
        concept, layer, by, tokens, seed: as asked.
        halves: the heads tried on each part of the scenarios (chosen on the others), best first.
        named: whether the caller named them.
        scenarios: how many were judged.
        layers: losses at the readout layer (first) and later ones.
        predicted: direct effect of the chosen heads as a share of the contrast at the readout layer.
        predicted_controls: of each control.
        ratios: each control's disturbance over the chosen heads', mean over the parts.
        kl: of the next token with the chosen heads ablated, nats, mean over scenarios; ``kl_controls`` of each control.
        nll: rise of the text's NLL a token, where every token is ablated; ``nll_controls`` of each control.
        own_mean, self_drift: see the module.
        verdict, why: see the module.
    """

    concept: str
    layer: int
    by: str
    tokens: Tokens
    seed: int
    halves: tuple[tuple[Head, ...], ...]
    named: bool
    scenarios: int
    layers: tuple[LayerLoss, ...]
    predicted: Estimate
    predicted_controls: tuple[float, ...]
    ratios: tuple[float, ...]
    kl: Estimate
    kl_controls: tuple[float, ...]
    nll: Estimate | None
    nll_controls: tuple[float, ...]
    own_mean: Estimate
    self_drift: float
    verdict: CausalVerdict
    why: str


@dataclass(frozen=True, eq=False)
class Tried:
    """What was tried on one part of the scenarios.

    Attributes:
        heads: those chosen on the other part.
        controls: sets matched to them.
        contrast: readout layer → ``[row, scenario]``; rows as above.
        kl: ``[row, scenario]``, nats.
        nll: ``[row, scenario]``, nats a token, or None.
        predicted: ``[1 + control, scenario]``: direct effect of the chosen heads and of each control.
        drift: largest change of a projection when heads are replaced by their own outputs.
    """

    heads: tuple[Head, ...]
    controls: list[MatchedSet]
    contrast: dict[int, Array]
    kl: Array
    nll: Array | None
    predicted: Array
    drift: float


def judge(concept: str, layers: Sequence[int], by: str, tokens: Tokens, seed: int, named: bool, tried: Sequence[Tried]) -> Ablation:
    """Both parts as one result.

    Args:
        concept, by, tokens, seed, named: kept with it.
        layers: the readout layer, then later ones.
        tried: the parts.
    """
    n_controls = min(len(one.controls) for one in tried)
    rows = FIRST + n_controls

    def joined(values: Sequence[Array], n: int = rows) -> Array:
        return np.concatenate([value[:n] for value in values], axis=1)

    # [control, scenario]: what a control that disturbs less falls short of.
    ratios = np.array([[c.ratio for c in one.controls[:n_controls]] for one in tried]).reshape(len(tried), n_controls)
    factor = np.concatenate(
        [
            np.repeat(1 / np.clip(ratio, 1e-9, 1.0)[:, None], one.kl.shape[1], axis=1)
            for ratio, one in zip(ratios, tried, strict=True)
        ],
        axis=1,
    )
    losses = tuple(_loss(i, joined([one.contrast[i] for one in tried]), factor, seed) for i in layers)
    contrast = joined([one.contrast[layers[0]] for one in tried])
    predicted, own = joined([one.predicted for one in tried], 1 + n_controls), contrast[PLAIN] - contrast[OWN]
    shares = _ratios(np.column_stack([predicted.T, own]), contrast[PLAIN], seed)
    kl = joined([one.kl for one in tried])
    nll = None if tried[0].nll is None else joined([one.nll for one in tried if one.nll is not None])
    verdict, why = _verdict(losses[0], n_controls)
    return Ablation(
        concept=concept,
        layer=layers[0],
        by=by,
        tokens=tokens,
        seed=seed,
        halves=tuple(one.heads for one in tried),
        named=named,
        scenarios=contrast.shape[1],
        layers=losses,
        predicted=shares[0],
        predicted_controls=tuple(float(one.value) for one in shares[1:-1]),
        ratios=tuple(ratios.mean(0).tolist()),
        kl=t_interval_from_0(kl[CHOSEN]),
        kl_controls=tuple(kl[FIRST:].mean(1).tolist()),
        nll=None if nll is None else t_interval(nll[CHOSEN] - nll[PLAIN]),
        nll_controls=() if nll is None else tuple((nll[FIRST:] - nll[PLAIN]).mean(1).tolist()),
        own_mean=shares[-1] if tokens == "pooled" else _none(contrast.shape[1], "not asked where every token is ablated"),
        self_drift=max(one.drift for one in tried) / max(abs(float(contrast[PLAIN].mean())), 1e-12),
        verdict=verdict,
        why=why,
    )


def t_interval_from_0(values: Array) -> Estimate:
    """Mean of values that are never negative, with a t interval cut at 0."""
    found = t_interval(values)
    return Estimate(
        found.value, max(0.0, found.low) if found.has_interval else found.low, found.high, found.n, found.level, found.method
    )


def _none(n: int, why: str) -> Estimate:
    return Estimate(float("nan"), float("nan"), float("nan"), n, 0.95, f"none: {why}")


def _ratios(numerators: Array, denominator: Array, seed: int) -> list[Estimate]:
    """Columns of ``[scenario, k]`` over the contrast ``[scenario]``."""
    value, low, high = bootstrap_ratio(numerators, denominator, seed=seed)
    n = len(denominator)
    return [
        Estimate(float(v), float(a), float(b), n, 0.95, "bootstrap over scenarios, ratio of means")
        if np.isfinite(v)
        else _none(n, "the contrast's interval touches 0")
        for v, a, b in zip(value, low, high, strict=True)
    ]


def _loss(layer: int, contrast: Array, factor: Array, seed: int) -> LayerLoss:
    plain = contrast[PLAIN]
    lost = plain - contrast[CHOSEN]
    controls = (plain - contrast[FIRST:]) * factor
    many = len(controls) > 0
    mean = controls.mean(0) if many else np.zeros_like(plain)
    shares = _ratios(np.column_stack([lost, mean, lost - mean, *controls]), plain, seed)
    nothing = _none(len(plain), "there are no control sets")
    p = empirical_p(float(lost.mean()), controls.mean(1)) if many else 1.0
    return LayerLoss(
        layer,
        t_interval(plain),
        shares[0],
        shares[1] if many else nothing,
        shares[2] if many else nothing,
        tuple(float(one.value) for one in shares[3:]),
        float(p),
    )


def _verdict(loss: LayerLoss, n_controls: int) -> tuple[CausalVerdict, str]:
    if not loss.contrast.above(0):
        return "undecided", "The unablated contrast's interval on held-out scenarios is not above 0: there is nothing to carry."
    if n_controls < FEWEST_CONTROLS:
        return "undecided", f"There are {n_controls} different control sets; {FEWEST_CONTROLS} are needed."
    excess = loss.excess
    shown = f"excess {excess.value:.2f} [{excess.low:.2f}, {excess.high:.2f}] of the contrast, p {loss.p:.3f}"
    if excess.above(LEAST_SHARE) and loss.p <= ALPHA:
        return "carry", f"More is lost than with other heads of the same size: {shown}."
    if excess.below(LEAST_SHARE):
        return "not", f"Less than {LEAST_SHARE:.2f} more is lost than with other heads of the same size: {shown}."
    return "undecided", f"The interval holds {LEAST_SHARE:.2f}, or other heads do as much: {shown}."
