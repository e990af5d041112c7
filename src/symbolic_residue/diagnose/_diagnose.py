"""One prompt through the shells.

1. The prompt item (text or conversation, perhaps candidates and a control) goes through VALUE-COLLAPSE, the shell that there is.
2. What it found becomes tables, with the ``items`` row that says what was asked and the verdict in one sentence.
3. A prompt that cannot be used becomes a failed item with its reason; the others go on.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

import polars as pl

from symbolic_residue.errors import InputError
from symbolic_residue.prompts import PromptItem
from symbolic_residue.shells import ValueCollapseFindings, ValueCollapseShell

if TYPE_CHECKING:
    from torch import Tensor

__all__ = ["ItemResult", "diagnose_item", "failed_item", "items_row", "turns"]

Progress = Callable[[str, float], None]


@dataclass(frozen=True)
class ItemResult:
    """What came of one prompt.

    Attributes:
        item: its id.
        tables: for the run folder; ``items`` has the one row that says how it went.
        tensors: arrays for the run folder.
        summary: the verdict in one sentence, or the reason of the failure.
        findings: None for a failed item.
    """

    item: str
    tables: dict[str, pl.DataFrame]
    tensors: dict[str, Tensor]
    summary: str
    findings: ValueCollapseFindings | None = None


def diagnose_item(
    shell: ValueCollapseShell, item: PromptItem, *, chat: bool = False, seed: int = 0, progress: Progress = lambda what, share: None
) -> ItemResult:
    """Diagnose one prompt.

    Args:
        shell: on the model to diagnose.
        item: the prompt.
        chat: render a plain prompt as one user turn.
        seed: of everything random.
        progress: told what is going on, and the share done.

    Raises:
        ModelError, InstrumentError: what concerns the model and not this prompt; an unusable prompt does not raise.
    """
    import torch

    try:
        residue = shell.run(
            item.prompt,
            messages=turns(item),
            chat=chat and item.messages is None,
            candidates=item.candidates,
            control=item.control,
            seed=seed,
            progress=lambda what, share: progress(what, 0.5 * share),
        )
    except InputError as error:
        return failed_item(item.id, item.prompt or "", str(error), chat=chat or item.messages is not None, seed=seed)
    findings = shell.analyze_residue(residue, progress=lambda what, share: progress(what, 0.5 + 0.5 * share))
    tables = findings.tables()
    text = "".join(tables["tokens"]["token"].to_list())
    tables["items"] = items_row(
        prompt=residue.asked.input_text,
        text=text,
        chat=residue.asked.chat,
        n_tokens=len(tables["tokens"]),
        seed=seed,
        status="done",
        error=None,
        summary=findings.summary,
    )
    a = findings.attribution
    tensors = {"dla_heads": torch.tensor(a.heads), "dla_mlps": torch.tensor(a.mlps), "toward": torch.tensor(a.toward)}
    return ItemResult(item.id, tables, tensors, findings.summary, findings)


def turns(item: PromptItem) -> list[dict[str, str]] | None:
    """An item's conversation as plain dictionaries, None where it is plain text."""
    return None if item.messages is None else [{"role": m["role"], "content": m["content"]} for m in item.messages]


def failed_item(item_id: str, prompt: str, reason: str, *, chat: bool, seed: int) -> ItemResult:
    """A prompt that could not be diagnosed, with its reason."""
    row = items_row(prompt=prompt, text=None, chat=chat, n_tokens=None, seed=seed, status="failed", error=reason, summary=None)
    return ItemResult(item_id, {"items": row}, {}, reason)


def items_row(**row: object) -> pl.DataFrame:
    """The one row of the ``items`` table."""
    return pl.DataFrame(
        [row],
        schema={
            "prompt": pl.String,
            "text": pl.String,
            "chat": pl.Boolean,
            "n_tokens": pl.Int64,
            "seed": pl.Int64,
            "status": pl.String,
            "error": pl.String,
            "summary": pl.String,
        },
    )
