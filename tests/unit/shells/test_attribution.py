"""Attribution against oracles that know nothing of the instrument: plain forwards, plain hooks, plain 4-D masks, enumerated sign flips."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from itertools import product
from typing import Any

import numpy as np
import polars as pl
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from tiny_models import build, tiny_tokenizer

from symbolic_residue.instrument import HeadReplace, Instrument
from symbolic_residue.models import wrap
from symbolic_residue.prompts import build_prompt, Prompt
from symbolic_residue.shells import ValueCollapseConfig, ValueCollapseShell
from symbolic_residue.shells._confirm import head_means, PairRuns
from symbolic_residue.shells.value_collapse import _attribute
from symbolic_residue.shells.value_collapse._attribute import attribute, Attribution, token_influence
from symbolic_residue.shells.value_collapse._findings import attribution_frames, changes_frame
from symbolic_residue.stats import benjamini_hochberg

FAMILIES = ["llama", "gemma3", "gpt2", "gpt_neox"]
N_LAYERS, N_HEADS, D_HEAD = 2, 4, 16
TEXTS = (
    "The mill stands where the river turns. The miller keeps the",
    "The mill stands where the river turns; the miller keeps the",
    "Well, the mill stands where the  river turns. The miller keeps the",
    "\nThe mill stands  where the river turns. The miller keeps the",
)
CONTROL = "Note: the answer is gate. The miller keeps the"
REFERENCE = ("Anna put the red book under the table", "Please write the answer in one word.", "One two three four five")
CANDIDATES = [40, 77, 300, 12]
Z = dict[int, torch.Tensor]
Edit = Callable[[int, torch.Tensor], torch.Tensor]


# -- oracles on the plain model ----------------------------------------------------------------------------------------------


def output_projections(model: Any) -> list[Any]:
    """The modules whose input is the heads' outputs side by side."""
    kind = model.config.model_type
    if kind == "gpt2":
        return [block.attn.c_proj for block in model.transformer.h]
    if kind == "gpt_neox":
        return [block.attention.dense for block in model.gpt_neox.layers]
    return [block.self_attn.o_proj for block in model.model.layers]


@contextmanager
def hooked(model: Any, change: Edit) -> Iterator[None]:
    """Every layer's head outputs at the last row, ``[head, d_head]``, through ``change(layer, z)``."""

    def make(layer: int) -> Any:
        def hook(module: torch.nn.Module, args: tuple[torch.Tensor, ...]) -> tuple[torch.Tensor, ...]:
            flat = args[0].clone()
            flat[0, -1] = change(layer, flat[0, -1].view(N_HEADS, D_HEAD)).reshape(-1)
            return (flat, *args[1:])

        return hook

    handles = [module.register_forward_pre_hook(make(i)) for i, module in enumerate(output_projections(model))]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


@torch.no_grad()
def last_logits(model: Any, ids: Sequence[int]) -> torch.Tensor:
    return model(input_ids=torch.tensor([list(ids)]), use_cache=False).logits[0, -1].double()


def difference(model: Any, ids: Sequence[int], pair: tuple[int, int]) -> float:
    logits = last_logits(model, ids)
    return float(logits[pair[0]] - logits[pair[1]])


def heads_of(model: Any, ids: Sequence[int]) -> torch.Tensor:
    """Heads' outputs at the last row, ``[layer, head, d_head]``."""
    seen: Z = {}

    def keep(layer: int, z: torch.Tensor) -> torch.Tensor:
        seen[layer] = z.clone()
        return z

    with hooked(model, keep):
        last_logits(model, ids)
    return torch.stack([seen[i] for i in range(N_LAYERS)])


def with_head(model: Any, ids: Sequence[int], pair: tuple[int, int], at: tuple[int, int], value: torch.Tensor) -> float:
    """The pair's logit difference with one head's output at the last row replaced, in a full forward."""

    def put(layer: int, z: torch.Tensor) -> torch.Tensor:
        if layer == at[0]:
            z = z.clone()
            z[at[1]] = value
        return z

    with hooked(model, put):
        return difference(model, ids, pair)


