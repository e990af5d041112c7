"""What all stages share: the study, the folder that it fills, its models, and which item belongs to which stage.

1. A stage is a list of *items*; each is measured and written as a whole, so a study that was killed goes on with the first item that is not there.
2. Models are opened by their names in the tables and let go when another is asked for (a causal follow-up keeps two).
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Collection, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Protocol

import polars as pl

from symbolic_residue.contrast._behaviour import Behaviour, make_behaviour
from symbolic_residue.contrast._config import StudyConfig, TUNED
from symbolic_residue.contrast._examples import Condition, Question
from symbolic_residue.errors import AdapterError, ConfigError
from symbolic_residue.instrument import Instrument, open_model

__all__ = ["STAGES", "Folder", "Measured", "Models", "Stopped", "Study", "end_ids", "items_row"]

STAGES = ("preflight", "generate", "read", "force-feed", "analyse", "causal")
"""Stages 0 to 5 by name; the report is stage 6."""


class Folder(Protocol):
    """Where items go; ``store.RunFolder`` is one."""

    @property
    def path(self) -> Path:
        """The folder."""
        ...

    def done_items(self) -> list[str]:
        """Ids of the items that are there."""
        ...

    def table(self, name: str, *, items: Collection[str] | None = None, where: pl.Expr | None = None) -> pl.DataFrame:
        """A table over all items, or over some; only rows for which ``where`` holds."""
        ...

    def tensors(self, name: str) -> dict[str, Any]:
        """A tensor of every item that has it, by item."""
        ...

    def write_item(self, item_id: str, tables: Mapping[str, pl.DataFrame], tensors: Mapping[str, Any] | None = None) -> None:
        """Keep an item."""
        ...


Measured = dict[str, pl.DataFrame] | tuple[dict[str, pl.DataFrame], dict[str, Any]]
"""Tables of an item, or tables and tensors."""


class Stopped(Exception):
    """The study ended early for a reason that is a result, not a mistake."""


class Models:
    """The models of a study by name, opened when asked for.

    Args:
        config: the study.
        on_open: called with the name before a model is opened.
    """

    def __init__(self, config: StudyConfig, on_open: Callable[[str], None] | None = None) -> None:
        self.config = config
        self.on_open = on_open
        self._open: dict[str, Instrument] = {}
        self._known: tuple[Any, tuple[int, ...]] | None = None
        self._places = ExitStack()
        self._twins: dict[str, str] = {}

    def __enter__(self) -> Models:
        return self

    def __exit__(self, *_: object) -> None:
        self._open.clear()
        self._places.close()

    def get(self, name: str, *, beside: Sequence[str] = ()) -> Instrument:
        """The model of this name.

        Args:
            name: ``tuned``, or a reference.
            beside: models that stay open; every other one is let go.

        Raises:
            ModelError: it cannot be had, or does not fit.
        """
        key, keep = self._key(name), {self._key(one) for one in beside}
        if key not in self._open:
            for other in [one for one in self._open if one not in keep]:
                del self._open[other]
            if self.on_open is not None:
                self.on_open(key)
            self._open[key] = Instrument(self._load(key))
            if key == TUNED:
                self._known = (self._open[key].loaded.tokenizer, end_ids(self._open[key]))
        return self._open[key]

    @property
    def tokenizer(self) -> Any:
        """The tuned model's tokenizer; kept when the model is let go."""
        return self._of_tuned()[0]

    @property
    def ends(self) -> tuple[int, ...]:
        """The tuned model's end ids; likewise."""
        return self._of_tuned()[1]

    def _of_tuned(self) -> tuple[Any, tuple[int, ...]]:
        if self._known is None:
            self.get(TUNED)
        assert self._known is not None
        return self._known

    def references(self) -> dict[str, dict[str, Any]]:
        """What each reference is, its adapter by its hash; nothing is opened.

        Raises:
            AdapterError: an adapter's file is not there.
        """
        found = {}
        for name, one in self.config.references.items():
            place = self.config.adapter if one.kind == "random" else one.adapter
            fields = one.model_dump(mode="json", exclude_none=True)
            found[name] = fields if place is None else {**fields, "adapter_sha256": adapter_sha256(place)}
        return found

    def adapter(self, name: str) -> str:
        """The folder of a reference's adapter; a random twin is made when first asked for."""
        reference = self.config.references[name]
        if reference.kind != "random":
            return str(reference.adapter)
        if name not in self._twins:
            from symbolic_residue.contrast._adapters import random_adapter

            place = Path(self._places.enter_context(TemporaryDirectory(prefix="residue-twin-"))) / "twin"
            random_adapter(Path(str(self.config.adapter)), place, seed=int(reference.random or 0))
            self._twins[name] = str(place)
        return self._twins[name]

    def _key(self, name: str) -> str:
        """Another system text is read by the tuned model itself."""
        if name != TUNED and name not in self.config.references:
            raise ConfigError(
                f"{name!r} is no model of this study.", todo=f"There are: {', '.join([TUNED, *self.config.references])}."
            )
        return TUNED if name == TUNED or self.config.references[name].kind == "system" else name

    def _load(self, key: str) -> Any:
        config = self.config
        options = {"dtype": config.dtype, "device": config.device}
        if key == TUNED:
            return open_model(config.model, adapter=config.adapter, **options)
        reference = config.references[key]
        if reference.kind == "model":
            return open_model(reference.model or "", adapter=reference.adapter, **options)
        return open_model(config.model, adapter=None if reference.kind == "base" else self.adapter(key), **options)


