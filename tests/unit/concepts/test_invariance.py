"""The same pooled rows whatever the size of a batch, the side of padding, the order of texts and the point where a pass was stopped.

In float64 they are equal within 1e-9 of a row's length. Mixers of hybrid models compute their scan in float32 whatever the model's dtype, in chunks that padding
on the left moves: there that side differs by float32's rounding (up to 1e-4 in tiny models with sharp gates), which is shown to be all by letting the scan
compute in float64. In float32 rows differ by less than 1e-5 of their length (hybrids padded on the left: 1e-4), and areas and p values made of them do not differ.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tiny_models import build, tiny_tokenizer

from symbolic_residue.concepts import collect, find_directions, Pooled, quality_report, ReadoutModel
from symbolic_residue.errors import ReadError
from symbolic_residue.instrument import collate, Instrument
from symbolic_residue.models import wrap
from symbolic_residue.prompts import build_prompt

WORDS = ("mill", "river", "gate", "table", "book", "answer", "captain", "harbour")
TEXTS = [
    f"In the {'dark ' * (i % 4)}evening by the {word} {who} {what}"
    for i, word in enumerate(WORDS)
    for who, what in (("Anna", "put"), ("Ben", "questions the answer"), ("They", "see"))
]
LABELS = ["baseline", "joy", "fear"] * len(WORDS)
SCENARIOS = [word for word in WORDS for _ in range(3)]
HYBRIDS = ("qwen3_next", "bamba", "falcon_h1")
FAMILIES = ("llama", "gpt2", "mistral", "gemma3", "granite", "falcon_alibi", *HYBRIDS)


def instrument_of(name: str, dtype: torch.dtype = torch.float32) -> Instrument:
    model = build(name).to(dtype)
    if dtype == torch.float64:
        model.set_experts_implementation("eager")  # grouped products of experts have no float64
    return Instrument(wrap(model, tiny_tokenizer()))


def farthest(one: Pooled, other: Pooled, order: Any = slice(None)) -> float:
    """Largest distance of two rows over the first's length; ``other`` holds the texts in another order."""
    worst = 0.0
    for a, b in ((one.resid, other.resid), (one.heads, other.heads)):
        assert set(a) == set(b)
        for i in a:
            x, y = (np.asarray(rows, dtype=np.float64).reshape(len(rows), -1) for rows in (a[i][order], b[i]))
            worst = max(worst, float((np.linalg.norm(x - y, axis=1) / np.linalg.norm(x, axis=1)).max()))
    return worst


class Stopped(Exception):
    pass


def stopped(instrument: Instrument, folder: Path, **then: Any) -> Pooled:
    """Five texts in one way, the others in another."""

    def halt(done: int, total: int) -> None:
        if done:
            raise Stopped

    with pytest.raises(Stopped):
        collect(instrument, TEXTS, folder=folder, batch_size=5, side="right", progress=halt)
    return collect(instrument, TEXTS, folder=folder, **then)


