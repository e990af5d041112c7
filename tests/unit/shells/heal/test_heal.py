"""Healing finds a planted cause and nothing else; every entry equals a plain forward with the same edit; side effects and random twins stand beside."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
import torch
from tiny_models import build, tiny_tokenizer

from symbolic_residue.cli import main
from symbolic_residue.errors import ConfigError, PromptError, SpanError
from symbolic_residue.instrument import Add, AttentionBias, collate, HeadScale, Instrument
from symbolic_residue.models import wrap
from symbolic_residue.prompts import build_prompt, Prompt
from symbolic_residue.shells.heal import Ask, Failure, failure_of, heal, Menu
from symbolic_residue.shells.heal._menu import Cell, random_span
from symbolic_residue.shells.heal._runs import Rows, UNEDITED
from symbolic_residue.stats import wilson
from symbolic_residue.store import RunFolder, validate

WORDS = (
    "gate",
    "river",
    "mill",
    "key",
    "door",
    "boat",
    "hill",
    "road",
    "lamp",
    "rope",
    "book",
    "coat",
    "bell",
    "map",
    "cup",
    "hat",
)
TEXTS = [f"the old {a} stands near the {b} and the {c} by the" for a in WORDS for b, c in zip(WORDS[3:8], WORDS[6:11], strict=True)]


def answering(failure: Failure, answer: int, **changes: Any) -> Failure:
    """The failure with another right answer."""
    return replace(failure, asks=(replace(failure.asks[0], answer=answer),), **changes)


ONLY_HEADS = Menu(anchor=(), inhibit=(), steer=(), bias=(), head=(0.0, 0.5, 2.0, 10 / 3))
PLANTED = (1, 2)


def scaled(model: Any, layer: int, head: int, factor: float) -> None:
    """Scale what one head writes, in the weights."""
    o = model.model.layers[layer].self_attn.o_proj.weight
    d = o.shape[1] // model.config.num_attention_heads
    with torch.no_grad():
        o[:, head * d : (head + 1) * d] *= factor


@torch.no_grad()
def top(model: Any, prompt: Prompt) -> int:
    return int(model(input_ids=torch.tensor([prompt.ids]), use_cache=False).logits[0, -1].argmax())


@pytest.fixture(scope="module")
def damaged() -> tuple[Instrument, list[Failure]]:
    """A model one of whose heads writes too little, and the prompts whose answer that changes."""
    model, tokenizer = build("llama"), tiny_tokenizer()
    # The head speaks loudly in the sound model, so that its loss changes answers.
    scaled(model, *PLANTED, 4.0)
    prompts = [build_prompt(tokenizer, text) for text in TEXTS]
    right = [top(model, p) for p in prompts]
    scaled(model, *PLANTED, 0.3)
    found = [
        Failure(f"f{i}", f"f{i}", (Ask(tuple(p.ids), answer),))
        for i, (p, answer) in enumerate(zip(prompts, right, strict=True))
        if top(model, p) != answer
    ]
    assert len(found) >= 16
    return Instrument(wrap(model, tokenizer)), found


def unrelated(instrument: Instrument) -> list[Prompt]:
    return [build_prompt(instrument.loaded.tokenizer, f"a {word} and one more {word} for") for word in WORDS[:8]]


def test_the_planted_head_heals_and_is_named(damaged: tuple[Instrument, list[Failure]]) -> None:
    instrument, found = damaged
    half = len(found) // 2
    healing = heal(instrument, found[:half], held_out=found[half:], unrelated=unrelated(instrument), menu=ONLY_HEADS)
    rule = healing.rules.row(0, named=True)
    assert (rule["kind"], rule["place"]) == ("head", f"{PLANTED[0]}.{PLANTED[1]}")
    assert rule["dose"] == pytest.approx(10 / 3)
    assert rule["restored"] == rule["n"] == len(found) - half
    assert rule["control_rate"] < 0.5
    assert rule["outcome"] == "heals"
    assert rule["p_adjusted"] <= 0.05
    assert f"{PLANTED[0]}.{PLANTED[1]}" in healing.summary
    assert healing.right == ()
    assert healing.heals["restored"].all()
    assert healing.heals["twin_restored"].mean() < 0.5


def test_the_same_seed_gives_the_same(damaged: tuple[Instrument, list[Failure]]) -> None:
    instrument, found = damaged
    one, two = (heal(instrument, found[:4], held_out=found[4:8], unrelated=unrelated(instrument)[:3], seed=5) for _ in range(2))
    assert one.heals.equals(two.heals)
    assert one.rules.equals(two.rules)


def test_what_the_menu_cannot_restore_is_not_healed(damaged: tuple[Instrument, list[Failure]]) -> None:
    instrument, found = damaged
    lowest = []
    for f in found[:6]:
        logits = instrument.run(collate([list(f.asks[0].ids)]))["logits"][0, -1]
        lowest.append(answering(f, int(logits.argmin())))
    healing = heal(instrument, lowest[:3], held_out=lowest[3:], unrelated=unrelated(instrument)[:3], menu=ONLY_HEADS)
    rule = healing.rules.row(0, named=True)
    assert (rule["outcome"], rule["search_restored"], rule["place"]) == ("not healed", 0, None)
    assert not healing.heals["restored"].any()
    assert "No edit of the menu" in healing.summary


def test_items_answered_rightly_are_no_failures(damaged: tuple[Instrument, list[Failure]]) -> None:
    instrument, found = damaged
    sound = [answering(f, int(instrument.run(collate([list(f.asks[0].ids)]))["logits"][0, -1].argmax())) for f in found[:2]]
    healing = heal(instrument, [*sound, *found[2:4]], held_out=found[4:6], unrelated=unrelated(instrument)[:2], menu=ONLY_HEADS)
    assert set(healing.right) == {f.id for f in sound}
    assert set(healing.heals["failure"]) == {f.id for f in found[2:4]}
    nothing = heal(instrument, sound, held_out=found[4:6], unrelated=unrelated(instrument)[:2], menu=ONLY_HEADS)
    assert "Nothing fails" in nothing.summary
    assert nothing.heals.is_empty()


def test_a_planted_head_heals_answers_that_a_program_judges(damaged: tuple[Instrument, list[Failure]]) -> None:
    """What the sound model says is the program; the damaged head is named, and its scale of 10/3 restores whole answers."""
    instrument, found = damaged
    tokenizer, steps = instrument.loaded.tokenizer, 3
    sound = Cell(lambda b: HeadScale(*PLANTED, 10 / 3, rows=(-1,), batch=(b,)))
    made = []
    for f in found[:16]:
        rows = Rows(instrument, f.asks[0].ids)
        wanted, said = rows.answers([sound, UNEDITED], tokenizer, steps)
        if wanted != said:
            ask = replace(f.asks[0], check=lambda text, wanted=wanted: text == wanted)
            made.append(replace(f, asks=(ask,), limit=0.5, steps=steps))
    half = len(made) // 2
    assert half >= 6
    healing = heal(instrument, made[:half], held_out=made[half:], unrelated=unrelated(instrument)[:3], menu=ONLY_HEADS)
    rule = healing.rules.row(0, named=True)
    assert rule["place"] == f"{PLANTED[0]}.{PLANTED[1]}"
    assert rule["dose"] == pytest.approx(10 / 3)
    assert rule["restored"] == rule["n"] == len(made) - half
    assert rule["measure"] == "share of answers that follow"
    assert (rule["outcome"], rule["gain"] > 0.5, rule["gain_high"] <= 1) == ("heals", True, True)
    marked = healing.heals.filter(pl.col("smallest"))
    assert marked["failure"].to_list() == [f.id for f in made[:half]]


def test_random_right_answers_are_not_said_to_heal(damaged: tuple[Instrument, list[Failure]]) -> None:
    """The right answers are dealt out at random, so that nothing in the model can know them."""
    instrument, found = damaged
    outcomes = []
    for seed in range(10):
        rng = np.random.default_rng(seed)
        dealt = [answering(f, int(rng.integers(4, 384))) for f in found[:16]]
        outcomes += (
            heal(instrument, dealt[:8], held_out=dealt[8:], unrelated=unrelated(instrument)[:2], menu=ONLY_HEADS, seed=seed)
            .rules["outcome"]
            .to_list()
        )
    assert len(outcomes) == 10
    assert outcomes.count("heals") <= 2  # the chance of three or more of ten at 5 % is 1 %


# -- entries against plain forwards ---------------------------------------------------------------------------------------------


@pytest.fixture(scope="module", params=["llama", "gemma3", "gpt2"])
def sound(request: pytest.FixtureRequest) -> Instrument:
    return Instrument(wrap(build(request.param), tiny_tokenizer()))


def answers(instrument: Instrument, ids: Sequence[int], edit: Any = None) -> torch.Tensor:
    return instrument.run(collate([list(ids)]), edits=[] if edit is None else [edit])["logits"][0, -1].double()


def log_odds(logits: torch.Tensor, answer: int) -> float:
    """Of a token over the best other one."""
    others = logits.clone()
    others[answer] = -torch.inf
    return float(logits[answer] - others.max())


def test_every_kind_is_the_edit_that_it_says(sound: Instrument) -> None:
    """The answer is set to what a plain forward says under the strongest dose: that entry restores it, with that probability."""
    tokenizer = sound.loaded.tokenizer
    texts = [f"the {a} is near the {b} and so is the" for a, b in zip(WORDS[:8], WORDS[8:], strict=True)]
    at = sound.parts.n_layers - 1
    made = []
    for i, text in enumerate(texts):
        base = failure_of(
            tokenizer, text, " x", id=f"f{i}", evidence=WORDS[i], distractor=WORDS[8 + i], control=text.replace("near", "by")
        )
        edits = {
            "anchor": AttentionBias(math.log(1e4), base.asks[0].evidence, rows=(-1,)),
            "inhibit": AttentionBias(-math.inf, base.asks[0].distractor, rows=(-1,)),
        }
        before = int(answers(sound, base.asks[0].ids).argmax())
        for kind, edit in edits.items():
            p = answers(sound, base.asks[0].ids, edit)
            if int(p.argmax()) != before:
                made.append((kind, answering(base, int(p.argmax()), id=f"{kind}{i}"), log_odds(p, int(p.argmax()))))
    assert made or sound.model.config.model_type == "gemma3_text"  # its answers are too sure to be turned
    for kind, failure, wanted in made[:6]:
        menu = Menu(
            anchor=(1e4,) if kind == "anchor" else (), inhibit=(0.0,) if kind == "inhibit" else (), head=(), steer=(), bias=()
        )
        found = heal(sound, [failure], held_out=[], unrelated=unrelated(sound)[:2], menu=menu)
        row = found.heals.row(0, named=True)
        assert (row["kind"], row["restored"]) == (kind, True)
        assert row["after"] == pytest.approx(wanted, abs=1e-3)
        assert found.rules["outcome"].to_list() == ["undecided"]  # nothing held out

    # Steering by the other failure's difference, and a head.
    first, second = (failure_of(tokenizer, texts[i], " x", id=f"s{i}", control=texts[i].replace("near", "by")) for i in (0, 1))
    there, here = (
        sound.run(collate([list(ids)]), reads=(f"resid_post.{at}",))[f"resid_post.{at}"][0, -1]
        for ids in (second.asks[0].control, second.asks[0].ids)
    )
    p = answers(sound, first.asks[0].ids, Add(f"resid_post.{at}", rows=(-1,), value=(there - here) * 2.0))
    menu = Menu(anchor=(), inhibit=(), head=(), steer=(2.0,), layers=(1.0,), bias=())
    answer = 5 if int(answers(sound, first.asks[0].ids).argmax()) != 5 else 6
    other = 7 if int(answers(sound, second.asks[0].ids).argmax()) != 7 else 8
    found = heal(
        sound,
        [answering(first, answer), answering(second, other)],
        held_out=[],
        unrelated=unrelated(sound)[:2],
        menu=menu,
    )
    assert found.heals.filter(pl.col("failure") == "s0")["after"][0] == pytest.approx(log_odds(p, answer), abs=1e-3)
    alone = heal(sound, [answering(first, answer)], held_out=[], unrelated=unrelated(sound)[:2], menu=menu)
    assert alone.heals.is_empty()  # its own control is not used on itself


def test_the_side_effect_is_the_divergence_on_unrelated_prompts(sound: Instrument) -> None:
    failure = answering(failure_of(sound.loaded.tokenizer, TEXTS[0], " x"), 5)
    if int(answers(sound, failure.asks[0].ids).argmax()) == 5:
        failure = answering(failure, 6)
    menu = replace(ONLY_HEADS, head=(5.0,), heads=1)
    prompts = unrelated(sound)
    row = heal(sound, [failure], held_out=[], unrelated=prompts, menu=menu).heals.row(0, named=True)
    layer, head = map(int, row["place"].split("."))
    want, turned = [], []
    for prompt in prompts:
        base = torch.log_softmax(sound.run(collate([prompt]))["logits"][0, -1].double(), -1)
        after = torch.log_softmax(
            sound.run(collate([prompt]), edits=[HeadScale(layer, head, 5.0, rows=(-1,))])["logits"][0, -1].double(), -1
        )
        want.append(float((base.exp() * (base - after)).sum()))
        turned.append(int(base.argmax()) != int(after.argmax()))
    assert row["side_kl"] == pytest.approx(np.mean(want), rel=1e-3, abs=1e-6)
    assert row["side_n"] == len(prompts)
    assert row["side_low"] >= 0
    share = wilson(sum(turned), len(turned))
    assert (row["side_changed"], row["side_changed_low"], row["side_changed_high"]) == pytest.approx(
        (share.value, share.low, share.high)
    )


def test_an_edit_that_heals_by_destroying_shows_it(sound: Instrument) -> None:
    failure = failure_of(sound.loaded.tokenizer, TEXTS[0], " x", evidence="gate")
    logits = answers(sound, failure.asks[0].ids)
    inside = failure.asks[0].ids[failure.asks[0].evidence[-1]]
    if int(logits.argmax()) == inside:
        pytest.skip("this family says the evidence's word by itself")
    menu = Menu(anchor=(), inhibit=(), head=(), steer=(), bias=(60.0,))
    row = heal(sound, [answering(failure, inside)], held_out=[], unrelated=unrelated(sound), menu=menu).heals.row(0, named=True)
    assert row["after"] > row["before"]
    assert row["side_kl"] > 5


# -- parts ---------------------------------------------------------------------------------------------------------------------


def test_random_spans_avoid_sink_last_row_and_evidence() -> None:
    rng = np.random.default_rng(0)
    seen = set()
    for _ in range(300):
        span = random_span(12, 3, (4, 5), rng)
        assert len(span) == 3
        assert not {0, 11, 4, 5} & set(span)
        seen.add(span)
    assert seen == {(1, 2, 3), (6, 7, 8), (7, 8, 9), (8, 9, 10)}
    assert random_span(3, 9, (), rng) == (1,)


def test_what_cannot_be_healed_is_refused(damaged: tuple[Instrument, list[Failure]]) -> None:
    instrument, found = damaged
    tokenizer = instrument.loaded.tokenizer
    with pytest.raises(ConfigError, match="needs failures"):
        heal(instrument, [], held_out=found[:1], unrelated=unrelated(instrument))
    with pytest.raises(ConfigError, match="unrelated"):
        heal(instrument, found[:1], held_out=[], unrelated=[])
    with pytest.raises(ConfigError, match="twice"):
        heal(instrument, found[:1], held_out=found[:1], unrelated=unrelated(instrument))
    with pytest.raises(ConfigError, match="draws"):
        heal(instrument, found[:1], held_out=[], unrelated=unrelated(instrument), draws=0)
    with pytest.raises(SpanError):
        failure_of(tokenizer, "the gate by the", " x", evidence="window")
    with pytest.raises(ConfigError, match="share"):
        failure_of(tokenizer, "the gate by the", " x", evidence="gate", distractor="the gate")
    with pytest.raises(PromptError, match="no token"):
        failure_of(tokenizer, "the gate by the", "  ")


# -- from the command line ------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> str:
    path = tmp_path_factory.mktemp("models") / "tiny"
    build("llama").save_pretrained(path)
    tiny_tokenizer().save_pretrained(path)
    return str(path)


def test_a_file_of_failures_becomes_a_run_and_a_report(folder: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    lines = [{"prompt": text, "answer": " x", "evidence": "old", "frame": f"frame {i // 2}"} for i, text in enumerate(TEXTS[:8])]
    path = tmp_path / "failures.jsonl"
    path.write_text("\n".join(map(json.dumps, lines)), "utf-8")
    run = tmp_path / "run"
    assert main(["heal", str(path), "--model", folder, "--draws", "1", "--output", str(run), "--json"]) == 0
    said = json.loads(capsys.readouterr().out)
    assert "4 failures to search on, 4 held out" in said["items"][0]["summary"]
    assert validate(run) == []
    kept = RunFolder.open(run)
    assert set(kept.table("heals")["failure"]) <= {f"line-{i:05d}" for i in (1, 2, 5, 6)}  # frames are never split
    assert kept.table("heal_rules")["search_n"].to_list()[0] == 4
    page = (run / "report.html").read_text("utf-8")
    assert "heal rules" in page
    assert "heals:" in page


@pytest.mark.parametrize(
    ("text", "words", "said"),
    [
        ('{"prompt": "a b"}', [], "answer"),
        ('{"prompt": "a b", "answer": " c", "extra": 1}', [], "extra"),
        ("", [], "no items"),
        ('{"prompt": "a b", "answer": " c"}', ["--benchmark", "memory-degradation"], "Give one of"),
    ],
)
def test_a_file_that_cannot_be_used_is_refused(
    folder: str, tmp_path: Path, capsys: pytest.CaptureFixture[str], text: str, words: list[str], said: str
) -> None:
    path = tmp_path / "failures.jsonl"
    path.write_text(text, "utf-8")
    assert main(["heal", str(path), "--model", folder, *words]) not in (0, 70)
    assert said in " ".join(capsys.readouterr().err.split())


def test_evidence_that_is_not_there_fails_the_item_by_name(folder: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "failures.jsonl"
    path.write_text('{"prompt": "the gate by the", "answer": " x", "evidence": "window"}\n' * 1, "utf-8")
    assert main(["heal", str(path), "--model", folder, "--output", str(tmp_path / "run")]) == 1
    assert "window" in capsys.readouterr().out
    assert main(["heal"]) not in (0, 70)
