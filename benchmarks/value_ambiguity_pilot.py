"""How well simple quantities of the next-token distribution tell planted conflicts from settled prompts.

1. Read the distribution after every prompt and control of the benchmark ``value-ambiguity``.
2. Turn each distribution into a few scores, each higher where the model is more torn.
3. Per split: AUC of the planted prompts against controls and null prompts together, and against the controls alone.
4. Set a threshold on the settled prompts of the calibration split that at most 5% of them exceed; report how many planted and how
   many settled prompts exceed it, on both splits.
5. Where a conflict's candidates are given, the same for scores of the candidates alone (controls are the only negatives there).

Run: ``python benchmarks/value_ambiguity_pilot.py [--model demo] [--json FILE]``.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import numpy as np
import torch

from symbolic_residue.models import load_model
from symbolic_residue.prompts._benchmark import benchmark
from symbolic_residue.stats import auc, quantile_criterion, wilson

RATE = 0.05
MASS = 0.9


def mass_set(p: np.ndarray, mass: float = MASS) -> np.ndarray:
    """The largest probabilities that together hold ``mass`` (two at least), made to sum to 1."""
    ordered = np.sort(p)[::-1]
    size = max(2, int(np.searchsorted(np.cumsum(ordered), mass)) + 1)
    return ordered[:size] / ordered[:size].sum()


def nats(p: np.ndarray) -> float:
    """Shannon entropy of one distribution."""
    q = p[p > 0]
    return float(-(q * np.log(q)).sum())


def scores(p: np.ndarray) -> dict[str, float]:
    """Scores of one distribution ``p [vocab]``, higher where torn."""
    first, second = (float(x) for x in np.sort(p)[::-1][:2])
    return {
        "-(top-1/top-2 log-odds)": -float(np.log(first / second)),
        "-p(top-1)": -first,
        f"entropy of {MASS} mass set": nats(mass_set(p)),
        "entropy": nats(p),
        "top-2 mass x split": (first + second) * nats(np.array([first, second]) / (first + second)) / np.log(2),
    }


def candidate_scores(p: np.ndarray, ids: list[int]) -> dict[str, float]:
    """Scores of the two candidates, higher where torn."""
    a, b = (float(x) for x in p[ids])
    return {
        "-(candidates' log-odds)": -abs(float(np.log(a / b))),
        "candidates' split": nats(np.array([a, b]) / (a + b)) / np.log(2),
        "candidates' mass x split": (a + b) * nats(np.array([a, b]) / (a + b)) / np.log(2),
    }


@torch.no_grad()
def read(loaded: Any) -> list[dict[str, Any]]:
    """One record for each prompt and control: item, role, split, scores."""

    def distribution(text: str) -> np.ndarray:
        ids = loaded.tokenizer(text, return_tensors="pt").input_ids.to(loaded.model.device)
        return torch.softmax(loaded.model(ids).logits[0, -1].double(), -1).cpu().numpy()

    records = []
    for item in benchmark("value-ambiguity"):
        texts = {"null": item.prompt} if item.control is None else {"planted": item.prompt, "control": item.control}
        for role, text in texts.items():
            p = distribution(text)
            record: dict[str, Any] = {"id": item.id, "kind": item.kind, "frame": item.frame, "split": item.split, "role": role}
            record["scores"] = scores(p)
            if item.candidates is not None and item.answer is not None:
                ids = [loaded.tokenizer(c, add_special_tokens=False).input_ids for c in item.candidates]
                if any(len(i) != 1 for i in ids):
                    raise SystemExit(f"{item.id}: a candidate is not a single token in this tokenizer")
                flat = [i[0] for i in ids]
                record["candidates"] = candidate_scores(p, flat)
                record["mass"] = float(p[flat].sum())
                record["candidates on top"] = set(np.argsort(p)[-2:].tolist()) == set(flat)
                record["answer on top"] = int(p.argmax()) == flat[item.candidates.index(item.answer)]
                a, b = (float(np.log(p[flat[item.candidates.index(c)]])) for c in item.mentioned())
                record["first minus last"] = a - b
            records.append(record)
    return records


def row(records: list[dict[str, Any]], group: str, name: str, negatives: tuple[str, ...]) -> dict[str, Any]:
    """AUCs of one score, and what a threshold from the calibration split does on both splits."""

    def values(split: str, *roles: str) -> np.ndarray:
        return np.array([r[group][name] for r in records if r["split"] == split and r["role"] in roles])

    threshold = quantile_criterion(values("calibration", *negatives), RATE)
    out: dict[str, Any] = {"score": name, "threshold": threshold}
    for split in ("calibration", "held-out"):
        planted, settled = values(split, "planted"), values(split, *negatives)
        fired, false = int((planted > threshold).sum()), int((settled > threshold).sum())
        area, sensitivity, rate = auc(planted, settled), wilson(fired, len(planted)), wilson(false, len(settled))
        out[split] = {
            "auc": [area.value, area.low, area.high],
            "auc against controls": auc(planted, values(split, "control")).value,
            "sensitivity": [sensitivity.value, sensitivity.low, sensitivity.high],
            "false positives": [rate.value, rate.low, rate.high],
        }
    return out


def summary(records: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Medians by role and split."""
    out = []
    for split in ("calibration", "held-out"):
        for role in ("planted", "control", "null"):
            chosen = [r for r in records if r["split"] == split and r["role"] == role]
            line: dict[str, Any] = {"split": split, "role": role, "n": len(chosen)}
            line["log-odds"] = float(np.median([-r["scores"]["-(top-1/top-2 log-odds)"] for r in chosen]))
            line["p(top-1)"] = float(np.median([-r["scores"]["-p(top-1)"] for r in chosen]))
            line["entropy"] = float(np.median([r["scores"]["entropy"] for r in chosen]))
            if role != "null":
                line["|candidates' log-odds|"] = float(np.median([-r["candidates"]["-(candidates' log-odds)"] for r in chosen]))
                line["candidates' mass"] = float(np.median([r["mass"] for r in chosen]))
                line["candidates on top"] = float(np.mean([r["candidates on top"] for r in chosen]))
                line["first minus last"] = float(np.mean([r["first minus last"] for r in chosen]))
            if role == "control":
                line["answer on top"] = float(np.mean([r["answer on top"] for r in chosen]))
            out.append(line)
    return out


