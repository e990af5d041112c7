"""A run of kind ``parallel`` as one HTML page: each prompt's token tree, its alternatives, and the statistics of its steps.

The page follows the rules of every report (``_render``): made from the run folder alone, everything escaped, nothing asked from outside, one known script.
"""

from __future__ import annotations

import base64
import hashlib
from functools import partial
from typing import Any

from markupsafe import Markup

from symbolic_residue import figures
from symbolic_residue.report._figure_set import Figure
from symbolic_residue.report._load import FULL_ITEMS, Run
from symbolic_residue.report._parallel_tree import tree_view
from symbolic_residue.report._sections import flatten
from symbolic_residue.report._templates import environment, read

__all__ = ["KIND", "page_frame", "parallel_html", "tree_figures"]

KIND = "parallel"

_BLOCKS = (("Provenance", "provenance"), ("Configuration", "config"), ("Versions", "versions"), ("Machine", "machine"))


def page_frame(manifest: dict[str, Any], run_name: str, tables: list[tuple[str, int, list[str]]], loaded: str) -> dict[str, Any]:
    """What every page's template needs: policy, style, script, manifest and provenance."""
    script = read("report.js")
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    counts = manifest["items"]
    counts["planned"] = counts["planned"] if counts["planned"] is not None else counts["done"] + counts["failed"]
    return {
        "csp": f"default-src 'none'; style-src 'unsafe-inline'; img-src data:; script-src 'sha256-{digest}'; base-uri 'none'; form-action 'none'",
        "style": Markup(read("report.css") + read("parallel.css")),
        "script": Markup(script),
        "manifest": manifest,
        "model": str(manifest["provenance"].get("model") or "model not recorded"),
        "run_name": run_name,
        "blocks": [(title, flatten(manifest[key])) for title, key in _BLOCKS],
        "tables": tables,
        "loaded": loaded,
    }  # fmt: skip


def tree_figures(run: Run, item: str) -> list[Figure]:
    """The figures of one tree."""
    steps = run.of("parallel_steps", item)
    if steps is None:
        return []
    return [
        Figure("steps", "Entropy and threshold by step, and how many tokens each set holds", partial(figures.parallel_steps, steps))
    ]


def parallel_html(run: Run) -> str:
    """The page as text."""
    frame = page_frame(
        run.manifest,
        run.folder.path.resolve().name,
        [(name, table.height, table.columns) for name, table in run.tables.items()],
        "parallel_tokens",
    )
    items = run.tables["items"].to_dicts() if "items" in run.tables else []
    shown = []
    for index, item in enumerate(run.shown):
        drawn = {
            figure.name: Markup(figures.to_svg(figure.draw(), label=f"{figure.label}; item {figures.visible(item)}"))
            for figure in tree_figures(run, item)
        }
        keys = run.of("parallel_keys", item)
        shown.append(
            {
                "anchor": f"item-{index + 1}",
                "facts": run.rows("items", item)[0],
                "view": tree_view(run, item),
                "figures": drawn,
                "captured": 0 if keys is None else keys["step"].n_unique(),
            }
        )
    trees = run.tables.get("parallel_trees")
    stops = {} if trees is None else {row["item"]: row for row in trees.to_dicts()}
    anchors = {item: f"item-{index + 1}" for index, item in enumerate(run.shown)}
    return environment().get_template("parallel.html.j2").render(
        **frame,
        items=shown,
        overview=[{**row, "anchor": anchors.get(row["item"]), "tree": stops.get(row["item"])} for row in items] if len(items) > 1 else [],
        failed=[row for row in items if row["status"] == "failed"],
        full_items=FULL_ITEMS,
    )  # fmt: skip
