"""What exact attention readouts cost: ratios to the same model's plain forward, side by side in one process.

1. Demo model, float32, 8 regions, all layers, heads and rows. At each length the plain SDPA forward and each case are timed in turn (A B A B …); the
   ratio is taken round by round, its median and range are printed. Which backend and mode ran is read off the table that came back; another one than
   asked for stops the script. A case that cannot run here is listed with the reason.
2. Alternatives in the same rounds: eager attention, each layer's pattern reduced in a hook (one alive at a time), and all patterns kept, then reduced.
3. On the way: observed logits are bit-identical, replaced ones close, and every statistic equals the eager reduction.
4. The demo model in bfloat16, observed; it must be bit-identical.
5. Softcapped scores and sink logits: random gemma2 and gpt_oss of four layers against their own default forward, which is eager.
6. Memory: each kind in a process of its own; peak resident memory, and how much of it is above the plain forward's.

Run: python benchmarks/readout.py [--write] [--rounds 7] [--slow-rounds 3] [--threads 2] [--lengths 512 1024 2048] [--parts demo bf16 families memory]
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

import numpy as np
import torch
from _common import (
    cell,
    in_own_process,
    machine,
    peak_above,
    random_ids,
    ratios,
    reduce_pattern,
    region_columns,
    region_labels,
    write_section,
)

from symbolic_residue.errors import AttentionError
from symbolic_residue.instrument import AttentionRead, Instrument
from symbolic_residue.instrument.attention import AttentionTable
from symbolic_residue.models import load_model, LoadedModel, wrap
from symbolic_residue.prompts import Regions

EVERY = ("mass", "entropy", "distance", "max", "argmax")
FEW = ("mass", "entropy", "distance")
LAST = tuple(range(-16, 0))
HOOKED, KEPT = "eager, reduced in a hook", "eager, patterns kept, then reduced"
CLOSE = {"mass": 1e-4, "entropy": 1e-3, "distance": 0.1, "max": 1e-4}
"""How far two float32 ways of computing 30 layers may lie apart; distance in tokens."""


@dataclass(frozen=True)
class Case:
    """One kind of readout, and the target of its ratio."""

    name: str
    stats: tuple[str, ...] = EVERY
    backend: str = "auto"
    mode: str = "auto"
    rows: tuple[int, ...] | None = None
    target: float | None = None

    def runner(self, loaded: LoadedModel, n: int) -> Callable[[], tuple[AttentionTable, torch.Tensor]]:
        """One forward with this readout → its table and the last row's logits."""
        instrument = Instrument(loaded, backend=self.backend, mode=self.mode)  # type: ignore[arg-type]
        regions = Regions(("sink", *(f"part {i}" for i in range(1, 8))), np.array(region_labels(n)))
        read = AttentionRead(regions=regions, stats=self.stats, rows=self.rows)  # type: ignore[arg-type]
        ids = random_ids(n, loaded.model.config.vocab_size)

        def run() -> tuple[AttentionTable, torch.Tensor]:
            trace = instrument.run(ids, attention=read, keep_logits=1)
            assert trace.attention is not None
            return trace.attention, trace["logits"]

        return run


NATIVE = Case("everything, native kernel", backend="native", mode="replace", target=1.10)
DEMO = (
    NATIVE,
    Case("without max and argmax, torch", FEW, "torch", "observe", target=1.40),
    Case("everything, torch", EVERY, "torch", "observe", target=1.40),
    Case("everything, blocks", EVERY, "blocks", "replace"),
    Case("everything, 16 chosen rows", rows=LAST, target=1.15),
)
BF16 = (
    Case("everything", target=1.6),
    Case("without max and argmax, torch", FEW, "torch", "observe", target=1.6),
    Case("everything, torch", EVERY, "torch", "observe", target=1.6),
)
FAMILIES = (
    Case("everything, native kernel", EVERY, "native", "replace", target=0.5),
    Case("everything, blocks", EVERY, "blocks", "replace", target=0.5),
    Case("without max and argmax, torch", FEW, "torch", "replace", target=0.5),
)
MEMORY = {case.name: case for case in DEMO}
_SIZE = {
    "vocab_size": 1000,
    "hidden_size": 256,
    "intermediate_size": 1024,
    "num_hidden_layers": 4,
    "num_attention_heads": 8,
    "num_key_value_heads": 4,
    "head_dim": 64,
    "max_position_embeddings": 4096,
    "bos_token_id": 0,
    "eos_token_id": 2,
    "pad_token_id": 3,
    "layer_types": ["sliding_attention", "full_attention"] * 2,
}
CONFIGS = {
    "gemma2": _SIZE | {"model_type": "gemma2", "query_pre_attn_scalar": 64, "sliding_window": 4096},
    "gpt_oss": _SIZE
    | {
        "model_type": "gpt_oss",
        "rope_parameters": {"rope_type": "default", "rope_theta": 10000.0},
        "sliding_window": 128,
        "intermediate_size": 256,
        "num_local_experts": 4,
        "num_experts_per_tok": 2,
    },
}
"""Released windows, softcaps (transformers' defaults) and head sizes; few layers."""


