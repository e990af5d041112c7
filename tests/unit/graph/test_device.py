"""Graphs are computed where the model is. No accelerator is needed to see it: with torch's default device elsewhere, any tensor made without saying where fails."""

from __future__ import annotations

import pytest
import torch
from dictionary_files import random_dictionary
from graph_helpers import instrument_of
from torch import nn

from symbolic_residue.errors import UnsupportedModelError
from symbolic_residue.graph import attribute_prompt, freeze, Graph, head_loadings, Neuron, qk_attribution
from symbolic_residue.prompts import build_prompt

TARGETS = ["top:2", (5, 9), "entropy", Neuron(1, -2, 3)]


@pytest.fixture(autouse=True)
def _check_where_graphs_are_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    """A finished graph lies in main memory, where torch's default device is what it is: its sums are checked outside."""
    monkeypatch.setattr(Graph, "require", lambda self: self)


def test_the_trick_works() -> None:
    with torch.device("meta"), pytest.raises((RuntimeError, NotImplementedError)):
        torch.arange(3).tolist()


@pytest.mark.parametrize("name", ["llama", "gpt2", "gemma2", "gpt_neox", "mixtral"])
@pytest.mark.parametrize("rest", ["position", "layer"])
def test_every_tensor_of_a_graph_is_made_on_the_models_device(name: str, rest: str) -> None:
    instrument = instrument_of(name)
    prompt = build_prompt(instrument.loaded.tokenizer, "The answer is one word.")
    plain = attribute_prompt(instrument, prompt, targets=TARGETS, max_nodes=12, rest=rest)
    with torch.device("meta"):
        graph = attribute_prompt(instrument, prompt, targets=TARGETS, max_nodes=12, rest=rest)
        heads, looks = (
            head_loadings(instrument, graph, (plain.edges[:, :12] != 0).nonzero()),
            qk_attribution(instrument, graph, 1, 2, 4, 3),
        )
        ghosts = graph.ghosts(instrument, count=9, directions=8)
        given = attribute_prompt(instrument, prompt, targets=TARGETS, nodes=plain.units, rest=rest)
    assert graph.check().passed
    assert torch.equal(graph.edges, plain.edges)
    assert torch.equal(given.edges, plain.edges)
    assert heads.error < 1e-12
    assert looks.error < 1e-8  # gemma rotates in float32
    assert len(ghosts.table) == 9


@pytest.mark.parametrize("clt", [False, True])
def test_with_a_dictionary_too(clt: bool) -> None:
    instrument = instrument_of("llama")
    dictionary = random_dictionary(2, clt=clt, skip=True, only=None if clt else (1,), d_model=64, features=40)
    prompt = build_prompt(instrument.loaded.tokenizer, "The answer is one word.")

    def made() -> Graph:
        return attribute_prompt(instrument, prompt, units=dictionary, targets=["top:2"], max_nodes=12)

    plain = made()
    with torch.device("meta"):
        assert torch.equal(made().edges, plain.edges)
        assert len(plain.ghosts(instrument, count=5, directions=8, dictionary=dictionary).table) == 5
        assert head_loadings(instrument, plain, (plain.edges[:, :12] != 0).nonzero(), dictionary=dictionary).error < 1e-12


def test_a_model_on_several_devices_is_refused() -> None:
    instrument = instrument_of("llama")
    instrument.model.register_parameter("elsewhere", nn.Parameter(torch.zeros(1, device="meta")))
    try:
        with pytest.raises(UnsupportedModelError, match="2 devices"):
            freeze(instrument, torch.arange(5))
    finally:
        del instrument.model.elsewhere
