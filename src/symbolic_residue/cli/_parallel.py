"""``residue parallel``: several next tokens in one sequence."""

from __future__ import annotations

import typer

from symbolic_residue.cli._parallel_generate import generate_command
from symbolic_residue.cli._parallel_measure import measure_command

__all__ = ["parallel_app"]

parallel_app = typer.Typer(
    help="Several next tokens in one sequence: decode them, and measure how the model attends to them.",
    no_args_is_help=True,
    add_completion=False,
)


@parallel_app.callback()
def _group() -> None:
    """Several next tokens in one sequence: decode them, and measure how the model attends to them."""


parallel_app.command("generate")(generate_command)
parallel_app.command("measure")(measure_command)
