"""A corpus of signatures: one folder to which runs are added and in which failures are searched by signature.

Layout::

    corpus/corpus.json                   one entry an item: file's hash, run, model, summary
    corpus/signatures/0123abcd….parquet  the signature of one item: component, group, value, unit, source

1. ``add`` writes each signature under a name of its own (a hash of run and item), and then the manifest, in one step: an item is in the corpus from the moment
   the manifest names it. A killed write leaves at most files that no manifest names; they are removed by the next ``add``.
2. An item already there (same model, item, text and run's time) is refused, unless replacing is asked for.
3. Reading checks every file against its hash, and a file that does not fit is refused by its name.
4. ``search``: distance = root mean square over the components that both have, each divided by its standard deviation over the corpus (at least 0.02 of its
   range); beside it stands what two entries are apart (``typical``, the median). Fewer than three shared components are no match. Signatures made in another
   way (readings, other shells) share fewer components; ``shared`` says how many.
"""

from __future__ import annotations

import hashlib
import io
import json
import math
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Self

import numpy as np
import polars as pl
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, ValidationError

from symbolic_residue.errors import ConfigError, RunDamagedError, RunExistsError, StoreError
from symbolic_residue.store._manifest import now
from symbolic_residue.store._schema import conform, TABLES
from symbolic_residue.store._write import make_folder, parquet_bytes, remove, take_lock, write_bytes

__all__ = ["CORPUS_VERSION", "Corpus", "CorpusEntry", "corpus_key"]

CORPUS_VERSION = 1
_MANIFEST = "corpus.json"
_FEWEST_SHARED = 3
_LEAST_SCALE = 0.02


class CorpusEntry(BaseModel):
    """One signature's entry in the manifest."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    key: str
    """Hash of model, run's time, item and text; the file's name."""
    run: str
    """The run folder's name."""
    item: str
    """The item's id in the run."""
    created: str
    """When the run was made; UTC, ISO 8601."""
    model: str
    """What was measured."""
    weights_sha256: str
    """Of the model: signatures of other models are another matter."""
    kind: str
    """What was run."""
    text: str
    """The prompt."""
    summary: str
    """The run's verdict in one sentence."""
    sha256: str
    """Of the file."""
    added: str
    """When it was added; UTC, ISO 8601."""


class _Manifest(BaseModel):
    model_config = ConfigDict(extra="forbid")

    corpus_version: int = CORPUS_VERSION
    entries: list[CorpusEntry] = []


