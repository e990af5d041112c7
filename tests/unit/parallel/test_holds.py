"""What must hold of multi-path decoding, on several families."""

from __future__ import annotations

import itertools
from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny_models import build, tiny_tokenizer

from symbolic_residue.errors import ConfigError, InstrumentError, PromptError, UnsupportedModelError
from symbolic_residue.instrument import AttentionRead, Instrument, Trace
from symbolic_residue.models import wrap
from symbolic_residue.parallel import (
    check_rotary,
    decode,
    fit_sibling_embedding,
    Layout,
    ParallelConfig,
    PositionWatch,
    Pruning,
    Tree,
)
from symbolic_residue.parallel._choose import choose, combine, disagreement, log_softmax
from symbolic_residue.parallel._forward import call_model
from symbolic_residue.parallel._layout import place, seats_of
from symbolic_residue.parallel._schedule import Schedule

FAMILIES = ("llama", "qwen3", "mistral", "gemma3", "gpt_neox", "gpt_oss")
PROMPT = [5, 9, 120, 33, 47, 200, 8, 91, 60, 14]
SET = [17, 230, 88, 41]
FREE = {"stop_ids": ()}


def instrument(name: str, dtype: torch.dtype = torch.float64) -> Instrument:
    if name == "gpt_oss":  # its grouped matrix product knows no float64
        dtype = torch.float32
    return Instrument(wrap(build(name).to(dtype), tiny_tokenizer()))


def with_set(ids: list[int], positions: list[float] | None = None, scheme: str = "shared") -> Layout:
    base = float(len(PROMPT))
    positions = positions or [base] * len(ids)
    return Layout.of_prompts([PROMPT]).with_set(0, [ids], [positions], [seats_of(scheme, positions)])


def after(layout: Layout, token: int = 77) -> Layout:
    return layout.with_set(1, [[token]], [[float(len(PROMPT) + 1)]])


def run(ins: Instrument, layout: Layout, mode: str = "isolated", bias: float = 0.0) -> Trace:
    rows = tuple(range(layout.n_slots))
    with (
        torch.no_grad(),
        ins.attached(reads=("resid_post.*",), attention=AttentionRead(stats=("entropy",), rows=rows, weights=True)) as trace,
    ):
        trace.logits = call_model(ins, layout, mode=mode, bias=bias).logits  # type: ignore[arg-type]
    return trace


@pytest.mark.parametrize("name", FAMILIES)
def test_isolated_siblings_do_not_see_each_other(name: str) -> None:
    ins = instrument(name)
    trace = run(ins, with_set(SET))
    weights = trace.attention["weights"][:, 0]  # [layer, head, row, key]
    n = len(PROMPT)
    among = weights[:, :, n:, n:]
    apart = ~torch.eye(len(SET), dtype=torch.bool)
    assert bool((among[:, :, apart] == 0).all())
    if name != "gpt_oss":  # its sink logits take mass to no key
        torch.testing.assert_close(weights.sum(-1), torch.ones_like(weights[..., 0]), atol=1e-5, rtol=0)


@pytest.mark.parametrize("name", FAMILIES)
def test_permuting_siblings_permutes_their_rows(name: str) -> None:
    ins, order = instrument(name), [2, 0, 3, 1]
    n = len(PROMPT)
    plain = run(ins, with_set(SET)).logits[0, n:]
    turned = run(ins, with_set([SET[i] for i in order])).logits[0, n:]
    torch.testing.assert_close(turned, plain[order], atol=2e-5, rtol=1e-5)


@pytest.mark.parametrize("name", FAMILIES)
def test_each_sibling_is_as_if_it_stood_there_alone(name: str) -> None:
    ins, n = instrument(name), len(PROMPT)
    together = run(ins, with_set(SET))
    for i, token in enumerate(SET):
        alone = run(ins, with_set([token]))
        for point, states in alone.tensors.items():
            torch.testing.assert_close(together.tensors[point][0, n + i], states[0, n], atol=2e-5, rtol=1e-5)


