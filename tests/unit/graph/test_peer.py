"""The same edges as circuit-tracer 0.5.0 gave for the same model, transcoders, prompt and nodes: stored in ``tests/data``, see ``benchmarks/peers``."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from safetensors.torch import load_file, save_file
from tokenizers import models, Tokenizer

from symbolic_residue.dictionaries import open_dictionary, Transcoders
from symbolic_residue.graph import direct_edges, freeze, read_targets, target_rows, unit_rows, unit_values, Units, with_dictionary
from symbolic_residue.instrument import Instrument
from symbolic_residue.models import wrap

DATA = Path(__file__).parents[2] / "data"
ABOUT = json.loads((DATA / "circuit-tracer-graphs.json").read_text("utf-8"))
CASES = list(ABOUT["hooks"])
SAME = 1e-4
"""Of a row's largest edge: both compute in float32."""


@dataclass(frozen=True)
class Peer:
    """A stored graph: rows are features, then logits; columns features, errors by layer and position, embeddings."""

    features: torch.Tensor
    activations: torch.Tensor
    logits: torch.Tensor
    probabilities: torch.Tensor
    edges: torch.Tensor
    last_logits: torch.Tensor


@pytest.fixture(scope="module")
def stored() -> dict[str, torch.Tensor]:
    return load_file(DATA / "circuit-tracer-graphs.safetensors")


@pytest.fixture(scope="module")
def instrument(stored: dict[str, torch.Tensor]) -> Instrument:
    from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

    words = Tokenizer(models.WordLevel({f"w{i}": i for i in range(ABOUT["config"]["vocab_size"])}, unk_token="w1"))
    model = LlamaForCausalLM(LlamaConfig(**ABOUT["config"])).eval()
    model.load_state_dict({name.partition("/")[2]: one.float() for name, one in stored.items() if name.startswith("model/")})
    return Instrument(wrap(model, PreTrainedTokenizerFast(tokenizer_object=words)))


def dictionary_of(stored: dict[str, torch.Tensor], case: str, folder: Path, hooks: dict[str, str] | None = None) -> Transcoders:
    """The transcoders, through files as circuit-tracer has them."""
    said = {"model_kind": "transcoder_set", "model_name": "random", "scan": "random", **(hooks or ABOUT["hooks"][case])}
    (folder / "config.yaml").write_text(yaml.safe_dump(said), "utf-8")
    for i in range(ABOUT["config"]["num_hidden_layers"]):
        start = f"{case}/{i}/"
        save_file(
            {name.removeprefix(start): one.float() for name, one in stored.items() if name.startswith(start)},
            folder / f"layer_{i}.safetensors",
        )
    return open_dictionary(folder)


def peer_of(stored: dict[str, torch.Tensor], case: str) -> Peer:
    start = f"{case}/graph/"
    return Peer(**{name.removeprefix(start): one for name, one in stored.items() if name.startswith(start)})


@dataclass(frozen=True)
class Ours:
    """Our graph with every active feature as a column and the peer's nodes as rows, in the peer's order."""

    edges: torch.Tensor
    same: torch.Tensor
    """Of each column, its number among the peer's; −1 for what the peer's graph does not have."""
    values: torch.Tensor
    tokens: list[int]
    probabilities: torch.Tensor
    active: int


def ours_of(instrument: Instrument, dictionary: Transcoders, peer: Peer, direction: Any = "auto") -> Ours:
    ids = torch.tensor(ABOUT["ids"])
    with torch.no_grad():
        local = with_dictionary(freeze(instrument, ids), dictionary)
        cells = [(i, *cell) for i, one in local.units.items() for cell in zip(*(x.tolist() for x in one.cells()), strict=True)]
        every, chosen = Units.of(torch.tensor(cells)), Units.of(peer.features)
        targets = read_targets(instrument, local, ["top"], -1, "half")
        rows = unit_rows(local, chosen, "half") + target_rows(local, targets)
        edges, columns = direct_edges(local, rows, every, direction=direction)
        values = torch.cat([unit_values(local, chosen), torch.tensor([t.value for t in targets])])
    place = {tuple(one): k for k, one in enumerate(peer.features.tolist())}
    n, n_layers, k = len(ids), len(local.layers), len(peer.features)
    same = torch.full((len(columns),), -1)
    same[: len(every)] = torch.tensor([place.get(one, -1) for one in cells])
    later = torch.arange(n_layers * n) % n > 0  # the peer's graph leaves out what MLPs write at the first position
    same[columns.rest] = torch.where(later, k + torch.arange(n_layers * n), -1)
    same[columns.embeddings] = k + n_layers * n + torch.arange(n)
    tokens, p = zip(*((t.token, t.probability) for t in targets), strict=True)
    return Ours(edges, same, values, list(tokens), torch.tensor(p), sum(position > 0 for _, position, _ in cells))


