"""The native kernel: attention output and readouts in one pass, compiled on this computer at first use (CPU, float32).

1. ``native.cpp`` beside this file is plain C++17 with a C interface (its head says how it computes). The first call compiles it, in a second or two, with the
   compiler that ``CXX`` names, else the first of ``c++ g++ clang++`` that builds it. Nothing is compiled on import.
2. The library is kept in the cache (``native/KEY.so``); KEY is the sha256 of source, flags, compiler version and the processor's features, so a library
   never runs on a processor it was not made for. It is built beside its place under a file lock and renamed; its own sha256 stands next to it and is
   compared before it is loaded, because loading a damaged library can end the process. A damaged one is built again.
3. Tensors are passed by address and strides; queries, keys and values as transformers hands them over are not copied.
   Threads are OpenMP's, as many as torch uses.
4. Where there is no compiler, or ``RESIDUE_NATIVE=0`` is set, ``available()`` is false and ``why()`` says the reason. Only ``attend`` raises.

Online softmax: Milakov & Gimelshein 2018 (arXiv:1805.02867); tiles: Dao et al. 2022 (arXiv:2205.14135).
"""

from __future__ import annotations

import ctypes
import functools
import hashlib
import os
import platform
import shlex
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

import torch
from filelock import FileLock
from torch import Tensor

from symbolic_residue.errors import AttentionError
from symbolic_residue.models._cache import cache_dir

__all__ = ["STATISTICS", "attend", "available", "why"]

SOURCE = Path(__file__).with_name("native.cpp")
FLAGS = ("-std=c++17", "-O3", "-march=native", "-fno-math-errno", "-fno-trapping-math", "-fopenmp", "-shared", "-fPIC")
COMPILERS = ("c++", "g++", "clang++")
BUILD_SECONDS = 180
STATISTICS = frozenset({"mass", "entropy", "lse", "max", "argmax", "distance", "self", "sink"})
TODO = "Install a C++ compiler with OpenMP (g++), or ask for another backend."

_INTEGERS = "batch heads kv_heads queries keys d_head d_value regions threads flags"
_FIELDS: list[tuple[str, type]] = [
    *((name, ctypes.c_int64) for name in _INTEGERS.split()),
    *((name, ctypes.c_void_p) for name in ["q", "k", "v"]),
    *((f"{name}_{axis}", ctypes.c_int64) for name in "qkv" for axis in ("batch", "head", "row")),
    *((name, ctypes.c_void_p) for name in ("low", "high")),
    ("bounds_batch", ctypes.c_int64),
    ("keep", ctypes.c_void_p),
    *((f"keep_{axis}", ctypes.c_int64) for axis in ("batch", "head", "row")),
    ("bias", ctypes.c_void_p),
    *((f"bias_{axis}", ctypes.c_int64) for axis in ("batch", "head", "row")),
    *((name, ctypes.c_void_p) for name in ("sinks", "labels")),
    ("labels_batch", ctypes.c_int64),
    *((name, ctypes.c_double) for name in ("scale", "softcap")),
    *((name, ctypes.c_void_p) for name in ["out", "mass", "entropy", "lse", "max", "distance", "self", "sink", "argmax"]),
]


class _Call(ctypes.Structure):
    """Mirror of ``struct Call``."""

    _fields_ = _FIELDS


def available() -> bool:
    """Whether the kernel can be used; compiles it when asked for the first time."""
    return not why()


def why() -> str:
    """Why the kernel cannot be used; empty when it can."""
    if os.environ.get("RESIDUE_NATIVE", "").strip() == "0":
        return "RESIDUE_NATIVE=0 turns the native kernel off."
    library = _library()
    return library if isinstance(library, str) else ""


