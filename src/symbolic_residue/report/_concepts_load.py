"""What the page of a concepts run reads: JSON files and texts of the folder, each checked to belong to the others.

1. ``quality.json`` must be there. ``heads.json``, ``causal.json`` and the files of ``watch/`` may be, and ``corpus.jsonl``, whose texts are shown.
2. A file that is cut short, lacks a field or is of other weights or another readout than ``quality.json`` is refused, never shown beside it.
3. ``manifest.json`` is the store's; a folder made by the library alone has none, and the page then says so.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from symbolic_residue.errors import RunDamagedError, StoreError
from symbolic_residue.store import RunFolder

__all__ = ["CONCEPTS_KIND", "ConceptsRun", "load_concepts"]

CONCEPTS_KIND = "concepts"

_TOP = (
    "model",
    "estimator",
    "against",
    "pooling",
    "concepts",
    "similarity",
    "words_alone",
    "families",
    "n_draws",
    "seed",
    "not_ranked",
)
_CONCEPT = (
    "n_pos",
    "n_neg",
    "n_scenarios",
    "paired",
    "left_out",
    "ranked",
    "why_not_ranked",
    "chosen",
    "layers",
    "positive_rows",
    "other_negatives",
)
_LAYER = ("auc", "between_within", "pc_share", "alignment", "nearest", "ridge_r2", "length", "scenario", "mlp")
_AUC = ("value", "low", "high", "n", "null_mean", "null_sd", "p", "p_model")
_HEADS = ("n_heads", "k", "top_heads", "head_concentration", "uniform", "concentration_null", "participation_ratio", "participation_null",
          "selectivity_null", "by_selectivity", "write")  # fmt: skip
_HEADS_FILE = ("k", "n_heads", "layer", "concepts", "overlap", "families", "words_alone")
_VERDICT = ("verdict", "verdict_strict", "reason", "k", "n_heads", "n_scenarios", "conditions", "readouts")


@dataclass(frozen=True)
class ConceptsRun:
    """A concepts run.

    Attributes:
        path: the folder.
        manifest: as plain dicts; empty where there is none.
        quality: ``quality.json``.
        texts: ``concept, scenario, text`` of ``corpus.jsonl``, in its order, which row numbers follow; empty where there is none.
        heads, causal: ``heads.json`` and ``causal.json``; None where they are not there.
        watched: name → one file of ``watch/``.
        files: name → size in bytes, of the files that the page shows numbers of.
    """

    path: Path
    manifest: dict[str, Any]
    quality: dict[str, Any]
    texts: list[dict[str, Any]]
    heads: dict[str, Any] | None
    causal: dict[str, Any] | None
    watched: dict[str, dict[str, Any]]
    files: dict[str, int]

    @property
    def concepts(self) -> list[str]:
        """Names, in the report's order."""
        return list(self.quality["concepts"])

    @property
    def layers(self) -> list[int]:
        """Layers with directions, in order."""
        return sorted({int(i) for one in self.quality["concepts"].values() for i in one["layers"]})

    @property
    def middle(self) -> int:
        """The layer stated beforehand: half of the model's, rounded down, or the nearest that was read."""
        half = int(self.quality["model"]["n_layers"]) // 2
        return min(self.layers, key=lambda i: (abs(i - half), i))

    def chosen(self, concept: str) -> int:
        """The layer shown of the concept; the middle one where nothing could be held out, so that none was chosen."""
        layer = self.quality["concepts"][concept]["chosen"]["layer"]
        return self.middle if layer is None else int(layer)

    def at(self, concept: str, layer: int | None = None) -> dict[str, Any]:
        """The numbers of one layer, the chosen one by default."""
        return self.quality["concepts"][concept]["layers"][str(self.chosen(concept) if layer is None else layer)]

    def family(self, concept: str) -> str | None:
        """The stated family."""
        return next((name for name, members in (self.quality["families"] or {}).items() if concept in members), None)

    def words(self, concept: str, against: str) -> dict[str, Any] | None:
        """AUC by words alone; None where it was not measured."""
        found = ((self.quality["words_alone"] or {}).get(concept) or {}).get(against)
        return None if found is None or found["value"] is None else found

    def neutral(self, scenario: str | None) -> str | None:
        """The scenario's neutral telling."""
        return next((one["text"] for one in self.texts if one["concept"] == "baseline" and one["scenario"] == scenario), None)

    def above_chance(self, concept: str) -> bool | None:
        """p ≤ 0.05 over all layers and concepts; None where no null was drawn or the concept is not ranked."""
        p = self.quality["concepts"][concept]["chosen"]["p_concepts"]
        return None if p is None else p <= 0.05


def load_concepts(folder: Path | str) -> ConceptsRun:
    """Read a concepts run, whatever its status.

    Raises:
        StoreError: no such folder, or no ``quality.json`` in it.
        RunDamagedError: a file that cannot be read, lacks a field, or belongs to another model or readout.
    """
    path = Path(folder)
    if not path.is_dir():
        raise StoreError(f"There is no folder {path}.", todo="Give the folder of a concepts run.")
    if not (path / "quality.json").exists():
        raise StoreError(
            f"{path} has no quality.json.", why="The page shows what it holds.", todo=f"Make it: residue concepts report {path}"
        )
    manifest: dict[str, Any] = {}
    if (path / "manifest.json").exists():
        manifest = RunFolder.open(path).manifest.model_dump(mode="json")
    quality = _read(path / "quality.json")
    _check(quality, path / "quality.json")
    readout = _read(path / "readout.json") if (path / "readout.json").exists() else {}
    _same(path, "readout.json", _hashes(readout), quality)
    found: dict[str, dict[str, Any] | None] = {}
    for name in ("heads.json", "causal.json"):
        found[name] = _read(path / name) if (path / name).exists() else None
        if (one := found[name]) is not None:
            _same(path, name, _hashes(one), quality, readout)
            _check_parts(path / name, one, heads=name == "heads.json")
    watched = {}
    for file in sorted((path / "watch").glob("*.json")) if (path / "watch").is_dir() else ():
        watched[file.stem] = _read(file)
        _need(file, "", watched[file.stem], ("tracks", "texts", "reference", "verdicts", "n", "seed"))
        _same(path, f"watch/{file.name}", _hashes(watched[file.stem]), quality, readout)
    names = ("quality.json", "heads.json", "causal.json", "readout.json", "readout.safetensors", "corpus.jsonl", "corpus.json")
    sizes = {name: (path / name).stat().st_size for name in names if (path / name).exists()}
    return ConceptsRun(
        path, manifest, quality, _texts(path / "corpus.jsonl"), found["heads.json"], found["causal.json"], watched, sizes
    )


