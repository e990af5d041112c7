"""Does attention mediate the behaviour? All attention patterns of one model in the other.

1. The patterns of every head, row and layer of the tuned model's plain run are put into the base, which keeps its own weights and values: the change of log P
   of the behaviour's first token, as a share of ``tuned − base``, is the *sufficiency* of where the heads look.
2. The base's patterns are put into the tuned model: the share of ``tuned − base`` that is lost is their *necessity*. (The tuned model with the base's q and k
   *weights* is another question: there patterns still follow the tuned model's residual stream.)
3. Shares are ratios of means over examples with intervals that resample clusters.

   attention-mediated       both shares' intervals lie above the criterion, and both shares above what the control does
   not attention-mediated   both intervals lie below the criterion
   undecided                anything else, one cluster, a total whose interval touches 0, or one below 0 (a random adapter's lowers the behaviour a little)

   The criterion is one half unless given; it stands in the table with the reason.
4. Control: the same change of patterns at other heads of the layer (see ``_exchange``). References (the base with a random adapter of equal norm, another
   behaviour's adapter) give their patterns to the base too: what any training does to patterns.

Patterns follow the residual stream: an MLP that was trained in an early layer changes patterns in later ones. The verdict is on patterns as mediators, wherever
the weights were changed.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import polars as pl

from symbolic_residue.contrast._examples import Example
from symbolic_residue.contrast.causal._exchange import ALL, BASE_INTO_TUNED, Cell, exchange, rows_of, TOTAL, TUNED_INTO_BASE
from symbolic_residue.contrast.causal._pool import pool_effects
from symbolic_residue.contrast.causal._ready import check_examples, fields
from symbolic_residue.contrast.causal._tables import causal_frame
from symbolic_residue.errors import ConfigError
from symbolic_residue.instrument import Instrument
from symbolic_residue.readout import check_same_architecture

__all__ = ["exchange_patterns", "mediation"]

PATTERNS = "patterns"


def exchange_patterns(
    tuned: Instrument,
    base: Instrument,
    examples: Sequence[Example],
    *,
    references: Mapping[str, Instrument] | None = None,
    controls: bool = True,
    seed: int = 0,
    on_example: Callable[[pl.DataFrame], None] | None = None,
) -> pl.DataFrame:
    """All patterns of one model in the other, for each example.

    Args:
        tuned, base: the models; both read the same ids.
        examples: with the behaviour.
        references: name → another model whose patterns go into the base.
        controls: also the same change at other heads of each layer.
        seed: of the controls.
        on_example: called with each example's rows as they are done.

    Returns:
        Columns as in ``CAUSAL``, ``analysis`` mediation: ``part`` total (donor − recipient) and patterns (change), nats; memory grows with layers × heads ×
        tokens².

    Raises:
        ConfigError: a reference named as one of the two directions.
        RecordError, PromptError, InstrumentError, ModelError: examples or models that cannot be patched.
    """
    others = dict(references or {})
    if {"tuned", "base"} & others.keys():
        raise ConfigError("A reference is named 'tuned' or 'base'.", todo="Give it a name of its own, such as 'random'.")
    for tool in (tuned, *others.values()):
        check_same_architecture(base, tool)
    check_examples(examples, tuned, base, *others.values())
    tools = {TUNED_INTO_BASE: (tuned, base), BASE_INTO_TUNED: (base, tuned)}
    tools |= {f"{name} into base": (tool, base) for name, tool in others.items()}
    cells = [Cell("qk", ALL, None, control) for control in ((False, True) if controls else (False,))]
    frames = []
    for example in examples:
        found = exchange(example, tools, cells, {ALL: rows_of(example, None, ALL)}, seed=seed, max_batch=2)
        rows = [{**row, "part": PATTERNS if row["part"] == "qk" else TOTAL} for row in found]
        frames.append(causal_frame({"analysis": "mediation", **fields(example), "unit": "nats", **row} for row in rows))
        if on_example is not None:
            on_example(frames[-1])
    return pl.concat(frames)


def mediation(
    tuned: Instrument,
    base: Instrument,
    examples: Sequence[Example],
    *,
    criterion: float = 0.5,
    references: Mapping[str, Instrument] | None = None,
    controls: bool = True,
    seed: int = 0,
    n_resamples: int = 2000,
    level: float = 0.95,
) -> pl.DataFrame:
    """The verdict: :func:`exchange_patterns`, pooled.

    Args:
        tuned, base, examples, references, controls, seed: see :func:`exchange_patterns`.
        criterion: share that a mediator carries.
        n_resamples, level: of the intervals.

    Returns:
        Columns as in ``EFFECTS``: totals and changes in nats; rows with unit share: sufficiency (tuned into base) and necessity (base into tuned), each with
        its control, and with ``outcome``, ``criterion`` and ``why``. Each condition has a verdict of its own.

    Raises:
        ConfigError: a criterion outside (0, 1); see also :func:`exchange_patterns`.
    """
    if not 0 < criterion < 1:
        raise ConfigError(f"The criterion is {criterion}.", todo="Give a share between 0 and 1.")
    frame = exchange_patterns(tuned, base, examples, references=references, controls=controls, seed=seed)
    options: dict[str, Any] = {"seed": seed, "n_resamples": n_resamples, "level": level}
    return pool_effects(frame, criterion=criterion, **options)
