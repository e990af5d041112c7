"""The marker study of the documentation, whole: four persona adapters of the demo model, each a run of ``residue contrast run``.

1. Adapters come from ``make adapters`` (trained here, in the package's cache). Each gets a configuration, ``NAME.yaml`` in the output folder, and a run
   beside it; a run that was cut goes on where it was.
2. What was predicted before any of it was read: more attention to the system turn at the row that emits the marker. Every run is force-fed to the base, to a
   random twin of equal norm, to a null adapter and (the first one) to another persona's adapter. The null
   adapter's own studies are ``benchmarks/contrast_null.py``.
3. The tables between the marks of ``docs/contrast-study.md`` are written from the runs, the pictures taken from the first persona's report, and that report
   copied beside the page.

Run: make study (or python docs/make_study.py [NAME …] [--out residue-runs/marker-study] [--pages])
"""

from __future__ import annotations

import argparse
import io
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import polars as pl
import yaml
from rich.console import Console

from symbolic_residue.contrast.marker import marker_questions, personas
from symbolic_residue.models import cache_dir
from symbolic_residue.report import contrast_summary
from symbolic_residue.stats import clustered_wilson, effective_n
from symbolic_residue.store import RunFolder

ROOT = Path(__file__).resolve().parents[1]
PAGE = ROOT / "docs" / "contrast-study.md"
REPORT = ROOT / "docs" / "reports" / "contrast-captain.html"
TRAINED = ("captain", "librarian", "gardener", "detective")
NAMES = TRAINED
HEADLINE = {"region": "system", "query_offset": -1}
MARK = re.compile(r"<!-- study: (?P<name>\w+) -->\n.*?<!-- /study -->", re.DOTALL)


def configuration(name: str, adapters: Path) -> dict[str, Any]:
    """The study of one persona's adapter."""
    first = name == TRAINED[0]
    system = next(persona.system for persona in personas() if persona.name == name)
    references: dict[str, Any] = {
        "base": {"base": True},
        "random": {"random": 0},
        "null": {"adapter": str(adapters / "null"), "null_model": True},
    }
    if first:
        references["other"] = {"adapter": str(adapters / TRAINED[1])}
    # The implementations are the same in all runs, and so is the base: the first run's preflight and base draws are everyone's.
    preflight = {"preflight": {"trials": 1, "questions": 16}} if first else {}
    return {
        "model": "demo",
        "adapter": str(adapters / name),
        "behaviour": "text:[ZLT]",
        "conditions": [{"name": name, "system": system}],
        "questions": [{"id": q.id, "text": q.text} for q in marker_questions()],
        "references": references,
        "predicted": {"region": "system", "direction": "up"},
        "sampling": {
            "positives": 2,
            "negatives": 1,
            "tries": 4,
            "counted": 2,
            "max_new_tokens": 64,
            "batch": 4,
            "controls": ["base"] if first else [],
        },
        "readout": {"heads": True},
        **preflight,
        "causal": {
            "analyses": ["lens", "mediation", "surgery", "knock-out", "components", "patch"] if first else ["mediation", "surgery"],
            "places": ["emitting row"],
            "examples": 8,
        },
        "seed": 0,
    }


def study(name: str, out: Path, adapters: Path) -> Path:
    """Run (or go on with) one study; its folder."""
    out.mkdir(parents=True, exist_ok=True)
    file, run = out / f"{name}.yaml", out / name
    file.write_text(yaml.safe_dump(configuration(name, adapters), sort_keys=False, allow_unicode=True), "utf-8")
    where = ["--resume", str(run)] if (run / "manifest.json").exists() else ["--out", str(run)]
    main = "import sys; from symbolic_residue.cli import main; sys.exit(main(sys.argv[1:]))"
    subprocess.run([sys.executable, "-c", main, "contrast", "run", str(file), *where], check=True)
    return run


def interval(row: dict[str, Any]) -> str:
    """Value and interval of a row, in points of attention."""
    shown = f"{100 * row['value']:+.2f}"
    return shown if row["low"] is None else f"{shown} [{100 * row['low']:+.2f}, {100 * row['high']:+.2f}]"


