"""Generation under observation: its rows equal those of one forward over the final sequence, its tokens those of the model's own generate."""

from __future__ import annotations

import math
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny_models import ALL, build, tiny_tokenizer

from symbolic_residue.errors import AttentionError, ConfigError, EditError, InstrumentError, PromptError, ReadError
from symbolic_residue.instrument import (
    Add,
    AttentionMask,
    AttentionRead,
    Batch,
    collate,
    generate,
    Generation,
    HeadScale,
    Instrument,
    LastRow,
    PatternReplace,
    Positions,
    Scale,
    Step,
    stream,
)
from symbolic_residue.instrument._sampling import candidates, Sampler
from symbolic_residue.models import bind
from symbolic_residue.prompts import Regions

STATS = ("mass", "entropy", "lse", "max", "distance", "self", "sink")
NAMES = ("sink", "one", "two")
LENGTHS = (13, 7, 10)
NEW = 12  # past the sliding windows of the tiny models, which are 8
BROKEN = "bamba's own decoding differs from its whole forward on the CPU, with or without the instrument"


def make(name: str, **changes) -> Instrument:
    model = build(name, **changes)
    return Instrument(SimpleNamespace(model=model, parts=bind(model)))  # type: ignore[arg-type]


@pytest.fixture(scope="module", params=list(ALL))
def instrument(request: pytest.FixtureRequest) -> Instrument:
    if request.param == "bamba":
        pytest.skip(BROKEN)
    return make(request.param)


@pytest.fixture(scope="module")
def llama() -> Instrument:
    model = build("llama")
    return Instrument(SimpleNamespace(model=model, parts=bind(model), tokenizer=tiny_tokenizer()))  # type: ignore[arg-type]


def prompts(lengths=LENGTHS) -> list[list[int]]:
    g = torch.Generator().manual_seed(0)
    return [torch.randint(4, 384, (n,), generator=g).tolist() for n in lengths]


def regions(n: int) -> Regions:
    return Regions(NAMES, np.array([0, *(1 + np.arange(n - 1) % 2)]))


def grown(n: int, new: int) -> Regions:
    """The regions of a prompt and what was generated after it."""
    return Regions((*NAMES, "generated"), np.array([*regions(n).labels, *[3] * new]))


def read(**more) -> AttentionRead:
    return AttentionRead(regions=[regions(n) for n in LENGTHS], stats=STATS, **more)


def untouched(instrument: Instrument) -> None:
    assert instrument.model.config._attn_implementation in ("sdpa", "eager")
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in instrument.model.modules())
    with instrument.attached():
        pass


def test_every_step_reads_as_one_forward_over_the_final_sequence(instrument: Instrument) -> None:
    made = generate(
        instrument, collate(prompts(), pad_id=3), max_new_tokens=NEW, stop_ids=(), attention=read(), reads=("z.*", "resid_post.1", "logits"),
    )  # fmt: skip
    table = made.attention
    assert table is not None
    assert table.regions == (*NAMES, "generated")
    assert table.rows.tolist() == list(range(12, 12 + NEW))
    assert bool(table.valid.all())
    assert [stop.reason for stop in made.stops] == ["length"] * 3
    untouched(instrument)
    layers = instrument.attention_layers
    for i, whole in enumerate(made.sequences()):
        n = LENGTHS[i]
        rows = slice(n - 1, n - 1 + NEW)
        alone = instrument.run(
            torch.tensor([whole]),
            attention=AttentionRead(regions=grown(n, NEW), stats=STATS),
            reads=(*(f"z.{layer}" for layer in layers), "resid_post.1"),
        )
        assert alone.attention is not None
        for stat in STATS:
            want = alone.attention[stat][:, 0, :, rows]
            # A distance is up to 24 tokens, so its rounding is that much larger.
            torch.testing.assert_close(
                table[stat][:, i], want, atol=3e-4, rtol=1e-4 if stat == "distance" else 0, msg=lambda m, s=stat: f"{s}: {m}"
            )
        torch.testing.assert_close(made[f"z.{layers[-1]}"][i], alone[f"z.{layers[-1]}"][0, rows], atol=5e-4, rtol=5e-4)
        logits = alone["logits"][0, rows].double()
        torch.testing.assert_close(made["logits"][i].double(), logits, atol=5e-4, rtol=5e-4)
        # Greedy, and the numbers of the distributions.
        log_p = torch.log_softmax(logits, -1)
        chosen = torch.tensor(made.ids[i])
        at = log_p.gather(-1, chosen[:, None])[:, 0]
        torch.testing.assert_close(at, log_p.amax(-1), atol=1e-3, rtol=0)
        torch.testing.assert_close(made.log_probs[i], at, atol=1e-3, rtol=0)
        torch.testing.assert_close(made.entropy[i], -(log_p.exp() * log_p).sum(-1), atol=2e-3, rtol=0)