@functools.cache
def _library() -> ctypes.CDLL | str:
    """The loaded library, or the reason why there is none. Asked once in a process."""
    if os.name != "posix":
        return f"The native kernel is not offered on {platform.system()}."
    try:
        named = shlex.split(os.environ.get("CXX", ""))
    except ValueError as error:
        return f"The environment variable CXX ({os.environ['CXX']}) is no command: {error}."
    commands = [named] if named else [[name] for name in COMPILERS if shutil.which(name)]
    if not commands:
        return f"There is no C++ compiler: CXX is not set, and none of {', '.join(COMPILERS)} is on the PATH."
    reason = ""
    for command in commands:
        try:
            return _load(_built(command))
        except (OSError, subprocess.SubprocessError, AttributeError) as error:
            reason = reason or f"{shlex.join(command)} could not build the native kernel: {_short(error)}"
    return reason


def _short(error: Exception) -> str:
    """The line of an error that says the most."""
    said = getattr(error, "stderr", None)
    lines = [line.strip() for line in said.splitlines() if line.strip()] if isinstance(said, str) else []
    return next((line for line in lines if "error" in line.lower()), lines[0] if lines else str(error))


def _built(command: list[str]) -> Path:
    """The library that this compiler makes of the source: from the cache, or built now."""
    version = _run([*command, "--version"]).stdout
    source = SOURCE.read_bytes()
    key = hashlib.sha256(
        "\n".join((shlex.join(command), version, shlex.join(FLAGS), _processor(), "")).encode() + source
    ).hexdigest()
    folder = cache_dir() / "native"
    path = folder / f"{key}.so"
    if _whole(path):
        return path
    folder.mkdir(parents=True, exist_ok=True)
    with FileLock(folder / f".{key}.lock"):
        if _whole(path):  # another process was faster
            return path
        with tempfile.TemporaryDirectory(prefix=f".{key}.tmp-", dir=folder) as temporary:
            made, record = Path(temporary, "native.so"), Path(temporary, "sha256")
            _run([*command, *FLAGS, str(SOURCE), "-o", str(made)])
            record.write_text(hashlib.sha256(made.read_bytes()).hexdigest(), encoding="ascii")
            made.replace(path)
            record.replace(_record(path))
    return path


def _run(command: list[str]) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        command,
        check=True,
        capture_output=True,
        encoding="utf-8",
        errors="replace",
        timeout=BUILD_SECONDS,
        env={**os.environ, "LC_ALL": "C"},
        stdin=subprocess.DEVNULL,
    )


def _record(path: Path) -> Path:
    return path.with_suffix(".sha256")


def _whole(path: Path) -> bool:
    """Whether the library is there and is the one that was built."""
    try:
        return hashlib.sha256(path.read_bytes()).hexdigest() == _record(path).read_text(encoding="ascii")
    except (OSError, UnicodeDecodeError):
        return False


def _processor() -> str:
    """Name and features of the processor, so far as the system tells them."""
    wanted = ("model name", "flags", "Features", "CPU part")
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        lines = []
    found = sorted({line for line in lines if line.split("\t")[0].split(":")[0].strip() in wanted})
    return "\n".join((sys.platform, platform.machine(), platform.processor(), *found))


def _load(path: Path) -> ctypes.CDLL:
    library = ctypes.CDLL(str(path))
    library.residue_attend.argtypes = [ctypes.POINTER(_Call)]
    library.residue_attend.restype = ctypes.c_int
    library.residue_call_bytes.restype = ctypes.c_int64
    if library.residue_call_bytes() != ctypes.sizeof(_Call):
        raise OSError("the library and this module disagree about the layout of a call")
    return library


def _need(ok: bool, what: str, why: str = "") -> None:
    if not ok:
        raise AttentionError(what, why=why, todo="Pass tensors of the shapes and types in the docstring of attend.")


def _check(name: str, x: Tensor, dtype: torch.dtype, *shape: tuple[int, ...]) -> None:
    """Type, place and shape; ``shape`` gives the sizes allowed on each axis."""
    _need(
        x.dtype == dtype and x.device.type == "cpu",
        f"{name} is {x.dtype} on {x.device}; the native kernel takes {dtype} on the CPU.",
    )
    fits = x.dim() == len(shape) and all(size in allowed for size, allowed in zip(x.shape, shape, strict=True))
    _need(fits, f"{name} has the shape {list(x.shape)}; expected {[' or '.join(map(str, sorted(set(a)))) for a in shape]}.")


