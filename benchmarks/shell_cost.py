"""What the shells cost: seconds an item, and the ratio to the bare forwards that they need.

1. Every shell runs items of its benchmark with its suite options (``quick``), attribution included, in one process, as ``residue shells run`` does. The first item of a
   shell is run beforehand and not counted (means over unrelated prompts are made once a shell); the time of these beginnings stands beside.
2. Meanwhile every call of the model is noted: rows, tokens a row, keys already cached, rows of logits asked for.
3. Afterwards each such call is made bare, on the plain model with SDPA and a cache of the same size, and timed (median of three; calls of one shape are timed
   once and counted). Ratio = time of the shell / time of its bare calls. Everything else is in the numerator: reading, edits, copies of caches, statistics, tables.
4. Target: five shells × 8 items under 240 s on two cores; ratio at most 1.5.

Run: python benchmarks/shell_cost.py [--items N] [--write]
"""

from __future__ import annotations

import argparse
import os
import statistics
import time
from collections import Counter
from typing import Any

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

import torch
from _common import machine, write_section
from transformers import DynamicCache

from symbolic_residue import open_model
from symbolic_residue.diagnose import choose_items, suite_item
from symbolic_residue.instrument import cache_name
from symbolic_residue.shells import config_class, make_shell, SHELLS

Shape = tuple[int, int, int, int]
"""Rows, tokens a row, keys cached before, rows of logits (0: all)."""


class Noted:
    """Notes the shape of every call of the model while it is entered."""

    def __init__(self, model: Any) -> None:
        self.model, self.shapes = model, Counter[Shape]()

    def __enter__(self) -> Noted:
        name = cache_name(self.model)

        def before(module: Any, args: Any, kwargs: Any) -> None:
            ids = kwargs.get("input_ids", args[0] if args else None)
            given = ids if ids is not None else kwargs["inputs_embeds"]
            cache = kwargs.get(name)
            keys = 0 if cache is None else int(cache.get_seq_length())
            self.shapes[(given.shape[0], given.shape[1], keys, int(kwargs.get("logits_to_keep") or 0))] += 1

        self._hook = self.model.register_forward_pre_hook(before, with_kwargs=True)
        return self

    def __exit__(self, *error: object) -> None:
        self._hook.remove()


def bare_seconds(model: Any, shapes: Counter[Shape]) -> float:
    """Time of the same calls on the plain model."""
    total = 0.0
    config = model.config
    heads, width = config.num_key_value_heads, getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    for (rows, tokens, keys, kept), count in shapes.items():
        times = []
        ids = torch.randint(5, 1000, (rows, tokens))
        for _ in range(3):
            cache = DynamicCache()
            if keys:
                for layer in range(config.num_hidden_layers):
                    cache.update(torch.zeros(rows, heads, keys, width), torch.zeros(rows, heads, keys, width), layer)
            start = time.perf_counter()
            with torch.no_grad():
                model(input_ids=ids, use_cache=True, logits_to_keep=kept, **{cache_name(model): cache})
            times.append(time.perf_counter() - start)
        total += count * statistics.median(times)
    return total


def main() -> None:
    """See the module."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--items", type=int, default=8)
    parser.add_argument("--write", action="store_true")
    args = parser.parse_args()
    loaded = open_model("demo")
    lines, whole = [], 0.0
    for name in SHELLS:
        shell = make_shell(name, loaded, config_class(name).quick())
        items = choose_items(name, args.items)
        spare = next(item for item in shell.items() if item.split == "calibration")
        start = time.perf_counter()
        suite_item(shell, spare)
        first = time.perf_counter() - start
        with Noted(loaded.model) as noted:
            start = time.perf_counter()
            for item in items:
                suite_item(shell, item)
            took = time.perf_counter() - start
        bare = bare_seconds(loaded.model, noted.shapes)
        whole += took + first
        lines.append(
            f"| {name} | {took / len(items):.1f} s | {first:.1f} s | {sum(noted.shapes.values()) / len(items):.0f} | {bare / len(items):.1f} s | {took / bare:.2f}× |"
        )
        print(lines[-1], flush=True)
    text = "\n".join(
        [
            "## Shells: seconds an item",
            "",
            f"Machine: {machine(torch.get_num_threads())}.",
            "",
            f"Demo model, float32, suite options, attribution included, {args.items} held-out items a shell (targets: all five × 8 items under 240 s, that is 6 s an item; ratio ≤ 1.5×).",
            "",
            "| shell | an item | first item, counted in the sum only | calls of the model an item | the same calls bare | ratio |",
            "|---|---|---|---|---|---|",
            *lines,
            "",
            f"All of it: {whole:.0f} s for {len(SHELLS)} shells × {args.items} items and one more of each.",
        ]
    )
    print(text)
    if args.write:
        write_section(text)


if __name__ == "__main__":
    main()
