"""One prompt through a shell.

1. ``shell_item`` runs any shell on what an item asks; ``diagnose_item`` is VALUE-COLLAPSE on a prompt item (text or
   conversation, perhaps candidates and a control).
2. What it found becomes tables, with the ``items`` row that says what was asked and the verdict in one sentence.
3. A prompt that cannot be used becomes a failed item with its reason; the others go on.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, TYPE_CHECKING

import polars as pl

from symbolic_residue.errors import InputError
from symbolic_residue.prompts import PromptItem
from symbolic_residue.shells import Result, ShellBase, ValueCollapseShell

if TYPE_CHECKING:
    from torch import Tensor

__all__ = ["ItemResult", "diagnose_item", "failed_item", "items_row", "shell_item", "turns"]

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
    findings: Result | None = None


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
    in_chat = chat or item.messages is not None
    return shell_item(
        shell,
        item.id,
        item.prompt or "",
        lambda told: shell.run(
            item.prompt,
            messages=turns(item),
            chat=chat and item.messages is None,
            candidates=item.candidates,
            control=item.control,
            seed=seed,
            progress=told,
        ),
        chat=in_chat,
        seed=seed,
        progress=progress,
    )


def shell_item(
    shell: ShellBase[Any, Any],
    item: str,
    prompt: str,
    run: Callable[[Progress], Any],
    *,
    chat: bool = False,
    seed: int = 0,
    progress: Progress = lambda what, share: None,
) -> ItemResult:
    """One item through any shell: run, analyse, and the ``items`` row.

    Args:
        shell: on the model to probe.
        item: the item's id; ``prompt`` its text, for a reader.
        run: calls the shell's ``run`` with what this item asks; it is handed the function to tell progress to.
        chat: whether the chat template is used.
        seed: of everything random.
        progress: told what is going on, and the share done.

    Raises:
        ModelError, InstrumentError: what concerns the model and not this item; an unusable prompt does not raise.
    """
    try:
        residue = run(lambda what, share: progress(what, 0.5 * share))
    except InputError as error:
        return failed_item(item, prompt, str(error), chat=chat, seed=seed)
    findings = shell.analyze_residue(residue, progress=lambda what, share: progress(what, 0.5 + 0.5 * share))
    tables = findings.tables()
    tokens = tables.get("tokens")
    asked = getattr(getattr(residue, "asked", None), "input_text", None)
    # A shell of one's own need not write a sentence; the report makes one from the verdicts then.
    summary = getattr(findings, "summary", None)
    tables["items"] = items_row(
        prompt=asked if isinstance(asked, str) else prompt,
        text=None if tokens is None else "".join(tokens["token"].to_list()),
        chat=chat,
        n_tokens=None if tokens is None else len(tokens),
        seed=seed,
        status="done",
        error=None,
        summary=summary,
    )
    tensors = findings.tensors() if hasattr(findings, "tensors") else {}
    return ItemResult(item, tables, tensors, summary or _outcomes(tables), findings)


def _outcomes(tables: dict[str, pl.DataFrame]) -> str:
    """The verdicts in a few words: ``loss of confidence fires``."""
    if "verdicts" not in tables:
        return "No verdict was reached."
    return "; ".join(f"{mode} {outcome}" for mode, outcome in tables["verdicts"].select("mode", "outcome").iter_rows()) + "."


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
