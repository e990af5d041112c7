"""From intervals to "supported", "contradicted" or "undecided": pure functions of a rule and of numbers.

1. A *bound* is met by a number whose whole interval lies strictly beyond its limit, on its side.
2. A claim is *supported* where all bounds of that side are met, else *contradicted* where one bound of the other side is, else *undecided*. A number that is
   missing, without an interval, or over fewer units than ``least`` decides nothing.
3. :func:`reach` tells what an undecided claim's data could have seen: the value beyond which, with the interval found here, each side would have been decided. For
   a plain proportion (Wilson) the count is searched, since its interval's width depends on it.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

from symbolic_residue.stats import Estimate, wilson

__all__ = ["Bound", "Outcome", "Rule", "beyond", "decide", "reach", "short_of", "within"]

Outcome = Literal["supported", "contradicted", "undecided"]
Side = Literal["above", "below"]


@dataclass(frozen=True)
class Bound:
    """One number's limit.

    Attributes:
        number: its name.
        side: where the whole interval must lie.
        limit: of what.
    """

    number: str
    side: Side
    limit: float

    def met(self, numbers: Mapping[str, Estimate]) -> bool:
        """Whether the number's whole interval is on that side; False where it is missing or has none."""
        found = numbers.get(self.number)
        return found is not None and (found.above(self.limit) if self.side == "above" else found.below(self.limit))

    def __str__(self) -> str:
        return f"{self.number} {self.side} {self.limit:g}"


@dataclass(frozen=True)
class Rule:
    """When a claim is supported and when contradicted.

    Attributes:
        supported: all must be met.
        contradicted: one is enough.
        least: number → the fewest units that decide anything.
    """

    supported: tuple[Bound, ...]
    contradicted: tuple[Bound, ...]
    least: Mapping[str, int] = field(default_factory=dict)

    def __str__(self) -> str:
        few = "".join(f"; undecided with fewer than {n} units of {name}" for name, n in self.least.items())
        return f"supported: {' and '.join(map(str, self.supported))}; contradicted: {' or '.join(map(str, self.contradicted))}{few}"


def beyond(number: str, limit: float, *, otherwise: float | None = None, least: int = 0) -> Rule:
    """Supported above ``limit``, contradicted below ``otherwise`` (the same limit when left out)."""
    other = limit if otherwise is None else otherwise
    return Rule((Bound(number, "above", limit),), (Bound(number, "below", other),), {number: least} if least else {})


def short_of(number: str, limit: float, *, otherwise: float | None = None, least: int = 0) -> Rule:
    """Supported below ``limit``, contradicted above ``otherwise``."""
    other = limit if otherwise is None else otherwise
    return Rule((Bound(number, "below", limit),), (Bound(number, "above", other),), {number: least} if least else {})


def within(number: str, low: float, high: float) -> Rule:
    """Supported between the two, contradicted outside."""
    return Rule(
        (Bound(number, "above", low), Bound(number, "below", high)), (Bound(number, "below", low), Bound(number, "above", high))
    )


def decide(rule: Rule, numbers: Mapping[str, Estimate]) -> Outcome:
    """The outcome; see the module."""
    for name, least in rule.least.items():
        if name not in numbers or numbers[name].n < least:
            return "undecided"
    if all(bound.met(numbers) for bound in rule.supported):
        return "supported"
    return "contradicted" if any(bound.met(numbers) for bound in rule.contradicted) else "undecided"


def reach(rule: Rule, numbers: Mapping[str, Estimate]) -> str:
    """The smallest effect that these data could have decided, in words."""
    needed = {bound.number for bound in (*rule.supported, *rule.contradicted)}
    if any(name not in numbers or not numbers[name].has_interval for name in needed):
        return "No interval, so nothing could be seen."
    few = [
        f"{name} over {numbers[name].n} units, {least} are needed" for name, least in rule.least.items() if numbers[name].n < least
    ]
    if few:
        return "; ".join(few) + "."
    said = (
        f"With intervals as wide as these, {' and '.join(_needs(b, numbers) for b in rule.supported)} would have supported it, "
        f"{' or '.join(_needs(b, numbers) for b in rule.contradicted)} contradicted it."
    )
    between = [b for b in rule.supported for c in rule.contradicted if _excluded(b, c, numbers)]
    if between:
        names = " and ".join(dict.fromkeys(b.number for b in between))
        said += f" The whole interval of {names} lies between the two limits: an effect as large as stated is excluded, and so is its opposite."
    return said


def _excluded(one: Bound, other: Bound, numbers: Mapping[str, Estimate]) -> bool:
    """Whether the interval lies wholly between the limits of two bounds of one number on opposite sides."""
    found = numbers[one.number]
    if one.number != other.number or one.side == other.side or one.limit == other.limit:
        return False
    low, high = sorted((one.limit, other.limit))
    return low <= found.low and found.high <= high


def _needs(bound: Bound, numbers: Mapping[str, Estimate]) -> str:
    found = numbers[bound.number]
    if found.method == "Wilson":
        counts = range(found.n + 1) if bound.side == "above" else range(found.n, -1, -1)
        met = [k for k in counts if Bound("p", bound.side, bound.limit).met({"p": wilson(k, found.n, found.level)})]
        sign = "at least" if bound.side == "above" else "at most"
        return f"{bound.number} {sign} {met[0]}/{found.n}" if met else f"{bound.number} (no count of {found.n})"
    if bound.side == "above":
        return f"{bound.number} above {bound.limit + (found.value - found.low):.3g}"
    return f"{bound.number} below {bound.limit - (found.high - found.value):.3g}"
