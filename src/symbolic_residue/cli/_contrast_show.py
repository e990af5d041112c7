"""What a study says at its end: rates, preflight, verdicts under both segmentations with their controls, and what disagrees."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from symbolic_residue.cli._common import echo_json

__all__ = ["show", "summary"]


def summary(path: Path, *, region: str | None) -> dict[str, Any]:
    """The study's end as plain values, from its folder alone."""
    import polars as pl

    from symbolic_residue.contrast.study import verdict_rows
    from symbolic_residue.store import RunFolder

    run = RunFolder.open(path)
    verdicts = run.table("contrast_verdicts").fill_nan(None)
    known = verdicts.filter(pl.col("region") == region) if region is not None else verdicts
    shown = verdict_rows(
        verdicts, run.table("contrast_differences"), run.table("contrast_rule_outs"), region=None if known.is_empty() else region
    )
    windows = run.table("contrast_windows")
    effects = run.table("contrast_effects")
    analysed = run.table("items").filter(pl.col("item").str.starts_with("analysis/"))
    return {
        "run": str(path),
        "status": run.manifest.status,
        "rates": run.table("contrast_rates").drop("item").to_dicts(),
        "preflight": run.table("contrast_preflight").drop("item").fill_nan(None).to_dicts(),
        "verdicts": [{name: value for name, value in row.items() if name != "item"} for row in shown],
        "conditions": [
            {"summary": row["summary"], "notes": (row["text"] or "").split("\n") if row["text"] else []}
            for row in analysed.to_dicts()
        ],
        "windows": len(windows),
        "missing": run.table("contrast_missing").drop("item").to_dicts(),
        "causal": effects.filter(pl.col("outcome").is_not_null()).drop("item").fill_nan(None).to_dicts(),
    }


def show(path: Path, *, region: str | None, ended: str, page: Path | None, as_json: bool) -> None:
    """Print it."""
    found = summary(path, region=region)
    if as_json:
        echo_json({**found, "ended": ended or None, "report": str(page) if page else None})
        return
    from rich.console import Console
    from rich.markup import escape
    from rich.table import Table

    from symbolic_residue.figures import visible

    console = Console()

    def said(text: Any) -> str:
        return escape(visible(str(text)))

    def table(titles: list[str], rows: list[list[str]], right: tuple[str, ...] = ()) -> None:
        made = Table(box=None, pad_edge=False)
        for title in titles:
            made.add_column(title, justify="right" if title in right else "left", overflow="fold", no_wrap=title != titles[-1])
        for row in rows:
            made.add_row(*map(said, row))
        console.print(made)

    def line(text: str, style: str = "") -> None:
        console.print(said(text), style=style, soft_wrap=True)

    for row in found["preflight"]:
        if not row["check"].startswith("largest"):
            bounds = f"{_number(row['value'])} {_interval(row)} (90 %), margin {row['margin']:g}, n = {row['n']}"
            line(f"preflight, {row['condition'] or 'all conditions'}: {row['check']}: {row['outcome']}: {bounds}")
    if found["rates"]:
        rows = [
            [row["condition"], row["model"], f"{row['hits']}/{row['n']}", f"[{100 * row['low']:.0f}, {100 * row['high']:.0f}] %"]
            for row in found["rates"]
        ]
        table(["rate of the behaviour", "model", "trials", "Wilson 95 %"], rows, ("trials",))
    if found["verdicts"]:
        for place in dict.fromkeys((row["condition"], row["region"]) for row in found["verdicts"]):
            line(f"{place[0]}: attention to {place[1]} at the row that emits", "bold")
            for row in found["verdicts"]:
                if (row["condition"], row["region"]) == place:
                    line(f"  {_verdict(row)}")
                    for flag in row["flags"]:
                        line(f"  ! {row['segmentation']}: {flag}", "yellow")
    for row in found["conditions"]:
        line(row["summary"])
    for row in found["missing"]:
        if row["missing"] and row["model"] == found["missing"][0]["model"]:
            what = (
                "answers without the behaviour were cut"
                if row["stratum"] == "C4"
                else f"of {row['examples']} answers have no such rows"
            )
            line(f"{row['condition']}, {row['stratum']}: {row['missing']} {what}", "dim")
    for row in found["causal"]:
        what = f"{row['analysis']} ({row['condition']}, {row['model']}): {row['outcome']}"
        line(f"{what}: {_number(row['value'])} {row['unit']} {_interval(row)}, n = {row['n']}")
    if ended:
        line(f"ended early: {ended}", "bold")
    line(f"run: {path}")
    if page is not None:
        line(f"report: {page}")


def _verdict(row: dict[str, Any]) -> str:
    """One verdict in a line."""
    ruled = [
        f"{stratum}{'+' if passed else '?' if passed is None else '−'}" for stratum, passed in sorted(row["rule_outs"].items())
    ]
    nulls = (
        ["no null model given"]
        if row["nulls"] is None
        else ["beyond null models" if row["beyond_nulls"] else "not beyond null models"]
    )
    own = f"{row['tuned']} {_number(row['tuned_value'], signed=True)}, {row['reference']} {_number(row['reference_value'], signed=True)}"
    found = f"layer {row['layer']}: {_number(row['value'], signed=True)} {_interval(row)} ({own}), n = {row['n']}, {row['clusters']} questions"
    return f"against {row['reference']}, {row['segmentation']}: {row['outcome']}; {'; '.join([found, ' '.join(ruled) or 'no rule-outs', *nulls])}"


def _number(value: float | None, *, signed: bool = False) -> str:
    return "none" if value is None else f"{value:+.4f}" if signed else f"{value:.3g}"


def _interval(row: dict[str, Any]) -> str:
    return "(no interval)" if row["low"] is None or row["low"] != row["low"] else f"[{row['low']:+.3g}, {row['high']:+.3g}]"
