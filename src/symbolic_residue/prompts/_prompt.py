"""A prompt as the model reads it: text, token ids, where each token stands in the text, and its region.

1. Plain text is tokenised as the tokenizer does by default (with its BOS, if it has one). A chat is rendered and
   segmented by ``_chat``; the rendering is tokenised without further special tokens, as the template writes its own, and
   the ids must equal those of ``apply_chat_template(tokenize=True)``.
2. The fast tokenizer's offsets are made into spans that tile the text: each token starts where the one before ended.
   Characters that offsets skip (byte-level tokenizers may leave out a leading space) go to the token after them. Where
   one character takes several tokens, the first holds the character and the others are of zero width behind it.
3. A token's region is that of its characters. A token that straddles frame and content belongs to the content; one that
   straddles two contents belongs to the first. A control token of the frame stays frame even if it swallows whitespace
   of the content. Zero-width pieces inherit from the token before. Position 0 is ``sink``, whatever it is.
4. Text that the user typed and that becomes a control token is refused, since the model would read it as structure.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from symbolic_residue.errors import ConfigError, PromptError, TemplateError
from symbolic_residue.prompts._chat import Message, Piece, segment_chat
from symbolic_residue.prompts._regions import CHAT_REGIONS, Regions, TEXT_REGIONS

__all__ = ["Prompt", "build_prompt"]

_ROLES = ("system", "user", "assistant")


@dataclass(frozen=True)
class Prompt:
    """What a model reads, token by token.

    Attributes:
        text: the text, for a chat the rendered one.
        ids: token ids ``[key]``.
        tokens: what each token shows, ``[key]``: its part of ``text``, or its decoding where it has no part of its own
            (BOS that the tokenizer adds; the later bytes of a character).
        offsets: ``[key]`` character spans ``(start, stop)`` in ``text``. They tile it: joined they are the whole text.
        regions: one name a token.
        chat: rendered by the chat template.
        messages: the conversation behind a chat, else None.
        answer_start: the first token of ``build_prompt(answer=…)``, else None.
    """

    text: str
    ids: list[int]
    tokens: list[str]
    offsets: list[tuple[int, int]]
    regions: Regions
    chat: bool
    messages: tuple[dict[str, str], ...] | None = None
    answer_start: int | None = None

    def __len__(self) -> int:
        return len(self.ids)


def build_prompt(
    tokenizer: Any,
    text: str | None = None,
    *,
    messages: Sequence[Message] | None = None,
    chat: bool = False,
    system: str | None = None,
    answer: str | None = None,
    max_tokens: int | None = None,
    allow_special: bool = False,
) -> Prompt:
    """Tokenise and segment a prompt.

    Args:
        tokenizer: a fast Hugging Face tokenizer (one with offsets).
        text: plain text; with ``chat=True`` the content of one user turn.
        messages: a conversation instead of ``text`` (implies a chat): mappings with ``role`` (system, user, assistant) and
            ``content``. If it ends with an assistant's turn, that turn is left open and the model goes on with it.
        chat: render ``text`` by the tokenizer's chat template.
        system: the content of a system turn put first (chat only).
        answer: text right after the prompt (in a chat: after the generation prompt), region ``answer``. The prompt's own
            tokens must not change by it.
        max_tokens: the most tokens allowed, answer included.
        allow_special: let control tokens written out in the given text stand; they are region ``special``.

    Raises:
        PromptError: nothing or only whitespace to read; not text; too many tokens; typed control tokens; an answer that
            merges with the prompt's last token; a tokenizer without offsets, or one that closes plain text with a token.
        TemplateError: see ``segment_chat``.
        ConfigError: options that contradict each other.
    """
    if not getattr(tokenizer, "is_fast", False):
        raise PromptError(
            f"The tokenizer {type(tokenizer).__name__} gives no character offsets.",
            why="Regions are found by where each token stands in the text.",
            todo="Load a fast tokenizer (one with a tokenizer.json).",
        )
    if (text is None) == (messages is None):
        raise ConfigError("Give either text or messages." if text is None else "Give text or messages, not both.")
    if answer is not None and (not isinstance(answer, str) or not answer):
        raise PromptError("The answer must be text of at least one character.", todo="Leave it out to measure the next token.")

    chat = chat or messages is not None
    conversation: tuple[dict[str, str], ...] | None = None
    if chat:
        conversation = _conversation(text, messages, system)
        if answer is not None and conversation[-1]["role"] == "assistant":
            raise ConfigError(
                "The conversation ends with an assistant's turn, and an answer is given too.", todo="Give one of them."
            )
        pieces, rendered = segment_chat(tokenizer, conversation)
        _check_template_ids(tokenizer, conversation, rendered)
    else:
        if system is not None:
            raise ConfigError("A system text needs a chat prompt.", todo="Add chat=True (--chat), or drop the system text.")
        pieces = [Piece(_readable(text, "prompt"), "text", "content")]

    whole = "".join(piece.text for piece in pieces)
    n_before = None
    if answer is not None:
        _check_characters(answer, "answer")
        before = _encode(tokenizer, whole, defaults=not chat).ids
        n_before = len(before)
        pieces.append(Piece(answer, "answer", "content"))
        whole += answer
    encoding = _encode(tokenizer, whole, defaults=not chat)
    ids = encoding.ids
    if all(encoding.added):
        raise PromptError("The prompt turns into no tokens at all.", why="The tokenizer drops every character of it.")
    if answer is not None and (ids[:n_before] != before or len(ids) == n_before):
        raise PromptError(
            f"The answer {answer[:40]!r} merges with the end of the prompt.",
            why="The prompt's last tokens differ with and without it, so the answer is no continuation of the prompt.",
            todo="Move the space to the front of the answer, or cut the prompt at a word's end.",
        )
    if max_tokens is not None and len(ids) > max_tokens:
        raise PromptError(
            f"The prompt has {len(ids)} tokens; the limit is {max_tokens}.",
            why="It does not fit the model's context or the limit that was set.",
            todo="Shorten the prompt.",
        )
    offsets = tile(encoding.offsets, len(whole), encoding.added)
    names = _token_regions(tokenizer, encoding, offsets, whole, pieces, allow_special=allow_special)
    known = CHAT_REGIONS if chat else TEXT_REGIONS if "special" not in names else (*TEXT_REGIONS, "special")
    regions = Regions._from_names(known, names)
    if len(regions) != len(ids):
        raise TemplateError(
            f"There are {len(ids)} tokens, but regions for {len(regions)}.", why="Every token has exactly one region."
        )
    tokens = [whole[start:stop] if stop > start else tokenizer.decode([i]) for i, (start, stop) in zip(ids, offsets, strict=True)]
    return Prompt(whole, ids, tokens, offsets, regions, chat, conversation, n_before)


def tile(offsets: Sequence[tuple[int, int]], length: int, added: Sequence[bool] = ()) -> list[tuple[int, int]]:
    """Step 2: spans that tile ``length`` characters, from a tokenizer's ``offsets`` ``[key]``.

    Gaps go to the token behind them, overlaps to the token before; what is left at the end goes to the last token that has
    a width (to the last one if none has). A token without width in front of a gap is a space that was not counted (at the
    start of a text such tokenizers call it (0, 0)): it takes one character of the gap, unless the tokenizer ``added`` it.
    """
    spans, end = [], 0
    for i, (start, stop) in enumerate(offsets):
        if start == stop <= end and not any(added[i : i + 1]) and i + 1 < len(offsets) and offsets[i + 1][0] > end:
            stop = end + 1
        stop = min(max(end, stop), length)
        spans.append((end, stop))
        end = stop
    if spans and end < length:
        last = max((i for i, (start, stop) in enumerate(spans) if stop > start), default=len(spans) - 1)
        spans[last] = (spans[last][0], length)
        spans[last + 1 :] = [(length, length)] * (len(spans) - last - 1)
    return spans


def _conversation(text: str | None, messages: Sequence[Message] | None, system: str | None) -> tuple[dict[str, str], ...]:
    """The turns as role and content, checked, with ``system`` in front."""
    turns: list[dict[str, str]] = []
    if messages is None:
        turns.append({"role": "user", "content": _readable(text, "prompt")})
    elif isinstance(messages, (str, bytes, dict)) or not isinstance(messages, Sequence):
        raise PromptError(f"Messages must be a list, not {type(messages).__name__}.")
    else:
        for i, message in enumerate(messages, start=1):
            if not isinstance(message, Mapping) or set(message) != {"role", "content"}:
                raise PromptError(f"Message {i} must have exactly the keys 'role' and 'content'.", todo="Text conversations only.")
            role = message["role"]
            if role not in _ROLES:
                raise PromptError(f"Message {i} has the role {role!r}.", todo=f"Use one of: {', '.join(_ROLES)}.")
            turns.append({"role": role, "content": _readable(message["content"], f"content of message {i}", blank=role != "user")})
    if system is not None:
        if any(turn["role"] == "system" for turn in turns):
            raise ConfigError("A system text is given, and the messages have a system turn too.", todo="Give one of them.")
        turns.insert(0, {"role": "system", "content": _readable(system, "system text", blank=True)})
    if not any(turn["role"] == "user" for turn in turns):
        raise PromptError("The conversation has no user turn.", todo="Add a message with the role 'user'.")
    if turns[-1]["role"] == "system":
        raise PromptError("The conversation ends with a system turn.", todo="End it with a user's or an assistant's turn.")
    return tuple(turns)


def _readable(text: object, what: str, *, blank: bool = False) -> str:
    """``text`` if it is text, and not blank unless that is allowed."""
    if not isinstance(text, str):
        raise PromptError(f"The {what} must be text, not {type(text).__name__}.")
    if not blank and not text.strip():
        raise PromptError(f"The {what} is empty." if not text else f"The {what} holds only whitespace.", todo="Write a prompt.")
    _check_characters(text, what)
    return text


def _check_characters(text: str, what: str) -> None:
    """Control characters stand as they are; lone surrogates are no characters and no tokenizer takes them."""
    try:
        text.encode("utf-8")
    except UnicodeEncodeError as error:
        raise PromptError(
            f"The {what} holds half a surrogate pair at character {error.start}.", why="It is no valid Unicode text."
        ) from None


@dataclass(frozen=True, slots=True)
class _Encoding:
    """One tokenisation, each ``[key]``: ids, the tokenizer's offsets, and whether the tokenizer added the token itself."""

    ids: list[int]
    offsets: list[tuple[int, int]]
    added: list[bool]


