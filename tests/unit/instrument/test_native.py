"""The native kernel against a dense float64 oracle, and its build against what can go wrong with a build."""

from __future__ import annotations

import hashlib
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from symbolic_residue.errors import AttentionError
from symbolic_residue.instrument.attention import _native

ALL = _native.STATISTICS
needs_compiler = pytest.mark.skipif(not _native.available(), reason=_native.why() or "available")


def oracle(
    q, k, v, scale, low, high, *, keep=None, bias=None, softcap=None, sinks=None, labels=None, n_regions=0
) -> tuple[Tensor | None, dict[str, Tensor]]:
    """Definitions, written out densely in float64."""
    batch, heads, queries, _ = q.shape
    keys, group = k.shape[2], heads // k.shape[1]
    s = scale * (q.double() @ k.double().repeat_interleave(group, 1).mT)
    if softcap is not None:
        s = softcap * torch.tanh(s / softcap)
    if bias is not None:
        s = s + bias.double()
    j = torch.arange(keys)
    seen = (j >= low[:, None, :, None]) & (j < high[:, None, :, None])
    if keep is not None:
        seen = seen & keep
    s = s.masked_fill(~seen, -torch.inf)
    blind = (s == -torch.inf).all(-1)
    lse = s.logsumexp(-1)
    if sinks is not None:
        lse = torch.logaddexp(lse, sinks.double().view(1, heads, 1).expand_as(lse))
    p = torch.exp(s - lse[..., None]).masked_fill(blind[..., None], 0.0)
    total = p.sum(-1)
    own = torch.arange(queries) + keys - queries
    at_own = own.clamp_min(0).expand(batch, heads, -1)[..., None]
    stats = {
        "entropy": -torch.special.xlogy(p, p).sum(-1),
        "lse": lse.masked_fill(blind, -torch.inf),
        "max": p.max(-1).values,
        "argmax": p.argmax(-1).masked_fill(blind, -1),
        "distance": (own - (p * j).sum(-1) / total.masked_fill(blind, 1.0)).masked_fill(blind, 0.0),
        "self": torch.where(own >= 0, p.gather(-1, at_own)[..., 0], 0.0),
        "sink": (1 - total).masked_fill(blind, 0.0),
        "weights": p,
    }
    if labels is not None:
        indicator = (labels[:, :, None] == torch.arange(n_regions)).double().expand(batch, -1, -1)
        stats["mass"] = p @ indicator[:, None]
    out = None if v is None else (p @ v.double().repeat_interleave(group, 1)).transpose(1, 2)
    return out, stats


TOLERANCE = {"mass": 1e-5, "entropy": 1e-4, "lse": 1e-4, "max": 1e-5, "self": 1e-5, "sink": 1e-5, "distance": 2e-3}


def compare(
    got: tuple[Tensor | None, dict[str, Tensor]], want: tuple[Tensor | None, dict[str, Tensor]], out_tolerance: float = 5e-5
) -> None:
    (out, stats), (expected_out, expected) = got, want
    if expected_out is None:
        assert out is None
    else:
        torch.testing.assert_close(out.double(), expected_out, atol=out_tolerance, rtol=0)
    for name, values in stats.items():
        if name == "argmax":
            assert torch.equal(values == -1, expected["argmax"] == -1)
            # Two keys may tie within rounding: the oracle's weight at our key must be its maximum.
            at_ours = expected["weights"].gather(-1, values.clamp_min(0)[..., None])[..., 0]
            torch.testing.assert_close(at_ours, expected["max"], atol=1e-5, rtol=0)
        else:
            torch.testing.assert_close(
                values.double(), expected[name], atol=TOLERANCE[name], rtol=0, msg=lambda text, name=name: f"{name}: {text}"
            )


def strided(generator: torch.Generator, how: str, batch: int, heads: int, rows: int, d: int) -> Tensor:
    """[batch, head, row, d], as transformers hands it over, as a slice of a wider tensor, contiguous, or with the last axis strided."""
    if how == "transposed":
        return torch.randn(batch, rows, heads, d, generator=generator).transpose(1, 2)
    if how == "sliced":
        return torch.randn(batch, heads + 1, rows + 2, d + 3, generator=generator)[:, 1:, 1:-1, 2 : 2 + d]
    if how == "columns":
        return torch.randn(batch, heads, d, rows, generator=generator).mT
    return torch.randn(batch, heads, rows, d, generator=generator)


