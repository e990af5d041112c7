"""Failures from the packaged benchmarks, as texts.

``memory-degradation``: fact, padding, question. The fact is the evidence, a rival fact (nearest to the question) the distractor, and the control has the
padding before
the fact. The padding is laid out by the item's place in the file, so that it is the same each time.
"""

from __future__ import annotations

from typing import Any

from symbolic_residue.prompts import memory_items, padding_sentences

__all__ = ["memory_failures"]

_SENTENCES = 12


def memory_failures(*, sentences: int = _SENTENCES) -> dict[str, list[dict[str, Any]]]:
    """Split → texts for ``failure_of`` of every planted item with a single value.

    Args:
        sentences: of padding between fact and question.
    """
    out: dict[str, list[dict[str, Any]]] = {"calibration": [], "held-out": []}
    for number, item in enumerate(memory_items()):
        if item.null or len(item.answers) != 1:
            continue
        padding = " ".join(padding_sentences(item.padding, sentences, seed=(0, number), similar=item.distractors))
        rival = f" {item.rival}" if item.rival else ""
        out[item.split].append(
            {
                "id": item.id,
                "frame": item.frame,
                "prompt": f"{item.fact} {padding}{rival}{item.question}",
                "answer": item.answers[0],
                "evidence": item.fact,
                "distractor": item.rival,
                "control": f"{padding}{rival} {item.fact}{item.question}",
            }
        )
    return out
