"""LoRA adapters: merged they compute what PEFT computes, and one of another model is refused."""

from __future__ import annotations

import json
import sys
import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from tiny_models import build, tiny_tokenizer

from symbolic_residue.errors import AdapterError, DamagedFileError, MissingExtraError
from symbolic_residue.instrument import HeadScale, Instrument, Scale, verify
from symbolic_residue.models import bind, load_model, wrap

IDS = torch.arange(12)[None]


def make_adapter(name: str, path: Path, *, changes: dict[str, Any] | None = None, **options: Any) -> torch.Tensor:
    """Saves a LoRA with random A and B for the tiny model ``name``; returns the adapted model's logits."""
    from peft import get_peft_model, LoraConfig

    model = build(name, **(changes or {}))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # peft asks transformers by a name it gave up
        adapted = get_peft_model(model, LoraConfig(r=3, lora_alpha=6, task_type="CAUSAL_LM", **options))
    adapted.peft_config["default"].base_model_name_or_path = "org/base"
    generator = torch.Generator().manual_seed(5)
    with torch.no_grad():
        for parameter_name, parameter in adapted.named_parameters():
            if "lora_" in parameter_name:
                parameter.copy_(torch.randn(parameter.shape, generator=generator) * 0.3)
        adapted.eval()
        logits = adapted(IDS).logits
    adapted.save_pretrained(path, save_embedding_layers=False)
    return logits


@pytest.fixture
def lora(tmp_path: Path) -> tuple[Path, torch.Tensor]:
    path = tmp_path / "adapter"
    return path, make_adapter("llama", path, target_modules=["q_proj", "v_proj", "down_proj"])


def test_merged_adapter_computes_what_peft_computes(folder: Path, lora: tuple[Path, torch.Tensor]) -> None:
    path, logits = lora
    loaded = load_model(folder, adapter=path)
    with torch.no_grad():
        got, plain = loaded.model(IDS).logits, load_model(folder).model(IDS).logits
    torch.testing.assert_close(got, logits, rtol=1e-4, atol=1e-4)
    assert (got - plain).abs().max() > 0.1
    assert not any("lora" in name for name, _ in loaded.model.named_modules())
    adapter, base = loaded.provenance.adapter, load_model(folder).provenance
    assert adapter is not None
    assert (adapter.path, adapter.kind, adapter.base, adapter.base_matches) == (str(path), "LORA", "org/base", False)
    assert len(adapter.sha256) == 64
    assert loaded.provenance.weights_sha256 == base.weights_sha256
    wrap(loaded.model, loaded.tokenizer)  # nothing of PEFT is left


