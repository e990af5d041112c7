"""Graphs of a run's worst failures in its report: every prompt with links to its pages, and means over the prompts of one kind of target.

1. Prompts: target, value, the same on the control, what is missing of a row at most, or why there is no graph; and the tokens that carry most of it.
2. Parts, a table a kind of target and division (span, layer, place, kind of node): mean value over failing prompts, and over those with a healthy control the
   same on the controls and the paired difference; bootstrap over prompts. In each column without an interval's words the parts add up to the mean target.
   Where a prompt has no such part its value is 0, so that they do. Shares stay within 0 and 1, their intervals too.
3. Neurons: how many of the failing prompts have a neuron (at any position) among the ten of largest total effect, beside how many controls do.

The unit is a prompt; with one there is no interval. Intervals are not corrected for the number of parts.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from symbolic_residue.figures import interval_text, number
from symbolic_residue.stats import bootstrap_mean, bound, Estimate

__all__ = ["failure_tables", "pooled_parts"]

Rows = list[dict[str, Any]]
_LAYERS = 8
_TOKENS = 6
_NEURONS = 12
SPLITS = {
    "span": "which embeddings carry it, over all paths",
    "place": "where what writes it directly stands",
    "layer": "which layer writes it directly",
    "kind": "what writes it directly",
}


def failure_tables(held: Mapping[str, Rows], splits: Sequence[str] | None = None) -> list[dict[str, Any]]:
    """The section's tables, from those of the run (one item).

    Args:
        held: rows of ``failure_graphs failure_parts failure_units``.
        splits: only the means of these divisions; else all tables.

    Returns:
        ``caption``; ``columns``: (title, whether numbers); ``rows``: (cells, marked), a cell a text or a list of (text, link).
    """
    graphs, parts, units = (held[name] for name in ("failure_graphs", "failure_parts", "failure_units"))
    tables = [_prompts(graphs), _tokens(graphs, parts)] if splits is None else []
    for kind in dict.fromkeys(row["kind"] for row in graphs if row["folder"]):
        mine = [row for row in graphs if row["kind"] == kind and row["folder"]]
        healthy = {row["failure"] for row in mine if row["healthy"]}
        names = {row["failure"] for row in mine}
        for split, said in SPLITS.items():
            if splits is None or split in splits:
                rows = pooled_parts([row for row in parts if row["failure"] in names and row["split"] == split], healthy)
                tables.append(_parts(kind, said, rows, len(mine), len(healthy), _LAYERS if split == "layer" else None))
        if splits is None:
            tables += _units(kind, [row for row in units if row["failure"] in names], names, healthy)
    if splits is None:
        tables.append(_ghosts([row for row in graphs if row["ghosts"] is not None]))
    return tables


def pooled_parts(rows: Rows, healthy: set[str], *, seed: int = 0) -> list[dict[str, Any]]:
    """One row a part of a division: ``part value share control difference``, each an ``Estimate`` over prompts, or None where no prompt gives it.

    Args:
        rows: of the table ``failure_parts``, one division and kind of target.
        healthy: failures whose control is healthy; the last two are over these.
        seed: of the bootstrap.
    """
    failures = list(dict.fromkeys(row["failure"] for row in rows))
    at = {(row["failure"], row["part"]): row for row in rows}
    paired = [name for name in failures if name in healthy]

    def over(names: list[str], of: Callable[[dict[str, Any]], float]) -> Estimate | None:
        return bootstrap_mean([of(at.get((name, part), {})) for name in names], seed=seed) if names else None

    found = []
    for part in dict.fromkeys(row["part"] for row in rows):
        share = over(failures, lambda row: row.get("share") or 0.0)
        found.append(
            {
                "part": part,
                "value": over(failures, lambda row: row.get("value") or 0.0),
                "share": share,
                "control": over(paired, lambda row: row.get("control_value") or 0.0),
                "difference": over(paired, lambda row: (row.get("value") or 0.0) - (row.get("control_value") or 0.0)),
            }
        )
    return found


def _prompts(graphs: Rows) -> dict[str, Any]:
    rows = []
    for row in graphs:
        links = [("failing", f"{row['folder']}/failing/report.html")] if row["folder"] else []
        if row["folder"] and row["compared"] != "no control":
            links.append(("control", f"{row['folder']}/control/report.html"))
        if row["compared"] == "difference":
            links.append(("difference", f"{row['folder']}/difference/report.html"))
        tokens = "—" if row["tokens"] is None else str(row["tokens"])
        if row["control_tokens"] is not None:
            tokens += f" / {row['control_tokens']}"
        rows.append(
            [
                row["failure"],
                row["mode"] or "—",
                row["target"] or "—",
                number(row["value"], signed=True),
                number(row["control_value"], signed=True),
                "—" if row["healthy"] is None else "yes" if row["healthy"] else "no: it fails too",
                row["compared"] or "—",
                tokens,
                number(row["worst_row"]),
                links if links else row["reason"] or "—",
            ]
        )
    columns = {"failure": False, "verdict": False, "target": False, "value (logits)": True, "on the control": True}
    columns |= {"control healthy": False, "compared": False, "tokens": True, "missing of a row": True, "graphs": False}
    return _table("Prompts, the worst first; a row that does not add up is refused", columns, rows)


def _tokens(graphs: Rows, parts: Rows) -> dict[str, Any]:
    """For each prompt the tokens whose embeddings carry most, on it and on its control."""
    cells = []
    for row in graphs:
        mine = [part for part in parts if part["failure"] == row["failure"] and part["split"] == "token"]
        if not mine:
            continue
        sides = []
        for side in ("value", "control_value"):
            order = sorted((part for part in mine if part[side] is not None), key=lambda part: -abs(part[side]))[:_TOKENS]
            sides.append("; ".join(f"{_word(part['part'])} {number(part[side], signed=True)}" for part in order) or "—")
        cells.append([row["failure"], *sides])
    columns = {"failure": False, "on the failing prompt (logits)": False, "on its control": False}
    return _table(
        f"The {_TOKENS} tokens whose embeddings carry most, over all paths: place, token, logits (one prompt: no interval)",
        columns,
        cells,
    )


def _word(part: str) -> str:
    place, _, token = part.partition(" ")
    return f"{place} {token!r}" if place.isdecimal() else part


def _parts(kind: str, said: str, rows: list[dict[str, Any]], n: int, paired: int, most: int | None) -> dict[str, Any]:
    shown = rows
    if most is not None and len(rows) > most:
        largest = sorted(rows, key=lambda row: -row["share"].value)[:most]
        shown = [row for row in rows if row in largest]
    cells = [
        [
            row["part"],
            _estimate(row["value"]),
            _estimate(row["share"], (0.0, 1.0), signed=False),
            _estimate(row["control"]),
            _estimate(row["difference"]),
        ]
        for row in shown
    ]
    total = sum(row["value"].value for row in rows)
    caption = (
        f"{kind.capitalize()}, {said}: {len(shown)} of {len(rows)} parts, which add up to {number(total, signed=True)} logits. "
    )
    caption += f"n = {n} prompt{'' if n == 1 else 's'}{': no interval' if n == 1 else ''}, {paired} with a healthy control"
    columns = {"part": False, "failing [interval]": True, "share of the sizes": True, "healthy controls": True}
    return _table(caption, columns | {"difference [interval]": True}, cells)


def _units(kind: str, units: Rows, names: set[str], healthy: set[str]) -> list[dict[str, Any]]:
    counted: dict[tuple[int, int], dict[str, Any]] = {}
    for row in units:
        one = counted.setdefault((row["layer"], row["neuron"]), {"failing": set(), "control": set(), "effects": [], "raises": ""})
        if row["side"] == "failing":
            one["failing"].add(row["failure"])
            one["effects"].append(row["effect"])
            one["raises"] = row["raises"] or ""
        elif row["failure"] in healthy:
            one["control"].add(row["failure"])
    found = sorted(
        (entry for entry in counted.items() if entry[1]["failing"]),
        key=lambda entry: (-len(entry[1]["failing"]), -max(map(abs, entry[1]["effects"]))),
    )
    cells = [
        [
            f"L{layer} #{neuron}",
            f"{len(one['failing'])} of {len(names)}",
            f"{len(one['control'])} of {len(healthy)}",
            ", ".join(number(x, signed=True) for x in one["effects"][:5]),
            one["raises"],
        ]
        for (layer, neuron), one in found[:_NEURONS]
    ]
    caption = f"{kind.capitalize()}: neurons among the ten of largest total effect on a failing prompt ({min(len(found), _NEURONS)} of {len(found)}). "
    caption += "Below 0: they push what would be right, and are overruled"
    columns = {
        "neuron": False,
        "failing prompts": True,
        "healthy controls": True,
        "effects (logits)": True,
        "raises (a hint)": False,
    }
    return [_table(caption, columns, cells)]


def _ghosts(graphs: Rows) -> dict[str, Any]:
    """Shares of ghosts on each silent prompt and on its control, their means, and the paired difference where the control is healthy."""
    names = ("ghosts", "ghosts_random", "control_ghosts", "control_ghosts_random")
    cells = [[row["failure"], *(number(row[name]) for name in names)] for row in graphs]
    paired = [row for row in graphs if row["healthy"] and row["control_ghosts"] is not None]
    if len(graphs) > 1:
        means: list[str] = []
        for name in names:
            values = [row[name] for row in graphs if row[name] is not None]
            means.append(_estimate(bootstrap_mean(values, seed=0) if values else None, (0.0, 1.0), signed=False))
        cells.append([f"mean over {len(graphs)} prompts", *means])
    caption = "Ghosts: of the 500 largest neurons (those that reach the target), the share that move it no more than random directions (about 0.95 for these)"
    if paired:
        difference = bootstrap_mean([row["ghosts"] - row["control_ghosts"] for row in paired], seed=0)
        caption += f". Failing − healthy control: {_estimate(difference, (-1.0, 1.0))}, n = {len(paired)} prompt{'' if len(paired) == 1 else 's'}"
    columns = {"failure": False, "failing": True, "random directions": True, "control": True, "random directions there": True}
    return _table(caption, columns, cells)


def _estimate(one: Estimate | None, limits: tuple[float, float] | None = None, *, signed: bool = True) -> str:
    if one is None:
        return "—"
    if not one.has_interval:
        return number(one.value, signed=signed)
    low, high = (bound(x, *(limits or ())) for x in (one.low, one.high))
    return f"{number(one.value, signed=signed)} {interval_text(low, high, one.n, signed=signed)}"


def _table(caption: str, columns: dict[str, bool], rows: list[list[Any]]) -> dict[str, Any]:
    return {"caption": caption, "columns": list(columns.items()), "rows": [(row, False) for row in rows]}
