"""Failures planted by edit in the demo model: how often each verdict fires where its failure is known to be there.

1. An *edit* of the model's forward makes the failure: keys are hidden or biased in attention, values scaled, logits moved, by hooks on the model's own modules that know of
   each forward which of its rows belong to the text in question. The shell is not told; it runs with its suite options and judges as always. Its control is not edited,
   except where the edit is about a distance (MEMTRACE), which the control has as well.
2. Items are null items of the calibration split (no failure without the edit), in MEMTRACE with the padding put between fact and question, or its items of one fact; and
   contradictory pairs where one instruction is to win. *Without the edit* is the same text unedited, as kept by ``calibration.py`` where it has run it.
3. The edit is a truth about the model, not about its answer: an instruction that is hidden may be followed by chance. Rates stand with Wilson intervals over items.

Called by ``calibration.py --planted-by-edit``.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, ExitStack
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor

from symbolic_residue.prompts import build_prompt
from symbolic_residue.readout import fold, frozen_scale
from symbolic_residue.shells.memtrace._text import scored_fields

__all__ = ["EDITS", "SECTION", "Edit", "Forwards", "section"]

N = 10
"""Items an edit, where there are so many."""
FAR = 20
"""MEMTRACE: tokens beyond the shortest text from which on the edit acts; padding of 40 is beyond, 12 is not."""
RAISED = 15.0
"""Nats by which a wrong token is raised."""
LEVEL = 80.0
"""Logit to which the leader is raised in the lens."""
LEAST, LONG = 0.02, 50.0
"""Factor on a token's attention, and on its value."""


@dataclass
class Forwards:
    """What is known of the forward that runs: ``past`` keys cached, ``new`` rows, and a mark for each sequence (None: not to be edited).

    Sequences are known by their tokens, whole or without the last (a last row that runs by itself later); forwards on a cache have the marks of the last one without.
    """

    model: Any
    marks: dict[tuple[int, ...], Any] = field(default_factory=dict)
    past: int = 0
    new: int = 0
    now: list[Any] = field(default_factory=list)
    mask: Tensor | None = None
    inside: bool = False
    """Whether the model is being called (its unembedding is used by lenses as well)."""

    def mark(self, ids: Sequence[int], what: Any = True) -> None:
        """Sequences with these tokens are to be edited."""
        self.marks[tuple(ids)] = self.marks[tuple(ids[:-1])] = what

    def begin(self, module: Any, args: Any, kwargs: Any) -> None:
        ids = kwargs.get("input_ids", args[0] if args else None)
        cache = kwargs.get("cache", kwargs.get("past_key_values"))
        self.past, self.new = (0 if cache is None else int(cache.get_seq_length())), ids.shape[1]
        self.mask, self.inside = kwargs.get("attention_mask"), True
        if self.past == 0:
            mask = self.mask if self.mask is not None and self.mask.dim() == 2 else torch.ones_like(ids)
            self.now = [self.marks.get(tuple(row[there.bool()].tolist())) for row, there in zip(ids, mask, strict=True)]
        elif len(self.now) != ids.shape[0]:
            same = self.now[0] if len({repr(m) for m in self.now}) == 1 else None
            self.now = [same] * ids.shape[0]

    def end(self, module: Any, args: Any, out: Any) -> None:
        self.inside = False

    @property
    def edited(self) -> list[int]:
        """Which sequences are to be edited."""
        return [i for i, m in enumerate(self.now) if m is not None]


Hide = Callable[[Forwards, int, Tensor, Tensor], Tensor | None]
"""(forward, layer, row ``[row, 1]``, key ``[1, key]``) → what is added to the scores, ``[row, key]``, -inf hides; None adds nothing."""


@contextmanager
def hooked(loaded: Any, *, everywhere: bool = False) -> Iterator[tuple[Forwards, ExitStack]]:
    """Forwards of the model, noted; with ``everywhere`` all sequences are to be edited."""
    known = Forwards(loaded.model)
    if everywhere:
        known.marks = _Everything()
    with ExitStack() as stack:
        stack.callback(loaded.model.register_forward_pre_hook(known.begin, with_kwargs=True).remove)
        stack.callback(loaded.model.register_forward_hook(known.end).remove)
        yield known, stack


class _Everything(dict):  # type: ignore[type-arg]
    def get(self, key: Any, default: Any = None) -> Any:
        return True


