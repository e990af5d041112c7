"""Labels of supernodes: a neuron that fires on a token gets that token's context, and neurons drawn at random say how much a label says."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from dictionary_files import random_dictionary
from graph_helpers import instrument_of

from symbolic_residue.cli._graph_texts import read_texts
from symbolic_residue.errors import ConfigError, DamagedFileError, PromptFileError, WriteError
from symbolic_residue.graph import (
    activating_contexts,
    attribute_prompt,
    freeze,
    Graph,
    label_supernodes,
    load_graph,
    load_supernodes,
    read_neuronpedia,
    save_supernodes,
    Supernodes,
    validate_neuronpedia,
    with_dictionary,
    write_neuronpedia,
)
from symbolic_residue.instrument import Instrument
from symbolic_residue.prompts import build_prompt

TEXT = "Please write the answer in one word. The answer is"
TEXTS = [
    "the answer was in the book",
    "one word is not the answer",
    "please write one word in the book",
    "it is one of the books",
]


def ids_of(instrument: Instrument, text: str) -> list[int]:
    return instrument.loaded.tokenizer(text)["input_ids"]


def graph_of(instrument: Instrument, nodes: int = 60) -> Graph:
    return attribute_prompt(instrument, build_prompt(instrument.loaded.tokenizer, TEXT), targets=["top:2"], max_nodes=nodes)


def planted(word: str, neurons: tuple[int, ...]) -> tuple[Instrument, int]:
    """Llama whose neurons of layer 0 act where a token is, and hardly elsewhere: its gate and up weights are the token's embedding, as the norm gives it."""
    instrument = instrument_of("llama")
    token = ids_of(instrument, word)[-1]
    model = instrument.model.model
    with torch.no_grad():
        table = model.embed_tokens.weight
        table[token] = torch.randn(table.shape[1], generator=torch.Generator().manual_seed(1), dtype=table.dtype) * 50 * table.std()
        model.layers[0].self_attn.o_proj.weight.zero_()  # so that layer 0's MLP reads the token and nothing else
        direction = table[token] / table[token].norm()
        for n in neurons:
            model.layers[0].mlp.gate_proj.weight[n] = direction
            model.layers[0].mlp.up_proj.weight[n] = direction
    return instrument, token


def test_a_neuron_that_fires_on_a_token_gets_its_contexts_and_another_does_not() -> None:
    instrument, token = planted(" answer", (3,))
    keys = torch.tensor([[0, 3, 1], [0, 4, 1], [1, 2, -1]])
    found = activating_contexts(instrument, keys, TEXTS, k=2, before=3, after=1)
    with_it = [i for i, text in enumerate(TEXTS) if token in ids_of(instrument, text)[1:]]
    assert len(with_it) >= 2 and found.n_texts == 4
    assert found.tokens()[0].tolist() == [token] * 2 and set(found.texts[0].tolist()) <= set(with_it)
    assert found.tokens()[1].tolist() != [token] * 2
    assert found.n_tokens == sum(len(ids_of(instrument, text)) - 1 for text in TEXTS)
    assert found.windows.shape == (3, 2, 5)


@pytest.mark.parametrize("name", ["llama", "gpt2", "qwen3_moe"])
def test_places_and_values_are_those_of_the_replacement_model(name: str) -> None:
    """Oracle: every text frozen by itself; the largest in the sign's direction past position 0, one a text, ranked over texts."""
    instrument = instrument_of(name)
    frozen = [freeze(instrument, torch.tensor(ids_of(instrument, text))) for text in TEXTS]
    width = frozen[0].layers[0].activations.shape[1]
    keys = torch.tensor([[i, n, s] for i in range(2) for n in (0, 5, width - 1) for s in (1, -1)])
    found = activating_contexts(instrument, keys, iter(TEXTS), k=3, before=2, after=2)
    for row, (layer, neuron, sign) in enumerate(keys.tolist()):
        best = []
        for number, local in enumerate(frozen):
            acts = local.layers[layer].activations[1:, neuron] * sign
            if float(acts.max()) > 0:
                best.append((float(acts.max()), number, int(acts.argmax()) + 1))
        best.sort(reverse=True)
        assert found.texts[row].tolist() == [number for _, number, _ in best[:3]] + [-1] * (3 - len(best[:3]))
        for j, (value, number, position) in enumerate(best[:3]):
            assert float(found.values[row, j]) == pytest.approx(sign * value, rel=1e-4) and int(found.positions[row, j]) == position
            ids = [-1, -1, *ids_of(instrument, TEXTS[number]), -1, -1]
            assert found.windows[row, j].tolist() == ids[position : position + 5]
        assert found.values[row, len(best) :].isnan().all()


