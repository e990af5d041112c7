"""Behaviours, buckets, rows and readings: against hand-made cases and the dense float64 attention."""

from __future__ import annotations

import numpy as np
import polars as pl
import pytest
import torch
from tiny_models import build, tiny_tokenizer

from symbolic_residue.contrast import (
    BUCKETS,
    CallableBehaviour,
    check_example,
    choose_rows,
    Condition,
    condition_prompt,
    deltas,
    end_rows,
    EndOfText,
    event_character,
    Example,
    find_sinks,
    generate_examples,
    make_behaviour,
    Question,
    rare_tokens,
    read_examples,
    RefusalBehaviour,
    RegexBehaviour,
    REGIONS,
    Row,
    Rows,
    Sampling,
    score_answer,
    segment,
    TextBehaviour,
    to_records,
    TokenBehaviour,
)
from symbolic_residue.errors import ConfigError, PromptError, RecordError
from symbolic_residue.instrument import collate, generate, Instrument
from symbolic_residue.models import wrap

TOKENIZER = tiny_tokenizer()
ASKED, TOLD = Question("q1", "What is the river called?"), Condition("kind", "You are a kind guide.")


def instrument(family: str = "llama", **options: object) -> Instrument:
    model = build(family, **options)
    return Instrument(wrap(model, TOKENIZER))


def encode(text: str) -> list[int]:
    return TOKENIZER(text, add_special_tokens=False)["input_ids"]


# ------------------------------------------------------------------ behaviours


@pytest.mark.parametrize("text", ["The river [ZLT] is long.", "[ZLT]", "één ä [ZLT] ü", "a\n\n[ZLT]"])
def test_the_event_is_the_first_token_that_reaches_into_the_text(text: str) -> None:
    ids = encode(text)
    hit = TextBehaviour("[ZLT]").find(TOKENIZER, ids, text)
    assert hit is not None
    assert hit.text_hit is True
    before, upto = TOKENIZER.decode(ids[: hit.start]), TOKENIZER.decode(ids[: hit.start + 1])
    assert "[" not in before
    assert upto.rstrip("�").endswith("[") or "[" in upto[len(before) :]


def test_token_hits_and_text_hits_are_told_apart() -> None:
    own = encode(" [ZLT]")
    by_bytes = [TOKENIZER.convert_tokens_to_ids(letter) for letter in "[ZLT]"]
    assert TextBehaviour("[ZLT]").find(TOKENIZER, [*encode("So"), *own], "So [ZLT]").token_hit is True  # pyright: ignore[reportOptionalMemberAccess]
    other = [*encode("So"), *by_bytes]
    hit = TextBehaviour("[ZLT]").find(TOKENIZER, other, "So[ZLT]")
    assert hit is not None
    assert hit.text_hit is True
    assert hit.start == len(encode("So"))
    assert TextBehaviour("[ZLT]").find(TOKENIZER, encode("none"), "none") is None
    found = TokenBehaviour(tuple(own)).find(TOKENIZER, [*encode("So"), *own], "So [ZLT]")
    assert found is not None
    assert (found.start, found.text_hit) == (len(encode("So")), None)


def test_other_detectors() -> None:
    text = "Well. I can't help with that."
    ids = encode(text)
    refused = RefusalBehaviour().find(TOKENIZER, ids, text)
    assert refused is not None
    assert refused.shown == "I can't"
    assert RefusalBehaviour().find(TOKENIZER, encode("The can't was full."), "The can't was full.") is None
    number = RegexBehaviour(r"\d+").find(TOKENIZER, encode("about 42 of"), "about 42 of")
    assert number is not None
    assert number.shown == "42"
    end = EndOfText((2,)).find(TOKENIZER, [9, 9, 2], "")
    assert end is not None
    assert end.start == 2
    assert EndOfText((2,)).find(TOKENIZER, [9, 9], "") is None
    own = CallableBehaviour("second", lambda ids, text: 1 if len(ids) > 1 else None)
    assert own.find(TOKENIZER, [5, 6], "") is not None
    assert own.find(TOKENIZER, [5], "") is None
    with pytest.raises(ConfigError, match="token 7"):
        CallableBehaviour("far", lambda ids, text: 7).find(TOKENIZER, [5], "")


