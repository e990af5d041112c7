"""Our graph of the same request as ``run_circuit_tracer.py``'s, timed three ways, in a process of its own.

1. ``same``: with the nodes that the peer chose: the forward and what is frozen, features, the pass that ranks all features (which nobody reads here; the peer's
   time has its ranking in it), all direct edges.
2. ``own``: ``attribute_prompt`` as a user calls it: nodes of our choice, every row checked.
3. ``every``: the peer's rows, with every active feature as a column, which the peer computes too, and drops. Its edges are compared with the peer's.

Loading is not timed, nor is a first run on a few tokens.

Run by ``graph_peer.py``: python run_graph.py REQUEST.json PEER.safetensors → one line of JSON.
"""

from __future__ import annotations

import importlib.metadata
import json
import os
import resource
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
os.environ["HF_HUB_OFFLINE"] = "1"

import torch
from safetensors.torch import load_file
from torch import Tensor

from symbolic_residue.dictionaries import open_dictionary, Transcoders
from symbolic_residue.graph import (
    attribute_prompt,
    Columns,
    direct_edges,
    freeze,
    LocalModel,
    read_targets,
    relevance,
    target_rows,
    unit_rows,
    Units,
    with_dictionary,
)
from symbolic_residue.instrument import Instrument
from symbolic_residue.models import load_model
from symbolic_residue.prompts import build_prompt


def every_feature(local: LocalModel) -> Units:
    """All active features of a replacement model."""
    found = []
    for i, one in local.units.items():
        cells = one.cells()
        assert cells is not None
        position, feature = cells
        found.append(torch.stack([torch.full_like(position, i), position, feature], 1))
    return Units.of(torch.cat(found))


def graph(
    instrument: Instrument, dictionary: Transcoders, ids: Tensor, chosen: Units | None, *, every: bool = False
) -> tuple[Tensor, Columns, LocalModel, Units, Tensor]:
    """Edges into the chosen features (all active ones where None is given) and then the top logits; columns; the columns' features; the rows' values."""
    local = with_dictionary(freeze(instrument, ids), dictionary)
    targets = read_targets(instrument, local, ["top"], -1, "half")
    relevance(local, torch.stack([t.weight * t.direction for t in targets]).sum(0))
    of_columns = every_feature(local) if every or chosen is None else chosen
    chosen = of_columns if chosen is None else chosen
    edges, columns = direct_edges(local, unit_rows(local, chosen, "half") + target_rows(local, targets), of_columns)
    tokens = [t.token for t in targets]
    return edges, columns, local, of_columns, torch.tensor(tokens)


def compared(
    peer: dict[str, Tensor], edges: Tensor, columns: Columns, local: LocalModel, features: Units, tokens: Tensor
) -> dict[str, Any]:
    """Edge by edge against the peer's, and what its top logit's row lacks."""
    n, n_layers, k = columns.n_positions, columns.n_layers, len(peer["features"])
    if tokens.tolist() != peer["logits"].tolist():
        raise SystemExit("Other logits are explained.")
    place = {tuple(one): j for j, one in enumerate(peer["features"].tolist())}
    triples = zip(features.layer.tolist(), features.position.tolist(), features.neuron.tolist(), strict=True)
    same = torch.full((len(columns),), -1)
    same[: columns.n_units] = torch.tensor([place.get(one, -1) for one in triples])
    at = torch.arange(n_layers * n)
    same[columns.rest] = torch.where(at % n > 0, k + at, -1)
    same[columns.embeddings] = k + n_layers * n + torch.arange(n)
    both = same >= 0
    wanted = peer["edges"][:, same[both]]
    off = (edges[:, both] - wanted).abs()
    top = int(peer["probabilities"].argmax())
    row, token = edges[k + top].double(), int(tokens[top])
    logits = local.uncapped_logits().double()
    first = torch.zeros(len(columns), dtype=torch.bool)
    first[: columns.n_units] = features.position == 0
    first[columns.rest] = at % n == 0
    unchosen = torch.zeros(len(columns), dtype=torch.bool)
    unchosen[: columns.n_units] = (same[: columns.n_units] < 0) & ~first[: columns.n_units]
    values = torch.cat([torch.stack([local.units[i].at(torch.tensor([t]), torch.tensor([f]))[0] for i, t, f in place]).double()])
    theirs, ours = peer["edges"].double().sum(1), edges.double().sum(1)
    return {
        "largest": float(off.max() / peer["edges"].abs().max()),
        "largest_of_row": float((off.amax(1) / wanted.abs().amax(1)).max()),
        "edges": int(wanted.numel()),
        "probability": float((local.logits_at(-1).double().softmax(-1)[tokens] - peer["probabilities"]).abs().max()),
        "logit": {
            "value": float(logits[token] - logits.mean()),
            "ours": float(row.sum()),
            "theirs": float(theirs[k + top]),
            "unchosen": float(row[unchosen].sum()),
            "first": float(row[first].sum()),
            "bias": float(row[columns.bias].sum() + row[columns.constant]),
        },
        "features_ours": float(((ours[:k] - values).abs() / edges[:k].double().abs().sum(1)).max()),
        "features_theirs": float(((theirs[:k] - values).abs() / values).median()),
    }


def main() -> None:
    request = json.loads(Path(sys.argv[1]).read_text("utf-8"))
    torch.set_num_threads(request["threads"])
    ids = torch.tensor(request["ids"])
    loaded = load_model(request["model"])
    instrument, dictionary = Instrument(loaded), open_dictionary(request["transcoders"])
    prompt = build_prompt(loaded.tokenizer, loaded.tokenizer.decode(request["ids"]), allow_special=True)
    if prompt.ids != request["ids"]:
        raise SystemExit("The prompt's text has other tokens.")
    peer = load_file(sys.argv[2])
    chosen = Units.of(peer["features"])
    times: dict[str, list[float]] = {}

    def timed(name: str, call: Callable[[], Any]) -> Any:
        wall, cpu = time.perf_counter(), time.process_time()
        found = call()
        times[name] = [time.perf_counter() - wall, time.process_time() - cpu]
        return found

    with torch.no_grad():
        graph(instrument, dictionary, ids[:4], None)
        timed("same", lambda: graph(instrument, dictionary, ids, chosen))
        own = timed("own", lambda: attribute_prompt(instrument, prompt, units=dictionary, max_nodes=len(chosen)))
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
        found = compared(peer, *timed("every", lambda: graph(instrument, dictionary, ids, chosen, every=True)))
    named = set(zip(own.units.layer.tolist(), own.units.position.tolist(), own.units.neuron.tolist(), strict=True))
    shared = len(named & {tuple(one) for one in peer["features"].tolist()}) / len(chosen)
    fvu = [one["fvu"] for one in own.dictionary["layers"]]
    versions = {name: importlib.metadata.version(name) for name in ("torch", "transformers")}
    print(
        json.dumps(
            {"times": times, **found, "shared": shared, "fvu": statistics.median(fvu), "peak_mb": peak, "versions": versions}
        )
    )


if __name__ == "__main__":
    main()
