"""Loading folders and wrapping models: what comes out is the model that is on disk, and every defect is refused by name."""

from __future__ import annotations

import hashlib
import json
import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from tiny_models import build, CHAT_TEMPLATE, FAMILIES, tiny_tokenizer

from symbolic_residue.errors import (
    ConfigError,
    DamagedFileError,
    ModelFolderError,
    NonFiniteWeightsError,
    UnsupportedModelError,
    VerificationError,
)
from symbolic_residue.models import FolderRef, load_model, wrap

IDS = torch.arange(12)[None]


def edit_config(folder: Path, **changes: Any) -> None:
    path = folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def edit_weights(folder: Path, change: Any) -> None:
    tensors = load_file(folder / "model.safetensors")
    change(tensors)
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})


@pytest.mark.parametrize("name", sorted(FAMILIES))
def test_every_family_loads_as_saved(name: str, tmp_path: Path) -> None:
    model = build(name)
    model.save_pretrained(tmp_path)
    tiny_tokenizer().save_pretrained(tmp_path)
    loaded = load_model(tmp_path)
    with torch.no_grad():
        assert torch.equal(loaded.model(IDS).logits, model(IDS).logits)
    assert not loaded.model.training
    # Families whose attention SDPA cannot compute (softcap, sink logits) are loaded eager.
    assert loaded.model.config._attn_implementation == ("eager" if name in ("gemma2", "gpt_oss") else "sdpa")
    assert loaded.parts.family == FAMILIES[name]["model_type"]


def test_provenance_of_a_folder(folder: Path) -> None:
    provenance = load_model(str(folder)).provenance
    assert provenance.model == str(folder)
    assert (provenance.source, provenance.revision, provenance.adapter, provenance.quantisation, provenance.seed) == (
        "folder",
        None,
        None,
        None,
        None,
    )
    assert provenance.weights_sha256 == hashlib.sha256((folder / "model.safetensors").read_bytes()).hexdigest()
    assert provenance.template_sha256 == hashlib.sha256(CHAT_TEMPLATE.encode()).hexdigest()
    assert (provenance.dtype, provenance.device, provenance.attention_backend) == ("float32", "cpu", "sdpa")
    assert set(provenance.versions) == {"python", "torch", "transformers", "symbolic_residue"}
    assert type(provenance).model_validate_json(provenance.model_dump_json()) == provenance


def test_loading_is_silent_and_keeps_the_settings(folder: Path, capfd: pytest.CaptureFixture) -> None:
    from transformers.utils import logging

    before = logging.get_verbosity(), logging.is_progress_bar_enabled()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        load_model(folder)
    assert capfd.readouterr() == ("", "")
    assert (logging.get_verbosity(), logging.is_progress_bar_enabled()) == before


def test_dtype(folder: Path) -> None:
    loaded = load_model(folder, dtype="bfloat16")
    assert {parameter.dtype for parameter in loaded.model.parameters()} == {torch.bfloat16}
    assert loaded.provenance.dtype == "bfloat16"
    with pytest.raises(ConfigError, match="'int8'"):
        load_model(folder, dtype="int8")


@pytest.mark.parametrize("device", ["nowhere", "meta", "cuda:99"])
def test_device_that_cannot_be_used(folder: Path, device: str) -> None:
    with pytest.raises(ConfigError, match=device):
        load_model(folder, device=device)


def test_sharded_weights(tmp_path: Path) -> None:
    model = build("llama")
    model.save_pretrained(tmp_path, max_shard_size="150KB")
    tiny_tokenizer().save_pretrained(tmp_path)
    shards = sorted(tmp_path.glob("*.safetensors"))
    assert len(shards) > 1
    loaded = load_model(tmp_path)
    with torch.no_grad():
        assert torch.equal(loaded.model(IDS).logits, model(IDS).logits)
    lines = "".join(f"{shard.name} {hashlib.sha256(shard.read_bytes()).hexdigest()}\n" for shard in shards)
    assert loaded.provenance.weights_sha256 == hashlib.sha256(lines.encode()).hexdigest()
    shards[1].unlink()
    with pytest.raises(ModelFolderError, match=shards[1].name):
        load_model(tmp_path)


def test_folder_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(ModelFolderError, match="does not exist"):
        load_model(tmp_path / "nothing")
    (tmp_path / "file.gguf").write_bytes(b"GGUF")
    with pytest.raises(ModelFolderError, match="is a file"):
        load_model(FolderRef(tmp_path / "file.gguf"))
    with pytest.raises(ModelFolderError, match=r"no config\.json"):
        load_model(tmp_path)


def test_config_that_is_no_json(folder: Path) -> None:
    for text in ("{", "[]", ""):
        (folder / "config.json").write_text(text)
        with pytest.raises(DamagedFileError, match=r"config\.json is not valid JSON"):
            load_model(folder)


def test_pickles_are_never_loaded(folder: Path) -> None:
    (folder / "model.safetensors").rename(folder / "pytorch_model.bin")
    with pytest.raises(ModelFolderError, match=r"pytorch_model\.bin is a pickle"):
        load_model(folder)


def test_no_weights_at_all(folder: Path) -> None:
    (folder / "model.safetensors").unlink()
    with pytest.raises(ModelFolderError, match="no weights to load"):
        load_model(folder)


