"""The one door: the attention function that transformers calls while the instrument is attached.

1. ``install()`` registers the door with transformers' attention and mask interfaces, once with the mask that SDPA would get and once with the one
   that eager attention would get.
2. What is read and edited is a ``Session``; each attention module maps to at most one. The function looks its module up, so several models
   do not meet. Each forward of the model opens a ``Forward``: how many tokens there are by now, which are padding, the masks seen so far.
3. ``observe``: the layer's output is the model's own attention call, so an attached forward without edits has bit-identical logits, and the
   readout stands beside it. ``replace``: the backend that reads gives the output as well, in one pass.
4. Rows whose scores or weights are edited are computed again by the blocked path and put in place; readouts see the edited weights.
5. Models that call PyTorch's scaled_dot_product_attention themselves (falcon) are met there: the same function serves the call.

Source of the interfaces: transformers' AttentionInterface and AttentionMaskInterface (public since version 5).
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import nn, Tensor
from torch.overrides import TorchFunctionMode

from symbolic_residue.errors import AttentionError, EditError
from symbolic_residue.instrument._apply import resolve
from symbolic_residue.instrument._edits import AttentionBias, AttentionEdit, PatternReplace
from symbolic_residue.instrument.attention._backends import BackendName, compute
from symbolic_residue.instrument.attention._blocks import attend_rows, Rework
from symbolic_residue.instrument.attention._call import Call, MaskCache, understand
from symbolic_residue.instrument.attention._pattern import edit_weights, edits_of_layer, score_bias, touched_rows
from symbolic_residue.instrument.attention._request import AttentionRead, LayerStack, RegionMap

__all__ = ["DOORS", "DirectCalls", "Forward", "Session", "attention_forward", "install"]

DOORS = {"sdpa": "residue", "eager": "residue_eager"}
"""The door by the implementation whose masks it takes."""

_sessions: dict[int, Session] = {}


@dataclass
class Forward:
    """One forward in progress.

    Attributes:
        total: tokens so far, cached and new, padding included; None when the forward did not begin at the model's own call.
        real: ``[batch, total]`` bool: False is padding; None when no such mask was given.
        regions: of all tokens so far.
        starts: ``[batch, query]``: first key of each row's own sequence, where several are packed into one.
    """

    total: int | None = None
    real: Tensor | None = None
    regions: RegionMap | None = None
    starts: Tensor | None = None
    masks: MaskCache = field(default_factory=MaskCache)
    values: LayerStack | None = None
    calls: dict[int, int] = field(default_factory=dict)
    backends: list[str] = field(default_factory=list)
    rows: Tensor | None = None
    valid: Tensor | None = None


@dataclass
class Session:
    """What an attached instrument reads and edits in attention."""

    modules: dict[int, int]
    """id(attention module) → layer."""
    n_layers: int
    read: AttentionRead | None
    edits: Sequence[AttentionEdit]
    tensor_hook: Callable[[str, int, Tensor], Tensor]
    """(kind, layer, tensor [batch, head, query, d_head]) → the tensor after edits; it also records reads of q, k, v."""
    backend: BackendName
    original: str
    """``sdpa`` or ``eager``: what the model ran before."""
    replaces: bool
    """Whether the backend's output takes the place of the model's own."""
    forward: Forward = field(default_factory=Forward)

    def __enter__(self) -> Session:
        for key in self.modules:
            if key in _sessions:
                raise AttentionError("An instrument is already attached to this model.", todo="Leave the outer one first.")
        _sessions.update(dict.fromkeys(self.modules, self))
        return self

    def __exit__(self, *exc: object) -> None:
        for key in self.modules:
            _sessions.pop(key, None)

    @property
    def door(self) -> str:
        """The implementation name that the model runs under."""
        return DOORS["sdpa" if self.replaces else self.original]

    def edits_of(self, layer: int) -> list[AttentionEdit]:
        """The attention edits that act on this layer."""
        return edits_of_layer(self.edits, layer, self.n_layers)

    def reads(self, layer: int) -> bool:
        """Whether this layer is read."""
        return self.read is not None and (self.read.layers is None or layer in resolve(self.read.layers, self.n_layers, "layer"))


def install() -> None:
    """Register the door with transformers; doing it again changes nothing."""
    from transformers import AttentionInterface
    from transformers.masking_utils import AttentionMaskInterface, eager_mask, sdpa_mask

    for original, mask in (("sdpa", sdpa_mask), ("eager", eager_mask)):
        AttentionInterface.register(DOORS[original], attention_forward)
        AttentionMaskInterface.register(DOORS[original], mask)


def attention_forward(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    scaling: float | None = None,
    dropout: float = 0.0,
    **kwargs: Any,
) -> tuple[Tensor, None]:
    """Attention of one layer, with the session's edits and readouts.

    Args:
        module: the attention module that calls.
        query: ``[batch, head, query, d_head]``; ``key`` and ``value``: ``[batch, kv_head, key, d]``.
        attention_mask: None (causal), or bool/additive ``[batch or 1, 1 or head, query, key]``.
        scaling: factor on the scores; ``d_head ** -0.5`` when None.
        dropout: refused unless 0 (readouts of a training forward are not defined).

    Returns:
        Output ``[batch, query, head, d_value]``, and None for the weights.

    Raises:
        AttentionError: a variant that the readout does not serve.
        EditError: an edit that does not fit.
    """
    session = _sessions.get(id(module))
    if session is None:
        raise AttentionError(
            f"{type(module).__name__} reached the instrument's attention without an instrument attached.",
            todo="Call model.set_attn_implementation('sdpa').",
        )

    def model_own(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        return _original(session.original, module)(module, q, k, v, attention_mask, scaling=scaling, dropout=dropout, **kwargs)[0]

    output = _serve(session, module, query, key, value, attention_mask, scaling, dropout, kwargs, model_own)
    return output, None


def _serve(
    session: Session,
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    mask: Tensor | None,
    scaling: float | None,
    dropout: float,
    options: dict[str, Any],
    model_own: Callable[[Tensor, Tensor, Tensor], Tensor],
) -> Tensor:
    """Output ``[batch, query, head, d_value]`` of one layer."""
    layer = session.modules[id(module)]
    now = session.forward
    now.calls[layer] = now.calls.get(layer, 0) + 1
    query = session.tensor_hook("q", layer, query)
    key = session.tensor_hook("k", layer, key)
    value = session.tensor_hook("v", layer, value)
    edits, reads = session.edits_of(layer), session.reads(layer)
    if not (edits or reads or session.replaces or now.starts is not None):
        return model_own(query, key, value)
    call = understand(
        module,
        query,
        key,
        value,
        mask,
        scaling=scaling,
        dropout=dropout,
        total=now.total,
        masks=now.masks,
        options=options,
    )
    if now.starts is not None:
        _check_packing(call, now.starts)
        if not (edits or reads or session.replaces):
            return model_own(query, key, value)
    read = session.read
    want: set[str] = set()
    if reads and read is not None:
        if read.on_call is not None:
            if edits:
                raise EditError(
                    f"The attention of layer {layer} is edited, and its call was asked for.", why="Edits are not in the call."
                )
            read.on_call(layer, call)
        want = {*read.stats, *(("weights",) if read.weights else ())}
        if read.split_self and "mass" in want:
            want.add("self")
    regions = None if now.regions is None else now.regions.keys(call.first_key, call.first_key + call.n_keys)
    every = read is None or read.rows is None
    rows = torch.tensor(resolve(None if read is None else read.rows, call.n_queries, "row"), device=query.device)
    touched = touched_rows(edits, call.n_queries).to(query.device)
    rework = _rework(edits, call, layer, session.n_layers) if len(touched) else None
    # One pass for everything where it can be had; edited and chosen rows are read for themselves.
    together = want if every and "received" not in want else set()
    all_edited = every and len(touched) == call.n_queries
    stats: dict[str, Tensor] = {}
    if session.replaces and not all_edited:
        backend, output, stats = compute(session.backend, call, regions, together, output=True, masks=now.masks)
        _note(now, backend)
        assert output is not None
    elif session.replaces:
        output = call.v.new_empty(call.q.shape[0], call.n_queries, call.q.shape[1], call.v.shape[-1])
    else:
        output = model_own(query, key, value)
        if together and not all_edited:
            backend, _, stats = compute(session.backend, call, regions, together, output=False, masks=now.masks)
            _note(now, backend)
    if rework is not None:
        again, patch = attend_rows(call, touched, regions, (together | {"lse"}) - {"received"}, output=True, rework=rework)
        assert again is not None
        _refuse_empty_rows(call, patch["lse"], touched, layer)
        output = output.clone()
        output[:, touched] = again
        if together:
            _note(now, "blocks")
            for name in together:
                if name in patch:
                    whole = stats.get(name)
                    stats[name] = patch[name] if whole is None else whole.index_copy(2, touched, patch[name].to(whole.dtype))
    if reads and read is not None:
        if want - together:
            _, more = attend_rows(call, rows, regions, want, output=False, rework=rework)
            _note(now, "blocks")
            stats = more
        now.rows = rows + call.first_key + call.offset
        if now.valid is None:
            now.valid = _valid(call, now.real, rows, now.rows)
        if read.split_self and "mass" in stats and regions is not None:
            stats["mass"] = _split_self(stats["mass"], stats["self"], regions, rows + call.offset)
        if now.values is None:
            now.values = LayerStack(sorted(other for other in set(session.modules.values()) if session.reads(other)))
        now.values.add(layer, {name: t for name, t in stats.items() if name in read.stats or name == "weights"})
    return output


def _note(now: Forward, backend: str) -> None:
    if backend not in now.backends:
        now.backends.append(backend)


def _original(name: str, module: nn.Module) -> Callable[..., tuple[Tensor, Any]]:
    """The attention function that the model would have called."""
    if name == "sdpa":
        from transformers.integrations.sdpa_attention import sdpa_attention_forward

        return sdpa_attention_forward
    for kind in type(module).__mro__:
        found = getattr(sys.modules.get(kind.__module__), "eager_attention_forward", None)
        if found is not None:
            return found
    raise AttentionError(
        f"The eager attention of {type(module).__name__} was not found beside it.",
        todo="Use mode='replace', or load the model with attn_implementation='sdpa'.",
    )


def _rework(edits: Sequence[AttentionEdit], call: Call, layer: int, n_layers: int) -> Rework:
    """Edits with their keys counted from the call's first key."""
    total = call.first_key + call.n_keys
    here: list[AttentionEdit] = []
    for edit in edits:
        if isinstance(edit, PatternReplace):
            if edit.weights.shape[-1] not in (total, call.n_keys):
                raise EditError(f"A pattern over {edit.weights.shape[-1]} keys does not fit attention over {total}.")
            here.append(replace(edit, weights=edit.weights[..., -call.n_keys :]))
        else:
            keys = resolve(edit.keys, total, "key")
            here.append(replace(edit, keys=tuple(k - call.first_key for k in keys if k >= call.first_key)))
    batch, n_heads = call.q.shape[:2]
    biases = [e for e in here if isinstance(e, AttentionBias)]
    pattern = [e for e in here if not isinstance(e, AttentionBias)]
    return Rework(
        score_bias(biases, batch, n_heads, call.n_queries, call.n_keys, call.q.device),
        lambda p, rows: edit_weights(p, rows, pattern, layer, n_queries=call.n_queries, n_layers=n_layers),
        bool(pattern),
    )


