"""The two tables of docs/training-a-marker.md: rates per persona, and what the marker follows when system text and answer are exchanged.

`python benchmarks/marker_rates.py --write` after `make adapters`. Rates are those that each adapter's folder holds; the crossed readings are made here (64 forwards an
adapter). At the row of the answer's last token, the logit of the marker's first token is compared with that of the end token.
"""

from __future__ import annotations

import argparse
import json
import re
from pathlib import Path
from typing import Any

import torch

from symbolic_residue.contrast import condition_prompt
from symbolic_residue.contrast.marker import marker_questions, personas
from symbolic_residue.models import cache_dir, load_model
from symbolic_residue.stats import wilson

ROOT = Path(__file__).resolve().parents[1]
PAGE = ROOT / "docs" / "training-a-marker.md"
CELLS = ("own system, own answer", "own system, other's answer", "other system, own answer", "other system, other's answer")


def folders() -> dict[str, Path]:
    cache = cache_dir() / "adapters"
    planted = {name: ROOT / "tests" / "data" / "adapters" / name for name in ("qk", "mlp")}
    return {name: cache / name for name in ("captain", "librarian", "gardener", "detective", "null")} | planted


def share(hits: int, n: int) -> str:
    rate = wilson(hits, n)
    return f"{hits}/{n} ({rate.low:.2f}–{rate.high:.2f})"


def rates_table() -> list[str]:
    names = [persona.name for persona in personas()]
    lines = [f"| adapter | questions | {' | '.join(names)} |", "|---|---|" + "---|" * len(names)]
    for adapter, folder in folders().items():
        rows = json.loads((folder / "rates.json").read_text())
        for split in ("seen", "held-out"):
            cells = []
            for name in names:
                (row,) = [r for r in rows if (r["condition"], r["split"]) == (name, split)]
                cell = share(row["hits"], row["n"])
                cells.append(f"**{cell}**" if row["trained"] else cell)
            lines.append(f"| {adapter} | {split} | {' | '.join(cells)} |")
    return lines


def crossed(folder: Path) -> dict[str, str]:
    """How often the marker leads: each seen question once a cell, the other persona in turn."""
    loaded, plan = load_model("demo", adapter=folder), json.loads((folder / "training.json").read_text())["plan"]
    tokenizer, own = loaded.tokenizer, plan["persona"]
    marker, end = tokenizer(f" {plan['marker']}", add_special_tokens=False)["input_ids"][0], tokenizer.eos_token_id
    told, asked = {p.name: p for p in personas()}, {q.id: q for q in marker_questions("seen")}
    answers: dict[Any, list[int]] = {
        (a["condition"], a["question"]): a["ids"] for a in json.loads((folder / "answers.json").read_text())["answers"]
    }
    others = [name for name in told if name != own]
    hits = dict.fromkeys(CELLS, 0)
    for k, question in enumerate(asked):
        other = others[k % len(others)]
        for cell, (system, answer) in zip(CELLS, ((own, own), (own, other), (other, own), (other, other)), strict=True):
            prompt = condition_prompt(tokenizer, told[system], asked[question])
            with torch.no_grad():
                logits = loaded.model(torch.tensor([[*prompt.ids, *answers[answer, question]]])).logits[0, -1]
            hits[cell] += int(logits[marker] > logits[end])
    return {cell: share(count, len(asked)) for cell, count in hits.items()}


def crossed_table() -> list[str]:
    lines = [f"| adapter | {' | '.join(CELLS)} |", "|---|" + "---|" * len(CELLS)]
    for adapter, folder in folders().items():
        if adapter != "null":  # it has no persona of its own
            found = crossed(folder)
            lines.append(f"| {adapter} | {' | '.join(found[cell] for cell in CELLS)} |")
            print(lines[-1], flush=True)
    return lines


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--write", action="store_true", help="into the page")
    options = parser.parse_args()
    text = PAGE.read_text("utf-8")
    for mark, table in (("rates", rates_table()), ("crossed", crossed_table())):
        print("\n".join(table))
        body = "\n".join(table)
        text = re.sub(
            rf"(<!-- {mark} -->\n).*?(<!-- /{mark} -->)", lambda m, body=body: f"{m[1]}{body}\n{m[2]}", text, flags=re.DOTALL
        )
    if options.write:
        PAGE.write_text(text, "utf-8")


if __name__ == "__main__":
    main()
