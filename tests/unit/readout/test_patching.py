"""Patching sweeps against one whole forward a cell, planted truths, controls, interruption, refusals."""

from __future__ import annotations

import warnings
from typing import Any

import polars as pl
import pytest
import torch
from patching_helpers import instrument_of, metric_of, one_at_a_time, prompt, tiny
from tiny_models import build, tiny_tokenizer

from symbolic_residue.errors import ConfigError, InstrumentError, ModelError, PromptError, ReadError
from symbolic_residue.instrument import collate, Instrument, Replace
from symbolic_residue.models import wrap
from symbolic_residue.readout import KLToSource, LogitDifference, LogProbability, patch_pair, patch_pairs, patch_sweep

METRIC = LogitDifference(5, 9)
EVERYTHING = ("resid_pre", "resid_mid", "resid_post", "attn_out", "mlp_out", "z", "q", "k", "v", "q+k", "attn_out+mlp_out")
FAMILIES = [
    "llama",
    "gemma3",
    "gpt2",
    "gpt_neox",
    "olmo2",
    "gemma2",
    "qwen3_moe",
    "opt",
    "granite",
    "falcon_alibi",
    "falcon_h1",
    "gpt_oss",
    "bamba",
]


@pytest.fixture(scope="module")
def llama() -> Instrument:
    return tiny("llama")


def cell(table: pl.DataFrame, **where: Any) -> dict[str, Any]:
    found = table.filter(*[pl.col(name) == value for name, value in where.items()])
    assert len(found) == 1
    return found.row(0, named=True)


@pytest.mark.parametrize("name", FAMILIES)
def test_every_cell_equals_a_whole_forward_of_its_own(name: str) -> None:
    instrument = tiny(name)
    pair = patch_pair(prompt(1), prompt(2), positions={"all": "all", "last": "last", "some": (1, 3)})
    table = patch_sweep(instrument, [pair], metric=METRIC, components=EVERYTHING, controls=0, max_batch=13).table()
    assert table["target"][0] == pytest.approx(metric_of(instrument, pair.target, METRIC), abs=1e-5)
    assert table["source"][0] == pytest.approx(metric_of(instrument, pair.source, METRIC), abs=1e-5)
    scale = 1 + float(table["patched"].abs().max())
    for row in table.iter_rows(named=True):
        want = one_at_a_time(instrument, pair, METRIC, row)
        assert abs(row["patched"] - want) < 1e-5 * scale, row
    assert float(table["effect"].abs().max()) > 0.1, "nothing moved"
    assert set(table["layer"]) == set(range(instrument.parts.n_layers))


def test_two_models_and_two_prompts_of_other_lengths() -> None:
    base, tuned = tiny("llama", seed=0), tiny("llama", seed=1)
    pair = patch_pair(prompt(1, 11), prompt(2, 9), positions={"tail": [(i, i - 2) for i in range(4, 11)], "last": "last"})
    components = ("resid_post", "z", "mlp_out", "v")
    for direction in ("denoise", "noise"):
        table = patch_sweep(
            base, [pair], source=tuned, metric=METRIC, components=components, direction=direction, controls=0
        ).table()
        models, used = ((base, tuned), pair) if direction == "denoise" else ((tuned, base), pair.swapped())
        for row in table.iter_rows(named=True):
            want = one_at_a_time(models[0], used, METRIC, row, source=models[1])
            assert row["patched"] == pytest.approx(want, abs=1e-4)


def test_noise_is_denoise_of_the_exchanged_pair(llama: Instrument) -> None:
    pair = patch_pair(prompt(1), prompt(2))
    noise = patch_sweep(llama, [pair], metric=METRIC, direction="noise", controls=0).table()
    denoise = patch_sweep(llama, [pair.swapped()], metric=METRIC, controls=0).table()
    assert noise["patched"].to_list() == denoise["patched"].to_list()
    assert set(noise["direction"]) == {"noise"}
    assert noise["source"][0] == pytest.approx(metric_of(llama, pair.target, METRIC), abs=1e-5)