@dataclass
class Study:
    """A study at work.

    Attributes:
        config: what is asked.
        folder: where its items go.
        models: its models.
        progress: called with (stage, item, share of the stage that is done).
    """

    config: StudyConfig
    folder: Folder
    models: Models
    progress: Callable[[str, str, float], None] = field(default=lambda stage, item, share: None)

    @property
    def conditions(self) -> list[Condition]:
        """Of the configuration."""
        return self.config.made_conditions()

    @property
    def questions(self) -> list[Question]:
        """Of the configuration."""
        return self.config.made_questions()

    def behaviour(self, ends: Sequence[int]) -> Behaviour:
        """What is looked for."""
        return make_behaviour(self.config.behaviour, ends=ends)

    def cells(self) -> list[tuple[Condition, Question]]:
        """All conditions and questions, in order."""
        return [(condition, question) for condition in self.conditions for question in self.questions]

    def pending(self, items: Sequence[str]) -> list[str]:
        """Those that are not there yet."""
        there = {*self.folder.done_items()}
        return [item for item in items if item not in there]

    def work(self, stage: str, items: Sequence[str], measure: Callable[[str], Measured]) -> None:
        """Measure and keep each item that is not there yet."""
        waiting = {*self.pending(items)}
        for i, item in enumerate(items):
            if item not in waiting:
                continue
            self.progress(stage, item, i / len(items))
            found = measure(item)
            self.folder.write_item(item, *(found if isinstance(found, tuple) else (found,)))
        self.progress(stage, "", 1.0)

    def row(self, *, prompt: str, summary: str, text: str | None = None, n_tokens: int | None = None) -> pl.DataFrame:
        """The one row of the table ``items``."""
        return items_row(prompt=prompt, summary=summary, chat=self.config.chat, seed=self.config.seed, text=text, n_tokens=n_tokens)

    def need(self, items: Sequence[str], stage: str) -> None:
        """Refuse to go on without the items of an earlier stage.

        Raises:
            ConfigError: some are not there.
        """
        lacking = self.pending(items)
        if lacking:
            raise ConfigError(
                f"{len(lacking)} of {len(items)} items of stage {stage!r} are not there (first: {lacking[0]!r}).",
                why="A stage works from what the stages before it have saved.",
                todo=f"Run: residue contrast run --resume {self.folder.path} --until {stage}",
            )


def adapter_sha256(folder: str) -> str:
    """Hash of an adapter's tensors.

    Raises:
        AdapterError: the file cannot be read.
    """
    try:
        return hashlib.sha256((Path(folder) / "adapter_model.safetensors").read_bytes()).hexdigest()
    except OSError as error:
        raise AdapterError(
            f"{folder} holds no adapter_model.safetensors that can be read.",
            why=f"{error.strerror}.",
            todo="Give a PEFT adapter's folder.",
        ) from error


def end_ids(instrument: Instrument) -> tuple[int, ...]:
    """Ids at which the model ends an answer: those of its generation config, else of its config."""
    for config in (getattr(instrument.model, "generation_config", None), instrument.model.config):
        ids = getattr(config, "eos_token_id", None)
        if ids is not None:
            return (ids,) if isinstance(ids, int) else tuple(ids)
    return ()


def items_row(
    *, prompt: str, summary: str, chat: bool | None, seed: int, text: str | None = None, n_tokens: int | None = None
) -> pl.DataFrame:
    """The one row of the table ``items``."""
    row = {
        "prompt": prompt,
        "text": text,
        "chat": chat,
        "n_tokens": n_tokens,
        "seed": seed,
        "status": "done",
        "error": None,
        "summary": summary,
    }
    kinds = {"chat": pl.Boolean, "n_tokens": pl.Int64, "seed": pl.Int64}
    return pl.DataFrame([row], schema={name: kinds.get(name, pl.String) for name in row})
