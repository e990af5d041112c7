"""A run folder as one HTML page.

1. Read the folder (``_load``; a contrast, token trees and concepts have pages of their own, ``_contrast_page`` …); build each shown item's view
   from its tables; draw its figures (SVG).
2. Fill the template. Autoescape is on, an undefined name is an error, and every string from the run passes through
   ``visible``: control and bidirectional characters arrive as escapes, markup arrives as text.
3. The page asks for nothing outside itself, and says so: its content security policy allows inline styles, images in ``data:``,
   and only the one script whose SHA-256 it names. A ``<script>`` in a prompt could not run even if it were not escaped.
4. Write ``report.html`` whole or not at all.
"""

from __future__ import annotations

import base64
import hashlib
import shlex
from pathlib import Path
from typing import Any

import polars as pl
from markupsafe import Markup

from symbolic_residue import figures
from symbolic_residue.report._across import across_sections
from symbolic_residue.report._concepts_load import CONCEPTS_KIND
from symbolic_residue.report._concepts_page import concepts_page
from symbolic_residue.report._contrast_load import KIND, load_contrast
from symbolic_residue.report._contrast_page import contrast_html
from symbolic_residue.report._figure_set import item_figures, last_row_attention
from symbolic_residue.report._load import FULL_ITEMS, load_run, Run
from symbolic_residue.report._parallel_load import load_measure, MEASURE_KIND
from symbolic_residue.report._parallel_measure import measure_html
from symbolic_residue.report._parallel_page import KIND as PARALLEL
from symbolic_residue.report._parallel_page import parallel_html
from symbolic_residue.report._prompt import prompt_view
from symbolic_residue.report._sections import flatten, head_rows, sensitivity_rows, sink_mass
from symbolic_residue.report._sentence import ORDER, verdict_sentence
from symbolic_residue.report._suite import suite_heads, suite_rows
from symbolic_residue.report._tables import OTHER_ROWS, other_tables, score_rows
from symbolic_residue.report._templates import environment, read
from symbolic_residue.store import RunFolder

__all__ = ["render_html", "render_report"]


def render_report(run_path: Path | str) -> Path:
    """Write ``report.html`` into a run folder, from nothing but the folder, and return its path.

    The same folder always gives the same bytes.

    Raises:
        StoreError: no run folder, damaged, or not writable. MissingExtraError: the extra ``figures`` is not installed.
    """
    folder = RunFolder.open(run_path)
    if folder.manifest.kind == KIND:
        return folder.write_file("report.html", contrast_html(load_contrast(folder)))
    if folder.manifest.kind == CONCEPTS_KIND:
        return concepts_page(folder.path)
    if folder.manifest.kind == MEASURE_KIND:
        return folder.write_file("report.html", measure_html(load_measure(folder)))
    run = load_run(run_path)
    if folder.manifest.kind == PARALLEL:
        return folder.write_file("report.html", parallel_html(run))
    return run.folder.write_file("report.html", render_html(run))


def render_html(run: Run) -> str:
    """The page as text; see ``render_report``."""
    script = read("report.js")
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    counts = run.manifest["items"]
    counts["planned"] = counts["planned"] if counts["planned"] is not None else counts["done"] + counts["failed"]
    return environment().get_template("report.html.j2").render(
        csp=f"default-src 'none'; style-src 'unsafe-inline'; img-src data:; script-src 'sha256-{digest}'; base-uri 'none'; form-action 'none'",
        style=Markup(read("report.css") + figures.cards_css()),
        script=Markup(script),
        manifest=run.manifest,
        model=str(run.manifest["provenance"].get("model") or "model not recorded"),
        run_name=run.folder.path.resolve().name,
        items=[_item(run, item, index) for index, item in enumerate(run.shown)],
        overview=_overview(run),
        modes=_modes(run),
        suite=_suite(run),
        other_rows=OTHER_ROWS,
        failed=_failed(run),
        full_items=FULL_ITEMS,
        blocks=[
            (title, flatten(run.manifest[key]))
            for title, key in (("Provenance", "provenance"), ("Configuration", "config"), ("Versions", "versions"), ("Machine", "machine"))
        ],
        tables=[(name, frame.height, frame.columns) for name, frame in run.tables.items()],
        loaded="heads",
    )  # fmt: skip


