"""``residue shell custom FILE.py:CLASS PROMPT``: a probe of your own, into a run folder and a report like the packaged ones.

1. The class is imported from the file (or module) that the user names: it is the user's own code, and runs as such.
2. It must be a complete subclass of ``ShellBase``; each prompt goes through its ``run`` and ``analyze_residue``, and the tables of its findings are kept.
"""

from __future__ import annotations

import importlib
import importlib.util
import sys
from pathlib import Path
from typing import Annotated, Any

import typer

from symbolic_residue.cli._common import File, gather_prompts, Prompt
from symbolic_residue.cli._shell_common import Common, measuring
from symbolic_residue.errors import ConfigError

__all__ = ["custom", "load_object", "load_shell_class"]


@measuring
def custom(
    shell: Annotated[str, typer.Argument(metavar="FILE.py:CLASS", help="Your shell: a file or module, and the class in it.")],
    prompt: Prompt = None,
    file: File = None,
    *,
    common: Common,
) -> None:
    """Run a shell of your own (a subclass of ShellBase): its code is imported and runs with your rights."""
    prompts = gather_prompts(prompt, file)
    kind = load_shell_class(shell)
    talks = next((item.id for item in prompts.items if item.messages is not None), None)
    if talks is not None:
        raise ConfigError(f"Prompt {talks!r} is a conversation.", why="A shell's run takes one text.", todo='Give it as "prompt".')
    made = kind(loaded=common.open())
    from symbolic_residue.diagnose import shell_item

    code = common.measure(
        kind=f"shell-{kind.name}",
        loaded=made.loaded,
        prompts=prompts,
        config={"shell": shell},
        work=lambda item, progress: shell_item(
            made,
            item.id,
            item.prompt or "",
            lambda told: made.run(item.prompt or "", seed=common.seed, progress=told),
            seed=common.seed,
            progress=progress,
        ),
    )
    raise typer.Exit(code)


def load_shell_class(text: str) -> Any:
    """The class behind ``FILE.py:CLASS`` or ``MODULE:CLASS``.

    Raises:
        ConfigError: no such file, module or class, an error while importing it, or no complete subclass of ``ShellBase``.
    """
    where, _, name = text.rpartition(":")
    if not where or not name:
        raise ConfigError(
            f"{text!r} names no class.", todo="Write FILE.py:CLASS, as in examples/custom_shell.py:TrailingSpaceShell."
        )
    module = _module(where)
    kind = getattr(module, name, None)
    from symbolic_residue.shells import ShellBase

    if not isinstance(kind, type) or not issubclass(kind, ShellBase):
        there = [key for key, value in vars(module).items() if isinstance(value, type) and issubclass(value, ShellBase)]
        found = ", ".join(key for key in there if key != "ShellBase") or "none"
        raise ConfigError(f"{where} has no shell {name!r}.", why=f"Subclasses of ShellBase in it: {found}.")
    missing = sorted(getattr(kind, "__abstractmethods__", ()))
    missing += [attribute for attribute in ("name", "operations") if not hasattr(kind, attribute)]
    if missing:
        raise ConfigError(f"{name} is not complete.", why=f"It lacks: {', '.join(missing)}.")
    return kind


def load_object(text: str) -> Any:
    """What stands behind ``FILE.py:NAME`` or ``MODULE:NAME``.

    Raises:
        ConfigError: no such file, module or name, or an error while importing it.
    """
    where, _, name = text.rpartition(":")
    if not where or not name:
        raise ConfigError(f"{text!r} names nothing.", todo="Write FILE.py:NAME.")
    module = _module(where)
    if not hasattr(module, name):
        raise ConfigError(f"{where} has no {name!r}.")
    return getattr(module, name)


def _module(where: str) -> Any:
    return _from_file(Path(where)) if where.endswith(".py") else _from_name(where)


def _from_file(path: Path) -> Any:
    if not path.is_file():
        raise ConfigError(f"There is no file {path}.")
    name = f"residue_custom_{path.stem}"
    spec = importlib.util.spec_from_file_location(name, path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module  # a dataclass looks its module up
    _guarded(lambda: spec.loader.exec_module(module), str(path))  # type: ignore[union-attr]
    return module


def _from_name(name: str) -> Any:
    return _guarded(lambda: importlib.import_module(name), name)


def _guarded(load: Any, what: str) -> Any:
    try:
        return load()
    except Exception as error:
        raise ConfigError(f"{what} cannot be imported.", why=f"{type(error).__name__}: {error}.") from error
