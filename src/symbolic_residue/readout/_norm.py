"""The final norm as a linear map with its scale frozen, shared by the lens and by direct logit attribution.

``norm(x) = γ ⊙ (x − μ·1) · s + β`` with ``μ = mean(x)`` for LayerNorm and 0 for RMSNorm, and ``s = 1/√(mean((x − μ)²) + ε)`` held at the
value that the forward had. Then for any direction ``u``: ``u·norm(x) = s · x·fold(u) + u·β`` with ``fold(u) = γ⊙u`` (centred for LayerNorm,
because ``(x − mean(x)·1)·w = x·(w − mean(w)·1)``).
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor

if TYPE_CHECKING:
    from symbolic_residue.models import Norm

__all__ = ["fold", "frozen_scale"]


def frozen_scale(norm: Norm, x: Tensor) -> Tensor:
    """``s`` for every vector of ``x [..., d_model]``, as ``[...]``."""
    x = x.float()
    if norm.kind == "layer":
        x = x - x.mean(-1, keepdim=True)
    return torch.rsqrt(x.pow(2).mean(-1) + norm.eps)


def fold(norm: Norm, directions: Tensor) -> Tensor:
    """``fold(u)`` for every direction of ``[..., d_model]``."""
    folded = directions.float() * norm.gain().to(directions.device, torch.float32)
    if norm.kind == "layer":
        folded = folded - folded.mean(-1, keepdim=True)
    return folded
