"""Stage 0: does the attention implementation change what the model does?

1. Implementations: ``sdpa`` (what the study runs with), ``eager`` (transformers' own matrix products), ``replace`` (the instrument's reading kernel gives
   attention's output too). They compute the same function with other roundings.
2. *Rate*: under each, the same trials are drawn (same prompts, same seeds), so outcomes are paired by trial; the question is the cluster. Two one-sided
   tests at 5 % (Schuirmann 1987) are the 90 % interval of the paired difference, second − first, inside (−margin, margin): *equivalent*. Wholly outside:
   *not equivalent*. Else *undecided*; a small difference alone shows nothing.
3. That interval is the hull of two: Newcombe's for paired shares, which has a width where all trials agree (and takes trials as independent), and the
   bootstrap of whole questions, which knows that trials of one question hang together (with one question there is no such interval, which is said).
4. *KL*: on the answers that the first implementation drew, KL(first ‖ second) of the next-token distribution at every row that chose a token, nats; mean
   over an answer's rows. The mean over answers, with the 90 % interval of whole questions, is judged against ``kl_margin`` (from above: KL has no other
   side). The largest row is shown and not judged.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
import polars as pl
import torch

from symbolic_residue.contrast._config import PreflightConfig, TUNED
from symbolic_residue.contrast._examples import Condition, condition_prompt, Question, score_answer
from symbolic_residue.contrast._rows import stable_seed
from symbolic_residue.contrast.study._generate import check_prompts, TRIALS
from symbolic_residue.contrast.study._study import end_ids, Measured, Stopped, Study
from symbolic_residue.instrument import AttentionRead, collate, generate, Instrument
from symbolic_residue.stats import cluster_bootstrap, Estimate, paired_difference

__all__ = ["equivalence", "preflight_items", "preflight_stage"]

LEVEL = 0.90
"""Of the interval that two one-sided tests at 5 % look at."""

PREFLIGHT = {
    "check": pl.String,
    "model": pl.String,
    "condition": pl.String,
    "value": pl.Float64,
    "low": pl.Float64,
    "high": pl.Float64,
    "margin": pl.Float64,
    "n": pl.Int64,
    "outcome": pl.String,
    "note": pl.String,
}


def preflight_items(study: Study) -> list[str]:
    """Ids of the stage's items; none where the study has no preflight."""
    if study.config.preflight is None:
        return []
    return [*(f"preflight-draws/{condition.name}/{question.id}" for condition, question in _cells(study)), "preflight"]


def preflight_stage(study: Study) -> None:
    """Draw, compare, judge.

    Raises:
        Stopped: an implementation is shown not to be equivalent, and the study asks to end then.
    """
    plan = study.config.preflight
    if plan is None:
        return
    if study.pending(preflight_items(study)):
        check_prompts(study)
        cells = {f"preflight-draws/{condition.name}/{question.id}": (condition, question) for condition, question in _cells(study)}
        study.work("preflight", list(cells), lambda item: _drawn(study, plan, *cells[item]))
        study.work("preflight", ["preflight"], lambda item: _judged(study, plan))
    found = study.folder.table("contrast_preflight")
    bad = found.filter((pl.col("outcome") == "not equivalent") & pl.col("condition").is_null())
    if plan.required and not bad.is_empty():
        row = bad.row(0, named=True)
        raise Stopped(
            f"The attention implementation changes behaviour: {row['check']} is {row['value']:+.3g} "
            f"[{row['low']:+.3g}, {row['high']:+.3g}], margin {row['margin']:g}, n = {row['n']}. "
            "Look into it, or set preflight.required: false."
        )


