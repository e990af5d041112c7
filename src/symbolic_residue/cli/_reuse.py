"""``--reuse RUN``: items that another run has measured in the same way are taken over instead of being measured again."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from symbolic_residue.errors import ConfigError

__all__ = ["take_over"]


def take_over(run: Any, other: Path, items: Sequence[str], *, apart: Sequence[str] = ()) -> list[str]:
    """Copy the finished items of another run folder that this run plans and has not done; returns their ids.

    Args:
        run: the ``RunFolder`` being written.
        other: the folder to take from; it is left as it is.
        items: ids that this run plans.
        apart: keys of the configuration that may differ, since they choose items and do not measure.

    Raises:
        ConfigError: the other run is of another kind, model or configuration; the message says what differs.
        StoreError: a folder that is no run.
    """
    import polars as pl

    from symbolic_residue.store import RunFolder

    old = RunFolder.open(other)
    if old.path.resolve() == run.path.resolve():
        raise ConfigError(f"{other} is the run itself.", todo="Give --resume to go on with it.")
    pairs = [("kind", old.manifest.kind, run.manifest.kind)]
    for name, mine, here in (
        ("provenance", old.manifest.provenance, run.manifest.provenance),
        ("config", old.manifest.config, run.manifest.config),
    ):
        pairs += [(f"{name}.{key}", mine.get(key), here.get(key)) for key in dict.fromkeys([*mine, *here]) if key not in apart]
    odd = [(name, was, now) for name, was, now in pairs if was != now]
    if odd:
        raise ConfigError(
            f"{other} was measured otherwise.",
            why="; ".join(f"{name}: {was!r} there, {now!r} here" for name, was, now in odd[:3]) + ("; …" if len(odd) > 3 else "."),
            todo="Reuse a run of the same model, shells and options.",
        )
    have = {*run.done_items()}
    there = {*old.done_items()}
    taken = [item for item in items if item in there and item not in have]
    tables = {name: old.table(name) for name in old.manifest.tables}
    for item in taken:
        mine = {name: frame.filter(pl.col("item") == item).drop("item") for name, frame in tables.items()}
        run.write_item(item, {name: frame for name, frame in mine.items() if len(frame)}, old.item_tensors(item))
    return taken
