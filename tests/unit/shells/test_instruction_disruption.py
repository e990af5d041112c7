"""INSTRUCTION-DISRUPTION as a whole: geometry against plain formulas, answers against plain generation, a planted culprit that is named, and refusals."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from tiny_models import build, tiny_tokenizer

from symbolic_residue.cli import main
from symbolic_residue.errors import ConfigError, PromptError
from symbolic_residue.figures import instruction_conflict
from symbolic_residue.instrument import Add, AttentionMask
from symbolic_residue.shells import (
    conflict_predicts_failure,
    InstructionDisruptionConfig,
    InstructionDisruptionResidue,
    InstructionDisruptionShell,
    Result,
)
from symbolic_residue.shells.instruction_disruption import InstructionCriteria
from symbolic_residue.shells.instruction_disruption._attribute import span_effects
from symbolic_residue.shells.instruction_disruption._geometry import content_positions, NEUTRAL, OPENING
from symbolic_residue.shells.instruction_disruption._judge import MODES, share, verdicts
from symbolic_residue.store import RunFolder, validate

PAIR = ["Answer in capital letters.", "Answer in small letters only."]
SMALL: dict[str, Any] = {
    "arrangements": ("user+user",),
    "frame": "plain",
    "examples": 1,
    "tasks": 6,
    "max_new_tokens": 4,
    "top_heads": 2,
    "random_heads": 3,
    "references": 4,
}


def shell_of(family: str, **options: Any) -> InstructionDisruptionShell:
    model = build(family, max_position_embeddings=1024) if family != "gpt2" else build(family, n_positions=1024)
    return InstructionDisruptionShell(model, tiny_tokenizer(), InstructionDisruptionConfig.make(**(SMALL | options)))


@pytest.fixture(scope="module", params=["llama", "gpt2", "gemma3"])
def shell(request: pytest.FixtureRequest) -> InstructionDisruptionShell:
    return shell_of(request.param)


@pytest.fixture(scope="module")
def llama() -> InstructionDisruptionShell:
    return shell_of("llama")


@pytest.fixture(scope="module")
def residue(llama: InstructionDisruptionShell) -> InstructionDisruptionResidue:
    return llama.run(instructions=PAIR)


# -- the three operations ----------------------------------------------------------------------------------------------------


@torch.no_grad()
def test_distill_is_the_centred_mean_over_content_tokens(shell: InstructionDisruptionShell) -> None:
    """Against transformers' own hidden states, in float64."""
    layer = shell.instrument.parts.n_layers - 2

    def plain(text: str) -> np.ndarray:
        from symbolic_residue.prompts import build_prompt

        prompt = build_prompt(shell.tokenizer, OPENING + text)
        states = shell.loaded.model(input_ids=torch.tensor([prompt.ids]), output_hidden_states=True, use_cache=False).hidden_states
        return states[layer + 1][0, content_positions(prompt, len(OPENING))].double().mean(0).numpy()

    centre = np.mean([plain(text) for text in NEUTRAL[:4]], axis=0)
    np.testing.assert_allclose(shell.distill_operation(PAIR[0]).numpy(), plain(PAIR[0]) - centre, atol=2e-4)
    with pytest.raises(PromptError, match="empty"):
        shell.distill_operation("  ")
    with pytest.raises(ConfigError, match="no layer"):
        shell.distill_operation("x", layer=99)


def test_content_tokens_are_words(llama: InstructionDisruptionShell) -> None:
    from symbolic_residue.prompts import build_prompt

    prompt = build_prompt(llama.tokenizer, OPENING + "Answer in the old way.")
    text = "".join(prompt.tokens[i] for i in content_positions(prompt, len(OPENING)))
    assert text.split() == ["Answer", "old", "way"]


vectors = st.lists(
    st.lists(st.floats(-5, 5), min_size=3, max_size=3).filter(lambda v: np.linalg.norm(v) > 1e-2), min_size=2, max_size=5
)