@st.composite
def cases(draw: st.DrawFn) -> dict:
    """Arguments of one call: shapes, intervals, masks, logit options, regions."""
    generator = torch.Generator().manual_seed(draw(st.integers(0, 2**31)))
    batch, kv, group = draw(st.integers(1, 2)), draw(st.integers(1, 3)), draw(st.sampled_from([1, 2, 3, 5]))
    heads = kv * group
    queries = draw(st.sampled_from([1, 1, 2, 4, 7, 13, 33, 70]))
    keys = draw(
        st.sampled_from([queries, queries + draw(st.integers(0, 40)), draw(st.integers(1, 600)), 2100 if queries < 5 else 520])
    )
    d, d_value = draw(st.sampled_from([1, 3, 8, 16, 33, 64, 80, 256])), draw(st.sampled_from([1, 5, 16, 24, 64, 80, 97]))
    layout = st.sampled_from(["transposed", "sliced", "plain", "columns"])
    q = strided(generator, draw(layout), batch, heads, queries, d)
    k = strided(generator, draw(layout), batch, kv, keys, d)
    v = None if draw(st.integers(0, 5)) == 0 else strided(generator, draw(layout), batch, kv, keys, d_value)
    own = torch.arange(queries) + keys - queries
    kind = draw(st.sampled_from(["causal", "all", "window", "padding", "packed", "any"]))
    low, high = torch.zeros(1, queries, dtype=torch.long), (own + 1).clamp_min(0)[None]
    if kind == "all":
        high = torch.full_like(high, keys)
    elif kind == "window":
        low = (own - draw(st.integers(0, 40))).clamp_min(0)[None]
    elif kind == "padding":
        low = torch.randint(0, keys + 1, (batch, 1), generator=generator).expand(-1, queries)
        high = high.expand(batch, -1).minimum(torch.randint(1, keys + 1, (batch, 1), generator=generator))
    elif kind == "packed":
        cut = torch.randint(0, keys + 1, (1, 1), generator=generator)
        low = torch.where(own >= cut, cut, 0)
    elif kind == "any":
        low = torch.randint(0, keys + 1, (batch, queries), generator=generator)
        high = torch.randint(0, keys + 1, (batch, queries), generator=generator)
    chosen: dict = {"low": low.int(), "high": high.int(), "scale": draw(st.sampled_from([d**-0.5, 0.5 / d, 3.0 * d**-0.5]))}
    one_or = lambda n: draw(st.sampled_from([1, n]))  # noqa: E731
    if draw(st.booleans()):
        chosen["keep"] = torch.rand(one_or(batch), one_or(heads), one_or(queries), keys, generator=generator) < draw(
            st.sampled_from([0.02, 0.6, 0.95])
        )
    if draw(st.booleans()):
        bias = torch.randn(one_or(batch), one_or(heads), one_or(queries), keys, generator=generator) * 2
        bias[torch.rand(bias.shape, generator=generator) < draw(st.sampled_from([0.0, 0.3, 0.97]))] = -torch.inf
        chosen["bias"] = bias.expand(one_or(batch) if bias.shape[0] == 1 else batch, -1, -1, -1)
    if draw(st.booleans()):
        chosen["softcap"] = draw(st.sampled_from([1.0, 5.0, 50.0]))
    if draw(st.booleans()):
        chosen["sinks"] = torch.randn(heads, generator=generator) * draw(st.sampled_from([1.0, 30.0]))
    n_regions = draw(st.sampled_from([0, 1, 2, 8, 16, 40]))
    if n_regions:
        rows = one_or(batch)
        j = torch.arange(keys)
        regions = {
            "parts": j * n_regions // keys,
            "turns": j % n_regions,
            "threes": j // 3 % n_regions,
            "random": torch.randint(-1, n_regions, (rows, keys), generator=generator),
        }
        labels = regions[draw(st.sampled_from(sorted(regions)))].expand(rows, keys).clone()
        labels[:, : draw(st.integers(0, 2))] = -1
        chosen |= {"labels": labels.int(), "n_regions": n_regions}
    return {"q": q, "k": k, "v": v, **chosen}


@needs_compiler
@settings(max_examples=250, deadline=None)
@given(cases())
def test_output_and_every_statistic_are_the_definitions(case: dict) -> None:
    want = ALL if case.get("n_regions") else ALL - {"mass"}
    got = _native.attend(**case, want=want)
    assert not any(torch.isnan(x).any() for x in (*got[1].values(), *(() if got[0] is None else (got[0],))))
    compare(got, oracle(**case))


