"""Arms against a computation of its own, and what must hold between them."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch
from parallel_trees import FAMILIES, instrument, oracle, PROMPT, random_tree, SETS, tree_of

from symbolic_residue.errors import PromptError
from symbolic_residue.instrument import AttentionBias
from symbolic_residue.parallel import arrange, measure_prompt, MeasureConfig, replay, Sight
from symbolic_residue.parallel.measure import competition, log_ratios

N = len(PROMPT)
ARMS = {
    "shared": {},
    "offset": {"scheme": "offset", "epsilon": 0.25},
    "unique": {"scheme": "unique"},
    "visible": {"mode": "visible"},
    "causal": {"mode": "causal"},
    "standard": {"keep": [[0]] * len(SETS)},
    "singleton": {"alone": True},
    "moved": {"scheme": "unique", "moved": True},
}


def alone_in_its_own_sequence(arm: str, sight: Sight) -> tuple[list[tuple[int, float]], list[list[int]], list[float], list[int]]:
    """What one probe needs, written out from the definition: tokens, who sees whom, seats, and the place of each token but the last."""
    tokens = [(t, float(i)) for i, t in enumerate(PROMPT)]
    sees = [list(range(i)) for i in range(N)]
    seats = [float(i) for i in range(N)]
    places = list(range(N))
    base, place = float(N), N
    for s, ids in enumerate(SETS[: sight.at]):
        before, mine = list(range(len(tokens))), []
        k = len(ids)
        for i, token in enumerate(ids):
            at = {"offset": base + 0.25 * (i - (k - 1) / 2), "unique": base + i, "moved": base + i}.get(arm, base)
            if arm == "moved" and s == sight.step:
                at = base + sight.rank
            if (arm == "standard" and i) or (arm == "singleton" and s == sight.step and i != sight.rank):
                continue
            mine.append(len(tokens))
            tokens.append((token, at))
            seats.append(base if arm == "offset" else at)
            places.append(place + i)
            sees.append(before + (mine[:-1] if arm == "causal" else []))
        if arm == "visible":
            for slot in mine:
                sees[slot] = before + [j for j in mine if j != slot]
        base += k if arm in ("unique", "moved") else 1
        place += k
    sees.append(list(range(len(tokens))))
    tokens.append((SETS[sight.at][0], base))
    seats.append(base)
    return tokens, sees, seats, places


@pytest.mark.parametrize("name", FAMILIES)
@pytest.mark.parametrize("arm", ARMS)
def test_every_probe_sees_what_it_would_see_in_a_sequence_of_its_own(name: str, arm: str) -> None:
    ins = instrument(name)
    seen = replay(ins, arrange(tree_of(), reach=2, **ARMS[arm]), logits=True)
    looked = 0
    for sight, row in seen.sights.items():
        if sight.at > sight.step + 1 and arm in ("singleton", "moved"):
            continue  # rows between saw the whole set: not the same sequence
        tokens, sees, seats, places = alone_in_its_own_sequence(arm, sight)
        attentions, logits = oracle(ins, tokens, sees, seats)
        for i, weights in enumerate(attentions):
            want = torch.zeros(weights.shape[0], seen.weights.shape[-1], dtype=torch.float64)
            want[:, places] = weights[:, -1, :-1]
            torch.testing.assert_close(seen.weights[i, :, row], want, atol=1e-6, rtol=1e-5)
            torch.testing.assert_close(seen.own[i, :, row], weights[:, -1, -1], atol=1e-6, rtol=1e-5)
        torch.testing.assert_close(seen.log_p[row].double(), torch.log_softmax(logits[-1], -1), atol=1e-4, rtol=1e-4)
        position = torch.tensor([p for _, p in tokens], dtype=torch.float64)
        torch.testing.assert_close(seen.distance[row, places], position[-1] - position[:-1])
        looked += 1
    assert looked == {"standard": 5, "singleton": 7, "moved": 7}.get(arm, 12)


def test_a_probe_of_the_shared_arm_is_the_top_siblings_row() -> None:
    ins = instrument("llama")
    arranged = arrange(tree_of())
    tops = [arranged.slot(place) for place in (N + 2, N + 3, N + 6, N + 8)]
    seen = replay(ins, arranged, extra=tops)
    for row, top in enumerate(tops):
        torch.testing.assert_close(seen.extra[:, :, row, :top], seen.weights[:, :, row, :top], atol=1e-12, rtol=1e-9)
        torch.testing.assert_close(seen.extra[:, :, row, top], seen.own[:, :, row])


@pytest.mark.parametrize("name", FAMILIES)
def test_an_offset_that_vanishes_changes_nothing(name: str) -> None:
    ins, tree = instrument(name), tree_of()
    shared = replay(ins, arrange(tree))
    size = []
    for epsilon in (0.1, 0.01, 0.001):
        offset = replay(ins, arrange(tree, scheme="offset", epsilon=epsilon))
        found = log_ratios(shared, offset, N, sorted(shared.sights))
        size.append(float(found["all keys"].nan_to_num().abs().max()))
    assert size[0] > size[1] > size[2] > 0
    assert size[2] < 0.02 * size[0]


@pytest.mark.parametrize("name", FAMILIES)
def test_shifting_all_positions_changes_nothing(name: str) -> None:
    ins, arranged = instrument(name), arrange(tree_of(), scheme="unique", moved=True)
    plain = replay(ins, arranged)
    moved = replace(arranged.layout, position=arranged.layout.position + 7, seat=arranged.layout.seat + 7)
    again = replay(ins, replace(arranged, layout=moved))
    torch.testing.assert_close(again.weights, plain.weights, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("name", FAMILIES)
def test_copies_of_one_token_share_equally(name: str) -> None:
    ins = instrument(name)
    seen = replay(ins, arrange(tree_of(((61, 61, 61), (17,)))))
    weights = seen.weights[:, :, 0, N : N + 3]
    torch.testing.assert_close(weights, weights[..., :1].expand_as(weights), atol=1e-7, rtol=1e-6)
    alone = replay(ins, arrange(tree_of(((61, 61, 61), (17,))), alone=True))
    found = competition(seen, alone, N, "all keys", sorted(seen.sights))
    odds = alone.weights[0, :, 0, N] / (alone.weights[0, :, 0].sum(-1) - alone.weights[0, :, 0, N])
    torch.testing.assert_close(found.total[0, :, 0], 3 * odds / (1 + 3 * odds), atol=1e-6, rtol=1e-5)


@pytest.mark.parametrize("name", ["llama", "gpt_neox", "gemma3"])
def test_a_sibling_is_the_token_that_stands_there_alone(name: str) -> None:
    ins, tree = instrument(name), tree_of()
    points = ("resid_post.0", "resid_post.1")
    together = replay(ins, arrange(tree), reads=points)
    for rank in range(3):
        keep = [[0, 1], [0], [rank], [0, 1], [0]]
        alone = replay(ins, arrange(tree, keep=keep), reads=points)
        place = N + 3 + rank
        for point in points:
            a = together.trace[point][0, together.arranged.slot(place)]
            b = alone.trace[point][0, alone.arranged.slot(place)]
            torch.testing.assert_close(a, b, atol=1e-10, rtol=1e-8)


@pytest.mark.parametrize("name", ["llama", "qwen3", "gpt_neox"])
def test_moving_the_others_leaves_the_first_layers_score(name: str) -> None:
    ins, tree = instrument(name), tree_of()
    moved, unique = (replay(ins, arrange(tree, scheme="unique", moved=m)) for m in (True, False))
    found = log_ratios(moved, unique, N, sorted(moved.sights))
    for form in ("score", "distance matched"):
        torch.testing.assert_close(found[form][0], torch.zeros_like(found[form][0]), atol=1e-5, rtol=0)
        assert float(found[form][1].abs().max()) > 1e-4  # deeper, the probe itself has changed
    assert float(found["sink excluded"][0].abs().max()) > 1e-3  # the others compete from elsewhere


def test_forms_are_shares_of_the_keys_that_they_name() -> None:
    ins, tree = instrument("llama"), tree_of()
    a, b = replay(ins, arrange(tree)), replay(ins, arrange(tree, scheme="offset", epsilon=0.5))
    sight = Sight(2, 3, 1)
    found = log_ratios(a, b, N, [sight])
    row, place = a.sights[sight], N + 4
    keys = {
        "all keys": list(range(N + 6)),
        "prompt excluded": list(range(N, N + 6)),
        "sink excluded": list(range(1, N + 6)),
        "distance matched": [*range(1, N), N + 2, N + 4],  # whole positions, and the middle of three is not moved
    }
    for form, some in keys.items():
        want = [(s.weights[:, :, row, place] / s.weights[:, :, row, some].sum(-1)).log() for s in (a, b)]
        torch.testing.assert_close(found[form][..., 0], want[0] - want[1])
    first, place_0 = Sight(2, 3, 0), N + 3  # itself moved: it still counts
    some = [*range(1, N), N + 2, N + 3, N + 4]
    want = [(s.weights[:, :, row, place_0] / s.weights[:, :, row, some].sum(-1)).log() for s in (a, b)]
    torch.testing.assert_close(log_ratios(a, b, N, [first])["distance matched"][..., 0], want[0] - want[1])
    score = [s.weights[:, :, row, place].log() + s.lse[:, :, row] for s in (a, b)]
    torch.testing.assert_close(found["score"][..., 0], score[0] - score[1])


@pytest.mark.parametrize("form", ["all keys", "sink excluded"])
@pytest.mark.parametrize("name", FAMILIES)
def test_competition_is_exact_where_nothing_else_acts(name: str, form: str) -> None:
    """In the first layer scores know nothing of company; a planted bias on sets is found as what it is."""
    ins, tree = instrument(name), tree_of()
    alone = replay(ins, arrange(tree, alone=True))
    arranged = arrange(tree)
    sights = sorted(arranged.probe_of)
    found = competition(replay(ins, arranged), alone, N, form, sights)
    torch.testing.assert_close(found.drop, found.by_competition + found.beyond)
    torch.testing.assert_close(found.beyond[0], torch.zeros_like(found.beyond[0]), atol=1e-5, rtol=0)
    torch.testing.assert_close(found.total[0], found.expected[0], atol=1e-6, rtol=1e-5)
    assert bool((found.by_competition <= 0).all())
    last = [s for s in sights if s.step == 3]  # the bias acts on the set of step 3 alone
    slots = [arranged.slot(N + 6), arranged.slot(N + 7)]
    planted = replay(ins, arranged, edits=lambda a: [AttentionBias(-0.7, keys=slots, rows=a.rows)])
    cut = competition(planted, alone, N, form, last)
    odds = cut.expected[0] / (1 - cut.expected[0]) * math.exp(-0.7)
    torch.testing.assert_close(cut.total[0], odds / (1 + odds), atol=1e-6, rtol=1e-5)


def test_large_sets_are_moved_in_balance_and_contexts_end() -> None:
    tree = tree_of((tuple(range(40, 49)), (17,)))
    ranks = [s.rank for s in arrange(tree, scheme="unique", moved=True, most=4).probe_of]
    assert ranks == [8 - r for r in reversed(ranks)] and len(ranks) == 4
    with pytest.raises(PromptError, match="beyond the model's context of 12"):
        arrange(tree, scheme="unique", limit=12)
    arrange(tree, limit=12)
    assert MeasureConfig().reach == 1


def test_an_arm_costs_a_few_forwards_of_the_tree() -> None:
    """Rows run through the model, as a multiple of the tree's tokens: the bound is twelve forwards for each arm."""
    ins = instrument("llama", torch.float32)
    tree = random_tree(0, steps=30, prompt=20, most=6)
    tokens, rows = tree.n_keys, []
    hook = ins.model.register_forward_pre_hook(lambda m, a, k: rows.append(k["input_ids"].shape[1]), with_kwargs=True)
    measure_prompt(ins, tree, checked=True)
    hook.remove()
    assert max(rows) <= 12 * tokens
    arms = 19  # standard shared offset×5 unique moved visible causal singleton unrelated expanded unexpanded bias×6 … at least
    assert sum(rows) <= 3 * arms * tokens
    assert len(rows) <= 30
