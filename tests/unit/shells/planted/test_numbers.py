"""Numbers of residues and operations that stand in no verdict, against plain transformers: curves, maps, lens, geometry, PREDICT, ANCHOR of embeddings."""

from __future__ import annotations

from typing import Any

import numpy as np
import polars as pl
import pytest
import torch
from tiny_models import build, tiny_tokenizer

from symbolic_residue.prompts import build_prompt
from symbolic_residue.shells import (
    EventPair,
    InstructionDisruptionConfig,
    InstructionDisruptionShell,
    LayerSalienceConfig,
    LayerSalienceShell,
    MemtraceShell,
    TemporalInferenceConfig,
    TemporalInferenceShell,
)
from symbolic_residue.shells.temporal_inference._shift import make_tail

TEXT = (
    "The mill stands where the river turns, and the miller keeps the key to the gate. " * 2
    + "Anna put the red book under the table before Ben came home."
)


@torch.no_grad()
def plain(model: Any, ids: list[int], positions: list[int] | None = None, **call: Any) -> Any:
    given = {} if positions is None else {"position_ids": torch.tensor([positions])}
    return model(
        input_ids=torch.tensor([ids]), attention_mask=torch.ones(1, len(ids), dtype=torch.long), use_cache=False, **given, **call
    )


@torch.no_grad()
def eager(model: Any, ids: list[int]) -> np.ndarray:
    """``[layer, row, key]``, mean over heads."""
    model.set_attn_implementation("eager")
    found = plain(model, ids, output_attentions=True).attentions
    model.set_attn_implementation("sdpa")
    return np.stack([a[0].double().mean(0).numpy() for a in found])


# -- MEMTRACE ----------------------------------------------------------------------------------------------------------------


@torch.no_grad()
def test_anchoring_an_embedding_scales_it() -> None:
    shell = MemtraceShell(build("llama"), tiny_tokenizer())
    ids = torch.tensor([shell.tokenizer.encode(TEXT)])
    for strength in (0.0, 0.5, 3.0):
        found = shell.anchor_operation((4, 7), strength, context=TEXT, mode="embedding")
        embeds = shell.loaded.model.get_input_embeddings()(ids).clone()
        embeds[0, 4:7] *= strength
        want = torch.softmax(shell.loaded.model(inputs_embeds=embeds, use_cache=False).logits[0, -1].double(), -1).numpy()
        np.testing.assert_allclose(found.after, want, atol=1e-6)
        assert np.abs(found.after - found.before).max() > 1e-4


# -- LAYER-SALIENCE ----------------------------------------------------------------------------------------------------------


def test_the_curves_of_salience_are_those_of_eager_attention() -> None:
    text = TEXT[:70]
    shell = LayerSalienceShell(build("llama"), tiny_tokenizer(), LayerSalienceConfig.quick(top_heads=0))
    findings = shell.analyze_residue(shell.run(text))
    curves, salience = findings.tables()["curves"], findings.residue.frames["salience"]
    ids = shell.tokenizer.encode(text)
    n, weights = len(ids), eager(shell.loaded.model, ids)

    def curve(name: str, series: str) -> np.ndarray:
        return curves.filter((pl.col("curve") == name) & (pl.col("series") == series)).sort("x")["value"].to_numpy()

    rows = np.arange(1, n)
    np.testing.assert_allclose(curve("layer flow", "sink"), weights[:, 1:, 0].mean(1), atol=1e-5)
    np.testing.assert_allclose(curve("layer flow", "own key"), weights[:, rows, rows].mean(1), atol=1e-5)
    others = np.array([[w[i, 1:i].sum() for i in rows] for w in weights]).mean(1)
    np.testing.assert_allclose(curve("layer flow", "other tokens"), others, atol=1e-5)
    number = []
    for w in weights:
        logs = []
        for i in range(5, n):
            p = w[i, 1:i] / w[i, 1:i].sum()
            logs.append(-(p * np.log(p)).sum())
        number.append(np.exp(np.mean(logs)))
    np.testing.assert_allclose(curve("effective number of attended tokens", "this text"), number, rtol=1e-4)
    # Received over the uniform share, mean over the tokens of a kind.
    share = [np.mean([1 / (i + 1) for i in range(j + 1, n)]) for j in range(n - 1)]
    relative = np.array([[w[j + 1 :, j].mean() / share[j] for j in range(n - 1)] for w in weights])
    kinds = np.array(salience.sort("position")["kind"].to_list())
    assert len(set(kinds[1:])) > 2
    for kind in set(kinds[1:]):
        at = [j for j in range(1, n - 1) if kinds[j] == kind]
        np.testing.assert_allclose(curve("attention received by kind of word", kind), relative[:, at].mean(1), rtol=1e-3)
    under = (relative[:, 1:] < shell.config.threshold).mean(1)
    np.testing.assert_allclose(curve("tokens under the threshold", "this text"), under)


