"""Sections of the report of a measurement of token trees, as plain values; HTML is not made here.

Every section is one question: what was asked, its figures, and a table in which each number stands with its interval, n, and what it is compared with.
"""

from __future__ import annotations

from functools import partial
from typing import Any

from symbolic_residue import figures
from symbolic_residue.figures import interval_text, number
from symbolic_residue.report._contrast_load import grid
from symbolic_residue.report._figure_set import Figure
from symbolic_residue.report._parallel_load import MeasureRun

__all__ = ["answer_table", "measure_figures", "measure_sections", "sentence"]

QUESTIONS = {
    "shared position": ("position", "Is a token looked at less because it shares its position?"),
    "isolation": ("isolation", "Does it matter that siblings do not see each other?"),
    "competition": ("competition", "How much is competition in the softmax?"),
    "company": ("company", "Siblings, random tokens, or alone?"),
    "sink": ("sink", "How much of the published number is the attention sink?"),
    "pruning": ("pruning", "Does later attention tell pruned from surviving tokens?"),
    "bias": ("bias", "How large a bias gives each sibling what it had alone?"),
    "prediction": ("prediction", "What do sets do to the next token?"),
}
"""Question → (name of its section, title)."""

_WORDS = {
    "down-weighted": "A token is looked at less because it shares its position",
    "up-weighted": "A token is looked at more because it shares its position",
    "no effect": "Sharing a position changes how much a token is looked at by less than {margin} %",
    "undecided": "Whether sharing a position changes how much a token is looked at is undecided",
}
_ENTROPY = ("standard", "shared", "unique", "visible", "offset 0.5", "unrelated")


def _measured(row: dict[str, Any], prefix: str = "", *, n: bool = True) -> str:
    value, low, high = (row[f"{prefix}{name}"] for name in ("value", "low", "high"))
    if value is None:
        return "—"
    return f"{number(value)} {interval_text(low, high, row['n'] if n else None)}".replace("\xa0", " ")


def _p(value: float | None) -> str:
    return "—" if value is None else number(value)


def sentence(run: MeasureRun) -> str:
    """The answer to the first question in words."""
    found = run.rows("parallel_verdicts", question="shared position", quantity="verdict")
    if not found:
        return "Nothing was judged yet."
    row = found[0]
    if row["value"] is None:
        return f"{_WORDS['undecided']}: it was not measured."
    words = _WORDS[row["outcome"]].format(margin=number(100 * (row["margin"] or 0.0)))
    return f"{words}: at equal distance the ratio is {_measured(row)}, over {row['n']} prompts."


def answer_table(run: MeasureRun) -> dict[str, Any] | None:
    """A row a question: its verdict, value, n, control."""
    found = run.rows("parallel_verdicts", quantity="verdict")
    if not found:
        return None
    cells = [
        [
            row["question"],
            row["outcome"],
            _measured(row) + ("" if row["unit"] == "ratio" or row["value"] is None else f" {row['unit']}"),
            str(row["n"]),
            f"{row['arm']} / {row['reference']}" if row["reference"] else row["arm"],
            "—" if row["control"] is None else f"{row['control']}: {_measured(row, 'control_', n=False)}",
        ]
        for row in found
    ]
    columns = {
        "question": False,
        "verdict": False,
        "value [95 %]": False,
        "prompts": True,
        "compared": False,
        "control [95 %]": False,
    }
    return grid("Verdicts; ratios unless said otherwise, 1 = no effect", columns, cells)


def _rows_of(run: MeasureRun, question: str) -> dict[str, Any] | None:
    found = run.rows("parallel_verdicts", question=question)
    if not found:
        return None
    cells = [
        [
            row["quantity"],
            f"{row['arm']} / {row['reference']}" if row["reference"] else row["arm"],
            row["form"] or "—",
            _measured(row),
            row["unit"],
            str(row["n"]),
            _p(row["p"]),
            row["outcome"],
            "—" if row["margin"] is None else f"± {100 * row['margin']:g} %",
            row["note"] or "",
        ]
        for row in found
    ]
    columns = {"quantity": False, "compared": False, "form": False, "value [95 %]": False, "unit": False, "prompts": True, "p": True,
               "outcome": False, "margin": True, "note": False}  # fmt: skip
    return grid("All numbers of the question", columns, cells, [row["quantity"] == "verdict" for row in found])


