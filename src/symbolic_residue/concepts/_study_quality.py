"""``quality.json`` of a folder of directions, made concept by concept.

1. Each concept's block is kept in ``quality.parts/`` as soon as it is whole; a report that was stopped goes on with the next one. The parts go when the
   report is there.
2. Blocks of other directions, or made with other draws or another seed, are not taken over.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress
from typing import Any, TYPE_CHECKING

from symbolic_residue.concepts._quality import quality_report
from symbolic_residue.concepts._record import read_record, write_record
from symbolic_residue.concepts._study import ConceptRun
from symbolic_residue.errors import RunDamagedError

if TYPE_CHECKING:
    from symbolic_residue.models import Parts

__all__ = ["report_concepts"]

_PARTS = "quality.parts"


def report_concepts(
    run: ConceptRun, parts: Parts, *, n_draws: int = 1000, progress: Callable[[str, float], None] | None = None
) -> dict[str, Any]:
    """Make ``quality.json`` in the run's folder, or read it where it is there already with as many draws.

    Args:
        run: of :func:`open_concept_run`.
        parts: of the run's model.
        n_draws: permutations of the labels; 1000 or more.
        progress: called with each concept and the share that is done.

    Returns:
        The content of ``quality.json``.

    Raises:
        ConfigError: too few draws.
        RunDamagedError: a file of the folder that cannot be read; WriteError: it cannot be written.
    """
    made_of = {"n_draws": n_draws, "seed": run.seed}
    there = read_record(run.folder, "quality.json")
    if there is not None and all(there.get(key) == value for key, value in made_of.items()):
        return there
    names = {concept: f"{_PARTS}/{at:03d}.json" for at, concept in enumerate(run.directions.concepts)}
    done: dict[str, Any] = {}
    for concept, name in names.items():
        # A block that cannot be read, or of other directions, is made again: it is no result yet.
        with suppress(RunDamagedError):
            block = read_record(run.folder, name)
            if block is not None and block.get("concept") == concept and block.get("made_of") == made_of:
                done[concept] = block["block"]
    count = len(done)

    def keep(concept: str, block: dict[str, Any]) -> None:
        nonlocal count
        write_record(run.folder, names[concept], {"concept": concept, "made_of": made_of, "block": block})
        count += 1

    def tell(concept: str) -> None:
        if progress is not None:
            progress(concept, count / len(names))

    report = quality_report(
        run.pooled, run.labels, run.scenarios, run.directions, parts, n_draws=n_draws, seed=run.seed, corpus=run.corpus,
        progress=tell, done=done, keep=keep,
    )  # fmt: skip
    n = {"n_texts": len(run.labels), "n_scenarios": len(run.corpus.scenarios)}
    write_record(run.folder, "quality.json", n | report)
    with suppress(OSError):  # what is left over is in nobody's way
        for name in names.values():
            (run.folder / name).unlink(missing_ok=True)
        (run.folder / _PARTS).rmdir()
    found = read_record(run.folder, "quality.json")
    assert found is not None
    return found
