"""Measures across shells in a run of several shells: on each item's own prompt and control, and over all items of a shell together.

1. With each item: whether end-of-text comes first at the prompt's last row (table ``endings``), and every head's attention metrics on prompt and control
   (tensor ``attention_metrics``). The token ids are kept too (``across_prompt``, ``across_control``), so that a run that was cut off needs no shell again.
2. Over the items of a shell: silence on those where the model is silent; attention disruption over the planted items that have a control. Null items are not
   mixed in.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import polars as pl

from symbolic_residue.diagnose._across import across_row, disruption_together
from symbolic_residue.diagnose._diagnose import failed_item, ItemResult, items_row
from symbolic_residue.diagnose._silence import ending_rows, SILENCE, silence_together
from symbolic_residue.errors import EditError, InputError
from symbolic_residue.figures import number
from symbolic_residue.instrument import Instrument
from symbolic_residue.shells.across import attention_metrics, endings, METRICS, stressed

__all__ = ["add_across", "suite_across"]


def add_across(shell: Any, result: ItemResult) -> ItemResult:
    """What step 1 of the module reads, added to the item's tables and tensors; a failed item, and one without a prompt of its own, stay as they are."""
    residue = getattr(result.findings, "residue", None)
    try:
        pair = None if residue is None else stressed(shell, residue)
        if pair is None:
            return result
        prompt, control = pair
        both: list[Any] = [prompt] if control is None else [prompt, control]
        found = endings(shell.instrument, both)
        tensors: dict[str, Any] = {"across_prompt": np.array(prompt)}
        if control is not None:
            each = [attention_metrics(shell.instrument, [one]) for one in both]
            tensors["across_control"] = np.array(control)
            tensors["attention_metrics"] = np.stack([np.stack([side[name][0] for name in METRICS]) for side in each])
    except (InputError, EditError) as error:
        none = across_row("silence", SILENCE, n=0, counts="prompts", pooled=False, reason=str(error))
        result.tables["across"] = none
        return result
    mine = found[0]
    said = f"The model is {'silent' if mine.ended else 'not silent'} on this item's prompt: {number(mine.difference, signed=True)} nats"
    said += f"; on its control: {number(found[1].difference, signed=True)} nats." if control is not None else "."
    kind = "the item's own control prompt" if control is not None else None
    result.tables["across"] = across_row("silence", SILENCE, said, n=1, counts="prompts", pooled=False, control=kind)
    result.tables["endings"] = ending_rows(shell.instrument, mine, found[1] if control is not None else None)
    result.tensors.update(tensors)
    return result


def suite_across(
    instrument: Instrument,
    shell: str,
    *,
    item: str,
    kinds: pl.DataFrame,
    endings_table: pl.DataFrame,
    tensors: Mapping[str, Mapping[str, Any]],
    seed: int = 0,
    progress: Any = lambda what, share: None,
) -> ItemResult:
    """The items of one shell together.

    Args:
        instrument: the model's instrument.
        shell: its name.
        item: the id of the item to make.
        kinds: table ``shell_items`` of the run.
        endings_table: table ``endings`` of the run.
        tensors: name → item → tensor, of those that :func:`add_across` keeps.
        seed: of resampling and draws.
        progress: told what is going on, and the share done.
    """
    mine = kinds.filter((pl.col("shell") == shell) & pl.col("item").is_in(endings_table["item"].to_list()))
    names = mine["item"].to_list()
    planted = mine.filter(~pl.col("null"))["item"].to_list()
    prompts: list[Any] = [tensors["across_prompt"][name].tolist() for name in names]
    controls: list[Any] = [
        tensors["across_control"][name].tolist() if name in tensors["across_control"] else None for name in names
    ]
    rows = pl.concat([endings_table.clear(), *(endings_table.filter(pl.col("item") == name) for name in names)])
    pairs = [tensors["attention_metrics"][name].double().numpy() for name in planted if name in tensors["attention_metrics"]]
    parts = [
        silence_together(
            instrument, prompts, controls, rows, item=item, what=f" over the items of {shell}", seed=seed, progress=progress
        ),
        disruption_together(instrument, pairs, item=item, what=f" over the planted items of {shell} that have one", seed=seed),
    ]
    failed = next((part for part in parts if "across" not in part.tables), None)
    if failed is not None:
        return failed_item(item, f"{len(names)} items of {shell}", failed.summary, chat=False, seed=seed)
    tables = {name: frame for part in parts for name, frame in part.tables.items() if name not in ("items", "across")}
    tables["across"] = pl.concat([part.tables["across"] for part in parts])
    summary = " ".join(part.summary for part in parts)
    tables["items"] = items_row(
        prompt=f"{len(names)} items of {shell}", text=None, chat=None, n_tokens=None, seed=seed, status="done", error=None, summary=summary
    )  # fmt: skip
    return ItemResult(item, tables, {}, summary)
