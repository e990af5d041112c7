"""Prompt files: one JSON object a line (JSONL, UTF-8).

1. The file is read whole; lines end at newlines only (a JSON text may hold other Unicode line separators).
2. Each line that is not blank is one item: ``{"id"?, "prompt" | "messages", "candidates"?, "control"?, "tags"?}``.
3. A line that cannot be used is kept with its number and the reason, and the others stay usable. A file in which no line
   can be used is refused.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, field_validator, model_validator, ValidationError
from typing_extensions import TypedDict

from symbolic_residue.errors import PromptFileError

__all__ = ["BadLine", "ChatMessage", "MatchedItem", "PromptItem", "PromptSet", "read_prompts"]


class ChatMessage(TypedDict):
    """One turn of a conversation."""

    __pydantic_config__ = ConfigDict(extra="forbid")  # type: ignore[misc]

    role: Literal["system", "user", "assistant"]
    content: str


class PromptItem(BaseModel):
    """One prompt of a prompt file."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    id: str
    """Distinct within the file; ``line-00007`` where the line gives none. A whole number is taken as text."""
    prompt: str | None = None
    """Plain text, or the content of one user turn where the run asks for a chat."""
    messages: tuple[ChatMessage, ...] | None = None
    """A conversation instead of ``prompt``."""
    candidates: tuple[str, ...] | None = None
    """The texts that compete for the next token, leading space included; at least two, distinct."""
    control: str | None = None
    """The matched prompt whose answer is settled."""
    tags: tuple[str, ...] = ()

    @field_validator("id", mode="before")
    @classmethod
    def _id_as_text(cls, value: Any) -> Any:
        return str(value) if isinstance(value, int) and not isinstance(value, bool) else value

    @field_validator("id", "prompt", "control")
    @classmethod
    def _not_blank(cls, value: str | None) -> str | None:
        if value is not None and not value.strip():
            raise ValueError("must not be empty")
        return value

    @field_validator("candidates")
    @classmethod
    def _at_least_two(cls, value: tuple[str, ...] | None) -> tuple[str, ...] | None:
        if value is not None and (len(value) < 2 or len(set(value)) != len(value) or not all(value)):
            raise ValueError("needs at least two different texts, none empty")
        return value

    @model_validator(mode="after")
    def _one_of_two(self) -> PromptItem:
        if (self.prompt is None) == (self.messages is None):
            raise ValueError("needs exactly one of 'prompt' and 'messages'")
        if self.messages is not None and not any(
            message["role"] == "user" and message["content"].strip() for message in self.messages
        ):
            raise ValueError("'messages' needs a user turn that is not empty")
        return self