def _strides(x: Tensor, axes: int) -> tuple[int, ...]:
    """Strides of the first axes, 0 where the axis has one entry and is broadcast."""
    return tuple(0 if size == 1 else step for size, step in zip(x.shape[:axes], x.stride()[:axes], strict=True))


def _last_dense(x: Tensor) -> Tensor:
    """The tensor with its last axis contiguous; copied only where it is not."""
    return x if x.stride(-1) == 1 or x.shape[-1] == 1 else x.contiguous()


def attend(
    q: Tensor,
    k: Tensor,
    v: Tensor | None,
    scale: float,
    low: Tensor,
    high: Tensor,
    *,
    keep: Tensor | None = None,
    bias: Tensor | None = None,
    softcap: float | None = None,
    sinks: Tensor | None = None,
    labels: Tensor | None = None,
    n_regions: int = 0,
    want: frozenset[str] | set[str] = STATISTICS - {"mass"},
) -> tuple[Tensor | None, dict[str, Tensor]]:
    """Attention output and statistics of its weights p_j = exp(s_j − lse), without the query×key matrix.

    s_j = softcap·tanh(scale·q·k_j / softcap) + bias_j over the keys ``low ≤ j < high`` that ``keep`` leaves.

    Args:
        q: float32 [batch, head, query, d_head].
        k: float32 [batch, kv_head, key, d_head]; head h reads kv head ``h // (heads // kv_heads)``.
        v: float32 [batch, kv_head, key, d_value], or None for statistics only.
        scale: factor on q·k.
        low: int32 [batch or 1, query]: first key that the row sees.
        high: int32 [batch or 1, query]: first key after those; ``high ≤ low``: the row sees nothing.
        keep: bool [batch or 1, head or 1, query or 1, key]; False hides the key.
        bias: float32 [batch or 1, head or 1, query or 1, key], added to the scores; -inf (and anything below −1e30) hides the key.
        softcap: applied before bias and masks.
        sinks: float32 [head]: logits of an extra term in the denominator, whose weight goes to no key.
        labels: int32 [batch or 1, key]: region of each key, −1 for none.
        n_regions: number of regions.
        want: which of ``STATISTICS`` to return.

    Returns:
        The output [batch, query, head, d_value] (None without ``v``), and by name, [batch, head, query] float32 unless said otherwise:
        ``mass`` [batch, head, query, region]: summed weight of each region. ``entropy``: −Σ p_j ln p_j over keys, nats (a sink's term is not in it).
        ``lse``: log of the denominator, sink included. ``max``: largest weight. ``argmax`` int64: first key that has it. ``distance``: own position
        minus the mean position of the weights (a sink aside), in keys; row i's own key is ``i + n_keys − n_queries``. ``self``: weight of the own key,
        0 where hidden. ``sink``: 1 − Σ p_j. Rows that see nothing: everything 0, ``lse`` −inf, ``argmax`` −1.

    Raises:
        AttentionError: the kernel is not available (``why()``), a tensor has another shape, type or device than said above, bounds or labels point
            outside the keys or regions, a gradient is asked for, or memory is short.
    """
    if reason := why():
        raise AttentionError("The native attention kernel is not available.", why=reason, todo=TODO)
    library = _library()
    assert not isinstance(library, str)
    _need(q.dim() == 4 and k.dim() == 4, f"q and k have the shapes {list(q.shape)} and {list(k.shape)}; both need four axes.")
    (batch, heads, queries, d_head), (kv_heads, keys) = q.shape, k.shape[1:3]
    _need(min(q.shape) > 0 and min(k.shape) > 0, f"q or k is empty: {list(q.shape)}, {list(k.shape)}.")
    _need(heads % kv_heads == 0, f"{heads} heads cannot share {kv_heads} key/value heads evenly.")
    _check("q", q, torch.float32, (batch,), (heads,), (queries,), (d_head,))
    _check("k", k, torch.float32, (batch,), (kv_heads,), (keys,), (d_head,))
    _check("low", low, torch.int32, (batch, 1), (queries,))
    _check("high", high, torch.int32, (batch, 1), (queries,))
    inputs = [x for x in (q, k, v, bias, sinks) if x is not None]
    if torch.is_grad_enabled() and any(x.requires_grad for x in inputs):
        raise AttentionError(
            "A gradient is asked for.",
            why="The native attention kernel has no backward pass.",
            todo="Run under torch.no_grad(), or ask for another backend.",
        )
    wrong = set(want) - STATISTICS
    _need(not wrong, f"Unknown statistics: {', '.join(sorted(wrong))}.", why=f"There are {', '.join(sorted(STATISTICS))}.")
    _need(softcap is None or softcap > 0, f"softcap is {softcap}; it must be positive.")

    q, k = _last_dense(q), _last_dense(k)
    if low.shape != high.shape:
        low, high = torch.broadcast_tensors(low, high)
    low, high = low.contiguous(), high.contiguous()
    call = _Call(
        batch=batch,
        heads=heads,
        kv_heads=kv_heads,
        queries=queries,
        keys=keys,
        d_head=d_head,
        threads=torch.get_num_threads(),
        flags=("argmax" in want) + 2 * bool({"entropy", "distance"} & set(want)),
        q=q.data_ptr(),
        k=k.data_ptr(),
        low=low.data_ptr(),
        high=high.data_ptr(),
        bounds_batch=_strides(low, 1)[0],
        scale=scale,
        softcap=softcap or 0.0,
    )
    call.q_batch, call.q_head, call.q_row = q.stride()[:3]
    call.k_batch, call.k_head, call.k_row = k.stride()[:3]
    out = None
    if v is not None:
        d_value = v.shape[-1]
        _check("v", v, torch.float32, (batch,), (kv_heads,), (keys,), (max(d_value, 1),))
        v = _last_dense(v)
        call.v, call.d_value = v.data_ptr(), d_value
        call.v_batch, call.v_head, call.v_row = v.stride()[:3]
        out = torch.empty(batch, queries, heads, d_value)
        call.out = out.data_ptr()
    if keep is not None:
        _check("keep", keep, torch.bool, (batch, 1), (heads, 1), (queries, 1), (keys,))
        keep = _last_dense(keep)
        call.keep = keep.data_ptr()
        call.keep_batch, call.keep_head, call.keep_row = _strides(keep, 3)
    if bias is not None:
        _check("bias", bias, torch.float32, (batch, 1), (heads, 1), (queries, 1), (keys,))
        bias = _last_dense(bias)
        call.bias = bias.data_ptr()
        call.bias_batch, call.bias_head, call.bias_row = _strides(bias, 3)
    if sinks is not None:
        _check("sinks", sinks, torch.float32, (heads,))
        sinks = sinks.contiguous()
        call.sinks = sinks.data_ptr()
    statistics: dict[str, Tensor] = {}
    if "mass" in want:
        _need(
            labels is not None and n_regions > 0,
            "Region masses are asked for without regions.",
            why="They need labels and n_regions.",
        )
        assert labels is not None
        _check("labels", labels, torch.int32, (batch, 1), (keys,))
        labels = labels.contiguous()
        call.labels, call.labels_batch, call.regions = labels.data_ptr(), _strides(labels, 1)[0], n_regions
        statistics["mass"] = torch.empty(batch, heads, queries, n_regions)
    for name in sorted(set(want) - {"mass"}):
        statistics[name] = torch.empty(batch, heads, queries, dtype=torch.int64 if name == "argmax" else torch.float32)
    for name, tensor in statistics.items():
        setattr(call, name, tensor.data_ptr())

    status = library.residue_attend(ctypes.byref(call))
    if status == 1:
        size = "the packed keys and values and the working space of the native kernel"
        raise AttentionError(
            "There is not enough memory for attention.", why=f"It is needed for {size}.", todo="Shorten the prompt or the batch."
        )
    _need(status != 2, f"low or high points outside the {keys} keys.")
    _need(status != 3, f"A label is neither −1 nor one of the {n_regions} regions.")
    _need(status == 0, f"The native kernel answered with the unknown status {status}.")
    return out, statistics
