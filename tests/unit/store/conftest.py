"""Small tables that are true to the schema."""

import polars as pl
import pytest

from symbolic_residue.store import MAY_BE_MISSING, RunFolder, TABLES
from symbolic_residue.store._schema import CHOICES

SAMPLE = {pl.String: "text", pl.Int64: 3, pl.Float64: 0.25, pl.Boolean: True}


def sample(name: str, item: str = "a", rows: int = 1, **values) -> pl.DataFrame:
    """A valid table ``name``: the same row ``rows`` times, with ``values`` put in."""
    row = {column: SAMPLE[type(dtype)] for column, dtype in TABLES[name].items()} | {"item": item}
    row |= {column: words[0] for (table, column), words in CHOICES.items() if table == name} | values
    return pl.DataFrame([row] * rows, schema=TABLES[name])


def item(name: str = "a", rows: int = 1, status: str = "done") -> dict[str, pl.DataFrame]:
    return {"verdicts": sample("verdicts", name, rows), "items": sample("items", name, status=status)}


def start(path, **options) -> RunFolder:
    given = {"kind": "diagnose", "command": "residue diagnose", "provenance": {"model": "m"}, "config": {"seed": 0}} | options
    return RunFolder.create(path, **given)


@pytest.fixture
def make():
    """The helpers above, for tests that cannot import this file by name."""

    class Make:
        pass

    Make.sample, Make.item, Make.start = staticmethod(sample), staticmethod(item), staticmethod(start)
    Make.optional = MAY_BE_MISSING
    return Make


@pytest.fixture
def run_path(tmp_path, make):
    """A complete run of two items: 1 and 2 rows of verdicts."""
    path = tmp_path / "run"
    with start(path) as run:
        run.write_item("a", item("a"))
        run.write_item("b", item("b", 2))
    return path
