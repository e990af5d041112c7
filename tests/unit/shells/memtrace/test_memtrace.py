"""MEMTRACE as a whole: what is measured against plain forwards, what is kept, what is refused, and that the model is none the wiser."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
import torch
from tiny_models import build, tiny_tokenizer

from symbolic_residue.errors import ConfigError, PromptError, RunDamagedError, SpanError
from symbolic_residue.prompts import MemoryItem
from symbolic_residue.readout import value_weighted_attention
from symbolic_residue.shells import MemtraceConfig, MemtraceResidue, MemtraceShell, Result
from symbolic_residue.shells.memtrace import retrieval_by_type
from symbolic_residue.shells.memtrace._observe import NO_TEXT, score
from symbolic_residue.shells.memtrace._text import passage
from symbolic_residue.store._schema import conform

FACT, GAP, QUESTION = "The mill is red.", " Ben came home in the evening. The river turns.", "\nThe mill is"
TEXT = FACT + GAP + QUESTION
ASKED: dict[str, Any] = {"fact": FACT, "question": QUESTION, "answer": " red", "foils": [" one", " two", " three"]}
SMALL = MemtraceConfig.make(
    distances=(0, 3, 25), paddings=("natural", "repetitive"), draws=6, top_heads=2, random_heads=3, strengths=(0.0, 2.0)
)
FAMILIES = ["llama", "gemma3", "gpt2", "falcon_alibi", "qwen3_next"]


@pytest.fixture(scope="module", params=FAMILIES)
def shell(request: pytest.FixtureRequest) -> MemtraceShell:
    return MemtraceShell(build(request.param), tiny_tokenizer(), SMALL)


@pytest.fixture(scope="module")
def residue(shell: MemtraceShell) -> MemtraceResidue:
    return shell.run(TEXT, **ASKED)


@pytest.fixture(scope="module")
def llama() -> MemtraceShell:
    return MemtraceShell(build("llama"), tiny_tokenizer(), SMALL)


@torch.no_grad()
def log_p(shell: MemtraceShell, ids: list[int], positions: list[int] | None = None) -> np.ndarray:
    given = {} if positions is None else {"position_ids": torch.tensor([positions]), "attention_mask": torch.ones(1, len(ids))}
    logits = shell.loaded.model(input_ids=torch.tensor([ids]), use_cache=False, **given).logits
    return torch.log_softmax(logits[0].double(), -1).numpy()


# -- what is measured --------------------------------------------------------------------------------------------------------


def test_the_prompt_itself_is_what_is_measured_at_its_own_distance(shell: MemtraceShell, residue: MemtraceResidue) -> None:
    asked = residue.asked
    ids = shell.tokenizer.encode(TEXT)
    gap = len(ids) - len(shell.tokenizer.encode(FACT)) - len(shell.tokenizer.encode(QUESTION))
    assert asked.gap == asked.distance == gap
    assert asked.distances == sorted({0, 3, 25, gap})
    one = passage(shell.tokenizer, asked, "fact")
    assert one.ids("natural", 0, gap) == [*ids, *asked.fields[0].before]
    assert score(residue.frames["measures"], "fact", "natural", gap, "answer")[0, 0] == pytest.approx(
        log_p(shell, one.ids("natural", 0, gap))[-1, asked.fields[0].token], abs=1e-4
    )


@pytest.mark.parametrize("side", ["fact", "control"])
def test_measures_are_those_of_plain_forwards(shell: MemtraceShell, residue: MemtraceResidue, side: str) -> None:
    asked, one = residue.asked, passage(shell.tokenizer, residue.asked, side)
    field = asked.fields[0]
    for kind in asked.paddings:
        for d in asked.distances[1:]:
            answer = score(residue.frames["measures"], side, kind, d, "answer")
            foil = score(residue.frames["measures"], side, kind, d, "foil")
            foils = score(residue.frames["measures"], side, kind, d, "foils")
            for draw in range(2):
                row = log_p(shell, one.ids(kind, draw, d))[-1]
                assert answer[draw, 0] == pytest.approx(row[field.token], abs=2e-4)
                assert foil[draw, 0] == pytest.approx(np.exp(row[field.foils]).max(), abs=1e-5)
                assert foils[draw, 0] == pytest.approx(np.exp(row[field.foils]).sum(), abs=1e-5)


def test_texts_that_are_one_at_a_short_distance_count_once(shell: MemtraceShell, residue: MemtraceResidue) -> None:
    one = passage(shell.tokenizer, residue.asked, "fact")
    for kind in residue.asked.paddings:
        for d in residue.asked.distances[1:]:
            texts = {tuple(pad[:d]) for pad in one.pads[kind]}
            assert len(score(residue.frames["measures"], "fact", kind, d, "answer")) == len(texts)


def test_positions_are_shifted_without_text(shell: MemtraceShell, residue: MemtraceResidue) -> None:
    asked, one = residue.asked, passage(shell.tokenizer, residue.asked, "fact")
    ids = [*one.head, *one.tail]
    n = len(one.head)
    if not shell.instrument.parts.position_ids:
        assert not len(residue.frames["measures"].filter((pl.col("padding") == NO_TEXT) & (pl.col("distance") > 0)))
        assert NO_TEXT not in residue.frames["curves"]["series"].to_list()
        return
    for d in asked.distances:
        positions = [i if i < n else i + d for i in range(len(ids))]
        want = log_p(shell, ids, positions)[-1, asked.fields[0].token]
        assert score(residue.frames["measures"], "fact", NO_TEXT, d, "answer")[0, 0] == pytest.approx(want, abs=2e-4)


def test_fields_are_read_at_the_row_before_their_token(llama: MemtraceShell) -> None:
    """Two fields, teacher forced: each number is a plain forward's at the row before the scored token."""
    fact = "The mill is red and the book is old."
    residue = llama.run(
        fact + QUESTION, fact=fact, answer=[" red", " and the book is old"], foils=[[" one"], [" and the book is ten"]]
    )
    one = passage(llama.tokenizer, residue.asked, "fact")
    ids = one.ids("natural", 1, 25)
    whole = llama.tokenizer.encode(QUESTION + " red and the book is old")
    tail = [*one.tail, residue.asked.fields[1].token, *residue.asked.fields[1].after]
    assert tail == whole
    all_rows = log_p(llama, ids)
    got = score(residue.frames["measures"], "fact", "natural", 25, "answer")[1]
    for k, field in enumerate(residue.asked.fields):
        row = len(ids) + one.rows[k]
        following = [*ids, field.token][row + 1]
        assert following == field.token
        assert got[k] == pytest.approx(all_rows[row, field.token], abs=2e-4)
    findings = llama.analyze_residue(residue)
    assert len(findings.tests) <= 2