@pytest.mark.parametrize("clt", [False, True])
def test_places_of_features_are_those_of_the_dictionary(clt: bool) -> None:
    """Oracle: every text frozen by itself with the dictionary; layer 0 has neurons where the dictionary lacks it."""
    instrument = instrument_of("llama")
    dictionary = random_dictionary(2, clt=clt, skip=False, only=None if clt else (1,), d_model=64, features=40)
    keys = torch.tensor([[i, n, 1] for i in range(2) for n in (0, 7, 21, 39)])
    found = activating_contexts(instrument, keys, TEXTS, k=2, dictionary=dictionary)
    plain = activating_contexts(instrument, keys, TEXTS, k=2)
    for row, (layer, number, _) in enumerate(keys.tolist()):
        if layer not in dictionary.layers:
            assert found.values[row].tolist() == plain.values[row].tolist()
            continue
        best = []
        for text in TEXTS:
            units = with_dictionary(freeze(instrument, torch.tensor(ids_of(instrument, text))), dictionary).units[layer]
            position, feature = units.cells()  # type: ignore[misc]
            here = (feature == number) & (position > 0)
            best += [float(units.values()[here].max())] if bool(here.any()) else []
        best = sorted(best, reverse=True)[:2]
        assert (
            found.values[row, : len(best)].tolist() == pytest.approx(best, rel=1e-5)
            and found.values[row, len(best) :].isnan().all()
        )
    with pytest.raises(ConfigError, match="features 0 to 39"):
        activating_contexts(instrument, torch.tensor([[1, 40, 1]]), TEXTS, dictionary=dictionary)


def test_groups_of_features_are_labelled_too() -> None:
    instrument = instrument_of("llama")
    dictionary = random_dictionary(2, clt=True, skip=True, only=None, d_model=64, features=40)
    prompt = build_prompt(instrument.loaded.tokenizer, TEXT)
    graph = attribute_prompt(instrument, prompt, units=dictionary, targets=["top:2"], max_nodes=30)
    members = [u for u in range(len(graph)) if int(graph.units.position[u]) > 0][:6]
    found = label_supernodes(instrument, graph, groups(graph, [members[:3], members[3:]]), texts=TEXTS, dictionary=dictionary)
    assert all(one.fires is not None and 0 < one.fires.value <= 1 and one.writes.value > 0 for one in found.about)
    assert label_supernodes(instrument, graph, groups(graph, [members]), dictionary=dictionary).about[0].fires is None
    for options in ({"texts": TEXTS}, {}):
        with pytest.raises(ConfigError, match="dictionary"):
            label_supernodes(instrument, graph, groups(graph, [members]), **options)


def test_texts_are_read_once_and_memory_does_not_grow_with_them() -> None:
    instrument = instrument_of("llama")
    read = 0

    def stream() -> Iterator[str]:
        nonlocal read
        for i in range(12):
            read += 1
            yield TEXTS[i % 4]

    found = activating_contexts(instrument, torch.tensor([[0, 1, 1]]), stream(), k=2)
    assert read == found.n_texts == 12 and found.values.shape == (1, 2)
    assert found.texts[0, 0] < found.texts[0, 1] < 8  # equal: the earlier texts stay
    short = activating_contexts(instrument, torch.tensor([[0, 1, 1]]), ["a b c d e f", TEXTS[0]], max_tokens=3)
    assert short.n_tokens == 4


def test_what_cannot_be_read_is_refused() -> None:
    instrument = instrument_of("llama")
    one = torch.tensor([[0, 1, 1]])
    for texts in ([], ["a"]):
        with pytest.raises(ConfigError, match="two tokens"):
            activating_contexts(instrument, one, texts)
    for keys in ([[9, 1, 1]], [[0, 10**6, 1]], [[0, -1, 1]]):
        with pytest.raises(ConfigError):
            activating_contexts(instrument, torch.tensor(keys), TEXTS)
    with pytest.raises(ConfigError):
        activating_contexts(instrument, one, TEXTS, k=0)
    graph = graph_of(instrument, 20)
    with pytest.raises(ConfigError, match="without the model"):
        graph.supernodes(texts=TEXTS)
    with pytest.raises(ConfigError, match="no control"):
        label_supernodes(instrument, graph, groups(graph, [[0, 1]]), draws=0)


