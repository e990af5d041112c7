"""The residue of a shell: what was asked, under which options, of which model, and every table observed; typed, saved, reloadable.

1. A shell's residue subclasses :class:`ShellResidue` and names its shell, the model of what was asked, and that of its configuration.
2. ``save`` writes one Parquet file a table and, last, ``residue.json``: a folder with that file is complete.
3. ``load`` checks everything by those models; what does not fit is refused as damaged.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar, Generic, Self, TypeVar

import polars as pl
from pydantic import BaseModel

from symbolic_residue.errors import ConfigError, RunDamagedError, RunExistsError, WriteError
from symbolic_residue.shells._config import ShellConfig

__all__ = ["ShellResidue"]

AskedT = TypeVar("AskedT", bound=BaseModel)
ConfigT = TypeVar("ConfigT", bound=ShellConfig)

_META = "residue.json"


@dataclass(frozen=True)
class ShellResidue(Generic[AskedT, ConfigT]):
    """Everything observed in one run of a shell, control included.

    Attributes:
        asked: the inputs.
        config: the configuration.
        provenance: of the model, as a plain dictionary.
        frames: tables by name: those of the report, and the shell's own.
    """

    shell: ClassVar[str]
    """The shell's name."""
    asked_type: ClassVar[type[BaseModel]]
    config_type: ClassVar[type[ShellConfig]]
    own: ClassVar[frozenset[str]] = frozenset()
    """Tables that the shell keeps for itself; a run folder gets the others."""

    asked: AskedT
    config: ConfigT
    provenance: dict[str, Any]
    frames: dict[str, pl.DataFrame] = field(repr=False)

    def shown(self) -> dict[str, pl.DataFrame]:
        """The tables for a run folder."""
        return {name: frame for name, frame in self.frames.items() if name not in self.own}

    def must_be_of(self, weights_sha256: str) -> None:
        """Refuse to be analysed on another model.

        Raises:
            ConfigError: the weights' hash differs.
        """
        mine = str(self.provenance.get("weights_sha256"))
        if mine != weights_sha256:
            raise ConfigError(
                "The residue was collected on another model.",
                why=f"Its weights hash to {mine[:12]}…, this model's to {weights_sha256[:12]}….",
                todo="Analyse it with a shell on the model that it came from.",
            )

    def save(self, folder: str | Path) -> Path:
        """Write the residue into a new folder: JSON and Parquet.

        Raises:
            RunExistsError: the folder exists and is not empty.
            WriteError: it cannot be written.
        """
        folder = Path(folder)
        if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
            raise RunExistsError(f"{folder} is already there.", todo="Name another folder.")
        try:
            folder.mkdir(parents=True, exist_ok=True)
            for name, frame in self.frames.items():
                frame.write_parquet(folder / f"{name}.parquet")
            meta = {
                "shell": self.shell,
                "asked": self.asked.model_dump(mode="json"),
                "config": self.config.model_dump(mode="json"),
                "provenance": self.provenance,
                "frames": sorted(self.frames),
            }
            # Last, so that a folder with this file is complete.
            (folder / _META).write_text(json.dumps(meta, ensure_ascii=False, indent=1), "utf-8")
        except OSError as error:
            raise WriteError(f"The residue cannot be written to {folder}: {error.strerror or error}.") from error
        return folder

    @classmethod
    def load(cls, folder: str | Path) -> Self:
        """Read what :meth:`save` wrote.

        Raises:
            RunDamagedError: no residue of this shell is there, or a part of it is missing or unreadable.
        """
        folder = Path(folder)
        try:
            meta = json.loads((folder / _META).read_text("utf-8"))
            if meta["shell"] != cls.shell:
                raise ValueError(f"it is a residue of {meta['shell']!r}")
            frames = {name: pl.read_parquet(folder / f"{name}.parquet") for name in meta["frames"]}
            asked: Any = cls.asked_type.model_validate(meta["asked"])
            config: Any = cls.config_type.model_validate(meta["config"])
            return cls(asked, config, meta["provenance"], frames)
        except (OSError, ValueError, KeyError, TypeError, pl.exceptions.PolarsError) as error:
            raise RunDamagedError(
                f"{folder} holds no readable {cls.shell.upper()} residue.", why=f"{type(error).__name__}: {error}."
            ) from error