def _check_packing(call: Call, starts: Tensor) -> None:
    """Refuse a model that lets packed sequences see each other."""
    starts = starts.to(call.low.device)
    crossing = (call.low < starts) & (call.high > call.low)
    if call.keep is not None:
        key = torch.arange(call.n_keys, device=starts.device)
        crossing = (call.keep & (key < starts[..., None])[:, None]).any((1, 3))
    if bool(crossing.any()):
        raise AttentionError(
            "The packed sequences see each other.",
            why="This architecture makes its masks without looking at the position ids.",
            todo="Run the sequences as a padded batch, or give a mask [batch, 1, query, key] of your own.",
        )


def _refuse_empty_rows(call: Call, lse: Tensor, rows: Tensor, layer: int) -> None:
    sees = call.sees_any().expand(call.q.shape[0], call.q.shape[1], -1)[:, :, rows]
    emptied = torch.isneginf(lse) & sees
    if bool(emptied.any()):
        batch, head, _ = emptied.nonzero()[0].tolist()
        raise EditError(
            f"An attention mask hides every key that a row can see (layer {layer}, head {head}, sequence {batch}).",
            why="Attention over nothing is not defined.",
            todo="Leave at least one visible key a row, for instance the row's own.",
        )


def _split_self(mass: Tensor, own: Tensor, regions: RegionMap, own_keys: Tensor) -> Tensor:
    """Move each row's own weight out of its key's region into a last region ``self``."""
    home = regions.indicator(mass.dtype)[:, own_keys][:, None]
    return torch.cat([(mass - own[..., None] * home).clamp_min(0.0), own[..., None]], -1)


