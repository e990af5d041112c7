"""One tool, in its own process and environment: the same numbers of all layers, heads and rows, timed beside the same model's plain SDPA forward.

1. ``readers`` has one function a tool: it loads the model from a local folder and gives a callable that returns, layer by layer, region masses, entropy,
   largest weight and its key, mean attended distance. Each tool is written as its own documentation would have it, with the cheapest reduction found
   (``_common.reduce_pattern``), one layer's pattern alive at a time, and only the last row's logits computed, as in the plain forward.
2. The plain forward and the tool are timed in turn (A B A B …). The numbers go to a file, so that they can be compared.

Run by ``compare.py``: python run_peer.py TOOL FOLDER LENGTH ROUNDS THREADS NUMBERS.npz → one line of JSON.
"""

from __future__ import annotations

import importlib.metadata
import json
import os
import sys
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
os.environ["HF_HUB_OFFLINE"] = "1"
sys.path.insert(0, str(Path(__file__).parent.parent))

import numpy as np
import torch
from _common import random_ids, ratios, reduce_pattern, region_columns, region_labels

Layers = list[dict[str, torch.Tensor]]
KEPT = ("mass", "entropy", "distance", "max")


def load(folder: str, implementation: str) -> Any:
    """The plain transformers model."""
    from transformers import AutoModelForCausalLM

    return AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32, attn_implementation=implementation).eval()


def call_of(ids: torch.Tensor) -> dict[str, Any]:
    return {"attention_mask": torch.ones_like(ids), "use_cache": False, "logits_to_keep": 1}


def residue(folder: str, ids: torch.Tensor) -> tuple[Callable[[], Layers], str]:
    from symbolic_residue.instrument import AttentionRead, Instrument
    from symbolic_residue.models import load_model
    from symbolic_residue.prompts import Regions

    instrument = Instrument(load_model(folder))
    regions = Regions(tuple(map(str, range(8))), np.array(region_labels(ids.shape[1])))
    read = AttentionRead(regions=regions, stats=("mass", "entropy", "distance", "max", "argmax"))

    def run() -> Layers:
        table = instrument.run(ids, attention=read, keep_logits=1).attention
        assert table is not None
        run.ran = f"{table.backend}, {table.mode}"  # type: ignore[attr-defined]
        return [{name: table[name][layer] for name in read.stats} for layer in range(len(table.layers))]

    run()
    return run, run.ran  # type: ignore[attr-defined]


def transformers_hook(folder: str, ids: torch.Tensor) -> tuple[Callable[[], Layers], str]:
    model, columns, found = load(folder, "eager"), region_columns(ids.shape[1]), []
    for layer in model.model.layers:
        layer.self_attn.register_forward_hook(lambda m, a, out: found.append(reduce_pattern(out[1], columns)))

    def run() -> Layers:
        found.clear()
        with torch.no_grad():
            model(input_ids=ids, **call_of(ids))
        return list(found)

    return run, "eager, forward hook on each attention module"


def transformer_lens(folder: str, ids: torch.Tensor) -> tuple[Callable[[], Layers], str]:
    from transformer_lens.model_bridge import TransformerBridge

    bridge, columns = TransformerBridge.boot_transformers(folder, device="cpu", dtype=torch.float32), region_columns(ids.shape[1])

    def run() -> Layers:
        found: Layers = []

        def reduce(pattern: torch.Tensor, hook: Any) -> None:
            found.append(reduce_pattern(pattern, columns))

        with torch.no_grad():
            bridge.run_with_hooks(ids, fwd_hooks=[(lambda name: name.endswith("hook_pattern"), reduce)], **call_of(ids))
        return found

    return run, "TransformerBridge, run_with_hooks on hook_pattern"


def nnsight(folder: str, ids: torch.Tensor) -> tuple[Callable[[], Layers], str]:
    from nnsight import LanguageModel

    model = LanguageModel(folder, attn_implementation="eager", dtype=torch.float32, dispatch=True)
    columns, n_layers = region_columns(ids.shape[1]), len(model.model.layers)

    def run() -> Layers:
        with torch.no_grad(), model.trace(ids, **call_of(ids)):
            found = list().save()  # noqa: C408 (nnsight's own way of keeping values)
            for i in range(n_layers):
                found.append(reduce_pattern(model.model.layers[i].self_attn.output[1], columns))
        return list(found)

    return run, "trace, eager, output of each attention module"


READERS = {"residue": residue, "transformers": transformers_hook, "transformer-lens": transformer_lens, "nnsight": nnsight}
PACKAGE = {"residue": "symbolic-residue"}


def main() -> None:
    tool, folder, length, rounds, threads, numbers = sys.argv[1:]
    warnings.filterwarnings("ignore")
    torch.set_num_threads(int(threads))
    ids = random_ids(int(length))
    run, how = READERS[tool](folder, ids)
    layers = run()
    values = {name: torch.stack([layer[name] for layer in layers]).float().numpy() for name in KEPT}
    if values["entropy"].ndim != 4 or not np.isfinite(values["entropy"]).all():
        raise SystemExit(f"{tool} gave no finite numbers of shape [layer, batch, head, row].")
    np.savez(numbers, **values)
    del layers, values
    model = load(folder, "sdpa")

    def plain() -> None:
        with torch.no_grad():
            model(input_ids=ids, **call_of(ids))

    measured = ratios(plain, {"tool": run}, int(rounds))
    versions = {name: importlib.metadata.version(name) for name in (PACKAGE.get(tool, tool), "torch", "transformers")}
    print(json.dumps({"ratios": measured["tool"], "seconds": measured["base"], "how": how, "versions": versions}))


if __name__ == "__main__":
    main()
