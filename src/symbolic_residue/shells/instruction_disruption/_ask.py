"""From what a user gives to what is asked: two instructions, a compatible control, and the questions."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from pydantic import BaseModel, ConfigDict

from symbolic_residue.errors import ConfigError, PromptError
from symbolic_residue.prompts._instructions import Instruction, joint, make_instruction, PLAIN, read_instruction, relation, TASKS
from symbolic_residue.shells.instruction_disruption._residue import Asked, Task

__all__ = ["InstructionQuestion", "choose_control", "make_asked", "read_lines"]


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
