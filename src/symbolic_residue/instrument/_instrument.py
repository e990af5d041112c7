"""The instrument: reads and edits at named points of a plain Hugging Face model, leaving no trace.

1. ``attached`` hooks the modules that the asked points and edits need (found by the family table), switches the model's attention function
   to the instrument's door, yields a ``Trace``, and on the way out, whatever happened, removes the hooks and restores the function.
2. Points of the residual stream are the block's input, its output, and between the two ``resid_mid``, which an edit reaches through the attention's
   contribution: ``attn_out' = resid_mid' − resid_pre``.
3. ``z`` is the input of the output projection, cut into heads; ``q``, ``k``, ``v`` are what the attention function receives (after rotary positions).
4. ``run`` pads nothing and hides nothing: it calls the model once, without a cache, under ``no_grad``, and checks that every attention layer
   called the door exactly once.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager, ExitStack
from dataclasses import replace
from typing import Any, TYPE_CHECKING

import torch
from torch import nn, Tensor

from symbolic_residue.errors import AttentionError, ConfigError, InstrumentError, ReadError
from symbolic_residue.instrument._batch import Batch
from symbolic_residue.instrument._edits import Add, AttentionBias, Edit, Positions, Replace, Scale
from symbolic_residue.instrument._hooks import Hooks, TensorEdits
from symbolic_residue.instrument._trace import Trace
from symbolic_residue.instrument.attention import AttentionRead, AttentionTable, RegionMap
from symbolic_residue.instrument.attention._door import DOOR, install, Session
from symbolic_residue.types import Point

if TYPE_CHECKING:
    from symbolic_residue.models import LoadedModel, Parts

__all__ = ["Instrument"]

_SERVED = ("sdpa", "eager", DOOR)


class Instrument:
    """Reads and edits of one model.

    Args:
        loaded: the model with its tokenizer and parts, from :func:`open_model` or :func:`symbolic_residue.models.wrap`.

    Raises:
        AttentionError: the model runs an attention implementation other than SDPA or eager.
    """

    def __init__(self, loaded: LoadedModel) -> None:
        self.loaded = loaded
        self.model: nn.Module = loaded.model
        self.parts: Parts = loaded.parts
        implementation = self.model.config._attn_implementation  # type: ignore[union-attr]
        if implementation not in _SERVED:
            raise AttentionError(
                f"The model runs {implementation!r} attention.",
                why="The readout stands beside PyTorch's scaled_dot_product_attention.",
                todo="Load it with attn_implementation='sdpa'.",
            )

    @property
    def device(self) -> torch.device:
        """Where the embedding lives."""
        return self.parts.embed.weight.device  # type: ignore[return-value]

    def points(self, names: Sequence[str]) -> list[Point]:
        """Points by name (``"z.*"`` for all layers), checked against this family.

        Raises:
            ReadError: unknown, out of range, or absent in this architecture.
        """
        found = [point for name in names for point in Point.parse(name, self.parts.n_layers)]
        for point in found:
            if point.kind == "resid_mid" and point.layer is not None and self.parts.layers[point.layer].parallel:
                raise ReadError(
                    f"{point} does not exist here.",
                    why="In a parallel block attention and MLP read the same residual; there is nothing between them.",
                    todo=f"Read 'resid_pre.{point.layer}' or 'resid_post.{point.layer}'.",
                )
        return found

    def run(
        self,
        inputs: Batch | Tensor,
        *,
        attention_mask: Tensor | None = None,
        reads: Sequence[str] = (),
        attention: AttentionRead | None = None,
        edits: Sequence[Edit] = (),
        inputs_embeds: Tensor | None = None,
        keep_logits: int = 0,
    ) -> Trace:
        """One forward over whole sequences.

        Args:
            inputs: a ``Batch`` (padding and regions known), or ids ``[batch, query]``.
            attention_mask: ``[batch, query]``, 1 for real tokens; comes with the ``Batch``.
            reads: points, e.g. ``("resid_post.*", "z.3")``.
            attention: attention statistics to read.
            edits: what to change, in order.
            inputs_embeds: ``[batch, query, d_model]`` in place of the embedded ids (the ids still give the length).
            keep_logits: keep the logits of the last n rows only; 0 keeps all.

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
        # An explicit mask of ones keeps transformers from reading a jump in position ids as packed sequences.
        mask = torch.ones_like(ids) if mask is None else mask.to(self.device)
        call: dict[str, Any] = {"attention_mask": mask, "use_cache": False}
        if inputs_embeds is not None:
            call["inputs_embeds"] = inputs_embeds
        else:
            call["input_ids"] = ids
        padded_left = not bool(mask[:, 0].all())
        override = [e for e in edits if isinstance(e, Positions)]
        if override:
            call["position_ids"] = override[-1].position_ids.to(self.device).expand(n_batch, -1)
        elif padded_left:
            call["position_ids"] = (mask.cumsum(-1) - 1).clamp_min(0)
        if keep_logits:
            call["logits_to_keep"] = keep_logits
        lead = tuple(int(m.argmax()) for m in mask)
        with (
            torch.no_grad(),
            self.attached(reads=reads, attention=attention, edits=edits, lead=lead, size=(n_batch, n_queries)) as trace,
        ):
            output = self.model(**call)
            trace.logits = output.logits
        wrong = [layer for layer in range(self.parts.n_layers) if trace.calls.get(layer, 0) != 1]
        if wrong:
            raise AttentionError(
                f"Layer {wrong[0]} called the attention function {trace.calls.get(wrong[0], 0)} times instead of once."
            )
        return trace

    @contextmanager
    def attached(
        self,
        *,
        reads: Sequence[str] = (),
        attention: AttentionRead | None = None,
        edits: Sequence[Edit] = (),
        lead: tuple[int, ...] = (),
        size: tuple[int, int] | None = None,
        cached_keys: int | None = None,
    ) -> Iterator[Trace]:
        """Attach to the model for one forward of the caller's own; the trace is complete when the block ends.

        Args:
            reads: points to read.
            attention: attention statistics to read; its regions need ``size``.
            edits: what to change; ``Positions`` only through :meth:`run`.
            lead: padding tokens before each sequence (left padding).
            size: ``(batch, query)`` of the forward to come.
            cached_keys: the number of keys (cached and new) that every layer must hand over when attention is edited with a cache in use;
                a cache that keeps fewer (a window) is refused.
        """
        points = self.points(reads)
        tensor_edits: TensorEdits = {}
        for edit in edits:
            if isinstance(edit, Add | Replace | Scale):
                found = self.points([edit.point])
                for point in found:
                    tensor_edits.setdefault(point, []).append(edit)
        biases = [e for e in edits if isinstance(e, AttentionBias)]
        regions = None
        if attention is not None and attention.regions is None and "mass" in attention.stats:
            raise ConfigError(
                "Region masses were asked for without regions.",
                todo="Give AttentionRead(regions=…), run a batch of prompts, or leave 'mass' out of stats.",
            )
        if attention is not None and attention.regions is not None:
            if size is None:
                raise ReadError("Regions need to know the size of the forward.", todo="Give size=(batch, tokens).")
            regions = RegionMap.build(attention.regions, *size, lead=lead or (0,) * size[0], device=self.device)
        trace = Trace(lead=lead)
        hooks = Hooks(self.parts, trace, set(points), tensor_edits)
        session = Session(
            modules={id(layer.attn): i for i, layer in enumerate(self.parts.layers)},
            read=attention,
            regions=regions,
            biases=biases,
            tensor_hook=hooks.attention_tensor,
            cached_keys=cached_keys,
        )
        install()
        implementation = self.model.config._attn_implementation  # type: ignore[union-attr]
        with ExitStack() as stack:
            stack.enter_context(session)
            stack.callback(self.model.set_attn_implementation, implementation)  # type: ignore[operator]
            self.model.set_attn_implementation(DOOR)  # type: ignore[operator]
            for handle in hooks.register(self.model):
                stack.callback(handle.remove)
            yield trace
        trace.calls = session.calls
        if attention is not None and session.values and session.rows is not None and session.valid is not None:
            names = regions.names if regions is not None else ()
            if names and attention.split_self:
                names = (*names, "self")
            trace.attention = AttentionTable.stack(session.values, session.rows, names, session.valid, session.backend)
