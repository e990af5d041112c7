"""The prompts of failures under many edits at once: the log-odds of the right answer, or what a program says of the greedy answers.

1. A prompt's rows before the last run once (``LastRow``); each edit then costs one row, and they go many in one forward. Prompts are kept while
   they are few.
2. A greedy answer is made with the edit on the last row and on every row that follows. It ends as the shell's own do: at the model's end token, at
   the end of a line that holds text, or at the length limit; its first line with text is judged.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from symbolic_residue.instrument import collate, Edit, Instrument, LastRow
from symbolic_residue.shells._failure import Ask, Failure
from symbolic_residue.shells.heal._menu import Cell

__all__ = ["UNEDITED", "Rows", "Runs", "end_ids"]

Array = NDArray[np.float64]
_CELLS = 32
_KEPT_TOKENS = 4096
UNEDITED = Cell(None)


def end_ids(instrument: Instrument) -> frozenset[int]:
    """The ids that end a sequence: the generation config's, else the config's."""
    model = instrument.model
    for config in (getattr(model, "generation_config", None), model.config):
        found = getattr(config, "eos_token_id", None)
        if found is not None:
            return frozenset([found] if isinstance(found, int) else found)
    return frozenset()


class Rows:
    """The last row of one prompt under many cells.

    Args:
        instrument: the model's instrument.
        ids: the prompt, at least two tokens.
    """

    def __init__(self, instrument: Instrument, ids: Sequence[int]) -> None:
        self.instrument = instrument
        self.row = LastRow(instrument, collate([list(ids)]))

    def logits(self, cells: Sequence[Cell]) -> Tensor:
        """``[cell, vocab]`` float64."""
        edits: list[Edit] = [cell.edit(b) for b, cell in enumerate(cells) if cell.edit is not None]
        out = self.row.run(edits, copies=len(cells))["logits"][:, -1].double().cpu()
        for i, cell in enumerate(cells):
            if cell.tokens:
                out[i, list(cell.tokens)] += cell.nats
        return out

    def answers(self, cells: Sequence[Cell], tokenizer: Any, steps: int) -> list[str]:
        """The greedy answer under each cell, its first line with text."""
        ends, limit = end_ids(self.instrument), self.instrument.parts.max_context
        copies = self.row.select([0] * len(cells))
        decoder, fed, width = copies.decoder(), copies.last, copies.width
        new: list[list[int]] = [[] for _ in cells]
        texts, live = [""] * len(cells), list(range(len(cells)))
        for step in range(steps if limit is None else min(steps, limit - width)):
            edits: list[Edit] = [edit(b) for b, i in enumerate(live) if (edit := cells[i].edit) is not None]
            with torch.no_grad(), self.instrument.attached(edits=edits):
                logits = decoder.step(ids=fed).clone()
            for b, i in enumerate(live):
                if cells[i].tokens:
                    logits[b, list(cells[i].tokens)] += cells[i].nats
            chosen = logits.argmax(-1)
            for b, i in enumerate(live):
                token = int(chosen[b])
                new[i].append(token)
                texts[i] = _decoded(tokenizer, new[i][:-1] if token in ends else new[i])
            left = [b for b, i in enumerate(live) if new[i][-1] not in ends and "\n" not in texts[i].lstrip()]
            if not left or step == steps - 1:
                break
            if len(left) < len(live):
                decoder.keep(left)
                live, chosen = [live[b] for b in left], chosen[left]
            fed = chosen
        return [text.strip().split("\n")[0].strip() for text in texts]


class Runs:
    """The prompts of many failures.

    Args:
        instrument: the model's instrument.
    """

    def __init__(self, instrument: Instrument) -> None:
        self.instrument, self.tokenizer = instrument, instrument.loaded.tokenizer
        self._kept: dict[tuple[int, ...], Rows] = {}
        self._tokens = 0

    def rows(self, ids: Sequence[int]) -> Rows:
        """The rows of a prompt, from before where they were kept."""
        key = tuple(ids)
        if key in self._kept:
            return self._kept[key]
        made = Rows(self.instrument, key)
        if self._tokens + len(key) <= _KEPT_TOKENS:
            self._kept[key] = made
            self._tokens += len(key)
        return made

    def measure(self, failure: Failure, cells: Sequence[Sequence[Cell | None]]) -> Array:
        """The failure's measure ``[cell]`` under ``cells [ask][cell]``; NaN where a prompt lacks what the cell acts on."""
        out = np.full(len(cells[0]), np.nan)
        acting = [c for c in range(len(out)) if all(of_ask[c] is not None for of_ask in cells)]
        for start in range(0, len(acting), _CELLS):
            group = acting[start : start + _CELLS]
            each = [
                self._ask(failure, ask, [of_ask[c] for c in group])  # type: ignore[misc]
                for ask, of_ask in zip(failure.asks, cells, strict=True)
            ]
            out[group] = np.mean(each, axis=0)
        return out

    def unedited(self, failure: Failure) -> float:
        """The failure's measure as the model is."""
        return float(self.measure(failure, [[UNEDITED]] * len(failure.asks))[0])

    def _ask(self, failure: Failure, ask: Ask, cells: list[Cell]) -> Array:
        rows = self.rows(ask.ids)
        if ask.check is not None:
            return np.array([float(ask.check(text)) for text in rows.answers(cells, self.tokenizer, failure.steps)])
        assert ask.answer is not None
        logits = rows.logits(cells)
        mine = logits[:, ask.answer].clone()
        if ask.wrong is None:
            logits[:, ask.answer] = -torch.inf
            return (mine - logits.max(-1).values).numpy()
        return (mine - logits[:, ask.wrong]).numpy()


def _decoded(tokenizer: Any, ids: Sequence[int]) -> str:
    return tokenizer.decode(list(ids), skip_special_tokens=False, clean_up_tokenization_spaces=False) if ids else ""
