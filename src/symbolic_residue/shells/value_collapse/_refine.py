"""STABILIZE's three refiners, and what their traces show.

1. ``rollout``: append the best token, read the distribution again (the distribution moves to the next position, as in the shell's seed text).
2. ``soft``: append the distribution's expected embedding ``Σ_t p_t E_t`` as one more input position, and read again.
3. ``layers``: the logit lens over depth, from the first depth at which the candidates are readable: the model's own refinement.

From each trace of the candidates' shares: *returns* (times the lead goes back to a candidate that led before), *leader loss* (what share of its mass the first
leader has lost at the end), *velocity* (slope of ln L1 change per step; negative is convergence), and the *mass transfer* between candidates: what one loses
in a step goes to those that gain, in proportion to their gains.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from symbolic_residue.instrument import Batch, Decoder, Instrument
from symbolic_residue.shells._rows import LastRows

__all__ = ["Refinement", "count_returns", "leader_loss", "refine_layers", "refine_rollout", "refine_soft", "transfer", "velocity"]

Array = NDArray[np.float64]


@dataclass(frozen=True)
class Refinement:
    """Traces of one refiner over prompt variants.

    Attributes:
        refiner: its name.
        probability: ``[variant, step, candidate]``; NaN after a variant has ended (and before it was readable).
        l1: ``[variant, step]``: L1 change of the whole distribution at each step after the first; NaN where there is none.
        converged: ``[variant]``.
        appended: token ids appended to the prompt itself, for ``rollout``.
    """

    refiner: str
    probability: Array
    l1: Array
    converged: NDArray[np.bool_]
    appended: tuple[int, ...] = ()

    @property
    def share(self) -> Array:
        """Each candidate's share of the candidates' mass, ``[variant, step, candidate]``."""
        return self.probability / np.maximum(self.probability.sum(-1, keepdims=True), 1e-300)

    def trace(self, variant: int) -> Array:
        """Shares of one variant, ``[step, candidate]``, without the steps that do not exist."""
        share = self.share[variant]
        return share[~np.isnan(share[:, 0])]


def refine_rollout(
    instrument: Instrument, batch: Batch | LastRows, candidates: list[int], steps: int, tolerance: float
) -> Refinement:
    """Append the best token, again and again; see the module."""
    return _decode("rollout", instrument, batch, candidates, steps, tolerance)


def refine_soft(instrument: Instrument, batch: Batch | LastRows, candidates: list[int], steps: int, tolerance: float) -> Refinement:
    """Append the expected embedding, again and again; see the module."""
    return _decode("soft", instrument, batch, candidates, steps, tolerance)


def _decode(
    refiner: str, instrument: Instrument, batch: Batch | LastRows, candidates: list[int], steps: int, tolerance: float
) -> Refinement:
    """Sequences, or rows that have run already: those go on from there."""
    if isinstance(batch, LastRows):
        pieces = zip(batch.pieces, batch.rows, strict=True)
        decoders = [Decoder(instrument, piece) if row is None else row.continued() for piece, row in pieces]
    else:
        decoders = [Decoder(instrument, batch)]
    table = None
    if refiner == "soft":
        with torch.no_grad():  # the embedding module's output, so that a family's own scaling is in it
            table = instrument.parts.embedded(torch.arange(instrument.parts.vocab_size, device=instrument.device)).float()
    found = [_go_on(decoder, instrument, table, candidates, steps, tolerance) for decoder in decoders]
    longest = max(p.shape[1] for p, *_ in found)

    def filled(x: Array) -> Array:
        return np.concatenate([x, np.full((x.shape[0], longest - x.shape[1], *x.shape[2:]), np.nan)], 1)

    return Refinement(
        refiner,
        np.concatenate([filled(p) for p, *_ in found]),
        np.concatenate([filled(l1) for _, l1, *_ in found]),
        np.concatenate([converged for *_, converged, _ in found]),
        tuple(found[0][3]),
    )


def _go_on(
    decoder: Decoder, instrument: Instrument, table: Tensor | None, candidates: list[int], steps: int, tolerance: float
) -> tuple[Array, Array, NDArray[np.bool_], list[int]]:
    """Probabilities ``[sequence, step, candidate]``, L1 changes ``[sequence, step]``, which have converged, and what was appended to the first."""
    limit = instrument.parts.max_context
    n = decoder.logits.shape[0]
    p = torch.softmax(decoder.logits, -1)
    probability, l1 = [p[:, candidates]], [np.full(n, np.nan)]
    converged = np.zeros(n, dtype=bool)
    appended: list[int] = []
    for _ in range(steps):
        if converged.all() or (limit is not None and decoder.length >= limit):
            break
        best = p.argmax(-1)
        if table is not None:
            decoder.step(embeds=(p @ table).to(instrument.parts.embed.weight.dtype))  # type: ignore[arg-type]
        else:
            decoder.step(ids=best)
            if not converged[0]:
                appended.append(int(best[0]))
        after = torch.softmax(decoder.logits, -1)
        change = (after - p).abs().sum(-1).cpu().double().numpy()
        p = after
        row = p[:, candidates].clone()
        row[torch.from_numpy(converged)] = float("nan")  # a variant that has converged has ended
        probability.append(row)
        l1.append(np.where(converged, np.nan, change))
        converged |= change < tolerance
    return torch.stack(probability, 1).cpu().double().numpy(), np.stack(l1, 1), converged, appended


def refine_layers(log_probability: Array, l1: Array, readable: float, tolerance: float) -> Refinement:
    """The lens over depth as a refinement.

    Args:
        log_probability: ``[variant, depth, candidate]`` of the candidates under the lens.
        l1: ``[variant, depth]``: L1 change of the lens distribution from the depth before.
        readable: probability that the candidates must hold together, from the first depth kept on.
        tolerance: the last change below which the variant counts as converged.
    """
    p = np.exp(log_probability)
    n, depths = p.shape[:2]
    out, change = p.copy(), l1.copy()
    for v in range(n):
        enough = np.flatnonzero(p[v].sum(-1) >= readable)
        first = int(enough[0]) if len(enough) else depths - 1
        out[v, :first] = np.nan
        change[v, : first + 1] = np.nan
    return Refinement("layers", out, change, l1[:, -1] < tolerance)


def count_returns(share: Array) -> int:
    """How often the lead goes back to a candidate that has led before, in shares ``[step, candidate]``: A B A is one return."""
    leaders = share.argmax(-1)
    seen: set[int] = set()
    count = 0
    for i, leader in enumerate(leaders.tolist()):
        if i and leader != leaders[i - 1] and leader in seen:
            count += 1
        seen.add(leader)
    return count


def leader_loss(share: Array) -> float:
    """Share of its mass that the first leader has lost at the end, in ``[0, 1]``."""
    first = int(share[0].argmax())
    if share[0, first] <= 0:  # every candidate's probability underflowed: nobody leads, and there is nothing to lose
        return 0.0
    return float(np.clip(1 - share[-1, first] / share[0, first], 0.0, 1.0))


def velocity(l1: Array) -> float:
    """Slope of ln L1 per step over the steps that exist (nats a step); NaN with fewer than two."""
    steps = np.flatnonzero(~np.isnan(l1) & (l1 > 0))
    if len(steps) < 2:
        return float("nan")
    return float(np.polyfit(steps, np.log(l1[steps]), 1)[0])


def transfer(share: Array) -> Array:
    """Mass that went from candidate i to candidate j over all steps, ``[source, target]``, in shares of the candidates' mass."""
    out = np.zeros((share.shape[1], share.shape[1]))
    for step in np.diff(share, axis=0):
        gain, loss = np.maximum(step, 0.0), np.maximum(-step, 0.0)
        if gain.sum() > 0:
            out += np.outer(loss, gain / gain.sum())
    return out
