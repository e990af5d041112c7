"""Kept runs, scores and curves: against plain autograd in float64, against the model itself at both ends, and on a planted circuit."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import polars as pl
import pytest
import torch
from graph_helpers import instrument_of, with_logit
from hypothesis import given, settings
from hypothesis import strategies as st

from symbolic_residue.errors import ConfigError, PromptError, UnsupportedModelError, VerificationError
from symbolic_residue.graph import (
    attribute_prompt,
    compare_scores,
    curve_numbers,
    direct_edges,
    Faithfulness,
    faithfulness,
    gradients_at,
    graph_faithfulness,
    log_counts,
    mixed_at,
    PairRun,
    PairScores,
    ranks,
    run_pair,
    SCORES,
    token_pair,
    TokenPair,
    Units,
)
from symbolic_residue.graph._kept import check_ends
from symbolic_residue.instrument import Instrument
from symbolic_residue.prompts import build_prompt, CounterfactualPair

FAMILIES = ["llama", "gpt2", "gpt_neox"]
ANSWER, WRONG = 301, 310


def a_pair(instrument: Instrument, text: str = "Anna put the red book on the table") -> TokenPair:
    """A text, and the same with another last token."""
    about = CounterfactualPair(id="p", category="facts", frame="f", clean=text, corrupted=f"{text}!", answer=" a", wrong=" b")
    clean = build_prompt(instrument.loaded.tokenizer, text)
    return TokenPair(about, clean, replace(clean, ids=[*clean.ids[:-1], 294]), ANSWER, WRONG)


def early(instrument: Instrument) -> TokenPair:
    """A pair whose prompts differ in the middle, so that several rows are in play."""
    pair = a_pair(instrument)
    ids = list(pair.clean.ids)
    other = [*ids[:-4], ids[-4] + 1, *ids[-3:]]
    return replace(pair, corrupted=replace(pair.clean, ids=other))


class Plain:
    """The transformers model with hooks of its own on the input of each MLP's last linear: what everything here is compared with."""

    def __init__(self, run: PairRun) -> None:
        self.run, self.model = run, run.instrument.model
        self.downs = [layer.mlp_down for layer in run.instrument.parts.layers]

    def __call__(self, act: Any, **inputs: Any) -> torch.Tensor:
        """The logit difference with ``act(layer, a)`` in place of each layer's activations."""
        handles = [
            m.register_forward_pre_hook(lambda module, args, i=i: (act(i, args[0]),))
            for i, m in enumerate(self.downs)  # type: ignore[union-attr]
        ]
        try:
            logits = self.model(**inputs, use_cache=False).logits[0, -1]
        finally:
            for handle in handles:
                handle.remove()
        return logits[self.run.pair.answer] - logits[self.run.pair.wrong]

    def side(self, which: int) -> list[torch.Tensor]:
        """All activations of one prompt, ``[position, neuron]`` a layer."""
        seen: dict[int, torch.Tensor] = {}

        def look(i: int, a: torch.Tensor) -> torch.Tensor:
            seen[i] = a.reshape(-1, a.shape[-1]).detach()
            return a

        with torch.no_grad():
            self(look, input_ids=self.run.pair.ids[which : which + 1])
        return [seen[i] for i in range(len(self.downs))]