@pytest.mark.parametrize("name", ["llama", "gpt_neox", "gemma3"])
def test_planted_truths(name: str) -> None:
    instrument = tiny(name)
    pair = patch_pair(prompt(1), prompt(2), positions={"all": "all", "last": "last", "first": (0,)})
    components = ("resid_pre", "resid_post", "resid_pre+attn_out+mlp_out")
    table = patch_sweep(instrument, [pair], metric=METRIC, components=components, controls=0).table()
    # All of the last residual stream is all of the source, and its last row is enough; so is all of the embedding.
    for where in ({"layer": 1, "positions": "all"}, {"layer": 1, "positions": "last"}, {"layer": 0, "positions": "all"}):
        assert cell(table, component="resid_post", **where)["recovered"] == pytest.approx(1.0, abs=2e-5)
    assert cell(table, component="resid_pre", layer=0, positions="all")["recovered"] == pytest.approx(1.0, abs=2e-5)
    # A row that the last row no longer looks at recovers nothing.
    assert cell(table, component="resid_post", layer=1, positions="first")["recovered"] == pytest.approx(0.0, abs=2e-5)
    # A block's input with everything that it adds is its output.
    for where in ({"layer": layer, "positions": rows} for layer in (0, 1) for rows in ("all", "last")):
        sums = cell(table, component="resid_pre+attn_out+mlp_out", **where)["patched"]
        assert sums == pytest.approx(cell(table, component="resid_post", **where)["patched"], abs=1e-4)


def test_between_models_only_what_was_changed_matters() -> None:
    base, tuned = build("llama"), build("llama")
    with torch.no_grad():
        tuned.model.layers[1].mlp.down_proj.weight.add_(torch.randn(64, 96, generator=torch.Generator().manual_seed(5)) * 0.1)
    sweep = patch_sweep(
        instrument_of(base),
        [patch_pair(prompt(1))],
        source=instrument_of(tuned),
        metric=METRIC,
        components=("attn_out", "mlp_out", "z"),
    )
    table = sweep.table()
    assert cell(table, component="mlp_out", layer=1, positions="last")["recovered"] == pytest.approx(1.0, abs=1e-4)
    others = table.filter((pl.col("component") != "mlp_out") | (pl.col("layer") == 0))
    assert float(others["effect"].abs().max()) < 1e-5 < abs(table["source"][0] - table["target"][0])


def test_an_attached_adapter_is_a_model_of_its_own() -> None:
    from peft import get_peft_model, LoraConfig

    with warnings.catch_warnings(), torch.random.fork_rng():
        warnings.simplefilter("ignore")  # peft asks transformers by a name it gave up
        torch.manual_seed(0)
        options: dict[str, Any] = {"target_modules": ["v_proj"], "layers_to_transform": [1], "init_lora_weights": False}
        adapted = get_peft_model(build("llama"), LoraConfig(r=3, lora_alpha=6, task_type="CAUSAL_LM", **options)).eval()
        tuned = Instrument(wrap(adapted, tiny_tokenizer()))
    base = Instrument(wrap(build("llama"), tiny_tokenizer()))
    for direction in ("denoise", "noise"):
        table = patch_sweep(
            base,
            [patch_pair(prompt(1))],
            source=tuned,
            metric=METRIC,
            components=("v", "q+k"),
            heads="together",
            direction=direction,
        ).table()
        assert cell(table, component="v", layer=1, positions="all")["recovered"] == pytest.approx(1.0, abs=1e-4)
        assert float(table.filter((pl.col("component") != "v") | (pl.col("layer") == 0))["effect"].abs().max()) < 1e-5
    assert abs(table["source"][0] - table["target"][0]) > 0.05


