"""Counterfactual pairs: two prompts of equal length that differ in a few tokens and in the answer that they ask for.

``clean`` asks for ``answer``, ``corrupted`` for ``wrong``. What differs between two runs of a model is then what makes the answer: activations of the corrupted
run, put into the clean one, take away just that, and nothing that both prompts share. Whether a model knows the answers is a question of the model
(``graph.validate_pairs``); the packaged pairs were chosen so that the demo model does.
"""

from __future__ import annotations

from typing import get_args, Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator

from symbolic_residue.prompts._benchmark import read_items

__all__ = ["PAIR_CATEGORIES", "CounterfactualPair", "PairCategory", "counterfactual_pairs"]

PairCategory = Literal["facts", "agreement", "indirect object", "induction", "arithmetic", "instruction"]
PAIR_CATEGORIES: tuple[PairCategory, ...] = get_args(PairCategory)


class CounterfactualPair(BaseModel):
    """One pair."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    id: str = Field(min_length=1)
    """The category and a number."""
    category: str = Field(min_length=1)
    """One of ``PAIR_CATEGORIES`` in the packaged set; any name in yours."""
    frame: str = ""
    """The sentence pattern, shared by pairs of a category that differ in their words."""
    clean: str = Field(pattern=r"\S")
    """The prompt whose next token is ``answer``."""
    corrupted: str = Field(pattern=r"\S")
    """The same with a few tokens exchanged; its next token is ``wrong``."""
    answer: str = Field(min_length=1)
    """With its leading space, where it has one."""
    wrong: str = Field(min_length=1)

    @model_validator(mode="after")
    def _two_of_each(self) -> CounterfactualPair:
        if self.clean == self.corrupted:
            raise ValueError("both prompts are the same")
        if self.answer == self.wrong:
            raise ValueError("both answers are the same")
        return self


def counterfactual_pairs(category: PairCategory | None = None) -> list[CounterfactualPair]:
    """The packaged pairs, in file order; those of one category where it is named.

    Raises:
        PromptFileError: the packaged file is missing or damaged.
    """
    return [pair for pair in read_items("counterfactual-pairs", CounterfactualPair) if category in (None, pair.category)]
