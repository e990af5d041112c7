"""``heads.json`` of a folder of directions: the verdict of every concept, overlap of their heads, and the question about families; made concept by concept.

1. Each concept's verdicts, over the whole model and over one layer stated beforehand (the middle one), are kept in ``heads.parts/`` as soon as they are whole;
   stopped, the same call goes on. The parts go when ``heads.json`` is there.
2. Parts of other directions, or made with other options, are not taken over.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import asdict
from typing import Any

from symbolic_residue.concepts._design import Against, make_design
from symbolic_residue.concepts._families import compare_families
from symbolic_residue.concepts._gram_readout import MIN_SCENARIOS
from symbolic_residue.concepts._head_readout import ChooseBy
from symbolic_residue.concepts._head_verdict import CONDITIONS, few_heads, head_verdict, verdict_block
from symbolic_residue.concepts._overlap import head_overlap
from symbolic_residue.concepts._record import read_record, write_record
from symbolic_residue.concepts._study import ConceptRun
from symbolic_residue.concepts._words_alone import words_alone
from symbolic_residue.errors import ConfigError, ReadError, RunDamagedError

__all__ = ["judge_run_heads"]

_PARTS = "heads.parts"


def judge_run_heads(
    run: ConceptRun,
    *,
    concepts: Sequence[str] | None = None,
    against: Against | None = None,
    k: int | None = None,
    layer: int | None = None,
    by: ChooseBy = "selectivity",
    n_draws: int = 1000,
    n_draws_readout: int = 200,
    seed: int | None = None,
    progress: Callable[[str, float], None] | None = None,
) -> dict[str, Any]:
    """Make ``heads.json`` in the run's folder, or read it where it is there with the same options.

    Args:
        run: of :func:`open_concept_run`, collected with heads.
        concepts: which; None is all.
        against: the negatives; None is the run's.
        k: heads that are a few over the whole model; None is the rule's.
        layer: whose heads are judged by themselves too; None is the middle layer, or the nearest one with heads.
        by: what heads are chosen by.
        n_draws, n_draws_readout: permutations, see :func:`head_verdict`.
        seed: None is the run's.
        progress: called with each concept and the share that is done.

    Raises:
        ReadError: no layer with two heads.
        ConfigError: an unknown concept or layer; see :func:`head_verdict`.
        RunDamagedError: a file of the folder that cannot be read; WriteError: it cannot be written.
    """
    heads, resid = run.pooled.heads, run.pooled.resid
    if not heads:
        raise ReadError("The run has no heads.", todo="Train on a model with softmax attention.")
    names = tuple(run.directions.concepts) if concepts is None else tuple(dict.fromkeys(concepts))
    if unknown := [name for name in names if name not in run.directions.concepts]:
        raise ConfigError(f"There is no concept {unknown[0]!r}.", todo=f"Concepts: {', '.join(run.directions.concepts)}.")
    if not names:
        raise ConfigError("No concept was asked for.", todo="Name one, or leave it out for all.")
    middle = run.directions.model.n_layers // 2
    several = sorted(i for i, x in heads.items() if x.shape[1] > 1)
    if not several:
        raise ReadError("No layer has two heads.", why="One head cannot be compared with the others of its layer.")
    at = min(several, key=lambda i: (abs(i - middle), i)) if layer is None else layer
    if at not in several:
        raise ConfigError(f"There are no heads of layer {at} to compare.", todo=f"Layers: {', '.join(map(str, several))}.")
    rival: Against = run.directions.against if against is None else against
    seed = run.seed if seed is None else seed
    n_heads = sum(x.shape[1] for x in heads.values())
    few = few_heads(n_heads) if k is None else k
    made_of = {
        "against": rival,
        "k": few,
        "layer": at,
        "by": by,
        "n_draws": n_draws,
        "n_draws_readout": n_draws_readout,
        "seed": seed,
    }
    there = read_record(run.folder, "heads.json")
    if there is not None and there.get("made_of") == made_of and {*there["concepts"], *there["not_judged"]} == set(names):
        return there
    tell = progress or (lambda what, share: None)
    blocks: dict[str, Any] = {}
    not_judged = {c: why for c in names if (why := _why_not(run, c, rival)) is not None}
    for number, concept in enumerate(names):
        if concept in not_judged:
            continue
        tell(concept, 0.95 * number / len(names))
        name = f"{_PARTS}/{run.directions.concepts.index(concept):03d}.json"
        # A part that cannot be read, or of other directions, is made again: it is no result yet.
        with suppress(RunDamagedError):
            part = read_record(run.folder, name)
            if part is not None and part.get("concept") == concept and part.get("made_of") == made_of:
                blocks[concept] = part["block"]
                continue
        options: dict[str, Any] = {"against": rival, "by": by, "n_draws": n_draws, "n_draws_readout": n_draws_readout, "seed": seed}
        whole = head_verdict(heads, resid, run.labels, run.scenarios, concept, k=few, **options)
        alone = None
        if heads[at].shape[1] > 1:
            alone = verdict_block(
                head_verdict(heads, resid, run.labels, run.scenarios, concept, layer=at, read=whole.read, **options)
            )
        blocks[concept] = {"model": verdict_block(whole), "layer": alone}
        write_record(run.folder, name, {"concept": concept, "made_of": made_of, "block": blocks[concept]})
    tell("overlap", 0.95)
    overlap = None
    if len(blocks) > 1:
        overlap = head_overlap(heads, run.labels, run.scenarios, list(blocks), few, against=rival, seed=seed)
    stated = {name: meaning.family for name, meaning in run.corpus.meanings.items() if meaning.family}
    whole_blocks = {c: one["model"] for c, one in blocks.items()}
    words = {one.concept: one.auc for one in words_alone(run.corpus) if one.against == rival}
    content = {
        "made_of": made_of,
        "n_texts": len(run.labels),
        "n_scenarios": len(run.corpus.scenarios),
        "n_concepts": len(blocks),
        "n_heads": n_heads,
        "against": rival,
        "layer": at,
        "k": few,
        "seed": seed,
        "conditions": CONDITIONS,
        "skipped_layers": [asdict(one) for one in run.pooled.skipped],
        "mixers_beside_attention": [asdict(one) for one in run.pooled.beside],
        "words_alone": {
            c: None if a.value != a.value else {"value": a.value, "low": a.low, "high": a.high, "n": a.n}
            for c, a in words.items()
            if c in names
        },
        "concepts": blocks,
        "not_judged": not_judged,
        "overlap": overlap,
        "families": compare_families(
            whole_blocks, stated, {c: one["verdict"] != "not read" for c, one in whole_blocks.items()}, seed=seed
        ),
    }
    write_record(run.folder, "heads.json", content)
    for number in range(len(run.directions.concepts)):
        (run.folder / _PARTS / f"{number:03d}.json").unlink(missing_ok=True)
    with suppress(OSError):
        (run.folder / _PARTS).rmdir()
    tell("done", 1.0)
    found = read_record(run.folder, "heads.json")
    assert found is not None
    return found


def _why_not(run: ConceptRun, concept: str, against: Against) -> str | None:
    """Why nothing can be said of a concept's heads, or None."""
    design = make_design(run.labels, run.scenarios, concept, against)
    if design.paired and design.n_strata >= MIN_SCENARIOS:
        return None
    return (
        f"{design.n_strata if design.paired else 0} scenarios hold both the concept and its negatives; {MIN_SCENARIOS} are needed."
    )