def hidden_from_last(model: Any, ids: Sequence[int], keys: Sequence[int], pair: tuple[int, int]) -> float:
    """The pair's logit difference when the last row may not look at ``keys``, by 4-D masks that transformers applies as they are."""
    n = len(ids)
    causal = torch.full((n, n), float("-inf")).triu(1)
    near = causal.clone()
    window = getattr(model.config, "sliding_window", None)
    if window is not None:
        near = near + torch.full((n, n), float("-inf")).tril(-window)
    for mask in (causal, near):
        mask[-1, list(keys)] = float("-inf")
    given: Any = causal[None, None]
    if model.config.model_type == "gemma3_text":
        given = {"full_attention": causal[None, None], "sliding_attention": near[None, None]}
    with torch.no_grad():
        logits = model(input_ids=torch.tensor([list(ids)]), attention_mask=given, use_cache=False).logits[0, -1].double()
    return float(logits[pair[0]] - logits[pair[1]])


# -- the thing itself --------------------------------------------------------------------------------------------------------


class Case:
    """One family's model, its prompts, and what ``attribute`` says of them."""

    def __init__(self, model: Any, **options: Any) -> None:
        self.model = model
        self.instrument = Instrument(wrap(model, tiny_tokenizer()))
        self.prompts = [self.prompt(t) for t in options.pop("texts", TEXTS)]
        self.control = self.prompt(options.pop("control", CONTROL))
        self.reference = [self.prompt(t) for t in REFERENCE]
        self.options: dict[str, Any] = {"top_heads": 3, "random_heads": 5, "attributed": 3, "seed": 0} | options

    def prompt(self, text: str) -> Prompt:
        return build_prompt(self.instrument.loaded.tokenizer, text)

    def attribute(self, candidates: Sequence[int] = CANDIDATES) -> Attribution:
        return attribute(
            self.instrument,
            self.prompts,
            self.control,
            lambda: head_means(self.instrument, self.reference),
            candidates,
            **self.options,
        )


@pytest.fixture(scope="module", params=FAMILIES)
def case(request: pytest.FixtureRequest) -> Case:
    return Case(build(request.param))


@pytest.fixture(scope="module")
def found(case: Case) -> Attribution:
    return case.attribute()


def test_parts_sum_to_the_difference_of_a_plain_forward(case: Case, found: Attribution) -> None:
    assert found.pairs == [(40, 77), (40, 300), (77, 300)]
    parts = found.heads.sum((-1, -2)) + found.mlps.sum(-1) + found.biases.sum(-1) + found.embedding + found.constant[:, None]
    for p, pair in enumerate(found.pairs):
        for v, prompt in enumerate(case.prompts):
            want = difference(case.model, prompt.ids, pair)
            assert parts[p, v] == pytest.approx(want, abs=2e-4)
            assert found.total[p, v] == pytest.approx(want, abs=2e-4)
    assert np.abs(found.error).max() < 1e-4


def test_mean_ablation_is_a_full_forward_with_a_plain_hook(case: Case, found: Attribution) -> None:
    pair = found.pairs[0]
    means = torch.stack([heads_of(case.model, r.ids) for r in case.reference]).mean(0)
    assert len(found.tests) == 3
    effects = []
    for test in found.tests:
        at = (test.layer, test.head)
        effect = [with_head(case.model, p.ids, pair, at, means[at]) - difference(case.model, p.ids, pair) for p in case.prompts]
        effects.append(effect)
        assert test.ablation == pytest.approx(np.mean(effect), abs=3e-4)
        assert test.low <= test.ablation <= test.high
    # p by every sign flip, written out
    for test, effect in zip(found.tests, effects, strict=True):
        sums = [abs(np.dot(signs, effect)) for signs in product((-1, 1), repeat=len(effect))]
        assert test.p == pytest.approx(np.mean(np.array(sums) >= abs(np.sum(effect)) - 1e-9))
    np.testing.assert_allclose([t.q for t in found.tests], benjamini_hochberg([t.p for t in found.tests]))


