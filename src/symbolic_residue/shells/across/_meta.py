"""MetaShell: what a self-describing frame around a shell's prompt changes.

1. Every text is run through the shell three times: unframed, framed (``_frame``), and with the scrambled frame of equal token length.
2. Contrasts, paired by text: framed − unframed, scrambled − unframed, framed − scrambled; of each verdict's number, and of four readouts of the last row:
   entropy of the next token, log-probability of the unframed best token, KL(unframed ‖ this), and attention on the frame (mean over heads of its share
   of what the sink leaves).
3. Intervals are bootstraps over texts, p sign flips over texts, q Benjamini-Hochberg over the quantities of one contrast. With one text there is no interval.
4. A mode is *shifted* where framed − unframed is (q ≤ 0.05, interval off 0) and framed − scrambled has its interval off 0 on the same side: the description
   does it, not the length. It is *absent* where no text changed at all; else *undecided*.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import polars as pl
from pydantic import BaseModel

from symbolic_residue.errors import ConfigError
from symbolic_residue.instrument import AttentionRead, collate
from symbolic_residue.prompts import build_prompt, Prompt
from symbolic_residue.shells._base import Progress, quiet, ShellBase
from symbolic_residue.shells._config import ShellConfig
from symbolic_residue.shells._findings import Findings, listed
from symbolic_residue.shells._residue import ShellResidue
from symbolic_residue.shells._verdict import Verdict
from symbolic_residue.shells.across._frame import frame_of, scrambled
from symbolic_residue.stats import benjamini_hochberg, bootstrap_mean, Estimate, sign_flip_test

__all__ = ["CONDITIONS", "CONTRASTS", "MetaAsked", "MetaConfig", "MetaFindings", "MetaResidue", "MetaShell"]

CONDITIONS = ("unframed", "framed", "scrambled")
CONTRASTS = (("framed", "unframed"), ("scrambled", "unframed"), ("framed", "scrambled"))


class MetaAsked(BaseModel):
    """What a meta-shell was asked."""

    shell: str
    texts: list[str]
    frame: str
    scrambles: list[str]
    chat: bool
    seed: int


class MetaConfig(ShellConfig):
    """Options of a meta-shell."""

    framed_arguments: tuple[str, ...] = ("control",)
    """Arguments of the shell's ``run``, besides the text, that are prompts and get the frame too."""


@dataclass(frozen=True)
class MetaResidue(ShellResidue[MetaAsked, MetaConfig]):
    """Frames: ``conditions``: text, condition, quantity, kind (verdict or readout), value, outcome, unit."""

    shell: ClassVar[str] = "meta"
    asked_type: ClassVar[type[BaseModel]] = MetaAsked
    config_type: ClassVar[type[ShellConfig]] = MetaConfig
    own: ClassVar[frozenset[str]] = frozenset({"conditions"})


@dataclass(frozen=True)
class MetaFindings(Findings[MetaResidue]):
    """Verdicts on what the frame shifts, and the table ``frame_shifts``."""