@given(vectors, st.floats(0.1, 10.0))
def test_splice_is_a_mean_and_a_conflict_that_ignores_length_and_order(rows: list[list[float]], factor: float) -> None:
    found = LLAMA_FREE.splice_operation([torch.tensor(v) for v in rows])
    x = np.array(rows, dtype=np.float32).astype(float)
    unit = x / np.linalg.norm(x, axis=1, keepdims=True)
    pairs = [1 - float(unit[i] @ unit[j]) for i in range(len(x)) for j in range(i)]
    assert found.conflict == pytest.approx(np.mean(pairs), abs=1e-5)
    assert -1e-9 <= found.conflict <= 2 + 1e-9
    np.testing.assert_allclose(found.vector.numpy(), x.mean(0), atol=1e-5)
    again = LLAMA_FREE.splice_operation([factor * torch.tensor(v) for v in rows[::-1]])
    assert again.conflict == pytest.approx(found.conflict, abs=1e-5)


def test_nullify_returns_nothing_above_the_threshold() -> None:
    one, other = torch.tensor([1.0, 0.0]), torch.tensor([0.0, 1.0])
    assert LLAMA_FREE.splice_operation([one]).conflict == 0.0
    assert LLAMA_FREE.nullify_operation([one, other], 0.99) is None
    kept = LLAMA_FREE.nullify_operation([one, other], 1.01)
    assert kept is not None and kept.tolist() == [0.5, 0.5]
    for bad in ([], [one, torch.ones(3)], [one, torch.zeros(2)], [one, torch.tensor([math.nan, 1.0])]):
        with pytest.raises(ConfigError):
            LLAMA_FREE.splice_operation(bad)


LLAMA_FREE = shell_of("llama")


# -- what is observed --------------------------------------------------------------------------------------------------------


@torch.no_grad()
def test_answers_are_those_of_plain_greedy_generation(shell: InstructionDisruptionShell) -> None:
    """Each frame alone, without padding, sharing or cache."""
    residue = shell.run(instructions=PAIR)
    frames = shell._frames(residue.asked, residue.config)
    rows = residue.frames["instruction_answers"].to_dicts()
    assert [(f.condition, f.order, f.task) for f in frames] == [(r["condition"], r["order"], r["task"]) for r in rows]
    assert {r["condition"] for r in rows} == {"alone a", "alone b", "conflict", "control"}
    for frame, row in list(zip(frames, rows, strict=True))[::7]:
        ids = list(frame.prompt.ids)
        for _ in range(4):
            ids.append(int(shell.loaded.model(input_ids=torch.tensor([ids]), use_cache=False).logits[0, -1].argmax()))
            if ids[-1] == 2 or "\n" in shell.tokenizer.decode(ids[len(frame.prompt.ids) :]).lstrip():
                break
        new = [i for i in ids[len(frame.prompt.ids) :] if i != 2]
        assert row["answer"] == shell.tokenizer.decode(new).strip().split("\n")[0].strip()
        assert row["follows_a"] == residue.asked.a.check(row["answer"])


@torch.no_grad()
def test_preference_and_hidden_blocks_are_those_of_masked_forwards(llama: InstructionDisruptionShell, residue: Any) -> None:
    from symbolic_residue.shells.instruction_disruption._preference import cells_of, plain_pairs

    frames = llama._frames(residue.asked, residue.config)
    cells = cells_of(frames, plain_pairs(llama.tokenizer, residue.asked), hide=True)
    assert {c.hidden for c in cells} == {"", "a", "b", "control"}
    table = residue.frames["preference"]
    for cell in cells[::5]:
        f = cell.frame
        edits = [] if cell.span is None else [AttentionMask(range(*cell.span), rows=range(f.shared, len(cell.ids)))]
        logits = llama.instrument.run(torch.tensor([cell.ids]), edits=edits)["logits"][0, -1].double()
        found = table.filter(
            (pl.col("condition") == f.condition)
            & (pl.col("order") == f.order)
            & (pl.col("task") == f.task)
            & (pl.col("hidden") == cell.hidden)
        )
        assert len(found) == 1
        a, b = cell.pair
        assert found["value"][0] == pytest.approx(float(logits[a] - logits[b]), abs=2e-3)
        if cell.hidden in ("a", "b"):  # the block is hidden, not its neighbourhood
            text = "".join(f.prompt.tokens[slice(*cell.span)])  # type: ignore[misc]
            assert text.strip().startswith((residue.asked.a if cell.hidden == "a" else residue.asked.b).text)


