"""The readouts beside the arms, each against a definition written out or an edit that shows it."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import polars as pl
import pytest
import torch
from parallel_trees import instrument, oracle, PROMPT, SETS, tree_of

from symbolic_residue.instrument import Scale
from symbolic_residue.parallel import arrange, Arranged, measure_prompt, MeasureConfig, Pruning, replay, Seen, Tree
from symbolic_residue.parallel.measure import collapse, competition, log_ratios
from symbolic_residue.parallel.measure._output import output_row
from symbolic_residue.parallel.measure._pruned import pruning_rows
from symbolic_residue.parallel.measure._published import published_rows
from symbolic_residue.parallel.measure._scaling import scaling_rows
from symbolic_residue.parallel.measure._spread import entropy_rows, head_kind, head_rows, induction
from symbolic_residue.parallel.measure._trace import TRACE_READS, trace_rows
from symbolic_residue.parallel.measure._within import intra_rows, set_slots

N = len(PROMPT)
NO_SINK = slice(1, None)


def looked(tree: Tree, row: dict[int, float], **more) -> Seen:
    """What a model of one layer and head would have seen whose probes all have these weights (place → weight)."""
    ins = instrument("llama", torch.float32)
    seen = replay(ins, arrange(tree))
    weights = torch.zeros(1, 1, *seen.weights.shape[2:], dtype=torch.float64)
    for place, value in row.items():
        weights[..., place] = value
    weights = weights.masked_fill(seen.distance.isnan(), 0.0)
    own = (1 - weights.sum(-1)).clamp_min(0)
    return replace(seen, layers=(0,), weights=weights, own=own, windows=(None,), **more)


def test_entropy_is_that_of_the_rows_and_stays_under_its_maximum() -> None:
    ins, tree = instrument("mistral"), tree_of()
    seen = replay(ins, arrange(tree))
    for row in entropy_rows("shared", seen):
        i = seen.layers.index(row["layer"])
        h, rest, most, rest_most = [], [], [], []
        for r in range(len(seen.arranged.rows)):
            near = ~seen.distance[r].isnan() & (seen.distance[r] < 8)  # the tiny model's window
            most.append(math.log(int(near.sum()) + 1))
            rest_most.append(math.log(int(near[NO_SINK].sum())))
            for head in range(seen.weights.shape[1]):
                w = seen.weights[i, head, r][near]
                h.append(float(-(w * w.log()).sum() - seen.own[i, head, r] * seen.own[i, head, r].log()))
                v = seen.weights[i, head, r, NO_SINK][near[NO_SINK]]
                v = v / v.sum()
                rest.append(float(-(v * v.log()).sum()))
        want = {"entropy": h, "most": most, "rest": rest, "rest_most": rest_most}
        for name, values in want.items():
            assert row[name] == pytest.approx(np.mean(values), abs=1e-6)
        assert row["entropy"] < row["most"] and row["rest"] < row["rest_most"]


def test_classes_of_heads_are_what_they_are_called() -> None:
    tree, silent = tree_of(), (torch.zeros(1, 1), torch.zeros(1, 1))
    even = dict.fromkeys(range(N + 9), 0.05)
    for row, repeated, kind in (
        ({0: 0.9, 3: 0.05}, silent, "sink"),
        (even, silent, "diffuse"),
        ({N: 0.2, N + 2: 0.7, N + 3: 0.05, N + 8: 0.04}, silent, "local"),
        ({1: 0.6, 2: 0.3, N: 0.05}, silent, "long-range"),
        ({0: 0.9}, (torch.full((1, 1), 0.5), torch.full((1, 1), 0.1)), "induction"),
        ({0: 0.9, 3: 0.05}, (torch.full((1, 1), 0.5), torch.full((1, 1), 0.2)), "sink"),
    ):
        found = head_rows(looked(tree, row), repeated)
        assert [r["kind"] for r in found] == [kind], row
    numbers = head_rows(looked(tree, {0: 0.5, 1: 0.25, 2: 0.25}), silent)[0]
    assert numbers["sink"] == pytest.approx(0.5)
    position = torch.tensor([7.0, 8.0, 9.0, 10.0])  # of the probes of steps 1 to 4
    assert numbers["distance"] == pytest.approx(float((position - 1.5).mean()))
    assert head_kind({"sink": 0, "local": 0, "entropy_share": 0, "induction": 0.3, "control": 0.09}) == "induction"


def test_induction_looks_at_the_token_behind_the_first_reading() -> None:
    ins, tree = instrument("llama"), tree_of()
    ids = [*PROMPT, *(ids[0] for ids in SETS)]
    n = len(ids)
    tokens = [(t, float(i)) for i, t in enumerate(ids * 2)]
    attentions, _ = oracle(ins, tokens, [list(range(i)) for i in range(2 * n)], list(map(float, range(2 * n))))
    found = induction(ins, tree)
    for ahead, got in zip((1, 2), found, strict=True):
        for layer, weights in enumerate(attentions):
            want = torch.stack([weights[:, n + m, m + ahead] for m in range(n - 2)]).mean(0)
            torch.testing.assert_close(got[layer], want, atol=1e-6, rtol=1e-5)


@pytest.mark.parametrize("mode", ["visible", "causal"])
def test_siblings_among_themselves(mode: str) -> None:
    ins, tree = instrument("llama"), tree_of()
    seen = replay(ins, arrange(tree, mode=mode), extra=[s for _, some in set_slots(tree) for s in some])
    rows = pl.DataFrame(intra_rows(mode, seen, tree))
    slots = [N + 3, N + 4, N + 5]  # the set of three
    tokens, sees, at = [(t, float(i)) for i, t in enumerate(PROMPT)], [list(range(i)) for i in range(N)], float(N)
    for ids in SETS[:3]:
        before, first = list(range(len(tokens))), len(tokens)
        for i, token in enumerate(ids):
            same = range(first, first + (len(ids) if mode == "visible" else i))
            sees.append(before + [j for j in same if j != first + i])
            tokens.append((token, at))
        at += 1
    attentions, _ = oracle(ins, tokens, sees, [p for _, p in tokens])
    for layer, weights in enumerate(attentions):
        for q, row in enumerate(slots):
            for k, key in enumerate(slots):
                want = float((weights[:, row, key] / (1 - weights[:, row, 0])).mean())
                here = (pl.col("size") == 3) & (pl.col("layer") == layer) & (pl.col("query_rank") == q) & (pl.col("key_rank") == k)
                got = rows.filter(here).row(0, named=True)
                assert got["value"] == pytest.approx(want, abs=1e-6) and got["n"] == 1
                assert (got["value"] == 0) == (mode == "causal" and k > q)
    assert set(rows.filter(pl.col("size") == 2)["n"]) == {2}


def test_the_published_number_is_the_sink() -> None:
    """Every key but the sink gets the same: nothing is slighted, and the published mean says that sets are."""
    tree = tree_of()
    even = {0: 0.6} | dict.fromkeys(range(1, N + 9), 0.02)
    found = {row["keys"]: row for row in published_rows("shared", looked(tree, even), tree)}
    others = [0.6, *[0.02] * 6]  # the sink, five of the prompt, one single step
    assert found["with sink"]["sets"] == pytest.approx(0.02)
    assert found["with sink"]["others"] == pytest.approx(np.mean(others))
    assert found["with sink"]["value"] == pytest.approx(math.log(0.02 / np.mean(others)))
    assert found["with sink"]["samples"] == 7 + 7
    assert 0.05 < found["with sink"]["naive_p"] < 1
    assert found["without sink"]["value"] == pytest.approx(0, abs=1e-9)
    assert found["without sink"]["sets"] == pytest.approx(0.02 / 0.4)
    less = even | {N: 0.01, N + 1: 0.01}
    assert {r["keys"]: r for r in published_rows("shared", looked(tree, less), tree)}["without sink"]["value"] < 0


@pytest.mark.parametrize("name", ["llama", "qwen3", "gpt_neox"])
def test_a_trace_is_what_the_row_loses_without_the_token(name: str) -> None:
    ins, tree = instrument(name), tree_of()
    arranged = arrange(tree)
    seen = replay(ins, arranged, reads=(*TRACE_READS, "attn_out.0"))
    rows = {(r["rank"], r["layer"]): r for r in trace_rows("shared", seen, tree, ins)}
    probe = arranged.rows[0]
    for rank in (0, 1):
        slot = N + rank

        def without(a: Arranged, slot: int = slot) -> list:
            return [Scale("v.0", rows=(slot,), factor=0.0)]

        cut = replay(ins, arranged, reads=("attn_out.0",), edits=without)
        lost = seen.trace["attn_out.0"][0, probe] - cut.trace["attn_out.0"][0, probe]
        assert rows[rank, 0]["write"] == pytest.approx(float(lost.norm()), rel=1e-4)
        shares = seen.weights[:, :, 0, N + rank] / seen.weights[:, :, 0, 1:].sum(-1)
        assert rows[rank, 1]["received"] == pytest.approx(float(shares[1].mean()))
        assert rows[rank, 1]["value_norm"] == pytest.approx(float(seen.trace["v.1"][0, slot].norm(dim=-1).mean()), rel=1e-5)
        context = [*PROMPT, SETS[0][rank]]
        with torch.no_grad():
            own = torch.log_softmax(ins.model(input_ids=torch.tensor([context])).logits[0, -1], -1)[SETS[0][rank]]
        assert rows[rank, 1]["lens"] == pytest.approx(float(own), abs=1e-3)  # the last layer's lens is the output


def test_sizes_are_sets_of_their_own() -> None:
    ins, tree = instrument("llama"), tree_of()
    rows = scaling_rows(ins, tree, (2, 5, 20))
    assert [r["size"] for r in rows] == [2, 2, 5, 5, 20, 20]
    with torch.no_grad():
        top = ins.model(input_ids=torch.tensor([PROMPT])).logits[0, -1].topk(5).indices.tolist()
    other = tree_of((top, SETS[1]))
    together, alone = replay(ins, arrange(other)), replay(ins, arrange(other, alone=True))
    found = competition(together, alone, N, "sink excluded", sorted(together.sights))
    for i, row in enumerate(rows[2:4]):
        for name in ("total", "expected", "drop", "by_competition", "beyond"):
            assert row[name] == pytest.approx(float(getattr(found, name)[i].mean()), abs=1e-5), name


def test_next_tokens_are_the_rows_that_predict_them() -> None:
    ins, tree = instrument("llama"), tree_of()
    standard = replay(ins, arrange(tree, keep=[[0]] * len(SETS)), logits=True)
    shared = replay(ins, arrange(tree), logits=True)
    same, other = output_row(standard, standard, tree), output_row(shared, standard, tree)
    assert same["kl"] == pytest.approx(0, abs=1e-9) and same["agree"] == 1 and other["kl"] > 1e-3
    path, nll = [*PROMPT, *tree.path], []
    with torch.no_grad():
        log_p = torch.log_softmax(ins.model(input_ids=torch.tensor([path])).logits[0], -1)
    for step in (2, 3, 4):  # predicted by the probes of steps 1, 2, 3
        nll.append(-float(log_p[N + step - 1, path[N + step]]))
    assert same["nll"] == pytest.approx(np.mean(nll), abs=1e-4) and same["n"] == 3


def test_pruning_judges_by_other_rows_than_it_is_tested_by() -> None:
    tree = tree_of(((61, 90, 91), (17,), (30,), (70,), (99,)))
    seen = looked(tree, {})
    weights = seen.weights.clone()
    weights[..., 0, N : N + 3] = torch.tensor([0.4, 0.1, 0.3])  # the probe of step 1 judges
    weights[..., 1:, N : N + 3] = torch.tensor([0.1, 0.35, 0.05])  # the later ones test
    seen = replace(seen, weights=weights.masked_fill(seen.distance.isnan(), 0.0))
    rows = pruning_rows(seen, tree, Pruning(least=0.5))
    assert [(r["rank"], r["pruned"]) for r in rows] == [(1, True), (2, False)]
    assert [r["judged"] for r in rows] == pytest.approx([0.1, 0.3])
    assert [r["attention"] for r in rows] == pytest.approx([0.35, 0.05])
    gone = replace(tree.steps[0], tokens=(*tree.steps[0].tokens[:2], replace(tree.steps[0].tokens[2], gone=2)))
    labelled = pruning_rows(seen, tree.with_steps([gone, *tree.steps[1:]]), Pruning(least=0.5))
    assert [r["pruned"] for r in labelled] == [False, True]  # the tree's own removals come before the rule


def test_coins_show_each_set_both_ways() -> None:
    """With one set there is nothing else to vary: expanded against its top token is shared against standard."""
    ins, tree = instrument("llama", torch.float32), tree_of(((61, 90), (17,), (30,)))
    arms = measure_prompt(ins, tree, MeasureConfig(epsilons=(0.5,), biases=(), sizes=()))["parallel_arms"]
    columns = ("form", "layer", "head", "value", "n")
    first = arms.filter(pl.col("arm") == "expanded").select(columns).sort("form", "layer", "head")
    second = arms.filter((pl.col("reference") == "standard") & (pl.col("arm") == "shared")).select(columns)
    second = second.sort("form", "layer", "head")
    assert first.drop("value").equals(second.drop("value")) and len(first)
    np.testing.assert_allclose(first["value"].to_numpy(), second["value"].to_numpy(), atol=1e-6)


def test_a_mean_is_over_sets_and_not_over_their_siblings() -> None:
    values = torch.tensor([[1.0, 3.0, float("nan"), 10.0]])
    mean, n = collapse(values, [0, 0, 0, 4])
    assert mean.tolist() == [6.0] and n.tolist() == [3]
    nothing, none = collapse(torch.full((2, 3), float("nan")), [0, 1, 1])
    assert bool(nothing.isnan().all()) and none.tolist() == [0, 0]


def test_the_bias_acts_on_siblings_as_later_rows_see_them() -> None:
    ins, tree = instrument("llama"), tree_of()
    arranged = arrange(tree)
    plain, raised = replay(ins, arranged), replay(ins, arranged, bias=1.5)
    sights = sorted(plain.sights)
    score = log_ratios(raised, plain, N, sights)["score"][0]
    torch.testing.assert_close(score, torch.full_like(score, 1.5), atol=1e-5, rtol=0)
    odds = [s.weights[0, :, 1, N + 2] / s.weights[0, :, 1, 2] for s in (raised, plain)]  # a single token: untouched
    torch.testing.assert_close(odds[0], odds[1], atol=1e-6, rtol=1e-5)