# -- TEMPORAL-INFERENCE ------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def temporal() -> TemporalInferenceShell:
    config = TemporalInferenceConfig.quick(distances=(2, 4), horizon=8, places=3, context=3, gaps=(7,), top_heads=0)
    return TemporalInferenceShell(build("llama"), tiny_tokenizer(), config)


@pytest.mark.parametrize("mode", ["tokens", "positions"])
@pytest.mark.parametrize("direction", ["forward", "backward"])
def test_predict_is_the_softmax_of_a_plain_forward(temporal: TemporalInferenceShell, mode: Any, direction: Any) -> None:
    shifted = temporal.shift_operation(5, direction, mode, context=TEXT)
    found = temporal.predict_operation([" gate", " the"], shifted)
    p = torch.softmax(plain(temporal.loaded.model, list(shifted.ids), list(shifted.positions)).logits[0, -1].double(), -1)
    for word in (" gate", " the"):
        assert found.targets[word] == pytest.approx(float(p[temporal.tokenizer.encode(word)[0]]), abs=1e-6)
    best = p.topk(len(found.top))
    np.testing.assert_allclose([value for _, value in found.top], best.values.numpy(), atol=1e-6)
    assert [word for word, _ in found.top] == [temporal.tokenizer.decode([int(i)]) for i in best.indices]


def test_the_map_is_how_far_states_move(temporal: TemporalInferenceShell) -> None:
    residue = temporal.run(TEXT, shift_distance=6)
    ids, cut, window = build_prompt(temporal.tokenizer, TEXT).ids, residue.asked.cuts[-1], temporal.config.window
    tail = make_tail(ids, cut, 6, "forward", "tokens", window + 1)
    still = plain(temporal.loaded.model, ids[: cut + window + 1], output_hidden_states=True).hidden_states
    moved = plain(temporal.loaded.model, ids[: tail.start] + list(tail.ids), output_hidden_states=True).hidden_states
    frame = residue.frames["maps"]
    assert frame["position"].unique().sort().to_list() == list(range(cut, cut + window + 1))
    first = frame.filter(pl.col("layer") == 0).sort("position")["value"].to_numpy()  # the last one comes normed from transformers
    want = 1 - torch.nn.functional.cosine_similarity(
        still[1][0, -window - 1 :].double(), moved[1][0, -window - 1 :].double(), dim=-1
    )
    np.testing.assert_allclose(first, want.numpy(), atol=1e-5)
    assert first.max() > 1e-3


def test_the_coherence_curve_is_the_mean_over_places_and_window(temporal: TemporalInferenceShell) -> None:
    residue = temporal.run(TEXT, shift_distance=6)
    curve = residue.frames["curves"].filter((pl.col("curve") == "coherence") & (pl.col("series") == "forward, tokens")).sort("x")
    shifts = residue.frames["shifts"].filter(
        (pl.col("side") == "text") & (pl.col("mode") == "tokens") & (pl.col("direction") == "forward")
    )
    assert curve["x"].to_list() == [2.0, 4.0, 6.0]
    for distance, value, n in curve.select("x", "value", "n").iter_rows():
        mine = shifts.filter((pl.col("distance") == distance) & (pl.col("token") < temporal.config.window))
        assert value == pytest.approx(mine.group_by("place").agg(pl.col("coherence").mean())["coherence"].mean())
        assert n == temporal.config.places


def test_a_gap_moves_the_questions_positions_and_nothing_else(temporal: TemporalInferenceShell) -> None:
    residue = temporal.run(pair=EventPair(first="Mara fed the cat", second="Mara locked the door"))
    for prompt in residue.asked.prompts[:4]:
        built = build_prompt(temporal.tokenizer, prompt.text)
        question = prompt.text.rindex(". ") + 1
        start = next(k for k, (a, _) in enumerate(built.offsets) if a >= question)
        positions = [*range(start), *range(start + 7, len(built.ids) + 7)]
        logits = plain(temporal.loaded.model, built.ids, positions).logits[0, -1]
        row = residue.frames["preferences"].filter(
            (pl.col("side") == "pair")
            & (pl.col("gap") == 7)
            & (pl.col("wording") == prompt.wording)
            & (pl.col("a_first") == prompt.a_first)
        )
        assert row["log_odds"][0] == pytest.approx(float(logits[prompt.right] - logits[prompt.wrong]), abs=1e-4)
    curve = residue.frames["curves"].filter((pl.col("series") == "story with an order") & (pl.col("x") == 7))
    own = residue.frames["preferences"].filter((pl.col("side") == "pair") & (pl.col("gap") == 7))["log_odds"].mean()
    assert curve["value"][0] == pytest.approx(own)