def test_attention_to_a_block_is_that_of_the_row_that_chose_the_token(llama: InstructionDisruptionShell, residue: Any) -> None:
    frames = llama._frames(residue.asked, residue.config)
    mass = residue.frames["mass"]
    frame = next(f for f in frames if f.condition == "conflict")
    model = llama.loaded.model
    model.set_attn_implementation("eager")
    with torch.no_grad():
        patterns = model(input_ids=torch.tensor([frame.prompt.ids]), use_cache=False, output_attentions=True).attentions
    for name, (start, stop) in frame.spans.items():
        want = float(torch.stack([p[0, :, -1, start:stop].sum(-1).mean() for p in patterns]).mean())
        mine = mass.filter((pl.col("condition") == "conflict") & (pl.col("order") == frame.order) & (pl.col("task") == frame.task))
        got = mine.filter((pl.col("name") == name) & (pl.col("step") == 0))["mass"][0]
        assert got == pytest.approx(want, abs=1e-5)


def test_the_model_is_none_the_wiser_and_the_same_seed_gives_the_same_findings(llama: InstructionDisruptionShell) -> None:
    ids = torch.tensor([[5, 9, 11, 40]])
    with torch.no_grad():
        before = llama.loaded.model(input_ids=ids).logits
    one = llama.analyze_residue(llama.run(instructions=PAIR))
    two = llama.analyze_residue(llama.run(instructions=PAIR))
    with torch.no_grad():
        assert torch.equal(before, llama.loaded.model(input_ids=ids).logits)
    assert isinstance(one, Result)
    for name, frame in one.tables().items():
        assert frame.equals(two.tables()[name]), name


# -- a planted culprit ---------------------------------------------------------------------------------------------------------


def preference_table(
    effects: dict[str, float], base: float = 0.0, alone: tuple[float, float] = (5.0, -5.0), n: int = 8
) -> pl.DataFrame:
    rng = np.random.default_rng(0)
    rows = []
    for task in range(n):
        for order in ("ab", "ba"):
            for hidden in ("", "a", "b", "control"):
                value = base + effects.get(hidden, 0.0) + 0.05 * rng.normal()
                rows.append(("conflict", order, "user+user", task, hidden, 10 if hidden else 0, value))
        rows += [(f"alone {x}", x, "user+user", task, "", 0, v) for x, v in zip("ab", alone, strict=True)]
    return pl.DataFrame(rows, schema=["condition", "order", "arrangement", "task", "hidden", "tokens", "value"], orient="row")


def test_span_effects_name_the_block_that_decides_and_no_other() -> None:
    found = {e.name: e for e in span_effects(preference_table({"a": -3.0}), 0) if e.order == "both"}
    assert found["a"].responsible is True
    assert found["a"].effect.value == pytest.approx(-3.0, abs=0.1)
    assert found["a"].recovered == pytest.approx(0.6, abs=0.05)
    assert found["b"].responsible is False
    assert found["control"].responsible is None
    # Hiding b may not lower the preference for a and count; nor may an effect that the control has too.
    assert not {e.name: e for e in span_effects(preference_table({"b": -3.0}), 0) if e.order == "both"}["b"].responsible
    assert not {e.name: e for e in span_effects(preference_table({"a": -3.0, "control": -3.1}), 0) if e.order == "both"}[
        "a"
    ].responsible
    nothing = span_effects(preference_table({}), 0)
    assert not any(e.responsible for e in nothing)


