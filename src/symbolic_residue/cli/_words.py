"""The words of the command line that is running, for the record that a run keeps of itself."""

from __future__ import annotations

from contextvars import ContextVar

__all__ = ["words"]

words: ContextVar[tuple[str, ...]] = ContextVar("words", default=())
"""Words after ``residue``."""
