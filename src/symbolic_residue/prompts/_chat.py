"""Which part of a rendered chat is whose: the template is probed, never parsed.

A chat template is a program. What it writes around the contents (role tags, control tokens, newlines) is found by
rendering the same conversation with other contents and comparing.

1. Every content is replaced by a marker that occurs nowhere else, twice with markers of other letters, case and length.
   Each marker must come back exactly once and unchanged; the text between them is the *frame*, and it must be the same
   both times. A template that changes, repeats, drops or inspects contents fails here.
2. A third probe puts whitespace around the markers, and tells for each content and side whether the template keeps it,
   strips it, or strips newlines only.
3. Frame and real contents are put together again. The result must equal the real rendering, character by character.
4. The part that opens the assistant's turn is what ``add_generation_prompt`` adds (an end-of-text token that closes the
   conversation without it belongs to no turn). Where it adds nothing, the frame after the last content opens that turn if
   an assistant's content would follow it directly (``[/INST]`` templates); where an assistant's content would be preceded
   by more, the template cannot ask for an answer, and is refused.
5. A default system text is found by the same difference: with an explicit system marker ``S`` the frame holds ``a S b``;
   if without it there is ``a x b``, then ``x`` is the default. Proof: ``x`` given explicitly renders the same text.
   What the template writes whether or not a system turn is given (a date line, a preamble) stays frame.
6. A conversation that ends with an assistant's turn is rendered whole, then cut right after that content: the model goes
   on with it. The frame before it is split into the user's footer and the assistant's header by step 4's rendering.

Whatever cannot be shown this way is refused with what differs.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from symbolic_residue.errors import TemplateError

__all__ = ["Message", "Piece", "segment_chat"]

Message = Mapping[str, str]
"""``{"role": "system" | "user" | "assistant", "content": text}``."""

_ANSWER: Message = {"role": "assistant", "content": "x"}

_REGION = {"system": "system", "user": "user", "assistant": "answer"}

# Whitespace of the third probe. The lengths make every combination of "kept", "newlines stripped" and "all stripped" on
# the right of one content and the left of the next a different number of characters.
_LEFT, _RIGHT = "\n" + " " * 10, " " * 20 + "\n" * 3
_STRIPS: tuple[str | None, ...] = ("", "\n", None)  # arguments of str.lstrip/rstrip: nothing, newlines, all whitespace


@dataclass(frozen=True, slots=True)
class Piece:
    """A stretch of the rendered text, its region, and whose words it holds: the frame's, the user's, the template's default."""

    text: str
    region: str
    source: Literal["frame", "content", "default"]


@dataclass(frozen=True, slots=True)
class _Frame:
    """The literal text around the contents.

    ``pieces`` has one more entry than there are contents; ``order`` is the message of each content in text order;
    ``strips`` holds, for each content in text order, what is stripped left and right.
    """

    pieces: tuple[str, ...]
    order: tuple[int, ...]
    strips: tuple[tuple[str | None, str | None], ...]

    def contents(self, messages: Sequence[Message]) -> list[str]:
        """The contents as the template writes them, in text order."""
        return [messages[i]["content"].lstrip(left).rstrip(right) for i, (left, right) in zip(self.order, self.strips, strict=True)]

    def fill(self, messages: Sequence[Message]) -> str:
        contents = [*self.contents(messages), ""]
        return "".join(piece + content for piece, content in zip(self.pieces, contents, strict=True))


def segment_chat(tokenizer: Any, messages: Sequence[Message]) -> tuple[list[Piece], str]:
    """The rendered conversation in pieces, each with its region.

    Args:
        tokenizer: has ``chat_template`` and ``apply_chat_template``.
        messages: roles and contents as checked by ``build_prompt``; at least one user turn, the last turn not a system's.

    Returns:
        The pieces, whose texts joined are what the model reads, and the whole rendering (longer than the pieces where the
        conversation ends with an assistant's turn, see step 6).

    Raises:
        TemplateError: no template; the template refuses the conversation; or it cannot be segmented (what differs is said).
    """
    template = _Template(tokenizer)
    prefill = messages[-1]["role"] == "assistant"
    rendered = template.render(messages, generate=not prefill)
    frame = _learn(template, messages, generate=not prefill)
    _require_equal(rendered, frame.fill(messages))

    split: dict[int, list[Piece]] = {}
    last = len(frame.pieces) - 1
    if prefill:
        if frame.order[-1] != len(messages) - 1:
            raise _unsegmented("it does not write the last message last")
        last -= 1  # the frame after the assistant's content is cut away
        footer, header = _prefill_header(template, messages, frame)
    else:
        footer, header = _generation_prompt(template, messages, frame)
    split[last] = [Piece(footer, "special", "frame"), Piece(header, "assistant_header", "frame")]

    default = _default_system(template, messages, frame, rendered, generate=not prefill)
    if default is not None:
        where, parts = default
        if where in split:
            raise _unsegmented("it puts a default system text where the assistant's turn opens")
        split[where] = parts

    pieces: list[Piece] = []
    for i, content in enumerate(frame.contents(messages)):
        pieces += split.get(i, [Piece(frame.pieces[i], "special", "frame")])
        pieces.append(Piece(content, _REGION[messages[frame.order[i]]["role"]], "content"))
    if not prefill:
        pieces += split[last]
    pieces = [piece for piece in pieces if piece.text]
    if not rendered.startswith("".join(piece.text for piece in pieces)):
        raise _unsegmented("its pieces do not make up the rendered text")
    return pieces, rendered


