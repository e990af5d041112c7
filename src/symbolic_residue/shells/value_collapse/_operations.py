"""ISOLATE, STABILIZE, YIELD: the command triple, each usable by itself.

1. ISOLATE raises chosen candidates: adds ``factor`` to their logits, or adds their unembedding directions to the residual stream at a layer, so
   that their centred logits rise by ``factor`` (nats) at the last layer, to first order; at an earlier layer, if the layers after it did not react.
2. STABILIZE refines the distribution until its L1 change is small (see ``_refine``).
3. YIELD commits: the top token if its probability is above the threshold, else None.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from numbers import Integral
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from symbolic_residue.errors import ConfigError
from symbolic_residue.instrument import Add, collate, Instrument
from symbolic_residue.prompts import Prompt
from symbolic_residue.readout import fold, frozen_scale

__all__ = ["Isolation", "commit", "isolate", "resolve_candidates", "token_text"]


def token_text(tokenizer: Any, token: int) -> str:
    """A token as the text it stands for (leading space kept)."""
    return tokenizer.decode([token], clean_up_tokenization_spaces=False)


def resolve_candidates(tokenizer: Any, candidates: Sequence[str | int]) -> list[int]:
    """Candidate tokens by text or id.

    Raises:
        ConfigError: fewer than two, a repeat, one string instead of several, an id outside the vocabulary, or text that is not one token
            (its pieces are listed).
    """
    if isinstance(candidates, str):
        raise ConfigError("The candidates are a single string.", why="They are a list.", todo=f"Write [{candidates!r}, …].")
    out: list[int] = []
    for candidate in candidates:
        if isinstance(candidate, Integral):  # NumPy's integers too
            candidate = int(candidate)
            if not 0 <= candidate < len(tokenizer):
                raise ConfigError(f"Token id {candidate} is outside the vocabulary of {len(tokenizer)}.")
            out.append(candidate)
            continue
        ids = tokenizer.encode(candidate, add_special_tokens=False)
        if len(ids) != 1:
            pieces = ", ".join(repr(token_text(tokenizer, i)) for i in ids) or "none"
            raise ConfigError(
                f"The candidate {candidate!r} is not one token.",
                why=f"Its pieces: {pieces}.",
                todo="Give a piece; most words in running text begin with a space, as in ' yes'.",
            )
        out.append(ids[0])
    if len(set(out)) < 2 or len(set(out)) != len(out):
        raise ConfigError("At least two different candidates are needed.")
    return out


@dataclass(frozen=True)
class Isolation:
    """ISOLATE's result.

    Attributes:
        tokens: the candidates' texts.
        before, after: their probabilities ``[candidate]``.
        shift: change of each candidate's logit relative to the mean logit (nats), ``[candidate]``.
        distribution: the whole distribution after, ``[vocab]``.
    """

    tokens: tuple[str, ...]
    before: NDArray[np.float64]
    after: NDArray[np.float64]
    shift: NDArray[np.float64]
    distribution: NDArray[np.float64]


def isolate(
    instrument: Instrument, tokenizer: Any, prompt: Prompt, candidates: Sequence[int], factor: float, mode: str, layer: int | None
) -> Isolation:
    """ISOLATE on one prompt; see the module."""
    parts = instrument.parts
    if not np.isfinite(factor):
        raise ConfigError(f"The factor is {factor}.", todo="Give a finite number of nats.")
    batch = collate([prompt])
    plain = instrument.run(batch, reads=(f"resid_post.{parts.n_layers - 1}",), keep_logits=1)
    before = plain["logits"][0, -1].double()
    ids = list(candidates)
    if mode == "logits":
        after = before.clone()
        after[ids] += factor
    elif mode == "residual":
        at = parts.n_layers - 1 if layer is None else layer
        if not 0 <= at < parts.n_layers:
            raise ConfigError(f"There is no layer {at}; the model has 0 to {parts.n_layers - 1}.")
        last = plain[f"resid_post.{parts.n_layers - 1}"][0, -1]
        vector = _steering(parts, ids, factor, last)
        edited = instrument.run(batch, edits=[Add(f"resid_post.{at}", rows=(-1,), value=vector)], keep_logits=1)
        after = edited["logits"][0, -1].double()
    else:
        raise ConfigError(f"ISOLATE has no mode {mode!r}.", todo="Use 'logits' or 'residual'.")
    p, q = torch.softmax(before, -1), torch.softmax(after, -1)
    shift = (after - after.mean()) - (before - before.mean())
    return Isolation(
        tuple(token_text(tokenizer, i) for i in ids),
        p[ids].cpu().numpy(),
        q[ids].cpu().numpy(),
        shift[ids].cpu().numpy(),
        q.cpu().numpy(),
    )


def _steering(parts: Any, ids: list[int], factor: float, last: Tensor) -> Tensor:
    """The smallest residual vector ``[d_model]`` that raises every candidate's centred logit by ``factor`` and leaves the final norm's scale alone.

    The scale depends on the length of ``last``, the (for LayerNorm centred) residual that the norm reads. A vector at right angles to it changes the
    length only in second order; without this condition the scale's reaction is of the order of ``factor`` itself.
    """
    norm = parts.final_norm
    scale = frozen_scale(norm, last)
    directions = fold(norm, parts.w_u[ids].float() - parts.w_u.float().mean(0))
    along = last.float() - last.float().mean() if norm.kind == "layer" else last.float()
    rows = torch.cat([directions, (along / along.norm())[None]]).double()
    wanted = torch.zeros(len(ids) + 1, dtype=torch.float64)
    wanted[:-1] = factor / float(scale)
    return torch.linalg.lstsq(rows.cpu(), wanted[:, None]).solution[:, 0].to(directions)


def commit(distribution: NDArray[np.float64], threshold: float) -> int | None:
    """YIELD on a distribution ``[vocab]``: the top token's id, or None below the threshold."""
    if not 0 < threshold < 1:
        raise ConfigError(f"YIELD's threshold is {threshold}.", todo="Give a probability between 0 and 1.")
    top = int(np.argmax(distribution))
    return top if distribution[top] > threshold else None
