"""Whole graphs: targets, what adds up and what is noticed when it does not, influence and pruning, files."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from graph_helpers import instrument_of
from hypothesis import given, settings
from hypothesis import strategies as st

from symbolic_residue.errors import ConfigError, DamagedFileError, PromptError, VerificationError, WriteError
from symbolic_residue.graph import (
    attribute,
    attribute_prompt,
    Columns,
    Direction,
    freeze,
    Graph,
    load_graph,
    Neuron,
    Rows,
    save_graph,
    TargetInfo,
    Units,
)
from symbolic_residue.instrument import Instrument
from symbolic_residue.models import wrap
from symbolic_residue.prompts import build_prompt, Prompt

TEXT = "Please write the answer in one word. The answer is"


def prompt_for(instrument: Instrument, text: str = TEXT) -> Prompt:
    return build_prompt(instrument.loaded.tokenizer, text)


@pytest.mark.parametrize("name", ["llama", "gpt2", "gpt_neox", "gemma2", "qwen3_moe"])
def test_a_graph_adds_up_for_every_kind_of_target(name: str) -> None:
    instrument = instrument_of(name)
    prompt = prompt_for(instrument)
    direction = Direction("first axis", torch.eye(64)[0], layer=1, position=3)
    graph = attribute_prompt(
        instrument, prompt, targets=["top:3", 7, (7, 9), "entropy", "silence", direction, Neuron(1, -1, 5)], max_nodes=40
    )
    assert graph.n_targets == 9 and len(graph) == 40
    assert graph.check().worst < 1e-12
    logits = instrument.run(torch.tensor([prompt.ids])).logits[0, -1]
    cap = instrument.parts.logit_softcap
    raw = logits if cap is None else cap * torch.atanh(logits / cap)
    assert graph.uncapped == (cap is not None)
    values = [t.value for t in graph.targets]
    best = logits.topk(3).indices
    torch.testing.assert_close(torch.tensor(values[:3]).double(), raw[best] - raw.mean(), rtol=1e-6, atol=1e-6)
    assert [t.token for t in graph.targets[:3]] == best.tolist()
    torch.testing.assert_close(torch.tensor(values[4]).double(), raw[7] - raw[9], rtol=1e-6, atol=1e-6)


def test_the_entropy_row_is_the_gradient_of_the_entropy() -> None:
    instrument = instrument_of("gemma2")
    prompt = prompt_for(instrument)
    graph = attribute_prompt(instrument, prompt, targets=["entropy"], max_nodes=5)
    local = freeze(instrument, torch.tensor(prompt.ids))
    cap = local.parts.logit_softcap
    raw = local.uncapped_logits().clone().requires_grad_()
    p = (cap * torch.tanh(raw / cap)).softmax(-1)
    (gradient,) = torch.autograd.grad(-(p * p.log()).sum(), raw)
    assert graph.targets[0].value == pytest.approx(float(gradient @ raw.detach()), rel=1e-9)


def test_silence_is_the_best_end_token_against_the_best_content_token() -> None:
    instrument = instrument_of("llama")
    prompt = prompt_for(instrument)
    graph = attribute_prompt(instrument, prompt, targets=["silence"], max_nodes=5)
    logits = instrument.run(torch.tensor([prompt.ids])).logits[0, -1].clone()
    end = float(logits[2])  # the config's end token
    logits[[2, *instrument.loaded.tokenizer.all_special_ids]] = -torch.inf
    assert graph.targets[0].value == pytest.approx(end - float(logits.max()), rel=1e-9)


def test_any_position_can_be_explained_and_is_that_of_the_shorter_prompt() -> None:
    """Causality as a test: at position t the graph is the graph of the prompt cut after t."""
    instrument = instrument_of("qwen3")
    prompt = prompt_for(instrument)
    cut = prompt.ids[:6]
    inside = attribute_prompt(instrument, prompt, targets=[7], position=5, max_nodes=30)
    alone = attribute_prompt(instrument, replace(prompt, ids=cut, tokens=prompt.tokens[:6]), targets=[7], max_nodes=30)
    assert inside.units.position.max() <= 5
    torch.testing.assert_close(inside.activations, alone.activations, rtol=0, atol=1e-12)
    torch.testing.assert_close(inside.edges[:, :30], alone.edges[:, :30], rtol=0, atol=1e-11)


def test_rest_by_layer_is_the_sum_over_positions() -> None:
    instrument = instrument_of("gpt2")
    prompt = prompt_for(instrument)
    fine = attribute_prompt(instrument, prompt, targets=["top"], max_nodes=20)
    coarse = attribute_prompt(instrument, prompt, targets=["top"], max_nodes=20, rest="layer")
    for block in ("rest", "bias"):
        summed = fine.edges[:, getattr(fine.columns, block)].unflatten(1, (2, -1)).sum(-1)
        torch.testing.assert_close(coarse.edges[:, getattr(coarse.columns, block)], summed, rtol=0, atol=1e-11)
    assert len(fine.column_names()) == len(fine.columns) and len(coarse.column_names()) == len(coarse.columns)


def test_with_all_neurons_nothing_is_left_in_rest_and_with_none_all_of_it_is() -> None:
    instrument = instrument_of("llama")
    prompt = prompt_for(instrument, "One two three")
    every = attribute_prompt(instrument, prompt, targets=[7], max_nodes=10**6)
    assert len(every) == 2 * len(prompt.ids) * 96
    assert float(every.edges[:, every.columns.rest].abs().max()) < 1e-12
    none = attribute_prompt(instrument, prompt, targets=[7], max_nodes=0)
    assert none.edges.shape[0] == 1 and none.check().passed and float(none.edges[0, none.columns.rest].abs().sum()) > 0
    split = every.accounted()
    assert split["value"].sum() == pytest.approx(every.targets[0].value)
    assert split["share_of_size"].sum() == pytest.approx(1)


def test_a_wrong_edge_is_noticed() -> None:
    instrument = instrument_of("llama")
    graph = attribute_prompt(instrument, prompt_for(instrument), targets=["top"], max_nodes=20)
    edges = graph.edges.clone()
    edges[3, 5] += 1e-3 * float(edges[3].abs().sum())
    wrong = replace(graph, edges=edges)
    assert not wrong.check().passed and int(wrong.check().relative.argmax()) == 3
    with pytest.raises(VerificationError, match="Row 3"):
        wrong.require()


def test_an_almost_silent_neuron_is_measured_by_the_rounding_of_what_it_reads() -> None:
    instrument = instrument_of("llama")
    graph = attribute_prompt(instrument, prompt_for(instrument), targets=["top"], max_nodes=20)
    row = graph.n_targets + 7
    edges, activations = graph.edges.float(), graph.activations.float()
    largest = float(graph.edges.abs().sum(1).max())
    quiet = edges.clone()
    quiet[row] *= 1e-6 * largest / float(edges[row].abs().sum())
    activations[7] = quiet[row].double().sum()
    silent = replace(graph, edges=quiet, activations=activations)
    off = activations.clone()
    off[7] += 1e-10 * largest  # far below float32's rounding of the largest row, and 1e-4 of this row's own edges
    assert replace(silent, activations=off).check().passed
    off[7] += 1e-7 * largest
    assert int(replace(silent, activations=off).check().relative.argmax()) == row


def some_graph(data: st.DataObject) -> Graph:
    """A random graph of a shape that a model could have."""
    generator = torch.Generator().manual_seed(data.draw(st.integers(0, 2**20)))
    n_layers, n, count, n_targets = (data.draw(st.integers(1, k)) for k in (4, 4, 12, 3))
    cells = torch.cartesian_prod(torch.arange(n_layers), torch.arange(n), torch.arange(3))
    units = Units.of(cells[torch.randperm(len(cells), generator=generator)[:count]])
    columns = Columns(len(units), n_layers, n, data.draw(st.booleans()))
    edges = torch.randn(n_targets + len(units), len(columns), generator=generator, dtype=torch.float64)
    below = units.layer[None] < units.layer[:, None]
    edges[n_targets:, : len(units)] *= below
    weights = (torch.rand(n_targets, generator=generator) + 0.1).tolist()
    sums = edges.sum(1)
    targets = tuple(TargetInfo(f"t{i}", float(sums[i]), n_layers, n - 1, weights[i], 0, None, None) for i in range(n_targets))
    rows = Rows(
        torch.zeros(n_targets, 1), torch.zeros(n_targets), torch.full((n_targets,), 2 * n_layers), torch.full((n_targets,), n - 1)
    )
    return Graph(
        tuple(range(n)),
        tuple("abcd"[:n]),
        targets,
        units,
        sums[n_targets:],
        sums[n_targets:],
        edges,
        columns,
        "half",
        False,
        0.0,
        rows,
    )


def whole_matrix(graph: Graph) -> tuple[torch.Tensor, torch.Tensor]:
    """Shares as one square matrix over (columns, targets) and the targets' weights, for the textbook formula."""
    c, n_units, n_targets = len(graph.columns), len(graph), graph.n_targets
    a = torch.zeros(c + n_targets, c + n_targets, dtype=torch.float64)
    a[c:, :c] = graph.edges[:n_targets].abs()
    a[:n_units, :c] = graph.edges[n_targets:].abs()
    a = a / a.sum(1, keepdim=True).clamp(min=1e-300)
    weights = torch.zeros(c + n_targets, dtype=torch.float64)
    weights[c:] = torch.tensor([t.weight for t in graph.targets], dtype=torch.float64)
    return a, weights / weights.sum()