@pytest.mark.parametrize("name", FAMILIES)
@pytest.mark.parametrize("k", [2, 5])
def test_duplicates_share_equally(name: str, k: int) -> None:
    ins, n = instrument(name), len(PROMPT)
    weights = run(ins, after(with_set([SET[0]] * k))).attention["weights"][:, 0, :, -1]
    one = run(ins, after(with_set([SET[0]]))).attention["weights"][:, 0, :, -1]
    shares = weights[:, :, n : n + k]
    torch.testing.assert_close(shares, shares[..., :1].expand_as(shares), atol=1e-6, rtol=1e-5)
    # The first layer's scores are those of the single token: k equal ones turn odds o into k·o.
    odds = one[0, :, n] / (1 - one[0, :, n])
    if name != "gpt_oss":
        torch.testing.assert_close(shares[0].sum(-1), k * odds / (1 + k * odds), atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("name", FAMILIES)
def test_a_vanishing_offset_is_a_shared_position(name: str) -> None:
    ins, base = instrument(name), float(len(PROMPT))
    shared = run(ins, after(with_set(SET))).logits[0, -1]
    far = []
    for epsilon in (1e-1, 1e-2, 1e-3):
        positions, _ = place("offset", base, len(SET), epsilon)
        far.append(float((run(ins, after(with_set(SET, positions, "offset"))).logits[0, -1] - shared).abs().max()))
    assert far[0] > far[1] > far[2]
    assert far[2] < 0.05 * max(far[0], 1e-12)


@pytest.mark.parametrize("name", FAMILIES)
def test_shifting_all_positions_changes_nothing(name: str) -> None:
    ins = instrument(name)
    layout = after(with_set(SET))
    shifted = replace(layout, position=layout.position + 37)
    torch.testing.assert_close(run(ins, layout).logits, run(ins, shifted).logits, atol=2e-5, rtol=1e-4)


@pytest.mark.parametrize("name", FAMILIES)
def test_deleting_equals_never_having_been_there(name: str) -> None:
    ins, n = instrument(name), len(PROMPT)
    layout = after(with_set(SET))
    masked = replace(layout, gone=layout.gone.clone())
    masked.gone[0, n + 2] = 1
    without = layout.take(torch.tensor([i for i in range(layout.n_slots) if i != n + 2]))
    torch.testing.assert_close(run(ins, masked).logits[0, -1], run(ins, without).logits[0, -1], atol=2e-5, rtol=1e-5)


@pytest.mark.parametrize("name", ["llama", "gemma3", "gpt_neox", "qwen3"])
def test_recompute_equals_a_tree_without_the_token(name: str) -> None:
    """After pruning by recompute, the last rows' logits are those of the sequence that never held the tokens."""
    ins = instrument(name)
    config = ParallelConfig(
        threshold=0.02, max_steps=7, max_siblings=5, pruning=Pruning("relative", 0.9, removal="recompute"), **FREE
    )
    seen: list[Tree] = []
    tree = decode(ins, [PROMPT], config, on_step=lambda step: seen.append(step.trees[0]))[0]
    assert any(t.slot < 0 for s in tree.steps for t in s.tokens)
    # Whatever the next set was chosen from, it is the distribution of the tree as it then stood.
    for before, then in itertools.pairwise(seen):
        logits = run(ins, before.layout()).logits[0]
        last = before.steps[-1]
        weights = torch.tensor([t.probability for t in last.tokens])
        chosen = choose(combine(log_softmax(logits[-len(last.tokens) :]), weights / weights.sum(), "mixture"), 0.02, 5)
        assert chosen.ids == [t.id for t in then.steps[-1].tokens]
        assert chosen.probabilities == pytest.approx([t.probability for t in then.steps[-1].tokens], abs=1e-6)


def test_positions_are_those_of_the_models_own_rotary_module() -> None:
    ins = instrument("llama", torch.float32)
    config = ParallelConfig(threshold=0.03, scheme="offset", epsilon=0.1, max_steps=3, max_siblings=3, **FREE)
    watch = PositionWatch(ins)
    got: list[list[float]] = []
    with watch.watching():
        tree = decode(ins, [PROMPT], config, on_step=lambda step: got.append(watch.positions[0].tolist()))[0]
    assert got == [[t.position for t in step.tokens] for step in tree.steps]
    wide = next(step for step in tree.steps if len(step.tokens) == 3)
    assert wide.tokens[1].position - wide.tokens[0].position == pytest.approx(0.1, abs=1e-5)


def test_unique_and_causal_is_an_ordinary_sequence() -> None:
    ins, n = instrument("llama"), len(PROMPT)
    layout = with_set(SET, [float(n + i) for i in range(len(SET))])
    with torch.no_grad():
        plain = ins.model(input_ids=torch.tensor([PROMPT + SET])).logits
    torch.testing.assert_close(run(ins, layout, mode="causal").logits, plain, atol=2e-5, rtol=1e-5)


@pytest.mark.parametrize("bias", [-2.0, 1.5])
def test_a_bias_multiplies_the_odds_of_siblings(bias: float) -> None:
    ins, n = instrument("llama"), len(PROMPT)
    layout = after(with_set(SET))
    plain, biased = (run(ins, layout, bias=b).attention["weights"][0, 0, :, -1] for b in (0.0, bias))
    odds = plain[:, n : n + 4].sum(-1) / (1 - plain[:, n : n + 4].sum(-1))
    now = biased[:, n : n + 4].sum(-1) / (1 - biased[:, n : n + 4].sum(-1))
    torch.testing.assert_close(now, odds * torch.tensor(bias).exp(), atol=1e-5, rtol=1e-4)


def test_windows_count_positions() -> None:
    """A window of eight positions holds more than eight keys where siblings share one."""
    ins, n = instrument("mistral"), len(PROMPT)
    weights = run(ins, after(with_set(SET))).attention["weights"][0, 0, :, -1]
    seen = (weights > 0).all(0).nonzero()[:, 0].tolist()
    position = len(PROMPT) + 1
    assert seen == [*(i for i in range(n) if position - i < 8), *range(n, n + 5)]


@pytest.mark.parametrize(("name", "why"), [("gpt2", "learned"), ("opt", "learned"), ("falcon_alibi", "ALiBi"), ("jamba", "order")])
def test_positions_that_cannot_be_shared_are_refused(name: str, why: str) -> None:
    with pytest.raises(UnsupportedModelError, match=why):
        check_rotary(instrument(name, torch.float32))


@pytest.mark.parametrize(
    "name", [*FAMILIES, "phi", "falcon", "cohere2", "olmo2", "stablelm", "granite", "smollm3", "mixtral", "glm4"]
)
def test_rotary_families_pass(name: str) -> None:
    check_rotary(instrument(name, torch.float32))


def test_a_tree_stops_where_it_would_outgrow_the_context_or_the_cache() -> None:
    ins = instrument("llama", torch.float32)
    long = [5 + i % 300 for i in range(250)]
    tree = decode(ins, [long], ParallelConfig(threshold=1.0, max_steps=30, **FREE))[0]
    assert (tree.stop, len(tree.steps)) == ("context full", 6)
    tree = decode(ins, [PROMPT], ParallelConfig(threshold=0.02, max_steps=30, max_keys=24, **FREE))[0]
    assert tree.stop == "cache full"
    assert 0 < tree.n_keys <= 24


def test_end_of_text() -> None:
    ins = instrument("llama", torch.float32)
    free = decode(ins, [PROMPT], ParallelConfig(threshold=0.02, max_steps=6, **FREE))[0]
    first = free.steps[0].tokens
    leads = decode(ins, [PROMPT], ParallelConfig(threshold=0.02, stop_ids=(first[0].id,)))[0]
    assert (leads.stop, leads.steps) == ("end of text", ())
    among = decode(ins, [PROMPT], ParallelConfig(threshold=0.02, max_steps=1, stop_ids=(first[1].id,)))[0]
    assert [e.id for e in among.steps[0].endings] == [first[1].id]
    assert first[1].id not in [t.id for t in among.steps[0].tokens]
    assert "⟂" in among.rendered()


@pytest.mark.parametrize(
    "bad",
    [
        {"threshold": 0},
        {"threshold": 1.01},
        {"threshold": "linear:0.2"},
        {"threshold": "step:0.2,0=0.1"},
        {"threshold": "nonsense"},
        {"mode": "open"},
        {"follow": "best"},
        {"max_steps": 0},
        {"max_siblings": True},
        {"scheme": "offset", "epsilon": 0.5, "max_siblings": 20},
        {"bias": float("nan")},
        {"epsilon": -1.0},
    ],
)
def test_senseless_options_are_refused(bad: dict[str, object]) -> None:
    with pytest.raises(ConfigError):
        ParallelConfig(**bad)  # type: ignore[arg-type]


def test_bad_prompts_are_refused() -> None:
    ins = instrument("llama", torch.float32)
    for prompts in ([], [[]], [[1], []], [[10**6]], [[-1]], [[5] * 256]):
        with pytest.raises(PromptError):
            decode(ins, prompts)
    with pytest.raises(ConfigError, match="one prompt at a time"):
        decode(ins, [PROMPT, PROMPT], ParallelConfig(pruning=Pruning(removal="recompute")))
    with pytest.raises(ConfigError, match="finite vector"):
        decode(ins, [PROMPT], embedding=torch.zeros(3))
    ins.model.train()
    with pytest.raises(InstrumentError, match="training"):
        decode(ins, [PROMPT])


def test_running_out_of_memory_keeps_the_tree(monkeypatch: pytest.MonkeyPatch) -> None:
    from symbolic_residue.parallel import _decode

    ins, calls = instrument("llama", torch.float32), []

    def limited(*args: object, **kwargs: object) -> object:
        calls.append(1)
        if len(calls) == 4:
            raise torch.OutOfMemoryError("out of memory")
        return call_model(*args, **kwargs)  # type: ignore[arg-type]

    monkeypatch.setattr(_decode, "call_model", limited)
    tree = decode(ins, [PROMPT], ParallelConfig(threshold=0.05, max_steps=9, **FREE))[0]
    assert (tree.stop, len(tree.steps)) == ("out of memory", 2)


def test_ctrl_c_keeps_the_tree() -> None:
    ins = instrument("llama", torch.float32)

    def stop(step: object) -> None:
        if step.number == 2:  # type: ignore[attr-defined]
            raise KeyboardInterrupt

    tree = decode(ins, [PROMPT], ParallelConfig(threshold=0.05, max_steps=9, **FREE), on_step=stop)[0]
    assert (tree.stop, len(tree.steps)) == ("interrupted", 3)


def test_the_fitted_embedding_makes_sets_disturb_less() -> None:
    ins = instrument("llama", torch.float32)
    config = ParallelConfig(threshold=0.03, max_steps=5, max_siblings=4, mode="visible", **FREE)
    prompts = [PROMPT, PROMPT[3:], PROMPT[::-1], PROMPT[1:7]]
    trees = decode(ins, prompts, config)
    grads = [p.requires_grad for p in ins.model.parameters()]
    fitted = fit_sibling_embedding(ins, trees, held=1, steps=15)
    assert fitted.after < fitted.before
    assert fitted.held == 1 and fitted.held_before is not None
    assert [p.requires_grad for p in ins.model.parameters()] == grads
    with_it = decode(ins, [PROMPT], config, embedding=fitted.value)[0]
    # The first set is chosen before any sibling is fed, the second after.
    same = [[t.probability for t in tree.steps[0].tokens] for tree in (with_it, trees[0])]
    assert same[0] == pytest.approx(same[1], abs=1e-6)
    later = [tree.steps[1].stats.entropy for tree in (with_it, trees[0])]
    assert later[0] != pytest.approx(later[1], abs=1e-6)
    single = decode(ins, [PROMPT], ParallelConfig(threshold=1.0, max_steps=3, **FREE))
    with pytest.raises(ConfigError, match="more than one token"):
        fit_sibling_embedding(ins, single)


_LOGITS = st.lists(st.floats(-8, 8), min_size=6, max_size=6)


@given(st.lists(_LOGITS, min_size=1, max_size=4), st.integers(0, 10**6), st.floats(0.01, 1.0), st.integers(1, 6))
@settings(deadline=None)
def test_combinations_and_sets(rows: list[list[float]], seed: int, threshold: float, cap: int) -> None:
    logits = torch.tensor(rows, dtype=torch.float64)
    w = torch.rand(len(rows), generator=torch.Generator().manual_seed(seed), dtype=torch.float64) + 0.05
    w = w / w.sum()
    p = torch.softmax(logits, -1)
    mixed = combine(log_softmax(logits), w, "mixture").exp()
    torch.testing.assert_close(mixed, (w[:, None] * p).sum(0))
    product = (p.log() * w[:, None]).sum(0).exp()
    torch.testing.assert_close(combine(log_softmax(logits), w, "geometric").exp(), product / product.sum())
    torch.testing.assert_close(combine(log_softmax(logits), w, "last").exp(), p[-1])
    torch.testing.assert_close(combine(log_softmax(logits), w, "top").exp(), p[0])
    js = torch.special.entr(mixed).sum() - (w * torch.special.entr(p).sum(-1)).sum()
    assert disagreement(log_softmax(logits), w) == pytest.approx(float(js), abs=1e-9)
    chosen = choose(mixed.log(), threshold, cap)
    assert chosen.probabilities == sorted(chosen.probabilities, reverse=True)
    above = [i for i in range(6) if float(mixed.log().exp()[i]) >= threshold]
    assert chosen.above == len(above)
    assert len(chosen.ids) == min(max(len(above), 1), cap)
    assert set(chosen.ids) <= set(above) if above else chosen.ids == [int(mixed.log().exp().argmax())]


@given(st.lists(st.sampled_from([0.0, 1.0, 2.0]), min_size=4, max_size=12), st.integers(1, 12))
@settings(deadline=None)
def test_equal_tokens_enter_by_id(logits: list[float], cap: int) -> None:
    log_p = torch.log_softmax(torch.tensor(logits, dtype=torch.float64), -1)
    ranked = sorted(range(len(logits)), key=lambda i: (-logits[i], i))
    assert choose(log_p, 1e-9, cap).ids == ranked[:cap]


@given(st.lists(st.floats(0.01, 1.0), min_size=2, max_size=5), st.integers(1, 60))
@settings(deadline=None)
def test_schedules_stay_within_their_values(values: list[float], steps: int) -> None:
    curve = Schedule("bezier", tuple(values))
    found = [curve.at(i, steps) for i in range(steps)]
    assert min(values) <= min(found) and max(found) <= max(values)
    assert found[0] == pytest.approx(values[0])
    if steps > 1:
        assert found[-1] == pytest.approx(values[-1])
        line = Schedule("linear", (values[0], values[-1]))
        assert line.at(steps // 2, steps) == pytest.approx(values[0] + (values[-1] - values[0]) * (steps // 2) / (steps - 1))


@pytest.mark.parametrize("text", ["0.1", "linear:0.3,0.05", "bezier:0.3,0.1,0.05", "step:0.3,10=0.1,20=0.05"])
def test_schedules_are_read_and_written(text: str) -> None:
    assert str(Schedule.parse(text)) == text
    if text.startswith("step"):
        schedule = Schedule.parse(text)
        assert [schedule.at(i, 30) for i in (0, 9, 10, 19, 20, 29)] == [0.3, 0.3, 0.1, 0.1, 0.05, 0.05]


@given(st.sampled_from(["shared", "offset", "unique"]), st.integers(1, 9), st.floats(0, 0.2), st.integers(0, 99))
@settings(deadline=None)
def test_places(scheme: str, size: int, epsilon: float, base: int) -> None:
    positions, following = place(scheme, float(base), size, epsilon)  # type: ignore[arg-type]
    assert len(positions) == size
    assert following == base + (size if scheme == "unique" else 1)
    assert sum(positions) / size == pytest.approx(base + ((size - 1) / 2 if scheme == "unique" else 0))


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_logits_that_are_no_numbers_are_refused(bad: float) -> None:
    logits = torch.zeros(2, 9)
    logits[1, 4] = bad
    with pytest.raises(InstrumentError, match="NaN"):
        log_softmax(logits)


def test_between_steps_gradients_are_as_the_caller_has_them() -> None:
    from symbolic_residue.parallel import grow

    steps = grow(instrument("llama", torch.float32), [PROMPT], ParallelConfig(threshold=0.05, max_steps=3, **FREE))
    step = next(steps)
    assert torch.is_grad_enabled()
    assert step.trace is not None and step.trace.logits is not None and not step.trace.logits.requires_grad
    steps.close()
    assert torch.is_grad_enabled()


def test_an_error_that_only_mentions_memory_is_no_lack_of_it(monkeypatch: pytest.MonkeyPatch) -> None:
    from symbolic_residue.parallel import _decode

    def broken(*args: object, **kwargs: object) -> object:
        if kwargs.get("keep_logits"):
            return call_model(*args, **kwargs)  # type: ignore[arg-type]
        raise RuntimeError("unsupported memory format")

    monkeypatch.setattr(_decode, "call_model", broken)
    with pytest.raises(RuntimeError, match="memory format"):
        decode(instrument("llama", torch.float32), [PROMPT], ParallelConfig(threshold=0.05, **FREE))


def test_stop_ids_that_the_model_does_not_have_are_refused() -> None:
    with pytest.raises(ConfigError, match="stop_ids"):
        decode(instrument("llama", torch.float32), [PROMPT], ParallelConfig(stop_ids=(10**6,)))
