"""``manifest.json``: what a run is, how far it has come, and how it ended.

1. :class:`Manifest` is the file's content, checked on reading; a file of another schema is refused.
2. :func:`plain` brings what a caller passes (config, provenance) to what JSON holds, or refuses it by its place.
3. :func:`differences` says what keeps a run from being resumed; :func:`list_runs` reads the manifests of a folder of runs.
"""

from __future__ import annotations

import datetime
import importlib.metadata
import math
import numbers
import os
import platform
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path, PurePath
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from symbolic_residue.errors import ConfigError, RunDamagedError, StoreError
from symbolic_residue.store._schema import SCHEMA_VERSION

__all__ = [
    "Manifest",
    "RunInfo",
    "Status",
    "TableInfo",
    "differences",
    "list_runs",
    "machine",
    "now",
    "plain",
    "read_manifest",
    "versions",
]

_PACKAGES = ("symbolic-residue", "torch", "transformers", "numpy", "scipy", "polars", "safetensors")

Status = Literal["running", "complete", "interrupted", "failed"]


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid")


class ItemCounts(_Strict):
    """How far a run has come."""

    planned: int | None = None
    """Items that the run was started for, where that was known."""
    done: int = 0
    """Items measured."""
    failed: int = 0
    """Items kept with an error instead of a measurement."""


class TableInfo(_Strict):
    """Size of one table over all finished items."""

    rows: int
    columns: list[str]


class Manifest(_Strict):
    """What ``manifest.json`` says of a run."""

    schema_version: int = SCHEMA_VERSION
    kind: str
    """What was run: ``diagnose``, ``shell``, ``read`` …"""
    command: str
    """The command line, or the call, that started it."""
    created: str
    """UTC time in ISO 8601."""
    finished: str | None = None
    """UTC time in ISO 8601; None while running, and for ever after a kill."""
    status: Status = "running"
    items: ItemCounts = Field(default_factory=ItemCounts)
    provenance: dict[str, Any]
    """What was measured: model, weights' hash, template, device, seed …"""
    config: dict[str, Any]
    """How it was measured: every option with the value used."""
    versions: dict[str, str] = Field(default_factory=dict)
    machine: dict[str, Any] = Field(default_factory=dict)
    tables: dict[str, TableInfo] = Field(default_factory=dict)
    note: str = ""
    """Why the run did not complete, or what the user should know."""


def plain(value: Any, where: str) -> Any:
    """``value`` as JSON holds it: text keys, lists, finite numbers; paths as text; what is no Unicode written out as escapes.

    Raises:
        ConfigError: something that JSON cannot hold, named by its place.
    """
    if value is None or isinstance(value, bool):
        return value
    if isinstance(value, numbers.Integral):
        return int(value)
    if isinstance(value, numbers.Real):
        if math.isfinite(value):
            return float(value)
        raise ConfigError(f"{where} is {value}.", why="A manifest holds finite numbers only.", todo="Use None for 'not given'.")
    if isinstance(value, str | PurePath):
        return str(value).encode("utf-8", "backslashreplace").decode("utf-8")
    if isinstance(value, Mapping):
        return {plain(str(key), where): plain(entry, f"{where}.{key}") for key, entry in value.items()}
    if isinstance(value, list | tuple | set | frozenset):
        entries = [plain(entry, f"{where}[{i}]") for i, entry in enumerate(value)]
        return sorted(entries, key=repr) if isinstance(value, set | frozenset) else entries
    raise ConfigError(
        f"{where} is a {type(value).__name__}.", why="It cannot be kept in JSON.", todo="Give text, numbers, lists or dicts."
    )


@dataclass(frozen=True, slots=True)
class RunInfo:
    """One line about a run: what the manifest says, or why it cannot be read (``status`` is then "damaged")."""

    path: Path
    kind: str
    status: str
    created: str
    finished: str | None
    command: str
    planned: int | None
    done: int
    failed: int
    problem: str = ""


def list_runs(folder: str | os.PathLike[str]) -> list[RunInfo]:
    """The runs that lie directly in ``folder``, newest first; folders without a manifest are passed over.

    Raises:
        StoreError: there is no such folder, or it cannot be read.
    """
    folder = Path(folder)
    try:
        manifests = [entry / "manifest.json" for entry in folder.iterdir() if entry.is_dir()]
    except OSError as error:
        raise StoreError(f"{folder} is no folder that can be read.", why=f"{error.strerror}.") from error
    runs = []
    for path in manifests:
        if not path.exists():
            continue
        try:
            m = read_manifest(path.parent)
        except RunDamagedError as error:
            runs.append(RunInfo(path.parent, "", "damaged", "", None, "", None, 0, 0, problem=str(error)))
            continue
        counts = m.items
        runs.append(
            RunInfo(path.parent, m.kind, m.status, m.created, m.finished, m.command, counts.planned, counts.done, counts.failed)
        )
    return sorted(runs, key=lambda run: (run.created, str(run.path)), reverse=True)


def read_manifest(path: Path) -> Manifest:
    """The manifest of the run folder ``path``.

    Raises:
        StoreError: there is no such folder.
        RunDamagedError: there is no manifest, or it cannot be read, or its schema is another.
    """
    if not path.is_dir():
        raise StoreError(f"There is no run folder {path}.", todo="List the runs with: residue runs list")
    file = path / "manifest.json"
    try:
        data = file.read_bytes()
    except OSError as error:
        raise RunDamagedError(f"{path} has no manifest.json that can be read.", why=f"{error.strerror}.") from error
    try:
        manifest = Manifest.model_validate_json(data)
    except ValidationError as error:
        version = _version_of(data)
        if version is not None and version != SCHEMA_VERSION:
            raise _other_schema(path, version) from error
        first = error.errors()[0]
        place = ".".join(map(str, first["loc"])) or "the file"
        raise RunDamagedError(f"{file} is no manifest.", why=f"{place}: {first['msg']}.") from error
    if manifest.schema_version != SCHEMA_VERSION:
        raise _other_schema(path, manifest.schema_version)
    return manifest


def _version_of(data: bytes) -> int | None:
    """The schema version in a manifest that is otherwise unreadable."""

    class Version(BaseModel):
        schema_version: int

    with suppress(ValidationError):
        return Version.model_validate_json(data).schema_version
    return None


def _other_schema(path: Path, version: int) -> RunDamagedError:
    return RunDamagedError(
        f"{path} is of schema {version}.",
        why=f"This version of symbolic_residue reads schema {SCHEMA_VERSION}.",
        todo="Read it with the version named in its manifest.json.",
    )


def differences(old: Any, new: Any, where: str) -> list[str]:
    """What differs between two JSON values, by place."""
    if isinstance(old, dict) and isinstance(new, dict):
        keys = list(dict.fromkeys([*old, *new]))
        return [d for key in keys for d in differences(old.get(key), new.get(key), f"{where}.{key}")]
    return [] if old == new else [f"{where} is {new!r} now and was {old!r}"]


def now() -> str:
    return datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")


def versions() -> dict[str, str]:
    found = {"python": platform.python_version()}
    for package in _PACKAGES:
        with suppress(importlib.metadata.PackageNotFoundError):
            found[package] = importlib.metadata.version(package)
    return found


def machine() -> dict[str, Any]:
    return {"system": platform.platform(), "processor": platform.machine(), "cpus": os.cpu_count()}
