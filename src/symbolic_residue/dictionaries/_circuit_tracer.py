"""Folders of circuit-tracer: ``config.yaml`` and transcoders a layer, or a cross-layer transcoder.

1. ``config.yaml``: ``model_kind`` (``transcoder_set`` or ``cross_layer_transcoder``), ``model_name``, ``scan``, ``feature_input_hook``,
   ``feature_output_hook``, ``activation`` (``relu`` or ``topk``), ``k``, and perhaps ``transcoders``: the files, layer by layer, by
   their path here or as ``hf://org/repo/path?revision=…`` (from the hub's cache, or fetched into it).
2. A set has ``layer_{i}.safetensors``: ``W_enc [feature, d_model]``, ``b_enc``, ``W_dec [feature, d_model]``, ``b_dec``; with
   ``activation_function.threshold`` it is JumpReLU; ``W_skip`` acts as ``x @ W_skip.T``; ``k`` is that of TopK.
3. A CLT has ``W_enc_{i}.safetensors`` (``W_enc_{i}``, ``b_enc_{i}``, ``b_dec_{i}``, perhaps ``threshold_{i}``) and ``W_dec_{i}.safetensors``
   (``W_dec_{i} [feature, layers − i, d_model]``: what is written to layers i, i + 1, …).
4. TopK and JumpReLU keep negative values that are among the k largest or above a negative threshold, as that tool does.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from urllib.parse import parse_qs, urlsplit

from torch import Tensor

from symbolic_residue.dictionaries._dictionary import Activation, by_layer, LayerDictionary, Predicts, Reads, Transcoders
from symbolic_residue.dictionaries._files import read_tensors, read_yaml, Settings, Tensors
from symbolic_residue.dictionaries._gemma_scope import gemma_scope_2_layer, npz_layer
from symbolic_residue.dictionaries._places import predicts_from, reads_from
from symbolic_residue.errors import DictionaryError
from symbolic_residue.models import hub_files

__all__ = ["read_circuit_tracer"]

Progress = Callable[[str], None] | None
_HARMLESS = ("repo_id", "revision", "subfolder", "scan_name")


def read_circuit_tracer(
    folder: Path,
    reads: Reads | None = None,
    predicts: Predicts | None = None,
    k: int | None = None,
    progress: Progress = None,
) -> Transcoders:
    """A dictionary in circuit-tracer's format.

    Args:
        folder: with ``config.yaml``.
        reads, predicts: where the config names places that are not known.
        k: of TopK, where the config does not say it.
        progress: called with a line before something is downloaded.

    Raises:
        DictionaryError: entries, tensors, activations or shapes that are not as the format has them.
        DamagedFileError: a file that cannot be read.
        OfflineError, UnknownModelError, ModelError, WriteError: files of the hub, see ``hub_files``.
    """
    config = read_yaml(folder / "config.yaml")
    kind = config.take("model_kind")
    where = str(folder / "config.yaml")
    reads = reads_from(config.take("feature_input_hook"), reads, where)
    predicts = predicts_from(config.take("feature_output_hook"), predicts, where)
    source = {"format": "circuit-tracer", "model": config.take("model_name"), "scan": config.take("scan")}
    if kind == "transcoder_set":
        layers = _set(folder, config, reads, predicts, k, progress)
    elif kind == "cross_layer_transcoder":
        layers = _clt(folder, config, reads, predicts)
    else:
        raise DictionaryError(f"{where} says model_kind = {kind!r}.", todo="Known: transcoder_set, cross_layer_transcoder.")
    config.finish(_HARMLESS)
    return Transcoders(by_layer(layers), source)


def _set(
    folder: Path, config: Settings, reads: Reads, predicts: Predicts, k: int | None, progress: Progress
) -> list[LayerDictionary]:
    activation, stated = config.take("activation"), config.take("k")
    if activation not in (None, "relu", "topk"):
        raise DictionaryError(
            f"{config.path} says activation = {activation!r}.", todo="Known: relu, topk; JumpReLU is told by its thresholds."
        )
    if stated is not None and k is not None and stated != k:
        raise DictionaryError(f"{config.path} says k = {stated}; k = {k} was given.")
    k = stated if k is None else k
    paths = _paths(folder, config.take("transcoders"), progress)
    return [_layer(i, path, activation, k, reads, predicts) for i, path in enumerate(paths)]


def _paths(folder: Path, named: object, progress: Progress) -> list[Path]:
    if named is None:
        found = {path.stem.removeprefix("layer_"): path for path in folder.glob("layer_*.safetensors")}
        wanted = [str(i) for i in range(len(found))]
        if not found or set(found) != set(wanted):
            missing = sorted(set(wanted) - set(found), key=int)
            raise DictionaryError(f"{folder} lacks layer_{missing[0] if missing else 0}.safetensors.")
        return [found[i] for i in wanted]
    if not isinstance(named, list) or not all(isinstance(one, str) for one in named):
        raise DictionaryError(f"{folder / 'config.yaml'} has transcoders that are no list of files.")
    remote = {one: _uri(one, folder / "config.yaml") for one in named if "://" in one}
    there: dict[str, Path] = {}
    for repo, revision in dict.fromkeys((repo, revision) for repo, _, revision in remote.values()):
        mine = {one: name for one, (of, name, at) in remote.items() if (of, at) == (repo, revision)}
        paths = hub_files(repo, list(mine.values()), revision=revision, progress=progress)
        there |= dict(zip(mine, paths, strict=True))
    return [there[one] if one in there else folder / one for one in named]


def _uri(text: str, where: Path) -> tuple[str, str, str | None]:
    """Repository, file and revision of ``hf://org/repo/path?revision=…``.

    Raises:
        DictionaryError: another form.
    """
    parts = urlsplit(text)
    repo, _, name = parts.path.lstrip("/").partition("/")
    asked = parse_qs(parts.query, keep_blank_values=True)
    revision = asked.pop("revision", [None])
    if (
        parts.scheme != "hf"
        or not (parts.netloc and repo and name)
        or asked
        or parts.fragment
        or len(revision) != 1
        or revision[0] == ""
    ):
        raise DictionaryError(
            f"{where} names a file by {text!r}, which is not known.", todo="Known: hf://org/repo/path, with ?revision=… or without."
        )
    if ".." in name.split("/") or name.endswith("/"):
        raise DictionaryError(f"{where} names a file by {text!r}, which is no file of a repository.")
    return f"{parts.netloc}/{repo}", name, revision[0]


def _layer(layer: int, path: Path, activation: str | None, k: int | None, reads: Reads, predicts: Predicts) -> LayerDictionary:
    tensors = read_tensors(path)
    if path.suffix == ".npz":
        return npz_layer(layer, tensors, reads, predicts)
    if "w_enc" in tensors:
        return gemma_scope_2_layer(layer, tensors, reads, predicts)
    own_k = tensors.maybe("k")
    if own_k is not None:
        if k is not None and k != int(own_k):
            raise DictionaryError(f"{path} says k = {int(own_k)}; elsewhere it is {k}.")
        activation, k = activation or "topk", int(own_k)
    encoder = tensors.take("W_enc")
    threshold = tensors.maybe("activation_function.threshold")
    if threshold is not None and activation is not None:
        raise DictionaryError(
            f"{path} has thresholds, and the activation is said to be {activation}.", why="Only JumpReLU has thresholds."
        )
    skip = tensors.maybe("W_skip")
    found = LayerDictionary(
        layer, encoder, tensors.take("b_enc"), {layer: tensors.take("W_dec")}, tensors.take("b_dec"),
        _activation(activation, k, threshold), reads, predicts, None if skip is None else skip.T,
    )  # fmt: skip
    tensors.finish()
    return found


def _activation(name: str | None, k: int | None, threshold: Tensor | None) -> Activation:
    if threshold is not None:
        return Activation("jumprelu", threshold=threshold, signed=bool((threshold < 0).any()))
    if name == "topk":
        return Activation("topk", k, signed=True)
    return Activation("relu", k)


def _clt(folder: Path, config: Settings, reads: Reads, predicts: Predicts) -> list[LayerDictionary]:
    config.must("activation", None, "relu", "jump_relu", "jumprelu")
    n_layers = len(list(folder.glob("W_enc_*.safetensors")))
    if not n_layers:
        raise DictionaryError(f"{folder} has no W_enc_0.safetensors.")
    found = []
    for i in range(n_layers):
        encoder = read_tensors(folder / f"W_enc_{i}.safetensors")
        decoder = read_tensors(folder / f"W_dec_{i}.safetensors")
        found.append(_clt_layer(i, n_layers, encoder, decoder, reads, predicts))
    return found


def _clt_layer(i: int, n_layers: int, encoder: Tensors, decoder: Tensors, reads: Reads, predicts: Predicts) -> LayerDictionary:
    write = decoder.take(f"W_dec_{i}")
    if write.ndim != 3 or write.shape[1] != n_layers - i:
        raise DictionaryError(
            f"{decoder.path} has W_dec_{i} of shape {list(write.shape)}; with {n_layers} layers it is [feature, {n_layers - i}, d_model]."
        )
    threshold = encoder.maybe(f"threshold_{i}")
    decoders = {i + step: write[:, step] for step in range(n_layers - i)}
    found = LayerDictionary(
        i, encoder.take(f"W_enc_{i}"), encoder.take(f"b_enc_{i}"), decoders, encoder.take(f"b_dec_{i}"),
        _activation(None, None, threshold), reads, predicts,
    )  # fmt: skip
    encoder.finish()
    decoder.finish()
    return found