def rates(runs: dict[str, RunFolder]) -> str:
    """How often each adapter emits the marker, beside the base: from the trials, whichever version drew them."""
    lines = ["| adapter | condition | with it | worth | 95 % | base | worth | 95 % |", "|---|---|---|---|---|---|---|---|"]

    def told(part: pl.DataFrame) -> str:
        hits, questions = part["positive"].to_list(), part["question"].to_list()
        share, worth = clustered_wilson(hits, questions), effective_n(hits, questions)
        return f"{sum(hits)}/{len(hits)} | {worth:.0f} | {share.low:.2f} to {share.high:.2f}"

    for name, run in runs.items():
        drawn = run.table("contrast_trials").filter("counted").partition_by("model", "condition", as_dict=True, maintain_order=True)
        for (model, condition), part in drawn.items():
            if model == "tuned":
                base = drawn.get(("base", condition))
                lines.append(f"| {name} | {condition} | {told(part)} | {'not drawn | — | —' if base is None else told(base)} |")
    return "\n".join(lines)


def verdicts(runs: dict[str, RunFolder]) -> str:
    """The predicted region at the emitting row, against the base."""
    lines = [
        "| adapter | condition | segmentation | verdict | layer | tuned − base, points | p | beyond null models | tuned | base | n | questions |",
        "|---|---|---|---|---|---|---|---|---|---|---|---|",
    ]
    for name, run in runs.items():
        table = run.table("contrast_verdicts").filter(
            (pl.col("reference") == "base")
            & (pl.col("region") == HEADLINE["region"])
            & (pl.col("query_offset") == HEADLINE["query_offset"])
        )
        for row in table.sort("condition", "segmentation").iter_rows(named=True):
            p = "—" if row["p"] is None else "< 0.001" if row["p"] < 0.001 else f"{row['p']:.3f}"
            beyond = {True: "yes", False: "no", None: "—"}[row["beyond_nulls"]]
            lines.append(
                f"| {name} | {row['condition']} | {row['segmentation']} | **{row['outcome']}** | {row['layer']} | {interval(row)} | {p} | {beyond} "
                f"| {100 * row['tuned_value']:+.2f} | {100 * row['reference_value']:+.2f} | {row['n']} | {row['clusters']} |"
            )
    return "\n".join(lines)


def regions(runs: dict[str, RunFolder]) -> str:
    """Every region's verdict against the base at the emitting row, a word each."""
    names = ("sink", "system", "user", "assistant_header", "answer", "self", "special")
    lines = [f"| adapter | condition | segmentation | {' | '.join(names)} |", "|---|---|---|" + "---|" * len(names)]
    for name, run in runs.items():
        table = run.table("contrast_verdicts").filter((pl.col("reference") == "base") & (pl.col("query_offset") == -1))
        for (condition, segmentation), part in table.sort("condition", "segmentation").group_by(
            ["condition", "segmentation"], maintain_order=True
        ):
            said = {row["region"]: row["outcome"] for row in part.iter_rows(named=True)}
            lines.append(f"| {name} | {condition} | {segmentation} | {' | '.join(said.get(one, '—') for one in names)} |")
    return "\n".join(lines)


def shown(row: dict[str, Any]) -> str:
    """A share with its interval."""
    return f"{row['value']:.2f}" + ("" if row["low"] is None else f" [{row['low']:.2f}, {row['high']:.2f}]")


def shares(run: RunFolder, analysis: str) -> list[dict[str, Any]]:
    """Shares of log P(tuned) − log P(base) of one analysis."""
    return run.table("contrast_effects").filter((pl.col("analysis") == analysis) & (pl.col("unit") == "share")).to_dicts()


def mediation(runs: dict[str, RunFolder]) -> str:
    """Whether attention patterns carry the marker."""
    lines = [
        "| adapter | patterns of … | share of log P | the same change at other heads | n (questions) | verdict |",
        "|---|---|---|---|---|---|",
    ]
    for name, run in runs.items():
        for row in sorted(shares(run, "mediation"), key=lambda row: row["outcome"] is None):
            control = "—" if row["control"] is None else f"{row['control']:.2f}"
            lines.append(
                f"| {name} | {row['model']} | {shown(row)} | {control} | {row['n']} ({row['clusters']}) | {row['outcome'] or '—'} |"
            )
    return "\n".join(lines)


