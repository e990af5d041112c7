"""One line of a file of questions for MEMTRACE: a prompt and what else :meth:`MemtraceShell.run` may be told."""

from __future__ import annotations

from typing import Any, Self

from pydantic import BaseModel, ConfigDict, field_validator, ValidationError

from symbolic_residue.errors import PromptError
from symbolic_residue.prompts import Padding

__all__ = ["MemtraceQuestion"]


class MemtraceQuestion(BaseModel):
    """A prompt with its fact; every field but ``prompt`` may be left out and is then found (see :meth:`MemtraceShell.run`)."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    id: str = "prompt"
    """Distinct within the file."""
    prompt: str
    """The whole text: fact, whatever stands between, question."""
    fact: str | None = None
    question: str | None = None
    answer: tuple[str, ...] | None = None
    """One text, or one a field."""
    foils: tuple[tuple[str, ...], ...] | None = None
    """A list of wrong answers, or one a field."""
    control: str | None = None
    rival: str | None = None
    rival_answer: str | None = None
    distractors: tuple[str, ...] = ()
    padding: Padding | None = None
    token_type: str | None = None

    @field_validator("answer", mode="before")
    @classmethod
    def _one_answer(cls, value: Any) -> Any:
        return (value,) if isinstance(value, str) else value

    @field_validator("foils", mode="before")
    @classmethod
    def _one_list(cls, value: Any) -> Any:
        return (value,) if isinstance(value, list | tuple) and value and all(isinstance(v, str) for v in value) else value

    @field_validator("prompt")
    @classmethod
    def _not_blank(cls, value: str) -> str:
        if not value.strip():
            raise ValueError("must not be empty")
        return value

    @classmethod
    def make(cls, **fields: Any) -> Self:
        """From keyword arguments.

        Raises:
            PromptError: a field that cannot be used, named.
        """
        try:
            return cls(**fields)
        except ValidationError as error:
            first = error.errors()[0]
            raise PromptError(f"{'.'.join(map(str, first['loc'])) or 'The prompt'}: {first['msg']}.") from None

    def asked(self) -> dict[str, Any]:
        """The keyword arguments of ``run``, without the prompt."""
        return {name: value for name, value in self if name not in ("id", "prompt")}
