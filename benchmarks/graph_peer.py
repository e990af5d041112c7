"""Attribution graphs beside circuit-tracer 0.5.0: the same model, transcoders, prompt and nodes; edges compared, wall time of the attribution.

1. Model: the demo model. Transcoders: fitted here on the packaged prompts' counterparts and pages of documentation (encoder rows: MLP inputs, centred;
   thresholds: so that 16 of 1024 are active on average; decoders: ridge regression), a layer each, written in circuit-tracer's format, which both sides
   read. They are a quick fit; what is compared does not hang on how good they are.
2. Each round is another prompt. First circuit-tracer (``peers/run_circuit_tracer.py``, in its environment), then ours (``peers/run_graph.py``) with the nodes that
   it chose; a process each, A B A B …. Both time the attribution alone: models and transcoders are in memory, and a few tokens have been run.
3. ``--batch`` is circuit-tracer's batch size: how many rows one backward pass serves. ``--batches`` times it with several on one prompt; the default is the
   quickest found on the machine of RESULTS.md.
4. Ratios: circuit-tracer's seconds over ours, by prompt. n counts prompts.

What stands in ``--folder`` is not run again.

Run: sh benchmarks/peers/make_graph_env.sh PEER; python benchmarks/graph_peer.py --python PEER/bin/python [--folder F] [--rounds 6] [--tokens 16 64] [--write]
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import tempfile
from pathlib import Path
from typing import Any

import torch
import yaml
from _common import cell, in_own_process, machine, write_section
from safetensors.torch import save_file
from torch import Tensor

from symbolic_residue.instrument import Instrument
from symbolic_residue.models import fetch, load_model
from symbolic_residue.prompts import counterfactual_pairs, PAIR_CATEGORIES

HERE = Path(__file__).parent
FEATURES, ACTIVE, RIDGE, BATCHES, LENGTH = 1024, 16, 1.0, 40, 128


def fit(folder: Path, instrument: Instrument, tokenizer: Any) -> None:
    """Transcoders of every layer, into a folder."""
    pages = "\n\n".join(page.read_text("utf-8") for page in sorted((HERE.parent / "docs").glob("*.md")))
    text = ". ".join(pair.corrupted for pair in counterfactual_pairs()) + pages
    ids = torch.tensor(tokenizer(text)["input_ids"][: BATCHES * LENGTH]).view(BATCHES, LENGTH)
    layers = range(instrument.parts.n_layers)
    names = [f"{kind}.{i}" for kind in ("mlp_in", "mlp_out") for i in layers]
    parts: dict[str, list[Tensor]] = {name: [] for name in names}
    for batch in ids.split(4):
        trace = instrument.run(batch, reads=names, keep_logits=1)
        for name in names:
            parts[name].append(trace[name][:, 1:].flatten(0, 1))  # not the sink
    folder.mkdir(parents=True)
    g = torch.Generator().manual_seed(0)
    for i in layers:
        x, y = torch.cat(parts.pop(f"mlp_in.{i}")), torch.cat(parts.pop(f"mlp_out.{i}"))
        mean = x.mean(0)
        encoder = torch.nn.functional.normalize(x[torch.randperm(len(x), generator=g)[:FEATURES]] - mean, dim=1)
        read = (x - mean) @ encoder.T
        threshold = read.flatten().kthvalue(int(read.numel() * (1 - ACTIVE / FEATURES))).values
        acts = (read - threshold).relu()
        square = acts.T @ acts
        square += RIDGE * square.diagonal().mean() * torch.eye(FEATURES)
        save_file(
            {
                "W_enc": encoder,
                "b_enc": -(encoder @ mean) - threshold,
                "W_dec": torch.linalg.solve(square, acts.T @ (y - y.mean(0))).contiguous(),
                "b_dec": y.mean(0),
            },
            folder / f"layer_{i}.safetensors",
        )
    said = {"feature_input_hook": "mlp.hook_in", "feature_output_hook": "mlp.hook_out", "scan": "local", "model_name": "demo"}
    (folder / "config.yaml").write_text(yaml.safe_dump({"model_kind": "transcoder_set", **said}), "utf-8")


def prompt_ids(tokenizer: Any, which: int, length: int) -> list[int]:
    """A prompt: packaged ones of a kind, one after another, behind the token that the model's texts begin with (circuit-tracer asks for a special one)."""
    start, kind = divmod(which, len(PAIR_CATEGORIES))
    pairs = [pair.clean for pair in counterfactual_pairs(PAIR_CATEGORIES[kind])]
    ids = [tokenizer.bos_token_id, *tokenizer(". ".join(pairs[start:] + pairs[:start]))["input_ids"]]
    return ids[:length]