def scores(loaded: Any, known: Forwards, stack: ExitStack, change: Hide) -> None:
    """Add to the attention scores of the sequences that are to be edited."""

    def hook_of(layer: int) -> Any:
        def hook(module: Any, args: Any, kwargs: Any) -> Any:
            hidden = kwargs["hidden_states"] if "hidden_states" in kwargs else args[0]
            rows, total = hidden.shape[1], known.past + hidden.shape[1]
            row, key = torch.arange(known.past, total)[:, None], torch.arange(total)[None]
            added = change(known, layer, row, key) if known.edited else None
            if added is None:
                return None
            given = kwargs.get("attention_mask")
            whole = torch.zeros(hidden.shape[0], 1, rows, total)
            if given is None:
                whole = whole.masked_fill(key > row, -math.inf)
            elif given.dtype == torch.bool:
                whole = whole.masked_fill(~given[..., :total], -math.inf)
            else:
                whole = whole + given[..., :total]
            whole[known.edited] += added
            return args, kwargs | {"attention_mask": whole}

        return hook

    for i, layer in enumerate(loaded.parts.layers):
        stack.callback(layer.attn.register_forward_pre_hook(hook_of(i), with_kwargs=True).remove)


def logits(loaded: Any, known: Forwards, stack: ExitStack, change: Callable[[Forwards, Tensor, Tensor], None]) -> None:
    """``change(forward, logits [sequence, row, vocab], row's place [row])`` in place."""

    def hook(module: Any, args: Any, out: Tensor) -> Tensor:
        if not (known.inside and known.edited):
            return out
        out, total = out.clone(), known.past + known.new
        change(known, out, torch.arange(total - out.shape[1], total))
        return out

    stack.callback(loaded.model.get_output_embeddings().register_forward_hook(hook).remove)


# -- MEMTRACE ----------------------------------------------------------------------------------------------------------------


def between(item: Any) -> Any:
    """The null item with its padding between fact and question."""
    kind = {"null-near": "natural", "null-fields": "fields", "null-rival": "collision"}[item.kind]
    return item.model_copy(update={"place": "between", "kind": kind, "padding": "natural"})


def _lengths(shell: Any, item: Any) -> tuple[int, int]:
    """Tokens of the fact, and of all without padding."""
    stated = item.fact if item.rival is None else f"{item.fact} {item.rival}"
    said = item.answers[1] if len(item.answers) > 1 else ""
    return len(build_prompt(shell.tokenizer, item.fact).ids), len(build_prompt(shell.tokenizer, stated + item.question + said).ids)


@contextmanager
def fact_hidden(shell: Any, item: Any) -> Iterator[None]:
    """No row that stands far from it sees the first fact."""
    fact, whole = _lengths(shell, item)

    def change(known: Forwards, layer: int, row: Tensor, key: Tensor) -> Tensor:
        return torch.where((key > 0) & (key < fact) & (row >= whole + FAR), -math.inf, 0.0)

    with hooked(shell.loaded, everywhere=True) as (known, stack):
        scores(shell.loaded, known, stack, change)
        yield


@contextmanager
def wrong_raised(shell: Any, item: Any) -> Iterator[None]:
    """A wrong answer of the last field is raised where the last row stands far from the beginning."""
    _, whole = _lengths(shell, item)
    fields = scored_fields(shell.tokenizer, item.fact + item.question, item.answers, item.foils, chat=False)

    def change(known: Forwards, out: Tensor, place: Tensor) -> None:
        if place[-1] >= whole - len(fields) + FAR:
            out[:, -1, fields[-1].foils[0]] += RAISED

    with hooked(shell.loaded, everywhere=True) as (known, stack):
        logits(shell.loaded, known, stack, change)
        yield


# -- VALUE-COLLAPSE ----------------------------------------------------------------------------------------------------------


@contextmanager
def _prompt_rows(shell: Any, item: Any) -> Iterator[tuple[Forwards, ExitStack]]:
    """The last rows of the prompt and its variants, not those of the control."""
    family = shell._family

    with hooked(shell.loaded) as (known, stack):
        known.mark(build_prompt(shell.tokenizer, item.prompt).ids)

        def noted(asked: Any) -> Any:
            prompts, controls = family(asked)
            for prompt in prompts:
                known.mark(prompt.ids)
            return prompts, controls

        shell._family = noted
        stack.callback(shell.__dict__.pop, "_family", None)
        yield known, stack


