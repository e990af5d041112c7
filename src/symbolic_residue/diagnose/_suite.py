"""Several shells, each on items of its own benchmark: which failures does this model have?

1. From each shell's benchmark and split, ``n`` items are taken: one half planted, one half null (where there are both), spread evenly over the file, so that
   kinds and frames are all met. The same ``n`` always takes the same items, so that two models are compared on the same texts; a larger ``n`` takes these and
   further ones, so that a run can be enlarged.
2. Each goes through its shell with the shell's options for suites (``ShellConfig.quick``), or those given.
3. The table ``shell_items`` says what was planted in each item; verdicts on null items are false ones.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import polars as pl

from symbolic_residue.diagnose._diagnose import ItemResult, shell_item
from symbolic_residue.errors import ConfigError
from symbolic_residue.prompts import ShellItem
from symbolic_residue.shells import Progress, quiet, shell_class, ShellBase

__all__ = ["choose_items", "item_name", "suite_item"]


def item_name(shell: str, item: ShellItem) -> str:
    """The item's id in a run of several shells."""
    return f"{shell}.{item.id}"


def choose_items(shell: str, n: int | None = None, *, split: str = "held-out") -> list[ShellItem]:
    """Items of a shell's benchmark, planted and null ones in equal numbers; see the module.

    Args:
        shell: its name.
        n: how many; None takes all of the split.
        split: ``held-out``, ``calibration`` or ``all``.

    Raises:
        ConfigError: no such shell or split, fewer than one item asked for, or the shell has no benchmark.
    """
    if split not in ("held-out", "calibration", "all"):
        raise ConfigError(f"There is no split {split!r}.", todo="Use held-out, calibration or all.")
    if n is not None and n < 1:
        raise ConfigError(f"{n} items of each shell.", todo="Ask for at least one.")
    items = [item for item in shell_class(shell).items() if split in ("all", item.split)]
    if n is None or n >= len(items):
        return items
    planted = [item for item in items if not item.null]
    null = [item for item in items if item.null]
    n_planted = min(len(planted), max(n - len(null), (n + 1) // 2))
    chosen = {item.id for item in (*_spread(planted, n_planted), *_spread(null, n - n_planted))}
    return [item for item in items if item.id in chosen]


def _spread(items: Sequence[ShellItem], n: int) -> list[ShellItem]:
    """``n`` items spread over the file: the middles of its quarters first, then halves, quarters, eighths …; whatever ``n``, they are the first of every
    larger one."""
    places = dict.fromkeys(i * len(items) // 8 for i in (1, 5, 3, 7))
    k = 0
    while len(places) < min(n, len(items)):
        k += 1
        place, half, rest = 0.0, 0.5, k
        while rest:
            place, half, rest = place + half * (rest & 1), half / 2, rest >> 1
        places.setdefault(int(place * len(items)))
    return [items[i] for i in list(places)[:n]]


def suite_item(shell: ShellBase[Any, Any], item: ShellItem, *, seed: int = 0, progress: Progress = quiet) -> ItemResult:
    """One item of the shell's benchmark, with the table that says what was planted in it.

    Raises:
        ModelError, InstrumentError: what concerns the model and not this item.
    """
    name = item_name(shell.name, item)
    result = shell_item(
        shell, name, item.shown, lambda told: shell.run_item(item, seed=seed, progress=told), seed=seed, progress=progress
    )
    row = {
        "shell": shell.name,
        "benchmark": shell.benchmark or "",
        "benchmark_item": item.id,
        "kind": item.kind,
        "frame": item.frame or item.kind,
        "split": item.split,
        "null": item.null,
        "planted": ", ".join(item.modes),
    }
    result.tables["shell_items"] = pl.DataFrame([row])
    return result
