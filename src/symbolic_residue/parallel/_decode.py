"""Multi-path decoding: every token above a threshold enters the same sequence.

1. The prompt is read once, at positions 0 … n − 1. Its last row gives the first distribution.
2. Step s: the set of the distribution (``_choose``), placed by the scheme (``_layout``), is fed in one forward of as many rows as it has tokens, onto the
   cache.
3. The rows of the set give the next distribution (``follow``). Several prompts run side by side; sets of different sizes are padded with rows that nobody
   sees.
4. Positions are read back from the model's own rotary input after every forward (``_rotary``).
5. Retroactive pruning (``_prune``) takes tokens out when the rows after them have looked: hidden by the mask from the next step on, or deleted from the
   cache, what came
   after them being read again without them.
6. It ends at the last step, at an end-of-text token that leads, or when the set would leave the context, the key limit, or memory; the tree so far is kept.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass, field, replace
from typing import Any, TYPE_CHECKING

import torch
from torch import Tensor

from symbolic_residue.errors import ConfigError, InstrumentError, PromptError
from symbolic_residue.instrument import AttentionRead, continuation, stop_ids_of, Trace
from symbolic_residue.parallel._choose import choose, combine, disagreement, log_softmax
from symbolic_residue.parallel._config import ParallelConfig
from symbolic_residue.parallel._forward import call_model
from symbolic_residue.parallel._layout import Layout, place, seats_of
from symbolic_residue.parallel._prune import Looks
from symbolic_residue.parallel._rotary import check_rotary, PositionWatch
from symbolic_residue.parallel._tree import Ending, PathToken, StepStats, Stop, Tree, TreeStep

if TYPE_CHECKING:
    from symbolic_residue.instrument import Instrument

__all__ = ["Grown", "decode", "grow"]

_ANCHOR = 16
"""Tokens of the path that are decoded again to see how the next one reads after them."""


@dataclass(frozen=True)
class Grown:
    """One step of all sequences.

    Attributes:
        number: of the step.
        steps: each sequence's set; None where it has ended.
        trace: what was read at the set's rows (``reads``, ``attention``, logits ``[batch, row, vocab]``).
        layout: all slots so far, the new set last.
        rows: how many slots are new.
        trees: all sequences so far.
        seen: the slots as this step's rows saw them: ``layout``, before pruning by recompute deleted any.
    """

    number: int
    steps: tuple[TreeStep | None, ...]
    trace: Trace | None
    layout: Layout
    rows: int
    trees: tuple[Tree, ...]
    seen: Layout


def decode(
    instrument: Instrument,
    prompts: Sequence[Sequence[int]],
    config: ParallelConfig | None = None,
    *,
    reads: Sequence[str] = (),
    attention: AttentionRead | None = None,
    weights: bool = False,
    embedding: Tensor | None = None,
    on_step: Callable[[Grown], None] | None = None,
    checked: bool = False,
) -> list[Tree]:
    """Grow a tree from each prompt.

    Args:
        instrument: of the model.
        prompts: token ids of each prompt.
        config: how; the default is isolated siblings at one position, threshold 0.1.
        reads: points to read at the sets' rows.
        attention: attention statistics to read at the sets' rows (``rows`` left out).
        weights: also keep the sets' full attention rows (``trace.attention["weights"]``, ``[layer, batch, head, row, key]``).
        embedding: ``[d_model]``, added to the embedding of siblings.
        on_step: called with each step as it comes (``Grown``), the only way to what was read.
        checked: the model's positions were checked before (:func:`check_rotary`).

    Returns:
        A tree for each prompt, after a KeyboardInterrupt what had grown.

    Raises:
        PromptError: an empty prompt, unknown ids, or no room in the context.
        UnsupportedModelError: positions that cannot be shared.
        InstrumentError: NaN logits, training mode.
        ConfigError: an embedding that does not fit, or options that contradict each other.
    """
    trees: tuple[Tree, ...] = ()
    grown = grow(
        instrument, prompts, config, reads=reads, attention=attention, weights=weights, embedding=embedding, checked=checked
    )
    try:
        while True:
            try:
                step = next(grown)
            except StopIteration as end:
                return list(end.value)
            trees = step.trees
            if on_step is not None:
                on_step(step)
    except KeyboardInterrupt:
        if not trees:
            raise
        return [replace(tree, stop="interrupted") if tree.stop == "steps" else tree for tree in trees]
    finally:
        grown.close()


def grow(
    instrument: Instrument,
    prompts: Sequence[Sequence[int]],
    config: ParallelConfig | None = None,
    *,
    reads: Sequence[str] = (),
    attention: AttentionRead | None = None,
    weights: bool = False,
    embedding: Tensor | None = None,
    checked: bool = False,
) -> Generator[Grown, None, tuple[Tree, ...]]:
    """As :func:`decode`, one step at a time; its return value is the trees."""
    config = config or ParallelConfig()
    if instrument.model.training:
        raise InstrumentError("The model is in training mode.", why="Dropout would change its tokens.", todo="Call model.eval().")
    if config.pruning is not None and config.pruning.removal == "recompute" and len(prompts) > 1:
        raise ConfigError(
            "Pruning by recompute works on one prompt at a time.",
            why="Deleting a token moves the slots of one sequence and not of the others.",
            todo="Decode the prompts one after the other, or prune with removal='mask'.",
        )
    if attention is not None and attention.rows is not None:
        raise ConfigError("Attention is read at every row of a set.", todo="Leave rows out of AttentionRead.")
    if attention is not None and "received" in attention.stats:
        raise ConfigError(
            "'received' sums over rows, and each row of a set reads for itself.", todo="Leave it out of the statistics."
        )
    size = instrument.parts.d_model
    if embedding is not None and (tuple(embedding.shape) != (size,) or not bool(torch.isfinite(embedding).all())):
        raise ConfigError(f"A sibling embedding is a finite vector of {size} numbers, not {tuple(embedding.shape)}.")
    _check_prompts(instrument, prompts)
    if not checked:
        check_rotary(instrument)
    return _Decoding(instrument, [list(p) for p in prompts], config, tuple(reads), attention, weights, embedding).run()


def _check_prompts(instrument: Instrument, prompts: Sequence[Sequence[int]]) -> None:
    vocab, limit = instrument.parts.vocab_size, instrument.parts.max_context
    if not prompts or not all(len(p) for p in prompts):
        raise PromptError("A prompt is empty.", todo="Give every sequence at least one token (for instance the tokenizer's bos).")
    if any(not 0 <= t < vocab for p in prompts for t in p):
        raise PromptError(f"A token id is outside of the model's 0 to {vocab - 1}.")
    longest = max(map(len, prompts))
    if limit is not None and longest >= limit:
        raise PromptError(
            f"A prompt of {longest} tokens leaves no room in the model's context of {limit}.", todo="Shorten the text."
        )


@dataclass
class _Sequence:
    """One prompt's state."""

    prompt: list[int]
    base: float
    steps: list[TreeStep] = field(default_factory=list)
    stop: Stop | None = None
    weights: list[float] = field(default_factory=lambda: [1.0])
    """Of the rows that predict the next set."""


