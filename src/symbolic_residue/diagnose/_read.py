"""One prompt read, without any verdict: attention of every layer and head as tables."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

import polars as pl

from symbolic_residue.diagnose._diagnose import failed_item, ItemResult, items_row, turns
from symbolic_residue.errors import EditError, InputError
from symbolic_residue.instrument import AttentionRead, collate, Instrument
from symbolic_residue.prompts import build_prompt, find_span, PromptItem
from symbolic_residue.readout import attention_frames, computed_by

if TYPE_CHECKING:
    from symbolic_residue.models import LoadedModel

__all__ = ["read_item"]


def read_item(
    loaded: LoadedModel,
    item: PromptItem,
    *,
    chat: bool = False,
    rows: tuple[int, ...] | None = None,
    spans: Sequence[tuple[str, str]] = (),
    backend: str = "auto",
    mode: str = "auto",
    progress: Callable[[str, float], None] = lambda what, share: None,
) -> ItemResult:
    """Attention readouts of one prompt.

    Args:
        loaded: an opened model.
        item: the prompt.
        chat: render a plain prompt as one user turn.
        rows: query rows; None reads all.
        spans: (name, text) of regions to carve out of the standard ones.
        backend: what computes the readouts, see :class:`Instrument`; the table ``readouts`` says which one did.
        mode: ``observe``, ``replace`` or ``auto``.
        progress: told what is going on, and the share done.

    Raises:
        AttentionError: the backend named cannot run here, or not on this model.
        ConfigError: there is no such backend or mode.
    """
    instrument = Instrument(loaded, backend=backend, mode=mode)  # type: ignore[arg-type] (it refuses unknown names)
    try:
        prompt = build_prompt(
            loaded.tokenizer,
            item.prompt,
            messages=turns(item),
            chat=chat and item.messages is None,
            max_tokens=loaded.parts.max_context,
        )
        regions = prompt.regions
        for name, text in spans:
            found = find_span(prompt, text=text)
            regions = regions.with_span(name, found.start, found.stop)
        progress("reading", 0.1)
        read = AttentionRead(regions=regions, stats=("mass", "entropy", "distance", "max", "argmax"), rows=rows, split_self=True)
        trace = instrument.run(collate([prompt]), attention=read, keep_logits=1)
    except (InputError, EditError) as error:
        return failed_item(item.id, item.prompt or "", str(error), chat=chat or item.messages is not None, seed=0)
    assert trace.attention is not None
    mass, stats = attention_frames(trace.attention)
    tokens = pl.DataFrame(
        {
            "position": list(range(len(prompt))),
            "token_id": prompt.ids,
            "token": prompt.tokens,
            "region": regions.per_token(),
            "char_start": [a for a, _ in prompt.offsets],
            "char_end": [b for _, b in prompt.offsets],
        }
    ).with_columns(influence=pl.lit(None, pl.Float64), attention=pl.lit(None, pl.Float64))
    n_rows = trace.attention.rows.numel()
    summary = f"Read {instrument.parts.n_layers} layers × {instrument.parts.n_heads} heads × {n_rows} rows."
    row = items_row(
        prompt=item.prompt if item.prompt is not None else item.messages[-1]["content"] if item.messages else "",
        text=prompt.text,
        chat=prompt.chat,
        n_tokens=len(prompt),
        seed=0,
        status="done",
        error=None,
        summary=summary,
    )
    tables = {"items": row, "tokens": tokens, "readout_mass": mass, "readout_stats": stats}
    tables["readouts"] = computed_by(trace.attention, "readout_mass", "readout_stats")
    return ItemResult(item.id, tables, {}, summary)