def test_attention_to_the_fact_is_that_of_eager_attention() -> None:
    shell = MemtraceShell(build("llama"), tiny_tokenizer(), SMALL)
    residue = shell.run(TEXT, **ASKED)
    one, d = passage(shell.tokenizer, residue.asked, "fact"), residue.asked.distance
    model = shell.loaded.model
    model.set_attn_implementation("eager")
    draws = len(one.pads["natural"])
    with torch.no_grad():
        out = [
            model(input_ids=torch.tensor([one.ids("natural", r, d)]), use_cache=False, output_attentions=True) for r in range(draws)
        ]
    patterns = torch.stack([torch.stack(o.attentions)[:, 0, :, one.rows[0]] for o in out]).double().numpy()
    assert one.answer is not None
    at = one.at([one.answer], d)[0]
    assert shell.tokenizer.decode([one.ids("natural", 0, d)[at]]).strip() in "red"
    padding = list(range(len(one.head), len(one.head) + d))
    fact = [p for p in one.at(one.fact, d) if p > 0]
    scores = residue.frames["head_scores"].sort("layer", "head")
    for name, want, control in (
        ("attention to the answer", patterns[..., at].mean(0), patterns[..., padding].mean((0, -1))),
        ("attention to the fact", patterns[..., fact].sum(-1).mean(0), patterns[..., padding].mean((0, -1)) * len(fact)),
    ):
        mine = scores.filter(pl.col("score") == name)
        np.testing.assert_allclose(mine["value"].to_numpy(), want.ravel(), atol=1e-5)
        np.testing.assert_allclose(mine["control"].to_numpy(), control.ravel(), atol=1e-5)
    attention = residue.frames["attention"]
    sums = attention.group_by("layer", "head").agg(pl.col("mass").sum())
    np.testing.assert_allclose(sums["mass"].to_numpy(), 1.0, atol=1e-5)
    sink = attention.filter(pl.col("region") == "sink").sort("layer", "head")["mass"].to_numpy()
    np.testing.assert_allclose(sink, patterns[..., 0].mean(0).ravel(), atol=1e-5)