@settings(max_examples=60, deadline=None)
@given(st.data())
def test_influence_is_the_sum_over_all_paths(data: st.DataObject) -> None:
    graph = some_graph(data)
    a, weights = whole_matrix(graph)
    eye = torch.eye(len(a), dtype=torch.float64)
    wanted = (weights @ (torch.linalg.inv(eye - a) - eye))[: len(graph.columns)]
    torch.testing.assert_close(graph.influence(), wanted, rtol=0, atol=1e-10)
    sources = wanted[len(graph) :].sum()  # whatever begins in no unit: all influence ends there
    assert float(sources) == pytest.approx(1, abs=1e-9)


@settings(max_examples=60, deadline=None)
@given(st.data(), st.floats(0.05, 1), st.floats(0.05, 1))
def test_pruning_keeps_the_asked_shares_and_nothing_dangles(data: st.DataObject, node: float, edge: float) -> None:
    graph = some_graph(data)
    kept = graph.prune(node, edge)
    n_units, n_targets = len(graph), graph.n_targets
    influence = graph.influence()
    order = influence.argsort(descending=True)
    needed = order[: int((influence[order].cumsum(0) / influence.sum() < node - 1e-9).sum()) + 1]
    allowed = torch.zeros(len(influence), dtype=torch.bool)
    allowed[needed] = True
    allowed[graph.columns.embeddings] = True
    allowed[graph.columns.constant] = True
    assert not (kept.columns & ~allowed).any()
    assert not kept.edges[:, ~kept.columns].any()
    assert not kept.edges[n_targets:][~kept.columns[:n_units]].any()
    units = kept.columns[:n_units]
    assert kept.edges.any(0)[:n_units][units].all() and kept.edges[n_targets:].any(1)[units].all()
    whole = graph.prune(1, 1)
    reachable = influence[:n_units] > 0
    assert (whole.columns[:n_units] == reachable).all()
    assert (kept.edges.sum() <= whole.edges.sum()) and (kept.columns.sum() <= whole.columns.sum())