@pytest.mark.parametrize("name", FAMILIES)
def test_rows_are_the_same_in_float64(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    instrument = instrument_of(name, torch.float64)
    alone = collect(instrument, TEXTS, batch_size=1)
    assert alone.resid[0].dtype == np.float64
    order = np.random.default_rng(0).permutation(len(TEXTS))
    shuffled = [TEXTS[i] for i in order]
    assert farthest(alone, collect(instrument, shuffled, batch_size=3), order) < 1e-9
    assert farthest(alone, collect(instrument, TEXTS, batch_size=64)) < 1e-9
    assert farthest(alone, stopped(instrument, tmp_path / "right", batch_size=7)) < 1e-9
    if name in HYBRIDS:
        assert farthest(alone, collect(instrument, TEXTS, batch_size=24, side="left")) < 1e-4
        scan_in_float64(monkeypatch)
        alone = collect(instrument, TEXTS, batch_size=1)
    assert farthest(alone, collect(instrument, shuffled, batch_size=5, side="left"), order) < 1e-9
    assert farthest(alone, collect(instrument, TEXTS, batch_size=24, side="left")) < 1e-9
    assert farthest(alone, stopped(instrument, tmp_path / "left", batch_size=4, side="left")) < 1e-9


class _Torch:
    """torch, in which float32 is float64."""

    def __getattr__(self, name: str) -> Any:
        return torch.float64 if name == "float32" else getattr(torch, name)


def scan_in_float64(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.Tensor, "float", torch.Tensor.double)
    for name in HYBRIDS:
        module = sys.modules.get(f"transformers.models.{name}.modeling_{name}")
        if module is not None:
            monkeypatch.setattr(module, "torch", _Torch())


@pytest.mark.parametrize("name", HYBRIDS)
@pytest.mark.parametrize("side", ["left", "right"])
def test_what_padding_holds_reaches_no_text(name: str, side: Any) -> None:
    """State-space and linear attention carry a state along the sequence: padding must not enter it."""
    instrument = instrument_of(name)
    ids = [build_prompt(instrument.loaded.tokenizer, text).ids for text in TEXTS[:5]]
    seen = []
    for pad in (0, 7, 300):
        batch = collate(ids, side=side, pad_id=pad)
        trace = instrument.run(batch, reads=("resid_post.*",))
        rows, last = torch.arange(5), torch.tensor(batch.last)
        seen.append(torch.stack([trace[f"resid_post.{i}"][rows, last] for i in range(instrument.parts.n_layers)]))
    for other in seen[1:]:
        torch.testing.assert_close(other, seen[0], rtol=1e-5, atol=1e-5 * float(seen[0].abs().max()))


@pytest.mark.parametrize("name", ["llama", "gpt2", "qwen3_next", "falcon_h1"])
def test_in_float32_areas_and_p_values_are_the_same(name: str) -> None:
    instrument = instrument_of(name)
    model = ReadoutModel("a model", "0" * 64, None, "float32", 64, instrument.parts.n_layers)
    first, reports = None, []
    for batch_size, side in ((1, "right"), (5, "left"), (24, "right")):
        pooled = collect(instrument, TEXTS, batch_size=batch_size, side=side)  # type: ignore[arg-type]
        assert pooled.resid[0].dtype == np.float32
        first = first or pooled
        assert farthest(first, pooled) < (1e-4 if name in HYBRIDS else 1e-5)
        directions = find_directions(pooled, LABELS, SCENARIOS, model)
        reports.append(quality_report(pooled, LABELS, SCENARIOS, directions, instrument.parts)["concepts"])
    for other in reports[1:]:
        for concept, block in reports[0].items():
            for i, layer in block["layers"].items():
                again = other[concept]["layers"][i]["auc"]
                for key in ("value", "low", "high", "p", "p_model"):
                    assert again[key] == pytest.approx(layer["auc"][key], abs=1e-12), (concept, i, key)
                # Of 1000 draws in 64 pairs of texts each, one pair may be so near that rounding orders it.
                assert again["null_mean"] == pytest.approx(layer["auc"]["null_mean"], abs=1e-3)
            for i, layer in block["per_head"]["layers"].items():
                again = other[concept]["per_head"]["layers"][i]
                assert again["concentration_null"]["p"] == layer["concentration_null"]["p"]
                p, q = ({one["head"]: (one["p_layer"], one["p_model"]) for one in of["by_selectivity"]} for of in (layer, again))
                assert p == q


@pytest.mark.parametrize(
    ("name", "point"), [("llama", "z.1"), ("qwen3_next", "z.1"), ("bamba", "z.3"), ("falcon_h1", "z.0"), ("bamba", "resid_post.2")]
)
@pytest.mark.parametrize("times", [0, 2])
def test_a_point_that_does_not_arrive_exactly_once_is_an_error_and_nothing_is_kept(
    name: str, point: str, times: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    instrument = instrument_of(name)
    plain = instrument.run

    def odd(*args: Any, on_read: Any, **options: Any) -> Any:
        def heard(at: Any, x: Any) -> None:
            for _ in range(times if str(at) == point else 1):
                on_read(at, x)

        return plain(*args, on_read=heard, **options)

    with monkeypatch.context() as patch:
        patch.setattr(instrument, "run", odd)
        with pytest.raises(ReadError, match=rf"{point} was captured {times} times"):
            collect(instrument, TEXTS, folder=tmp_path)
    seen: list[int] = []
    collect(instrument, TEXTS, folder=tmp_path, progress=lambda done, _: seen.append(done))
    assert seen[0] == 0


def test_activations_that_are_not_finite_name_the_text(monkeypatch: pytest.MonkeyPatch) -> None:
    instrument = instrument_of("llama")
    plain = instrument.run

    def broken(*args: Any, on_read: Any, **options: Any) -> Any:
        def heard(at: Any, x: Any) -> None:
            on_read(at, torch.full_like(x, float("nan")) if str(at) == "z.1" else x)

        return plain(*args, on_read=heard, **options)

    monkeypatch.setattr(instrument, "run", broken)
    with pytest.raises(ReadError, match=r"z\.1 is not finite in text 2"):
        collect(instrument, [TEXTS[1], TEXTS[4], TEXTS[0]], batch_size=1)
