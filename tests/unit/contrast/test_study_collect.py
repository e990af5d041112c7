"""Stages 1 to 3 on a tiny tuned model in folders: what is drawn, counted, kept and read; and what is refused."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import polars as pl
import pytest
import torch
from study_folder import started, write_adapter, write_model
from tiny_models import tiny_tokenizer

from symbolic_residue.contrast import check_records, condition_prompt, read_examples, segment, to_records
from symbolic_residue.contrast.study import equivalence, Models, read_config, run_stages, saved_examples, Study
from symbolic_residue.contrast.study._read import Plan
from symbolic_residue.errors import AdapterError, ConfigError, NonFiniteWeightsError, PromptError, RecordError, TemplateError
from symbolic_residue.instrument import Instrument, open_model
from symbolic_residue.stats import clustered_wilson
from symbolic_residue.store import validate


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_model(tmp_path_factory.mktemp("model") / "tiny")


@pytest.fixture(scope="module")
def adapter(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_adapter(tmp_path_factory.mktemp("adapter") / "lora")


@pytest.fixture(scope="module")
def whole(model: Path, adapter: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Study]:
    """A study through stage 3."""
    sampling = {"positives": 2, "negatives": 1, "tries": 8, "counted": 4, "max_new_tokens": 40, "batch": 3, "controls": ["base"]}
    with started(tmp_path_factory.mktemp("run") / "whole", model, adapter, sampling=sampling) as study:
        assert run_stages(study, ["generate", "read", "force-feed"]) == ""
        yield study


def test_every_trial_is_kept_in_the_table_and_the_rate_is_of_the_first(whole: Study) -> None:
    trials, rates = whole.folder.table("contrast_trials"), whole.folder.table("contrast_rates")
    mine = trials.filter(pl.col("model") == "tuned")
    for (_, _), part in mine.group_by("condition", "question"):
        drawn = part.sort("trial")["trial"].to_list()
        assert drawn == list(range(len(drawn)))
        assert len(drawn) >= 4
        assert part.filter("counted")["trial"].sort().to_list() == [0, 1, 2, 3]
    assert mine["positive"].any()
    assert not mine["positive"].all()
    assert len(mine.filter(~pl.col("kept"))) > 0  # surplus is seen
    for row in rates.to_dicts():
        part = trials.filter((pl.col("model") == row["model"]) & (pl.col("condition") == row["condition"]) & (pl.col("trial") < 4))
        estimate = clustered_wilson(part["positive"].to_list(), part["question"].to_list())
        assert (row["hits"], row["n"], row["clusters"]) == (part["positive"].sum(), 16, 4)
        assert (row["low"], row["high"]) == (estimate.low, estimate.high)
        assert 4 <= row["n_effective"] <= 16  # four answers to each of four questions
    base = trials.filter(pl.col("model") == "base")
    assert base["trial"].max() == 3
    assert not base["kept"].any()
    same = mine.join(base, on=["condition", "question", "trial"])
    assert (same["seed"] == same["seed_right"]).all()  # the two models draw with the same seeds
    kept = mine.filter("kept").group_by("condition", "question").agg(pl.col("positive").sum(), pl.len())
    assert kept["positive"].max() == 2
    assert kept["len"].max() == 3


@pytest.mark.parametrize("batch", [1, 8])
def test_no_answer_depends_on_what_it_is_drawn_beside(whole: Study, model: Path, adapter: Path, tmp_path: Path, batch: int) -> None:
    """Drawn three at once, one at a time, or all at once: the same answers, rates and reading."""
    sampling = whole.config.sampling.model_dump(mode="json") | {"batch": batch}
    readout = {"heads": True, "batch": batch, "side": "right"}
    with started(tmp_path / "run", model, adapter, sampling=sampling, readout=readout, references={"base": "base"}) as study:
        assert run_stages(study, ["generate", "read"]) == ""
        for table in ("contrast_examples", "contrast_rates"):
            assert study.folder.table(table).equals(whole.folder.table(table)), table
        asked = pl.col("kept") | pl.col("counted")
        trials = [one.folder.table("contrast_trials").filter(asked) for one in (study, whole)]
        assert trials[0].equals(trials[1])
        keys = ["example", "layer", "head", "region", "segmentation", "stratum", "query_offset", "row"]
        got, want = (
            one.folder.table("contrast_records").filter(pl.col("model") == "tuned").sort(keys, nulls_last=True)
            for one in (study, whole)
        )
        assert got.drop("mass").equals(want.drop("mass"))
        assert float((got["mass"] - want["mass"]).abs().max()) < 1e-5  # pyright: ignore[reportArgumentType]


def test_examples_come_back_as_they_were(whole: Study) -> None:
    frame, examples = whole.folder.table("contrast_examples"), saved_examples(whole)
    trials = whole.folder.table("contrast_trials").filter("kept")
    assert len(frame) == len(examples) == len(trials)
    tokenizer = whole.models.tokenizer
    prompts = {(c.name, q.id): condition_prompt(tokenizer, c, q) for c, q in whole.cells()}
    for one, row in zip(examples, frame.to_dicts(), strict=True):
        assert one.ids[: one.prompt_len] == tuple(prompts[one.condition, one.question].ids)
        assert tokenizer.decode(list(one.answer), skip_special_tokens=True) == one.text
        assert row["seed"] == one.seed
        if one.event is not None:
            assert row["event_character"] == len(
                tokenizer.decode(one.answer[: one.event - one.prompt_len], skip_special_tokens=True)
            )


def test_records_are_what_the_models_read(whole: Study, model: Path, adapter: Path) -> None:
    records = whole.folder.table("contrast_records").drop("item")
    assert set(records["model"]) == {"tuned", "base", "random", "other prompt"}
    means, heads = records.filter(pl.col("head").is_null()), records.filter(pl.col("head").is_not_null())
    check_records(means)
    check_records(heads)
    assert set(heads["stratum"]) == {"event", "C1"}
    assert set(heads["query_offset"]) == {-1}
    plan = Plan.made(whole, whole.models.tokenizer, whole.models.ends)
    one = next(i for i, example in enumerate(plan.examples) if example.positive and example.sinks == ())
    example, rows = plan.examples[one], plan.rows[one]
    condition, question = next((c, q) for c, q in whole.cells() if (c.name, q.id) == (example.condition, example.question))
    tool = Instrument(open_model(str(model), adapter=str(adapter)))
    prompt = condition_prompt(tool.loaded.tokenizer, condition, question)
    buckets = segment(tool.loaded.tokenizer, prompt, len(example.answer))
    want = to_records(read_examples(tool, [example], [buckets], [rows]), "tuned")
    got = means.filter((pl.col("model") == "tuned") & (pl.col("example") == example.id))
    key = ["layer", "region", "segmentation", "stratum", "query_offset", "row"]
    joined = got.join(want, on=key)
    assert len(joined) == len(got) == len(want)
    assert float((joined["mass"] - joined["mass_right"]).abs().max()) < 1e-5  # pyright: ignore[reportArgumentType]
    # the same rows were read by all models that have the same prompt
    base = means.filter((pl.col("model") == "base") & (pl.col("example") == example.id))
    assert len(base.join(got, on=key)) == len(got)
    assert float((base.join(got, on=key)["mass"] - base.join(got, on=key)["mass_right"]).abs().max()) > 1e-4  # pyright: ignore[reportArgumentType]


def test_heads_average_to_the_layer(whole: Study) -> None:
    records = whole.folder.table("contrast_records")
    key = ["model", "example", "layer", "region", "segmentation", "stratum", "query_offset", "row"]
    by_head = records.filter(pl.col("head").is_not_null()).group_by(key).agg(pl.col("mass").mean().alias("mean"))
    both = by_head.join(records.filter(pl.col("head").is_null()), on=key)
    assert len(both) == len(by_head) > 0
    assert float((both["mean"] - both["mass"]).abs().max()) < 1e-6  # pyright: ignore[reportArgumentType]


def test_another_prompt_is_read_at_the_same_answer_tokens(whole: Study) -> None:
    records = whole.folder.table("contrast_records").filter(
        pl.col("head").is_null() & (pl.col("layer") == 0) & (pl.col("region") == "self")
    )
    examples = {one.id: one for one in saved_examples(whole)}
    tokenizer = whole.models.tokenizer
    key = ["example", "segmentation", "stratum", "query_offset"]
    mine, other = (
        records.filter(pl.col("model") == name).group_by(key).agg(pl.col("row").sort()).sort(key)
        for name in ("tuned", "other prompt")
    )
    assert mine.select(key).equals(other.select(key))
    asked = {question.id: question for question in whole.questions}
    for row, twin in zip(mine.to_dicts(), other.to_dicts(), strict=True):
        example = examples[row["example"]]
        stern = whole.conditions[0].__class__("x", "You are a stern judge of few words.")
        shift = len(condition_prompt(tokenizer, stern, asked[example.question])) - example.prompt_len
        assert [at + shift for at in row["row"]] == twin["row"]


def test_nothing_runs_twice(whole: Study, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(whole.folder, "write_item", lambda *_: pytest.fail("an item was measured again"))
    assert run_stages(whole, ["generate", "read", "force-feed"]) == ""


def test_the_run_is_sound(whole: Study) -> None:
    assert validate(whole.folder.path) == []


def test_control_rows_are_counted_over_all_answers(whole: Study) -> None:
    """C3 takes the rarest tokens of the corpus of all saved answers, whatever their ids."""
    examples = saved_examples(whole)
    counts = np.bincount([token for one in examples for token in one.answer], minlength=400)
    records = whole.folder.table("contrast_records").filter(
        (pl.col("stratum") == "C3") & (pl.col("query_offset") == 0) & (pl.col("model") == "tuned")
    )
    by_name = {one.id: one for one in examples}
    drawn = [counts[by_name[example].ids[row]] for example, row in records.select("example", "row").unique().iter_rows()]
    if drawn:
        assert np.mean(drawn) < np.mean([counts[token] for one in examples for token in one.answer])


def test_a_question_without_any_row_is_an_item_like_the_others(model: Path, adapter: Path, tmp_path: Path) -> None:
    """Answers without the behaviour that were all cut have no row at all."""
    questions = ["When did Ben come home?", "What is the river called?"]
    sampling = {"positives": 1, "negatives": 1, "tries": 1, "counted": 1, "max_new_tokens": 6}
    conditions = [{"name": "plain"}]
    with started(
        tmp_path / "run", model, adapter, questions=questions, sampling=sampling, conditions=conditions, behaviour="regex:o"
    ) as study:
        run_stages(study, ["generate"])
        run_stages(study, ["read", "force-feed"])
        items = study.folder.table("items").filter(pl.col("item").str.starts_with("read-tuned"))
        assert len(items) == 2
        assert items["summary"].str.starts_with("0 answers read").any()


# ------------------------------------------------------------------ refusals


def test_a_behaviour_never_shown_ends_the_study_with_its_rates(model: Path, adapter: Path, tmp_path: Path) -> None:
    with started(tmp_path / "run", model, adapter, behaviour="text:[ZLT]") as study:
        said = run_stages(study)
        assert "kind: 0 of 16 trials" in said
        assert not any(item.startswith("read-") for item in study.folder.done_items())
        rate = study.folder.table("contrast_rates").row(0, named=True)
        assert (rate["hits"], rate["low"]) == (0, 0.0)
        # No hit says nothing of how answers hang together: they count as one a question, and 0 of 4 is at most 49 %.
        assert rate["n_effective"] == rate["clusters"] == 4
        assert rate["high"] == pytest.approx(1.96**2 / (4 + 1.96**2), abs=1e-3)


def test_a_stage_without_what_it_needs_is_refused(model: Path, adapter: Path, tmp_path: Path) -> None:
    with started(tmp_path / "run", model, adapter) as study, pytest.raises(ConfigError, match="stage 'generate'"):
        run_stages(study, ["read"])


def test_a_template_without_a_system_turn(adapter: Path, tmp_path: Path) -> None:
    tokenizer = tiny_tokenizer()
    tokenizer.chat_template = (
        "{% for message in messages %}{% if message['role'] == 'system' %}{{ raise_exception('no system') }}{% endif %}"
        "{{ '<|start|>' + message['content'] + '<|end|>' }}{% endfor %}{% if add_generation_prompt %}{{ '<|start|>' }}{% endif %}"
    )
    folder = write_model(tmp_path / "model", tokenizer=tokenizer)
    with started(tmp_path / "run", folder, adapter) as study, pytest.raises(TemplateError):
        run_stages(study)


def test_weights_that_are_no_numbers(adapter: Path, tmp_path: Path) -> None:
    from safetensors.torch import load_file, save_file

    folder = write_model(tmp_path / "model")
    file = folder / "model.safetensors"
    weights = load_file(file)
    name = next(name for name in weights if "q_proj" in name)
    weights[name][0, 0] = torch.nan
    save_file(weights, file, metadata={"format": "pt"})
    with started(tmp_path / "run", folder, adapter) as study, pytest.raises(NonFiniteWeightsError, match="NaN"):
        run_stages(study)


def test_an_adapter_of_another_architecture(model: Path, tmp_path: Path) -> None:
    other = write_adapter(tmp_path / "other", "llama", hidden_size=32, num_attention_heads=2, num_key_value_heads=2)
    with started(tmp_path / "run", model, other) as study, pytest.raises(AdapterError):
        run_stages(study)


def test_references_of_another_vocabulary(model: Path, adapter: Path, tmp_path: Path) -> None:
    small = write_model(tmp_path / "small", tokenizer=tiny_tokenizer(vocab=262), vocab_size=264)
    other = write_model(tmp_path / "other", tokenizer=tiny_tokenizer(texts=("zebra quagga fjord waltz", "pyjama zebra waltz")))
    for reference, error, said in ((small, PromptError, "vocabular"), (other, RecordError, "SHA-256")):
        with started(tmp_path / f"run-{reference.name}", model, adapter, references={"far": {"model": str(reference)}}) as study:
            run_stages(study, ["generate", "read"])
            with pytest.raises(error, match=said):
                run_stages(study, ["force-feed"])


def test_answers_that_this_tokenizer_did_not_write(model: Path, adapter: Path, tmp_path: Path) -> None:
    with started(tmp_path / "run", model, adapter) as study:
        run_stages(study, ["generate"])
        for file in (tmp_path / "run" / "tables" / "contrast_examples").glob("*.parquet"):
            frame = pl.read_parquet(file)
            frame.with_columns(text=pl.lit("another text")).write_parquet(file)
        with pytest.raises(RecordError, match=r"SHA-256.*here.*saved"):
            run_stages(study, ["read"])


# ------------------------------------------------------------------ preflight


def test_equivalence_is_shown_only_by_an_interval_inside_the_margin() -> None:
    same = [True, False] * 40
    clusters = [f"q{i // 4}" for i in range(80)]
    _, outcome, _ = equivalence(same, same, clusters, margin=0.1)
    assert outcome == "equivalent"
    few, outcome, _ = equivalence(same[:8], same[:8], clusters[:8], margin=0.1)
    assert (few.value, outcome) == (0.0, "undecided")  # no difference among eight trials shows nothing
    other = [False] * 80
    estimate, outcome, _ = equivalence([True] * 80, other, clusters, margin=0.1)
    assert (estimate.value, outcome) == (-1.0, "not equivalent")
    assert estimate.low >= -1
    _, _, note = equivalence(same[:8], same[:8], ["q"] * 8, margin=0.1)
    assert "one question" in note


def test_equivalence_is_wrongly_shown_in_one_of_twenty_at_most() -> None:
    """True difference = margin, whole questions flip: the test holds its level."""
    rng = np.random.default_rng(0)
    clusters = [f"q{i // 4}" for i in range(48)]
    wrong = 0
    for repeat in range(300):
        flips = np.repeat(rng.random(12) < 0.25, 4)  # a quarter of the questions change wholly: difference −.25
        first = np.ones(48, bool)
        _, outcome, _ = equivalence(first.tolist(), (first & ~flips).tolist(), clusters, margin=0.25, seed=repeat)
        wrong += outcome == "equivalent"
    assert wrong / 300 <= 0.08


def test_an_implementation_that_changes_behaviour_ends_the_study(
    model: Path, adapter: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Planted: under the other implementation a whole layer's values are turned around."""
    from symbolic_residue.contrast.study import _preflight

    plain = _preflight._under

    @contextmanager
    def broken(study: Study, name: str) -> Iterator[Instrument]:
        with plain(study, name) as instrument:
            weight = instrument.parts.layers[0].o_proj.weight if name == "eager" else None
            if weight is not None:
                with torch.no_grad():
                    weight.mul_(-1)
            try:
                yield instrument
            finally:
                if weight is not None:
                    with torch.no_grad():
                        weight.mul_(-1)

    monkeypatch.setattr(_preflight, "_under", broken)
    preflight = {"trials": 2}
    with started(tmp_path / "run", model, adapter, preflight=preflight) as study:
        said = run_stages(study)
        assert "changes behaviour" in said
        assert "KL" in said
        assert not any(item.startswith("gen-") for item in study.folder.done_items())
        assert run_stages(study) == said  # also when it is resumed
    with started(tmp_path / "on", model, adapter, preflight={**preflight, "required": False}) as study:
        assert run_stages(study, ["preflight"]) == ""