@pytest.mark.parametrize("keep", [0, 4, 1000, -1])
def test_truncated_safetensors(folder: Path, keep: int) -> None:
    path = folder / "model.safetensors"
    path.write_bytes(path.read_bytes()[:keep])
    with pytest.raises(DamagedFileError, match="truncated or damaged"):
        load_model(folder)


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
def test_non_finite_weights_are_named(folder: Path, value: float) -> None:
    name = "model.layers.1.mlp.up_proj.weight"
    edit_weights(folder, lambda tensors: tensors[name].__setitem__((3, 5), value))
    with pytest.raises(NonFiniteWeightsError, match=r"layers\.1\.mlp\.up_proj\.weight holds NaN or infinity in 1 of 6,144"):
        load_model(folder)


def test_missing_tensors_are_not_made_up(folder: Path) -> None:
    edit_weights(folder, lambda tensors: tensors.pop("model.layers.0.self_attn.o_proj.weight"))
    with pytest.raises(DamagedFileError, match=r"lack 1 tensors.*o_proj"):
        load_model(folder)


def test_config_of_another_size(folder: Path) -> None:
    edit_config(folder, intermediate_size=128)
    with pytest.raises(DamagedFileError):
        load_model(folder)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"model_type": "bloom"}, "'bloom'.*Supported model types: .*gemma3_text, glm4, gpt2"),
        ({"model_type": "no_such_model"}, "'no_such_model'.*transformers does not know it"),
        ({"model_type": None}, "None"),
        ({"model_type": "gemma3"}, "image tower"),
        ({"quantization_config": {"quant_method": "gptq"}}, "quantised .gptq"),
    ],
)
def test_unsupported_models_are_refused_before_loading(folder: Path, changes: dict[str, Any], message: str) -> None:
    edit_config(folder, **changes)
    (folder / "model.safetensors").write_bytes(b"never read")
    with pytest.raises(UnsupportedModelError, match=message):
        load_model(folder)


def test_authors_code_is_never_run(folder: Path) -> None:
    edit_config(folder, auto_map={"AutoConfig": "evil.Config", "AutoModelForCausalLM": "evil.Model"})
    (folder / "evil.py").write_text("raise SystemExit('code of the model was run')")
    assert type(load_model(folder).model).__module__.startswith("transformers.")


def test_folder_without_tokenizer(folder: Path) -> None:
    for path in folder.glob("tokenizer*"):
        path.unlink()
    with pytest.raises(ModelFolderError, match="no tokenizer"):
        load_model(folder)


def test_damaged_tokenizer(folder: Path) -> None:
    (folder / "tokenizer.json").write_text('{"version": "1.0"')
    with pytest.raises(ModelFolderError, match="cannot be loaded"):
        load_model(folder)


def test_tokenizer_larger_than_the_embedding() -> None:
    with pytest.raises(VerificationError, match="ids up to 383; the model embeds 300"):
        wrap(build("llama", vocab_size=300), tiny_tokenizer())
    tokenizer = tiny_tokenizer()
    tokenizer.add_special_tokens({"additional_special_tokens": ["<|extra|>"]})
    wrap(build("llama"), tokenizer)  # id 384, which no prompt has unless the user writes it
    tokenizer.chat_template = "<|extra|>" + CHAT_TEMPLATE
    with pytest.raises(VerificationError, match="ids up to 384"):
        wrap(build("llama"), tokenizer)


def test_slow_tokenizer_is_refused() -> None:
    class Slow:
        is_fast = False

    with pytest.raises(ModelFolderError, match="Slow is no fast tokenizer"):
        wrap(build("llama"), Slow())


def test_wrap_keeps_the_model() -> None:
    model, tokenizer = build("qwen3"), tiny_tokenizer(chat=False)
    model.set_attn_implementation("eager")
    loaded = wrap(model, tokenizer)
    assert loaded.model is model
    assert loaded.tokenizer is tokenizer
    provenance = loaded.provenance
    assert (provenance.source, provenance.attention_backend, provenance.template_sha256) == ("given", "eager", None)
    assert loaded.provenance is provenance  # hashed once


def test_given_weights_hash_follows_the_weights() -> None:
    tokenizer = tiny_tokenizer()
    first, same, other = (wrap(build("llama", seed=seed), tokenizer).provenance.weights_sha256 for seed in (0, 0, 1))
    assert first == same != other
    model = build("llama")
    with torch.no_grad():
        model.model.layers[1].mlp.up_proj.weight[0, 0] += 1
    assert wrap(model, tokenizer).provenance.weights_sha256 != first
    assert wrap(build("llama").to(torch.bfloat16), tokenizer).provenance.weights_sha256 != first


def test_wrap_refuses_nan_and_other_things() -> None:
    model = build("gpt2")
    with torch.no_grad():
        model.transformer.h[1].ln_2.bias[7] = float("nan")
    with pytest.raises(NonFiniteWeightsError, match=r"transformer\.h\.1\.ln_2\.bias"):
        wrap(model, tiny_tokenizer())
    with pytest.raises(UnsupportedModelError, match="str is no torch module"):
        wrap("model", tiny_tokenizer())


def test_import_is_light() -> None:
    import subprocess
    import sys

    code = (
        "import sys, symbolic_residue.models, symbolic_residue.cli._models;"
        "print([name for name in ('torch', 'transformers', 'polars', 'huggingface_hub') if name in sys.modules])"
    )
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.strip() == "[]"


def test_public_names_resolve() -> None:
    import symbolic_residue.models as models

    assert all(getattr(models, name) is not None for name in models.__all__)
    with pytest.raises(AttributeError):
        _ = models.nothing  # type: ignore[attr-defined]
