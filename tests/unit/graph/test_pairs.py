"""Pairs on a model: what holds, and the reason where it does not."""

from __future__ import annotations

import pytest
import torch
from graph_helpers import instrument_of

from symbolic_residue.errors import ConfigError, PromptError
from symbolic_residue.graph import token_pair, validate_pairs
from symbolic_residue.prompts import CounterfactualPair


def pair(id: str = "p", **changes: str) -> CounterfactualPair:
    fields = {"clean": "The answer is", "corrupted": "The book is", "answer": " a", "wrong": " b"} | changes
    return CounterfactualPair(id=id, category="facts", **fields)  # type: ignore[arg-type]


def test_differences_are_those_of_plain_runs_and_every_pair_has_its_row() -> None:
    instrument = instrument_of("llama")
    tokenizer = instrument.loaded.tokenizer
    words = [tokenizer.decode([i]) for i in (300, 310, 320, 330, 340, 350)]
    words = [w for w in words if len(tokenizer(w)["input_ids"]) == 1][:4]
    texts = (
        "Anna put the red book under the table",
        "Anna put the red book under the book",
        "Anna put the red answer on the table",
    )
    pairs, expected = [], []
    for i, (clean, corrupted) in enumerate(
        ((texts[0], texts[1]), (texts[1], texts[0]), (texts[0], texts[2]), (texts[2], texts[0]))
    ):
        pairs.append(pair(str(i), clean=clean, corrupted=corrupted, answer=words[0], wrong=words[1 + i % 2]))
    for one in pairs:
        sides = [torch.tensor(tokenizer(text)["input_ids"]) for text in (one.clean, one.corrupted)]
        if len(sides[0]) != len(sides[1]):
            expected.append(None)
            continue
        a, b = (int(tokenizer(w)["input_ids"][0]) for w in (one.answer, one.wrong))
        with torch.no_grad():
            expected.append([float((d := instrument.model(ids[None]).logits[0, -1])[a] - d[b]) for ids in sides])
    found = validate_pairs(instrument, pairs, least=0.5)
    assert found["id"].to_list() == ["0", "1", "2", "3"]
    for row, truth in zip(found.iter_rows(named=True), expected, strict=True):
        if truth is None:
            assert not row["holds"] and "tokens and the corrupted" in row["reason"] and row["clean"] is None
            continue
        assert [row["clean"], row["corrupted"]] == pytest.approx(truth, abs=1e-9)
        assert row["holds"] == (truth[0] > 0 and truth[0] - truth[1] >= 0.5)
        assert (row["reason"] is None) == row["holds"]
    assert any(truth is not None for truth in expected)


def test_sides_are_not_exchanged() -> None:
    """Turned round, a pair that holds does not: the clean side's answer is below the wrong one."""
    instrument = instrument_of("gpt2", scale=0.5)
    tokenizer = instrument.loaded.tokenizer
    clean, corrupted = "Anna put the red book under the table", "Anna put the red table under the book"
    one, two = (instrument.run(torch.tensor([tokenizer(t)["input_ids"]])).logits[0, -1] for t in (clean, corrupted))
    single = [i for i in range(260, 384) if len(tokenizer(tokenizer.decode([i]))["input_ids"]) == 1]
    a = max(single, key=lambda i: float(one[i] - two[i]))
    b = min(single, key=lambda i: float(one[i] - two[i]))
    words = {"answer": tokenizer.decode([a]), "wrong": tokenizer.decode([b])}
    found = validate_pairs(instrument, [pair(clean=clean, corrupted=corrupted, **words)], least=0.01)
    gap = float((one[a] - one[b]) - (two[a] - two[b]))
    assert found["clean"][0] - found["corrupted"][0] == pytest.approx(gap) and gap > 0.01
    turned = validate_pairs(instrument, [pair(clean=corrupted, corrupted=clean, **words)], least=0.01)
    assert not turned["holds"][0]
    weak = validate_pairs(instrument, [pair(clean=clean, corrupted=corrupted, **words)], least=1e6)
    assert not weak["holds"][0]


def test_what_cannot_be_run_is_listed_with_the_reason() -> None:
    instrument = instrument_of("llama")
    pairs = [
        pair("several", answer=" unbelievably"),
        pair("lengths", corrupted="The book is under the old table"),
        pair("one", clean="The answer is", corrupted="The answer is "),
    ]
    found = validate_pairs(instrument, pairs)
    assert not found["holds"].any() and found["clean"].null_count() == 3
    assert "tokens:" in found["reason"][0] and "corrupted one" in found["reason"][1]
    with pytest.raises(PromptError, match="logit difference is between two"):
        token_pair(instrument, pairs[0])
    with pytest.raises(ConfigError):
        validate_pairs(instrument, [])
    with pytest.raises(ConfigError, match="least"):
        validate_pairs(instrument, pairs, least=0)
