"""Kept runs, scores and curves of features: against the transformers model with the dictionary in it, and a planted circuit of two features."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import polars as pl
import pytest
import torch
from dictionary_files import perfect, random_dictionary
from graph_helpers import instrument_of, with_logit
from planted_features import plant
from swapped import Swapped

from symbolic_residue.dictionaries import Transcoders
from symbolic_residue.errors import ConfigError, DictionaryError, UnsupportedModelError
from symbolic_residue.graph import (
    attribute_circuit,
    attribute_prompt,
    direct_edges,
    faithfulness,
    FeaturePairRun,
    FeatureScores,
    freeze,
    graph_faithfulness,
    load_circuit,
    PairScores,
    ranks,
    run_feature_pair,
    run_pair,
    save_circuit,
    SCORES,
    TokenPair,
    unit_values,
    Units,
    with_dictionary,
)
from symbolic_residue.instrument import Instrument
from symbolic_residue.prompts import build_prompt, CounterfactualPair

ANSWER, WRONG = 301, 310
KINDS: dict[str, dict[str, Any]] = {
    "transcoders": {"kind": "jumprelu", "reads": "mlp_in"},
    "skip": {"kind": "topk", "reads": "mlp_in", "predicts": "mlp", "skip": True},
    "clt": {"kind": "relu", "reads": "resid_mid", "clt": True},
    "clt skip": {"kind": "signed", "reads": "normalized", "clt": True, "skip": True},
    "mixed": {"kind": "relu", "reads": "mlp_in", "only": (1,), "skip": True},
}
each_kind = pytest.mark.parametrize("kind", KINDS)


def made(kind: str, **how: Any) -> Transcoders:
    return random_dictionary(2, d_model=64, features=40, dtype=torch.float64, **(KINDS[kind] | how))


def a_pair(instrument: Instrument, back: int = 4) -> TokenPair:
    """A text, and the same with another token so many from the end."""
    text = "Anna put the red book on the table"
    about = CounterfactualPair(id="p", category="facts", frame="f", clean=text, corrupted=f"{text}!", answer=" a", wrong=" b")
    clean = build_prompt(instrument.loaded.tokenizer, text)
    ids = list(clean.ids)
    ids[-back] = 294
    return TokenPair(about, clean, replace(clean, ids=ids), ANSWER, WRONG)


class Oracle:
    """The pair by plain hooks: features, errors and neurons of both prompts, and the metric of any run."""

    def __init__(self, run: FeaturePairRun) -> None:
        self.run = run
        self.plain = Swapped(run.instrument, run.dictionary, run.pair.first)
        self.errors = self.plain.errors(run.pair.ids)
        self.features = {i: x.clone() for i, x in self.plain.live.items()}
        self.neurons: dict[int, torch.Tensor] = {}

        def look(i: int, a: torch.Tensor) -> torch.Tensor:
            self.neurons[i] = a.detach()
            return a

        with torch.no_grad():
            logits = self.plain.run(neurons=look, input_ids=run.pair.ids)
        self.clean, self.corrupted = (logits[:, ANSWER] - logits[:, WRONG]).tolist()

    def metric(self, act: Any, errors: dict[int, torch.Tensor], **inputs: Any) -> torch.Tensor:
        logits = self.plain.run(act, errors, act, **inputs)
        return logits[0, ANSWER] - logits[0, WRONG]

    def side(self, which: int) -> dict[int, torch.Tensor]:
        return {i: x[which : which + 1] for i, x in self.errors.items()}

    def spread(self, layer: int, values: torch.Tensor) -> torch.Tensor:
        """Values in play as ``[1, position, number]``, 0 elsewhere."""
        first, cells = self.run.pair.first, self.run.cells[layer]
        if cells is None:
            return torch.cat([values.new_zeros(first, values.shape[1]), values])[None]
        out = values.new_zeros(self.run.pair.ids.shape[1], 40)
        return out.index_put((cells[0] + first, cells[1]), values)[None]


@each_kind
@pytest.mark.parametrize("name", ["llama", "gpt_neox", "gemma2"])
@pytest.mark.parametrize("errors", ["corrupted", "clean"])
def test_kept_runs_are_the_model_with_those_features_live(name: str, kind: str, errors: str) -> None:
    instrument = instrument_of(name)
    run = run_feature_pair(instrument, a_pair(instrument), made(kind), errors)  # type: ignore[arg-type]
    oracle, first = Oracle(run), run.pair.first
    tight = 1e-6 if name == "gemma2" else 1e-9  # its softmax is in float32
    assert oracle.clean == pytest.approx(run.clean_difference, abs=tight) and run.whole == pytest.approx(oracle.clean, abs=tight)
    for i, cells in enumerate(run.cells):
        if cells is None:
            continue
        both = oracle.features[i][:, first:]
        assert torch.equal((both != 0).any(0).nonzero(), torch.stack(cells, 1))  # in play: active in either
        for side, values in enumerate((run.clean, run.corrupted)):
            torch.testing.assert_close(values[i], both[side][cells], rtol=0, atol=tight)
    rank = ranks(FeatureScores(run).score("random"))
    assert sorted(torch.cat([r.flatten() for r in rank]).tolist()) == list(range(run.in_play))
    counts = [0, 1, 7, run.in_play // 2, run.in_play]
    found = run.kept(rank, counts)
    side = oracle.side(0 if errors == "clean" else 1)
    for n, value in zip(counts, found.tolist(), strict=True):

        def act(i: int, a: torch.Tensor, n: int = n) -> torch.Tensor:
            keep = oracle.spread(i, (rank[i] < n).double()).bool()
            keep[:, :first] = True
            held = (oracle.neurons if run.cells[i] is None else oracle.features)[i][1:2]
            return torch.where(keep, a, held)

        with torch.no_grad():
            assert value == pytest.approx(float(oracle.metric(act, side, input_ids=run.pair.ids[:1])), abs=tight)
    if errors == "clean":
        assert float(found[-1]) == pytest.approx(run.clean_difference, abs=tight)
    else:
        assert abs(float(found[-1]) - run.clean_difference) > 1e-6  # what the errors hold
        neurons = run_pair(instrument, run.pair)
        none = float(neurons.kept(ranks(neurons.clean), [0])[0])
        if made(kind).layers[1].skip is None:
            assert float(found[0]) == pytest.approx(none, abs=tight)
        else:
            assert abs(float(found[0]) - none) > 1e-6
    torch.testing.assert_close(run.kept(rank, counts, max_tokens=1), found, rtol=0, atol=tight)


@each_kind
@pytest.mark.parametrize("errors", ["corrupted", "clean"])
def test_gradient_scores_are_plain_autograd_and_mixed_ones_add_up(kind: str, errors: str) -> None:
    instrument = instrument_of("llama")
    run = run_feature_pair(instrument, a_pair(instrument), made(kind), errors)  # type: ignore[arg-type]
    oracle, scores = Oracle(run), FeatureScores(run, steps=5)
    embed = instrument.model.get_input_embeddings()
    with torch.no_grad():
        clean, corrupted = embed(run.pair.ids)

    def gradient(z: float) -> list[torch.Tensor]:
        leaves = [torch.zeros_like(a, requires_grad=True) for a in run.clean]
        mixed = {i: z * x[0:1] + (1 - z) * x[1:2] for i, x in oracle.errors.items()}
        value = oracle.metric(
            lambda i, a: a + oracle.spread(i, leaves[i]), mixed, inputs_embeds=(z * clean + (1 - z) * corrupted)[None]
        )
        return list(torch.autograd.grad(value, leaves))

    wanted = {
        "atp": gradient(1.0),
        "eap-ig": [sum(g) / 5 for g in zip(*(gradient(z) for z in (0.1, 0.3, 0.5, 0.7, 0.9)), strict=True)],
        "ig gauss": [sum(g) / 2 for g in zip(*(gradient(0.5 + s / math.sqrt(12)) for s in (-1, 1)), strict=True)],
    }
    for score, slopes in wanted.items():
        for found, slope, a, b in zip(scores.score(score), slopes, run.clean, run.corrupted, strict=True):  # type: ignore[arg-type]
            torch.testing.assert_close(found, slope * (a - b), rtol=0, atol=1e-10)
    side = oracle.side(0 if errors == "clean" else 1)

    def mixture(z: float) -> list[torch.Tensor]:
        leaves = [torch.zeros_like(a, requires_grad=True) for a in run.clean]
        live: dict[int, torch.Tensor] = {}

        def act(i: int, a: torch.Tensor) -> torch.Tensor:
            cells, first = run.cells[i], run.pair.first
            mine = a[0, first:] if cells is None else a[0, cells[0] + first, cells[1]]
            live[i] = mine.detach()
            out = oracle.spread(i, z * mine + (1 - z) * run.corrupted[i] + leaves[i])
            return torch.cat([a[:, :first], out[:, first:]], 1)

        value = oracle.metric(act, side, input_ids=run.pair.ids[:1])
        return [g * (live[i] - run.corrupted[i]) for i, g in enumerate(torch.autograd.grad(value, leaves))]

    for found, one, two in zip(scores.score("mixed"), mixture(0.1), mixture(0.7), strict=True):
        torch.testing.assert_close(found, (one + two) / 2, rtol=0, atol=1e-10)


@each_kind
@pytest.mark.parametrize("name", ["llama", "gpt_neox"])
def test_slopes_of_the_replacement_solve_the_graphs_own_equations(name: str, kind: str) -> None:
    """Active features by all edges among all units, densely; one that is off in the clean run by what it would write there."""
    instrument = instrument_of(name)
    run = run_feature_pair(instrument, a_pair(instrument), made(kind))
    scores, first = FeatureScores(run), run.pair.first
    local = with_dictionary(freeze(instrument, run.pair.ids[0]), run.dictionary)
    every = [torch.tensor([(i, t, k) for t in range(len(local)) for k in range(96)]) if i not in local.units
             else torch.stack([torch.full_like(local.units[i].cells()[0], i), *local.units[i].cells()], 1) for i in range(2)]  # type: ignore[index, misc]  # fmt: skip
    units = Units.of(torch.cat(every))
    values = unit_values(local, units)
    edges, _ = direct_edges(local, with_logit(local, units, ANSWER, WRONG), units)
    slope = edges[:, : len(units)] / values
    total = torch.linalg.solve(torch.eye(len(units), dtype=torch.float64) - slope[1:].T, slope[0])
    number = {cell: u for u, cell in enumerate(zip(*(x.tolist() for x in vars(units).values()), strict=True))}
    checked = off = 0
    for score, wanted in (("direct", slope[0]), ("relp", total)):
        for i, found in enumerate(scores.score(score)):  # type: ignore[arg-type]
            cells = run.cells[i]
            change = run.clean[i] - run.corrupted[i]
            for at in range(0, found.numel(), 1 if cells is not None else 29):
                row, k = divmod(at, 96) if cells is None else (int(cells[0][at]), int(cells[1][at]))
                unit = number.get((i, row + first, k))
                if unit is None:
                    off += 1
                    assert float(run.clean[i][at]) == 0 and (
                        i == 0 or score == "relp" or abs(float(found[at])) > 0 or row + first < len(local) - 1
                    )
                else:
                    checked += 1
                    assert float(found.flatten()[at]) == pytest.approx(float(wanted[unit] * change.flatten()[at]), abs=1e-8)
    assert checked > 40 and off > 2
    turned = FeatureScores(
        run_feature_pair(instrument, replace(run.pair, clean=run.pair.corrupted, corrupted=run.pair.clean), run.dictionary)
    )
    for one, two, ends in zip(scores.score("relp"), turned.score("relp"), scores.score("relp ends"), strict=True):
        torch.testing.assert_close(ends, (one - two) / 2, rtol=0, atol=1e-10)


def test_magnitude_is_the_length_of_all_that_a_feature_writes() -> None:
    instrument = instrument_of("llama")
    run = run_feature_pair(instrument, a_pair(instrument), made("clt"))
    for i, found in enumerate(FeatureScores(run).score("magnitude")):
        rows = torch.cat([d[run.cells[i][1]] for d in run.dictionary.layers[i].decoders.values()], 1)  # type: ignore[index]
        torch.testing.assert_close(found, (run.clean[i] - run.corrupted[i]).abs() * rows.norm(dim=1), rtol=0, atol=1e-12)


def test_a_dictionary_that_is_the_mlp_has_the_neurons_scores_and_curves() -> None:
    instrument = instrument_of("opt", activation_function="relu")
    pair, mlp = a_pair(instrument), perfect(instrument)
    run, neurons = run_feature_pair(instrument, pair, mlp), run_pair(instrument, pair)
    assert run.in_play == sum(int(((a != 0) | (b != 0)).sum()) for a, b in zip(neurons.clean, neurons.corrupted, strict=True))
    for score in (
        "magnitude",
        "direct",
        "relp",
        "relp ends",
        "atp",
        "eap-ig",
    ):  # in mixtures a neuron may be on that is off in both runs
        for i, (one, two) in enumerate(zip(PairScores(neurons).score(score), FeatureScores(run).score(score), strict=True)):  # type: ignore[arg-type]
            torch.testing.assert_close(one[run.cells[i]], two, rtol=0, atol=1e-9)  # type: ignore[index]
    curves = [faithfulness(instrument, pair, scores=("relp",), floor=1e-9, units=units).curves for units in ("neurons", mlp)]  # type: ignore[arg-type]
    both = curves[0].join(curves[1], on=["score", "draw", "n"], suffix="_two")
    assert len(both) > 4
    few = both.filter(pl.col("n") < 30)
    assert few["recovered"].to_list() == pytest.approx(few["recovered_two"].to_list(), abs=1e-7)


@pytest.mark.parametrize("kind", ["transcoders", "skip", "clt"])
def test_two_planted_features_are_the_circuit(kind: str) -> None:
    instrument, pair, dictionary, truth = plant(kind)
    found = faithfulness(instrument, pair, units=dictionary, scores=("mixed", "relp", "random"), draws=4, seed=3)
    by = {row["score"]: row for row in found.summary().iter_rows(named=True)}
    assert found.reason is None and found.errors == "corrupted" and found.all_kept == pytest.approx(found.clean, rel=0.1)
    for score in ("mixed", "relp"):
        assert by[score]["n80"] <= 2 and by[score]["area"] > 0.8, score
    assert by["random"]["n80"] > 5 and by["random"]["area"] < 0.6  # the control
    run = run_feature_pair(instrument, pair, dictionary)
    units = FeatureScores(run).top("mixed", 2)
    assert set(zip(units.layer.tolist(), units.neuron.tolist(), strict=True)) == truth
    graph = attribute_prompt(instrument, pair.clean, targets=[(ANSWER, WRONG)], units=dictionary, max_nodes=20)
    own = graph.faithfulness(instrument, pair, dictionary=dictionary)
    last = own.curves.filter(pl.col("n") == own.curves["n"].max())
    assert last.filter(pl.col("score") == "graph")["recovered"][0] > 0.8
    assert float(last.filter(pl.col("score") == "random")["recovered"].mean()) < 0.7  # type: ignore[arg-type]
    for layer in (
        dictionary.layers.values()
    ):  # the same without the circuit in the dictionary: errors hold it, and no feature brings it back
        for rows in layer.decoders.values():
            rows[[n for _, n in truth]] = 0
    without = faithfulness(instrument, pair, units=dictionary, scores=("mixed",))
    assert without.reason is None and without.curves["recovered"].max() < 0.5 and without.all_kept < 0.5 * without.clean
    given = faithfulness(instrument, pair, units=dictionary, scores=("mixed",), errors="clean")
    assert given.none_kept > 0.5 * given.clean and given.all_kept == pytest.approx(given.clean, abs=1e-9)


def test_a_threshold_hides_a_feature_from_gradients_and_not_from_the_frozen_replacement() -> None:
    instrument, pair, dictionary, _ = plant("transcoders", threshold=0.25)
    found = faithfulness(instrument, pair, units=dictionary, scores=("relp", "mixed", "atp", "random"))
    n80 = {row["score"]: row["n80"] for row in found.summary().iter_rows(named=True)}
    assert n80["relp"] <= 2 and n80["mixed"] > 10 and n80["atp"] > 10 and n80["random"] > 10


@pytest.mark.parametrize("kind", ["transcoders", "skip", "clt"])
def test_a_planted_pair_has_its_features_as_the_nodes_of_its_graph(kind: str, tmp_path: Path) -> None:
    instrument, pair, dictionary, truth = plant(kind)
    graph, circuit = attribute_circuit(instrument, pair, units=dictionary, max_nodes=2, draws=2)
    assert set(zip(graph.units.layer.tolist(), graph.units.neuron.tolist(), strict=True)) == truth
    (own,) = circuit.recovered()
    assert graph.check().worst < 1e-12 and own > 0.8 and max(circuit.recovered("random")) < 0.5
    run = run_feature_pair(instrument, pair, dictionary)
    every = float(run.kept(ranks(run.clean), [run.in_play])[0])
    assert circuit.whole == pytest.approx((every - circuit.none_kept) / (run.whole - circuit.none_kept), abs=1e-9)
    assert f"2 of {run.in_play} features" in circuit.said()
    assert "the rest is in the errors" in circuit.said()
    save_circuit(circuit, graph.save(tmp_path / "g"))
    back = load_circuit(graph, tmp_path / "g")
    assert back is not None and back.said() == circuit.said() and back.units == "features"
    turned = replace(pair, clean=pair.corrupted, corrupted=pair.clean, answer=WRONG, wrong=ANSWER)
    there, _ = attribute_circuit(
        instrument, turned, units=dictionary, max_nodes=5, draws=1, floor=1e-9
    )  # features that are off on its clean prompt
    assert there.check().worst < 1e-12 and bool((there.activations == 0).any())


def test_what_cannot_be_is_refused() -> None:
    instrument, dictionary = instrument_of("llama"), made("clt")
    pair = a_pair(instrument)
    graph = attribute_prompt(instrument, pair.clean, targets=[(ANSWER, WRONG)], units=dictionary, max_nodes=30)
    with pytest.raises(ConfigError, match="not given"):
        graph_faithfulness(graph, instrument, pair)
    with pytest.raises(ConfigError, match="not the graph's"):
        graph_faithfulness(graph, instrument, pair, dictionary=made("mixed"))
    with pytest.raises(ConfigError, match="errors='none'"):
        graph_faithfulness(graph, instrument, pair, dictionary=dictionary, errors="none")  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match="clean prompt"):
        graph_faithfulness(graph, instrument, replace(pair, clean=pair.corrupted, corrupted=pair.clean), dictionary=dictionary)
    with pytest.raises(ConfigError, match="units="):
        faithfulness(instrument, pair, units="features")  # type: ignore[arg-type]
    with pytest.raises(DictionaryError, match="width 32"):
        faithfulness(instrument, pair, units=random_dictionary(2, d_model=32))
    silent = Transcoders({i: replace(one, encoder_bias=one.encoder_bias - 1e6) for i, one in made("clt").layers.items()})
    with pytest.raises(DictionaryError, match="active in either prompt") as error:
        faithfulness(instrument, pair, units=silent)
    assert error.value.why and error.value.todo
    experts = instrument_of("qwen3_moe")
    with pytest.raises(UnsupportedModelError):
        faithfulness(experts, a_pair(experts), units=made("mixed"))
    whole = faithfulness(experts, a_pair(experts), units=made("clt"), scores=("relp", "random"), floor=1e-9)  # no neuron is needed
    assert whole.reason is None or "nothing" in whole.reason


def test_all_scores_have_a_curve_on_one_axis() -> None:
    instrument = instrument_of("gpt2")
    found = faithfulness(instrument, a_pair(instrument, back=1), units=made("mixed"), floor=1e-9, points=6, draws=2)
    assert set(found.curves["score"]) == set(SCORES)
    for one in found.curves.partition_by("score", "draw"):
        assert one["n"].to_list() == found.curves["n"].unique().sort().to_list() and one["n"].max() == found.in_play
        assert one["difference"][0] == found.none_kept and one["difference"][-1] == pytest.approx(found.all_kept)