def test_a_self_patch_does_nothing_and_has_nothing_to_recover(llama: Instrument) -> None:
    sweep = patch_sweep(
        llama, [patch_pair(prompt(1))], metric=METRIC, components=("resid_pre", "resid_mid", "z", "q", "k", "v"), controls=0
    )
    table = sweep.table()
    assert float(table["effect"].abs().max()) < 1e-5
    assert table["recovered"].null_count() == len(table)
    assert all("nothing to recover" in reason for reason in table["reason"])
    summary = sweep.summary()
    assert set(summary["method"]) == {"none: no pair has anything to recover"} and set(summary["refused"]) == {1}


def test_batches_and_chunks_do_not_matter(llama: Instrument) -> None:
    pairs = patch_pairs([prompt(1), prompt(3)], [prompt(2), prompt(4)])
    sweeps = [
        patch_sweep(llama, pairs, metric=METRIC, components=("z", "attn_out"), max_batch=size).table() for size in (1, 5, 1000)
    ]
    for other in sweeps[1:]:
        assert other.drop("patched", "effect", "recovered", "control", "control_effects").equals(
            sweeps[0].drop("patched", "effect", "recovered", "control", "control_effects")
        )
        assert float((other["patched"] - sweeps[0]["patched"]).abs().max()) < 1e-5
        assert float((other["control"] - sweeps[0]["control"]).abs().max()) < 1e-5


@pytest.mark.parametrize("side", ["left", "right"])
def test_padding_is_taken_off(llama: Instrument, side: Any) -> None:
    sources, targets = [prompt(1, 6).tolist(), prompt(3, 9).tolist()], [prompt(2, 6).tolist(), prompt(4, 9).tolist()]
    bare = patch_sweep(llama, patch_pairs(sources, targets), metric=METRIC).table()
    padded = patch_pairs(collate(sources, side=side), collate(targets, side=side))
    assert [len(pair.source) for pair in padded] == [6, 9]
    assert patch_sweep(llama, padded, metric=METRIC).table().equals(bare)


def test_control_prompts_are_patches_from_those_prompts(llama: Instrument) -> None:
    pair, strangers = patch_pair(prompt(1), prompt(2)), [prompt(7, 9), prompt(8, 12)]
    table = patch_sweep(llama, [pair], metric=METRIC, components=("z", "resid_post"), controls=strangers).table()
    for i, stranger in enumerate(strangers):
        other = patch_sweep(
            llama, [patch_pair(stranger[:9], prompt(2))], metric=METRIC, components=("z", "resid_post"), controls=0
        ).table()
        got = torch.tensor([effects[i] for effects in table["control_effects"]])
        torch.testing.assert_close(got, torch.tensor(other["effect"].to_list()), atol=1e-5, rtol=0)
    gap = table["source"] - table["target"]
    assert float((table["control"] - table["control_effects"].list.mean() / gap).abs().max()) < 1e-9
    assert set(table["control_n"]) == {2}


def test_shuffled_controls_take_other_rows_of_the_source(llama: Instrument) -> None:
    pair = patch_pair(prompt(1), prompt(2), positions={"row": (4,), "first": (0,)})
    table = patch_sweep(llama, [pair], metric=METRIC, components=("resid_pre",), controls=3, layers=(1,)).table()
    pre = llama.run(torch.tensor([pair.source]), reads=("resid_pre.1",))["resid_pre.1"]
    for name, row in (("row", 4), ("first", 0)):
        from_row = {
            s: metric_of(llama, pair.target, METRIC, [Replace("resid_pre.1", rows=(row,), value=pre[:, [s]])]) for s in range(9)
        }
        for effect in cell(table, positions=name)["control_effects"]:
            nearest = min(from_row, key=lambda s: abs(from_row[s] - table["target"][0] - effect))
            assert abs(from_row[nearest] - table["target"][0] - effect) < 1e-5
            assert nearest not in (0, row)
    again = patch_sweep(llama, [pair], metric=METRIC, components=("resid_pre",), controls=3, layers=(1,), seed=9).table()
    assert again["control"].to_list() != table["control"].to_list()
    assert len(patch_sweep(llama, [pair], metric=METRIC, controls=3, layers=(1,)).null()) == 2 * 3 * 3


