"""Readouts of long sequences make no T×T tensor: peak memory, measured by the kernel in a process of its own, for every backend."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tiny_models import build, tiny_tokenizer
from torch import Tensor

from symbolic_residue.instrument import AttentionRead, Instrument
from symbolic_residue.instrument.attention import _blocks, _native
from symbolic_residue.models import wrap
from symbolic_residue.prompts import Regions

SCRIPT = """
import sys
from pathlib import Path
family, backend, n, changes = sys.argv[2], sys.argv[3], int(sys.argv[4]), eval(sys.argv[5])
sys.path.insert(0, sys.argv[1])
import numpy as np, torch
from tiny_models import build, tiny_tokenizer
from symbolic_residue.instrument import AttentionRead, Instrument
from symbolic_residue.models import wrap
from symbolic_residue.prompts import Regions

def kilobytes(name):
    return next(int(l.split()[1]) for l in Path("/proc/self/status").read_text().splitlines() if l.startswith(name + ":"))

torch.set_num_threads(2)
model = build(family, max_position_embeddings=n, **changes)
stats = ("mass", "entropy", "distance", "max", "argmax")
def read(length):
    ids = torch.randint(5, 300, (1, length), generator=torch.Generator().manual_seed(0))
    if backend == "plain":
        with torch.no_grad():
            return model(input_ids=ids, attention_mask=torch.ones_like(ids), use_cache=False, logits_to_keep=1)
    regions = Regions(("sink", "rest"), np.array([0] + [1] * (length - 1)))
    instrument = Instrument(wrap(model, tiny_tokenizer()), backend=backend, mode="observe" if backend == "torch" else "replace")
    table = instrument.run(ids, attention=AttentionRead(regions=regions, stats=stats), keep_logits=1).attention
    assert table.backend == backend, table.backend
    assert float((table["mass"].sum(-1) - 1).abs().max()) < 1e-4
read(64)
Path("/proc/self/clear_refs").write_text("5")
before = kilobytes("VmRSS")
read(n)
print((kilobytes("VmHWM") - before) / 1024)
"""

pytestmark = pytest.mark.scale
linux = pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="peak memory is read from Linux's /proc")
native = pytest.param("native", marks=pytest.mark.skipif(not _native.available(), reason=f"no native kernel: {_native.why()}"))


def peak(family: str, backend: str, n: int, **changes: object) -> float:
    """Peak memory above the loaded model, in MB."""
    helpers = str(Path(__file__).parent.parent / "unit")
    arguments = [helpers, family, backend, str(n), repr(changes)]
    environment = os.environ
    if (
        changes
    ):  # the mask is made of pieces that glibc may or may not lay together: let each come from the kernel and go back to it
        environment = environment | {"MALLOC_MMAP_THRESHOLD_": str(2**20)}
    done = subprocess.run([sys.executable, "-c", SCRIPT, *arguments], capture_output=True, text=True, check=False, env=environment)
    assert done.returncode == 0, done.stderr
    return float(done.stdout)


@linux
@pytest.mark.parametrize("backend", [native, "torch", "blocks"])
def test_sixteen_thousand_tokens_without_the_matrix(backend: str) -> None:
    n = 16_384
    one_matrix = n * n * 4 / 2**20  # MB, one head in float32
    assert peak("llama", backend, n) < 0.5 * one_matrix


@linux
@pytest.mark.parametrize("backend", [native, "blocks"])
def test_a_window_read_needs_less_memory_than_the_plain_forward(backend: str) -> None:
    """The plain forward turns its window's mask into numbers, [query, key] of them; a readout that replaces it needs no more than the mask."""
    plain = peak("mistral", "plain", 8_192, sliding_window=256)
    assert peak("mistral", backend, 8_192, sliding_window=256) < 0.75 * plain


def test_blocks_crop_the_keys_to_the_window(monkeypatch: pytest.MonkeyPatch) -> None:
    n, window = 8_192, 256
    widths = []
    reduce = _blocks.reduce_weights

    def watched(p: Tensor, *rest: Any) -> dict[str, Tensor]:
        widths.append(p.shape[-1])
        return reduce(p, *rest)

    monkeypatch.setattr(_blocks, "reduce_weights", watched)
    model = build("mistral", max_position_embeddings=n, sliding_window=window)
    instrument = Instrument(wrap(model, tiny_tokenizer()), backend="blocks", mode="replace")
    regions = Regions(("sink", "rest"), np.array([0] + [1] * (n - 1)))
    ids = torch.randint(5, 300, (1, n), generator=torch.Generator().manual_seed(0))
    table = instrument.run(ids, attention=AttentionRead(regions=regions), keep_logits=1).attention
    assert table is not None
    assert table.backend == "blocks"
    assert len(widths) == 2 * n / _blocks.BLOCK
    assert max(widths) == window + _blocks.BLOCK - 1
    sink = table.mass("sink")
    assert bool((sink[..., window:] == 0).all())
    assert bool((sink[..., :window] > 0).any())
    torch.testing.assert_close(table["mass"].sum(-1), torch.ones_like(sink), atol=1e-5, rtol=0)