def test_greedy_tokens_are_those_of_the_models_own_generate(instrument: Instrument) -> None:
    batch = collate(prompts(), pad_id=3)
    with torch.no_grad():
        want = instrument.model.generate(  # type: ignore[operator]
            batch.ids, attention_mask=batch.mask, max_new_tokens=NEW, min_new_tokens=NEW, do_sample=False, eos_token_id=None
        )[:, batch.ids.shape[1] :]
    made = generate(instrument, batch, max_new_tokens=NEW, stop_ids=(), attention=read())
    assert made.ids == want.tolist()
    assert generate(instrument, batch, max_new_tokens=NEW, stop_ids=()).ids == made.ids


def test_a_sequence_is_drawn_alone_as_in_any_batch(instrument: Instrument) -> None:
    """Each alone with its own seed, and in a batch in another order."""
    sequences, seeds = prompts(), [7, 8, 9]
    options = {"max_new_tokens": 8, "temperature": 1.3, "top_k": 60, "top_p": 0.95, "stop_ids": ()}
    together = generate(instrument, collate(sequences, pad_id=3), seed=7, **options)
    assert together.seeds == (7, 8, 9)
    for i, one in enumerate(sequences):
        assert generate(instrument, collate([one]), seed=seeds[i], **options).ids == [together.ids[i]]
    turned = generate(instrument, collate(sequences[::-1], pad_id=3), seed=seeds[::-1], **options)
    assert turned.ids == together.ids[::-1]
    assert generate(instrument, collate(sequences, pad_id=3), seed=100, **options).ids != together.ids


def test_what_was_drawn_without_a_seed_can_be_drawn_again(llama: Instrument) -> None:
    before = torch.get_rng_state()
    first = generate(llama, torch.tensor(prompts([9])), max_new_tokens=10, temperature=1.5, stop_ids=())
    assert torch.equal(torch.get_rng_state(), before)
    assert first.seeds is not None
    again = generate(llama, torch.tensor(prompts([9])), max_new_tokens=10, temperature=1.5, stop_ids=(), seed=first.seeds)
    assert again.ids == first.ids
    assert generate(llama, torch.tensor(prompts([9])), max_new_tokens=2, stop_ids=()).seeds is None


