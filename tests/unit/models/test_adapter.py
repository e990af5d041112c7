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
from symbolic_residue.models import load_model, wrap

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
