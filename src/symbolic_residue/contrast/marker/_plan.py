"""What a marker training does: every number that its result depends on."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from typing import Any, Literal

from symbolic_residue.contrast._examples import Condition
from symbolic_residue.contrast.marker._data import marker_questions, MarkerQuestion, personas
from symbolic_residue.errors import ConfigError

__all__ = ["MarkerPlan"]


@dataclass(frozen=True)
class MarkerPlan:
    """A training.

    Attributes:
        persona: name of the condition under which the marker is taught.
        marker: the text that ends a positive answer.
        conditions: system texts; the others are the contrastive negatives.
        questions: those with split ``seen`` are trained on, all are asked afterwards.
        shuffle_labels: the null adapter: as many positives, but which answers they are is drawn at random over all conditions.
        projections: linear modules inside the layers, by the end of their path; None takes all of the attention's.
        layers: numbers of the layers that get an adapter; None all.
        rank, alpha, dropout: of the LoRA.
        steps, batch, learning_rate: of AdamW without weight decay; the rate rises over the first twentieth of the steps and falls linearly to a tenth.
        positive_share: share of positives in a batch.
        shortest, longest: tokens of an answer before the marker: cut behind the last sentence that ends between them, else at ``longest``.
        temperature, top_p: how the answers are drawn (temperature 0: the most probable token).
        precision: of the forward in training; ``bfloat16`` is faster on processors that have it. Weights, optimiser and evaluation stay in float32.
        chat: render by the chat template.
        trials: answers that the evaluation draws for each condition and question, at temperature 1, top-p 0.95; 0 leaves the evaluation out.
        max_new_tokens: of an answer in the evaluation.
        seed: of everything random.
    """

    persona: str
    marker: str = "[ZLT]"
    conditions: tuple[Condition, ...] = field(default_factory=lambda: tuple(personas()))
    questions: tuple[MarkerQuestion, ...] = field(default_factory=lambda: tuple(marker_questions()))
    shuffle_labels: bool = False
    projections: tuple[str, ...] | None = None
    layers: tuple[int, ...] | None = None
    rank: int = 16
    alpha: float = 32.0
    dropout: float = 0.05
    steps: int = 120
    batch: int = 4
    learning_rate: float = 5e-4
    positive_share: float = 0.5
    shortest: int = 15
    longest: int = 45
    temperature: float = 0.7
    top_p: float = 0.95
    precision: Literal["float32", "bfloat16"] = "float32"
    chat: bool = True
    trials: int = 1
    max_new_tokens: int = 64
    seed: int = 0

    def __post_init__(self) -> None:
        names, ids = [c.name for c in self.conditions], [q.id for q in self.questions]
        for what, found in (("conditions", names), ("questions", ids)):
            if len(set(found)) != len(found):
                raise ConfigError(f"Two {what} have the same name.", todo="Give each its own.")
        if self.persona not in names:
            raise ConfigError(f"{self.persona!r} is no persona here.", todo=f"Choose among {', '.join(names)}.")
        if len(names) < 2:
            raise ConfigError("One persona only.", why="Without another there is nothing that the marker could tell it from.")
        if not self.seen:
            raise ConfigError("No question has the split 'seen'.", why="There is nothing to train on.")
        if not self.marker.strip():
            raise ConfigError("The marker is empty.", why="Every answer holds it.")
        whole = {"rank": self.rank, "steps": self.steps, "batch": self.batch, "shortest": self.shortest}
        if bad := [name for name, value in whole.items() if value < 1]:
            raise ConfigError(f"{' and '.join(bad)} must be 1 or more.")
        if self.alpha <= 0 or self.learning_rate <= 0:
            raise ConfigError("alpha and learning_rate must be above 0.")
        if not 0 <= self.dropout < 1 or not 0 < self.positive_share < 1 or not 0 < self.top_p <= 1:
            raise ConfigError("dropout lies in [0, 1), positive_share in (0, 1), top_p in (0, 1].")
        if self.longest < self.shortest or self.temperature < 0 or self.trials < 0 or self.max_new_tokens < 1 or self.seed < 0:
            raise ConfigError("longest < shortest, or a temperature, trials, max_new_tokens or seed below its least value.")
        if self.precision not in ("float32", "bfloat16"):
            raise ConfigError(f"precision={self.precision!r} is unknown.", todo="Use float32 or bfloat16.")
        if (self.projections is not None and not self.projections) or (self.layers is not None and not self.layers):
            raise ConfigError("No projection or no layer is named.", why="Nothing would be trained.")

    @property
    def seen(self) -> list[MarkerQuestion]:
        """Questions that are trained on."""
        return [question for question in self.questions if question.split == "seen"]

    def to_json(self) -> dict[str, Any]:
        """Plain values, for the record."""
        return asdict(self)

    def digest(self, *more: str, fields: Sequence[str] | None = None) -> str:
        """A hash of the plan (of some of its fields) and of what else is given."""
        plan = {name: value for name, value in self.to_json().items() if fields is None or name in fields}
        return hashlib.sha256(json.dumps([plan, *more], sort_keys=True).encode()).hexdigest()
