"""A set of failures through the menu of edits, as one item of a run.

1. Failures are made; one that cannot be used fails the item, by name.
2. Unrelated prompts for the side effect are settled prompts of ``value-ambiguity``, calibration split.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

from symbolic_residue.diagnose._diagnose import failed_item, ItemResult, items_row
from symbolic_residue.errors import InputError
from symbolic_residue.instrument import Instrument
from symbolic_residue.prompts import benchmark, build_prompt
from symbolic_residue.shells import Progress, quiet
from symbolic_residue.shells.heal import Failure, heal, Menu

if TYPE_CHECKING:
    from symbolic_residue.models import LoadedModel

__all__ = ["heal_item"]

_UNRELATED = 12


def heal_item(
    loaded: LoadedModel,
    item: str,
    make: Callable[[], tuple[Sequence[Failure], Sequence[Failure]]],
    *,
    shown: str = "",
    chat: bool = False,
    menu: Menu | None = None,
    draws: int = 4,
    seed: int = 0,
    progress: Progress = quiet,
) -> ItemResult:
    """Heal a set of failures.

    Args:
        loaded: the model.
        item: the item's id in the run.
        make: makes the failures to search on, and those held out.
        shown: what they are, for a reader.
        chat: render the unrelated prompts by the chat template, as the failures are.
        menu: kinds and doses; draws: random twins.
        seed: of everything random.
        progress: told what is going on, and the share done.

    Raises:
        ModelError, InstrumentError: what concerns the model; unusable failures do not raise.
    """
    try:
        search, held_out = make()
        settled = [i.prompt for i in benchmark("value-ambiguity") if i.null and i.split == "calibration"]
        unrelated = [
            build_prompt(loaded.tokenizer, text, chat=chat, max_tokens=loaded.parts.max_context)
            for text in settled[:: max(1, len(settled) // _UNRELATED)][:_UNRELATED]
        ]
        found = heal(
            Instrument(loaded), search, held_out=held_out, unrelated=unrelated, menu=menu, draws=draws, seed=seed, progress=progress
        )
    except InputError as error:
        return failed_item(item, shown, str(error), chat=chat, seed=seed)
    tables = found.tables()
    tables["items"] = items_row(
        prompt=shown or f"{len(search)} failures to search on, {len(held_out)} held out",
        text=None,
        chat=chat,
        n_tokens=None,
        seed=seed,
        status="done",
        error=None,
        summary=found.summary,
    )
    return ItemResult(item, tables, {}, found.summary, found)
