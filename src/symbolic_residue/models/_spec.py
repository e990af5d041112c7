"""What the family table says about one architecture: the fields of its entries.

1. A family is keyed by ``config.model_type``. Its ``FamilySpec`` is data: dotted paths of modules, the kind of norm, how q, k and v are
   laid out, constant factors, and which config entry decides where an architecture comes in several forms.
2. Paths of a layer's parts start at the block; the others start at the model.
3. A field that depends on the config is a function of it; ``resolve`` reads either.
4. ``refuse_when`` lists config values under which the entry would be wrong; each comes with its reason.

Nothing here imports torch.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal, TypeVar

__all__ = ["Door", "FamilySpec", "NormKind", "QkvLayout", "Windows", "resolve"]

T = TypeVar("T")
ByConfig = T | Callable[[Any], T]

NormKind = Literal["rms", "layer"]
Windows = Literal["none", "all", "by_layer"]
"""Sliding windows: in no layer, in all (where the config has a window), or in those whose ``layer_types`` entry says so."""

QkvLayout = Literal["split", "stacked", "interleaved", "grouped", "gated"]
"""``split``: three modules. ``stacked``: one output ``[q of all heads, k of all kv heads, v of all kv heads]``. ``interleaved``:
``[head, (q, k, v)]``. ``grouped``: ``[kv head, (q of its heads, k, v)]``. ``gated``: three modules, q's output ``[head, (q, gate)]``."""

Door = Literal["interface", "sdpa_call"]
"""How attention is computed: through transformers' attention interface, or by a call of ``F.scaled_dot_product_attention``."""


@dataclass(frozen=True, slots=True)
class FamilySpec:
    """Where the parts of one architecture are; ``bind`` resolves and checks it."""

    model_type: str
    layers: str
    embed: str
    final_norm: str
    attn: str
    o_proj: str
    mlp_down: str | None
    """The linear whose input is the neurons' activations; absent in a layer whose MLP is a mixture of experts."""

    pre_attn_norm: ByConfig[str | None]
    pre_mlp_norm: ByConfig[str | None]
    """The same path as ``pre_attn_norm`` where attention and MLP share one norm; ``None`` where only the outputs are normed (olmo2)."""

    norm_kind: NormKind
    qkv_layout: ByConfig[QkvLayout]
    qkv: tuple[str, ...]
    """Paths from the attention module: three for ``split`` and ``gated``, else one."""

    unembed: str = "lm_head"
    mlp: str | None = "mlp"
    mlp_up: str | None = None
    """Where the block has no MLP module (opt): the linear whose input is ``mlp_in``; ``mlp_down`` then writes ``mlp_out``."""

    mixer: str | None = None
    """A token mixer that is not softmax attention (mamba, linear attention), in the layers that have it."""

    hybrid: bool = False
    """Whether some layers may lack the attention module."""

    moe: bool = False
    """Whether the MLP of a layer may be a mixture of experts."""

    post_attn_norm: ByConfig[str | None] = None
    """Norm of attention's output before it joins the residual stream (gemma), if any."""

    post_mlp_norm: ByConfig[str | None] = None
    norm_offset: float = 0.0
    """Added to the norm's weight to give its gain: 1 in gemma, whose weights are stored around zero."""

    norm_eps: float | None = None
    """The norm's epsilon where its module does not keep it."""

    position_embed: str | None = None
    """Learned absolute positions (gpt2), if any; all others rotate queries and keys, or know no positions."""

    position_offset: int = 0
    """Rows of the position embedding before that of position 0 (opt: 2)."""

    parallel: Callable[[Any], bool] = lambda config: False
    """Whether attention and MLP of a block both read the block's input."""

    attn_scale: Callable[[Any], float] = lambda config: 1.0
    """Constant factor on attention's output as it is added to the residual stream (granite's residual multiplier)."""

    mlp_scale: Callable[[Any], float] = lambda config: 1.0
    mixer_scale: Callable[[Any], float] = lambda config: 1.0
    logit_scale: Callable[[Any], float] = lambda config: 1.0
    """logits = logit_scale · unembed(final_norm(x)), before any softcap."""

    windows: Windows = "none"
    embed_scaled: bool = False
    """Whether the embedding module itself multiplies by √d_model (gemma); its output is already the residual stream."""

    embed_scale: Callable[[Any], float] = lambda config: 1.0
    """Constant factor on the embedding module's output before the first block (granite, the first gemma)."""

    embed_scale_on_ids: bool = False
    """Whether that factor is left out when vectors are given in place of ids (falcon_h1)."""

    position_ids: Callable[[Any], bool] = lambda config: True
    """Whether position ids reach the model: not without rotary or learned positions (jamba), nor with ALiBi, which counts the keys."""

    door: Door = "interface"
    sizes: Callable[[Any], dict[str, Any]] = lambda config: {}
    """Sizes under another name than the usual: any of n_layers, n_heads, n_kv_heads, d_model, d_head, max_context."""

    attn_in_scale: Callable[[Any], float] = lambda config: 1.0
    """Constant factor on the normed input of attention (falcon_h1)."""

    key_scale: Callable[[Any], float] = lambda config: 1.0
    """Constant factor on the keys (falcon_h1)."""

    query_prescaled: bool = False
    """Whether the module scales its queries before it hands them to the attention function (opt)."""

    mlp_down_scale: Callable[[Any], float] = lambda config: 1.0
    """Constant factor between ``mlp_down``'s output and the MLP's (falcon_h1)."""

    refuse: Callable[[Any], str | None] = lambda config: None
    """Why this config is refused, where more than one entry decides."""

    refuse_when: tuple[tuple[str, Callable[[Any], bool], str], ...] = ()
    """(config entry, is it refused?, reason)."""


def resolve(field: Any, config: Any) -> Any:
    """A field's value for this config."""
    return field(config) if callable(field) else field
