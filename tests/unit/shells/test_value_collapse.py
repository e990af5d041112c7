"""VALUE-COLLAPSE as a whole: what is measured, what is kept, what is refused, and that the model is none the wiser."""

from __future__ import annotations

import random
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
import torch
from tiny_models import build, tiny_tokenizer

from symbolic_residue.errors import ConfigError, PromptError, RunDamagedError, RunExistsError
from symbolic_residue.shells import _rows, Result, ShellBase, ValueCollapseConfig, ValueCollapseResidue, ValueCollapseShell
from symbolic_residue.shells.value_collapse import _attribute
from symbolic_residue.shells.value_collapse._refine import count_returns, leader_loss

SENTENCE = "The mill stands where the river turns, and the miller keeps the key to the gate. The mill stands where the"
CODE = "x = [1, 2];"
SMALL = ValueCollapseConfig.make(variants=3, steps=2, top_heads=3, random_heads=4)
FAMILIES = ["llama", "gemma3", "gpt2", "gpt_neox"]


@pytest.fixture(scope="module", params=FAMILIES)
def shell(request: pytest.FixtureRequest) -> ValueCollapseShell:
    return ValueCollapseShell(build(request.param), tiny_tokenizer(), SMALL)


@pytest.fixture(scope="module")
def residue(shell: ValueCollapseShell) -> ValueCollapseResidue:
    return shell.run(SENTENCE)


@pytest.fixture(scope="module")
def llama() -> ValueCollapseShell:
    return ValueCollapseShell(build("llama"), tiny_tokenizer(), SMALL)


@torch.no_grad()
def distribution(shell: ValueCollapseShell, text: str) -> np.ndarray:
    ids = torch.tensor([shell.tokenizer.encode(text)])
    return torch.softmax(shell.loaded.model(input_ids=ids, use_cache=False).logits[0, -1].double(), -1).numpy()


def measured(residue: ValueCollapseResidue, side: str, name: str) -> np.ndarray:
    found = residue.frames["measures"].filter((pl.col("side") == side) & (pl.col("quantity") == name))
    return found.sort("variant")["value"].to_numpy()


def same_frames(one: dict[str, pl.DataFrame], two: dict[str, pl.DataFrame]) -> bool:
    return one.keys() == two.keys() and all(one[name].equals(two[name]) for name in one)


@pytest.mark.parametrize("family", ["qwen3_next", "jamba", "falcon_h1", "granitemoehybrid"])
def test_hybrids_are_measured_at_the_layers_that_attend(family: str) -> None:
    """Rows carry the model's own layer numbers; the other layers' mixers stand among the components, which still sum to the difference."""
    shell = ValueCollapseShell(build(family), tiny_tokenizer(), SMALL)
    attend = list(shell.instrument.attention_layers)
    findings = shell.analyze_residue(shell.run(SENTENCE))
    tables = findings.tables()
    for name in ("attention", "attention_stats", "heads", "ov"):
        assert tables[name]["layer"].unique().sort().to_list() == attend, name
    assert {(t.layer in attend) for t in findings.attribution.tests} == {True}
    assert tables["tokens"]["influence"].is_finite().all()
    kinds = tables["components"].filter(pl.col("component") == "mixer")
    assert len(kinds) > 0
    for row in tables["dla_check"].iter_rows(named=True):
        parts = tables["components"].filter(pl.col("target") == row["target"])["contribution"].sum()
        assert parts == pytest.approx(row["logit_difference"], abs=2e-4)


def test_attention_of_a_hybrid_is_that_of_the_layer_it_names() -> None:
    shell = ValueCollapseShell(build("qwen3_next"), tiny_tokenizer(), SMALL)
    shown = shell.run(SENTENCE).frames["attention_stats"]
    ids = torch.tensor([shell.tokenizer.encode(SENTENCE)])
    model = shell.loaded.model
    model.set_attn_implementation("eager")
    with torch.no_grad():
        patterns = model(input_ids=ids, use_cache=False, output_attentions=True).attentions
    patterns = [p for p in patterns if p is not None]
    for place, layer in enumerate(shell.instrument.attention_layers):
        want = patterns[place][0, :, -1].max(-1).values
        got = shown.filter(pl.col("layer") == layer).sort("head")["max"].to_numpy()
        np.testing.assert_allclose(got, want.numpy(), atol=1e-5)