def by_kind(records: list[dict[str, Any]], threshold: float) -> list[dict[str, Any]]:
    """Planted prompts by kind, both splits: the median log-odds, and how many fall under the log-odds threshold."""
    out = []
    for kind in dict.fromkeys(r["kind"] for r in records if r["role"] == "planted"):
        name = "-(top-1/top-2 log-odds)"
        planted = [r["scores"][name] for r in records if r["kind"] == kind and r["role"] == "planted"]
        control = [r["scores"][name] for r in records if r["kind"] == kind and r["role"] == "control"]
        fired = f"{sum(x > threshold for x in planted)}/{len(planted)}", f"{sum(x > threshold for x in control)}/{len(control)}"
        medians = {"planted": -float(np.median(planted)), "control": -float(np.median(control))}
        out.append({"kind": kind, **medians, "planted fired": fired[0], "control fired": fired[1]})
    return out


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--model", default="demo", help="model reference or folder")
    parser.add_argument("--json", type=Path, help="also write everything here")
    options = parser.parse_args()
    torch.set_num_threads(1)
    records = read(load_model(options.model))
    table = [row(records, "scores", name, ("control", "null")) for name in records[0]["scores"]]
    given = [row(records, "candidates", name, ("control",)) for name in next(r["candidates"] for r in records if "candidates" in r)]
    kinds = by_kind(records, table[0]["threshold"])
    for line in summary(records):
        print("  ".join(f"{k} {v:.2f}" if isinstance(v, float) else f"{v}" for k, v in line.items()))
    for title, rows in (
        ("Planted against controls and null prompts", table),
        ("Planted against controls, candidates given", given),
    ):
        print(f"\n{title}: AUC [interval], AUC against controls, sensitivity and false positives at the calibration threshold")
        for line in rows:
            print(f"{line['score']:28s} threshold {line['threshold']:+.3f}")
            for split in ("calibration", "held-out"):
                v = line[split]
                spans = {k: f"{v[k][0]:.2f} [{v[k][1]:.2f}, {v[k][2]:.2f}]" for k in ("auc", "sensitivity", "false positives")}
                print(
                    f"    {split:12s} AUC {spans['auc']} ({v['auc against controls']:.2f})  "
                    f"sensitivity {spans['sensitivity']}  false positives {spans['false positives']}"
                )
    print("\nBy kind, median top-1/top-2 log-odds, and fired at its threshold (both splits)")
    for line in kinds:
        print(
            f"{line['kind']:14s} planted {line['planted']:.2f} {line['planted fired']}  control {line['control']:.2f} {line['control fired']}"
        )
    if options.json:
        everything = {"model": options.model, "records": records, "scores": table, "candidates": given, "kinds": kinds}
        options.json.write_text(json.dumps(everything, indent=1), encoding="utf-8")


if __name__ == "__main__":
    main()