def _read(path: Path) -> dict[str, Any]:
    try:
        found = json.loads(path.read_text("utf-8"))
    except (OSError, ValueError) as error:
        raise RunDamagedError(
            f"{path} cannot be read.", why=str(error), todo="Make it again by the command that wrote it."
        ) from error
    if not isinstance(found, dict):
        raise RunDamagedError(f"{path} holds no object.", todo="Make it again by the command that wrote it.")
    return found


def _need(path: Path, where: str, block: Any, names: tuple[str, ...]) -> None:
    lacking = [name for name in names if not isinstance(block, dict) or name not in block]
    if lacking:
        raise RunDamagedError(f"{path} lacks {where}{lacking[0]}.", todo="Make it again by the command that wrote it.")


def _check(quality: dict[str, Any], path: Path) -> None:
    """Every field that the page reads is there."""

    def need(where: str, block: Any, names: tuple[str, ...]) -> None:
        _need(path, where, block, names)

    need("", quality, _TOP)
    need("model.", quality["model"], ("model", "weights_sha256", "n_layers", "hidden_size", "dtype"))
    if not isinstance(quality["concepts"], dict) or not quality["concepts"]:
        raise RunDamagedError(f"{path} holds no concept.", todo="Make it again: residue concepts report")
    for concept, one in quality["concepts"].items():
        need(f"concepts.{concept}.", one, _CONCEPT)
        need(f"concepts.{concept}.chosen.", one["chosen"], ("layer", "rule", "p_model", "p_concepts"))
        if one["chosen"]["layer"] is not None and str(one["chosen"]["layer"]) not in one["layers"]:
            raise RunDamagedError(f"{path} lacks concepts.{concept}.layers.{one['chosen']['layer']}, its chosen layer.")
        for layer, block in one["layers"].items():
            need(f"concepts.{concept}.layers.{layer}.", block, _LAYER)
            need(f"concepts.{concept}.layers.{layer}.auc.", block["auc"], _AUC)
            if block["alignment"].get("by_scenario"):
                need(
                    f"concepts.{concept}.layers.{layer}.alignment.",
                    block["alignment"],
                    ("by_text", "outlier_texts", "median", "limit"),
                )
        if (one.get("per_head") or {}).get("layers"):
            need(
                f"concepts.{concept}.per_head.",
                one["per_head"],
                ("layers", "skipped_layers", "mixers_beside_attention", "notes", "n_draws"),
            )
            for layer, block in one["per_head"]["layers"].items():
                need(f"concepts.{concept}.per_head.layers.{layer}.", block, _HEADS)


def _check_parts(path: Path, found: dict[str, Any], *, heads: bool) -> None:
    """What the page reads of ``heads.json`` or ``causal.json`` is there."""
    _need(path, "", found, _HEADS_FILE if heads else ("concepts",))
    for concept, parts in found["concepts"].items():
        _need(path, f"concepts.{concept}.", parts, ("model", "layer") if heads else ())
        for part, block in parts.items():
            _need(path, f"concepts.{concept}.{part}.", block, _VERDICT if heads else ("settings", "verdict", "why"))


def _hashes(record: dict[str, Any]) -> dict[str, Any]:
    """The hashes that a file states, wherever it states them."""
    places = [record, *(record[name] for name in ("of", "model", "readout") if isinstance(record.get(name), dict))]
    keys = ("weights_sha256", "adapter_sha256", "tensors_sha256", "corpus_sha256")
    return {key: place[key] for place in reversed(places) for key in keys if key in place}


def _same(path: Path, name: str, stated: dict[str, Any], quality: dict[str, Any], readout: dict[str, Any] | None = None) -> None:
    """Refuse a file of other weights, another adapter, other texts or another readout."""
    mine = _hashes(quality) | ({"tensors_sha256": readout["tensors_sha256"]} if readout and "tensors_sha256" in readout else {})
    words = {"weights_sha256": "of other weights", "adapter_sha256": "of another adapter", "tensors_sha256": "of another readout",
             "corpus_sha256": "of another corpus"}  # fmt: skip
    for key, said in words.items():
        if key in stated and key in mine and stated[key] != mine[key]:
            why = f"{key} is {str(stated[key])[:12]}… there and {str(mine[key])[:12]}… in the rest of the folder."
            raise RunDamagedError(f"{path / name} is {said} than quality.json.", why=why, todo="Make it again in this folder.")


def _texts(path: Path) -> list[dict[str, Any]]:
    if not path.exists():
        return []
    found = []
    try:
        for line in path.read_text("utf-8").split("\n"):
            if line.strip():
                one = json.loads(line)
                found.append({"concept": str(one["concept"]), "scenario": one.get("scenario"), "text": str(one["text"])})
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise RunDamagedError(
            f"{path} cannot be read.", why=str(error), todo="Put back the corpus that the directions were found on."
        ) from error
    return found
