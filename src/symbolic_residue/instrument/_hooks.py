"""Module hooks of one attached forward: every point but the attention function's own tensors is read and edited here.

1. Each point is the input or output of a module that the family table names; only the modules that the asked points and edits need are hooked.
   A point that the layer does not have is refused before anything is hooked.
2. At a point the edits act first, in their order; then the tensor is recorded when it was asked for. Without an edit a module's tensor passes
   untouched, bit for bit.
3. ``attn_out``, ``mixer_out`` and ``mlp_out`` are the contributions as they are added to the residual stream: after the norm of the output, where
   there is one, times the block's constant factor. An edited contribution is divided by that factor before the block gets it back.
4. ``resid_mid`` lies between two modules: an edit reaches it through the last contribution before it,
   ``attn_out' = resid_mid' − resid_pre − mixer_out``.
"""

from __future__ import annotations

from typing import Any, Literal, TYPE_CHECKING

from torch import nn, Tensor

from symbolic_residue.instrument._edits import Add, apply_tensor_edits, Replace, Scale
from symbolic_residue.instrument._trace import Trace
from symbolic_residue.types import Point

if TYPE_CHECKING:
    from symbolic_residue.models import LayerParts, Parts

__all__ = ["Hooks", "TensorEdits"]

TensorEdits = dict[Point, list[Add | Replace | Scale]]


class Hooks:
    """The module hooks of one attached forward.

    Raises:
        ReadError: a point to read or to edit that its layer does not have.
    """

    def __init__(self, parts: Parts, trace: Trace, points: set[Point], edits: TensorEdits) -> None:
        self.parts, self.trace, self.points, self.edits = parts, trace, points, edits
        for point in sorted({*points, *edits}, key=str):
            parts.check_point(point)
        self._before: dict[int, Tensor] = {}
        """Residual stream of a layer before its last contribution to ``resid_mid``."""
        self._shape: dict[int, tuple[int, int]] = {}
        """``(batch, query)`` of a block that joins the two axes for its MLP (opt)."""

    def _visit(self, point: Point, tensor: Tensor) -> Tensor:
        """Edit, then read, the tensor at a point."""
        shape = tensor.shape
        if tensor.dim() == 2 and point.layer in self._shape:
            tensor = tensor.unflatten(0, self._shape[point.layer])
        tensor = apply_tensor_edits(tensor, self.edits.get(point, ()), point)
        if point in self.points:
            self.trace.record(point, tensor.detach())
        return tensor.reshape(shape)

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
        for layer in self.parts.layers:
            handles += self._register_layer(layer)
        if Point("logits") in self.edits:
            handles.append(model.register_forward_hook(self._logits))
        return handles

    def _register_layer(self, layer: LayerParts) -> list[Any]:
        i, handles = layer.index, []
        mid_edits = bool(self.edits.get(Point("resid_mid", i)))
        if self.parts.spec.mlp_up is not None:
            handles.append(layer.block.register_forward_pre_hook(self._note_shape(i), with_kwargs=True))
        if self._active("resid_pre", layer=i) or mid_edits:
            handles.append(layer.block.register_forward_pre_hook(self._block_input(i), with_kwargs=True))
        if self._active("z", layer=i):
            assert layer.o_proj is not None
            handles.append(layer.o_proj.register_forward_pre_hook(self._z(i)))
        if layer.attn is not None and (self._active("attn_out", layer=i) or mid_edits):
            module = layer.post_attn_norm.module if layer.post_attn_norm is not None else layer.attn
            mid = "last" if mid_edits else None
            handles.append(module.register_forward_hook(self._contribution(Point("attn_out", i), layer.attn_scale, mid)))
        if layer.mixer is not None and (self._active("mixer_out", layer=i) or mid_edits):
            # Beside attention (falcon_h1) the mixer runs first.
            mid = None if not mid_edits else "last" if layer.attn is None else "first"
            handles.append(layer.mixer.register_forward_hook(self._contribution(Point("mixer_out", i), layer.mixer_scale, mid)))
        if Point("resid_mid", i) in self.points:
            module = layer.pre_mlp_norm.module if layer.pre_mlp_norm is not None else layer.mlp_up
            assert module is not None
            handles.append(module.register_forward_pre_hook(self._read_mid(Point("resid_mid", i))))
        if self._active("mlp_in", layer=i):
            assert layer.mlp_up is not None
            handles.append(layer.mlp_up.register_forward_pre_hook(self._input(Point("mlp_in", i))))
        if self._active("mlp_act", layer=i):
            assert layer.mlp_down is not None
            handles.append(layer.mlp_down.register_forward_pre_hook(self._input(Point("mlp_act", i))))
        if self._active("mlp_out", layer=i):
            module = layer.post_mlp_norm.module if layer.post_mlp_norm is not None else layer.mlp or layer.mlp_down
            assert module is not None
            handles.append(module.register_forward_hook(self._contribution(Point("mlp_out", i), layer.mlp_scale)))
        if self._active("resid_post", layer=i):
            handles.append(layer.block.register_forward_hook(self._output(Point("resid_post", i))))
        return handles

    def _note_shape(self, i: int) -> Any:
        def hook(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            self._shape[i] = (args[0] if args else kwargs["hidden_states"]).shape[:2]

        return hook

    def _block_input(self, i: int) -> Any:
        def hook(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
            tensor = args[0] if args else kwargs["hidden_states"]
            tensor = self._visit(Point("resid_pre", i), tensor)
            self._before[i] = tensor
            return ((tensor, *args[1:]), kwargs) if args else (args, kwargs | {"hidden_states": tensor})

        return hook

    def _z(self, i: int) -> Any:
        def hook(module: nn.Module, args: tuple[Any, ...]) -> Any:
            flat = args[0]
            heads = flat.view(*flat.shape[:2], self.parts.n_heads, -1)
            return (self._visit(Point("z", i), heads).reshape(flat.shape), *args[1:])

        return hook

    def _contribution(self, point: Point, scale: float, mid: Literal["first", "last"] | None = None) -> Any:
        """Hook of a module whose output, times ``scale``, is added to the residual stream.

        ``mid`` says that the layer's ``resid_mid`` is edited, and whether this contribution is the last before it.
        """
        middle = self.edits.get(Point("resid_mid", point.layer), []) if mid == "last" else []
        edited = bool(self.edits.get(point) or middle)

        def hook(module: nn.Module, args: Any, output: Any) -> Any:
            raw = output[0] if isinstance(output, tuple) else output
            # A clone where the block goes on adding into the very tensor (falcon).
            tensor = self._visit(point, raw * scale if scale != 1.0 else raw.clone())
            if mid is not None:
                before = self._before[point.layer]  # type: ignore[index]
                after = before + tensor
                if middle:
                    after = apply_tensor_edits(after, middle, Point("resid_mid", point.layer))
                    tensor = after - before
                self._before[point.layer] = after  # type: ignore[index]
            if not edited:
                return None
            back = tensor / scale if scale != 1.0 else tensor.clone()
            return (back, *output[1:]) if isinstance(output, tuple) else back

        return hook

    def _read_mid(self, point: Point) -> Any:
        """``resid_mid`` was edited before it reaches this module: only read it."""

        def hook(module: nn.Module, args: tuple[Any, ...]) -> None:
            tensor = args[0].detach()
            if tensor.dim() == 2:
                tensor = tensor.unflatten(0, self._shape[point.layer])  # type: ignore[index]
            self.trace.record(point, tensor)

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
