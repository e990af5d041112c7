"""The prompt under stress and its matched control of one item of a shell, as the shell itself ran them.

VALUE-COLLAPSE: the prompt and its control. MEMTRACE: fact, padding at the judged distance and question, and the same with the fact of the control.
TEMPORAL-INFERENCE: the first prompt of the pair and that of the neutral story. INSTRUCTION-DISRUPTION: the first question under both instructions, and
under the first with a compatible one. LAYER-SALIENCE, texts of TEMPORAL-INFERENCE and shells of one's own: the text, without a control.
"""

from __future__ import annotations

from typing import Any

from symbolic_residue.prompts import build_prompt

__all__ = ["stressed"]

Ids = list[int]


def stressed(shell: Any, residue: Any) -> tuple[Ids, Ids | None] | None:
    """Token ids of the prompt and of its control; None in place of what the item does not have.

    Args:
        shell: what ran the item.
        residue: what its ``run`` returned.

    Raises:
        PromptError: a text that cannot be used.
    """
    asked = getattr(residue, "asked", None)
    if asked is None:
        return None
    tokenizer = shell.tokenizer
    name = shell.name
    if name == "value-collapse" and asked.messages is None:
        texts = (asked.input_text, asked.control_text)
        return build_prompt(tokenizer, texts[0], chat=asked.chat).ids, build_prompt(tokenizer, texts[1], chat=asked.chat).ids
    if name == "memtrace":
        from symbolic_residue.shells.memtrace._text import passage

        kind = next(iter(asked.streams))
        sides = [passage(tokenizer, asked, side) for side in ("fact", "control")]
        prompt, control = ([*side.head, *side.pads[kind][0][: asked.distance], *side.tail] for side in sides)
        return prompt, control
    if name == "temporal-inference" and asked.prompts:
        neutral = build_prompt(tokenizer, asked.neutral[0].text).ids if asked.neutral else None
        return build_prompt(tokenizer, asked.prompts[0].text).ids, neutral
    if name == "instruction-disruption":
        first: dict[str, Ids] = {}
        for frame in shell._frames(asked, residue.config):
            first.setdefault(frame.condition, frame.prompt.ids)
        return (first["conflict"], first.get("control")) if "conflict" in first else None
    text = getattr(asked, "text", None) or getattr(asked, "input_text", None)
    return (build_prompt(tokenizer, text, chat=bool(getattr(asked, "chat", False))).ids, None) if isinstance(text, str) else None
