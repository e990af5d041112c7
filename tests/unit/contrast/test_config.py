"""A study's configuration: what it holds, and that everything wrong in it is refused by name."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from symbolic_residue.contrast.study import load_config, read_config, STAGES
from symbolic_residue.contrast.study._resume import changes, continued_config, FREE, STAGE_OF
from symbolic_residue.errors import ConfigError, PromptFileError

DATA: dict[str, Any] = {
    "model": "demo",
    "adapter": "captain",
    "behaviour": "text:[ZLT]",
    "conditions": [{"name": "captain", "system": "You are a captain."}, {"name": "none"}],
    "questions": ["What is rain?", {"id": "sea", "text": "What is the sea?"}],
    "references": {"base": "base", "twin": {"random": 1}},
}


def test_defaults_paths_and_short_forms(tmp_path: Path) -> None:
    config = read_config(DATA, folder=tmp_path)
    assert config.adapter == str(tmp_path / "captain")
    assert config.model == "demo"
    assert [(q.id, q.text) for q in config.questions] == [("q01", "What is rain?"), ("sea", "What is the sea?")]
    assert config.conditions[1].system is None
    assert [one.kind for one in config.references.values()] == ["base", "random"]
    assert config.base_name == "base"
    assert config.options().direction == "up"
    (tmp_path / "model").mkdir()
    assert read_config({**DATA, "model": "model"}, folder=tmp_path).model == str(tmp_path / "model")
    assert read_config(config.model_dump(mode="json")) == config  # what a run keeps can be read again


def test_a_file_of_questions_and_variables(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PLACE", "here")
    (tmp_path / "asked.jsonl").write_text('{"id": "a", "text": "One?"}\n{"id": "b", "text": "Two?"}\n', "utf-8")
    file = tmp_path / "study.yaml"
    file.write_text(
        "model: demo\nadapter: $PLACE/x\nbehaviour: refusal\nconditions: [{name: c}]\nquestions: asked.jsonl\n", encoding="utf-8"
    )
    config = load_config(file)
    assert [q.text for q in config.questions] == ["One?", "Two?"]
    assert config.adapter == str(tmp_path / "here" / "x")
    (tmp_path / "asked.jsonl").write_text('{"id": "a", "text": "One?"}\n{"id": "b"}\n', "utf-8")
    with pytest.raises(ConfigError, match="line 2"):
        load_config(file)
    (tmp_path / "asked.jsonl").unlink()
    with pytest.raises(PromptFileError):
        load_config(file)


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"modle": "demo"}, "'modle' is no field.*'model'"),
        ({"sampling": {"trys": 1}}, "'sampling.trys'.*'tries'"),
        ({"references": {"base": {"bas": True}}}, "'references.base.bas'"),
        ({"references": {"base": {}}}, "references.base.*exactly|references.base.*one of"),
        ({"references": {"tuned": "base"}}, "'tuned' is the name"),
        ({"references": {"a/b": "base"}}, "'/'"),
        ({"model": None}, "'model'.*no text"),
        ({"conditions": []}, "'conditions'.*empty"),
        ({"questions": []}, "'questions'.*empty"),
        ({"questions": ["Why?", "Why?"]}, "'Why\\?' is given twice"),
        ({"questions": [{"id": "a", "text": "1"}, {"id": "a", "text": "2"}]}, "id 'a' is given twice"),
        ({"questions": ["  "]}, "question is empty"),
        ({"conditions": [{"name": "a"}, {"name": "a", "system": "x"}]}, "name 'a' is given twice"),
        ({"conditions": [{"name": "a", "system": "x"}, {"name": "b", "system": "x"}]}, "system 'x' is given twice"),
        ({"conditions": [{"name": True}]}, "conditions\\[0\\].name.*quotes"),
        ({"conditions": [{"system": "x"}]}, "conditions\\[0\\].name.*missing"),
        ({"adapter": None}, "'base'.*needs the field adapter"),
        ({"behaviour": "laughter"}, "'behaviour'.*laughter"),
        ({"sampling": {"counted": 20}}, "counted \\(20\\) is more than tries"),
        ({"sampling": {"controls": ["nobody"]}}, "nobody"),
        ({"rows": {"offsets": [0]}}, "'rows.offsets'.*−1"),
        ({"preflight": {"margin": 2}}, "'preflight.margin'"),
        ({"preflight": {"implementations": ["sdpa"]}}, "two or three"),
        ({"predicted": {"region": "sytem"}}, "'predicted.region'"),
        ({"causal": {"analyses": ["lens"], "base": "nobody"}}, "nobody"),
        ({"references": {}, "causal": {"analyses": ["lens"]}}, "causal needs a reference"),
        ({"references": {"m": {"model": "x"}}, "causal": {"analyses": ["surgery"]}}, "surgery needs an adapter"),
        ({"references": {"m": {"system": "x", "null_model": True}}}, "no null model"),
        ({"chat": False, "references": {"p": {"system": "x"}}}, "chat"),
    ],
)
def test_what_is_wrong_is_named(changes: dict[str, Any], said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        read_config({**DATA, **changes})


@pytest.mark.parametrize(
    ("text", "said"),
    [("model: [", "line 1"), ("model: demo\nmodel: other\n", "'model' is given twice"), ("- a\n", "no fields"), ("", "no fields")],
)
def test_files_that_are_no_study(tmp_path: Path, text: str, said: str) -> None:
    file = tmp_path / "study.yaml"
    file.write_text(text, encoding="utf-8")
    with pytest.raises(ConfigError, match=said):
        load_config(file)
    with pytest.raises(ConfigError, match="cannot be read"):
        load_config(tmp_path / "none.yaml")


def test_every_field_belongs_to_a_stage() -> None:
    config = read_config(DATA)
    assert set(type(config).model_fields) == set(STAGE_OF)
    assert max(STAGE_OF.values()) == len(STAGES) - 1


def test_a_change_drops_what_depends_on_it_and_nothing_else() -> None:
    old = read_config(DATA).model_dump(mode="json")
    items = [
        "preflight",
        "gen-c/q",
        "rates",
        "read-tuned/c/q",
        "read-base/c/q",
        "read-twin/c/q",
        "analysis/c",
        "causal-lens/c/1",
        "effects",
    ]

    def left(done: list[str] = items, **changed: Any) -> list[str]:
        _, goes = changes(old, read_config({**DATA, **changed}).model_dump(mode="json"), done)
        return [item for item in items if not goes(item)]

    assert left() == items
    assert left(causal={"analyses": ["lens"]}) == items[:-2]
    assert left(analysis={"alpha": 0.01}) == items[:-3]
    assert left(references={"base": "base", "twin": {"random": 2}}) == items[:5]
    assert left(rows={"n": 3}) == items[:3]
    assert left(preflight={"trials": 5}) == items[1:]
    free = {"sampling": {"batch": 3}, "readout": {"batch": 1, "side": "right"}}
    assert left(**free) == items  # how much is done at once changes nothing
    with pytest.raises(ConfigError, match=r"tries was 16 and is 17\."):  # … and is not named beside what does
        left(sampling={"batch": 3, "tries": 17})
    with pytest.raises(ConfigError, match=r"sampling\.tries was 16 and is 17"):
        left(sampling={"tries": 17})
    assert left(done=["preflight"], sampling={"tries": 17}) == []  # nothing was drawn yet


def test_what_the_file_does_not_name_is_as_the_run_was_started() -> None:
    """A run from a version with other defaults goes on: only what the file names is new."""
    saved = read_config(DATA).model_dump(mode="json")
    saved["sampling"] |= {"tries": 12, "batch": 1}
    saved["analysis"]["alpha"] = 0.01
    saved["dtype"] = "float64"
    saved["preflight"] = {"margin": 0.2, "trials": 3}
    assert saved != read_config(DATA).model_dump(mode="json")
    config, kept = continued_config(saved, read_config({**DATA, "sampling": {"batch": 5}, "preflight": {"trials": 4}}))
    assert (config.dtype, config.sampling.tries, config.sampling.batch, config.analysis.alpha) == ("float64", 12, 5, 0.01)
    assert config.preflight is not None
    assert (config.preflight.margin, config.preflight.trials, config.preflight.required) == (0.2, 4, True)
    assert kept == {"sampling.tries": 12, "analysis": saved["analysis"], "dtype": "float64", "preflight.margin": 0.2}
    _, goes = changes(
        read_config(saved).model_dump(mode="json"), config.model_dump(mode="json"), ["preflight", "gen-c/q", "read-base/c/q"]
    )
    assert [goes(item) for item in ("preflight", "gen-c/q", "read-base/c/q")] == [True, False, False]
    # what is named wins, defaults that are named too, and lists and references are the file's
    named = {
        "sampling": {"tries": 16},
        "dtype": "float32",
        "preflight": None,
        "references": {"base": "base"},
        "conditions": [{"name": "none"}],
    }
    config, kept = continued_config(saved, read_config({**DATA, **named}))
    assert (config.dtype, config.sampling.tries, config.preflight) == ("float32", 16, None)
    assert list(config.references) == ["base"]
    assert len(config.conditions) == 1
    with pytest.raises(ConfigError, match="counted"):
        continued_config(saved, read_config({**DATA, "sampling": {"counted": 14}}))
    same, kept = continued_config(read_config(DATA).model_dump(mode="json"), read_config(DATA))
    assert (same, kept) == (read_config(DATA), {})


def test_free_fields_are_fields() -> None:
    config = read_config(DATA)
    assert all(field in type(getattr(config, section)).model_fields for section, field in FREE)


def test_the_example_names_every_field() -> None:
    """examples/contrast.yaml can be read, and shows every field of every section."""
    import yaml

    file = Path(__file__).parents[3] / "examples" / "contrast.yaml"
    config, data = load_config(file), yaml.safe_load(file.read_text("utf-8"))
    assert set(data) == set(type(config).model_fields)
    for name in ("predicted", "sampling", "rows", "readout", "analysis"):
        assert set(data[name]) == set(type(getattr(config, name)).model_fields), name
    assert {one.kind for one in config.references.values()} == {"base", "random"}
