"""Logit lens: what the model would say if it stopped at a layer.

1. Take the residual stream after each layer (and the embedding as depth 0), apply the model's own final norm and unembedding.
2. Keep, per depth and row, the best token, its probability, the entropy of the distribution, and the log-probability of chosen tokens. The vocabulary-sized
   distribution is made for one layer at a time and dropped.

At the last depth the lens *is* the model's output (tested). Source: nostalgebraist 2020, "interpreting GPT: the logit lens".
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

if TYPE_CHECKING:
    from symbolic_residue.instrument import Trace
    from symbolic_residue.models import Parts

__all__ = ["LogitLens", "lens_logits", "lens_reads", "logit_lens"]


def lens_reads() -> tuple[str, ...]:
    """The points that :func:`logit_lens` needs in its trace."""
    return ("resid_pre.0", "resid_post.*")


@dataclass
class LogitLens:
    """The lens over depths 0 (embedding) to n_layers.

    Attributes:
        top: ``[depth, batch, row]`` best token id.
        top_probability: ``[depth, batch, row]``.
        entropy: ``[depth, batch, row]`` in nats.
        log_probability: ``[depth, batch, row, token]`` of the chosen tokens, in nats.
        tokens: the chosen token ids.
    """

    top: Tensor
    top_probability: Tensor
    entropy: Tensor
    log_probability: Tensor
    tokens: tuple[int, ...]


def logit_lens(trace: Trace, parts: Parts, tokens: Sequence[int] = (), rows: Sequence[int] | None = None) -> LogitLens:
    """The logit lens at chosen rows (default all).

    Args:
        trace: a forward with :func:`lens_reads`.
        parts: the model's parts (final norm, unembedding, softcap).
        tokens: ids whose log-probabilities are kept.
        rows: query rows; negative counts from the end.
    """
    chosen = torch.tensor(list(tokens), dtype=torch.long, device=parts.w_u.device)
    out: dict[str, list[Tensor]] = {"top": [], "p": [], "h": [], "lp": []}
    with torch.no_grad():
        for depth in range(parts.n_layers + 1):
            resid = trace["resid_pre.0"] if depth == 0 else trace[f"resid_post.{depth - 1}"]
            resid = resid if rows is None else resid[:, list(rows)]
            log_p = torch.log_softmax(lens_logits(parts, resid), -1)
            best = log_p.max(-1)
            out["top"].append(best.indices)
            out["p"].append(best.values.exp())
            out["h"].append(-(log_p.exp() * log_p).sum(-1))
            out["lp"].append(log_p[..., chosen])
    return LogitLens(*(torch.stack(out[name]) for name in ("top", "p", "h", "lp")), tokens=tuple(tokens))


@torch.no_grad()
def lens_logits(parts: Parts, resid: Tensor) -> Tensor:
    """Final norm and unembedding of any residual ``[..., d_model]``, as float32 logits ``[..., vocab]``."""
    logits = parts.logit_scale * parts.unembed(parts.final_norm.module(resid)).float()
    if parts.logit_softcap is not None:
        logits = torch.tanh(logits / parts.logit_softcap) * parts.logit_softcap
    return logits