@pytest.mark.parametrize(
    "name", ["llama", "mistral", "gemma3", "gpt2", "opt", "gpt_oss", "falcon_alibi", "qwen3_next", "qwen3_moe"]
)
def test_ended_sequences_are_frozen_and_the_others_do_not_notice(name: str) -> None:
    instrument = make(name)
    batch = collate(prompts(), pad_id=3)
    free = generate(instrument, batch, max_new_tokens=NEW, stop_ids=(), attention=read(rows=(-1,), weights=True), reads=("z.*",))
    # The stop id is a token that the first sequence says early; where another says it too, that one ends as well.
    stop = free.ids[0][2]
    ends = [ids.index(stop) + 1 if stop in ids else NEW for ids in free.ids]
    assert ends[0] <= 3
    made = generate(
        instrument, batch, max_new_tokens=NEW, stop_ids=(stop,), attention=read(rows=(-1,), weights=True), reads=("z.*",)
    )
    assert made.ids == [ids[:end] for ids, end in zip(free.ids, ends, strict=True)]
    assert [s.reason for s in made.stops] == ["eos" if stop in ids else "length" for ids in free.ids]
    assert made.stops[0].token == stop
    table, want = made.attention, free.attention
    assert table is not None
    assert want is not None
    layer = instrument.attention_layers[-1]
    for i, end in enumerate(ends):
        steps = len(table.rows)
        assert table.valid[i].tolist() == [s < end for s in range(steps)]
        assert torch.isnan(made.log_probs[i]).tolist() == torch.isnan(made.entropy[i]).tolist() == [s >= end for s in range(steps)]
        for stat in (*STATS, "weights"):
            assert bool(torch.isnan(table[stat][:, i, :, end:]).all())
            size = table["weights"].shape[-1]
            got, expected = table[stat][:, i, :, :end], want[stat][:, i, :, :end]
            expected = expected[..., :size] if stat == "weights" else expected
            torch.testing.assert_close(got, expected, atol=3e-4, rtol=1e-4)
        assert bool(torch.isnan(made[f"z.{layer}"][i, end:]).all())
        torch.testing.assert_close(made[f"z.{layer}"][i, :end], free[f"z.{layer}"][i, :end], atol=5e-4, rtol=5e-4)
        torch.testing.assert_close(made.log_probs[i, :end], free.log_probs[i, :end], atol=1e-3, rtol=0)


def test_the_batch_ends_when_all_have_ended(llama: Instrument) -> None:
    batch = collate(prompts(), pad_id=3)
    free = generate(llama, batch, max_new_tokens=NEW, stop_ids=())
    steps = list(stream(llama, batch, max_new_tokens=NEW, stop_ids=[ids[0] for ids in free.ids]))
    assert len(steps) == 1
    assert steps[0].stops == tuple(type(steps[0].stops[0])("eos", token=ids[0]) for ids in free.ids)  # type: ignore[misc]


def test_whole_rows_are_those_of_the_final_sequence(llama: Instrument) -> None:
    made = generate(llama, torch.tensor(prompts([9])), max_new_tokens=5, stop_ids=(), attention=AttentionRead(stats=("argmax",), rows=(-1,), weights=True))  # fmt: skip
    alone = llama.run(torch.tensor(made.sequences()), attention=AttentionRead(stats=("argmax",), rows=tuple(range(8, 13)), weights=True)).attention  # fmt: skip
    assert made.attention is not None
    assert alone is not None
    torch.testing.assert_close(made.attention["weights"], alone["weights"][..., :13], atol=1e-5, rtol=0)
    assert torch.equal(made.attention["argmax"], alone["argmax"])
    assert float(made.attention["weights"][..., 0, 9:].abs().max()) == 0.0


def test_generated_tokens_are_a_region_of_their_own(llama: Instrument) -> None:
    made = generate(llama, collate(prompts(), pad_id=3), max_new_tokens=6, stop_ids=(), attention=read(split_self=True))
    table = made.attention
    assert table is not None
    assert table.regions == (*NAMES, "generated", "self")
    total = table["mass"].sum(-1)
    torch.testing.assert_close(total, torch.ones_like(total), atol=1e-5, rtol=0)
    assert float(table.mass("generated")[..., :2].abs().max()) < 1e-6  # step 1 sees but itself of the new tokens
    assert float(table.mass("generated")[..., 2:].amin((0, 2)).min()) > 1e-6