# -- what is measured --------------------------------------------------------------------------------------------------------


def test_measures_are_those_of_plain_forwards(shell: ValueCollapseShell, residue: ValueCollapseResidue) -> None:
    texts = [SENTENCE, *(text for _, text in residue.asked.variants)]
    assert len(texts) == 4
    p = np.stack([distribution(shell, t) for t in texts])
    of_candidates = p[:, residue.asked.candidates]
    ranked = np.sort(of_candidates, axis=1)
    share = of_candidates / of_candidates.sum(1, keepdims=True)
    np.testing.assert_allclose(measured(residue, "prompt", "log_odds"), np.log(ranked[:, -1] / ranked[:, -2]), atol=1e-4)
    np.testing.assert_allclose(measured(residue, "prompt", "entropy"), -(share * np.log(share)).sum(1), atol=1e-4)
    np.testing.assert_allclose(measured(residue, "prompt", "held"), of_candidates.sum(1), atol=1e-5)
    np.testing.assert_allclose(measured(residue, "prompt", "top"), p.max(1), atol=1e-5)
    middle = (p[1:] + p[0]) / 2
    js = 0.5 * (p[0] * np.log(p[0] / middle)).sum(1) + 0.5 * (p[1:] * np.log(p[1:] / middle)).sum(1)
    np.testing.assert_allclose(measured(residue, "prompt", "js"), js, atol=1e-5)
    np.testing.assert_allclose(residue.frames["sensitivity"]["js"].to_numpy(), measured(residue, "prompt", "js"))
    changed = residue.frames["sensitivity"]["changed"].to_list()
    assert changed == [bool(q.argmax() != p[0].argmax()) for q in p[1:]]


def test_the_controls_measures_are_those_of_the_control(shell: ValueCollapseShell, residue: ValueCollapseResidue) -> None:
    first = shell.tokenizer.decode([residue.asked.candidates[0]])
    assert residue.asked.control_kind == "hint"
    assert first.strip() in residue.asked.control_text
    assert residue.asked.control_text.endswith(SENTENCE)
    p = distribution(shell, residue.asked.control_text)
    assert measured(residue, "control", "top")[0] == pytest.approx(p.max(), abs=1e-5)
    assert len(measured(residue, "control", "log_odds")) == 1 + len(residue.asked.control_variants)


def test_candidates_are_the_best_of_the_prompt(shell: ValueCollapseShell, residue: ValueCollapseResidue) -> None:
    p = distribution(shell, SENTENCE)
    ids = residue.asked.candidates
    assert 2 <= len(ids) <= SMALL.max_candidates
    assert ids == np.argsort(-p, kind="stable")[: len(ids)].tolist()
    frame = residue.frames["candidates"]
    assert frame["source"].unique().to_list() == ["mass"]
    np.testing.assert_allclose(frame["probability"].to_numpy(), p[ids], atol=1e-5)


def test_traces_refiners_and_measures_tell_one_story(residue: ValueCollapseResidue) -> None:
    frames = residue.frames
    assert set(frames["refiners"]["refiner"]) == {"layers", "soft", "rollout"}
    for row in frames["refiners"].iter_rows(named=True):
        trace = frames["traces"].filter((pl.col("refiner") == row["refiner"]) & (pl.col("variant") == row["variant"]))
        order = {t: i for i, t in enumerate(residue.asked.candidates)}
        share = np.full((trace["step"].n_unique(), len(order)), np.nan)
        first = trace["step"].min()
        for step, token, value in trace.select("step", "token_id", "share").iter_rows():
            share[step - first, order[token]] = value
        np.testing.assert_allclose(share.sum(1), 1.0)
        assert row["steps"] == len(share)
        assert row["returns"] == count_returns(share)
        assert row["leader_loss"] == pytest.approx(leader_loss(share))
        assert measured(residue, "prompt", f"returns.{row['refiner']}")[row["variant"]] == row["returns"]
        assert measured(residue, "prompt", f"leader_loss.{row['refiner']}")[row["variant"]] == pytest.approx(row["leader_loss"])


