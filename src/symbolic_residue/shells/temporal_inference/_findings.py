"""What TEMPORAL-INFERENCE found, and its sentence."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import polars as pl

from symbolic_residue.shells._findings import Findings, listed, state_of
from symbolic_residue.shells.temporal_inference._judge import drift_of, preference
from symbolic_residue.shells.temporal_inference._residue import TemporalInferenceResidue

__all__ = ["TemporalInferenceFindings", "summarise"]


@dataclass(frozen=True)
class TemporalInferenceFindings(Findings[TemporalInferenceResidue]):
    """What TEMPORAL-INFERENCE found; ``head_tests`` among its tables says which heads were confirmed."""

    def confirmed(self, behaviour: str = "") -> list[tuple[int, int]]:
        """(layer, head) of the heads confirmed for a behaviour whose name holds this text."""
        tests = self.frames.get("head_tests")
        if tests is None:
            return []
        mine = tests.filter(pl.col("confirmed") & pl.col("behaviour").str.contains(behaviour, literal=True))
        return list(dict.fromkeys(mine.select("layer", "head").rows()))


def summarise(residue: TemporalInferenceResidue, judged: list[Any]) -> str:
    """The shift and the preference in one sentence, with the state of the verdicts."""
    asked, said = residue.asked, []
    if asked.text is not None:
        frame = residue.frames["curves"].filter(
            (pl.col("series") == f"{asked.direction}, {asked.mode}") & (pl.col("x") == asked.distance)
        )
        said.append(
            f"a shift of {asked.distance} tokens {asked.direction} changes coherence by {frame['value'][0]:+.2f} nats a token "
            f"(second half of the continuation {drift_of(residue, 'text').mean():+.2f})"
        )
    if asked.pair is not None:
        word = "order" if asked.pair.relation == "order" else "direction"
        own, without = (preference(residue, side).mean() for side in ("pair", "neutral"))
        said.append(f"the right {word} is preferred by {own:+.2f} nats (without an order in the story {without:+.2f})")
    text = listed(said)
    verdicts = [v for v in judged if v.value.n]
    return f"{text[0].upper()}{text[1:]}: {state_of(verdicts)}."
