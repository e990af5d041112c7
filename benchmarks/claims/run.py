"""Tests every claim on the demo model and writes ``docs/claims.md``.

1. What was measured is kept in ``kept/SHELL.json``, numbers only. A claim whose test or rule was reworded since is measured again, and so is what ``--again`` names; nothing
   else is, so that the page is written anew in a second.
2. A claim whose measurement is refused is undecided, and the reason is printed: nothing is left out.
3. The page states every test and rule, what was known when it was stated, the outcome and the numbers; the verdicts are made from the kept numbers. Of an undecided claim it
   states the smallest effect that the data could have seen.

Residues of whole benchmarks are those that ``calibration.py`` keeps; what is missing there is run.

Run: python benchmarks/claims/run.py [--again CLAIM|SHELL|all …] [--write]
"""

from __future__ import annotations

import argparse
import dataclasses
import os
import sys
import time
from datetime import date
from importlib import import_module
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
sys.path.insert(0, str(Path(__file__).parent.parent))

from claims._common import Bench, Claim, keep, KEPT, Kept, Measured, outcome, read, SIGNS, words
from claims._rule import reach
from symbolic_residue.errors import ResidueError
from symbolic_residue.models import cache_dir
from symbolic_residue.shells import config_class, make_shell, SHELLS

PAGE = Path(__file__).parent.parent.parent / "docs/claims.md"

HEAD = """# Published statements, tested

Written by `make claims`. Statements that have been made about these five kinds of failure, each in our words, with its test, on the demo model (SmolLM2-135M-Instruct, a 135-million-parameter
model). *Supported* and *contradicted* mean that whole 95 % intervals are on that side of the stated limits; everything else is *undecided*, and then the page says what the data could have
seen. Each test says what was known when it was stated. A small model's answer is no verdict on larger ones: run the script on yours. Each claim is decided at 95 %, without a correction for their number.

The verdicts follow from the numbers in `benchmarks/claims/kept`; `python benchmarks/claims/run.py --again all --write` measures everything anew.
"""


def claims_of(shell: str) -> list[Claim]:
    """The claims about a shell."""
    return import_module(f"claims.{shell.replace('-', '_')}").CLAIMS


def tested(claim: Claim, bench: Bench) -> Kept:
    """What was measured, or the reason why nothing was."""
    import torch
    from _common import machine

    begin, refused = time.perf_counter(), ""
    try:
        found = claim.measure(bench)
    except ResidueError as error:
        found, refused = Measured({}), str(error)
    seconds = round(time.perf_counter() - begin, 1)
    return Kept(
        claim.test,
        str(claim.rule),
        found.numbers,
        found.beside,
        refused,
        date.today().isoformat(),
        machine(torch.get_num_threads()),
        seconds,
        found.units,
    )


def opened() -> Bench:
    """The demo model, and the residues that ``calibration.py`` keeps."""
    from calibration import residues

    from symbolic_residue import open_model

    loaded = open_model("demo")

    def kept(name: str) -> tuple[Any, list[tuple[Any, Any]]]:
        shell = make_shell(name, loaded, config_class(name).quick(top_heads=0))
        found, failed = residues(shell, cache_dir() / "calibration")
        for item, why in failed.items():
            print(f"{name}: {item} left out: {why}")
        # Judged by the criteria of today, whenever the residue was collected.
        return shell, [(item, dataclasses.replace(r, config=shell.config)) for item, r in found]

    return Bench(loaded, kept)


def main() -> None:
    """See the module."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--again", action="append", default=[], metavar="CLAIM|SHELL|all")
    parser.add_argument("--write", action="store_true")
    args = parser.parse_args()
    known = {"all", *SHELLS, *(claim.id for shell in SHELLS for claim in claims_of(shell))}
    for name in set(args.again) - known:
        parser.error(f"there is no claim or shell {name!r}; use one of {', '.join(sorted(known))}")
    bench: Bench | None = None
    for shell in SHELLS:
        claims = claims_of(shell)
        found = read(KEPT, shell, claims)
        for claim in claims:
            if claim.id in found and not {"all", shell, claim.id} & set(args.again):
                continue
            bench = bench or opened()
            found[claim.id] = tested(claim, bench)
            keep(KEPT, shell, {c.id: found[c.id] for c in claims if c.id in found})
            print(f"{claim.id}: {outcome(claim, found[claim.id])}: {words(claim, found[claim.id])}", flush=True)
    if args.write:
        PAGE.write_text(page(KEPT), "utf-8")


def page(folder: Path) -> str:
    """The page, from what is kept in ``folder`` alone.

    Raises:
        SystemExit: a claim that was not measured by its present test and rule.
    """
    rows, details, made = [], [], {}
    for shell in SHELLS:
        claims = claims_of(shell)
        found = read(folder, shell, claims)
        for claim in claims:
            if claim.id not in found:
                raise SystemExit(f"{claim.id} was not measured by its present test and rule: run with --again {claim.id}.")
            kept = found[claim.id]
            decided, said = outcome(claim, kept), words(claim, kept)
            rows.append(f"| [{claim.statement}](#{claim.id}) | {shell} | {SIGNS[decided]} | {said} |")
            parts = [
                f"### {claim.id}",
                claim.statement,
                f"**Test.** {claim.test}",
                f"**Rule.** Whole intervals; {claim.rule}.",
                f"**Stated.** {claim.stated}",
                f"**Outcome.** {SIGNS[decided]}: {said}.",
            ]
            if decided == "undecided" and not kept.refused:
                parts.append(f"**What the data could have seen.** {reach(claim.rule, kept.numbers)}")
            if claim.afterwards:
                parts.append(f"**Seen afterwards.** {claim.afterwards}")
            details.append("\n\n".join(parts) + "\n")
            made.setdefault(f"{kept.date}; {kept.machine}", []).append(kept.seconds)
    lines = [f"{len(seconds)} claims: {where}; {sum(seconds) / 60:.1f} minutes." for where, seconds in made.items()]
    table = "| statement | shell | outcome | measured |\n|---|---|---|---|\n" + "\n".join(rows)
    return f"{HEAD}\n{' '.join(lines)}\n\n{table}\n\n## The tests\n\n" + "\n".join(details)


if __name__ == "__main__":
    main()
