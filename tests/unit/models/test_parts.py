"""The family table on tiny models of every family: the parts must reproduce what the model computes, not only have its shapes."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny_models import ALL, build, HYBRIDS, SLIDING_WINDOW, VOCAB
from torch import nn, Tensor

from symbolic_residue.errors import AdapterError, ReadError, UnsupportedModelError, VerificationError
from symbolic_residue.models import bind
from symbolic_residue.models import FAMILIES as TABLE
from symbolic_residue.models._families import REFUSED
from symbolic_residue.types import Point

NAMES = sorted(ALL)
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
    assert {str(ALL[name]["model_type"]) for name in NAMES} == set(TABLE)
    assert not set(TABLE) & set(REFUSED)


MHA = ("llama_mha", "gpt2", "gpt_neox", "opt", "falcon_alibi")
PARALLEL = ("gpt_neox", "cohere", "cohere_qk_norm", "cohere2", "stablelm_parallel", "phi", "falcon", "falcon_mqa")
ALL_EXPERTS = ("mixtral", "qwen3_moe", "gpt_oss")
QKV_BIAS = ("qwen2", "gpt2", "gpt_neox", "opt", "phi", "qwen2_moe", "glm4", "cohere_qk_norm", "starcoder2", "stablelm", "gpt_oss")
ATTENTION_LAYERS = dict.fromkeys(HYBRIDS, (1, 3)) | {"falcon_h1": (0, 1)}


@pytest.mark.parametrize("name", NAMES)
def test_sizes(name: str) -> None:
    parts = bind(build(name))
    n_layers = ALL[name].get("num_hidden_layers", 2)
    assert parts.attention_layers == ATTENTION_LAYERS.get(name, (0, 1))
    assert (parts.n_layers, parts.n_heads, parts.d_model, parts.vocab_size) == (n_layers, 4, 64, VOCAB)
    assert parts.d_mlp == (None if name in ALL_EXPERTS else 96)
    assert parts.n_kv_heads == (4 if name in MHA else 1 if name == "falcon_mqa" else 2)
    assert parts.d_head == (32 if name == "qwen3" else 16)
    assert parts.max_context == 256
    assert parts.qkv_bias == (name in (*QKV_BIAS, "falcon", "falcon_alibi"))
    assert [layer.parallel for layer in parts.layers] == [name in PARALLEL] * n_layers
    assert [layer.index for layer in parts.layers] == list(range(n_layers))
    assert (parts.position_embed is not None) == (name in ("gpt2", "opt"))
    assert (parts.embed_scale, parts.logit_scale) == {
        "granite": (3.0, 0.5),
        "granitemoehybrid": (3.0, 0.5),
        "falcon_h1": (2.0, 0.5),
        "cohere": (1.0, 0.5),
        "cohere_qk_norm": (1.0, 0.5),
        "cohere2": (1.0, 0.5),
    }.get(name, (1.0, 1.0))
    assert parts.spec.door == ("sdpa_call" if name.startswith("falcon") and name != "falcon_h1" else "interface")
    assert parts.family == ALL[name]["model_type"]
    assert not parts.discovered


@pytest.mark.parametrize("name", NAMES)
def test_experts_and_mixers(name: str) -> None:
    parts = bind(build(name))
    experts = {"qwen2_moe": [0], "qwen3_next": [1, 2, 3], "jamba": [1, 3]}.get(name, [0, 1] if name in ALL_EXPERTS else [])
    assert [layer.index for layer in parts.layers if layer.moe] == experts
    for layer in parts.layers:
        assert (layer.mlp_down is None) == layer.moe
        assert (layer.attn is None) == (layer.o_proj is None) == (layer.index not in parts.attention_layers)
        assert (layer.mixer is not None) == (name == "falcon_h1" or layer.attn is None)
        if layer.moe:
            with pytest.raises(ReadError, match=rf"mlp_act\.{layer.index} does not exist here.*mixture of experts"):
                parts.check_point(Point("mlp_act", layer.index))
        if layer.attn is None:
            with pytest.raises(ReadError, match=rf"Layer {layer.index} has no softmax attention.*Layers that have z: 1, 3\."):
                parts.points(f"z.{layer.index}")
            with pytest.raises(ReadError, match="no softmax attention"):
                layer.w_o(0)
    assert [point.layer for point in parts.points("z.*")] == list(parts.attention_layers)
    assert [point.layer for point in parts.points("resid_post.*")] == list(range(parts.n_layers))
    if name not in HYBRIDS:
        with pytest.raises(ReadError, match="no token mixer"):
            parts.points("mixer_out.*")


@pytest.mark.parametrize("name", NAMES)
def test_heads_add_up_to_the_attention_output(name: str) -> None:
    model = build(name)
    parts = bind(model)
    for layer in (parts.layers[i] for i in parts.attention_layers):
        assert layer.o_proj is not None
        with record(layer.o_proj) as (seen,):
            run(model)
        z = seen["in"].unflatten(-1, (parts.n_heads, parts.d_head))
        total = sum(z[..., head, :] @ layer.w_o(head) for head in range(parts.n_heads))
        assert isinstance(total, Tensor)
        if layer.b_o is not None:
            total = total + layer.b_o
        assert layer.w_o(0).shape == (parts.d_head, parts.d_model)
        torch.testing.assert_close(total, seen["out"], rtol=1e-4, atol=1e-4)


@contextmanager
def spy_on_attention(model: Any, monkeypatch: pytest.MonkeyPatch) -> Iterator[list[tuple[Tensor, ...]]]:
    """q, k and v of every call of the attention function (or of SDPA itself), in the order of the calls."""
    from transformers.masking_utils import ALL_MASK_ATTENTION_FUNCTIONS, sdpa_mask
    from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

    got: list[tuple[Tensor, ...]] = []
    sdpa, direct = ALL_ATTENTION_FUNCTIONS["sdpa"], nn.functional.scaled_dot_product_attention

    def spy(module: nn.Module, query: Tensor, key: Tensor, value: Tensor, *args: Any, **kwargs: Any) -> Any:
        got.append((query, key, value))
        kwargs.pop("softcap", None)  # the next layer's tensors then come from another input, and are compared with that
        return sdpa(module, query, key, value, *args, **kwargs)

    def spy_on_sdpa(query: Tensor, key: Tensor, value: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        got.append((query, key, value))
        return direct(query, key, value, *args, **kwargs)

    with monkeypatch.context() as patch:
        if bind(model).spec.door == "sdpa_call":
            patch.setattr(nn.functional, "scaled_dot_product_attention", spy_on_sdpa)
        else:
            patch.setitem(ALL_ATTENTION_FUNCTIONS._local_mapping, "spy", spy)
            patch.setitem(ALL_MASK_ATTENTION_FUNCTIONS._local_mapping, "spy", sdpa_mask)
            model.set_attn_implementation("spy")
        yield got


@pytest.mark.parametrize("name", NAMES)
def test_projections_make_what_attention_gets(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """v against what the attention function is given, and the lengths of q and k, which rotations keep, where they have no norm of their own."""
    model = build(name)
    parts = bind(model)
    layers = [parts.layers[i] for i in parts.attention_layers]
    inputs = [layer.pre_attn_norm.module if layer.pre_attn_norm else layer.block for layer in layers]
    with spy_on_attention(model, monkeypatch) as got, record(*inputs) as seen:
        run(model)
    assert len(got) == len(layers)
    group = parts.n_heads // parts.n_kv_heads
    for layer, tensors, at in zip(layers, got, seen, strict=True):
        x = at["out"] if layer.pre_attn_norm else at["in"]
        normed = any("norm" in child for child, _ in layer.attn.named_children())  # type: ignore[union-attr]
        for which, tensor in zip("qkv", tensors, strict=True):
            for head in range(parts.n_heads):
                weight, bias = layer.projection(which, head)  # type: ignore[arg-type]
                assert weight.shape == (parts.d_model, parts.d_head)
                made = x @ weight if bias is None else x @ weight + bias
                if name == "olmo":
                    made = made.clamp(-2.0, 2.0)
                if name == "opt" and which == "q":
                    made = made * layer.attn.scaling  # type: ignore[union-attr,operator]
                given = tensor[:, head if tensor.shape[1] == parts.n_heads else head // group]
                if which == "v" or name in ("gpt2", "opt", "falcon_alibi", "jamba"):
                    torch.testing.assert_close(made, given, rtol=1e-4, atol=1e-4)
                elif not normed:
                    torch.testing.assert_close(made.norm(dim=-1), given.norm(dim=-1), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("name", NAMES)
def test_residual_stream_is_the_sum_of_what_the_parts_write(name: str) -> None:
    model = build(name)
    parts = bind(model)
    for layer in parts.layers:
        writers = {"block": layer.block, "mlp_up": layer.mlp_up}
        if layer.attn is not None:
            writers["attn"] = layer.post_attn_norm.module if layer.post_attn_norm else layer.attn
        if layer.mixer is not None:
            writers["mixer"] = layer.mixer
        writers["mlp"] = layer.post_mlp_norm.module if layer.post_mlp_norm else layer.mlp or layer.mlp_down
        writers["mid"] = layer.pre_mlp_norm.module if layer.pre_mlp_norm else layer.mlp
        if layer.mlp_down is not None:
            writers |= {"down": layer.mlp_down, "whole": layer.mlp or layer.mlp_down}
        with record(*writers.values()) as slots:  # type: ignore[arg-type]
            run(model)
        seen = dict(zip(writers, slots, strict=True))
        block = seen["block"]
        total = block["in"]
        for kind, scale in (("attn", layer.attn_scale), ("mixer", layer.mixer_scale)):
            if kind in seen:
                total = total + seen[kind]["out"] * scale
        mid = block["in"] if layer.parallel else total
        torch.testing.assert_close(seen["mid"]["in"].reshape(mid.shape), mid, rtol=1e-4, atol=1e-4)
        mlp = seen["mlp"]["out"].reshape(mid.shape)
        if parts.spec.door != "sdpa_call" or not layer.parallel:  # falcon adds attention into the MLP's own output
            mlp = mlp * layer.mlp_scale
            torch.testing.assert_close(total + mlp, block["out"], rtol=1e-4, atol=1e-4)
        if layer.mlp_down is not None:
            assert seen["down"]["in"].shape[-1] == parts.d_mlp
            if not layer.parallel or parts.spec.door == "interface":
                torch.testing.assert_close(seen["down"]["out"] * layer.mlp_down_scale, seen["whole"]["out"])


@pytest.mark.parametrize("name", NAMES)
def test_norms_follow_their_formula(name: str) -> None:
    model = build(name)
    parts = bind(model)
    layer = parts.layers[1]
    norms = [parts.final_norm, layer.pre_attn_norm, layer.pre_mlp_norm, layer.post_attn_norm, layer.post_mlp_norm]
    assert (layer.pre_attn_norm is None) == (name in ("olmo2", "olmo3", "exaone4"))
    assert (layer.post_mlp_norm is None) == (name not in ("olmo2", "olmo3", "exaone4", "glm4", "gemma2", "gemma3"))
    for norm in (norm for norm in norms if norm is not None):
        with record(norm.module) as (seen,):
            run(model)
        torch.testing.assert_close(norm.formula(seen["in"]), seen["out"].double(), rtol=1e-4, atol=1e-4)
        assert norm.gain().shape == (parts.d_model,)
        assert (norm.bias() is None) == (norm.kind == "rms" or name in ("olmo", "cohere", "cohere_qk_norm", "cohere2"))


@pytest.mark.parametrize("name", NAMES)
def test_embedding_and_unembedding(name: str) -> None:
    model = build(name)
    parts = bind(model)
    with record(parts.layers[0].block, parts.layers[-1].block) as (first, last):
        logits = run(model).logits
    start = parts.embed(IDS) * parts.embed_scale
    if parts.position_embed is not None:
        start = start + parts.position_embed.weight[parts.spec.position_offset :][: IDS.shape[1]]  # type: ignore[index]
    torch.testing.assert_close(first["in"], start)
    made = parts.final_norm.formula(last["out"]) @ parts.w_u.double().T
    if parts.b_u is not None:
        made = made + parts.b_u
    made = made * parts.logit_scale
    if parts.logit_softcap is not None:
        made = parts.logit_softcap * torch.tanh(made / parts.logit_softcap)
    torch.testing.assert_close(made, logits.double(), rtol=1e-4, atol=1e-4)
    scaled = not torch.equal(parts.embed(IDS), nn.functional.embedding(IDS, parts.embed.weight))  # type: ignore[arg-type]
    assert scaled == parts.spec.embed_scaled == name.startswith("gemma")


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
    ("mixtral", {"sliding_window": None}),
    ("phi3", {"sliding_window": None}),
    ("starcoder2", {"sliding_window": None}),
    ("exaone4", {"sliding_window": None, "layer_types": ["full_attention"] * 2}),
    ("qwen3_moe", {"use_sliding_window": True, "sliding_window": 5}),
    (
        "qwen2_moe",
        {"use_sliding_window": True, "sliding_window": 5, "layer_types": ["full_attention", "sliding_attention"]},
    ),
    (
        "smollm3",
        {"use_sliding_window": True, "sliding_window": 5, "layer_types": ["sliding_attention", "full_attention"]},
    ),
]


@pytest.mark.parametrize(("name", "changes"), WINDOWED)
def test_windows_are_what_the_model_attends(name: str, changes: dict[str, Any]) -> None:
    """Eager attention weights must be zero exactly outside the window (and over the diagonal)."""
    model = build(name, **changes)
    parts = bind(model)
    if parts.spec.door == "sdpa_call":
        model.config._attn_implementation = "eager"  # falcon looks at its config at every call
    else:
        model.set_attn_implementation("eager")
    attentions = [weights for weights in run(model, output_attentions=True).attentions if weights is not None]
    query, key = torch.arange(IDS.shape[1])[:, None], torch.arange(IDS.shape[1])[None, :]
    assert len(attentions) == len(parts.attention_layers)
    for layer, weights in zip(parts.attention_layers, attentions, strict=True):
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
@pytest.mark.parametrize("name", ["llama", "gemma3", "gpt2", "mixtral", "cohere", "olmo", "falcon", "opt", "jamba", "qwen3_next"])
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
    from transformers import BloomConfig, BloomForCausalLM

    config = BloomConfig(vocab_size=64, hidden_size=16, n_layer=1, n_head=2)
    with pytest.raises(UnsupportedModelError, match=r"'bloom'.*its own code.*gpt_neox, .*llama, .*mistral"):
        bind(BloomForCausalLM(config))
    with pytest.raises(UnsupportedModelError, match="no transformers model"):
        bind(nn.Linear(2, 2))


@pytest.mark.parametrize(
    ("name", "changes", "reason"),
    [
        ("gemma3", {"attn_logit_softcapping": 50.0}, "softcap"),
        ("gemma2", {"use_bidirectional_attention": True}, "causal"),
        ("opt", {"word_embed_proj_dim": 32}, "projections"),
        ("opt", {"do_layer_norm_before": False}, "no sum of contributions"),
        ("granitemoehybrid", {"num_local_experts": 2, "num_experts_per_tok": 1}, "outside any module"),
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


@pytest.mark.parametrize("dequantise", [True, False])
def test_gguf_in_memory(gguf_bytes: bytes, tmp_path: Path, dequantise: bool) -> None:
    from transformers import AutoModelForCausalLM, GgufConfig

    (tmp_path / "tiny.gguf").write_bytes(gguf_bytes)
    model = AutoModelForCausalLM.from_pretrained(
        tmp_path, gguf_file="tiny.gguf", quantization_config=GgufConfig(dequantize=dequantise), dtype=torch.float32
    )
    if dequantise:
        assert bind(model).n_layers == 2
    else:
        with pytest.raises(UnsupportedModelError, match=r"weights are quantised \(gguf\)"):
            bind(model)


def test_bitsandbytes_is_refused() -> None:
    """As transformers marks a model that it loaded in 8 bits, which this machine may not be able to do."""
    from transformers import BitsAndBytesConfig

    model = build("llama")
    model.config.quantization_config = BitsAndBytesConfig(load_in_8bit=True)
    model.is_quantized = True
    with pytest.raises(UnsupportedModelError, match=r"weights are quantised \(bitsandbytes\)"):
        bind(model)


def test_offloaded_weights_are_refused() -> None:
    model = build("llama")
    model.model.layers[1].mlp.up_proj.to("meta")
    with pytest.raises(UnsupportedModelError, match=r"layers\.1\.mlp\.up_proj\.weight has no data .*Offloaded"):
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