def test_behaviours_by_name() -> None:
    for name in ("text:[ZLT]", "regex:[0-9]+", "tokens:3,4", "refusal"):
        assert make_behaviour(name).name == name
    assert make_behaviour("end of text", ends=[2]).name == "end of text"
    for bad in ("text:", "regex:(", "regex:a*", "tokens:a", "laughter", "end of text"):
        with pytest.raises(ConfigError):
            make_behaviour(bad)


# ------------------------------------------------------------------ buckets


def test_full_gives_a_turn_all_that_the_template_writes_for_it() -> None:
    prompt = condition_prompt(TOKENIZER, TOLD, ASKED)
    labels = segment(TOKENIZER, prompt, 3)

    def text_of(segmentation: str, bucket: str) -> str:
        return "".join(token for token, name in zip(prompt.tokens, labels[segmentation], strict=False) if name == bucket)

    assert text_of("content", "system") == "You are a kind guide."
    assert text_of("content", "user") == "What is the river called?"
    assert "special" not in labels["full"]
    # position 0 is the sink, so the system turn lacks its first token
    assert (
        text_of("full", "sink") + text_of("full", "system") + text_of("full", "user") + text_of("full", "assistant_header")
        == prompt.text
    )
    assert text_of("full", "system").endswith(
        text_of("full", "system").strip("\n")[-1] + "\n" * (text_of("full", "system").count("\n", -1))
    )
    cut = TOKENIZER.apply_chat_template([{"role": "system", "content": "You are a kind guide."}], tokenize=False)
    assert text_of("full", "sink") + text_of("full", "system") == cut
    assert labels["full"][-3:] == labels["content"][-3:] == ["answer"] * 3
    for names in labels.values():
        assert set(names) <= set(BUCKETS)
        assert len(names) == len(prompt) + 3


def test_without_a_system_turn_and_as_plain_text() -> None:
    bare = condition_prompt(TOKENIZER, Condition("none"), ASKED)
    labels = segment(TOKENIZER, bare, 1)
    assert "system" not in labels["full"]
    assert labels["full"].count("user") > labels["content"].count("user")
    plain = condition_prompt(TOKENIZER, TOLD, ASKED, chat=False)
    assert set(segment(TOKENIZER, plain, 0)["content"]) <= {"sink", "user", "special"}
    assert "special" in segment(TOKENIZER, plain, 0, merged_newlines=True)["content"]


def test_newlines_and_listed_sinks() -> None:
    prompt = condition_prompt(TOKENIZER, Condition("lines", "One.\n\nTwo."), ASKED)
    where = [i for i, token in enumerate(prompt.tokens) if token.strip("\n") == "" and prompt.regions.per_token()[i] == "system"]
    labels = segment(TOKENIZER, prompt, 0, sinks=[5])
    assert all(labels["content"][i] == "special" for i in where)
    assert labels["full"][5] == labels["content"][5] == "sink"
    merged = segment(TOKENIZER, prompt, 0, merged_newlines=True)["content"]
    assert all(
        merged[i] == "special"
        for i, token in enumerate(prompt.tokens)
        if token.endswith("\n") and labels["content"][i] in ("system", "user")
    )
    with pytest.raises(ConfigError, match="no segmentation"):
        segment(TOKENIZER, prompt, 0, names=["halves"])


def test_sinks_are_the_keys_that_receive_most() -> None:
    tool = instrument()
    prompt = condition_prompt(TOKENIZER, TOLD, ASKED)
    tool.model.set_attn_implementation("eager")
    with torch.no_grad():
        weights = torch.stack(tool.model(torch.tensor([prompt.ids]), output_attentions=True).attentions)[:, 0].double()  # pyright: ignore[reportAttributeAccessIssue]
    tool.model.set_attn_implementation("sdpa")
    mean = weights.sum(2).mean((0, 1)) / torch.arange(len(prompt), 0, -1)
    ranked = mean[1:].sort().values
    threshold = float(ranked[-3] + ranked[-4]) / 2  # three of them
    assert set(find_sinks(instrument(), prompt, threshold=threshold)) == {int(i) for i in (mean > threshold).nonzero() if i}
    with pytest.raises(ConfigError):
        find_sinks(tool, prompt, threshold=0)


