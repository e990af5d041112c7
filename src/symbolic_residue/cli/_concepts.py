"""``residue concepts``: which directions, and which heads, carry a concept?"""

from __future__ import annotations

import typer

from symbolic_residue.cli._concepts_check import check_command
from symbolic_residue.cli._concepts_heads import heads_command
from symbolic_residue.cli._concepts_report import report_command
from symbolic_residue.cli._concepts_steer import steer_command
from symbolic_residue.cli._concepts_train import train_command
from symbolic_residue.cli._concepts_validate import validate_command
from symbolic_residue.cli._concepts_watch import watch_command

__all__ = ["concepts_app"]

concepts_app = typer.Typer(help="Which directions, and which heads, carry a concept?", no_args_is_help=True, add_completion=False)


@concepts_app.callback()
def _group() -> None:
    """Which directions, and which heads, carry a concept?"""


concepts_app.command("validate")(validate_command)
concepts_app.command("train")(train_command)
concepts_app.command("report")(report_command)
concepts_app.command("check")(check_command)
concepts_app.command("steer")(steer_command)
concepts_app.command("watch")(watch_command)
concepts_app.command("heads")(heads_command)