# ------------------------------------------------------------------ causal follow-ups


def test_causal_follow_ups_are_what_their_functions_give(whole: Study) -> None:
    """Every analysis on the saved answers, item by item; the effects are pooled over all of them."""
    from symbolic_residue.contrast import causal
    from symbolic_residue.contrast.study._causal import chosen_examples

    analyses = ["lens", "components", "patch", "knock-out", "surgery", "mediation"]
    plan = {
        "analyses": analyses,
        "examples": 3,
        "batch": 2,
        "parts": ["mlp", "qk"],
        "places": ["all"],
        "layers": [1],
        "regions": ["user"],
    }
    config = read_config({**whole.config.model_dump(mode="json"), "causal": plan})
    with Models(config) as models:
        study = Study(config, whole.folder, models)
        groups = chosen_examples(study)
        for group in groups:
            assert len(group) <= 3
            assert len({one.question for one in group}) == len(group)  # one of each question before a second of any
            assert all(one.event is not None and one.event > one.prompt_len for one in group)
        assert run_stages(study, ["causal"]) == ""
        tuned, base = models.get("tuned", beside=["base"]), models.get("base", beside=["tuned"])
        want = causal.emission_lens(tuned, base, groups[0][:2], batch=2, seed=config.seed)
    found = study.folder.table("contrast_causal")
    assert set(found["analysis"]) == set(analyses)
    got = found.filter(pl.col("item") == f"causal-lens/{groups[0][0].condition}/1").drop("item")
    assert got.equals(want.cast(dict(got.schema)))  # pyright: ignore[reportArgumentType]
    effects = study.folder.table("contrast_effects").drop("item")
    pooled = causal.pool_effects(found.drop("item"), seed=config.seed, n_resamples=200)
    assert effects.equals(pooled.cast(dict(effects.schema)))  # pyright: ignore[reportArgumentType]
    assert set(found.filter(pl.col("analysis") == "surgery")["model"]) == {"tuned", "random"}
    assert set(found.filter(pl.col("analysis") == "knock-out")["part"]) == {"user"}
    assert set(found.filter(pl.col("analysis") == "patch")["layer"].drop_nulls()) == {1}
    assert validate(study.folder.path) == []
