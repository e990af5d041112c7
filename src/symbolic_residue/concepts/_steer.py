"""Steering: a concept's direction, or its heads' differences, added while the model writes.

1. A ``Push`` is what is added, as plain numbers. With a direction: ``dose × norm × v`` at ``resid_post.L``, v the unit direction and norm the length
   of the difference of means that it came from, so dose 1 adds as much as the concept's texts differ. With heads: ``dose × Δ_h`` at each head's
   output ``z``; the attention output then moves by ``dose × Σ W_h Δ_h``.
2. It is added at the rows that choose a token: the prompt's last and every new one (``where="answer"``), or at every row, the prompt's first too
   (``where="all"``). Nothing before those rows changes, and nothing below the point.
3. Texts of several pushes are written side by side, with the same random numbers for the same prompt and sample: what differs, differs because of the
   push.
4. ``reread``: the finished text is read by the model without any push: NLL of its new tokens (damage), and its projections in a later layer.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import get_args, Literal, TYPE_CHECKING

import numpy as np
import torch
from numpy.typing import NDArray

from symbolic_residue.concepts._choose import by_layer, Head, HeadScores
from symbolic_residue.concepts._directions import Directions
from symbolic_residue.errors import ConfigError
from symbolic_residue.instrument import Add, collate, Edit, generate, Instrument, LastRow
from symbolic_residue.stats import generator

if TYPE_CHECKING:
    from symbolic_residue.prompts import Prompt

__all__ = [
    "Push",
    "Reread",
    "Sampling",
    "Where",
    "Written",
    "direction_push",
    "head_push",
    "random_push",
    "reread",
    "steer",
    "write_size",
]

Array = NDArray[np.float64]
Where = Literal["answer", "all"]


@dataclass(frozen=True, eq=False)
class Push:
    """What is added.

    Attributes:
        name: what it is called.
        dose: see the module; 0 adds nothing.
        adds: point → (heads or None, value ``[d]`` or ``[head, d_head]``).
    """

    name: str
    dose: float
    adds: Mapping[str, tuple[tuple[int, ...] | None, NDArray[np.floating]]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if not math.isfinite(self.dose):
            raise ConfigError(f"A dose of {self.dose} cannot be added.", todo="Give a finite number; negative pushes away.")
        if not all(np.isfinite(value).all() for _, value in self.adds.values()):
            raise ConfigError(f"What {self.name} adds is not finite.")

    def edits(self, batch: Sequence[int] | None = None, where: Where = "answer") -> list[Edit]:
        """As edits of some sequences of a batch."""
        rows = (-1,) if where == "answer" else None
        return [
            Add(point, rows=rows, heads=heads, batch=batch, value=torch.from_numpy(np.ascontiguousarray(value, dtype=np.float32)))
            for point, (heads, value) in self.adds.items()
        ]


@dataclass(frozen=True, slots=True)
class Sampling:
    """How texts are written.

    Attributes:
        max_new_tokens: at most so many.
        temperature, top_k: as in ``generate``; temperature 0 takes the likeliest token.
        samples: texts a prompt; with temperature 0 one.
        seed: sample j of prompt i draws with ``seed + 1000 i + j`` in every push.
        batch_size: sequences a forward.
    """

    max_new_tokens: int = 30
    temperature: float = 0.8
    top_k: int | None = 50
    samples: int = 1
    seed: int = 0
    batch_size: int = 96

    def __post_init__(self) -> None:
        if not 1 <= self.samples <= 1000 or self.batch_size < 1:
            raise ConfigError(
                f"{self.samples} samples in batches of {self.batch_size} cannot be written.",
                todo="Give 1 or more, at most 1000 samples.",
            )


@dataclass(frozen=True, eq=False)
class Written:
    """Texts of one push: ``[prompt][sample]``.

    Attributes:
        texts: what follows each prompt.
        ids: the new tokens, a stop token included.
    """

    push: Push
    texts: list[list[str]]
    ids: list[list[list[int]]]


@dataclass(frozen=True, eq=False)
class Reread:
    """A text read without any push.

    Attributes:
        nll: ``[text]``: nats a new token; NaN of no token.
        projections: ``[text, vector]``: mean over the new tokens; NaN of no token.
    """

    nll: Array
    projections: Array


def direction_push(directions: Directions, concept: str, layer: int, dose: float) -> Push:
    """A concept's direction at ``resid_post`` of a layer.

    Raises:
        ConfigError: no such concept or layer, or a dose that is not finite.
    """
    v = directions.vector(concept, layer).astype(np.float64)
    norm = float(directions.norms[layer][directions.concepts.index(concept)])
    return Push(concept, dose, {f"resid_post.{layer}": (None, _times(dose, norm * v))})


def random_push(directions: Directions, concept: str, layer: int, dose: float, seed: int) -> Push:
    """A random direction, added with the length of the concept's."""
    directions.vector(concept, layer)
    v = generator(seed).normal(size=directions.model.hidden_size)
    norm = float(directions.norms[layer][directions.concepts.index(concept)])
    return Push(f"random {seed}", dose, {f"resid_post.{layer}": (None, _times(dose, norm * v / np.linalg.norm(v)))})


def head_push(
    scores: Mapping[int, HeadScores], heads: Sequence[Head], dose: float, *, name: str = "heads", size: float | None = None
) -> Push:
    """Heads' own differences of means at their outputs.

    Args:
        scores: of the layers in question.
        heads: which.
        dose: factor on Δ_h.
        name: what it is called.
        size: scale all of them so that √ Σ ‖W_h Δ_h‖² is this; None leaves them as they are.
    """
    factor = 1.0 if size is None else size / max(write_size(scores, heads), 1e-12)
    return Push(
        name,
        dose,
        {f"z.{layer}": (some, _times(dose, factor * scores[layer].delta[list(some)])) for layer, some in by_layer(heads).items()},
    )


