"""``residue shells compare RUN_A RUN_B``: the same items in two runs or more, tested item by item; no model is needed."""

from __future__ import annotations

from bisect import bisect_left
from pathlib import Path
from typing import Annotated, Any

import typer

from symbolic_residue.cli._common import echo_json, Json, NoReport, Seed

__all__ = ["compare"]


def compare(
    runs: Annotated[list[Path], typer.Argument(metavar="RUN_A RUN_B [RUN…]", help="Run folders; the first is the base.")],
    frames: Annotated[bool, typer.Option("--frames", help="Items of one sentence pattern are one unit.")] = False,
    common: Annotated[bool, typer.Option("--common", help="Compare the items that are done in every run.")] = False,
    output: Annotated[
        Path | None, typer.Option("--output", "-o", help="The page; default compare-OTHERS.html in RUN_A.", show_default=False)
    ] = None,
    seed: Seed = 0,
    no_report: NoReport = False,
    json: Json = False,
) -> None:
    """Do two runs of the same items differ: in the verdicts' values, and in what fires?"""
    from symbolic_residue.report import compare_runs, render_comparison

    found = compare_runs(runs, frames=frames, common=common, seed=seed)
    page = None
    if not no_report:
        others = "-".join(path.resolve().name for path in runs[1:])
        page = render_comparison(found, output or runs[0] / f"compare-{others}.html")
    more = _more(found, runs[0]) if len(found.unable) else None
    if json:
        echo_json(found.to_dict() | {"more": more, "report": str(page) if page else None})
        return
    _show(found, page, more)


def _more(found: Any, run: Path) -> str | None:
    """How to get enough items, where the runs are of packaged benchmarks: the least ``--items`` that fills every row that has items enough at all."""
    from symbolic_residue.store import RunFolder

    config = RunFolder.open(run).manifest.config
    if not config.get("items_each") or "split" not in config:
        return None
    from symbolic_residue.diagnose import choose_items

    rows: list[tuple[str, str, str]] = found.unable.select("shell", "mode", "side").unique(maintain_order=True).rows()
    sides = {"planted": lambda item, mode: mode in item.modes, "null": lambda item, mode: item.null}

    def filled(n: int | None) -> dict[tuple[str, str, str], int]:
        """Items of each row's side with ``--items n``."""
        items = {shell: choose_items(shell, n, split=config["split"]) for shell in config["shells"]}
        return {row: sum(sides[row[2]](item, row[1]) for item in items[row[0]]) for row in rows if row[2] in sides}

    every = filled(None)
    wanted = [row for row, count in every.items() if count >= found.needed]
    text = ""
    if lacking := [row for row in every if row not in wanted]:
        text = f"The whole split has fewer for {len(lacking)} of them. "
    if wanted:
        # More items never give a row fewer: each number's items are among those of every larger one.
        larger = range(
            config["items_each"] + 1, 2 + max(len(choose_items(name, split=config["split"])) for name in config["shells"])
        )
        n = larger[bisect_left(larger, True, key=lambda n: all(filled(n)[row] >= found.needed for row in wanted))]
        which = "the others" if lacking else "them"
        text += f"--items {n} gives each of {which} enough; with --reuse RUN what is measured already is taken over."
    return text.strip() or None


def _show(found: Any, page: Path | None, more: str | None) -> None:
    from rich.console import Console
    from rich.markup import escape
    from rich.table import Table

    from symbolic_residue.figures import interval_text, number, visible

    console = Console()
    table = Table(box=None, pad_edge=False)
    several = len(found.runs) > 2
    for title in (*(["run"] if several else []), "mode", "items", "n", "difference", "p adj.", "fires", "share", "p adj.", "shown"):
        table.add_column(title, justify="right" if title in ("n", "p adj.") else "left")
    for row in found.frame.fill_nan(None).iter_rows(named=True):
        moved, share = (
            "not measured"
            if row[value] is None
            else f"{number(row[value], signed=True)} {interval_text(row[low], row[high], row[n], signed=True)}"
            for value, low, high, n in (
                ("difference", "low", "high", "units"),
                ("rate_difference", "rate_low", "rate_high", "n_decided"),
            )
        )
        cells = [
            *([row["other"]] if several else []),
            f"{row['shell']} {row['mode']}",
            row["side"],
            str(row["n"]),
            moved,
            number(row["p_adjusted"]),
            f"{number(row['rate_base'])} → {number(row['rate_other'])}",
            share,
            number(row["outcome_p_adjusted"]),
            row["shown"] or "nothing",
        ]
        table.add_row(*(escape(visible(cell)) for cell in cells))
    console.print(table)
    for other, lines in found.differs.items():
        told = "; ".join(lines) if lines else "in nothing that was recorded"
        console.print(f"[dim]{escape(visible(other))} differs: {escape(visible(told))}[/]", soft_wrap=True)
    console.print(escape(visible(found.summary)), soft_wrap=True)
    if len(found.unable):
        text = f"{len(found.unable)} of {len(found.frame)} rows have too few items to show a difference; {found.needed} are enough. {more or ''}"
        console.print(escape(text.strip()), soft_wrap=True)
    if page is not None:
        console.print(f"report: {escape(str(page))}", soft_wrap=True)