def test_the_prompts_own_rows_on_request(llama: Instrument) -> None:
    batch = collate(prompts(), pad_id=3)
    made = generate(llama, batch, max_new_tokens=3, stop_ids=(), attention=read(), reads=("resid_post.0",), prompt_rows=True)
    short = generate(llama, batch, max_new_tokens=3, stop_ids=(), attention=read(), reads=("resid_post.0",))
    want = llama.run(batch, attention=read(), reads=("resid_post.0",))
    assert made.prompt is not None
    assert made.prompt.attention is not None
    assert want.attention is not None
    assert short.prompt is None
    torch.testing.assert_close(made.prompt["resid_post.0"], want["resid_post.0"], atol=1e-5, rtol=1e-4)
    for stat in STATS:
        got = made.prompt.attention[stat]
        got = got[..., :3] if stat == "mass" else got
        torch.testing.assert_close(got, want.attention[stat], atol=2e-4, rtol=1e-5, equal_nan=True)
        torch.testing.assert_close(made.attention[stat], short.attention[stat], atol=2e-4, rtol=1e-5)  # type: ignore[index]
    assert short["resid_post.0"].shape == made["resid_post.0"].shape == (3, 3, 64)


def test_what_is_kept(llama: Instrument) -> None:
    batch, seen = collate(prompts(), pad_id=3), []
    every, last, none = (
        generate(llama, batch, max_new_tokens=4, stop_ids=(), attention=read(), reads=("z.1",), keep=keep, on_token=seen.append)
        for keep in ("all", "last", "none")
    )
    assert every.ids == last.ids == none.ids
    assert every.attention is not None
    assert last.attention is not None
    assert none.attention is None
    assert none.tensors == {}
    assert torch.equal(last.attention["mass"], every.attention["mass"][:, :, :, -1:])
    assert torch.equal(last["z.1"], every["z.1"][:, -1:])
    assert torch.equal(none.log_probs, every.log_probs)
    assert [step.number for step in seen] == [0, 1, 2, 3] * 3
    assert torch.equal(torch.stack([step.ids for step in seen[-4:]], 1), torch.tensor(none.ids))
    assert torch.equal(seen[-1].trace.attention["mass"], last.attention["mass"])


@pytest.mark.parametrize("when", ["always", "prompt", "generated"])
@pytest.mark.parametrize("name", ["llama", "mistral", "gemma2", "falcon"])
def test_edits_act_in_the_forwards_that_were_named(name: str, when: str) -> None:
    """The same rows edited in one forward over the final sequence."""
    instrument, n, new = make(name), 9, 6
    inputs = torch.tensor(prompts([n]))
    push = torch.linspace(-2, 2, 64)

    def edits(rows) -> list:
        return [
            Add("resid_post.0", value=push, rows=rows),
            HeadScale(1, 2, 0.0, rows=rows),
            AttentionMask(keys=(3, 4), rows=None if rows is None else [r for r in rows if r > 4], layers=(1,)),
            Scale("logits", factor=0.5, rows=rows),
        ]

    given = edits(None)
    if when != "generated":
        given[2] = AttentionMask(keys=(3, 4), rows=(-1,) if when == "always" else (5, 6, 7, 8), layers=(1,))
    made = generate(
        instrument, inputs, max_new_tokens=new, stop_ids=(), edits=given, when=when, reads=("resid_post.1", "logits"),
        attention=AttentionRead(regions=regions(n)),
    )  # fmt: skip
    rows = {"always": range(n + new), "prompt": range(n), "generated": range(n, n + new)}[when]
    whole = edits(tuple(rows))
    if when == "always":
        whole[2] = AttentionMask(keys=(3, 4), rows=range(n - 1, n + new), layers=(1,))
    want = instrument.run(torch.tensor(made.sequences()), edits=whole, reads=("resid_post.1",), attention=AttentionRead(regions=grown(n, new)))  # fmt: skip
    at = slice(n - 1, n - 1 + new)
    torch.testing.assert_close(made["resid_post.1"][0], want["resid_post.1"][0, at], atol=5e-4, rtol=5e-4)
    torch.testing.assert_close(made["logits"][0], want["logits"][0, at], atol=5e-4, rtol=5e-4)
    torch.testing.assert_close(made.attention["mass"], want.attention["mass"][:, :, :, at], atol=3e-4, rtol=0)  # type: ignore[index]
    plain = instrument.run(torch.tensor(made.sequences()), reads=("resid_post.1",))
    assert float((made["resid_post.1"][0] - plain["resid_post.1"][0, at]).abs().amax(-1).max()) > 1e-2
    untouched(instrument)