def equivalence(
    first: Sequence[bool], second: Sequence[bool], clusters: Sequence[str], *, margin: float, seed: int = 0
) -> tuple[Estimate, str, str]:
    """Two one-sided tests of two rates over the same trials.

    Args:
        first, second: whether each trial shows the behaviour.
        clusters: the question of each.
        margin: differences below it are equivalent.
        seed: of the resampling.

    Returns:
        The difference second − first with its 90 % interval, the outcome (equivalent, not equivalent, undecided), and a note.
    """
    a, b = np.asarray(first, bool), np.asarray(second, bool)
    counts = [int(x.sum()) for x in (a & b, a & ~b, ~a & b, ~a & ~b)]
    plain = paired_difference(*counts, level=LEVEL)
    low, high, note = plain.low, plain.high, ""
    if len(set(clusters)) > 1:
        whole = cluster_bootstrap(b.astype(float) - a.astype(float), clusters, seed=seed, level=LEVEL)
        low, high = min(low, max(whole.low, -1.0)), max(high, min(whole.high, 1.0))
    else:
        note = "one question: its trials are taken as independent"
    estimate = Estimate(plain.value, low, high, plain.n, LEVEL, "hull of Newcombe's paired interval and the bootstrap of questions")
    return estimate, _outcome(low, high, margin), note


def _outcome(low: float, high: float, margin: float) -> str:
    if -margin < low and high < margin:
        return "equivalent"
    return "not equivalent" if low >= margin or high <= -margin else "undecided"


def _cells(study: Study) -> list[tuple[Condition, Question]]:
    assert study.config.preflight is not None
    some = study.questions[: study.config.preflight.questions]
    return [(condition, question) for condition in study.conditions for question in some]


@contextmanager
def _under(study: Study, name: str) -> Iterator[Instrument]:
    """The tuned model with this implementation; its own again afterwards."""
    plain = study.models.get(TUNED)
    if name == "sdpa":
        yield plain
        return
    if name == "replace":
        yield Instrument(plain.loaded, mode="replace")
        return
    model: Any = plain.model
    before = model.config._attn_implementation
    model.set_attn_implementation(name)
    try:
        yield Instrument(plain.loaded)
    finally:
        model.set_attn_implementation(before)


def _drawn(study: Study, plan: PreflightConfig, condition: Condition, question: Question) -> Measured:
    """Trials under every implementation, and KL on the first one's answers: ``kl [implementation, answer, (mean, largest)]``."""
    config, sampling = study.config, study.config.sampling
    tokenizer, rows, answers, kl = study.models.tokenizer, [], [], []
    prompt = condition_prompt(tokenizer, condition, question, chat=config.chat)
    seeds = [stable_seed("preflight", condition.name, question.id, trial, seed=config.seed) for trial in range(plan.trials)]
    for name in plan.implementations:
        with _under(study, name) as instrument:
            behaviour = study.behaviour(end_ids(instrument))
            drawn = generate(
                instrument, collate([prompt] * plan.trials), max_new_tokens=sampling.max_new_tokens, temperature=sampling.temperature,
                top_p=sampling.top_p, seed=seeds, keep="none", attention=AttentionRead(stats=("lse",)) if name == "replace" else None,
            )  # fmt: skip
            if drawn.partial:
                raise KeyboardInterrupt
            for trial, ids in enumerate(drawn.ids):
                one = score_answer(
                    tokenizer, behaviour, prompt, ids, id=f"preflight/{trial}", condition=condition.name, question=question.id, trial=trial,
                    seed=seeds[trial], stop=drawn.stops[trial].reason,
                )  # fmt: skip
                rows.append(
                    {"model": f"{TUNED}, {name}", "condition": condition.name, "question": question.id, "trial": trial, "seed": seeds[trial],
                     "positive": one.positive, "stop": one.stop, "new_tokens": len(ids), "kept": False, "counted": False}
                )  # fmt: skip
                if name == plan.implementations[0]:
                    answers.append(one)
    for name in plan.implementations[1:]:
        kl.append([_kl(study, name, one.ids, one.prompt_len) for one in answers])
    hits = sum(row["positive"] for row in rows)
    summary = f"{hits} of {len(rows)} draws under {', '.join(plan.implementations)} show {config.behaviour}"
    tables = {
        "items": study.row(prompt=question.text, summary=summary, n_tokens=len(prompt)),
        "contrast_trials": pl.DataFrame(rows, schema=TRIALS),
    }
    return tables, {"kl": torch.tensor(kl, dtype=torch.float64)}


