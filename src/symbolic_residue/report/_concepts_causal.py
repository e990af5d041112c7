"""``causal.json`` on the page: what ablating a concept's heads takes from its readout, what steering does to the text, each beside matched controls."""

from __future__ import annotations

from typing import Any

from symbolic_residue.figures import number
from symbolic_residue.report._concepts_answer import listed, measured, p_text
from symbolic_residue.report._concepts_load import ConceptsRun
from symbolic_residue.report._contrast_load import grid

__all__ = ["causal_sentence", "causal_tables", "steered_texts"]

OPENINGS = 3
"""Openings shown of each concept."""
_ABLATION = {
    "carry": "they carry the readout of",
    "not": "at most a tenth of the contrast more is lost for",
    "undecided": "undecided for",
}
_BY = {
    "ablation": "differ most for their spread (or were asked for)",
    "ablation_direct": "write most along the direction",
}
"""Parts of ``causal.json``, and which heads each ablates."""
_STEERING = {"steers": "it pushes the text for", "not": "it does not for", "undecided": "undecided for"}


_CELLS = {"carry": "they carry it", "not": "no more than others", "steers": "pushes", "undecided": "undecided", None: "not asked"}
"""A verdict in a table's cell."""


def _parts(run: ConceptsRun, part: str) -> dict[str, dict[str, Any]]:
    found = {} if run.causal is None else run.causal["concepts"]
    return {concept: one[part] for concept, one in found.items() if part in one}


def causal_sentence(run: ConceptsRun) -> str:
    """Both checks in a sentence each; empty without ``causal.json``."""
    said, total = [], len(run.concepts)
    starts = {
        "ablation": "Ablating the heads that differ most, against matched other heads",
        "ablation_direct": "Ablating those that write most along the direction",
        "steering": "Steering, against random directions",
    }
    for part, words in (*((part, _ABLATION) for part in _BY), ("steering", _STEERING)):
        groups: dict[str, list[str]] = {}
        done = _parts(run, part)
        for concept, one in done.items():
            groups.setdefault(one["verdict"], []).append(concept)
        if groups:
            of = "" if len(done) == total else f" ({len(done)} of {total} concepts were tried)"
            said.append(
                f"{starts[part]}: {'; '.join(f'{words[name]} {listed(groups[name])}' for name in words if name in groups)}{of}."
            )
    return " ".join(said)


def causal_tables(run: ConceptsRun) -> list[dict[str, Any]]:
    """Ablation and steering, a row a concept; the comparisons of steering by every measure are folded."""
    found = []
    for part, by in _BY.items():
        if ablations := _parts(run, part):
            found.append({"table": _ablation(ablations, by), "reasons": _reasons(ablations), "folded": [_later(ablations)]})
    if steerings := _parts(run, "steering"):
        found.append(
            {"table": _steering(steerings), "reasons": _reasons(steerings), "folded": [_comparisons(steerings), _doses(steerings)]}
        )
    return found


def _reasons(parts: dict[str, dict[str, Any]]) -> list[tuple[str, str]]:
    return [(concept, one["why"]) for concept, one in parts.items()]


def _ablation(parts: dict[str, dict[str, Any]], by: str) -> dict[str, Any]:
    cells = []
    for concept, one in parts.items():
        first = one["layers"][0]
        cells.append(
            [
                concept, _CELLS[one["verdict"]], str(one["layer"]), str(one["scenarios"]), str(len(one["halves"][0])),
                measured(first["contrast"], between="\n"),
                *_three(first, "lost"), p_text(first["p"]), str(len(first["controls"])),
                measured(one["predicted"], between="\n"), f"{number(one['kl']['value'])}\n({number(_mean(one['kl_controls']))})",
            ]
        )  # fmt: skip
    columns = {"concept": False, "verdict": False, "layer": True, "scenarios": True, "heads": True, "contrast [95 %]": False, "share lost [95 %]": False,
               "lost with controls": False, "excess": False, "p": True, "control sets": True, "written straight": False, "KL (controls)": False}  # fmt: skip
    return grid(f"Ablation: the heads that {by}, at their mean over neutral tellings, against other heads that disturb as much", columns, cells,
                [one["verdict"] == "carry" for one in parts.values()])  # fmt: skip