_BEST: dict[tuple[int, tuple[int, ...]], list[int]] = {}


def best_two(shell: Any, item: Any) -> list[int]:
    """The two best next tokens of the prompt as the model is: asked for before an edit acts, and kept."""
    ids = build_prompt(shell.tokenizer, item.prompt).ids
    key = (id(shell.loaded.model), tuple(ids))
    if key not in _BEST:
        _BEST[key] = shell.instrument.run(torch.tensor([ids]), keep_logits=1)["logits"][0, -1].topk(2).indices.tolist()
    return _BEST[key]


@contextmanager
def level(shell: Any, item: Any) -> Iterator[None]:
    """The second best token is put 0.1 nats below the best."""
    a, b = best_two(shell, item)

    def change(known: Forwards, out: Tensor, place: Tensor) -> None:
        out[known.edited, -1, b] = out[known.edited, -1, a] - 0.1

    with _prompt_rows(shell, item) as (known, stack):
        logits(shell.loaded, known, stack, change)
        yield


def _led(leaders: tuple[int, ...]) -> Any:
    @contextmanager
    def led(shell: Any, item: Any) -> Iterator[None]:
        """Behind each of the last layers the lens has one of the two best tokens 5 nats above the other, both far above the rest."""
        tokens, parts = best_two(shell, item), shell.loaded.parts
        # The best of the model's own leads first.
        order = [tokens[i] for i in leaders]
        norm = parts.final_norm
        directions = fold(norm, parts.w_u[tokens].float())
        inverse = torch.linalg.pinv(directions.double()).float()

        def hook_of(target: Tensor) -> Any:
            def hook(module: Any, args: Any, out: Any) -> Any:
                state = out[0] if isinstance(out, tuple) else out
                if not known.edited or known.new > 1:
                    return out
                state = state.clone()
                last = state[known.edited, -1].float()
                for _ in range(12):  # what is added changes the norm's scale
                    scale = frozen_scale(norm, last)[..., None]
                    last = last + (target / scale - last @ directions.T) @ inverse.T
                state[known.edited, -1] = last.to(state.dtype)
                return (state, *out[1:]) if isinstance(out, tuple) else state

            return hook

        with _prompt_rows(shell, item) as (known, stack):
            for i, leader in enumerate(order):
                target = torch.tensor([[LEVEL if t == leader else LEVEL - 5.0 for t in tokens]])
                layer = parts.layers[parts.n_layers - len(order) + i]
                stack.callback(layer.block.register_forward_hook(hook_of(target)).remove)
            yield

    return led


@contextmanager
def worded(shell: Any, item: Any) -> Iterator[None]:
    """Each wording of the prompt has a next token of its own, raised far above the rest."""

    def change(known: Forwards, out: Tensor, place: Tensor) -> None:
        for i in known.edited:
            out[i, -1, known.now[i]] = out[i, -1].max() + RAISED

    best_two(shell, item)
    with _prompt_rows(shell, item) as (known, stack):
        mark = known.mark
        known.mark = lambda ids, what=True: mark(ids, 1000 + hash(tuple(ids)) % 20000)  # type: ignore[method-assign]
        known.mark(build_prompt(shell.tokenizer, item.prompt).ids)
        logits(shell.loaded, known, stack, change)
        yield


# -- LAYER-SALIENCE ----------------------------------------------------------------------------------------------------------


def _looked(layers: Callable[[int, int], bool], kept: Callable[[Tensor], Tensor]) -> Any:
    @contextmanager
    def looked(shell: Any, item: Any) -> Iterator[None]:
        """In some layers rows see only the sink, their own key, and few others."""
        n = shell.loaded.parts.n_layers

        def change(known: Forwards, layer: int, row: Tensor, key: Tensor) -> Tensor | None:
            if not layers(layer, n):
                return None
            return torch.where((key == 0) | (key == row) | kept(key), 0.0, -math.inf)

        with hooked(shell.loaded) as (known, stack):
            known.mark(build_prompt(shell.tokenizer, item.text).ids)
            scores(shell.loaded, known, stack, change)
            yield

    return looked


