"""Prompts without anything planted: natural ones, which signatures of shells are compared with, and open ones, which token trees grow from."""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict, Field

from symbolic_residue.prompts._benchmark import read_items

__all__ = ["NaturalPrompt", "natural_prompts", "parallel_prompts"]


class NaturalPrompt(BaseModel):
    """One natural prompt."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    id: str = Field(min_length=1)
    """The category and a number."""
    category: str = Field(min_length=1)
    """What kind of text it is; prompts of one category share no sentence pattern."""
    prompt: str = Field(pattern=r"\S")
    """The text whose next token is asked for."""


def natural_prompts() -> list[NaturalPrompt]:
    """The packaged natural prompts: twelve categories, eight prompts each, in file order.

    Raises:
        PromptFileError: the packaged file is missing or damaged.
    """
    return read_items("natural-prompts", NaturalPrompt)


def parallel_prompts() -> list[NaturalPrompt]:
    """The packaged openings whose next words are open: six categories, twelve prompts each, in file order.

    Raises:
        PromptFileError: the packaged file is missing or damaged.
    """
    return read_items("parallel-prompts", NaturalPrompt)