def _item(run: Run, item: str, index: int) -> dict[str, Any]:
    facts = run.rows("items", item)[0]
    verdicts, candidates = run.of("verdicts", item), run.rows("candidates", item)
    attention = last_row_attention(run, item)
    found = item_figures(run, item)
    drawn = {
        name: Markup(figures.to_svg(figure.draw(), label=f"{figure.label}; item {figures.visible(item)}"))
        for name, figure in found.items()
        if name != "verdict_intervals"  # the cards show the same, one by one
    }
    across = across_sections(run, item, list(drawn))
    taken = {name for part in across for name in part["figures"]}
    shells = [] if verdicts is None else verdicts["shell"].unique(maintain_order=True).to_list()
    return {
        "index": index,
        "shells": shells,
        # A question that reads next tokens has all sections, so that one sees what was not measured; other shells show what they bring.
        "whole": (not shells and not across) or "value-collapse" in shells,
        "across": across,
        "curves": [name for name in drawn if name.startswith("curve_") and name not in taken],
        "maps": [name for name in drawn if name.startswith("map_")],
        "labels": {name: figure.label for name, figure in found.items()},
        "scores": score_rows(run.of("head_scores", item)),
        "others": other_tables(run, item),
        "planted": next(iter(run.rows("shell_items", item)), None),
        "anchor": f"item-{index + 1}",
        "facts": facts,
        "sentence": verdict_sentence(facts["summary"], run.rows("verdicts", item), candidates),
        "cards": None if verdicts is None else Markup(figures.verdict_cards_html(verdicts, style=False, heading=4)),
        "candidates": sorted(candidates, key=lambda row: row["rank"]),
        "prompt": prompt_view(run.rows("tokens", item), candidates),
        "figures": drawn,
        "refiners": [row for row in run.rows("refiners", item) if row["variant"] == 0],
        "n_variants": len({row["variant"] for row in run.rows("traces", item)}),
        "transfer": run.rows("transfer", item),
        "n_positions": len({row["position"] for row in run.rows("lens", item)}),
        "heads": head_rows(run.rows("heads", item)),
        "sink": None if attention is None else sink_mass(attention.to_dicts()),
        "row": attention["row"].max() if attention is not None and "row" in attention.columns else None,
        "checks": run.rows("dla_check", item),
        "sensitivity": sensitivity_rows(run.rows("sensitivity", item), facts["prompt"]),
        "changes": sorted(run.rows("changes", item), key=lambda row: row["rank"]),
    }


def _suite(run: Run) -> dict[str, Any] | None:
    """Rates of every verdict over the items of packaged benchmarks, and the heads confirmed on several; None where there are no such items."""
    if "shell_items" not in run.tables or "verdicts" not in run.tables:
        return None
    items = run.tables["shell_items"]
    rows = suite_rows(run.tables["verdicts"], items)
    heads = suite_heads(run.tables["heads"], items) if "heads" in run.tables else []
    return {
        "shells": [
            {
                "shell": shell,
                "rows": [row for row in rows if row["shell"] == shell],
                "heads": [row for row in heads if row["shell"] == shell][:8],
                "graphs": next((f"item-{i + 1}-graphs" for i, item in enumerate(run.shown) if item == f"graphs.{shell}"), None),
            }
            for shell in dict.fromkeys(row["shell"] for row in rows)
        ],
        "heal": f"residue heal {shlex.quote(run.folder.path.resolve().name)}"
        if any(row["side"] == "planted" and row["fires"] for row in rows)
        else "",
        "n_heads": 0 if "heads" not in run.tables else run.tables["heads"].select("layer", "head").n_unique(),
    }


def _modes(run: Run) -> list[str]:
    verdicts = run.tables.get("verdicts")
    return [] if verdicts is None else verdicts["mode"].unique(maintain_order=True).to_list()


def _overview(run: Run) -> list[dict[str, Any]]:
    """Every item of the run, failed ones too: outcome by mode, two best candidates, and the anchor where it has sections."""
    if "items" not in run.tables:
        return []
    outcomes: dict[str, dict[str, str]] = {}
    if "verdicts" in run.tables:
        for item, mode, outcome in run.tables["verdicts"].select("item", "mode", "outcome").iter_rows():
            known = outcomes.setdefault(item, {})
            # Two shells with a mode of one name: the overview shows the stronger outcome, the section shows both.
            if mode not in known or ORDER.get(outcome, 9) < ORDER.get(known[mode], 9):
                known[mode] = outcome
    best: dict[str, list[tuple[str, float]]] = {}
    if "candidates" in run.tables:
        for item, token, probability in run.tables["candidates"].sort("rank").select("item", "token", "probability").iter_rows():
            best.setdefault(item, []).append((token, probability))
    anchors = {item: f"item-{index + 1}" for index, item in enumerate(run.shown)}
    return [
        {"item": row["item"], "prompt": row["prompt"], "status": row["status"], "anchor": anchors.get(row["item"]) if row["status"] == "done" else None,
         "outcomes": outcomes.get(row["item"], {}), "best": best.get(row["item"], [])[:2]}
        for row in run.tables["items"].to_dicts()
    ]  # fmt: skip


def _failed(run: Run) -> list[dict[str, Any]]:
    if "items" not in run.tables:
        return []
    return run.tables["items"].filter(pl.col("status") == "failed").select("item", "prompt", "error").to_dicts()
