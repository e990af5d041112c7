"""Lens and components at the emitting row: against plain transformers and the formula in float64, with a planted head."""

from __future__ import annotations

from typing import Any

import numpy as np
import polars as pl
import pytest
import torch
from causal_models import examples, noise, pair, TOKEN, tool
from tiny_models import build, FAMILIES, HYBRIDS

from symbolic_residue.contrast import Example
from symbolic_residue.contrast.causal import CAUSAL, emission_components, emission_lens, log_probabilities, pool_effects
from symbolic_residue.errors import InstrumentError, ModelError, PromptError, RecordError
from symbolic_residue.instrument import Instrument
from symbolic_residue.store import TABLES


def of(frame: pl.DataFrame, **where: Any) -> pl.DataFrame:
    return frame.filter(*[pl.col(name).is_null() if value is None else pl.col(name) == value for name, value in where.items()])


def plain(family: str, example: Example, row: int) -> float:
    """log P of the token at a row, by transformers alone in float64."""
    model = build(family).double()
    with torch.no_grad():
        return float(torch.log_softmax(model(torch.tensor([example.ids])).logits[0, row].double(), -1)[TOKEN])


@pytest.mark.parametrize("family", ["llama", "gpt2", "gemma2", "bamba"])
def test_the_row_before_the_event_chooses_its_token(family: str) -> None:
    some = examples(4)
    instrument = tool(build(family))
    found = log_probabilities(instrument, some, batch=3)
    lens = emission_lens(instrument, instrument, some, batch=3, controls=0)
    last = instrument.parts.n_layers - 1
    for example, value in zip(some, found, strict=True):
        assert example.event is not None
        assert value == pytest.approx(plain(family, example, example.event - 1), abs=2e-4)
        assert abs(value - plain(family, example, example.event)) > 1e-3  # the row that consumes it says something else
        at_end = of(lens, example=example.id, model="tuned", part="residual", layer=last)["value"].item()
        assert at_end == pytest.approx(value, abs=2e-4)


def test_the_control_asks_the_same_token_at_other_rows_of_the_answer() -> None:
    some = examples(3, answer=24)
    frame = emission_lens(*pair("llama"), some, controls=50)
    for example in some:
        assert example.event is not None
        rows = range(
            example.prompt_len + 4, example.event - 5
        )  # the tokens five or more from either end, at the rows that emit them
        want = np.mean([plain("llama", example, row) for row in rows])
        got = of(frame, example=example.id, model="base", part="residual", layer=1)["control"].item()
        assert got == pytest.approx(want, abs=2e-4)
    short = emission_lens(*pair("llama"), examples(2, answer=5))
    assert short["control"].null_count() == len(short)


def captured(instrument: Instrument, example: Example) -> tuple[dict[tuple[str, int], torch.Tensor], torch.Tensor]:
    """What heads and MLPs put out, what the final norm got, and the logits ``[row, vocab]``, by hooks of our own."""
    seen: dict[tuple[str, int], torch.Tensor] = {}
    handles = [instrument.parts.final_norm.module.register_forward_pre_hook(lambda m, a: seen.__setitem__(("last", 0), a[0]))]
    for layer in instrument.parts.layers:
        assert layer.o_proj is not None
        assert layer.mlp is not None
        handles.append(layer.o_proj.register_forward_pre_hook(lambda m, a, i=layer.index: seen.__setitem__(("z", i), a[0])))
        handles.append(layer.mlp.register_forward_hook(lambda m, a, o, i=layer.index: seen.__setitem__(("mlp", i), o)))
    with torch.no_grad():
        logits = instrument.model(torch.tensor([example.ids])).logits[0].double()
    for handle in handles:
        handle.remove()
    return seen, logits


@pytest.mark.parametrize("family", ["llama", "gpt2"])
def test_components_are_the_formula(family: str) -> None:
    some = examples(2, clusters=2)
    tuned, base = pair(family, noise)
    frame = emission_components(tuned, base, some, batch=2)
    for instrument, name in ((tuned, "tuned"), (base, "base")):
        parts = instrument.parts
        for example in some:
            assert example.event is not None
            seen, every = captured(instrument, example)
            logits = every[example.event - 1]
            x = seen["last", 0][0, example.event - 1].double()
            w = parts.w_u.double()
            u = w[TOKEN] - w.mean(0)
            gain = parts.final_norm.gain().double()
            if parts.final_norm.kind == "layer":
                scale = 1 / (x.var(unbiased=False) + parts.final_norm.eps).sqrt()
                direction = gain * u - (gain * u).mean()
            else:
                scale = 1 / (x.square().mean() + parts.final_norm.eps).sqrt()
                direction = gain * u
            one = of(frame, example=example.id, model=name)
            assert of(one, part="total")["value"].item() == pytest.approx(float(logits[TOKEN] - logits.mean()), abs=1e-3)
            for layer in parts.layers:
                mlp = float(scale * (seen["mlp", layer.index][0, example.event - 1].double() @ direction))
                assert of(one, part="mlp", layer=layer.index)["value"].item() == pytest.approx(mlp, abs=1e-3)
                z = seen["z", layer.index][0, example.event - 1].double().view(parts.n_heads, -1)
                for head in range(parts.n_heads):
                    want = float(scale * (z[head] @ layer.w_o(head).double() @ direction))
                    got = of(one, part="head", layer=layer.index, head=head)["value"].item()
                    assert got == pytest.approx(want, abs=1e-3)


