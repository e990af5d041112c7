"""Edits against a model before the forward runs: an edit that could not act is refused here, since afterwards nobody would see that it did not.

1. Everything in the list is an edit.
2. Layers that an attention edit names exist and have softmax attention; ``None`` means those that have it.
3. Positions are given where the call is made: in a forward of the user's own, position ids are the user's to pass.

What depends on the forward's size (rows, keys, batch, shapes of values) is refused when the edit is applied.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, TYPE_CHECKING

from symbolic_residue.errors import EditError
from symbolic_residue.instrument._edits import AttentionEdit, Edit, Positions, resolve

if TYPE_CHECKING:
    from symbolic_residue.models import Parts

__all__ = ["check_edits"]


def check_edits(edits: Sequence[Any], parts: Parts, *, own_call: bool) -> None:
    """Refuse edits that cannot act in this model.

    Args:
        edits: as the user gave them.
        parts: the model's.
        own_call: whether the instrument makes the call itself (``run``), and so can pass position ids.

    Raises:
        EditError: something that is no edit, a layer that is not there or has no softmax attention, positions in a forward of the user's own.
    """
    for edit in edits:
        if not isinstance(edit, Edit):
            raise EditError(f"{edit!r} is no edit.", todo="Use the edits of symbolic_residue.instrument, such as Add or HeadScale.")
        if isinstance(edit, AttentionEdit) and edit.layers is not None:
            for layer in resolve(edit.layers, parts.n_layers, "layer"):
                if layer not in parts.attention_layers:
                    raise EditError(
                        f"{type(edit).__name__} names layer {layer}, which has no softmax attention.",
                        todo=f"Layers that have it: {', '.join(map(str, parts.attention_layers)) or 'none'}.",
                    )
        if isinstance(edit, Positions) and not own_call:
            raise EditError(
                "Positions cannot be changed in a forward of your own.",
                why="Position ids are given where the model is called.",
                todo="Pass position_ids to the model, or use Instrument.run.",
            )
