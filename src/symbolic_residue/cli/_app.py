"""The command tree, loaded only as far as it is used.

1. :data:`COMMANDS` names every command, its one line of help, and the module and object that hold it. Help, completion and
   the correction of mistyped names need no more than this.
2. When a command is called, its module is imported and its typer application (a group) or function (a command) takes over.
   So ``residue --help`` never waits for torch.
3. :func:`run` turns every outcome into an exit code, and every error into what :mod:`symbolic_residue.cli._errors` shows.
"""

from __future__ import annotations

import importlib
import io
import sys
from collections.abc import Sequence
from typing import Annotated, Any, NamedTuple

import typer
from typer.core import TyperCommand, TyperGroup

from symbolic_residue import __version__
from symbolic_residue.cli import _errors, _words
from symbolic_residue.errors import ConfigError, ResidueError

__all__ = ["COMMANDS", "LazyCommand", "app", "run"]


class LazyCommand(NamedTuple):
    """Where a command is found: a ``typer.Typer`` or a function, ``attribute`` of ``module``."""

    module: str
    attribute: str
    help: str


COMMANDS: dict[str, LazyCommand] = {
    "diagnose": LazyCommand("symbolic_residue.cli._diagnose", "diagnose", "Find out why a model fails on a prompt."),
    "shell": LazyCommand("symbolic_residue.cli._shell", "shell_app", "Run one controlled failure probe."),
    "shells": LazyCommand("symbolic_residue.cli._shells", "shells_app", "Run every shell on its benchmark; compare runs."),
    "benchmark": LazyCommand("symbolic_residue.cli._benchmark", "benchmark", "Run or show a packaged benchmark."),
    "contrast": LazyCommand(
        "symbolic_residue.cli._contrast", "contrast_app", "Did training change where the model looks, and does it matter?"
    ),
    "parallel": LazyCommand(
        "symbolic_residue.cli._parallel", "parallel_app", "Several next tokens in one sequence, decoded and measured."
    ),
    "concepts": LazyCommand(
        "symbolic_residue.cli._concepts", "concepts_app", "Which directions, and which heads, carry a concept?"
    ),
    "graph": LazyCommand(
        "symbolic_residue.cli._graph_app", "graph_app", "What produced the answer? An attribution graph that adds up."
    ),
    "dictionary": LazyCommand(
        "symbolic_residue.cli._dictionary", "dictionary_app", "Features for MLPs: train a dictionary, measure it, show it."
    ),
    "heal": LazyCommand("symbolic_residue.cli._heal", "heal", "Find the smallest edit that restores the right answer."),
    "read": LazyCommand("symbolic_residue.cli._read", "read", "Read the attention of every layer and head; no verdicts."),
    "report": LazyCommand("symbolic_residue.cli._report", "report", "Make the report of a run."),
    "runs": LazyCommand("symbolic_residue.cli._runs", "runs_app", "List, show and validate runs."),
    "corpus": LazyCommand(
        "symbolic_residue.cli._corpus", "corpus_app", "Keep failures by their signature, and search for similar ones."
    ),
    "models": LazyCommand("symbolic_residue.cli._models", "models_app", "List, fetch and show models."),
}


class _LazyGroup(TyperGroup):
    """A group whose commands are names with a line of help, until one is called."""

    def __init__(self, **options: Any) -> None:
        super().__init__(**options)
        for name, command in COMMANDS.items():
            self.add_command(TyperCommand(name=name, help=command.help, callback=None), name)

    def list_commands(self, ctx: Any) -> list[str]:
        return list(self.commands)

    def resolve_command(self, ctx: Any, args: list[str]) -> tuple[Any, Any, list[str]]:
        name, command, rest = super().resolve_command(ctx, args)
        return name, _load(name) if name in COMMANDS else command, rest


def _load(name: str) -> Any:
    """The real command behind ``name``.

    Raises:
        ConfigError: this installation has no such module.
    """
    module_name, attribute, text = COMMANDS[name]
    try:
        module = importlib.import_module(module_name)
    except ModuleNotFoundError as error:
        if error.name != module_name:
            raise
        raise ConfigError(f"The command {name!r} is not part of this version.", todo="See: residue --help") from error
    target = getattr(module, attribute)
    if isinstance(target, typer.Typer):
        command: Any = typer.main.get_group(target)
    else:
        single = typer.Typer(add_completion=False)
        single.command(name)(target)
        command = typer.main.get_command(single)
    command.name, command.short_help = name, text
    return command


app = typer.Typer(
    cls=_LazyGroup,
    name="residue",
    help="The instrument for language-model failures.",
    no_args_is_help=True,
    context_settings={"help_option_names": ["-h", "--help"]},
    pretty_exceptions_enable=False,
)


def _show_version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"residue {__version__}")
        raise typer.Exit


@app.callback()
def _options(
    version: Annotated[
        bool, typer.Option("--version", help="Show the version and exit.", callback=_show_version, is_eager=True)
    ] = False,
) -> None:
    pass


_CLICK_ERROR: type[Exception] = next(c for c in typer.BadParameter.__mro__ if c.__name__ == "ClickException")
"""Base of command-line mistakes: click's own class, or the one that newer typer brings along."""


class _CtrlC(BaseException):
    """Stands in for KeyboardInterrupt on the way through typer, which would end it with a message of its own."""


def run(argv: Sequence[str] | None = None) -> int:
    """Run the command line and return its exit code; nothing but SystemExit is raised.

    Args:
        argv: words after ``residue``; those of the process when left out.
    """
    words = list(sys.argv[1:] if argv is None else argv)
    _words.words.set(tuple(words))
    as_json = "--json" in words[: words.index("--")] if "--" in words else "--json" in words
    for stream in (sys.stdout, sys.stderr):
        # A terminal that cannot show a character gets its escape, not a crash.
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")
    try:
        group = typer.main.get_command(app)
        invoke = group.invoke
        group.invoke = lambda ctx: _shielded(invoke, ctx)  # type: ignore[method-assign]
        result = group.main(args=words, prog_name="residue", standalone_mode=False)
    except ResidueError as error:
        return _errors.show_refusal(error, as_json=as_json)
    except (KeyboardInterrupt, _CtrlC, typer.Abort):
        return _errors.show_interrupted(as_json=as_json)
    except _CLICK_ERROR as error:
        return _usage(error, as_json=as_json)
    except Exception as error:
        return _errors.show_bug(error, as_json=as_json)
    # typer hands back the code of an Exit as the result; commands themselves return nothing.
    return result if isinstance(result, int) and not isinstance(result, bool) else 0


def _shielded(invoke: Any, ctx: Any) -> Any:
    try:
        return invoke(ctx)
    except KeyboardInterrupt as error:
        raise _CtrlC from error


def _usage(error: Any, *, as_json: bool) -> int:
    ctx = getattr(error, "ctx", None)
    if type(error).__name__ == "NoArgsIsHelpError":
        error.show()  # no mistake: the help was already asked for by giving nothing
        return _errors.USAGE
    path = ctx.command_path if ctx is not None else "residue"
    return _errors.show_usage(error.format_message(), f"{path} --help", as_json=as_json)
