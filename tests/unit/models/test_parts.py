"""The family table on tiny models of every family: the parts must reproduce what the model computes, not only have its shapes."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from tiny_models import build, FAMILIES, SLIDING_WINDOW, VOCAB
from torch import nn, Tensor

from symbolic_residue.errors import AdapterError, UnsupportedModelError, VerificationError
from symbolic_residue.models import bind
from symbolic_residue.models import FAMILIES as TABLE

NAMES = sorted(FAMILIES)
IDS = torch.arange(24).reshape(1, 24) * 7 % VOCAB


@contextmanager
def record(*modules: nn.Module) -> Iterator[list[dict[str, Tensor]]]:
    """First positional (or ``hidden_states``) input and first output of each module's last call."""
    seen: list[dict[str, Tensor]] = [{} for _ in modules]

    def hook(slot: dict[str, Tensor]) -> Any:
        def keep(module: nn.Module, args: Any, kwargs: Any, output: Any) -> None:
            slot["in"] = args[0] if args else kwargs["hidden_states"]
            slot["out"] = output[0] if isinstance(output, tuple) else output

        return keep

    handles = [module.register_forward_hook(hook(slot), with_kwargs=True) for module, slot in zip(modules, seen, strict=True)]
    try:
        yield seen
    finally:
        for handle in handles:
            handle.remove()


@torch.no_grad()
def run(model: Any, **options: Any) -> Any:
    return model(IDS, use_cache=False, **options)


def test_every_family_of_the_table_has_a_tiny_model() -> None:
    assert {str(FAMILIES[name]["model_type"]) for name in NAMES} == set(TABLE)


@pytest.mark.parametrize("name", NAMES)
def test_sizes(name: str) -> None:
    parts = bind(build(name))
    assert parts.attention_layers == (0, 1)
    assert (parts.n_layers, parts.n_heads, parts.d_model, parts.d_mlp, parts.vocab_size) == (2, 4, 64, 96, VOCAB)
    assert parts.n_kv_heads == (4 if name in ("llama_mha", "gpt2", "gpt_neox") else 2)
    assert parts.d_head == (32 if name == "qwen3" else 16)
    assert parts.max_context == 256
    assert parts.qkv_bias == (name in ("qwen2", "gpt2", "gpt_neox"))
    assert [layer.parallel for layer in parts.layers] == [name == "gpt_neox"] * 2
    assert [layer.index for layer in parts.layers] == [0, 1]
    assert (parts.position_embed is not None) == (name == "gpt2")


