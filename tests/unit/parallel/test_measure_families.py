"""Every family with rotary positions is measured; the others are refused."""

from __future__ import annotations

import polars as pl
import pytest
import tiny_models
import torch
from parallel_trees import instrument, random_tree

from symbolic_residue.errors import UnsupportedModelError
from symbolic_residue.parallel import check_rotary, measure_prompt, MeasureConfig

REFUSED = {"gpt2", "opt", "falcon_alibi", *tiny_models.HYBRIDS}


@pytest.mark.parametrize("name", tiny_models.ALL)
def test_the_first_layer_knows_nothing_of_company(name: str) -> None:
    """Its scores depend on token and distance alone: the null is exact there, and moving the others leaves a token's score as it was."""
    ins = instrument(name, torch.float32)
    if name in REFUSED:
        with pytest.raises(UnsupportedModelError):
            measure_prompt(ins, random_tree(0, steps=4, most=3))
        return
    check_rotary(ins)
    config = MeasureConfig(epsilons=(0.5,), biases=(1.0,), sizes=(2, 5))
    frames = measure_prompt(ins, random_tree(0, steps=4, most=3), config, checked=True)
    assert all(len(frame) for frame in frames.values())
    first = pl.col("layer") == 0
    assert frames["parallel_competition"].filter(first)["beyond"].abs().max() < 1e-5
    moved = frames["parallel_arms"].filter((pl.col("arm") == "moved") & first)
    assert moved.filter(pl.col("form") == "score")["value"].abs().max() < 1e-5
    assert moved.filter(pl.col("form") == "all keys")["value"].abs().max() > 1e-4
    entropy = frames["parallel_entropy"]
    assert (entropy["entropy"] <= entropy["most"] + 1e-6).all() and (entropy["rest"] <= entropy["rest_most"] + 1e-6).all()