def _layers_of(run: MeasureRun, question: str) -> dict[str, Any] | None:
    found = run.rows("parallel_layers", question=question)
    cells = [
        [
            f"{r['arm']} / {r['reference']}",
            str(r["layer"]),
            _measured(r),
            _p(r["p"]),
            _p(r["p_adjusted"]),
            str(r["n"]),
            r["outcome"],
        ]
        for r in found
    ]
    columns = {
        "compared": False,
        "layer": True,
        "ratio [95 %]": False,
        "p": True,
        "p over layers": True,
        "prompts": True,
        "outcome": False,
    }
    return grid("By layer", columns, cells) if cells else None


def measure_figures(run: MeasureRun) -> dict[str, Figure]:
    """The figures that the run's tables allow, by name."""
    found: list[Figure] = []

    def add(name: str, label: str, draw: Any) -> None:
        found.append(Figure(name, label, draw))

    verdicts, layers, curves = (run.together.get(name) for name in ("parallel_verdicts", "parallel_layers", "curves"))
    for question, (short, title) in QUESTIONS.items():
        if layers is not None and run.rows("parallel_layers", question=question):
            add(f"{short}_layers", f"{title} Ratio by layer", partial(figures.parallel_layers, layers, question))
        rows = [
            row
            for row in run.rows("parallel_verdicts", question=question, unit="ratio")
            if row["quantity"] != "verdict" and row["value"] is not None
        ]
        by_class = [row for row in rows if row["quantity"].startswith("heads: ")]
        if verdicts is not None and len(rows) > len(by_class):
            add(f"{short}_ratios", f"{title} Ratios in every form", partial(figures.parallel_ratios, verdicts, question))
        if verdicts is not None and by_class:
            add(f"{short}_heads", f"{title} By class of heads", partial(figures.parallel_ratios, verdicts, question, heads=True))
    if verdicts is not None and any(
        row["value"] is not None for row in run.rows("parallel_verdicts", question="pruning", unit="AUC")
    ):
        add("pruning_auc", "AUC of attention and of probability", partial(figures.parallel_auc, verdicts))
    if curves is not None:
        for name, label, curve, unit, series in (
            ("offset", "A shared position against a set spread by ε", "parallel offset", "ratio", None),
            ("scaling", "A set's member against the same token alone, by the size of the set", "parallel scaling", "ratio", None),
            ("scaling_total", "Attention on a whole set, and what competition alone predicts", "parallel scaling", "share", None),
            ("bias", "A set's member against the same token alone, by the bias on siblings", "parallel bias", "ratio", None),
            ("bias_cost", "What a bias costs: KL from no bias, −ln p of the top path", "parallel bias", "nats", None),
            ("entropy", "Entropy by layer and arm, a share of the largest possible", "parallel entropy", "share", _ENTROPY),
        ):
            here = run.rows("curves", curve=curve, unit=unit)
            if any(series is None or row["series"] in series for row in here):
                add(name, label, partial(figures.parallel_curve, curves, curve, unit=unit, series=series))
    for name, table, label, draw in (
        ("intra", "parallel_intra", "Who looks at whom within a set", figures.parallel_intra),
        ("trace", "parallel_trace", "A set's first two tokens through the layers", figures.parallel_trace),
    ):
        frame = run.prompts.get(table)
        if frame is not None and (name != "intra" or frame["size"].min() <= 4):  # type: ignore[operator]
            add(name, label, partial(draw, frame))
    heads = run.together.get("parallel_heads")
    if heads is not None:
        add("heads", "Class of each head", partial(figures.parallel_heads, heads))
    return {figure.name: figure for figure in found}


