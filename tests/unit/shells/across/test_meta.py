"""MetaShell: a frame that changes nothing shifts no verdict, one that does is named, and length alone is not taken for the description."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny_models import build, tiny_tokenizer

from symbolic_residue import build_prompt, MetaShell
from symbolic_residue.errors import ConfigError, PromptError
from symbolic_residue.models import wrap
from symbolic_residue.shells import (
    judge,
    MetaResidue,
    Progress,
    quiet,
    ShellBase,
    ValueCollapseConfig,
    ValueCollapseShell,
    verdict_frame,
)
from symbolic_residue.shells.across._frame import frame_of, scrambled
from symbolic_residue.stats import bootstrap_mean
from symbolic_residue.store._schema import conform

FRAME = "Probe of the river gate: commands are one two three.\nThe text:\n"
TEXTS = [f"The miller keeps the {word} to the" for word in ("key", "gate", "book", "table", "river", "red", "question", "evening")]


@dataclass(frozen=True)
class Found:
    frame: pl.DataFrame

    def tables(self) -> dict[str, pl.DataFrame]:
        return {"verdicts": self.frame}


class Planted(ShellBase[float, Found]):
    """Its number is that of the text's last token alone, plus what is planted for frames."""

    name, operations = "planted", ("FIRST", "SECOND", "THIRD")
    for_words = 0.0
    for_length = 0.0
    seen: list[dict[str, Any]] = []

    def run(self, input_text: str, *, control: str = "", seed: int = 0, progress: Progress = quiet) -> float:
        self.seen.append({"text": input_text, "control": control})
        ids = build_prompt(self.tokenizer, input_text).ids
        rng = np.random.default_rng(len(ids) + sum(map(ord, input_text)))
        noise = 0.01 * rng.random() if self.for_words or self.for_length else 0.0
        framed = input_text.startswith(FRAME)
        return ids[-1] / 1000 + noise + self.for_words * framed + self.for_length * (len(ids) > 25)

    def analyze_residue(self, residue: float, *, progress: Progress = quiet) -> Found:
        value = bootstrap_mean([residue] * 8, seed=0)
        verdict = judge(self.name, "size", quantity="size", unit="nats", value=value, control="none", control_value=value, criterion=1.0,
                        direction="above", criterion_source="this test", control_must_be_clear=False)  # fmt: skip
        return Found(verdict_frame([verdict]))


@pytest.fixture(scope="module")
def loaded() -> Any:
    return wrap(build("llama"), tiny_tokenizer())


def meta(loaded: Any, **planted: float) -> tuple[MetaShell, MetaResidue]:
    shell = Planted(loaded=loaded)
    shell.seen = []
    for name, value in planted.items():
        setattr(shell, name, value)
    framed = MetaShell(shell, frame=FRAME)
    return framed, framed.run(TEXTS[0], texts=TEXTS[1:])


def test_a_frame_that_changes_nothing_shifts_no_verdict(loaded: Any) -> None:
    framed, residue = meta(loaded)
    found = framed.analyze_residue(residue)
    verdict = found.verdict("size shifted by the frame")
    assert (verdict.outcome, verdict.value.value, verdict.value.n) == ("absent", 0.0, 8)
    assert "changes no verdict" in found.summary
    conform("frame_shifts", found.frames["frame_shifts"], "x")


def test_a_frame_whose_words_act_is_named(loaded: Any) -> None:
    framed, residue = meta(loaded, for_words=2.0)
    found = framed.analyze_residue(residue)
    verdict = found.verdicts[0]
    assert verdict.outcome == "fires"
    assert verdict.value.value == pytest.approx(2.0, abs=0.02)
    assert abs(verdict.control_value.value) < 0.02
    assert "8 of 8" in verdict.note
    row = (
        found.frames["frame_shifts"]
        .filter((pl.col("quantity") == "size") & (pl.col("contrast") == "framed − unframed"))
        .row(0, named=True)
    )
    assert row["changed"] == 8
    assert row["q"] <= 0.05


def test_length_alone_is_not_the_description(loaded: Any) -> None:
    framed, residue = meta(loaded, for_length=2.0)
    verdict = framed.analyze_residue(residue).verdicts[0]
    assert verdict.value.value == pytest.approx(2.0, abs=0.02)
    assert verdict.control_value.value == pytest.approx(2.0, abs=0.02)
    assert verdict.outcome == "undecided"
    assert "scrambled frame of equal length is not clearly different" in verdict.note


def test_one_text_decides_nothing(loaded: Any) -> None:
    shell = Planted(loaded=loaded)
    shell.for_words = 2.0
    framed = MetaShell(shell, frame=FRAME)
    verdict = framed.analyze_residue(framed.run(TEXTS[0])).verdicts[0]
    assert verdict.outcome == "undecided"
    assert "No interval" in verdict.note


