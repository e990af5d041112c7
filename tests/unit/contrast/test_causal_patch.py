"""Patching between two models: against a dense float64 oracle, no-ops, planted places, exact totals."""

from __future__ import annotations

from typing import Any

import polars as pl
import pytest
import torch
from causal_models import Dense, examples, labels, noise, pair, TOKEN
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny_models import FAMILIES, HYBRIDS

from symbolic_residue.contrast.causal import CAUSAL, PARTS, patch_models, pool_effects
from symbolic_residue.contrast.causal._exchange import _moved
from symbolic_residue.errors import ConfigError, ReadError, RecordError

INTO_BASE, INTO_TUNED = "tuned into base", "base into tuned"


def of(frame: pl.DataFrame, **where: Any) -> pl.DataFrame:
    return frame.filter(*[pl.col(name).is_null() if value is None else pl.col(name) == value for name, value in where.items()])


def put(value: torch.Tensor, rows: list[int]) -> Any:
    """A function that puts the value's rows into a tensor (rows along the second last axis)."""

    def change(tensor: torch.Tensor) -> torch.Tensor:
        out = tensor.clone()
        out[..., rows, :] = value[..., rows, :]
        return out

    return change


@pytest.mark.parametrize("family", ["llama", "gpt2"])
@pytest.mark.parametrize("place", ["all", "emitting row", "system", "answer"])
def test_patches_are_those_of_the_dense_oracle(family: str, place: str) -> None:
    some = examples(2)
    tuned, base = pair(family, noise)
    names = [labels(example) for example in some]
    frame = patch_models(tuned, base, some, labels=names, places=(place,))
    for example, own in zip(some, names, strict=True):
        assert example.event is not None
        last = example.event - 1
        rows = {"all": list(range(last + 1)), "emitting row": [last]}.get(place) or [r for r in range(last) if own[r] == place]
        models = {
            "tuned": Dense(tuned.model, example.ids[: example.event]),
            "base": Dense(base.model, example.ids[: example.event]),
        }
        for direction, donor, taker in (
            (INTO_BASE, models["tuned"], models["base"]),
            (INTO_TUNED, models["base"], models["tuned"]),
        ):
            plain = taker.log_p(TOKEN)
            donor.log_p(TOKEN)  # what both remember is their plain run
            mine = of(frame, example=example.id, model=direction)
            total = of(mine, part="total")["value"].item()
            assert total == pytest.approx(donor.log_p(TOKEN) - plain, abs=2e-4)
            both = range(len(taker.blocks))
            for layer in (*both, None):
                layers = both if layer is None else (layer,)
                wanted: dict[str, float] = {}
                for part, kind in (("residual", "residual"), ("mlp", "mlp"), ("attention", "attn")):
                    wanted[part] = taker.log_p(TOKEN, **{kind: {i: put(donor.seen[kind, i], rows) for i in layers}})  # pyright: ignore[reportArgumentType]
                wanted["qk"] = taker.log_p(TOKEN, pattern={i: put(donor.seen["weights", i], rows) for i in layers})
                taker.log_p(TOKEN)
                if layer is None:
                    donor.log_p(TOKEN, pattern={i: put(taker.seen["weights", i], list(range(last + 1))) for i in layers})
                    turned = {i: donor.seen["attn", i] for i in layers}
                else:
                    turned = {i: donor.write(i, taker.seen["weights", i], donor.seen["hidden", i]) for i in layers}
                wanted["ov"] = taker.log_p(TOKEN, attn={i: put(turned[i], rows) for i in layers})
                for reset in (donor, taker):
                    reset.log_p(TOKEN)
                for part, value in wanted.items():
                    if part == "residual" and layer is None:
                        continue
                    got = of(mine, part=part, layer=layer)["value"].item()
                    assert got == pytest.approx(value - plain, abs=5e-4), (direction, part, layer)


