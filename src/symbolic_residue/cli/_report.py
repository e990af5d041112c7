"""``residue report RUN``: make the HTML report and the figures of a run again, from its folder alone."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from symbolic_residue.cli._common import echo_json, Json

__all__ = ["report"]


def report(
    run: Annotated[Path, typer.Argument(help="The run folder.")],
    figures: Annotated[bool, typer.Option("--figures", help="Also write the figures as SVG and PNG.")] = False,
    json: Json = False,
) -> None:
    """Make the report of a run."""
    from symbolic_residue.report import export_figures, render_report

    page = render_report(run)
    files = export_figures(run) if figures else []
    if json:
        echo_json({"report": str(page), "figures": [str(f) for f in files]})
        return
    for path in (page, *files):
        typer.echo(str(path))