def _traded(where: Callable[[Any, Any, list[int]], list[int]], factor: float) -> Any:
    @contextmanager
    def traded(shell: Any, item: Any) -> Iterator[None]:
        """Some tokens get a part of their attention and values as many times as long: what they give is what it was."""
        ids = build_prompt(shell.tokenizer, item.text).ids
        at = where(shell, item, ids)

        def change(known: Forwards, layer: int, row: Tensor, key: Tensor) -> Tensor:
            return torch.where(torch.isin(key, torch.tensor(at)), math.log(factor), 0.0).expand(len(row), -1)

        def longer(module: Any, args: Any, out: Tensor) -> Tensor:
            here = [p - known.past for p in at if 0 <= p - known.past < out.shape[1]]
            if known.edited and here:
                out = out.clone()
                for i in known.edited:
                    out[i, here] /= factor
            return out

        with hooked(shell.loaded) as (known, stack):
            known.mark(ids)
            scores(shell.loaded, known, stack, change)
            for layer in shell.loaded.parts.layers:
                stack.callback(layer.attn.v_proj.register_forward_hook(longer).remove)
            yield

    return traded


def _answer_token(shell: Any, item: Any, ids: list[int]) -> list[int]:
    """Where the text states the answer."""
    token = shell.tokenizer.encode(item.answer, add_special_tokens=False)[0]
    return [max(i for i, t in enumerate(ids) if t == token)]


# -- TEMPORAL-INFERENCE ------------------------------------------------------------------------------------------------------


@contextmanager
def _forgotten(shell: Any) -> Iterator[None]:
    """What the shell keeps of the last text and pair is not used under the edit, nor afterwards."""
    shell._kept = None
    shell._rows.clear()
    yield
    shell._kept = None
    shell._rows.clear()


def _flattened(which: Callable[[int, int], bool]) -> Any:
    @contextmanager
    def flattened(shell: Any, item: Any) -> Iterator[None]:
        """After a shift some tokens' distributions are flattened (logits to a quarter): ``which(distance, token of the continuation)``."""
        ids = build_prompt(shell.tokenizer, item.text).ids

        def change(known: Forwards, out: Tensor, place: Tensor) -> None:
            if known.past == 0 or known.mask is None:
                return
            n = len(ids)
            for i in known.edited:
                start = int(known.mask[i, :n].sum())
                tail = inputs[0][i, -int(known.mask[i, n:].sum()) :].tolist()
                after = tail[1:]  # the text goes on here, in a shift forward
                cut = next((c for c in range(start + 1, n) if ids[c : c + len(after)] == after), None)
                if cut is None:
                    continue
                for k in range(
                    len(after)
                ):  # the row of the continuation's token k predicts token k + 1, which is scored as token k
                    if which(cut - start - 1, k):
                        out[i, -len(after) + k] *= 0.25

        inputs: list[Any] = [None]

        def keep(module: Any, args: Any, kwargs: Any) -> None:
            inputs[0] = kwargs.get("input_ids", args[0] if args else None)

        with _forgotten(shell), hooked(shell.loaded) as (known, stack):
            stack.callback(shell.loaded.model.register_forward_pre_hook(keep, with_kwargs=True).remove)
            known.marks[tuple(ids)] = True
            logits(shell.loaded, known, stack, change)
            yield

    return flattened


@contextmanager
def wrong_word(shell: Any, item: Any) -> Iterator[None]:
    """After the story the wrong word is raised by 8 nats; after a story without an order nothing is."""
    from symbolic_residue.shells.temporal_inference._pairs import EventPair, pair_prompts

    def change(known: Forwards, out: Tensor, place: Tensor) -> None:
        for i in known.edited:
            out[i, -1, known.now[i]] += 8.0

    with _forgotten(shell), hooked(shell.loaded) as (known, stack):
        for prompt in pair_prompts(shell.tokenizer, EventPair.model_validate(item.pair), shell.config.wordings):
            known.mark(build_prompt(shell.tokenizer, prompt.text).ids, prompt.wrong)
        logits(shell.loaded, known, stack, change)
        yield


# -- INSTRUCTION-DISRUPTION --------------------------------------------------------------------------------------------------


