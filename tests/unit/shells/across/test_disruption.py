"""Attention disruption against plain attentions, and heads whose attention is made to differ."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from tiny_models import build, tiny_tokenizer

from symbolic_residue.errors import ConfigError, SpanError
from symbolic_residue.instrument import Instrument
from symbolic_residue.models import wrap
from symbolic_residue.prompts import build_prompt, Prompt
from symbolic_residue.shells import attention_disruption, attention_metrics
from symbolic_residue.store._schema import conform
from symbolic_residue.types import Span

WORDS = ("gate", "river", "mill", "key", "door", "boat", "hill", "road", "book", "table")


@pytest.fixture(scope="module")
def instrument() -> Instrument:
    return Instrument(wrap(build("llama"), tiny_tokenizer()))


def prompts(instrument: Instrument, frame: str) -> list[Prompt]:
    return [build_prompt(instrument.loaded.tokenizer, frame.format(word)) for word in WORDS]


@torch.no_grad()
@pytest.mark.parametrize("rows", [1, 3])
def test_metrics_are_those_of_plain_attentions(instrument: Instrument, rows: int) -> None:
    asked = prompts(instrument, "the old {} stands near the")[:2]
    spans = [Span(2, 5), Span(1, 4)]
    got = attention_metrics(instrument, asked, spans=spans, rows=rows)
    model = build("llama")
    model.set_attn_implementation("eager")
    for i, (prompt, span) in enumerate(zip(asked, spans, strict=True)):
        whole = torch.stack(model(input_ids=torch.tensor([prompt.ids]), output_attentions=True).attentions)[:, 0].double()
        want: dict[str, list[Any]] = {name: [] for name in got}
        for row in range(len(prompt) - rows, len(prompt)):
            a = whole[:, :, row].numpy()
            p = a[..., 1 : row + 1] / a[..., 1 : row + 1].sum(-1, keepdims=True)
            h = -(p * np.log(p)).sum(-1)
            want["sink mass"].append(a[..., 0])
            want["self mass"].append(p[..., -1])
            want["local trapping"].append(p[..., span.start - 1 : span.stop - 1].sum(-1))
            want["entropy"].append(h)
            want["effective context"].append(np.exp(h))
            want["distance"].append((p * (row - np.arange(1, row + 1))).sum(-1))
        for name, values in want.items():
            assert np.allclose(got[name][i], np.mean(values, 0), atol=1e-4), name


def test_the_same_prompts_differ_nowhere(instrument: Instrument) -> None:
    asked = prompts(instrument, "the old {} stands near the")
    found = attention_disruption(instrument, asked, asked)
    assert (found.frame["difference"] == 0).all()
    assert (found.frame["q"] == 1).all()
    assert found.found("entropy") == []
    conform("disruption", found.frame, "x")


def test_a_head_that_changes_is_named_and_the_others_are_not(instrument: Instrument, monkeypatch: pytest.MonkeyPatch) -> None:
    """Noise on every head, and one head whose sink mass rises on every prompt."""
    rng = np.random.default_rng(0)
    calls: list[int] = []

    def metrics(instrument: Instrument, prompts: Any, **options: Any) -> dict[str, np.ndarray]:
        from symbolic_residue.shells.across._disruption import METRICS

        out = {name: rng.normal(0, 0.01, (10, 2, 4)) for name in METRICS}
        if not calls:
            out["sink mass"][:, 1, 2] += 0.2
        calls.append(1)
        return out

    monkeypatch.setattr("symbolic_residue.shells.across._disruption.attention_metrics", metrics)
    asked = prompts(instrument, "the old {} stands near the")
    found = attention_disruption(instrument, asked, asked)
    assert found.found("sink mass") == [(1, 2)]
    row = found.frame.filter(layer=1, head=2, metric="sink mass").row(0, named=True)
    assert row["low"] > 0.15
    assert row["effect"] > 5
    assert row["n"] == 10
    assert found.n_needed == 9  # 8 heads: 1 + log2(160)


def test_false_discoveries_are_rare(instrument: Instrument, monkeypatch: pytest.MonkeyPatch) -> None:
    rng = np.random.default_rng(1)
    from symbolic_residue.shells.across import _disruption

    monkeypatch.setattr(
        _disruption, "attention_metrics", lambda *a, **o: {n: rng.normal(0, 1, (10, 2, 4)) for n in _disruption.METRICS}
    )
    asked = prompts(instrument, "the old {} stands near the")
    runs = [attention_disruption(instrument, asked, asked, seed=i).found("entropy") for i in range(60)]
    assert np.mean([bool(r) for r in runs]) <= 0.12  # 5 % and its spread at 60


def test_sink_logits_count_as_sink() -> None:
    instrument = Instrument(wrap(build("gpt_oss"), tiny_tokenizer()))
    prompt = build_prompt(instrument.loaded.tokenizer, "the old gate stands near the river and the mill")
    got = attention_metrics(instrument, [prompt])
    assert (got["sink mass"] > 0).all()
    assert np.isfinite(got["entropy"]).all()


def test_what_cannot_be_compared_is_refused(instrument: Instrument) -> None:
    asked = prompts(instrument, "the old {} stands near the")
    with pytest.raises(ConfigError, match="pair"):
        attention_disruption(instrument, asked, asked[:-1])
    with pytest.raises(ConfigError, match="six"):
        attention_disruption(instrument, asked[:5], asked[:5])
    with pytest.raises(ConfigError, match="rows"):
        attention_metrics(instrument, asked, rows=200)
    with pytest.raises(SpanError):
        attention_metrics(instrument, asked[:1], spans=[Span(0, 99)])
    with pytest.raises(ConfigError, match="one a prompt"):
        attention_metrics(instrument, asked, spans=[Span(0, 2)])
    with pytest.raises(ConfigError, match="metric"):
        attention_disruption(instrument, asked, asked).found("colour")