@pytest.mark.parametrize("name", [*FAMILIES, "gemma2", "opt", "phi3"])
@pytest.mark.parametrize("make", [a_pair, early])
def test_kept_runs_are_the_model_with_those_neurons_live(name: str, make: Any) -> None:
    """Ends and in between, with and without a common beginning, against plain hooks; none kept is the corrupted run's MLPs, and is not the corrupted run."""
    instrument = instrument_of(name)
    run = run_pair(instrument, make(instrument))
    plain, first = Plain(run), run.pair.first
    clean, corrupted = plain.side(0), plain.side(1)
    for i in range(2):
        torch.testing.assert_close(run.clean[i], clean[i][first:], rtol=0, atol=1e-12)
        torch.testing.assert_close(run.corrupted[i], corrupted[i][first:], rtol=0, atol=1e-12)
        torch.testing.assert_close(clean[i][:first], corrupted[i][:first], rtol=0, atol=1e-12)  # not in play: the same in both runs
    rank = ranks(PairScores(run).score("random"))
    assert sorted(torch.cat([r.flatten() for r in rank]).tolist()) == list(range(run.in_play))
    counts = [0, 1, 7, run.in_play // 2, run.in_play]
    found = run.kept(rank, counts)
    for n, value in zip(counts, found.tolist(), strict=True):

        def act(i: int, a: torch.Tensor, n: int = n) -> torch.Tensor:
            keep = torch.cat([torch.ones_like(clean[i][:first], dtype=torch.bool), rank[i] < n])
            return torch.where(keep.view(a.shape), a, corrupted[i].view(a.shape))

        with torch.no_grad():
            assert value == pytest.approx(float(plain(act, input_ids=run.pair.ids[:1])), abs=1e-9)
    assert float(found[-1]) == pytest.approx(run.clean_difference, abs=1e-9)
    assert abs(float(found[0]) - run.corrupted_difference) > 1e-6
    torch.testing.assert_close(run.kept(rank, counts, max_tokens=1), found, rtol=0, atol=1e-9)  # however they are batched


@pytest.mark.parametrize("name", FAMILIES)
def test_gradient_scores_are_plain_autograd(name: str) -> None:
    instrument = instrument_of(name)
    run = run_pair(instrument, early(instrument))
    plain, first = Plain(run), run.pair.first
    embed = instrument.model.get_input_embeddings()
    with torch.no_grad():
        clean, corrupted = embed(run.pair.ids)

    def gradient(z: float) -> list[torch.Tensor]:
        leaves = [torch.zeros(len(run.pair.ids[0]), a.shape[1], dtype=torch.float64, requires_grad=True) for a in run.clean]
        value = plain(lambda i, a: a + leaves[i].view(a.shape), inputs_embeds=(z * clean + (1 - z) * corrupted)[None])
        return [g[first:] for g in torch.autograd.grad(value, leaves)]

    scores = PairScores(run, steps=5)
    wanted = {
        "atp": gradient(1.0),
        "eap-ig": [sum(g) / 5 for g in zip(*(gradient(z) for z in (0.1, 0.3, 0.5, 0.7, 0.9)), strict=True)],
        "ig gauss": [sum(g) / 2 for g in zip(*(gradient(0.5 + s / math.sqrt(12)) for s in (-1, 1)), strict=True)],
    }
    for score, slopes in wanted.items():
        for found, slope, a, b in zip(scores.score(score), slopes, run.clean, run.corrupted, strict=True):
            torch.testing.assert_close(found, slope * (a - b), rtol=0, atol=1e-11)
    torch.testing.assert_close(gradients_at(run, (0.3,))[0], gradient(0.3)[0], rtol=0, atol=1e-11)


@pytest.mark.parametrize("name", FAMILIES)
def test_mixed_scores_are_plain_autograd_and_add_up_to_the_difference_of_the_ends(name: str) -> None:
    instrument = instrument_of(name)
    run = run_pair(instrument, early(instrument))
    plain, first = Plain(run), run.pair.first
    corrupted = plain.side(1)

    def mixture(z: float) -> list[torch.Tensor]:
        leaves = [torch.zeros_like(a, requires_grad=True) for a in corrupted]
        live: dict[int, torch.Tensor] = {}

        def act(i: int, a: torch.Tensor) -> torch.Tensor:
            live[i] = a.detach().view(corrupted[i].shape)
            mixed = z * a + (1 - z) * corrupted[i].view(a.shape)
            return mixed + leaves[i].view(a.shape)

        value = plain(act, input_ids=run.pair.ids[:1])
        return [(g * (live[i] - corrupted[i]))[first:] for i, g in enumerate(torch.autograd.grad(value, leaves))]

    for found, one, two in zip(mixed_at(run, (0.2, 0.9)), mixture(0.2), mixture(0.9), strict=True):
        torch.testing.assert_close(found, (one + two) / 2, rtol=0, atol=1e-11)
    for found, one, two in zip(PairScores(run).score("mixed"), mixture(0.1), mixture(0.7), strict=True):
        torch.testing.assert_close(found, (one + two) / 2, rtol=0, atol=1e-11)
    steps = 400
    total = sum(float(one.sum()) for one in mixed_at(run, [(i + 0.5) / steps for i in range(steps)]))
    none, every = run.kept(ranks(run.clean), [0, run.in_play]).tolist()
    assert total == pytest.approx(every - none, abs=2e-3 * abs(every - none) + 1e-4)


@pytest.mark.parametrize("name", FAMILIES)
def test_slopes_of_the_replacement_solve_the_graphs_own_equations(name: str) -> None:
    """Direct and total slopes against all edges between all neurons: total = direct + edgesᵀ total, solved densely."""
    instrument = instrument_of(name)
    pair = early(instrument)
    run = run_pair(instrument, pair)
    scores = PairScores(run)
    local = scores._clean_local
    cells = torch.cartesian_prod(torch.arange(2), torch.arange(len(local)), torch.arange(96))
    units = Units.of(cells)
    rows = with_logit(local, units, ANSWER, WRONG)
    edges, _ = direct_edges(local, rows, units)
    a = torch.cat([layer.activations.flatten() for layer in local.layers])
    assert bool((a != 0).all())
    slope = edges[:, : len(units)] / a
    total = torch.linalg.solve(torch.eye(len(a), dtype=a.dtype) - slope[1:].T, slope[0])
    change = torch.cat([(x - y).flatten() for x, y in zip(run.clean, run.corrupted, strict=True)])
    where = torch.cat([torch.arange(len(a)).view(2, len(local), 96)[i, pair.first :].flatten() for i in range(2)])
    for score, wanted in (("direct", slope[0]), ("relp", total)):
        found = torch.cat([one.flatten() for one in scores.score(score)])  # type: ignore[arg-type]
        torch.testing.assert_close(found, wanted[where] * change, rtol=0, atol=1e-9)
    turned = run_pair(instrument, replace(pair, clean=pair.corrupted, corrupted=pair.clean))
    both = zip(scores.score("relp"), PairScores(turned).score("relp"), scores.score("relp ends"), strict=True)
    for one, two, ends in both:
        torch.testing.assert_close(ends, (one - two) / 2, rtol=0, atol=1e-11)


@pytest.mark.parametrize("name", FAMILIES)
def test_magnitude_and_random(name: str) -> None:
    instrument = instrument_of(name)
    run = run_pair(instrument, early(instrument))
    for layer, a, b, found in zip(
        instrument.parts.layers, run.clean, run.corrupted, PairScores(run).score("magnitude"), strict=True
    ):
        weight = layer.mlp_down.weight.detach()  # type: ignore[union-attr]
        rows = weight if weight.shape == (96, 64) else weight.T
        torch.testing.assert_close(found, (a - b).abs() * rows.square().sum(1).sqrt(), rtol=0, atol=1e-12)
    one, same, other = (ranks(PairScores(run, seed=s).score("random")) for s in (1, 1, 2))
    assert all(torch.equal(x, y) for x, y in zip(one, same, strict=True))
    assert not torch.equal(one[0], other[0])


def test_ranks_are_in_order_and_ties_go_to_the_earlier_neuron() -> None:
    scores = (torch.tensor([[1.0, 3.0], [1.0, 0.0]]), torch.tensor([[3.0], [1.0]]))
    found = ranks(scores)
    assert found[0].tolist() == [[2, 0], [3, 5]] and found[1].tolist() == [[1], [4]]


def planted(name: str) -> tuple[Instrument, TokenPair, set[tuple[int, int]]]:
    """Neuron A of layer 0 answers to the last token of the clean prompt and writes an axis, neuron B of layer 1 reads the axis and writes the answer."""
    instrument = instrument_of(name, scale=0.5)
    pair = a_pair(instrument)
    assert pair.first == len(pair.clean.ids) - 1
    parts, last = instrument.parts, pair.first
    read = instrument.run(pair.ids, reads=["mlp_in.0"])["mlp_in.0"]
    toward = (
        read[0, last] - (read[1, last] @ read[0, last]) / (read[1, last] @ read[1, last]) * read[1, last]
    )  # nothing of the corrupted prompt
    answer = parts.final_norm.gain() * (parts.w_u[ANSWER] - parts.w_u[WRONG]).detach()
    axis = torch.zeros(64, dtype=torch.float64)
    axis[11] = 1.0
    a, b = (0, 17), (1, 40)
    with torch.no_grad():
        for (layer, neuron), reads, write, size in (
            (a, toward, axis, 0.5),
            (b, axis, answer, 1.0),
        ):  # of the stream: more would saturate the norms
            mlp = parts.layers[layer].mlp
            reads, write = reads / reads.norm(), write / write.norm()
            if name == "llama":
                mlp.gate_proj.weight[neuron] = reads
                mlp.up_proj.weight[neuron] = reads
            else:
                mlp.c_fc.weight[:, neuron] = reads
                mlp.c_fc.bias[neuron] = 0
            seen = instrument.run(pair.ids[:1], reads=[f"mlp_act.{layer}", f"resid_post.{layer}"])
            strength = (
                size * seen[f"resid_post.{layer}"][0, last].norm() / seen[f"mlp_act.{layer}"][0, last, neuron]
            )  # twice the stream
            if name == "llama":
                mlp.down_proj.weight[:, neuron] = strength * write
            else:
                mlp.c_proj.weight[neuron] = strength * write
    return instrument, pair, {a, b}


@pytest.mark.parametrize("name", ["llama", "gpt2"])
def test_two_planted_neurons_are_the_circuit(name: str) -> None:
    instrument, pair, truth = planted(name)
    found = faithfulness(instrument, pair, scores=("mixed", "relp", "random"), draws=4, seed=3)
    table = found.summary()
    by = {row["score"]: row for row in table.iter_rows(named=True)}
    for score in ("mixed", "relp"):
        assert 1 < by[score]["n80"] <= 2, score  # one alone brings nothing back
        assert by[score]["n90"] <= 2
        assert by[score]["area"] > 0.8
    assert by["random"]["n80"] > 10 and by["random"]["area"] < 0.5  # the control
    order = ranks(PairScores(run_pair(instrument, pair)).score("mixed"))
    assert {(i, n) for i in range(2) for n in range(96) if order[i][0, n] < 2} == truth
    turned = faithfulness(instrument, replace(pair, answer=WRONG, wrong=ANSWER), scores=("mixed",))
    assert turned.reason is not None and "not 0.1 more" in turned.reason  # nothing that raises the other answer


def test_a_graphs_own_units_bring_the_planted_answer_back_and_random_ones_do_not() -> None:
    instrument, pair, _ = planted("llama")
    graph = attribute_prompt(instrument, pair.clean, targets=[(ANSWER, WRONG)], max_nodes=30)
    found = graph_faithfulness(graph, instrument, pair)
    last = found.curves.filter(pl.col("n") == found.curves["n"].max())
    mine = last.filter(pl.col("score") == "graph")["recovered"][0]
    others = last.filter(pl.col("score") == "random")["recovered"]
    assert mine > 0.9 and float(others.mean()) < 0.6  # type: ignore[arg-type]
    assert found.curves["n"].max() <= 30 and graph.faithfulness(instrument, pair).curves.equals(found.curves)
    other = attribute_prompt(instrument, pair.corrupted, targets=["top"], max_nodes=30)
    with pytest.raises(ConfigError, match="clean prompt"):
        graph_faithfulness(other, instrument, pair)
    none = attribute_prompt(instrument, pair.clean, targets=["top"], max_nodes=0)
    with pytest.raises(ConfigError, match="in play"):
        graph_faithfulness(none, instrument, pair)


def test_the_neurons_of_a_score_become_the_nodes_of_a_graph() -> None:
    instrument, pair, truth = planted("gpt2")
    scores = PairScores(run_pair(instrument, pair))
    units = scores.top("mixed", 2)
    assert set(zip(units.layer.tolist(), units.neuron.tolist(), strict=True)) == truth
    assert units.position.tolist() == [pair.first] * 2
    graph = attribute_prompt(instrument, pair.clean, targets=[(ANSWER, WRONG)], nodes=units)
    assert len(graph) == 2 and graph.check().worst < 1e-12
    curve = graph.faithfulness(instrument, pair).curves.filter(pl.col("score") == "graph")
    assert curve["n"].to_list() == [0, 1, 2] and curve["recovered"][2] > 0.9 > curve["recovered"][1]
    assert len(scores.top("mixed", 0)) == 0 and len(scores.top("mixed", 10**6)) == scores.run.in_play
    with pytest.raises(ConfigError):
        scores.top("mixed", -1)
    for cell in ((2, 0, 0), (0, 99, 0), (0, 0, 96)):
        with pytest.raises(ConfigError, match="no neuron"):
            attribute_prompt(instrument, pair.clean, nodes=Units.of(torch.tensor([cell])))


def test_a_pair_without_an_effect_has_a_reason_and_no_numbers() -> None:
    instrument = instrument_of("llama")
    found = faithfulness(instrument, a_pair(instrument), scores=("magnitude", "atp"), floor=1e6)
    assert found.reason is not None and "nothing to recover" in found.reason
    assert found.curves["recovered"].null_count() == len(found.curves)
    table = found.summary()
    assert table["area"].null_count() == 2 and table["reason"].to_list() == [found.reason] * 2
    with pytest.raises(ConfigError, match="no pair with numbers"):
        compare_scores(table, against="atp")


def test_what_cannot_be_is_refused() -> None:
    instrument = instrument_of("llama")
    pair = a_pair(instrument)
    for wrong in ({"scores": ()}, {"scores": ("best",)}, {"draws": 0}, {"floor": 0}, {"points": 3}, {"steps": 0}):
        with pytest.raises(ConfigError):
            faithfulness(instrument, pair, **wrong)
    with pytest.raises(ConfigError, match="no score"):
        PairScores(run_pair(instrument, pair)).score("best")  # type: ignore[arg-type]
    with pytest.raises(UnsupportedModelError):
        run_pair(instrument_of("qwen3_moe"), pair)
    with pytest.raises(PromptError):
        faithfulness(instrument, pair.pair.model_copy(update={"answer": " unbelievably"}))
    run = run_pair(instrument, pair)
    with pytest.raises(VerificationError, match="all neurons kept"):
        check_ends(run, run.clean_difference + 1)
    check_ends(run, run.clean_difference)


@settings(max_examples=60, deadline=None)
@given(st.data())
def test_numbers_of_a_curve(data: st.DataObject) -> None:
    n = data.draw(st.integers(2, 10**6))
    counts = log_counts(n, data.draw(st.integers(4, 40)))
    assert counts[0] == 0 and counts[1] == 1 and counts[-1] == n and counts == sorted(set(counts))
    middle = data.draw(st.lists(st.floats(-2, 3), min_size=len(counts) - 2, max_size=len(counts) - 2))
    curve = [0.0, *middle, 1.0]
    area, miss, n80, n90 = curve_numbers(counts, curve)
    assert 0 <= area <= 1 and 0 <= miss <= 3
    assert n80 is not None and n90 is not None and 1 <= n80 <= n90 <= n + 1e-6
    better = [max(f, 0.9) for f in curve[1:]]
    assert curve_numbers(counts[1:], better)[0] >= area - 1e-12
    if len(counts) > 2:
        assert curve_numbers(counts, [0.0] + [1.0] * (len(counts) - 1)) == (1.0, 0.0, 1.0, 1.0)


def test_a_curve_by_hand() -> None:
    area, miss, n80, n90 = curve_numbers([0, 1, 4, 16], [0.0, 0.0, 0.5, 1.5])
    assert area == pytest.approx((2 * 0.25 + 2 * 0.75) / 4)
    assert miss == pytest.approx((2 * 0.75 + 2 * 0.5) / 4)
    assert n80 == pytest.approx(4 * 2 ** (2 * 0.3)) and n90 == pytest.approx(4 * 2 ** (2 * 0.4))
    assert curve_numbers([1, 2], [0.1, 0.2])[2:] == (None, None)
    for counts in ([0, 1], [1, 1, 2], [4, 2]):
        with pytest.raises(ConfigError):
            curve_numbers(counts, [0.0] * len(counts))


def summaries(difference: float, n: int = 40) -> pl.DataFrame:
    generator = torch.Generator().manual_seed(0)
    rows = []
    for i in range(n):
        hard, a, b = torch.rand(3, generator=generator).tolist()
        about = {"pair": f"p{i}", "category": "xy"[i % 2], "frame": f"f{i % 8}", "in_play": 1000, "reason": None}
        rows.append(
            about
            | {"score": "eap-ig", "area": 0.6 * hard + 0.02 * a, "miss": hard, "n80": 2 ** (10 * hard), "n90": 2 ** (12 * hard)}
        )
        rows.append(
            about
            | {"score": "mixed", "area": 0.6 * hard + 0.02 * b + difference, "miss": hard, "n80": 2 ** (10 * hard - 1), "n90": None}
        )
    return pl.DataFrame(rows, schema=Faithfulness.summary.__globals__["SUMMARY_SCHEMA"])


@pytest.mark.parametrize("by", ["pair", "frame"])
def test_paired_differences_see_what_means_hide(by: Any) -> None:
    """Pairs differ far more than scores: the difference is paired, found where it was planted and not where there is none."""
    for planted_difference in (0.05, 0.0):
        found = compare_scores(summaries(planted_difference), by=by)
        row = found.filter((pl.col("category") == "all") & (pl.col("score") == "mixed") & (pl.col("measure") == "area")).row(
            0, named=True
        )
        assert (
            row["difference_low"] < planted_difference < row["difference_high"]
            and row["difference_high"] - row["difference_low"] < 0.02
        )
        assert row["high"] - row["low"] > 0.08 and row["low"] >= 0 and row["high"] <= 1
        assert (row["difference_low"] > 0) == (planted_difference > 0)
        assert row["n"] == (40 if by == "pair" else 8)
    few = found.filter((pl.col("score") == "mixed") & (pl.col("measure") == "n80"))
    assert few["difference"].to_list() == pytest.approx([-1] * 3) and few["category"].to_list() == ["all", "x", "y"]
    base = found.filter((pl.col("score") == "eap-ig") & (pl.col("measure") == "area"))
    assert base["difference"].to_list() == [0, 0, 0]
    assert found.filter((pl.col("score") == "mixed") & (pl.col("measure") == "n90")).is_empty()


def test_intervals_of_few_pairs_stay_in_range() -> None:
    found = compare_scores(summaries(0.05, n=4))
    for measure, low, high in (("area", 0, 1), ("miss", 0, math.inf), ("n80", 1, math.inf), ("n90", 1, math.inf)):
        part = found.filter(pl.col("measure") == measure).select("mean", "low", "high").to_numpy().ravel()
        assert low <= part.min() and part.max() <= high, measure
    area = found.filter(pl.col("measure") == "area")
    assert float(area["difference_low"].min()) >= -1 and float(area["difference_high"].max()) <= 1  # type: ignore[arg-type]


def test_pairs_are_counted_once() -> None:
    table = summaries(0.1)
    with pytest.raises(ConfigError, match="two rows"):
        compare_scores(pl.concat([table, table]))
    with pytest.raises(ConfigError, match="numbers of 'atp'"):
        compare_scores(table, against="atp")


def test_every_score_runs_and_is_the_same_twice() -> None:
    instrument = instrument_of("llama")
    pair = early(instrument)
    run = run_pair(instrument, pair)
    none, every = run.kept(ranks(run.clean), [0, run.in_play]).tolist()
    if every < none:
        pair = replace(pair, answer=WRONG, wrong=ANSWER)
    one, two = (faithfulness(instrument, pair, draws=2, points=8, floor=1e-6) for _ in range(2))
    assert one.curves.equals(two.curves) and one.curves["score"].unique(maintain_order=True).to_list() == list(SCORES)
    assert one.curves.filter(pl.col("n") == 0)["recovered"].unique().to_list() == [0.0]
    assert one.curves.filter(pl.col("n") == one.in_play)["recovered"].unique().to_list() == [1.0]
    assert token_pair  # the pair by its texts is tested in test_pairs