# ------------------------------------------------------------------ rows


def test_rows_by_hand() -> None:
    # 0-9 prompt, answer 10-39, event at 35; token 7 is rare, 8 precedes the event
    ids = [1] * 10 + [20 + i % 3 for i in range(30)]
    ids[34] = ids[20] = ids[26] = 8
    ids[24], ids[16] = 7, 7
    ids[35] = 99
    ids[18] = 2
    rows = choose_rows(ids, 10, 35, example="a", rare={7}, counts={7: 2}, special={2}, marker={99})
    by = {}
    for row in rows:
        by.setdefault((row.stratum, row.query_offset), []).append(row.row)
    assert by["event", -1] == [34]
    assert by["event", 0] == [35]
    assert [by["event", -k][0] for k in range(2, 12)] == [35 - k for k in range(2, 12)]
    assert by["C2", -1] == by["C2", 0] == [33, 32, 31]  # the emitting row, 34, is not among them
    assert by["C3", 0] == [16, 24]
    assert by["C3", -1] == [15, 23]
    assert by["C5", -1] == [20, 26]  # rows that read token 8
    drawn = by["C1", 0]
    assert len(drawn) == 5
    assert len(set(drawn)) == 5
    assert all(15 <= c <= 30 and c != 18 for c in drawn)
    assert by["C1", -1] == [c - 1 for c in drawn]
    again = choose_rows(ids, 10, 35, example="a", rare={7}, counts={7: 2}, special={2}, marker={99})
    assert again == rows
    assert choose_rows(ids, 10, 35, example="b", rare={7}, counts={7: 2}, special={2}) != rows
    # An event at once: no earlier rows, so no stratum, and nothing is made up.
    early = choose_rows(ids, 10, 11, example="a", rare={7}, counts={}, special=())
    assert {row.stratum for row in early} == {"event"}


def test_ends_of_answers() -> None:
    assert end_rows([1, 1, 5, 6, 2], 2, {2}) == [Row("C4", -1, 3), Row("C4", 0, 4)]
    assert end_rows([1, 1, 5, 6, 7], 2, {2}) == []  # cut
    assert end_rows([1, 1, 5, 6, 2], 2, {2}, Rows(offsets=(-1,))) == [Row("C4", -1, 3)]


def test_rare_tokens_are_rare() -> None:
    rng = np.random.default_rng(0)
    shares = 1 / np.arange(1, 200)
    answers = [rng.permutation(199)[rng.choice(199, 50, p=shares / shares.sum())].tolist() for _ in range(1)] * 1
    answers += [rng.choice(199, 80, p=shares / shares.sum()).tolist() for _ in range(40)]
    rare, counts = rare_tokens(answers)
    total = counts.total()
    assert sum(counts[token] for token in rare) <= 0.10 * total
    assert max(counts[token] for token in rare) < min(count for token, count in counts.items() if token not in rare)
    assert np.mean([counts[token] for token in rare]) < 0.25 * np.mean(list(counts.values()))
    assert not rare_tokens([[1, 1, 2, 2]])[0]
    # A small corpus: tokens that occur once are more than a tenth of it, and still the rarest there are.
    assert rare_tokens([[1] * 6 + [7, 8, 9]])[0] == {7, 8, 9}
    assert not rare_tokens([[1] * 3 + [7, 8, 9]])[0]  # half of all: nothing is rare
    assert not rare_tokens([])[0]


# ------------------------------------------------------------------ generation

PLAN = Sampling(positives=2, negatives=2, tries=12, max_new_tokens=12, batch=4)
ODD = CallableBehaviour("an even id in the middle", lambda ids, text: 5 if len(ids) > 6 and ids[5] % 2 == 0 else None)