def apart(ours: Ours, peer: Peer) -> torch.Tensor:
    """``[row]``: the largest difference of a row's edges, relative to the row's largest edge."""
    both = ours.same >= 0
    wanted = peer.edges[:, ours.same[both]]
    return (ours.edges[:, both] - wanted).abs().amax(1) / wanted.abs().amax(1)


@pytest.mark.parametrize("case", CASES)
def test_nodes_are_the_same(stored: dict[str, torch.Tensor], instrument: Instrument, case: str, tmp_path: Path) -> None:
    peer = peer_of(stored, case)
    ours = ours_of(instrument, dictionary_of(stored, case, tmp_path), peer)
    active, chosen = ABOUT["active features, chosen"][case]
    assert (ours.active, len(peer.features)) == (active, chosen)
    assert ours.tokens == peer.logits.tolist() and len(ours.tokens) > 2
    torch.testing.assert_close(ours.probabilities, peer.probabilities, rtol=1e-4, atol=0)
    torch.testing.assert_close(ours.values[:chosen], peer.activations, rtol=0, atol=1e-5)
    found = peer.last_logits[peer.logits] - peer.last_logits.mean()
    torch.testing.assert_close(ours.values[chosen:], found, rtol=0, atol=1e-5)


@pytest.mark.parametrize("direction", ["down", "up"])
@pytest.mark.parametrize("case", CASES)
def test_edges_are_the_same(
    stored: dict[str, torch.Tensor], instrument: Instrument, case: str, direction: str, tmp_path: Path
) -> None:
    peer = peer_of(stored, case)
    ours = ours_of(instrument, dictionary_of(stored, case, tmp_path), peer, direction)
    columns = ours.same[ours.same >= 0].tolist()
    left_out = sorted(set(range(peer.edges.shape[1])) - set(columns))
    assert (
        len(columns) == len(set(columns)) and not peer.edges[:, left_out].any()
    )  # all of the peer's columns but those that it leaves 0
    assert float(apart(ours, peer).max()) < SAME


@pytest.mark.parametrize("case", CASES)
def test_what_the_peers_rows_lack_is_in_our_other_columns(
    stored: dict[str, torch.Tensor], instrument: Instrument, case: str, tmp_path: Path
) -> None:
    """Ours add up; theirs lack features that are no nodes, decoders' biases, the first position's MLPs and the rows' own constants, exactly."""
    peer = peer_of(stored, case)
    ours = ours_of(instrument, dictionary_of(stored, case, tmp_path), peer)
    size = ours.edges.abs().sum(1)
    assert float(((ours.edges.sum(1) - ours.values).abs() / size).max()) < 1e-5
    gap = ours.values - peer.edges.sum(1)
    torch.testing.assert_close(gap / size, ours.edges[:, ours.same < 0].sum(1) / size, rtol=0, atol=1e-5)
    assert float((gap / ours.values).abs().median()) > 0.1


Changed = Callable[[Transcoders], Transcoders]


def each_layer(**change: Callable[[Any], Any]) -> Changed:
    def changed(dictionary: Transcoders) -> Transcoders:
        layers = {i: replace(one, **{k: f(one) for k, f in change.items()}) for i, one in dictionary.layers.items()}
        return Transcoders(layers, dictionary.source)

    return changed


@pytest.mark.parametrize(
    ("case", "wrong"),
    [
        ("after", each_layer(bias=lambda one: torch.zeros_like(one.bias))),
        ("before", each_layer(skip=lambda one: one.skip.T.contiguous())),
        ("before", each_layer(skip=lambda _: None)),
        ("after", each_layer(decoders=lambda one: {one.layer: one.decoders[one.layer].flip(0)})),
    ],
    ids=["no decoder bias", "skip transposed", "no skip", "decoder rows in another order"],
)
def test_a_wrong_dictionary_is_seen(
    stored: dict[str, torch.Tensor], instrument: Instrument, case: str, wrong: Changed, tmp_path: Path
) -> None:
    peer = peer_of(stored, case)
    ours = ours_of(instrument, wrong(dictionary_of(stored, case, tmp_path)), peer)
    assert float(apart(ours, peer).max()) > 100 * SAME


def test_shifted_positions_are_seen(stored: dict[str, torch.Tensor], instrument: Instrument, tmp_path: Path) -> None:
    peer = peer_of(stored, "after")
    ours = ours_of(instrument, dictionary_of(stored, "after", tmp_path), peer)
    n, k = len(ABOUT["ids"]), len(peer.features)
    edges = peer.edges.clone()
    edges[:, -n:] = edges[:, -n:].roll(1, 1)
    assert float(apart(ours, replace(peer, edges=edges)).max()) > 100 * SAME
    edges = peer.edges.clone()
    edges[:, k:-n] = edges[:, k:-n].roll(1, 1)
    assert float(apart(ours, replace(peer, edges=edges)).max()) > 100 * SAME
