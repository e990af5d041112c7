"""ISOLATE, STABILIZE and YIELD by themselves, against plain forwards."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from tiny_models import build, tiny_tokenizer

from symbolic_residue.errors import ConfigError, PromptError, TemplateError
from symbolic_residue.shells import ValueCollapseConfig, ValueCollapseShell
from symbolic_residue.shells.value_collapse._observe import choose_candidates
from symbolic_residue.shells.value_collapse._operations import commit, resolve_candidates, token_text

TEXT = "The mill stands where the river turns. The miller keeps the"
WORDS = [" the", " gate"]


@pytest.fixture(scope="module", params=["llama", "gemma3", "gpt2", "gpt_neox"])
def shell(request: pytest.FixtureRequest) -> ValueCollapseShell:
    return ValueCollapseShell(build(request.param), tiny_tokenizer(), ValueCollapseConfig.make(steps=2))


@torch.no_grad()
def plain_logits(shell: ValueCollapseShell, ids: list[int]) -> torch.Tensor:
    return shell.loaded.model(input_ids=torch.tensor([ids]), use_cache=False).logits[0, -1].double()


def ids_of(shell: ValueCollapseShell, text: str = TEXT) -> list[int]:
    return shell.tokenizer.encode(text)


# -- ISOLATE -----------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("factor", [2.0, -1.5, 0.0])
def test_isolate_adds_exactly_to_the_logits(shell: ValueCollapseShell, factor: float) -> None:
    logits = plain_logits(shell, ids_of(shell))
    ids = [ids_of(shell, w)[0] for w in WORDS]
    found = shell.isolate_operation(WORDS, TEXT, factor)
    want = logits.clone()
    want[ids] += factor
    np.testing.assert_allclose(found.before, torch.softmax(logits, -1)[ids], rtol=1e-4)
    np.testing.assert_allclose(found.distribution, torch.softmax(want, -1), rtol=1e-4, atol=1e-9)
    np.testing.assert_allclose(found.after, found.distribution[ids])
    # Raising two of n logits raises the mean as well, by 2 · factor / n.
    np.testing.assert_allclose(found.shift, factor * (1 - 2 / len(logits)), atol=1e-6)
    assert found.tokens == tuple(WORDS)


def test_isolate_in_the_residual_stream_raises_by_the_factor(shell: ValueCollapseShell) -> None:
    """To first order: what is missing is of second order in the factor, as the norm's scale moves."""
    for factor, within in ((0.02, 0.02), (0.1, 0.1), (-0.1, 0.1)):
        shift = shell.isolate_operation(WORDS, TEXT, factor, mode="residual").shift
        np.testing.assert_allclose(shift, factor, rtol=within)