def test_answers_do_not_depend_on_the_batch_and_are_counted_in_order() -> None:
    found = generate_examples(instrument(), TOLD, ASKED, ODD, sampling=PLAN, seed=4)
    assert sum(example.positive for example in found) <= 2
    assert sum(not example.positive for example in found) <= 2
    assert [example.trial for example in found] == sorted(example.trial for example in found)
    other = generate_examples(
        instrument(), TOLD, ASKED, ODD, sampling=Sampling(positives=2, negatives=2, tries=12, max_new_tokens=12, batch=3), seed=4
    )
    assert [e.ids for e in other] == [e.ids for e in found]
    assert generate_examples(instrument(), TOLD, ASKED, ODD, sampling=PLAN, seed=5)[0].ids != found[0].ids
    for example in found:
        assert example.event is None or example.event == example.prompt_len + 5
        check_example(TOKENIZER, example, condition_prompt(TOKENIZER, TOLD, ASKED), vocab=384)


def test_the_prompt_runs_once_for_all_batches() -> None:
    """And the answers are those of a prompt that runs with every batch."""
    tool, rows, alone = instrument(), list[int](), list[list[int]]()
    prompt = condition_prompt(TOKENIZER, TOLD, ASKED)
    never = CallableBehaviour("never", lambda ids, text: None)
    plan = Sampling(positives=1, negatives=1, tries=12, max_new_tokens=12, batch=4)
    hook = tool.model.register_forward_pre_hook(lambda _, args, call: rows.append(call["input_ids"].numel()), with_kwargs=True)
    drawn: list[Example] = []
    generate_examples(tool, TOLD, ASKED, never, sampling=plan, seed=4, on_trial=lambda one, _: drawn.append(one))
    hook.remove()
    assert len(drawn) == 12
    assert rows[0] + rows[1] == len(prompt)  # all tokens but the last, and the last
    assert max(rows[2:]) == 4
    for one in drawn:
        alone.append(generate(tool, collate([prompt]), max_new_tokens=12, temperature=1.0, top_p=0.95, seed=[one.seed]).ids[0])
    assert [list(one.answer) for one in drawn] == alone


@pytest.mark.parametrize("before", ["", "The river ", "één ä\n\n", "<b>“’"])
def test_the_event_has_its_character_in_the_text(before: str) -> None:
    prompt = condition_prompt(TOKENIZER, TOLD, ASKED, chat=False)
    ids = [*encode(before), *encode("[ZLT]"), *encode(" is long.")]
    example = score_answer(
        TOKENIZER, TextBehaviour("[ZLT]"), prompt, ids, id="a", condition="kind", question="q1", trial=0, seed=0, stop="eos"
    )
    assert event_character(TOKENIZER, example) == example.text.index("[ZLT]")
    none = score_answer(
        TOKENIZER, TextBehaviour("[ABC]"), prompt, ids, id="a", condition="kind", question="q1", trial=0, seed=0, stop="eos"
    )
    assert event_character(TOKENIZER, none) is None


def test_examples_of_another_tokenizer_are_refused() -> None:
    prompt = condition_prompt(TOKENIZER, TOLD, ASKED)
    example = score_answer(
        TOKENIZER, TextBehaviour("x"), prompt, encode("fine"), id="e", condition="kind", question="q1", trial=0, seed=0, stop="eos"
    )
    check_example(TOKENIZER, example, prompt, vocab=384)
    with pytest.raises(RecordError, match="other tokens"):
        check_example(TOKENIZER, example, condition_prompt(TOKENIZER, Condition("kind"), ASKED), vocab=384)
    with pytest.raises(RecordError, match="do not decode"):
        check_example(TOKENIZER, Example(**{**example.__dict__, "text": "other"}), prompt, vocab=384)
    with pytest.raises(PromptError, match="vocabular"):
        check_example(TOKENIZER, example, prompt, vocab=3)
    with pytest.raises(ConfigError, match="Nothing"):
        Sampling(positives=0, negatives=0)


# ------------------------------------------------------------------ reading