def plain(model: torch.nn.Module, n: int) -> torch.Tensor:
    """The forward that everything is compared with."""
    ids = random_ids(n, model.config.vocab_size)  # type: ignore[union-attr]
    with torch.no_grad():
        return model(input_ids=ids, attention_mask=torch.ones_like(ids), use_cache=False, logits_to_keep=1).logits


def eager(loaded: LoadedModel, n: int, *, keep: bool) -> list[dict[str, torch.Tensor]]:
    """The same numbers from eager attention, a layer at a time: in a hook, or from the patterns kept by ``output_attentions``."""
    model, columns, found = loaded.model, region_columns(n), []
    ids = random_ids(n, model.config.vocab_size)
    handles = []
    if not keep:
        for layer in loaded.parts.layers:
            handles.append(layer.attn.register_forward_hook(lambda m, a, out: found.append(reduce_pattern(out[1], columns))))
    before = model.config._attn_implementation
    model.set_attn_implementation("eager")
    try:
        with torch.no_grad():
            out = model(
                input_ids=ids, attention_mask=torch.ones_like(ids), use_cache=False, logits_to_keep=1, output_attentions=keep
            )
            if keep:
                found = [reduce_pattern(weights, columns) for weights in out.attentions]
    finally:
        model.set_attn_implementation(before)
        for handle in handles:
            handle.remove()
    return found


def check(case: Case, run: Callable[[], tuple[AttentionTable, torch.Tensor]], want: torch.Tensor) -> tuple[str, AttentionTable]:
    """Run once: what ran (backend, mode, logits), and the table; or stop.

    Raises:
        AttentionError: the case is not available here.
    """
    table, logits = run()
    asked = ((case.backend, table.backend), (case.mode, table.mode))
    if any(wish not in ("auto", ran) for wish, ran in asked):
        raise SystemExit(f"{case.name}: {table.backend}, {table.mode} ran where {case.backend}, {case.mode} was asked for.")
    if table.mode == "observe":
        if not torch.equal(logits, want):
            raise SystemExit(f"{case.name}: the logits are not bit-identical.")
        return f"{table.backend}, observe", table
    gap = float((logits - want).abs().max() / want.abs().max())
    if gap > 1e-3:
        raise SystemExit(f"{case.name}: the logits are {gap:.1e} apart.")
    return f"{table.backend}, replace", table


def differences(table: AttentionTable, layers: list[dict[str, torch.Tensor]]) -> dict[str, float]:
    """Largest difference of each statistic from the eager reduction."""
    rows = table.rows
    out = {}
    for name in CLOSE:
        if name in table.values:
            theirs = torch.stack([layer[name] for layer in layers]).index_select(3, rows)
            out[name] = float((table[name].float() - theirs.float()).abs().max())
    return out