class Corpus:
    """A corpus of signatures, opened for reading and adding.

    Attributes:
        path: its folder.
        entries: in the order of adding.
    """

    def __init__(self, path: Path, entries: list[CorpusEntry]) -> None:
        self.path, self.entries = path, entries

    @classmethod
    def open(cls, path: str | os.PathLike[str], *, create: bool = False) -> Self:
        """Open a corpus.

        Args:
            path: its folder.
            create: make an empty one where there is none.

        Raises:
            StoreError: there is none.
            RunDamagedError: its manifest cannot be read, or is of another version.
        """
        path = Path(path)
        file = path / _MANIFEST
        if not file.exists():
            if not create:
                raise StoreError(f"There is no corpus {path}.", todo="Make one with: residue corpus add RUN")
            if path.exists() and (not path.is_dir() or any(path.iterdir())):
                raise RunExistsError(f"{path} is there and is no corpus.", todo="Name another folder.")
            if not path.exists():
                make_folder(path)
            write_bytes(path, _MANIFEST, _json(_Manifest()))
        return cls(path, _entries(file))

    def add(self, found: Sequence[tuple[dict[str, Any], pl.DataFrame]], *, replace: bool = False) -> list[CorpusEntry]:
        """Add signatures; all of them or none.

        Args:
            found: for each: ``run, item, created, model, weights_sha256, kind, text, summary``, and its table ``signatures``.
            replace: write those that are already there anew, instead of refusing.

        Returns:
            The new entries.

        Raises:
            RunExistsError: one of them is already there, or the corpus is being written by another process.
            RunDamagedError: the manifest cannot be read.
            WriteError: the file system refuses; the corpus is as it was.
        """
        lock = take_lock(self.path)
        try:
            self.entries = _entries(self.path / _MANIFEST)  # another process may have added since it was opened
            there = {entry.key: entry for entry in self.entries}
            named = {entry.key + _ending(entry) for entry in self.entries}
            for left in (self.path / "signatures").glob("*.parquet"):
                if left.stem not in named:
                    remove(left)
            new: dict[str, CorpusEntry] = {}
            for facts, frame in found:
                key = corpus_key(facts)
                if key in new or (key in there and not replace):
                    raise RunExistsError(
                        f"Item {facts['item']!r} of {facts['run']} is already in {self.path}.", todo="Replace it with --replace."
                    )
                data = parquet_bytes(conform("signatures", frame, str(facts["item"])))
                entry = CorpusEntry(**facts, key=key, sha256=hashlib.sha256(data).hexdigest(), added=now())
                # The name holds the content's hash: a replaced file stays until the manifest names the new one.
                write_bytes(self.path, f"signatures/{key}{_ending(entry)}.parquet", data)
                new[key] = entry
            entries = [new.get(entry.key, entry) for entry in self.entries] + [e for key, e in new.items() if key not in there]
            write_bytes(self.path, _MANIFEST, _json(_Manifest(entries=entries)))
            for old in (there[key] for key in new if key in there):
                if old.sha256 != new[old.key].sha256:
                    remove(self.path / "signatures" / f"{old.key}{_ending(old)}.parquet")
            self.entries = entries
            return list(new.values())
        finally:
            lock.release()

    def signature(self, entry: CorpusEntry) -> pl.DataFrame:
        """The table ``signatures`` of one entry.

        Raises:
            RunDamagedError: the file is missing, was changed, or cannot be read; it is named.
        """
        file = self.path / "signatures" / f"{entry.key}{_ending(entry)}.parquet"
        try:
            data = file.read_bytes()
        except OSError as error:
            raise RunDamagedError(
                f"{file} cannot be read.", why=f"{error.strerror}.", todo="Add its run again with --replace."
            ) from error
        if hashlib.sha256(data).hexdigest() != entry.sha256:
            raise RunDamagedError(
                f"{file} was changed.", why="Its hash is not the one in corpus.json.", todo="Add its run again with --replace."
            )
        try:
            frame = pl.read_parquet(io.BytesIO(data))
        except (OSError, pl.exceptions.PolarsError) as error:
            raise RunDamagedError(f"{file} is no Parquet file.", why=str(error).split("\n")[0]) from error
        if frame.schema != pl.Schema(TABLES["signatures"]):
            raise RunDamagedError(f"{file} has other columns than a signature.")
        return frame

    def matrix(self, components: Sequence[str]) -> NDArray[np.float64]:
        """``[entry, component]``, NaN = not measured.

        Raises:
            RunDamagedError: a file that cannot be used, by its name.
        """
        out = np.full((len(self.entries), len(components)), math.nan)
        place = {name: i for i, name in enumerate(components)}
        for row, entry in enumerate(self.entries):
            for name, value in self.signature(entry).select("component", "value").iter_rows():
                if name in place and value is not None:
                    out[row, place[name]] = value
        return out

    def search(
        self,
        query: pl.DataFrame,
        components: Sequence[str],
        spans: NDArray[np.float64],
        *,
        weights_sha256: str | None = None,
        top: int = 10,
        without: str = "",
    ) -> pl.DataFrame:
        """The entries nearest to a signature.

        Args:
            query: table ``signatures`` of one item.
            components: names that may be compared; ``spans`` their ranges ``[component]``.
            weights_sha256: only entries of this model; None takes all.
            top: at most so many.
            without: key of an entry to leave out (the query itself).

        Returns:
            ``rank, distance, typical, ratio, shared, entries, run, item, model, kind, summary, text, key``: ``typical`` is the median distance between two
            entries, ``ratio`` the distance in units of it (null with fewer than two entries), ``entries`` how many were compared.

        Raises:
            ConfigError: ``top`` under 1.
            RunDamagedError: a file that cannot be used, by its name.
        """
        if top < 1:
            raise ConfigError(f"top = {top}: nothing would be shown.", todo="Ask for 1 or more.")
        keep = [i for i, e in enumerate(self.entries) if e.key != without and weights_sha256 in (None, e.weights_sha256)]
        values = self.matrix(components)[keep]
        asked = dict(query.select("component", "value").iter_rows())
        x = np.array([math.nan if asked.get(name) is None else asked[name] for name in components], dtype=np.float64)
        known = (~np.isnan(values)).sum(0)
        centred = np.where(np.isnan(values), 0.0, values - _mean(values, known))
        spread = np.sqrt((centred**2).sum(0) / np.maximum(known - 1, 1))
        scale = np.maximum(spread, _LEAST_SCALE * spans)
        distance, shared = _distances(x[None], values, scale)
        between, _ = _distances(values, values, scale)
        pairs = between[np.triu_indices(len(values), 1)]
        pairs = pairs[~np.isnan(pairs)]
        typical = float(np.median(pairs)) if len(pairs) else math.nan
        order = [i for i in np.argsort(distance[0], kind="stable") if not math.isnan(distance[0, i])][:top]
        rows = []
        for rank, i in enumerate(order, start=1):
            entry = self.entries[keep[i]]
            one = {"rank": rank, "distance": float(distance[0, i]), "typical": None if math.isnan(typical) else typical}
            one["ratio"] = float(distance[0, i]) / typical if typical > 0 else None
            one |= {"shared": int(shared[0, i]), "entries": len(keep)}
            rows.append(one | {name: getattr(entry, name) for name in ("run", "item", "model", "kind", "summary", "text", "key")})
        schema: dict[str, Any] = {
            "rank": pl.Int64,
            **dict.fromkeys(("distance", "typical", "ratio"), pl.Float64),
            "shared": pl.Int64,
            "entries": pl.Int64,
        }
        return pl.DataFrame(
            rows, schema=schema | dict.fromkeys(("run", "item", "model", "kind", "summary", "text", "key"), pl.String)
        )