def test_the_size_to_exceed_comes_from_the_other_heads(case: Case, found: Attribution) -> None:
    pair = found.pairs[0]
    means = torch.stack([heads_of(case.model, r.ids) for r in case.reference]).mean(0)
    tested = {(t.layer, t.head) for t in found.tests}
    others = [(i, h) for i in range(N_LAYERS) for h in range(N_HEADS) if (i, h) not in tested]
    assert found.random_n == len(others) == 5
    sizes = [
        abs(
            np.mean([with_head(case.model, p.ids, pair, at, means[at]) - difference(case.model, p.ids, pair) for p in case.prompts])
        )
        for at in others
    ]
    assert found.random_effect == pytest.approx(max(sizes), abs=3e-4)  # of five values the 95th percentile is the largest


def test_the_heads_with_the_largest_part_are_tested(found: Attribution) -> None:
    size = np.abs(found.heads[0].mean(0))
    smallest = min(size[t.layer, t.head] for t in found.tests)
    assert (size > smallest - 1e-12).sum() == 3


def test_patching_is_the_share_of_the_way_to_the_control(case: Case) -> None:
    """With the pair on which prompt and control differ most, so that there is a way to go."""
    gap = torch.stack([last_logits(case.model, case.control.ids) - last_logits(case.model, p.ids) for p in case.prompts]).mean(0)
    pair = (int(gap.argmax()), int(gap.argmin()))
    found = case.attribute(pair)
    of_control = heads_of(case.model, case.control.ids)
    goal = difference(case.model, case.control.ids, pair)
    for test in found.tests:
        at = (test.layer, test.head)
        base = np.array([difference(case.model, p.ids, pair) for p in case.prompts])
        moved = np.array([with_head(case.model, p.ids, pair, at, of_control[at]) for p in case.prompts]) - base
        assert test.recovered == pytest.approx(moved.mean() / (goal - base).mean(), abs=1e-3)
        assert test.recovered_control is not None


def test_a_control_that_does_not_differ_is_no_goal(case: Case) -> None:
    same = Case(case.model, control=TEXTS[0])
    assert all(t.recovered is None and t.recovered_control is None for t in same.attribute().tests)


def test_patching_a_head_with_its_own_output_changes_nothing(case: Case) -> None:
    prompt = case.prompts[0]
    _, own = head_means(case.instrument, [prompt])
    torch.testing.assert_close(own[0], heads_of(case.model, prompt.ids), atol=1e-4, rtol=1e-4)
    rerun = PairRuns(case.instrument, [prompt], (40, 77))
    base = rerun()
    for layer, head in product(range(N_LAYERS), range(N_HEADS)):
        np.testing.assert_allclose(rerun([HeadReplace(layer, head, own[0, layer, head], rows=(-1,))]), base, atol=2e-5)


@pytest.mark.parametrize("family", ["llama", "gemma3", "gpt_neox"])
def test_patching_every_head_arrives_at_the_control(family: str) -> None:
    """Same last token, no learned positions: what the last row computes differs only by what its heads bring."""
    case = Case(build(family))
    prompt, control = case.prompts[0], case.control
    assert prompt.ids[-1] == control.ids[-1]
    _, of_control = head_means(case.instrument, [control])
    every = [HeadReplace(i, h, of_control[0, i, h], rows=(-1,)) for i in range(N_LAYERS) for h in range(N_HEADS)]
    arrived = PairRuns(case.instrument, [prompt], (40, 77))(every)
    assert arrived[0] == pytest.approx(difference(case.model, control.ids, (40, 77)), abs=2e-4)


def test_small_pieces_give_the_same(case: Case, found: Attribution, monkeypatch: pytest.MonkeyPatch) -> None:
    influence = token_influence(case.instrument, case.prompts[0], (40, 77))
    monkeypatch.setattr(_attribute, "_CACHED_AT_ONCE", 1)
    again = case.attribute()
    for name in ("heads", "mlps", "biases", "embedding", "total", "toward"):
        np.testing.assert_allclose(getattr(again, name), getattr(found, name), atol=2e-4)
    for one, two in zip(found.tests, again.tests, strict=True):
        assert (one.layer, one.head) == (two.layer, two.head)
        assert two.ablation == pytest.approx(one.ablation, abs=3e-4)
    np.testing.assert_allclose(token_influence(case.instrument, case.prompts[0], (40, 77)), influence, atol=2e-4)


