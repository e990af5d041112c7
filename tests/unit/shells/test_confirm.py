"""Heads confirmed on prompts with a pair of tokens each, in clusters: against plain forwards, and against what resampling must not see."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from tiny_models import build, tiny_tokenizer

from symbolic_residue.errors import ConfigError
from symbolic_residue.instrument import HeadReplace, Instrument, LastRow
from symbolic_residue.models import wrap
from symbolic_residue.prompts import build_prompt, Prompt
from symbolic_residue.shells import confirm_heads, HeadConfirmation, PairRuns
from symbolic_residue.shells._confirm import draw_heads, head_means, in_pieces

WORDS = ("gate", "river", "mill", "key", "door", "boat", "hill", "road")
PAIRS = [(20 + i, 200 - 3 * i) for i in range(len(WORDS))]


@pytest.fixture(scope="module")
def instrument() -> Instrument:
    return Instrument(wrap(build("llama"), tiny_tokenizer()))


@pytest.fixture(scope="module")
def prompts(instrument: Instrument) -> list[Prompt]:
    return [build_prompt(instrument.loaded.tokenizer, f"the old {word} stands near the") for word in WORDS]


def confirm(instrument: Instrument, prompts: list[Prompt], **options: Any) -> HeadConfirmation:
    means, _ = head_means(instrument, [build_prompt(instrument.loaded.tokenizer, "a red cup and a blue cup")])
    rng = np.random.default_rng(0)
    runs = PairRuns(instrument, prompts, PAIRS[: len(prompts)])
    given: dict[str, Any] = {"means": means, "contribution": np.array([1.0, -1.0]), "seed": 0, "rng": rng} | options
    return confirm_heads(runs, [(0, 1), (1, 2)], [(1, 0)], **given)


@torch.no_grad()
def test_each_prompt_has_its_own_pair(instrument: Instrument, prompts: list[Prompt]) -> None:
    got = PairRuns(instrument, prompts, PAIRS)()
    for value, prompt, (a, b) in zip(got, prompts, PAIRS, strict=True):
        logits = instrument.model(input_ids=torch.tensor([prompt.ids]), use_cache=False).logits[0, -1].double()
        assert value == pytest.approx(float(logits[a] - logits[b]), abs=1e-4)


def test_a_cluster_for_each_prompt_is_no_cluster(instrument: Instrument, prompts: list[Prompt]) -> None:
    plain, single = confirm(instrument, prompts), confirm(instrument, prompts, clusters=[str(i) for i in range(len(prompts))])
    for one, two in zip(plain.tests, single.tests, strict=True):
        assert one.ablation == pytest.approx(two.ablation)
        assert one.p == pytest.approx(two.p)
        assert one.confirmed is not None
        assert two.confirmed is not None


def test_copies_of_a_cluster_are_no_evidence(instrument: Instrument, prompts: list[Prompt]) -> None:
    """Each of two prompts four times over: eight rows, two units, and nothing can be confirmed."""
    twice = [prompts[i % 2] for i in range(8)]
    means, _ = head_means(instrument, prompts[2:])
    runs = PairRuns(instrument, twice, [PAIRS[i % 2] for i in range(8)])
    options: dict[str, Any] = {"means": means, "contribution": np.array([1.0]), "seed": 0}
    loose = confirm_heads(runs, [(0, 1)], [(1, 0)], rng=np.random.default_rng(0), **options)
    tight = confirm_heads(
        runs, [(0, 1)], [(1, 0)], rng=np.random.default_rng(0), clusters=[str(i % 2) for i in range(8)], **options
    )
    assert tight.tests[0].confirmed is None
    assert loose.tests[0].confirmed is not None
    assert tight.tests[0].p >= 0.5  # two units have four sign patterns


def test_the_base_is_run_once(instrument: Instrument, prompts: list[Prompt], monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[int] = []
    run = LastRow.run
    monkeypatch.setattr(LastRow, "run", lambda self, edits=(), **o: (seen.append(len(edits)), run(self, edits, **o))[1])
    confirm(instrument, prompts)
    assert seen == [0, 0, 2, 1]  # the unrelated prompts' means, the base, two heads together, a random one


@pytest.mark.parametrize("family", ["llama", "gpt2", "gemma3", "qwen3_next"])
def test_heads_together_are_heads_alone(family: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Cells of one forward are plain forwards with one head replaced, whatever the size of the groups."""
    instrument = Instrument(wrap(build(family), tiny_tokenizer()))
    prompts = [build_prompt(instrument.loaded.tokenizer, f"the old {word} stands near the") for word in WORDS[:3]]
    pairs = [[(a, b), (b + 1, a + 1)] for a, b in PAIRS[:3]]
    parts = instrument.parts
    at = instrument.attention_layers
    cells = [(at[i % len(at)], i % parts.n_heads, torch.full((parts.d_head,), 0.3 * i)) for i in range(5)]
    runs = PairRuns(instrument, prompts, PAIRS[:3])
    want = np.stack([runs.of(pairs, [HeadReplace(*cell, rows=(-1,))]) for cell in cells])
    for size in (1, 2, 5):
        monkeypatch.setattr("symbolic_residue.shells._confirm._CELLS_AT_ONCE", size)
        told: list[int] = []
        got = runs.heads(cells, pairs, told.append)
        assert np.allclose(got, want, atol=2e-4)
        assert sum(told) == 5
    assert runs.heads([], pairs).shape == (0, 3, 2)


def test_nothing_to_test_or_to_compare_with(instrument: Instrument, prompts: list[Prompt]) -> None:
    means, _ = head_means(instrument, prompts)
    rng = np.random.default_rng(0)
    options: dict[str, Any] = {"means": means, "seed": 0, "rng": rng}
    runs = PairRuns(instrument, prompts, PAIRS)
    none = confirm_heads(runs, [], [(1, 0)], contribution=np.array([]), **options)
    assert (none.tests, none.random_n, none.confirmed) == ([], 1, [])
    alone = confirm_heads(runs, [(0, 0)], [], contribution=np.array([1.0]), **options)
    assert alone.random_effect == float("inf")
    assert alone.tests[0].confirmed is None
    with pytest.raises(ConfigError):
        confirm_heads(runs, [(0, 0)], [], contribution=np.array([1.0]), clusters=["one label"], **options)


def test_layers_without_heads_have_no_mean() -> None:
    instrument = Instrument(wrap(build("qwen3_next"), tiny_tokenizer()))
    means, each = head_means(instrument, [build_prompt(instrument.loaded.tokenizer, "the gate by the river")])
    there = [bool(m.isfinite().all()) for m in means]
    assert [i for i, found in enumerate(there) if found] == list(instrument.attention_layers)
    assert bool(means[[i for i, found in enumerate(there) if not found]].isnan().all())
    assert each.shape == (1, *means.shape)


def test_random_heads_are_drawn_once_each() -> None:
    drawn = draw_heads([(0, i) for i in range(5)], 9, np.random.default_rng(1))
    assert sorted(drawn) == [(0, i) for i in range(5)]


def test_pieces_hold_every_prompt_in_order(prompts: list[Prompt]) -> None:
    assert [p for piece in in_pieces(prompts) for p in piece] == prompts
