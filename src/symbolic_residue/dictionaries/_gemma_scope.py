"""Gemma Scope (npz) and Gemma Scope 2 (safetensors), transcoders and cross-layer transcoders; both JumpReLU.

1. Gemma Scope: ``params.npz`` with ``W_enc [d_model, feature]``, ``b_enc``, ``W_dec [feature, d_model]``, ``b_dec``, ``threshold``; the layer is in the path
   (``layer_3/width_16k/…``). The file does not say whether it is a transcoder or an autoencoder, nor where it reads: the caller does. Its transcoders read
   ``normalized`` and predict ``mlp_out``.
2. Gemma Scope 2: ``params.safetensors`` with ``w_enc [d_model, feature]``, ``b_enc``, ``w_dec [feature, d_model]``, ``b_dec``, ``threshold`` and perhaps
   ``affine_skip_connection`` (``x @ affine_skip_connection``), beside ``config.json`` with ``hf_hook_point_in``, ``hf_hook_point_out``, ``architecture``
   (``jump_relu``), ``width``, ``l0``, ``model_name``, ``type`` and ``affine_connection``.
3. A CLT of Gemma Scope 2 has one such file a layer, ``params_layer_{i}.safetensors``, with ``w_dec [feature, layers, d_model]``, of which layers below i are
   not used, and one ``config.json``.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path

from symbolic_residue.dictionaries._dictionary import Activation, by_layer, LayerDictionary, Predicts, Reads, Transcoders
from symbolic_residue.dictionaries._files import read_json, read_tensors, Settings, Tensors
from symbolic_residue.dictionaries._places import layer_in, predicts_from, reads_from
from symbolic_residue.errors import DictionaryError

__all__ = ["gemma_scope_2_layer", "npz_layer", "read_gemma_scope", "read_gemma_scope_2", "read_gemma_scope_2_clt"]

_HARMLESS = ("model_name", "l0", "width", "dataset", "license")
_LAYER = re.compile(r"layer_(\d+)")


def npz_layer(layer: int, tensors: Tensors, reads: Reads, predicts: Predicts) -> LayerDictionary:
    """A layer from the arrays of Gemma Scope."""
    encoder, decoder = tensors.take("W_enc").T, tensors.take("W_dec")
    found = LayerDictionary(
        layer, encoder, tensors.take("b_enc"), {layer: decoder}, tensors.take("b_dec"),
        Activation("jumprelu", threshold=tensors.take("threshold")), reads, predicts,
    )  # fmt: skip
    tensors.finish()
    return found


def gemma_scope_2_layer(
    layer: int, tensors: Tensors, reads: Reads, predicts: Predicts, affine: bool | None = None
) -> LayerDictionary:
    """A layer from the tensors of Gemma Scope 2.

    Raises:
        DictionaryError: a skip connection that the config (``affine``) says is not there, or the other way round.
    """
    skip = tensors.maybe("affine_skip_connection")
    if affine is not None and affine != (skip is not None):
        raise DictionaryError(f"{tensors.path} has {'a' if skip is not None else 'no'} skip connection; its config says otherwise.")
    encoder, decoder = tensors.take("w_enc").T, tensors.take("w_dec")
    if decoder.ndim == 3:
        decoders = {target: decoder[:, target] for target in range(layer, decoder.shape[1])}
    else:
        decoders = {layer: decoder}
    found = LayerDictionary(
        layer, encoder, tensors.take("b_enc"), decoders, tensors.take("b_dec"),
        Activation("jumprelu", threshold=tensors.take("threshold")), reads, predicts, skip,
    )  # fmt: skip
    tensors.finish()
    return found


def read_gemma_scope(files: Sequence[Path], reads: Reads | None = None, predicts: Predicts | None = None) -> Transcoders:
    """Transcoders of Gemma Scope from ``params.npz`` files whose paths name their layers.

    Raises:
        DictionaryError: a path without a layer, ``reads`` or ``predicts`` not given, or tensors that are not as the format has them.
        DamagedFileError: a file that cannot be read.
    """
    if reads is None or predicts is None:
        raise DictionaryError(
            f"{files[0]} does not say where it reads and what it predicts.",
            why="Autoencoders and transcoders of Gemma Scope have the same arrays.",
            todo="Where it is a transcoder, give reads='normalized', predicts='mlp_out'.",
        )
    layers = []
    for path in files:
        numbers = _LAYER.findall(str(path))
        if not numbers:
            raise DictionaryError(
                f"The path {path} names no layer.", todo="Keep the folders of the release: layer_3/width_16k/…/params.npz."
            )
        layers.append(npz_layer(int(numbers[-1]), read_tensors(path), reads, predicts))
    return Transcoders(by_layer(layers), {"format": "gemma-scope", "model": None, "scan": None})


def read_gemma_scope_2(folders: Sequence[Path], reads: Reads | None = None, predicts: Predicts | None = None) -> Transcoders:
    """Transcoders of Gemma Scope 2, a folder a layer.

    Raises:
        DictionaryError: another architecture or type, entries, places or tensors that are not as the format has them.
        DamagedFileError: a file that cannot be read.
    """
    layers, model = [], None
    for folder in folders:
        config = read_json(folder / "config.json")
        model = config.take("model_name", model)
        affine = _affine(config)
        hook_in, hook_out = config.take("hf_hook_point_in"), config.take("hf_hook_point_out")
        r = reads_from(hook_in, reads, str(config.path))
        p = predicts_from(hook_out, predicts, str(config.path))
        config.finish(_HARMLESS)
        layer = layer_in(hook_in)[0] if isinstance(hook_in, str) else None
        if layer is None or layer != layer_in(str(hook_out))[0]:
            raise DictionaryError(f"{config.path} reads {hook_in!r} and predicts {hook_out!r}: not one layer's MLP.")
        layers.append(gemma_scope_2_layer(layer, read_tensors(folder / "params.safetensors"), r, p, affine))
    return Transcoders(by_layer(layers), {"format": "gemma-scope-2", "model": model, "scan": None})


def read_gemma_scope_2_clt(folder: Path, reads: Reads | None = None, predicts: Predicts | None = None) -> Transcoders:
    """A cross-layer transcoder of Gemma Scope 2; raises as :func:`read_gemma_scope_2`."""
    config = read_json(folder / "config.json")
    model, affine = config.take("model_name"), _affine(config)
    r = reads_from(config.take("hf_hook_point_in"), reads, str(config.path))
    p = predicts_from(config.take("hf_hook_point_out"), predicts, str(config.path))
    config.finish(_HARMLESS)
    layers = []
    for i in range(len(list(folder.glob("params_layer_*.safetensors")))):
        tensors = read_tensors(folder / f"params_layer_{i}.safetensors")
        layers.append(gemma_scope_2_layer(i, tensors, r, p, affine))
    return Transcoders(by_layer(layers), {"format": "gemma-scope-2", "model": model, "scan": None})


def _affine(config: Settings) -> bool | None:
    config.must("architecture", "jump_relu")
    config.must("type", "transcoder", "clt", "cross_layer_transcoder")
    return config.take("affine_connection")