def test_attention_and_lens_tables_are_whole(shell: ValueCollapseShell, residue: ValueCollapseResidue) -> None:
    sums = residue.frames["attention"].group_by("layer", "head").agg(pl.col("mass").sum())
    assert len(sums) == 8
    np.testing.assert_allclose(sums["mass"].to_numpy(), 1.0, atol=1e-5)
    assert residue.frames["tokens"]["attention"].sum() == pytest.approx(1.0, abs=1e-4)
    lens = residue.frames["lens"]
    end = lens.filter((pl.col("layer") == 2) & (pl.col("position") == lens["position"].max()))
    p = distribution(shell, SENTENCE)
    assert end["top_probability"][0] == pytest.approx(p.max(), abs=1e-5)
    assert end["answer_probability"][0] == pytest.approx(p.max(), abs=1e-5)  # the lens at the last depth is the output
    assert end["entropy"][0] == pytest.approx(-(p * np.log(p)).sum(), abs=1e-3)


# -- findings ----------------------------------------------------------------------------------------------------------------


def test_findings_are_a_result_with_four_verdicts(shell: ValueCollapseShell, residue: ValueCollapseResidue) -> None:
    findings = shell.analyze_residue(residue)
    assert isinstance(findings, Result)
    tables = findings.tables()
    assert "measures" not in tables
    assert {"verdicts", "candidates", "traces", "refiners", "transfer", "lens", "heads", "components", "dla_check", "tokens",
            "attention", "attention_stats", "sensitivity", "ov", "changes"} <= tables.keys()  # fmt: skip
    assert [v.mode for v in findings.verdicts] == ["flatness", "oscillation", "value collapse", "confidence fragility"]
    for v in findings.verdicts:
        assert findings.verdict(v.mode) is v
        assert v.outcome in ("fires", "absent", "undecided")
        assert v.value.n in (3, 4)
    assert findings.verdict("flatness").value.value == pytest.approx(measured(residue, "prompt", "log_odds").mean())
    assert findings.verdict("confidence fragility").value.value == pytest.approx(np.median(measured(residue, "prompt", "js")))
    for name in ("oscillation", "value collapse"):
        quantity = {"oscillation": "returns.layers", "value collapse": "leader_loss.layers"}[name]
        assert findings.verdict(name).value.value == pytest.approx(measured(residue, "prompt", quantity).mean())
    assert all(f"{m}" in findings.summary for m in (v.mode for v in findings.verdicts if v.outcome != "absent"))
    check = tables["dla_check"]
    assert check["error"].abs().max() < 1e-3  # type: ignore[operator]
    assert tables["tokens"]["influence"].abs().max() > 0  # type: ignore[operator]


def test_the_figure_is_a_chart_of_the_traces(llama: ValueCollapseShell) -> None:
    altair = pytest.importorskip("altair")
    chart = llama.visualize_value_competition(llama.analyze_residue(llama.run(SENTENCE)))
    assert isinstance(chart, altair.TopLevelMixin)
    drawn = str(chart.to_dict())
    assert all(name in drawn for name in ("layers", "soft", "rollout"))


def test_html_escapes_what_the_prompt_and_its_tokens_say() -> None:
    shell = ValueCollapseShell(build("llama"), tiny_tokenizer(), SMALL)
    text = "The <script>alert('mill')</script> & the \x1b[31mkey. The mill stands where the"
    findings = shell.analyze_residue(shell.run(text, candidates=["<", "&"], control=f"<b>{text}"))
    page = findings._repr_html_()
    assert "flatness" in page
    assert "<script" not in page
    assert "\x1b" not in page
    assert "<b>The" not in page


# -- the model is left alone -------------------------------------------------------------------------------------------------


def numpy_state() -> list[int]:
    return np.random.get_state(legacy=False)["state"]["key"].tolist()  # type: ignore[call-overload, index]


