"""Features of dictionaries as units: rows add up, edges are what the model itself does, and a dictionary that is the MLP gives the neurons' graph."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from dictionary_files import perfect, random_dictionary
from graph_helpers import frozen_edits, IDS, instrument_of, with_logit
from hypothesis import given, settings
from hypothesis import strategies as st

from symbolic_residue.dictionaries import Activation, Transcoders
from symbolic_residue.errors import ConfigError, DictionaryError
from symbolic_residue.graph import (
    attribute_prompt,
    direct_edges,
    Feature,
    freeze,
    head_loadings,
    load_graph,
    LocalModel,
    promoted_tokens,
    qk_attribution,
    relevance,
    save_graph,
    unit_rows,
    unit_values,
    Units,
    with_dictionary,
)
from symbolic_residue.graph._columns import layer_sources
from symbolic_residue.graph._heads import strongest_edges
from symbolic_residue.instrument import Add, AttentionRead, Instrument
from symbolic_residue.prompts import build_prompt

TEXT = "Please write the answer in one word. The answer is"


def made(**how: Any) -> Transcoders:
    return random_dictionary(how.pop("n_layers", 2), d_model=64, features=40, dtype=torch.float64, **how)


def every_unit(local: LocalModel, direction: torch.Tensor) -> Units:
    return relevance(local, direction).top(10**7)


def direction_of(local: LocalModel, a: int = 7, b: int = 9) -> torch.Tensor:
    weights = torch.zeros(local.vocab_size, dtype=local.dtype)
    weights[a], weights[b] = 1, -1
    return local.logit_direction(weights)[0]


CASES = [
    {"kind": "relu", "reads": "resid_mid"},
    {"kind": "topk", "reads": "mlp_in", "predicts": "mlp", "skip": True},
    {"kind": "signed", "reads": "normalized"},
    {"kind": "jumprelu", "reads": "mlp_in", "skip": True},
    {"kind": "relu", "reads": "normalized", "predicts": "mlp", "clt": True},
    {"kind": "jumprelu", "reads": "resid_mid", "clt": True, "skip": True},
    {"kind": "topk", "reads": "mlp_in", "only": (1,), "skip": True},
]


@pytest.mark.parametrize("how", CASES, ids=lambda how: " ".join(map(str, how.values())))
@pytest.mark.parametrize("name", ["llama", "gpt2", "gemma2", "gpt_neox", "granite", "olmo2"])
def test_every_row_sums_to_its_value_by_both_sweeps(name: str, how: dict[str, Any]) -> None:
    frozen = freeze(instrument_of(name), IDS)
    local = with_dictionary(frozen, made(**how))
    units = relevance(local, direction_of(local)).top(45)
    rows = with_logit(local, units, 7, 9)
    logits = local.uncapped_logits()
    wanted = torch.cat([(logits[7] - logits[9])[None], unit_values(local, units)])
    finest = None
    for by_position in (True, False):
        for way in ("down", "up"):
            edges, columns = direct_edges(local, rows, units, direction=way, by_position=by_position, budget=40)  # type: ignore[arg-type]
            scale = float(edges.abs().sum(1).max())
            torch.testing.assert_close(edges.sum(1), wanted, rtol=0, atol=1e-12 * scale)
            if by_position:
                finest = edges if finest is None else finest
                torch.testing.assert_close(edges, finest, rtol=0, atol=1e-12 * scale)
            else:
                assert finest is not None
                summed = finest[:, 45 : 45 + 24].unflatten(1, (2, -1)).sum(-1)
                torch.testing.assert_close(edges[:, columns.rest], summed, rtol=0, atol=1e-12 * scale)


def test_the_first_position_is_not_left_out() -> None:
    local = with_dictionary(freeze(instrument_of("llama"), IDS), made())
    units = every_unit(local, direction_of(local))
    edges, _ = direct_edges(local, with_logit(local, units, 7, 9), units)
    first = ((units.position == 0) & (units.layer == 0)).nonzero()[:, 0]  # the last layer's reach no other position
    assert len(first) > 10 and float(edges[0, first].abs().min()) > 0


def model_reads(instrument: Instrument, dictionary: Transcoders) -> tuple[dict[int, torch.Tensor], dict[int, torch.Tensor]]:
    """What each layer's features read and must predict, from the model's own forward and the formulas of its norms."""
    parts = instrument.parts
    outs: dict[int, torch.Tensor] = {}
    hooks = []
    for i in dictionary.layers:
        module = parts.layers[i].mlp
        assert module is not None
        hooks.append(module.register_forward_hook(lambda _m, _a, out, i=i: outs.__setitem__(i, out[0].detach())))
    kinds = ["mlp_in", "resid_pre" if parts.layers[0].parallel else "resid_mid", "mlp_out"]
    everywhere = AttentionRead(stats=(), rows=tuple(range(-len(IDS), 0)), weights=True)
    trace = instrument.run(IDS[None], reads=[f"{kind}.{i}" for kind in kinds for i in dictionary.layers], attention=everywhere)
    for hook in hooks:
        hook.remove()
    reads, wanted = {}, {}
    for i, one in dictionary.layers.items():
        stream = trace[f"{kinds[1]}.{i}"][0]
        norm = parts.layers[i].pre_mlp_norm
        if one.reads == "mlp_in":
            reads[i] = trace[f"mlp_in.{i}"][0]
        elif one.reads == "normalized" and norm is not None:
            x = stream - stream.mean(-1, keepdim=True) if norm.kind == "layer" else stream
            reads[i] = x / (x.square().mean(-1, keepdim=True) + norm.eps).sqrt()
        else:
            reads[i] = stream
        wanted[i] = outs[i] if one.predicts == "mlp" else trace[f"mlp_out.{i}"][0] / parts.layers[i].mlp_scale
    return reads, wanted


@pytest.mark.parametrize("how", CASES[:6], ids=lambda how: " ".join(map(str, how.values())))
@pytest.mark.parametrize("name", ["gemma2", "gpt2", "granite"])
def test_features_and_errors_are_those_of_the_models_own_reads(name: str, how: dict[str, Any]) -> None:
    instrument = instrument_of(name)
    dictionary = made(**how)
    local = with_dictionary(freeze(instrument, IDS), dictionary)
    reads, wanted = model_reads(instrument, dictionary)
    predicted = dictionary.predict(reads)
    units = every_unit(local, direction_of(local))
    sources = layer_sources(local, units)
    for i, one in dictionary.layers.items():
        dense = torch.zeros(len(IDS), 40, dtype=torch.float64)
        position, feature = local.units[i].cells()  # type: ignore[misc]
        dense[position, feature] = local.units[i].values()
        torch.testing.assert_close(dense, one.encode(reads[i]), rtol=0, atol=1e-10)
        error = wanted[i] - predicted[i]
        if one.predicts == "mlp":  # through the norm after the MLP, whose scale is that of the MLP's own output
            error = local.layers[i].mlp_out.linear(error)
        error = error * instrument.parts.layers[i].mlp_scale
        assert float(error.abs().max()) > 0.1
        torch.testing.assert_close(sources[i].rest, error, rtol=0, atol=1e-9)
        torch.testing.assert_close(local.layers[i].unexplained, error, rtol=0, atol=1e-9)


@pytest.mark.parametrize("how", [CASES[0], CASES[3], CASES[5], {"kind": "relu", "reads": "mlp_in", "clt": True}, CASES[6]], ids=str)
@pytest.mark.parametrize("name", ["llama", "gpt2", "gpt_neox", "gemma2"])
def test_an_edge_is_what_the_frozen_model_does_when_the_write_is_taken_away(name: str, how: dict[str, Any]) -> None:
    """The model with patterns, norms and MLP outputs held; a skip connection answers to what the MLP reads, layer by layer, by its formula."""
    instrument = instrument_of(name)
    dictionary = made(**how)
    local = with_dictionary(freeze(instrument, IDS), dictionary)
    parts = instrument.parts
    units = relevance(local, direction_of(local)).top(30)
    rows = with_logit(local, units, 7, 9)
    edges, columns = direct_edges(local, rows, units)
    held = frozen_edits(instrument)
    stream = "resid_pre" if parts.layers[0].parallel else "resid_mid"
    reads = [f"{kind}.{i}" for i in range(2) for kind in ("mlp_in", stream)]
    plain = instrument.run(IDS[None], reads=reads, edits=held)

    def place(i: int) -> str:
        return f"{stream if dictionary.layers[i].reads == 'resid_mid' else 'mlp_in'}.{i}"

    def change(writes: dict[str, torch.Tensor], position: int) -> torch.Tensor:
        """What every row loses when writes at a position are taken away."""
        edits = [Add(point=point, value=-write, rows=(position - len(IDS),)) for point, write in writes.items()]
        trace = instrument.run(IDS[None], reads=reads, edits=[*held, *edits])
        for i in range(2):  # each layer's skip answers before the next one is looked at
            if i in dictionary.layers and dictionary.layers[i].skip is not None:
                moved = (trace[place(i)] - plain[place(i)])[0]
                edits.append(Add(point=f"mlp_out.{i}", value=moved @ dictionary.layers[i].skip))
                trace = instrument.run(IDS[None], reads=reads, edits=[*held, *edits])
        cap = local.parts.logit_softcap
        before, after = (t.logits[0, -1] if cap is None else cap * torch.atanh(t.logits[0, -1] / cap) for t in (plain, trace))
        lost = [(before - after)[7] - (before - after)[9]]
        for i, t, n in zip(units.layer.tolist(), units.position.tolist(), units.neuron.tolist(), strict=True):
            if i in dictionary.layers:
                lost.append((plain[place(i)] - trace[place(i)])[0, t] @ dictionary.layers[i].encoder[n])
                continue
            block, moved = local.layers[i], (plain[f"mlp_in.{i}"] - trace[f"mlp_in.{i}"])[0, t]
            c_g, c_u = block.mlp.coefficients(*block.pre_activations_of(n, t), "half")
            value = c_g * (moved @ block.mlp.gate[:, n]) if c_g is not None else torch.zeros(())
            lost.append(value + (c_u * (moved @ block.mlp.up[:, n]) if c_u is not None else 0))
        return torch.stack(lost)

    for u in range(0, 30, 5):
        i, t, n = int(units.layer[u]), int(units.position[u]), int(units.neuron[u])
        value = unit_values(local, units)[u]
        if i in dictionary.layers:
            one = dictionary.layers[i]
            writes = {f"mlp_out.{j}": value * decoder[n] * parts.layers[j].mlp_scale for j, decoder in one.decoders.items()}
        else:
            writes = {f"mlp_out.{i}": local.layers[i].written(torch.tensor([n]), torch.tensor([t]), value[None])[0]}
        torch.testing.assert_close(edges[:, u], change(writes, t), rtol=0, atol=1e-9)
    for t in (0, 6, 11):
        lost = change({"resid_pre.0": local.embedded[t]}, t)
        torch.testing.assert_close(edges[:, columns.embeddings.start + t], lost, rtol=0, atol=1e-9)


@pytest.mark.parametrize(
    "how",
    [
        {"kind": "relu", "clt": True, "skip": True, "n_layers": 3},
        {"kind": "topk", "skip": True},
        {"kind": "jumprelu", "only": (1,)},
    ],
    ids=["clt", "transcoders", "mixed"],
)
@pytest.mark.parametrize("name", ["llama", "gpt_neox"])
def test_relevance_is_the_solved_graph(name: str, how: dict[str, Any]) -> None:
    """With every unit a node: direct effects are the row of edges, total effects the sum over all paths, (I − A)⁻¹."""
    n_layers = how.get("n_layers", 2)
    local = with_dictionary(freeze(instrument_of(name, num_hidden_layers=n_layers), IDS[:3]), made(**how))
    direction = direction_of(local)
    total = relevance(local, direction)
    units = total.top(10**7)
    values = unit_values(local, units)
    edges, columns = direct_edges(local, with_logit(local, units, 7, 9), units)
    direct = relevance(local, direction, total=False)
    torch.testing.assert_close(direct.at(units), edges[0, : len(units)], rtol=0, atol=1e-11)
    torch.testing.assert_close(direct.embeddings, edges[0, columns.embeddings], rtol=0, atol=1e-11)
    share = edges[1:, : len(units)] / values
    share[:, values == 0] = 0  # a neuron may be silent
    slope = torch.where(values == 0, 0.0, edges[0, : len(units)] / values)
    paths = torch.linalg.solve(torch.eye(len(units), dtype=local.dtype) - share.T, slope)
    torch.testing.assert_close(total.at(units), paths * values, rtol=0, atol=1e-9 * float((paths * values).abs().max()))
    inside = relevance(local, torch.ones(64, dtype=torch.float64), layer=n_layers - 1)
    assert not inside.neurons[n_layers - 1].any() and inside.neurons[0].any()


def test_a_dictionary_that_is_the_mlp_gives_the_neurons_graph_and_a_random_one_does_not() -> None:
    instrument = instrument_of("opt", activation_function="relu")
    prompt = build_prompt(instrument.loaded.tokenizer, TEXT)
    neurons = attribute_prompt(instrument, prompt, targets=[(7, 9)], max_nodes=60)
    features = attribute_prompt(instrument, prompt, targets=[(7, 9)], max_nodes=60, units=perfect(instrument))
    for name in ("layer", "position", "neuron"):
        assert torch.equal(getattr(features.units, name), getattr(neurons.units, name))
    torch.testing.assert_close(features.edges, neurons.edges, rtol=0, atol=1e-10)
    torch.testing.assert_close(features.effects, neurons.effects, rtol=0, atol=1e-10)
    assert max(one["fvu"] for one in features.dictionary["layers"]) < 1e-12
    every = attribute_prompt(instrument, prompt, targets=[(7, 9)], max_nodes=10**6, units=perfect(instrument))
    assert float(every.edges[:, every.columns.rest].abs().max()) < 1e-10
    random = attribute_prompt(instrument, prompt, targets=[(7, 9)], max_nodes=10**6, units=made())
    assert random.check().worst < 1e-12 and float(random.edges[0, random.columns.rest].abs().sum()) > 0.1
    assert min(one["fvu"] for one in random.dictionary["layers"]) > 0.5


def test_what_a_graph_says_of_its_dictionary() -> None:
    instrument = instrument_of("llama")
    prompt = build_prompt(instrument.loaded.tokenizer, TEXT)
    dictionary = made(kind="topk", only=(1,), skip=True)
    graph = attribute_prompt(instrument, prompt, targets=["top:2"], max_nodes=10**6, units=dictionary)
    assert graph.dictionary["sha256"] == dictionary.sha256 and graph.feature_layers == {1}
    reads = instrument.run(torch.tensor([prompt.ids]), reads=["mlp_in.1", "mlp_out.1"])
    x, y = reads["mlp_in.1"][0], reads["mlp_out.1"][0]
    off = y - (
        dictionary.layers[1].encode(x) @ dictionary.layers[1].decoders[1]
        + dictionary.layers[1].bias
        + x @ dictionary.layers[1].skip
    )
    fvu = off[1:].square().sum() / (y[1:] - y[1:].mean(0)).square().sum()
    (about,) = graph.dictionary["layers"]
    assert about == {"layer": 1, "fvu": pytest.approx(float(fvu)), "l0": pytest.approx(4.0, abs=0.5)}
    names, nodes = graph.column_names(), graph.nodes()
    assert (
        len(names) == len(graph.columns) and any(n.startswith("L1 f") for n in names) and any(n.startswith("L0 #") for n in names)
    )
    assert not any(n.startswith("L1 #") for n in names)
    assert set(nodes.filter(nodes["layer"] == 1)["kind"]) == {"feature"} and set(nodes.filter(nodes["layer"] == 0)["kind"]) == {
        "neuron"
    }
    few = attribute_prompt(
        instrument, prompt, targets=[Feature(1, int(graph.units.position[-1]), int(graph.units.neuron[-1]))], units=dictionary
    )
    assert few.targets[0].value == pytest.approx(float(graph.activations[-1])) and few.targets[0].name.startswith("feature 1.")


def test_labels_are_what_a_features_decoders_raise() -> None:
    instrument = instrument_of("llama")
    prompt = build_prompt(instrument.loaded.tokenizer, TEXT)
    parts = instrument.parts
    dictionary = made(clt=True, kind="relu")
    token = 123
    wanted = parts.final_norm.gain() * (parts.w_u[token] - parts.w_u.mean(0))
    decoders = {j: d.clone() for j, d in dictionary.layers[0].decoders.items()}
    decoders[1][:] = 100 * wanted.detach()  # what is written to the later layer decides
    dictionary = Transcoders(dict(dictionary.layers) | {0: replace(dictionary.layers[0], decoders=decoders)})
    graph = attribute_prompt(instrument, prompt, max_nodes=30, units=dictionary)
    words = promoted_tokens(parts, instrument.loaded.tokenizer, graph.units, graph.activations, dictionary=dictionary)
    first = [words[u][0] for u in graph.units.at(0).tolist()]
    assert first and set(first) == {instrument.loaded.tokenizer.decode([token])}


@pytest.mark.parametrize(
    "how",
    [{"clt": True, "skip": True, "n_layers": 3}, {"kind": "topk", "skip": True, "n_layers": 3, "predicts": "mlp"}],
    ids=["clt", "skip"],
)
@pytest.mark.parametrize("name", ["llama", "gpt_neox"])
def test_heads_and_scores_are_split_over_features(name: str, how: dict[str, Any]) -> None:
    instrument = instrument_of(name, num_hidden_layers=3)
    prompt = build_prompt(instrument.loaded.tokenizer, TEXT)
    dictionary = made(**how)
    graph = attribute_prompt(instrument, prompt, targets=["top:2"], max_nodes=40, units=dictionary)
    edges = strongest_edges(graph, 500)
    loads = head_loadings(instrument, graph, edges, dictionary=dictionary)
    assert loads.error < 1e-12
    torch.testing.assert_close(loads.loadings.sum((1, 2)) + loads.bypass, graph.edges[edges[:, 0], edges[:, 1]], rtol=0, atol=1e-9)
    found = qk_attribution(instrument, graph, 2, 1, len(prompt.ids) - 1, 3, dictionary=dictionary)
    assert found.error < 1e-12 and float(found.pairs()[:, : len(graph)].abs().max()) > 0
    other = made(**how, seed=5)
    for call in (
        lambda **more: head_loadings(instrument, graph, edges, **more),
        lambda **more: qk_attribution(instrument, graph, 2, 1, 5, 3, **more),
    ):
        with pytest.raises(ConfigError, match="not given"):
            call()
        with pytest.raises(ConfigError, match="not the graph's"):
            call(dictionary=other)
        with pytest.raises(ConfigError, match="other units"):
            call(local=freeze(instrument, torch.tensor(prompt.ids)))
    plain = attribute_prompt(instrument, prompt, max_nodes=5)
    with pytest.raises(ConfigError, match="without a dictionary"):
        head_loadings(instrument, plain, dictionary=dictionary)


def test_any_position_is_that_of_the_shorter_prompt() -> None:
    instrument = instrument_of("qwen3")
    prompt = build_prompt(instrument.loaded.tokenizer, TEXT)
    dictionary = made(clt=True, skip=True)
    cut = replace(prompt, ids=prompt.ids[:6], tokens=prompt.tokens[:6])
    inside = attribute_prompt(instrument, prompt, targets=[7], position=5, max_nodes=30, units=dictionary)
    alone = attribute_prompt(instrument, cut, targets=[7], max_nodes=30, units=dictionary)
    assert inside.units.position.max() <= 5
    torch.testing.assert_close(inside.edges[:, :30], alone.edges[:, :30], rtol=0, atol=1e-11)


@settings(max_examples=15, deadline=None)
@given(st.data())
def test_any_choice_of_features_keeps_the_sums(data: st.DataObject) -> None:
    name = data.draw(st.sampled_from(["llama", "gpt2", "gemma3"]))
    how = {
        "kind": data.draw(st.sampled_from(["relu", "topk", "signed", "jumprelu"])),
        "reads": data.draw(st.sampled_from(["resid_mid", "mlp_in", "normalized"])),
        "predicts": data.draw(st.sampled_from(["mlp", "mlp_out"])),
        "clt": data.draw(st.booleans()),
        "skip": data.draw(st.booleans()),
        "seed": data.draw(st.integers(0, 5)),
    }
    local = with_dictionary(freeze(instrument_of(name), IDS[: data.draw(st.integers(1, 12))]), made(**how))
    every = every_unit(local, direction_of(local))
    chosen = data.draw(st.lists(st.integers(0, len(every) - 1), max_size=12, unique=True))
    units = Units.of(torch.stack([every.layer, every.position, every.neuron], 1)[chosen])
    way = data.draw(st.sampled_from(["up", "down"]))
    edges, _ = direct_edges(local, with_logit(local, units, 3, 4), units, direction=way, budget=data.draw(st.integers(1, 50)))
    logits = local.uncapped_logits()
    wanted = torch.cat([(logits[3] - logits[4])[None], unit_values(local, units)])
    torch.testing.assert_close(edges.sum(1), wanted, rtol=0, atol=1e-12 * max(float(edges.abs().sum(1).max()), 1e-9))


def test_a_graph_of_features_comes_back_from_disk(tmp_path: Path) -> None:
    instrument = instrument_of("gemma2")
    prompt = build_prompt(instrument.loaded.tokenizer, TEXT)
    graph = attribute_prompt(instrument, prompt, max_nodes=30, units=made(clt=True))
    back = load_graph(save_graph(graph, tmp_path / "g"))
    assert (
        back.dictionary == graph.dictionary and back.nodes().equals(graph.nodes()) and back.column_names() == graph.column_names()
    )


def test_dictionaries_that_do_not_fit_are_refused() -> None:
    instrument = instrument_of("llama")
    prompt = build_prompt(instrument.loaded.tokenizer, TEXT)
    local = freeze(instrument, torch.tensor(prompt.ids))
    with pytest.raises(DictionaryError, match="layer 0 of width 32; the model has layers 0 to 1 of width 64"):
        attribute_prompt(instrument, prompt, units=random_dictionary(2, d_model=32))
    with pytest.raises(DictionaryError, match="layer 2"):
        with_dictionary(local, made(only=(2,)))
    silent = made(kind="jumprelu")
    layers = {
        i: replace(one, activation=Activation("jumprelu", threshold=torch.full((40,), 1e6))) for i, one in silent.layers.items()
    }
    with pytest.raises(DictionaryError, match="No feature of the dictionary is active"):
        with_dictionary(local, Transcoders(layers))
    one_silent = with_dictionary(local, Transcoders({0: layers[0], 1: silent.layers[1]}))
    assert len(one_silent.units[0].values()) == 0 and every_unit(one_silent, direction_of(one_silent)).layer.min() == 1
    with pytest.raises(ConfigError, match="units='transcoders'"):
        attribute_prompt(instrument, prompt, units="transcoders")  # type: ignore[arg-type]
    replaced = with_dictionary(local, silent)
    position, feature = replaced.units[0].cells()  # type: ignore[misc]
    off = next(f for f in range(40) if not ((position == 0) & (feature == f)).any())
    for number in (off, 40, -1):
        with pytest.raises(ConfigError, match="not active at position 0"):
            unit_rows(replaced, Units.of(torch.tensor([[0, 0, number]])), "half")
        with pytest.raises(ConfigError, match="not active at position 0"):
            unit_values(replaced, Units.of(torch.tensor([[0, 0, number]])))
    for asked in (Feature(5, 0, 0), Feature(0, 99, 0)):
        with pytest.raises(ConfigError, match="no Feature"):
            attribute_prompt(instrument, prompt, targets=[asked], units=silent)
    with pytest.raises(ConfigError, match="no Feature"):
        attribute_prompt(instrument, prompt, targets=[Feature(0, 0, 0)])


def test_a_dictionary_works_in_float32_and_on_one_token() -> None:
    from tiny_models import build, tiny_tokenizer

    from symbolic_residue.graph import attribute

    model, tokenizer = build("gemma2"), tiny_tokenizer()
    dictionary = random_dictionary(2, d_model=64, features=40, clt=True, skip=True, dtype=torch.bfloat16)
    graphs = [attribute(model, tokenizer, TEXT, max_nodes=40, units=dictionary) for _ in range(2)]
    assert graphs[0].check().worst < 1e-5 and torch.equal(graphs[0].edges, graphs[1].edges)
    instrument = instrument_of("llama")
    prompt = build_prompt(instrument.loaded.tokenizer, TEXT)
    one = attribute_prompt(instrument, replace(prompt, ids=prompt.ids[:1], tokens=prompt.tokens[:1]), units=made())
    assert one.check().passed and one.dictionary["layers"][0] == {"layer": 0, "fvu": None, "l0": None}
