"""From what a user gives to what is asked: two instructions, a compatible control, and the questions."""

from __future__ import annotations

import re
from collections.abc import Sequence
from itertools import combinations, pairwise
from typing import Any

from pydantic import BaseModel, ConfigDict

from symbolic_residue.errors import ConfigError, PromptError
from symbolic_residue.prompts._instructions import (
    Instruction,
    joint,
    KINDS,
    make_instruction,
    PLAIN,
    read_instruction,
    relation,
    TASKS,
)
from symbolic_residue.shells.instruction_disruption._residue import Asked, Task

__all__ = ["InstructionQuestion", "choose_control", "find_instructions", "make_asked", "read_lines"]


class InstructionQuestion(BaseModel):
    """One pair to ask about, as a line of a file: ``{"id", "first", "second", "tasks"?, "control"?}``."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    id: str
    first: str
    second: str
    tasks: list[str] | None = None
    """Questions; the packaged ones when left out."""
    control: str | None = None
    """Compatible with ``first``; chosen when left out."""

    @property
    def shown(self) -> str:
        """Both instructions, a line each."""
        return f"{self.first}\n{self.second}"

    def asked(self) -> dict[str, Any]:
        """Arguments of the shell's ``run``."""
        return {"instructions": [self.first, self.second], "task": self.tasks, "control": self.control}


WORDINGS = (
    "{}", "Please answer: {}", "Tell me this: {}", "I have a question. {}", "Here is what I ask: {}", "One more thing. {}",
    "Now consider this: {}", "The next one: {}", "My question is this: {}", "Let us see. {}",
)  # fmt: skip
"""A user's own question in as many wordings."""

_CONTROLS = (
    ("end", "friend"), ("exclaim", ""), ("uppercase", ""), ("quoted", ""), ("contain", "old"), ("language", "English"), ("short", ""), ("no-digits", ""),
)  # fmt: skip


def choose_control(a: Instruction, b: Instruction) -> Instruction:
    """An instruction of another kind that one answer can follow together with ``a``.

    Raises:
        ConfigError: none of those known here is compatible.
    """
    for kind, value in _CONTROLS:
        c = make_instruction(kind, value)
        if kind not in (a.kind, b.kind) and relation(a, c) == "compatible" and all(joint(a, c, p) is not None for p in PLAIN):
            return c
    raise ConfigError(f"No compatible control is known for {a.text!r}.", todo="Give control=….")


def read_lines(text: str) -> tuple[list[Instruction], str | None]:
    """The instructions on the lines of a text, and the last other line as the question.

    Raises:
        PromptError: not exactly two lines are instructions that can be verified.
    """
    found, rest, problem = [], [], None
    for line in filter(None, (line.strip() for line in text.splitlines())):
        try:
            found.append(read_instruction(line))
        except PromptError as error:
            rest.append(line)
            problem = error
    if len(found) != 2:
        raise PromptError(
            f"{len(found)} of the lines are instructions that can be verified, and two are needed.",
            why=str(problem) if problem else "",
            todo="Write two instructions and a question, a line each, or give instructions=[…, …].",
        )
    return found, rest[-1] if rest else None


_ORDERS = re.compile(
    r"(?:please,? |always |never |also |then |and |now )*"
    r"(?:answer|write|reply|respond|say|speak|give|put|use|keep|begin|start|end|finish|include|mention|contain|avoid|make|ask|let your|"
    r"be (?:very )?(?:brief|short)|"
    r"do not|don't|never|always|no |your (?:answer|reply|response) (?:must|should)|you (?:must|should))\b",
    re.IGNORECASE,
)
_SENTENCE = re.compile(r"[.!?]+[\"'”)]*\s+|\n+")


