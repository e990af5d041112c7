"""Behaviour scores: three planted heads score one, their controls do not, and every family's scores are those of dense attention weights."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from tiny_models import ALL, build, tiny_tokenizer

from symbolic_residue.errors import ConfigError
from symbolic_residue.instrument import AttentionRead, Instrument
from symbolic_residue.models import bind, wrap
from symbolic_residue.readout import duplicate_token_scores, induction_scores, previous_token_scores
from symbolic_residue.readout._behaviours import _ordinary_tokens

HALF = 8
VOCAB, POSITIONS = 32, 20


def planted(own_token: bool) -> Instrument:
    """A gpt2 of one head a layer. The stream has three parts: token one-hot, position one-hot, and the token before.

    Layer 0 looks at the position before and writes its token into the third part. Layer 1 looks for its own token, in the third part (induction)
    or, with ``own_token``, in the first (duplicate token; the row's own key matches too). Position 0 has no token before it and looks at itself, so it must
    not be one of the text's: the tests put a prefix there.
    """
    d = VOCAB + POSITIONS + VOCAB
    token, place, before = slice(0, VOCAB), slice(VOCAB, VOCAB + POSITIONS), slice(VOCAB + POSITIONS, d)
    model = build(
        "gpt2",
        n_embd=d,
        n_head=1,
        n_positions=POSITIONS,
        vocab_size=VOCAB,
        n_inner=4,
        bos_token_id=0,
        eos_token_id=0,
        pad_token_id=0,
    )
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            parameter.fill_(1.0 if "ln" in name and "weight" in name else 0.0)
        model.transformer.wte.weight[:, token] = torch.eye(VOCAB)
        model.transformer.wpe.weight[:, place] = torch.eye(POSITIONS)
        first, second = (block.attn for block in model.transformer.h)
        q, k, v = slice(0, d), slice(d, 2 * d), slice(2 * d, 3 * d)
        shift = torch.zeros(POSITIONS, POSITIONS)
        shift[torch.arange(1, POSITIONS), torch.arange(POSITIONS - 1)] = 1.0  # a query at p asks for p − 1
        first.c_attn.weight[:, q][place, place] = 20.0 * shift
        first.c_attn.weight[:, k][place, place] = torch.eye(POSITIONS)
        first.c_attn.weight[:, v][token, token] = torch.eye(VOCAB)
        first.c_proj.weight[token, before] = torch.eye(VOCAB)
        second.c_attn.weight[:, q][token, token] = 100.0 * torch.eye(VOCAB)
        second.c_attn.weight[:, k][token if own_token else before, token] = torch.eye(VOCAB)
    return Instrument(SimpleNamespace(model=model, parts=bind(model)))  # type: ignore[arg-type]


def test_planted_previous_token_and_induction_heads_score_one() -> None:
    instrument = planted(own_token=False)
    previous = previous_token_scores(instrument, seed=0, n_sequences=8, half=HALF, prefix=(0,))
    assert previous.value[0, 0] > 0.99 and previous.control[0, 0] < 0.01
    induction = induction_scores(instrument, seed=0, n_sequences=8, half=HALF, prefix=(0,))
    assert induction.value[1, 0] > 0.99 and induction.control_high[1, 0] < 0.2
    assert induction.value[0, 0] < 0.01
    layer, head, score, control = induction.best(1)[0]
    assert (layer, head) == (1, 0) and score.above(control.high) and score.n == 8
    duplicate = duplicate_token_scores(instrument, seed=0, n_sequences=8, half=HALF, prefix=(0,))
    assert duplicate.value.max() < 0.1


def test_a_planted_duplicate_token_head_shares_between_itself_and_the_previous_occurrence() -> None:
    duplicate = duplicate_token_scores(planted(own_token=True), seed=0, n_sequences=8, half=HALF, prefix=(0,))
    assert duplicate.value[1, 0] == pytest.approx(0.5, abs=0.01)
    assert duplicate.control_high[1, 0] < 0.05 and duplicate.value[0, 0] < 0.01


@pytest.mark.parametrize("name", list(ALL))
def test_scores_are_means_of_dense_weights(name: str) -> None:
    model = build(name)
    instrument = Instrument(SimpleNamespace(model=model, parts=bind(model)))  # type: ignore[arg-type]
    found = induction_scores(instrument, seed=5, n_sequences=3, half=5, prefix=(1,))
    generator = torch.Generator().manual_seed(5)
    pool = torch.tensor([i for i in range(384) if i != 1])
    values = []
    for _ in range(3):
        r = pool[torch.randperm(383, generator=generator)[:10]][:5]
        ids = torch.cat([torch.tensor([1]), r, r])
        assert len(set(r.tolist())) == 5
        table = instrument.run(ids[None], attention=AttentionRead(stats=("lse",), rows=tuple(range(11)), weights=True)).attention
        assert table is not None
        values.append(sum(table["weights"][:, 0, :, row, row - 4] for row in range(6, 11)) / 5)
    layers = list(instrument.parts.attention_layers)
    np.testing.assert_allclose(found.value[layers], torch.stack(values).double().mean(0).numpy(), atol=1e-6)
    absent = [i for i in range(instrument.parts.n_layers) if i not in layers]
    assert np.isnan(found.value[absent]).all() and np.isfinite(found.value[layers]).all()
    assert found.uniform == pytest.approx(np.mean([1 / (row + 1) for row in range(6, 11)]))
    assert (found.low[layers] <= found.value[layers]).all() and (found.value[layers] <= found.high[layers]).all()
    assert len(found.best(1000)) == len(layers) * instrument.parts.n_heads
    frame = found.frame()
    assert frame.height == found.value.size and frame["score"][-1] == pytest.approx(found.value[-1, -1], nan_ok=True)


def test_the_same_seed_says_the_same() -> None:
    instrument = planted(own_token=False)
    one, same, other = (induction_scores(instrument, seed=s, n_sequences=6, half=HALF, prefix=(0,)) for s in (1, 1, 2))
    np.testing.assert_array_equal(one.low, same.low)
    assert (one.control != other.control).any()


def test_special_tokens_are_not_drawn() -> None:
    tokenizer = tiny_tokenizer()
    instrument = Instrument(wrap(build("llama"), tokenizer))
    pool = set(_ordinary_tokens(instrument, (7,)).tolist())
    assert pool == set(range(len(tokenizer))) - set(tokenizer.all_special_ids) - {7} and tokenizer.all_special_ids


@pytest.mark.parametrize("options", [{"n_sequences": 1}, {"half": 2}, {"half": 17}, {"half": 12}])
def test_refusals(options: dict[str, Any]) -> None:
    with pytest.raises(ConfigError):
        induction_scores(planted(own_token=False), seed=0, **options)