@pytest.mark.parametrize("family", [*FAMILIES, *HYBRIDS])
def test_parts_sum_in_every_family(family: str) -> None:
    frame = emission_components(*pair(family, noise), examples(2), batch=2)
    assert frame.schema == pl.Schema(CAUSAL)
    sums = frame.filter(pl.col("part") != "total").group_by("model", "example").agg(pl.col("value").sum())
    both = sums.join(of(frame, part="total").select("model", "example", total="value"), on=["model", "example"])
    assert both["value"].to_numpy() == pytest.approx(both["total"].to_numpy(), abs=5e-3)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_adds_up_as_it_rounds(dtype: torch.dtype) -> None:
    models = [tool(build("llama", scale=1.0).to(dtype)) for _ in range(2)]
    frame = emission_components(models[0], models[1], examples(3))
    exact = emission_components(*pair("llama", scale=1.0), examples(3))
    assert of(frame, part="total")["value"].to_numpy() == pytest.approx(of(exact, part="total")["value"].to_numpy(), abs=0.2)


def test_a_planted_head_is_found_and_nothing_in_a_copy() -> None:
    def plant(model: Any) -> None:
        layer, direction = model.model.layers[1], model.lm_head.weight[TOKEN]
        d = layer.self_attn.head_dim
        layer.self_attn.o_proj.weight[:, 2 * d : 3 * d] += 0.5 * direction[:, None] * torch.sign(torch.randn(d))

    torch.manual_seed(3)
    tuned, base = pair("llama", plant)
    some = examples(8, clusters=4)
    frame = emission_components(tuned, base, some)
    effects = pool_effects(frame, seed=0)
    difference = of(effects, model="tuned − base", part="head")
    top = difference.sort(pl.col("value").abs(), descending=True).row(0, named=True)
    assert (top["layer"], top["head"]) == (1, 2)
    others = difference.filter((pl.col("layer") != 1) | (pl.col("head") != 2))
    assert others["value"].abs().max() < 0.05 * abs(top["value"])  # pyright: ignore[reportOperatorIssue, reportOptionalOperand]
    same = emission_components(*pair("llama"), some)
    assert of(same, model="tuned − base")["value"].abs().max() == 0.0
    assert of(pool_effects(same, seed=0), model="tuned − base")["p"].min() == 1.0


def test_batches_and_padding_change_nothing() -> None:
    models, some = pair("qwen3", noise), examples(5)
    for analysis in (emission_lens, emission_components):
        alone, together = analysis(*models, some, batch=1), analysis(*models, some, batch=5)
        assert alone.drop("value", "control").equals(together.drop("value", "control"))
        for name in ("value", "control"):
            assert alone[name].to_numpy() == pytest.approx(together[name].to_numpy(), abs=2e-4)


def test_the_columns_are_those_of_the_run_folder() -> None:
    assert ["item", *CAUSAL] == list(TABLES["contrast_causal"])
    assert list(CAUSAL.values()) == [kind for name, kind in TABLES["contrast_causal"].items() if name != "item"]


def test_what_cannot_be_asked_is_refused() -> None:
    tuned, base = pair("llama")
    good = examples(2)
    with pytest.raises(RecordError, match="no examples"):
        emission_lens(tuned, base, [])
    with pytest.raises(RecordError, match="does not show"):
        emission_lens(tuned, base, [Example(**{**good[0].__dict__, "event": None})])
    with pytest.raises(RecordError, match="twice"):
        emission_lens(tuned, base, [good[0], good[0]])
    with pytest.raises(PromptError, match="outside"):
        emission_lens(tuned, base, [Example(**{**good[0].__dict__, "ids": (*good[0].ids, 999)})])
    with pytest.raises(InstrumentError, match="context"):
        emission_lens(tuned, base, [Example(**{**good[0].__dict__, "ids": good[0].ids * 30, "event": 400})])
    with pytest.raises(ModelError):
        emission_lens(tuned, tool(build("llama", intermediate_size=64)), good)
