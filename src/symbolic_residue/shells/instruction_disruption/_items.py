"""The benchmark ``instruction-conflict``, and whether geometric conflict predicts behavioural failure on it."""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Literal

import numpy as np
from pydantic import model_validator

from symbolic_residue.errors import ConfigError
from symbolic_residue.prompts import read_items, ShellItem
from symbolic_residue.prompts._instructions import Instruction, relation
from symbolic_residue.stats import auc, Estimate

__all__ = ["BENCHMARK", "InstructionItem", "conflict_predicts_failure", "instruction_items"]

BENCHMARK = "instruction-conflict"


class InstructionItem(ShellItem):
    """Two instructions. ``kind`` is ``contradictory``, ``tension`` (compatible, but each shown with examples that ignore the other), ``null-compatible`` or
    ``null-same`` (one instruction in two wordings); ``frame`` names the two kinds of instruction."""

    a: Instruction
    b: Instruction
    control: Instruction
    """Compatible with ``a``."""
    level: Literal[0, 1, 2]
    """Grade of the conflict: 0 none, 1 tension, 2 contradiction."""

    @property
    def modes(self) -> tuple[str, ...]:
        """Partial execution, where the two contradict each other: no answer can follow both."""
        return ("partial execution",) if self.level == 2 else ()

    @property
    def shown(self) -> str:
        """Both instructions, a line each."""
        return f"{self.a.text}\n{self.b.text}"

    @property
    def joint(self) -> bool:
        """Whether the examples of both follow both."""
        return self.level == 0

    @model_validator(mode="after")
    def _check(self) -> InstructionItem:
        found, wanted = relation(self.a, self.b), "contradictory" if self.level == 2 else "compatible"
        if found != wanted:
            raise ValueError(f"a and b are {found}, where the level says {wanted}")
        if self.null != (self.level == 0):
            raise ValueError("exactly the items of level 0 are null")
        if relation(self.a, self.control) != "compatible":
            raise ValueError("the control must be compatible with a")
        if len({self.a.text, self.b.text, self.control.text}) != 3:
            raise ValueError("the three instructions must be worded differently")
        return self


def instruction_items() -> list[InstructionItem]:
    """The items of ``instruction-conflict``, in file order."""
    return read_items(BENCHMARK, InstructionItem)


def conflict_predicts_failure(conflict: Iterable[float], failed: Iterable[bool | None]) -> Estimate:
    """AUC of geometric conflict for behavioural failure over items, with DeLong's interval; ``n`` counts the items judged.

    Args:
        conflict: geometric conflict of each item.
        failed: whether most of its answers did not follow both; None (not judged) leaves the item out.

    Raises:
        ConfigError: numbers of items that differ, or conflicts that are not finite.
    """
    scores, known = list(conflict), list(failed)
    if len(scores) != len(known):
        raise ConfigError(f"There are {len(scores)} conflicts for {len(known)} outcomes.")
    x = np.array([s for s, f in zip(scores, known, strict=True) if f is not None])
    y = np.array([bool(f) for f in known if f is not None])
    if not y.any() or y.all():
        return Estimate(math.nan, math.nan, math.nan, len(y), method="none: every judged item failed, or none did")
    found = auc(x[y], x[~y])
    return Estimate(found.value, found.low, found.high, len(y), found.level, found.method)
