"""A norm with its denominator frozen: an affine map, forwards and backwards.

``norm(x) = γ ⊙ C x · s + β`` with ``s`` one number a position, held at the value that the prompt gave it, and ``C`` the identity (RMSNorm, Zhang and Sennrich
2019) or the centring ``x − mean(x)`` (LayerNorm, Ba et al. 2016), which is linear already. Its linear part's transpose is ``g ↦ s · C (γ ⊙ g)``. Where an
architecture has no norm in some place the map is the identity.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

if TYPE_CHECKING:
    from symbolic_residue.models import Norm

__all__ = ["FrozenNorm"]


@dataclass(frozen=True, eq=False)
class FrozenNorm:
    """One norm on one prompt.

    Attributes:
        scale: ``[position]``, or None for the identity.
        gain: ``[d_model]``, or None for the identity.
        centred: LayerNorm.
        bias: ``[d_model]`` or None.
    """

    scale: Tensor | None = None
    gain: Tensor | None = None
    centred: bool = False
    bias: Tensor | None = None

    @classmethod
    def of(cls, norm: Norm | None, x: Tensor, dtype: torch.dtype) -> FrozenNorm:
        """The norm frozen where ``x [position, d_model]`` was its input; ``None`` gives the identity."""
        if norm is None:
            return cls()
        y = x.to(torch.promote_types(dtype, torch.float32))
        if norm.kind == "layer":
            y = y - y.mean(-1, keepdim=True)
        scale = torch.rsqrt(y.square().mean(-1) + norm.eps)
        bias = norm.bias()
        return cls(
            scale.to(dtype),
            norm.gain().to(x.device, dtype),
            norm.kind == "layer",
            None if bias is None else bias.to(x.device, dtype),
        )

    def linear(self, x: Tensor, positions: Tensor | slice = slice(None)) -> Tensor:
        """The linear part on ``x [..., position, d_model]`` at these positions."""
        if self.scale is None or self.gain is None:
            return x
        if self.centred:
            x = x - x.mean(-1, keepdim=True)
        return x * self.gain * self.scale[positions][:, None]

    def back(self, g: Tensor, positions: Tensor | slice = slice(None)) -> Tensor:
        """Its transpose on ``g [..., position, d_model]``."""
        return g if self.scale is None else self.fold(g) * self.scale[positions][:, None]

    def fold(self, g: Tensor) -> Tensor:
        """``C (γ ⊙ g)``: the transpose but for the positions' scales, ``[..., d_model]``."""
        if self.gain is None:
            return g
        g = g * self.gain
        return g - g.mean(-1, keepdim=True) if self.centred else g