def test_isolate_at_an_earlier_layer_is_another_intervention(shell: ValueCollapseShell) -> None:
    early = shell.isolate_operation(WORDS, TEXT, 1.0, mode="residual", layer=0)
    last = shell.isolate_operation(WORDS, TEXT, 1.0, mode="residual", layer=1)
    assert np.abs(early.distribution - last.distribution).max() > 1e-4
    default = shell.isolate_operation(WORDS, TEXT, 1.0, mode="residual")
    np.testing.assert_allclose(default.distribution, last.distribution, rtol=1e-4)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"factor": float("nan")}, "factor is nan"),
        ({"factor": float("inf")}, "factor is inf"),
        ({"mode": "weights"}, "no mode 'weights'"),
        ({"mode": "residual", "layer": 2}, "no layer 2"),
        ({"mode": "residual", "layer": -1}, "no layer -1"),
        ({"candidates": [" the"]}, "two different"),
        ({"candidates": [" the", " the"]}, "two different"),
        ({"candidates": [5, 384]}, "outside the vocabulary"),
        ({"candidates": [5, -1]}, "outside the vocabulary"),
    ],
)
def test_isolate_refuses(shell: ValueCollapseShell, changes: dict[str, Any], words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        shell.isolate_operation(**({"candidates": WORDS, "context": TEXT} | changes))


def test_an_empty_context_is_refused(shell: ValueCollapseShell) -> None:
    with pytest.raises(PromptError):
        shell.isolate_operation(WORDS, "")


# -- candidates --------------------------------------------------------------------------------------------------------------


def test_a_candidate_of_several_tokens_is_refused_with_its_pieces() -> None:
    tokenizer = tiny_tokenizer()
    pieces = [token_text(tokenizer, i) for i in tokenizer.encode(" keeps rivers")]
    assert len(pieces) > 1
    with pytest.raises(ConfigError) as caught:
        resolve_candidates(tokenizer, [" the", " keeps rivers"])
    for piece in pieces:
        assert repr(piece) in str(caught.value)
    with pytest.raises(ConfigError, match="Its pieces: none"):
        resolve_candidates(tokenizer, [" the", ""])


def test_candidates_by_text_and_by_id_are_the_same() -> None:
    tokenizer = tiny_tokenizer()
    ids = resolve_candidates(tokenizer, WORDS)
    assert [token_text(tokenizer, i) for i in ids] == WORDS
    assert resolve_candidates(tokenizer, ids) == ids
    assert resolve_candidates(tokenizer, np.array(ids)) == ids  # type: ignore[arg-type]


def test_one_string_is_not_a_list_of_its_letters() -> None:
    with pytest.raises(ConfigError, match="single string"):
        resolve_candidates(tiny_tokenizer(), "ab")


distributions = arrays(np.float64, st.integers(12, 40), elements=st.floats(1e-6, 1.0)).map(lambda x: x / x.sum())


@given(distributions, st.floats(0.05, 0.99), st.integers(2, 10))
def test_candidates_are_the_smallest_set_that_holds_the_mass(p: np.ndarray, mass: float, most: int) -> None:
    config = ValueCollapseConfig.make(mass=mass, max_candidates=most)
    chosen = choose_candidates(p, config)
    assert 2 <= len(chosen) <= most
    assert len(set(chosen)) == len(chosen)
    held = p[chosen]
    assert (np.diff(held) <= 0).all()  # best first
    assert held.min() >= np.delete(p, chosen).max()  # nothing better was left out
    if len(chosen) < most:
        assert held.sum() >= mass
    if len(chosen) > 2:
        assert held[:-1].sum() < mass  # one fewer would not do


# -- STABILIZE ---------------------------------------------------------------------------------------------------------------


def test_stabilize_by_rollout_follows_the_plain_greedy_continuation(shell: ValueCollapseShell) -> None:
    found = shell.stabilize_operation(TEXT, 3, refiner="rollout", candidates=WORDS)
    assert found.refiner == "rollout"
    ids = ids_of(shell)
    for step in range(found.probability.shape[1]):
        p = torch.softmax(plain_logits(shell, ids), -1)
        np.testing.assert_allclose(found.probability[0, step], p[[ids_of(shell, w)[0] for w in WORDS]], atol=2e-5)
        ids.append(int(p.argmax()))


def test_stabilize_by_layers_ends_at_the_output(shell: ValueCollapseShell) -> None:
    found = shell.stabilize_operation(TEXT, refiner="layers", candidates=WORDS)
    p = torch.softmax(plain_logits(shell, ids_of(shell)), -1)
    np.testing.assert_allclose(found.probability[0, -1], p[[ids_of(shell, w)[0] for w in WORDS]], atol=2e-5)
    assert found.probability.shape[1] == 3  # the embedding and two layers


def test_stabilize_by_soft_starts_at_the_output_and_takes_n_steps(shell: ValueCollapseShell) -> None:
    strict = ValueCollapseShell(config=ValueCollapseConfig.make(tolerance=1e-12), loaded=shell.loaded)
    found = strict.stabilize_operation(TEXT, 4)
    assert found.refiner == "soft"
    assert found.probability.shape[1] == 5
    p = torch.softmax(plain_logits(shell, ids_of(shell)), -1)
    chosen = choose_candidates(p.numpy(), shell.config)
    np.testing.assert_allclose(found.probability[0, 0], p[chosen], atol=2e-5)


@pytest.mark.parametrize("changes", [{"n": 0}, {"n": -1}, {"n": 257}, {"refiner": "dream"}])
def test_stabilize_refuses(shell: ValueCollapseShell, changes: dict[str, Any]) -> None:
    with pytest.raises(ConfigError):
        shell.stabilize_operation(TEXT, **changes)


# -- YIELD -------------------------------------------------------------------------------------------------------------------


def test_yield_returns_the_top_token_above_the_threshold_only(shell: ValueCollapseShell) -> None:
    p = torch.softmax(plain_logits(shell, ids_of(shell)), -1)
    top, token = float(p.max()), token_text(shell.tokenizer, int(p.argmax()))
    assert shell.yield_operation(TEXT, top - 1e-3) == token
    assert shell.yield_operation(TEXT, top + 1e-3) is None
    assert shell.yield_operation(TEXT) == (token if top > 0.5 else None)


@given(distributions, st.floats(0.001, 0.999))
def test_commit_is_strict(p: np.ndarray, threshold: float) -> None:
    found = commit(p, threshold)
    assert found == (int(p.argmax()) if p.max() > threshold else None)
    if p.max() < 1:
        assert commit(p, float(p.max())) is None


@pytest.mark.parametrize("threshold", [0.0, 1.0, -0.5, float("nan")])
def test_a_threshold_outside_the_unit_interval_is_refused(shell: ValueCollapseShell, threshold: float) -> None:
    with pytest.raises(ConfigError, match="threshold"):
        shell.yield_operation(TEXT, threshold)


# -- the chat frame ----------------------------------------------------------------------------------------------------------


def test_operations_read_the_context_in_the_chat_frame(shell: ValueCollapseShell) -> None:
    rendered = shell.tokenizer.apply_chat_template([{"role": "user", "content": TEXT}], tokenize=False, add_generation_prompt=True)
    ids = shell.tokenizer.encode(rendered, add_special_tokens=False)
    p = torch.softmax(plain_logits(shell, ids), -1)
    found = shell.isolate_operation(WORDS, TEXT, 0.0, chat=True)
    np.testing.assert_allclose(found.distribution, p, atol=2e-5)
    assert shell.yield_operation(TEXT, float(p.max()) - 1e-3, chat=True) == token_text(shell.tokenizer, int(p.argmax()))


def test_chat_without_a_template_is_refused() -> None:
    shell = ValueCollapseShell(build("llama"), tiny_tokenizer(chat=False))
    with pytest.raises(TemplateError):
        shell.yield_operation(TEXT, chat=True)
