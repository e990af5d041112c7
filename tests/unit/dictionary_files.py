"""Small dictionaries, and files in every format that is read, written here from the format's description."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import torch
import yaml
from safetensors.torch import save_file

from symbolic_residue.dictionaries import Activation, LayerDictionary, Transcoders

D, F, LAYERS = 6, 10, 3


def random_layer(
    layer: int,
    *,
    seed: int = 0,
    kind: str = "relu",
    skip: bool = False,
    targets: tuple[int, ...] | None = None,
    reads: str = "mlp_in",
    predicts: str = "mlp_out",
    d_model: int = D,
    features: int = F,
    dtype: torch.dtype = torch.float32,
) -> LayerDictionary:
    """A layer of random numbers; about half of its features are active."""
    g = torch.Generator().manual_seed(1000 * seed + layer)

    def draw(*shape: int) -> torch.Tensor:
        return torch.randn(*shape, generator=g, dtype=torch.float64).to(dtype)

    activation = {
        "relu": lambda: Activation(),
        "topk": lambda: Activation("topk", 4),
        "signed": lambda: Activation("topk", features - 2, signed=True),
        "jumprelu": lambda: Activation("jumprelu", threshold=draw(features).abs() * 0.5),
    }[kind]()
    targets = (layer,) if targets is None else targets
    decoders = {target: draw(features, d_model) * d_model**-0.5 for target in targets}
    return LayerDictionary(
        layer, draw(features, d_model) * d_model**-0.5, draw(features) * 0.3, decoders, draw(d_model),
        activation, reads, predicts, draw(d_model, d_model) * d_model**-0.5 if skip else None,  # type: ignore[arg-type]
    )  # fmt: skip


def random_dictionary(n_layers: int = LAYERS, *, clt: bool = False, only: tuple[int, ...] | None = None, **how: Any) -> Transcoders:
    layers = range(n_layers) if only is None else only
    made = [random_layer(i, targets=tuple(range(i, n_layers)) if clt else None, **how) for i in layers]
    return Transcoders({one.layer: one for one in made}, {"format": "random", "model": None, "scan": None})


def perfect(instrument: Any) -> Transcoders:
    """A model's ReLU neurons as a dictionary: the truth is known."""
    layers = {}
    for i, layer in enumerate(instrument.parts.layers):
        block: Any = layer.block
        bias = block.fc2.bias.detach()
        layers[i] = LayerDictionary(
            i, block.fc1.weight.detach(), block.fc1.bias.detach(), {i: block.fc2.weight.detach().T}, bias, Activation(), "mlp_in", "mlp"
        )  # fmt: skip
    return Transcoders(layers)


def save(tensors: dict[str, torch.Tensor], path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, path)


def write_circuit_tracer(made: Transcoders, folder: Path, **entries: Any) -> Path:
    first = made.layers[0]
    config = {
        "model_kind": "transcoder_set",
        "model_name": "org/model",
        "scan": "org/scan",
        "feature_input_hook": {"mlp_in": "mlp.hook_in", "resid_mid": "hook_resid_mid", "normalized": "ln2.hook_normalized"}[
            first.reads
        ],
        "feature_output_hook": {"mlp_out": "hook_mlp_out", "mlp": "mlp.hook_out"}[first.predicts],
    }
    if first.activation.kind != "jumprelu":
        config["activation"] = first.activation.kind
    if first.activation.k is not None:
        config["k"] = first.activation.k
    for i, one in made.layers.items():
        tensors = {"W_enc": one.encoder, "b_enc": one.encoder_bias, "W_dec": one.decoders[i], "b_dec": one.bias}
        if one.activation.threshold is not None:
            tensors["activation_function.threshold"] = one.activation.threshold
        if one.skip is not None:
            tensors["W_skip"] = one.skip.T
        save(tensors, folder / f"layer_{i}.safetensors")
    (folder / "config.yaml").write_text(yaml.safe_dump({k: v for k, v in (config | entries).items() if v is not ...}))
    return folder


def write_clt(made: Transcoders, folder: Path, **entries: Any) -> Path:
    for i, one in made.layers.items():
        tensors = {f"W_enc_{i}": one.encoder, f"b_enc_{i}": one.encoder_bias, f"b_dec_{i}": one.bias}
        if one.activation.threshold is not None:
            tensors[f"threshold_{i}"] = one.activation.threshold
        save(tensors, folder / f"W_enc_{i}.safetensors")
        save({f"W_dec_{i}": torch.stack([one.decoders[j] for j in sorted(one.decoders)], 1)}, folder / f"W_dec_{i}.safetensors")
    config = {
        "model_kind": "cross_layer_transcoder",
        "model_name": "org/model",
        "scan": "org/scan",
        "feature_input_hook": "hook_resid_mid",
        "feature_output_hook": "hook_mlp_out",
    }
    (folder / "config.yaml").write_text(yaml.safe_dump(config | entries))
    return folder