def test_a_span_hidden_in_one_order_is_compared_with_that_order() -> None:
    """The two orders differ by six nats; hiding the control does nothing, and must look like nothing."""
    table = preference_table({"a": -3.0}).with_columns(
        value=pl.col("value") + pl.when(pl.col("order") == "ab").then(6.0).otherwise(0.0)
    )
    turn = (pl.col("order") == "ab") == (pl.col("task") % 2 == 0)
    once = table.filter((pl.col("condition") != "conflict") | (pl.col("hidden") == "") | turn)
    found = {e.name: e for e in span_effects(once, 0) if e.order == "both"}
    assert found["control"].effect.value == pytest.approx(0.0, abs=0.1)
    assert found["control"].effect.n == 8
    assert found["a"].responsible is True
    assert not found["b"].responsible


def test_a_model_that_listens_to_one_block_has_it_named(llama: InstructionDisruptionShell, monkeypatch: pytest.MonkeyPatch) -> None:
    """What reads ``a``'s block writes a's tokens against b's into the last row; where the block is hidden it writes nothing."""
    from symbolic_residue.instrument import LastRow

    plain = llama.run(instructions=PAIR)
    frames = llama._frames(plain.asked, plain.config)
    from symbolic_residue.shells.instruction_disruption._preference import plain_pairs

    pairs = [p for p in plain_pairs(llama.tokenizer, plain.asked) if p is not None]
    w_u = llama.instrument.parts.w_u
    direction = sum(w_u[p[1]] - w_u[p[2]] for p in pairs)
    direction = direction / direction.norm()
    by_length = {tuple(f.prompt.ids): f for f in frames}
    run = LastRow.run

    def planted(self: Any, edits: Any = (), **options: Any) -> Any:
        """Adds the direction in the sequences in which ``a``'s block is there and not hidden."""
        copies = options.get("copies", 1)
        extra = []
        for i, (row, there) in enumerate(zip(self._ids.tolist(), self._mask.sum(-1).tolist(), strict=True)):
            ids = tuple(row[-there:])
            frame = next((f for key, f in by_length.items() if ids[: len(key)] == key), None)
            if frame is None or "a" not in frame.spans:
                continue
            span, start = self._hidden[i], max(1, frame.spans["a"][0])
            if span is None or span[0] != start:
                extra.append(Add("resid_post.1", value=30.0 * direction, rows=(-1,), batch=range(i * copies, (i + 1) * copies)))
        return run(self, [*edits, *extra], **options)

    monkeypatch.setattr(LastRow, "run", planted)
    findings = llama.analyze_residue(llama.run(instructions=PAIR))
    found = {e.name: e for e in findings.effects if e.order == "both"}
    assert findings.responsible == ["a"]
    assert found["a"].effect.above(-math.inf) and found["a"].effect.below(0.0)
    assert "hiding a moves the preference away from it" in findings.summary or "not judged" in findings.summary


def test_the_heads_with_the_largest_attribution_are_tested() -> None:
    shell = shell_of("llama", top_heads=3, random_heads=5)
    findings = shell.analyze_residue(shell.run(instructions=PAIR))
    assert findings.heads is not None
    heads = findings.tables()["heads"]
    assert heads["confirmed"].drop_nulls().len() == 3
    assert set(findings.heads.chosen) == {
        (r["layer"], r["head"]) for r in heads.filter(pl.col("ablation").is_not_null()).iter_rows(named=True)
    }
    sizes = heads.sort(pl.col("dla").abs(), descending=True)
    assert (sizes["layer"][0], sizes["head"][0]) == findings.heads.chosen[0]


# -- verdicts ------------------------------------------------------------------------------------------------------------------