def find_instructions(text: str) -> tuple[list[Instruction], str | None]:
    """Two instructions among the sentences of a text, and its last question (or other last sentence) where it has one.

    A sentence is an instruction where it orders something (begins as an order does) and a program can verify it. Of more than two, the first pair that
    contradicts itself is taken, else the first two.

    Raises:
        PromptError: fewer than two are found; the message says how many sentences order something, and which of them cannot be verified.
    """
    cuts = [0, *(m.end() for m in _SENTENCE.finditer(text)), len(text)]
    found: list[Instruction] = []
    rest, unread = [], []
    for piece in (text[a:b].strip() for a, b in pairwise(cuts)):
        named = re.match(r"([a-z-]+)(?:=[^:]*)?:\s+\S", piece)
        if not piece:
            continue
        if not (_ORDERS.match(piece) or (named and named[1] in KINDS)):
            rest.append(piece)
            continue
        try:
            one = read_instruction(piece)
        except (PromptError, ConfigError):
            unread.append(piece)
            rest.append(piece)
            continue
        if all(one.text != other.text for other in found):
            found.append(one)
    if len(found) < 2:
        unverified = f" {len(unread)} further orders cannot be verified by a program, such as {unread[0][:60]!r}." if unread else ""
        raise PromptError(
            f"{len(found)} of the text's sentences {'is an instruction' if len(found) == 1 else 'are instructions'} that can be verified, and two are needed.",
            why=f"Whether an instruction is followed is judged by a program.{unverified}",
            todo="Give a text with two such instructions, as 'Answer in French. Answer with one word. What is ice?'.",
        )
    pairs = [pair for pair in combinations(found, 2) if relation(*pair) == "contradictory"]
    questions = [piece for piece in rest if piece.endswith("?")]
    question = questions[-1] if questions else next((piece for piece in reversed(rest) if piece not in unread), None)
    return list(pairs[0] if pairs else found[:2]), question


def make_asked(
    instructions: Sequence[str | Instruction],
    task: str | Sequence[str] | None,
    control: str | Instruction | None,
    joint_examples: bool | None,
    n_tasks: int,
    seed: int,
) -> Asked:
    """Everything that is asked, checked.

    Raises:
        PromptError: an instruction that cannot be verified; an empty question.
        ConfigError: not two different instructions; a control that is not compatible with the first.
    """
    if isinstance(instructions, str) or len(instructions) != 2:
        raise ConfigError("Give exactly two instructions.", todo="instructions=['Answer in French.', 'Answer in German.']")
    a, b = (i if isinstance(i, Instruction) else read_instruction(i) for i in instructions)
    c = choose_control(a, b) if control is None else control if isinstance(control, Instruction) else read_instruction(control)
    if len({a.text, b.text, c.text}) != 3:
        raise ConfigError("The instructions (and the control) must be worded differently.", why="Each is found by its words.")
    if relation(a, c) != "compatible":
        raise ConfigError(
            f"The control {c.text!r} is not known to be compatible with {a.text!r}.", todo="Give another one, or leave it out."
        )
    found = relation(a, b)
    if joint_examples and found != "compatible":
        raise ConfigError(f"No example can follow both: the two are {found}.", todo="Leave joint out.")
    questions = [task] if isinstance(task, str) else list(task or ())
    if any(not q.strip() for q in questions):
        raise PromptError("A question is empty.")
    if task is None:
        tasks = [Task(question=p.question, plain=p) for p in TASKS[:n_tasks]]
    else:
        if not questions:
            raise PromptError("There is no question.", todo="Leave task out to use the packaged ones.")
        known = {p.question: p for p in TASKS}
        worded = [(w.format(" ".join(q.split())), known.get(q)) for w in WORDINGS for q in questions]
        tasks = [Task(question=q, plain=p) for q, p in worded[: max(n_tasks, len(questions))]]
        if len(tasks) < n_tasks:  # pragma: no cover  (ten wordings of one question are more than the most tasks)
            raise ConfigError("There are too few questions.")
    return Asked(
        input_text=f"{a.text}\n{b.text}\n{tasks[0].question}",
        a=a,
        b=b,
        control=c,
        relation=found,
        joint=found == "compatible" if joint_examples is None else joint_examples,
        tasks=tasks,
        seed=seed,
    )
