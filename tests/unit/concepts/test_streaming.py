"""Statistics from blocks of texts against a dense float64 oracle made from their definitions, whatever the size of a block; memory that does not grow."""

from __future__ import annotations

import gc
import tracemalloc
from pathlib import Path
from typing import Any

import hypothesis.strategies as st
import numpy as np
import pytest
import torch
from hypothesis import given
from tiny_models import build, tiny_tokenizer

from symbolic_residue.concepts import (
    _design,
    _held_out,
    _quality_parts,
    _rows,
    collect,
    decompose_layer,
    Design,
    draw_labels,
    fit,
    held_out_scores,
    make_design,
)
from symbolic_residue.concepts._held_out import auc_of_draws, held_out_null, permuted_scores, variance_ratio
from symbolic_residue.concepts._quality_parts import alignment, pc_share, scenario_leak
from symbolic_residue.concepts._rows import Rows
from symbolic_residue.instrument import Instrument
from symbolic_residue.models import wrap

DESIGNS = ("pairs", "others", "uneven", "unpaired")


def design_of(kind: str, n: int, seed: int = 0) -> Design:
    """``pairs``: one and one; ``others``: one and three; ``uneven``: different numbers in every scenario; ``unpaired``: no scenario."""
    if kind == "unpaired":
        return make_design(["joy"] * n + ["baseline"] * (n + 3), [None] * (2 * n + 3), "joy")
    if kind == "uneven":
        rng = np.random.default_rng(seed)
        texts = [(f"{s:03}", name) for s in range(n) for name in ("joy", "baseline") for _ in range(int(rng.integers(1, 4)))]
        order = rng.permutation(len(texts))
        return make_design([texts[i][1] for i in order], [texts[i][0] for i in order], "joy")
    names = ["joy", "baseline"] if kind == "pairs" else ["joy", "fear", "hope", "pride"]
    scenarios = [f"{s:03}" for s in range(n) for _ in names]
    return make_design(names * n, scenarios, "joy", "baseline" if kind == "pairs" else "others")


def difference(x: np.ndarray, labels: np.ndarray, strata: np.ndarray) -> np.ndarray:
    """By its definition, in float64."""
    return np.mean([x[labels & (strata == s)].mean(0) - x[~labels & (strata == s)].mean(0) for s in np.unique(strata)], axis=0)


