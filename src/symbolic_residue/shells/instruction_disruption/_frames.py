"""The prompts of one pair of instructions: each alone, both in both orders, and the first with a compatible one.

1. An instruction is a block: its words, then worked examples (a question and an answer that follows it).
2. ``user+user``: both blocks stand in the user's turn as rules 1 and 2, and a sentence says that rule 1 holds where they differ. ``system+user``: the first
   block is the system's, the second the user's; the system has priority.
3. In every frame the question comes last and the answer is opened with ``Answer:``, as in the examples. Everything before the question is the same for all
   questions of a frame, so it runs once.
4. Plain text (models without a chat template) names the roles in words.

In the control both blocks' examples follow both instructions; in the conflict each follows its own (``joint`` changes that).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

from symbolic_residue.prompts import build_prompt, find_span, Prompt
from symbolic_residue.prompts._instructions import Instruction, joint, PLAIN, Plain
from symbolic_residue.shells.instruction_disruption._config import Arrangement
from symbolic_residue.shells.instruction_disruption._residue import Asked

__all__ = ["Condition", "Frame", "build_frames", "rendered", "shared_tokens"]

Condition = Literal["alone a", "alone b", "conflict", "control"]
_SHORT = 8
PRIORITY = "Where the rules differ, rule 1 holds."


@dataclass(frozen=True)
class Frame:
    """One prompt.

    Attributes:
        condition: what it is; ``order`` the instructions' names (a, b, c) in the order in which they stand, the one with priority first.
        arrangement: where they stand.
        task: which question.
        prompt: what the model reads.
        spans: the tokens (start, stop) of each instruction's block, by name.
        shared: how many of its first tokens all questions of the frame share.
    """

    condition: Condition
    order: str
    arrangement: Arrangement
    task: int
    prompt: Prompt
    spans: dict[str, tuple[int, int]]
    shared: int = 0

    @property
    def key(self) -> tuple[str, str, str]:
        """What all questions of the frame have in common."""
        return self.condition, self.order, self.arrangement


def block(instruction: Instruction, examples: Sequence[Plain], other: Instruction | None) -> str:
    """An instruction's words and its worked examples; with ``other`` the answers follow both."""
    lines = [instruction.text]
    for plain in examples:
        answer = joint(instruction, other, plain) if other is not None else None
        lines += [f"Question: {plain.question}", f"Answer: {answer or instruction.follow(plain.answer, plain)}"]
    return "\n".join(lines)


def build_frames(
    tokenizer: Any,
    asked: Asked,
    arrangements: Sequence[Arrangement],
    *,
    examples: int,
    chat: bool,
    both_orders: bool,
    limit: int | None,
) -> list[Frame]:
    """Every frame, conditions in the order alone a, alone b, conflict (both orders), control.

    Raises:
        PromptError: a prompt that is too long; TemplateError: a template that cannot take the conversation.
    """
    first, second = PLAIN[:examples], PLAIN[examples : 2 * examples]
    alone = {"a": block(asked.a, first, None), "b": block(asked.b, second, None)}
    conflict = {
        "a": block(asked.a, first, asked.b if asked.joint else None),
        "b": block(asked.b, second, asked.a if asked.joint else None),
    }
    control = {"a": block(asked.a, first, asked.control), "c": block(asked.control, second, asked.a)}
    every = range(len(asked.tasks))
    plan: list[tuple[Condition, str, dict[str, str], Sequence[int]]] = [
        ("alone a", "a", alone, every),
        ("alone b", "b", alone, every),
        ("conflict", "ab", conflict, every),
        ("conflict", "ba", conflict, every),
        ("control", "ac", control, every),
        ("control", "ca", control, every if both_orders else ()),
    ]
    frames = []
    for arrangement in arrangements:
        for condition, order, blocks, tasks in plan:
            group = []
            for task in tasks:
                question = asked.tasks[task].question
                prompt = rendered(tokenizer, [blocks[n] for n in order], question, arrangement, chat=chat, limit=limit)
                found = {name: find_span(prompt, text=blocks[name], occurrence=0) for name in order}
                group.append(
                    Frame(condition, order, arrangement, task, prompt, {name: (s.start, s.stop) for name, s in found.items()})
                )
            if group:
                k = shared_tokens([f.prompt.ids for f in group])
                frames += [replace(f, shared=k) for f in group]
    return _nested(frames)


def _nested(frames: list[Frame]) -> list[Frame]:
    """Frames whose beginning is another one's for the most part share that part."""
    heads = {f.key: tuple(f.prompt.ids[: f.shared]) for f in frames}
    cut: dict[tuple[str, str, str], int] = {}
    for key, head in heads.items():
        longest = max((shared_tokens([[*head, -1], [*other, -2]]) for k, other in heads.items() if k != key), default=0)
        if len(head) - longest <= _SHORT < longest:
            cut[key] = longest
    return [replace(f, shared=cut[f.key]) if f.key in cut and len(f.order) == 1 else f for f in frames]


def shared_tokens(sequences: Sequence[Sequence[int]]) -> int:
    """How many first tokens all sequences have in common, less than the shortest one's length."""
    n = 0
    while n < min(map(len, sequences)) - 1 and len({s[n] for s in sequences}) == 1:
        n += 1
    return n


def rendered(
    tokenizer: Any, blocks: list[str], question: str, arrangement: Arrangement, *, chat: bool, limit: int | None
) -> Prompt:
    """One prompt of one or two blocks; the one with priority first."""
    ask = f"Question: {question}"
    numbered = [f"Rule {i}: {text}" for i, text in enumerate(blocks, 1)] + ([PRIORITY] if len(blocks) == 2 else [])
    if not chat:
        roles = [f"{role}: {text}" for role, text in zip(("System", "User"), blocks, strict=False)]
        lines = numbered if arrangement == "user+user" else roles
        return build_prompt(tokenizer, "\n".join([*lines, ask, "Answer:"]), max_tokens=limit)
    if arrangement == "user+user":
        turns = [{"role": "user", "content": "\n".join([*numbered, ask])}]
    else:
        turns = [{"role": "system", "content": blocks[0]}, {"role": "user", "content": "\n".join([*blocks[1:], ask])}]
    return build_prompt(tokenizer, messages=[*turns, {"role": "assistant", "content": "Answer:"}], max_tokens=limit)
