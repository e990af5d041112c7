"""The compiled CPU kernel's place: not built in this revision."""

from __future__ import annotations

from typing import Any

from symbolic_residue.errors import AttentionError

__all__ = ["attend", "available", "why"]


def available() -> bool:
    """Whether the kernel can be used here."""
    return False


def why() -> str:
    """Why not."""
    return "the kernel is not part of this revision"


def attend(*args: Any, **options: Any) -> Any:
    """Refuse.

    Raises:
        AttentionError: always.
    """
    raise AttentionError(f"There is no native kernel: {why()}.", todo="Use backend='torch' or 'blocks'.")
