"""Cases with a known truth.

A case is a function that runs a whole shell (``run``, then ``analyze_residue``) on something planted and returns the findings. ``@plants(shell, mode, truth)`` says what
the verdict on that mode must be: *present* (it fires) or *absent* (it is said not to be there; undecided will not do). The function may assert more.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Literal, NamedTuple

Truth = Literal["present", "absent"]
OUTCOME: dict[Truth, str] = {"present": "fires", "absent": "absent"}


class Case(NamedTuple):
    shell: str
    mode: str
    truth: Truth
    make: Callable[[], Any]

    @property
    def id(self) -> str:
        return f"{self.shell}: {self.mode}: {self.truth}: {self.make.__name__}"


CASES: list[Case] = []


def plants(shell: str, truth: Truth, *modes: str) -> Callable[[Callable[[], Any]], Callable[[], Any]]:
    """Register a function as a case for each of the modes."""

    def register(make: Callable[[], Any]) -> Callable[[], Any]:
        CASES.extend(Case(shell, mode, truth, make) for mode in modes)
        return make

    return register
