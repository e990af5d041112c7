"""A run of kind ``contrast`` as one HTML page: the answer first, then everything it rests on.

The page follows the rules of every report (``_render``): made from the run folder alone, everything escaped, nothing asked from outside, one known script.
"""

from __future__ import annotations

import base64
import hashlib

from markupsafe import Markup

from symbolic_residue import figures
from symbolic_residue.report._contrast_answer import answer_rows, answer_sentence, unanswered
from symbolic_residue.report._contrast_figures import contrast_figures
from symbolic_residue.report._contrast_load import ContrastRun
from symbolic_residue.report._contrast_samples import samples
from symbolic_residue.report._contrast_sections import sections
from symbolic_residue.report._contrast_tables import answer_tables
from symbolic_residue.report._sections import flatten
from symbolic_residue.report._templates import environment, read

__all__ = ["contrast_html"]

_BLOCKS = (("Provenance", "provenance"), ("Configuration", "config"), ("Versions", "versions"), ("Machine", "machine"))


def contrast_html(run: ContrastRun) -> str:
    """The page as text."""
    script = read("report.js")
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    found = contrast_figures(run)
    drawn = {name: Markup(figures.to_svg(figure.draw(), label=figures.visible(figure.label))) for name, figure in found.items()}
    counts = run.manifest["items"]
    counts["planned"] = counts["planned"] if counts["planned"] is not None else counts["done"] + counts["failed"]
    rows = answer_rows(run)
    return environment().get_template("contrast.html.j2").render(
        csp=f"default-src 'none'; style-src 'unsafe-inline'; img-src data:; script-src 'sha256-{digest}'; base-uri 'none'; form-action 'none'",
        style=Markup(read("report.css")),
        script=Markup(script),
        manifest=run.manifest,
        model=str(run.manifest["provenance"].get("model") or "model not recorded"),
        run_name=run.folder.path.resolve().name,
        behaviour=run.spoken,
        sentence=answer_sentence(run, rows) or unanswered(run),
        reasons=[(row["condition"], row["region"], row["why"]) for row in rows if row["region"] == rows[0]["region"]],
        answers=answer_tables(run),
        flags=[f"{row['condition']}, {row['region']}" for row in rows if row["sign_differs"]],
        nulls=run.nulls,
        sections=sections(run, drawn),
        samples=samples(run),
        figures=drawn,
        labels={name: figure.label for name, figure in found.items()},
        published=run.get("analysis", "protocol") == "published",
        failed=[row for row in run.items.to_dicts() if row["status"] == "failed"],
        blocks=[(title, flatten(run.manifest[key])) for title, key in _BLOCKS],
        tables=[(name, rows, columns) for name, (rows, columns) in run.sizes.items()],
        loaded="contrast_verdicts",
    )  # fmt: skip
