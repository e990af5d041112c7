"""Attention of every step's rows, kept beside a map of its keys.

1. A step with k tokens gives a tensor ``[layer, head, query, key]``: the queries are the set's tokens in falling probability, the keys every token of the
   sequence so far, the set's own last. Columns of padding (other sequences' larger sets) are left out.
2. The key map has a row for every key of every step: its *physical* column in the model's cache, its slot in the *cache* counting real tokens of this
   sequence (the key's place in the tensor), its position as the model's rotary module got it, and its token. Pruning by recompute moves slots, so each step
   has its own rows.
"""

from __future__ import annotations

from typing import Any

import polars as pl
import torch
from torch import Tensor

from symbolic_residue.errors import InstrumentError
from symbolic_residue.parallel._decode import Grown
from symbolic_residue.parallel._layout import PROMPT

__all__ = ["Capture"]

_SCHEMA = {
    "step": pl.Int64,
    "physical": pl.Int64,
    "cache": pl.Int64,
    "set_step": pl.Int64,
    "rank": pl.Int64,
    "position": pl.Float64,
    "token": pl.Int64,
    "text": pl.String,
}


class Capture:
    """Keeps the attention of a decoding: give :meth:`add` as ``on_step`` of a decoding with ``weights=True``.

    Args:
        tokenizer: for the text of the prompt's tokens; None leaves it out.
        max_bytes: the most that is kept in memory.
    """

    def __init__(self, tokenizer: Any = None, *, max_bytes: int = 2**31) -> None:
        self.tokenizer, self.max_bytes, self.n_bytes = tokenizer, max_bytes, 0
        self._tensors: dict[int, dict[int, Tensor]] = {}
        self._keys: dict[int, list[dict[str, Any]]] = {}

    def add(self, grown: Grown) -> None:
        """Keep a step.

        Raises:
            InstrumentError: the decoding kept no weights, or more than ``max_bytes`` were to be kept.
        """
        table = None if grown.trace is None else grown.trace.attention
        if table is None or "weights" not in table.values:
            raise InstrumentError("This decoding keeps no attention rows.", todo="Decode with weights=True.")
        for i, step in enumerate(grown.steps):
            if step is None:
                continue
            layout = grown.seen
            real = layout.real[i]
            rows = real[-grown.rows :].nonzero()[:, 0]
            columns = real.nonzero()[:, 0]
            held = table["weights"][:, i][:, :, rows.to(table["weights"].device)][..., columns.to(table["weights"].device)]
            self.n_bytes += held.numel() * 4
            if self.n_bytes > self.max_bytes:
                raise InstrumentError(
                    f"Attention of more than {self.max_bytes / 2**30:.1f} GiB was to be kept.",
                    why="It grows with layers × heads × tokens of the sets × keys.",
                    todo="Use fewer steps or siblings, or no capture.",
                )
            self._tensors.setdefault(i, {})[grown.number] = held.to("cpu", torch.float32).contiguous()
            self._keys.setdefault(i, []).extend(self._rows(grown, i, columns.tolist()))

    def steps(self, sequence: int = 0) -> dict[int, Tensor]:
        """By number of the step, ``[layer, head, query, key]`` float32."""
        return dict(self._tensors.get(sequence, {}))

    def tensors(self, sequence: int = 0) -> dict[str, Tensor]:
        """The same by name (``attention_00007``), as safetensors takes them."""
        return {f"attention_{number:05d}": tensor for number, tensor in self.steps(sequence).items()}

    def key_map(self, sequence: int = 0) -> pl.DataFrame:
        """``step physical cache set_step rank position token text``: a row for each key of each step (set_step −1: the prompt)."""
        return pl.DataFrame(self._keys.get(sequence, []), schema=_SCHEMA)

    def _rows(self, grown: Grown, i: int, columns: list[int]) -> list[dict[str, Any]]:
        layout, tree = grown.seen, grown.trees[i]
        position, known = layout.position[i].tolist(), {step.number: step for step in tree.steps}
        found = []
        for cache, column in enumerate(columns):
            step, rank, token = (int(t[i, column]) for t in (layout.step, layout.rank, layout.ids))
            if step == PROMPT:
                at, text = position[column], None if self.tokenizer is None else self.tokenizer.decode([token])
            else:
                held = known[step].tokens[rank]
                at, text = held.position, held.text
            found.append(
                {
                    "step": grown.number,
                    "physical": column,
                    "cache": cache,
                    "set_step": step,
                    "rank": rank,
                    "position": at,
                    "token": token,
                    "text": text,
                }
            )
        return found