def groups(graph: Graph, members: list[list[int]]) -> Supernodes:
    return Supernodes(tuple("?" for _ in members), tuple(map(tuple, members)), 1.0, 0.0)


def with_nodes(instrument: Instrument, triples: list[tuple[int, int, int]]) -> Graph:
    from symbolic_residue.graph import Units

    prompt = build_prompt(instrument.loaded.tokenizer, TEXT)
    return attribute_prompt(instrument, prompt, targets=["top:2"], nodes=Units.of(torch.tensor(triples)))


def test_a_group_that_fires_on_a_token_is_labelled_so_and_random_neurons_are_not() -> None:
    neurons = (3, 8, 21)
    instrument, token = planted(" answer", neurons)
    ids = ids_of(instrument, TEXT)
    at = [t for t, one in enumerate(ids) if one == token]
    assert at and at[0] > 0
    triples = (
        [(0, at[0], n) for n in neurons] + [(0, t, n) for t, n in ((1, 40), (2, 41), (3, 42), (4, 43))] + [(0, 0, 50), (0, 0, 51)]
    )
    graph = with_nodes(instrument, triples)
    order = list(zip(graph.units.position.tolist(), graph.units.neuron.tolist(), strict=True))
    number = {place: u for u, place in enumerate(order)}
    members = [[number[at[0], n] for n in neurons], [number[1, 40], number[2, 41]], [number[0, 50], number[0, 51]]]
    found = label_supernodes(instrument, graph, groups(graph, members), texts=TEXTS, k=2, seed=1)
    fires, plain, first = found.about
    word = instrument.loaded.tokenizer.decode([token])
    assert (
        fires.fires is not None
        and fires.fires.tokens[0] == word
        and fires.fires.value == 1
        and fires.fires.tells
        and fires.fires.n == 6
    )
    assert fires.fires.control[0] < 0.9 and fires.acts.tokens == (graph.tokens[at[0]],) and fires.acts.value == 1
    assert f"fires on {word!r}" in found.labels[0] and found.labels[0].startswith("L0 ×3: ")
    assert {e.token for e in fires.examples} == {word} and all(e.value > 0 for e in fires.examples) and len(fires.examples) == 3
    assert plain.fires is not None and plain.fires.value < 1 and (plain.first, first.first) == (0, 2)
    assert found.labels[2].startswith("L0 ×2: first position") and first.acts.n == 0 and first.acts.value != first.acts.value
    again = label_supernodes(instrument, graph, groups(graph, members), texts=TEXTS, k=2, seed=1)
    assert again.labels == found.labels and str(again.about) == str(found.about)


def test_what_is_written_is_the_summed_writes_through_the_final_norm() -> None:
    """Oracle: the members' rows of the output weights, summed as the model's final norm and unembedding take them, each at its position."""
    instrument = instrument_of("llama")
    graph = graph_of(instrument)
    local = freeze(instrument, torch.tensor(graph.ids))
    members = [u for u in range(len(graph)) if int(graph.units.position[u]) > 0][:3]
    found = label_supernodes(instrument, graph, groups(graph, [members])).about[0]
    summed = torch.zeros(local.vocab_size, dtype=torch.float64)
    parts = instrument.parts
    for u in members:
        layer, position, neuron = (int(x[u]) for x in (graph.units.layer, graph.units.position, graph.units.neuron))
        row = instrument.model.model.layers[layer].mlp.down_proj.weight[:, neuron] * float(graph.activations[u])
        stream = local.final[position]
        scale = torch.rsqrt(stream.square().mean() + parts.final_norm.eps)
        summed += (instrument.model.lm_head.weight @ (row * scale * instrument.model.model.norm.weight)).detach()
    decode = instrument.loaded.tokenizer.decode
    assert found.writes.tokens == tuple(decode([t]) for t in summed.topk(3).indices.tolist())
    assert found.writes.value == pytest.approx(float((summed.max() - summed.mean()) / summed.std()), rel=1e-9)