def test_base_that_matches_is_recorded(folder: Path, lora: tuple[Path, torch.Tensor]) -> None:
    config = lora[0] / "adapter_config.json"
    config.write_text(json.dumps(json.loads(config.read_text()) | {"base_model_name_or_path": str(folder)}))
    adapter = load_model(folder, adapter=lora[0]).provenance.adapter
    assert adapter is not None
    assert adapter.base_matches


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("gpt2", {"target_modules": ["c_attn", "c_proj"], "fan_in_fan_out": True}),
        ("llama", {"target_modules": ["o_proj"], "use_dora": True}),
        ("llama", {"target_modules": ["o_proj"], "modules_to_save": ["lm_head"]}),
        ("llama", {"target_modules": ["embed_tokens", "q_proj"]}),
    ],
)
def test_forms_of_lora(tmp_path: Path, name: str, options: dict[str, Any]) -> None:
    base = tmp_path / "base"
    build(name).save_pretrained(base)
    tiny_tokenizer().save_pretrained(base)
    logits = make_adapter(name, tmp_path / "adapter", **options)
    with torch.no_grad():
        got = load_model(base, adapter=tmp_path / "adapter").model(IDS).logits
    torch.testing.assert_close(got, logits, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize(
    ("name", "changes", "targets", "message"),
    [
        (
            "llama",
            {"hidden_size": 128, "head_dim": 32},
            ["q_proj"],
            r"q_proj\.lora_A\.weight.* has shape \[3, 128\]; the base needs",
        ),
        ("llama", {"num_hidden_layers": 3}, ["q_proj"], r"layers\.2.* does not have"),
        ("gpt2", {}, ["c_attn"], r"'transformer\.h\.0\.attn\.c_attn', which the base does not have"),
    ],
)
def test_adapter_of_another_model(
    folder: Path, tmp_path: Path, name: str, changes: dict[str, Any], targets: list[str], message: str
) -> None:
    make_adapter(name, tmp_path / "other", changes=changes, target_modules=targets, fan_in_fan_out=name == "gpt2")
    with pytest.raises(AdapterError, match=message):
        load_model(folder, adapter=tmp_path / "other")


def test_left_over_tensor(folder: Path, lora: tuple[Path, torch.Tensor]) -> None:
    path = lora[0] / "adapter_model.safetensors"
    save_file(load_file(path) | {"base_model.model.model.extra.weight": torch.ones(2)}, path)
    with pytest.raises(AdapterError, match=r"extra\.weight' fits nothing"):
        load_model(folder, adapter=lora[0])


def test_folders_that_hold_no_adapter(folder: Path, tmp_path: Path, lora: tuple[Path, torch.Tensor]) -> None:
    with pytest.raises(AdapterError, match="does not exist"):
        load_model(folder, adapter=tmp_path / "nothing")
    with pytest.raises(AdapterError, match=r"no adapter_config\.json"):
        load_model(folder, adapter=folder)
    config, weights = lora[0] / "adapter_config.json", lora[0] / "adapter_model.safetensors"
    text = config.read_text()
    config.write_text("{")
    with pytest.raises(AdapterError, match="not valid JSON"):
        load_model(folder, adapter=lora[0])
    config.write_text(json.dumps(json.loads(text) | {"peft_type": "PROMPT_TUNING"}))
    with pytest.raises(AdapterError, match="'PROMPT_TUNING'"):
        load_model(folder, adapter=lora[0])
    config.write_text(text)
    weights.write_bytes(weights.read_bytes()[:-10])
    with pytest.raises(DamagedFileError, match=r"adapter_model\.safetensors"):
        load_model(folder, adapter=lora[0])
    weights.rename(lora[0] / "adapter_model.bin")
    with pytest.raises(AdapterError, match="pickles"):
        load_model(folder, adapter=lora[0])


def test_missing_extra(folder: Path, lora: tuple[Path, torch.Tensor], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "peft", None)
    with pytest.raises(MissingExtraError) as caught:
        load_model(folder, adapter=lora[0])
    assert caught.value.todo == "pip install 'symbolic-residue[adapters]'"


def attach(name: str, seed: int = 5, **options: Any) -> Any:
    """The tiny model ``name`` with a random LoRA attached, as a ``PeftModel``."""
    from peft import get_peft_model, LoraConfig

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # peft asks transformers by a name it gave up
        adapted = get_peft_model(build(name), LoraConfig(r=3, lora_alpha=6, task_type="CAUSAL_LM", **options))
    randomise(adapted, seed)
    return adapted.eval()


def randomise(adapted: Any, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter_name, parameter in adapted.named_parameters():
            if "lora_" in parameter_name:
                parameter.copy_(torch.randn(parameter.shape, generator=generator) * 0.3)


ATTACHED = [
    ("llama", {"target_modules": ["q_proj", "v_proj", "o_proj", "down_proj"]}),
    ("qwen2", {"target_modules": "all-linear"}),
    ("gpt2", {"target_modules": ["c_attn", "c_proj"], "fan_in_fan_out": True}),
    ("gpt_neox", {"target_modules": ["query_key_value", "dense", "embed_out"]}),
    ("olmo2", {"target_modules": ["o_proj", "lm_head", "embed_tokens"]}),
]


@pytest.mark.parametrize(("name", "options"), ATTACHED)
def test_attached_adapter_reads_and_edits_as_the_merged_model(name: str, options: dict[str, Any]) -> None:
    """In float64, where nothing but the order of the products differs."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        attached = wrap(attach(name, **options).double(), tiny_tokenizer())
        merged = wrap(attach(name, **options).double().merge_and_unload(), tiny_tokenizer())
    assert any("lora" in module for module, _ in attached.model.named_modules())
    reads = ("resid_post.*", "attn_out.*", "z.*", "mlp_act.*", "q.1", "k.1", "v.1")
    for edits in ((), (HeadScale(0, 1, 0.0),), (Scale("mlp_act.1", factor=0.5), Scale("attn_out.0", factor=2.0))):
        one = Instrument(attached).run(IDS, reads=reads, edits=edits)
        other = Instrument(merged).run(IDS, reads=reads, edits=edits)
        torch.testing.assert_close(one["logits"], other["logits"], rtol=1e-9, atol=1e-9)
        for point, tensor in one.tensors.items():
            torch.testing.assert_close(tensor, other.tensors[point], rtol=1e-9, atol=1e-9)
    for layer, plain in zip(attached.parts.layers, merged.parts.layers, strict=True):
        for head in range(4):
            torch.testing.assert_close(layer.w_o(head), plain.w_o(head))
            for which in "qkv":
                torch.testing.assert_close(layer.projection(which, head), plain.projection(which, head))  # type: ignore[arg-type]
    torch.testing.assert_close(attached.parts.w_u, merged.parts.w_u)


def test_weights_follow_the_adapters_that_act() -> None:
    from peft import LoraConfig

    adapted = attach("llama", target_modules=["o_proj"])
    adapted.add_adapter("second", LoraConfig(r=2, lora_alpha=2, target_modules=["o_proj"]))
    randomise(adapted, seed=7)
    layer, base = bind(adapted).layers[0], bind(build("llama")).layers[0].w_o(1)

    def acts() -> torch.Tensor:
        """The weight by its effect: unit vectors through the module."""
        with torch.no_grad():
            return layer.o_proj(torch.eye(64)[16:32])  # type: ignore[misc]

    first = layer.w_o(1)
    torch.testing.assert_close(first, acts())
    assert float((first - base).abs().max()) > 0.05
    adapted.set_adapter("second")
    torch.testing.assert_close(layer.w_o(1), acts())
    assert float((layer.w_o(1) - first).abs().max()) > 0.05
    with adapted.disable_adapter():
        assert torch.equal(layer.w_o(1), base)
        torch.testing.assert_close(acts(), base)
    adapted.merge_adapter()
    torch.testing.assert_close(layer.w_o(1), acts())
    with adapted.disable_adapter():
        torch.testing.assert_close(layer.w_o(1), base)


def test_disabled_adapter_is_the_base() -> None:
    adapted = attach("llama", target_modules=["q_proj", "o_proj"])
    loaded = wrap(adapted, tiny_tokenizer())
    verify(loaded)
    base = wrap(build("llama"), tiny_tokenizer())
    plain = Instrument(base).run(IDS, reads=("z.*",))
    with adapted.disable_adapter():
        got = Instrument(loaded).run(IDS, reads=("z.*",))
        assert torch.equal(got["logits"], plain["logits"])
        assert torch.equal(got["z.1"], plain["z.1"])
    assert not torch.equal(Instrument(loaded).run(IDS)["logits"], plain["logits"])


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"target_modules": ["o_proj"], "use_dora": True}, "DoRA"),
        ({"target_modules": ["o_proj"], "lora_bias": True, "bias": "none"}, "bias of its own"),
        (
            {"target_modules": ["q_proj"], "modules_to_save": ["lm_head"]},
            "lm_head is replaced by an adapter's ModulesToSaveWrapper",
        ),
    ],
)
def test_adapters_that_do_not_simply_add_are_refused(options: dict[str, Any], message: str) -> None:
    name = "gpt2" if "lora_bias" in options else "llama"
    if name == "gpt2":  # a bias of the adapter needs a bias of the base
        options = options | {"target_modules": ["c_proj"], "fan_in_fan_out": True}
    adapted = attach(name, **options)
    with pytest.raises(AdapterError, match=message) as caught:
        wrap(adapted, tiny_tokenizer())
    assert "merge_and_unload" in caught.value.todo


def test_other_adapters_are_refused() -> None:
    from peft import get_peft_model, IA3Config, PromptTuningConfig

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        ia3 = get_peft_model(build("llama"), IA3Config(target_modules=["v_proj"], feedforward_modules=[], task_type="CAUSAL_LM"))
        prompts = get_peft_model(build("llama"), PromptTuningConfig(num_virtual_tokens=3, task_type="CAUSAL_LM"))
    with pytest.raises(AdapterError, match=r"v_proj carries an adapter .* which is not LoRA"):
        bind(ia3)
    with pytest.raises(AdapterError, match="prompt learning"):
        bind(prompts)
