"""Verification at load: the family table is checked on the model itself, not trusted.

1. The untouched model's logits equal those of the same forward with the instrument attached and reading (bit for bit).
2. Attention rows of every layer and head sum to 1 over a partition of the keys (and the head's sink, where it has one).
3. The residual stream adds up: ``resid_pre.0`` plus every ``attn_out``, ``mixer_out`` and ``mlp_out`` is the last ``resid_post``.
4. The heads add up: ``Σ_h z_h @ w_o(h) + b_o``, through the norm of the output and the block's factor, is ``attn_out`` in every attention layer.
5. The last ``resid_post`` through final norm, unembedding, logit scale and softcap is the logits.
6. An edit acts: scaling every head's ``z`` by 0 changes the logits, at the first and the last attention layer.

Any failure is a ``VerificationError`` that names the check. Nothing remains attached to the model.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from symbolic_residue.errors import VerificationError
from symbolic_residue.instrument._edits import HeadScale
from symbolic_residue.instrument._instrument import Instrument
from symbolic_residue.instrument._trace import Trace
from symbolic_residue.instrument.attention import AttentionRead
from symbolic_residue.prompts import Regions
from symbolic_residue.types import PointKind

if TYPE_CHECKING:
    from symbolic_residue.models import LoadedModel, Parts

__all__ = ["Verification", "open_model", "verify"]

_LENGTH = 12


@dataclass(frozen=True)
class Verification:
    """What was measured; all errors are largest absolute differences.

    Attributes:
        logits_identical: plain and attached forwards agree bit for bit.
        row_sum_error: of attention rows against 1.
        residual_error: of the residual stream's sum, relative to its largest entry.
        head_error: of the heads' sum against the attention output, relative to its largest entry.
        logit_error: of the logits from the last residual, relative to their largest entry.
        edit_effect: smallest change of the logits among the edits tried.
    """

    logits_identical: bool
    row_sum_error: float
    residual_error: float
    head_error: float
    logit_error: float
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
    # The model's own attention runs, so that nothing may differ.
    instrument = Instrument(loaded, mode="observe")
    generator = torch.Generator().manual_seed(seed)
    ids = torch.randint(0, parts.vocab_size, (1, _LENGTH), generator=generator).to(instrument.device)
    with torch.no_grad():
        plain = loaded.model(input_ids=ids, attention_mask=torch.ones_like(ids), use_cache=False).logits
    if not bool(torch.isfinite(plain).all()):
        raise VerificationError("The model's logits hold NaN or infinity.", todo="Check the weights, or load in float32.")
    trace = instrument.run(
        ids,
        reads=("resid_pre.0", *_having(parts, "attn_out", "mixer_out", "mlp_out", "z"), f"resid_post.{parts.n_layers - 1}"),
        attention=AttentionRead(
            regions=Regions(("first", "second"), np.repeat([0, 1], _LENGTH // 2)),
            stats=("mass", "sink"),
        ),
    )
    identical = bool(torch.equal(trace["logits"], plain))
    if not identical:
        raise VerificationError(
            f"Attaching the instrument changes the logits by {float((trace['logits'] - plain).abs().max()):.2g}.",
            why="Reading must not change the model.",
            todo="Load it with attn_implementation='sdpa'.",
        )
    row_sum = _row_sum_error(trace)
    tolerance = 1e-4 if plain.dtype in (torch.float32, torch.float64) else 5e-2
    residual = _residual_error(parts, trace)
    if not residual <= tolerance:
        raise VerificationError(
            f"Embedding, attention and MLP outputs miss the residual stream by {residual:.2g} of its size.",
            why="The family table does not describe how this model adds its parts.",
        )
    heads = max(_head_error(parts, trace, layer, tolerance) for layer in parts.attention_layers)
    logits = _logit_error(parts, trace, plain)
    if not logits <= tolerance:
        raise VerificationError(
            f"Final norm and unembedding of the last residual miss the logits by {logits:.2g} of their size.",
            why="The family table does not describe how this model makes its logits.",
        )
    effects = []
    for layer in sorted({parts.attention_layers[0], parts.attention_layers[-1]}):
        edited = instrument.run(ids, edits=[HeadScale(layer, h, 0.0) for h in range(parts.n_heads)])
        effects.append(float((edited["logits"] - plain).abs().max()))
    if not min(effects) > 0:
        raise VerificationError(
            "Knocking out a whole layer's heads changes nothing.", why="The output projection is not where the family table says."
        )
    return Verification(identical, row_sum, residual, heads, logits, min(effects))


def _having(parts: Parts, *kinds: PointKind) -> list[str]:
    """Names of the points of these kinds in every layer that has them."""
    return [f"{kind}.{layer.index}" for kind in kinds for layer in parts.layers if layer.absent(kind) is None]


def _relative(got: Tensor, want: Tensor) -> float:
    return float((got - want).abs().max() / want.abs().max().clamp_min(1e-12))


def _row_sum_error(trace: Trace) -> float:
    assert trace.attention is not None
    total = trace.attention["mass"].sum(-1)
    if "sink" in trace.attention.values:
        total = total + trace.attention["sink"]
    error = float((total - 1).abs().max())
    if not error <= 1e-4:
        raise VerificationError(
            f"Attention rows sum to 1 only within {error:.2g}.", why="The attention that was read is not a softmax over the keys."
        )
    return error


def _residual_error(parts: Parts, trace: Trace) -> float:
    total = trace["resid_pre.0"].double()
    for name in _having(parts, "attn_out", "mixer_out", "mlp_out"):
        total = total + trace[name].to(total)  # layers may lie on several devices
    return _relative(total, trace[f"resid_post.{parts.n_layers - 1}"].to(total))


def _head_error(parts: Parts, trace: Trace, index: int, tolerance: float) -> float:
    layer, z, out = parts.layers[index], trace[f"z.{index}"].float(), trace[f"attn_out.{index}"].float()
    write = torch.zeros_like(out)
    for head in range(parts.n_heads):
        write = write + z[:, :, head] @ layer.w_o(head).float()
    if layer.b_o is not None:
        write = write + layer.b_o.float()
    if layer.post_attn_norm is not None:
        write = layer.post_attn_norm.formula(write).float()
    error = _relative(write * layer.attn_scale, out)
    if not error <= tolerance:
        raise VerificationError(
            f"The heads of layer {index} miss its attention output by {error:.2g} of its size.",
            why="The output projection is not cut into heads as the family table says.",
        )
    return error


def _logit_error(parts: Parts, trace: Trace, plain: Tensor) -> float:
    last = parts.final_norm.formula(trace[f"resid_post.{parts.n_layers - 1}"])
    made = last @ parts.w_u.to(last).T
    made = made if parts.b_u is None else made + parts.b_u.to(made)
    made = made * parts.logit_scale
    if parts.logit_softcap is not None:
        made = torch.tanh(made / parts.logit_softcap) * parts.logit_softcap
    return _relative(made, plain.to(made))


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
