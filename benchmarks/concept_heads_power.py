"""Does the rule about heads find a concept that was put into a few of a real model's heads, and none where there is none?

    python benchmarks/concept_heads_power.py RUN [--seeds 4]

RUN is a folder of ``residue concepts train``. In every scenario the labels of a concept and the neutral telling are exchanged by a coin, which leaves the real
activations and takes the concept out; then m heads are moved under the concept by ``size`` times their spread over the neutral tellings, along a random direction
each, and the residual stream from the first of them on by 0.8 times its own. Unit of the counts: one such made concept.
"""

from __future__ import annotations

import argparse
from collections import Counter
from pathlib import Path

import numpy as np

from symbolic_residue.concepts import ConceptRun, head_verdict, HeadVerdict, open_concept_run

STREAM = 0.8
WORLDS = ((0, 0.0), (1, 1.0), (1, 2.0), (3, 1.0), (3, 2.0), (10, 1.0), (10, 2.0))


def moved(x: np.ndarray, positive: np.ndarray, size: float, rng: np.random.Generator) -> np.ndarray:
    """``x [n, d]`` with the positives moved by ``size`` times the negatives' spread."""
    direction = rng.normal(size=x.shape[1])
    spread = np.sqrt(np.trace(np.cov(x[~positive].T)))
    return x + np.outer(positive, size * spread * direction / np.linalg.norm(direction))


def made(run: ConceptRun, m: int, size: float, seed: int) -> tuple[HeadVerdict, list[tuple[int, int]]]:
    """The verdict on a made concept, and the heads that hold it."""
    rng = np.random.default_rng(seed)
    concept = run.directions.concepts[seed % len(run.directions.concepts)]
    labels, scenarios = np.array(run.labels), np.array(run.scenarios)
    rows = np.flatnonzero((labels == concept) | (labels == "baseline"))
    labels, scenarios = labels[rows], scenarios[rows]
    for name in np.unique(scenarios):
        if rng.random() < 0.5:
            here = np.flatnonzero(scenarios == name)
            labels[here] = labels[here][::-1]
    positive = labels == concept
    heads = {i: np.array(x[rows], dtype=np.float64) for i, x in run.pooled.heads.items()}
    resid = {i: np.array(x[rows], dtype=np.float64) for i, x in run.pooled.resid.items()}
    names = [(i, h) for i in sorted(heads) for h in range(heads[i].shape[1])]
    chosen = [names[j] for j in rng.choice(len(names), m, replace=False)]
    for i, h in chosen:
        heads[i][:, h] = moved(heads[i][:, h], positive, size, rng)
    first = min((i for i, _ in chosen), default=0)
    for i in resid:
        if i >= first:  # without a head the stream alone has it, so that heads are asked
            resid[i] = moved(resid[i], positive, STREAM, np.random.default_rng(seed))
    found = head_verdict(
        heads, resid, labels.tolist(), scenarios.tolist(), concept, n_draws=199, n_draws_readout=39, n_random=20, seed=seed
    )
    return found, chosen


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("run", type=Path)
    parser.add_argument("--seeds", type=int, default=4)
    options = parser.parse_args()
    run = open_concept_run(options.run)
    print("heads  selectivity  verdicts                        planted among the first  AUC of few, all, next")
    for m, size in WORLDS:
        words: Counter[str] = Counter()
        among, aucs = [], []
        for seed in range(options.seeds):
            found, chosen = made(run, m, size, seed)
            words[found.word] += 1
            among.append(np.mean([one in found.readout.top for one in chosen]) if chosen else np.nan)
            aucs.append([getattr(found.readout, name).auc.value for name in ("few", "all", "next")])
        verdicts = ", ".join(f"{count} {word}" for word, count in words.most_common())
        share = "–" if not m else f"{np.mean(among):.2f}"
        print(f"{m:5}  {size:11.1f}  {verdicts:30}  {share:>23}  {' '.join(f'{a:.2f}' for a in np.mean(aucs, axis=0))}", flush=True)


if __name__ == "__main__":
    main()