def test_what_heads_write_toward_a_candidate_is_centred(case: Case, found: Attribution) -> None:
    assert found.toward.shape == (3, N_LAYERS, N_HEADS)
    np.testing.assert_allclose(found.toward.sum(0), 0, atol=1e-5)
    for p, (a, b) in enumerate(found.pairs):
        i, j = CANDIDATES.index(a), CANDIDATES.index(b)
        np.testing.assert_allclose(found.toward[i] - found.toward[j], found.heads[p, 0], atol=1e-4)


# -- hiding tokens -----------------------------------------------------------------------------------------------------------


def test_a_tokens_influence_is_a_full_forward_with_a_plain_mask(case: Case) -> None:
    prompt, pair = case.prompts[0], (40, 77)
    found = token_influence(case.instrument, prompt, pair)
    base = difference(case.model, prompt.ids, pair)
    assert hidden_from_last(case.model, prompt.ids, [], pair) == pytest.approx(base, abs=1e-4)
    want = [base - hidden_from_last(case.model, prompt.ids, [k], pair) for k in range(len(prompt))]
    np.testing.assert_allclose(found, want, atol=3e-4)
    assert np.abs(found).max() > 0.01


def test_long_prompts_are_hidden_in_runs(case: Case) -> None:
    prompt, pair = case.prompt("The miller keeps the key to the gate and the red book. " * 7), (40, 77)
    n = len(prompt)
    assert n > 64
    found = token_influence(case.instrument, prompt, pair)
    base = difference(case.model, prompt.ids, pair)
    for run in (np.array_split(np.arange(n), 64)[i].tolist() for i in (0, 5, 63)):
        share = (base - hidden_from_last(case.model, prompt.ids, run, pair)) / len(run)
        np.testing.assert_allclose(found[run], share, atol=3e-4)


def test_one_token_has_no_influence_to_measure(case: Case) -> None:
    one = build_prompt(case.instrument.loaded.tokenizer, "a")
    assert len(one) == 1
    assert token_influence(case.instrument, one, (40, 77)).tolist() == [0.0]


def test_one_token_prompts_are_attributed_and_ablated_all_the_same(case: Case) -> None:
    """Alone there is no prefix to share; among longer ones its whole prefix is padding."""
    for texts in (("a",), ("a", "\n\na river")):
        single = Case(case.model, texts=texts)
        found = single.attribute()
        assert np.abs(found.error).max() < 1e-4
        means = torch.stack([heads_of(case.model, r.ids) for r in single.reference]).mean(0)
        for test in found.tests:
            at = (test.layer, test.head)
            effect = [
                with_head(case.model, p.ids, found.pairs[0], at, means[at]) - difference(case.model, p.ids, found.pairs[0])
                for p in single.prompts
            ]
            assert test.ablation == pytest.approx(np.mean(effect), abs=3e-4)


# -- what is confirmed, and what is not --------------------------------------------------------------------------------------

SEVEN = (*TEXTS, "  The mill stands where the river turns. The miller keeps the", "So the mill stands where the river turns. "
         "The miller keeps the", "The mill stands where the river turns. And the miller keeps the")  # fmt: skip
PLANTED = (1, 2)


def planted(size: float) -> tuple[Case, list[int]]:
    """A model one of whose heads writes ``size`` along one candidate pair's difference, on every prompt but on no reference.

    The head attends as it did; its output projection is rewritten so that what it carries on the prompts (mean over prompts minus mean over
    references) is what pushes the pair apart. The last MLP is silent, so nothing downstream answers.
    """
    model = build("llama")
    case = Case(model, texts=SEVEN)
    a, b = 40, 77
    layer, head = PLANTED
    with torch.no_grad():
        model.model.layers[layer].mlp.down_proj.weight.zero_()
        z = torch.stack([heads_of(model, p.ids)[layer, head] for p in case.prompts]).mean(0)
        away = torch.stack([heads_of(model, p.ids)[layer, head] for p in case.reference]).mean(0)
        read = z - away * (z @ away) / (away @ away)
        write = (model.lm_head.weight[a] - model.lm_head.weight[b]) * model.model.norm.weight
        o_proj = output_projections(model)[layer].weight
        o_proj[:, head * D_HEAD : (head + 1) * D_HEAD] = size * torch.outer(write / write.norm(), read / (read @ z))
    return case, [a, b]