def measure(folder: Path, python: str, name: str, request: dict[str, Any]) -> dict[str, Any]:
    """Both tools on a request, once; from the folder where it stands there."""
    asked, graph = folder / f"{name}.request.json", folder / f"{name}.safetensors"
    asked.write_text(json.dumps(request), "utf-8")
    found: dict[str, Any] = {}
    for side, command in (
        ("theirs", (python, str(HERE / "peers" / "run_circuit_tracer.py"))),
        ("ours", (sys.executable, str(HERE / "peers" / "run_graph.py"))),
    ):
        kept = folder / f"{name}.{side}.json"
        if not kept.exists():
            kept.write_text(json.dumps(in_own_process(*command, str(asked), str(graph))), "utf-8")
        found[side] = json.loads(kept.read_text("utf-8"))
    return found


def percent(shares: list[float]) -> str:
    """Median and range."""
    return f"{statistics.median(shares):.0%} [{min(shares):.0%}, {max(shares):.0%}]"


def table(results: dict[int, list[dict[str, Any]]]) -> list[str]:
    """Rows of the tables."""
    rows = [
        "| tokens | prompts | active features | circuit-tracer | ours, its nodes | ratio of wall time | of CPU time | ours, own nodes, every row checked | ratio of wall time | of CPU time |",
        "|---|---|---|---|---|---|---|---|---|---|",
    ]
    middle = statistics.median
    for length, found in results.items():
        theirs = [one["theirs"] for one in found]
        cells = [f"{middle(one['seconds'] for one in theirs):.1f} s, CPU {middle(one['cpu'] for one in theirs):.1f} s"]
        for way in ("same", "own"):
            ours = [one["ours"]["times"][way] for one in found]
            cells.append(f"{middle(wall for wall, _ in ours):.1f} s, CPU {middle(cpu for _, cpu in ours):.1f} s")
            cells.append(cell([a["seconds"] / wall for a, (wall, _) in zip(theirs, ours, strict=True)]))
            cells.append(cell([a["cpu"] / cpu for a, (_, cpu) in zip(theirs, ours, strict=True)]))
        active = f"{middle(one['active'] for one in theirs):.0f}"
        rows.append(f"| {length} | {len(found)} | {active} | {' | '.join(cells)} |")
    rows += [
        "",
        "| tokens | edges compared | largest difference, of the largest edge | of the row's largest edge | top logit − mean | sum of its in-edges: ours "
        "| circuit-tracer's | features' rows: gap, of the row's size, ours at most | circuit-tracer's gap, of the activation |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for length, found in results.items():
        ours = [one["ours"] for one in found]
        logits = [one["logit"] for one in ours]
        sums = [f"{middle(one[name] for one in logits):.2f}" for name in ("value", "ours")]
        gaps = [abs(one["value"] - one["theirs"]) / abs(one["value"]) for one in logits]
        features = [one["features_theirs"] for one in ours]
        rows.append(
            f"| {length} | {sum(one['edges'] for one in ours):,} | {max(one['largest'] for one in ours):.1e} "
            f"| {max(one['largest_of_row'] for one in ours):.1e} | {' | '.join(sums)} "
            f"| {middle(one['theirs'] for one in logits):.2f}: off by {percent(gaps)} of the value "
            f"| {max(one['features_ours'] for one in ours):.0e} | {percent(features)} |"
        )
    rows += [
        "",
        "What circuit-tracer's row of the top logit lacks (value = its in-edges + these):",
        "",
        "| tokens | prompt | value | its in-edges | features that are no nodes | MLPs at the first position | decoders' biases |",
        "|---|---|---|---|---|---|---|",
    ]
    for length, found in results.items():
        for which, one in enumerate(found):
            parts = [f"{one['ours']['logit'][name]:.2f}" for name in ("value", "theirs", "unchosen", "first", "bias")]
            rows.append(f"| {length} | {PAIR_CATEGORIES[which % len(PAIR_CATEGORIES)]} | {' | '.join(parts)} |")
    return rows


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--python", required=True, help="interpreter of circuit-tracer's environment")
    parser.add_argument("--folder", type=Path, help="where transcoders and rounds are kept")
    parser.add_argument("--rounds", type=int, default=6)
    parser.add_argument("--tokens", type=int, nargs="+", default=[16, 64])
    parser.add_argument("--nodes", type=int, default=1000)
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument(
        "--batches", type=int, nargs="+", help="only time circuit-tracer with these batch sizes, on the first prompt"
    )
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--write", action="store_true", help="put the tables into RESULTS.md")
    options = parser.parse_args()
    folder: Path = options.folder or Path(tempfile.mkdtemp())
    model = str(fetch("demo"))
    loaded = load_model(model)
    if not (folder / "transcoders").exists():
        fit(folder / "transcoders", Instrument(loaded), loaded.tokenizer)
    tokenizer = loaded.tokenizer
    shared = {
        "model": model, "transcoders": str(folder / "transcoders"), "nodes": options.nodes, "threads": options.threads,
    }  # fmt: skip
    del loaded
    if options.batches:
        for length in options.tokens:
            for batch in options.batches:
                asked = folder / "batch.request.json"
                asked.write_text(json.dumps({**shared, "ids": prompt_ids(tokenizer, 0, length), "batch": batch}), "utf-8")
                script = str(HERE / "peers" / "run_circuit_tracer.py")
                found = in_own_process(options.python, script, str(asked), str(folder / "batch.safetensors"))
                print(length, batch, found, flush=True)
        return
    results: dict[int, list[dict[str, Any]]] = {}
    for which in range(options.rounds):
        for length in options.tokens:
            request = {**shared, "ids": prompt_ids(tokenizer, which, length), "batch": options.batch}
            name = f"{length}-{options.nodes}-{options.batch}-{options.threads}-{which}"
            results.setdefault(length, []).append(measure(folder, options.python, name, request))
    one = results[options.tokens[0]][0]
    fvu = statistics.median(found["ours"]["fvu"] for rounds in results.values() for found in rounds)
    memory = [
        f"{length} tokens {statistics.median(f['theirs']['peak_mb'] for f in found):.0f} against {statistics.median(f['ours']['peak_mb'] for f in found):.0f} MB"
        for length, found in results.items()
    ]
    shares = [found["ours"]["shared"] for rounds in results.values() for found in rounds]
    versions = ", ".join(f"{name} {version}" for name, version in one["theirs"]["versions"].items())
    text = "\n".join(
        [
            "## Attribution graphs: circuit-tracer",
            "",
            f"Machine: {machine(options.threads)}. circuit-tracer's environment: {versions}; TransformerLens backend, batches of {options.batch}. Demo model "
            f"(SmolLM2-135M-Instruct), float32; a transcoder a layer, {FEATURES} features, {ACTIVE} active on average, fitted quickly (FVU {fvu:.2f} on the "
            f"prompts, median over layers); {options.nodes} nodes, as circuit-tracer chooses them; targets: top logits, 95 %, at most 10. A process each, A B A B …, another prompt "
            "each round; the attribution alone is timed (model and transcoders loaded, a few tokens run before). Median [range] over prompts (the range of "
            f"{options.rounds} holds the median of such prompts with {1 - 2.0 ** (1 - options.rounds):.0%}). Other work on the machine moves CPU time less than wall time. "
            "Target: edges within 1e-4, ≥ 8× less wall time at 64 tokens.",
            "",
            *table(results),
            "",
            f"- Peak memory of the process, model and all: {'; '.join(memory)} (circuit-tracer against ours).",
            f"- Nodes that both choose, where each chooses its own: {min(shares):.0%} to {max(shares):.0%}. circuit-tracer's choice is by influence (shares of "
            "absolute edges along paths, ranked again as rows come in), ours by total effect.",
        ]
    )
    print(text)
    if options.write:
        write_section(text)


if __name__ == "__main__":
    main()
