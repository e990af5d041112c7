"""What a user sees when a command fails: three short lines, or with ``--json`` one object, on standard error.

1. An error of the package: what is wrong, why, what to do; the exit code is the error's own.
2. A mistake in the command line: what is wrong, and where the help is; exit code 2.
3. Ctrl-C: "Interrupted"; exit code 130.
4. Anything else is a bug of ours and is called one, with where to report it; exit code 70. ``RESIDUE_TRACEBACK=1`` shows the
   traceback.

Messages may quote a prompt, a file name or a model's output. They are shown as text: no markup is read in them, and control
characters (which could clear the screen or move the cursor) are written out as escapes.
"""

from __future__ import annotations

import json
import os
import sys
import traceback
import unicodedata

from symbolic_residue.errors import ResidueError

__all__ = ["BUG", "INTERRUPTED", "USAGE", "show_bug", "show_interrupted", "show_refusal", "show_usage", "visible"]

USAGE, BUG, INTERRUPTED = 2, 70, 130
"""Exit codes that belong to no :class:`ResidueError`."""

_HIDDEN = {"Cc", "Cf", "Cs", "Zl", "Zp"}
"""Unicode categories that act instead of showing: control, format (which turn the reading direction), surrogates, line breaks."""

_JOINERS = "\u200c\u200d"
"""Format characters that belong to the spelling of words and emoji."""


def visible(text: object) -> str:
    """``text`` on one line, with every character that would act on the terminal written as its escape."""
    return "".join(_escaped(c) if unicodedata.category(c) in _HIDDEN and c not in _JOINERS else c for c in str(text))


def show_refusal(error: ResidueError, *, as_json: bool) -> int:
    """Show an error of the package; returns its exit code."""
    _show(type(error).__name__, error.what, error.why, error.todo, error.exit_code, as_json=as_json)
    _show_traceback(error)
    return error.exit_code


def show_usage(message: str, help_command: str, *, as_json: bool) -> int:
    """Show a mistake in the command line; returns 2."""
    _show("UsageError", message, "", f"See: {help_command}", USAGE, as_json=as_json)
    return USAGE


def show_interrupted(*, as_json: bool) -> int:
    """Show that Ctrl-C was heard; returns 130."""
    _show("Interrupted", "Interrupted", "", "", INTERRUPTED, as_json=as_json, label="")
    return INTERRUPTED


def show_bug(error: BaseException, *, as_json: bool) -> int:
    """Show an error that should not have been; returns 70."""
    what = f"This is a bug in symbolic_residue: {type(error).__name__}: {error}"
    todo = f"Please report it{_tracker()}, with the command and the traceback; RESIDUE_TRACEBACK=1 shows the traceback."
    _show(type(error).__name__, what, "", todo, BUG, as_json=as_json, label="")
    _show_traceback(error)
    return BUG


def _show(name: str, what: str, why: str, todo: str, code: int, *, as_json: bool, label: str = "Error") -> None:
    if as_json:
        # ASCII, so that neither the terminal nor the encoding of a pipe can change it.
        sys.stderr.write(json.dumps({"error": name, "what": what, "why": why, "todo": todo, "exit_code": code}) + "\n")
        return
    from rich.console import Console
    from rich.text import Text

    console = Console(stderr=True, highlight=False, soft_wrap=True)
    for head, style, text in ((label, "bold red", what), ("Why", "bold", why), ("Do", "bold", todo)):
        if text:
            line = Text(f"{head}: " if head else "", style=style)
            console.print(line.append(visible(text), style="not bold default"))


def _show_traceback(error: BaseException) -> None:
    if os.environ.get("RESIDUE_TRACEBACK", "") not in ("", "0"):
        traceback.print_exception(error, file=sys.stderr)


def _tracker() -> str:
    """`` at URL`` where the installed package names its issue tracker."""
    import importlib.metadata

    try:
        links = importlib.metadata.metadata("symbolic-residue").get_all("Project-URL") or []
    except importlib.metadata.PackageNotFoundError:
        return ""
    named = dict(link.split(", ", 1) for link in links if ", " in link)
    url = next((url for name, url in named.items() if name.lower() in ("issues", "bug tracker", "tracker")), "")
    return f" at {url}" if url else ""


def _escaped(character: str) -> str:
    return character.encode("unicode_escape").decode("ascii")
