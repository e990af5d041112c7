"""``residue contrast``: a tuned model against its base."""

from __future__ import annotations

import typer

from symbolic_residue.cli._contrast_analyse import analyse_command
from symbolic_residue.cli._contrast_run import (
    causal_command,
    force_feed_command,
    generate_command,
    preflight_command,
    read_command,
    report_command,
    run_command,
)
from symbolic_residue.cli._contrast_train import train_marker_command

__all__ = ["contrast_app"]

contrast_app = typer.Typer(
    help="Did training change where the model looks, and does it matter?", no_args_is_help=True, add_completion=False
)


@contrast_app.callback()
def _group() -> None:
    """Did training change where the model looks, and does it matter?"""


contrast_app.command("run")(run_command)
contrast_app.command("preflight")(preflight_command)
contrast_app.command("generate")(generate_command)
contrast_app.command("read")(read_command)
contrast_app.command("force-feed")(force_feed_command)
contrast_app.command("analyse")(analyse_command)
contrast_app.command("causal")(causal_command)
contrast_app.command("report")(report_command)
contrast_app.command("train-marker")(train_marker_command)