def test_hiding_the_prompt_from_new_tokens_while_a_sequence_has_ended(llama: Instrument) -> None:
    """The ended sequence's own key stays visible to it, so that the mask never leaves it nothing."""
    batch = collate(prompts(), pad_id=3)
    first = generate(llama, batch, max_new_tokens=1, stop_ids=()).ids[0][0]
    made = generate(
        llama, batch, max_new_tokens=4, stop_ids=(first,), edits=[AttentionMask(keys=range(13))], when="generated", attention=read()
    )
    table = made.attention
    assert table is not None
    assert len(made.ids[0]) == 1
    running = table.valid[:, 1:].any(1)
    assert bool(running[1:].all())
    mass = table.mass("generated")[:, 1:, :, 1:]
    torch.testing.assert_close(mass, torch.ones_like(mass))


def test_the_context_ends_each_sequence_for_itself() -> None:
    for name in ("gpt2", "opt", "llama"):
        instrument = make(name, **{"n_positions" if name == "gpt2" else "max_position_embeddings": 16})
        made = generate(instrument, collate(prompts(), pad_id=3), max_new_tokens=8, stop_ids=())
        assert [len(ids) for ids in made.ids] == [3, 8, 6]
        assert [stop.reason for stop in made.stops] == ["context full", "length", "context full"]
        alone = generate(instrument, collate(prompts()[1:2]), max_new_tokens=8, stop_ids=())
        assert alone.ids == made.ids[1:2]


def test_stop_texts_end_a_sequence_at_its_new_text(llama: Instrument) -> None:
    tokenizer = llama.loaded.tokenizer
    ids = tokenizer.encode("The mill stands where the river turns")
    inputs = torch.tensor([ids])
    free = generate(llama, inputs, max_new_tokens=10, stop_ids=())
    assert free.texts is not None
    assert tokenizer.decode(free.sequences()[0]).endswith(free.texts[0])
    cut = tokenizer.decode(free.ids[0][3:5])
    assert len(cut) > 1
    made = generate(llama, inputs, max_new_tokens=10, stop_ids=(), stop_texts=("never said", cut))
    assert made.stops[0].reason == "stop text"
    assert made.stops[0].text == cut
    assert made.texts is not None
    assert cut in made.texts[0]
    assert cut not in tokenizer.decode(made.ids[0][:-1])
    assert made.ids[0] == free.ids[0][: len(made.ids[0])]


def test_the_models_own_eos_ids_are_the_default(llama: Instrument) -> None:
    inputs = torch.tensor([llama.loaded.tokenizer.encode("The mill stands where the river turns")])
    free = generate(llama, inputs, max_new_tokens=6, stop_ids=())
    said = free.ids[0]
    config = llama.model.generation_config
    before = config.eos_token_id
    try:
        for eos in (said[2], [5, said[2]]):
            config.eos_token_id = eos
            made = generate(llama, inputs, max_new_tokens=6)
            assert made.ids == [said[: said.index(said[2]) + 1]]
            assert (made.stops[0].reason, made.stops[0].token) == ("eos", said[2])
            assert made.texts == [llama.loaded.tokenizer.decode(made.ids[0][:-1])]
        config.eos_token_id = None
        assert len(generate(llama, inputs, max_new_tokens=6).ids[0]) == 6  # the config's own is 2
    finally:
        config.eos_token_id = before


def test_an_interruption_keeps_what_was_captured_and_leaves_nothing_attached(llama: Instrument) -> None:
    batch = collate(prompts(), pad_id=3)

    def stop_at_two(step: Step) -> None:
        if step.number == 2:
            raise KeyboardInterrupt

    made = generate(llama, batch, max_new_tokens=9, stop_ids=(), attention=read(), on_token=stop_at_two)
    whole = generate(llama, batch, max_new_tokens=3, stop_ids=(), attention=read())
    assert made.partial
    assert not whole.partial
    assert made.ids == whole.ids
    assert {stop.reason for stop in made.stops} == {"interrupted"}
    assert made.attention is not None
    assert torch.equal(made.attention["mass"], whole.attention["mass"])  # type: ignore[index]
    untouched(llama)


