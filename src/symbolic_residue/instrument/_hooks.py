"""Module hooks of one attached forward: every point but the attention function's own tensors is read and edited here.

1. Each point is the input or output of a module that the family table names; only the modules that the asked points and edits need are hooked.
2. At a point the edits act first, in their order; then the tensor is recorded when it was asked for.
3. ``resid_mid`` lies between two modules: an edit reaches it through the attention's contribution, ``attn_out' = resid_mid' − resid_pre``.
"""

from __future__ import annotations

from typing import Any, TYPE_CHECKING

from torch import nn, Tensor

from symbolic_residue.instrument._edits import Add, apply_tensor_edits, Replace, Scale
from symbolic_residue.instrument._trace import Trace
from symbolic_residue.types import Point

if TYPE_CHECKING:
    from symbolic_residue.models import Parts

__all__ = ["Hooks", "TensorEdits"]

TensorEdits = dict[Point, list[Add | Replace | Scale]]


class Hooks:
    """The module hooks of one attached forward."""

    def __init__(self, parts: Parts, trace: Trace, points: set[Point], edits: TensorEdits) -> None:
        self.parts, self.trace, self.points, self.edits = parts, trace, points, edits
        self._resid_pre: dict[int, Tensor] = {}

    def _visit(self, point: Point, tensor: Tensor) -> Tensor:
        """Edit, then read, the tensor at a point."""
        tensor = apply_tensor_edits(tensor, self.edits.get(point, ()), point)
        if point in self.points:
            self.trace.tensors[point] = tensor.detach()
        return tensor

    def _active(self, *kinds: str, layer: int) -> bool:
        wanted = {Point(kind, layer) for kind in kinds}  # type: ignore[arg-type]
        return bool(wanted & self.points or wanted & self.edits.keys())

    def attention_tensor(self, kind: str, layer: int, tensor: Tensor) -> Tensor:
        """q, k or v as the attention function gets it, ``[batch, head, query, d_head]``."""
        if not self._active(kind, layer=layer):
            return tensor
        return self._visit(Point(kind, layer), tensor.transpose(1, 2)).transpose(1, 2)  # type: ignore[arg-type]

    def register(self, model: nn.Module) -> list[Any]:
        """Put the hooks in place; the handles remove them."""
        handles: list[Any] = []
        for i, layer in enumerate(self.parts.layers):
            mid_edits = bool(self.edits.get(Point("resid_mid", i)))
            if self._active("resid_pre", layer=i) or mid_edits:
                handles.append(layer.block.register_forward_pre_hook(self._block_input(i), with_kwargs=True))
            if self._active("z", layer=i):
                handles.append(layer.o_proj.register_forward_pre_hook(self._z(i)))
            if self._active("attn_out", layer=i) or mid_edits:
                module = layer.post_attn_norm.module if layer.post_attn_norm is not None else layer.attn
                handles.append(module.register_forward_hook(self._attn_out(i)))
            if Point("resid_mid", i) in self.points:
                handles.append(layer.pre_mlp_norm.module.register_forward_pre_hook(self._read_input(Point("resid_mid", i))))
            if self._active("mlp_in", layer=i):
                handles.append(layer.mlp.register_forward_pre_hook(self._input(Point("mlp_in", i))))
            if self._active("mlp_act", layer=i):
                handles.append(layer.mlp_down.register_forward_pre_hook(self._input(Point("mlp_act", i))))
            if self._active("mlp_out", layer=i):
                module = layer.post_mlp_norm.module if layer.post_mlp_norm is not None else layer.mlp
                handles.append(module.register_forward_hook(self._output(Point("mlp_out", i))))
            if self._active("resid_post", layer=i):
                handles.append(layer.block.register_forward_hook(self._output(Point("resid_post", i))))
        if Point("logits") in self.edits:
            handles.append(model.register_forward_hook(self._logits))
        return handles

    def _block_input(self, i: int) -> Any:
        def hook(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
            tensor = args[0] if args else kwargs["hidden_states"]
            tensor = self._visit(Point("resid_pre", i), tensor)
            self._resid_pre[i] = tensor
            return ((tensor, *args[1:]), kwargs) if args else (args, kwargs | {"hidden_states": tensor})

        return hook

    def _z(self, i: int) -> Any:
        def hook(module: nn.Module, args: tuple[Any, ...]) -> Any:
            flat = args[0]
            heads = flat.view(*flat.shape[:2], self.parts.n_heads, -1)
            return (self._visit(Point("z", i), heads).reshape(flat.shape), *args[1:])

        return hook

    def _attn_out(self, i: int) -> Any:
        def hook(module: nn.Module, args: Any, output: Any) -> Any:
            tensor = self._visit(Point("attn_out", i), output[0] if isinstance(output, tuple) else output)
            mid = self.edits.get(Point("resid_mid", i))
            if mid:
                before = self._resid_pre[i] + tensor
                tensor = apply_tensor_edits(before, mid, Point("resid_mid", i)) - self._resid_pre[i]
            return (tensor, *output[1:]) if isinstance(output, tuple) else tensor

        return hook

    def _read_input(self, point: Point) -> Any:
        def hook(module: nn.Module, args: tuple[Any, ...]) -> None:
            self.trace.tensors[point] = args[0].detach()

        return hook

    def _input(self, point: Point) -> Any:
        def hook(module: nn.Module, args: tuple[Any, ...]) -> Any:
            return (self._visit(point, args[0]), *args[1:])

        return hook

    def _output(self, point: Point) -> Any:
        def hook(module: nn.Module, args: Any, output: Any) -> Any:
            if isinstance(output, tuple):
                return (self._visit(point, output[0]), *output[1:])
            return self._visit(point, output)

        return hook

    def _logits(self, module: nn.Module, args: Any, output: Any) -> Any:
        output.logits = apply_tensor_edits(output.logits, self.edits[Point("logits")], Point("logits"))
        return output
