"""Which shells there are, in the order of the specification.

1. :data:`SHELLS` names every shell, what it asks in one line, and where its class and its configuration are; the code of a shell is imported when it is
   asked for.
2. :func:`shell_class` and :func:`make_shell` are the way from a name on a command line to a shell.
"""

from __future__ import annotations

from importlib import import_module
from typing import Any, NamedTuple, TYPE_CHECKING

from symbolic_residue.errors import ConfigError
from symbolic_residue.shells._base import ShellBase
from symbolic_residue.shells._config import ShellConfig

if TYPE_CHECKING:
    from symbolic_residue.models import LoadedModel

__all__ = ["SHELLS", "ShellEntry", "config_class", "make_shell", "shell_class"]


class ShellEntry(NamedTuple):
    """Where a shell is: ``attribute`` and ``config`` of ``module``; ``question`` is what it asks."""

    module: str
    attribute: str
    config: str
    question: str


SHELLS: dict[str, ShellEntry] = {
    "memtrace": ShellEntry(
        "symbolic_residue.shells.memtrace",
        "MemtraceShell",
        "MemtraceConfig",
        "Does a fact stated early survive to the question?",
    ),
    "value-collapse": ShellEntry(
        "symbolic_residue.shells.value_collapse",
        "ValueCollapseShell",
        "ValueCollapseConfig",
        "Can it decide between competing next tokens?",
    ),
    "layer-salience": ShellEntry(
        "symbolic_residue.shells.layer_salience",
        "LayerSalienceShell",
        "LayerSalienceConfig",
        "What does it stop looking at, and did it matter?",
    ),
    "temporal-inference": ShellEntry(
        "symbolic_residue.shells.temporal_inference",
        "TemporalInferenceShell",
        "TemporalInferenceConfig",
        "Does order survive a gap?",
    ),
    "instruction-disruption": ShellEntry(
        "symbolic_residue.shells.instruction_disruption",
        "InstructionDisruptionShell",
        "InstructionDisruptionConfig",
        "What does it do with two orders at once?",
    ),
}
"""Every packaged shell by its name."""


def shell_class(name: str) -> type[ShellBase[Any, Any]]:
    """A shell's class by its name.

    Raises:
        ConfigError: no such shell.
    """
    entry = _entry(name)
    return getattr(import_module(entry.module), entry.attribute)


def config_class(name: str) -> type[ShellConfig]:
    """The class of a shell's options by the shell's name.

    Raises:
        ConfigError: no such shell.
    """
    entry = _entry(name)
    return getattr(import_module(entry.module), entry.config)


def make_shell(name: str, loaded: LoadedModel, config: ShellConfig | None = None) -> ShellBase[Any, Any]:
    """A shell on an opened model.

    Args:
        name: a key of :data:`SHELLS`.
        loaded: the model.
        config: of the shell's class of options; the defaults when left out.

    Raises:
        ConfigError: no such shell.
        UnsupportedModelError: the shell cannot work on this model.
    """
    return shell_class(name)(config=config, loaded=loaded)


def _entry(name: str) -> ShellEntry:
    if name not in SHELLS:
        raise ConfigError(f"There is no shell {name!r}.", todo=f"Use one of: {', '.join(SHELLS)}.")
    return SHELLS[name]
