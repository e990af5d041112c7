"""What is known of a graph's supernodes, in words, as the page shows it when one is opened."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from symbolic_residue import figures

__all__ = ["group_said"]

_KINDS = {
    "fires": ("over the texts fires most on", "{:.0%} of {} places have the first", "{:.0%}"),
    "acts": ("in the prompt acts at", "{:.0%} of {} members are at the first", "{:.0%}"),
    "writes": ("writes directly towards", "the first stands {:.1f} standard deviations above the vocabulary", "{:.1f}"),
}


def group_said(one: Mapping[str, Any] | None, number: Mapping[str, int]) -> dict[str, Any]:
    """``said``: ``[text, whether it tells]`` a kind of evidence; ``examples``: ``[node, value, before, token, after]``; ``weak``: none tells.
    Empty without evidence."""
    if one is None:
        return {}
    said = [_hint(kind, one[kind]) for kind in _KINDS if one.get(kind) and one[kind]["value"] is not None]
    if one["first"]:
        said.append(
            [
                f"{one['first']} of {len(one['members'])} members are at the first position, which often carries the attention sink",
                True,
            ]
        )
    examples = [
        [
            number.get(e["node_id"], -1),
            float(f"{e['value']:.3g}"),
            *(figures.visible(e[part]) for part in ("before", "token", "after")),
        ]
        for e in one["examples"]
    ]
    return {
        "said": said,
        "examples": examples,
        "weak": not any(one[kind]["tells"] for kind in _KINDS if one.get(kind)) and 2 * one["first"] <= len(one["members"]),
    }


def _hint(kind: str, hint: Mapping[str, Any]) -> list[Any]:
    words, counted, value = _KINDS[kind]
    tokens = ", ".join(repr(figures.visible(token, spaces="ends")) for token in hint["tokens"])
    mean, most = hint["control_mean"], hint["control_most"]
    control = "no control" if most is None else f"random neurons: {value.format(mean)} on average, {value.format(most)} at most"
    verdict = "" if hint["tells"] else ": no more than chance"
    return [f"{words} {tokens} ({counted.format(hint['value'], hint['n'])}; {control}){verdict}", bool(hint["tells"])]