def _encode(tokenizer: Any, text: str, *, defaults: bool) -> _Encoding:
    """``defaults``: with the tokens that the tokenizer adds to plain text by default."""
    encoding = tokenizer(
        text, add_special_tokens=defaults, return_offsets_mapping=True, return_special_tokens_mask=True, verbose=False
    )
    ids, added = list(encoding["input_ids"]), [bool(mask) for mask in encoding["special_tokens_mask"]]
    if not all(added) and added[-1]:
        raise PromptError(
            f"The tokenizer closes the text with {tokenizer.decode([ids[-1]])!r}.",
            why="The next token would not continue the prompt.",
            todo="Set tokenizer.add_eos_token = False.",
        )
    return _Encoding(ids, [(start, stop) for start, stop in encoding["offset_mapping"]], added)


def _check_template_ids(tokenizer: Any, messages: Sequence[Message], rendered: str) -> None:
    """The rendering tokenised here must be what the template's own tokenisation gives."""
    ids = tokenizer(rendered, add_special_tokens=False, verbose=False)["input_ids"]
    theirs = tokenizer.apply_chat_template(
        [dict(message) for message in messages],
        tokenize=True,
        return_dict=True,
        tokenizer_kwargs={"verbose": False},  # the limit is checked here, not warned about
        add_generation_prompt=messages[-1]["role"] != "assistant",
    )["input_ids"]
    if list(ids) != list(theirs):
        raise TemplateError(
            f"The rendered chat gives {len(ids)} tokens, but the template's own tokenisation {len(theirs)}, and they differ.",
            todo="Drop --chat and give the rendered text as a plain prompt.",
        )


