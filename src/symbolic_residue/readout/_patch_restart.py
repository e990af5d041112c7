"""Running only some of a model's blocks, from a residual stream that an earlier run left, and only some of its rows.

1. For one forward every block that is not asked for is short-circuited: its ``forward`` hands its input on. The model itself still makes masks,
   positions and rotations as always, so no family needs code of its own.
2. A hook on the first block that does run puts the given residual stream in place of what came through.
3. ``Walk`` takes a run a few blocks at a time, so that the activations of a few layers are in memory at once. Its segments together are the plain
   forward, bit for bit; ``verify`` holds every model to that, once (an architecture whose blocks exchange more than the residual stream is refused).
4. A patch at layer L, rows r and later, leaves lower layers and earlier rows as they were. So a ``tail`` restarts at block L; and where attention is
   the only token mixer it runs rows r and later only, against the keys and values of the earlier rows (kept from one unedited forward, in every
   layer and under every window).
5. Whatever happens, every ``forward`` and every hook is as before on the way out.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, ExitStack
from typing import Any, TYPE_CHECKING
from weakref import WeakKeyDictionary

import torch
from torch import nn, Tensor

from symbolic_residue.errors import InstrumentError

if TYPE_CHECKING:
    from symbolic_residue.instrument import Edit, Instrument, Trace

__all__ = ["Walk", "frozen_parameters", "verify"]

_VERIFIED: WeakKeyDictionary[nn.Module, bool] = WeakKeyDictionary()
"""Models whose blocks were found to restart; the value says whether rows may run against a kept prefix."""

_WORTH_KEEPING = 0.25
"""Share of the rows from which on a kept prefix pays for its other attention path."""


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
        self._prefixes: dict[int, Any] = {}
        with ExitStack() as stack:
            for i, layer in enumerate(instrument.parts.layers):
                stack.callback(layer.block.register_forward_hook(self._shape_of(i)).remove)
            trace = self._run(0, instrument.parts.n_layers, None, self.ids, reads=("resid_pre.0",))
        self.logits: Tensor = trace["logits"][:, -1].float()
        if not bool(torch.isfinite(self.logits).all()):
            raise InstrumentError("The model's logits hold NaN or infinity.", todo="Use another checkpoint, or a wider dtype.")
        self.layer = 0
        self.residual: Tensor = trace["resid_pre.0"]

    def _shape_of(self, i: int) -> Callable[..., None]:
        def hook(module: nn.Module, args: Any, output: Any) -> None:
            self._tuples[i] = len(output) if isinstance(output, tuple) else None

        return hook

    def advance(self, stop: int, reads: Sequence[str] = (), edits: Sequence[Edit] = ()) -> Trace:
        """Run the blocks before block ``stop``; ``reads`` are points of theirs, ``edits`` act in them."""
        post = f"resid_post.{stop - 1}"
        # A copy: some blocks add into the tensor that they are given.
        trace = self._run(
            self.layer, stop, self.residual.clone(), self.ids, reads=tuple(dict.fromkeys((*reads, post))), edits=edits
        )
        self.layer, self.residual = stop, trace[post]
        return trace

    def first_row(self, row: int) -> int:
        """The row from which a tail that is edited at ``row`` and later has to run: ``row``, or 0 where no prefix is kept."""
        keeps = _VERIFIED.get(self.instrument.model, False)
        return row if keeps and row >= _WORTH_KEEPING * self.ids.shape[1] else 0

    def tail(
        self, layer: int, residual: Tensor, edits: Sequence[Edit], copies: int, *, first_row: int = 0, grad: bool = False
    ) -> Tensor:
        """Blocks ``layer`` to the last, on ``copies`` repeats of the first sequence (an edit's ``batch`` names repeats).

        Args:
            layer: the first block that runs.
            residual: what it reads in the unedited run, ``[1, query, d_model]``.
            edits: at this layer or later; their rows count from ``first_row``, but at ``k`` and ``v``, which hold the earlier rows too, from 0.
            copies: repeats.
            first_row: rows before it are not run again.
            grad: whether the result is to have gradients.

        Returns:
            ``[copies, vocab]``, the last row's logits.
        """
        rows = residual[:1, first_row:].repeat(copies, 1, 1)
        ids = self.ids[:1, first_row:].expand(copies, -1)
        cached: dict[str, Any] = {}
        if first_row:
            cache = copy.deepcopy(self._prefix(first_row))
            for kept in cache.layers[layer:]:  # those below only tell their length
                kept.batch_repeat_interleave(copies)
            positions = torch.arange(first_row, self.ids.shape[1], device=ids.device)
            cached = {self.instrument.cache_name: cache, "use_cache": True, "position_ids": positions.expand(copies, -1)}
        n_layers = self.instrument.parts.n_layers
        trace = self._run(layer, n_layers, rows, ids, edits=edits, grad=grad, cached=cached)
        return trace["logits"][:, -1]

    def _prefix(self, rows: int) -> Any:
        """Keys and values of the first rows of the first sequence, in all layers."""
        if rows not in self._prefixes:
            from transformers import DynamicCache

            cache = DynamicCache()  # without the config every layer keeps every key, also under a window
            call = {self.instrument.cache_name: cache, "use_cache": True, "logits_to_keep": 1}
            ids = self.ids[:1, :rows]
            positions = torch.arange(rows, device=ids.device)[None]
            with torch.no_grad():
                self.instrument.model(input_ids=ids, attention_mask=torch.ones_like(ids), position_ids=positions, **call)
            self._prefixes[rows] = cache
        return self._prefixes[rows]

    def _run(
        self,
        first: int,
        stop: int,
        residual: Tensor | None,
        ids: Tensor,
        *,
        reads: Sequence[str] = (),
        edits: Sequence[Edit] = (),
        grad: bool = False,
        cached: dict[str, Any] | None = None,
    ) -> Trace:
        """Blocks ``first`` up to ``stop``; the last row's logits only where ``stop`` is the end.

        Raises:
            InstrumentError: a block that should run did not call its attention once.
        """
        instrument = self.instrument
        layers = instrument.parts.layers
        with ExitStack() as stack:
            stack.enter_context(torch.set_grad_enabled(grad))
            for i, layer in enumerate(layers):
                if not first <= i < stop:
                    stack.enter_context(_passing_on(layer.block, self._tuples[i]))
            if stop < len(layers):
                stack.enter_context(_passing_on(instrument.parts.unembed, None))
            if residual is not None:  # before the instrument's own hooks, so that these see the given stream
                stack.callback(layers[first].block.register_forward_pre_hook(_putting(residual), with_kwargs=True).remove)
            trace = stack.enter_context(instrument.attached(reads=reads, edits=edits))
            call: dict[str, Any] = {"use_cache": False, "logits_to_keep": 1} | (cached or {})
            # Of all keys, those of a kept prefix among them.
            mask = torch.ones_like(ids) if not cached else torch.ones_like(self.ids[:1]).expand(len(ids), -1)
            trace.logits = instrument.model(input_ids=ids, attention_mask=mask, **call).logits
        for i in range(first, stop):
            if layers[i].attn is not None and trace.calls.get(i, 0) != 1:
                raise InstrumentError(f"Block {i} called its attention {trace.calls.get(i, 0)} times instead of once.")
        return trace


def verify(walk: Walk) -> None:
    """Take a run to its end block by block, and compare the logits with the plain forward's; once for each model.

    Where attention is the only token mixer, the second half of the rows is also run against a kept prefix. A model that this does not serve always runs
    all rows, which costs time and nothing else.

    Args:
        walk: at its start; it is left there.

    Raises:
        InstrumentError: the logits differ: this model's blocks exchange more than the residual stream.
    """
    model, parts = walk.instrument.model, walk.instrument.parts
    if model in _VERIFIED:
        return
    why = "Its blocks hand each other more than the residual stream, so a run cannot restart between them."
    scout = copy.copy(walk)
    trace = None
    for layer in range(parts.n_layers):
        try:
            trace = scout.advance(layer + 1)
        except torch.OutOfMemoryError:
            raise
        except (KeyError, IndexError, TypeError, AttributeError, RuntimeError) as error:
            raise InstrumentError(f"Block {layer} does not run by itself in this model.", why=why) from error
    assert trace is not None
    worst = _difference(trace["logits"][:, -1], walk.logits)
    if not worst <= 1:
        raise InstrumentError(f"Restarting this model's blocks changes its logits, to {worst:.2g} times the tolerance.", why=why)
    n_rows = walk.ids.shape[1]
    if n_rows < 4 or any(layer.attn is None or layer.mixer is not None for layer in parts.layers):
        if n_rows >= 4:
            _VERIFIED[model] = False
        return
    try:
        again = walk.tail(0, walk.residual, (), 2, first_row=n_rows // 2)
        _VERIFIED[model] = _difference(again, walk.logits[:1].expand_as(again)) <= 1
    except (InstrumentError, KeyError, IndexError, TypeError, AttributeError, RuntimeError, ValueError):
        _VERIFIED[model] = False


def _difference(logits: Tensor, want: Tensor) -> float:
    """Largest difference, in units of what rounding may do."""
    allowed = (2e-5 if logits.dtype in (torch.float32, torch.float64) else 2e-2) * (1.0 + float(want.abs().max()))
    return float((logits.float() - want).abs().max()) / allowed


@contextmanager
def _passing_on(module: nn.Module, tuple_length: int | None) -> Iterator[None]:
    """The module hands its input on, in the form in which it hands over its output."""

    def forward(*args: Any, **kwargs: Any) -> Any:
        hidden = args[0] if args else kwargs["hidden_states"]
        return hidden if tuple_length is None else (hidden, *(None,) * (tuple_length - 1))

    own = module.__dict__.get("forward")
    module.__dict__["forward"] = forward
    try:
        yield
    finally:
        if own is None:
            del module.__dict__["forward"]
        else:
            module.__dict__["forward"] = own


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
