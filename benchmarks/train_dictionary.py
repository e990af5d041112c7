"""Dictionaries of the demo model, trained in minutes on one core: how bad are they, beside mean ablation and beside a random encoder?

1. Texts: the topics of Python's own documentation (``pydoc_data.topics``), a document each, the first ``CHARACTERS`` of it. A document is held out if the SHA-256 of
   its name ends in a hexadecimal digit of 0 to 3. What is reported is measured on held-out documents, and on natural prompts of the package, which are another kind of text.
2. Trained: a CLT and transcoders of four layers, transcoders of all layers; each of the first and last also with a random encoder (its decoders trained as long). The
   learning rate was chosen by the training loss on 3048 positions of this text, held-out documents among them; nothing else was chosen by results.
3. ``evaluate_dictionary`` on the first ``TOKENS`` of each document (n counts documents). Dictionaries of all layers: also ``graph_scores`` of graphs of short
   prompts, every active feature a node.
4. Each result is appended to ``--records``; what stands there is not run again. CPU seconds are those of the process, one thread. Weights go to ``--folder``.

Run: python benchmarks/train_dictionary.py --folder FOLDER [--records FILE] [--write]
"""

from __future__ import annotations

import argparse
import hashlib
import json
import pydoc_data.topics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from _common import machine, write_section

from symbolic_residue import open_model
from symbolic_residue.dictionaries import evaluate_dictionary, train_dictionary, TrainingPlan
from symbolic_residue.graph import attribute, graph_scores
from symbolic_residue.instrument import Instrument
from symbolic_residue.prompts import natural_prompts
from symbolic_residue.stats import bootstrap_mean

CHARACTERS, SEED = 1600, 0
FOUR = (6, 12, 18, 24)
ALL = tuple(range(30))
BASE: dict[str, Any] = {"batch": 256, "learning_rate": 2e-3, "dead_after": 50_000, "context": 128, "seed": SEED}
PLANS = {
    "clt": TrainingPlan("clt", layers=FOUR, features=512, k=16, steps=600, **BASE),
    "clt, random encoder": TrainingPlan("clt", layers=FOUR, features=512, k=16, steps=600, random_encoder=True, **BASE),
    "transcoders": TrainingPlan("transcoder", layers=FOUR, features=512, k=16, steps=600, **BASE),
    "all layers": TrainingPlan("transcoder", layers=ALL, features=128, k=8, steps=400, **BASE),
    "all layers, random encoder": TrainingPlan("transcoder", layers=ALL, features=128, k=8, steps=400, random_encoder=True, **BASE),
}
TOKENS = {"clt": 40, "clt, random encoder": 40, "transcoders": 40, "all layers": 20, "all layers, random encoder": 20}
DOCUMENTS = {"clt": 16, "clt, random encoder": 16, "transcoders": 16, "all layers": 8, "all layers, random encoder": 8}
GRAPHS = 6


def documents() -> tuple[list[str], list[str]]:
    """Those to train on, and those held out, each in order of its name."""
    parts: tuple[list[str], list[str]] = ([], [])
    for name, text in sorted(pydoc_data.topics.topics.items()):
        held = hashlib.sha256(name.encode()).hexdigest()[-1] in "0123"
        parts[held].append(text[:CHARACTERS])
    return parts


def run(folder: Path, records: Path) -> None:
    """Everything that is not there yet."""
    done = {row["what"] for row in read(records)}
    loaded = open_model("demo")
    instrument = Instrument(loaded)
    training, held = documents()
    ids = [list(loaded.tokenizer(text)["input_ids"]) for text in held]
    natural = [list(loaded.tokenizer(one.prompt)["input_ids"]) for one in natural_prompts()[::6]]

    def once(what: str, work: Callable[[], dict[str, Any]]) -> None:
        if what in done:
            return
        start = time.process_time()
        found = work()
        with records.open("a") as file:
            file.write(json.dumps({"what": what, "seconds": time.process_time() - start} | found) + "\n")
        print(what, f"{time.process_time() - start:.0f} s", flush=True)

    began: dict[str, float] = {}

    def tell(what: str, number: int, total: int) -> None:
        began.setdefault(what, time.process_time())

    made = {}
    # all layers first: its activations serve the others
    for name in sorted(PLANS, key=lambda name: not name.startswith("all")):

        def train(name: str = name) -> dict[str, Any]:
            began.clear()
            one = train_dictionary(
                loaded,
                training,
                folder / name.replace(", ", "-").replace(" ", "-"),
                PLANS[name],
                activations=folder / "rows",
                progress=tell,
            )
            last = one.records.tail(20)
            return {
                "collecting": began["training"] - began["activations"], "tokens": one.tokens, "left_out": one.left_out, "documents": len(training),
                "trained": last["unexplained"].mean(), "active": last["active"].mean(), "dead": last["dead"][-1], "layers": one.layers.to_dicts(),
            }  # fmt: skip

        once(f"train {name}", train)
        made[name] = train_dictionary(
            loaded, training, folder / name.replace(", ", "-").replace(" ", "-"), PLANS[name], activations=folder / "rows"
        ).dictionary
    for name, dictionary in made.items():
        prompts = [one[: TOKENS[name]] for one in ids[: DOCUMENTS[name]]]
        once(
            f"held out: {name}",
            lambda d=dictionary, p=prompts: {"table": evaluate_dictionary(instrument, d, p, seed=SEED).to_dicts()},
        )
        if name.startswith("clt"):
            once(
                f"natural: {name}",
                lambda d=dictionary: {"table": evaluate_dictionary(instrument, d, natural, seed=SEED).to_dicts()},
            )
        if name.startswith("all"):
            once(f"graphs: {name}", lambda d=dictionary: {"scores": [graph_of(instrument, d, one[:10]) for one in ids[:GRAPHS]]})