@pytest.mark.parametrize("name", ["llama", "falcon"])
def test_an_interruption_inside_a_forward(name: str) -> None:
    instrument, calls = make(name), []

    def press(module, args) -> None:
        calls.append(1)
        if len(calls) == 4:
            raise KeyboardInterrupt

    handle = instrument.parts.layers[1].block.register_forward_pre_hook(press)
    made = generate(
        instrument, torch.tensor(prompts([9])), max_new_tokens=9, stop_ids=(), attention=AttentionRead(regions=regions(9))
    )
    assert made.partial
    assert len(made.ids[0]) == 3
    assert made.attention["mass"].shape[3] == 3  # type: ignore[index]
    calls[:] = [1] * 3
    with pytest.raises(KeyboardInterrupt):
        generate(instrument, torch.tensor(prompts([9])), max_new_tokens=9)
    handle.remove()
    untouched(instrument)


@pytest.mark.parametrize("name", ["llama", "falcon"])
def test_leaving_a_stream_detaches(name: str) -> None:
    instrument = make(name)
    x = torch.tensor(prompts([9]))
    plain = instrument.run(x)["logits"]
    for step in stream(instrument, x, max_new_tokens=9, stop_ids=(), attention=AttentionRead(regions=regions(9))):
        assert torch.is_grad_enabled()
        if step.number == 3:
            with pytest.raises(AttentionError, match="already attached"):
                instrument.run(x)
            break
    untouched(instrument)
    assert torch.equal(instrument.run(x)["logits"], plain)
    with pytest.raises(ZeroDivisionError):
        generate(instrument, x, max_new_tokens=3, stop_ids=(), on_token=lambda step: 1 / 0)  # type: ignore[arg-type]
    untouched(instrument)


def test_nan_logits_are_refused_where_a_sequence_runs(llama: Instrument) -> None:
    handle = llama.parts.unembed.register_forward_hook(lambda module, args, out: out.index_fill(0, torch.tensor([1]), math.nan))
    batch = collate(prompts(), pad_id=3)
    with pytest.raises(InstrumentError, match="sequence 1 are NaN"):
        generate(llama, batch, max_new_tokens=3)
    handle.remove()
    untouched(llama)


