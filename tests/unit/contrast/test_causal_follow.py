"""Each follow-up by its name, as a study asks for it: saved, read back and pooled."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import polars as pl
import pytest
import torch
from causal_models import examples, labels, pair, taught

from symbolic_residue.contrast._adapters import write_adapter
from symbolic_residue.contrast.causal import ANALYSES, check_causal, EFFECTS, follow_up, pool_effects
from symbolic_residue.errors import ConfigError
from symbolic_residue.store import RunFolder

SOME = examples(6, clusters=6)
LABELS = [labels(one) for one in SOME]


def items_row() -> pl.DataFrame:
    return pl.DataFrame(
        {
            "prompt": [""],
            "text": [""],
            "chat": [False],
            "n_tokens": [0],
            "seed": [0],
            "status": ["done"],
            "error": [None],
            "summary": [None],
        },
        schema_overrides={"error": pl.String, "summary": pl.String},
    )


def lora(out: Path, seed: int) -> Path:
    generator, name = torch.Generator().manual_seed(seed), "base_model.model.model.layers.1.self_attn.q_proj"
    tensors = {
        f"{name}.lora_A.weight": torch.randn(2, 64, generator=generator),
        f"{name}.lora_B.weight": torch.randn(64, 2, generator=generator),
    }
    return write_adapter(out, {"peft_type": "LORA", "r": 2, "lora_alpha": 2, "target_modules": ["q_proj"]}, tensors, {})


@pytest.mark.parametrize("family", ["llama", "bamba"])
def test_a_study_can_keep_all_of_it(family: str, tmp_path: Any) -> None:
    tuned, base = pair(family, lambda model: taught(model, SOME, ("q_proj", "k_proj")))
    frames = []
    for analysis in ANALYSES:
        if analysis == "surgery" and family != "llama":
            continue
        more = {"adapter": lora(tmp_path / "a", 0), "nulls": {"random": lora(tmp_path / "b", 1)}} if analysis == "surgery" else {}
        frame = follow_up(analysis, tuned, base, SOME, labels=LABELS, references={"other": tuned}, **more)
        assert set(frame["analysis"]) == {analysis}
        assert set(frame["example"]) == {one.id for one in SOME}
        frames.append(check_causal(frame))
    every = pl.concat(frames)
    with RunFolder.create(tmp_path / "run", kind="contrast", command="test", provenance={}, config={}) as run:
        run.write_item("causal", {"items": items_row(), "contrast_causal": every})
        effects = pool_effects(every, seed=0)
        assert effects.schema == pl.Schema(EFFECTS)
        run.write_item("effects", {"items": items_row(), "contrast_effects": effects})
        run.finish()
    back = RunFolder.open(tmp_path / "run")
    assert pool_effects(back.table("contrast_causal").drop("item"), seed=0).equals(effects)
    verdict = effects.filter(pl.col("analysis") == "mediation", pl.col("unit") == "share", pl.col("outcome").is_not_null())
    assert set(verdict["outcome"]) == {"attention-mediated"}


def test_the_patches_of_a_study() -> None:
    tuned, base = pair("llama", lambda model: taught(model, SOME[:1], ("mlp",)))
    frame = follow_up("patch", tuned, base, SOME[:2], labels=LABELS[:2])
    assert len(frame.filter(pl.col("part") == "total")) == 2 * 2  # once a direction and example, not once a call
    places = set(frame.filter(pl.col("part") == "residual")["place"])
    assert places == {"emitting row", "sink", "system", "user", "assistant_header", "answer"}
    assert set(frame.filter(pl.col("layer").is_null(), pl.col("part") != "total")["part"]) == {"mlp", "attention", "qk", "ov"}


def test_what_is_missing_is_said() -> None:
    tuned, base = pair("llama")
    with pytest.raises(ConfigError, match="no causal follow-up"):
        follow_up("guess", tuned, base, SOME)
    with pytest.raises(ConfigError, match="adapter"):
        follow_up("surgery", tuned, base, SOME)
    for analysis in ("patch", "knock-out"):
        with pytest.raises(ConfigError, match="labels"):
            follow_up(analysis, tuned, base, SOME)