def test_model_and_generators_are_as_before(shell: ValueCollapseShell) -> None:
    model = shell.loaded.model
    ids = torch.tensor([shell.tokenizer.encode(SENTENCE)])
    with torch.no_grad():
        logits = model(input_ids=ids).logits
    state = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    config, implementation = model.config.to_dict(), model.config._attn_implementation
    torch_rng, numpy_rng, python_rng = torch.get_rng_state(), numpy_state(), random.getstate()
    shell.analyze_residue(shell.run(SENTENCE, seed=5))
    shell.isolate_operation([7, 30], SENTENCE, mode="residual")
    assert torch.equal(torch.get_rng_state(), torch_rng)
    assert numpy_state() == numpy_rng
    assert random.getstate() == python_rng
    after = model.state_dict()
    assert after.keys() == state.keys()
    assert all(torch.equal(after[name], tensor) for name, tensor in state.items())
    assert model.config.to_dict() == config
    assert model.config._attn_implementation == implementation == "sdpa"
    for module in model.modules():
        assert not module._forward_hooks
        assert not module._forward_pre_hooks
    with torch.no_grad():
        assert torch.equal(model(input_ids=ids).logits, logits)
    assert all(p.grad is None for p in model.parameters())


def test_nothing_stays_attached_when_a_run_breaks(llama: ValueCollapseShell) -> None:
    def broken(what: str, share: float) -> None:
        raise KeyboardInterrupt

    for call in (lambda: llama.run(SENTENCE, progress=broken), lambda: llama.analyze_residue(llama.run(SENTENCE), progress=broken)):
        with pytest.raises(KeyboardInterrupt):
            call()
    assert llama.loaded.model.config._attn_implementation == "sdpa"
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in llama.loaded.model.modules())


# -- seeds -------------------------------------------------------------------------------------------------------------------


def test_the_same_seed_gives_the_same_everything(shell: ValueCollapseShell, residue: ValueCollapseResidue) -> None:
    again = ValueCollapseShell(loaded=shell.loaded, config=SMALL).run(SENTENCE)
    assert again.asked == residue.asked
    assert same_frames(again.frames, residue.frames)
    assert same_frames(shell.analyze_residue(again).tables(), shell.analyze_residue(residue).tables())


def test_another_seed_gives_other_variants_of_the_same_prompt(shell: ValueCollapseShell, residue: ValueCollapseResidue) -> None:
    other = shell.run(SENTENCE, seed=1)
    assert other.asked.variants != residue.asked.variants
    assert other.provenance["seed"] == 1
    # The prompt itself is no matter of chance, only rounding in another batch.
    assert other.asked.candidates == residue.asked.candidates
    assert measured(other, "prompt", "log_odds")[0] == pytest.approx(measured(residue, "prompt", "log_odds")[0], abs=1e-4)


def test_small_pieces_change_nothing_but_rounding(
    shell: ValueCollapseShell, residue: ValueCollapseResidue, monkeypatch: pytest.MonkeyPatch
) -> None:
    tests = shell.analyze_residue(residue).attribution.tests
    monkeypatch.setattr(_rows, "_TOKENS_AT_ONCE", 1)
    monkeypatch.setattr(_attribute, "_CACHED_AT_ONCE", 1)
    apart = ValueCollapseShell(loaded=shell.loaded, config=SMALL).run(SENTENCE)
    assert apart.asked == residue.asked
    one, two = apart.frames["measures"], residue.frames["measures"]
    assert one.select("side", "variant", "quantity").equals(two.select("side", "variant", "quantity"))
    np.testing.assert_allclose(one["value"].to_numpy(), two["value"].to_numpy(), atol=1e-4)
    for a, b in zip(shell.analyze_residue(apart).attribution.tests, tests, strict=True):
        assert (a.layer, a.head) == (b.layer, b.head)
        assert a.ablation == pytest.approx(b.ablation, abs=3e-4)


