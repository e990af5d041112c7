"""``residue dictionary``: features that stand in for MLPs, trained, measured and shown."""

from __future__ import annotations

import typer

from symbolic_residue.cli._dictionary_evaluate import evaluate_command
from symbolic_residue.cli._dictionary_show import show_command
from symbolic_residue.cli._dictionary_train import train_command

__all__ = ["dictionary_app"]

dictionary_app = typer.Typer(
    help="Features for MLPs: train a dictionary, measure it, show it.", no_args_is_help=True, add_completion=False
)


@dictionary_app.callback()
def _group() -> None:
    """Features for MLPs: train a dictionary, measure it, show it."""


dictionary_app.command("train")(train_command)
dictionary_app.command("evaluate")(evaluate_command)
dictionary_app.command("show")(show_command)