def test_thresholds_that_are_no_shares_are_refused() -> None:
    instrument = instrument_of("llama")
    graph = attribute_prompt(instrument, prompt_for(instrument), targets=["top"], max_nodes=5)
    for node, edge in ((0, 0.5), (0.5, 1.5), (float("nan"), 0.5)):
        with pytest.raises(ConfigError, match="no share"):
            graph.prune(node, edge)


def test_a_graph_comes_back_from_disk(tmp_path: Path) -> None:
    instrument = instrument_of("gpt2")
    graph = attribute_prompt(instrument, prompt_for(instrument), targets=["top", "silence"], max_nodes=30)
    back = load_graph(save_graph(graph, tmp_path / "g"))
    assert back.targets == graph.targets and back.tokens == graph.tokens and back.columns == graph.columns
    assert back.provenance == json.loads(json.dumps(graph.provenance))
    for name in ("edges", "activations", "effects"):
        assert torch.equal(getattr(back, name), getattr(graph, name))
    assert back.nodes().equals(graph.nodes())


def test_damaged_files_are_refused(tmp_path: Path) -> None:
    instrument = instrument_of("llama")
    graph = attribute_prompt(instrument, prompt_for(instrument), targets=["top"], max_nodes=10)
    folder = save_graph(graph, tmp_path / "g")
    text, data = (folder / "graph.json").read_text(), (folder / "graph.safetensors").read_bytes()
    with pytest.raises(DamagedFileError, match="no readable graph"):
        load_graph(tmp_path / "nowhere")
    (folder / "graph.safetensors").write_bytes(data[:-50])
    with pytest.raises(DamagedFileError, match="sha256"):
        load_graph(folder)
    (folder / "graph.safetensors").write_bytes(data)
    record = json.loads(text)
    for change, said in (
        ({"format": 9}, "format 9"),
        ({"targets": [record["targets"][0] | {"value": 1e6}, *record["targets"][1:]]}, "add up"),
        ({"tokens": record["tokens"][1:]}, "fit together"),
        ({"columns": {"n_units": 3}}, "lacks"),
    ):
        (folder / "graph.json").write_text(json.dumps(record | change))
        with pytest.raises(DamagedFileError, match=said):
            load_graph(folder)
    (folder / "graph.json").write_text(text[:40])
    with pytest.raises(DamagedFileError):
        load_graph(folder)
    (tmp_path / "file").write_text("x")
    with pytest.raises(WriteError):
        save_graph(graph, tmp_path / "file" / "g")