def test_a_planted_head_is_found_and_confirmed() -> None:
    case, pair = planted(30.0)
    found = case.attribute(pair)
    tests = {(t.layer, t.head): t for t in found.tests}
    assert PLANTED in tests
    test = tests[PLANTED]
    assert found.heads[0, :, 1, 2].min() > 0  # it promotes the first
    assert test.ablation < 0  # without it the first loses
    assert test.q <= 0.05
    assert abs(test.ablation) > found.random_effect
    assert test.confirmed
    assert abs(test.ablation) == max(abs(t.ablation) for t in found.tests)


def test_a_planted_inhibitor_is_confirmed_with_the_other_sign() -> None:
    case, pair = planted(-30.0)
    test = next(t for t in case.attribute(pair).tests if (t.layer, t.head) == PLANTED)
    assert test.ablation > 0
    assert test.confirmed


def test_heads_that_write_nothing_are_never_confirmed() -> None:
    model = build("llama")
    with torch.no_grad():
        for module in output_projections(model):
            module.weight.zero_()
    found = Case(model, texts=SEVEN).attribute()
    assert not any(t.confirmed for t in found.tests)
    assert all(t.ablation == 0 and t.p == 1 for t in found.tests)
    assert found.random_effect == 0


def test_too_few_variants_confirm_nothing() -> None:
    """Four sign flips cannot reach 0.05 however large the effect."""
    case, pair = planted(30.0)
    case.prompts = case.prompts[:4]
    found = case.attribute(pair)
    assert min(t.p for t in found.tests) >= 2 / 2**4
    assert not any(t.confirmed for t in found.tests)


def test_without_other_heads_there_is_no_size_to_exceed() -> None:
    case, pair = planted(30.0)
    case.options |= {"top_heads": 8}
    found = case.attribute(pair)
    assert len(found.tests) == 8
    assert found.random_n == 0
    assert found.random_effect == float("inf")
    assert not any(t.confirmed for t in found.tests)
    heads = attribution_frames(found, {t: str(t) for t in pair}, pair, 0)["heads"]
    assert heads["control_ablation"].null_count() == len(heads)


@pytest.mark.parametrize("seed", range(3))
def test_a_confirmed_head_passes_all_four_conditions(seed: int) -> None:
    case = Case(build("gpt2", seed=seed), texts=SEVEN)
    found = case.attribute()
    for t in found.tests:
        own = found.heads[0, :, t.layer, t.head].mean()
        assert t.confirmed == (
            t.q <= 0.05 and abs(t.ablation) > max(found.random_effect, 0.01) and t.specificity <= 0.05 and t.ablation * own < 0
        )


# -- tables ------------------------------------------------------------------------------------------------------------------


def test_tables_hold_what_was_found(found: Attribution) -> None:
    names = {t: f"t{t}" for t in CANDIDATES}
    frames = attribution_frames(found, names, CANDIDATES, seed=0)
    heads = frames["heads"]
    assert len(heads) == 3 * N_LAYERS * N_HEADS
    first = heads.filter(heads["target"] == "t40 − t77")
    assert first["ablation"].count() == 3
    assert heads["ablation"].count() == 3  # only the first pair is tested
    np.testing.assert_allclose(first["dla"].to_numpy(), found.heads[0].mean(0).ravel())
    assert (first["role"] == "promotes").to_list() == [x >= 0 for x in first["dla"].to_list()]
    sums = frames["components"].group_by("target", maintain_order=True).agg(total=pl.col("contribution").sum())
    np.testing.assert_allclose(sums["total"].to_numpy(), found.total[:, 0], atol=1e-4)
    np.testing.assert_allclose(frames["dla_check"]["logit_difference"].to_numpy(), found.total[:, 0])
    by_layer = frames["ov"].group_by("layer").agg(total=pl.col("strength").sum())
    np.testing.assert_allclose(by_layer["total"].to_numpy(), 0, atol=1e-5)


