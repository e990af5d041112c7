"""Packaged prompt sets, each item checked as it is read.

1. A benchmark is a JSONL file beside this module (``data/``), with a data card of the same name (``.md``).
2. An item of a conflict kind holds two prompts that end alike: ``prompt``, in which two candidate next tokens are supported
   equally, and ``control``, in which small changes settle the answer. An item of kind ``null`` holds one plain prompt whose next
   token is settled.
3. Every item belongs to one split, fixed when the items were written: criteria are set on ``calibration`` and judged on
   ``held-out``.
"""

from __future__ import annotations

import re
from functools import cache
from importlib.resources import files
from typing import Literal, TypeVar

from pydantic import BaseModel, ConfigDict, model_validator, ValidationError

from symbolic_residue.errors import ConfigError, PromptFileError

__all__ = ["BENCHMARKS", "BenchmarkItem", "ShellItem", "Split", "benchmark", "data_card", "read_items"]

ItemT = TypeVar("ItemT", bound=BaseModel)

Split = Literal["calibration", "held-out"]

BENCHMARKS: dict[str, str] = {
    "value-ambiguity-natural": "The same question in natural wordings: controls a word or two apart, null prompts from common knowledge",
    "value-ambiguity": "Two next tokens supported equally, the same texts with the answer settled, and plain settled prompts",
}
"""Name of each packaged benchmark and its title."""

_MAX_WORDS_APART = 3
_SENTENCE_BREAK = re.compile(r"[.?!]\s|\n")


class ShellItem(BaseModel):
    """What the items of all packaged benchmarks share."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    id: str
    """Distinct within the benchmark: the kind and a number."""
    kind: str
    """How the item was made; ``null``, or a name that begins with ``null-``, for one without a planted failure."""
    frame: str = ""
    """The sentence pattern, shared by items that differ in their words; the kind's own where it has one pattern only. Resample
    frames, not items, for an interval."""
    split: Split
    """Criteria are set on ``calibration`` and judged on ``held-out``."""

    @property
    def null(self) -> bool:
        """Whether no failure is planted: every verdict that fires on it is a false one."""
        return self.kind.split("-")[0] == "null"

    @property
    def modes(self) -> tuple[str, ...]:
        """The failure modes that the item was made to show; none where it is null, or where nothing is known beforehand."""
        return ()

    @property
    def shown(self) -> str:
        """The item as a reader sees it."""
        raise NotImplementedError


class BenchmarkItem(ShellItem):
    """One item of a packaged value-ambiguity benchmark. ``kind`` says what plants the conflict: ``witnesses``, ``tie``, …"""

    prompt: str
    """The text whose next token is asked for."""
    control: str | None = None
    """The matched text with the answer settled; it ends as ``prompt`` does."""
    candidates: tuple[str, str] | None = None
    """The two next tokens in conflict, each with its leading space; their order carries no meaning."""
    answer: str | None = None
    """The candidate that is right for ``control``."""

    @property
    def modes(self) -> tuple[str, ...]:
        """Flatness, where a conflict is planted."""
        return () if self.null else ("flatness",)

    @property
    def shown(self) -> str:
        """The prompt."""
        return self.prompt

    @model_validator(mode="after")
    def _check(self) -> BenchmarkItem:
        if not self.prompt.strip() or self.prompt != self.prompt.rstrip():
            raise ValueError("the prompt must not be empty, nor end in white space")
        given = [name for name in ("control", "candidates", "answer") if getattr(self, name) is not None]
        if self.null:
            if given:
                raise ValueError(f"a null item has no {given[0]}")
            return self
        if self.control is None or self.candidates is None or self.answer is None:
            raise ValueError("a conflict needs control, candidates and answer")
        if self.answer not in self.candidates or len(set(self.candidates)) != 2:
            raise ValueError("the answer must be one of two different candidates")
        for candidate in self.candidates:
            if not candidate.startswith(" ") or candidate not in self.prompt:
                raise ValueError(f"{candidate!r} must begin with a space and be mentioned in the prompt")
        if self.answer not in self.control:
            raise ValueError(f"the answer {self.answer!r} must be mentioned in the control")
        ending = _SENTENCE_BREAK.split(self.prompt)[-1]
        if not self.control.endswith(ending) or self.control == self.prompt:
            raise ValueError("the control must differ from the prompt, and end with the same words")
        if abs(len(self.prompt.split()) - len(self.control.split())) > _MAX_WORDS_APART:
            raise ValueError(f"prompt and control are more than {_MAX_WORDS_APART} words apart in length")
        return self

    def mentioned(self) -> tuple[str, str]:
        """The candidates in the order of their first mention in ``prompt``.

        Raises:
            ConfigError: a null item, which has no candidates.
        """
        if self.candidates is None:
            raise ConfigError(f"{self.id} is a null item and has no candidates.")
        a, b = self.candidates
        return (a, b) if self.prompt.index(a) < self.prompt.index(b) else (b, a)


def benchmark(name: str) -> list[BenchmarkItem]:
    """The items of a packaged value-ambiguity benchmark, in file order.

    Args:
        name: a key of ``BENCHMARKS``.

    Raises:
        ConfigError: no benchmark of that name.
        PromptFileError: the packaged file is missing or damaged.
    """
    if name not in BENCHMARKS:
        raise ConfigError(f"{name!r} is no benchmark.", todo=f"Use one of: {', '.join(BENCHMARKS)}.")
    return read_items(name, BenchmarkItem)


def read_items(name: str, model: type[ItemT]) -> list[ItemT]:
    """The items of a packaged benchmark (``data/NAME.jsonl``), each checked by its model, ids distinct, in file order.

    Args:
        name: with hyphens; the file's has underscores.
        model: a frozen pydantic model with a field ``id``.

    Raises:
        PromptFileError: the packaged file is missing or damaged.
    """
    return list(_read(name, model))


def data_card(name: str) -> str:
    """The data card of a packaged benchmark (``data/NAME.md``): what is in it, how it was made, what was looked at; Markdown.

    Raises:
        PromptFileError: the packaged file is missing.
    """
    file = files("symbolic_residue.prompts").joinpath("data", f"{name.replace('-', '_')}.md")
    try:
        return file.read_text(encoding="utf-8")
    except OSError as error:
        raise PromptFileError(f"The benchmark {name!r} has no data card.", todo="Install the package again.") from error


@cache
def _read(name: str, model: type[ItemT]) -> tuple[ItemT, ...]:
    file = files("symbolic_residue.prompts").joinpath("data", f"{name.replace('-', '_')}.jsonl")
    try:
        text = file.read_text(encoding="utf-8")
    except OSError as error:
        raise PromptFileError(
            f"The file of the benchmark {name!r} cannot be read: {error.strerror}.", todo="Install the package again."
        ) from error
    return _parse(name, text, model)


def _parse(name: str, text: str, model: type[ItemT]) -> tuple[ItemT, ...]:
    items: list[ItemT] = []
    seen: set[str] = set()
    for number, line in enumerate(text.splitlines(), start=1):
        try:
            item = model.model_validate_json(line)
        except ValidationError as error:
            raise PromptFileError(f"The benchmark {name!r} is damaged on line {number}.", why=error.errors()[0]["msg"]) from error
        known = str(getattr(item, "id"))  # noqa: B009 (every item model has one; its type is the caller's)
        if known in seen:
            raise PromptFileError(f"The benchmark {name!r} is damaged on line {number}.", why=f"The id {known!r} is used twice.")
        seen.add(known)
        items.append(item)
    if not items:
        raise PromptFileError(f"The benchmark {name!r} holds no items.")
    return tuple(items)