def _block_hidden(which: str) -> Any:
    @contextmanager
    def hidden(shell: Any, item: Any) -> Iterator[None]:
        """Where both instructions stand, the question and the answer do not see the ``first``, the ``later`` or ``both`` of the blocks."""
        from symbolic_residue.instrument import LastRow
        from symbolic_residue.shells.instruction_disruption._answers import blocks, SharedRows

        def rows(frames: Any, cells: Any) -> Any:
            spans = []
            for frame in frames:
                both = sorted(frame.spans.values())
                one = {"first": both[0], "later": both[-1], "both": (both[0][0], both[-1][1])}[which]
                spans.append((max(1, one[0]), min(one[1], frame.shared)) if frame.condition == "conflict" else None)
            ids = [list(frame.prompt.ids) for frame in frames]
            return SharedRows(
                shell.instrument, ids, [frame.shared for frame in frames], spans, [blocks(frame) for frame in frames]
            ), []

        decoder = LastRow.decoder

        def blind(self: Any) -> Any:
            """The rows that choose the answer's tokens do not see the span either."""
            made, lead = decoder(self), self.width - self._mask.sum(-1)
            made._mask = made._mask.clone()
            for i, span in enumerate(self._hidden):
                if span is not None:
                    made._mask[i, lead[i] + span[0] : lead[i] + span[1]] = 0
            return made

        shell._rows, LastRow.decoder = rows, blind
        try:
            yield
        finally:
            LastRow.decoder = decoder
            del shell._rows

    return hidden


def by_item(shell: Any, item: Any) -> Any:
    """The shell's run of the item."""
    return shell.run_item(item, seed=0)


def with_two(shell: Any, item: Any) -> Any:
    """VALUE-COLLAPSE with the two best tokens as candidates."""
    return shell.run(item.prompt, candidates=best_two(shell, item), control=item.control, seed=0)


def together(*makes: Any) -> Any:
    """Several edits at once."""

    @contextmanager
    def all_of(shell: Any, item: Any) -> Iterator[None]:
        with ExitStack() as stack:
            for make in makes:
                stack.enter_context(make(shell, item))
            yield

    return all_of


@dataclass(frozen=True)
class Edit:
    """One run of a shell under an edit.

    Attributes:
        planted: what is edited, in words, by the failure that it makes.
        make: the edit, as a context.
        kinds: kinds of items.
        turn: makes the text out of an item; ``run`` runs it.
        own: whether the text unedited is another than the item's and has to be run for the column *without the edit*.
    """

    planted: dict[str, str]
    make: Any
    kinds: tuple[str, ...]
    turn: Callable[[Any], Any] = lambda item: item
    run: Callable[[Any, Any], Any] = by_item
    own: bool = False

    def items(self, shell: Any) -> list[Any]:
        """Of the calibration split, spread evenly over the kinds."""
        mine = [i for i in shell.items() if i.split == "calibration" and i.kind in self.kinds]
        return [mine[int(i)] for i in np.unique(np.linspace(0, len(mine) - 1, min(N, len(mine))).round().astype(int))]


