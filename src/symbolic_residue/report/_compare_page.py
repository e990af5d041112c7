"""A comparison as one HTML page: the report's look, escaping and security policy, and no script at all."""

from __future__ import annotations

from pathlib import Path

from markupsafe import Markup

from symbolic_residue import figures
from symbolic_residue.errors import WriteError
from symbolic_residue.report._compare import Comparison
from symbolic_residue.report._templates import environment, read

__all__ = ["render_comparison"]


def render_comparison(comparison: Comparison, path: Path | str) -> Path:
    """Write a comparison as one self-contained HTML page and return its path; a file that is there is replaced.

    Raises:
        WriteError: the file cannot be written. MissingExtraError: the extra ``figures`` is not installed.
    """
    names = " and ".join(run["name"] for run in comparison.runs)
    figure = figures.to_svg(figures.run_comparison(comparison.frame), label=f"Failure modes of {figures.visible(names)}")
    page = (
        environment()
        .get_template("compare.html.j2")
        .render(
            csp="default-src 'none'; style-src 'unsafe-inline'; img-src data:; base-uri 'none'; form-action 'none'",
            style=Markup(read("report.css")),
            runs=comparison.runs,
            summary=comparison.summary,
            figure=Markup(figure),
            rows=comparison.frame.fill_nan(None).to_dicts(),
            differs=comparison.differs,
            items=comparison.items,
            left_out=comparison.left_out,
            frames=comparison.frames,
        )
    )
    path = Path(path)
    partial = path.with_name(f"{path.name}.partial")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        partial.write_text(page, "utf-8")
        partial.replace(path)
    except OSError as error:
        raise WriteError(f"The comparison cannot be written to {path}: {error.strerror or error}.") from error
    return path
