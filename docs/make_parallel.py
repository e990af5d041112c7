"""The measurement of the documentation: the packaged prompts, one token tree each, under all arms, on the demo model.

1. ``residue parallel measure`` runs on all packaged prompts, into the output folder; a run that was cut goes on where it was.
2. The tables between the marks of ``docs/parallel.md`` are written from the run, and the picture is taken from its report.

Run: make parallel (or python docs/make_parallel.py [--out residue-runs/parallel] [--pages])
"""

from __future__ import annotations

import argparse
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import polars as pl

from symbolic_residue.models import cache_dir
from symbolic_residue.parallel import false_rates, QUESTIONS
from symbolic_residue.store import RunFolder

ROOT = Path(__file__).resolve().parents[1]
PAGE = ROOT / "docs" / "parallel.md"
MARK = re.compile(r"<!-- measured: (?P<name>\w+) -->\n.*?<!-- /measured -->", re.DOTALL)
TOGETHER = "all prompts"
DRAWS = 200


def measure(out: Path) -> None:
    """Run (or go on with) the measurement."""
    main = "import sys; from symbolic_residue.cli import main; sys.exit(main(sys.argv[1:]))"
    command = ["parallel", "measure", "--model", "demo", "--out", str(out)]
    resume = ["--resume"] if (out / "manifest.json").exists() else []
    subprocess.run([sys.executable, "-c", main, *command, *resume], check=True)


def number(value: float | None, unit: str) -> str:
    """A value as its unit is read."""
    if value is None:
        return "—"
    return f"{value:.3f}" if unit in ("ratio", "", "AUC", "nats") else f"{value:.2f}"


def row_text(row: dict[str, Any], prefix: str = "") -> str:
    """A value with its interval."""
    value, low, high = (row[f"{prefix}{name}"] for name in ("value", "low", "high"))
    shown = number(value, row["unit"])
    return shown if low is None else f"{shown} [{number(low, row['unit'])}, {number(high, row['unit'])}]"


def verdicts(run: RunFolder) -> str:
    """Every question with its verdict."""
    table = run.table("parallel_verdicts")
    parts = []
    for question, text in QUESTIONS.items():
        rows = table.filter(pl.col("question") == question).to_dicts()
        if not rows:
            continue
        judged = [row["outcome"] for row in rows if row["quantity"] == "verdict"]
        parts += [f"**{text}** {judged[0].capitalize() + '.' if judged else 'Measured, not judged.'}", ""]
        parts += [
            "| quantity | arm | against | keys counted | value, 95 % interval | unit | n (prompts) | control | outcome |",
            "|" + "---|" * 9,
        ]
        for row in rows:
            control = "—" if row["control_value"] is None else f"{row['control']}: {row_text(row, 'control_')}"
            named = " | ".join(row[name] or "—" for name in ("quantity", "arm", "reference", "form"))
            parts.append(f"| {named} | {row_text(row)} | {row['unit'] or '—'} | {row['n']} | {control} | {row['outcome']} |")
        notes: dict[str, str] = {}
        for row in rows:
            if row["note"]:
                notes.setdefault(row["note"], row["quantity"])
        parts += ["", *(f"* *{quantity}*: {note}" for note, quantity in notes.items()), ""]
    return "\n".join(parts).rstrip()


def layers(run: RunFolder) -> str:
    """How many layers differ, question by question, with the family-wise correction."""
    table = run.table("parallel_layers")
    lines = [
        "| question | arm | against | keys counted | layers below 1 | layers above 1 | of | least ratio | largest ratio |",
        "|" + "---|" * 9,
    ]
    for (question, arm, reference, form), part in table.group_by(["question", "arm", "reference", "form"], maintain_order=True):
        down = part.filter(pl.col("outcome") == "down-weighted").height
        up = part.filter(pl.col("outcome") == "up-weighted").height
        values = part["value"].drop_nulls()
        lines.append(
            f"| {question} | {arm} | {reference} | {form} | {down} | {up} | {part.height} | {values.min():.3f} | {values.max():.3f} |"
        )
    return "\n".join(lines)


def false(run: RunFolder) -> str:
    """How often a verdict speaks where arms and references have exchanged their names by coins."""
    names = ("parallel_arms", "parallel_competition", "parallel_published")
    frames = {name: run.table(name).filter(pl.col("item") != TOGETHER) for name in names}
    lines = ["| verdict | false | of | 95 % (Wilson) |", "|---|---|---|---|"]
    for name, share in false_rates(frames, draws=DRAWS).items():
        lines.append(f"| {name} | {share.value:.3f} | {share.n} | {share.low:.3f} to {share.high:.3f} |")
    return "\n".join(lines)


def heads(run: RunFolder) -> str:
    """How many heads are of each class."""
    table = run.table("parallel_heads").filter(pl.col("item") == TOGETHER)
    counts = table.group_by("kind").len().sort("len", descending=True)
    return "\n".join(
        ["| class | heads |", "|---|---|", *(f"| {row['kind']} | {row['len']} |" for row in counts.iter_rows(named=True))]
    )


def size(run: RunFolder) -> str:
    """What was measured."""
    provenance = run.manifest.provenance
    tokens = run.table("parallel_steps")
    sets = tokens.filter(pl.col("size") > 1)
    prompts = tokens["item"].n_unique()
    return (
        f"{provenance['model']} ({provenance['dtype']}, {provenance['attention_backend']}): {prompts} prompts, {tokens.height} steps, "
        f"{sets.height} sets of two tokens or more ({sets['size'].mean():.1f} on average)."
    )


TABLES = {"size": size, "verdicts": verdicts, "layers": layers, "heads": heads, "false": false}


def pictures(report: Path) -> None:
    """The report's first screen."""
    from playwright.sync_api import sync_playwright

    path = os.environ.get("RESIDUE_CHROMIUM") or shutil.which("chromium") or shutil.which("chromium-browser")
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=path, args=["--no-sandbox"])
        page = browser.new_page(viewport={"width": 1200, "height": 960})
        page.goto(report.resolve().as_uri())
        page.wait_for_load_state("networkidle")
        page.screenshot(path=ROOT / "docs" / "pictures" / "parallel.png")
        browser.close()


def main() -> None:
    """Measure, then write the page."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=ROOT / "residue-runs" / "parallel")
    parser.add_argument("--pages", action="store_true", help="write the page and its picture")
    options = parser.parse_args()
    measure(options.out)
    if options.pages:
        run = RunFolder.open(options.out)
        text = PAGE.read_text("utf-8")
        PAGE.write_text(
            MARK.sub(lambda m: f"<!-- measured: {m['name']} -->\n{TABLES[m['name']](run)}\n<!-- /measured -->", text), "utf-8"
        )
        report = options.out / "report.html"
        shown = ROOT / "docs" / "reports" / "parallel.html"
        whole = report.read_text("utf-8")
        for place, told in ((options.out.resolve(), "parallel"), (cache_dir(), "CACHE")):
            whole = whole.replace(str(place), told)
        shown.write_text(whole, "utf-8")
        pictures(shown)


if __name__ == "__main__":
    main()