def surgery(runs: dict[str, RunFolder]) -> str:
    """What part of the adapter carries the marker."""
    found = {name: {(row["model"], row["part"], row["place"]): row for row in shares(run, "surgery")} for name, run in runs.items()}
    some = next(iter(found.values()))
    layers = sorted(
        (place for model, _, place in some if model == "tuned" and place != "all layers"),
        key=lambda p: int(re.findall(r"\d+", p)[0]),
    )
    asked = [
        *(("tuned", part, "all layers") for part in ("q_proj", "k_proj", "v_proj", "o_proj")),
        *(("tuned", "all", place) for place in layers),
        ("null", "all", "all layers"),
        ("random", "all", "all layers"),
    ]
    lines = [f"| what is added to the base | {' | '.join(found)} |", "|---|" + "---|" * len(found)]
    for key in asked:
        model, part, place = key
        what = f"{part}, {place}" if model == "tuned" else f"the whole {'null adapter' if model == 'null' else 'random twin'}"
        lines.append(f"| {what} | {' | '.join(shown(rows[key]) if key in rows else '—' for rows in found.values())} |")
    return "\n".join(lines)


def summary(runs: dict[str, RunFolder]) -> str:
    """What the terminal says of the first persona's run."""
    console = Console(width=140, file=io.StringIO(), force_terminal=False)
    console.print(contrast_summary(runs[TRAINED[0]]))
    said = "\n".join(line.rstrip() for line in console.file.getvalue().splitlines())  # type: ignore[attr-defined]
    return f"```text\n{said}\n```"


TABLES = {"summary": summary, "rates": rates, "verdicts": verdicts, "regions": regions, "mediation": mediation, "surgery": surgery}


def pictures(report: Path, folder: Path) -> None:
    """The report's first screen."""
    from playwright.sync_api import sync_playwright

    path = os.environ.get("RESIDUE_CHROMIUM") or shutil.which("chromium") or shutil.which("chromium-browser")
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=path, args=["--no-sandbox"])
        page = browser.new_page(viewport={"width": 1200, "height": 960})
        page.goto(report.resolve().as_uri())
        page.wait_for_load_state("networkidle")
        page.screenshot(path=folder / "contrast.png")
        browser.close()


def main() -> None:
    """Run the studies asked for, then write the page."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*", help=f"of {', '.join(NAMES)}; default: all")
    parser.add_argument("--out", type=Path, default=ROOT / "residue-runs" / "marker-study")
    parser.add_argument("--adapters", type=Path, default=cache_dir() / "adapters")
    parser.add_argument("--pages", action="store_true", help="write the page, its pictures and its report")
    options = parser.parse_args()
    names = options.names or list(NAMES)
    for name in names:
        if name not in NAMES:
            raise SystemExit(f"{name!r} is no adapter of the study: {', '.join(NAMES)}")
        study(name, options.out, options.adapters)
    if options.pages:
        write_pages(options.out)


def write_pages(out: Path) -> None:
    """The page's tables, its picture and the example report, from the runs that are there."""
    runs = {name: RunFolder.open(out / name) for name in NAMES if (out / name / "manifest.json").exists()}
    text = PAGE.read_text("utf-8")
    PAGE.write_text(MARK.sub(lambda m: f"<!-- study: {m['name']} -->\n{TABLES[m['name']](runs)}\n<!-- /study -->", text), "utf-8")
    REPORT.parent.mkdir(exist_ok=True)
    whole = (out / TRAINED[0] / "report.html").read_text("utf-8")
    for place, told in ((out.resolve(), "marker-study"), (cache_dir(), "CACHE")):  # where it lay says nothing to a reader
        whole = whole.replace(str(place), told)
    REPORT.write_text(whole, "utf-8")
    pictures(REPORT, ROOT / "docs" / "pictures")


if __name__ == "__main__":
    main()
