"""Surgery on adapter folders: parts add up to the whole, twins have its norms, and what is no plain LoRA is refused."""

from __future__ import annotations

import json
import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file
from tiny_models import build, tiny_tokenizer

from symbolic_residue.contrast import adapter_norms, random_adapter, restrict_adapter
from symbolic_residue.contrast._adapters import _product_norm
from symbolic_residue.errors import AdapterError, DamagedFileError
from symbolic_residue.models import load_model

IDS = torch.arange(12)[None]
TARGETS = {"llama": ["q_proj", "k_proj", "down_proj"], "gpt2": ["c_attn", "c_proj"]}


def adapter(family: str, path: Path, **options: Any) -> Path:
    """A LoRA with random sides on the tiny model of a family."""
    from peft import get_peft_model, LoraConfig

    options = {"target_modules": TARGETS[family], "fan_in_fan_out": family == "gpt2", "lora_alpha": 6, "r": 3} | options
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # peft asks transformers by a name it gave up
        adapted = get_peft_model(build(family), LoraConfig(task_type="CAUSAL_LM", **options))
    generator = torch.Generator().manual_seed(5)
    with torch.no_grad():
        for name, parameter in adapted.named_parameters():
            if "lora_" in name:
                parameter.copy_(torch.randn(parameter.shape, generator=generator) * 0.3)
    adapted.save_pretrained(path, save_embedding_layers=False)
    return path


@pytest.fixture(params=["llama", "gpt2"])
def pair(request: Any, tmp_path: Path) -> tuple[str, Path, Path]:
    """Family, base folder, adapter folder."""
    base = tmp_path / "base"
    build(request.param).save_pretrained(base)
    tiny_tokenizer().save_pretrained(base)
    return request.param, base, adapter(request.param, tmp_path / "whole")


def weights(base: Path, folder: Path | None) -> dict[str, torch.Tensor]:
    return {name: p.detach() for name, p in load_model(base, adapter=folder).model.named_parameters()}


def test_restricting_to_all_changes_nothing(pair: tuple[str, Path, Path], tmp_path: Path) -> None:
    family, base, whole = pair
    same = restrict_adapter(whole, tmp_path / "same", layers=[0, 1], projections=TARGETS[family])
    with torch.no_grad():
        want, got, plain = (load_model(base, adapter=f).model(IDS).logits for f in (whole, same, None))
    assert torch.equal(want, got)
    assert (want - plain).abs().max() > 0.1


@pytest.mark.parametrize("by", ["layers", "projections"])
def test_parts_add_up_to_the_whole(pair: tuple[str, Path, Path], tmp_path: Path, by: str) -> None:
    family, base, whole = pair
    parts: list[dict[str, Any]] = [{by: [part]} for part in ((0, 1) if by == "layers" else TARGETS[family])]
    plain, full = weights(base, None), weights(base, whole)
    added = dict.fromkeys(plain, 0.0) | {name: torch.zeros_like(p) for name, p in plain.items()}
    for i, part in enumerate(parts):
        restricted = weights(base, restrict_adapter(whole, tmp_path / f"part{i}", **part))
        changed = {name for name in plain if not torch.equal(restricted[name], plain[name])}
        word = f".{part[by][0]}." if by == "layers" else f"{part[by][0]}."
        assert changed and all(word in name for name in changed)
        for name in plain:
            added[name] = added[name] + (restricted[name] - plain[name])
    for name in plain:
        torch.testing.assert_close(plain[name] + added[name], full[name], rtol=1e-5, atol=1e-6)


def test_a_longer_name_tells_namesakes_apart(tmp_path: Path) -> None:
    whole = adapter("gpt2", tmp_path / "whole")
    frame = adapter_norms(restrict_adapter(whole, tmp_path / "part", projections=["attn.c_proj"]))
    assert frame["module"].to_list() == ["transformer.h.0.attn.c_proj", "transformer.h.1.attn.c_proj"]
    assert adapter_norms(restrict_adapter(whole, tmp_path / "both", projections="c_proj")).height == 4


def test_a_random_twin_has_the_norms_and_nothing_else(pair: tuple[str, Path, Path], tmp_path: Path) -> None:
    _, base, whole = pair
    twin = random_adapter(whole, tmp_path / "twin", seed=3)
    want, got = adapter_norms(whole), adapter_norms(twin)
    assert want.drop("norm").equals(got.drop("norm"))
    assert got["norm"].to_list() == pytest.approx(want["norm"].to_list(), rel=1e-5)
    plain, full, random = weights(base, None), weights(base, whole), weights(base, twin)
    for module, norm in want.select("module", "norm").iter_rows():
        mine, other = full[f"{module}.weight"] - plain[f"{module}.weight"], random[f"{module}.weight"] - plain[f"{module}.weight"]
        assert float(mine.norm()) == pytest.approx(norm, rel=1e-4)  # the norm that acts, with the factor alpha / rank
        assert float(other.norm()) == pytest.approx(norm, rel=1e-4)
        cosine = float((mine * other).sum() / (mine.norm() * other.norm()))
        assert abs(cosine) < 0.5
        assert int(torch.linalg.matrix_rank(other.double(), rtol=1e-4)) == 3
    again, third = random_adapter(whole, tmp_path / "again", seed=3), random_adapter(whole, tmp_path / "third", seed=4)
    file = "adapter_model.safetensors"
    assert (twin / file).read_bytes() == (again / file).read_bytes() != (third / file).read_bytes()