def corpus_key(facts: Mapping[str, Any]) -> str:
    """The key of an item: a hash of its model, run, the run's time, id and text."""
    text = [str(facts[name]) for name in ("weights_sha256", "created", "run", "item", "text")]
    return hashlib.sha256(json.dumps(text).encode("utf-8")).hexdigest()[:24]


def _ending(entry: CorpusEntry) -> str:
    return f"-{entry.sha256[:8]}"


def _json(manifest: _Manifest) -> bytes:
    return (manifest.model_dump_json(indent=1) + "\n").encode("utf-8")


def _entries(file: Path) -> list[CorpusEntry]:
    try:
        manifest = _Manifest.model_validate_json(file.read_bytes())
    except OSError as error:
        raise RunDamagedError(f"{file} cannot be read.", why=f"{error.strerror}.") from error
    except ValidationError as error:
        first = error.errors()[0]
        raise RunDamagedError(
            f"{file} is no corpus manifest.", why=f"{'.'.join(map(str, first['loc'])) or 'the file'}: {first['msg']}."
        ) from error
    if manifest.corpus_version != CORPUS_VERSION:
        raise RunDamagedError(f"{file} is of version {manifest.corpus_version}.", why=f"This version reads {CORPUS_VERSION}.")
    return manifest.entries


def _mean(values: NDArray[np.float64], known: NDArray[np.int64]) -> NDArray[np.float64]:
    return np.where(np.isnan(values), 0.0, values).sum(0) / np.maximum(known, 1)


def _distances(
    a: NDArray[np.float64], b: NDArray[np.float64], scale: NDArray[np.float64]
) -> tuple[NDArray[np.float64], NDArray[np.int64]]:
    """Root mean square over shared components ``[a, b]``, NaN where they share too few; and how many they share."""
    distance = np.full((len(a), len(b)), math.nan)
    shared = np.zeros((len(a), len(b)), dtype=np.int64)
    for i, row in enumerate(a):
        apart = ((b - row) / scale) ** 2
        both = ~np.isnan(apart)
        shared[i] = both.sum(1)
        enough = shared[i] >= _FEWEST_SHARED
        distance[i, enough] = np.sqrt(np.where(both, apart, 0.0).sum(1)[enough] / shared[i, enough])
    return distance, shared