class _Decoding:
    """A decoding in progress."""

    def __init__(
        self,
        instrument: Instrument,
        prompts: list[list[int]],
        config: ParallelConfig,
        reads: tuple[str, ...],
        attention: AttentionRead | None,
        weights: bool,
        embedding: Tensor | None,
    ) -> None:
        from transformers import DynamicCache

        self.instrument, self.config, self.reads, self.attention, self.embedding = instrument, config, reads, attention, embedding
        self.weights = weights or config.pruning is not None
        self.layout = Layout.of_prompts(prompts, instrument.device)
        self.sequences = [_Sequence(p, float(len(p))) for p in prompts]
        self.cache: Any = DynamicCache()  # without the config every layer keeps every key; the mask does what windows do
        self.watch = PositionWatch(instrument)
        self.looks = None if config.pruning is None else Looks(config.pruning, instrument.parts.attention_layers, len(prompts))
        limit = instrument.parts.max_context
        self.max_keys = config.max_keys or (4 * limit if limit is not None else 32768)
        self.stop_ids = stop_ids_of(instrument, config.stop_ids)
        self.tokenizer = getattr(instrument.loaded, "tokenizer", None)

    def run(self) -> Generator[Grown, None, tuple[Tree, ...]]:
        """Steps until every sequence has ended."""
        with ExitStack() as stack:
            stack.enter_context(self.watch.watching())
            with torch.no_grad():  # around each forward, not around the yields: between steps the caller's own mode holds
                out = call_model(self.instrument, self.layout, mode="causal", cache=self.cache, keep_logits=1)
            logits = out.logits[:, -1:]
            for number in range(self.config.max_steps):
                sets = [self._choose(number, s, logits[i, : len(s.weights)]) for i, s in enumerate(self.sequences)]
                if all(one is None for one in sets):
                    break
                before = self.layout
                width = self._place(number, sets)
                try:
                    trace = self._feed(width)
                except (torch.OutOfMemoryError, MemoryError, RuntimeError) as error:
                    if not _out_of_memory(error):
                        raise
                    self.layout = before
                    self._end_all("out of memory")
                    break
                assert trace.logits is not None
                logits = trace.logits
                self._note(number, sets, width)
                seen = self.layout
                if self.looks is not None:
                    logits = self._prune(number, trace, width, logits)
                steps = tuple(s.steps[-1] if s.stop is None else None for s in self.sequences)
                yield Grown(number, steps, trace, self.layout, width, self.trees, seen)
        return self.trees

    @property
    def trees(self) -> tuple[Tree, ...]:
        """The trees so far; those that could grow on have the stop ``steps``."""
        plain = _plain(self.config)
        return tuple(Tree(tuple(s.prompt), self._text(s.prompt), tuple(s.steps), s.stop or "steps", plain) for s in self.sequences)

    def _choose(self, number: int, sequence: _Sequence, logits: Tensor) -> TreeStep | None:
        """The next set, not yet placed; None where the sequence has ended or ends here."""
        if sequence.stop is not None:
            return None
        config = self.config
        weights = torch.tensor(sequence.weights, dtype=torch.float64, device=logits.device)
        threshold = config.schedule.at(number, config.max_steps)
        rows = log_softmax(logits)
        log_p = combine(rows, weights, config.follow)
        chosen = choose(log_p, threshold, config.max_siblings)
        if chosen.ids[0] in self.stop_ids:
            sequence.stop = "end of text"
            return None
        pairs = list(zip(chosen.ids, chosen.probabilities, strict=True))
        fed = [(t, p) for t, p in pairs if t not in self.stop_ids]
        endings = tuple(Ending(t, p) for t, p in pairs if t in self.stop_ids)
        positions, base = place(config.scheme, sequence.base, len(fed), config.epsilon)
        limit = self.instrument.parts.max_context
        slot = len(sequence.prompt) + sum(t.slot >= 0 for step in sequence.steps for t in step.tokens)
        if limit is not None and max(positions) > limit - 1:
            sequence.stop = "context full"
            return None
        if slot + len(fed) > self.max_keys:
            sequence.stop = "cache full"
            return None
        sequence.base = base
        path = [*sequence.prompt, *(step.top.id for step in sequence.steps)][-_ANCHOR:]
        tokens = tuple(
            PathToken(t, self._reads(path, t), p, position, slot + i)
            for i, ((t, p), position) in enumerate(zip(fed, positions, strict=True))
        )
        stats = StepStats(threshold, chosen.above, sum(chosen.probabilities), chosen.entropy, disagreement(rows, weights))
        return TreeStep(number, tokens, stats, endings)

    def _place(self, number: int, sets: list[TreeStep | None]) -> int:
        """The sets as new slots of the layout; how many columns they take."""
        tokens = [[] if one is None else list(one.tokens) for one in sets]
        positions = [[t.position for t in row] for row in tokens]
        seats = [seats_of(self.config.scheme, row) for row in positions]
        self.layout = self.layout.with_set(number, [[t.id for t in row] for row in tokens], positions, seats)
        return max(map(len, tokens))

    def _feed(self, width: int) -> Trace:
        """One forward of the new slots."""
        read = self.attention
        if self.weights:
            rows = tuple(range(width))
            read = AttentionRead(stats=(), rows=rows, weights=True) if read is None else replace(read, rows=rows, weights=True)
        trace = Trace()
        with torch.no_grad(), ExitStack() as stack:
            if self.reads or read is not None:
                trace = stack.enter_context(self.instrument.attached(reads=self.reads, attention=read, prompt=None))
            out = call_model(
                self.instrument,
                self.layout,
                mode=self.config.mode,
                rows=slice(self.layout.n_slots - width, None),
                cache=self.cache,
                bias=self.config.bias,
                embedding=self.embedding,
            )
        trace.logits = out.logits
        return trace

    def _note(self, number: int, sets: list[TreeStep | None], width: int) -> None:
        """Keep the sets, at the positions that the model's rotary module got."""
        read_back = self.watch.positions
        for i, (sequence, one) in enumerate(zip(self.sequences, sets, strict=True)):
            if one is None:
                continue
            positions = read_back[i if len(read_back) > 1 else 0, :width].tolist()
            tokens = tuple(replace(t, position=p) for t, p in zip(one.tokens, positions, strict=False))
            sequence.steps.append(replace(one, tokens=tokens))
            total = sum(t.probability for t in tokens)
            sequence.weights = [t.probability / total for t in tokens]

    def _prune(self, number: int, trace: Trace, width: int, logits: Tensor) -> Tensor:
        """Judge the tokens whose time has come; logits of the newest set, read again where tokens were deleted."""
        assert self.looks is not None and trace.attention is not None
        self.looks.add(number, trace.attention, self.layout, width, [s.weights for s in self.sequences])
        lost: list[int] = []
        for i, sequence in enumerate(self.sequences):
            if sequence.stop is not None:
                continue
            judged, gone = self.looks.judge(number, i, sequence.steps)
            for step in judged:
                sequence.steps[step.number] = step
            for slot in gone:
                self.layout.gone[i, slot] = number + 1
            lost += gone
        if not lost or self.looks.pruning.removal == "mask":
            return logits
        return self._delete(sorted(lost), width)

    def _delete(self, lost: list[int], width: int) -> Tensor:
        """Take slots out of the cache and read again what came after the first of them."""
        keep = torch.tensor([i for i in range(self.layout.n_slots) if i not in set(lost)], device=self.layout.ids.device)
        self.layout = self.layout.take(keep)
        self.cache.crop(lost[0] - self.cache.get_seq_length())
        sequence = self.sequences[0]
        moved = {old: new for new, old in enumerate(keep.tolist())}
        sequence.steps = [
            replace(step, tokens=tuple(replace(t, slot=moved.get(t.slot, -1)) for t in step.tokens)) for step in sequence.steps
        ]
        assert self.looks is not None
        self.looks.moved(moved)
        with torch.no_grad():
            out = call_model(
                self.instrument,
                self.layout,
                mode=self.config.mode,
                rows=slice(lost[0], None),
                cache=self.cache,
                bias=self.config.bias,
                embedding=self.embedding,
                keep_logits=width,
            )
        return out.logits

    def _end_all(self, stop: Stop) -> None:
        for sequence in self.sequences:
            sequence.stop = sequence.stop or stop

    def _text(self, ids: Sequence[int]) -> str:
        if self.tokenizer is None:
            return " ".join(map(str, ids))
        return self.tokenizer.decode(list(ids), skip_special_tokens=False, clean_up_tokenization_spaces=False)

    def _reads(self, path: list[int], token: int) -> str:
        """How a token reads after the top path."""
        return f" {token}" if self.tokenizer is None else continuation(self.tokenizer, path, [token])


def _out_of_memory(error: BaseException) -> bool:
    """Whether an allocation failed; the CPU's allocator says so in words alone."""
    return isinstance(error, torch.OutOfMemoryError | MemoryError) or "not enough memory" in str(error)


def _plain(config: ParallelConfig) -> dict[str, Any]:
    """The configuration as JSON takes it."""
    held = asdict(config) | {"threshold": str(config.schedule)}
    return {key: list(value) if isinstance(value, tuple) else value for key, value in held.items()}