def _token_regions(
    tokenizer: Any,
    encoding: _Encoding,
    offsets: Sequence[tuple[int, int]],
    text: str,
    pieces: Sequence[Piece],
    *,
    allow_special: bool,
) -> list[str]:
    """Step 3 and 4: the region name of each token, ``[key]``."""
    owner = [i for i, piece in enumerate(pieces) for _ in piece.text]  # piece of each character
    control = _control_tokens(tokenizer)
    names: list[str] = []
    for token, added, (start, stop) in zip(encoding.ids, encoding.added, offsets, strict=True):
        if stop == start:  # a token the tokenizer added in front, or a piece of the character before
            names.append("special" if added or not names else names[-1])
            continue
        here = [pieces[p] for p in dict.fromkeys(owner[start:stop])]
        content = next((piece for piece in here if piece.source != "frame"), None)
        shown = text[start:stop].strip()  # a control token may swallow whitespace around it
        # gpt2's unknown token is its end token: only the written-out form is control, a character it cannot read is not
        if token in control and (token != tokenizer.unk_token_id or shown == control[token].strip()):
            at = start + text[start:stop].index(shown)
            typed = any(pieces[p].source == "content" for p in owner[at : at + len(shown)])
            if typed and not allow_special:
                raise PromptError(
                    f"The prompt holds {shown!r}, which the tokenizer reads as a control token.",
                    why="The model would take it for structure, not for text.",
                    todo="Break the string up, or allow it (allow_special=True).",
                )
            frame = next((piece.region for piece in here if piece.source == "frame"), "special")
            names.append("special" if typed else frame)
        else:
            names.append((content or here[0]).region)
    return ["sink", *names[1:]]


def _control_tokens(tokenizer: Any) -> dict[int, str]:
    """Control tokens by id: added tokens marked special, and those named in the tokenizer's configuration."""
    control = {i: str(token) for i, token in tokenizer.added_tokens_decoder.items() if token.special}
    control.update(zip(tokenizer.all_special_ids, tokenizer.all_special_tokens, strict=True))
    return control
