"""Which rows of which texts a model computes, and under which edits: so that a test can say that nothing runs twice.

1. Every call of the model is noted, one entry a sequence: the ids of all tokens so far, how many of them this call computes, and what acts on them.
2. What stands in the cache is read off the cache itself: in layer 0 a value is a function of the token alone (a plain Llama: no positions in values, no
   attention before them), so the nearest row of a table gives the id. Copies, cuts and joins of caches need no bookkeeping.
3. A *text* is the ids up to the last row of a call, together with shifted positions and the edits of that sequence. It runs twice where that row has been
   computed before: at the end of an earlier call (or of another sequence of this one), or inside.

A beginning that several texts have in common may run with each of them. Calls on embeddings instead of ids are left out.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, fields
from typing import Any

import pytest
import torch
from torch import Tensor

from symbolic_residue.instrument import Edit, Instrument

Unit = tuple[tuple[int, ...], tuple[Any, ...]]
"""Ids up to a row, and what is different about it."""


@dataclass
class ForwardLog:
    """What was computed.

    Attributes:
        rows: how often each row was; ``ends`` how often a call ended there; ``calls`` of the model.
        twice: texts that ran when they had run already, each with the place in the code that asked for it.
    """

    rows: Counter[Unit] = field(default_factory=Counter)
    ends: Counter[Unit] = field(default_factory=Counter)
    calls: int = 0
    twice: list[tuple[Unit, str]] = field(default_factory=list)

    def take(self, sequences: list[list[Unit]]) -> None:
        """One call: the rows of each sequence, the last one last."""
        self.calls += 1
        ends = Counter(units[-1] for units in sequences if units)
        place = _place()
        for unit, n in ends.items():
            again = n - 1 + (unit in self.rows)
            self.twice += [(unit, place)] * (again if len(unit[0]) > 1 else 0)  # a single token is no text
        for units in sequences:
            self.rows.update(units)
        self.ends.update(ends)

    def times(self, ids: list[int]) -> int:
        """How often this text ran, without edits."""
        return self.ends[tuple(ids), ()]


@contextmanager
def logged(instrument: Instrument, monkeypatch: pytest.MonkeyPatch) -> Iterator[ForwardLog]:
    """Note every call of the instrument's model; a plain Llama (see the module)."""
    model: Any = instrument.model
    log, active = ForwardLog(), list[Edit]()
    with torch.no_grad():
        layer = model.model.layers[0]
        every = model.model.embed_tokens.weight
        table = layer.self_attn.v_proj(layer.input_layernorm(every))
    heads = model.config.num_key_value_heads

    def known(cache: Any) -> Tensor:
        """``[sequence, key]`` ids of what is cached."""
        values = cache.layers[0].values.transpose(1, 2)
        flat = values.reshape(-1, values.shape[2] * values.shape[3])
        assert values.shape[2] == heads
        return torch.cdist(flat.double(), table.double()).argmin(-1).reshape(values.shape[0], values.shape[1])

    def before(module: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        ids = kwargs.get("input_ids", args[0] if args else None)
        if ids is None:
            return
        cache = kwargs.get("cache", kwargs.get("past_key_values"))
        held = 0 if cache is None else int(cache.get_seq_length())
        whole = torch.cat([known(cache), ids], 1) if held else ids
        mask = kwargs.get("attention_mask")
        mask = torch.ones_like(whole) if mask is None or mask.dim() != 2 else mask
        usual = (mask.cumsum(-1) - 1).clamp_min(0)[:, held:]
        positions = kwargs.get("position_ids")
        shift = torch.zeros_like(usual) if positions is None else (positions.expand_as(usual) - usual) * mask[:, held:]
        sequences: list[list[Unit]] = []
        for b in range(len(whole)):
            real, lead = mask[b].bool(), int(mask[b].int().argmax())
            acting = [edit for edit in active if edit.batch is None or b in edit.batch]
            new = int(mask[b, held:].sum())
            text = tuple(whole[b][real].tolist())
            units: list[Unit] = []
            for row in range(-new, 0):
                different = tuple(
                    _named(edit, lead, len(text) - new) for edit in acting if _reaches(edit, row, whole.shape[1] - held)
                )
                moved = tuple(shift[b, : len(shift[b]) + row + 1].tolist())
                units.append((text[: len(text) + row + 1], different + ((moved,) if any(moved) else ())))
            sequences.append(units)
        log.take(sequences)

    original = Instrument._attachment

    @contextmanager
    def attachment(self: Instrument, reads: Any, attention: Any, edits: Any, *rest: Any) -> Iterator[Any]:
        active.extend(edits)
        try:
            with original(self, reads, attention, edits, *rest) as found:
                yield found
        finally:
            del active[len(active) - len(edits) :]

    monkeypatch.setattr(Instrument, "_attachment", attachment)
    hook = model.register_forward_pre_hook(before, with_kwargs=True)
    try:
        yield log
    finally:
        hook.remove()


def _reaches(edit: Edit, row: int, queries: int) -> bool:
    """Whether the edit acts on this row (counted from the end) or on one before it."""
    return edit.rows is None or any((r if r < 0 else r - queries) <= row for r in edit.rows)


def _named(edit: Edit, lead: int, start: int) -> tuple[Any, ...]:
    """The edit as one sequence sees it: without its place in the batch and without padding. One of all rows begins where the call does."""
    out: list[Any] = [type(edit).__name__]
    for one in fields(edit):
        value = getattr(edit, one.name)
        if one.name == "batch":
            continue
        if one.name == "rows" and value is None:
            value = start
        if one.name == "keys":
            value = tuple(k - lead if k >= 0 else k for k in value)
        if isinstance(value, Tensor):
            value = tuple(value.flatten().tolist())
        out.append(value if isinstance(value, tuple | int | float | str | bool | None) else repr(value))
    return tuple(out)


def _place() -> str:
    """The functions of the shell that asked for this call, innermost first."""
    import traceback

    lines = [f for f in traceback.extract_stack() if "symbolic_residue/shells" in f.filename]
    return " < ".join(f"{f.filename.rsplit('symbolic_residue/shells/', 1)[-1]}:{f.name}" for f in reversed(lines[-4:]))


def told(twice: list[tuple[Unit, str]], decode: Callable[[list[int]], str]) -> str:
    """What ran twice, to be read: for each place in the code one example, and how many there are."""
    found: dict[str, list[str]] = {}
    for (ids, different), place in twice:
        found.setdefault(place, []).append(f"{decode(list(ids))[-60:]!r} ({len(ids)} tokens) {str(different)[:90]}")
    return "\n".join(f"{place}: {len(texts)}, e.g. {texts[0]}" for place, texts in found.items())