@pytest.mark.parametrize("name", NAMES)
def test_heads_add_up_to_the_attention_output(name: str) -> None:
    model = build(name)
    parts = bind(model)
    for layer in parts.layers:
        with record(layer.o_proj) as (seen,):
            run(model)
        z = seen["in"].unflatten(-1, (parts.n_heads, parts.d_head))
        total = sum(z[..., head, :] @ layer.w_o(head) for head in range(parts.n_heads))
        assert isinstance(total, Tensor)
        if layer.b_o is not None:
            total = total + layer.b_o
        assert layer.w_o(0).shape == (parts.d_head, parts.d_model)
        torch.testing.assert_close(total, seen["out"], rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("name", NAMES)
def test_projections_make_what_attention_gets(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """v of every family, and q and k of gpt2, whose positions are not rotated, against what the attention function is given."""
    from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

    model = build(name)
    parts = bind(model)
    sdpa = ALL_ATTENTION_FUNCTIONS["sdpa"]
    got: dict[int, tuple[Tensor, Tensor, Tensor]] = {}

    def spy(module: nn.Module, query: Tensor, key: Tensor, value: Tensor, *args: Any, **kwargs: Any) -> Any:
        got[module.layer_idx] = (query, key, value)  # type: ignore[index]
        return sdpa(module, query, key, value, *args, **kwargs)

    monkeypatch.setitem(ALL_ATTENTION_FUNCTIONS._local_mapping, "sdpa", spy)
    for layer in parts.layers:
        with record(layer.pre_attn_norm.module) as (seen,):
            run(model)
        group = parts.n_heads // parts.n_kv_heads
        for which, tensor in zip("qkv", got[layer.index], strict=True):
            if which != "v" and name != "gpt2":
                continue
            for head in range(parts.n_heads):
                weight, bias = layer.projection(which, head)  # type: ignore[arg-type]
                assert weight.shape == (parts.d_model, parts.d_head)
                made = seen["out"] @ weight if bias is None else seen["out"] @ weight + bias
                torch.testing.assert_close(made, tensor[:, head if which == "q" else head // group], rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("name", NAMES)
def test_residual_stream_is_the_sum_of_what_the_parts_write(name: str) -> None:
    model = build(name)
    parts = bind(model)
    for layer in parts.layers:
        attn_writes = layer.post_attn_norm.module if layer.post_attn_norm else layer.attn
        mlp_writes = layer.post_mlp_norm.module if layer.post_mlp_norm else layer.mlp
        modules = (layer.block, attn_writes, mlp_writes, layer.pre_mlp_norm.module, layer.mlp_down, layer.mlp)
        with record(*modules) as (block, attn, mlp, norm, down, whole_mlp):
            run(model)
        torch.testing.assert_close(block["in"] + attn["out"] + mlp["out"], block["out"], rtol=1e-4, atol=1e-4)
        mid = block["in"] if layer.parallel else block["in"] + attn["out"]
        torch.testing.assert_close(norm["in"], mid, rtol=1e-4, atol=1e-4)
        assert down["in"].shape[-1] == parts.d_mlp
        torch.testing.assert_close(down["out"], whole_mlp["out"])


@pytest.mark.parametrize("name", NAMES)
def test_norms_follow_their_formula(name: str) -> None:
    model = build(name)
    parts = bind(model)
    layer = parts.layers[1]
    norms = [parts.final_norm, layer.pre_attn_norm, layer.pre_mlp_norm, layer.post_attn_norm, layer.post_mlp_norm]
    for norm in (norm for norm in norms if norm is not None):
        with record(norm.module) as (seen,):
            run(model)
        torch.testing.assert_close(norm.formula(seen["in"]), seen["out"].double(), rtol=1e-4, atol=1e-4)
        assert norm.gain().shape == (parts.d_model,)
        assert (norm.bias() is None) == (norm.kind == "rms")


@pytest.mark.parametrize("name", NAMES)
def test_embedding_and_unembedding(name: str) -> None:
    model = build(name)
    parts = bind(model)
    with record(parts.layers[0].block, parts.layers[-1].block) as (first, last):
        logits = run(model).logits
    start = parts.embed(IDS)
    if parts.position_embed is not None:
        start = start + parts.position_embed(torch.arange(IDS.shape[1]))
    torch.testing.assert_close(first["in"], start)
    made = parts.final_norm.formula(last["out"]) @ parts.w_u.double().T
    if parts.b_u is not None:
        made = made + parts.b_u
    torch.testing.assert_close(made, logits.double(), rtol=1e-4, atol=1e-4)
    scaled = not torch.equal(parts.embed(IDS), nn.functional.embedding(IDS, parts.embed.weight))  # type: ignore[arg-type]
    assert scaled == parts.spec.embed_scaled == (name == "gemma3")


def test_logit_softcap_is_told() -> None:
    model = build("gemma3", final_logit_softcapping=3.0)
    parts = bind(model)
    with record(parts.layers[-1].block) as (last,):
        logits = run(model).logits
    assert parts.logit_softcap == 3.0
    raw = parts.final_norm.formula(last["out"]) @ parts.w_u.double().T
    torch.testing.assert_close(3.0 * torch.tanh(raw / 3.0), logits.double(), rtol=1e-4, atol=1e-4)


WINDOWED = [(name, {}) for name in NAMES] + [
    (
        "qwen2",
        {
            "use_sliding_window": True,
            "sliding_window": 5,
            "max_window_layers": 1,
            "layer_types": ["full_attention", "sliding_attention"],
        },
    ),
    ("qwen3", {"use_sliding_window": True, "sliding_window": 5, "max_window_layers": 0, "layer_types": ["sliding_attention"] * 2}),
    ("mistral", {"sliding_window": None}),
]


@pytest.mark.parametrize(("name", "changes"), WINDOWED)
def test_windows_are_what_the_model_attends(name: str, changes: dict[str, Any]) -> None:
    """Eager attention weights must be zero exactly outside the window (and over the diagonal)."""
    model = build(name, **changes)
    parts = bind(model)
    model.set_attn_implementation("eager")
    attentions = run(model, output_attentions=True).attentions
    query, key = torch.arange(IDS.shape[1])[:, None], torch.arange(IDS.shape[1])[None, :]
    for layer, weights in enumerate(attentions):
        window = parts.attention_window(layer)
        visible = key <= query
        if window is not None:
            visible = visible & (query - key < window)
        # Far keys may underflow to zero, so only ask that nothing outside is seen and that the window's far edge is seen at all.
        assert not weights[..., ~visible].any()
        edge = (query - key == (IDS.shape[1] if window is None else window) - 1) & visible
        assert (weights[..., edge] > 0).any()


def test_expected_windows() -> None:
    assert bind(build("mistral")).windows == (SLIDING_WINDOW, SLIDING_WINDOW)
    assert bind(build("gemma3")).windows == (SLIDING_WINDOW, None)
    assert bind(build("llama")).windows == (None, None)


def test_sequential_gpt_neox() -> None:
    assert not bind(build("gpt_neox", use_parallel_residual=False)).layers[0].parallel


def test_binding_leaves_the_model_alone() -> None:
    model = build("gemma3")
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    rng = torch.get_rng_state()
    bind(model)
    assert torch.equal(rng, torch.get_rng_state())
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
@pytest.mark.parametrize("name", ["llama", "gemma3", "gpt2"])
def test_other_dtypes_bind(name: str, dtype: torch.dtype) -> None:
    assert bind(build(name).to(dtype)).final_norm.gain().dtype == dtype


def test_head_out_of_range() -> None:
    layer = bind(build("llama")).layers[0]
    for head in (-1, 4):
        with pytest.raises(IndexError):
            layer.w_o(head)
        with pytest.raises(IndexError):
            layer.projection("v", head)


def test_unknown_architecture_lists_known_ones() -> None:
    from transformers import OPTConfig, OPTForCausalLM

    config = OPTConfig(
        vocab_size=64, hidden_size=16, num_hidden_layers=1, num_attention_heads=2, ffn_dim=16, word_embed_proj_dim=16
    )
    with pytest.raises(UnsupportedModelError, match=r"'opt'.*gpt_neox, llama, mistral"):
        bind(OPTForCausalLM(config))
    with pytest.raises(UnsupportedModelError, match="no transformers model"):
        bind(nn.Linear(2, 2))


@pytest.mark.parametrize(
    ("name", "changes", "reason"),
    [
        ("gemma3", {"attn_logit_softcapping": 50.0}, "soft-cap"),
        ("gemma3", {"use_bidirectional_attention": True}, "causal"),
        ("gpt2", {"add_cross_attention": True}, "Cross-attention"),
    ],
)
def test_variants_outside_the_table_are_refused(name: str, changes: dict[str, Any], reason: str) -> None:
    with pytest.raises(UnsupportedModelError, match=reason):
        bind(build(name, **changes))


def _damage_o_proj(model: Any) -> None:
    model.model.layers[1].self_attn.o_proj = nn.Linear(32, 64, bias=False)


def _damage_layer_idx(model: Any) -> None:
    model.model.layers[1].self_attn.layer_idx = 0


def _damage_unembed(model: Any) -> None:
    model.lm_head = nn.Linear(64, VOCAB - 1, bias=False)


def _damage_norm_shape(model: Any) -> None:
    model.model.norm.weight = nn.Parameter(torch.ones(32))


def _damage_norm_kind(model: Any) -> None:
    model.model.layers[0].input_layernorm = nn.LayerNorm(64)


def _damage_norm_eps(model: Any) -> None:
    model.model.norm = nn.Identity()


def _damage_depth(model: Any) -> None:
    del model.model.layers[1]


def _damage_kv(model: Any) -> None:
    model.model.layers[0].self_attn.v_proj = nn.Linear(64, 64, bias=False)


def _damage_down(model: Any) -> None:
    model.model.layers[0].mlp.down_proj = nn.Linear(96, 32, bias=False)


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (_damage_o_proj, r"layers\.1\.self_attn\.o_proj"),
        (_damage_layer_idx, r"layers\.1\.self_attn has layer_idx 0"),
        (_damage_unembed, "lm_head"),
        (_damage_norm_shape, r"model\.norm"),
        (_damage_norm_kind, r"layers\.0\.input_layernorm does not compute the rms norm"),
        (_damage_norm_eps, r"model\.norm"),
        (_damage_depth, "1 blocks; the config says 2"),
        (_damage_kv, r"v_proj"),
        (_damage_down, r"mlp\.down_proj"),
    ],
)
def test_a_part_that_does_not_fit_is_named(damage: Any, message: str) -> None:
    model = build("llama")
    damage(model)
    with pytest.raises(VerificationError, match=message):
        bind(model)


def test_quantised_linears_are_refused() -> None:
    class PackedLinear(nn.Linear):
        """As quantisation libraries do: a subclass whose weight is not the matrix."""

    model = build("llama")
    model.model.layers[0].self_attn.o_proj = PackedLinear(64, 64, bias=False)
    with pytest.raises(UnsupportedModelError, match=r"o_proj is a PackedLinear"):
        bind(model)


def test_models_without_a_language_head_are_refused() -> None:
    with pytest.raises(VerificationError, match=r"embed_tokens: expected Embedding, found nothing"):
        bind(build("llama").model)


@pytest.mark.filterwarnings("ignore:.is_gradient_checkpointing.:FutureWarning")  # peft asks transformers by the old name
def test_adapters_that_do_not_add_are_refused() -> None:
    from peft import get_peft_model, LoraConfig

    wrapped = get_peft_model(build("llama"), LoraConfig(r=2, target_modules=["v_proj"], task_type="CAUSAL_LM", use_dora=True))
    with pytest.raises(AdapterError, match="merge_and_unload"):
        bind(wrapped)
    with pytest.raises(AdapterError, match="merge_and_unload"):
        bind(wrapped.base_model.model)  # the inner model, whose linears are still wrapped
