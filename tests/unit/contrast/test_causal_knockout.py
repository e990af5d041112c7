"""Knock-out at the emitting row: against the dense oracle, planted in a head that reads one region, matched random keys."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
import polars as pl
import pytest
import torch
from causal_models import Dense, examples, labels, noise, pair, TOKEN
from tiny_models import FAMILIES, HYBRIDS

from symbolic_residue.contrast.causal import CAUSAL, knock_out, pool_effects
from symbolic_residue.contrast.causal._knockout import _matched
from symbolic_residue.errors import ConfigError, ModelError, RecordError


def of(frame: pl.DataFrame, **where: Any) -> pl.DataFrame:
    return frame.filter(*[pl.col(name) == value for name, value in where.items()])


def less(keys: list[int], dose: float) -> Any:
    """The last row with ``dose`` of the keys' weight moved to its other keys in proportion, by the formula."""

    def change(weights: torch.Tensor) -> torch.Tensor:
        out = weights.clone()
        row, mine = weights[:, :, -1], torch.zeros(weights.shape[-1], dtype=torch.bool)
        mine[keys] = True
        mass = row[..., mine].sum(-1, keepdim=True)
        out[:, :, -1] = torch.where(mine, row * (1 - dose), row * (1 - (1 - dose) * mass) / (1 - mass))
        return out

    return change


@pytest.mark.parametrize("family", ["llama", "gpt2"])
@pytest.mark.parametrize("layers", [None, [1]])
def test_knock_outs_are_those_of_the_dense_oracle(family: str, layers: list[int] | None) -> None:
    some = examples(2)
    tuned, base = pair(family, noise)
    names = [labels(example) for example in some]
    frame = knock_out(tuned, base, some, names, ["system", "answer"], doses=(0.3, 1.0), layers=layers)
    assert frame.schema == pl.Schema(CAUSAL)
    for example, own in zip(some, names, strict=True):
        assert example.event is not None
        for model, instrument in (("tuned", tuned), ("base", base)):
            dense = Dense(instrument.model, example.ids[: example.event])
            plain = dense.log_p(TOKEN)
            for region in ("system", "answer"):
                keys = [k for k in range(example.event - 1) if own[k] == region]
                for dose in (0.3, 1.0):
                    want = dense.log_p(TOKEN, pattern={i: less(keys, dose) for i in layers or (0, 1)}) - plain
                    row = of(frame, example=example.id, model=model, part=region, dose=dose, place="region")
                    assert row["value"].item() == pytest.approx(want, abs=3e-4)
        both = of(frame, example=example.id, place="region").sort("part", "dose")
        difference = of(both, model="tuned − base")["value"].to_numpy()
        assert difference == pytest.approx(of(both, model="tuned")["value"].to_numpy() - of(both, model="base")["value"].to_numpy())


@pytest.mark.parametrize("family", [*FAMILIES, *HYBRIDS])
def test_every_family_takes_it(family: str) -> None:
    frame = knock_out(*pair(family), examples(1), [labels(examples(1)[0])], ["user"], doses=(0.5,), draws=1)
    assert frame["value"].is_finite().all()
    assert of(frame, model="tuned − base")["value"].abs().max() < 1e-5  # pyright: ignore[reportOperatorIssue, reportOptionalOperand]


SYSTEM = 300
"""A token that stands in every system region and nowhere else."""


def reader(model: Any) -> None:
    """Head 0 of the last layer writes the behaviour's token when it looks at ``SYSTEM``."""
    mark = torch.randn(64, generator=torch.Generator().manual_seed(9))
    model.model.embed_tokens.weight[SYSTEM] += mark
    attn = model.model.layers[1].self_attn
    attn.v_proj.weight[0] = mark / mark.norm()
    attn.o_proj.weight[:, 0] = model.lm_head.weight[TOKEN]