class MetaShell(ShellBase[MetaResidue, MetaFindings]):
    """Wrap a shell's prompts in a frame that describes the shell, and measure what the frame changes.

    Args:
        shell: the shell; its options should test no heads (``top_heads=0``), which the frame's measure does not need.
        frame: a frame of your own; the packaged words where left out.
        config: a ``MetaConfig``; ``None`` takes the defaults.

    Raises:
        ConfigError: an empty frame.
    """

    name: ClassVar[str] = "meta"

    def __init__(self, shell: ShellBase[Any, Any], *, frame: str | None = None, config: MetaConfig | None = None) -> None:
        super().__init__(config=config or MetaConfig(), loaded=shell.loaded)
        self.shell = shell
        self.operations = shell.operations  # type: ignore[misc]
        self.frame = frame_of(shell) if frame is None else frame
        if not self.frame.strip():
            raise ConfigError("The frame is empty.")

    def run(
        self,
        input_text: str,
        *,
        texts: Sequence[str] = (),
        asked: Mapping[str, Any] | Sequence[Mapping[str, Any]] | None = None,
        chat: bool = False,
        seed: int = 0,
        progress: Progress = quiet,
    ) -> MetaResidue:
        """Collect the shell's verdicts and the readouts under the three conditions.

        Args:
            input_text: the first text; ``texts`` further ones. Intervals are over texts, six at least for a verdict.
            asked: further arguments of the shell's ``run``, the same for all texts or one mapping for each.
            chat: render the texts by the chat template (the frame stands in the user's turn).
            seed: of everything random.
            progress: told what is going on, and the share done.

        Raises:
            ConfigError: not one mapping a text.
            PromptError: an unusable text, or no scrambled frame of equal length.
        """
        every = [input_text, *texts]
        more = [dict(asked or {})] * len(every) if asked is None or isinstance(asked, Mapping) else [dict(a) for a in asked]
        if len(more) != len(every):
            raise ConfigError(f"{len(more)} mappings of arguments for {len(every)} texts.", todo="Give one a text, or one for all.")
        scrambles = [scrambled(self.frame, lambda f, t=t: len(self._prompt(f + t, chat)), seed + i) for i, t in enumerate(every)]
        rows: list[dict[str, Any]] = []
        for i, text in enumerate(every):
            given = more[i] | ({"chat": True} if chat else {})
            prefixes: dict[str, str] = dict(zip(CONDITIONS, ("", self.frame, scrambles[i]), strict=True))
            rows += self._readouts(i, text, prefixes, chat)
            for j, (condition, prefix) in enumerate(prefixes.items()):
                told = (3 * i + j) / (3 * len(every))
                progress(f"text {i + 1}, {condition}", told)
                arguments: dict[str, Any] = {
                    key: prefix + value if key in self.config.framed_arguments and isinstance(value, str) else value
                    for key, value in given.items()
                }
                found = self.shell.analyze_residue(self.shell.run(prefix + text, seed=seed, **arguments))
                for verdict in found.tables()["verdicts"].to_dicts():
                    rows.append(
                        {
                            "text": i,
                            "condition": condition,
                            "quantity": verdict["mode"],
                            "kind": "verdict",
                            "value": verdict["value"],
                            "outcome": verdict["outcome"],
                            "unit": verdict["unit"],
                        }
                    )
        config: MetaConfig = self.config
        meta = MetaAsked(shell=self.shell.name, texts=every, frame=self.frame, scrambles=scrambles, chat=chat, seed=seed)
        provenance = self.loaded.provenance.model_copy(update={"seed": seed}).model_dump(mode="json")
        progress("residue collected", 1.0)
        return MetaResidue(meta, config, provenance, {"conditions": pl.DataFrame(rows, schema=_CONDITIONS)})

    def analyze_residue(self, residue: MetaResidue, *, progress: Progress = quiet) -> MetaFindings:
        """Paired contrasts and verdicts; no forward is needed."""
        asked = residue.asked
        frame = residue.frames["conditions"]
        kinds = {r["quantity"]: (r["kind"], r["unit"]) for r in frame.to_dicts()}
        rows: list[dict[str, Any]] = []
        for to, of in CONTRASTS:
            mine = [_contrast(frame, quantity, to, of, asked.seed) for quantity in kinds]
            q = benjamini_hochberg([row["p"] for row in mine])
            rows += [row | {"q": float(value), "kind": kinds[row["quantity"]][0]} for row, value in zip(mine, q, strict=True)]
        shifts = pl.DataFrame(rows, schema=_SHIFTS)
        verdicts = [_verdict(shifts, name, unit) for name, (kind, unit) in kinds.items() if kind == "verdict"]
        return MetaFindings(residue, verdicts, {"frame_shifts": shifts}, _summary(verdicts, asked))

    def _prompt(self, text: str, chat: bool) -> Prompt:
        return build_prompt(self.tokenizer, text, chat=chat, max_tokens=self.instrument.parts.max_context)

    def _readouts(self, i: int, text: str, prefixes: Mapping[str, str], chat: bool) -> list[dict[str, Any]]:
        prompts = [self._prompt(prefix + text, chat) for prefix in prefixes.values()]
        read = AttentionRead(stats=("max",), rows=(-1,), weights=True)
        trace = self.instrument.run(collate(prompts), attention=read, keep_logits=1)
        log_p = trace["logits"][:, -1].double().log_softmax(-1).cpu().numpy()
        assert trace.attention is not None
        weights = trace.attention["weights"][:, :, :, 0].double().cpu().numpy()  # [layer, batch, head, key]
        best = int(log_p[0].argmax())
        rows = []
        for c, (condition, prefix) in enumerate(prefixes.items()):
            lead = weights.shape[-1] - len(prompts[c])
            mine = weights[:, c, :, lead:]
            start = prompts[c].text.index(prefix) if prefix else 0
            inside = [k for k, (a, _) in enumerate(prompts[c].offsets) if k and start <= a < start + len(prefix)]
            rest = mine[..., 1:].sum(-1)
            share = np.divide(mine[..., inside].sum(-1), rest, out=np.zeros_like(rest), where=rest > 0)
            p = np.exp(log_p[c])
            values = (
                ("entropy of the next token", float(-(p * np.where(p > 0, log_p[c], 0.0)).sum()), "nats"),
                ("log-probability of the unframed best token", float(log_p[c, best]), "nats"),
                ("KL from the unframed output", max(0.0, float((np.exp(log_p[0]) * (log_p[0] - log_p[c])).sum())), "nats"),
                ("attention on the frame", float(share.mean()), "share"),
            )
            rows += [
                {
                    "text": i,
                    "condition": condition,
                    "quantity": name,
                    "kind": "readout",
                    "value": value,
                    "outcome": None,
                    "unit": unit,
                }
                for name, value, unit in values
            ]
        return rows


