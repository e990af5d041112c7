"""One prompt continued as it is, steered, and pushed as far in a random direction, with the same random numbers."""

from __future__ import annotations

from typing import Any, TYPE_CHECKING

import numpy as np

from symbolic_residue.concepts._choose import choose_heads, ChooseBy, score_heads
from symbolic_residue.concepts._design import make_design
from symbolic_residue.concepts._steer import (
    direction_push,
    head_push,
    Push,
    random_push,
    reread,
    Sampling,
    steer,
    Where,
    write_size,
)
from symbolic_residue.concepts._study import ConceptRun
from symbolic_residue.concepts._word_scorer import WordScorer
from symbolic_residue.errors import ConfigError, ReadError
from symbolic_residue.prompts import build_prompt

if TYPE_CHECKING:
    from symbolic_residue.instrument import Instrument

__all__ = ["steer_prompt"]


def steer_prompt(
    run: ConceptRun,
    instrument: Instrument,
    concept: str,
    prompt: str,
    *,
    dose: float = 4.0,
    layer: int | None = None,
    heads: int = 0,
    by: ChooseBy = "selectivity",
    where: Where = "answer",
    max_new_tokens: int = 40,
    temperature: float = 0.8,
    seed: int = 0,
) -> dict[str, Any]:
    """Continue one prompt three ways.

    Args:
        run: opened with this model.
        instrument: the model.
        concept, prompt: which, and what is continued.
        dose: in lengths of the concept's difference of means (with heads: of each head's).
        layer: None is half of the model's layers, rounded down (the nearest with a direction).
        heads: push the outputs of so many heads up to ``layer``, chosen by ``by`` on all texts; 0 pushes the direction.
        where: rows that are pushed.
        max_new_tokens, temperature, seed: of the texts; the seed also of the random direction.

    Returns:
        ``concept dose layer heads length`` (of what is added to the residual stream) and ``texts``: of each ``name text nll`` (nats a token
        without any push, None of no token) and ``words`` (log odds of the concept by words alone, nats; None where the corpus has nothing to compare with).

    Raises:
        ConfigError: no such concept, layer or number of heads, or a dose that is not finite.
        ReadError: heads are asked for, and no layer has any.
        PromptError: a prompt that cannot be used.
    """
    directions, parts = run.directions, instrument.parts
    n = parts.n_layers
    layer = min(directions.layers, key=lambda i: (abs(i - n // 2), i)) if layer is None else layer
    pushes, chosen = [Push("as it is", 0.0)], ()
    norm = (
        float(directions.norms[layer][directions.concepts.index(concept)])
        if layer in directions.norms and concept in directions.concepts
        else 0.0
    )
    own = direction_push(directions, concept, layer, dose)
    length = abs(dose) * norm
    if heads < 0:
        raise ConfigError(f"{heads} heads cannot be pushed.", todo="Give 0 for the direction.")
    if heads:
        reach = [i for i in sorted(run.pooled.heads) if i <= layer]
        if not reach:
            raise ReadError(f"No layer up to {layer} has heads.", todo="Push the direction, or at a later layer.")
        scores = score_heads(
            run.pooled,
            make_design(run.labels, run.scenarios, concept, directions.against),
            parts,
            reach,
            directions.vector(concept, layer),
        )
        chosen = choose_heads(scores, heads, by)
        own, length = head_push(scores, chosen, dose), abs(dose) * write_size(scores, chosen)
    scale = length / (abs(dose) * norm) if dose and norm else 1.0
    other = random_push(directions, concept, layer, dose, seed)
    other = Push("random", dose, {point: (some, value * scale) for point, (some, value) in other.adds.items()})
    pushes += [Push(f"{concept} {dose:+g}", dose, own.adds), Push(f"random direction, as long (seed {seed})", dose, other.adds)]
    prompts = [build_prompt(instrument.loaded.tokenizer, prompt, chat=directions.chat, max_tokens=parts.max_context)]
    written = steer(instrument, prompts, pushes, Sampling(max_new_tokens, temperature, seed=seed), where=where)
    scorer = WordScorer.fit(run.corpus)
    rival = next((r for r in ("others", "baseline") if (concept, r) in scorer.weights), None)
    texts = []
    for one in written:
        nll = float(reread(instrument, prompts, one, layer, directions.vector(concept, layer)[None]).nll[0])
        words = None if rival is None else float(scorer.scores(one.texts[0], concept, rival)[0])  # type: ignore[arg-type]
        texts.append({"name": one.push.name, "text": one.texts[0][0], "nll": nll if np.isfinite(nll) else None, "words": words})
    return {
        "concept": concept,
        "dose": dose,
        "layer": layer,
        "heads": [list(h) for h in chosen],
        "length": length,
        "where": where,
        "seed": seed,
        "texts": texts,
    }
