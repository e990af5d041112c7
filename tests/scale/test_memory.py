"""Readouts of long sequences make no T×T tensor: peak memory, measured by the kernel in a process of its own."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = """
import sys
from pathlib import Path
sys.path.insert(0, sys.argv[2])
import numpy as np, torch
from tiny_models import build, tiny_tokenizer
from symbolic_residue.instrument import AttentionRead, Instrument
from symbolic_residue.models import wrap
from symbolic_residue.prompts import Regions

def kilobytes(name):
    return next(int(l.split()[1]) for l in Path("/proc/self/status").read_text().splitlines() if l.startswith(name + ":"))

n = int(sys.argv[1])
instrument = Instrument(wrap(build("llama", max_position_embeddings=n), tiny_tokenizer()))
stats = ("mass", "entropy", "distance", "max", "argmax")
def read(length):
    regions = Regions(("sink", "rest"), np.array([0] + [1] * (length - 1)))
    return instrument.run(torch.zeros(1, length, dtype=torch.long), attention=AttentionRead(regions=regions, stats=stats), keep_logits=1)
read(64)
Path("/proc/self/clear_refs").write_text("5")
before = kilobytes("VmRSS")
table = read(n).attention
assert table.backend in ("native", "torch"), table.backend
print((kilobytes("VmHWM") - before) / 1024)
"""


@pytest.mark.scale
@pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="peak memory is read from Linux's /proc")
def test_sixteen_thousand_tokens_without_the_matrix() -> None:
    n = 16_384
    helpers = str(Path(__file__).parent.parent / "unit")
    done = subprocess.run([sys.executable, "-c", SCRIPT, str(n), helpers], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    one_matrix = n * n * 4 / 2**20  # MB, one head in float32
    assert float(done.stdout) < 0.5 * one_matrix
