"""``residue contrast``: a tuned model against its base."""

from __future__ import annotations

import typer

from symbolic_residue.cli._contrast_train import train_marker_command

__all__ = ["contrast_app"]

contrast_app = typer.Typer(help="Did training change where the model looks, and does it matter?", no_args_is_help=True)
contrast_app.command("train-marker")(train_marker_command)