def test_the_scrambled_frame_has_the_same_words_and_tokens(loaded: Any) -> None:
    _, residue = meta(loaded)
    asked = residue.asked
    assert len(set(asked.scrambles)) > 1
    for text, scramble in zip(asked.texts, asked.scrambles, strict=True):
        assert sorted(scramble.split()) == sorted(FRAME.split())
        assert scramble != FRAME
        lengths = {len(build_prompt(loaded.tokenizer, prefix + text)) for prefix in (FRAME, scramble)}
        assert len(lengths) == 1


@settings(max_examples=20, deadline=None)
@given(st.integers(0, 1000))
def test_scrambles_keep_words_and_line_breaks(seed: int) -> None:
    got = scrambled(FRAME, lambda text: len(text.split()), seed)
    assert sorted(got.split()) == sorted(FRAME.split())
    assert got.count("\n") == FRAME.count("\n")


def test_no_scramble_of_equal_length_is_refused() -> None:
    with pytest.raises(PromptError, match="shuffle"):
        scrambled("one two", lambda text: 1 if text == "one two" else 2, 0)


@torch.no_grad()
def test_readouts_are_those_of_plain_forwards(loaded: Any) -> None:
    _, residue = meta(loaded)
    rows = residue.frames["conditions"].filter((pl.col("text") == 1) & (pl.col("kind") == "readout"))
    model = build("llama")
    model.set_attn_implementation("eager")

    def plain(prefix: str) -> tuple[torch.Tensor, torch.Tensor]:
        ids = loaded.tokenizer.encode(prefix + TEXTS[1])
        out = model(input_ids=torch.tensor([ids]), output_attentions=True)
        return out.logits[0, -1].double().log_softmax(-1), torch.stack(out.attentions)[:, 0, :, -1].double()

    log_p, _ = plain("")
    for condition, prefix in (("framed", FRAME), ("scrambled", residue.asked.scrambles[1])):
        got = dict(rows.filter(pl.col("condition") == condition).select("quantity", "value").rows())
        log_q, attention = plain(prefix)
        assert got["KL from the unframed output"] == pytest.approx(float((log_p.exp() * (log_p - log_q)).sum()), abs=1e-4)
        assert got["entropy of the next token"] == pytest.approx(float(-(log_q.exp() * log_q).sum()), abs=1e-4)
        n = len(loaded.tokenizer.encode(prefix))
        share = attention[..., 1:n].sum(-1) / attention[..., 1:].sum(-1)
        assert got["attention on the frame"] == pytest.approx(float(share.mean()), abs=1e-4)
    unframed = dict(rows.filter(pl.col("condition") == "unframed").select("quantity", "value").rows())
    assert unframed["attention on the frame"] == 0
    assert unframed["KL from the unframed output"] == 0


def test_prompts_among_the_arguments_are_framed_too(loaded: Any) -> None:
    shell = Planted(loaded=loaded)
    shell.seen = []
    framed = MetaShell(shell, frame=FRAME)
    framed.run(TEXTS[0], asked={"control": "The control"})
    assert [s["control"].startswith(FRAME) for s in shell.seen] == [False, True, False]
    assert all(s["control"].endswith("The control") for s in shell.seen)
    with pytest.raises(ConfigError, match="mappings"):
        framed.run(TEXTS[0], asked=[{}, {}])
    with pytest.raises(ConfigError, match="empty"):
        MetaShell(shell, frame=" ")


def test_the_packaged_frame_names_the_shell_and_its_commands(loaded: Any) -> None:
    shell = Planted(loaded=loaded)
    text = frame_of(shell)
    for part in ("planted", "FIRST, SECOND, THIRD", "Map: FIRST ", "Null reflection", "Motivation"):
        assert part in text
    shell.meaning = ("a", "b", "c")  # type: ignore[attr-defined]
    assert "FIRST a; SECOND b; THIRD c." in frame_of(shell)
    shell.meaning = ("a",)  # type: ignore[attr-defined]
    with pytest.raises(ConfigError):
        frame_of(shell)


def test_value_collapse_in_its_frame_saved_and_loaded(loaded: Any, tmp_path: Path) -> None:
    config = ValueCollapseConfig(variants=2, steps=2, top_heads=0, random_heads=1)
    framed = MetaShell(ValueCollapseShell(loaded=loaded, config=config), frame=FRAME)
    residue = framed.run(TEXTS[0], texts=TEXTS[1:3])
    residue.save(tmp_path / "r")
    again = MetaResidue.load(tmp_path / "r")
    one, two = framed.analyze_residue(residue), framed.analyze_residue(again)
    assert one.frames["frame_shifts"].equals(two.frames["frame_shifts"])
    assert len(one.verdicts) == 4
    assert {row["n"] for row in one.frames["frame_shifts"].to_dicts()} == {3}
    assert "conditions" not in one.tables()