class MatchedItem(BaseModel):
    """A prompt and its matched control, one line of a file of pairs."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    id: str
    """As for :class:`PromptItem`."""
    prompt: str
    control: str
    """The same without the stress."""
    span: str | None = None
    """A text of the prompt that is looked at by itself, such as its command."""
    control_span: str | None = None
    """The same of the control, where it is another text."""
    tags: tuple[str, ...] = ()

    @field_validator("id", mode="before")
    @classmethod
    def _id_as_text(cls, value: Any) -> Any:
        return str(value) if isinstance(value, int) and not isinstance(value, bool) else value

    @field_validator("id", "prompt", "control", "span", "control_span")
    @classmethod
    def _not_blank(cls, value: str | None) -> str | None:
        if value is not None and not value.strip():
            raise ValueError("must not be empty")
        return value

    @model_validator(mode="after")
    def _both_spans(self) -> MatchedItem:
        if self.control_span is not None and self.span is None:
            raise ValueError("'control_span' needs 'span'")
        return self

    @property
    def plain(self) -> PromptItem:
        """The pair as a prompt with a control."""
        return PromptItem(id=self.id, prompt=self.prompt, control=self.control, tags=self.tags)


@dataclass(frozen=True, slots=True)
class BadLine:
    """A line that cannot be used: its ``number`` from 1, the ``reason``, and its ``text``."""

    number: int
    reason: str
    text: str


@dataclass(frozen=True, slots=True)
class PromptSet:
    """What a prompt file holds: usable ``items`` and ``bad`` lines, both in file order."""

    items: list[PromptItem]
    bad: list[BadLine]


def read_prompts(path: str | Path, model: type[Any] = PromptItem) -> PromptSet:
    """Read a JSONL prompt file.

    Args:
        path: the file.
        model: a pydantic model of one line, with a field ``id``; a shell that asks for more than a prompt has its own.

    Raises:
        PromptFileError: no such file, a folder, not readable, not UTF-8, empty, or without a single usable line.
    """
    path = Path(path)
    items: list[PromptItem] = []
    bad: list[BadLine] = []
    seen: dict[str, int] = {}
    for number, line in enumerate(_text(path).split("\n"), start=1):
        if not line.strip():
            continue
        try:
            item = _item(line, number, model)
            if item.id in seen:
                raise ValueError(f"the id {item.id!r} is already used on line {seen[item.id]}")
        except ValidationError as error:
            bad.append(BadLine(number, _reason(error), line))
        except ValueError as error:
            bad.append(BadLine(number, str(error), line))
        else:
            seen[item.id] = number
            items.append(item)
    if not items:
        if not bad:
            raise PromptFileError(f"The prompt file {path} is empty.")
        raise PromptFileError(
            f"No line of the prompt file {path} can be used.",
            why="; ".join(f"line {line.number}: {line.reason}" for line in bad[:5]) + ("; …" if len(bad) > 5 else "") + ".",
            todo='Write one JSON object a line, as in {"id": "a", "prompt": "…"}.',
        )
    return PromptSet(items, bad)


def _text(path: Path) -> str:
    try:
        data = path.read_bytes()
    except FileNotFoundError:
        raise PromptFileError(f"There is no prompt file {path}.") from None
    except IsADirectoryError:
        raise PromptFileError(f"{path} is a folder.", todo="Give the JSONL file itself.") from None
    except OSError as error:
        raise PromptFileError(f"The prompt file {path} cannot be read: {error.strerror}.") from error
    try:
        return data.decode("utf-8-sig")  # some editors put a byte-order mark in front
    except UnicodeDecodeError as error:
        raise PromptFileError(
            f"The prompt file {path} is not UTF-8: line {data.count(10, 0, error.start) + 1}, byte {error.start}.",
            todo="Save it as UTF-8.",
        ) from None


def _item(line: str, number: int, model: type[Any] = PromptItem) -> Any:
    """One line as an item; ValueError says why not."""
    try:
        value = json.loads(line, object_pairs_hook=_distinct_keys)
    except json.JSONDecodeError as error:
        raise ValueError(f"no JSON: {error.msg} at column {error.colno}") from None
    except RecursionError:
        raise ValueError("the JSON is nested too deeply") from None
    if not isinstance(value, dict):
        raise ValueError(f"a JSON object is needed, not {type(value).__name__}")
    try:
        json.dumps(value, ensure_ascii=False).encode("utf-8")
    except UnicodeEncodeError:
        raise ValueError("holds half a surrogate pair, which is no valid Unicode text") from None
    return model.model_validate({"id": f"line-{number:05d}", **value})


def _distinct_keys(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    value = dict(pairs)
    if len(value) != len(pairs):
        twice = sorted({key for key, _ in pairs if sum(key == other for other, _ in pairs) > 1})
        raise ValueError(f"the key {twice[0]!r} is given twice")
    return value


def _reason(error: ValidationError) -> str:
    """Pydantic's findings as one line, with the name of each key."""
    reasons = []
    for problem in error.errors():
        where = ".".join(str(part) for part in problem["loc"])
        if problem["type"] == "extra_forbidden":
            reasons.append(f"unknown key {where!r}")
        else:
            message = problem["msg"].removeprefix("Value error, ")
            reasons.append(f"{where!r}: {message}" if where else message)
    return "; ".join(reasons)
