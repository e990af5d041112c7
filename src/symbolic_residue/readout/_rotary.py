"""The rotation of a layer's queries and keys, taken from the model itself and checked against it.

1. Run three tokens at positions 0, Δ and Δ + 1; keep the layer's input, its q and k, and the cosines and sines that the attention module was handed.
2. Make q and k from the input by the family's weights. If they equal the model's as they are, the layer rotates nothing.
3. Else apply the rotation function of the model's own module, with the cosines and sines of the layer; where only part of a head is rotated, try the
   widths that they can mean. If q and k then equal the model's, that is the rotation; if nothing fits, the layer is refused.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from typing import Any, Protocol, TYPE_CHECKING

import torch
from torch import Tensor

from symbolic_residue.errors import ConfigError, ReadError
from symbolic_residue.instrument import Positions

if TYPE_CHECKING:
    from symbolic_residue.instrument import Edit, Instrument, Trace
    from symbolic_residue.models import LayerParts

__all__ = ["QK_NORMS", "Rotate", "Turn", "probe", "run_with_turns"]

Turn = Callable[[Tensor, int], Tensor]
"""(rows ``[n, d_head]``, which position of the run) → the rows rotated."""

QK_NORMS = ("q_norm", "k_norm", "q_layernorm", "k_layernorm", "qk_norm")


class Rotate(Protocol):
    """Rotates rows ``[n, d_head]`` as a query at distance Δ, or as the key it looks at."""

    def __call__(self, rows: Tensor, *, query: bool) -> Tensor: ...


def probe(instrument: Instrument, layer: LayerParts, distance: int) -> Rotate | None:
    """The layer's rotation at a distance, or None where it rotates nothing.

    Raises:
        ConfigError: a negative distance, or one beyond the context.
        ReadError: q or k is no linear function of the layer's normed input, followed by a rotation.
    """
    parts = instrument.parts
    limit = parts.max_context
    if distance < 0 or (limit is not None and distance + 2 > limit):
        raise ConfigError(f"A distance of {distance} does not lie in the model's context.", todo=f"Use 0 to {(limit or 2) - 2}.")
    for name in QK_NORMS:
        if getattr(layer.attn, name, None) is not None:
            raise ReadError(
                f"Layer {layer.index} norms its queries and keys.",
                why="The scale of each query and key then depends on the vector itself, so no fixed matrix gives the score.",
                todo="Read q and k of a forward: their product is exact.",
            )
    i = layer.index
    ids = torch.arange(3)[None] + min(5, parts.vocab_size - 3)
    rotary = parts.position_ids and parts.position_embed is None
    edits = [Positions(torch.tensor([[0, distance, distance + 1]]))] if rotary else []
    trace, turns = run_with_turns(instrument, layer, ids, (f"resid_pre.{i}", f"q.{i}", f"k.{i}"), edits)
    resid = trace[f"resid_pre.{i}"][0]
    normed = resid.double() if layer.pre_attn_norm is None else layer.pre_attn_norm.formula(resid)
    made = {which: _made(layer, which, normed) for which in ("q", "k")}
    model = {which: trace[f"{which}.{i}"][0].double() for which in ("q", "k")}
    tolerance = 2e-3 if resid.dtype in (torch.float32, torch.float64) else 5e-2

    def agree(turn: Turn) -> bool:
        """Whether q and k at all three positions are the model's after a turn ``(rows [head, d_head], position) → rows``."""
        for which, rows in made.items():
            turned = torch.stack([turn(rows[t], t) for t in range(3)])
            given = model[which][:, :: model[which].shape[1] // turned.shape[1]]  # falcon repeats its keys for the heads they serve
            if float((turned - given).abs().max()) > tolerance * float(given.abs().max()):
                return False
        return True

    if agree(lambda rows, t: rows):
        return None
    for turn in turns:
        if _fits(turn, made["q"][0]) and agree(turn):

            def rotate(rows: Tensor, *, query: bool, turn: Turn = turn) -> Tensor:
                return turn(rows.double(), 1 if query else 0).to(rows.dtype)

            return rotate
    raise ReadError(
        f"Queries and keys of layer {i} are no rotated linear function of its input ({type(layer.attn).__name__}).",
        why="Something that the family table does not describe stands between the weights and the scores.",
        todo="Read q and k of a forward: their product is exact.",
    )


def run_with_turns(
    instrument: Instrument, layer: LayerParts, ids: Tensor, reads: tuple[str, ...], edits: Sequence[Edit] = ()
) -> tuple[Trace, list[Turn]]:
    """One forward with reads, and what the layer's own rotation can be there: its module's function with the cosines and sines that it was handed.

    The turns differ in how much of a head they rotate; which one is right (or that none is: some layers rotate nothing) is for the caller to tell from q and k.
    """
    handed: dict[str, Any] = {}

    def hook(module: torch.nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        handed.update(kwargs)

    assert layer.attn is not None
    handle = layer.attn.register_forward_pre_hook(hook, with_kwargs=True)
    try:
        trace = instrument.run(ids, reads=reads, edits=edits, keep_logits=1)
    finally:
        handle.remove()
    function = getattr(sys.modules[type(layer.attn).__module__], "apply_rotary_pos_emb", None)
    angles = handed.get("position_embeddings")
    if function is None or not isinstance(angles, tuple) or len(angles) != 2:
        return trace, []
    cos, sin = angles
    widths = dict.fromkeys((layer.d_head, cos.shape[-1], 2 * cos.shape[-1]))
    return trace, [_turn(function, cos, sin, width) for width in widths if width <= layer.d_head]


def _made(layer: LayerParts, which: Any, normed: Tensor) -> Tensor:
    """``[position, head, d_head]`` by the weights, before any rotation; k for its key-value heads."""
    group = layer.n_heads // layer.n_kv_heads
    out = []
    for head in range(0, layer.n_heads, 1 if which == "q" else group):
        weight, bias = layer.projection(which, head)
        rows = normed @ weight.double()
        out.append(rows if bias is None else rows + bias.double())
    made = torch.stack(out, 1)
    if which == "q" and layer.spec.query_prescaled:
        made = made * float(getattr(layer.attn, "scaling", layer.d_head**-0.5))
    return made


def _turn(function: Callable[..., Any], cos: Tensor, sin: Tensor, width: int) -> Turn:
    """(rows ``[n, d_head]``, which position of the run) → rows with their first ``width`` numbers rotated."""

    def turn(rows: Tensor, t: int) -> Tensor:
        head = rows[None, :, None, :width].to(cos.device)  # [batch, head, query, d]: the rows stand in for heads
        turned = function(head, head, cos[:, t : t + 1].to(head), sin[:, t : t + 1].to(head))[0]
        return torch.cat([turned[0, :, 0].to(rows), rows[:, width:]], -1)

    return turn


def _fits(turn: Turn, rows: Tensor) -> bool:
    """Whether the function takes vectors of this width."""
    try:
        return turn(rows, 0).shape == rows.shape
    except RuntimeError:
        return False