def test_random_groups_pass_for_labels_about_as_often_as_they_should() -> None:
    """Of groups that are drawn like their control, about 1 in 20 is above all 19 draws."""
    instrument = instrument_of("gpt2")
    generator = torch.Generator().manual_seed(2)
    width = freeze(instrument, torch.arange(5, 12)).layers[0].activations.shape[1]
    n = len(ids_of(instrument, TEXT))
    picks = torch.stack([torch.randint(2, (240,), generator=generator), torch.randint(1, n, (240,), generator=generator)], 1)
    triples = {(int(i), int(t), int(torch.randint(width, (), generator=generator))) for i, t in picks}
    graph = with_nodes(instrument, sorted(triples))
    order = torch.randperm(len(graph), generator=generator).tolist()
    members = [sorted(order[i : i + 3]) for i in range(0, len(order) - 3, 3)]
    found = label_supernodes(instrument, graph, groups(graph, members))
    told = sum(one.writes.tells for one in found.about)
    assert len(members) > 70 and told / len(members) < 0.15
    for one, label in zip(found.about, found.labels, strict=True):
        assert ("(chance): writes" in label) is not one.tells and (": writes" in label or one.acts.tells)


def test_labels_come_back_from_a_folder_and_stand_in_the_exchanged_file(tmp_path: Path) -> None:
    instrument = instrument_of("llama")
    graph = graph_of(instrument)
    kept = graph.prune().columns[: len(graph)].nonzero()[:, 0].tolist()
    found = label_supernodes(instrument, graph, groups(graph, [kept[:3], kept[3:5]]), texts=TEXTS)
    with pytest.raises(WriteError):
        save_supernodes(found, tmp_path)
    graph.save(tmp_path)
    assert load_supernodes(graph, tmp_path) is None
    save_supernodes(found, tmp_path)
    back = load_supernodes(load_graph(tmp_path), tmp_path)
    assert back is not None and str(back) == str(found)  # nan is not equal to itself, but is written alike
    data = read_neuronpedia(write_neuronpedia(graph.to_neuronpedia(supernodes=back), tmp_path / "g.json")).plain()
    assert data["qParams"]["supernodes"] == found.rows(graph)
    kept_about = data["metadata"]["residue"]["supernodes"]
    assert [one["label"] for one in kept_about] == list(found.labels)
    for one, about, row in zip(kept_about, found.about, found.rows(graph), strict=True):
        assert one["members"] == row[1:] and one["writes"]["tokens"] == list(about.writes.tokens)
        for name in row[1:]:
            (node,) = (node for node in data["nodes"] if node["node_id"] == name)
            assert node["clerp"].endswith(f"group: {about.text}")
    example = found.about[0].examples[0]
    node = next(node for node in data["nodes"] if node["node_id"] == kept_about[0]["examples"][0]["node_id"])
    assert f"most on {example.token!r}" in node["clerp"]
    assert validate_neuronpedia(graph.to_neuronpedia(supernodes=replace(found, about=()))).view.supernodes == found.rows(graph)
    text = (tmp_path / "supernodes.json").read_text()
    record = json.loads(text)
    for change, said in (
        ({"format": 2}, "format 2"),
        ({"graph_sha256": "0"}, "not of the graph"),
        ({"groups": record["groups"] | {"members": [[10**6]]}}, "do not fit"),
        ({"groups": {}}, "not readable"),
    ):
        (tmp_path / "supernodes.json").write_text(json.dumps(record | change))
        with pytest.raises(DamagedFileError, match=said):
            load_supernodes(graph, tmp_path)


def test_texts_are_read_by_line_or_field_and_empty_files_are_refused(tmp_path: Path) -> None:
    plain, lines = tmp_path / "a.txt", tmp_path / "a.jsonl"
    plain.write_text("one two\n\nthree four\n", "utf-8")
    lines.write_text('{"text": "one"}\n{"prompt": "two"}\n', "utf-8")
    assert read_texts(str(plain)) == ["one two", "three four"] and read_texts(str(lines)) == ["one", "two"]
    assert len(read_texts("packaged")) == 312
    for name, content, said in (
        ("b.txt", b" \n\n", "is empty"),
        ("b.jsonl", b'{"text": 3}\n', "Line 1"),
        ("c.jsonl", b"[1]\n", "Line 1"),
        ("d.txt", b"\xff\xfe\xff", "cannot be read"),
    ):
        (tmp_path / name).write_bytes(content)
        with pytest.raises(PromptFileError, match=said):
            read_texts(str(tmp_path / name))
    with pytest.raises(PromptFileError, match="cannot be read"):
        read_texts(str(tmp_path / "nowhere"))
