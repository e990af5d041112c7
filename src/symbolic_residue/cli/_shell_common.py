"""What the commands ``residue shell NAME`` share: the options of every measuring command, and a shell run on prompts into a run folder.

1. :func:`measuring` adds the options of :class:`Common` behind a command's own; the command gets them as one argument, ``common``.
2. :func:`run_shell` opens nothing and parses nothing: it puts prompts through a shell that is made, one item a prompt, and ends the command.
"""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable
from dataclasses import dataclass, fields
from typing import Any, get_type_hints, NoReturn, TYPE_CHECKING

import typer

from symbolic_residue.cli._common import (
    Adapter,
    Device,
    Dtype,
    Json,
    measure_items,
    Model,
    NoReport,
    open_for_cli,
    Output,
    Resume,
    Seed,
)
from symbolic_residue.cli._failure_graphs import explained, graph_config

if TYPE_CHECKING:
    from symbolic_residue.models import LoadedModel

__all__ = ["Common", "chosen", "measuring", "run_shell"]


@dataclass(frozen=True)
class Common:
    """The options of every measuring command, as they were given."""

    model: Model = "demo"
    adapter: Adapter = None
    output: Output = None
    seed: Seed = 0
    dtype: Dtype = "float32"
    device: Device = "cpu"
    resume: Resume = False
    no_report: NoReport = False
    json: Json = False

    def open(self) -> LoadedModel:
        """The model, opened and verified."""
        return open_for_cli(self.model, adapter=self.adapter, dtype=self.dtype, device=self.device)

    def measure(
        self,
        *,
        kind: str,
        loaded: LoadedModel,
        prompts: Any,
        config: dict[str, Any],
        work: Callable[[Any, Callable[[str, float], None]], Any],
    ) -> int:
        """:func:`measure_items` with these options; returns the exit code."""
        return measure_items(
            kind=kind,
            loaded=loaded,
            prompts=prompts,
            config=config | {"seed": self.seed},
            output=self.output,
            resume=self.resume,
            seed=self.seed,
            report=not self.no_report,
            as_json=self.json,
            work=work,
        )


def measuring(command: Callable[..., None]) -> Callable[..., None]:
    """The command with the options of :class:`Common` behind its own; its argument ``common`` takes them."""
    own = [p for p in inspect.signature(command).parameters.values() if p.name != "common"]
    hints = get_type_hints(command, include_extras=True)
    shared = get_type_hints(Common, include_extras=True)
    names = [field.name for field in fields(Common)]

    @functools.wraps(command)
    def whole(**given: Any) -> None:
        common = Common(**{name: given.pop(name) for name in names})
        command(**given, common=common)

    keyword = inspect.Parameter.KEYWORD_ONLY
    parameters = [p.replace(annotation=hints[p.name], kind=keyword) for p in own]
    parameters += [inspect.Parameter(f.name, keyword, default=f.default, annotation=shared[f.name]) for f in fields(Common)]
    del whole.__wrapped__  # type: ignore[attr-defined]  # whoever asks for the signature must get this one
    whole.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
    whole.__annotations__ = {p.name: p.annotation for p in parameters}
    return whole


def chosen(**options: Any) -> dict[str, Any]:
    """The options that were given: those that are not None."""
    return {name: value for name, value in options.items() if value is not None}


def run_shell(
    common: Common,
    shell: Any,
    prompts: Any,
    run: Callable[[Any, Callable[[str, float], None]], Any],
    *,
    shown: Callable[[Any], str] = lambda item: item.prompt or "",
    chat: bool = False,
    in_chat: Callable[[Any], bool] | None = None,
    graphs: tuple[int, int] = (0, 0),
) -> NoReturn:
    """Put every prompt through the shell into a run folder, and end the command with its exit code.

    Args:
        common: the options.
        shell: made on the opened model.
        prompts: a ``PromptSet``.
        run: (item, where to tell progress) → residue.
        shown: the item's text for a reader.
        chat: whether ``--chat`` was given; ``in_chat`` says it of one item.
        graphs: attribution graphs of so many of the worst failures, and the neurons that each chooses.
    """
    from symbolic_residue.diagnose import shell_item

    def work(item: Any, progress: Callable[[str, float], None]) -> Any:
        return shell_item(
            shell,
            item.id,
            shown(item),
            lambda told: run(item, told),
            chat=in_chat(item) if in_chat is not None else chat,
            seed=common.seed,
            progress=progress,
        )

    config = {"shells": {shell.name: shell.config.model_dump(mode="json")}, "chat": chat}
    config |= graph_config(*graphs)
    common, prompts, done = explained(common, shell, prompts, work, *graphs)
    raise typer.Exit(common.measure(kind=shell.name, loaded=shell.loaded, prompts=prompts, config=config, work=done))
