"""Attribution patching: exact where the model is linear, equal to finite differences, complete along a path; agreement; refusals."""

from __future__ import annotations

import polars as pl
import pytest
import torch
from patching_helpers import metric_of, prompt, tiny

from symbolic_residue.errors import ConfigError
from symbolic_residue.instrument import Add, Instrument
from symbolic_residue.readout import (
    attribution_patching,
    KLToSource,
    LogitDifference,
    patch_pair,
    patch_pairs,
    patch_sweep,
    PatchSweep,
    screen_agreement,
)

METRIC = LogitDifference(5, 9)
KEY = ["pair", "layer", "component", "head", "positions"]


@pytest.fixture(scope="module")
def linear() -> Instrument:
    """A parallel block as the last one, and no final norm: what its sublayers add goes into the logits as it is."""
    instrument = tiny("gpt_neox")
    instrument.parts.final_norm.module.forward = lambda x: x  # type: ignore[method-assign]
    return instrument


@pytest.mark.parametrize("steps", [0, 3])
def test_the_estimate_is_the_effect_where_the_path_is_linear(linear: Instrument, steps: int) -> None:
    pairs = patch_pairs([prompt(1), prompt(3)], [prompt(2), prompt(4)])
    components = ("attn_out", "mlp_out", "z", "v", "attn_out+mlp_out")
    screen = attribution_patching(linear, pairs, metric=METRIC, layers=(1,), components=components, steps=steps)
    sweep = patch_sweep(linear, pairs, metric=METRIC, layers=(1,), components=components, controls=0)
    joined = sweep.table().join(screen.table(), on=KEY, nulls_equal=True)
    assert len(joined) == len(sweep.table()) == len(screen.table())
    assert float((joined["estimate"] - joined["effect"]).abs().max()) < 2e-4
    assert float(joined["effect"].abs().max()) > 0.5
    assert float((joined["estimated_recovered"] - joined["recovered"]).abs().max()) < 1e-3
    agreement = screen.agreement.filter(pl.col("statistic") != "spearman")
    assert set(screen.agreement["component"]) >= {"all", "z"} and screen.checked == min(32, len(screen.table()) // 2)
    assert agreement["value"].to_list() == pytest.approx([1.0] * len(agreement))


@pytest.mark.parametrize("name", ["llama", "gemma3", "gpt2", "falcon_h1"])
@pytest.mark.parametrize("direction", ["denoise", "noise"])
def test_the_estimate_is_the_derivative_along_the_patch(name: str, direction: str) -> None:
    """Central differences of whole forwards, a small step of the way from the target to the source."""
    instrument = tiny(name)
    pair = patch_pair(prompt(1), prompt(2), positions={"all": "all", "some": (2, -1)})
    components = ("resid_pre", "resid_mid", "resid_post", "attn_out", "mlp_out", "z", "q", "k", "v")
    screen = attribution_patching(instrument, [pair], metric=METRIC, components=components, direction=direction, check=0)  # type: ignore[arg-type]
    used = pair if direction == "denoise" else pair.swapped()
    assert len(screen.agreement) == 0 and screen.checked == 0
    size = 1 + float(screen.table()["estimate"].abs().max())
    for row in screen.table().sample(40, seed=1).iter_rows(named=True):
        point = f"{row['component']}.{row['layer']}"
        source, target = (instrument.run(torch.tensor([ids]), reads=(point,))[point] for ids in (used.source, used.target))
        rows = [t for _, t in used.rows[row["positions"]]]
        change, heads = (source - target)[:, rows], None
        if row["head"] is not None:
            change, heads = change[:, :, [row["head"]]], (row["head"],)
        step = 2e-3
        up, down = (
            metric_of(instrument, used.target, METRIC, [Add(point, rows=rows, heads=heads, value=sign * step * change)])
            for sign in (1, -1)
        )
        assert (up - down) / (2 * step) == pytest.approx(row["estimate"], abs=1e-2 * size), row


def test_heads_add_up_to_the_patch_of_all_of_them_along_the_path() -> None:
    instrument, pair = tiny("llama"), patch_pair(prompt(1), prompt(2))
    true = patch_sweep(instrument, [pair], metric=METRIC, components=("z", "v"), heads="together", controls=0).table()

    def worst(steps: int) -> float:
        screen = attribution_patching(
            instrument, [pair], metric=METRIC, components=("z", "v"), steps=steps, check=0, max_batch=50
        ).table()
        summed = screen.group_by("layer", "component", "positions").agg(pl.col("estimate").sum())
        joined = true.join(summed, on=["layer", "component", "positions"])
        assert len(joined) == 8
        return float((joined["estimate"] - joined["effect"]).abs().max())

    errors = [worst(steps) for steps in (4, 16, 64)]
    assert errors[2] < 0.02 < errors[0] and errors[2] < errors[1] / 4
    whole, parts = (
        attribution_patching(instrument, [pair], metric=METRIC, components=("z",), steps=5, check=0, max_batch=size).table()
        for size in (50, 2)
    )
    assert float((whole["estimate"] - parts["estimate"]).abs().max()) < 1e-4


def test_between_models_and_under_kl() -> None:
    base, tuned = tiny("llama"), tiny("llama", seed=1)
    screen = attribution_patching(
        base, [patch_pair(prompt(1))], source=tuned, metric=KLToSource(), components=("resid_post",), steps=64, check=4
    )
    last = screen.table().filter((pl.col("layer") == 1) & (pl.col("positions") == "all"))
    # All of the last residual stream: the path runs from the target's KL to what the target's unembedding makes of the source's stream.
    true = patch_sweep(
        base, [patch_pair(prompt(1))], source=tuned, metric=KLToSource(), components=("resid_post",), controls=0
    ).table()
    want = true.filter((pl.col("layer") == 1) & (pl.col("positions") == "all"))["effect"][0]
    assert last["estimate"][0] == pytest.approx(want, rel=0.02)
    assert set(screen.agreement["component"]) == {"all"} and screen.checked == 4


def test_the_best_of_a_screen_are_patched() -> None:
    instrument, pairs = tiny("llama"), patch_pairs([prompt(1), prompt(3)], [prompt(2), prompt(4)])
    screen = attribution_patching(instrument, pairs, metric=METRIC)
    top = screen.top(5)
    assert len(top) == 5 and top["mean_abs_estimate"].is_sorted(descending=True)
    sweep = patch_sweep(instrument, pairs, metric=METRIC, components=("attn_out", "mlp_out", "z"), cells=top)
    assert len(sweep.table()) == 10
    summary = screen.summary()
    assert set(summary["n"]) == {2} and len(summary) == len(screen.table()) // 2
    assert float((summary["high"] - summary["low"]).min()) >= 0  # type: ignore[arg-type]
    assert set(screen.tables()) == {"screen", "screen_summary", "screen_agreement"}
    with pytest.raises(ConfigError):
        screen.top(0)


def test_agreement_is_what_it_says() -> None:
    pairs = patch_pairs([prompt(1), prompt(3), prompt(5)], [prompt(2), prompt(4), prompt(6)])
    sweep = patch_sweep(tiny("llama"), pairs, metric=METRIC, components=("z",), controls=0)
    effects = sweep.table().rename({"effect": "estimate"})
    perfect = screen_agreement(sweep, effects.with_columns(pl.col("estimate") * 2), k=3)
    assert (
        perfect["value"].to_list() == pytest.approx([1.0, 1.0, 1.0]) and set(perfect["n"]) == {3} and set(perfect["cells"]) == {16}
    )
    reversed_ = screen_agreement(sweep, effects.with_columns(-pl.col("estimate")), k=3)
    assert reversed_["value"].to_list() == pytest.approx([-1.0, 0.0, 1.0])
    flat = screen_agreement(sweep, effects.with_columns(estimate=pl.lit(0.0)))
    assert flat.filter(pl.col("statistic") == "spearman").row(0, named=True)["undefined"] == 3
    one = screen_agreement(PatchSweep(sweep.table().filter(pl.col("pair") == "0"), [], 0, 0.01), effects)
    assert one["low"].null_count() == 3 and all("none" in method for method in one["method"])
    assert bool(((perfect["low"] >= -1) & (perfect["high"] <= 1)).all())
    for other in (effects.with_columns(pl.col("source") + 1), effects.with_columns(direction=pl.lit("noise"))):
        with pytest.raises(ConfigError):
            screen_agreement(sweep, other)
    with pytest.raises(ConfigError):
        screen_agreement(sweep, effects, k=0)


def test_refusals() -> None:
    instrument, pair = tiny("llama"), patch_pair(prompt(1), prompt(2))
    for metric, match in (
        (lambda logits: logits.argmax(-1).float(), "no gradient"),
        (lambda logits: logits[:, 5].detach(), "no gradient"),
        (lambda logits: (logits[:, 5] - logits[:, 5]).sqrt(), "gradient is NaN"),
    ):
        with pytest.raises(ConfigError, match=match):
            attribution_patching(instrument, [pair], metric=metric)
    for wrong in ({"steps": -1}, {"check": -1}, {"max_batch": 0}, {"components": ("mlp_act",)}):
        with pytest.raises(ConfigError):
            attribution_patching(instrument, [pair], metric=METRIC, **wrong)  # type: ignore[arg-type]
    same = attribution_patching(instrument, [patch_pair(prompt(1))], metric=METRIC).table()
    assert same["estimated_recovered"].null_count() == len(same) and float(same["estimate"].abs().max()) < 1e-5