# -- INSTRUCTION-DISRUPTION --------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def instruction() -> InstructionDisruptionShell:
    config = InstructionDisruptionConfig.quick(examples=1, tasks=6, max_new_tokens=4, top_heads=0, references=4)
    return InstructionDisruptionShell(build("llama", max_position_embeddings=1024), tiny_tokenizer(), config)


def test_conflict_is_one_minus_the_cosine_of_what_distill_gives(instruction: InstructionDisruptionShell) -> None:
    residue = instruction.run(instructions=["Answer in capital letters.", "Answer in small letters only."])
    texts = {"a": residue.asked.a.text, "b": residue.asked.b.text, "c": residue.asked.control.text}
    vectors = {name: instruction.distill_operation(text).double() for name, text in texts.items()}
    pairs = residue.frames["instruction_pairs"]
    assert pairs.select("one", "two").rows() == [("a", "b"), ("a", "c"), ("b", "c")]
    for row in pairs.iter_rows(named=True):
        cosine = float(torch.nn.functional.cosine_similarity(vectors[row["one"]], vectors[row["two"]], dim=0))
        assert row["cosine"] == pytest.approx(cosine, abs=1e-4)
        assert row["conflict"] == pytest.approx(1 - cosine, abs=1e-4)
        assert row["conflict"] == pytest.approx(
            instruction.splice_operation([vectors[row["one"]], vectors[row["two"]]]).conflict, abs=1e-4
        )


@torch.no_grad()
def test_lens_and_attention_are_those_of_the_rows_that_chose_the_tokens(instruction: InstructionDisruptionShell) -> None:
    residue = instruction.run(instructions=["Answer in capital letters.", "Answer in small letters only."])
    frames = instruction._frames(residue.asked, residue.config)
    number = next(i for i, f in enumerate(frames) if f.condition == "conflict" and f.task == 0)
    frame, model = frames[number], instruction.loaded.model
    ids = list(frame.prompt.ids)
    for _ in range(4):
        ids.append(int(plain(model, ids).logits[0, -1].argmax()))
    steps = 4
    weights = eager(model, ids)
    mass = residue.frames["mass"].filter(
        (pl.col("condition") == "conflict") & (pl.col("order") == frame.order) & (pl.col("task") == 0)
    )
    for name, (start, stop) in frame.spans.items():
        rows = weights[:, len(frame.prompt.ids) - 1 : len(frame.prompt.ids) - 1 + steps, max(1, start) : stop].sum(-1)
        mine = mass.filter(pl.col("name") == name)
        along = mine.filter(pl.col("step") >= 0).sort("step")["mass"].to_numpy()
        np.testing.assert_allclose(along, rows.mean(0)[: len(along)], atol=1e-5)
        assert len(along) >= 2
        if len(along) == steps:
            np.testing.assert_allclose(mine.filter(pl.col("layer") >= 0).sort("layer")["mass"].to_numpy(), rows.mean(1), atol=1e-5)
    lens = residue.frames["lens"].sort("layer")
    position = lens["position"][0]
    assert lens["position"].n_unique() == 1
    hidden = plain(model, ids, output_hidden_states=True).hidden_states
    # transformers gives the last state behind the final norm
    states = [model.model.norm(h[0, position]) for h in hidden[:-1]] + [hidden[-1][0, position]]
    p = torch.softmax(model.lm_head(torch.stack(states)).double(), -1)
    np.testing.assert_allclose(lens["top_probability"].to_numpy(), p.max(-1).values.numpy(), atol=1e-5)
    np.testing.assert_allclose(lens["answer_probability"].to_numpy(), p[:, ids[position + 1]].numpy(), atol=1e-5)
    np.testing.assert_allclose(lens["entropy"].to_numpy(), -(p * p.log()).sum(-1).numpy(), atol=1e-3)
