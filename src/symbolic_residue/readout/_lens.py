"""Logit lens: what the model would say if it stopped at a depth.

1. Take the residual stream at the embedding (depth 0) and after each layer, on request also between attention and MLP, and apply the model's own final norm
   and unembedding (with the family's logit factor and softcap).
2. Keep, per depth and row: the best token and its probability, the entropy of the distribution, KL(final ‖ depth), and of chosen tokens the log-probability
   and the rank (0 is the best; ties do not count against a token). A chosen token's ranks over depths are its trajectory.
3. Vocabulary-sized tensors exist for a block of rows at a time, of one depth (of a few where the rows are few), beside the final distribution of that block.

At the last depth the lens *is* the model's output (tested), so KL is 0 there. A ``translate`` function changes the residual before the norm: that is the tuned
lens (``_tuned_lens``). Sources: nostalgebraist 2020, "interpreting GPT: the logit lens"; KL to the final distribution as in Belrose et al. 2023.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from symbolic_residue.errors import ConfigError, ReadError

if TYPE_CHECKING:
    import polars as pl

    from symbolic_residue.instrument import Trace
    from symbolic_residue.models import Parts

__all__ = ["LogitLens", "depth_logits", "depth_points", "lens_frames", "lens_logits", "lens_reads", "logit_lens"]

_BLOCK = 32_000_000
"""Most vocabulary-sized numbers held at once (128 MB in float32)."""

_ROWS = 64
"""Rows up to which several depths are unembedded together: the unembedding is read from memory once for all of them."""


def lens_reads(parts: Parts | None = None, *, mid: bool = False) -> tuple[str, ...]:
    """The points that :func:`logit_lens` needs in its trace; ``mid`` needs the parts."""
    if not mid:
        return ("resid_pre.0", "resid_post.*")
    if parts is None:
        raise ConfigError("The depths between attention and MLP depend on the model.", todo="Give lens_reads(parts, mid=True).")
    return depth_points(parts, mid=True)


def depth_points(parts: Parts, *, mid: bool = False) -> tuple[str, ...]:
    """The lens's depths in order, by the point each is read at.

    Raises:
        ReadError: ``mid`` where no layer has anything between attention and MLP.
    """
    middle = {layer.index for layer in parts.layers if mid and layer.absent("resid_mid") is None}
    if mid and not middle:
        raise ReadError(
            "No layer has a residual stream between attention and MLP.",
            why=parts.layers[0].absent("resid_mid") or "",
            todo="Leave mid out.",
        )
    names = ["resid_pre.0"]
    for i in range(parts.n_layers):
        names += [f"resid_mid.{i}"] if i in middle else []
        names.append(f"resid_post.{i}")
    return tuple(names)


@dataclass
class LogitLens:
    """The lens over its depths: the embedding, then every layer (n_layers + 1 depths without ``mid``).

    Attributes:
        top: ``[depth, batch, row]`` best token id.
        top_probability: ``[depth, batch, row]``.
        entropy: ``[depth, batch, row]`` in nats.
        kl: ``[depth, batch, row]`` KL(final distribution ‖ this depth's) in nats.
        log_probability: ``[depth, batch, row, token]`` of the chosen tokens, in nats.
        rank: ``[depth, batch, row, token]``: how many tokens are more probable than the chosen one.
        tokens: the chosen token ids.
        points: the point each depth was read at.
    """

    top: Tensor
    top_probability: Tensor
    entropy: Tensor
    kl: Tensor
    log_probability: Tensor
    rank: Tensor
    tokens: tuple[int, ...]
    points: tuple[str, ...]


def logit_lens(
    trace: Trace,
    parts: Parts,
    tokens: Sequence[int] = (),
    rows: Sequence[int] | None = None,
    *,
    mid: bool = False,
    translate: Callable[[str, Tensor], Tensor] | None = None,
) -> LogitLens:
    """The logit lens at chosen rows (default all).

    Args:
        trace: a forward with :func:`lens_reads`.
        parts: the model's parts (final norm, unembedding, logit factor, softcap).
        tokens: ids whose log-probabilities and ranks are kept.
        rows: query rows; negative counts from the end.
        mid: also the depths between attention and MLP.
        translate: (point, residual ``[batch, row, d_model]``) → what is read in its place.

    Raises:
        ConfigError: a token id out of the vocabulary.
        ReadError: the trace lacks a point; a row that the trace does not have; ``mid`` in a model of parallel blocks.
    """
    points = depth_points(parts, mid=mid)
    vocab = parts.w_u.shape[0]
    for token in tokens:
        if not 0 <= token < vocab:
            raise ConfigError(f"Token id {token} is outside the vocabulary of {vocab}.")
    last = trace[points[-1]]
    chosen = torch.tensor(list(tokens), dtype=torch.long, device=parts.w_u.device)
    n_batch, n_queries = last.shape[:2]
    at = list(range(n_queries)) if rows is None else list(rows)
    if wrong := [r for r in at if not -n_queries <= r < n_queries]:
        raise ReadError(f"There is no row {wrong[0]} in a forward of {n_queries}.")
    step = max(1, _BLOCK // (n_batch * vocab))
    blocks: list[tuple[Tensor, ...]] = []
    with torch.no_grad():
        for start in range(0, len(at), step):
            block = at[start : start + step]
            final = torch.log_softmax(lens_logits(parts, last[:, block]), -1)
            depths = []
            for some in _together(points, n_batch * len(block)):
                each = [trace[point][:, block] for point in some]
                if translate is not None:
                    each = [translate(point, resid) for point, resid in zip(some, each, strict=True)]
                depths.append(_describe(torch.log_softmax(lens_logits(parts, torch.stack(each)), -1), final, chosen))
            blocks.append(tuple(torch.cat(one) for one in zip(*depths, strict=True)))
    top, p, entropy, kl, lp, rank = (torch.cat(one, 2) for one in zip(*blocks, strict=True))
    return LogitLens(top, p, entropy, kl, lp, rank, tokens=tuple(tokens), points=points)


def _together(points: Sequence[str], rows: int) -> list[Sequence[str]]:
    """The points in groups that are unembedded together, each of so many rows."""
    size = max(1, _ROWS // rows)
    return [points[i : i + size] for i in range(0, len(points), size)]


def _describe(log_p: Tensor, final: Tensor, chosen: Tensor) -> tuple[Tensor, ...]:
    best = log_p.max(-1)
    entropy = -(log_p.exp() * log_p).sum(-1)
    kl = (final.exp() * (final - log_p)).sum(-1).clamp_min(0.0)  # rounding may leave −1e-7
    picked = log_p[..., chosen]
    ranks = [(log_p > picked[..., i, None]).sum(-1) for i in range(len(chosen))]
    rank = torch.stack(ranks, -1) if ranks else picked.long()
    return best.indices, best.values.exp(), entropy, kl, picked, rank


@torch.no_grad()
def lens_logits(parts: Parts, resid: Tensor) -> Tensor:
    """Final norm and unembedding of any residual ``[..., d_model]``, as float32 logits ``[..., vocab]``."""
    return readable_logits(parts, resid)


def depth_logits(trace: Trace, parts: Parts, row: int = -1) -> Iterator[Tensor]:
    """:func:`lens_logits` of one row at every depth, a few depths at a time: ``[depth, batch, vocab]``.

    Args:
        trace: a forward with :func:`lens_reads`.
        parts: the model's parts.
        row: which row; negative counts from the end.
    """
    for some in _together(depth_points(parts), len(trace["resid_pre.0"])):
        yield lens_logits(parts, torch.stack([trace[point][:, row] for point in some]))


def readable_logits(parts: Parts, resid: Tensor) -> Tensor:
    """:func:`lens_logits` with gradients."""
    logits = parts.unembed(parts.final_norm.module(resid)).float() * parts.logit_scale
    if parts.logit_softcap is not None:
        logits = torch.tanh(logits / parts.logit_softcap) * parts.logit_softcap
    return logits


def lens_frames(lens: LogitLens, sequence: int = 0) -> tuple[pl.DataFrame, pl.DataFrame]:
    """One sequence's lens as polars frames; ``row`` counts along the lens's row axis.

    Args:
        lens: from :func:`logit_lens`.
        sequence: which of the batch.

    Returns:
        ``(depth, point, row, top_token, top_probability, entropy, kl)`` and, per chosen token, ``(depth, point, row, token, log_probability, rank)``.

    Raises:
        ReadError: there is no such sequence.
    """
    import polars as pl

    n_depths, n_batch, n_rows = lens.top.shape
    if not 0 <= sequence < n_batch:
        raise ReadError(f"There is no sequence {sequence} in a batch of {n_batch}.")
    depth = torch.arange(n_depths).repeat_interleave(n_rows)
    index = {
        "depth": depth.numpy(),
        "point": [lens.points[d] for d in depth.tolist()],
        "row": torch.arange(n_rows).repeat(n_depths).numpy(),
    }

    def flat(name: str) -> Tensor:
        return getattr(lens, name)[:, sequence].reshape(n_depths * n_rows, *getattr(lens, name).shape[3:]).cpu()

    values = {name: flat(name).double().numpy() for name in ("top_probability", "entropy", "kl")}
    per_depth = pl.DataFrame(index | {"top_token": flat("top").numpy()} | values)
    lp, rank = flat("log_probability").double(), flat("rank")
    pieces = [
        pl.DataFrame(index)
        .with_columns(pl.lit(token, dtype=pl.Int64).alias("token"))
        .with_columns(pl.Series("log_probability", lp[:, i].numpy()), pl.Series("rank", rank[:, i].numpy()))
        for i, token in enumerate(lens.tokens)
    ]
    schema = {
        "depth": pl.Int64,
        "point": pl.String,
        "row": pl.Int64,
        "token": pl.Int64,
        "log_probability": pl.Float64,
        "rank": pl.Int64,
    }
    return per_depth, pl.concat(pieces) if pieces else pl.DataFrame(schema=schema)