class _Template:
    """Rendering with the failures of a foreign program turned into TemplateError."""

    def __init__(self, tokenizer: Any) -> None:
        if not getattr(tokenizer, "chat_template", None):
            raise TemplateError(
                "The tokenizer has no chat template.",
                why="A base model reads plain text.",
                todo="Drop --chat (chat=False), or use the instruction-tuned model.",
            )
        self._tokenizer = tokenizer

    def render(self, messages: Sequence[Message], *, generate: bool) -> str:
        try:
            text = self._tokenizer.apply_chat_template(
                [dict(message) for message in messages], tokenize=False, add_generation_prompt=generate
            )
        except Exception as error:  # the template is a program: it may raise anything
            raise TemplateError(
                f"The chat template refuses this conversation ({_roles(messages)}): {error}",
                todo="Change the turns as the template asks, or drop --chat.",
            ) from error
        if not isinstance(text, str):
            raise _unsegmented(f"it gives {type(text).__name__}, not text")
        return text

    def footer(self, closed: str, followed: str) -> str:
        """The end of the user's turn, from how a conversation is ``closed`` after it and how it is ``followed`` by a turn.

        Some templates close a conversation that asks for no answer with the end-of-text token; that is not the user's.
        """
        eos = getattr(self._tokenizer, "eos_token", None) or ""
        for footer in (closed, closed.removesuffix(eos)):
            if followed.startswith(footer):
                return footer
        raise _unsegmented(f"a user's turn ends in {_short(closed)}, but in {_short(followed)} where the assistant's follows")


def _learn(template: _Template, messages: Sequence[Message], *, generate: bool) -> _Frame:
    """Steps 1 and 2: the frame of a conversation with these roles."""
    stem = _unused_stem(messages)
    first = _probe(template, messages, [f"{stem}a{i}Z" for i in range(len(messages))], generate=generate)
    second = _probe(template, messages, [f"k{stem}, b{i} Longer{i}Yq" for i in range(len(messages))], generate=generate)
    if first != second:
        raise _unsegmented("what it writes around the contents depends on the contents")
    pieces, order = first
    marks = [f"{stem}c{i}V" for i in range(len(messages))]
    spaced, spaced_order = _probe(template, messages, marks, generate=generate, left=_LEFT, right=_RIGHT)
    if spaced_order != order:
        raise _unsegmented("the order of the contents depends on the contents")
    lefts: list[str | None] = []
    rights: list[str | None] = []
    for i, (plain, seen) in enumerate(zip(pieces, spaced, strict=True)):
        # between two markers stand the right whitespace of one content, the frame, the left whitespace of the next
        options = [
            (right, left)
            for right in (_STRIPS if i else ("",))
            for left in (_STRIPS if i < len(order) else ("",))
            if seen == (_RIGHT.rstrip(right) if i else "") + plain + (_LEFT.lstrip(left) if i < len(order) else "")
        ]
        if len(options) != 1:
            raise _unsegmented(f"whitespace around a content changes the text around it to {seen!r} (plain: {plain!r})")
        rights.append(options[0][0])
        lefts.append(options[0][1])
    return _Frame(pieces, order, tuple(zip(lefts[:-1], rights[1:], strict=True)))


def _probe(
    template: _Template, messages: Sequence[Message], marks: Sequence[str], *, generate: bool, left: str = "", right: str = ""
) -> tuple[tuple[str, ...], tuple[int, ...]]:
    """Literal pieces around the marks, and the message of each mark, both in text order."""
    probes = [{**message, "content": left + mark + right} for message, mark in zip(messages, marks, strict=True)]
    text = template.render(probes, generate=generate)
    found = []
    for i, mark in enumerate(marks):
        count = text.count(mark)
        if count != 1:
            did = "changes or drops" if not count else f"writes {count} times"
            raise _unsegmented(f"it {did} the content of message {i + 1} ({messages[i]['role']})")
        found.append((text.index(mark), i))
    found.sort()
    pieces, end = [], 0
    for start, i in found:
        pieces.append(text[end:start])
        end = start + len(marks[i])
    return (*pieces, text[end:]), tuple(i for _, i in found)


