"""The Triton backend against a dense float64 oracle, in triton's interpreter, and its compilation for real devices.

TRITON_INTERPRET must be set before triton is first imported, so this file runs itself: ``python test_triton.py interpret`` computes every case and
prints, as JSON, what each returned beside what the oracle says; ``compile`` compiles kernels for devices that need not be there. The
tests judge the two answers.
"""

from __future__ import annotations

import contextlib
import importlib.util
import json
import os
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from symbolic_residue.errors import AttentionError
from symbolic_residue.instrument.attention import _triton, _triton_call

needs_triton = pytest.mark.skipif(importlib.util.find_spec("triton") is None, reason="triton is not installed (linux x86_64 only)")
ALL = ("mass", "entropy", "lse", "max", "argmax", "distance", "self", "sink")
# Statistics are float32 whatever the inputs; lse and distance grow with scores and positions, the output is rounded to the inputs' dtype.
TOLERANCE = {
    "mass": 1e-5,
    "entropy": 2e-5,
    "lse": 2e-5,
    "max": 1e-5,
    "argmax": 1e-5,
    "distance": 1e-3,
    "self": 1e-5,
    "sink": 1e-5,
    "received": 1e-4,
}
OUTPUT = {"float32": 2e-5, "float16": 4e-3, "bfloat16": 3e-2}


@dataclass
class Case:
    """One attention call. Scores are spread (q is scaled up), or everything would be uniform and every mistake small."""

    batch: int = 1
    heads: int = 2
    kv_heads: int = 1
    queries: int = 70
    keys: int = 70
    d_head: int = 16
    d_value: int = 16
    dtype: str = "float32"
    mask: str = "causal"
    keep: bool = False
    bias: str = ""
    softcap: float | None = None
    sinks: bool = False
    regions: int = 5
    layout: str = "blocks"
    shared: bool = False
    transposed: bool = False
    rows: tuple[int, ...] | None = None
    want: tuple[str, ...] = ALL
    value: bool = True


CASES = {
    "plain causal": Case(),
    "many tiles": Case(batch=1, heads=1, queries=200, keys=200),
    "grouped heads": Case(batch=2, heads=6, kv_heads=2),
    "three query heads to one": Case(heads=3, kv_heads=1, queries=50, keys=50),
    "as many kv heads": Case(heads=3, kv_heads=3, queries=40, keys=40),
    "tensors as a model hands them over": Case(batch=2, heads=4, kv_heads=2, transposed=True),
    "window": Case(mask="window", queries=150, keys=150),
    "left padding": Case(batch=3, mask="padding", shared=False),
    "packed": Case(mask="packed", queries=100, keys=100),
    "intervals anywhere": Case(batch=2, mask="random", queries=60, keys=90),
    "not causal": Case(mask="all", queries=40, keys=75),
    "holes": Case(batch=2, keep=True),
    "holes shared": Case(batch=2, keep=True, shared=True),
    "bias": Case(batch=2, heads=4, kv_heads=2, bias="full"),
    "bias of a key": Case(batch=2, heads=4, kv_heads=2, bias="row", shared=True),
    "softcap": Case(softcap=2.5),
    "softcap large": Case(softcap=50.0),
    "sinks": Case(heads=4, kv_heads=2, sinks=True),
    "everything": Case(
        batch=2,
        heads=4,
        kv_heads=2,
        mask="random",
        keep=True,
        bias="full",
        softcap=5.0,
        sinks=True,
        layout="interleaved",
        queries=45,
    ),
    "regions interleaved": Case(layout="interleaved", regions=7),
    "regions over tiles": Case(layout="blocks", regions=3, queries=260, keys=260, heads=1),
    "twenty regions": Case(regions=20, layout="interleaved"),
    "hundred regions": Case(batch=2, regions=100, layout="interleaved", sinks=True),
    "no regions": Case(regions=0),
    "decode": Case(batch=2, heads=8, kv_heads=2, queries=1, keys=130, mask="causal"),
    "continued": Case(queries=20, keys=130),
    "bfloat16": Case(dtype="bfloat16", heads=4, kv_heads=2),
    "bfloat16, everything": Case(
        dtype="bfloat16", mask="random", keep=True, bias="full", softcap=5.0, sinks=True, layout="interleaved"
    ),
    "float16": Case(dtype="float16", heads=4, kv_heads=2),
    "narrow values": Case(d_head=24, d_value=10),
    "wide values": Case(d_head=20, d_value=72, queries=40, keys=40),
    "wide heads": Case(d_head=300, d_value=130, queries=24, keys=40),
    "tiny heads": Case(d_head=3, d_value=1),
    "without values": Case(value=False),
    "mass alone": Case(want=("mass",)),
    "entropy alone": Case(want=("entropy",)),
    "argmax alone": Case(want=("argmax",)),
    "self alone": Case(want=("self",), mask="random"),
    "distance alone": Case(want=("distance",)),
    "sink alone": Case(want=("sink",), sinks=True, mask="random"),
    "output alone": Case(want=()),
}
BESIDE = {
    "plain causal": CASES["plain causal"],
    "grouped heads": CASES["grouped heads"],
    "left padding": CASES["left padding"],
    "everything": CASES["everything"],
    "hundred regions": CASES["hundred regions"],
    "bfloat16": CASES["bfloat16"],
    "decode": CASES["decode"],
    "chosen rows": Case(batch=2, heads=4, kv_heads=2, rows=(69, 0, 33), sinks=True),
    "chosen rows, everything": Case(
        batch=2,
        heads=4,
        kv_heads=2,
        mask="random",
        keep=True,
        bias="full",
        softcap=5.0,
        rows=(5, 44, 44, 2, 10),
        layout="interleaved",
        queries=45,
    ),
    "chosen rows, bias of a key": Case(batch=2, heads=4, kv_heads=2, bias="row", shared=True, rows=(60, 2)),
    "received alone": Case(batch=2, heads=4, kv_heads=2, mask="window", queries=150, keys=150, want=()),
    "sink alone": CASES["sink alone"],
}


