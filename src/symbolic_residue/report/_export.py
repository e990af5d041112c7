"""The figures of a run as files: ``figures/ITEM-NAME.svg`` and ``.png`` in the run folder, for papers and slides."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Sequence
from pathlib import Path

from symbolic_residue.errors import ConfigError
from symbolic_residue.figures import to_png, to_svg
from symbolic_residue.report._concepts_figures import concept_figures, head_figures
from symbolic_residue.report._concepts_load import CONCEPTS_KIND, load_concepts
from symbolic_residue.report._contrast_figures import contrast_figures
from symbolic_residue.report._contrast_load import KIND, load_contrast
from symbolic_residue.report._figure_set import Figure, item_figures
from symbolic_residue.report._load import load_run
from symbolic_residue.report._parallel_load import load_measure, MEASURE_KIND
from symbolic_residue.report._parallel_page import KIND as PARALLEL
from symbolic_residue.report._parallel_page import tree_figures
from symbolic_residue.report._parallel_sections import measure_figures
from symbolic_residue.store import RunFolder

__all__ = ["export_figures"]

_FORMATS = ("svg", "png")


def export_figures(run_path: Path | str, formats: Sequence[str] = _FORMATS) -> list[Path]:
    """Draw every figure of the report (of items: the first 30, which it shows in full) and write them into ``figures/``.

    Args:
        run_path: a run folder.
        formats: any of ``svg`` and ``png``.

    Returns:
        The files written, in the report's order.

    Raises:
        ConfigError: an unknown format. StoreError: no run folder, damaged, or not writable. MissingExtraError: the extra
        ``figures`` is not installed.
    """
    unknown = [name for name in formats if name not in _FORMATS]
    if unknown or not formats:
        raise ConfigError(f"formats = {list(formats)}: figures are written as svg or png.")
    folder = RunFolder.open(run_path)
    written = []
    for item, figure in _drawn(folder):
        chart = figure.draw()
        for form in dict.fromkeys(formats):
            content = to_svg(chart, label=figure.label).encode() if form == "svg" else to_png(chart)
            written.append(folder.write_file(f"figures/{_slug(item)}-{figure.name}.{form}", content))
    return written


def _drawn(folder: RunFolder) -> list[tuple[str, Figure]]:
    """The figures with what they belong to: an item, or the whole contrast."""
    if folder.manifest.kind == KIND:
        return [(KIND, figure) for figure in contrast_figures(load_contrast(folder)).values()]
    if folder.manifest.kind == CONCEPTS_KIND:
        concepts = load_concepts(folder.path)
        return [(CONCEPTS_KIND, figure) for figure in (*concept_figures(concepts).values(), *head_figures(concepts).values())]
    if folder.manifest.kind == MEASURE_KIND:
        return [(PARALLEL, figure) for figure in measure_figures(load_measure(folder)).values()]
    run = load_run(folder.path)
    if folder.manifest.kind == PARALLEL:
        return [(item, figure) for item in run.shown for figure in tree_figures(run, item)]
    return [(item, figure) for item in run.shown for figure in item_figures(run, item).values()]


def _slug(item: str) -> str:
    """A file name of letters, digits, ``-`` and ``_``; a short hash keeps names apart that would otherwise be the same."""
    plain = re.sub(r"[^A-Za-z0-9_-]+", "-", item).strip("-")[:60]
    return plain if plain == item else f"{plain or 'item'}-{hashlib.sha256(item.encode('utf-8', 'surrogatepass')).hexdigest()[:6]}"