_TRADED = f"the word that the answer repeats has {LEAST:g} of its attention and a value {LONG:g} times as long"
EDITS: dict[str, tuple[Edit, ...]] = {
    "memtrace": (
        Edit({"recall decay": "the fact is hidden from every row that stands far behind it"}, fact_hidden, ("natural", "repetitive", "adversarial")),
        Edit({"hallucinated reconstruction": f"a wrong answer is raised by {RAISED:g} nats, far from the fact only"}, wrong_raised, ("natural", "repetitive", "adversarial")),
        Edit({"partial recall": f"a wrong answer of the second field is raised by {RAISED:g} nats, far from the fact only"}, wrong_raised, ("null-fields",), turn=between, own=True),
        Edit({"priority collision": "the farther one of two facts is hidden, whichever it is"}, fact_hidden, ("null-rival",), turn=between, own=True),
    ),
    "value-collapse": (
        Edit(
            {"flatness": "the second best token is put 0.1 nats below the best", "oscillation": "behind the last fifteen layers the lead of the best two tokens goes to and fro"},
            together(_led((0, 0, 0, 1, 1, 1) * 2 + (0, 0, 0)), level), ("null",), run=with_two,
        ),
        Edit(
            {"value collapse": "behind the last fifteen layers the best token leads in seven, then the second", "confidence fragility": "every wording of the prompt has another next token raised"},
            together(_led((0,) * 7 + (1,) * 8), worded), ("null",), run=with_two,
        ),
    ),
    "layer-salience": (
        Edit(
            dict.fromkeys(("salience collapse", "bottleneck"), "in the upper two thirds of the layers rows see the sink, themselves, and every tenth token"),
            _looked(lambda layer, n: layer >= n // 3, lambda key: key % 10 == 3), ("null-late", "null-open"),
        ),
        Edit({"premature deprioritization": _TRADED, "ghosts": _TRADED}, _traded(_answer_token, LEAST), ("null-late",)),
    ),
    "temporal-inference": (
        Edit(
            {"drift": "after a shift of 15 tokens the logits of the continuation's second half are divided by four", "discontinuity break": "after shifts of 24 tokens or more the logits of the continuation are divided by four"},
            _flattened(lambda d, k: d >= 24 or (d == 15 and k >= 8)), ("null-text",),
        ),
        Edit({"ordering reversal": "after a story with an order the wrong word is raised by 8 nats"}, wrong_word, ("null-right-order",)),
        Edit({"causal confusion": "after a story with a cause the wrong word is raised by 8 nats"}, wrong_word, ("null-right-cause",)),
    ),
    "instruction-disruption": (
        Edit({"nullification": "where both instructions stand, neither block is seen"}, _block_hidden("both"), ("null-compatible", "null-same")),
        Edit(dict.fromkeys(("partial execution", "priority inversion"), "where two contradictory instructions stand, the first block is not seen"), _block_hidden("first"), ("contradictory",)),
    ),
}  # fmt: skip
"""What is planted, by shell. Blended execution has no edit: nothing in the forward makes an answer mix two instructions."""


SECTION = "planted by edit"
_HEAD = [
    f"## {SECTION}",
    "",
    "Failures made by an edit of the demo model's forward (`benchmarks/planted_by_edit.py`, `calibration.py --planted-by-edit`), so that the truth is known; ten calibration items an edit. The edit",
    "is a truth about the model, not about its answer: what is hidden may still be guessed. The sizes of the edits were set on one or two of these items. Two rows show the failure without an edit",
    "as well: distant facts are lost in part of the items, and of two contradictory instructions one is always dropped. An item on which the mode could not be measured counts as one that does not",
    "fire. Blended execution has no edit: nothing in the forward makes an answer mix two instructions.",
    "",
    "| shell | failure | edit | fires without the edit | fires with it |",
    "|---|---|---|---|---|",
]


def section(
    loaded: Any, names: Sequence[str], base: Callable[[Any, Any], Any], rate: Callable[[list[Any]], str], before: str = ""
) -> str:
    """The page's section: a row an edit.

    Args:
        loaded: the demo model.
        names: shells to measure; the rows of others are those of ``before``, the section as it was.
        base: (shell, item) → the residue of the item as it is.
        rate: words of a list of (item, verdict).
    """
    from symbolic_residue.shells import config_class, make_shell, SHELLS

    rows = {
        line.split(" | ")[0].removeprefix("| ") + line.split(" | ")[1]: line
        for line in before.splitlines()
        if line.startswith("| ")
    }
    for name in names:
        shell = make_shell(name, loaded, config_class(name).quick(top_heads=0))
        for edit in EDITS[name]:
            without: dict[str, list[Any]] = {mode: [] for mode in edit.planted}
            with_it: dict[str, list[Any]] = {mode: [] for mode in edit.planted}
            for item in map(edit.turn, edit.items(shell)):
                before_it = edit.run(shell, item) if edit.own else base(shell, item)
                with edit.make(shell, item):
                    residue = edit.run(shell, item)
                for mode in edit.planted:
                    without[mode].append((item, _verdict(shell, before_it, mode)))
                    with_it[mode].append((item, _verdict(shell, residue, mode)))
            for mode, words in edit.planted.items():
                rows[name + mode] = f"| {name} | {mode} | {words} | {rate(without[mode])} | {rate(with_it[mode])} |"
                print(rows[name + mode], flush=True)
    wanted = [name + mode for name in SHELLS for edit in EDITS[name] for mode in edit.planted]
    return "\n".join([*_HEAD, *(rows[key] for key in wanted if key in rows), ""])


def _verdict(shell: Any, residue: Any, mode: str) -> Any:
    return next(v for v in shell.verdicts(residue) if v.mode == mode)