def timed(
    loaded: LoadedModel, cases: tuple[Case, ...], lengths: list[int], options: argparse.Namespace, *, alternatives: bool
) -> tuple[list[str], dict[int, dict[str, list[float]]], dict[str, float]]:
    """Rows of the table, ratios by length and name, and the largest differences from eager."""
    by_length: dict[int, dict[str, list[float]]] = {}
    ran: dict[str, str] = {}
    reasons: dict[tuple[str, int], str] = {}
    worst: dict[str, float] = {}
    for n in lengths:
        want = plain(loaded.model, n)
        calls: dict[str, Callable[[], object]] = {}
        theirs = eager(loaded, n, keep=False) if alternatives else None
        for case in cases:
            run = case.runner(loaded, n)
            try:
                ran[case.name], table = check(case, run, want)
            except AttentionError as error:
                reasons[case.name, n] = getattr(error, "why", None) or str(error)
                continue
            if theirs is not None:
                for name, gap in differences(table, theirs).items():
                    if gap > CLOSE[name]:
                        raise SystemExit(f"{case.name} at {n}: {name} is {gap:.1e} from the eager reduction.")
                    worst[name] = max(worst.get(name, 0.0), gap)
            calls[case.name] = run
        del theirs
        by_length[n] = ratios(lambda n=n: plain(loaded.model, n), calls, options.rounds) if calls else {"base": []}
        if alternatives:
            slow = {
                HOOKED: lambda n=n: eager(loaded, n, keep=False),
                KEPT: lambda n=n: eager(loaded, n, keep=True),
            }
            more = ratios(lambda n=n: plain(loaded.model, n), slow, options.slow_rounds)
            by_length[n] |= {name: more[name] for name in slow}
    lines = [
        "| read | " + " | ".join(f"T = {n}" for n in lengths) + " | target | what ran |",
        "|---" * (len(lengths) + 3) + "|",
    ]
    names = [case.name for case in cases] + ([HOOKED, KEPT] if alternatives else [])
    targets = {case.name: "" if case.target is None else f"≤ {case.target:.2f}×" for case in cases}
    for name in names:
        cells = [cell(by_length[n][name]) if name in by_length[n] else "not run" for n in lengths]
        why = "; ".join(sorted({reason for (case, _), reason in reasons.items() if case == name}))
        said = "; ".join(filter(None, (ran.get(name, "" if name not in (HOOKED, KEPT) else "eager"), why and f"not run: {why}")))
        lines.append(f"| {name} | {' | '.join(cells)} | {targets.get(name, '')} | {said} |")
    seconds = [by_length[n]["base"] for n in lengths]
    lines.append(
        "| plain forward | "
        + " | ".join(f"{statistics.median(s):.2f} s" if s else "" for s in seconds)
        + f" | | {loaded.model.config._attn_implementation} |"
    )
    return lines, by_length, worst


def demo(options: argparse.Namespace) -> list[str]:
    loaded = load_model("demo")
    table, by_length, worst = timed(loaded, DEMO, options.lengths, options, alternatives=True)
    itself = Case("left to itself").runner(loaded, 64)()[0]
    faster = []
    for n in options.lengths:
        ours = next((c.name for c in DEMO if c.rows is None and c.stats == EVERY and c.name in by_length[n]), None)
        if ours is not None:
            times = statistics.median(by_length[n][HOOKED]) / statistics.median(by_length[n][ours])
            faster.append(f"{times:.1f}× at {n} ({ours})")
    return [
        f"Demo model (SmolLM2-135M-Instruct, 30 layers × 9 heads), float32, 8 regions, all layers, heads and rows; *everything* is "
        f"{', '.join(EVERY)}. Ratios to the same model's plain SDPA forward, median [range] of {options.rounds} alternating rounds "
        f"(eager: {options.slow_rounds}). Observed logits bit-identical, replaced ones within 1e-3 of the largest (both checked in the run). "
        f"Left to itself the instrument takes: {itself.backend}, {itself.mode}.",
        "",
        *table,
        "",
        f"Faster than eager reduced in a hook, everything (target ≥ 4× at 2048): {', '.join(faster) or 'not run'}. "
        "Largest differences from the eager reduction: " + ", ".join(f"{name} {gap:.1e}" for name, gap in worst.items()) + ".",
    ]


def bf16(options: argparse.Namespace) -> list[str]:
    loaded = load_model("demo", dtype="bfloat16")
    table, _, _ = timed(loaded, BF16, options.lengths, options, alternatives=False)
    return [
        "The same model in bfloat16, ratios to its plain bfloat16 SDPA forward; statistics are computed in float32 from the model's own q and k. "
        "Logits bit-identical (checked in the run).",
        "",
        *table,
    ]


