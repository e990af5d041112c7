"""Stage 4's words: a verdict speaks of training only against the model before training."""

from __future__ import annotations

from typing import Any

import polars as pl
import pytest
from contrast_records import long_table

from symbolic_residue.contrast import Options
from symbolic_residue.contrast.study import judge

RISE = {2: 0.1, 3: 0.1}
OPTIONS = Options(n_resamples=200)


def records(effects: dict[str, dict[int, float]]) -> pl.DataFrame:
    return pl.concat([
        long_table(model=name, seed=i, effect=effect, each=2, layers=4, clusters=12) for i, (name, effect) in enumerate(effects.items())
    ])  # fmt: skip


def words(found: pl.DataFrame) -> dict[str, set[str]]:
    mine = found.filter(region="system", query_offset=-1)
    return {name: set(mine.filter(reference=name)["outcome"]) for name in mine["reference"].unique()}


@pytest.mark.parametrize(
    ("tuned", "other", "against_base", "against_another"),
    [
        (RISE, {}, "induced", "beyond reference"),
        ({}, RISE, "reduced by training", "short of reference"),
        (RISE, RISE, "present in base", "present in reference"),
        ({}, {}, "undecided", "undecided"),
    ],
)
@pytest.mark.parametrize("null", [True, False])
def test_only_the_model_before_training_gives_a_word_about_training(
    tuned: dict[int, float], other: dict[int, float], against_base: str, against_another: str, null: bool
) -> None:
    """The same planted difference from the base, from a null model and from another adapter."""
    table = records({"tuned": tuned, "ref": other})
    base = judge(table, options=OPTIONS, untrained=["ref"]).tables["contrast_verdicts"]
    assert words(base) == {"ref": {against_base}}
    found = judge(table, options=OPTIONS, nulls=["ref"] if null else [], untrained=[]).tables["contrast_verdicts"]
    assert words(found) == {"ref": {against_another}}
    assert not found["outcome"].str.contains("training|induced|base").any()
    assert not found["why"].str.contains("training").any()
    assert not (null and found["why"].str.contains("no null model").any())
    assert found.drop("outcome", "why").equals(base.drop("outcome", "why"))  # the numbers are the same


def test_in_tables_of_others_every_reference_is_the_base_that_is_no_null_model() -> None:
    found = judge(records({"tuned": RISE, "base": {}, "null": {}}), options=OPTIONS, nulls=["null"]).tables["contrast_verdicts"]
    assert words(found) == {"base": {"induced"}, "null": {"beyond reference"}}
    assert found.filter(reference="base", region="system")["nulls"].to_list()[0] == "null"


@pytest.mark.parametrize(
    ("kind", "about_training"), [("base", True), ("model", True), ("random", False), ("adapter", False), ("system", False)]
)
def test_a_study_knows_it_by_the_references_kind(kind: str, about_training: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    from symbolic_residue.contrast.study import _analyse, read_config, Study

    given: dict[str, Any] = {"base": True, "model": "other", "random": 1, "adapter": "b", "system": "x"}
    config = read_config(
        {"model": "demo", "adapter": "a", "behaviour": "refusal", "conditions": [{"name": "on"}], "questions": ["?"], "references": {"ref": {kind: given[kind]}},
         "analysis": {"n_resamples": 200}}
    )  # fmt: skip
    table = records({"tuned": RISE, "ref": {}}).with_columns(item=pl.lit("read"))
    tables = {"contrast_records": table, "contrast_examples": pl.DataFrame({"condition": ["on"] * 24, "event": [1] * 24})}
    kept: dict[str, pl.DataFrame] = {}

    class Folder:
        def done_items(self) -> list[str]:
            return []

        def table(self, name: str) -> pl.DataFrame:
            return tables[name]

        def write_item(self, item: str, found: dict[str, pl.DataFrame], tensors: Any = None) -> None:
            kept.update(found)

    monkeypatch.setattr(Study, "need", lambda *_: None)
    _analyse.analyse_stage(Study(config, Folder(), None))  # type: ignore[arg-type]
    assert words(kept["contrast_verdicts"]) == {"ref": {"induced" if about_training else "beyond reference"}}