@torch.no_grad()
def test_the_analysis_does_not_run_the_variants_again(shell: ValueCollapseShell, monkeypatch: pytest.MonkeyPatch) -> None:
    """Analysing right after the run costs single rows, beside what is run once a shell (unrelated prompts) and the control and the prompt alone."""
    seen: list[int] = []
    fresh = ValueCollapseShell(loaded=shell.loaded, config=SMALL)
    residue = fresh.run(SENTENCE)
    fresh.analyze_residue(residue)  # the unrelated prompts' means are there from now on
    residue = fresh.run(SENTENCE)
    model = shell.loaded.model
    hook = model.get_input_embeddings().register_forward_pre_hook(lambda module, args: seen.append(args[0].numel()))
    again = fresh.analyze_residue(residue)
    hook.remove()
    family = sum(len(p) for p in fresh._family(residue.asked)[0])
    long = [n for n in seen if n > 64]
    assert sum(long) < family
    assert len(long) <= 1  # the control alone; the prompt alone is shorter
    seen.clear()
    hook = model.get_input_embeddings().register_forward_pre_hook(lambda module, args: seen.append(args[0].numel()))
    later = ValueCollapseShell(loaded=shell.loaded, config=SMALL).analyze_residue(residue)  # a shell that did not run it
    hook.remove()
    assert sum(n for n in seen if n > 64) > family
    for a, b in zip(again.attribution.tests, later.attribution.tests, strict=True):
        assert a.ablation == pytest.approx(b.ablation, abs=1e-6)


# -- saved and loaded --------------------------------------------------------------------------------------------------------


def test_a_saved_residue_gives_the_same_findings(shell: ValueCollapseShell, residue: ValueCollapseResidue, tmp_path: Path) -> None:
    folder = residue.save(tmp_path / "kept")
    loaded = ValueCollapseResidue.load(folder)
    assert loaded.asked == residue.asked
    assert loaded.config == residue.config
    assert loaded.provenance == residue.provenance
    assert same_frames(loaded.frames, residue.frames)
    one, two = shell.analyze_residue(loaded), shell.analyze_residue(residue)
    assert same_frames(one.tables(), two.tables())
    assert one.summary == two.summary
    with pytest.raises(RunExistsError):
        residue.save(folder)


def test_a_conversation_survives_saving(llama: ValueCollapseShell, tmp_path: Path) -> None:
    messages = [{"role": "system", "content": "You are a careful helper."}, {"role": "user", "content": SENTENCE}]
    residue = llama.run(messages=messages)
    loaded = ValueCollapseResidue.load(residue.save(tmp_path / "kept"))
    assert loaded.asked.messages == messages
    assert same_frames(llama.analyze_residue(loaded).tables(), llama.analyze_residue(residue).tables())


def _cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:40])


@pytest.mark.parametrize(
    "damage",
    [
        lambda f: (f / "residue.json").unlink(),
        lambda f: _cut(f / "residue.json"),
        lambda f: (f / "residue.json").write_text("[]", "utf-8"),
        lambda f: (f / "residue.json").write_text("{}", "utf-8"),
        lambda f: (f / "residue.json").write_bytes(b"\xff\xfe\x00"),
        lambda f: (f / "measures.parquet").unlink(),
        lambda f: _cut(f / "measures.parquet"),
        lambda f: (f / "measures.parquet").write_bytes(b"no table" * 20),
        lambda f: (f / "residue.json").write_text(
            (f / "residue.json").read_text("utf-8").replace('"variants": 3', '"variants": -3'), "utf-8"
        ),
        lambda f: (f / "residue.json").write_text(
            (f / "residue.json").read_text("utf-8").replace('"shell": "value-collapse"', '"shell": "memtrace"'), "utf-8"
        ),
        shutil.rmtree,
    ],
    ids=["no meta", "cut meta", "list", "empty", "bytes", "no frame", "cut frame", "false frame", "bad config", "other shell", "nothing"],
)  # fmt: skip
def test_a_damaged_residue_is_refused(llama: ValueCollapseShell, tmp_path: Path, damage: Any) -> None:
    folder = llama.run(SENTENCE).save(tmp_path / "kept")
    damage(folder)
    with pytest.raises(RunDamagedError, match="kept"):
        ValueCollapseResidue.load(folder)