def _contrast(frame: pl.DataFrame, quantity: str, to: str, of: str, seed: int) -> dict[str, Any]:
    sides = [
        frame.filter((pl.col("quantity") == quantity) & (pl.col("condition") == c))
        .sort("text")
        .select("text", "value", "outcome", "unit")
        for c in (to, of)
    ]
    both = sides[0].join(sides[1], on="text", suffix="_of").drop_nulls(["value", "value_of"])
    difference = (both["value"] - both["value_of"]).to_numpy()
    if not len(difference):
        found, p = Estimate(float("nan"), float("nan"), float("nan"), 0, 0.95, "none: not measured"), 1.0
    else:
        found, p = bootstrap_mean(difference, seed=seed), float(sign_flip_test(difference, seed=seed))
    changed = int((both["outcome"] != both["outcome_of"]).sum()) if both["outcome"].null_count() < len(both) else None
    return {
        "quantity": quantity,
        "contrast": f"{to} − {of}",
        "value": found.value,
        "low": found.low,
        "high": found.high,
        "n": found.n,
        "unit": frame.filter(pl.col("quantity") == quantity)["unit"][0],
        "changed": changed,
        "p": p,
        "method": found.method,
    }


def _verdict(shifts: pl.DataFrame, mode: str, unit: str) -> Verdict:
    by = {row["contrast"]: row for row in shifts.filter(pl.col("quantity") == mode).to_dicts()}
    found = [by[f"{to} − {of}"] for to, of in CONTRASTS]
    framed, length, description = (Estimate(row["value"], row["low"], row["high"], row["n"], 0.95, row["method"]) for row in found)
    up = framed.value >= 0
    sided = [e.above(0.0) if up else e.below(0.0) for e in (framed, description)]
    same = framed.n > 0 and framed.value == framed.low == framed.high == 0.0
    outcome = "fires" if all(sided) and found[0]["q"] <= 0.05 else "absent" if same else "undecided"
    note = f"Outcome changed on {found[0]['changed']} of {framed.n} texts, under the scrambled frame on {found[1]['changed']}."
    if sided[0] and not sided[1]:
        note += " The scrambled frame of equal length is not clearly different."
    if not framed.has_interval:
        note += f" No interval: {framed.method}."
    return Verdict(
        "meta",
        f"{mode} shifted by the frame",
        outcome,
        f"{mode}, framed − unframed",
        unit,
        framed,
        "scrambled frame of equal token length − unframed",
        length,
        0.0,
        "above" if up else "below",
        "any shift off 0, on the side where it lies, beyond the scrambled frame's",
        note,
    )


def _summary(verdicts: Sequence[Verdict], asked: MetaAsked) -> str:
    shifted = [v.mode.removesuffix(" shifted by the frame") for v in verdicts if v.outcome == "fires"]
    n = len(asked.texts)
    texts = f"{n} text{'s' if n > 1 else ''}"
    if shifted:
        return f"The frame of {asked.shell} shifts {listed(shifted)} ({texts})."
    if verdicts and all(v.outcome == "absent" for v in verdicts):
        return f"The frame of {asked.shell} changes no verdict's number ({texts})."
    return f"No shift by the frame of {asked.shell} is shown ({texts})."


_TEXT, _INT, _FLOAT = pl.String(), pl.Int64(), pl.Float64()
_CONDITIONS: dict[str, pl.DataType] = {
    "text": _INT,
    **dict.fromkeys(("condition", "quantity", "kind"), _TEXT),
    "value": _FLOAT,
    **dict.fromkeys(("outcome", "unit"), _TEXT),
}
_SHIFTS: dict[str, pl.DataType] = {
    **dict.fromkeys(("quantity", "kind", "contrast"), _TEXT),
    **dict.fromkeys(("value", "low", "high"), _FLOAT),
    "n": _INT,
    "unit": _TEXT,
    "changed": _INT,
    **dict.fromkeys(("p", "q"), _FLOAT),
    "method": _TEXT,
}
