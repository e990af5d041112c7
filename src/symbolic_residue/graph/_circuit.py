"""A graph of the neurons (or features) that make the difference between two prompts, and how much of it they bring back when they alone are kept.

1. The pair runs (``_kept``); the score ``mixed`` (``_baselines``, two backward passes) ranks the neurons in play; the first ``max_nodes`` become the
   graph's nodes, and ``logit(answer) − logit(wrong)`` its target. Total effects on one prompt choose other neurons: those that hold a logit up, whatever the
   prompt says.
2. The same neurons are kept live, all others get their values of the corrupted run, and what comes back is measured, by real runs; so are as many drawn at
   random.
3. Of a dictionary the features, with errors at the corrupted run's values (``_kept_features``): what all features together bring back is said beside it.
4. The units were chosen on the pair that they are measured on: of other prompts this says nothing, and one pair is one observation.

Kept beside the graph as ``circuit.json``, which names the graph's sha256.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import polars as pl

from symbolic_residue.dictionaries import Dictionary
from symbolic_residue.errors import ConfigError, DamagedFileError, WriteError
from symbolic_residue.graph._attribute import attribute_prompt
from symbolic_residue.graph._faithfulness import CURVE_SCHEMA, curves_of, log_counts
from symbolic_residue.graph._feature_scores import scores_of
from symbolic_residue.graph._graph import Graph
from symbolic_residue.graph._kept_features import run_units
from symbolic_residue.graph._mlp import Rule
from symbolic_residue.graph._pairs import token_pair, TokenPair
from symbolic_residue.instrument import Instrument
from symbolic_residue.prompts import CounterfactualPair

__all__ = ["Circuit", "attribute_circuit", "load_circuit", "save_circuit"]

_FORMAT = 1
_CHOSEN = "mixed"
_PLAIN = (
    "clean",
    "corrupted",
    "answer",
    "wrong",
    "clean_difference",
    "corrupted_difference",
    "none_kept",
    "in_play",
    "kept",
    "reason",
)


@dataclass(frozen=True, eq=False)
class Circuit:
    """What a graph's neurons do when they alone are kept.

    Attributes:
        clean, corrupted: the prompts.
        answer, wrong: the tokens of the difference.
        clean_difference, corrupted_difference: ``logit(answer) − logit(wrong)`` of each.
        none_kept: of the clean prompt with the corrupted run's neurons.
        in_play: neurons × positions that could be kept.
        kept: how many are: the graph's nodes.
        curves: one row a score (``mixed``, ``random``), draw and n: ``score draw n difference recovered``, n up to ``kept``.
        reason: why there is nothing to recover; None where there is.
        units: ``neurons``, ``features``, or ``features and neurons``.
        whole: of features, what all in play bring back; None of neurons, where it is all.
    """

    clean: str
    corrupted: str
    answer: str
    wrong: str
    clean_difference: float
    corrupted_difference: float
    none_kept: float
    in_play: int
    kept: int
    curves: pl.DataFrame
    reason: str | None
    units: str = "neurons"
    whole: float | None = None

    def recovered(self, score: str = _CHOSEN) -> list[float]:
        """What is brought back with all the graph's neurons (or as many random ones), one number a draw; none where there is nothing to recover."""
        rows = self.curves.filter((pl.col("score") == score) & (pl.col("n") == self.kept))
        return [one for one in rows["recovered"].to_list() if one is not None]

    def said(self) -> str:
        """In words."""
        if self.reason is not None:
            return f"What the {self.kept} {self.units} bring back: {self.reason}."
        (own,), others = self.recovered(), self.recovered("random")
        gap = self.clean_difference - self.none_kept
        mean, low, high = (_percent(one) for one in (sum(others) / len(others), min(others), max(others)))
        return (
            f"Kept alone, all other {self.units} at their values for the corrupted prompt, the {self.kept} of {self.in_play} {self.units} bring "
            f"back {_percent(own)} of "
            f"{gap:.2f} logits; {self.kept} random ones {mean} [{low}, {high}] ({len(others)} draws). "
            + (
                ""
                if self.whole is None
                else f"All {self.in_play} together bring back {_percent(self.whole)}; the rest is in the errors. "
            )
            + "They were chosen on this pair, and it is one pair: of other prompts this says nothing."
        )


def _percent(share: float) -> str:
    return f"{round(100 * share)}%"  # an int is never −0


