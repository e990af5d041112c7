"""The questions, and what the prompts answer.

``shared position``: two comparisons at equal distance, ``moved``/``unique`` and ``shared``/``offset 0.5``; the verdict is their common outcome, else
``undecided``. ``isolation``: ``shared``/``visible``. ``competition``: a set's member against the same token alone, in two parts (see ``_forms``); the
verdict is on what lies beyond competition, beside the same with unique positions: only the difference could come from sharing. ``sink``: the published
metric with the sink in its mean against the same without it. ``pruning``, ``bias``, ``prediction`` are measured, not judged. The verdict of each question
is the row of quantity ``verdict``; its form is ``sink excluded``, fixed before anything was measured.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from symbolic_residue.errors import ConfigError
from symbolic_residue.parallel.measure._auc import auc_rows
from symbolic_residue.parallel.measure._collapse import by_layer, headline
from symbolic_residue.parallel.measure._curves import curve_rows
from symbolic_residue.parallel.measure._forms import FORMS
from symbolic_residue.parallel.measure._infer import layer_rows, LEAST_PROMPTS, Means, means, outcome_of, Rule
from symbolic_residue.parallel.measure._price import bias_rows, prediction_rows
from symbolic_residue.parallel.measure._spread import head_kind, HEAD_NUMBERS
from symbolic_residue.stats import bootstrap_ratio

if TYPE_CHECKING:
    import polars as pl

__all__ = ["HEADLINE", "QUESTIONS", "verdicts"]

HEADLINE = "sink excluded"
UNIQUE = "sink excluded, unique positions"
QUESTIONS = {
    "shared position": "Is a token looked at less because it shares its position, everything else alike?",
    "isolation": "Does it matter that siblings do not see each other?",
    "competition": "How much of what a set's member loses against standing alone is competition in the softmax?",
    "sink": "How much of the published number is the attention sink in its mean?",
    "company": "Does the top token lose more among its siblings than among random tokens, and against standing alone?",
    "pruning": "Does later attention tell pruned from surviving tokens better than their probability?",
    "bias": "How large a bias on siblings gives each what it had alone, and what does it do to the next token?",
    "prediction": "What do sets do to the next token along the top path?",
}
"""Question → its text."""

_RESTS = "The verdict needs the same outcome from both comparisons."
_COLUMNS = (
    *("question", "quantity", "arm", "reference", "form", "outcome", "value", "low", "high", "n", "unit", "p", "margin"),
    *("control", "control_value", "control_low", "control_high", "note"),
)


def verdicts(
    frames: Mapping[str, pl.DataFrame], *, margin: float = 0.05, level: float = 0.95, seed: int = 0
) -> dict[str, pl.DataFrame]:
    """Verdicts over prompts.

    Args:
        frames: table → all prompts' rows with the column ``item``, as from ``measure_prompt``.
        margin: of ``no effect``, a share.
        level: of the intervals.
        seed: of flips and resampling.

    Returns:
        ``parallel_verdicts``, ``parallel_layers``, ``parallel_heads`` (over prompts) and ``curves``, without the column ``item``.

    Raises:
        ConfigError: no prompts, or a margin that is none.
    """
    if not 0 < margin < 1:
        raise ConfigError(f"margin={margin!r} is no share between 0 and 1.")
    if "parallel_arms" not in frames or frames["parallel_arms"].is_empty():
        raise ConfigError("There is no measured prompt to judge by.", todo="Measure six prompts or more.")
    import polars as pl

    judge = Judge(frames, Rule(margin, level, seed))
    judge.all()
    layers = ("question", "arm", "reference", "form", "layer", "value", "low", "high", "p", "p_adjusted", "n", "outcome")
    curves = ("curve", "series", "x", "x_unit", "value", "low", "high", "n", "unit")
    heads = ("layer", "head", *HEAD_NUMBERS, "kind", "n")
    text = {*_COLUMNS[:6], "unit", "control", "note", "curve", "series", "x_unit", "kind"}
    whole = {"layer", "head", "n"}

    def frame(columns: tuple[str, ...], rows: list[dict[str, Any]]) -> pl.DataFrame:
        words = text - {"control"} if "induction" in columns else text  # a control of heads is a number
        kinds = {c: pl.String() if c in words else pl.Int64() if c in whole else pl.Float64() for c in columns}
        return pl.DataFrame([{c: row.get(c) for c in columns} for row in rows], schema=kinds)

    return {
        "parallel_verdicts": frame(_COLUMNS, judge.rows),
        "parallel_layers": frame(layers, judge.layers),
        "parallel_heads": frame(heads, judge.heads),
        "curves": frame(curves, curve_rows(frames, judge.rule)),
    }


class Judge:
    """Rows of the verdicts, question by question."""

    def __init__(self, frames: Mapping[str, pl.DataFrame], rule: Rule) -> None:
        self.frames, self.rule = frames, rule
        self.rows: list[dict[str, Any]] = []
        self.layers: list[dict[str, Any]] = []
        self.heads: list[dict[str, Any]] = []

    def all(self) -> None:
        """Every question."""
        self.kinds()
        self.shared_position()
        self.isolation()
        self.competition()
        self.company()
        self.sink()
        self.rows += auc_rows(self.frames.get("parallel_pruning"), self.rule)
        bias_rows(self)
        prediction_rows(self)

    def matrix(self, arm: str, reference: str, form: str) -> tuple[NDArray[np.float64], list[int]]:
        """``[prompt, layer]``: mean over heads; layers that a prompt lacks are NaN."""
        import polars as pl

        held = self.frames["parallel_arms"].filter(
            (pl.col("arm") == arm) & (pl.col("reference") == reference) & (pl.col("form") == form)
        )
        return by_layer(held, "value")

    def add(self, question: str, quantity: str, found: Means | None, outcome: str | None = None, **more: Any) -> None:
        """One row; a ratio unless ``unit`` says otherwise."""
        unit = more.pop("unit", "ratio")
        if outcome is None:
            outcome = outcome_of(found, self.rule)
        shown = found if found is None or unit != "ratio" else found.ratio()
        if found is not None and found.n < LEAST_PROMPTS:
            outcome = "undecided"
            more["note"] = f"{found.n} prompts decide nothing: {LEAST_PROMPTS} are needed. {more.get('note', '')}".strip()
        defaults = {
            "arm": "shared",
            "reference": "",
            "form": HEADLINE,
            "margin": self.rule.margin if outcome != "measured" else None,
        }
        numbers = {"value": None, "low": None, "high": None, "p": None, "n": 0} if shown is None else vars(shown)
        control = more.pop("beside", None)
        if control is not None:
            more |= {"control_value": control.value, "control_low": control.low, "control_high": control.high}
        self.rows.append(
            {"question": question, "quantity": quantity, "outcome": outcome, "unit": unit, **defaults, **numbers, **more}
        )

    def compare(self, question: str, quantity: str, arm: str, reference: str, *, layers: bool = False, **more: Any) -> Means | None:
        """Rows for every form of a contrast; the headline form's means."""
        chosen = None
        for form in FORMS:
            matrix, _ = self.matrix(arm, reference, form)
            found = means(headline(matrix), self.rule)
            if found is None:
                continue
            unit = "nats" if form == "score" else "ratio"
            name = quantity if form != "score" else f"{quantity}, change before the softmax"
            self.add(question, name, found, arm=arm, reference=reference, form=form, unit=unit, **more)
            if form == HEADLINE:
                chosen = found
        if layers:
            self.by_layer(question, arm, reference, HEADLINE, *self.matrix(arm, reference, HEADLINE))
        return chosen

    def by_layer(self, question: str, arm: str, reference: str, form: str, matrix: NDArray[np.float64], layers: list[int]) -> None:
        """Rows of ``parallel_layers``, of the layers that every prompt has."""
        whole = np.flatnonzero(np.isfinite(matrix).all(0)) if len(matrix) else np.empty(0, int)
        for row in layer_rows(matrix[:, whole], [layers[i] for i in whole], self.rule):
            self.layers.append({"question": question, "arm": arm, "reference": reference, "form": form, **row})

    def shared_position(self) -> None:
        """Two comparisons at equal distance, one at whatever distance, and the classes of heads."""
        q = "shared position"
        first = self.compare(q, "equal distance", "moved", "unique", layers=True)
        second = self.compare(q, "equal place, spread by 0.5", "shared", "offset 0.5", layers=True)
        self.compare(
            q,
            "distance not matched",
            "shared",
            "unique",
            outcome="measured",
            note="The distances differ too: no answer to the question.",
        )
        one, two = outcome_of(first, self.rule), outcome_of(second, self.rule)
        both = one if one == two else "undecided"
        note = _RESTS if first is not None and second is not None else f"{_RESTS} One of them could not be made."
        control = {"control": "shared against offset 0.5", "beside": None if second is None else second.ratio()}
        self.add(q, "verdict", first, both, arm="moved", reference="unique", note=note, **control)
        self.by_kind(q, "moved", "unique")

    def by_kind(self, question: str, arm: str, reference: str) -> None:
        """The headline within each class of heads, at a level corrected for their number."""
        import polars as pl

        if not self.heads:
            return
        kinds = pl.DataFrame([{k: row[k] for k in ("layer", "head", "kind")} for row in self.heads])
        held = self.frames["parallel_arms"].filter(
            (pl.col("arm") == arm) & (pl.col("reference") == reference) & (pl.col("form") == HEADLINE)
        )
        joined = held.join(kinds, on=["layer", "head"])
        present = sorted(joined["kind"].unique().to_list())
        rule = Rule(self.rule.margin, 1 - (1 - self.rule.level) / max(len(present), 1), self.rule.seed)
        for kind in present:
            values = (
                joined.filter(pl.col("kind") == kind).group_by("item", maintain_order=True).agg(pl.col("value").mean())["value"]
            )
            found = means(values.to_numpy(), rule)
            count = int((kinds["kind"] == kind).sum())
            note = f"{count} heads; interval at {rule.level:.3g}, corrected for {len(present)} classes."
            self.add(question, f"heads: {kind}", found, outcome_of(found, rule), arm=arm, reference=reference, note=note)

    def isolation(self) -> None:
        """Siblings that see nobody against siblings that see all."""
        q = "isolation"
        found = self.compare(q, "isolated against visible", "shared", "visible", layers=True)
        floor = means(headline(self.matrix("shared", "offset 0.001", HEADLINE)[0]), self.rule)
        control = {} if floor is None else {"control": "shared against offset 0.001", "beside": floor.ratio()}
        self.add(q, "verdict", found, reference="visible", **control)

    def competition(self) -> None:
        """A member of a set against the same token alone."""
        import polars as pl

        q, frame = "competition", self.frames.get("parallel_competition")
        if frame is None or frame.is_empty():
            self.add(q, "verdict", None, reference="competition null")
            return
        raw = self.compare(q, "member against alone", "shared", "singleton", outcome="measured")
        for form in ("all keys", HEADLINE):
            held = frame.filter(pl.col("form") == form)
            columns = {name: by_layer(held, name) for name in ("drop", "by_competition", "beyond", "excess")}
            of = {name: headline(matrix) for name, (matrix, _) in columns.items()}
            self.add(q, "by competition", means(of["by_competition"], self.rule), "measured", form=form, reference="singleton")
            self.add(q, "set total against null", means(of["excess"], self.rule), form=form, reference="competition null")
            self.add(q, "beyond competition", means(of["beyond"], self.rule), form=form, reference="competition null")
            self.share(q, of, form)
            if form == HEADLINE:
                self.by_layer(q, "shared", "competition null", form, *columns["beyond"])
                control = {"control": "raw drop, member against alone", "beside": None if raw is None else raw.ratio()}
                self.add(q, "verdict", means(of["beyond"], self.rule), reference="competition null", **control)
                self.elsewhere(q, frame)

    def elsewhere(self, question: str, frame: pl.DataFrame) -> None:
        """What lies beyond competition where no position is shared, and the difference: only that could come from sharing."""
        import polars as pl

        pairs: dict[str, dict[str, float]] = {}
        for form in (HEADLINE, UNIQUE):
            held = frame.filter(pl.col("form") == form)
            layers = held.group_by("item", "layer").agg(pl.col("beyond").mean()).group_by("item").agg(pl.col("beyond").mean())
            pairs[form] = dict(layers.iter_rows())
        both = sorted(set(pairs[HEADLINE]) & set(pairs[UNIQUE]))
        other = means(np.array([pairs[UNIQUE][i] for i in both]), self.rule)
        difference = means(np.array([pairs[HEADLINE][i] - pairs[UNIQUE][i] for i in both]), self.rule)
        self.add(question, "beyond competition, unique positions", other, arm="unique", reference="competition null")
        control = {"control": "beyond competition, unique positions", "beside": None if other is None else other.ratio()}
        self.add(question, "beyond competition, shared against unique", difference, reference="unique", **control)

    def share(self, question: str, of: dict[str, NDArray[np.float64]], form: str) -> None:
        """Share of the raw drop that the null explains."""
        use = np.isfinite(of["drop"]) & np.isfinite(of["by_competition"])
        n = int(use.sum())
        found = None
        if n >= LEAST_PROMPTS:
            value, low, high = bootstrap_ratio(
                of["by_competition"][use][:, None], of["drop"][use], seed=self.rule.seed, level=self.rule.level
            )
            if math.isfinite(value[0]):
                found = Means(float(value[0]), float(low[0]), float(high[0]), None, n)
        note = (
            "Above 1 where the null predicts a larger drop than there is."
            if found
            else "The drop is too small or the prompts too few for a share of it."
        )
        kind = "measured" if found else "undecided"
        self.add(question, "share of the drop", found, kind, form=form, unit="share", reference="singleton", note=note)

    def company(self) -> None:
        """The top token among siblings, among random tokens, alone."""
        q = "company"
        found = self.compare(q, "among siblings against among random tokens", "shared", "unrelated")
        drop = self.compare(q, "expanded against its top token alone", "expanded", "unexpanded", outcome="measured")
        self.compare(q, "against standard decoding", "shared", "standard", outcome="measured")
        control = {"control": "expanded against unexpanded, by coins", "beside": None if drop is None else drop.ratio()}
        self.add(q, "verdict", found, reference="unrelated", **control)

    def sink(self) -> None:
        """The published metric with and without the sink."""
        import polars as pl

        q, frame = "sink", self.frames.get("parallel_published")
        if frame is None or frame.is_empty():
            self.add(q, "verdict", None)
            return
        for arm in ("shared", "standard"):
            held = {}
            for keys in ("with sink", "without sink"):
                rows = frame.filter((pl.col("arm") == arm) & (pl.col("keys") == keys))
                held[keys] = dict(zip(rows["item"], rows["value"], strict=True))
                low = rows["naive_p"].drop_nulls().drop_nans()
                note = (
                    "Misleads: raw weights of different tokens, layers × heads × keys as samples "
                    f"({int((low < 0.05).sum())} of {len(rows)} prompts with naive p < .05)."
                )
                values = np.array(list(held[keys].values()))
                self.add(
                    q,
                    f"published, {keys}",
                    means(values, self.rule),
                    "measured",
                    arm=arm,
                    reference="other keys",
                    form=keys,
                    note=note,
                )
            both = [item for item in held["with sink"] if item in held["without sink"]]
            part = means(np.array([held["with sink"][i] - held["without sink"][i] for i in both]), self.rule)
            rest = means(np.array([held["without sink"][i] for i in both]), self.rule)
            name = "verdict" if arm == "shared" else "sink's part, no set in the sequence"
            control = {"control": "published, without sink", "beside": None if rest is None else rest.ratio()}
            note = "The factor by which the sink in the mean alone moves the published ratio."
            self.add(q, name, part, arm=arm, reference="without sink", form="with sink", note=note, **control)

    def kinds(self) -> None:
        """Classes of heads from the means over prompts."""
        import polars as pl

        frame = self.frames.get("parallel_heads")
        if frame is None or frame.is_empty():
            return
        found = (
            frame.group_by("layer", "head")
            .agg(*(pl.col(c).mean() for c in HEAD_NUMBERS), pl.len().alias("n"))
            .sort("layer", "head")
        )
        self.heads = [row | {"kind": head_kind(row)} for row in found.iter_rows(named=True)]
