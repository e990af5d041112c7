"""A signature: the vector of one run or one prompt, with its names."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal

import numpy as np
import polars as pl
from numpy.typing import NDArray

from symbolic_residue.errors import ConfigError
from symbolic_residue.shells.signatures._components import COMPONENTS

__all__ = ["Signature", "Source", "signature_matrix"]

Source = Literal["tables", "reading"]
_INDEX = {c.name: i for i, c in enumerate(COMPONENTS)}
_ROUNDING = 1e-9


@dataclass(frozen=True, eq=False)
class Signature:
    """The components of one run or one prompt.

    Attributes:
        name: of the item or prompt.
        values: ``[component]`` in the order of ``COMPONENTS``; NaN = not measured. Read-only.
        source: ``tables`` of a run, or a plain ``reading`` of one prompt.
    """

    name: str
    values: NDArray[np.float64] = field(repr=False)
    source: Source = "tables"

    def __post_init__(self) -> None:
        values = np.array(self.values, dtype=np.float64)
        if values.shape != (len(COMPONENTS),):
            raise ConfigError(f"A signature has {len(COMPONENTS)} components, not {list(values.shape)}.")
        for component, value in zip(COMPONENTS, values, strict=True):
            if not math.isnan(value) and not component.low - _ROUNDING <= value <= component.high + _ROUNDING:
                raise ConfigError(
                    f"Component {component.name!r} of {self.name!r} is {value:g}.",
                    why=f"It lies between {component.low:g} and {component.high:g}.",
                )
        values.setflags(write=False)
        object.__setattr__(self, "values", values)

    @classmethod
    def of(cls, name: str, found: Mapping[str, float], source: Source = "tables") -> Signature:
        """From components by name; those left out are not measured.

        Raises:
            ConfigError: an unknown name, or a value outside its range.
        """
        values = np.full(len(COMPONENTS), math.nan)
        for component, value in found.items():
            values[_place(component)] = value
        return cls(name, values, source)

    @classmethod
    def from_frame(cls, frame: pl.DataFrame, name: str = "") -> Signature:
        """From the table ``signatures`` of one item.

        Raises:
            ConfigError: several items, an unknown component, or one named twice.
        """
        if "item" in frame.columns:
            if frame["item"].n_unique() > 1:
                raise ConfigError("The table 'signatures' holds several items.", todo="Filter to one.")
            name = name or (frame["item"][0] if len(frame) else "")
        if frame["component"].n_unique() != len(frame):
            raise ConfigError(f"The signature of {name!r} names a component twice.")
        values = {c: math.nan if v is None else v for c, v in frame.select("component", "value").iter_rows()}
        source: Source = "reading" if len(frame) and frame["source"][0] == "reading" else "tables"
        return cls.of(name, values, source)

    def __getitem__(self, component: str) -> float:
        return float(self.values[_place(component)])

    @property
    def measured(self) -> list[str]:
        """Names of the components that were measured."""
        return [c.name for c, known in zip(COMPONENTS, ~np.isnan(self.values), strict=True) if known]

    def frame(self) -> pl.DataFrame:
        """The table ``signatures``: ``component, group, value, unit, source``; null = not measured."""
        return pl.DataFrame(
            {
                "component": [c.name for c in COMPONENTS],
                "group": [c.group for c in COMPONENTS],
                "value": [None if math.isnan(v) else v for v in self.values.tolist()],
                "unit": [c.unit for c in COMPONENTS],
                "source": [self.source] * len(COMPONENTS),
            },
            schema_overrides={"value": pl.Float64},
        )

    def tables(self) -> dict[str, pl.DataFrame]:
        """For a run folder, without the ``item`` column."""
        return {"signatures": self.frame()}


def _place(component: str) -> int:
    if component not in _INDEX:
        raise ConfigError(f"There is no component {component!r}.", todo="COMPONENTS lists them.")
    return _INDEX[component]


def signature_matrix(signatures: Sequence[Signature]) -> NDArray[np.float64]:
    """``[signature, component]``, NaN = not measured."""
    if not signatures:
        return np.empty((0, len(COMPONENTS)))
    return np.stack([s.values for s in signatures])