@pytest.mark.parametrize("block", [1, 7 * 8 * 20, 2**22])
@pytest.mark.parametrize("kind", DESIGNS)
@given(seed=st.integers(0, 9999), n=st.integers(3, 9), offset=st.sampled_from([0.0, 3e4]))
def test_heads_from_blocks_are_those_of_all_texts_at_once(kind: str, block: int, seed: int, n: int, offset: float) -> None:
    """``offset``: what all texts share is thousands of times what they differ in, as in a residual stream."""
    rng = np.random.default_rng(seed)
    design = design_of(kind, n, seed)
    if design.n_neg < 2:
        return
    size, draws = len(design.positive), 12 if seed % 2 else 60  # fewer labelings than texts, and more
    x = rng.normal(size=(size, 4, 5)) + offset * rng.normal(size=(4, 5))
    resid, w, v = rng.normal(size=(size, 7)) + offset, rng.normal(size=(4, 5, 7)), rng.normal(size=7)
    drawn = draw_labels(design, draws, seed)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(_rows, "BLOCK", block)
        found = decompose_layer(x, w, v, design, drawn, resid=resid, k=2)
    raw, std, direct = [], [], []
    for labels in (design.positive, *drawn):
        delta = difference(x, labels, design.stratum)
        raw.append(np.linalg.norm(delta, axis=1))
        std.append([np.sqrt(np.trace(np.cov(x[~labels][:, h].T, ddof=1))) for h in range(4)])
        own = difference(resid, labels, design.stratum)
        direct.append(np.einsum("hd,hdm,m->h", delta, w, own / np.linalg.norm(own)))
    raw, std, direct = np.array(raw), np.array(std), np.array(direct)
    delta = difference(x, design.positive, design.stratum)
    top = np.sort(raw, axis=1)[:, -2:].sum(1) / raw.sum(1)
    for got, expected in (
        (found.delta, delta),
        (found.raw_norm, raw[0]),
        (found.neg_std, std[0]),
        (found.selectivity_null, (raw / std)[1:].mean(0)),
        (found.write_norm, np.linalg.norm(np.einsum("hd,hdm->hm", delta, w), axis=1)),
        (found.direct, np.einsum("hd,hdm,m->h", delta, w, v)),
        (found.direct_null, direct[1:].mean(0)),
        (found.concentration_null.mean, top[1:].mean()),
        (found.total_null.sd, raw.sum(1)[1:].std(ddof=1)),
    ):
        np.testing.assert_allclose(got, expected, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("block", [1, 5 * 8 * 9, 2**22])
@pytest.mark.parametrize("kind", DESIGNS)
@given(seed=st.integers(0, 9999), n=st.integers(2, 9), offset=st.sampled_from([0.0, 3e4]))
def test_held_out_scores_from_blocks_are_those_of_directions_found_anew(
    kind: str, block: int, seed: int, n: int, offset: float
) -> None:
    rng = np.random.default_rng(seed)
    design = design_of(kind, n, seed)
    x = rng.normal(size=(len(design.positive), 9)) + offset * rng.normal(size=9)
    drawn = np.concatenate([design.positive[None], draw_labels(design, 10, seed)])
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(_rows, "BLOCK", block)
        found = permuted_scores(x, design, drawn)
    for labels, scores in zip(drawn, found, strict=True):
        for fold in range(design.n_folds):
            out = design.fold == fold
            kept = labels[~out]
            if kept.all() or not kept.any():
                np.testing.assert_array_equal(scores[out], 0)
                continue
            v = difference(x[~out], kept, design.stratum[~out])
            np.testing.assert_allclose(scores[out], x[out] @ v / np.linalg.norm(v), rtol=1e-9, atol=1e-9 * max(1, offset))
    if kind != "unpaired":
        np.testing.assert_allclose(found[0], held_out_scores(x, design), rtol=1e-9, atol=1e-9 * max(1, offset))


@pytest.mark.parametrize("kind", DESIGNS)
def test_draws_some_at_a_time_are_all_draws(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    design = design_of(kind, 7)
    x = np.random.default_rng(0).normal(size=(len(design.positive), 9))
    labels = np.concatenate([design.positive[None], draw_labels(design, 23, 0)])
    scores = permuted_scores(x, design, labels)
    monkeypatch.setattr(_held_out, "BLOCK", 8 * 5 * labels.shape[1])
    monkeypatch.setattr(_design, "_BLOCK", 9)
    np.testing.assert_array_equal(draw_labels(design, 23, 0), labels[1:])
    first, shares, ratios = held_out_null(x, design, labels)
    np.testing.assert_allclose(first, scores[0], rtol=1e-12)
    np.testing.assert_allclose(shares, auc_of_draws(scores, labels), rtol=1e-12)
    np.testing.assert_allclose(ratios, variance_ratio(scores, labels), rtol=1e-9)


def test_a_fold_that_holds_nearly_all_of_the_sum_loses_no_digits() -> None:
    """Two scenarios, one of them a million times larger: the direction without it is the small one's."""
    rng = np.random.default_rng(0)
    design = design_of("pairs", 2)
    x = rng.normal(size=(4, 6))
    x[:2] *= 1e6
    v = difference(x[2:], design.positive[2:], design.stratum[2:])
    found = permuted_scores(x, design, design.positive[None])[0]
    np.testing.assert_allclose(found[:2], x[:2] @ v / np.linalg.norm(v), rtol=1e-8)
    assert (permuted_scores(np.ones((4, 6)), design, design.positive[None]) == 0).all()


@pytest.mark.parametrize("block", [1, 2**22])
@pytest.mark.parametrize(("n", "d"), [(5, 12), (20, 6), (30, 80), (90, 70)])
def test_the_first_component_of_blocks_is_that_of_all_differences(n: int, d: int, block: int) -> None:
    """Fewer scenarios than dimensions and more; the null's draws are recomputed one by one from the same random numbers."""
    rng = np.random.default_rng(1)
    scenarios = [f"{s:03}" for s in range(n) for _ in range(4)]
    design = make_design(["baseline", "joy", "fear", "joy"] * n, scenarios, "joy")
    x = rng.normal(size=(4 * n, d)) * np.arange(1, d + 1) ** -0.5 + 4
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("symbolic_residue.concepts._quality_parts.BLOCK", block)
        found = pc_share(x, design, scenarios, 30, 3)
    draw = np.random.default_rng(3)
    picks = [4 * s + draw.random((30, 4)).argsort(axis=1)[:, :3] for s in range(n)]

    def share(differences: np.ndarray) -> float:
        values = np.linalg.svd(differences, compute_uv=False) ** 2
        return float(values[0] / values.sum())

    null = [share(np.array([x[p[r, :2]].mean(0) - x[p[r, 2]] for p in picks])) for r in range(30)]
    assert found["value"] == pytest.approx(share((x[1::4] + x[3::4]) / 2 - x[0::4]), rel=1e-9)
    assert found["null_mean"] == pytest.approx(np.mean(null), rel=1e-9)
    assert found["null_sd"] == pytest.approx(np.std(null, ddof=1), rel=1e-9)


def test_rows_are_read_in_order_by_blocks_from_a_map_too(tmp_path: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    x = np.random.default_rng(0).normal(size=(11, 3, 4)).astype(np.float32)
    np.save(tmp_path / "x.npy", x)
    mapped = np.load(tmp_path / "x.npy", mmap_mode="r")
    index = np.array([9, 2, 2, 5, 0])
    monkeypatch.setattr(_rows, "BLOCK", 2 * 8 * 12)
    rows = Rows(mapped, index)
    assert rows.shape == (5, 3, 4) and rows.per_block == 2
    np.testing.assert_array_equal(np.concatenate([block for _, block in rows.blocks()]), x[index].astype(np.float64))
    np.testing.assert_allclose(rows.mean(), x[index].astype(np.float64).mean(0), atol=1e-15)
    w = np.arange(10.0).reshape(2, 5)
    np.testing.assert_allclose(rows.sums(lambda at: w[:, at]), np.einsum("rn,nhd->rhd", w, x[index].astype(float)), atol=1e-12)
    design = design_of("pairs", 5)
    flat = x.reshape(11, 12)[:10]
    np.testing.assert_allclose(fit(Rows(flat), design), difference(flat.astype(float), design.positive, design.stratum), atol=1e-12)
    np.testing.assert_allclose(Rows(flat).project(np.ones(12)), flat.astype(float).sum(1), atol=1e-12)


def peak(call: Any) -> int:
    tracemalloc.start()
    try:
        call()
        return tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()


def test_memory_does_not_grow_with_the_number_of_texts(monkeypatch: pytest.MonkeyPatch) -> None:
    """Ten times the texts: the labels of the draws grow (one byte each) and nothing else that is more than a number a text; activations themselves
    are float32 and not counted. Dense float64 rows of ten times the texts would be 14 MB more."""
    monkeypatch.setattr(_rows, "BLOCK", 2**16)
    monkeypatch.setattr(_held_out, "BLOCK", 2**16)
    rng = np.random.default_rng(0)
    small, large = design_of("pairs", 150), design_of("pairs", 1500)
    taken = []
    for design in (small, large):
        n = len(design.positive)
        x, resid = rng.normal(size=(n, 4, 160)).astype(np.float32), rng.normal(size=(n, 640)).astype(np.float32)
        drawn, w, v = draw_labels(design, 50, 0), rng.normal(size=(4, 160, 640)), np.eye(640)[0]

        def heads(d: Design = design, x: Any = x, resid: Any = resid, drawn: Any = drawn, w: Any = w, v: Any = v) -> None:
            decompose_layer(x, w, v, d, drawn, resid=resid)

        def held(d: Design = design, resid: Any = resid, drawn: Any = drawn) -> None:
            held_out_null(resid, d, drawn)

        def found(d: Design = design, resid: Any = resid) -> None:
            fit(Rows(resid), d)

        labels = n * 51
        taken.append([peak(heads) - 2 * labels, peak(held) - 2 * labels, peak(found)])
    for before, after in zip(*taken, strict=True):
        assert after < before + 1.0 * 2**20, taken


@pytest.mark.parametrize("block", [1, 3 * 8 * 9, 2**22])
@pytest.mark.parametrize("kind", ["pairs", "others", "uneven"])
def test_alignment_from_blocks_is_that_of_all_differences(kind: str, block: int) -> None:
    rng = np.random.default_rng(2)
    design = design_of(kind, 8, 2)
    x = rng.normal(size=(len(design.positive), 9)) + 3
    names = [str(s) for s in design.stratum]
    at = {int(row): i for i, row in enumerate(design.rows)}
    full: list[str | None] = [names[at[r]] if r in at else None for r in range(int(design.rows.max()) + 1)]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(_rows, "BLOCK", block)
        found = alignment(x, design, full)
    positive = design.positive

    def mean(s: int, part: np.ndarray) -> np.ndarray:
        return x[(design.stratum == s) & part].mean(0)

    differences = np.array([mean(s, positive) - mean(s, ~positive) for s in range(8)])

    def cosine(a: np.ndarray, b: np.ndarray) -> float:
        return float(a @ b / np.linalg.norm(a) / np.linalg.norm(b))

    for s in range(8):
        expected = cosine(differences[s], np.delete(differences, s, axis=0).mean(0))
        assert found["by_scenario"][str(s)] == pytest.approx(expected, rel=1e-9)
    texts = np.flatnonzero(positive)
    for i, value in zip(texts, found["by_text"], strict=True):
        s = int(design.stratum[i])
        assert value == pytest.approx(cosine(x[i] - mean(s, ~positive), np.delete(differences, s, axis=0).mean(0)), rel=1e-9)


def test_collecting_holds_one_batch_however_many_texts(tmp_path: Path) -> None:
    """Ten times the texts, each run among texts of the same lengths: at the end of every batch no more tensors are alive than after the first, and what
    Python and NumPy hold grows by token ids and lines of a file (under 1 kB a text); the rows themselves are 1 kB a text here, 0.4 MB more if held."""
    instrument = Instrument(wrap(build("llama"), tiny_tokenizer()))
    alive: list[int] = []

    def tensors(done: int, total: int) -> None:
        alive.append(sum(one.nbytes for one in gc.get_objects() if type(one) is torch.Tensor))

    def run(n: int) -> int:
        texts = [f"Anna put the {'red ' * (i % 3)}book number {i % 10} under the table" for i in range(n)]
        return peak(lambda: collect(instrument, texts, folder=tmp_path / str(n), batch_size=8, progress=tensors))

    run(16)
    alive.clear()
    small = run(40)
    large = run(400)
    assert len(alive) == 57 and max(alive) <= alive[1], alive
    assert large - small < 360 * 1000, (small, large)
    rows = collect(instrument, ["Anna put the book there"], folder=tmp_path / "one")
    assert sum(a.nbytes for of in (rows.resid, rows.heads) for a in of.values()) == 2 * (64 + 64) * 4


def test_scenario_leak_sums_by_scenario(monkeypatch: pytest.MonkeyPatch) -> None:
    rng = np.random.default_rng(0)
    scenario, scores = rng.integers(0, 7, size=40), rng.normal(size=40)
    scenario = np.unique(scenario, return_inverse=True)[1]
    positive = np.arange(40) % 2 == 0
    residual = scores - np.where(positive, scores[positive].mean(), scores[~positive].mean())
    between = sum(residual[scenario == s].sum() ** 2 / (scenario == s).sum() for s in np.unique(scenario))
    found = scenario_leak(scores, scenario, positive, 20, 0)
    assert found["value"] == pytest.approx(between / (residual**2).sum())
    rng, drawn = np.random.default_rng(0), np.tile(residual, (20, 1))
    for part in (positive, ~positive):
        drawn[:, part] = rng.permuted(drawn[:, part], axis=1)
    null = [sum(row[scenario == s].sum() ** 2 / (scenario == s).sum() for s in np.unique(scenario)) for row in drawn]
    assert found["null_mean"] == pytest.approx(np.mean(null) / (residual**2).sum())
    monkeypatch.setattr(_quality_parts, "BLOCK", 8 * 20 * 3)
    assert scenario_leak(scores, scenario, positive, 20, 0) == pytest.approx(found)