@needs_compiler
@settings(max_examples=40, deadline=None)
@given(cases())
def test_threads_do_not_change_a_bit(case: dict) -> None:
    want = ALL if case.get("n_regions") else ALL - {"mass"}
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(1)
        one = _native.attend(**case, want=want)
        torch.set_num_threads(2)
        two = _native.attend(**case, want=want)
    finally:
        torch.set_num_threads(before)
    assert one[0] is None or torch.equal(one[0], two[0])
    assert all(torch.equal(one[1][name], two[1][name]) for name in want)


@needs_compiler
@pytest.mark.parametrize("march", [(), ("-mavx2", "-mfma")], ids=["baseline", "avx2"])
def test_narrower_vectors_compute_the_same(fresh: pytest.MonkeyPatch, march: tuple[str, ...]) -> None:
    """The kernel of other processors: tiles, panels and working space have other sizes there."""
    if march and "avx2" not in _native._processor():
        pytest.skip("this processor has no AVX2")
    fresh.setattr(_native, "FLAGS", (*(flag for flag in _native.FLAGS if not flag.startswith("-march")), *march))
    assert _native.available(), _native.why()

    @settings(max_examples=80, deadline=None)
    @given(cases())
    def agrees(case: dict) -> None:
        compare(_native.attend(**case, want=ALL if case.get("n_regions") else ALL - {"mass"}), oracle(**case))

    agrees()


def causal(queries: int, keys: int) -> tuple[Tensor, Tensor]:
    return torch.zeros(1, queries, dtype=torch.int32), (torch.arange(queries) + keys - queries + 1).int()[None]


