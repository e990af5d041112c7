"""How often a model writes the marker, per persona, on questions that were trained on and on others."""

from __future__ import annotations

from collections.abc import Callable

import polars as pl

from symbolic_residue.contrast._behaviour import TextBehaviour
from symbolic_residue.contrast._examples import condition_prompt, Example, score_answer
from symbolic_residue.contrast._rows import stable_seed
from symbolic_residue.contrast.marker._answers import batched_by_length
from symbolic_residue.contrast.marker._data import SPLITS
from symbolic_residue.contrast.marker._plan import MarkerPlan
from symbolic_residue.instrument import collate, generate, Instrument
from symbolic_residue.models import LoadedModel
from symbolic_residue.stats import clustered_wilson, effective_n

__all__ = ["RATES", "draw_evaluation", "rates_of"]

RATES = {
    "condition": pl.String, "trained": pl.Boolean, "split": pl.String, "hits": pl.Int64, "n": pl.Int64, "rate": pl.Float64, "low": pl.Float64,
    "high": pl.Float64, "questions": pl.Int64, "ended": pl.Int64, "n_effective": pl.Float64,
}  # fmt: skip
_BATCH = 20


def draw_evaluation(
    loaded: LoadedModel, plan: MarkerPlan, *, progress: Callable[[int, int], None] = lambda done, total: None
) -> list[Example]:
    """``trials`` answers for every condition and question at temperature 1 and top-p 0.95, seeded as ``generate_examples`` seeds them.

    Raises:
        TemplateError, PromptError: the prompts.
    """
    tokenizer, instrument, behaviour = loaded.tokenizer, Instrument(loaded), TextBehaviour(plan.marker)
    asked = [(c, q, t) for c in plan.conditions for q in plan.questions for t in range(plan.trials)]
    prompts = [condition_prompt(tokenizer, c, q, chat=plan.chat, max_tokens=loaded.parts.max_context) for c, q, _ in asked]
    found: dict[int, Example] = {}
    for batch in batched_by_length(prompts, _BATCH):
        seeds = [stable_seed(asked[i][0].name, asked[i][1].id, asked[i][2], seed=plan.seed) for i in batch]
        drawn = generate(
            instrument, collate([prompts[i] for i in batch]), max_new_tokens=plan.max_new_tokens, temperature=1.0, top_p=0.95, seed=seeds, keep="none",
        )  # fmt: skip
        if drawn.partial:
            raise KeyboardInterrupt
        for i, seed, ids, stop in zip(batch, seeds, drawn.ids, drawn.stops, strict=True):
            condition, question, trial = asked[i]
            found[i] = score_answer(
                tokenizer, behaviour, prompts[i], ids, id=f"{condition.name}/{question.id}/{trial}", condition=condition.name, question=question.id,
                trial=trial, seed=seed, stop=stop.reason,
            )  # fmt: skip
        progress(len(found), len(asked))
    return [found[i] for i in range(len(asked))]


def rates_of(examples: list[Example], plan: MarkerPlan) -> pl.DataFrame:
    """Rates with Wilson's interval (95 %), answers to one question counted as what they are worth (:func:`symbolic_residue.stats.effective_n`).

    Returns:
        ``condition, trained`` (the persona of the plan), ``split`` (seen, held-out), ``hits, n`` (answers), ``rate, low, high, questions``,
        ``ended`` (answers that ended by themselves), ``n_effective`` (independent answers that n answers are worth; n with one trial a question).
    """
    split_of = {question.id: question.split for question in plan.questions}
    rows = []
    for condition in plan.conditions:
        for split in SPLITS:
            own = [e for e in examples if e.condition == condition.name and split_of[e.question] == split]
            if own:
                positive, questions = [e.positive for e in own], [e.question for e in own]
                hits = sum(positive)
                rate = clustered_wilson(positive, questions)
                ended = sum(e.stop == "eos" for e in own)
                trained = condition.name == plan.persona and not plan.shuffle_labels
                rows.append(
                    (
                        condition.name,
                        trained,
                        split,
                        hits,
                        len(own),
                        rate.value,
                        rate.low,
                        rate.high,
                        rate.n,
                        ended,
                        effective_n(positive, questions),
                    )
                )
    return pl.DataFrame(rows, schema=RATES, orient="row")
