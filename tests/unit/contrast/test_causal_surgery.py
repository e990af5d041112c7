"""Adapter surgery: against weights changed by hand and against merged folders; exact restoring; a planted projection."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import polars as pl
import pytest
import torch
from causal_models import examples, TOKENIZER, tool
from tiny_models import build

from symbolic_residue.contrast._adapters import read_adapter, restrict_adapter, write_adapter
from symbolic_residue.contrast.causal import CAUSAL, log_probabilities, pool_effects, surgery
from symbolic_residue.contrast.causal._surgery import grafted
from symbolic_residue.errors import AdapterError, ConfigError, RecordError
from symbolic_residue.models import load_model

NAMES = ("q_proj", "k_proj", "v_proj", "o_proj")


def of(frame: pl.DataFrame, **where: Any) -> pl.DataFrame:
    return frame.filter(*[pl.col(name) == value for name, value in where.items()])


def adapter(out: Path, model: Any, *, seed: int = 0, only: str = "") -> Path:
    """A LoRA of rank 2 and alpha 4 on q, k, v and o; with ``only``, B is zero in all modules but those with this in their path."""
    generator, tensors = torch.Generator().manual_seed(seed), {}
    for path, module in model.named_modules():
        if not path.endswith(NAMES):
            continue
        b = torch.randn(module.weight.shape[0], 2, generator=generator) * 0.3
        tensors[f"base_model.model.{path}.lora_A.weight"] = torch.randn(2, module.weight.shape[1], generator=generator) * 0.3
        tensors[f"base_model.model.{path}.lora_B.weight"] = b if only in path else torch.zeros_like(b)
    config = {
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "r": 2,
        "lora_alpha": 4,
        "target_modules": list(NAMES),
        "base_model_name_or_path": None,
    }
    return write_adapter(out, config, tensors, {})


def test_a_part_is_the_base_with_that_part_merged(tmp_path: Path) -> None:
    some, model = examples(3), build("llama")
    folder = adapter(tmp_path / "whole", model)
    before = {name: weight.clone() for name, weight in model.state_dict().items()}
    frame = surgery(tool(model), folder, some, layer_ranges=[(0, 0), (1, 1)], projections=["v_proj", ("q_proj", "k_proj")])
    assert frame.schema == pl.Schema(CAUSAL)
    for name, weight in model.state_dict().items():
        assert torch.equal(weight, before[name])
    plain = log_probabilities(tool(model), some)
    cuts = {
        ("all", "all layers"): lambda path: True,
        ("all", "layers 0–0"): lambda path: ".0." in path,
        ("all", "layers 1–1"): lambda path: ".1." in path,
        ("v_proj", "all layers"): lambda path: path.endswith("v_proj"),
        ("q_proj+k_proj", "all layers"): lambda path: path.endswith(("q_proj", "k_proj")),
    }
    assert set(frame.select("part", "place").unique().rows()) == set(cuts)
    lora = read_adapter(folder).modules
    for (part, place), keeps in cuts.items():
        changed = copy.deepcopy(model)
        with torch.no_grad():
            for path, m in lora.items():
                if keeps(path):
                    changed.get_submodule(path).weight.add_(2.0 * m.b @ m.a)
        want = [a - b for a, b in zip(log_probabilities(tool(changed), some), plain, strict=True)]
        got = {row["example"]: row["value"] for row in of(frame, part=part, place=place).iter_rows(named=True)}
        assert [got[one.id] for one in some] == pytest.approx(want, abs=1e-4)


def test_it_is_what_a_restricted_folder_does(tmp_path: Path) -> None:
    pytest.importorskip("peft")
    model, some = build("llama"), examples(2)
    model.save_pretrained(tmp_path / "base")
    TOKENIZER.save_pretrained(tmp_path / "base")
    folder = adapter(tmp_path / "whole", model)
    restrict_adapter(folder, tmp_path / "part", layers=[1], projections=["q_proj", "k_proj"])
    loaded = load_model(tmp_path / "base", adapter=tmp_path / "part")
    base = tool(model)
    modules = [m for m in read_adapter(folder).modules.values() if m.layer == 1 and m.projection in ("q_proj", "k_proj")]
    with grafted(base.model, modules):
        mine = log_probabilities(base, some)
    assert mine == pytest.approx(log_probabilities(tool(loaded.model), some), abs=1e-4)


def test_a_planted_part_has_all_of_it(tmp_path: Path) -> None:
    model, some = build("llama"), examples(12, clusters=6)
    folder = adapter(tmp_path / "planted", model, only="layers.1.self_attn.v_proj")
    null = adapter(tmp_path / "random", model, seed=3)
    frame = surgery(tool(model), folder, some, nulls={"random": null})
    assert set(frame["place"]) == {"all layers", "layers 0–0", "layers 1–1"}
    whole = of(frame, model="tuned", part="all", place="all layers")["value"].to_numpy()
    assert of(frame, model="tuned", part="v_proj")["value"].to_numpy() == pytest.approx(whole, abs=1e-6)
    assert of(frame, model="tuned", place="layers 1–1")["value"].to_numpy() == pytest.approx(whole, abs=1e-6)
    for where in ({"part": "q_proj"}, {"part": "k_proj"}, {"part": "o_proj"}, {"place": "layers 0–0"}):
        assert of(frame, model="tuned", **where)["value"].abs().max() == 0
    control = of(frame, model="tuned", part="all", place="all layers")["control"]
    assert control.to_list() == of(frame, model="random", part="all", place="all layers")["value"].to_list()
    # Shares need a total that is there: here its size is made so.
    effects = pool_effects(
        frame.with_columns(value=pl.when(pl.col("value") != 0).then(pl.col("value").abs() + 1).otherwise("value")), seed=0
    )
    shares = of(effects, unit="share", model="tuned")
    assert of(shares, part="v_proj")["value"].item() == pytest.approx(1)
    assert of(shares, part="q_proj")["value"].item() == 0
    assert len(of(effects, unit="share", model="random"))


def test_the_base_comes_back_also_after_a_failure(tmp_path: Path) -> None:
    model = build("llama")
    before = {name: weight.clone() for name, weight in model.state_dict().items()}
    modules = list(read_adapter(adapter(tmp_path / "a", model)).modules.values())
    with pytest.raises(RuntimeError, match="stop"), grafted(model, modules):
        assert not torch.equal(model.model.layers[0].self_attn.q_proj.weight, before["model.layers.0.self_attn.q_proj.weight"])
        raise RuntimeError("stop")
    assert all(torch.equal(weight, before[name]) for name, weight in model.state_dict().items())


def test_conv1d_weights_are_turned(tmp_path: Path) -> None:
    model, some = build("gpt2"), examples(2)
    generator = torch.Generator().manual_seed(0)
    a, b = torch.randn(2, 64, generator=generator) * 0.2, torch.randn(192, 2, generator=generator) * 0.2
    name = "base_model.model.transformer.h.1.attn.c_attn"
    config = {"peft_type": "LORA", "r": 2, "lora_alpha": 2, "target_modules": ["c_attn"], "fan_in_fan_out": True}
    folder = write_adapter(tmp_path / "g", config, {f"{name}.lora_A.weight": a, f"{name}.lora_B.weight": b}, {})
    frame = surgery(tool(model), folder, some, layer_ranges=[], projections=["c_attn"])
    changed = copy.deepcopy(model)
    with torch.no_grad():
        changed.transformer.h[1].attn.c_attn.weight.add_((b @ a).T)
    want = [x - y for x, y in zip(log_probabilities(tool(changed), some), log_probabilities(tool(model), some), strict=True)]
    assert of(frame, part="c_attn")["value"].to_list() == pytest.approx(want, abs=1e-4)


def test_refusals(tmp_path: Path) -> None:
    model, some = build("llama"), examples(2)
    folder = adapter(tmp_path / "a", model)
    with pytest.raises(AdapterError, match="changes nothing"):
        surgery(tool(model), folder, some, projections=["up_proj"])
    with pytest.raises(AdapterError, match="changes nothing"):
        surgery(tool(model), folder, some, layer_ranges=[(5, 7)])
    with pytest.raises(AdapterError, match="fits nothing"):
        surgery(tool(build("llama", hidden_size=32)), folder, some)
    with pytest.raises(AdapterError):
        surgery(tool(model), tmp_path / "nowhere", some)
    with pytest.raises(ConfigError, match="null"):
        surgery(tool(model), folder, some, nulls={"tuned": folder})
    with pytest.raises(RecordError):
        surgery(tool(model), folder, [])