def test_the_residue_of_another_model_is_refused(llama: ValueCollapseShell) -> None:
    residue = llama.run(SENTENCE)
    other = ValueCollapseShell(build("llama", seed=1), tiny_tokenizer(), SMALL)
    with pytest.raises(ConfigError, match="another model"):
        other.analyze_residue(residue)


# -- ways of asking ----------------------------------------------------------------------------------------------------------


def test_chat_and_messages_are_the_same_conversation(shell: ValueCollapseShell) -> None:
    by_chat = shell.run(SENTENCE, chat=True)
    by_messages = shell.run(messages=[{"role": "user", "content": SENTENCE}])
    assert same_frames(by_chat.frames, by_messages.frames)
    regions = set(by_chat.frames["tokens"]["region"])
    assert {"user", "assistant_header"} <= regions
    findings = shell.analyze_residue(by_messages)
    assert len(findings.verdicts) == 4
    plain = shell.run(SENTENCE)
    assert len(plain.frames["tokens"]) < len(by_chat.frames["tokens"])


def test_only_the_last_user_turn_is_varied(llama: ValueCollapseShell) -> None:
    messages = [
        {"role": "user", "content": "Anna put the red book under the table."},
        {"role": "assistant", "content": "Yes."},
        {"role": "user", "content": SENTENCE},
    ]
    residue = llama.run(messages=messages)
    assert residue.asked.input_text == SENTENCE
    prompts, controls = llama._family(residue.asked)
    assert all("Anna put the red book under the table.<|end|>" in p.text for p in [*prompts, *controls])
    assert len({p.text for p in prompts}) == 4


def test_a_conversation_that_ends_otherwise_is_refused(llama: ValueCollapseShell) -> None:
    with pytest.raises((ConfigError, PromptError)):
        llama.run(messages=[{"role": "user", "content": "a"}, {"role": "assistant", "content": "Yes."}])
    with pytest.raises(PromptError):
        llama.run(messages=[])
    with pytest.raises(ConfigError, match="either text or messages"):
        llama.run()


def test_given_candidates_and_control(shell: ValueCollapseShell) -> None:
    control = "The mill has one gate. The miller keeps the key to the"
    residue = shell.run(SENTENCE, candidates=[" the", " gate", " mill"], control=control)
    p = distribution(shell, SENTENCE)
    assert residue.asked.candidate_source == "given"
    assert residue.asked.control_kind == "given"
    assert residue.asked.control_text == control
    assert set(residue.frames["candidates"]["token"]) == {" the", " gate", " mill"}
    held = p[residue.asked.candidates]
    assert (np.diff(held) <= 0).all()  # best first
    np.testing.assert_allclose(residue.frames["candidates"]["probability"].to_numpy(), held, atol=1e-6)
    findings = shell.analyze_residue(residue)
    assert len(findings.attribution.pairs) == 3
    assert all("given" in v.control for v in findings.verdicts[:3])


def test_candidates_without_any_probability_are_served() -> None:
    """Another token is so far ahead that theirs underflows; what follows must stay finite."""
    model = build("llama")
    shell = ValueCollapseShell(model, tiny_tokenizer(), SMALL)
    top = int(distribution(shell, SENTENCE).argmax())
    with torch.no_grad():
        model.lm_head.weight[top] *= 2000
    shell = ValueCollapseShell(model, tiny_tokenizer(), SMALL)
    lost = [t for t in (262, 354, 300) if t != top][:2]
    assert distribution(shell, SENTENCE)[lost].max() == 0
    findings = shell.analyze_residue(shell.run(SENTENCE, candidates=lost))
    for name, frame in findings.tables().items():
        for column in frame.select(pl.col(pl.Float64)).iter_columns():
            assert not column.is_nan().any(), (name, column.name)
            assert not column.is_infinite().any(), (name, column.name)


