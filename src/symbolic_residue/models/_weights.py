"""Weights of linear modules with named axes, and the checks that a module holds plain weights at all.

1. ``weight_in_out`` gives ``[in, out]`` for Linear (stored ``[out, in]``) and Conv1D (stored ``[in, out]``) alike.
2. A LoRA layer of PEFT that is still attached counts with its effective weight, W + Σ (alpha / r) B A over the adapters that act now
   (Hu et al. 2021), read anew at every call, so that switching an adapter off or to another one is seen.
3. Anything else that stands in for a linear (quantised, packed, offloaded) has no plain weight to read and is refused.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import nn, Tensor

from symbolic_residue.errors import AdapterError, UnsupportedModelError, VerificationError

__all__ = ["base_of", "check_linear", "check_plain", "check_shape", "is_lora", "linear_bias", "module_at", "weight_in_out"]

_MERGE = "Merge it first: model = model.merge_and_unload(), or load with load_model(base, adapter=folder)."


def is_lora(module: Any) -> bool:
    """Whether the module is a layer of PEFT around a base layer; told by its package, because peft is optional."""
    return type(module).__module__.split(".")[0] == "peft" and hasattr(module, "base_layer")


def base_of(module: Any) -> Any:
    """The module that an adapter's layer wraps, or the module itself."""
    return module.base_layer if is_lora(module) else module


def weight_in_out(module: Any) -> Tensor:
    """``[in, out]``: what acts now, adapters included."""
    base = base_of(module)
    weight = base.weight.detach()
    weight = weight.T if isinstance(base, nn.Linear) else weight
    for delta in _deltas(module):
        weight = weight + (delta.T if isinstance(base, nn.Linear) else delta).to(weight.dtype)
    return weight


def linear_bias(module: Any) -> Tensor | None:
    """Bias ``[out]`` of a linear, or ``None``."""
    found = base_of(module).bias
    return None if found is None else found.detach()


def _deltas(module: Any) -> list[Tensor]:
    """What is missing from the base weight to what acts in the next forward, in the base's own layout."""
    if not is_lora(module):
        return []
    merged = list(module.merged_adapters)
    with torch.no_grad():
        if module.disable_adapters:  # the next forward takes merged adapters out again
            return [-module.get_delta_weight(name).detach() for name in merged]
        if merged:  # then the base weight acts as it is
            return []
        return [module.get_delta_weight(name).detach() for name in module.active_adapters if name in module.lora_A]


def module_at(root: nn.Module, path: str, kind: type[Any], where: str = "") -> Any:
    """The module at a dotted path; its kind is that of what an adapter may wrap.

    Raises:
        VerificationError: there is none, or one of another kind.
    """
    name = f"{where}.{path}" if where else path
    module: Any = root
    for step in path.split("."):
        module = getattr(base_of(module), step, None)
        if type(module).__module__.split(".")[0] == "peft" and not is_lora(module):
            raise AdapterError(f"{name} is replaced by an adapter's {type(module).__name__}.", todo=_MERGE)
    if not isinstance(base_of(module), kind):
        found = "nothing" if module is None else type(module).__name__
        raise VerificationError(
            f"{name}: expected {kind.__name__}, found {found}.", why="The family table does not fit this model."
        )
    return module


def check_plain(module: Any, name: str) -> None:
    """A linear whose weight is the matrix that acts, or a LoRA layer around one.

    Raises:
        AdapterError: an adapter that does not simply add to the weight.
        UnsupportedModelError: a quantised or wrapped linear, or one whose weights are not in memory.
    """
    from transformers.pytorch_utils import Conv1D

    if type(module).__module__.split(".")[0] == "peft":
        _check_adapter(module, name)
        module = module.base_layer
    # Quantised layers subclass Linear, and their weight is not the matrix that acts; Falcon's own Linear only spells out the product.
    plain = type(module) in (nn.Linear, Conv1D) or (
        type(module).__name__ == "FalconLinear" and type(module).__module__.startswith("transformers.models.falcon")
    )
    if not plain or not module.weight.is_floating_point():
        raise UnsupportedModelError(
            f"{name} is a {type(module).__name__} holding {module.weight.dtype if hasattr(module, 'weight') else 'no weight'}.",
            why="Quantised or wrapped linears have no plain weight matrix to read.",
            todo="Load the model dequantised (float32, float16 or bfloat16).",
        )


def _check_adapter(module: Any, name: str) -> None:
    kind = type(module).__name__
    if not (hasattr(module, "base_layer") and hasattr(module, "get_delta_weight") and hasattr(module, "lora_A")):
        raise AdapterError(f"{name} carries an adapter of the kind {kind}, which is not LoRA.", todo=_MERGE)
    for adapter in module.lora_A:
        if adapter in getattr(module, "lora_variant", {}) or getattr(module, "use_dora", {}).get(adapter):
            raise AdapterError(
                f"The adapter {adapter!r} at {name} does not simply add to the weight (DoRA, or another variant of LoRA).",
                why="What it does to the output is no sum of the base's part and its own.",
                todo=_MERGE,
            )
        if getattr(module, "lora_bias", {}).get(adapter):
            raise AdapterError(f"The adapter {adapter!r} at {name} has a bias of its own.", todo=_MERGE)


def check_linear(root: nn.Module, path: str, where: str, in_out: tuple[int | None, int]) -> nn.Module:
    """The linear at a path, with the expected ``[in, out]``.

    Raises:
        VerificationError: missing, or of another shape.
        UnsupportedModelError, AdapterError: see :func:`check_plain`.
    """
    module = module_at(root, path, nn.Module, where)
    name = f"{where}.{path}"
    check_plain(module, name)
    base = base_of(module)
    found = weight_in_out(base)
    check_shape(f"{name} as [in, out]", found, tuple(s if w is None else w for s, w in zip(found.shape, in_out, strict=True)))
    added = linear_bias(base)
    if added is not None:
        check_shape(f"{name}.bias", added, (in_out[1],))
    return module


def check_shape(name: str, tensor: Tensor, expected: tuple[int, ...]) -> None:
    """Compare a tensor's shape with what the config asks for.

    Raises:
        VerificationError: they differ.
    """
    if tuple(tensor.shape) != expected:
        raise VerificationError(
            f"{name} has shape {list(tensor.shape)}; the config asks for {list(expected)}.",
            why="The family table does not fit this model.",
        )