def test_a_region_that_carries_the_behaviour_is_found() -> None:
    some = []
    for one in examples(12, clusters=6, answer=24):
        ids = list(one.ids)
        ids[1:4] = [SYSTEM] * 3
        some.append(dataclasses.replace(one, ids=tuple(ids)))
    tuned, base = pair("llama", reader, scale=1.0)
    frame = knock_out(tuned, base, some, [labels(one) for one in some], ["system", "user"])
    effects = of(pool_effects(frame, seed=0), place="region", model="tuned")
    system = of(effects, part="system").sort("dose")
    assert system["value"].to_list() == sorted(system["value"].to_list(), reverse=True)  # more taken, less of it
    full = of(system, dose=1.0).row(0, named=True)
    assert full["high"] < full["control_low"]
    assert full["p"] < 0.05
    user = of(effects, part="user", dose=1.0).row(0, named=True)
    assert user["high"] > 0.3 * full["value"]
    difference = of(pool_effects(frame, seed=0), place="region", model="tuned − base", part="system", dose=1.0)
    assert difference["high"].item() < 0
    # In a copy there is no difference.
    null = knock_out(base, base, some[:3], [labels(one) for one in some[:3]], ["system"])
    assert of(null, model="tuned − base")["value"].abs().max() == 0


def test_random_keys_match_the_region() -> None:
    rng = np.random.default_rng(0)
    mass = rng.dirichlet(np.ones(30))
    keys = (2, 3, 4)
    for _ in range(20):
        order = rng.permutation([k for k in range(30) if k not in keys]).tolist()
        found = _matched(order, keys, mass, "mass")
        assert found is not None
        drawn, factor = found
        assert not set(drawn) & set(keys)
        assert mass[list(drawn)].sum() * factor == pytest.approx(mass[list(keys)].sum())
        number = _matched(order, keys, mass, "number")
        assert number is not None
        assert len(number[0]) == 3
    assert _matched([5, 6], keys, mass, "number") is None
    assert _matched([0], keys, np.array([0.01, 0, 0.5, 0.2, 0.2]), "mass") is None


def test_where_no_keys_are_left_there_is_no_control() -> None:
    some = examples(1, prompt=9, answer=3)
    own = ["sink", *["user"] * (len(some[0].ids) - 1)]
    frame = knock_out(*pair("llama"), some, [own], ["user"], doses=(0.5,))
    assert set(frame["place"]) == {"region"}
    assert frame["control"].null_count() == len(frame)


def test_seeds_batches_and_draws() -> None:
    models, some = pair("llama", noise), examples(2)
    names = [labels(one) for one in some]
    a = knock_out(*models, some, names, ["user"], max_batch=1)
    b = knock_out(*models, some, names, ["user"], max_batch=30)
    assert a["value"].to_numpy() == pytest.approx(b["value"].to_numpy(), abs=1e-4)
    c = knock_out(*models, some, names, ["user"], seed=1)
    region = {"place": "region"}
    assert of(c, **region)["value"].to_numpy() == pytest.approx(of(b, **region)["value"].to_numpy(), abs=1e-4)
    assert not np.allclose(of(c, **region)["control"].to_numpy(), of(b, **region)["control"].to_numpy())
    none = knock_out(*models, some, names, ["user"], draws=0)
    assert none["control"].null_count() == len(none)


def test_what_cannot_be_knocked_out_is_refused() -> None:
    models, some = pair("llama"), examples(2)
    names = [labels(one) for one in some]
    for options, match in (
        ({"doses": (0.0,)}, "doses"),
        ({"doses": (1.5,)}, "doses"),
        ({"layers": [7]}, "layers"),
        ({"layers": []}, "layers"),
        ({"draws": -1}, "draws"),
        ({"match": "weight"}, "match"),
    ):
        with pytest.raises(ConfigError, match=match):
            knock_out(*models, some, names, ["user"], **options)  # pyright: ignore[reportArgumentType]
    with pytest.raises(ConfigError, match="labels"):
        knock_out(*models, some, names[:1], ["user"])
    with pytest.raises(ConfigError, match="2 labels"):
        knock_out(*models, some, [["user"] * 2] * 2, ["user"])
    for name in ("nowhere", "self"):
        with pytest.raises(ConfigError, match=name):
            knock_out(*models, some, names, [name])
    assert not len(knock_out(*models, some, names, ["special"]))  # a bucket, and nobody has it
    with pytest.raises(RecordError):
        knock_out(*models, [], [], ["user"])
    with pytest.raises(ModelError):
        knock_out(models[0], pair("qwen3")[0], some, names, ["user"])
