"""Stage 5 with every analysis on a tiny tuned model in folders: what is kept and pooled, also of a condition without a system turn; going on after a cut."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import polars as pl
import pytest
from study_folder import started, write_adapter, write_model

from symbolic_residue.contrast.causal import CAUSAL, pool_effects
from symbolic_residue.contrast.study import run_stages, Study
from symbolic_residue.contrast.study._causal import chosen_examples
from symbolic_residue.store import validate

ANALYSES = ("lens", "components", "patch", "mediation", "knock-out", "surgery")


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_model(tmp_path_factory.mktemp("model") / "tiny")


@pytest.fixture(scope="module")
def adapter(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_adapter(tmp_path_factory.mktemp("adapter") / "lora")


@pytest.fixture(scope="module")
def whole(model: Path, adapter: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Study]:
    causal = {
        "analyses": list(ANALYSES),
        "examples": 3,
        "batch": 2,
        "layers": [],
        "places": ["all", "system"],
        "regions": ["system", "user"],
    }
    with started(tmp_path_factory.mktemp("run") / "whole", model, adapter, causal=causal) as study:
        assert run_stages(study, ["generate", "causal"]) == ""
        yield study


def test_every_follow_up_of_every_condition_is_kept(whole: Study) -> None:
    causal = whole.folder.table("contrast_causal")
    assert set(causal["analysis"]) == set(ANALYSES)
    wanted = {one.id for some in chosen_examples(whole) for one in some}
    for analysis in ANALYSES:
        assert set(causal.filter(analysis=analysis)["example"]) == wanted
    assert "random into base" in set(causal.filter(analysis="mediation")["model"])
    assert set(causal.filter(analysis="surgery")["model"]) == {"tuned", "random"}
    # The condition without a system turn has no such place and no such region: missing, not zero.
    assert set(causal.filter(analysis="knock-out", condition="plain")["part"]) == {"user"}
    assert set(causal.filter(analysis="knock-out", condition="kind")["part"]) == {"system", "user"}
    patches = causal.filter(pl.col("analysis") == "patch", pl.col("part") != "total")
    assert set(patches.filter(condition="plain")["place"]) == {"all"}
    assert set(patches.filter(condition="kind")["place"]) == {"all", "system"}


def test_effects_are_pooled_from_what_was_kept(whole: Study) -> None:
    effects = whole.folder.table("contrast_effects").drop("item")
    again = pool_effects(whole.folder.table("contrast_causal").drop("item").select(list(CAUSAL)), seed=1, n_resamples=200)
    assert effects.equals(again)
    verdicts = effects.filter(pl.col("outcome").is_not_null())
    assert verdicts["condition"].n_unique() == 2
    assert verdicts["why"].null_count() == 0


def test_a_cut_run_goes_on(model: Path, adapter: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from symbolic_residue.contrast import causal

    calls: list[int] = []
    whole_lens = causal.emission_lens

    def counted(*args: Any, **options: Any) -> pl.DataFrame:
        calls.append(1)
        if len(calls) == 3:
            raise KeyboardInterrupt
        return whole_lens(*args, **options)

    monkeypatch.setattr(causal, "emission_lens", counted)
    with started(tmp_path / "run", model, adapter, causal={"analyses": ["lens"], "examples": 2, "batch": 1}) as study:
        with pytest.raises(KeyboardInterrupt):
            run_stages(study, ["generate", "causal"])
        assert run_stages(study, ["causal"]) == ""
        items = [item for item in study.folder.done_items() if item.startswith("causal-")]
        assert len(calls) == len(items) + 1  # the one that was cut off is done again, no other
        run_stages(study, ["causal"])
        assert len(calls) == len(items) + 1
    assert not validate(tmp_path / "run")