def write_size(scores: Mapping[int, HeadScores], heads: Sequence[Head]) -> float:
    """√ Σ ‖W_h Δ_h‖² over heads: how much they add to the residual stream at dose 1."""
    return float(np.sqrt(sum(scores[layer].write[head] ** 2 for layer, head in heads)))


def _times(dose: float, value: Array) -> Array:
    return dose * value if math.isfinite(dose) else np.zeros_like(value)


def steer(
    instrument: Instrument, prompts: Sequence[Prompt], pushes: Sequence[Push], sampling: Sampling, *, where: Where = "answer"
) -> list[Written]:
    """Let the model continue every prompt under every push.

    Args:
        instrument: of the model.
        prompts: what is continued.
        pushes: one or more; without adds: as it is.
        sampling: how.
        where: rows that are pushed.

    Raises:
        ConfigError: an unknown ``where``, or an option of sampling out of range.
        EditError, ReadError: a push that does not fit the model.
    """
    if where not in get_args(Where):
        raise ConfigError(f"where={where!r} is unknown.", todo=f"Use one of: {', '.join(get_args(Where))}.")
    samples = 1 if sampling.temperature == 0 else sampling.samples
    jobs = [(p, i, j) for p in range(len(pushes)) for i in range(len(prompts)) for j in range(samples)]
    out = [Written(push, [[""] * samples for _ in prompts], [[[] for _ in range(samples)] for _ in prompts]) for push in pushes]
    begun = _begun(instrument, prompts) if where == "answer" else None
    for start in range(0, len(jobs), sampling.batch_size):
        some = jobs[start : start + sampling.batch_size]
        edits = [
            edit
            for p in sorted({p for p, _, _ in some})
            for edit in pushes[p].edits([at for at, job in enumerate(some) if job[0] == p], where)
        ]
        made = generate(
            instrument,
            collate([prompts[i].ids for _, i, _ in some]) if begun is None else begun.select([i for _, i, _ in some]),
            max_new_tokens=sampling.max_new_tokens,
            temperature=sampling.temperature,
            top_k=sampling.top_k if sampling.temperature > 0 else None,
            seed=None if sampling.temperature == 0 else [sampling.seed + 1000 * i + j for _, i, j in some],
            edits=edits,
            when="always",
            keep="none",
        )
        if made.partial:
            raise KeyboardInterrupt
        for at, (p, i, j) in enumerate(some):
            out[p].ids[i][j] = made.ids[at]
            out[p].texts[i][j] = made.texts[at] if made.texts is not None else ""
    return out


def reread(
    instrument: Instrument,
    prompts: Sequence[Prompt],
    written: Written,
    layer: int,
    vectors: NDArray[np.floating],
    *,
    batch_size: int = 24,
) -> Reread:
    """Read finished texts without any push.

    Args:
        instrument: of the model.
        prompts: as given to :func:`steer`.
        written: what came out; texts are numbered prompt by prompt, sample by sample.
        layer: whose ``resid_post`` is projected.
        vectors: ``[vector, d_model]``.
        batch_size: texts a forward.
    """
    texts = [(i, new) for i, some in enumerate(written.ids) for new in some]
    v = torch.from_numpy(np.asarray(vectors, dtype=np.float64))
    nll, projections = np.full(len(texts), np.nan), np.full((len(texts), len(vectors)), np.nan)
    begun = _begun(instrument, prompts)
    order = sorted((t for t, (_, new) in enumerate(texts) if new), key=lambda t: (len(texts[t][1]), t))
    for start in range(0, len(order), batch_size):
        at = order[start : start + batch_size]
        tails = [texts[t][1] for t in at]
        if begun is None:
            batch = collate([[*prompts[texts[t][0]].ids, *texts[t][1]] for t in at], side="left")
            longest = max(map(len, tails))
            trace = instrument.run(batch, reads=(f"resid_post.{layer}",), keep_logits=longest + 1)
            first = [longest + 1 - len(new) - 1 for new in tails]
            shift = batch.ids.shape[1] - longest - 1
        else:
            trace = begun.select([texts[t][0] for t in at]).follow(tails, reads=(f"resid_post.{layer}",))
            first, shift = [0] * len(at), 0
        assert trace.logits is not None
        resid = trace[f"resid_post.{layer}"]
        for row, (t, new) in enumerate(zip(at, tails, strict=True)):
            a, k = first[row], len(new)  # row a is the prompt's last and chooses the first new token
            log_p = torch.log_softmax(trace.logits[row, a : a + k].double(), -1)
            nll[t] = -float(log_p.gather(-1, torch.tensor(new, device=log_p.device)[:, None]).mean())
            own = resid[row, shift + a + 1 : shift + a + 1 + k].double().mean(0)
            projections[t] = (own @ v.to(resid.device).T).cpu().numpy()
    return Reread(nll, projections)


def _begun(instrument: Instrument, prompts: Sequence[Prompt]) -> LastRow | None:
    """The prompts run once, all but their last token; None where that cannot be shared: a state is kept, or a prompt is one token."""
    if any(layer.mixer is not None for layer in instrument.parts.layers) or min(len(p) for p in prompts) < 2:
        return None
    return LastRow(instrument, collate([p.ids for p in prompts]))