def test_kl_to_the_source_is_zero_where_everything_is_patched(llama: Instrument) -> None:
    table = patch_sweep(llama, [patch_pair(prompt(1), prompt(2))], metric=KLToSource(), components=("resid_post",)).table()
    full = cell(table, layer=1, positions="all")
    assert table["source"][0] == pytest.approx(0.0, abs=1e-6) and table["target"][0] > 0.01
    assert full["patched"] == pytest.approx(0.0, abs=1e-5) and full["recovered"] == pytest.approx(1.0, abs=1e-4)


def test_an_interrupted_sweep_goes_on(llama: Instrument) -> None:
    pairs, seen = patch_pairs([prompt(1), prompt(3)], [prompt(2), prompt(4)]), []
    arguments: dict[str, Any] = {"metric": METRIC, "components": ("z", "mlp_out"), "max_batch": 7}
    whole = patch_sweep(llama, pairs, **arguments).table()

    def stop(rows: pl.DataFrame) -> None:
        seen.append(rows)
        if len(seen) == 9:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        patch_sweep(llama, pairs, on_cells=stop, **arguments)
    partial, counts = pl.concat(seen), []
    assert 0 < len(partial) < len(whole)
    resumed = patch_sweep(
        llama, pairs, resume=partial, progress=lambda done, total: counts.append((done, total)), **arguments
    ).table()
    # The batches fall elsewhere now, which is rounding.
    assert resumed.select("pair", "layer", "component", "head", "positions").equals(
        whole.select("pair", "layer", "component", "head", "positions")
    )
    assert float((resumed["patched"] - whole["patched"]).abs().max()) < 1e-5
    assert counts[0][0] > len(partial) - 1 and counts[-1] == (len(whole), len(whole))
    ran = []
    patch_sweep(llama, pairs, resume=whole, on_cells=ran.append, **arguments)
    assert not ran
    for change in ({"metric": LogitDifference(6, 9)}, {"direction": "noise"}, {"controls": 1}):
        with pytest.raises(ConfigError, match="resume"):
            patch_sweep(llama, pairs, resume=partial, **(arguments | change))
    for bad in (partial.drop("patched"), pl.concat([partial, partial])):
        with pytest.raises(ConfigError, match="resume"):
            patch_sweep(llama, pairs, resume=bad, **arguments)


def test_chosen_cells_only(llama: Instrument) -> None:
    pair = patch_pair(prompt(1), prompt(2))
    whole = patch_sweep(llama, [pair], metric=METRIC, components=("z", "mlp_out"), controls=0).table()
    some = whole.sample(5, seed=1)
    table = patch_sweep(llama, [pair], metric=METRIC, components=("z", "mlp_out"), controls=0, cells=some).table()
    assert len(table) == 5
    joined = table.join(some, on=["layer", "component", "head", "positions"], nulls_equal=True)
    assert len(joined) == 5 and float((joined["patched"] - joined["patched_right"]).abs().max()) < 1e-5
    with pytest.raises(ConfigError, match="not in this sweep"):
        patch_sweep(llama, [pair], metric=METRIC, components=("attn_out",), cells=some)
    with pytest.raises(ConfigError, match="lacks the columns"):
        patch_sweep(llama, [pair], metric=METRIC, cells=some.drop("head"))