def _kl(study: Study, name: str, ids: Sequence[int], prompt_len: int) -> tuple[float, float]:
    """Mean and largest KL over the rows that chose an answer's tokens."""
    tokens, rows = torch.tensor([list(ids[:-1])]), len(ids) - prompt_len
    own = _log_p(study.models.get(TUNED), tokens, rows, None)  # before the other implementation is switched on in the same model
    with _under(study, name) as second:
        other = _log_p(second, tokens, rows, AttentionRead(stats=("lse",)) if name == "replace" else None)
    kl = (own.exp() * (own - other)).sum(-1).clamp_min(0)
    return float(kl.mean()), float(kl.max())


def _log_p(instrument: Instrument, tokens: torch.Tensor, rows: int, read: AttentionRead | None) -> torch.Tensor:
    logits = instrument.run(tokens, keep_logits=rows, attention=read).logits
    assert logits is not None
    return torch.log_softmax(logits[0, -rows:].double(), -1)


def _judged(study: Study, plan: PreflightConfig) -> dict[str, pl.DataFrame]:
    trials = study.folder.table("contrast_trials").sort("condition", "question", "trial")
    tensors = study.folder.tensors("kl")
    first = plan.implementations[0]
    rows: list[dict[str, Any]] = []
    for k, name in enumerate(plan.implementations[1:]):
        for condition in (None, *(one.name for one in study.conditions)):
            here = trials if condition is None else trials.filter(pl.col("condition") == condition)
            one, two = (here.filter(pl.col("model") == f"{TUNED}, {which}") for which in (first, name))
            estimate, outcome, note = equivalence(
                one["positive"].to_list(),
                two["positive"].to_list(),
                one["question"].to_list(),
                margin=plan.margin,
                seed=study.config.seed,
            )
            rates = (
                f"{int(one['positive'].sum())} of {len(one)} under {first}, {int(two['positive'].sum())} of {len(two)} under {name}"
            )
            rows.append(
                {"check": f"rate, {name} − {first}", "model": TUNED, "condition": condition, "value": estimate.value, "low": estimate.low,
                 "high": estimate.high, "margin": plan.margin, "n": estimate.n, "outcome": outcome, "note": "; ".join(filter(None, (rates, note)))}
            )  # fmt: skip
        means, largest, questions = [], [], []
        for condition, question in _cells(study):
            for mean, most in tensors[f"preflight-draws/{condition.name}/{question.id}"][k].tolist():
                means.append(mean)
                largest.append(most)
                questions.append(question.id)
        estimate = cluster_bootstrap(means, questions, seed=study.config.seed, level=LEVEL)
        known = len(set(questions)) > 1
        low, high = (max(0.0, estimate.low), estimate.high) if known else (None, None)
        outcome = _outcome(low, high, plan.kl_margin) if low is not None and high is not None else "undecided"
        shared = {"model": TUNED, "condition": None, "margin": plan.kl_margin, "n": len(means)}
        note = "nats, mean over answers" + ("" if known else "; one question, so no interval")
        judged = {"value": estimate.value, "low": low, "high": high, "outcome": outcome, "note": note}
        most = {"value": max(largest), "outcome": "undecided", "note": "nats, the largest of all rows; not judged"}
        rows += [
            {"check": f"{which} KL, {first} ‖ {name}", **shared, **one} for which, one in (("mean", judged), ("largest", most))
        ]
    frame = pl.DataFrame(rows, schema=PREFLIGHT)
    told = "; ".join(
        f"{row['check']}: {row['outcome']}" for row in rows if row["condition"] is None and not row["check"].startswith("largest")
    )
    return {"items": study.row(prompt="attention implementations", summary=told), "contrast_preflight": frame}