def make(case: Case, seed: int) -> dict[str, Any]:
    """Random arguments of one call."""
    g = torch.Generator().manual_seed(seed)

    def normal(*shape: int) -> torch.Tensor:
        return torch.randn(*shape, generator=g)

    dtype = getattr(torch, case.dtype)
    heads = {
        "q": (case.heads, case.queries, case.d_head),
        "k": (case.kv_heads, case.keys, case.d_head),
        "v": (case.kv_heads, case.keys, case.d_value),
    }
    args: dict[str, Any] = {}
    for name, (h, n, d) in heads.items():
        x = normal(case.batch, n, h, d).transpose(1, 2) if case.transposed else normal(case.batch, h, n, d)
        args[name] = (x * (3.0 if name == "q" else 1.0)).to(dtype)
    if not case.value:
        args["v"] = None
    own = torch.arange(case.queries) + case.keys - case.queries
    low, high = torch.zeros_like(own), own + 1
    low, high = low[None], high[None]
    if case.mask == "window":
        low = (own[None] - 20).clamp_min(0)
    elif case.mask == "padding":  # a sequence without padding, one with some, one with nothing but padding
        lead = torch.tensor([0, 17, case.keys])[: case.batch, None]
        low = torch.minimum(lead.expand(-1, case.queries), high)
        high = high.expand(case.batch, -1)
    elif case.mask == "packed":
        starts = torch.tensor([0, 31, 64])
        low = starts[torch.searchsorted(starts, own, right=True) - 1][None]
    elif case.mask == "all":
        high = torch.full_like(high, case.keys)
    elif case.mask == "random":
        ends = torch.randint(0, case.keys + 1, (2, case.batch, case.queries), generator=g)
        low, high = ends.amin(0), ends.amax(0)
        low[:, :4] = high[:, :4]
    args["low"], args["high"] = low.int(), high.int()
    square = (1 if case.shared else case.batch, 1 if case.shared else case.heads, case.queries, case.keys)
    if case.keep:
        args["keep"] = torch.rand(square, generator=g) > 0.3
        args["keep"][:, :, 10] = False  # a row that the interval shows keys and the holes hide
    if case.bias:
        bias = normal(*square) if case.bias == "full" else normal(square[0], square[1], 1, case.keys)
        args["bias"] = bias.masked_fill(torch.rand(bias.shape, generator=g) < 0.1, float("-inf"))
    args["softcap"] = case.softcap
    if case.sinks:
        args["sinks"] = 4 * normal(case.heads)
    if case.regions:
        n = 1 if case.shared else case.batch
        if case.layout == "interleaved":
            labels = torch.randint(-1, case.regions, (n, case.keys), generator=g)
        else:  # long stretches, the last of them in no region
            labels = (torch.arange(case.keys) * (case.regions + 1) // case.keys).expand(n, -1).clone()
            labels[labels == case.regions] = -1
        args["labels"], args["n_regions"] = labels.int(), case.regions
    args["scale"] = case.d_head**-0.5
    return args


def oracle(args: dict[str, Any]) -> dict[str, torch.Tensor]:
    """Weights in float64 by the definition, and every statistic from them."""
    q, k = args["q"].double(), args["k"].double()
    batch, heads, n_queries, _ = q.shape
    n_keys, groups = k.shape[2], heads // k.shape[1]
    s = args["scale"] * q @ k.repeat_interleave(groups, 1).mT
    if args["softcap"] is not None:
        s = args["softcap"] * torch.tanh(s / args["softcap"])
    index = torch.arange(n_keys)
    seen = ((index >= args["low"][..., None]) & (index < args["high"][..., None]))[:, None]
    seen = seen.expand(batch, heads, n_queries, n_keys)
    if "keep" in args:
        seen = seen & args["keep"]
    if "bias" in args:
        s = s + args["bias"].double()
    s = s.masked_fill(~seen, float("-inf"))
    some = (s > float("-inf")).any(-1)
    total = torch.logsumexp(s, -1)
    if "sinks" in args:
        total = torch.logaddexp(total, args["sinks"].double()[None, :, None])
    total = total.masked_fill(~some, float("-inf"))
    p = torch.exp(s - total.masked_fill(~some, 0.0)[..., None])
    best = p.max(-1)
    own = torch.arange(n_queries) + n_keys - n_queries
    share = p.sum(-1)
    stats = {
        "entropy": torch.special.entr(p).sum(-1),
        "lse": total,
        "max": best.values,
        "argmax": best.indices.masked_fill(~some, -1),
        "distance": (own - (p @ index.double()) / share).masked_fill(~some, 0.0),
        "self": p.gather(-1, own.view(1, 1, -1, 1).expand(batch, heads, -1, 1))[..., 0],
        "sink": (1 - share).masked_fill(~some, 0.0),
        "weights": p,
    }
    one_hot = (
        (args["labels"][..., None] == torch.arange(args["n_regions"])).double()
        if "labels" in args
        else torch.zeros(1, n_keys, 0).double()
    )
    stats["mass"] = p @ one_hot[:, None]
    if args["v"] is not None:
        stats["output"] = (p @ args["v"].double().repeat_interleave(groups, 1)).transpose(1, 2)
    return stats


def errors(got: dict[str, torch.Tensor], want: dict[str, torch.Tensor]) -> dict[str, float]:
    """Largest deviation of each statistic; infinity for a shape, a dtype, or an infinity that differs."""
    out = {}
    for name, x in got.items():
        y = want[name]
        wrong_type = name != "output" and x.dtype != (torch.int64 if name == "argmax" else torch.float32)
        if x.shape != y.shape or wrong_type or bool(x.isnan().any()):
            out[name] = float("inf")
        elif name == "argmax":
            # Rounding may turn a near tie: the weight at our key must be the largest, and −1 must stand where −1 belongs.
            ours = want["weights"].gather(-1, x.clamp_min(0)[..., None])[..., 0]
            gap = (want["max"] - ours).masked_fill(y < 0, 0.0)
            out[name] = float("inf") if bool(((x < 0) != (y < 0)).any()) else float(gap.max())
        else:
            same = (x == y) | ((x - y).abs() < float("inf"))
            gap = torch.where(x == y, torch.zeros_like(y), (x.double() - y).abs())
            out[name] = float(gap.max()) if bool(same.all()) and x.numel() else (0.0 if not x.numel() else float("inf"))
    return out


def interpret() -> dict[str, Any]:
    """Every case, computed in the interpreter."""
    answers: dict[str, Any] = {"attend": {}, "beside": {}}
    for i, (name, case) in enumerate(CASES.items()):
        args = make(case, i)
        want = oracle(args)
        output, stats = _triton.attend(**args, want=set(case.want))
        got = stats | ({} if output is None else {"output": output})
        dtype = None if output is None else str(output.dtype).removeprefix("torch.")
        answers["attend"][name] = {"errors": errors(got, want), "names": sorted(got), "dtype": dtype}
    for i, (name, case) in enumerate(BESIDE.items()):
        args = make(case, 100 + i)
        want = oracle(args)
        lse = want["lse"].float()
        blind = lse == float("-inf")  # kernels in the field name such rows in each of these ways
        lse[blind] = torch.tensor([float("-inf"), float("inf"), float("nan")]).repeat(blind.sum())[: int(blind.sum())]
        del args["v"]
        args.pop("sinks", None)  # inside the log-sum-exp
        rows = None if case.rows is None else torch.tensor(case.rows)
        stats = _triton.stats_from_lse(**args, lse=lse, rows=rows, want={*case.want, "received"})
        if rows is not None:
            want = {n: x[:, :, rows] for n, x in want.items() if n != "output"}
        want["received"] = want["weights"].sum(2)
        answers["beside"][name] = {"errors": errors(stats, want), "names": sorted(stats)}
    # A row whose log-sum-exp says that it saw nothing counts nowhere, whatever its interval.
    args = make(Case(), 7)
    seen = oracle(args)
    lse = seen["lse"].float()
    lse[:, :, 5] = float("nan")
    del args["v"]
    stats = _triton.stats_from_lse(**args, lse=lse, want={"mass", "entropy", "sink", "received"})
    expected = seen["weights"].sum(2) - seen["weights"][:, :, 5]
    answers["blind"] = {name: float(stats[name][:, :, 5].abs().max()) for name in ("mass", "entropy", "sink")}
    answers["blind"]["received"] = float((stats["received"] - expected).abs().max())
    # Equal scores: the first key is the one that is named, also where later tiles hold the same score.
    same = {"q": torch.zeros(1, 1, 150, 16), "k": torch.ones(1, 1, 150, 16), "v": None, "scale": 1.0}
    ends = {"low": torch.full((1, 150), 7, dtype=torch.int32), "high": torch.full((1, 150), 150, dtype=torch.int32)}
    answers["ties"] = _triton.attend(**same, **ends, want={"argmax"})[1]["argmax"].unique().tolist()
    # What must be refused, on tensors that the interpreter would otherwise read.
    good = make(Case(), 0)
    bad = {
        "statistic": {"want": {"mass", "variance"}},
        "dtype": {"q": good["q"].double()},
        "mixed dtypes": {"k": good["k"].half()},
        "d_head": {"k": good["k"][..., :8]},
        "heads": {"q": good["q"].repeat(1, 2, 1, 1)[:, :3], "k": good["k"].repeat(1, 2, 1, 1), "v": good["v"].repeat(1, 2, 1, 1)},
        "values": {"v": good["v"][:, :, 1:]},
        "interval": {"low": good["low"][:, 1:]},
        "labels": {"labels": good["labels"][:, 1:]},
        "no labels": {"labels": None},
        "sinks": {"sinks": torch.zeros(5)},
        "bias": {"bias": torch.zeros(1, 1, 70, 69)},
        "softcap": {"softcap": 0.0},
        "gradient": {"q": good["q"].clone().requires_grad_()},
        "empty": {"k": good["k"][:, :, :0], "v": good["v"][:, :, :0]},
    }
    answers["refused"] = []
    for name, change in bad.items():
        with contextlib.suppress(AttentionError):
            _triton.attend(**(good | change))
            continue
        answers["refused"].append(name)
    for name, rows in {"rows": [70], "rows before": [-1], "no rows": []}.items():
        bad[name] = {}
        with contextlib.suppress(AttentionError):
            _triton.stats_from_lse(**args, lse=lse, rows=torch.tensor(rows, dtype=torch.long))
            continue
        answers["refused"].append(name)
    answers["bad"] = list(bad)
    return answers


COMPILED = {
    # capability, call beside a known log-sum-exp, case
    "sm_90 bfloat16, everything": (
        90,
        False,
        Case(dtype="bfloat16", heads=4, d_head=128, d_value=128, keep=True, bias="full", softcap=5.0, sinks=True),
    ),
    "sm_80 float16, output and masses": (80, False, Case(dtype="float16", d_head=64, d_value=64, want=("mass", "entropy"))),
    "sm_90 float32, beside": (90, True, Case(d_head=64)),
}


class Compiler:
    """Stands in for a kernel: takes the launch that the backend makes and compiles it, for a device that need not be there."""

    def __init__(self, kernel: Any, capability: int, done: list[dict[str, Any]]) -> None:
        self.kernel, self.capability, self.done = kernel, capability, done

    def __getitem__(self, grid: tuple[int, ...]) -> Any:
        return self.launch

    def launch(self, *args: Any, num_warps: int, num_stages: int, **constants: Any) -> None:
        import triton
        from triton.backends.compiler import GPUTarget
        from triton.compiler import ASTSource

        types = {"bfloat16": "*bf16", "float16": "*fp16", "float32": "*fp32", "int32": "*i32", "int64": "*i64", "uint8": "*u8"}
        names = self.kernel.arg_names
        signature, fixed, aligned = {}, {}, {}
        for i, (name, x) in enumerate(zip(names, (*args, *constants.values()), strict=True)):
            if i >= len(args):
                assert list(constants)[i - len(args)] == name
            if i >= len(args) or x is None or (isinstance(x, int) and x == 1):  # as triton's own launcher specialises them
                signature[name], fixed[name] = "constexpr", x
                continue
            signature[name] = (
                types[str(x.dtype).removeprefix("torch.")]
                if isinstance(x, torch.Tensor)
                else "i32"
                if isinstance(x, int)
                else "fp32"
            )
            if isinstance(x, torch.Tensor) or (isinstance(x, int) and x % 16 == 0):
                aligned[(i,)] = [["tt.divisibility", 16]]
        built = triton.compile(
            ASTSource(self.kernel, signature, fixed, aligned),
            target=GPUTarget("cuda", self.capability, 32),
            options={"num_warps": num_warps, "num_stages": num_stages},
        )
        self.done.append(
            {
                "ptx": built.asm["ptx"][:2000],
                "mma": built.asm["ptx"].count("mma"),
                "cubin": built.asm["cubin"][:4].hex(),
                "shared": built.metadata.shared,
            }
        )


def compiled() -> dict[str, Any]:
    """What the compiler made of each of ``COMPILED``."""
    from symbolic_residue.instrument.attention import _triton_kernels as kernels

    answers = {}
    for name, (capability, beside, case) in COMPILED.items():
        done: list[dict[str, Any]] = []
        both = {n: Compiler(getattr(kernels, n), capability, done) for n in ("attend_kernel", "received_kernel")}
        stand_in = SimpleNamespace(MIXED=kernels.MIXED, OutOfResources=kernels.OutOfResources, **both)
        _triton._kernels = lambda stand_in=stand_in: stand_in  # type: ignore[assignment, return-value]
        _triton_call._check = lambda *_: None  # the tensors are not on a device
        args = make(case, 0)
        if beside:
            del args["v"]
            _triton.stats_from_lse(**args, lse=torch.zeros(case.batch, case.heads, case.queries), want={*case.want, "received"})
        else:
            _triton.attend(**args, want=set(case.want))
        answers[name] = done
    return answers


def ask(mode: str, interpret: bool, cache: Path) -> dict[str, Any]:
    """This file's answer in a process of its own, with triton in or out of its interpreter."""
    env = os.environ | {"TRITON_INTERPRET": "1" if interpret else "0", "TRITON_CACHE_DIR": str(cache), "OMP_NUM_THREADS": "1"}
    env["TRITON_DEFAULT_FP_FUSION"] = "1"  # what the kernels were measured with; 3.9 warns where it is left open
    env["PYTHONPATH"] = os.pathsep.join(p for p in sys.path if p)
    run = subprocess.run(
        [sys.executable, "-W", "error", __file__, mode], env=env, capture_output=True, text=True, timeout=300, check=False
    )
    assert run.returncode == 0, run.stderr[-4000:]
    return json.loads(run.stdout)


@pytest.fixture(scope="module")
def answers(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    return ask("interpret", True, tmp_path_factory.mktemp("triton"))


def judge(answer: dict[str, Any], dtype: str) -> None:
    for name, error in answer["errors"].items():
        assert error <= (OUTPUT[dtype] if name == "output" else TOLERANCE[name]), (name, error)


@needs_triton
@pytest.mark.parametrize("name", CASES)
def test_attend_equals_the_oracle(answers: dict[str, Any], name: str) -> None:
    case, answer = CASES[name], answers["attend"][name]
    assert answer["names"] == sorted([*case.want, *(["output"] if case.value else [])])
    assert answer["dtype"] == (case.dtype if case.value else None)
    judge(answer, case.dtype)


@needs_triton
@pytest.mark.parametrize("name", BESIDE)
def test_statistics_from_the_log_sum_exp_equal_the_oracle(answers: dict[str, Any], name: str) -> None:
    answer = answers["beside"][name]
    assert answer["names"] == sorted({*BESIDE[name].want, "received"})
    judge(answer, BESIDE[name].dtype)


@needs_triton
def test_rows_that_saw_nothing_count_nowhere(answers: dict[str, Any]) -> None:
    assert answers["blind"].pop("received") <= TOLERANCE["received"]
    assert answers["blind"] == {"mass": 0.0, "entropy": 0.0, "sink": 0.0}


@needs_triton
def test_first_of_equal_keys_is_named(answers: dict[str, Any]) -> None:
    assert answers["ties"] == [7]


@needs_triton
def test_unfit_arguments_are_refused(answers: dict[str, Any]) -> None:
    assert answers["refused"] == answers["bad"]


@needs_triton
def test_kernels_compile_for_devices(tmp_path: Path) -> None:
    made = ask("compile", False, tmp_path)
    for name, (capability, beside, case) in COMPILED.items():
        assert len(made[name]) == (2 if beside else 1)
        for kernel in made[name]:
            assert f".target sm_{capability}" in kernel["ptx"]
            assert kernel["cubin"] == b"\x7fELF".hex()
            assert kernel["shared"] <= 99 * 1024
        if case.dtype != "float32":
            assert made[name][0]["mma"] > 0  # on the tensor cores


def test_absence_is_explained(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("TRITON_INTERPRET", raising=False)
    monkeypatch.setattr(_triton.importlib.util, "find_spec", lambda name: None)
    assert not _triton.available()
    q, ends = torch.zeros(1, 1, 4, 16), torch.zeros(1, 4, dtype=torch.int32)
    with pytest.raises(AttentionError) as caught:
        _triton.attend(q, q, q, 1.0, ends, ends + 1)
    assert "not installed" in caught.value.why
    assert "pip install 'triton" in caught.value.todo


def test_old_triton_and_missing_device_are_explained(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("TRITON_INTERPRET", raising=False)
    monkeypatch.setattr(_triton.importlib.util, "find_spec", lambda name: object())
    monkeypatch.setattr(_triton.importlib.metadata, "version", lambda name: "3.1.0")
    assert "3.1" in _triton.why()
    monkeypatch.setattr(_triton.importlib.metadata, "version", lambda name: "3.10.0")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.version, "hip", None)
    assert _triton.why() == "There is no CUDA device."
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda: (7, 5))
    assert "7.5" in _triton.why()
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda: (8, 0))
    assert _triton.available()


if __name__ == "__main__":
    print(json.dumps({"interpret": interpret, "compile": compiled}[sys.argv[1]]()))