def test_value_trace_and_norms_are_their_formulas() -> None:
    shell = MemtraceShell(build("llama"), tiny_tokenizer(), SMALL)
    residue = shell.run(TEXT, **ASKED)
    one, d, parts = passage(shell.tokenizer, residue.asked, "fact"), residue.asked.distance, shell.instrument.parts
    answer, foil = residue.asked.fields[0].token, _foil(residue)
    assert one.answer is not None
    at = one.at([one.answer], d)[0]
    from symbolic_residue.instrument import AttentionRead

    wanted, norms = [], []
    for draw in range(len(one.pads["natural"])):
        ids = torch.tensor([one.ids("natural", draw, d)])
        read = AttentionRead(stats=("entropy",), rows=(one.rows[0],), weights=True)
        trace = shell.instrument.run(ids, reads=("v.*", "resid_post.*"), attention=read)
        last = trace["resid_post.1"][0, one.rows[0]].double()
        gain = parts.final_norm.gain().double()
        scale = (last.pow(2).mean() + parts.final_norm.eps).rsqrt()
        u = gain * (parts.w_u[answer] - parts.w_u[foil]).double() * scale
        rows = [[trace[f"v.{i}"][0, at, h // 2].double() @ parts.layers[i].w_o(h).double() @ u for h in range(4)] for i in range(2)]
        wanted.append(torch.tensor(rows))
        norms.append(value_weighted_attention(trace, parts).norms[:, 0, :, 0, at].double())
    scores = residue.frames["head_scores"].sort("layer", "head")
    got = scores.filter(pl.col("score") == "value trace")["value"].to_numpy()
    np.testing.assert_allclose(got, torch.stack(wanted).mean(0).detach().numpy().ravel(), atol=1e-4)
    got = scores.filter(pl.col("score") == "value-weighted attention to the answer")["value"].to_numpy()
    np.testing.assert_allclose(got, torch.stack(norms).mean(0).numpy().ravel(), atol=1e-5)


def _foil(residue: MemtraceResidue) -> int:
    return residue.frames["candidates"].filter(pl.col("source") == "foil").sort("logit", descending=True)["token_id"][0]


def test_the_parts_sum_and_the_last_depth_is_the_output(shell: MemtraceShell, residue: MemtraceResidue) -> None:
    check = residue.frames["dla_check"].row(0, named=True)
    assert check["sum_of_parts"] == pytest.approx(check["logit_difference"], abs=2e-3)
    one, d = passage(shell.tokenizer, residue.asked, "fact"), residue.asked.distance
    row = log_p(shell, one.ids("natural", 0, d))[one.rows[0]]
    lens = residue.frames["lens"]
    last = lens.filter((pl.col("layer") == lens["layer"].max()) & (pl.col("position") == lens["position"].max())).row(0, named=True)
    assert last["answer_probability"] == pytest.approx(np.exp(row[residue.asked.fields[0].token]), abs=1e-5)
    maps = residue.frames["maps"].filter(pl.col("map") == "answer in the residual stream")
    end = maps.filter((pl.col("layer") == maps["layer"].max()) & (pl.col("position") == maps["position"].max()))["value"][0]
    if shell.instrument.parts.logit_softcap is None:
        assert end == pytest.approx(row[residue.asked.fields[0].token] - row[_foil(residue)], abs=1e-3)
    early = set(one.at([p for p in one.fact if p >= 0], d))
    assert early <= set(maps["position"].to_list())


def test_every_table_fits_the_store(shell: MemtraceShell, residue: MemtraceResidue) -> None:
    findings = shell.analyze_residue(residue)
    assert isinstance(findings, Result)
    for name, frame in findings.tables().items():
        assert len(conform(name, frame, "x")) == len(frame), name
    assert [v.mode for v in findings.verdicts] == list(type(SMALL.criteria).thresholds)
    assert all(v.n <= 6 for v in (x.value for x in findings.verdicts))
    assert findings.summary.endswith(".")
    assert findings.tables()["curves"].filter(pl.col("x") == 0)["low"].null_count() > 0  # one text has no interval


def test_the_model_is_left_as_it_was(llama: MemtraceShell) -> None:
    ids = torch.tensor([llama.tokenizer.encode(TEXT)])
    with torch.no_grad():
        before = llama.loaded.model(input_ids=ids, use_cache=False).logits
        llama.analyze_residue(llama.run(TEXT, **ASKED))
        after = llama.loaded.model(input_ids=ids, use_cache=False).logits
    assert torch.equal(before, after)


# -- found, saved, repeated --------------------------------------------------------------------------------------------------


def test_fact_question_answer_and_foils_are_found(llama: MemtraceShell) -> None:
    residue = llama.run(TEXT, answer=" red")
    assert residue.asked.fact == FACT
    assert residue.asked.question == QUESTION.lstrip()
    assert residue.asked.control_kind == "none"
    assert FACT not in residue.asked.sides["control"].opening
    assert residue.asked.foil_source == "model"
    found = residue.asked.fields[0].foils
    assert found
    assert residue.asked.fields[0].token not in found
    assert residue.asked.token_type == "word"
    asked = llama.run("The mill is red. Where is it? The mill is", answer=" red").asked
    assert asked.question == "Where is it? The mill is"


def test_the_same_seed_gives_the_same_and_another_gives_other_padding(llama: MemtraceShell) -> None:
    one, two, other = llama.run(TEXT, **ASKED), llama.run(TEXT, **ASKED), llama.run(TEXT, seed=1, **ASKED)
    assert one.asked == two.asked
    assert all(one.frames[name].equals(two.frames[name]) for name in one.frames)
    assert one.asked.streams != other.asked.streams


def test_a_residue_survives_the_disc_and_is_analysed_alike(llama: MemtraceShell, tmp_path: Path) -> None:
    residue = llama.run(TEXT, **ASKED)
    straight = llama.analyze_residue(residue)
    loaded = MemtraceResidue.load(residue.save(tmp_path / "r"))
    assert loaded.asked == residue.asked
    later = MemtraceShell(loaded=llama.loaded, config=SMALL).analyze_residue(loaded)
    for name, frame in straight.tables().items():
        again = later.tables()[name]
        assert frame.columns == again.columns
        for column in frame.columns:
            if frame[column].dtype == pl.Float64:
                np.testing.assert_allclose(
                    frame[column].fill_null(-9).to_numpy(),
                    again[column].fill_null(-9).to_numpy(),
                    atol=1e-4,
                    err_msg=f"{name}.{column}",
                )
    (tmp_path / "r" / "measures.parquet").unlink()
    with pytest.raises(RunDamagedError):
        MemtraceResidue.load(tmp_path / "r")
    shutil.rmtree(tmp_path / "r")
    with pytest.raises(ConfigError, match="another model"):
        MemtraceShell(build("llama", seed=3), tiny_tokenizer(), SMALL).analyze_residue(residue)


def test_no_heads_no_interventions(llama: MemtraceShell) -> None:
    shell = MemtraceShell(loaded=llama.loaded, config=SMALL.model_copy(update={"top_heads": 0}))
    residue = shell.run(TEXT, **ASKED)
    seen: list[int] = []
    hook = llama.loaded.model.get_input_embeddings().register_forward_pre_hook(lambda m, a: seen.append(1))
    findings = shell.analyze_residue(residue)
    hook.remove()
    assert not seen
    assert findings.tests == []
    assert findings.tables()["heads"]["ablation"].null_count() == len(findings.tables()["heads"])


def test_heads_by_type(llama: MemtraceShell) -> None:
    found = [llama.analyze_residue(llama.run(TEXT, **ASKED)), llama.analyze_residue(llama.run(TEXT, token_type="name", **ASKED))]
    table = retrieval_by_type([*found, found[0]])
    assert table["token_type"].unique().sort().to_list() == ["name", "word"]
    assert table.filter(pl.col("token_type") == "word")["n"].unique().to_list() == [2]
    with pytest.raises(ConfigError):
        retrieval_by_type([])


def first_that_fits(shell: MemtraceShell, kind: str) -> tuple[MemoryItem, MemtraceResidue]:
    """The first item of the kind whose answers the tiny tokenizer can tell from their foils."""
    for item in shell.items():
        if item.kind == kind and item.split == "calibration":
            try:
                return item, shell.run_item(item)
            except ConfigError as error:
                assert "tell them apart" in str(error)
    raise AssertionError(f"no {kind} item fits")


def test_an_item_of_the_benchmark_runs(llama: MemtraceShell) -> None:
    for kind in ("fields", "null-rival", "collision"):
        item, residue = first_that_fits(MemtraceShell(loaded=llama.loaded, config=SMALL), kind)
        assert residue.asked.paddings == [item.padding]
        assert residue.asked.place == item.place
        assert residue.asked.control_kind == "given"
        assert len(residue.asked.fields) == len(item.answers)
        if item.place == "before":
            one = passage(llama.tokenizer, residue.asked, "fact")
            d = residue.asked.distance
            assert one.at(one.fact, d)[0] >= d
            side = residue.asked.sides["fact"].closing
            assert side.index(item.rival or "") < side.index(item.fact)
    with pytest.raises(ConfigError, match="no item"):
        llama.run_item(next(iter(__import__("symbolic_residue.prompts", fromlist=["x"]).benchmark("value-ambiguity"))))


# -- refused -----------------------------------------------------------------------------------------------------------------


def test_what_cannot_be_used_is_refused(llama: MemtraceShell) -> None:
    with pytest.raises(PromptError, match="empty"):
        llama.run("  ")
    with pytest.raises(SpanError, match="does not hold the fact"):
        llama.run(TEXT, **{**ASKED, "fact": "The cat is red."})
    with pytest.raises(SpanError, match="does not end with the question"):
        llama.run(TEXT, **{**ASKED, "question": "Ben"})
    with pytest.raises(SpanError, match="No sentence before the question mentions"):
        llama.run(TEXT, answer=" purple")
    with pytest.raises(ConfigError, match="begins like the answer"):
        llama.run(TEXT, **{**ASKED, "foils": [" red", " two"]})
    with pytest.raises(ConfigError, match="single string"):
        llama.run(TEXT, **{**ASKED, "foils": " two"})
    with pytest.raises(ConfigError, match="list of foils"):
        llama.run(TEXT, **{**ASKED, "foils": [[" one"], [" two"]]})
    with pytest.raises(ConfigError, match="look like"):
        llama.run(TEXT, padding="adversarial", **ASKED)
    with pytest.raises(ConfigError, match="rival"):
        llama.run(TEXT, rival="Ben came home", **ASKED)
    with pytest.raises(ConfigError, match="cannot stand"):
        llama.run(TEXT, place="after", **ASKED)
    with pytest.raises(PromptError, match="no room"):
        llama.run(FACT + " Ben." * 400 + QUESTION, **ASKED)
    for options in ({"distances": (1, 2)}, {"distances": (0,)}, {"paddings": ()}, {"strengths": (-1.0,)}, {"steps": 1}):
        with pytest.raises(ConfigError):
            MemtraceConfig.make(**options)
    assert MemtraceConfig.quick(top_heads=0).top_heads == 0
    assert "preset" in MemtraceConfig().criteria.source or "null items" in MemtraceConfig().criteria.source


# -- judged ------------------------------------------------------------------------------------------------------------------


def altered(residue: MemtraceResidue, values: dict[tuple[str, int, str], list[float]]) -> MemtraceResidue:
    """The residue with some measures of the judged padding replaced: (side, distance, quantity) → one value a draw."""
    from dataclasses import replace

    rows = []
    for row in residue.frames["measures"].iter_rows(named=True):
        given = values.get((row["side"], row["distance"], row["quantity"]))
        if given is not None and (row["distance"] == 0 or row["padding"] == residue.asked.paddings[0]):
            row["value"] = given[min(row["draw"], len(given) - 1)]
        rows.append(row)
    frame = pl.DataFrame(rows, schema=residue.frames["measures"].schema)
    return replace(residue, frames={**residue.frames, "measures": frame})


def test_recall_decay_is_counted_from_the_best_distance(llama: MemtraceShell) -> None:
    residue = llama.run("The mill is red. The mill is", answer=" red", foils=[" one", " two"])
    assert residue.asked.distance == 25
    spread = [-0.2, -0.1, 0.0, 0.1, 0.2, 0.0]
    flat = {("control", d, "answer"): [-6.0] * 6 for d in (0, 3, 25)}
    rising = flat | {("fact", 0, "answer"): [-5.0], ("fact", 3, "answer"): [-1.0 + s for s in spread]}
    lost = llama.verdicts(altered(residue, rising | {("fact", 25, "answer"): [-4.0 + s for s in spread]}))[0]
    assert lost.outcome == "fires"
    assert "best distance (3)" in lost.quantity
    assert lost.value.value == pytest.approx(3.0)
    assert lost.control_value.value == 0
    kept = llama.verdicts(altered(residue, rising | {("fact", 25, "answer"): [-0.5 + s for s in spread]}))[0]
    assert kept.outcome == "absent"
    assert kept.value.value == 0
    shown = rising | {
        ("fact", 25, "answer"): [-4.0 + s for s in spread],
        ("control", 3, "answer"): [-1.9],
    }
    both = altered(residue, shown | {("control", 25, "answer"): [-6.5 + s for s in spread], ("fact", 3, "answer"): [2.0]})
    verdict = llama.verdicts(both)[0]
    assert verdict.outcome == "undecided", verdict
    assert "control is past the criterion too" in verdict.note
    nothing = flat | {("fact", d, "answer"): [-5.5] for d in (0, 3, 25)}
    assert "nothing to lose" in llama.verdicts(altered(residue, nothing))[0].note


def test_reconstruction_needs_distance_to_blame(llama: MemtraceShell) -> None:
    residue = llama.run("The mill is red. The mill is", answer=" red", foils=[" one", " two"])
    wrong = {("fact", 25, "foil"): [0.8, 0.82, 0.84, 0.86, 0.88, 0.9], ("fact", 0, "foil"): [0.1]}
    assert llama.verdicts(altered(residue, wrong))[1].outcome == "fires"
    always = llama.verdicts(altered(residue, wrong | {("fact", 0, "foil"): [0.7]}))[1]
    assert always.outcome == "undecided"
    assert "not one of memory" in always.note
    assert llama.verdicts(residue)[1].outcome == "absent"


def test_chat_prompts_are_padded_inside_the_turn(llama: MemtraceShell) -> None:
    residue = llama.run(TEXT, chat=True, **ASKED)
    one, d = passage(llama.tokenizer, residue.asked, "fact"), residue.asked.distance
    from symbolic_residue.prompts import build_prompt

    assert one.ids("natural", 0, d) == [*build_prompt(llama.tokenizer, TEXT, chat=True).ids, *residue.asked.fields[0].before]
    assert llama.tokenizer.decode(one.tail[: len(one.tail) + one.rows[0] + 1]).endswith("assistant\n")


def test_the_figure_shows_every_padding_and_its_better_law(llama: MemtraceShell) -> None:
    pytest.importorskip("altair")
    findings = llama.analyze_residue(llama.run(TEXT, **ASKED))
    drawn = llama.visualize_memory_decay(findings).to_dict()
    text = str(drawn)
    best = findings.residue.frames["fits"].filter((pl.col("difference") == 0) & (pl.col("model") != "constant"))
    for row in best.iter_rows(named=True):
        assert f"{row['series']}: {row['model']}" in text
    for kind in findings.residue.asked.paddings:
        assert kind in text
    from symbolic_residue.figures import memory_decay

    memory = findings.residue.frames["curves"].filter(pl.col("curve") == "memory")
    assert "power law" not in str(memory_decay(memory, findings.residue.frames["fits"].clear()).to_dict())
