"""The causal check of a folder of directions: ablation and steering of each concept, kept in ``causal.json``.

1. A concept has up to three parts: ``ablation`` of the heads chosen by selectivity, ``ablation_direct`` of those that write most along the direction,
   and ``steering``. Each is written when it is whole, and a part that is there with the same settings is not done again.
2. ``settings`` of a part are all that its numbers depend on, besides the directions that the file belongs to.
3. Plain data: an estimate is ``{value, low, high, n, level, method}``, what is not a number is null; ``n`` counts scenarios in an ablation and
   openings in steering. Values of single openings and texts of the unpushed arm, every dose, the first random direction and the heads are kept.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, fields, is_dataclass
from typing import Any, TYPE_CHECKING

import numpy as np

from symbolic_residue.concepts._ablate import ablate_heads
from symbolic_residue.concepts._ablate_run import Tokens
from symbolic_residue.concepts._ablate_verdict import Ablation
from symbolic_residue.concepts._choose import ChooseBy
from symbolic_residue.concepts._packaged import steering_openings
from symbolic_residue.concepts._record import read_record, write_record
from symbolic_residue.concepts._steer import Sampling, Where
from symbolic_residue.concepts._steer_check import check_steering, DOSES, SteeringCheck
from symbolic_residue.concepts._study import ConceptRun
from symbolic_residue.errors import ConfigError
from symbolic_residue.stats import Estimate

if TYPE_CHECKING:
    from symbolic_residue.instrument import Instrument

__all__ = ["CAUSAL", "check_concepts", "read_causal"]

CAUSAL = "causal.json"
Progress = Callable[[str, float], None]
_RULES = {
    "ablation": "carry: p <= .05 among the control sets and the interval of the excess above 0.10 of the contrast; not: that interval below 0.10; "
    "else undecided",
    "steering": "steers: interval of the excess over the controls above 0, and p <= .05 of the one against the controls; not: that interval below half "
    "of what the corpus's own texts of the concept show; else undecided",
    "judged_dose": "the largest positive dose at which the NLL without any push rises by at most 1 nat a token",
}


def check_concepts(
    run: ConceptRun,
    instrument: Instrument,
    concepts: Sequence[str] | None = None,
    *,
    ablation: bool = True,
    steering: bool = True,
    layer: int | None = None,
    k: int = 10,
    by: ChooseBy = "selectivity",
    also: ChooseBy | None = "direct",
    n_controls: int = 39,
    tokens: Tokens = "pooled",
    openings: Sequence[str] | None = None,
    doses: Sequence[float] = DOSES,
    sampling: Sampling | None = None,
    where: Where = "answer",
    n_random: int = 5,
    n_others: int = 5,
    n_other_heads: int = 5,
    progress: Progress | None = None,
) -> dict[str, Any]:
    """Ablate and steer concepts of a folder; what is done is kept in its ``causal.json``, which comes back.

    Args:
        run: opened with this model.
        instrument: the model.
        concepts: which; None is all of the folder's.
        ablation, steering: which parts.
        layer, k, by, n_controls, tokens: as for :func:`ablate_heads`; layer, k and by also for the heads that are pushed (k = 0: none are, and none ablated).
        also: a second score by which heads are chosen and ablated (part ``ablation_…``); None: none.
        openings, doses, sampling, where, n_random, n_others, n_other_heads: as for :func:`check_steering`.
        progress: called with what is being done and the share of the whole.

    Raises:
        ConfigError: a concept that the folder does not have, or an option out of range.
        RunDamagedError: a ``causal.json`` that cannot be read, or of other directions.
        See :func:`ablate_heads` and :func:`check_steering`.
    """
    names = list(run.directions.concepts if concepts is None else dict.fromkeys(concepts))
    if unknown := [name for name in names if name not in run.directions.concepts]:
        raise ConfigError(f"There is no concept {unknown[0]!r} here.", todo=f"Concepts: {', '.join(run.directions.concepts)}.")
    tell = progress or (lambda what, share: None)
    content = read_record(run.folder, CAUSAL) or {"rules": _RULES, "concepts": {}}
    sampling = sampling or Sampling(seed=run.seed)
    texts = [one.text for one in run.corpus.texts]
    shared = {"layer": layer, "k": k, "by": by, "seed": run.seed}
    wanted: dict[str, dict[str, Any]] = {}
    if ablation and k > 0:
        wanted["ablation"] = shared | {"n_controls": n_controls, "tokens": tokens}
        if also is not None and also != by:
            wanted[f"ablation_{also}"] = wanted["ablation"] | {"by": also}
    if steering:
        prompts = list(steering_openings() if openings is None else openings)
        wanted["steering"] = shared | {
            "openings": prompts, "doses": [float(dose) for dose in doses], "sampling": asdict(sampling), "where": where, "n_random": n_random,
            "n_others": n_others, "n_other_heads": n_other_heads,
        }  # fmt: skip
    jobs = [(name, part) for name in names for part in wanted]
    for done, (name, part) in enumerate(jobs):
        there = content["concepts"].get(name, {}).get(part)
        if there is not None and there.get("settings") == wanted[part]:
            continue

        def inner(what: str, share: float, done: int = done) -> None:
            tell(what, (done + share) / len(jobs))

        inner(f"{name}: {part}", 0.0)
        if part != "steering":
            found: Any = ablate_heads(
                instrument, texts, run.labels, run.scenarios, run.pooled, run.directions, name, layer=layer, k=k,
                by=wanted[part]["by"], n_controls=n_controls,
                tokens=tokens, seed=run.seed,
            )  # fmt: skip
            plain = ablation_block(found)
        else:
            found = check_steering(
                instrument, run.corpus, run.pooled, run.labels, run.scenarios, run.directions, name, layer=layer, openings=openings, doses=doses,
                sampling=sampling, where=where, n_random=n_random, n_others=n_others, k=k, by=by, n_other_heads=n_other_heads, seed=run.seed,
                progress=inner,
            )  # fmt: skip
            plain = steering_block(found)
        content["concepts"].setdefault(name, {})[part] = {"settings": wanted[part]} | plain
        write_record(run.folder, CAUSAL, {key: value for key, value in content.items() if key not in ("format", "of")})
    tell("done", 1.0)
    return read_record(run.folder, CAUSAL) or content


def read_causal(run: ConceptRun) -> dict[str, Any] | None:
    """``causal.json`` of a folder, or None.

    Raises:
        RunDamagedError: it cannot be read, or is of other directions.
    """
    return read_record(run.folder, CAUSAL)


def ablation_block(found: Ablation) -> dict[str, Any]:
    """An ablation as plain data."""
    return _plain(found) | {"n_counts": "scenarios"}


def steering_block(found: SteeringCheck) -> dict[str, Any]:
    """A steering check as plain data."""
    block = _plain(found) | {"n_counts": "openings"}
    shown, first_random = {"unsteered", "direction", "heads"}, True
    for arm in block["arms"]:
        if arm["kind"] not in shown and not (arm["kind"] == "random" and first_random):
            del arm["texts"]
        first_random = first_random and arm["kind"] != "random"
    return block


def _plain(value: Any) -> Any:
    if isinstance(value, Estimate) or (is_dataclass(value) and not isinstance(value, type)):
        return {one.name: _plain(getattr(value, one.name)) for one in fields(value)}
    if isinstance(value, Mapping):
        return {str(key): _plain(one) for key, one in value.items()}
    if isinstance(value, np.ndarray):
        return [_plain(one) for one in value.tolist()]
    if isinstance(value, list | tuple):
        return [_plain(one) for one in value]
    if isinstance(value, float):
        return float(f"{value:.6g}") if np.isfinite(value) else None
    return value