def test_what_a_model_does_not_have_is_listed() -> None:
    hybrid = tiny("bamba")
    sweep = patch_sweep(
        hybrid, [patch_pair(prompt(1), prompt(2))], metric=METRIC, components=("z", "resid_mid", "mixer_out"), controls=0
    )
    attention = set(hybrid.parts.attention_layers)
    table, missing = sweep.table(), sweep.not_applicable()
    assert set(table.filter(pl.col("component") == "z")["layer"]) == attention
    assert set(missing.filter(pl.col("component") == "z")["layer"]) == set(range(hybrid.parts.n_layers)) - attention
    assert all("no softmax attention" in reason for reason in missing.filter(pl.col("component") == "z")["reason"])
    parallel = tiny("gpt_neox")
    with pytest.raises(ReadError, match="parallel block"):
        patch_sweep(parallel, [patch_pair(prompt(1), prompt(2))], metric=METRIC, components=("resid_mid",))


def test_refusals(llama: Instrument) -> None:
    pair = patch_pair(prompt(1), prompt(2))
    for wrong in (
        {"components": ("mlp_in",)},
        {"components": ()},
        {"components": ("z", "z")},
        {"layers": (2,)},
        {"heads": "all"},
        {"direction": "back"},
        {"max_batch": 0},
        {"controls": -1},
        {"metric": [METRIC, METRIC]},
        {"metric": LogitDifference(5, 384)},
        {"metric": LogProbability(-1)},
        {"metric": lambda logits: logits.mean()},
        {"metric": lambda logits: logits[:, :2]},
        {"metric": lambda logits: logits[:, 0] * float("nan")},
    ):
        with pytest.raises(ConfigError):
            patch_sweep(llama, [pair], **({"metric": METRIC} | wrong))  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match="no pair"):
        patch_sweep(llama, [], metric=METRIC)
    with pytest.raises(ConfigError, match="repeat"):
        patch_sweep(llama, [pair, pair], metric=METRIC)
    with pytest.raises(ConfigError, match="position classes"):
        patch_sweep(llama, [pair, patch_pair(prompt(1), prompt(2), positions=("last",), name="b")], metric=METRIC)
    with pytest.raises(PromptError, match="control prompt"):
        patch_sweep(llama, [pair], metric=METRIC, controls=[prompt(5, 4)])
    with pytest.raises(ConfigError, match="too short"):
        patch_sweep(llama, [patch_pair(prompt(1, 2), prompt(2, 2))], metric=METRIC)
    shifted = patch_pair(prompt(1, 10), prompt(2, 9), positions={"last": "last"})
    with pytest.raises(ConfigError, match="rotated"):
        patch_sweep(llama, [shifted], metric=METRIC, components=("q+k",))
    patch_sweep(tiny("gpt2"), [shifted], metric=METRIC, components=("q+k",), controls=0)  # learned positions: not rotated


def test_models_that_differ_are_refused(llama: Instrument) -> None:
    pair = patch_pair(prompt(1))
    for other, match in (
        (tiny("qwen2"), "family"),
        (tiny("llama", num_hidden_layers=3), "n_layers"),
        (tiny("llama", rms_norm_eps=1e-3), "rms_norm_eps"),
        (instrument_of(build("llama").to(torch.bfloat16)), "dtype"),
    ):
        with pytest.raises(ModelError, match=match):
            patch_sweep(llama, [pair], source=other, metric=METRIC)
    tokenizers = tiny_tokenizer(), tiny_tokenizer()
    tokenizers[1].add_tokens(["another"])
    with pytest.raises(ModelError, match="tokenizer"):
        patch_sweep(
            instrument_of(llama.model, tokenizers[0]), [pair], source=instrument_of(build("llama", 1), tokenizers[1]), metric=METRIC
        )


def test_activations_that_are_not_finite_are_refused() -> None:
    broken = build("llama")
    with torch.no_grad():
        broken.model.layers[0].mlp.down_proj.weight[0, 0] = float("inf")
    with pytest.raises(InstrumentError, match="NaN"):
        patch_sweep(tiny("llama"), [patch_pair(prompt(1))], source=instrument_of(broken), metric=METRIC)