@pytest.mark.parametrize("family", [*FAMILIES, *HYBRIDS])
def test_a_model_patched_with_itself_is_unchanged(family: str) -> None:
    models = pair(family)
    some = examples(1)
    frame = patch_models(*models, some, labels=[labels(some[0])], places=("all", "emitting row", "user"))
    assert frame.schema == pl.Schema(CAUSAL)
    assert set(frame["part"]) == {"total", *PARTS}
    for name in ("value", "control"):
        assert frame[name].abs().max() < 1e-4  # pyright: ignore[reportOperatorIssue, reportOptionalOperand]


@settings(max_examples=8, deadline=None)
@given(st.integers(0, 1000), st.sampled_from(["llama", "gpt2", "gpt_neox", "qwen3", "gemma2"]))
def test_everything_patched_is_everything_recovered(seed: int, family: str) -> None:
    def change(model: Any) -> None:
        noise(model, 0.03, seed)

    tuned, base = pair(family, change)
    frame = patch_models(tuned, base, examples(1, seed=seed), parts=("residual",), layers=[1], places=("all",), controls=False)
    for direction in (INTO_BASE, INTO_TUNED):
        total = of(frame, model=direction, part="total")["value"].item()
        assert of(frame, model=direction, part="residual")["value"].item() == pytest.approx(total, abs=2e-4)


def changed(*names: str) -> Any:
    def change(model: Any) -> None:
        generator = torch.Generator().manual_seed(5)
        for name, weight in model.named_parameters():
            if any(part in name for part in names):
                weight.add_(0.1 * torch.randn(weight.shape, generator=generator))

    return change


@pytest.mark.parametrize(
    ("names", "whole", "nothing"),
    [
        (("layers.1.self_attn.q_proj", "layers.1.self_attn.k_proj"), ("qk", "attention"), ("ov",)),
        (("layers.1.self_attn.v_proj", "layers.1.self_attn.o_proj"), ("ov", "attention"), ("qk",)),
        (("layers.1.mlp",), ("mlp",), ("qk", "ov", "attention")),
    ],
)
def test_what_was_changed_is_where_it_is(names: tuple[str, ...], whole: tuple[str, ...], nothing: tuple[str, ...]) -> None:
    tuned, base = pair("llama", changed(*names))
    frame = patch_models(tuned, base, examples(2), layers=[1], places=("all", "emitting row"), together=False)
    for example in frame["example"].unique():
        for direction in (INTO_BASE, INTO_TUNED):
            mine = of(frame, example=example, model=direction)
            total = of(mine, part="total")["value"].item()
            assert abs(total) > 0.01
            for place in ("all", "emitting row"):  # a change in the last layer acts through the last row alone
                for part in nothing:
                    assert of(mine, part=part, place=place)["value"].item() == pytest.approx(0, abs=2e-4)
            if "mlp" not in whole:
                # attention alone goes through the last MLP again: everything is recovered
                for part in whole:
                    assert of(mine, part=part, place="emitting row")["value"].item() == pytest.approx(total, abs=3e-4)
            else:
                assert of(mine, part="mlp", place="all")["value"].item() == pytest.approx(total, abs=3e-4)


def test_shares_and_controls_of_a_planted_layer() -> None:
    tuned, base = pair("llama", changed("layers.0.mlp"))
    frame = patch_models(tuned, base, examples(12, clusters=6, answer=20), parts=("mlp",), places=("all",))
    size = frame.filter(part="total", model=INTO_BASE)["value"]
    assert size.abs().min() > 1e-4  # pyright: ignore[reportOperatorIssue, reportOptionalOperand]
    # The planted layer's patch brings each example's own total, the same amount of change elsewhere does not.
    joined = of(frame, part="mlp", layer=0).join(
        of(frame, part="total").select("example", "model", total="value"), on=["example", "model"]
    )
    assert joined["value"].to_numpy() == pytest.approx(joined["total"].to_numpy(), abs=3e-4)
    assert (joined["control"] - joined["total"]).abs().mean() > 0.3 * joined["total"].abs().mean()  # pyright: ignore[reportOperatorIssue, reportOptionalOperand]
    pooled = pool_effects(frame.with_columns(value=pl.col("value").abs()), seed=0)
    share = of(pooled, part="mlp", unit="share", layer=0, model=INTO_BASE)
    assert share["value"].item() == pytest.approx(1, abs=1e-3)