def _generation_prompt(template: _Template, messages: Sequence[Message], frame: _Frame) -> tuple[str, str]:
    """Step 4: the last frame piece as (end of the user's turn, opening of the assistant's turn)."""
    closed = _learn(template, messages, generate=False)
    if closed.pieces[:-1] != frame.pieces[:-1] or closed.order != frame.order:
        raise _unsegmented("the generation prompt changes the text before it")
    footer = template.footer(closed.pieces[-1], frame.pieces[-1])
    header = frame.pieces[-1][len(footer) :]
    if header:
        return footer, header
    opening = _before_answer(template, messages)
    opening = opening[len(template.footer(footer, opening)) :]
    if opening.strip():
        raise TemplateError(
            "The chat template has no generation prompt.",
            why=f"An assistant's turn opens with {opening!r}, which add_generation_prompt does not write.",
            todo="Give the template an add_generation_prompt branch, or drop --chat.",
        )
    return "", footer


def _before_answer(template: _Template, messages: Sequence[Message]) -> str:
    """The frame between the last user's content and an assistant's content that follows it."""
    try:
        answered = _learn(template, [*messages, _ANSWER], generate=False)
    except TemplateError:
        # some templates write the system text only while the user has the last word
        turns = [message for message in messages if message["role"] != "system"]
        if len(turns) == len(messages):
            raise
        answered = _learn(template, [*turns, _ANSWER], generate=False)
    if answered.order[-1] != len(answered.order) - 1:
        raise _unsegmented("it does not write the assistant's content last")
    return answered.pieces[-2]


def _prefill_header(template: _Template, messages: Sequence[Message], frame: _Frame) -> tuple[str, str]:
    """Step 6: the frame before a final assistant's content as (end of the user's turn, opening of the assistant's turn)."""
    between = frame.pieces[-2]
    footer = template.footer(_learn(template, messages[:-1], generate=False).pieces[-1], between)
    header = between[len(footer) :]
    return (footer, header) if header.strip() else ("", between)


def _default_system(
    template: _Template, messages: Sequence[Message], frame: _Frame, rendered: str, *, generate: bool
) -> tuple[int, list[Piece]] | None:
    """Step 5: the frame piece that holds a default system text, cut in three; None where there is none."""
    if any(message["role"] == "system" for message in messages):
        return None
    try:
        explicit = _learn(template, [{"role": "system", "content": "x"}, *messages], generate=generate)
    except TemplateError:
        return None  # no system turn is taken, so all that the template writes by itself is frame
    where = explicit.order.index(0)
    before, after, whole = explicit.pieces[where], explicit.pieces[where + 1], frame.pieces[where]
    if len(whole) <= len(before) + len(after) or not whole.startswith(before) or not whole.endswith(after):
        return None
    text = whole[len(before) : len(whole) - len(after)]
    if not text.strip():
        return None
    if template.render([{"role": "system", "content": text}, *messages], generate=generate) != rendered:
        raise _unsegmented(f"it writes {_short(text)} where a system turn would stand, but not as that turn")
    return where, [Piece(before, "special", "frame"), Piece(text, "system", "default"), Piece(after, "special", "frame")]


def _unused_stem(messages: Sequence[Message]) -> str:
    contents = "\n".join(message["content"] for message in messages).lower()
    n = 0
    while f"rqw{n}x" in contents:
        n += 1
    return f"RqW{n}x"


def _require_equal(rendered: str, rebuilt: str) -> None:
    """Step 3."""
    if rendered == rebuilt:
        return
    at = next((i for i, (a, b) in enumerate(zip(rendered, rebuilt, strict=False)) if a != b), min(len(rendered), len(rebuilt)))
    raise _unsegmented(
        f"at character {at} it writes {_short(rendered[at:])} where frame and contents give {_short(rebuilt[at:])}, "
        "so it changes this content or looks into it"
    )


def _unsegmented(reason: str) -> TemplateError:
    return TemplateError(
        f"The chat template cannot be segmented: {reason}.",
        why="Every token's region must be certain.",
        todo="Drop --chat and give the rendered text as a plain prompt.",
    )


def _short(text: str) -> str:
    return repr(text if len(text) <= 40 else text[:40] + "…")


def _roles(messages: Sequence[Message]) -> str:
    return ", ".join(message["role"] for message in messages)
