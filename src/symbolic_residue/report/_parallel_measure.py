"""A run of kind ``parallel-measure`` as one HTML page: the verdicts first, then every question with its controls.

The page follows the rules of every report (``_render``): made from the run folder alone, everything escaped, nothing asked from outside, one known script.
"""

from __future__ import annotations

from markupsafe import Markup

from symbolic_residue import figures
from symbolic_residue.report._parallel_load import MeasureRun, TOGETHER
from symbolic_residue.report._parallel_page import page_frame
from symbolic_residue.report._parallel_sections import answer_table, measure_figures, measure_sections, sentence
from symbolic_residue.report._templates import environment

__all__ = ["measure_html"]


def measure_html(run: MeasureRun) -> str:
    """The page as text."""
    frame = page_frame(
        run.manifest,
        run.folder.path.resolve().name,
        [(name, rows, columns) for name, (rows, columns) in run.sizes.items()],
        "parallel_verdicts",
    )
    found = measure_figures(run)
    drawn = {name: Markup(figures.to_svg(figure.draw(), label=figures.visible(figure.label))) for name, figure in found.items()}
    items = [row for row in run.items.to_dicts() if row["item"] != TOGETHER]
    trees = run.prompts.get("parallel_trees")
    texts = {} if trees is None else {row["item"]: row["alternatives"] for row in trees.to_dicts()}
    pooled = [row for row in run.items.to_dicts() if row["item"] == TOGETHER]
    return environment().get_template("parallel_measure.html.j2").render(
        **frame,
        sentence=sentence(run),
        answer=answer_table(run),
        notes=[(row["question"], row["note"]) for row in run.rows("parallel_verdicts", quantity="verdict") if row["note"]],
        pooled=pooled[0] if pooled else None,
        sections=measure_sections(run, list(drawn)),
        figures=drawn,
        labels={name: figure.label for name, figure in found.items()},
        prompts=[{**row, "alternatives": texts.get(row["item"])} for row in items],
        failed=[row for row in items if row["status"] == "failed"],
    )  # fmt: skip
