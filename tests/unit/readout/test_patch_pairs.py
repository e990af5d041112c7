"""Pairs and their rows, metrics and fractions, controls, and the summary over pairs."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import polars as pl
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from patching_helpers import prompt, tiny
from tiny_models import tiny_tokenizer

from symbolic_residue.errors import ConfigError, PromptError, SpanError
from symbolic_residue.prompts import build_prompt
from symbolic_residue.readout import KLToSource, LogitDifference, LogProbability, patch_pair, patch_pairs, patch_sweep, PatchSweep
from symbolic_residue.readout._patch_controls import make_donors
from symbolic_residue.readout._patch_metric import evaluate, recovered
from symbolic_residue.readout._patch_table import SCHEMA
from symbolic_residue.stats import bootstrap_mean, cluster_bootstrap, max_t
from symbolic_residue.types import Span


def test_position_classes_become_rows() -> None:
    pair = patch_pair(
        [5, 6, 7, 8],
        [5, 6, 9, 7, 8],
        positions={
            "last": "last",
            "span": Span(0, 2),
            "spans": (Span(2, 4), Span(3, 5)),
            "rows": [0, -1],
            "pairs": [(0, 0), (-1, -1), (2, 3)],
        },
    )
    assert pair.rows == {
        "last": ((3, 4),),
        "span": ((0, 0), (1, 1)),
        "spans": ((2, 3), (3, 4)),
        "rows": ((0, 0), (3, 4)),
        "pairs": ((0, 0), (3, 4), (2, 3)),
    }
    assert pair.swapped().rows["pairs"] == ((0, 0), (4, 3), (3, 2))
    assert pair.swapped().swapped() == pair
    assert patch_pair([5, 6]).rows == {"all": ((0, 0), (1, 1)), "last": ((1, 1),)}


def test_regions_are_position_classes() -> None:
    tokenizer = tiny_tokenizer()
    prompts = [
        build_prompt(tokenizer, messages=[{"role": "user", "content": text}], chat=True) for text in ("the mill", "the gate")
    ]
    user = [p.regions.positions("user").tolist() for p in prompts]
    assert len(user[0]) == len(user[1]) > 0
    pair = patch_pair(*prompts, positions=("user", "last"))
    assert pair.rows["user"] == tuple(zip(*user, strict=True))
    longer = build_prompt(tokenizer, messages=[{"role": "user", "content": "the red book under the table"}], chat=True)
    with pytest.raises(SpanError, match="source rows"):
        patch_pair(prompts[0], longer, positions=("user",))
    with pytest.raises(SpanError, match="no regions"):
        patch_pair([1, 2], positions=("user",))


@pytest.mark.parametrize(
    "spec",
    ["all", Span(3, 6), [9], [], [(0, 1), (2, 1)], [1, 1], "nonsense", [(0, 1, 2)], (Span(0, 2), Span(0, 1)), [0.5]],
    ids=str,
)
def test_rows_that_do_not_pair_are_refused(spec: Any) -> None:
    with pytest.raises(SpanError):
        patch_pair([5, 6, 7, 8], [5, 6, 9, 7, 8], positions={"here": spec})


def test_pairs_that_cannot_be_made() -> None:
    with pytest.raises(SpanError):
        patch_pair([5], positions={})
    for wrong in ([], torch.zeros(1, 3, dtype=torch.long), [0.5]):
        with pytest.raises(PromptError):
            patch_pair(wrong)  # type: ignore[arg-type]
    for arguments in (([], None, None), ([[5, 6]], [[5, 6]] * 2, None), ([[5, 6]], None, ["a", "b"])):
        with pytest.raises(PromptError):
            patch_pairs(arguments[0], arguments[1], clusters=arguments[2])
    assert [pair.cluster for pair in patch_pairs([[5, 6], [7, 8]], clusters=["x", "x"])] == ["x", "x"]


def test_ready_made_metrics() -> None:
    logits = torch.randn(3, 11, generator=torch.Generator().manual_seed(0)).double()
    p = torch.softmax(logits, -1)
    torch.testing.assert_close(LogitDifference(2, 7)(logits), torch.log(p[:, 2] / p[:, 7]))
    torch.testing.assert_close(LogProbability(4)(logits), torch.log(p[:, 4]))
    kl = KLToSource().bound(logits[0])(logits)
    torch.testing.assert_close(kl, (p[0] * torch.log(p[0] / p)).sum(-1))
    assert float(kl[0]) == pytest.approx(0.0, abs=1e-12)
    with pytest.raises(ConfigError, match="no source"):
        KLToSource()(logits)
    with pytest.raises(ConfigError, match="returned float"):
        evaluate(lambda logits: 0.0, logits)  # type: ignore[arg-type,return-value]


@given(*(st.floats(-50, 50) for _ in range(3)), st.floats(-5, 5), st.floats(0.1, 9))
def test_a_fraction_does_not_depend_on_the_metric_s_scale(
    patched: float, source: float, target: float, shift: float, factor: float
) -> None:
    value, reason = recovered(patched, source, target, 1e-3)
    assert (reason is None) == (abs(source - target) >= 1e-3)
    if reason is not None:
        assert math.isnan(value) and "nothing to recover" in reason
        return
    moved = [shift + factor * x for x in (patched, source, target)]
    assert recovered(*moved, 0.0)[0] == pytest.approx(value, rel=1e-6, abs=1e-6)
    assert recovered(source, source, target, 1e-3)[0] == 1.0 and recovered(target, source, target, 1e-3)[0] == 0.0


@given(st.integers(3, 40), st.integers(0, 1000))
def test_no_row_keeps_its_own_values_in_a_shuffle(n: int, seed: int) -> None:
    donors = make_donors(patch_pair(list(range(5, 5 + n))), 2, np.random.default_rng(seed))
    activations = torch.arange(float(n)).view(1, n, 1)
    for donor in (1, 2):
        rows = donors.value(activations, donor, range(n))[0, :, 0].tolist()
        assert rows[0] == 0 and sorted(rows) == list(range(n))
        assert all(rows[i] != i for i in range(1, n))
        assert donors.value(activations, donor, [0])[0, 0, 0] != 0
    assert donors.count == 2 and donors.value(activations, 0, [2, 1]).flatten().tolist() == [2.0, 1.0]


def frame(values: dict[str, list[float]], controls: dict[str, list[float]], clusters: list[str] | None = None) -> PatchSweep:
    """A sweep of one layer with cells named by position class; source 2, target 0."""
    rows = []
    for label, column in values.items():
        for i, value in enumerate(column):
            refused = value != value
            gained, control = (None, None) if refused else (value, controls[label][i])
            name, moved = f"p{i}", 0.0 if refused else 2 * value
            key = [name, clusters[i] if clusters else name, "denoise", 0, "attn_out", None, label]
            runs = [2.0, 2.0 if refused else 0.0, moved, moved]
            rows.append([*key, *runs, gained, control, [0.0, 0.0], 2, "nothing" if refused else None])
    return PatchSweep(pl.DataFrame(rows, schema=SCHEMA, orient="row"), [], 3, 0.01)


def test_the_summary_counts_pairs_and_resamples_them() -> None:
    rng = np.random.default_rng(0)
    values = {"a": rng.normal(0.8, 0.1, 12).tolist(), "b": rng.normal(0.0, 0.1, 12).tolist()}
    controls = {name: rng.normal(0.0, 0.1, 12).tolist() for name in values}
    summary = frame(values, controls).summary()
    for row in summary.iter_rows(named=True):
        want = bootstrap_mean(values[row["positions"]], seed=3)
        assert (row["recovered"], row["recovered_low"], row["recovered_high"]) == pytest.approx(
            (want.value, want.low, want.high), abs=0.02
        )
        assert row["n"] == 12 and row["refused"] == 0 and row["control_n"] == 24
        difference = np.array(values[row["positions"]]) - np.array(controls[row["positions"]])
        assert row["excess"] == pytest.approx(difference.mean())
        assert row["effect"] == pytest.approx(2 * np.mean(values[row["positions"]]))
    excess = np.array([values["a"], values["b"]]) - np.array([controls["a"], controls["b"]])
    assert summary["p_family"].to_list() == pytest.approx(max_t(excess.T, seed=3).tolist(), abs=0.02)
    assert summary["p_family"][0] < 0.01 < summary["p_family"][1]

    clustered = frame(values, controls, ["x", "y", "z"] * 4).summary().row(0, named=True)
    want = cluster_bootstrap(values["a"], ["x", "y", "z"] * 4, seed=3)
    assert clustered["n"] == 3 and "3 clusters" in clustered["method"]
    assert (clustered["recovered_low"], clustered["recovered_high"]) == pytest.approx((want.low, want.high))


def test_pairs_with_nothing_to_recover_are_counted_and_left_out() -> None:
    row = frame({"a": [0.5, math.nan, 0.7]}, {"a": [0.0, math.nan, 0.1]}).summary().row(0, named=True)
    assert row["n"] == 2 and row["refused"] == 1 and row["recovered"] == pytest.approx(0.6) and row["effect"] == pytest.approx(0.8)


def test_one_pair_has_no_interval() -> None:
    row = frame({"a": [0.5]}, {"a": [0.1]}).summary().row(0, named=True)
    assert row["recovered"] == 0.5 and row["recovered_low"] is None and row["p_family"] is None
    assert row["method"] == "none: one pair has no spread" and row["n"] == 1


def test_a_partial_table_has_a_summary() -> None:
    sweep = patch_sweep(tiny("llama"), patch_pairs([prompt(1), prompt(3)], [prompt(2), prompt(4)]), metric=LogitDifference(5, 9))
    partial = PatchSweep(sweep.table().head(8), [], 0, 0.01)
    assert set(partial.summary()["n"]) <= {1, 2} and len(sweep.summary()) == 12
    without = patch_sweep(tiny("llama"), [patch_pair(prompt(1), prompt(2))], metric=LogitDifference(5, 9), controls=0)
    assert without.summary()["control"].null_count() == 12 and without.summary()["excess"].null_count() == 12
    assert set(sweep.tables()) == {"patches", "patch_summary", "patch_not_applicable"}
