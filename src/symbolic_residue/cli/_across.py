"""What the commands of measures across shells share: texts of the command line, and runs whose last item holds all prompts together.

1. Each prompt, or matched pair, is an item; the item ``together`` comes last and reads what the others left in the run folder. A run that was cut off
   therefore goes on at the prompt where it stood.
2. An id of the user's own must not be ``together``.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, TYPE_CHECKING

import typer

from symbolic_residue.cli._common import default_output, measure_items
from symbolic_residue.errors import ConfigError

if TYPE_CHECKING:
    from symbolic_residue.prompts import PromptItem, PromptSet
    from symbolic_residue.store import RunFolder

__all__ = ["TOGETHER", "Texts", "digest", "gather_texts", "measure_together", "tensors_of"]

TOGETHER = "together"
"""The item that holds what all prompts of the run say together."""

Texts = Annotated[list[str] | None, typer.Argument(help="The prompts. Give them, or --file.", show_default=False)]


def gather_texts(texts: list[str] | None, file: Path | None) -> PromptSet:
    """The prompts of the command line: texts, or a file.

    Raises:
        ConfigError: neither or both were given. PromptError: an empty text. PromptFileError: a file that cannot be used.
    """
    from symbolic_residue.errors import PromptError
    from symbolic_residue.prompts import PromptItem, PromptSet, read_prompts

    if (not texts) == (file is None):
        raise ConfigError("Give prompts, or --file with prompts." if not texts else "Give prompts or --file, not both.")
    if file is not None:
        return read_prompts(file)
    for number, text in enumerate(texts or [], 1):
        if not text.strip():
            raise PromptError(f"Prompt {number} is empty.", todo="Give some text.")
    return PromptSet([PromptItem(id=f"prompt-{number}", prompt=text) for number, text in enumerate(texts or [], 1)], [])


def measure_together(
    *,
    kind: str,
    loaded: Any,
    prompts: PromptSet,
    config: dict[str, Any],
    output: Path | None,
    resume: bool,
    seed: int,
    report: bool,
    as_json: bool,
    each: Callable[[PromptItem, Callable[[str, float], None]], Any],
    together: Callable[[RunFolder, list[PromptItem], Callable[[str, float], None]], Any],
    provenance: dict[str, Any] | None = None,
    after: Mapping[str, Callable[[RunFolder, Callable[[str, float], None]], Any]] | None = None,
) -> int:
    """Every prompt with ``each``, then the item ``together`` from the run folder and the prompts that were read, then those of ``after``.

    Raises:
        ConfigError: a prompt's id is ``together``, or one of ``after``.
    """
    from symbolic_residue.prompts import PromptItem, PromptSet
    from symbolic_residue.store import RunFolder

    last = after or {}
    for name in (TOGETHER, *last):
        if any(item.id == name for item in prompts.items):
            raise ConfigError(f"A prompt has the id {name!r}.", why="The item of that name holds all prompts.", todo="Rename it.")
    path = output or default_output(kind)

    def work(item: PromptItem, progress: Callable[[str, float], None]) -> Any:
        if item.id in last:
            return last[item.id](RunFolder.open(path), progress)
        if item.id != TOGETHER:
            return each(item, progress)
        run = RunFolder.open(path)
        done = set(run.done_items())
        return together(run, [one for one in prompts.items if one.id in done], progress)

    pooled = [PromptItem(id=name, prompt=f"{len(prompts.items)} prompts") for name in (TOGETHER, *last)]
    return measure_items(
        kind=kind,
        loaded=loaded,
        prompts=PromptSet([*prompts.items, *pooled], prompts.bad),
        config={**config, "prompts_sha256": digest(prompts), "seed": seed},
        output=path,
        resume=resume,
        seed=seed,
        report=report,
        as_json=as_json,
        work=work,
        provenance=provenance,
    )


def digest(*sets: PromptSet) -> str:
    """Hash of all prompts, so that a run is not gone on with on others."""
    asked = [[item.model_dump(mode="json") for item in some.items] for some in sets]
    return hashlib.sha256(json.dumps(asked, ensure_ascii=False).encode()).hexdigest()


def tensors_of(run: RunFolder, name: str, items: Sequence[PromptItem]) -> list[Any]:
    """The tensor ``name`` of each item, in the items' order."""
    kept = run.tensors(name)
    return [kept[item.id].double().numpy() for item in items]