def attribute_circuit(
    instrument: Instrument,
    pair: CounterfactualPair | TokenPair,
    *,
    units: Literal["neurons"] | Dictionary = "neurons",
    max_nodes: int = 300,
    rule: Rule = "half",
    rest: str = "position",
    points: int = 12,
    draws: int = 3,
    seed: int = 0,
    floor: float = 0.1,
) -> tuple[Graph, Circuit]:
    """The graph of a pair's clean prompt with the neurons that the pair chooses, and what they bring back.

    Args:
        instrument: the model.
        pair: packaged or yours.
        units: ``neurons``, or a dictionary: its features, and the neurons of layers that it lacks.
        max_nodes: units that become nodes (all in play, where there are fewer).
        rule, rest: as of :func:`attribute`.
        points: n of the curve.
        draws: random sets.
        seed: of these.
        floor: least difference, in logits, that there is to recover.

    Returns:
        The graph, every row of which adds up; and the circuit.

    Raises:
        ConfigError: no neurons asked for, or an option out of range.
        PromptError: a pair that does not fit the tokenizer.
        UnsupportedModelError: neurons that are no single vector, or a model of which there are no graphs.
        VerificationError: keeping all neurons is not the clean run, or a row does not add up.
    """
    if max_nodes < 1 or draws < 1 or not floor > 0:
        raise ConfigError("Ask for a neuron or more, a random draw or more, and a floor above 0.")
    local = pair if isinstance(pair, TokenPair) else token_pair(instrument, pair)
    run = run_units(instrument, local, units)
    scores = scores_of(run, seed=seed)
    kept = min(max_nodes, run.in_play)
    graph = attribute_prompt(
        instrument,
        local.clean,
        targets=[(local.answer, local.wrong)],
        units=units,
        nodes=scores.top(_CHOSEN, kept),
        rule=rule,
        rest=rest,
        off=True,
    )
    counts = sorted({*log_counts(kept, max(4, points)), run.in_play})
    named = [(_CHOSEN, 0, scores.score(_CHOSEN))]
    named += [("random", draw, scores_of(run, seed=seed + draw).score("random")) for draw in range(draws)]
    found = curves_of(run, named, counts, floor)
    whole = None
    if graph.feature_layers and found.reason is None:
        whole = float(found.curves.filter((pl.col("score") == _CHOSEN) & (pl.col("n") == run.in_play))["recovered"][0])
    named_units = (
        "neurons"
        if not graph.feature_layers
        else "features"
        if len(graph.feature_layers) == graph.columns.n_layers
        else "features and neurons"
    )
    circuit = Circuit(
        local.clean.text, local.corrupted.text, local.pair.answer, local.pair.wrong, run.clean_difference, run.corrupted_difference, found.none_kept,
        run.in_play, kept, found.curves.filter(pl.col("n") <= kept), found.reason, named_units, whole,
    )  # fmt: skip
    return graph, circuit


def save_circuit(circuit: Circuit, folder: Path | str) -> Path:
    """Write ``circuit.json`` into the folder of its graph, which is there already; the folder comes back.

    Raises:
        WriteError: there is no graph, or the file cannot be written.
    """
    folder = Path(folder)
    record = {
        "format": _FORMAT,
        **{name: getattr(circuit, name) for name in (*_PLAIN, "units", "whole")},
        "curves": circuit.curves.rows(),
    }
    try:
        record["graph_sha256"] = hashlib.sha256((folder / "graph.safetensors").read_bytes()).hexdigest()
        part = folder / ".circuit.json.part"
        part.write_text(json.dumps(record, ensure_ascii=False, allow_nan=False, indent=1) + "\n", "utf-8")
        part.replace(folder / "circuit.json")
    except OSError as error:
        raise WriteError(
            f"The circuit cannot be written to {folder}.", why=str(error), todo="Keep the graph there first."
        ) from error
    return folder


def load_circuit(graph: Graph, folder: Path | str) -> Circuit | None:
    """The circuit kept beside a graph; None where there is none.

    Raises:
        DamagedFileError: a file that is unreadable, or of another graph.
    """
    folder = Path(folder)
    path = folder / "circuit.json"
    if not path.exists():
        return None
    try:
        record: dict[str, Any] = json.loads(path.read_bytes())
        if record["format"] != _FORMAT:
            raise DamagedFileError(f"{path} has format {record['format']!r}; this version reads {_FORMAT}.")
        if record["graph_sha256"] != hashlib.sha256((folder / "graph.safetensors").read_bytes()).hexdigest():
            raise DamagedFileError(f"{path} was written with another graph than the one beside it.", todo="Make the graph again.")
        curves = pl.DataFrame([tuple(row) for row in record["curves"]], schema=CURVE_SCHEMA, orient="row")
        found = Circuit(
            **{name: record[name] for name in _PLAIN},
            curves=curves,
            units=record.get("units", "neurons"),
            whole=record.get("whole"),
        )
        fits = (
            found.kept == len(graph)
            and {found.kept} <= set(curves["n"])
            and (found.reason is not None or len(found.recovered()) == 1)
        )
    except (OSError, KeyError, TypeError, ValueError, pl.exceptions.PolarsError) as error:
        raise DamagedFileError(f"{path} is not readable.", why=f"{type(error).__name__}: {error}") from error
    if not fits:
        raise DamagedFileError(f"{path} does not fit the graph beside it.", todo="Make the graph again.")
    return found