def test_a_twins_module_does_not_depend_on_the_others(tmp_path: Path) -> None:
    whole = adapter("llama", tmp_path / "whole")
    of_all = load_file(random_adapter(whole, tmp_path / "a", seed=0) / "adapter_model.safetensors")
    part = restrict_adapter(whole, tmp_path / "part", layers=[1])
    of_part = load_file(random_adapter(part, tmp_path / "b", seed=0) / "adapter_model.safetensors")
    assert of_part and all(torch.equal(t, of_all[name]) for name, t in of_part.items())


def test_half_precision_and_patterns(tmp_path: Path) -> None:
    whole = adapter("llama", tmp_path / "whole", alpha_pattern={"down_proj": 12}, use_rslora=True)
    file = whole / "adapter_model.safetensors"
    save_file({name: t.half() for name, t in load_file(file).items()}, file)
    frame = adapter_norms(whole)
    scales = dict(zip(frame["projection"], frame["scale"], strict=True))
    assert scales == pytest.approx({"q_proj": 6 / 3**0.5, "k_proj": 6 / 3**0.5, "down_proj": 12 / 3**0.5})
    part = restrict_adapter(whole, tmp_path / "part", projections=["down_proj"])
    assert all(t.dtype == torch.float16 for t in load_file(part / "adapter_model.safetensors").values())
    base = tmp_path / "base"
    build("llama").save_pretrained(base)
    tiny_tokenizer().save_pretrained(base)
    change = weights(base, part)["model.layers.1.mlp.down_proj.weight"] - weights(base, None)["model.layers.1.mlp.down_proj.weight"]
    (norm,) = [n for m, n in frame.select("module", "norm").iter_rows() if m == "model.layers.1.mlp.down_proj"]
    assert float(change.norm()) == pytest.approx(norm, rel=1e-3)


@settings(max_examples=40, deadline=None)
@given(st.integers(1, 4), st.integers(1, 9), st.integers(1, 9), st.integers(0, 10**6))
def test_norm_of_a_product(rank: int, n_in: int, n_out: int, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    a, b = torch.randn(rank, n_in, generator=generator), torch.randn(n_out, rank, generator=generator)
    assert _product_norm(a, b) == pytest.approx(float((b.double() @ a.double()).norm()), rel=1e-6)


def test_what_was_done_is_written_beside(tmp_path: Path) -> None:
    whole = adapter("llama", tmp_path / "whole")
    part = restrict_adapter(whole, tmp_path / "part", layers=[1], projections=["q_proj"])
    said = json.loads((part / "residue-surgery.json").read_text())
    assert (said["operation"], said["layers"], said["projections"], said["modules"]) == ("restrict", [1], ["q_proj"], 1)
    assert len(said["of"]["sha256"]) == 64
    # The config names what is left, not every layer's namesake, which PEFT would give a side of its own.
    assert json.loads((part / "adapter_config.json").read_text())["target_modules"] == ["model.layers.1.self_attn.q_proj"]
    assert json.loads((random_adapter(whole, tmp_path / "r", seed=9) / "residue-surgery.json").read_text())["seed"] == 9


def test_refusals(tmp_path: Path) -> None:
    whole, out = adapter("llama", tmp_path / "whole"), tmp_path / "out"
    with pytest.raises(AdapterError, match=r"no layer 7.*layers 0, 1"):
        restrict_adapter(whole, out, layers=[0, 7])
    with pytest.raises(AdapterError, match=r"no 'v_proj'.*down_proj, k_proj, q_proj"):
        restrict_adapter(whole, out, projections=["v_proj", "q_proj"])
    with pytest.raises(AdapterError, match="would be left"):
        restrict_adapter(whole, out, layers=[])
    first = restrict_adapter(whole, tmp_path / "first", layers=[0], projections=["q_proj"])
    with pytest.raises(AdapterError, match="no layer 1"):
        restrict_adapter(first, out, layers=[1])
    for again in (lambda: restrict_adapter(whole, first), lambda: random_adapter(whole, first, seed=0)):
        with pytest.raises(AdapterError, match="already there"):
            again()
    with pytest.raises(AdapterError, match=r"no adapter_config\.json"):
        adapter_norms(tmp_path)
    assert not out.exists()
    assert sorted(p.name for p in tmp_path.iterdir()) == ["first", "whole"]  # no temporary folder stays


def test_damage_and_other_kinds(tmp_path: Path) -> None:
    whole = adapter("llama", tmp_path / "whole")
    config, file = whole / "adapter_config.json", whole / "adapter_model.safetensors"
    good, tensors = json.loads(config.read_text()), load_file(file)
    name = next(iter(tensors))
    for change, message in (
        ({"use_dora": True}, "use_dora"),
        ({"peft_type": "IA3"}, "IA3"),
        ({"modules_to_save": ["lm_head"]}, "modules_to_save"),
    ):
        config.write_text(json.dumps(good | change))
        with pytest.raises(AdapterError, match=message):
            random_adapter(whole, tmp_path / "x", seed=0)
    config.write_text("{")
    with pytest.raises(AdapterError, match="JSON"):
        adapter_norms(whole)
    config.write_text(json.dumps(good))
    for bad, error, message in (
        ({n: t for n, t in tensors.items() if n != name}, AdapterError, "lacks a side"),
        (tensors | {"base_model.model.lm_head.weight": torch.ones(2, 2)}, AdapterError, "no side"),
        (tensors | {name: tensors[name] * float("nan")}, DamagedFileError, "NaN"),
        ({}, AdapterError, "no tensors"),
    ):
        save_file(bad, file)
        with pytest.raises(error, match=message):
            adapter_norms(whole)
    file.write_bytes(b"nothing")
    with pytest.raises(DamagedFileError, match="cannot be read"):
        adapter_norms(whole)