def judged(
    residue: InstructionDisruptionResidue, flags: dict[str, tuple[bool, bool]], *, blended: bool = False, alone: bool = True
) -> dict[str, Any]:
    """Verdicts with every answer of a condition and order following (a, x) as given."""
    answers = residue.frames["instruction_answers"]
    rows = []
    for row in answers.to_dicts():
        if row["condition"].startswith("alone"):
            row |= {"follows_a": alone and row["order"] == "a", "follows_b": alone and row["order"] == "b", "blended": False}
        elif row["condition"] == "control":
            row |= {"follows_a": True, "follows_x": True, "blended": False}
        else:
            a, x = flags[row["order"]]
            row |= {"follows_a": a, "follows_x": x, "follows_b": x, "blended": blended}
        rows.append(row)
    made = InstructionDisruptionResidue(
        residue.asked,
        residue.config,
        residue.provenance,
        residue.frames | {"instruction_answers": pl.DataFrame(rows, schema=answers.schema)},
    )
    return {v.mode: v for v in verdicts(made)}


@pytest.mark.parametrize(
    ("flags", "blended", "fires"),
    [
        ({"ab": (True, True), "ba": (True, True)}, False, set()),
        ({"ab": (False, False), "ba": (False, False)}, False, {"nullification"}),
        ({"ab": (True, False), "ba": (False, True)}, False, {"partial execution"}),  # the one with priority wins
        ({"ab": (False, True), "ba": (True, False)}, False, {"partial execution", "priority inversion"}),  # the later one wins
        ({"ab": (False, False), "ba": (False, False)}, True, {"nullification", "blended execution"}),
    ],
)
def test_modes_fire_on_what_they_name(residue: Any, flags: Any, blended: bool, fires: set[str]) -> None:
    found = judged(residue, flags, blended=blended)
    assert tuple(found) == MODES
    assert {mode for mode, v in found.items() if v.outcome == "fires"} == fires
    assert {mode for mode, v in found.items() if v.outcome == "absent"} == set(MODES) - fires
    assert all(v.value.n == 6 for v in found.values())  # questions, not answers


def test_one_instruction_winning_whatever_the_order_is_no_inversion(residue: Any) -> None:
    found = judged(residue, {"ab": (True, False), "ba": (True, False)})
    assert found["priority inversion"].value.value == pytest.approx(0.5)
    assert found["priority inversion"].outcome == "undecided"
    assert found["partial execution"].outcome == "fires"


def test_nothing_is_judged_where_an_instruction_alone_is_not_followed(residue: Any) -> None:
    found = judged(residue, {"ab": (False, False), "ba": (False, False)}, alone=False)
    for verdict in found.values():
        assert verdict.outcome == "undecided"
        assert verdict.note.startswith("Not judged")
        assert not verdict.value.has_interval


@given(st.integers(1, 60), st.floats(0, 1))
def test_shares_stay_in_their_range_and_agree_with_wilson(n: int, mean: float) -> None:
    from symbolic_residue.stats import wilson

    e = share(mean, n)
    assert 0 <= e.low <= e.value <= e.high <= 1
    k = round(mean * n)
    exact, mine = wilson(k, n), share(k / n, n)
    assert (mine.low, mine.high) == pytest.approx((exact.low, exact.high))


def test_auc_of_geometry_leaves_out_what_was_not_judged() -> None:
    found = conflict_predicts_failure([0.1, 0.2, 0.9, 0.8, 5.0], [False, False, True, True, None])
    assert (found.value, found.n) == (1.0, 4)
    assert 0 < found.low < 1
    assert math.isnan(conflict_predicts_failure([0.1, 0.2], [True, True]).value)
    with pytest.raises(ConfigError):
        conflict_predicts_failure([0.1], [True, False])


# -- what is asked, kept and refused -------------------------------------------------------------------------------------------


