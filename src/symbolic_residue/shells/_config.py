"""What the configurations of all shells share: checked options, and criteria that carry their source.

1. Options are pydantic fields with a docstring each; unknown names and values out of range are refused by name.
2. Criteria (thresholds of verdicts) default to the packaged calibration: ``calibration.json`` beside the shell, written by ``benchmarks/calibration.py``.
   ``source`` says
   where they come from, and stands beside every verdict.
"""

from __future__ import annotations

import json
from functools import cache
from importlib.resources import files
from typing import Any, ClassVar, Self

from pydantic import BaseModel, ConfigDict, ValidationError

from symbolic_residue.errors import ConfigError

__all__ = ["ShellConfig", "ShellCriteria"]


class ShellCriteria(BaseModel):
    """Base of the thresholds of one shell's verdicts."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    thresholds: ClassVar[dict[str, str]] = {}
    """Failure mode → the field that holds its threshold."""

    source: str = "given"
    """Where the thresholds come from; stands beside every verdict."""

    @classmethod
    def calibrated(cls) -> Self:
        """The packaged thresholds: ``calibration.json`` in the package that defines the class."""
        return cls(**_calibration(cls.__module__.rpartition(".")[0]))


@cache
def _calibration(package: str) -> dict[str, Any]:
    text = files(package).joinpath("calibration.json").read_text("utf-8")
    return json.loads(text)["criteria"]


class ShellConfig(BaseModel):
    """Base of one shell's options. All are checked; unknown names are refused."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    @classmethod
    def quick(cls, **options: Any) -> Self:
        """The options with which a suite of shells runs: the same verdicts from fewer runs. ``options`` stand before them.

        Raises:
            ConfigError: as :meth:`make` does.
        """
        return cls.make(**options)

    @classmethod
    def make(cls, **options: Any) -> Self:
        """The configuration from keyword options.

        Raises:
            ConfigError: an unknown option or a value out of range, named.
        """
        try:
            return cls(**options)
        except ValidationError as error:
            first = error.errors()[0]
            where = ".".join(map(str, first["loc"]))
            raise ConfigError(f"Option {where!r}: {first['msg']}.", todo=f"Options: {', '.join(cls.model_fields)}.") from None
