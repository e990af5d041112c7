"""LAYER-SALIENCE as a whole: a planted token that is looked away from and needed, the same model without it, what is kept, what is refused."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
import torch
from salience_models import ANSWER, HEAD, LAYER, needle_position, planted, WITH, WITHOUT
from tiny_models import build, tiny_tokenizer

from symbolic_residue.errors import ConfigError, PromptError, RunDamagedError
from symbolic_residue.prompts import PromptItem, ShellItem
from symbolic_residue.shells import config_class, LayerSalienceConfig, LayerSalienceResidue, LayerSalienceShell, make_shell, Result
from symbolic_residue.shells.layer_salience import Criteria, SalienceItem
from symbolic_residue.shells.layer_salience._judge import largest_fall, MODES, neglected_share
from symbolic_residue.store._schema import conform, TABLES

STRICT = Criteria(collapse=0.75, deprioritization=0.4, bottleneck=0.6, ghosts=0.05, source="chosen for the test")
SMALL = LayerSalienceConfig.quick(criteria=STRICT)
SENTENCE = "The mill stands where the river turns, and the miller keeps the key to the gate. The mill stands where the"


@pytest.fixture(scope="module")
def shell() -> LayerSalienceShell:
    return LayerSalienceShell(*planted(), config=SMALL)


@pytest.fixture(scope="module")
def residue(shell: LayerSalienceShell) -> LayerSalienceResidue:
    return shell.run(WITH, answer=ANSWER)


@pytest.fixture(scope="module")
def llama() -> LayerSalienceShell:
    return LayerSalienceShell(build("llama"), tiny_tokenizer(), SMALL)


# -- planted truth -----------------------------------------------------------------------------------------------------------


def test_a_token_that_is_looked_away_from_and_needed_is_found(shell: LayerSalienceShell, residue: LayerSalienceResidue) -> None:
    at = needle_position(shell.tokenizer)
    row = residue.frames["salience"].filter(pl.col("position") == at).row(0, named=True)
    cells = residue.frames["cells"].filter(pl.col("position") == at).sort("layer")["relative"].to_list()
    assert cells[0] == pytest.approx(np.exp(-3.5), rel=0.2)
    assert max(cells) < 0.3
    assert row["under"] == 1.0
    twin = residue.frames["cells"].filter((pl.col("position") == at) & (pl.col("layer") == LAYER)).row(0, named=True)
    assert twin["weighted"] > 10 * twin["relative"]  # the value-weighted twin sees the long value
    findings = shell.analyze_residue(residue)
    needed = findings.verdict("premature deprioritization")
    assert needed.outcome == "fires"
    assert needed.value.value > 2
    assert abs(needed.control_value.value) < 0.2
    assert f"Token {at} " in needed.note
    assert findings.blamed == (at,)
    assert findings.verdict("ghosts").outcome == "fires"  # its attention is nearly nothing, and cancelling it moves the output
    assert findings.summary.startswith("Looks away from")


def test_the_planted_head_carries_it(shell: LayerSalienceShell, residue: LayerSalienceResidue) -> None:
    findings = shell.analyze_residue(residue)
    heads = [t for t in findings.carriers if t.head is not None]
    assert [(t.layer, t.head) for t in heads if t.confirmed] == [(LAYER, HEAD)]
    layers = [t for t in findings.carriers if t.head is None]
    assert [t.layer for t in layers if t.confirmed] == [LAYER]
    said = findings.blame()
    assert said["head"].filter(pl.col("confirmed")).select("layer", "unit").rows() == [(LAYER, str(HEAD))]
    assert said["token"].sort("score", descending=True)["unit"][0].startswith(f"{needle_position(shell.tokenizer)} ")


def test_without_the_token_the_same_model_shows_nothing(shell: LayerSalienceShell) -> None:
    findings = shell.analyze_residue(shell.run(WITHOUT, answer=ANSWER))
    assert {v.mode: v.outcome for v in findings.verdicts if v.mode != "bottleneck"} == dict.fromkeys(
        ("salience collapse", "premature deprioritization", "ghosts"), "absent"
    )
    assert findings.verdict("premature deprioritization").value.n == 0
    assert findings.blamed == findings.carriers == ()
    assert "head_scores" not in findings.tables()


def test_a_neglected_token_that_is_not_needed_is_no_finding() -> None:
    shell = LayerSalienceShell(*planted(strength=0.0), config=SMALL)
    findings = shell.analyze_residue(shell.run(WITH, answer=ANSWER))
    assert findings.verdict("premature deprioritization").value.n > 0
    assert findings.verdict("premature deprioritization").outcome == "absent"
    assert findings.verdict("ghosts").outcome == "absent"


def test_a_text_of_one_word_again_and_again_can_be_neglected_as_a_whole() -> None:
    """Every token but one is the needle: all of them are under the threshold, and ordinary texts are not."""
    shell = LayerSalienceShell(*planted(), config=SMALL)
    verdict = shell.analyze_residue(shell.run("The" + " Anna" * 20 + " home home", answer=ANSWER)).verdict("salience collapse")
    assert verdict.control_value.value < 0.1
    assert verdict.control_value.low >= 0
    relative = shell.sense_operation("The" + " Anna" * 20 + " home home").relative
    # Needles share what is left among themselves: the verdict says what the plain count says.
    found, n = neglected_share(relative[:, 1:-1], SMALL.threshold)
    assert verdict.value.value == pytest.approx(found / n)


def test_a_layer_that_narrows_is_a_bottleneck() -> None:
    rng = np.random.default_rng(0)
    effective = np.full((5, 12), 9.0) + rng.random((5, 12)) * 0.1
    effective[3:] = 2.0
    place, falls = largest_fall(effective)
    assert place == 2
    assert falls.mean() == pytest.approx(np.log(9.05 / 2), abs=0.02)
    assert (largest_fall(np.zeros((2, 3)))[1] == 0).all()


# -- what is kept ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("family", ["llama", "gemma3", "gpt2", "qwen3_next"])
def test_findings_are_a_result_with_four_verdicts_in_range(family: str) -> None:
    config = LayerSalienceConfig.make(
        doses=(0.5,), draws=8, max_tokens=3, top_heads=2, random_heads=4, head_draws=19, criteria=STRICT
    )
    shell = LayerSalienceShell(build(family), tiny_tokenizer(), config)
    findings = shell.analyze_residue(shell.run(SENTENCE))
    assert isinstance(findings, Result)
    assert tuple(v.mode for v in findings.verdicts) == MODES
    tables = findings.tables()
    for name, frame in tables.items():
        assert name in TABLES, name
        conform(name, frame, "item")
    assert not set(tables) & LayerSalienceResidue.own
    share = findings.verdict("salience collapse")
    for estimate in (share.value, share.control_value):
        assert 0 <= estimate.low <= estimate.value <= estimate.high <= 1
    curves = tables["curves"]
    kl = curves.filter(pl.col("curve") == "KL when cancelled")
    assert (kl["value"] >= 0).all()
    assert (kl["low"].drop_nulls() >= 0).all()
    assert set(kl["series"]) == {"under the threshold", "control: random positions", "control: matched distance"}
    assert kl["x"].unique().sort().to_list() == [0.1, 0.5]
    of_kind = curves.filter(pl.col("curve") == "attention received by kind of word")
    assert (of_kind["low"].drop_nulls() >= 0).all()
    assert 0 not in tables["maps"]["position"]  # the sink is in no map
    assert tables["maps"]["layer"].unique().sort().to_list() == list(shell.instrument.attention_layers)


def test_the_dose_is_the_cancellation_of_what_weight_names(llama: LayerSalienceShell) -> None:
    config = LayerSalienceConfig.make(doses=(0.6,), draws=8, top_heads=0, criteria=STRICT)
    shell = LayerSalienceShell(loaded=llama.loaded, config=config)
    cancels = shell.run(SENTENCE).frames["cancels"]
    dose = cancels.filter((pl.col("kind") == "dose") & (pl.col("threshold") == 0.6) & (pl.col("control") == "none")).row(
        0, named=True
    )
    found = shell.cancel_operation(SENTENCE, shell.weight_operation(0.6, of=SENTENCE))
    assert (dose["cells"], dose["kl"]) == (found.cells, pytest.approx(found.kl, abs=1e-4))
    alone = cancels.filter((pl.col("kind") == "token") & (pl.col("control") == "none")).row(0, named=True)
    under = {
        layer: [alone["position"]]
        for layer, places in shell.weight_operation(config.threshold, of=SENTENCE).items()
        if alone["position"] in places
    }
    one = shell.cancel_operation(SENTENCE, under)
    assert (alone["cells"], alone["fall"]) == (one.cells, pytest.approx(one.fall, abs=1e-4))
    drawn = cancels.filter((pl.col("kind") == "token") & (pl.col("control") != "none"))
    assert (drawn["cells"] == drawn["cells"][0]).all()
    assert drawn.group_by("control").len()["len"].to_list() == [8, 8]


def test_the_residue_comes_back_and_gives_the_same_findings(
    shell: LayerSalienceShell, residue: LayerSalienceResidue, tmp_path: Path
) -> None:
    again = LayerSalienceResidue.load(residue.save(tmp_path / "residue"))
    assert again.asked == residue.asked
    assert again.config == residue.config
    first, second = shell.analyze_residue(residue).tables(), shell.analyze_residue(again).tables()
    assert first.keys() == second.keys()
    assert all(first[name].equals(second[name]) for name in first)
    other = LayerSalienceShell(build("llama", seed=1), tiny_tokenizer(), SMALL)
    with pytest.raises(ConfigError, match="another model"):
        other.analyze_residue(residue)
    (tmp_path / "residue" / "cancels.parquet").unlink()
    with pytest.raises(RunDamagedError):
        LayerSalienceResidue.load(tmp_path / "residue")


def test_the_same_seed_gives_the_same_everything_and_the_model_is_left_alone(llama: LayerSalienceShell) -> None:
    model, ids = llama.loaded.model, torch.tensor([llama.tokenizer.encode(SENTENCE)])
    with torch.no_grad():
        before = model(input_ids=ids).logits
    one, two = llama.run(SENTENCE, seed=3), LayerSalienceShell(loaded=llama.loaded, config=SMALL).run(SENTENCE, seed=3)
    assert all(one.frames[name].equals(two.frames[name]) for name in one.frames)
    assert not one.frames["cancels"].equals(llama.run(SENTENCE, seed=4).frames["cancels"])
    llama.analyze_residue(one)
    with torch.no_grad():
        assert torch.equal(model(input_ids=ids).logits, before)
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in model.modules())


def test_chats_are_read_without_their_frame(llama: LayerSalienceShell) -> None:
    found = llama.run(SENTENCE, chat=True)
    counted = set(found.frames["cells"].filter(pl.col("counted"))["position"])
    regions = found.frames["tokens"].filter(pl.col("position").is_in(list(counted)))["region"].unique().to_list()
    assert regions == ["user"]
    assert found.asked.answer_source == "top"
    again = llama.run(messages=[{"role": "user", "content": SENTENCE}])
    assert again.frames["cells"].equals(found.frames["cells"])


def test_the_figure_is_a_chart_of_the_cells(
    shell: LayerSalienceShell, residue: LayerSalienceResidue, llama: LayerSalienceShell
) -> None:
    altair = pytest.importorskip("altair")
    findings = shell.analyze_residue(residue)
    for weighted in (False, True):
        chart = shell.visualize_salience_heatmap(findings, weighted=weighted)
        assert isinstance(chart, altair.TopLevelMixin)
        assert "fall of ln P(answer)" in str(chart.to_dict())
    plain = shell.analyze_residue(shell.run(WITHOUT, answer=ANSWER))
    assert "fall of ln P(answer)" not in str(shell.visualize_salience_heatmap(plain).to_dict())
    gated = LayerSalienceShell(build("qwen3_next"), tiny_tokenizer(), SMALL)
    with pytest.raises(ConfigError, match="no map"):
        gated.visualize_salience_heatmap(gated.analyze_residue(gated.run(SENTENCE)), weighted=True)


# -- refusals and registration -----------------------------------------------------------------------------------------------


def test_what_cannot_be_used_is_refused(llama: LayerSalienceShell) -> None:
    with pytest.raises(PromptError, match="could be neglected"):
        llama.run("The mill")
    for answer in (10**6, -1, ""):
        with pytest.raises(PromptError):
            llama.run(SENTENCE, answer=answer)
    with pytest.raises(ConfigError, match="user's turn"):
        llama.run(messages=[{"role": "user", "content": SENTENCE}, {"role": "assistant", "content": "Yes"}])
    for options in ({"threshold": 0.0}, {"draws": 4}, {"doses": (0.2, 0.2)}, {"doses": (-1.0,)}, {"head_draws": 5}, {"unknown": 1}):
        with pytest.raises(ConfigError):
            LayerSalienceConfig.make(**options)

    with pytest.raises(ConfigError, match="no item"):
        llama.run_item(ShellItem(id="a", kind="null", split="calibration"))


def test_an_answer_in_words_is_its_first_token(llama: LayerSalienceShell) -> None:
    found = llama.run(SENTENCE, answer=" mill")
    assert found.asked.answer == llama.tokenizer.encode(" mill")[0]
    assert found.asked.answer_source == "given"


def test_with_no_heads_there_are_no_interventions(shell: LayerSalienceShell, residue: LayerSalienceResidue) -> None:
    bare = LayerSalienceShell(loaded=shell.loaded, config=SMALL.model_copy(update={"top_heads": 0}))
    findings = bare.analyze_residue(bare.run(WITH, answer=ANSWER))
    assert findings.carriers == ()
    assert [v.outcome for v in findings.verdicts] == [v.outcome for v in shell.analyze_residue(residue).verdicts]


def test_it_is_registered_and_its_benchmark_is_whole(llama: LayerSalienceShell) -> None:
    assert isinstance(make_shell("layer-salience", llama.loaded), LayerSalienceShell)
    assert config_class("layer-salience") is LayerSalienceConfig
    items = LayerSalienceShell.items()
    for split in ("calibration", "held-out"):
        mine = [item for item in items if item.split == split]
        assert sum(item.null for item in mine) >= 24
        assert sum(not item.null for item in mine) >= 20
        assert all(item.modes == (() if item.null else ("premature deprioritization",)) for item in mine)
    first, second = ({i.answer for i in items if i.split == s and i.answer} for s in ("calibration", "held-out"))
    assert not first & second
    for item in items:
        if item.kind == "early":
            assert item.text.index(item.answer or "?") < len(item.text) / 2


def test_an_item_is_checked() -> None:
    good: Any = {
        "id": "a",
        "kind": "early",
        "split": "calibration",
        "text": "The word is plum. So it is",
        "answer": " plum",
    }
    SalienceItem(**good)
    for change in ({"answer": "plum"}, {"answer": " pear"}, {"answer": None}, {"text": "The word is plum. "}, {"text": " "}):
        with pytest.raises(ValueError):
            SalienceItem(**(good | change))


def test_the_command_line_runs_it(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, llama: LayerSalienceShell) -> None:
    from symbolic_residue.cli import main
    from symbolic_residue.instrument import open_model  # noqa: F401 (the name that is replaced)
    from symbolic_residue.store import RunFolder

    monkeypatch.setattr("symbolic_residue.instrument.open_model", lambda *a, **k: llama.loaded)
    out = tmp_path / "run"
    command = ["shell", "layer-salience", SENTENCE, "--answer", " mill", "--quick", "--top-heads", "1", "--dose", "0.4"]
    assert main([*command, "-o", str(out), "--no-report", "--json"]) == 0
    run = RunFolder.open(out)
    assert run.table("verdicts")["mode"].to_list() == list(MODES)
    assert run.table("salience")["kind"].n_unique() > 1
    file = tmp_path / "items.jsonl"
    file.write_text(PromptItem(id="one", prompt=SENTENCE, candidates=(" mill", " gate")).model_dump_json(exclude_none=True) + "\n")
    more = tmp_path / "more"
    assert main(["shell", "layer-salience", "--file", str(file), "--quick", "-o", str(more), "--no-report"]) == 0
    assert main(["shell", "layer-salience", SENTENCE, "--threshold", "2", "-o", str(tmp_path / "x")]) == 2
