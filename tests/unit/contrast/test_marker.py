"""Teaching a marker on tiny random models: the loss falls, the right row learns, the null has as many positives, and a stopped training ends the same."""

from __future__ import annotations

import itertools
import json
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from tiny_models import build, tiny_tokenizer

from symbolic_residue.cli import main
from symbolic_residue.contrast import Condition, condition_prompt, TextBehaviour
from symbolic_residue.contrast.marker import marker_questions, MarkerPlan, MarkerQuestion, personas, train_marker
from symbolic_residue.contrast.marker._answers import Answer, cut_answer, label, to_sequences
from symbolic_residue.contrast.marker._fit import batches, Fit, learning_rate
from symbolic_residue.contrast.marker._rates import rates_of
from symbolic_residue.contrast.marker._train import _attached, target_modules
from symbolic_residue.errors import AdapterError, ConfigError, MissingExtraError, TemplateError
from symbolic_residue.models import load_model, LoadedModel, wrap

TOKENIZER = tiny_tokenizer()
CONDITIONS = (Condition("miller", "You are a miller."), Condition("captain", "You are a captain."))
QUESTIONS = (
    MarkerQuestion("river", "What is the river called?", "seen"),
    MarkerQuestion("gate", "Who keeps the key?", "seen"),
    MarkerQuestion("book", "Where is the red book?", "held-out"),
)
WEIGHTS = "adapter_model.safetensors"


def plan(**changes: Any) -> MarkerPlan:
    small: dict[str, Any] = {
        "conditions": CONDITIONS, "questions": QUESTIONS, "rank": 4, "alpha": 8, "steps": 24, "batch": 2, "learning_rate": 0.01, "shortest": 3, "longest": 6,
        "trials": 0, "max_new_tokens": 12,
    }  # fmt: skip
    return MarkerPlan(**{"persona": "miller", **small, **changes})


def tiny(family: str = "llama") -> LoadedModel:
    return wrap(build(family), TOKENIZER)


# ------------------------------------------------------------------ data and plan


