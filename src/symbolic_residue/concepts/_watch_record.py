"""A watched generation as plain data: tokens with their z, the reference they stand on, and a verdict a track.

::

    tracks: [{concept, layer, mean, sd}]            reference of each, residual stream's units
    reference: {scenarios, tokens, controls, threshold, …}
    texts: [{prompt, draw, prompt_text, text, stop, tokens: [{position, id, text, generated}], z: [token][track], reached: [token][track]}]
    verdicts: [{concept, layer, outcome, reason, n, mean_z, difference, …}]         see :class:`WatchVerdict`

``z`` and ``reached`` are null for tokens without a score (the first, a template's, one that was never read).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from typing import Any, TYPE_CHECKING

import numpy as np

from symbolic_residue.concepts._watch import WatchedText, Watcher
from symbolic_residue.concepts._watch_verdict import FEWEST_TOKENS, judge_watch, LEVEL, MARGIN, THRESHOLD, WatchVerdict

if TYPE_CHECKING:
    from symbolic_residue.prompts import Prompt

__all__ = ["verdicts_of", "watch_record"]


def verdicts_of(watcher: Watcher, texts: Sequence[WatchedText]) -> list[WatchVerdict]:
    """One verdict a track, over the prompts of these texts."""
    prompts = list(dict.fromkeys(one.prompt for one in texts))
    groups = [[one for one in texts if one.prompt == prompt] for prompt in prompts]
    n, k = len(watcher.tracks), watcher.n_controls
    none_mean, none_share = np.zeros((n, k)), np.zeros(n)
    return judge_watch(
        watcher.neutral(),
        [[one.generated_z() for one in group] for group in groups],
        [[none_mean if one.control_mean is None else one.control_mean for one in group] for group in groups],
        [[none_share if one.control_share is None else one.control_share for one in group] for group in groups],
    )


def watch_record(
    watcher: Watcher, prompts: Sequence[Prompt], texts: Sequence[WatchedText], settings: dict[str, Any], provenance: dict[str, Any]
) -> dict[str, Any]:
    """The content of ``watch/NAME.json``.

    Args:
        watcher: what was scored with.
        prompts: as the model read them.
        texts: of :func:`watch`.
        settings: how they were generated.
        provenance: of the model.
    """
    first = watcher.references[watcher.layers[0]]
    tracks = [
        {"concept": t.concept, "layer": t.layer, "mean": float(watcher.references[t.layer].mean[c]), "sd": float(watcher.references[t.layer].sd[c])}
        for t, c in zip(watcher.tracks, watcher.at, strict=True)
    ]  # fmt: skip
    return {
        "n": len({one.prompt for one in texts}),
        "n_counts": "prompts",
        "seed": settings.get("seed"),
        "settings": settings,
        "provenance": provenance,
        "reference": {
            "of": "tokens of the neutral tellings, by directions found without their scenario; not the first token, not a template's",
            "scenarios": first.n_units,
            "tokens": len(first.unit),
            "controls": watcher.n_controls,
            "controls_of": "labels permuted within scenarios",
            "threshold": THRESHOLD,
            "margin": MARGIN,
            "level": LEVEL,
            "fewest_tokens": FEWEST_TOKENS,
        },
        "tracks": tracks,
        "texts": [_text(one, prompts[one.prompt]) for one in texts],
        "verdicts": [
            {"concept": t.concept, "layer": t.layer} | asdict(v)
            for t, v in zip(watcher.tracks, verdicts_of(watcher, texts), strict=True)
        ],
    }


def _text(one: WatchedText, prompt: Prompt) -> dict[str, Any]:
    return {
        "prompt": one.prompt,
        "draw": one.draw,
        "prompt_text": prompt.text,
        "text": one.text,
        "stop": one.stop,
        "tokens": [{"position": t.position, "id": t.id, "text": t.text, "generated": t.generated} for t in one.tokens],
        "z": [None if t.z is None else [round(float(x), 6) for x in t.z] for t in one.tokens],
        "reached": [None if t.reached is None else [round(float(x), 4) for x in t.reached] for t in one.tokens],
    }