def test_text_with_instructions_on_lines_is_read(llama: InstructionDisruptionShell) -> None:
    residue = llama.run("Answer in French.\nDo not use digits.\nWhat is the capital of Peru?", seed=1)
    asked = residue.asked
    assert (asked.a.kind, asked.b.kind, asked.relation, asked.joint) == ("language", "no-digits", "compatible", True)
    assert len({t.question for t in asked.tasks}) == 6
    assert all("What is the capital of Peru?" in t.question for t in asked.tasks)
    findings = llama.analyze_residue(residue)
    assert findings.residue is residue
    for bad in ("Answer in French.\nWhat is snow?", "Just talk.", "a\nb\nc"):
        with pytest.raises(PromptError, match="two are needed"):
            llama.run(bad)


def test_residue_survives_saving_and_gives_the_same_findings(
    llama: InstructionDisruptionShell, residue: Any, tmp_path: Path
) -> None:
    again = InstructionDisruptionResidue.load(residue.save(tmp_path / "residue"))
    llama._kept = None
    one, two = llama.analyze_residue(residue), shell_of("llama").analyze_residue(again)
    for name, frame in one.tables().items():
        other = two.tables()[name]
        for column in frame.columns:
            if frame[column].dtype == pl.Float64:
                # (the specificity counts random pairs, and the runs were batched differently)
                far = 0.02 if column == "specificity_p" else 5e-4
                np.testing.assert_allclose(frame[column].to_numpy(), other[column].to_numpy(), atol=far)
            else:
                assert frame[column].equals(other[column]), (name, column)


def test_without_interventions_there_are_verdicts_only() -> None:
    shell = shell_of("llama", top_heads=0)
    findings = shell.analyze_residue(shell.run(instructions=PAIR))
    assert findings.effects == [] and findings.heads is None
    assert [v.mode for v in findings.verdicts] == list(MODES)
    assert "preference" not in findings.residue.frames


def test_chat_frames_put_the_first_instruction_into_the_systems_turn() -> None:
    shell = shell_of("llama", frame="chat", arrangements=("user+user", "system+user"))
    residue = shell.run(instructions=PAIR)
    for frame in shell._frames(residue.asked, residue.config):
        start, stop = frame.spans[frame.order[0]]
        regions = set(frame.prompt.regions.per_token()[max(1, start) : stop])
        assert regions == {"system" if frame.arrangement == "system+user" else "user"}
        assert frame.prompt.text.endswith("Answer:")
        assert ("rule 1 holds" in frame.prompt.text) == (frame.arrangement == "user+user" and len(frame.order) == 2)
    shell.analyze_residue(residue)


def test_a_hybrid_has_verdicts_and_heads_but_hides_nothing() -> None:
    shell = shell_of("qwen3_next")
    findings = shell.analyze_residue(shell.run(instructions=PAIR))
    assert findings.effects == []
    assert findings.heads is not None


def test_refusals(llama: InstructionDisruptionShell) -> None:
    with pytest.raises(ConfigError, match="either"):
        llama.run()
    with pytest.raises(ConfigError, match="exactly two"):
        llama.run(instructions=["Answer in French."])
    with pytest.raises(ConfigError, match="differently"):
        llama.run(instructions=["Answer in French.", "Answer in French."])
    with pytest.raises(ConfigError, match="compatible"):
        llama.run(instructions=PAIR, control="Answer in lower case.")
    with pytest.raises(ConfigError, match="No example can follow both"):
        llama.run(instructions=PAIR, joint=True)
    with pytest.raises(PromptError, match="question is empty"):
        llama.run(instructions=PAIR, task=" ")
    with pytest.raises(ConfigError, match="'tasks'"):
        InstructionDisruptionConfig.make(tasks=2)
    with pytest.raises(ConfigError, match="no layer"):
        shell_of("llama", layer=7)
    with pytest.raises(ConfigError, match="another model"):
        shell_of("gpt2").analyze_residue(llama.run(instructions=PAIR))