def test_senseless_requests_are_refused() -> None:
    instrument = instrument_of("llama")
    prompt = prompt_for(instrument)
    for targets, said in (
        ([], "No target"),
        ("top", "list"),
        (["top:0"], "top tokens"),
        (["answer is"], "tokens in this tokenizer"),
        ([10**6], "no token"),
        ([(7, 7)], "same token"),
        ([Neuron(5, 0, 0)], "no Neuron"),
        ([Neuron(0, 0, 96)], "neurons 0 to 95"),
        ([Direction("x", torch.ones(3))], "does not fit"),
    ):
        with pytest.raises(ConfigError, match=said):
            attribute_prompt(instrument, prompt, targets=targets)  # type: ignore[arg-type]
    for options in ({"position": 99}, {"max_nodes": -1}, {"rest": "none"}, {"rule": "third"}):
        with pytest.raises(ConfigError):
            attribute_prompt(instrument, prompt, **options)
    with pytest.raises(PromptError):
        attribute(instrument.model, instrument.loaded.tokenizer, " ")


def test_a_prompt_of_one_token_has_a_graph() -> None:
    instrument = instrument_of("llama")
    prompt = prompt_for(instrument)
    one = replace(prompt, ids=prompt.ids[:1], tokens=prompt.tokens[:1])
    graph = attribute_prompt(instrument, one, targets=["top"], max_nodes=20)
    assert graph.check().passed and len(graph.tokens) == 1


@pytest.mark.parametrize("name", ["llama", "qwen3", "gemma2", "mixtral"])
def test_almost_silent_neurons_add_up_in_float32_with_all_that_there_are(name: str, tmp_path: Path) -> None:
    """Their edges are as small as what is left of large terms: gaps are measured by the terms, and a wrong edge is still seen."""
    from tiny_models import build, tiny_tokenizer

    graph = attribute(build(name), tiny_tokenizer(), "One two", max_nodes=10**6)
    check = graph.check()
    assert check.worst < 1e-6 and graph.terms is not None
    edges = graph.edges.double().abs().sum(1)
    assert float((check.missing.abs() / edges.clamp(min=1e-30)).max()) > 10 * check.worst  # by the edges alone
    local = freeze(Instrument(wrap(build(name), tiny_tokenizer())), torch.tensor(graph.ids))
    reads = [(local.layers[i].read_by(torch.tensor([k]), torch.tensor([t]), "half")[0][0], local.layers[i].stream[t])
             for i, t, k in zip(*(x[::37].tolist() for x in vars(graph.units).values()), strict=True)]  # fmt: skip
    wanted = torch.stack([(d * x).abs().sum() for d, x in reads])
    torch.testing.assert_close(graph.terms[graph.n_targets :][::37], wanted, rtol=1e-5, atol=1e-9)
    row = graph.n_targets + int(edges[graph.n_targets :].argmin())
    wrong = graph.edges.clone()
    wrong[row, 0] += 1e-4 * float(graph.row_sizes()[row])
    assert int(replace(graph, edges=wrong).check().relative.argmax()) == row and not replace(graph, edges=wrong).check().passed
    back = load_graph(save_graph(graph, tmp_path / "g"))
    assert back.terms is not None and torch.equal(back.terms, graph.terms)


def test_float32_adds_up_to_rounding_and_the_same_call_gives_the_same_bytes() -> None:
    from tiny_models import build, tiny_tokenizer

    model, tokenizer = build("llama"), tiny_tokenizer()
    graphs = [attribute(model, tokenizer, TEXT, max_nodes=40) for _ in range(2)]
    assert graphs[0].check().worst < 1e-5
    assert torch.equal(graphs[0].edges, graphs[1].edges)
    assert graphs[0].provenance == graphs[1].provenance and len(graphs[0].provenance["weights_sha256"]) == 64
