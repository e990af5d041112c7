"""The instrument: reads and edits at named points of a plain Hugging Face model, leaving no trace.

1. ``attached`` hooks the modules that the asked points and edits need (found by the family table), switches the model's attention function
   to the instrument's door, yields a ``Trace``, and on the way out, whatever happened, removes the hooks and restores the function.
2. Each forward of the model that begins meanwhile opens a fresh record: how many tokens are cached, which are padding, which regions they form.
   ``recording`` keeps the trace of every forward, so a caller's own ``generate`` can be watched step by step.
3. Points of the residual stream are the block's input, its output, and between the two ``resid_mid``, which an edit reaches through the attention's
   contribution: ``attn_out' = resid_mid' − resid_pre``.
4. ``z`` is the input of the output projection, cut into heads; ``q``, ``k``, ``v`` are what the attention function receives (after rotary positions).
5. ``run`` pads nothing and hides nothing: it calls the model once, without a cache, under ``no_grad``, and checks that every attention layer
   called the door exactly once.
6. ``observe`` keeps the model's own attention (logits bit-identical) and reads beside it; ``replace`` lets the reading kernel give the output too, which
   is faster and equal within rounding. Left to itself, half precision is observed, since there a second kernel would be a slightly different model.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, ExitStack
from dataclasses import replace
from typing import Any, TYPE_CHECKING

import torch
from torch import nn, Tensor

from symbolic_residue.errors import AttentionError, ConfigError, EditError, InstrumentError
from symbolic_residue.instrument._apply import model_positions
from symbolic_residue.instrument._batch import Batch
from symbolic_residue.instrument._check import check_edits
from symbolic_residue.instrument._edits import (
    Add,
    AttentionEdit,
    Edit,
    FreezeNorm,
    Positions,
    Replace,
    Scale,
)
from symbolic_residue.instrument._hooks import Hooks, TensorEdits
from symbolic_residue.instrument._norms import norm_hooks
from symbolic_residue.instrument._trace import Trace
from symbolic_residue.instrument.attention import AttentionRead, BackendName, Mode, RegionMap
from symbolic_residue.instrument.attention._backends import check_backend, fused_kernel
from symbolic_residue.instrument.attention._door import DirectCalls, DOORS, Forward, install, Session
from symbolic_residue.types import Point

if TYPE_CHECKING:
    from symbolic_residue.models import LoadedModel, Parts

__all__ = ["Instrument", "cache_name"]


def cache_name(model: nn.Module) -> str:
    """What this model calls its key-value cache: ``cache`` since transformers 5.24, ``past_key_values`` before.

    Raises:
        InstrumentError: it takes neither.
    """
    parameters = inspect.signature(model.forward).parameters
    for name in ("cache", "past_key_values"):
        if name in parameters:
            return name
    raise InstrumentError(
        f"{type(model).__name__} takes no key-value cache.", why="Runs that share a prefix keep its keys and values."
    )


class Instrument:
    """Reads and edits of one model.

    Args:
        loaded: the model with its tokenizer and parts, from :func:`open_model` or :func:`symbolic_residue.models.wrap`.
        backend: what computes attention readouts: ``auto`` takes the first that serves the call, of ``native`` (compiled, CPU), ``triton`` (GPU), ``torch``
            (fused, portable), ``blocks`` (anything); ``dense`` is the float64 oracle. A backend forced by name is used or refused.
        mode: ``observe``, ``replace``, or ``auto`` (see the module's text).

    Raises:
        AttentionError: the model runs an attention implementation other than SDPA or eager.
        ConfigError: an unknown backend or mode.
    """

    def __init__(self, loaded: LoadedModel, *, backend: BackendName = "auto", mode: Mode = "auto") -> None:
        check_backend(backend, mode)
        self.loaded = loaded
        self.model: nn.Module = loaded.model
        self.parts: Parts = loaded.parts
        self.backend: BackendName = backend
        self.mode: Mode = mode
        implementation = self.model.config._attn_implementation  # type: ignore[union-attr]
        if implementation not in (*DOORS, *DOORS.values()):
            raise AttentionError(
                f"The model runs {implementation!r} attention.",
                why="The readout stands beside PyTorch's scaled_dot_product_attention or eager attention.",
                todo="Load it with attn_implementation='sdpa'.",
            )

    @property
    def device(self) -> torch.device:
        """Where the embedding lives."""
        return self.parts.embed.weight.device  # type: ignore[return-value]

    @property
    def attention_layers(self) -> tuple[int, ...]:
        """Layers with softmax attention."""
        return self.parts.attention_layers

    @property
    def cache_name(self) -> str:
        """What the model calls its key-value cache among the arguments of its forward: see :func:`cache_name`.

        Raises:
            InstrumentError: it takes none.
        """
        return cache_name(self.model)

    def points(self, names: Sequence[str]) -> list[Point]:
        """Points by name, checked against this family; ``"z.*"`` is every layer that has the point.

        Raises:
            ReadError: unknown, out of range, or absent in this architecture.
        """
        return [point for name in names for point in self.parts.points(name)]

    def run(
        self,
        inputs: Batch | Tensor,
        *,
        attention_mask: Tensor | None = None,
        position_ids: Tensor | None = None,
        reads: Sequence[str] = (),
        attention: AttentionRead | None = None,
        edits: Sequence[Edit] = (),
        inputs_embeds: Tensor | None = None,
        keep_logits: int = 0,
        on_read: Callable[[Point, Tensor], None] | None = None,
    ) -> Trace:
        """One forward over whole sequences.

        Args:
            inputs: a ``Batch`` (padding and regions known), or ids ``[batch, query]``.
            attention_mask: ``[batch, query]``, 1 for real tokens (comes with the ``Batch``); or the caller's own ``[batch, 1, query, key]``,
                bool (True is seen) or additive.
            position_ids: ``[batch or 1, query]`` of packed sequences (each starts again at 0): without an ``attention_mask``, tokens then
                see their own sequence only. To shift positions without packing, use the edit ``Positions``.
            reads: points, e.g. ``("resid_post.*", "z.3")``.
            attention: attention statistics to read.
            edits: what to change, in order.
            inputs_embeds: ``[batch, query, d_model]`` in place of the embedded ids (the ids still give the length).
            keep_logits: keep the logits of the last n rows only; 0 keeps all.
            on_read: called with each read point and its tensor as the forward reaches it; the trace then keeps none of them.

        Returns:
            The trace, with ``logits``.

        Raises:
            ReadError, EditError, AttentionError: see those.
        """
        if isinstance(inputs, Batch):
            ids, mask = inputs.ids, inputs.mask
            if attention is not None and attention.regions is None and inputs.regions is not None:
                attention = replace(attention, regions=inputs.regions)
        else:
            ids, mask = inputs, attention_mask
        ids = ids.to(self.device)
        n_batch, n_queries = ids.shape
        limit = self.parts.max_context
        if limit is not None and n_queries > limit:
            raise InstrumentError(f"{n_queries} tokens are more than the model's context of {limit}.", todo="Shorten the text.")
        call: dict[str, Any] = {"use_cache": False}
        check_edits(edits, self.parts, own_call=True)
        override = [e for e in edits if isinstance(e, Positions)]
        edits = [e for e in edits if not isinstance(e, Positions)]
        if mask is None and position_ids is None:
            # An explicit mask of ones keeps transformers from reading a jump in position ids as packed sequences.
            mask = torch.ones_like(ids)
        if mask is not None:
            call["attention_mask"] = mask = mask.to(self.device)
        if position_ids is not None:
            if override:
                raise EditError("Positions were given twice.", todo="Give position_ids or the edit Positions, not both.")
            call["position_ids"] = position_ids.to(self.device).expand(n_batch, -1)
        elif override:
            call["position_ids"] = model_positions(override[-1], self.parts, n_batch, n_queries, self.device)
        elif mask is not None and mask.dim() == 2 and not bool(mask[:, 0].all()):
            call["position_ids"] = (mask.cumsum(-1) - 1).clamp_min(0)
        call |= {"input_ids": ids} if inputs_embeds is None else {"inputs_embeds": inputs_embeds}
        if keep_logits:
            call["logits_to_keep"] = keep_logits
        with torch.no_grad(), self.attached(reads=reads, attention=attention, edits=edits, on_read=on_read) as trace:
            output = self.model(**call)
            trace.logits = output.logits
        for layer in self.attention_layers:
            if trace.calls.get(layer, 0) != 1:
                raise AttentionError(
                    f"Layer {layer} called the attention function {trace.calls.get(layer, 0)} times instead of once."
                )
        return trace

    @contextmanager
    def attached(
        self,
        *,
        reads: Sequence[str] = (),
        attention: AttentionRead | None = None,
        edits: Sequence[Edit] = (),
        prompt: int | None = None,
        on_read: Callable[[Point, Tensor], None] | None = None,
    ) -> Iterator[Trace]:
        """Attach to the model for a forward of the caller's own; the trace is complete when that forward ends.

        Forwards with a key-value cache are served: rows are then those of the new tokens, and keys count over all tokens so far. After several forwards the
        trace holds the last; see :meth:`recording` for all of them.

        Args:
            reads: points to read.
            attention: attention statistics to read.
            edits: what to change (rows count in the forward's own queries); ``Positions`` only through :meth:`run`.
            prompt: padded length of the prompts, when tokens will be generated after them: those form the region ``generated``.
            on_read: called with each read point and its tensor as the forward reaches it, instead of keeping them.

        Raises:
            ReadError, EditError, ConfigError: a point, an edit or a request that cannot be served.
        """
        trace = Trace(on_read=on_read)
        with self._attachment(reads, attention, edits, prompt, lambda: trace) as attachment:
            yield trace
            attachment.finish()

    @contextmanager
    def recording(
        self,
        *,
        reads: Sequence[str] = (),
        attention: AttentionRead | None = None,
        edits: Sequence[Edit] = (),
        prompt: int | None = None,
        on_forward: Callable[[Trace], None] | None = None,
    ) -> Iterator[list[Trace]]:
        """Attach for any number of forwards (a caller's ``generate``, a loop over batches); one trace each, in order.

        Args:
            reads, attention, edits, prompt: as for :meth:`attached`; edits act in every forward.
            on_forward: called with each trace as its forward ends; the list then stays empty, so nothing piles up.
        """
        traces: list[Trace] = []
        with self._attachment(reads, attention, edits, prompt, Trace, on_forward or traces.append) as attachment:
            yield traces
            attachment.finish()

    @contextmanager
    def _attachment(
        self,
        reads: Sequence[str],
        attention: AttentionRead | None,
        edits: Sequence[Edit],
        prompt: int | None,
        make: Callable[[], Trace],
        done: Callable[[Trace], None] = lambda trace: None,
    ) -> Iterator[_Attachment]:
        if attention is not None and attention.regions is None and "mass" in attention.stats:
            raise ConfigError(
                "Region masses were asked for without regions.",
                todo="Give AttentionRead(regions=…), run a batch of prompts, or leave 'mass' out of stats.",
            )
        check_edits(edits, self.parts, own_call=False)
        tensor_edits: TensorEdits = {}
        for edit in edits:
            if isinstance(edit, Add | Replace | Scale):
                for point in self.points([edit.point]):
                    tensor_edits.setdefault(point, []).append(edit)
        hooks = Hooks(self.parts, Trace(), set(self.points(reads)), tensor_edits)
        current: str = self.model.config._attn_implementation  # type: ignore[union-attr, assignment]
        original = current if current in DOORS else next(name for name, door in DOORS.items() if door == current)
        session = Session(
            modules={id(self.parts.layers[i].attn): i for i in self.attention_layers},
            n_layers=self.parts.n_layers,
            read=attention,
            edits=[e for e in edits if isinstance(e, AttentionEdit)],
            tensor_hook=hooks.attention_tensor,
            backend=self.backend,
            original=original,
            replaces=self._replaces(attention, original),
        )
        attachment = _Attachment(self, session, hooks, attention, prompt, make, done)
        install()
        with ExitStack() as stack:
            stack.enter_context(session)
            if self.parts.spec.door == "sdpa_call":
                direct = DirectCalls(session)
                for handle in direct.handles([self.parts.layers[i].attn for i in self.attention_layers]):  # type: ignore[misc]
                    stack.callback(handle.remove)
                stack.enter_context(direct)
            else:
                stack.callback(self.model.set_attn_implementation, current)  # type: ignore[operator]
                self.model.set_attn_implementation(session.door)  # type: ignore[operator]
            handles = [self.model.register_forward_pre_hook(attachment.begin, with_kwargs=True)]
            stack.callback(handles[0].remove)
            for handle in (
                *norm_hooks(self.parts, [e for e in edits if isinstance(e, FreezeNorm)]),
                *hooks.register(self.model),
                self.model.register_forward_hook(attachment.end),
            ):
                stack.callback(handle.remove)
            yield attachment

    def _replaces(self, attention: AttentionRead | None, original: str) -> bool:
        if attention is None or self.mode == "observe":
            return False
        if self.mode == "replace":
            return True
        weight: Tensor = self.parts.embed.weight  # type: ignore[assignment]
        if weight.dtype in (torch.float16, torch.bfloat16):
            return False
        if original == "eager":
            return True
        if attention.rows is not None:
            return False
        return self.backend in ("native", "triton") or (self.backend == "auto" and fused_kernel(self.device))


class _Attachment:
    """The bookkeeping of attached forwards: a record when one begins, a trace when it ends."""

    def __init__(
        self,
        instrument: Instrument,
        session: Session,
        hooks: Hooks,
        attention: AttentionRead | None,
        prompt: int | None,
        make: Callable[[], Trace],
        done: Callable[[Trace], None],
    ) -> None:
        self.instrument, self.session, self.hooks = instrument, session, hooks
        self.attention, self.prompt = attention, prompt
        self.make, self.done = make, done
        self._open = False
        self.begin_trace(())

    def begin_trace(self, lead: tuple[int, ...]) -> None:
        """A fresh record for the forward to come."""
        trace = self.make()
        trace.clear(lead)
        self.hooks.trace = trace
        self.session.forward = Forward()

    def begin(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        """When the model is called: sizes, cache, padding and regions of this forward."""
        given = (
            {**dict(zip(inspect.signature(self.instrument.model.forward).parameters, args, strict=False)), **kwargs}
            if args
            else kwargs
        )
        ids, embeds = given.get("input_ids"), given.get("inputs_embeds")
        source = ids if ids is not None else embeds
        if source is None:
            return
        n_batch, n_queries = source.shape[:2]
        cache = next((given[name] for name in ("cache", "past_key_values") if given.get(name) is not None), None)
        total = n_queries + (int(cache.get_seq_length()) if cache is not None else 0)
        mask = given.get("attention_mask")
        real = None
        if isinstance(mask, Tensor) and mask.dim() == 2:
            if mask.shape != (n_batch, total):
                raise InstrumentError(
                    f"The attention mask is {tuple(mask.shape)}; there are {n_batch} sequences of {total} tokens by now."
                )
            real = mask.bool()
        lead = (0,) * n_batch if real is None else tuple(int(row.int().argmax()) for row in real)
        self.begin_trace(lead)
        self._open = True
        forward = self.session.forward
        forward.total, forward.real = total, real
        forward.starts = _packed_starts(given.get("position_ids"), n_queries) if mask is None and total == n_queries else None
        if forward.starts is not None and any(layer.mixer is not None for layer in self.instrument.parts.layers):
            raise AttentionError(
                "Sequences cannot be packed in this architecture.",
                why="Its other token mixers carry a state from one sequence into the next.",
                todo="Run them as a padded batch.",
            )
        if self.attention is not None and self.attention.regions is not None:
            forward.regions = RegionMap.build(
                self.attention.regions, n_batch, total, lead, self.instrument.device, prompt=self.prompt
            )

    def end(self, module: nn.Module, args: Any, output: Any) -> None:
        """When the model returns."""
        self.hooks.trace.logits = getattr(output, "logits", None)
        self.finish(called=True)

    def finish(self, called: bool = False) -> None:
        """Complete the open trace; also for forwards of a submodule, which never pass the model's own hooks."""
        forward = self.session.forward
        if not (self._open or forward.calls):
            return
        self._open = False
        trace, attention = self.hooks.trace, self.attention
        trace.calls = forward.calls
        if attention is not None and forward.values is not None and forward.rows is not None and forward.valid is not None:
            names = forward.regions.names if forward.regions is not None else ()
            if names and attention.split_self:
                names = (*names, "self")
            mode = "replace" if self.session.replaces else "observe"
            trace.attention = forward.values.table(forward.rows, names, forward.valid, "+".join(forward.backends), mode)
        self.session.forward = Forward()
        self.done(trace)


def _packed_starts(position_ids: Tensor | None, n_queries: int) -> Tensor | None:
    """``[batch, query]``: where each row's sequence starts, when position ids start again; None when nothing is packed."""
    if position_ids is None or position_ids.dim() != 2 or position_ids.is_floating_point() or n_queries < 2:
        return None
    again = torch.zeros_like(position_ids, dtype=torch.bool)
    again[:, 1:] = position_ids[:, 1:] != position_ids[:, :-1] + 1
    if not bool(again.any()):
        return None
    at = torch.arange(n_queries, device=position_ids.device)
    return torch.where(again, at, 0).cummax(-1).values