@needs_compiler
@pytest.mark.parametrize("spread", [4.0, 80.0])
@pytest.mark.parametrize("interleaved", [False, True])
@pytest.mark.parametrize("d", [64, 128])
def test_accuracy_at_2048_keys_with_peaked_rows(spread: float, interleaved: bool, d: int) -> None:
    n, heads, kv = 2048, 3, 1
    generator = torch.Generator().manual_seed(3)
    q, k, v = (torch.randn(1, h, n, d, generator=generator) for h in (heads, kv, kv))
    q = q * (spread / (q @ k.mT * d**-0.5).abs().max())
    labels = (torch.arange(n) % 8 if interleaved else torch.arange(n) * 8 // n).int()[None]
    low, high = causal(n, n)
    out, stats = _native.attend(q, k, v, d**-0.5, low, high, labels=labels, n_regions=8, want=ALL)
    _, expected = oracle(q, k, v, d**-0.5, low, high, labels=labels, n_regions=8)
    assert (stats["mass"] - expected["mass"]).abs().max() < 1e-5
    assert (stats["entropy"] - expected["entropy"]).abs().max() < 1e-4
    assert (stats["max"] - expected["max"]).abs().max() < 1e-5
    assert (stats["mass"].double().sum(-1) - 1).abs().max() < 2e-6  # every key has a region
    assert out is not None


@needs_compiler
def test_long_rows_agree_with_a_window_of_rows_of_the_oracle() -> None:
    """8192 keys: the last rows of a full causal call are the oracle's, and the same rows asked alone (another path) agree."""
    n, rows, d = 8192, 3, 32
    generator = torch.Generator().manual_seed(0)
    q, k, v = (torch.randn(1, h, n, d, generator=generator) * 1.5 for h in (2, 1, 1))
    labels = (torch.arange(n) * 8 // n).int()[None]
    full = _native.attend(q, k, v, d**-0.5, *causal(n, n), labels=labels, n_regions=8, want=ALL)
    tail = _native.attend(q[:, :, -rows:], k, v, d**-0.5, *causal(rows, n), labels=labels, n_regions=8, want=ALL)
    want = oracle(q[:, :, -rows:], k, v, d**-0.5, *causal(rows, n), labels=labels, n_regions=8)
    compare(tail, want)
    compare((full[0][:, -rows:], {name: x[:, :, -rows:] for name, x in full[1].items()}), want)


@needs_compiler
def test_statistics_do_not_depend_on_what_else_is_asked() -> None:
    generator = torch.Generator().manual_seed(5)
    q, k, v = (torch.randn(1, h, 40, 16, generator=generator) for h in (4, 2, 2))
    labels = torch.zeros(1, 40, dtype=torch.int32)
    every = _native.attend(q, k, v, 0.25, *causal(40, 40), labels=labels, n_regions=1, want=ALL)
    for name in sorted(ALL):
        out, alone = _native.attend(q, k, v, 0.25, *causal(40, 40), labels=labels, n_regions=1, want={name})
        assert list(alone) == [name]
        assert torch.equal(alone[name], every[1][name])
        assert torch.equal(out, every[0])


@needs_compiler
def test_first_of_equal_keys_is_the_argmax() -> None:
    q = torch.ones(1, 1, 700, 4)
    k = torch.zeros(1, 1, 700, 4)
    k[:, :, [37, 38, 500, 650]] = 1.0
    _, stats = _native.attend(q, k, None, 1.0, *causal(700, 700), want={"argmax"})
    assert stats["argmax"][0, 0].tolist() == [0] * 37 + [37] * 663


@needs_compiler
@pytest.mark.parametrize("queries", [1, 20])
def test_rows_that_see_nothing(queries: int) -> None:
    q, k, v = torch.randn(1, 2, queries, 8), torch.randn(1, 1, 30, 8), torch.randn(1, 1, 30, 8)
    none = torch.full((1, queries), 7, dtype=torch.int32)
    labels = torch.zeros(1, 30, dtype=torch.int32)
    for sinks in (None, torch.ones(2)):
        out, stats = _native.attend(q, k, v, 1.0, none, none, sinks=sinks, labels=labels, n_regions=1, want=ALL)
        assert not out.any()
        assert (stats["lse"] == -torch.inf).all()
        assert (stats["argmax"] == -1).all()
        assert not any(stats[name].any() for name in ALL - {"lse", "argmax"})


@needs_compiler
@pytest.mark.parametrize("queries", [1, 20])
@pytest.mark.parametrize("holes", [False, True])
def test_nan_in_a_query_comes_out_as_nan_and_stays_in_its_row(queries: int, holes: bool) -> None:
    q, k, v = torch.randn(1, 2, queries, 8), torch.randn(1, 2, 30, 8), torch.randn(1, 2, 30, 8)
    q[0, 1, -1] = torch.nan
    keep = torch.ones(1, 1, 1, 30, dtype=torch.bool) if holes else None
    out, stats = _native.attend(q, k, v, 1.0, *causal(queries, 30), keep=keep, want={"entropy", "max"})
    for found in (torch.isnan(out).all(-1).transpose(1, 2), torch.isnan(stats["entropy"]), torch.isnan(stats["max"])):
        assert found[0, 1, -1]
        assert found.sum() == 1


@needs_compiler
def test_what_does_not_fit_is_refused() -> None:
    q, k, v = torch.randn(1, 4, 6, 8), torch.randn(1, 2, 6, 8), torch.randn(1, 2, 6, 8)
    low, high = causal(6, 6)
    labels = torch.zeros(1, 6, dtype=torch.int32)

    def refused(match: str, *args, **options) -> None:
        with pytest.raises(AttentionError, match=match):
            _native.attend(*args, **options)

    refused("float16", q.half(), k, v, 1.0, low, high)
    refused("meta", q.to("meta"), k, v, 1.0, low, high)
    refused("evenly", q[:, :3], k, v, 1.0, low, high)
    refused("k has the shape", q, k[..., :7], v, 1.0, low, high)
    refused("v has the shape", q, k, v[:, :, :5], 1.0, low, high)
    refused("empty", q[:, :, :0], k, v, 1.0, low[:, :0], high[:, :0])
    refused("low is torch.int64", q, k, v, 1.0, low.long(), high)
    refused("outside the 6 keys", q, k, v, 1.0, low, high + 1)
    refused("outside the 6 keys", q, k, v, 1.0, low - 1, high)
    refused("keep has the shape", q, k, v, 1.0, low, high, keep=torch.ones(1, 3, 6, 6, dtype=torch.bool))
    refused("bias is torch.float64", q, k, v, 1.0, low, high, bias=torch.zeros(1, 1, 6, 6).double())
    refused("sinks has the shape", q, k, v, 1.0, low, high, sinks=torch.zeros(3))
    refused("softcap", q, k, v, 1.0, low, high, softcap=0.0)
    refused("without regions", q, k, v, 1.0, low, high, want={"mass"})
    refused("nor one of the 1 regions", q, k, v, 1.0, low, high, want={"mass"}, labels=labels + 1, n_regions=1)
    refused("Unknown statistics: peak", q, k, v, 1.0, low, high, want={"peak"})
    refused("no backward pass", q.clone().requires_grad_(), k, v, 1.0, low, high)


@pytest.fixture
def fresh(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[pytest.MonkeyPatch]:
    """An empty cache and a process that has not looked for the library yet."""
    monkeypatch.setenv("RESIDUE_CACHE", str(tmp_path))
    monkeypatch.delenv("RESIDUE_NATIVE", raising=False)
    _native._library.cache_clear()
    yield monkeypatch
    _native._library.cache_clear()


def tiny() -> tuple[Tensor | None, dict[str, Tensor]]:
    return _native.attend(torch.ones(1, 1, 2, 4), torch.ones(1, 1, 2, 4), None, 1.0, *causal(2, 2), want={"max"})


@pytest.mark.parametrize("compiler", ["/bin/false", "/no/such/compiler", "'"])
def test_failing_compiler_is_a_reason_and_forcing_it_an_error(
    fresh: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str], compiler: str
) -> None:
    fresh.setenv("CXX", compiler)
    assert not _native.available()
    assert compiler in _native.why()
    with pytest.raises(AttentionError, match="not available") as caught:
        tiny()
    assert caught.value.why == _native.why()
    assert "compiler" in caught.value.todo
    assert capfd.readouterr() == ("", "")


def test_no_compiler_at_all_is_a_reason(fresh: pytest.MonkeyPatch, tmp_path: Path) -> None:
    fresh.delenv("CXX", raising=False)
    fresh.setenv("PATH", str(tmp_path))
    assert "no C++ compiler" in _native.why()


@needs_compiler
def test_source_that_does_not_compile_says_the_compilers_error(fresh: pytest.MonkeyPatch, tmp_path: Path) -> None:
    broken = tmp_path / "broken.cpp"
    broken.write_text("int residue_attend( { return 0; }\n")
    fresh.setattr(_native, "SOURCE", broken)
    assert "error" in _native.why()
    assert not list((tmp_path / "native").glob("*.so"))


def test_environment_turns_it_off(fresh: pytest.MonkeyPatch) -> None:
    fresh.setenv("RESIDUE_NATIVE", "0")
    assert not _native.available()
    with pytest.raises(AttentionError, match="RESIDUE_NATIVE"):
        tiny()


def test_cache_that_cannot_be_written_is_a_reason(fresh: pytest.MonkeyPatch, tmp_path: Path) -> None:
    blocked = tmp_path / "file"
    blocked.write_text("in the way")
    fresh.setenv("RESIDUE_CACHE", str(blocked))
    assert not _native.available()
    assert _native.why()


@needs_compiler
def test_library_is_kept_and_a_damaged_one_is_built_again(fresh: pytest.MonkeyPatch, tmp_path: Path) -> None:
    assert _native.available()
    (path,) = (tmp_path / "native").glob("*.so")
    good = hashlib.sha256(path.read_bytes()).hexdigest()
    assert path.with_suffix(".sha256").read_text() == good

    builds = []
    real = _native._run
    fresh.setattr(_native, "_run", lambda command: builds.append("-o" in command) or real(command))
    # Loaded anew by another process: nothing is built. (A library stays loaded in this one, so a damaged file is put beside, not into it.)
    _native._library.cache_clear()
    assert _native.available()
    assert not any(builds)

    data = path.read_bytes()
    path.unlink()
    path.write_bytes(data[: len(data) // 2])
    _native._library.cache_clear()
    assert _native.available()
    assert sum(builds) == 1
    assert path.with_suffix(".sha256").read_text() == hashlib.sha256(path.read_bytes()).hexdigest()
    assert tiny()[1]["max"].tolist() == [[[1.0, 0.5]]]
    assert sorted(p.suffix for p in (tmp_path / "native").iterdir() if not p.name.startswith(".")) == [".sha256", ".so"]


def test_import_neither_compiles_nor_looks_for_a_compiler(tmp_path: Path) -> None:
    code = "import symbolic_residue.instrument.attention._native as n; assert n._library.cache_info().currsize == 0"
    subprocess.run([sys.executable, "-c", code], check=True, env={**os.environ, "RESIDUE_CACHE": str(tmp_path)})
    assert not list(tmp_path.iterdir())
