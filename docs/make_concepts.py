"""The study of docs/concepts.md: the packaged corpus on the demo model, by the commands that the page names.

1. ``residue concepts train``, ``report``, ``heads``, ``check`` and ``watch`` run into the output folder; each goes on where it was stopped.
2. The tables between the marks of ``docs/concepts.md`` are written from the folder's JSON files, the report is copied, and the picture taken from it.

Run: make concepts (or python docs/make_concepts.py [--out residue-runs/concepts] [--pages])
"""

from __future__ import annotations

import argparse
import json
import os
import re
import shutil
import subprocess
import sys
from collections import Counter
from pathlib import Path
from typing import Any

from symbolic_residue.models import cache_dir

ROOT = Path(__file__).resolve().parents[1]
PAGE = ROOT / "docs" / "concepts.md"
MARK = re.compile(r"<!-- measured: (?P<name>\w+) -->\n.*?<!-- /measured -->", re.DOTALL)
STEERED = ("anger", "joy", "gratitude", "recognition")
"""Two concepts of each family: steering is minutes a concept."""
WATCHED = "She opened the letter, and"


def measure(out: Path) -> None:
    """Run (or go on with) the study."""
    main = "import sys; from symbolic_residue.cli import main; sys.exit(main(sys.argv[1:]))"
    train = ["train", "--model", "demo", "--output", str(out)]
    watch = ["watch", str(out), "--prompt", WATCHED, "--max-new-tokens", "24"]
    watched = [watch] if not list((out / "watch").glob("*.json")) else []
    check = ["check", str(out)]
    checks = ([*check, "--no-steering"], [*check, "--no-ablation", "--concept", ",".join(STEERED)])
    for command in (train, ["report", str(out)], ["heads", str(out)], *checks, *watched, ["report", str(out)]):
        subprocess.run([sys.executable, "-c", main, "concepts", *command], check=True)


class Study:
    """The folder's JSON files."""

    def __init__(self, out: Path) -> None:
        self.quality, self.heads, self.causal = (
            json.loads((out / f"{n}.json").read_text("utf-8")) for n in ("quality", "heads", "causal")
        )


def interval(block: dict[str, Any], digits: int = 2) -> str:
    """``value [low, high]``."""
    value = f"{block['value']:.{digits}f}"
    return value if block.get("low") is None else f"{value} [{block['low']:.{digits}f}, {block['high']:.{digits}f}]"


def size(study: Study) -> str:
    """What was measured."""
    q = study.quality
    model, concepts = q["model"], q["concepts"]
    scenarios = {one["n_scenarios"] for one in concepts.values()}
    return (
        f"{model['model']} ({model['dtype']}, {model['n_layers']} layers): {len(concepts)} concepts, n = {min(scenarios)} scenarios each, "
        f"{q['n_draws']:,} permutations; directions are differences of means at the last token, against neutral tellings."
    )


def read(study: Study) -> str:
    """AUC of every concept beside its controls."""
    lines = [
        "| concept | layer | AUC, neutral | null | p, layers | p, concepts | pairs in order | words alone | AUC, others (same layer) | words alone, others |",
        "|" + "---|" * 10,
    ]
    words = study.quality["words_alone"] or {}
    for concept, one in sorted(study.quality["concepts"].items(), key=lambda item: -_at(item[1])["auc"]["value"]):
        block, chosen = _at(one), one["chosen"]
        others = (one["other_negatives"] or {}).get("auc")
        lines.append(
            f"| {concept} | {chosen['layer']} | {interval(block['auc'])} | {block['auc']['null_mean']:.2f} | {chosen['p_model']:.3f} | "
            f"{chosen['p_concepts']:.3f} | {interval(block['pairs_in_order'])} | {interval(words[concept]['baseline'])} | "
            f"{interval(others) if others else '—'} | {interval(words[concept]['others'])} |"
        )
    return "\n".join(lines)


def _at(one: dict[str, Any]) -> dict[str, Any]:
    return one["layers"][str(one["chosen"]["layer"])]


def heads(study: Study) -> str:
    """Verdict of every concept over the whole model, and of the stated layer."""
    h = study.heads
    lines = [
        "| concept | verdict | AUC of the few | all heads | residual stream | random heads | all others | selective heads | verdict in layer "
        + f"{h['layer']} |",
        "|" + "---|" * 9,
    ]
    for concept, one in h["concepts"].items():
        m, alone = one["model"], one["layer"]
        r = m["readouts"]
        cells = [_auc(r[name]) for name in ("few", "all", "residual", "random", "rest")]
        layer = alone["verdict"] if alone else "—"
        lines.append(f"| {concept} | {m['verdict']} | {' | '.join(cells)} | {m['n_selective']} of {m['n_heads']} | {layer} |")
    words = Counter(one["model"]["verdict"] for one in h["concepts"].values())
    said = ", ".join(f"{n} {word}" for word, n in words.most_common())
    scenarios = next(iter(h["concepts"].values()))["model"]["n_scenarios"]
    head = f"k = {h['k']} of {h['n_heads']} heads, n = {scenarios} scenarios: {said}. Twelve questions at .05 each."
    reasons = [f"* *{concept}*: {one['model']['reason']}" for concept, one in h["concepts"].items()]
    return "\n".join([head, "", *lines, "", *reasons])


