"""Sections of measures across shells: what the numbers are, their control and n in a sentence, then figures and tables; or why nothing was measured.

A section stands where the item has a row in the table ``across`` for it, or rows in the measure's own table. Numbers are formatted here, HTML is not made.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from symbolic_residue.figures import interval_text, number
from symbolic_residue.report._failure_graphs import failure_tables
from symbolic_residue.report._load import Run

__all__ = ["MEASURES", "across_sections"]

_TOP = 12
_HEADS = 3


@dataclass(frozen=True)
class _Measure:
    title: str
    tables: tuple[str, ...]
    figures: str
    show: Callable[[dict[str, list[dict[str, Any]]]], list[dict[str, Any]]]


def across_sections(run: Run, item: str, figures: list[str]) -> list[dict[str, Any]]:
    """The item's sections: ``name, title, rows`` (of the table ``across``), ``figures`` (their names), ``tables``.

    Args:
        run: the run.
        item: a shown item.
        figures: names of the item's figures; a measure's own begin with its word.
    """
    said = run.rows("across", item)
    found = []
    for name, measure in MEASURES.items():
        rows = [row for row in said if row["measure"] == name]
        held = {table: run.rows(table, item) for table in measure.tables}
        if not rows and not any(held[table] for table in measure.tables if table != "curves"):
            continue
        found.append(
            {
                "name": name,
                "title": measure.title,
                "rows": rows,
                "figures": [f for f in figures if measure.figures and f.startswith(measure.figures)],
                "tables": [table for table in measure.show(held) if table["rows"]],
            }
        )
    return found


def _table(caption: str, columns: dict[str, bool], rows: list[list[str]], *, marked: list[bool] | None = None) -> dict[str, Any]:
    """``columns``: title → whether its cells are numbers."""
    marks = marked or [False] * len(rows)
    return {"caption": caption, "columns": list(columns.items()), "rows": list(zip(rows, marks, strict=True))}


def _measured(row: dict[str, Any], value: str, low: str = "low", high: str = "high", *, signed: bool = True) -> str:
    if row[value] is None:
        return "—"
    return f"{number(row[value], signed=signed)} {interval_text(row[low], row[high], row['n'], signed=signed)}"


def _part(row: dict[str, Any]) -> str:
    if row["component"] == "head":
        return f"head {row['layer']}.{row['head']}"
    return f"{row['component']} {row['layer']}" if row["layer"] >= 0 else str(row["component"])


def _yes(value: bool | None, tested: bool) -> str:
    return "not tested" if not tested else "undecided" if value is None else "✓ yes" if value else "no"


def _silence(held: dict[str, list[dict[str, Any]]]) -> list[dict[str, Any]]:
    endings = [
        [
            row["side"],
            repr(row["end"]),
            number(row["end_probability"]),
            str(row["rank"]),
            repr(row["content"]),
            number(row["content_probability"]),
            number(row["difference"], signed=True),
            "✓ yes" if row["ended"] else "no",
        ]
        for row in held["endings"]
    ]
    parts = [
        [
            _part(row),
            _measured(row, "contribution"),
            number(row["control"], signed=True),
            number(row["control_q"]),
            row["role"],
            _measured(row, "ablation", "ablation_low", "ablation_high"),
            number(row["q"]),
            _yes(row["confirmed"], row["ablation"] is not None),
            str(row["n"]),
        ]
        for row in held["overruled"]
    ]
    kept = [i for i, row in enumerate(held["overruled"]) if i < _TOP or row["confirmed"]]
    asked = {"": False, "end": False, "p(end)": True, "rank": True, "best content": False, "p(content)": True}
    asked |= {"logit difference (nats)": True, "silent": False}
    of = {"component": False, "part [interval], nats": False, "on the controls": True, "q of the difference": True, "role": False}
    of |= {"ablation effect [interval], nats": False, "q": True, "confirmed": False, "n": True}
    caption = f"Parts of logit(end) − logit(content): {len(kept)} of {len(parts)}, the strongest first. Below 0: pushes content and is overruled"
    return [
        _table("What comes first", asked, endings),
        _table(caption, of, [parts[i] for i in kept], marked=[bool(held["overruled"][i]["confirmed"]) for i in kept]),
    ]


def _ghosts(held: dict[str, list[dict[str, Any]]]) -> list[dict[str, Any]]:
    rows = [
        [
            f"{row['unit']} {row['layer']}.{row['index']}",
            number(row["activity"]),
            number(row["success_activity"]),
            _measured(row, "effect", signed=False),
            number(row["success_effect"]),
            number(row["floor"]),
            number(row["q"]),
            row["state"],
            str(row["n"]),
        ]
        for row in held["ghosts"]
    ]
    columns = {"unit": False, "activity (spreads)": True, "on the controls": True, "effect [interval], KL nats": False}
    columns |= {"effect on the controls": True, "noise floor": True, "q of the difference": True, "state": False, "n": True}
    marks = [row["state"] == "ghost" for row in held["ghosts"]]
    caption = f"Strongly active units: {min(len(rows), 2 * _TOP)} of {len(rows)}, ghosts first"
    return [_table(caption, columns, rows[: 2 * _TOP], marked=marks[: 2 * _TOP])]


def _disruption(held: dict[str, list[dict[str, Any]]]) -> list[dict[str, Any]]:
    every = held["disruption"]
    metrics = list(dict.fromkeys(row["metric"] for row in every))
    per = []
    for metric in metrics:
        mine = [row for row in every if row["metric"] == metric]
        best = min(mine, key=lambda row: (row["q"], row["p"], -abs(row["difference"])))
        found = sum(row["q"] <= 0.05 for row in mine)
        per.append([metric, str(len(mine)), str(found), f"{best['layer']}.{best['head']}", number(best["q"])])
    # Tied q (few pairs) say nothing of size: of those found the largest differences, else the smallest p.
    chosen = []
    for metric in metrics:
        mine = [row for row in every if row["metric"] == metric]
        found = [row for row in mine if row["q"] <= 0.05]
        order = sorted(found, key=lambda row: -abs(row["difference"])) or sorted(mine, key=lambda row: row["p"])
        chosen += order[:_HEADS]
    rows = [
        [
            f"{row['layer']}.{row['head']}",
            row["metric"],
            f"{number(row['value'])} {row['unit']}",
            number(row["control"]),
            _measured(row, "difference"),
            number(row["effect"], signed=True),
            number(row["q"]),
            str(row["n"]),
        ]
        for row in chosen
    ]
    columns = {"head": False, "metric": False, "prompts": True, "controls": True, "difference [interval]": False}
    columns |= {"effect (d_z)": True, "q": True, "n": True}
    summary = {"metric": False, "heads": True, "with q ≤ 0.05": True, "smallest p: head": True, "its q": True}
    return [
        _table("Metrics", summary, per),
        _table(
            f"For each metric the {_HEADS} largest differences with q ≤ 0.05, or else the smallest p: {len(rows)} of {len(every)} rows",
            columns,
            rows,
            marked=[r["q"] <= 0.05 for r in chosen],
        ),
    ]


def _cross(held: dict[str, list[dict[str, Any]]]) -> list[dict[str, Any]]:
    every = held["cross_run"]
    rows = [
        [
            row["feature"],
            str(row["layer"]) if row["layer"] >= 0 else "—",
            number(row["success"]),
            number(row["failure"]),
            _measured(row, "difference"),
            number(row["effect"], signed=True),
            number(row["q"]),
            str(row["n"]),
        ]
        for row in every[:_TOP]
    ]
    columns = {"feature": False, "layer": True, "success": True, "failure": True, "failure − success [interval]": False}
    columns |= {"effect (d_z)": True, "q": True, "n": True}
    caption = f"Features with the smallest p: {len(rows)} of {len(every)}"
    return [_table(caption, columns, rows, marked=[row["q"] <= 0.05 for row in every[:_TOP]])]


def _attention(held: dict[str, list[dict[str, Any]]]) -> list[dict[str, Any]]:
    rows = [
        [f"{r['layer']}.{r['head']}", repr(r["target"]), number(r["strength"], signed=True), number(r["norm"])]
        for r in held["ov_heads"]
    ]
    columns = {"head": False, "toward": False, "logits through the head": True, "largest singular value of OV": True}
    return [_table("OV strength: the sum over keys is the head's direct logit attribution", columns, rows)]


MEASURES: dict[str, _Measure] = {
    "silence": _Measure("Silence: why nothing comes, and who is overruled", ("endings", "overruled"), "silence_", _silence),
    "ghosts": _Measure("Ghosts: active without effect", ("ghosts",), "", _ghosts),
    "graphs": _Measure("Graphs of the worst failures", ("failure_graphs", "failure_parts", "failure_units"), "", failure_tables),
    "disruption": _Measure("Attention against the control", ("disruption",), "disruption_", _disruption),
    "errors": _Measure("Errors that accumulate", ("curves",), "curve_", lambda held: []),
    "cross-run": _Measure("Success against failure", ("cross_run",), "", _cross),
    "attention": _Measure(
        "Where chosen heads look, and what they add", ("attention_rows", "ov_keys", "ov_heads"), "attention_view_", _attention
    ),
}
"""Measure → its section, in the report's order."""
