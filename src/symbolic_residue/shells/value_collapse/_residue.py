"""The residue of VALUE-COLLAPSE: what was asked, and every table observed; typed, saved, reloadable."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, field
from pathlib import Path

import polars as pl

from symbolic_residue.errors import RunDamagedError, RunExistsError, WriteError
from symbolic_residue.shells.value_collapse._config import ValueCollapseConfig

__all__ = ["Asked", "ValueCollapseResidue"]

_META = "residue.json"


@dataclass(frozen=True)
class Asked:
    """What one run was asked.

    Attributes:
        input_text: the prompt's text (the last user turn's, for messages).
        messages: the conversation, when one was given.
        chat: whether the chat template is used.
        control_text: the control prompt, in the same frame.
        control_kind: ``given``, or ``hint`` for the control that this shell words itself.
        candidates: token ids, best first; ``candidate_source`` is ``given`` or ``mass``.
        variants: (kind, text) of the small edits, without the prompt itself.
        control_variants: the same for the control.
        seed: of the variants, the random heads and all resampling.
    """

    input_text: str
    messages: list[dict[str, str]] | None
    chat: bool
    control_text: str
    control_kind: str
    candidates: list[int]
    candidate_source: str
    variants: list[tuple[str, str]]
    control_variants: list[tuple[str, str]]
    seed: int


@dataclass(frozen=True)
class ValueCollapseResidue:
    """Everything observed on one prompt and its control.

    Attributes:
        asked: the inputs.
        config: the configuration.
        provenance: of the model, as a plain dictionary.
        frames: tables: ``measures`` (side, variant, quantity, value) and those of the report.
    """

    asked: Asked
    config: ValueCollapseConfig
    provenance: dict
    frames: dict[str, pl.DataFrame] = field(repr=False)

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
                "shell": "value-collapse",
                "asked": asdict(self.asked),
                "config": self.config.model_dump(),
                "provenance": self.provenance,
                "frames": sorted(self.frames),
            }
            # Last, so that a folder with this file is complete.
            (folder / _META).write_text(json.dumps(meta, ensure_ascii=False, indent=1), "utf-8")
        except OSError as error:
            raise WriteError(f"The residue cannot be written to {folder}: {error.strerror or error}.") from error
        return folder

    @classmethod
    def load(cls, folder: str | Path) -> ValueCollapseResidue:
        """Read what :meth:`save` wrote.

        Raises:
            RunDamagedError: no residue is there, or a part of it is missing or unreadable.
        """
        folder = Path(folder)
        try:
            meta = json.loads((folder / _META).read_text("utf-8"))
            if meta["shell"] != "value-collapse":
                raise ValueError(f"it is a residue of {meta['shell']!r}")
            asked = dict(meta["asked"])
            for key in ("variants", "control_variants"):
                asked[key] = [(kind, text) for kind, text in asked[key]]
            frames = {name: pl.read_parquet(folder / f"{name}.parquet") for name in meta["frames"]}
            return cls(Asked(**asked), ValueCollapseConfig.model_validate(meta["config"]), meta["provenance"], frames)
        except (OSError, ValueError, KeyError, TypeError, pl.exceptions.PolarsError) as error:
            raise RunDamagedError(
                f"{folder} holds no readable VALUE-COLLAPSE residue.", why=f"{type(error).__name__}: {error}."
            ) from error