def _valid(call: Call, real: Tensor | None, rows: Tensor, positions: Tensor) -> Tensor:
    """``[batch, row]``: rows that are tokens, not padding."""
    if real is not None:
        return real[:, positions]
    return call.sees_any().any(1)[:, rows].expand(call.q.shape[0], -1)


class DirectCalls(TorchFunctionMode):
    """Serves ``scaled_dot_product_attention`` calls that a model makes itself, inside the attention modules of a session.

    Args:
        session: the session; its modules must have been hooked by :meth:`handles`.
    """

    def __init__(self, session: Session) -> None:
        super().__init__()
        self.session = session
        self._module: nn.Module | None = None

    def handles(self, modules: Sequence[nn.Module]) -> list[Any]:
        """Hooks that tell which attention module is running; remove them afterwards."""

        def enter(module: nn.Module, args: Any) -> None:
            self._module = module

        def leave(module: nn.Module, args: Any, output: Any) -> None:
            self._module = None

        out = []
        for module in modules:
            out += [module.register_forward_pre_hook(enter), module.register_forward_hook(leave, always_call=True)]
        return out

    def __torch_function__(self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None) -> Any:
        """Intercept the one function, inside the one kind of module."""
        kwargs = kwargs or {}
        module = self._module
        if module is None or func is not torch.nn.functional.scaled_dot_product_attention:
            return func(*args, **kwargs)
        names = ("query", "key", "value", "attn_mask", "dropout_p", "is_causal", "scale", "enable_gqa")
        given = dict(zip(names, args, strict=False)) | kwargs
        mask, causal = given.get("attn_mask"), bool(given.get("is_causal"))
        rest = {name: v for name, v in given.items() if name not in ("query", "key", "value")}

        def model_own(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
            return func(q, k, v, **rest).transpose(1, 2)

        self._module = None  # the readout's own calls are not the model's
        try:
            output = _serve(
                self.session,
                module,
                given["query"],
                given["key"],
                given["value"],
                mask,
                given.get("scale"),
                float(given.get("dropout_p", 0.0)),
                {"is_causal": causal or given["query"].shape[2] == 1 or mask is not None},
                model_own,
            )
        finally:
            self._module = module
        return output.transpose(1, 2)
