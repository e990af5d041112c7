"""A concepts run as one HTML page: which concepts are read, from which directions and heads, each number beside its null.

The page follows the rules of every report (``_render``): made from the folder alone, everything escaped, nothing asked from outside, one known script.
Choosers of layers and concepts are radio buttons and work without the script.
"""

from __future__ import annotations

import base64
from pathlib import Path
from typing import Any

from markupsafe import Markup

from symbolic_residue import figures
from symbolic_residue.errors import WriteError
from symbolic_residue.report._concepts_answer import answer
from symbolic_residue.report._concepts_causal import causal_sentence, causal_tables, steered_texts
from symbolic_residue.report._concepts_figures import concept_figures, head_figures
from symbolic_residue.report._concepts_load import CONCEPTS_KIND, ConceptsRun, load_concepts
from symbolic_residue.report._concepts_sections import concentration_table, facts, head_notes, similarity
from symbolic_residue.report._concepts_tables import direction_table, head_table, layers_csv, outlier_rows, readout_table, unranked
from symbolic_residue.report._concepts_verdicts import family_view, heads_sentence, not_judged, overlap_map, verdict_tables
from symbolic_residue.report._concepts_watch import watch_views
from symbolic_residue.report._parallel_page import page_frame
from symbolic_residue.report._templates import environment, read

__all__ = ["concepts_html", "concepts_page"]


def concepts_page(folder: Path | str) -> Path:
    """Write ``report.html`` into a folder of concepts, from its files alone, and return its path.

    Args:
        folder: with ``quality.json``; with ``heads.json``, ``causal.json``, ``watch/`` and ``corpus.jsonl`` where they were made.

    Raises:
        StoreError: no such folder, or no ``quality.json`` in it. RunDamagedError: files that cannot be read or do not belong together.
        WriteError: the page cannot be written. MissingExtraError: the extra ``figures`` is not installed.
    """
    run = load_concepts(folder)
    page = concepts_html(run)
    path, part = run.path / "report.html", run.path / ".report.html.part"
    try:
        part.write_text(page, "utf-8")
        part.replace(path)
    except OSError as error:
        raise WriteError(f"{path} cannot be written.", why=str(error)) from error
    return path


def concepts_html(run: ConceptsRun) -> str:
    """The page as text."""
    found = concept_figures(run)
    headline, more = answer(run)
    more += [line for line in (heads_sentence(run), causal_sentence(run)) if line]
    heads = head_figures(run)
    return environment().get_template("concepts.html.j2").render(
        **_frame(run),
        headline=headline,
        more=more,
        facts=facts(run),
        readout=readout_table(run),
        direction=direction_table(run),
        rule="; ".join(sorted({one["chosen"]["rule"] for one in run.quality["concepts"].values() if one["chosen"]["layer"] is not None})) or "none",
        middle=run.middle,
        fixed=[readout_table(run, run.middle), direction_table(run, run.middle)],
        unranked=unranked(run),
        csv=Markup("data:text/csv;base64," + base64.b64encode(layers_csv(run).encode("utf-8", "backslashreplace")).decode()),
        figures=_drawn(found),
        labels={name: figure.label for name, figure in found.items()},
        similarity=similarity(run),
        outliers=[(concept, run.chosen(concept), outlier_rows(run, concept)) for concept in run.concepts],
        heads=[(concept, figure.label, Markup(figures.to_svg(figure.draw(), label=figures.visible(figure.label))), head_table(run, concept))
               for concept, figure in heads.items()],
        notes=head_notes(run),
        concentration=concentration_table(run),
        verdicts=verdict_tables(run),
        not_judged=not_judged(run),
        families=family_view(run),
        overlap=overlap_map(run),
        causal=causal_tables(run),
        steered=steered_texts(run),
        watched=watch_views(run),
    )  # fmt: skip


def _drawn(found: dict[str, Any]) -> dict[str, Markup]:
    return {name: Markup(figures.to_svg(figure.draw(), label=figures.visible(figure.label))) for name, figure in found.items()}


def _frame(run: ConceptsRun) -> dict[str, Any]:
    """What every page's template needs; a folder without a manifest has the model's record in its place."""
    model = run.quality["model"]
    manifest: dict[str, Any] = run.manifest or {
        "kind": CONCEPTS_KIND, "status": "complete", "command": "", "created": None, "finished": None, "schema_version": "—", "note": "",
        "items": {"done": 0, "failed": 0, "planned": None}, "provenance": dict(model), "config": {}, "versions": {}, "machine": {},
    }  # fmt: skip
    frame = page_frame(manifest, run.path.resolve().name, [], "")
    frame |= {
        "model": str(model["model"]),
        "style": Markup(read("report.css") + read("concepts.css")),
        "files": list(run.files.items()),
    }
    return frame
