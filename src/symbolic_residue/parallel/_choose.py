"""From the rows of one set to the next set: how rows are combined, and which tokens enter.

1. Each row's distribution is ``softmax`` of its logits, in float64. With weights w (the siblings' probabilities, summing to 1): ``top`` is the first row,
   ``last``
   the last, ``mixture`` Σ w_i p_i, ``geometric`` the normalised Π p_i^{w_i}.
2. The set is every token with p ≥ τ by falling probability (equal ones by id), the argmax if there is none, cut at ``max_siblings``.
3. Disagreement of the rows: Σ w_i KL(p_i ‖ Σ w_j p_j), the weighted Jensen–Shannon divergence, nats.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from symbolic_residue.errors import InstrumentError
from symbolic_residue.parallel._config import Follow

__all__ = ["Chosen", "choose", "combine", "disagreement", "log_softmax"]


def log_softmax(logits: Tensor) -> Tensor:
    """Rows ``[row, vocab]`` of log-probabilities (float64).

    Raises:
        InstrumentError: NaN or infinite logits.
    """
    rows = torch.log_softmax(logits.double(), -1)
    if bool(torch.isnan(rows[:, 0]).any()):  # one NaN or +∞ makes its whole row NaN
        raise InstrumentError(
            "Logits are NaN or infinite.",
            why="No set can be chosen from them.",
            todo="Look for the first point with NaN; half precision overflows, and so does a large sibling embedding.",
        )
    return rows


def combine(rows: Tensor, weights: Tensor, follow: Follow) -> Tensor:
    """``[vocab]`` log-probabilities from the rows' ``[row, vocab]`` and ``[row]`` weights that sum to 1."""
    if follow == "top" or len(rows) == 1:
        return rows[0]
    if follow == "last":
        return rows[-1]
    w = weights.double()[:, None]
    if follow == "geometric":
        return torch.log_softmax((w * rows).sum(0), -1)
    return torch.logsumexp(rows + w.log(), 0)


def disagreement(rows: Tensor, weights: Tensor) -> float:
    """Weighted Jensen–Shannon divergence of rows of log-probabilities, nats."""
    if len(rows) == 1:
        return 0.0
    w = weights.double()
    mean = torch.logsumexp(rows + w.log()[:, None], 0)
    between = float(torch.special.entr(mean.exp()).sum() - (w * torch.special.entr(rows.exp()).sum(-1)).sum())
    return max(between, 0.0)


@dataclass(frozen=True)
class Chosen:
    """A set: ids and probabilities by falling probability, how many reached the threshold, and the distribution's entropy (nats)."""

    ids: list[int]
    probabilities: list[float]
    above: int
    entropy: float


def choose(log_p: Tensor, threshold: float, cap: int) -> Chosen:
    """The set of a distribution ``[vocab]`` of log-probabilities."""
    p = log_p.exp()
    at = (p >= threshold).nonzero()[:, 0]
    above = len(at)
    if not above:
        at = p.argmax()[None]
    if above > cap:  # no need to sort what is cut off; equal ones at the edge all stay for the sort
        at = at[p[at] >= torch.topk(p[at], cap).values[-1]]
    order = torch.sort(p[at], descending=True, stable=True).indices[:cap]  # ids rise, so equal ones stay in that order
    ids = at[order]
    return Chosen(ids.tolist(), p[ids].tolist(), above, float(torch.special.entr(p).sum()))