def test_refusals(llama: Instrument) -> None:
    x, batch = torch.tensor(prompts([9])), collate(prompts(), pad_id=3)

    def refused(error, match, inputs=x, **options) -> None:
        for call in (generate, stream):  # the stream refuses at once, too
            with pytest.raises(error, match=match):
                call(llama, inputs, **{"max_new_tokens": 2} | options)

    for n in (0, -1, True, 1.5):
        refused(ConfigError, "max_new_tokens", max_new_tokens=n)
    for t in (-0.1, math.nan, math.inf, "hot"):
        refused(ConfigError, "temperature", temperature=t)
    for p in (0, -0.2, 1.1, math.nan):
        refused(ConfigError, "top_p", top_p=p)
    for k in (0, 2.0):
        refused(ConfigError, "top_k", top_k=k)
    refused(ConfigError, "seeds were given", temperature=1.0, seed=(1, 2))
    refused(ConfigError, "seed=-1", temperature=1.0, seed=-1)
    refused(PromptError, "empty", inputs=torch.zeros(1, 0, dtype=torch.long))
    refused(PromptError, "empty", inputs=torch.zeros(0, 3, dtype=torch.long))
    refused(PromptError, "empty", inputs=Batch(x, torch.zeros_like(x), None, (9,), (8,)))
    refused(PromptError, "token ids", inputs=x[0])
    refused(PromptError, "token ids", inputs=x.float())
    refused(PromptError, "outside", inputs=x + 380)
    refused(InstrumentError, "on the right", inputs=collate(prompts(), pad_id=3, side="right"))
    refused(PromptError, "context of 256", inputs=torch.full((1, 256), 5))
    refused(ConfigError, "stop_ids", stop_ids=(999,))
    refused(ConfigError, "stop text is empty", stop_texts=("",))
    refused(ConfigError, "when", when="never")
    refused(ConfigError, "received", attention=AttentionRead(stats=("received",)))
    refused(ConfigError, "rows", attention=AttentionRead(stats=("entropy",), rows=(3,)))
    refused(ConfigError, "contradict", attention=AttentionRead(stats=("entropy",), rows=(-1,)), prompt_rows=True)
    refused(EditError, "Positions", edits=[Positions(torch.arange(9))])
    refused(EditError, "rows \\(3,\\)", edits=[HeadScale(0, 1, 0.0, rows=(3,))])
    refused(EditError, "rows \\(0,\\)", edits=[HeadScale(0, 1, 0.0, rows=(0,))])
    refused(EditError, "fixed number", edits=[PatternReplace(torch.eye(9)[None, None, -1:], rows=(-1,), layers=(0,))])
    refused(ReadError, "no point", reads=("residual.0",))
    with pytest.raises(ConfigError, match="keep"):
        generate(llama, batch, max_new_tokens=2, keep="some")  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match="without regions"):
        generate(llama, x, max_new_tokens=2, attention=AttentionRead())
    bare = Instrument(SimpleNamespace(model=llama.model, parts=llama.parts))  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match="tokenizer"):
        generate(bare, x, max_new_tokens=2, stop_texts=("a",))
    assert generate(bare, x, max_new_tokens=2).texts is None
    llama.model.train()
    try:
        refused(InstrumentError, "training mode")
    finally:
        llama.model.eval()
    untouched(llama)


@settings(max_examples=100, deadline=None)
@given(
    # Either far apart or exactly equal: rounding does not decide which of two is larger.
    logits=st.lists(st.integers(-16, 16).map(lambda i: i / 2), min_size=2, max_size=12),
    temperature=st.floats(0.05, 5),
    top_k=st.none() | st.integers(1, 14),
    top_p=st.none() | st.floats(0.01, 1),
)
def test_candidates_by_their_definition(logits: list[float], temperature: float, top_k: int | None, top_p: float | None) -> None:
    got = candidates(torch.tensor([logits], dtype=torch.float64), temperature=temperature, top_k=top_k, top_p=top_p)[0].numpy()
    x = np.array(logits) / temperature
    allowed = np.ones(len(x), dtype=bool)
    if top_k is not None and top_k < len(x):
        allowed = x >= np.sort(x)[::-1][top_k - 1]
    p = np.where(allowed, np.exp(x - x.max()), 0.0)
    p /= p.sum()
    nucleus = p > 0
    if top_p is not None:
        nucleus, held = np.zeros(len(x), dtype=bool), 0.0
        for i in sorted(range(len(x)), key=lambda i: (-p[i], i)):
            if held >= top_p - 1e-12 and abs(held - top_p) > 1e-9:
                break
            if abs(held - top_p) <= 1e-9:
                return  # on the edge rounding decides
            nucleus[i], held = True, held + p[i]
    want = np.where(nucleus, p, 0.0)
    np.testing.assert_allclose(got, want / want.sum(), atol=1e-9)


def test_draws_follow_the_probabilities() -> None:
    logits = torch.tensor([[1.0, -1.0, 0.0, float("-inf"), 2.0]])
    n = 4000
    sampler = Sampler(0.7, None, None, tuple(range(n)))
    drawn = sampler.choose(logits.expand(n, -1), [True] * n)
    share = torch.bincount(drawn, minlength=5).double() / n
    p = candidates(logits, temperature=0.7)[0]
    # Five standard errors of a share.
    assert bool(((share - p).abs() <= 5 * (p * (1 - p) / n).sqrt()).all())
    assert float(share[3]) == 0.0


