"""The report's templates: read from the package, filled with everything escaped.

Autoescape is on, an undefined name is an error, and every string that is filled in passes through ``visible``: control and bidirectional characters arrive as
escapes, markup arrives as text.
"""

from __future__ import annotations

from functools import cache
from importlib.resources import files

from jinja2 import Environment, FunctionLoader, StrictUndefined
from markupsafe import Markup

from symbolic_residue import figures

__all__ = ["environment", "read"]


def read(name: str) -> str:
    """A file of the templates."""
    return files("symbolic_residue.report").joinpath("templates", name).read_text("utf-8")


@cache
def environment() -> Environment:
    """The templates' environment, one for all pages."""
    made = Environment(
        autoescape=True,
        undefined=StrictUndefined,
        loader=FunctionLoader(read),
        trim_blocks=True,
        lstrip_blocks=True,
        finalize=lambda value: figures.visible(value) if type(value) is str else value,
    )
    made.filters.update(
        number=figures.number,
        signed=lambda value: figures.number(value, signed=True),
        token=lambda text: figures.visible(str(text), spaces="all"),
        ends=lambda text: figures.visible(str(text), spaces="ends"),
        quoted=lambda text: figures.visible(str(text)),
        sign=lambda outcome: figures.OUTCOME_SIGNS.get(outcome, "?"),
    )
    # Its spaces that do not break are meant, not a prompt's.
    made.globals["interval"] = lambda *args, **options: Markup(figures.interval_text(*args, **options))
    return made
