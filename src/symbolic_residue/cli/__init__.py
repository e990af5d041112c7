"""The command ``residue``: parsing, progress, and calls into the rooms below; nothing is computed here.

One command a file. Importing this package imports nothing heavy: a command's file is loaded when the command is called.
"""

from __future__ import annotations

from collections.abc import Sequence

__all__ = ["main"]


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line ``argv`` (the process's own when left out) and return the exit code; errors are shown, not raised."""
    from symbolic_residue.cli._app import run

    return run(argv)
