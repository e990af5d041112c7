"""Transcoders of SAELens: ``cfg.json`` and ``sae_weights.safetensors``, a folder a layer.

1. ``architecture`` is ``transcoder``, ``skip_transcoder``, ``jumprelu_transcoder`` or ``jumprelu_skip_transcoder``; places
   (``hook_name``, ``hook_name_out``) stand in the config or in its ``metadata``.
2. Tensors: ``W_enc [d_in, feature]``, ``b_enc``, ``W_dec [feature, d_out]``, ``b_dec``; ``threshold`` of JumpReLU; ``W_skip [d_out, d_in]``, used as
   ``x @ W_skip.T``.
3. An autoencoder predicts its own input and is refused, as is BatchTopK without the thresholds that it ends training with (its features at one position depend
   on the other positions of the batch), and every setting that changes what is computed: scaled or normalised inputs, a bias taken off the input.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from symbolic_residue.dictionaries._dictionary import Activation, by_layer, LayerDictionary, Predicts, Reads, Transcoders
from symbolic_residue.dictionaries._files import read_json, read_tensors, Settings
from symbolic_residue.dictionaries._places import layer_in, predicts_from, reads_from
from symbolic_residue.errors import DictionaryError

__all__ = ["read_saelens"]

_ARCHITECTURES = ("transcoder", "skip_transcoder", "jumprelu_transcoder", "jumprelu_skip_transcoder")
_HARMLESS = (
    "dtype", "device", "model_name", "model_class_name", "model_from_pretrained_kwargs", "dataset_path", "dataset_trust_remote_code",
    "context_size", "prepend_bos",
    "sae_lens_version", "sae_lens_training_version", "neuronpedia_id", "hf_hook_name", "hf_hook_name_out", "seqpos_slice", "exclude_special_tokens",
    "hook_layer", "hook_layer_out", "hook_head_index", "hook_head_index_out", "training_tokens", "release", "sae_id",
)  # fmt: skip


def read_saelens(folders: Sequence[Path], reads: Reads | None = None, predicts: Predicts | None = None) -> Transcoders:
    """Transcoders in SAELens' format.

    Args:
        folders: one a layer, each with ``cfg.json`` and ``sae_weights.safetensors``.
        reads, predicts: where a config names places that are not known.

    Raises:
        DictionaryError: another architecture, settings or tensors that are not as the format has them.
        DamagedFileError: a file that cannot be read.
    """
    layers, model = [], None
    for folder in folders:
        one, model = _layer(folder, reads, predicts)
        layers.append(one)
    return Transcoders(by_layer(layers), {"format": "saelens", "model": model, "scan": None})


def _layer(folder: Path, reads: Reads | None, predicts: Predicts | None) -> tuple[LayerDictionary, str | None]:
    config = read_json(folder / "cfg.json")
    metadata = config.take("metadata") or {}
    about = Settings(metadata if isinstance(metadata, dict) else {"metadata": metadata}, config.path)
    architecture = config.take("architecture")
    if isinstance(architecture, str) and "batchtopk" in architecture:
        raise DictionaryError(
            f"{config.path} is of the architecture {architecture!r}.",
            why="Which features are kept at a position would depend on the other positions of the batch.",
            todo="Take the JumpReLU transcoder that SAELens makes of it for use after training.",
        )
    if architecture not in _ARCHITECTURES:
        raise DictionaryError(
            f"{config.path} is of the architecture {architecture!r}.",
            why="A graph needs what predicts an MLP's output from its input; an autoencoder predicts what it reads.",
            todo=f"Known: {', '.join(_ARCHITECTURES)}.",
        )
    hook_in = config.take("hook_name", about.take("hook_name"))
    hook_out = config.take("hook_name_out", about.take("hook_name_out"))
    model = config.take("model_name", about.take("model_name"))
    r, p = reads_from(hook_in, reads, str(config.path)), predicts_from(hook_out, predicts, str(config.path))
    layer = layer_in(str(hook_in))[0]
    if layer is None or layer != layer_in(str(hook_out))[0]:
        raise DictionaryError(f"{config.path} reads {hook_in!r} and predicts {hook_out!r}: not one layer's MLP.")
    for settings in (config, about):
        settings.must("normalize_activations", "none", None)
        settings.must("reshape_activations", "none", None)
        settings.must("apply_b_dec_to_input", False)
        settings.must("finetuning_scaling_factor", False)
        settings.must("rescale_acts_by_decoder_norm", False)
        settings.must("hook_head_index", None)
        settings.must("hook_head_index_out", None)
    width, count, out = config.need("d_in", int), config.need("d_sae", int), config.take("d_out")
    activation, arguments = (
        config.take("activation_fn_str", config.take("activation_fn")),
        config.take("activation_fn_kwargs") or {},
    )
    k = config.take("k")
    config.finish(_HARMLESS)
    about.finish(_HARMLESS)
    tensors = read_tensors(folder / "sae_weights.safetensors")
    encoder = tensors.take("W_enc").T
    if tuple(encoder.shape) != (count, width) or out not in (None, width):
        raise DictionaryError(
            f"{config.path} says d_in = {width}, d_sae = {count}, d_out = {out}; the encoder is {list(encoder.shape)}."
        )
    if architecture.startswith("jumprelu"):
        act = Activation("jumprelu", threshold=tensors.take("threshold"))
    elif activation == "topk":
        act = Activation("topk", arguments.get("k", k))
    elif activation in (None, "relu"):
        act = Activation()
    else:
        raise DictionaryError(f"{config.path} says that the activation is {activation!r}.", todo="Known: relu, topk, JumpReLU.")
    skip = tensors.take("W_skip").T if "skip" in architecture else None
    found = LayerDictionary(
        layer, encoder, tensors.take("b_enc"), {layer: tensors.take("W_dec")}, tensors.take("b_dec"), act, r, p, skip
    )  # fmt: skip
    tensors.finish()
    return found, model
