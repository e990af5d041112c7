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

        def table(self, name: str, *, items: Any = None, where: pl.Expr | None = None) -> pl.DataFrame:
            found = tables[name]
            if name == "contrast_records":
                assert items is not None, "all records at once"
                assert where is not None
                assert len({item.partition("/")[0] for item in items}) == 1, "one model at a time"
                found = found.filter(pl.col("model") == items[0].removeprefix("read-").partition("/")[0])
            return found if where is None else found.filter(where)

        def write_item(self, item: str, found: dict[str, pl.DataFrame], tensors: Any = None) -> None:
            kept.update(found)

    monkeypatch.setattr(Study, "need", lambda *_: None)
    _analyse.analyse_stage(Study(config, Folder(), None))  # type: ignore[arg-type]
    assert words(kept["contrast_verdicts"]) == {"ref": {"induced" if about_training else "beyond reference"}}


def test_what_is_read_model_by_model_is_judged_as_the_whole_table() -> None:
    """Single heads beside means, and a reference that has single heads only; read in parts or given as one table."""
    from symbolic_residue.contrast.study._source import Source

    options: dict[str, Any] = {"each": 2, "layers": 3, "clusters": 12}
    heads = [
        long_table(model=name, seed=i, heads=2, effect=RISE if name == "tuned" else {}, **options)
        for i, name in enumerate(("tuned", "base", "b"))
    ]
    key = [name for name in heads[0].columns if name not in ("head", "mass")]
    means = [
        one.group_by(key, maintain_order=True).agg(pl.col("mass").mean()).with_columns(head=pl.lit(None, heads[0].schema["head"])).select(one.columns)
        for one in heads
    ]  # fmt: skip
    whole = pl.concat([means[0], means[1], *heads])  # b: single heads only
    asked: list[tuple[str, bool]] = []

    def read(model: str, single: bool) -> pl.DataFrame:
        asked.append((model, single))
        return whole.filter((pl.col("model") == model) & (pl.col("head").is_not_null() if single else pl.col("head").is_null()))

    one = judge(whole, options=OPTIONS)
    two = judge(Source(["tuned", "base", "b", "nobody"], read), options=OPTIONS)
    assert one.tables.keys() == two.tables.keys() >= {"contrast_verdicts", "contrast_heads", "contrast_missing"}
    assert all(one.tables[name].equals(two.tables[name]) for name in one.tables)
    assert (one.notes, one.summary) == (two.notes, two.summary)
    assert words(one.tables["contrast_verdicts"]) == {"base": {"induced"}, "b": {"induced"}}
    assert asked.count(("tuned", False)) == asked.count(("tuned", True)) == 1
