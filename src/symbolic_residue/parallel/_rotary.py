"""Whether a model's positions can be shared and moved, found out from the model itself.

1. Multi-path decoding needs positions that are angles: tokens may then share one, or stand between two. Learned positions are rows of a table, ALiBi counts
   keys, recurrent layers count tokens: these are refused with the reason.
2. ``PositionWatch`` stands at the inputs of the model's own rotary modules and keeps the position ids that they got. What a result says about positions is
   read from
   there, not from what was asked for.
3. ``check_rotary`` runs a few tokens three times: the rotary modules must receive exactly what was asked (also fractions); all positions shifted by a half
   must
   change nothing (only differences count); one position moved must change something.
"""

from __future__ import annotations

import inspect
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, TYPE_CHECKING

import torch
from torch import nn, Tensor

from symbolic_residue.errors import InstrumentError, UnsupportedModelError

if TYPE_CHECKING:
    from symbolic_residue.instrument import Instrument

__all__ = ["PositionWatch", "check_rotary", "rotary_modules"]

_TOLERANCE = {torch.float64: 1e-6, torch.float32: 2e-3, torch.float16: 5e-2, torch.bfloat16: 1e-1}
"""How far logits may differ when all positions are shifted, as a share of their largest size."""


def rotary_modules(model: nn.Module) -> dict[str, nn.Module]:
    """The modules that turn position ids into cosines and sines, by name."""
    return {
        name: module
        for name, module in model.named_modules()
        if "position_ids" in inspect.signature(module.forward).parameters and "Rotary" in type(module).__name__
    }


class PositionWatch:
    """What the rotary modules received in the last forward.

    Args:
        instrument: the model's instrument.

    Raises:
        UnsupportedModelError: the model has no rotary module that takes position ids.
    """

    def __init__(self, instrument: Instrument) -> None:
        self.modules = rotary_modules(instrument.model)
        if not self.modules:
            raise UnsupportedModelError(
                f"{instrument.parts.family} has no rotary module that takes position ids.",
                why="Positions are read back from the model's own rotary input.",
            )
        self.seen: dict[str, Tensor] = {}

    @contextmanager
    def watching(self) -> Iterator[PositionWatch]:
        """Watch the forwards inside; every forward overwrites what the one before left."""

        def hook(name: str) -> Any:
            def keep(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
                given = kwargs.get("position_ids", args[1] if len(args) > 1 else None)
                if isinstance(given, Tensor):
                    self.seen[name] = given.detach()

            return keep

        handles = [m.register_forward_pre_hook(hook(name), with_kwargs=True) for name, m in self.modules.items()]
        try:
            yield self
        finally:
            for handle in handles:
                handle.remove()

    @property
    def positions(self) -> Tensor:
        """``[batch, row]`` float64: the positions of the last forward.

        Raises:
            InstrumentError: none were seen, or the rotary modules got different ones.
        """
        found = [t.double().cpu() for t in self.seen.values()]
        if not found:
            raise InstrumentError("No rotary module ran.", why="Positions are read back from the model's own rotary input.")
        if any(not torch.equal(found[0], other) for other in found[1:]):
            raise InstrumentError("The model's rotary modules received different positions.")
        return found[0]


def check_rotary(instrument: Instrument) -> None:
    """Refuse a model whose positions cannot be shared.

    Raises:
        UnsupportedModelError: ALiBi, learned positions, other token mixers than attention, a rotary module that changes or rounds what it is given, or logits
            that change when all positions are shifted alike.
    """
    parts = instrument.parts
    if parts.position_embed is not None:
        raise UnsupportedModelError(
            f"{parts.family} has learned positions.",
            why="A position is a row of a table there: nothing stands between two, and no row was trained to be shared.",
            todo="Use a model with rotary positions (llama, qwen, gemma, mistral, phi, gpt_neox …).",
        )
    if not parts.position_ids:
        raise UnsupportedModelError(
            f"{parts.family} does not look at position ids.",
            why="Its positions come from the order of the keys (ALiBi) or from a state, so two tokens cannot share one.",
            todo="Use a model with rotary positions.",
        )
    mixers = [layer.index for layer in parts.layers if layer.mixer is not None]
    if mixers or len(parts.attention_layers) < parts.n_layers:
        raise UnsupportedModelError(
            f"{parts.family} mixes tokens by other means than attention (layers {', '.join(map(str, mixers[:4]))} …).",
            why="A recurrent layer reads siblings one after the other: no mask keeps them apart.",
        )
    watch = PositionWatch(instrument)
    n = 6
    ids = (torch.arange(n) * 7 % max(parts.vocab_size - 5, 1) + 4).clamp_max(parts.vocab_size - 1)[None].to(instrument.device)
    base = torch.arange(n, dtype=torch.float32, device=instrument.device)[None]
    moved = base.clone()
    moved[0, 2] += 1.5

    def logits(positions: Tensor) -> Tensor:
        with torch.no_grad(), watch.watching():
            out = instrument.model(input_ids=ids, attention_mask=torch.ones_like(ids), position_ids=positions, use_cache=False)
        if not torch.equal(watch.positions.float(), positions.cpu()):
            raise UnsupportedModelError(f"{parts.family} rotates by other positions than it is given.")
        return out.logits[0].double().cpu()

    plain, shifted, other = logits(base), logits(base + 0.5), logits(moved)
    scale = float(plain.abs().max())
    tolerance = _TOLERANCE.get(instrument.parts.embed.weight.dtype, 1e-1)  # type: ignore[union-attr, arg-type]
    if float((plain - shifted).abs().max()) > tolerance * scale:
        raise UnsupportedModelError(
            f"{parts.family} changes when all positions are shifted alike.", why="Its positions are not pure rotations."
        )
    if torch.equal(plain[3:], other[3:]):
        raise UnsupportedModelError(f"{parts.family} does not react to a moved position.")
