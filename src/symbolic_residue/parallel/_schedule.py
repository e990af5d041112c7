"""Thresholds that change from step to step.

1. A constant: ``0.1``. 2. A line from one value to another over the whole run: ``linear:0.3,0.05``. 3. A Bézier curve whose control values are given (two
   or more; the
first and last are reached): ``bezier:0.3,0.1,0.05``. 4. Steps: ``step:0.3,10=0.1,20=0.05`` (0.3, from step 10 on 0.1, …).

The curve's parameter is the step over the last step, so a line is a Bézier curve of two values. Bernstein form of Bézier curves: B(u) = Σ C(n, i) uⁱ (1 −
u)ⁿ⁻ⁱ vᵢ.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import comb
from typing import get_args, Literal

from symbolic_residue.errors import ConfigError

__all__ = ["Schedule"]

Kind = Literal["constant", "linear", "bezier", "step"]
_TODO = "Write 0.1, linear:0.3,0.05, bezier:0.3,0.1,0.05, or step:0.3,10=0.1."


@dataclass(frozen=True)
class Schedule:
    """Thresholds by step.

    Attributes:
        kind: constant, linear, bezier or step.
        values: the thresholds, each above 0 and at most 1.
        starts: for ``step``, where each value begins (the first at 0); else empty.

    Raises:
        ConfigError: a threshold out of range, or values that do not make the kind.
    """

    kind: Kind
    values: tuple[float, ...]
    starts: tuple[int, ...] = ()

    def __post_init__(self) -> None:
        for value in self.values:
            if not 0 < value <= 1:
                raise ConfigError(
                    f"A threshold of {value:g} is not above 0 and at most 1.",
                    why="It is a probability: at 0 the whole vocabulary would enter the sequence.",
                    todo="Use 1 for ordinary greedy decoding, 0.05 to 0.3 for several tokens at once.",
                )
        least = {"constant": 1, "linear": 2, "bezier": 2, "step": 1}.get(self.kind)
        if least is None:
            raise ConfigError(f"A schedule of kind {self.kind!r} is unknown.", todo=_TODO)
        if len(self.values) < least or (self.kind in ("constant", "linear") and len(self.values) > least):
            raise ConfigError(f"A {self.kind} schedule of {len(self.values)} values makes no sense.", todo=_TODO)
        if self.kind == "step" and (
            len(self.starts) != len(self.values) or self.starts[0] != 0 or list(self.starts) != sorted(set(self.starts))
        ):
            raise ConfigError("The steps of a schedule begin at 0 and rise.", todo=_TODO)

    @classmethod
    def parse(cls, given: float | str | Schedule) -> Schedule:
        """A schedule from a number or its text.

        Raises:
            ConfigError: it cannot be read.
        """
        if isinstance(given, Schedule):
            return given
        if isinstance(given, int | float) and not isinstance(given, bool):
            return cls("constant", (float(given),))
        kind, _, rest = str(given).rpartition(":")
        kind = kind.strip() or "constant"
        if kind not in get_args(Kind):
            raise ConfigError(f"The schedule {given!r} cannot be read.", todo=_TODO)
        starts, values = [], []
        try:
            for i, part in enumerate(rest.split(",")):
                at, _, value = part.rpartition("=")
                if at and (kind != "step" or not i):
                    raise ValueError
                starts.append(int(at) if at else 0)
                values.append(float(value))
        except ValueError:
            raise ConfigError(f"The schedule {given!r} cannot be read.", todo=_TODO) from None
        return cls(kind, tuple(values), tuple(starts) if kind == "step" else ())  # type: ignore[arg-type]

    def __str__(self) -> str:
        if self.kind == "constant":
            return f"{self.values[0]:g}"
        parts = [
            f"{v:g}" if not s else f"{s}={v:g}" for v, s in zip(self.values, self.starts or (0,) * len(self.values), strict=True)
        ]
        return f"{self.kind}:{','.join(parts)}"

    def at(self, step: int, steps: int) -> float:
        """The threshold of step ``step`` of ``steps`` at most."""
        if self.kind == "step":
            return next(v for s, v in zip(reversed(self.starts), reversed(self.values), strict=True) if s <= step)
        u, n = (step / (steps - 1) if steps > 1 else 0.0), len(self.values) - 1
        value = sum(comb(n, i) * u**i * (1 - u) ** (n - i) * v for i, v in enumerate(self.values))
        return min(max(value, min(self.values)), max(self.values))  # rounding must not leave the values' range
