"""Running only some of a model's blocks, from a residual stream that an earlier run left.

1. For one forward every block that is not asked for is short-circuited: its ``forward`` hands its input on. The model itself still makes masks,
   positions and rotations as always, so no family needs code of its own.
2. A hook on the first block that does run puts the given residual stream in place of what came through.
3. ``Walk`` takes a run block by block, so that one layer's activations are in memory at a time. All of its blocks together are the plain forward, bit for bit;
   ``verify`` holds the model to that (an architecture whose blocks exchange more than the residual stream is refused).
4. Whatever happens, every ``forward`` and every hook is as before on the way out.

An edit at layer L leaves the layers below as they were, so patched runs restart at block L (over all layers, half of the blocks' work is left
away), and all of a layer's patches run as one batch.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, ExitStack
from typing import Any, TYPE_CHECKING

import torch
from torch import nn, Tensor

from symbolic_residue.errors import InstrumentError
from symbolic_residue.types import Point

if TYPE_CHECKING:
    from symbolic_residue.instrument import Edit, Instrument, Trace

__all__ = ["Walk", "frozen_parameters"]


class Walk:
    """One unedited run, standing before block ``layer``.

    Args:
        instrument: the model's.
        ids: ``[sequence, query]``, without padding.

    Attributes:
        logits: ``[sequence, vocab]`` of the last row of the plain forward, float32.
        layer: the block that comes next.
        residual: what it will read, ``[sequence, query, d_model]``.

    Raises:
        InstrumentError: more tokens than the model's context; logits that are not finite.
        AttentionError: attention that the instrument does not serve.
    """

    def __init__(self, instrument: Instrument, ids: Tensor) -> None:
        self.instrument = instrument
        self.ids = ids.to(instrument.device)
        limit = instrument.parts.max_context
        if limit is not None and ids.shape[1] > limit:
            raise InstrumentError(f"{ids.shape[1]} tokens are more than the model's context of {limit}.", todo="Shorten the text.")
        self._tuples: list[int | None] = [None] * instrument.parts.n_layers
        with ExitStack() as stack:
            for i, layer in enumerate(instrument.parts.layers):
                stack.callback(layer.block.register_forward_hook(self._shape_of(i)).remove)
            trace = self.run(0, instrument.parts.n_layers, None, reads=("resid_pre.0",))
        self.logits: Tensor = trace["logits"][:, -1].float()
        if not bool(torch.isfinite(self.logits).all()):
            raise InstrumentError("The model's logits hold NaN or infinity.", todo="Use another checkpoint, or a wider dtype.")
        self.layer = 0
        self.residual: Tensor = trace["resid_pre.0"]

    def _shape_of(self, i: int) -> Callable[..., None]:
        def hook(module: nn.Module, args: Any, output: Any) -> None:
            self._tuples[i] = len(output) if isinstance(output, tuple) else None

        return hook

    def ahead(self, reads: Sequence[str] = ()) -> Trace:
        """Run the next block alone without going past it; ``reads`` are points of its layer."""
        # A copy: some blocks add into the tensor that they are given.
        return self.run(self.layer, self.layer + 1, self.residual.clone(), reads=(*reads, f"resid_post.{self.layer}"))

    def step(self, trace: Trace) -> None:
        """Go past the block that :meth:`ahead` ran."""
        self.residual = trace[f"resid_post.{self.layer}"]
        self.layer += 1

    def advance(self, reads: Sequence[str] = ()) -> Trace:
        """Run the next block alone and go past it; ``reads`` are points of its layer."""
        trace = self.ahead(reads)
        self.step(trace)
        return trace

    def tail(self, edits: Sequence[Edit], copies: int, *, sequence: int = 0, grad: bool = False) -> Tensor:
        """Run from the next block to the end with edits, on ``copies`` repeats of one sequence (an edit's ``batch`` names repeats).

        Returns:
            ``[copies, vocab]``, the last row's logits.
        """
        residual = self.residual[sequence : sequence + 1].repeat(copies, 1, 1)
        trace = self.run(self.layer, self.instrument.parts.n_layers, residual, edits=edits, sequence=sequence, grad=grad)
        return trace["logits"][:, -1]

    def run(
        self,
        first: int,
        stop: int,
        residual: Tensor | None,
        *,
        reads: Sequence[str] = (),
        edits: Sequence[Edit] = (),
        sequence: int | None = None,
        grad: bool = False,
    ) -> Trace:
        """Blocks ``first`` up to ``stop``, then final norm and unembedding of the last row.

        Args:
            first: the first block that runs.
            stop: the block after the last one that runs.
            residual: what the first block reads, ``[batch, query, d_model]``; None for the embedded ids (``first`` is 0).
            reads: points.
            edits: what to change.
            sequence: the sequence of ``ids`` that the whole batch repeats; None where the batch is ``ids``.
            grad: whether the result is to have gradients.

        Raises:
            InstrumentError: a block that should run did not call its attention once.
        """
        instrument = self.instrument
        n_batch = len(self.ids) if residual is None else len(residual)
        ids = self.ids if sequence is None else self.ids[sequence : sequence + 1].expand(n_batch, -1)
        layers = instrument.parts.layers
        with ExitStack() as stack:
            stack.enter_context(torch.set_grad_enabled(grad))
            for i, layer in enumerate(layers):
                if not first <= i < stop:
                    stack.enter_context(_passing_on(layer.block, self._tuples[i]))
            if residual is not None:  # before the instrument's own hooks, so that these see the given stream
                stack.callback(layers[first].block.register_forward_pre_hook(_putting(residual), with_kwargs=True).remove)
            trace = stack.enter_context(instrument.attached(reads=reads, edits=edits))
            call = {"attention_mask": torch.ones_like(ids), "use_cache": False, "logits_to_keep": 1}
            trace.logits = instrument.model(input_ids=ids, **call).logits
        for i in range(first, stop):
            if getattr(layers[i], "attn", None) is not None and trace.calls.get(i, 0) != 1:
                raise InstrumentError(f"Block {i} called its attention {trace.calls.get(i, 0)} times instead of once.")
        return trace

    def verify(self) -> None:
        """Walk a copy of this run to its end and compare the logits with the plain forward's.

        Raises:
            InstrumentError: they differ: this model's blocks exchange more than the residual stream.
        """
        residual = self.residual.clone()
        why = "Its blocks hand each other more than the residual stream, so a run cannot restart between them."
        trace = None
        for layer in range(self.layer, self.instrument.parts.n_layers):
            post = f"resid_post.{layer}"
            try:
                trace = self.run(layer, layer + 1, residual, reads=(post,))
            except (KeyError, IndexError, TypeError, AttributeError, RuntimeError) as error:
                raise InstrumentError(f"Block {layer} does not run by itself in this model.", why=why) from error
            residual = trace[post]
        if trace is None:
            return
        logits = trace["logits"][:, -1].float()
        scale = 1.0 + float(self.logits.abs().max())
        # The same operations on the same shapes; the allowance is for kernels that are not deterministic.
        tolerance = 1e-4 if trace.tensors[Point("resid_post", self.instrument.parts.n_layers - 1)].dtype == torch.float32 else 2e-2
        worst = float((logits - self.logits).abs().max())
        if not worst <= tolerance * scale:
            raise InstrumentError(f"Restarting this model's blocks changes its logits by {worst:.2g}.", why=why)


@contextmanager
def _passing_on(block: nn.Module, tuple_length: int | None) -> Iterator[None]:
    """The block hands its input on, in the form in which it hands over its output."""

    def forward(*args: Any, **kwargs: Any) -> Any:
        hidden = args[0] if args else kwargs["hidden_states"]
        return hidden if tuple_length is None else (hidden, *(None,) * (tuple_length - 1))

    own = block.__dict__.get("forward")
    block.__dict__["forward"] = forward
    try:
        yield
    finally:
        if own is None:
            del block.__dict__["forward"]
        else:
            block.__dict__["forward"] = own


def _putting(residual: Tensor) -> Callable[..., Any]:
    """A pre-hook that gives the block this residual stream."""

    def hook(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        return ((residual, *args[1:]), kwargs) if args else (args, kwargs | {"hidden_states": residual})

    return hook


@contextmanager
def frozen_parameters(model: nn.Module) -> Iterator[None]:
    """No gradients for weights, so that a backward through activations keeps nothing for them; as before on the way out."""
    wanting = [parameter for parameter in model.parameters() if parameter.requires_grad]
    for parameter in wanting:
        parameter.requires_grad_(False)
    try:
        yield
    finally:
        for parameter in wanting:
            parameter.requires_grad_(True)
