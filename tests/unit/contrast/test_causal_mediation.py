"""The verdict on attention patterns as mediators: planted in the weights of q and k alone, or of MLPs alone; undecided where nothing can be said."""

from __future__ import annotations

from typing import Any

import polars as pl
import pytest
from causal_models import examples, noise, pair, taught, tool
from tiny_models import build

from symbolic_residue.contrast.causal import EFFECTS, exchange_patterns, mediation, pool_effects
from symbolic_residue.errors import ConfigError, ModelError

SOME = examples(12, clusters=6)


def of(frame: pl.DataFrame, **where: Any) -> pl.DataFrame:
    return frame.filter(*[pl.col(name) == value for name, value in where.items()])


def planted(*names: str, family: str = "llama", **options: Any) -> tuple[Any, Any]:
    return pair(family, lambda model: taught(model, SOME, names, **options))


def test_an_effect_through_q_and_k_is_attention_mediated() -> None:
    tuned, base = planted("q_proj", "k_proj")
    effects = mediation(tuned, base, SOME, seed=0)
    assert effects.schema == pl.Schema(EFFECTS)
    total = of(effects, part="total", model="tuned into base").row(0, named=True)
    assert total["low"] > 0.1
    assert total["p"] < 0.05
    shares = of(effects, unit="share")
    assert len(shares) == 2
    # Only q and k differ: with the other's patterns a model is the other, in every layer.
    assert shares["value"].to_list() == pytest.approx([1, 1], abs=1e-3)
    assert shares["outcome"].to_list() == ["attention-mediated"] * 2
    assert shares["criterion"].to_list() == [0.5, 0.5]
    assert all("sufficiency 1.00" in why for why in shares["why"])
    assert shares["control_high"].max() < 0.7  # pyright: ignore[reportOperatorIssue, reportOptionalOperand]


@pytest.mark.parametrize("family", ["llama", "qwen3"])
def test_an_effect_through_mlps_is_not(family: str) -> None:
    effects = mediation(*planted("mlp", family=family), SOME, seed=0)
    assert of(effects, part="total", model="tuned into base")["low"].item() > 0.1
    shares = of(effects, unit="share")
    assert set(shares["outcome"]) == {"not attention-mediated"}
    assert shares["high"].max() < 0.5  # pyright: ignore[reportOperatorIssue, reportOptionalOperand]
    last = mediation(*planted("layers.1.mlp", family=family), SOME, seed=0)
    # The last MLP changes no pattern at all.
    assert of(last, unit="share")["value"].to_list() == pytest.approx([0, 0], abs=1e-4)


def test_an_effect_through_both_is_undecided_by_a_high_criterion() -> None:
    tuned, base = planted("q_proj", "k_proj")
    frame = exchange_patterns(tuned, base, SOME)
    half = frame.with_columns(value=pl.when(pl.col("part") == "patterns").then(pl.col("value") / 2).otherwise("value"))
    assert set(of(pool_effects(half, seed=0, criterion=0.5), unit="share")["outcome"]) <= {"undecided", "not attention-mediated"}
    assert set(of(pool_effects(half, seed=0, criterion=0.2), unit="share")["outcome"]) == {"attention-mediated"}
    assert set(of(pool_effects(half, seed=0, criterion=0.8), unit="share")["outcome"]) == {"not attention-mediated"}
    one = half.with_columns(
        value=pl.when((pl.col("part") == "patterns") & (pl.col("model") == "tuned into base"))
        .then(pl.col("value") * 2)
        .otherwise("value")
    )
    assert set(of(pool_effects(one, seed=0, criterion=0.75), unit="share")["outcome"]) == {"undecided"}


def test_what_the_control_does_too_is_no_finding() -> None:
    frame = exchange_patterns(*planted("q_proj", "k_proj"), SOME)
    same = frame.with_columns(control=pl.when(pl.col("part") == "patterns").then("value"))
    shares = of(pool_effects(same, seed=0), unit="share")
    assert set(shares["outcome"]) == {"undecided"}
    assert all("other heads" in why for why in shares["why"])


def test_a_total_that_is_not_there_is_undecided() -> None:
    for models in (pair("llama"), pair("llama", lambda model: noise(model, 0.01))):
        effects = mediation(*models, SOME, seed=0)
        assert not len(of(effects, unit="share"))
        totals = of(effects, part="total")
        assert set(totals["outcome"]) == {"undecided"}
        assert all("touches 0" in why for why in totals["why"])


def test_a_behaviour_that_training_made_rarer_is_undecided() -> None:
    tuned, base = planted("q_proj", "k_proj")
    shares = of(mediation(base, tuned, SOME, seed=0), unit="share")  # the models exchanged: all of a fall goes through patterns
    assert shares["value"].to_list() == pytest.approx([1, 1], abs=1e-3)
    assert set(shares["outcome"]) == {"undecided"}
    assert all("less likely" in why for why in shares["why"])


def test_one_cluster_is_undecided() -> None:
    models = planted("q_proj", "k_proj")
    effects = mediation(*models, examples(4, clusters=1), seed=0)
    assert set(of(effects, part="total")["outcome"]) == {"undecided"}
    assert all("one cluster" in why for why in of(effects, part="total")["why"])
    assert effects["low"].null_count() == len(effects)


def test_other_models_give_their_patterns_too(tmp_path: Any) -> None:
    tuned, base = planted("q_proj", "k_proj")
    other = pair("llama", lambda model: noise(model, 0.02))[0]
    frame = exchange_patterns(tuned, base, SOME, references={"random": other, "twin": tuned})
    frame.write_parquet(tmp_path / "causal.parquet")
    effects = pool_effects(pl.read_parquet(tmp_path / "causal.parquet"), seed=0)
    assert effects.equals(pool_effects(frame, seed=0))
    shares = of(effects, unit="share")
    assert of(shares, model="twin into base")["value"].item() == pytest.approx(1, abs=1e-3)
    random = of(shares, model="random into base")
    assert random["high"].item() < 0.5
    assert random["outcome"].item() is None
    assert set(of(shares, model="tuned into base")["outcome"]) == {"attention-mediated"}


def test_conditions_have_verdicts_of_their_own() -> None:
    frame = exchange_patterns(*planted("q_proj", "k_proj"), SOME, controls=False)
    none = frame.with_columns(condition=pl.lit("other"), value=pl.when(pl.col("part") == "patterns").then(0.0).otherwise("value"))
    effects = pool_effects(pl.concat([frame, none]), seed=0)
    found = dict(of(effects, unit="share").select("condition", "outcome").iter_rows())
    assert found == {"kind": "attention-mediated", "other": "not attention-mediated"}


def test_refusals() -> None:
    models = pair("llama")
    with pytest.raises(ConfigError, match="criterion"):
        mediation(*models, SOME, criterion=1.0)
    with pytest.raises(ConfigError, match="tuned"):
        exchange_patterns(*models, SOME, references={"tuned": models[0]})
    with pytest.raises(ModelError):
        exchange_patterns(*models, SOME, references={"other": tool(build("qwen3"))})