def test_directions_are_mirror_images() -> None:
    tuned, base = pair("qwen3", noise)
    some = examples(2)
    a = patch_models(tuned, base, some, controls=False).filter(pl.col("model") == INTO_BASE).drop("model")
    b = patch_models(base, tuned, some, controls=False, directions=(INTO_TUNED,)).drop("model")
    key = ["example", "part", "place", "layer"]
    assert a.sort(key).drop("value").equals(b.sort(key).drop("value"))
    assert a.sort(key)["value"].to_numpy() == pytest.approx(b.sort(key)["value"].to_numpy(), abs=1e-6)


def test_the_batch_and_the_seed() -> None:
    models, some = pair("llama", noise), examples(1)
    alone, together = patch_models(*models, some, max_batch=1), patch_models(*models, some, max_batch=50)
    for name in ("value", "control"):
        assert alone[name].drop_nulls().to_numpy() == pytest.approx(together[name].drop_nulls().to_numpy(), abs=1e-4)
    other = patch_models(*models, some, seed=1, max_batch=50)
    assert other["value"].to_numpy() == pytest.approx(together["value"].to_numpy(), abs=1e-5)
    assert not other.filter(part="mlp")["control"].equals(together.filter(part="mlp")["control"])


def test_a_pattern_moved_to_other_heads_is_a_pattern() -> None:
    generator = torch.Generator().manual_seed(0)
    donor, own = (torch.softmax(torch.randn(1, 4, 5, 9, generator=generator), -1) for _ in range(2))
    moved = _moved(donor, own, generator)
    assert moved is not None
    assert bool((moved >= 0).all())
    assert torch.allclose(moved.sum(-1), own.sum(-1), atol=1e-6)
    assert not torch.allclose(moved, donor, atol=0.05)
    assert _moved(donor[:, :1], own[:, :1], generator) is None
    same = _moved(own, own, generator)
    assert same is not None
    assert torch.allclose(same, own, atol=1e-6)


def test_layers_without_attention_are_left_out_or_refused() -> None:
    models, some = pair("bamba", noise), examples(1)
    frame = patch_models(*models, some, parts=("attention", "qk", "ov", "residual"), controls=False)
    assert set(of(frame, part="qk")["layer"]) == {1, 3, None}
    assert set(of(frame, part="residual")["layer"]) == {0, 1, 2, 3}
    with pytest.raises(ReadError, match="Layer 0 has no qk"):
        patch_models(*models, some, parts=("qk",), layers=[0, 1])


def test_what_cannot_be_patched_is_refused() -> None:
    models, some = pair("llama"), examples(2)
    for options, match in (
        ({"parts": ("values",)}, "parts"),
        ({"directions": ("up",)}, "directions"),
        ({"places": ()}, "places"),
        ({"places": ("user",)}, "needs labels"),
        ({"layers": [5]}, "no layer 5"),
        ({"parts": ("residual",), "layers": []}, "Nothing"),
        ({"labels": [["user"]]}, "labels for 1"),
        ({"labels": [["user"], ["user"]], "places": ("user",)}, "1 labels"),
        ({"labels": [labels(some[0]), labels(some[1])], "places": ("all", "nowhere"), "layers": [0], "parts": ("mlp",)}, "nowhere"),
    ):
        with pytest.raises(ConfigError, match=match):
            patch_models(*models, some, **options)  # pyright: ignore[reportArgumentType]
    own = [labels(one) for one in some]
    missing = patch_models(*models, some, labels=own, places=("special", "user"), layers=[0], parts=("mlp",))
    assert set(missing["place"]) == {"all", "user"}  # the totals, and the bucket that is there
    with pytest.raises(RecordError):
        patch_models(*models, [])
