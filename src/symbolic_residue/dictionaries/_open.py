"""Opening a dictionary: its format is told by its files."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

from symbolic_residue.dictionaries._circuit_tracer import read_circuit_tracer
from symbolic_residue.dictionaries._dictionary import Predicts, Reads, Transcoders
from symbolic_residue.dictionaries._gemma_scope import read_gemma_scope, read_gemma_scope_2, read_gemma_scope_2_clt
from symbolic_residue.dictionaries._own import read_own
from symbolic_residue.dictionaries._saelens import read_saelens
from symbolic_residue.dictionaries._sparsify import read_sparsify
from symbolic_residue.errors import DictionaryError

__all__ = ["open_dictionary"]


def open_dictionary(
    path: Path | str | Sequence[Path | str],
    *,
    reads: Reads | None = None,
    predicts: Predicts | None = None,
    k: int | None = None,
    progress: Callable[[str], None] | None = None,
) -> Transcoders:
    """A dictionary from files on disk.

    ========================================================== ==================================================
    what is there                                              format
    ========================================================== ==================================================
    ``dictionary.json``                                        ours (``save_dictionary``)
    ``config.yaml``                                            circuit-tracer: transcoders, or cross-layer
    ``params.safetensors`` or ``params_layer_{i}.safetensors`` Gemma Scope 2
    ``params.npz``                                             Gemma Scope
    ``sae_weights.safetensors``                                SAELens
    ``sae.safetensors``                                        sparsify
    ========================================================== ==================================================

    Args:
        path: a folder (of a layer, or with one folder a layer anywhere below), or a list of folders a layer.
        reads: ``resid_mid``, ``mlp_in`` or ``normalized``: needed only where the files do not say it.
        predicts: ``mlp_out`` or ``mlp``; the same.
        k: of TopK, where the files do not say it.
        progress: called with a line, size included, before files that a config names on the hub (``hf://``) are downloaded.

    Raises:
        DictionaryError: no known format, more than one, two dictionaries for one layer, or a dictionary that cannot be used.
        DamagedFileError: a truncated file, or one that holds something else.
        NonFiniteWeightsError: NaN or infinity.
        OfflineError, UnknownModelError, ModelError, WriteError: files of the hub that cannot be had.
    """
    roots = [Path(path)] if isinstance(path, (str, Path)) else [Path(one) for one in path]
    if not roots or not all(root.exists() for root in roots):
        missing = next((str(root) for root in roots if not root.exists()), "no folder")
        raise DictionaryError(f"There is no dictionary at {missing}." if roots else "No folder was given.")
    if len(roots) == 1 and roots[0].is_dir():
        for name, reader in (("dictionary.json", None), ("config.yaml", read_circuit_tracer)):
            if not (roots[0] / name).exists():
                continue
            if reader is not None:
                return reader(roots[0], reads, predicts, k, progress)
            _unused(reads=reads, predicts=predicts, k=k)
            return read_own(roots[0])
        if (roots[0] / "params_layer_0.safetensors").exists():
            _unused(k=k)
            return read_gemma_scope_2_clt(roots[0], reads, predicts)
    _unused(k=k)
    found = {
        name: _files(roots, name) for name in ("params.npz", "params.safetensors", "sae_weights.safetensors", "sae.safetensors")
    }
    found = {name: files for name, files in found.items() if files}
    if len(found) != 1:
        raise DictionaryError(
            f"{', '.join(map(str, roots))} holds files of {'several formats' if found else 'no known format'}{': ' if found else ''}{', '.join(found)}.",
            todo="Known: circuit-tracer (config.yaml), Gemma Scope (params.npz), Gemma Scope 2 (params.safetensors), SAELens "
            "(sae_weights.safetensors), sparsify (sae.safetensors), and save_dictionary's.",
        )
    ((name, files),) = found.items()
    if name == "params.npz":
        return read_gemma_scope(files, reads, predicts)
    read = {"params.safetensors": read_gemma_scope_2, "sae_weights.safetensors": read_saelens, "sae.safetensors": read_sparsify}[
        name
    ]
    return read([file.parent for file in files], reads, predicts)


def _files(roots: Sequence[Path], name: str) -> list[Path]:
    found = []
    for root in roots:
        found += [root] if root.is_file() and root.name == name else sorted(root.rglob(name)) if root.is_dir() else []
    return found


def _unused(**given: object) -> None:
    for name, value in given.items():
        if value is not None:
            raise DictionaryError(f"{name}={value!r} was given.", why="The files say it themselves, or have no such thing.")
