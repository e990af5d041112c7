"""Attention tables as frames: every number at its own layer, head, row and region, as the tensors have it."""

from __future__ import annotations

import numpy as np
import polars as pl
import pytest
import torch
from tiny_models import build, tiny_tokenizer

from symbolic_residue.errors import ReadError
from symbolic_residue.instrument import AttentionRead, AttentionTable, collate, Instrument
from symbolic_residue.models import wrap
from symbolic_residue.prompts import build_prompt, Prompt
from symbolic_residue.readout import attention_frames

TEXTS = ("The mill stands where the river turns.", "Anna put the")
STATS = ("mass", "entropy", "distance", "max", "argmax")


def made(layers: tuple[int, ...] = (1, 3), rows: tuple[int, ...] = (2, 5, 6)) -> AttentionTable:
    """A table whose numbers say where they are: layer · 1000 + sequence · 100 + head · 10 + place of the row (+ region / 10)."""
    place = torch.arange(len(layers))[:, None, None, None] * 1000.0 + torch.arange(2)[None, :, None, None] * 100
    place = place + torch.arange(4)[None, None, :, None] * 10 + torch.arange(len(rows))
    valid = torch.tensor([[False, True, True], [True, True, True]])
    return AttentionTable(
        layers=layers,
        rows=torch.tensor(rows),
        regions=("sink", "text"),
        valid=valid,
        backend="made",
        values={"mass": torch.stack([place, place + 0.1], -1), "entropy": place, "argmax": place.long()},
    )


@pytest.mark.parametrize(("sequence", "kept"), [(0, [5, 6]), (1, [2, 5, 6])])
def test_every_number_stands_where_it_belongs(sequence: int, kept: list[int]) -> None:
    mass, stats = attention_frames(made(), sequence)
    assert mass.columns == ["layer", "head", "row", "region", "mass"]
    assert stats.columns == ["layer", "head", "row", "entropy", "argmax"]  # only what was read
    assert len(stats) == 2 * 4 * len(kept)
    assert len(mass) == 2 * len(stats)
    assert stats["row"].unique().sort().to_list() == kept  # padding is left out
    at = {layer: i for i, layer in enumerate((1, 3))}
    row_at = {row: i for i, row in enumerate((2, 5, 6))}
    for layer, head, row, entropy, argmax in stats.iter_rows():
        want = at[layer] * 1000 + sequence * 100 + head * 10 + row_at[row]
        assert entropy == want
        assert argmax == want
    for layer, head, row, region, value in mass.iter_rows():
        want = at[layer] * 1000 + sequence * 100 + head * 10 + row_at[row] + {"sink": 0.0, "text": 0.1}[region]
        assert value == pytest.approx(want, rel=1e-6)


def test_types_are_those_of_the_run_folder() -> None:
    mass, stats = attention_frames(made())
    assert mass.schema == {"layer": pl.Int64, "head": pl.Int64, "row": pl.Int64, "region": pl.String, "mass": pl.Float64}
    assert stats.schema == {"layer": pl.Int64, "head": pl.Int64, "row": pl.Int64, "entropy": pl.Float64, "argmax": pl.Int64}


def test_without_masses_the_first_frame_is_empty_and_typed() -> None:
    table = made()
    del table.values["mass"]
    mass, stats = attention_frames(table)
    assert mass.is_empty()
    assert mass.columns == ["layer", "head", "row", "region", "mass"]
    assert len(stats) == 16


@pytest.mark.parametrize("sequence", [-1, 2])
def test_a_sequence_that_is_not_there_is_refused(sequence: int) -> None:
    with pytest.raises(ReadError, match=f"no sequence {sequence}"):
        attention_frames(made(), sequence)


@pytest.fixture(scope="module", params=["llama", "gemma3", "gpt2", "gpt_neox"])
def instrument(request: pytest.FixtureRequest) -> Instrument:
    return Instrument(wrap(build(request.param), tiny_tokenizer()))


def prompts(instrument: Instrument) -> list[Prompt]:
    return [build_prompt(instrument.loaded.tokenizer, text) for text in TEXTS]


def test_a_padded_batch_gives_each_sequence_what_it_has_alone(instrument: Instrument) -> None:
    """Rows count in the padded sequence; the shorter prompt's are shifted by its padding, its numbers are not."""
    several = prompts(instrument)
    read = AttentionRead(regions=[p.regions for p in several], stats=STATS, split_self=True)
    together = instrument.run(collate(several), attention=read).attention
    assert together is not None
    width = max(map(len, several))
    for i, prompt in enumerate(several):
        alone = instrument.run(
            collate([prompt]), attention=AttentionRead(regions=prompt.regions, stats=STATS, split_self=True)
        ).attention
        assert alone is not None
        for got, want in zip(attention_frames(together, i), attention_frames(alone), strict=True):
            lead = width - len(prompt)
            shifted = got.with_columns(pl.col("row") - lead)
            keys = [c for c in want.columns if c in ("layer", "head", "row", "region")]
            if "region" in keys:  # the batch names every region of every sequence
                shifted = shifted.filter(pl.col("region").is_in(want["region"].unique().to_list()))
            shifted, want = shifted.sort(keys), want.sort(keys)
            assert shifted.select(keys).equals(want.select(keys))
            for name in set(want.columns) - set(keys) - {"argmax"}:
                np.testing.assert_allclose(shifted[name].to_numpy(), want[name].to_numpy(), atol=2e-5)


def test_masses_sum_to_one_over_regions(instrument: Instrument) -> None:
    prompt = prompts(instrument)[0]
    trace = instrument.run(collate([prompt]), attention=AttentionRead(regions=prompt.regions, stats=STATS, split_self=True))
    assert trace.attention is not None
    mass, stats = attention_frames(trace.attention)
    sums = mass.group_by("layer", "head", "row").agg(pl.col("mass").sum())
    assert len(sums) == len(stats) == 2 * 4 * len(prompt)
    np.testing.assert_allclose(sums["mass"].to_numpy(), 1.0, atol=1e-5)
    assert (stats["argmax"] <= stats["row"]).all()
    assert stats["distance"].min() >= -1e-4  # type: ignore[operator]