@given(p=st.floats(0, 1), threshold=st.floats(0.05, 0.95), gap=st.floats(0, 20))
def test_what_isolate_needs_is_what_yield_asks(p: float, threshold: float, gap: float) -> None:
    frame = changes_frame(_changes(p, threshold, gap))
    rows = frame.filter(frame["kind"] == "isolate")
    assert len(rows) == (p <= threshold)
    if len(rows) and p > 1e-12:
        need = rows["needed"][0]
        after = p * np.exp(need) / (p * np.exp(need) + 1 - p)
        assert after == pytest.approx(threshold, rel=1e-6)
    margin = frame.filter(frame["kind"] == "margin")
    assert gap + margin["needed"][0] == pytest.approx(1.0)


def _changes(p: float, threshold: float, gap: float) -> dict[str, Any]:
    return {
        "probability": p,
        "threshold": threshold,
        "log_odds": gap,
        "criterion": 1.0,
        "names": ["a", "b"],
        "sensitivity": pl.DataFrame(schema={"kind": pl.String, "text": pl.String, "js": pl.Float64, "top_token": pl.String, "changed": pl.Boolean}),
        "tests": [],
        "influence": np.array([0.3, -2.0]),
        "tokens": ["x", "y"],
        "base": 1.5,
        "control_log_odds": 3.0,
        "control_text": "c",
    }  # fmt: skip


def test_hiding_a_token_that_carries_the_lead_changes_the_order() -> None:
    tokens = changes_frame(_changes(0.7, 0.5, 1.5)).filter(pl.col("kind") == "token")
    # Token y speaks against (−2.0): hiding it adds 2; token x speaks for (+0.3): hiding it takes 0.3.
    assert tokens["needed"].to_list() == [2.0, -0.3]
    changed = _changes(0.7, 0.5, 1.5) | {"influence": np.array([2.0, 0.1])}
    assert "changes order" in changes_frame(changed).filter(pl.col("kind") == "token")["effect"][0]


def test_capped_logits_are_judged_and_the_uncapped_attributed() -> None:
    """Verdicts and interventions are of what the model puts out; the parts add up to what goes into the cap."""
    cap = 4.0
    model = build("gemma3", final_logit_softcapping=cap)
    shell = ValueCollapseShell(model, tiny_tokenizer(), ValueCollapseConfig.make(variants=3, steps=2, top_heads=2, random_heads=3))
    findings = shell.analyze_residue(residue := shell.run("the mill stands where the river turns, and the"))
    a, b = residue.asked.candidates[:2]
    ids = shell._family(residue.asked)[0][0].ids
    put_out = difference(model, ids, (a, b))
    candidates = residue.frames["candidates"]
    assert candidates["logit"][0] - candidates["logit"][1] == pytest.approx(put_out, abs=1e-4)
    with torch.no_grad():
        logits = model(input_ids=torch.tensor([ids]), use_cache=False).logits[0, -1].double()
    uncapped = cap * (torch.atanh(logits[a] / cap) - torch.atanh(logits[b] / cap))
    check = findings.frames["dla_check"].row(0, named=True)
    assert check["logit_difference"] == pytest.approx(float(uncapped), rel=1e-2)
    assert abs(check["error"]) < 1e-3
    assert float(uncapped) != pytest.approx(put_out, rel=0.02)
    head = findings.attribution.tests[0]
    edit = HeadReplace(head.layer, head.head, shell._means[False][0][head.layer, head.head], rows=(-1,))
    runs = PairRuns(shell.instrument, shell._family(residue.asked)[0], (a, b))
    assert head.ablation == pytest.approx(float((runs([edit]) - runs()).mean()), abs=1e-4)


def test_specificity_is_the_rank_among_random_pairs(case: Case, found: Attribution) -> None:
    for test in found.tests:
        assert 1 / 201 <= test.specificity <= 1
    # A head that writes the same to every token moves no pair: its own is no exception.
    means, _ = head_means(case.instrument, case.reference)
    rerun = PairRuns(case.instrument, case.prompts, found.pairs[0])
    edit = HeadReplace(found.tests[0].layer, found.tests[0].head, means[found.tests[0].layer, found.tests[0].head], rows=(-1,))
    both = rerun.pairs([found.pairs[0], (5, 5)], [edit])
    np.testing.assert_allclose(both[:, 0], rerun([edit]), atol=1e-9)
    assert np.abs(both[:, 1]).max() == 0.0
