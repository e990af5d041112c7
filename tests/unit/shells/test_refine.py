"""Refiners and what their traces show: hand-computed cases, properties, and the model itself as oracle."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from tiny_models import build, tiny_tokenizer

from symbolic_residue.instrument import collate, Instrument
from symbolic_residue.models import wrap
from symbolic_residue.shells.value_collapse._refine import (
    count_returns,
    leader_loss,
    refine_layers,
    refine_rollout,
    refine_soft,
    transfer,
    velocity,
)

A, B, C = [0.6, 0.3, 0.1], [0.3, 0.6, 0.1], [0.1, 0.2, 0.7]


@pytest.mark.parametrize(
    ("shares", "returns"),
    [([A], 0), ([A, A, A], 0), ([A, B], 0), ([A, B, A], 1), ([A, B, A, B], 2), ([A, B, C, A], 1), ([A, B, B, A, A, C, B], 2)],
)
def test_returns_by_hand(shares: list[list[float]], returns: int) -> None:
    assert count_returns(np.array(shares)) == returns


def test_leader_loss_by_hand() -> None:
    assert leader_loss(np.array([A, B])) == pytest.approx(0.5)
    assert leader_loss(np.array([A, A])) == 0.0
    assert leader_loss(np.array([B, A])) == pytest.approx(0.5)
    assert leader_loss(np.array([[0.5, 0.5], [1.0, 0.0]])) == 0.0  # a leader that gains has lost nothing
    assert leader_loss(np.array([[0.9, 0.1], [0.0, 1.0]])) == 1.0


def test_transfer_by_hand() -> None:
    moved = transfer(np.array([[0.6, 0.3, 0.1], [0.2, 0.5, 0.3]]))
    # The first loses 0.4; the second gains 0.2 and the third 0.2.
    np.testing.assert_allclose(moved, [[0, 0.2, 0.2], [0, 0, 0], [0, 0, 0]], atol=1e-12)


shares = arrays(np.float64, st.tuples(st.integers(2, 8), st.integers(2, 5)), elements=st.floats(0.01, 1.0)).map(
    lambda x: x / x.sum(-1, keepdims=True)
)


@given(shares)
def test_transfer_balances_the_books(share: np.ndarray) -> None:
    moved = transfer(share)
    assert (moved >= -1e-12).all()
    net = moved.sum(0) - moved.sum(1)
    np.testing.assert_allclose(net, share[-1] - share[0], atol=1e-9)


@given(shares, st.randoms(use_true_random=False))
def test_naming_the_candidates_otherwise_changes_no_count(share: np.ndarray, random) -> None:
    order = list(range(share.shape[1]))
    random.shuffle(order)
    if all(len(set(row)) == len(row) for row in share.tolist()):  # ties go to the first by position
        assert count_returns(share[:, order]) == count_returns(share)
        assert leader_loss(share[:, order]) == pytest.approx(leader_loss(share))
    assert 0 <= count_returns(share) <= max(0, len(share) - 2)


def test_velocity_is_the_slope_of_the_logarithm() -> None:
    l1 = np.array([np.nan, *np.exp(-0.7 * np.arange(5))])
    assert velocity(l1) == pytest.approx(-0.7)
    assert np.isnan(velocity(np.array([np.nan, 0.3])))


def test_layers_leaves_out_the_unreadable_depths() -> None:
    p = np.array([[[1e-4, 1e-4], [0.04, 0.2], [0.5, 0.4]], [[0.3, 0.3], [0.2, 0.6], [0.1, 0.8]]])
    l1 = np.array([[np.nan, 0.5, 0.01], [np.nan, 0.5, 0.3]])
    found = refine_layers(np.log(p), l1, readable=0.1, tolerance=0.02)
    assert found.trace(0).shape == (2, 2)
    assert found.trace(1).shape == (3, 2)
    np.testing.assert_allclose(found.trace(0)[0], [0.04 / 0.24, 0.2 / 0.24])
    assert found.converged.tolist() == [True, False]
    never = refine_layers(np.log(p[:1] * 1e-3), l1[:1], readable=0.1, tolerance=0.02)
    assert never.trace(0).shape == (1, 2)  # the output is always there


@pytest.fixture(scope="module", params=["llama", "gemma3", "gpt2", "gpt_neox"])
def instrument(request: pytest.FixtureRequest) -> Instrument:
    return Instrument(wrap(build(request.param), tiny_tokenizer()))


def sequences() -> list[list[int]]:
    g = torch.Generator().manual_seed(0)
    return [torch.randint(4, 384, (n,), generator=g).tolist() for n in (9, 6)]


def test_rollout_appends_the_best_token(instrument: Instrument) -> None:
    candidates, steps = [7, 30, 99], 3
    found = refine_rollout(instrument, collate(sequences(), pad_id=3), candidates, steps, tolerance=1e-9)
    grown = sequences()[0]
    for step in range(steps + 1):
        p = torch.softmax(instrument.run(torch.tensor([grown]))["logits"][0, -1].double(), -1)
        np.testing.assert_allclose(found.probability[0, step], p[candidates].numpy(), atol=1e-5)
        grown = [*grown, int(p.argmax())]
    assert list(found.appended) == grown[9 : 9 + steps]
    assert found.l1.shape == (2, steps + 1)
    assert np.isnan(found.l1[:, 0]).all()


def test_soft_appends_the_expected_embedding(instrument: Instrument) -> None:
    found = refine_soft(instrument, collate(sequences(), pad_id=3), [7, 30], 1, tolerance=1e-9)
    ids = torch.tensor([sequences()[0]])
    p = torch.softmax(instrument.run(ids)["logits"][0, -1], -1)
    table = instrument.parts.embed(torch.arange(384))
    embeds = torch.cat([instrument.parts.embed(ids), (p @ table)[None, None]], 1)
    after = instrument.run(torch.cat([ids, ids[:, :1]], 1), inputs_embeds=embeds)["logits"][0, -1]
    want = torch.softmax(after.double(), -1)[[7, 30]].detach().numpy()
    np.testing.assert_allclose(found.probability[0, 1], want, atol=1e-5)


def test_a_converged_variant_has_ended(instrument: Instrument) -> None:
    found = refine_soft(instrument, collate(sequences(), pad_id=3), [7, 30], 5, tolerance=10.0)  # any change is small enough
    assert found.converged.all()
    assert found.probability.shape[1] == 2