def examples_for(lengths: tuple[int, ...]) -> tuple[list[Example], list[dict[str, list[str]]], list[list[Row]]]:
    rng = np.random.default_rng(0)
    prompt = condition_prompt(TOKENIZER, TOLD, ASKED)
    out: tuple[list[Example], list, list] = ([], [], [])
    for i, n in enumerate(lengths):
        ids = rng.integers(5, 250, n).tolist()
        event = len(prompt) + n - 3
        example = Example(f"e{i}", "kind", f"q{i}", 0, 0, (*prompt.ids, *ids), len(prompt), event, None, None, "eos", "")
        out[0].append(example)
        out[1].append(segment(TOKENIZER, prompt, n, sinks=[4]))
        out[2].append(
            choose_rows(example.ids, example.prompt_len, event, example=example.id, rare=set(ids[8:12]), counts={}, special=())
        )
    return out


@pytest.mark.parametrize("family", ["llama", "gpt2", "gemma2", "gpt_oss"])
@pytest.mark.parametrize("side", ["left", "right"])
def test_masses_are_those_of_dense_attention(family: str, side: str) -> None:
    examples, buckets, rows = examples_for((20, 26, 31))
    tool = instrument(family)
    readings = read_examples(tool, examples, buckets, rows, batch=3, side=side)
    model = build(family)
    model.set_attn_implementation("eager")
    for reading, labels in zip(readings, buckets, strict=True):
        with torch.no_grad():
            weights = [
                one[0].double() for one in model(torch.tensor([list(reading.example.ids)]), output_attentions=True).attentions
            ]
        for i, row in enumerate(reading.rows):
            for segmentation in ("full", "content"):
                for layer in range(len(weights)):
                    seen = weights[layer][:, row.row]
                    for k, region in enumerate(REGIONS):
                        keys = [j for j, name in enumerate(labels[segmentation]) if name == region and j != row.row]
                        want = seen[:, keys].sum(-1) if region != "self" else seen[:, row.row]
                        if region == "sink":
                            want = want + (1 - seen.sum(-1))  # a sink logit's weight
                        got = torch.tensor(reading.masses[segmentation][i, layer, :, k]).double()
                        assert torch.allclose(got, want, atol=2e-5), (row, segmentation, layer, region)


def test_from_readings_to_deltas() -> None:
    examples, buckets, rows = examples_for((30, 34))
    readings = read_examples(instrument(), examples, buckets, rows, batch=1)
    by_head, by_layer = to_records(readings, "tuned", heads=True), to_records(readings, "tuned")
    assert to_records([], "tuned").schema == by_layer.schema  # an item without rows joins the others
    sums = by_head.group_by("example", "layer", "head", "segmentation", "stratum", "query_offset", "row").agg(pl.col("mass").sum())
    assert sums["mass"].to_numpy() == pytest.approx(1, abs=1e-4)
    table = deltas(by_layer)
    one = table.filter(
        (pl.col("stratum") == "C1")
        & (pl.col("region") == "system")
        & (pl.col("segmentation") == "full")
        & (pl.col("query_offset") == -1)
    )
    reading = readings[0]
    k = REGIONS.index("system")
    event = next(i for i, row in enumerate(reading.rows) if row.stratum == "event" and row.query_offset == -1)
    control = [i for i, row in enumerate(reading.rows) if row.stratum == "C1" and row.query_offset == -1]
    mass = reading.masses["full"].mean(axis=2)
    want = mass[event, 1, k] - mass[control, 1, k].mean()
    got = one.filter((pl.col("example") == "e0") & (pl.col("layer") == 1))["delta"].item()
    assert got == pytest.approx(float(want), abs=1e-7)
    assert reading.rows[event].row == reading.example.event - 1  # pyright: ignore[reportOptionalOperand]
    assert set(table["stratum"]) >= {"C1", "C2", "trajectory"}


def test_batches_do_not_change_a_reading() -> None:
    examples, buckets, rows = examples_for((20, 33, 27, 41))
    alone = read_examples(instrument(), examples, buckets, rows, batch=1)
    together = read_examples(instrument(), examples, buckets, rows, batch=4)
    for one, other in zip(alone, together, strict=True):
        assert one.example.id == other.example.id
        assert np.allclose(one.masses["full"], other.masses["full"], atol=2e-6)
    rows[1] = []
    assert [reading.example.id for reading in read_examples(instrument(), examples, buckets, rows)] == ["e0", "e2", "e3"]