def write_gemma_scope(made: Transcoders, folder: Path) -> Path:
    for i, one in made.layers.items():
        path = folder / f"layer_{i}" / "width_16k" / "average_l0_7" / "params.npz"
        path.parent.mkdir(parents=True)
        arrays = {
            "W_enc": one.encoder.T,
            "b_enc": one.encoder_bias,
            "W_dec": one.decoders[i],
            "b_dec": one.bias,
            "threshold": one.activation.threshold,
        }
        np.savez(path, **{name: tensor.numpy() for name, tensor in arrays.items()})  # type: ignore[union-attr]
    return folder


def write_gemma_scope_2(made: Transcoders, folder: Path, **entries: Any) -> Path:
    for i, one in made.layers.items():
        home = folder / f"layer_{i}_width_16k_l0_small{'' if one.skip is None else '_affine'}"
        save(gemma_scope_2_tensors(one, one.decoders[i]), home / "params.safetensors")
        (home / "config.json").write_text(json.dumps(gemma_scope_2_config(i, one.skip is not None) | entries))
    return folder


def write_gemma_scope_2_clt(made: Transcoders, folder: Path, **entries: Any) -> Path:
    for i, one in made.layers.items():
        whole = torch.zeros(one.n_features, len(made.layers), one.d_model)
        for j, decoder in one.decoders.items():
            whole[:, j] = decoder
        save(gemma_scope_2_tensors(one, whole), folder / f"params_layer_{i}.safetensors")
    (folder / "config.json").write_text(
        json.dumps(gemma_scope_2_config(0, made.layers[0].skip is not None) | {"type": "clt"} | entries)
    )
    return folder


def gemma_scope_2_tensors(one: LayerDictionary, decoder: torch.Tensor) -> dict[str, torch.Tensor]:
    tensors = {
        "w_enc": one.encoder.T,
        "b_enc": one.encoder_bias,
        "w_dec": decoder,
        "b_dec": one.bias,
        "threshold": one.activation.threshold,
    }
    return tensors if one.skip is None else tensors | {"affine_skip_connection": one.skip}  # type: ignore[return-value]


def gemma_scope_2_config(layer: int, affine: bool) -> dict[str, Any]:
    return {
        "hf_hook_point_in": f"model.layers.{layer}.pre_feedforward_layernorm.output",
        "hf_hook_point_out": f"model.layers.{layer}.post_feedforward_layernorm.output",
        "model_name": "org/model",
        "architecture": "jump_relu",
        "width": F,
        "l0": 7,
        "type": "transcoder",
        "affine_connection": affine,
    }


def write_saelens(made: Transcoders, folder: Path, **entries: Any) -> Path:
    for i, one in made.layers.items():
        tensors = {"W_enc": one.encoder.T, "b_enc": one.encoder_bias, "W_dec": one.decoders[i], "b_dec": one.bias}
        kind = "transcoder" if one.skip is None else "skip_transcoder"
        if one.activation.threshold is not None:
            kind, tensors["threshold"] = f"jumprelu_{kind}", one.activation.threshold
        if one.skip is not None:
            tensors["W_skip"] = one.skip.T
        config = {
            "architecture": kind,
            "d_in": one.d_model,
            "d_sae": one.n_features,
            "d_out": one.d_model,
            "dtype": "float32",
            "device": "cpu",
            "apply_b_dec_to_input": False,
            "normalize_activations": "none",
            "reshape_activations": "none",
            "metadata": {
                "model_name": "org/model",
                "hook_name": f"blocks.{i}.ln2.hook_normalized",
                "hook_name_out": f"blocks.{i}.hook_mlp_out",
                "sae_lens_version": "6.0",
            },
        }
        if one.activation.kind == "topk":
            config |= {"activation_fn_str": "topk", "activation_fn_kwargs": {"k": one.activation.k}}
        home = folder / f"layer_{i}"
        save(tensors, home / "sae_weights.safetensors")
        (home / "cfg.json").write_text(json.dumps({k: v for k, v in (config | entries).items() if v is not ...}))
    return folder


def write_sparsify(made: Transcoders, folder: Path, **entries: Any) -> Path:
    for i, one in made.layers.items():
        tensors = {"encoder.weight": one.encoder, "encoder.bias": one.encoder_bias, "W_dec": one.decoders[i], "b_dec": one.bias}
        if one.skip is not None:
            tensors["W_skip"] = one.skip.T
        config = {
            "activation": "topk",
            "expansion_factor": 32,
            "normalize_decoder": False,
            "num_latents": one.n_features,
            "k": one.activation.k,
            "multi_topk": False,
            "skip_connection": one.skip is not None,
            "transcode": True,
            "d_in": one.d_model,
        }
        home = folder / f"layers.{i}.mlp"
        save(tensors, home / "sae.safetensors")
        (home / "cfg.json").write_text(json.dumps({k: v for k, v in (config | entries).items() if v is not ...}))
    return folder