_TEXTS = {
    "shared position": (
        "Two comparisons on the same tokens and the same query rows. In one, each token of the set has a position of its own or shares one, "
        "and the queries are moved so that its distance is the same (moved / unique). In the other, the set is spread around its place by half "
        "a position (shared / offset 0.5). Both must agree.",
        "Shared / unique as it comes mixes position with distance; it answers nothing and stands here for comparison.",
    ),
    "isolation": ("The same tree with siblings that see nobody of their set, and with siblings that see all.",),
    "competition": (
        "Null: a set's total is Σe / (Σe + R), with e and R from the logits that each token and everything else had when the token stood alone.",
    ),
    "company": (
        "The top token among its siblings, among as many random tokens, alone by a coin's decision, and in standard decoding.",
    ),
    "sink": (
        "Not controlled, for comparison only: the published metric compares raw weights of different tokens, counts layers × "
        "heads × keys as samples, and holds the sink "
        "in its mean. The row without the sink, and the same metric where no set stands in the sequence (standard), show what it picks up.",
    ),
    "pruning": ("AUC: the chance that a surviving token scores above a pruned one. Probability alone is the control.",),
    "bias": ("A bias on siblings' keys, as later rows see them; what it costs is the change of the next token's distribution.",),
    "prediction": ("Next-token distributions along the top path, against standard decoding of the same path.",),
}
_FIGURES = {
    "shared position": ("position_layers", "position_ratios", "offset"),
    "isolation": ("isolation_layers", "isolation_ratios", "intra"),
    "competition": ("competition_layers", "competition_ratios", "scaling", "scaling_total"),
    "company": ("company_ratios",),
    "sink": ("sink_ratios",),
    "pruning": ("pruning_auc",),
    "bias": ("bias", "bias_cost"),
    "prediction": ("prediction_ratios",),
}


def measure_sections(run: MeasureRun, drawn: list[str]) -> list[dict[str, Any]]:
    """``name, title, text, figures, tables, folded, missing`` of every question, then heads, entropy and the trace."""
    made = []
    for question, (short, title) in QUESTIONS.items():
        table, layers = _rows_of(run, question), _layers_of(run, question)
        made.append(
            {
                "name": short,
                "title": title,
                "text": list(_TEXTS[question]),
                "figures": [name for name in _FIGURES[question] if name in drawn],
                "tables": [] if table is None else [table],
                "folded": [] if layers is None else [layers],
                "missing": None if table is not None else "Not measured in this run.",
            }
        )
    heads = run.rows("parallel_heads")
    kinds = {kind: sum(row["kind"] == kind for row in heads) for kind in dict.fromkeys(row["kind"] for row in heads)}
    criteria = "By criteria fixed beforehand, from means over prompts in standard decoding: "
    criteria += f"{', '.join(f'{kind} {count}' for kind, count in kinds.items())}."
    listed = [
        [f"L{r['layer']} H{r['head']}", r["kind"], *(number(r[c]) for c in ("sink", "local", "distance", "entropy_share", "induction", "control")), str(r["n"])]
        for r in heads
    ]  # fmt: skip
    columns = {"head": False, "class": False, "sink": True, "local": True, "distance, tokens": True, "entropy share": True, "induction": True,
               "its control": True, "prompts": True}  # fmt: skip
    made += [
        {
            "name": "heads",
            "title": "Classes of heads",
            "text": [criteria] if heads else [],
            "figures": [n for n in ("heads", "position_heads") if n in drawn],
            "tables": [],
            "folded": [grid("Every head", columns, listed)] if listed else [],
            "missing": None if heads else "Not measured in this run.",
        },
        {
            "name": "entropy",
            "title": "Entropy by layer",
            "text": ["Share of the largest entropy that the keys allow, sink and own key left out."],
            "figures": [n for n in ("entropy",) if n in drawn],
            "tables": [],
            "folded": [],
            "missing": None if "entropy" in drawn else "Not measured in this run.",
        },
        {
            "name": "trace",
            "title": "One set's first two tokens, layer by layer",
            "text": ["The first set that a later step looks at, of each prompt. A description: no verdict rests on it."],
            "figures": [n for n in ("trace",) if n in drawn],
            "tables": [],
            "folded": [],
            "missing": None if "trace" in drawn else "Not measured in this run.",
        },
    ]  # fmt: skip
    return made
