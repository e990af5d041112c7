"""The run folder: what a run measured, kept so that it survives crashes and can be read with polars alone.

::

    with RunFolder.create("run", kind="diagnose", command="residue diagnose …", provenance={…}, config={…}) as run:
        run.write_item("first", {"items": …, "verdicts": …})

    polars.read_parquet("run/tables/verdicts")
"""

from symbolic_residue.store._corpus import Corpus, corpus_key, CorpusEntry
from symbolic_residue.store._manifest import list_runs, Manifest, RunInfo
from symbolic_residue.store._run import RunFolder
from symbolic_residue.store._schema import MAY_BE_MISSING, SCHEMA_VERSION, TABLES
from symbolic_residue.store._validate import Problem, validate

__all__ = [
    "MAY_BE_MISSING",
    "SCHEMA_VERSION",
    "TABLES",
    "Corpus",
    "CorpusEntry",
    "Manifest",
    "Problem",
    "RunFolder",
    "RunInfo",
    "corpus_key",
    "list_runs",
    "validate",
]
