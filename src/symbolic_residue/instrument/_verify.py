"""Verification at load: the family table is checked on the model itself, not trusted.

1. The untouched model's logits equal those of the same forward with the instrument attached and reading (bit for bit).
2. Attention rows of every layer and head sum to 1 over a partition of the keys.
3. The residual stream adds up: embedding plus every ``attn_out`` and ``mlp_out`` is the last ``resid_post``.
4. An edit acts: scaling one head's ``z`` by 0 changes the logits, at the first and the last layer.

Any failure is a ``VerificationError`` that names the check. Nothing remains attached to the model.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, TYPE_CHECKING

import numpy as np
import torch

from symbolic_residue.errors import VerificationError
from symbolic_residue.instrument._edits import HeadScale
from symbolic_residue.instrument._instrument import Instrument
from symbolic_residue.instrument.attention import AttentionRead
from symbolic_residue.prompts import Regions

if TYPE_CHECKING:
    from symbolic_residue.models import LoadedModel

__all__ = ["Verification", "open_model", "verify"]

_LENGTH = 12


@dataclass(frozen=True)
class Verification:
    """What was measured; all errors are largest absolute differences.

    Attributes:
        logits_identical: plain and attached forwards agree bit for bit.
        row_sum_error: of attention rows against 1.
        residual_error: of the residual stream's sum, relative to its largest entry.
        edit_effect: smallest change of the logits among the edits tried.
    """

    logits_identical: bool
    row_sum_error: float
    residual_error: float
    edit_effect: float


def verify(loaded: LoadedModel, *, seed: int = 0) -> Verification:
    """Check the loaded model against the family table on a short random sequence.

    Raises:
        VerificationError: the first check that fails.
    """
    was_training = loaded.model.training
    loaded.model.eval()
    try:
        return _verify(loaded, seed)
    finally:
        loaded.model.train(was_training)


def _verify(loaded: LoadedModel, seed: int) -> Verification:
    parts = loaded.parts
    instrument = Instrument(loaded)
    generator = torch.Generator().manual_seed(seed)
    ids = torch.randint(0, parts.vocab_size, (1, _LENGTH), generator=generator).to(instrument.device)
    with torch.no_grad():
        plain = loaded.model(input_ids=ids, attention_mask=torch.ones_like(ids), use_cache=False).logits
    if not bool(torch.isfinite(plain).all()):
        raise VerificationError("The model's logits hold NaN or infinity.", todo="Check the weights, or load in float32.")
    halves = Regions(("first", "second"), np.repeat([0, 1], _LENGTH // 2))
    trace = instrument.run(
        ids,
        reads=("resid_pre.0", "attn_out.*", "mlp_out.*", f"resid_post.{parts.n_layers - 1}"),
        attention=AttentionRead(regions=halves, stats=("mass",)),
    )
    identical = bool(torch.equal(trace["logits"], plain))
    if not identical:
        raise VerificationError(
            f"Attaching the instrument changes the logits by {float((trace['logits'] - plain).abs().max()):.2g}.",
            why="Reading must not change the model.",
            todo="Load it with attn_implementation='sdpa'.",
        )
    assert trace.attention is not None
    row_sum = float((trace.attention["mass"].sum(-1) - 1).abs().max())
    if not row_sum <= 1e-4:
        raise VerificationError(
            f"Attention rows sum to 1 only within {row_sum:.2g}.", why="The attention that was read is not a softmax over the keys."
        )
    total = trace["resid_pre.0"].double()
    for i in range(parts.n_layers):
        total = total + trace[f"attn_out.{i}"].double() + trace[f"mlp_out.{i}"].double()
    last = trace[f"resid_post.{parts.n_layers - 1}"].double()
    residual = float((total - last).abs().max() / last.abs().max().clamp_min(1e-12))
    tolerance = 1e-4 if last.dtype == torch.float64 and plain.dtype == torch.float32 else 5e-2
    if not residual <= tolerance:
        raise VerificationError(
            f"Embedding, attention and MLP outputs miss the residual stream by {residual:.2g} of its size.",
            why="The family table does not describe how this model adds its parts.",
        )
    effects = []
    for layer in sorted({0, parts.n_layers - 1}):
        edited = instrument.run(ids, edits=[HeadScale(layer, h, 0.0) for h in range(parts.n_heads)])
        effects.append(float((edited["logits"] - plain).abs().max()))
    if not min(effects) > 0:
        raise VerificationError(
            "Knocking out a whole layer's heads changes nothing.", why="The output projection is not where the family table says."
        )
    return Verification(identical, row_sum, residual, min(effects))


def open_model(reference: str | Path, **options: Any) -> LoadedModel:
    """Load a model by reference and verify it; the way in for everything that measures.

    Args:
        reference: ``demo``, a hub id, a folder, or ``pypi:NAME==VERSION#sha256=…``.
        options: those of :func:`symbolic_residue.models.load_model`.

    Raises:
        ModelError: it cannot be had, or does not behave as the family table says.
    """
    from symbolic_residue.models import load_model

    loaded = load_model(reference, **options)
    verify(loaded)
    return loaded
