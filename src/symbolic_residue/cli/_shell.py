"""``residue shell NAME``: run one controlled failure probe, with the options that matter to it; one module a shell."""

from __future__ import annotations

import typer

from symbolic_residue.cli._meta import meta
from symbolic_residue.cli._shell_custom import custom
from symbolic_residue.cli._shell_instruction import instruction_disruption
from symbolic_residue.cli._shell_layer_salience import layer_salience
from symbolic_residue.cli._shell_memtrace import memtrace
from symbolic_residue.cli._shell_temporal import temporal_inference
from symbolic_residue.cli._shell_value_collapse import value_collapse

__all__ = ["shell_app"]

shell_app = typer.Typer(help="Run one controlled failure probe.", no_args_is_help=True)


@shell_app.callback()
def _group() -> None:
    """Run one controlled failure probe."""


shell_app.command("custom")(custom)
shell_app.command("instruction-disruption")(instruction_disruption)
shell_app.command("memtrace")(memtrace)
shell_app.command("layer-salience")(layer_salience)
shell_app.command("meta")(meta)
shell_app.command("temporal-inference")(temporal_inference)
shell_app.command("value-collapse")(value_collapse)
