"""What a study that goes on keeps: its own configuration where the file says nothing else, and the items that a change leaves as they are.

1. A field that the file does not name keeps the value that the run was started with, whatever the default has become since; a section is gone through field
   by field. Lists (conditions, questions) and references are taken as the file has them.
2. Every field belongs to the first stage that it acts on (:data:`STAGE_OF`). A change of a later stage's field drops the items of that stage and of those
   after it; answers that were drawn are never thrown away: a change that would do so is refused.
3. Fields of :data:`FREE` say how much is done at once. Every answer is drawn with its own seed, whatever it is drawn beside, so no kept answer and no rate
   depends on them: they may change at any time, and nothing is made again. (Half precision rounds otherwise in another batch.)
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any

from pydantic import BaseModel

from symbolic_residue.contrast._config import StudyConfig, TUNED
from symbolic_residue.contrast._config_file import read_config
from symbolic_residue.errors import ConfigError

__all__ = ["FREE", "STAGE_OF", "changes", "continued_config"]

STAGE_OF = {
    "preflight": 0,
    **dict.fromkeys(
        (
            "model",
            "adapter",
            "dtype",
            "device",
            "chat",
            "behaviour",
            "conditions",
            "questions",
            "sampling",
            "sink_threshold",
            "seed",
        ),
        1,
    ),
    "rows": 2,
    "readout": 2,
    "references": 3,
    "predicted": 4,
    "analysis": 4,
    "causal": 5,
}
"""Configuration field → the first stage that it acts on."""

_PREFIXES = {
    0: ("preflight",),
    1: ("gen-", "rate-", "rates"),
    2: (f"read-{TUNED}/",),
    3: ("read-",),
    4: ("analysis/",),
    5: ("causal-", "effects"),
}


FREE = (("sampling", "batch"), ("readout", "batch"), ("readout", "side"))
"""Sections and fields on which nothing that is kept depends. (``causal.batch`` is none: it says which examples an item holds.)"""


def continued_config(saved: Mapping[str, Any], given: StudyConfig) -> tuple[StudyConfig, dict[str, Any]]:
    """The configuration of a run that goes on with a file's.

    Args:
        saved: the run's own, as JSON holds it.
        given: the file's.

    Returns:
        What the file names and, for the rest, what the run has; and those of the latter that are other than today's defaults, by ``section.field``.

    Raises:
        ConfigError: the two do not fit together.
    """
    old = read_config(saved)
    joined, kept = _over(old, given, "")
    return read_config(joined), kept


def _over(old: BaseModel, given: BaseModel, where: str) -> tuple[dict[str, Any], dict[str, Any]]:
    was, now = old.model_dump(mode="json"), given.model_dump(mode="json")
    joined: dict[str, Any] = {}
    kept: dict[str, Any] = {}
    for name in type(given).model_fields:
        mine, theirs = getattr(given, name), getattr(old, name)
        if name not in given.model_fields_set:
            joined[name] = was[name]
            if was[name] != now[name]:
                kept[where + name] = was[name]
        elif isinstance(mine, BaseModel) and isinstance(theirs, BaseModel):
            joined[name], more = _over(theirs, mine, f"{where}{name}.")
            kept |= more
        else:
            joined[name] = now[name]
    return joined, kept


def changes(
    old: Mapping[str, Any], new: Mapping[str, Any], done: Sequence[str], *, moved: Collection[str] = ()
) -> tuple[list[str], Callable[[str], bool]]:
    """What differs between two configurations of one study, and which items have to go.

    Args:
        old: of the folder, as JSON holds it; ``new`` the one given.
        done: items of the folder.
        moved: references whose files are others than they were.

    Returns:
        The fields that differ, and whether an item has to be measured anew.

    Raises:
        ConfigError: a field of stage 1 differs, and answers were drawn already.
    """
    old, new = _compared(old), _compared(new)
    odd = [name for name in dict.fromkeys([*old, *new]) if old.get(name) != new.get(name)]
    first = [name for name in odd if STAGE_OF.get(name, 1) == 1]
    if first and any(_stage(item) == 1 for item in done):
        told = "; ".join(_told(old.get(name), new.get(name), name) for name in first)
        raise ConfigError(
            "The configuration is another one.",
            why=f"{told}. The answers of this run were drawn without that change.",
            todo="Use another folder, or the configuration that the run was started with.",
        )
    before, after = (side.get("references") or {} for side in (old, new))
    models = {name for name in {*before, *after} if before.get(name) != after.get(name)} | {*moved}
    stages = {STAGE_OF.get(name, 1) for name in odd} | ({3} if moved else set())
    least = min((stage for stage in stages if stage > 0), default=9)

    def goes(item: str) -> bool:
        stage = _stage(item)
        if stage == 0:
            return 0 in stages or least <= 1
        if stage == 3 and least == 3:
            return item.removeprefix("read-").partition("/")[0] in models
        return stage >= least

    return odd, goes


def _compared(config: Mapping[str, Any]) -> dict[str, Any]:
    """The configuration without the fields that change nothing."""
    out = dict(config)
    for section, field in FREE:
        if isinstance(out.get(section), Mapping):
            out[section] = {name: value for name, value in out[section].items() if name != field}
    return out


def _stage(item: str) -> int:
    return next((stage for stage, starts in _PREFIXES.items() if item.startswith(starts)), 1)


def _told(old: Any, new: Any, where: str) -> str:
    if isinstance(old, dict) and isinstance(new, dict):
        return "; ".join(
            _told(old.get(k), new.get(k), f"{where}.{k}") for k in dict.fromkeys([*old, *new]) if old.get(k) != new.get(k)
        )
    shown = [text if len(text) <= 60 else f"{text[:57]}…" for text in (repr(old), repr(new))]
    return f"{where} was {shown[0]} and is {shown[1]}" if shown[0] != shown[1] else f"{where} differs"