def test_the_benchmark_is_graded_and_balanced() -> None:
    items = InstructionDisruptionShell.items()
    assert len({i.id for i in items}) == len(items)
    for split in ("calibration", "held-out"):
        mine = [i for i in items if i.split == split]
        assert sum(i.null for i in mine) >= 24
        assert sum(bool(i.modes) for i in mine) >= 20
        assert sum(i.level == 1 for i in mine) >= 10
    kinds = {i.a.kind for i in items} | {i.b.kind for i in items}
    assert len(kinds) >= 15
    texts = [{frozenset((i.a.text, i.b.text)) for i in items if i.split == split} for split in ("calibration", "held-out")]
    assert not texts[0] & texts[1]


def test_an_item_runs_and_another_shells_item_is_refused(llama: InstructionDisruptionShell) -> None:
    from symbolic_residue.prompts import benchmark

    item = next(i for i in llama.items() if i.kind == "null-compatible" and i.split == "calibration")
    residue = llama.run_item(item)
    assert (residue.asked.a, residue.asked.b, residue.asked.control, residue.asked.joint) == (item.a, item.b, item.control, True)
    with pytest.raises(ConfigError, match="no item"):
        llama.run_item(benchmark("value-ambiguity")[0])


def test_criteria_have_a_field_for_each_mode() -> None:
    assert tuple(InstructionCriteria.thresholds) == MODES
    assert set(InstructionCriteria.thresholds.values()) <= set(InstructionCriteria.model_fields)
    assert (
        "not yet calibrated" in InstructionCriteria.calibrated().source or "calibration" in InstructionCriteria.calibrated().source
    )


def test_the_figure_shows_every_frame(llama: InstructionDisruptionShell, residue: Any) -> None:
    findings = llama.analyze_residue(residue)
    spec = llama.visualize_instruction_conflict(findings).to_dict()
    drawn = spec["data"].get("values") or spec["datasets"][spec["data"]["name"]]
    shown = {row["frame"] for row in drawn}
    assert {"alone a", "alone b", "a then b", "b then a", "control: a then c"} <= shown
    sums: dict[str, float] = {}
    for row in drawn:
        sums[row["frame"]] = sums.get(row["frame"], 0.0) + row["share"]
    assert sums == pytest.approx(dict.fromkeys(sums, 1.0))
    with pytest.raises(ConfigError):
        instruction_conflict(findings.frames["instruction_rates"].head(0))


def test_the_command_fills_a_valid_run_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    build("llama", max_position_embeddings=1024).save_pretrained("tiny")
    tiny_tokenizer().save_pretrained("tiny")
    fast = ["--quick", "--examples", "1", "--max-new-tokens", "3", "--top-heads", "1", "-m", "tiny", "--json"]
    assert main(["shell", "instruction-disruption", *PAIR, *fast, "-o", "run"]) == 0
    said = json.loads(capsys.readouterr().out, parse_constant=lambda word: pytest.fail(f"{word} in JSON"))
    assert [v["mode"] for v in said["items"][0]["verdicts"]] == list(MODES)
    assert validate("run") == []
    assert RunFolder.open("run").table("instruction_answers")["condition"].n_unique() == 4
    assert "instruction" in Path("run/report.html").read_text("utf-8")
    lines = [{"id": "one", "first": PAIR[0], "second": PAIR[1]}, {"id": "two", "first": "Be kind.", "second": PAIR[1]}]
    Path("pairs.jsonl").write_text("\n".join(map(json.dumps, lines)), "utf-8")
    assert main(["shell", "instruction-disruption", "-f", "pairs.jsonl", *fast, "--no-report", "-o", "many"]) == 1
    items = RunFolder.open("many").table("items")
    assert items["status"].to_list() == ["done", "failed"]
    assert "No program here can verify" in items["error"][1]
    assert main(["shell", "instruction-disruption", PAIR[0], *fast]) == 2