def families(options: argparse.Namespace) -> list[str]:
    sys.path.insert(0, str(Path(__file__).parent.parent / "tests" / "unit"))
    from tiny_models import spread, tiny_tokenizer

    lines = [
        "Softcapped scores and sink logits: random models of 4 layers, 8 heads of 64, d_model 256; ratios to their own default forward "
        "(transformers runs these families in eager attention).",
    ]
    for name, config in CONFIGS.items():
        loaded = wrap(spread(config, scale=1.0), tiny_tokenizer())
        implementation = loaded.model.config._attn_implementation
        if implementation != "eager":
            raise SystemExit(f"{name} runs {implementation} by default: the comparison is with eager.")
        table, _, _ = timed(
            loaded, FAMILIES, [n for n in options.lengths if n >= 1024] or options.lengths, options, alternatives=False
        )
        lines += ["", f"`{name}`:", "", *table]
    return lines


def memory_of(kind: str, n: int) -> dict[str, object]:
    """In this process: peak memory of one forward, and what ran."""
    loaded = load_model("demo")
    calls: dict[str, Callable[[int], object]] = {
        "plain": lambda n: plain(loaded.model, n),
        HOOKED: lambda n: eager(loaded, n, keep=False),
        KEPT: lambda n: eager(loaded, n, keep=True),
    } | {name: (lambda n, case=case: case.runner(loaded, n)()) for name, case in MEMORY.items()}
    call = calls[kind]
    try:
        first = call(64)  # what is loaded or built once
    except AttentionError as error:
        return {"why": getattr(error, "why", None) or str(error)}
    ran = f"{first[0].backend}, {first[0].mode}" if isinstance(first, tuple) else "sdpa" if kind == "plain" else "eager"
    return {"mb": peak_above(lambda: call(n)), "ran": ran}


def memory(options: argparse.Namespace) -> list[str]:
    targets = {2048: 150, 8192: 250}
    lines = [
        "Peak memory above the loaded model, float32, each in a process of its own, in MB; in brackets above the plain forward "
        f"(targets: ≤ {targets[2048]} at 2048, ≤ {targets[8192]} at 8192).",
        "",
        "| read | " + " | ".join(f"T = {n}" for n in options.memory_lengths) + " | what ran |",
        "|---" * (len(options.memory_lengths) + 2) + "|",
    ]
    cells: dict[str, list[str]] = {kind: [] for kind in ("plain", *MEMORY, HOOKED, KEPT)}
    ran: dict[str, str] = {}
    for n in options.memory_lengths:
        base = 0.0
        for kind in cells:
            if kind in (HOOKED, KEPT) and n > 2048:
                cells[kind].append(
                    f"not run: a pattern of one layer is {9 * n * n * 4 / 2**30:.1f} GB, all of them {270 * n * n * 4 / 2**30:.0f} GB"
                )
                continue
            got = in_own_process(sys.executable, __file__, "--threads", str(options.threads), "--memory", kind, str(n))
            if "mb" not in got:
                cells[kind].append("not run")
                ran[kind] = f"not run: {got['why']}"
                continue
            base = got["mb"] if kind == "plain" else base
            cells[kind].append(f"{got['mb']:.0f}" + ("" if kind == "plain" else f" ({got['mb'] - base:+.0f})"))
            ran[kind] = got["ran"]
    return lines + [f"| {kind} | {' | '.join(row)} | {ran.get(kind, '')} |" for kind, row in cells.items()]


PARTS = {"demo": demo, "bf16": bf16, "families": families, "memory": memory}


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--slow-rounds", type=int, default=3, help="of the eager alternatives")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--lengths", type=int, nargs="+", default=[512, 1024, 2048])
    parser.add_argument("--memory-lengths", type=int, nargs="+", default=[2048, 8192])
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=list(PARTS))
    parser.add_argument("--write", action="store_true", help="put the tables into RESULTS.md (each part its own section)")
    parser.add_argument("--memory", nargs=2, metavar=("KIND", "LENGTH"), help="for the script itself")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    if options.memory:
        print(json.dumps(memory_of(options.memory[0], int(options.memory[1]))))
        return
    headings = {
        "demo": "## Attention readout: time",
        "bf16": "## Attention readout: bfloat16",
        "families": "## Attention readout: softcap and sink logits",
        "memory": "## Attention readout: memory",
    }
    for part in options.parts:
        text = "\n".join([headings[part], "", f"Machine: {machine(options.threads)}.", "", *PARTS[part](options)]) + "\n"
        print(text, flush=True)
        if options.write:
            write_section(text)


if __name__ == "__main__":
    main()