def _auc(reading: dict[str, Any]) -> str:
    return f"{reading['auc']:.2f} [{reading['low']:.2f}, {reading['high']:.2f}]"


def families(study: Study) -> str:
    """The question stated beforehand."""
    f = study.heads["families"]
    lines = ["| statistic | difference (95 %) | p | smallest that 6 against 6 finds |", "|" + "---|" * 4]
    names = {
        "concentration": "log participation ratio over its null (stated first)",
        "share": "share of the k largest over its null",
        "strength": "log strength over its null",
        "adjusted": "concentration, strength regressed out",
    }
    for name, text in names.items():
        one = f["statistics"][name]
        bounds = "" if one["low"] is None else f" [{one['low']:+.3f}, {one['high']:+.3f}]"
        least = "—" if one["detectable"] is None else f"{one['detectable']:.3f}"
        lines.append(f"| {text} | {one['difference']:+.3f}{bounds} | {one['p']:.3f} | {least} |")
    return "\n".join([f"**{f['question']}** {f['answer'].capitalize()}: {f['reason']}", "", *lines])


def causal(study: Study) -> str:
    """Ablation and steering of every concept that was checked."""
    lines = [
        "| concept | heads by | lost of the contrast | other heads | excess | predicted | p | do they carry it? |",
        "|" + "---|" * 8,
    ]
    pushed = [
        "| concept | dose | excess over random directions, log odds of words | p | beyond other concepts' directions | steers? | heads only |",
        "|" + "---|" * 7,
    ]
    for concept, one in study.causal["concepts"].items():
        for part in ("ablation", "ablation_direct"):
            if (a := one.get(part)) is not None:
                at = next(layer for layer in a["layers"] if layer["layer"] == a["layer"])
                cells = [
                    interval(at["lost"]),
                    interval(at["control"]),
                    interval(at["excess"]),
                    interval(a["predicted"]),
                    f"{at['p']:.3f}",
                ]
                lines.append(f"| {concept} | {a['by']} | {' | '.join(cells)} | {a['verdict']} |")
        if (s := one.get("steering")) is not None:
            first = next((c for c in s["comparisons"] if c["measure"] == "words" and c["arm"] == concept), None)
            if first is not None:
                pushed.append(
                    f"| {concept} | {s['dose']:g} | {interval(first['excess'])} | {first['p']:.3f} | {s['specific']} | {s['verdict']} | {s['heads_verdict']} |"
                )
    return "\n".join([*lines, "", *pushed])


TABLES = {"size": size, "read": read, "heads": heads, "families": families, "causal": causal}


def pictures(report: Path) -> None:
    """The report's first screen."""
    from playwright.sync_api import sync_playwright

    path = os.environ.get("RESIDUE_CHROMIUM") or shutil.which("chromium") or shutil.which("chromium-browser")
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=path, args=["--no-sandbox"])
        page = browser.new_page(viewport={"width": 1200, "height": 960})
        page.goto(report.resolve().as_uri())
        page.wait_for_load_state("networkidle")
        page.screenshot(path=ROOT / "docs" / "pictures" / "concepts.png")
        browser.close()


def main() -> None:
    """Measure, then write the page."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=ROOT / "residue-runs" / "concepts")
    parser.add_argument("--pages", action="store_true", help="write the page and its picture")
    options = parser.parse_args()
    measure(options.out)
    if options.pages:
        study = Study(options.out)
        text = PAGE.read_text("utf-8")
        PAGE.write_text(
            MARK.sub(lambda m: f"<!-- measured: {m['name']} -->\n{TABLES[m['name']](study)}\n<!-- /measured -->", text), "utf-8"
        )
        shown = ROOT / "docs" / "reports" / "concepts.html"
        whole = (options.out / "report.html").read_text("utf-8")
        for place, told in ((options.out.resolve(), "concepts"), (options.out, "concepts"), (cache_dir(), "CACHE")):
            whole = whole.replace(str(place), told)
        shown.write_text(whole, "utf-8")
        pictures(shown)


if __name__ == "__main__":
    main()