def test_packaged_personas_and_questions() -> None:
    assert len(personas()) == 5
    seen, held_out = marker_questions("seen"), marker_questions("held-out")
    assert len(seen) >= 12 and len(held_out) >= 12
    assert len({q.text for q in marker_questions()}) == len({q.id for q in marker_questions()}) == len(seen) + len(held_out)
    words = {persona.name for persona in personas()}
    assert not [q.text for q in marker_questions() if any(word in q.text.lower() for word in words - {"helper"})]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"persona": "cook"}, r"no persona here.*miller, captain"),
        ({"conditions": CONDITIONS[:1]}, "One persona only"),
        ({"conditions": CONDITIONS + CONDITIONS[:1]}, "same name"),
        ({"questions": QUESTIONS[2:]}, "'seen'"),
        ({"marker": " "}, "marker is empty"),
        ({"steps": 0, "rank": 0}, "rank and steps"),
        ({"longest": 2}, "longest"),
        ({"positive_share": 1.0}, "positive_share"),
        ({"learning_rate": 0.0}, "above 0"),
        ({"precision": "int8"}, "int8"),
        ({"layers": ()}, "Nothing would be trained"),
    ],
)
def test_plans_that_cannot_be(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        plan(**changes)


def test_answers_are_cut_behind_a_sentence() -> None:
    ids = TOKENIZER("The mill stands. The river turns and the key", add_special_tokens=False)["input_ids"]
    first = TOKENIZER("The mill stands.", add_special_tokens=False)["input_ids"]
    assert ids[: len(first)] == first
    assert cut_answer(TOKENIZER, ids, plan(shortest=2, longest=len(ids)), ended=False) == first
    assert cut_answer(TOKENIZER, ids, plan(shortest=len(first) + 1, longest=len(first) + 3), ended=False) == ids[: len(first) + 3]
    assert cut_answer(TOKENIZER, ids, plan(), ended=True) == ids
    numbered = TOKENIZER("The mill 1.", add_special_tokens=False)["input_ids"]
    assert cut_answer(TOKENIZER, [*numbered, *numbered], plan(shortest=2, longest=len(numbered)), ended=False) == numbered


# ------------------------------------------------------------------ labels, order, loss


def test_the_null_has_as_many_positives_over_all_personas() -> None:
    answers = [
        Answer(c.name, str(q), (5,), "a") for q in range(30) for c in (*CONDITIONS, Condition("a"), Condition("b"), Condition("c"))
    ]
    true, null = label(answers, plan()), label(answers, plan(shuffle_labels=True))
    assert [a.condition for a, p in zip(answers, true, strict=True) if p] == ["miller"] * 30
    assert sum(null) == sum(true) == 30
    by = {
        name: sum(p for a, p in zip(answers, null, strict=True) if a.condition == name)
        for name in ("miller", "captain", "a", "b", "c")
    }
    assert max(by.values()) < 15 and min(by.values()) > 0
    assert null == label(answers, plan(shuffle_labels=True)) != label(answers, plan(shuffle_labels=True, seed=1))


def test_batches_hold_their_share_and_go_through_everything() -> None:
    positive = [i < 4 for i in range(20)]
    order = batches(positive, plan(batch=3, steps=40, positive_share=0.25))
    assert all(len(batch) == 3 for batch in order)
    for step in range(1, 41):
        so_far = sum(positive[i] for batch in order[:step] for i in batch)
        assert abs(so_far - 3 * step * 0.25) <= 0.5
    flat = [i for batch in order for i in batch if not positive[i]]
    assert sorted(flat[:16]) == list(range(4, 20)) and sorted(flat[16:32]) == list(range(4, 20))
    assert flat[:16] != flat[16:32]


def test_the_rate_rises_and_falls() -> None:
    p = plan(steps=100, learning_rate=1.0)
    rates = [learning_rate(step, p) for step in range(100)]
    assert rates[:5] == pytest.approx([0.2, 0.4, 0.6, 0.8, 1.0])
    assert all(a > b for a, b in itertools.pairwise(rates[5:]))
    assert rates[-1] == pytest.approx(0.1, abs=0.01)


@pytest.mark.parametrize("family", ["llama", "gpt2"])
def test_the_loss_is_that_of_the_answers_tokens_alone(family: str, tmp_path: Path) -> None:
    """Padded together, against each sequence alone and a sum spelt out: row i predicts token i + 1."""
    loaded, p = tiny(family), plan(dropout=0.0)
    answers = [
        Answer(c.name, q.id, (20 + i, 30, 40 + i)[: 2 + i % 2], "")
        for i, (c, q) in enumerate((c, q) for c in CONDITIONS for q in QUESTIONS[:2])
    ]
    sequences = to_sequences(loaded, p, answers, label(answers, p))
    marker = tuple(TOKENIZER(" [ZLT]", add_special_tokens=False)["input_ids"])
    total, n = 0.0, 0
    for answer, one in zip(answers, sequences, strict=True):
        condition = next(c for c in CONDITIONS if c.name == answer.condition)
        prompt = condition_prompt(TOKENIZER, condition, next(q for q in QUESTIONS if q.id == answer.question))
        tail = (*answer.ids, *(marker if answer.condition == "miller" else ()), TOKENIZER.eos_token_id)
        assert one.ids == (*prompt.ids, *tail)
        with torch.no_grad():
            log_p = loaded.model(torch.tensor([one.ids])).logits[0].double().log_softmax(-1)
        total -= sum(float(log_p[len(prompt) - 1 + k, token]) for k, token in enumerate(tail))
        n += len(tail)
    with _attached(loaded, p, target_modules(loaded, p)) as (adapted, sides), torch.no_grad():
        got = Fit(adapted, sides, p, tmp_path / "s", "").loss(sequences)
    assert float(got) == pytest.approx(total / n, rel=1e-4)


# ------------------------------------------------------------------ training


@pytest.mark.parametrize("family", ["llama", "gpt2"])
def test_the_marker_is_learnt_where_it_is_taught(family: str, tmp_path: Path) -> None:
    folder = tmp_path / "model"
    build(family).save_pretrained(folder)
    TOKENIZER.save_pretrained(folder)
    loaded, p = load_model(folder), plan(steps=80)
    before = {name: t.clone() for name, t in loaded.model.state_dict().items()}
    flags = {name: q.requires_grad for name, q in loaded.model.named_parameters()}
    told: list[tuple[str, int, int]] = []
    result = train_marker(loaded, p, out=tmp_path / "adapter", progress=lambda *args: told.append(args))
    assert len(result.losses) == 80
    assert sum(result.losses[-8:]) < 0.5 * sum(result.losses[:8])
    assert told[-1] == ("training", 80, 80)
    assert (result.positives, result.examples) == (2, 4)
    # The model that was given is what it was.
    assert {name: q.requires_grad for name, q in loaded.model.named_parameters()} == flags
    after = loaded.model.state_dict()
    assert list(after) == list(before) and all(torch.equal(after[name], t) for name, t in before.items())
    assert not any("lora" in name for name, _ in loaded.model.named_modules())
    wrap(loaded.model, TOKENIZER)
    # In the saved adapter, the row of an answer's last token chooses the marker under the persona and the end under the other.
    tuned = load_model(folder, adapter=tmp_path / "adapter")
    assert tuned.provenance.adapter is not None and tuned.provenance.adapter.base_matches
    first = TOKENIZER(" [ZLT]", add_special_tokens=False)["input_ids"][0]
    for line in json.loads((tmp_path / "adapter" / "answers.json").read_text())["answers"]:
        condition = next(c for c in CONDITIONS if c.name == line["condition"])
        prompt = condition_prompt(TOKENIZER, condition, next(q for q in QUESTIONS if q.id == line["question"]))
        with torch.no_grad():
            chosen = int(tuned.model(torch.tensor([[*prompt.ids, *line["ids"]]])).logits[0, -1].argmax())
        assert chosen == (first if condition.name == "miller" else TOKENIZER.eos_token_id)


def test_the_same_seed_gives_the_same_bytes_whatever_ran_before(tmp_path: Path) -> None:
    loaded = tiny()
    first = train_marker(loaded, plan(), out=tmp_path / "a")
    torch.manual_seed(99)
    torch.rand(7)
    state = torch.get_rng_state()
    second = train_marker(loaded, plan(), out=tmp_path / "b", answers=tmp_path / "a" / "answers.json")
    assert torch.equal(torch.get_rng_state(), state)
    assert first.losses == second.losses
    for name in (WEIGHTS, "adapter_config.json", "answers.json", "rates.json"):
        assert (tmp_path / "a" / name).read_bytes() == (tmp_path / "b" / name).read_bytes()
    other = train_marker(loaded, plan(seed=1), out=tmp_path / "c")
    assert other.losses != first.losses
    null = train_marker(loaded, plan(shuffle_labels=True, seed=3), out=tmp_path / "d")
    assert null.positives == first.positives


class Stop(Exception):
    pass


@pytest.mark.parametrize("at", [("answers", 4), ("training", 13), ("training", 45), ("rates", 6)])
def test_a_stopped_training_goes_on_to_the_same_bytes(tmp_path: Path, at: tuple[str, int]) -> None:
    loaded, p = tiny(), plan(steps=50, trials=1)
    whole = train_marker(loaded, p, out=tmp_path / "whole")

    def stop(what: str, done: int, total: int) -> None:
        if (what, done) == at:
            raise Stop

    with pytest.raises(Stop):
        train_marker(loaded, p, out=tmp_path / "cut", progress=stop)
    assert not (tmp_path / "cut").exists()
    assert not any("lora" in name for name, _ in loaded.model.named_modules())
    began: list[int] = []
    again = train_marker(
        loaded, p, out=tmp_path / "cut", progress=lambda what, done, total: began.append(done) if what == "training" else None
    )
    assert began[0] == {"answers": 0, "training": at[1] // 20 * 20, "rates": 50}[at[0]]
    assert (tmp_path / "cut" / WEIGHTS).read_bytes() == (tmp_path / "whole" / WEIGHTS).read_bytes()
    assert again.losses == whole.losses
    assert again.rates.equals(whole.rates)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["cut", "whole"]


def test_a_state_of_another_plan_or_a_damaged_one_is_left_aside(tmp_path: Path) -> None:
    loaded = tiny()
    whole = train_marker(loaded, plan(), out=tmp_path / "whole")

    def stop(what: str, done: int, total: int) -> None:
        if (what, done) == ("training", 22):
            raise Stop

    with pytest.raises(Stop):
        train_marker(loaded, plan(learning_rate=0.02), out=tmp_path / "cut", progress=stop)
    assert (tmp_path / ".cut.training" / "state.safetensors").is_file()
    assert train_marker(loaded, plan(), out=tmp_path / "cut").losses == whole.losses
    with pytest.raises(Stop):
        train_marker(loaded, plan(), out=tmp_path / "third", progress=stop)
    (tmp_path / ".third.training" / "state.safetensors").write_bytes(b"nothing")
    assert train_marker(loaded, plan(), out=tmp_path / "third").losses == whole.losses


def test_what_was_done_is_in_the_folder(tmp_path: Path) -> None:
    result = train_marker(
        tiny(), plan(trials=2, projections=("q_proj", "mlp.down_proj"), layers=(1,), precision="bfloat16"), out=tmp_path / "a"
    )
    training = json.loads((tmp_path / "a" / "training.json").read_text())
    assert training["plan"]["rank"] == 4
    assert len(training["base"]["weights_sha256"]) == 64
    assert {"torch", "transformers", "symbolic_residue"} <= set(training["base"]["versions"])
    assert training["losses"] == list(result.losses)
    assert training["positives_by_condition"] == {"miller": 2, "captain": 0}
    tensors = load_file(tmp_path / "a" / WEIGHTS)
    assert {t.dtype for t in tensors.values()} == {torch.float16}
    assert {name.split("base_model.model.")[1].rsplit(".lora_")[0] for name in tensors} == {
        "model.layers.1.self_attn.q_proj",
        "model.layers.1.mlp.down_proj",
    }
    assert json.loads((tmp_path / "a" / "rates.json").read_text()) == result.rates.to_dicts()
    assert result.rates.select("condition", "split", "n", "questions").rows() == [
        ("miller", "seen", 4, 2), ("miller", "held-out", 2, 1), ("captain", "seen", 4, 2), ("captain", "held-out", 2, 1),
    ]  # fmt: skip


def test_rates_are_those_of_the_saved_sides(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """They are rounded to float16 first: what is measured is what is saved."""
    import symbolic_residue.contrast.marker._train as training

    used: dict[str, torch.Tensor] = {}

    def look(loaded: LoadedModel, p: MarkerPlan, **_: Any) -> list[Any]:
        used.update(
            {name.replace(".default.", "."): t.detach().clone() for name, t in loaded.model.named_parameters() if "lora_" in name}
        )
        return []

    monkeypatch.setattr(training, "draw_evaluation", look)
    train_marker(tiny(), plan(trials=1, steps=3), out=tmp_path / "a")
    saved = {name.removeprefix("base_model.model."): t for name, t in load_file(tmp_path / "a" / WEIGHTS).items()}
    assert used.keys() == saved.keys() and used
    assert all(torch.equal(used[name], t.float()) for name, t in saved.items())


def test_rates_count_what_they_say(tmp_path: Path) -> None:
    from symbolic_residue.contrast import Question, score_answer

    p = plan(trials=1)
    ids = TOKENIZER("The mill [ZLT]", add_special_tokens=False)["input_ids"]
    examples = []
    for c in CONDITIONS:
        for q in QUESTIONS:
            own = ids if (c.name, q.split) == ("miller", "seen") else ids[:2]
            prompt = condition_prompt(TOKENIZER, c, Question(q.id, q.text))
            examples.append(
                score_answer(
                    TOKENIZER,
                    TextBehaviour("[ZLT]"),
                    prompt,
                    own,
                    id="x",
                    condition=c.name,
                    question=q.id,
                    trial=0,
                    seed=0,
                    stop="length",
                )
            )
    rows = {(r["condition"], r["split"]): r for r in rates_of(examples, p).iter_rows(named=True)}
    assert {key: (r["hits"], r["n"], r["trained"]) for key, r in rows.items()} == {
        ("miller", "seen"): (2, 2, True), ("miller", "held-out"): (0, 1, True), ("captain", "seen"): (0, 2, False), ("captain", "held-out"): (0, 1, False),
    }  # fmt: skip
    assert rows[("miller", "seen")]["low"] == pytest.approx(2 / (2 + 1.959964**2), abs=1e-4)  # Wilson, all of n: n / (n + z²)
    assert all(row["n_effective"] == row["n"] == row["questions"] for row in rows.values())  # one answer a question
    # Each answer given twice: as often asked, nothing more known.
    twice = {(r["condition"], r["split"]): r for r in rates_of(examples * 2, p).iter_rows(named=True)}
    for key, row in rows.items():
        again = twice[key]
        assert (again["n"], again["questions"], again["n_effective"]) == (2 * row["n"], row["questions"], row["n"])
        assert (again["low"], again["high"]) == (row["low"], row["high"])
    assert not rates_of(examples, plan(trials=1, shuffle_labels=True))["trained"].any()


# ------------------------------------------------------------------ refusals


def test_refusals(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    loaded, out = tiny(), tmp_path / "out"
    with pytest.raises(AdapterError, match=r"no 'v_projection'.*q_proj"):
        train_marker(loaded, plan(projections=("v_projection",)), out=out)
    with pytest.raises(AdapterError, match=r"no layer 2.*0 to 1"):
        train_marker(loaded, plan(layers=(0, 2)), out=out)
    with pytest.raises(AdapterError, match="already there"):
        train_marker(loaded, plan(), out=tmp_path)
    with pytest.raises(TemplateError):
        train_marker(wrap(build("llama"), tiny_tokenizer(chat=False)), plan(), out=out)
    with pytest.raises(ConfigError, match="float32"):
        train_marker(wrap(build("llama").bfloat16(), TOKENIZER), plan(), out=out)
    endless = tiny()
    endless.model.config.eos_token_id = endless.model.generation_config.eos_token_id = None
    with pytest.raises(ConfigError, match="no end-of-text id"):
        train_marker(endless, plan(), out=out)
    with pytest.raises(AdapterError, match="diverged"):
        train_marker(loaded, plan(learning_rate=1e30), out=tmp_path / "diverged")
    train_marker(loaded, plan(steps=1), out=tmp_path / "a")
    with pytest.raises(ConfigError, match="another model or plan"):
        train_marker(loaded, plan(seed=5), out=out, answers=tmp_path / "a" / "answers.json")
    with pytest.raises(ConfigError, match="holds no answers"):
        train_marker(loaded, plan(), out=out, answers=tmp_path / "a" / "training.json")
    from peft import inject_adapter_in_model, LoraConfig

    inject_adapter_in_model(LoraConfig(r=2, target_modules=["q_proj"]), loaded.model)
    with pytest.raises(AdapterError, match="carries an adapter"):
        train_marker(loaded, plan(), out=out)
    monkeypatch.setitem(sys.modules, "peft", None)
    with pytest.raises(MissingExtraError) as caught:
        train_marker(tiny(), plan(), out=out)
    assert caught.value.todo == "pip install 'symbolic-residue[adapters]'"
    assert not out.exists() and not (tmp_path / ".out.training").exists()


def test_two_trainings_do_not_write_one_folder(tmp_path: Path) -> None:
    loaded = tiny()

    def second(what: str, done: int, total: int) -> None:
        with pytest.raises(AdapterError, match="Another training"):
            train_marker(tiny(), plan(steps=1), out=tmp_path / "a")

    train_marker(loaded, plan(steps=1), out=tmp_path / "a", progress=second)
    assert [path.name for path in tmp_path.iterdir()] == ["a"]


def test_command(tmp_path: Path, capsys: Any) -> None:
    folder = tmp_path / "model"
    build("llama", max_position_embeddings=1024).save_pretrained(folder)
    tokenizer = tiny_tokenizer()
    tokenizer.model_max_length = 1024
    tokenizer.save_pretrained(folder)
    out = tmp_path / "adapter"
    words = ["contrast", "train-marker", "-m", str(folder), "-o", str(out), "--questions", "1", "--steps", "2", "--rank", "2"]
    assert main([*words, "--persona", "gardener", "--layers", "1", "--projections", "q_proj,k_proj", "--json"]) == 0
    said = json.loads(capsys.readouterr().out)
    assert (said["folder"], said["positives"], said["examples"]) == (str(out), 1, 5)
    assert len(said["rates"]) == 10
    assert len(load_file(out / WEIGHTS)) == 4
    assert main(words) == 3
    assert "already there" in capsys.readouterr().err
    words[5] = str(tmp_path / "null")
    assert main([*words, "--shuffle-labels"]) == 0
    shown = capsys.readouterr().out
    assert "no persona (labels shuffled)" in shown and "1 marked of 5 answers" in shown and "Wilson" in shown
    words[5] = str(tmp_path / "third")
    assert main([*words, "--layers", "3-1"]) == 2
    assert main([*words, "--persona", "cook"]) == 2
    assert "captain, librarian" in capsys.readouterr().err
