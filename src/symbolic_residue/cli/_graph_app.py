"""``residue graph``: a prompt given directly makes its graph; ``diff`` compares two; ``export`` gives a kept graph to other tools; ``failures`` explains a
run's worst failures."""

from __future__ import annotations

from typing import Any

import typer
from typer.core import TyperGroup

from symbolic_residue.cli._failure_graphs import failures
from symbolic_residue.cli._graph import graph
from symbolic_residue.cli._graph_diff import diff
from symbolic_residue.cli._graph_export import export

__all__ = ["graph_app"]

_DIRECT = "prompt"


class _PromptGroup(TyperGroup):
    """A group in which words that begin with no command are those of ``prompt``."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        if args and args[0] not in self.commands and args[0] not in ctx.help_option_names:
            args = [_DIRECT, *args]
        return super().parse_args(ctx, args)


graph_app = typer.Typer(
    cls=_PromptGroup,
    help=(
        'What produced the answer? residue graph "PROMPT" makes an attribution graph that adds up; its options: residue graph prompt --help. '
        "A prompt that is a command's name goes after --."
    ),
    no_args_is_help=True,
    add_completion=False,
)


@graph_app.callback()
def _group() -> None:
    pass


graph_app.command(_DIRECT)(graph)
graph_app.command("diff")(diff)
graph_app.command("export")(export)
graph_app.command("failures")(failures)
