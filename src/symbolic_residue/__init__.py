"""Symbolic Residue: the instrument for language-model failures.

The public names load their rooms on first use, so that importing the package stays quick.
"""

from __future__ import annotations

from importlib import import_module
from typing import Any, TYPE_CHECKING

if TYPE_CHECKING:
    from symbolic_residue.instrument import AttentionRead, Instrument, open_model
    from symbolic_residue.prompts import build_prompt
    from symbolic_residue.report import render_report
    from symbolic_residue.shells import (
        InstructionDisruptionConfig,
        InstructionDisruptionShell,
        LayerSalienceConfig,
        LayerSalienceShell,
        MemtraceConfig,
        MemtraceShell,
        MetaShell,
        ShellBase,
        ShellIntegrator,
        TemporalInferenceConfig,
        TemporalInferenceShell,
        ValueCollapseConfig,
        ValueCollapseShell,
    )
    from symbolic_residue.store import RunFolder

__version__ = "0.1.0"

__all__ = [
    "AttentionRead",
    "InstructionDisruptionConfig",
    "InstructionDisruptionShell",
    "Instrument",
    "LayerSalienceConfig",
    "LayerSalienceShell",
    "MemtraceConfig",
    "MemtraceShell",
    "MetaShell",
    "RunFolder",
    "ShellBase",
    "ShellIntegrator",
    "TemporalInferenceConfig",
    "TemporalInferenceShell",
    "ValueCollapseConfig",
    "ValueCollapseShell",
    "__version__",
    "build_prompt",
    "open_model",
    "render_report",
]

_ROOMS = {
    "AttentionRead": "instrument",
    "InstructionDisruptionConfig": "shells",
    "InstructionDisruptionShell": "shells",
    "Instrument": "instrument",
    "LayerSalienceConfig": "shells",
    "LayerSalienceShell": "shells",
    "MetaShell": "shells",
    "MemtraceConfig": "shells",
    "MemtraceShell": "shells",
    "RunFolder": "store",
    "ShellBase": "shells",
    "ShellIntegrator": "shells",
    "TemporalInferenceConfig": "shells",
    "TemporalInferenceShell": "shells",
    "ValueCollapseConfig": "shells",
    "ValueCollapseShell": "shells",
    "build_prompt": "prompts",
    "open_model": "instrument",
    "render_report": "report",
}


def __getattr__(name: str) -> Any:
    if name not in _ROOMS:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_ROOMS[name]}"), name)