def _later(parts: dict[str, dict[str, Any]]) -> dict[str, Any]:
    cells = [
        [concept, str(row["layer"]), *_three(row, "lost"), p_text(row["p"])]
        for concept, one in parts.items() for row in one["layers"][1:]
    ]  # fmt: skip
    columns = {"concept": False, "layer": True, "share lost [95 %]": False, "lost with controls": False, "excess": False, "p": True}
    return grid("The same read in later layers (these decide nothing)", columns, cells)


def _mean(values: list[float | None]) -> float | None:
    there = [value for value in values if value is not None]
    return sum(there) / len(there) if there else None


def _of(one: dict[str, Any], against: str, measure: str = "words") -> dict[str, Any] | None:
    return next((row for row in one["comparisons"] if row["against"] == against and row["measure"] == measure), None)


def _three(row: dict[str, Any], first: str = "effect", *, signed: bool = False) -> list[str]:
    """Effect, the controls' and the excess."""
    return [measured(row[name], between="\n", signed=signed) for name in (first, "control", "excess")]


def _steering(parts: dict[str, dict[str, Any]]) -> dict[str, Any]:
    cells = []
    for concept, one in parts.items():
        main, heads = _of(one, "random directions"), _of(one, "other heads")
        cells.append(
            [
                concept, *(_CELLS[one[name]] for name in ("verdict", "specific", "heads_verdict")), str(one["layer"]), str(one["openings"]),
                f"{number(one['dose'])}{'' if one['whole'] else ' (text broken)'}",
                *(["—"] * 4 if main is None else [*_three(main, signed=True), p_text(main["p"])]),
                "—" if heads is None else f"{measured(heads['excess'], between=chr(10), signed=True)}", measured(one["words_auc"], between="\n"),
            ]
        )  # fmt: skip
    columns = {"concept": False, "verdict": False, "against other concepts": False, "by heads": False, "layer": True, "openings": True, "dose": True,
               "effect on words [95 %]": False, "of random directions": False, "excess": False, "p": True, "excess of heads over other heads": False,
               "words tell the concept": False}  # fmt: skip
    return grid("Steering: log odds of the text's words (nats), at the dose chosen by damage alone", columns, cells,
                [one["verdict"] == "steers" for one in parts.values()])  # fmt: skip


def _comparisons(parts: dict[str, dict[str, Any]]) -> dict[str, Any]:
    cells = [
        [concept, row["measure"], row["arm"], row["against"], *_three(row, signed=True),
         p_text(row["p"]), row["verdict"]]
        for concept, one in parts.items() for row in one["comparisons"]
    ]  # fmt: skip
    columns = {"concept": False, "measure": False, "arm": False, "against": False, "effect [95 %]": False, "of the controls": False, "excess": False, "p": True,
               "verdict": False}  # fmt: skip
    return grid("Every measure and comparison of steering", columns, cells)


def _doses(parts: dict[str, dict[str, Any]]) -> dict[str, Any]:
    cells = [
        [concept, arm["kind"], number(arm["dose"]), *(number(_mean(arm["values"][name])) for name in ("words", "listed", "later")), number(_mean(arm["nll"])),
         number(_mean(arm["repetition"]))]
        for concept, one in parts.items() for arm in one["arms"] if arm["kind"] in ("unsteered", "direction", "heads")
    ]  # fmt: skip
    columns = {"concept": False, "arm": False, "dose": True, "words": True, "share with a listed word": True, "later projection": True, "NLL a token": True,
               "repetition": True}  # fmt: skip
    return grid("Every dose (means over openings)", columns, cells)


def steered_texts(run: ConceptsRun) -> list[tuple[str, list[dict[str, Any]]]]:
    """What was written: of each concept some openings, without a push, with the direction, with a random one and with heads at the judged dose."""
    found = []
    for concept, one in _parts(run, "steering").items():
        arms = [arm for arm in one["arms"] if "texts" in arm and (arm["kind"] == "unsteered" or arm["dose"] == one["dose"])]
        prompts = one["settings"]["openings"]
        rows = [
            {"opening": prompts[at], "texts": [(arm["kind"], arm["texts"][at][0]) for arm in arms]}
            for at in range(min(OPENINGS, len(prompts)))
        ]
        found.append((concept, rows))
    return found
