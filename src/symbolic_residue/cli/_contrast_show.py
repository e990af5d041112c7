"""What a study says at its end: the summary of its report, or the same as JSON with every verdict's controls and what disagrees."""

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

    from symbolic_residue.figures import visible
    from symbolic_residue.report import contrast_summary

    console = Console()
    console.print(contrast_summary(path))
    for name, value in (("ended early", ended), ("run", path), ("report", page)):
        if value:
            console.print(escape(visible(f"{name}: {value}")), style="bold" if name == "ended early" else "", soft_wrap=True)