def test_one_token_prompts_are_served(shell: ValueCollapseShell) -> None:
    residue = shell.run("a")
    assert len(residue.frames["tokens"]) == 1
    assert measured(residue, "prompt", "top")[0] == pytest.approx(distribution(shell, "a").max(), abs=1e-5)
    findings = shell.analyze_residue(residue)
    assert findings.frames["tokens"]["influence"].to_list() == [0.0]
    assert np.abs(findings.attribution.error).max() < 1e-3
    assert np.isfinite([t.ablation for t in findings.attribution.tests]).all()


def test_few_variants_leave_verdicts_undecided_with_the_reason(llama: ValueCollapseShell) -> None:
    shell = ValueCollapseShell(loaded=llama.loaded, config=SMALL.model_copy(update={"variants": 1}))
    findings = shell.analyze_residue(shell.run(SENTENCE))
    fragile = findings.verdict("confidence fragility")
    assert fragile.value.n == 1
    assert fragile.outcome == "undecided"
    assert "No interval" in fragile.note
    assert findings.verdict("flatness").value.n == 2
    row = findings.tables()["verdicts"].row(3, named=True)
    assert row["n"] == 1
    assert row["low"] is None
    assert row["high"] is None
    assert not any(t.confirmed for t in findings.attribution.tests)


def test_text_that_offers_few_edits_says_how_many_there_were(llama: ValueCollapseShell) -> None:
    shell = ValueCollapseShell(loaded=llama.loaded, config=SMALL.model_copy(update={"variants": 12}))
    residue = shell.run(CODE)
    n = len(residue.asked.variants)
    assert 1 <= n < 12
    findings = shell.analyze_residue(residue)
    assert findings.verdict("flatness").value.n == n + 1
    assert findings.verdict("confidence fragility").value.n == n
    assert residue.frames["refiners"].filter(pl.col("refiner") == "layers").height == n + 1


@pytest.mark.parametrize("text", ["", "   \n", "river " * 300])
def test_unusable_prompts_are_refused(llama: ValueCollapseShell, text: str) -> None:
    with pytest.raises(PromptError):
        llama.run(text)


def test_only_the_asked_refiners_run(llama: ValueCollapseShell) -> None:
    config = SMALL.model_copy(update={"refiners": ("soft",), "verdict_refiner": "rollout"})
    shell = ValueCollapseShell(loaded=llama.loaded, config=config)
    residue = shell.run(SENTENCE)
    assert set(residue.frames["refiners"]["refiner"]) == {"soft", "rollout"}  # asked, and needed for the verdicts
    assert "rollout" in shell.analyze_residue(residue).verdict("oscillation").quantity


def test_progress_rises_to_one(llama: ValueCollapseShell) -> None:
    seen: list[float] = []
    residue = llama.run(SENTENCE, progress=lambda what, share: seen.append(share))
    assert seen == sorted(seen)
    assert seen[-1] == 1.0
    seen.clear()
    llama.analyze_residue(residue, progress=lambda what, share: seen.append(share))
    assert seen == sorted(seen)
    assert 0 < seen[0] < 1
    assert seen[-1] == pytest.approx(1.0)


# -- making a shell ----------------------------------------------------------------------------------------------------------


def test_a_shell_needs_one_model(llama: ValueCollapseShell) -> None:
    with pytest.raises(ConfigError):
        ValueCollapseShell()
    with pytest.raises(ConfigError):
        ValueCollapseShell(llama.loaded.model, llama.tokenizer, loaded=llama.loaded)
    assert isinstance(llama, ShellBase)
    assert (ValueCollapseShell.name, ValueCollapseShell.operations) == ("value-collapse", ("ISOLATE", "STABILIZE", "YIELD"))


@pytest.mark.parametrize(
    ("options", "named"),
    [
        ({"mass": 1.0}, "mass"),
        ({"max_candidates": 1}, "max_candidates"),
        ({"steps": 0}, "steps"),
        ({"variants": 0}, "variants"),
        ({"refiners": ("dream",)}, "refiners"),
        ({"yield_threshold": 0.0}, "yield_threshold"),
        ({"colour": "red"}, "colour"),
    ],
)
def test_options_out_of_range_are_named(options: dict[str, Any], named: str) -> None:
    with pytest.raises(ConfigError, match=named):
        ValueCollapseConfig.make(**options)
