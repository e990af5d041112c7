"""The tree that a multi-path decoding grows: sets of tokens, where they stand, and how to read it.

1. A step holds a set: the tokens in falling probability, each with its position (as the model's rotary module got it) and its cache slot.
2. The *top path* takes the first token of each set. Text and alternatives are rendered along it: ``a {cat|dog} sat``.
3. The key map tells for every slot of the cache which step, rank, position and token stand there.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Any, Literal

import torch

from symbolic_residue.errors import RecordError
from symbolic_residue.parallel._layout import Layout, NEVER, PROMPT, seats_of

__all__ = ["Ending", "PathToken", "StepStats", "Stop", "Tree", "TreeStep"]

Stop = Literal["end of text", "steps", "context full", "cache full", "out of memory", "interrupted"]
"""Why a tree ended."""

VERSION = 1


@dataclass(frozen=True)
class PathToken:
    """One token of a set.

    Attributes:
        id: token id.
        text: as it reads after the top path.
        probability: under the distribution that chose the set.
        position: rotary position, read back from the model.
        slot: place in the cache, counting real tokens of this sequence from the prompt's first.
        gone: the first step whose rows no longer saw it; None while it stayed.
        score: attention received before it was judged (pruning), a share; None where it was not.
    """

    id: int
    text: str
    probability: float
    position: float
    slot: int
    gone: int | None = None
    score: float | None = None


@dataclass(frozen=True)
class Ending:
    """End of text as one of several continuations: recorded, never fed."""

    id: int
    probability: float


@dataclass(frozen=True)
class StepStats:
    """What chose a set.

    Attributes:
        threshold: of this step.
        above: tokens that reached it, before any cap.
        mass: probability of the set.
        entropy: of the distribution, nats.
        disagreement: weighted Jensen–Shannon divergence between the rows that were mixed into it, nats; 0 where one row predicts.
    """

    threshold: float
    above: int
    mass: float
    entropy: float
    disagreement: float


@dataclass(frozen=True)
class TreeStep:
    """One step: a set of tokens at one place of the text."""

    number: int
    tokens: tuple[PathToken, ...]
    stats: StepStats
    endings: tuple[Ending, ...] = ()

    @property
    def top(self) -> PathToken:
        """The most probable token."""
        return self.tokens[0]


@dataclass(frozen=True)
class Tree:
    """A prompt and the sets that follow it.

    Attributes:
        prompt: token ids.
        prompt_text: the prompt.
        steps: in order.
        stop: why it ended.
        config: how it was grown, as plain values.
    """

    prompt: tuple[int, ...]
    prompt_text: str
    steps: tuple[TreeStep, ...]
    stop: Stop
    config: dict[str, Any] = field(default_factory=dict)

    @property
    def path(self) -> list[int]:
        """Token ids along the top path."""
        return [step.top.id for step in self.steps]

    @property
    def text(self) -> str:
        """Text along the top path, without the prompt."""
        return "".join(step.top.text for step in self.steps)

    @property
    def n_keys(self) -> int:
        """Tokens in the cache: n + Σ|T|, what was pruned by recompute left out."""
        return len(self.prompt) + sum(t.slot >= 0 for step in self.steps for t in step.tokens)

    def rendered(self, *, pruned: bool = False) -> str:
        """The text with its alternatives: ``a {cat|dog} sat``.

        Leading spaces common to all alternatives stand before the brace, a line break among them is shown as ⏎. With ``pruned``, tokens that were taken
        out are shown too, marked ``~``.
        """
        out = []
        for step in self.steps:
            shown = [("~" if t.gone is not None else "", t.text) for t in step.tokens if pruned or t.gone is None]
            texts = [t for _, t in shown] + [""] * bool(step.endings)
            if len(texts) == 1:
                out.append(texts[0])
                continue
            space = " " if all(t.startswith(" ") for _, t in shown) else ""
            names = [mark + t[len(space) :].replace("\n", "⏎") for mark, t in shown] + ["⟂"] * bool(step.endings)
            out.append(f"{space}{{{'|'.join(names)}}}")
        return "".join(out)

    def layout(self, device: torch.device | str = "cpu") -> Layout:
        """The slots of the tree, one sequence; tokens deleted by recompute are left out, positions are those of the run."""
        layout = Layout.of_prompts([list(self.prompt)], device)
        for step in self.steps:
            here = [(rank, t) for rank, t in enumerate(step.tokens) if t.slot >= 0]
            seats = seats_of(self.config.get("scheme", "shared"), [t.position for t in step.tokens])
            layout = layout.with_set(
                step.number, [[t.id for _, t in here]], [[t.position for _, t in here]], [[seats[rank] for rank, _ in here]]
            )
            n = len(here)
            layout.rank[0, -n:] = torch.tensor([rank for rank, _ in here])
            layout.size[0, -n:] = len(step.tokens)
            layout.gone[0, -n:] = torch.tensor([NEVER if t.gone is None else t.gone for _, t in here])
        return layout

    def key_map(self) -> list[dict[str, Any]]:
        """A row for every slot: ``slot step rank position token text`` (step −1: the prompt)."""
        rows: list[dict[str, Any]] = [
            {"slot": i, "step": PROMPT, "rank": 0, "position": float(i), "token": token, "text": None}
            for i, token in enumerate(self.prompt)
        ]
        for step in self.steps:
            rows += [
                {"slot": t.slot, "step": step.number, "rank": rank, "position": t.position, "token": t.id, "text": t.text}
                for rank, t in enumerate(step.tokens)
                if t.slot >= 0
            ]
        return rows

    def to_json(self) -> str:
        """The tree as JSON text; :meth:`from_json` reads it back, equal."""
        return json.dumps({"version": VERSION, **asdict(self)}, ensure_ascii=False)

    @classmethod
    def from_json(cls, text: str) -> Tree:
        """A tree from JSON text.

        Raises:
            RecordError: it is no tree, is cut off, or comes from another version.
        """
        try:
            held = json.loads(text)
            version = held.pop("version")
            if version != VERSION:
                raise RecordError(f"The token tree is of version {version}, not {VERSION}.", todo="Make it anew.")
            steps = tuple(
                TreeStep(
                    one["number"],
                    tuple(PathToken(**t) for t in one["tokens"]),
                    StepStats(**one["stats"]),
                    tuple(Ending(**e) for e in one["endings"]),
                )
                for one in held.pop("steps")
            )
            return cls(prompt=tuple(held.pop("prompt")), steps=steps, **held)
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise RecordError(
                f"This is no token tree ({type(error).__name__}: {error}).", todo="Give what Tree.to_json wrote."
            ) from None

    def with_steps(self, steps: Sequence[TreeStep]) -> Tree:
        """The same tree with other steps."""
        return replace(self, steps=tuple(steps))