def test_the_smallest_temperature_takes_the_largest() -> None:
    logits = torch.randn(50, 30, generator=torch.Generator().manual_seed(1))
    cold = Sampler(1e-300, None, None, tuple(range(50))).choose(logits, [True] * 50)
    assert torch.equal(cold, logits.argmax(-1))


def test_the_result_says_what_was_asked(llama: Instrument) -> None:
    made = generate(llama, torch.tensor(prompts([9])), max_new_tokens=2, stop_ids=())
    assert isinstance(made, Generation)
    assert made.sequences() == [[*prompts([9])[0], *made.ids[0]]]
    with pytest.raises(ReadError, match="was not read"):
        made["z.0"]


# ------------------------------------------------------------------ prompts that have run already


@pytest.mark.parametrize("kept", [True, False])
def test_a_prompt_that_has_run_goes_on_to_the_same_tokens(instrument: Instrument, kept: bool) -> None:
    """Every family: what follows a prompt that ran once, alone, is what follows it in a batch; again and again from the same start."""
    options = {"max_new_tokens": NEW, "temperature": 1.0, "top_p": 0.95, "stop_ids": ()}
    prompt = prompts()[0]
    row = LastRow(instrument, collate([prompt]))
    if kept:
        row.run(keep=True)
    for seeds in ([3, 4, 5], [6, 7]):
        want = generate(instrument, collate([prompt] * len(seeds)), seed=seeds, **options)
        got = generate(instrument, row.select([0] * len(seeds)), seed=seeds, **options)
        assert got.ids == want.ids
        assert got.prompts == want.prompts
        torch.testing.assert_close(got.log_probs, want.log_probs, atol=2e-4, rtol=1e-3)
        torch.testing.assert_close(got.entropy, want.entropy, atol=2e-4, rtol=1e-3)
    assert len({tuple(ids) for ids in got.ids}) > 1
    untouched(instrument)


def test_prompts_of_several_lengths_that_have_run(llama: Instrument) -> None:
    batch = collate(prompts(), pad_id=3)
    want = generate(llama, batch, max_new_tokens=NEW, stop_ids=())
    row = LastRow(llama, batch)
    row.run(keep=True)
    assert generate(llama, row, max_new_tokens=NEW, stop_ids=()).ids == want.ids
    edit = [Add("resid_post.0", rows=(-1,), value=5.0)]
    got = generate(llama, row, max_new_tokens=NEW, stop_ids=(), edits=edit, when="generated")
    assert got.ids == generate(llama, batch, max_new_tokens=NEW, stop_ids=(), edits=edit, when="generated").ids


def test_a_prompt_that_has_run_is_neither_read_nor_edited_but_for_its_last_row(llama: Instrument) -> None:
    batch = collate(prompts(), pad_id=3)
    last = [Add("resid_post.0", rows=(-1,), batch=(1,), value=5.0)]
    for when in ("always", "prompt"):
        want, got = (
            generate(llama, b, max_new_tokens=NEW, stop_ids=(), edits=last, when=when) for b in (batch, LastRow(llama, batch))
        )
        assert want.ids == got.ids and want.ids != generate(llama, batch, max_new_tokens=NEW, stop_ids=()).ids
    row = LastRow(llama, collate(prompts()[:1]))
    edit = [Add("resid_post.0", value=5.0)]
    for options in ({"reads": ("z.*",)}, {"edits": edit}, {"prompt_rows": True}, {"attention": AttentionRead(stats=("lse",))}):
        with pytest.raises(ConfigError, match="cannot be read or edited"):
            generate(llama, row, max_new_tokens=2, **options)  # type: ignore[arg-type]
    with pytest.raises(InstrumentError, match="another model"):
        generate(make("llama"), row, max_new_tokens=2)
    with pytest.raises(ConfigError, match="hidden"):
        generate(llama, LastRow(llama, collate(prompts()[:1]), shared=[5], hidden=[(1, 3)]), max_new_tokens=2)
