"""Transcoders of sparsify: a folder a hookpoint, with ``cfg.json`` and ``sae.safetensors``.

1. The folder's name is the module whose input is read and whose output is predicted: ``layers.3.mlp``, ``h.3.mlp``, ``model.layers.3.mlp``.
2. Tensors: ``encoder.weight [feature, d_in]``, ``encoder.bias``, ``W_dec [feature, d_in]``, ``b_dec``, and with ``skip_connection`` ``W_skip``,
   used as ``x @ W_skip.T``.
3. TopK of the ReLU's output. ``transcode`` must be true: else it is an autoencoder.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from symbolic_residue.dictionaries._dictionary import Activation, by_layer, LayerDictionary, Predicts, Reads, Transcoders
from symbolic_residue.dictionaries._files import read_json, read_tensors
from symbolic_residue.dictionaries._places import layer_in
from symbolic_residue.errors import DictionaryError

__all__ = ["read_sparsify"]

_HARMLESS = ("expansion_factor", "normalize_decoder", "multi_topk", "lookup_max_order", "gram_table_hash")


def read_sparsify(folders: Sequence[Path], reads: Reads | None = None, predicts: Predicts | None = None) -> Transcoders:
    """Transcoders in sparsify's format.

    Args:
        folders: one a hookpoint.
        reads, predicts: must not say anything but ``mlp_in`` and ``mlp``.

    Raises:
        DictionaryError: a hookpoint that is no MLP, another activation, settings or tensors that are not as the format has them.
        DamagedFileError: a file that cannot be read.
    """
    for name, given, own in (("reads", reads, "mlp_in"), ("predicts", predicts, "mlp")):
        if given not in (None, own):
            raise DictionaryError(
                f"{name}={given!r} was given.", why=f"A transcoder of sparsify {name} {own!r}: its module's input and output."
            )
    return Transcoders(by_layer(_layer(folder) for folder in folders), {"format": "sparsify", "model": None, "scan": None})


def _layer(folder: Path) -> LayerDictionary:
    layer, module = layer_in(folder.name)
    if layer is None or module != "mlp":
        raise DictionaryError(
            f"{folder} is for the hookpoint {folder.name!r}.", why="A graph needs transcoders of MLPs, as in layers.3.mlp."
        )
    config = read_json(folder / "cfg.json")
    config.must("activation", "topk")
    if config.take("transcode") is not True:
        raise DictionaryError(
            f"{config.path} is for an autoencoder.", why="It predicts what it reads, not what the MLP makes of it."
        )
    for name in ("embed_skip", "gram_lookup", "signed"):
        config.must(name, False)
    width, k, count = config.need("d_in", int), config.take("k"), config.take("num_latents")
    skipping = config.take("skip_connection", False)
    expansion = config.take("expansion_factor")
    config.finish(_HARMLESS)
    tensors = read_tensors(folder / "sae.safetensors")
    encoder = tensors.take("encoder.weight")
    stated = count or (None if expansion is None else width * expansion)
    if encoder.ndim != 2 or encoder.shape[1] != width or stated not in (None, encoder.shape[0]):
        raise DictionaryError(f"{config.path} says {stated} features of width {width}; the encoder is {list(encoder.shape)}.")
    skip = tensors.take("W_skip").T if skipping else None
    found = LayerDictionary(
        layer, encoder, tensors.take("encoder.bias"), {layer: tensors.take("W_dec")}, tensors.take("b_dec"),
        Activation("topk", k), "mlp_in", "mlp", skip,
    )  # fmt: skip
    tensors.finish()
    return found
