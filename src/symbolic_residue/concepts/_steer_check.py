"""Does a concept's direction, or do its heads, push what the model writes? Measured on words, which no hidden state has a part in.

The rules and numbers were written before they were run on a trained model (design/decisions.md).

1. Neutral openings are continued under doses of the direction, with the same random numbers in every arm; the unit is the opening (its samples are
   averaged).
2. ``words``: log odds of the text's words, concept against the other concepts (``WordScorer``, fitted on the corpus). Beside: against neutral
   tellings; share of texts with a listed word of the concept; ``later``: mean projection of the new tokens in a later layer when the text is read
   again without any push, in standard deviations of the corpus's negatives.
3. Damage: NLL of the new tokens under the unpushed model, share of repeated runs of three tokens, share of texts without a letter or digit.
4. Judged dose: the largest positive one whose NLL rises by at most 1 nat a token over the unpushed texts; chosen by damage, never by effect.
5. Controls at the judged dose: random directions of the same norm; other concepts' directions. For heads: other heads (as many in each layer), each
   with its own difference, scaled so that the set writes as much.
6. ``effect`` = pushed − unpushed; ``excess`` = pushed − mean of the controls; intervals over openings (bootstrap). ``p``: the arm's mean against the
   controls' means by a one-sided t test of one value against R, ``t = (m − mean) / (sd √(1 + 1/R))``, R − 1 degrees of freedom: openings are the same
   in all, so what is random is the direction.
7. ``scale``: how far the corpus's own texts of the concept, cut to the length of the unpushed texts, stand above their neutral tellings on scenarios
   left out.
8. Verdict: ``steers``, the interval of the excess above 0 and p ≤ .05; ``not``, that interval below half the scale; else ``undecided``, and always so
   where words do not tell the concept on scenarios left out, where the scale's interval is not above 0, or where no dose leaves the text whole.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from symbolic_residue.concepts._choose import check_heads, choose_heads, ChooseBy, Head, HeadScores, matched_sets, score_heads
from symbolic_residue.concepts._collect import Pooled
from symbolic_residue.concepts._corpus import Corpus
from symbolic_residue.concepts._design import make_design
from symbolic_residue.concepts._directions import Directions
from symbolic_residue.concepts._packaged import steering_openings
from symbolic_residue.concepts._steer import (
    direction_push,
    head_push,
    Push,
    random_push,
    Reread,
    reread,
    Sampling,
    steer,
    Where,
    write_size,
    Written,
)
from symbolic_residue.concepts._steer_verdict import (
    Arm,
    blocked_by,
    compare,
    Comparison,
    judged_dose,
    Kind,
    MEASURES,
    MOST_DAMAGE,
    rise,
    slope,
    SteeringVerdict,
)
from symbolic_residue.concepts._word_scorer import Rival, words_scale, WordScorer
from symbolic_residue.concepts._words_alone import words_alone
from symbolic_residue.errors import ConfigError, PromptError
from symbolic_residue.prompts import build_prompt
from symbolic_residue.stats import Estimate

if TYPE_CHECKING:
    from symbolic_residue.instrument import Instrument

__all__ = ["DOSES", "SteeringCheck", "check_steering"]

Array = NDArray[np.float64]
DOSES = (-4.0, 2.0, 4.0, 8.0)
"""In lengths of the concept's difference of means, which is about a sixth of the demo model's residual stream; 0 is always run."""


@dataclass(frozen=True, eq=False)
class SteeringCheck:
    """What steering with one concept does.

    Attributes:
        concept, layer, later_layer, where, sampling, seed: as asked.
        words_against: what ``words`` tells the concept from: other concepts; neutral tellings where the corpus has no other concept.
        openings: how many; what intervals count.
        arms: all of them, the unpushed first.
        dose: the judged one; ``dose_why`` how it came about; ``whole`` whether the text is whole under it.
        words_auc: how well words alone tell the concept on scenarios left out.
        words_scale: what the corpus's own texts show, see the module.
        slope: of ``words`` on the dose, nats a unit of dose, over all doses.
        heads: those pushed, best first; empty where none were.
        comparisons: direction against random directions and other concepts, heads against other heads, by every measure.
        verdict, why: of the direction against random directions by ``words``; ``specific`` the same against other concepts' directions;
            ``heads_verdict`` of the heads against other heads, None where none were pushed.
    """

    concept: str
    layer: int
    later_layer: int
    where: Where
    words_against: Rival
    sampling: Sampling
    seed: int
    openings: int
    arms: list[Arm]
    dose: float
    dose_why: str
    whole: bool
    words_auc: Estimate | None
    words_scale: Estimate
    slope: Estimate
    heads: tuple[Head, ...]
    comparisons: list[Comparison]
    verdict: SteeringVerdict
    why: str
    specific: SteeringVerdict | None
    heads_verdict: SteeringVerdict | None


def check_steering(
    instrument: Instrument,
    corpus: Corpus,
    pooled: Pooled,
    labels: Sequence[str],
    scenarios: Sequence[str | None],
    directions: Directions,
    concept: str,
    *,
    layer: int | None = None,
    openings: Sequence[str] | None = None,
    doses: Sequence[float] = DOSES,
    sampling: Sampling | None = None,
    where: Where = "answer",
    n_random: int = 5,
    n_others: int = 5,
    k: int = 10,
    by: ChooseBy = "selectivity",
    heads: Sequence[Head] | None = None,
    n_other_heads: int = 5,
    seed: int = 0,
    progress: Callable[[str, float], None] | None = None,
) -> SteeringCheck:
    """Push a concept and measure what is written.

    Args:
        instrument: the model.
        corpus: for the words.
        pooled, labels, scenarios: for the heads; one row a text.
        directions: of the same model.
        concept: which.
        layer: where the direction is added; None is half of the model's layers, rounded down (the nearest with a direction).
        openings: what is continued, two or more; None is the packaged ones.
        doses: in lengths of the concept's difference of means; 0 is run in any case.
        sampling: how texts are written; None is the default with this seed.
        where: rows that are pushed.
        n_random, n_others: random directions (three or more, for the test); other concepts' directions, at most so many (below three none is judged).
        k, by, heads: the heads pushed: chosen on all texts among the layers up to ``layer``, or named; k = 0 pushes none.
        n_other_heads: sets of other heads.
        seed: of openings' random numbers, random directions and sets.
        progress: called with what is being done and the share done.

    Raises:
        ConfigError: an option out of range, or no such concept or layer.
        PromptError: fewer than two openings, or one that cannot be used.
    """
    tell = progress or (lambda what, share: None)
    n = instrument.parts.n_layers
    layer = min(directions.layers, key=lambda i: (abs(i - n // 2), i)) if layer is None else layer
    directions.vector(concept, layer)
    later = min((i for i in directions.layers if i > layer), key=lambda i: (abs(i - 3 * n // 4), i), default=layer)
    wanted = _doses(doses)
    if n_random < 3:
        raise ConfigError(
            f"{n_random} random directions are too few.", why="Their spread is the test's.", todo="Ask for three or more."
        )
    sampling = sampling or Sampling(seed=seed)
    texts = list(steering_openings() if openings is None else openings)
    if len(texts) < 2:
        raise PromptError(f"{len(texts)} opening cannot carry an interval.", todo="Give two or more.")
    prompts = [build_prompt(instrument.loaded.tokenizer, text, chat=directions.chat) for text in texts]
    scorer = WordScorer.fit(corpus)
    rival: Rival = "others" if (concept, "others") in scorer.weights else "baseline"
    v = directions.vector(concept, later)[None]
    mean, sd = (
        float(getattr(directions, name)[later][directions.concepts.index(concept)]) for name in ("negative_mean", "negative_sd")
    )
    pushed, sets, scores = _heads(
        instrument, pooled, labels, scenarios, directions, concept, layer, k, by, heads, n_other_heads, seed
    )
    others = [name for name in directions.concepts if name != concept][:n_others]
    total = len(wanted) + 1 + n_random + len(others) + (1 + len(sets) if pushed else 0)
    done: list[Arm] = []

    def run(kinds: Sequence[tuple[Kind, Push]]) -> list[Arm]:
        per = max(1, sampling.batch_size // (len(prompts) * sampling.samples))
        found = []
        for start in range(0, len(kinds), per):
            some = kinds[start : start + per]
            tell(f"{concept}: {some[0][1].name}", len(done) / total)
            for (kind, push), written in zip(
                some, steer(instrument, prompts, [p for _, p in some], sampling, where=where), strict=True
            ):
                again = reread(instrument, prompts, written, later, v)
                arm = _arm(kind, push, written, again, scorer, concept, rival, mean, sd)
                found.append(arm)
                done.append(arm)
        return found

    plain, *dosed = run(
        [("unsteered", Push("unsteered", 0.0)), *(("direction", direction_push(directions, concept, layer, d)) for d in wanted)]
    )
    dose, whole, dose_why = judged_dose({arm.dose: rise(arm, plain) for arm in dosed})
    judged = next(arm for arm in dosed if arm.dose == dose)
    random = run([("random", random_push(directions, concept, layer, dose, seed + i)) for i in range(n_random)])
    norm = float(directions.norms[layer][directions.concepts.index(concept)])
    rivals = run([("other concept", _as_long(direction_push(directions, name, layer, dose), norm * dose)) for name in others])
    told = words_alone(corpus) if corpus.scenarios else []
    auc = next((row.auc for row in told if row.concept == concept and row.against == rival), None)
    length = max(1, round(float(np.mean([len(re.findall(r"[^\W\d_]+", t)) for some in plain.texts for t in some]))))
    scales = {
        "words": words_scale(corpus, concept, rival, length),
        "words_baseline": words_scale(corpus, concept, "baseline", length),
    }
    positive = float(directions.positive_mean[later][directions.concepts.index(concept)])
    known = {name: one.value for name, one in scales.items()} | {"later": (positive - mean) / sd}

    def compared(arm: Arm, controls: Sequence[Arm], against: str, whole: bool) -> list[Comparison]:
        blocked = blocked_by(auc, scales["words"], whole)
        return [
            compare(m, arm, plain, controls, against, seed, scale=known.get(m, math.nan), blocked=blocked if m == "words" else None)
            for m in MEASURES
        ]

    comparisons = compared(judged, random, "random directions", whole)
    if len(rivals) >= 3:
        comparisons += compared(judged, rivals, "other concepts", whole)
    if pushed:
        size = write_size(scores, pushed)
        (own,) = run([("heads", head_push(scores, pushed, dose))])
        rest = run(
            [("other heads", head_push(scores, some, dose, name=f"other heads {i}", size=size)) for i, some in enumerate(sets)]
        )
        if len(rest) >= 3:
            comparisons += compared(own, rest, "other heads", rise(own, plain) <= MOST_DAMAGE)
    found = {c.against: c for c in comparisons if c.measure == "words"}
    main = found["random directions"]
    return SteeringCheck(
        concept=concept,
        layer=layer,
        later_layer=later,
        where=where,
        words_against=rival,
        sampling=sampling,
        seed=seed,
        openings=len(prompts),
        arms=done,
        dose=dose,
        dose_why=dose_why,
        whole=whole,
        words_auc=auc,
        words_scale=scales["words"],
        slope=slope(plain, dosed),
        heads=pushed,
        comparisons=comparisons,
        verdict=main.verdict,
        why=main.why,
        specific=found["other concepts"].verdict if "other concepts" in found else None,
        heads_verdict=found["other heads"].verdict if "other heads" in found else None,
    )


def _heads(
    instrument: Instrument,
    pooled: Pooled,
    labels: Sequence[str],
    scenarios: Sequence[str | None],
    directions: Directions,
    concept: str,
    layer: int,
    k: int,
    by: ChooseBy,
    named: Sequence[Head] | None,
    n_sets: int,
    seed: int,
) -> tuple[tuple[Head, ...], list[tuple[Head, ...]], dict[int, HeadScores]]:
    """The heads pushed, sets of others, and the scores of all; nothing where none are asked for."""
    if k < 0:
        raise ConfigError(f"{k} heads cannot be chosen.", todo="Give 0 to push none.")
    reach = [i for i in sorted(pooled.heads) if i <= layer]
    if named is not None:
        named = check_heads(named, instrument.parts, reach)
    elif k == 0 or not reach:
        return (), [], {}
    design = make_design(labels, scenarios, concept, directions.against)
    scores = score_heads(pooled, design, instrument.parts, reach, directions.vector(concept, layer))
    there = sum(len(one.raw_norm) for one in scores.values())
    pushed = named or choose_heads(scores, min(k, max(1, there // 4)), by)
    return tuple(pushed), [one.heads for one in matched_sets(scores, pushed, n_sets, seed)], scores


def _doses(doses: Sequence[float]) -> list[float]:
    found = list(dict.fromkeys(float(dose) for dose in doses if float(dose) != 0))
    if not all(np.isfinite(found)):
        raise ConfigError(f"Doses {list(doses)} are not all finite.", todo="Give finite numbers; negative pushes away.")
    if not any(dose > 0 for dose in found):
        raise ConfigError(
            "No positive dose was given.", why="The verdict is on pushing towards the concept.", todo="Give one above 0."
        )
    return found


def _as_long(push: Push, length: float) -> Push:
    """The push at another length."""
    ((point, (heads, value)),) = push.adds.items()
    return Push(push.name, push.dose, {point: (heads, value * (abs(length) / max(float(np.linalg.norm(value)), 1e-12)))})


def _arm(
    kind: Kind, push: Push, written: Written, again: Reread, scorer: WordScorer, concept: str, rival: Rival, mean: float, sd: float
) -> Arm:
    n, samples = len(written.texts), len(written.texts[0])
    flat = [text for some in written.texts for text in some]

    def by_opening(values: NDArray[np.generic]) -> Array:
        table = np.asarray(values, dtype=np.float64).reshape(n, samples)
        there = np.isfinite(table)
        return np.divide(np.where(there, table, 0).sum(1), there.sum(1), out=np.full(n, np.nan), where=there.any(1))

    values = {
        "words": by_opening(scorer.scores(flat, concept, rival)),
        "words_baseline": by_opening(scorer.scores(flat, concept, "baseline")),
        "listed": by_opening(scorer.listed(flat, concept)),
        "later": by_opening((again.projections[:, 0] - mean) / sd),
    }
    repeated = np.array([_repetition(new) for some in written.ids for new in some])
    empty = np.array([not any(c.isalnum() for c in text) for text in flat])
    return Arm(
        kind, push.name, push.dose, values, by_opening(again.nll), by_opening(repeated), by_opening(empty),
        by_opening(scorer.known(flat)), written.texts,
    )  # fmt: skip


def _repetition(ids: Sequence[int]) -> float:
    """Share of runs of three tokens that stood in the text before."""
    runs = [tuple(ids[i : i + 3]) for i in range(len(ids) - 2)]
    return 1 - len(set(runs)) / len(runs) if runs else 0.0
