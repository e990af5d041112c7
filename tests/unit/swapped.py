"""The transformers model with a dictionary in the place of its MLPs, by plain hooks: what runs of features are compared with."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

from symbolic_residue.dictionaries import Transcoders
from symbolic_residue.instrument import Instrument

Change = Callable[[int, torch.Tensor], torch.Tensor]


class Swapped:
    """``run`` gives the last logits and keeps what it saw: by layer what is read, the features used, and the MLP's output where it is predicted.

    Every tensor is ``[sequence, position, …]``; only positions ``first`` on are swapped.
    """

    def __init__(self, instrument: Instrument, dictionary: Transcoders, first: int = 0) -> None:
        self.model, self.parts, self.dictionary, self.first = instrument.model, instrument.parts, dictionary, first
        self.read: dict[int, torch.Tensor] = {}
        self.live: dict[int, torch.Tensor] = {}
        self.used: dict[int, torch.Tensor] = {}
        self.true: dict[int, torch.Tensor] = {}

    def run(
        self,
        change: Change | None = None,
        errors: dict[int, torch.Tensor] | None = None,
        neurons: Change | None = None,
        **inputs: Any,
    ) -> torch.Tensor:
        """``change``: of the features, where they stand in (with their errors); ``neurons``: of the activations in layers without a dictionary."""
        handles = []
        for i, layer in enumerate(self.parts.layers):
            if i not in self.dictionary.layers:
                if neurons is not None:
                    handles.append(layer.mlp_down.register_forward_pre_hook(lambda m, a, i=i: (neurons(i, a[0]),)))  # type: ignore[union-attr]
                continue
            one, norm = self.dictionary.layers[i], layer.pre_mlp_norm
            if one.reads == "mlp_in":
                handles.append(layer.mlp.register_forward_pre_hook(lambda m, a, i=i: self.read.__setitem__(i, a[0])))  # type: ignore[union-attr]
            else:
                handles.append(norm.module.register_forward_pre_hook(lambda m, a, i=i: self.read.__setitem__(i, a[0])))  # type: ignore[union-attr]
            inside = one.predicts == "mlp" or layer.post_mlp_norm is None
            module: Any = layer.mlp if inside else layer.post_mlp_norm.module  # type: ignore[union-attr]
            handles.append(module.register_forward_hook(lambda m, a, out, i=i: self._swap(i, out, change, errors)))
        try:
            return self.model(**inputs, use_cache=False).logits[:, -1]
        finally:
            for handle in handles:
                handle.remove()

    def errors(self, ids: torch.Tensor) -> dict[int, torch.Tensor]:
        """Of the model's own run."""
        with torch.no_grad():
            self.run(input_ids=ids)
        return {i: self.true[i] - self._predicted(i, self.live, self._seen(i)) for i in self.dictionary.layers}

    def _seen(self, i: int) -> torch.Tensor:
        one, norm, x = self.dictionary.layers[i], self.parts.layers[i].pre_mlp_norm, self.read[i]
        if one.reads != "normalized":
            return x
        x = x - x.mean(-1, keepdim=True) if norm.kind == "layer" else x  # type: ignore[union-attr]
        return x / (x.square().mean(-1, keepdim=True) + norm.eps).sqrt()  # type: ignore[union-attr]

    def _predicted(self, j: int, acts: dict[int, torch.Tensor], x: torch.Tensor) -> torch.Tensor:
        one = self.dictionary.layers[j]
        y = one.bias + sum(acts[i] @ other.decoders[j] for i, other in self.dictionary.layers.items() if j in other.decoders)
        return y if one.skip is None else y + x @ one.skip

    def _swap(
        self, i: int, out: torch.Tensor, change: Change | None, errors: dict[int, torch.Tensor] | None
    ) -> torch.Tensor | None:
        x = self._seen(i)
        self.true[i] = out.detach()
        self.live[i] = self.dictionary.layers[i].encode(x)
        self.used[i] = self.live[i] if change is None else change(i, self.live[i])
        if errors is None:
            return None
        y = self._predicted(i, self.used, x) + errors[i]
        return torch.cat([out[:, : self.first], y[:, self.first :]], 1)