def graph_of(instrument: Instrument, dictionary: Any, ids: list[int]) -> dict[str, float]:
    """Scores of one graph of the top logit, every active feature a node."""
    loaded = instrument.loaded
    graph = attribute(
        loaded.model, loaded.tokenizer, loaded.tokenizer.decode(ids), units=dictionary, max_nodes=8 * 30 * len(ids) * 2
    )
    scores = graph_scores(graph)
    return {"replacement": scores.replacement, "completeness": scores.completeness, "nodes": len(graph.units), "tokens": len(ids)}


def read(records: Path) -> list[dict[str, Any]]:
    """What stands there."""
    return [json.loads(line) for line in records.read_text().splitlines()] if records.exists() else []


def cell(row: dict[str, Any], name: str) -> str:
    """A number with its interval."""
    low, high = row[f"{name}_low"], row[f"{name}_high"]
    return f"{row[name]:.2f}" + ("" if low is None else f" [{low:.2f}, {high:.2f}]")


def report(records: Path) -> str:
    """The section of RESULTS.md."""
    found = {row["what"]: row for row in read(records)}
    first = found["train all layers"]
    total = sum(row["seconds"] for row in found.values())
    lines = [
        "## Dictionaries: trained in minutes on the demo model (`train_dictionary.py`)", "",
        f"{machine(torch.get_num_threads())}; {total / 60:.1f} minutes of one core in all, of which {first['collecting']:.0f} s for the activations of "
        f"{first['tokens']} positions ({first['documents']} documents of Python's documentation, the first position of every piece left out, and {first['left_out']} second sinks).", "",
        "Held-out documents. A row a layer; KL in nats; 95 % intervals over documents (n). `KL, mean` has the mean write in the MLP's place: a dictionary above it is worse "
        "than none. `KL up to here`: this layer and all of the dictionary's before it replaced together.", "",
        "| dictionary | layer | n | FVU | L0 | KL | KL, mean | KL up to here | means up to here |", "|---|---|---|---|---|---|---|---|---|",
    ]  # fmt: skip
    for name in PLANS:
        for row in found[f"held out: {name}"]["table"]:
            if name.startswith("all") and row["layer"] not in (0, 6, 11, 12, 18, 24, 28, 29):
                continue
            lines.append(
                f"| {name} | {row['layer']} | {row['n']} | {cell(row, 'fvu')} | {row['l0']:.1f} | {cell(row, 'kl')} | {cell(row, 'kl_mean')} | {cell(row, 'kl_up_to')} | {cell(row, 'kl_mean_up_to')} |"
            )
    lines += [
        "",
        "Natural prompts of the package, another kind of text:",
        "",
        "| dictionary | layer | n | FVU | KL | KL, mean | KL up to here | means up to here |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for name in PLANS:
        for row in found.get(f"natural: {name}", {"table": []})["table"]:
            lines.append(
                f"| {name} | {row['layer']} | {row['n']} | {cell(row, 'fvu')} | {cell(row, 'kl')} | {cell(row, 'kl_mean')} | {cell(row, 'kl_up_to')} | {cell(row, 'kl_mean_up_to')} |"
            )
    lines += [
        "",
        "| dictionary | features a layer | unexplained in training, last 20 steps | dead at the end | CPU s of training |",
        "|---|---|---|---|---|",
    ]
    for name, plan in PLANS.items():
        row = found[f"train {name}"]
        lines.append(
            f"| {name} | {plan.features} | {row['trained']:.2f} | {row['dead']:.0f} of {plan.features * len(plan.layers or ())} | {row['seconds'] - row['collecting']:.0f} |"
        )
    lines += [
        "",
        f"Graphs of {GRAPHS} held-out openings of 10 tokens, top logit, every active feature a node (mean and 95 % interval over prompts):",
        "",
        "| dictionary | replacement score | completeness score |",
        "|---|---|---|",
    ]
    for name in PLANS:
        if f"graphs: {name}" in found:
            cells = []
            for score in ("replacement", "completeness"):
                one = bootstrap_mean([row[score] for row in found[f"graphs: {name}"]["scores"]], seed=SEED)
                cells.append(f"{one.value:.3f} [{one.low:.3f}, {one.high:.3f}]")
            lines.append(f"| {name} | {' | '.join(cells)} |")
    sink = {row["layer"]: row for row in first["layers"]}
    top = sorted(sink.values(), key=lambda row: -row["first_written"])[:4]
    lines += [
        "",
        "Mean squared norm of what an MLP writes at the first position over the mean elsewhere: "
        + ", ".join(f"layer {row['layer']} {row['first_written']:,.0f}" for row in top)
        + ".",
    ]
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--folder", type=Path, required=True)
    parser.add_argument("--records", type=Path)
    parser.add_argument("--write", action="store_true")
    args = parser.parse_args()
    records = args.records or args.folder / "records.jsonl"
    args.folder.mkdir(parents=True, exist_ok=True)
    torch.set_num_threads(1)
    run(args.folder, records)
    text = report(records)
    print(text)
    if args.write:
        write_section(text)


if __name__ == "__main__":
    main()
