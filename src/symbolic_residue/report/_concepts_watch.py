"""Watched texts of a concepts run: verdicts, and every token coloured by its z, a panel a concept and layer.

1. z is in standard deviations of neutral tokens: white is their mean, blue above, orange below; colours end at ±4. Tokens at or above the record's threshold
   are underlined, so that colour is not needed.
2. Tokens without a score (the first, a template's) have no colour. The prompt is marked off from what was generated.
"""

from __future__ import annotations

from typing import Any

from symbolic_residue.figures import diverging_colour, number
from symbolic_residue.report._concepts_answer import measured, p_text, span
from symbolic_residue.report._concepts_load import ConceptsRun
from symbolic_residue.report._contrast_load import grid

__all__ = ["watch_views"]

LIMIT = 4.0
"""z at which the colours end."""
TEXTS, TOKENS = 4, 400
"""Texts of a file, and tokens of a text, that are shown; the file has them all."""


def watch_views(run: ConceptsRun) -> list[dict[str, Any]]:
    """``name, said, table, panels, left_out`` of each watched generation."""
    return [_view(name, record) for name, record in run.watched.items()]


def _view(name: str, record: dict[str, Any]) -> dict[str, Any]:
    tracks, texts, reference = record["tracks"], record["texts"], record["reference"]
    shown = texts[:TEXTS]
    found = {(row["concept"], row["layer"]): row for row in record["verdicts"]}
    highest = max(range(len(tracks)), key=lambda at: found[tracks[at]["concept"], tracks[at]["layer"]]["difference"] or 0.0)
    panels = [
        {
            "open": at == highest,
            "label": f"{track['concept']} · {track['layer']}",
            "outcome": "{outcome}: {reason}".format(**found[track["concept"], track["layer"]]),
            "texts": [_text(text, at, reference["threshold"]) for text in shown],
        }
        for at, track in enumerate(tracks)
    ]
    n = record["n"]
    said = (
        f"{n} prompt{'' if n == 1 else 's'}, seed {record['seed']}. z: standard deviations of {reference['tokens']:,d} tokens of the neutral tellings of "
        f"{reference['scenarios']} scenarios. {reference['controls']} controls: {reference['controls_of']}. Threshold z ≥ {number(reference['threshold'])}."
    )
    return {"name": name, "said": said, "table": _table(record), "panels": panels, "left_out": len(texts) - len(shown)}


def _table(record: dict[str, Any]) -> dict[str, Any]:
    cells = []
    for row in record["verdicts"]:
        neutral = (
            "—"
            if row["neutral_mean"] is None
            else f"{number(row['neutral_mean'], signed=True)}\n{span(row, 'neutral_low', 'neutral_high', signed=True)}"
        )
        gap = measured(row, "difference", "\n", signed=True)
        cells.append(
            [
                row["concept"], str(row["layer"]), row["outcome"], f"{row['n']} {row['n_counts']}", number(row["mean_z"], signed=True), neutral, gap,
                p_text(row["p_family"]), p_text(row["p_control"]), number(row["share"]),
                f"{number(row['neutral_share'])}\n{span(row, 'neutral_share_low', 'neutral_share_high')}", number(row["control_share"]),
            ]
        )  # fmt: skip
    columns = {"concept": False, "layer": True, "verdict": False, "n": True, "mean z": True, "neutral texts [95 % lie here]": False,
               "above neutral, in their sd [95 %]": False, "p over tracks": True, "p among permuted labels": True, "tokens at the threshold": True,
               "of neutral tellings [95 %]": False, "of permuted labels": True}  # fmt: skip
    return grid("Mean z of the generated tokens against neutral texts and permuted labels", columns, cells,
                [row["outcome"] == "above" for row in record["verdicts"]])  # fmt: skip


def _text(text: dict[str, Any], at: int, threshold: float) -> dict[str, Any]:
    tokens = []
    for token, z, reached in zip(text["tokens"], text["z"], text["reached"], strict=True):
        value = None if z is None else z[at]
        said = (
            "no score"
            if value is None
            else f"z {number(value, signed=True)}; reached by {100 * reached[at]:.1f} % of permuted labels"
        )
        tokens.append(
            {
                "text": token["text"], "colour": None if value is None else diverging_colour(value, LIMIT),
                "strong": value is not None and value >= threshold, "generated": token["generated"],
                "title": f"{'generated' if token['generated'] else 'prompt'}, position {token['position']}: {said}",
            }
        )  # fmt: skip
    shown = tokens[:TOKENS]
    return {
        "head": f"Prompt {text['prompt'] + 1}, draw {text['draw'] + 1}; ended by: {text['stop']}",
        "parts": [(kind, part) for kind in (False, True) if (part := [one for one in shown if one["generated"] == kind])],
        "cut": len(tokens) - len(shown),
    }
