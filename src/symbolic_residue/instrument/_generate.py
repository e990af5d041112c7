"""Generation under observation: tokens one by one, each with the readouts of the forward that chose it.

1. **Prefill.** The left-padded prompts run once and fill a key-value cache. Their last row chooses the first new token: that is step 0. Where a ``LastRow``
   is given instead, its prompts have run already, and only decode forwards remain: so one prompt is run once for any number of batches.
2. **Decode.** Step ``s`` feeds the token of step ``s − 1`` and reads its row, position ``width − 1 + s`` of the padded sequence. The last token is never
   fed, so there are as many rows as new tokens, and each row is the one that chose its token. They equal the same rows of one forward over the final
   sequence (tested).
3. **Attachment.** The instrument is attached once for the prefill and once for all decode forwards, not for each token.
4. **Choice.** Temperature, top-k, top-p and seeds: see ``_sampling``. Log-probabilities and entropies are those of the model's own distribution
   ``softmax(logits)`` (edits included), whatever the temperature.
5. **Ending.** A sequence ends at an eos id, a stop text, ``max_new_tokens`` or a full context. From then on it is frozen: no token, NaN for every number,
   invalid in every table; the others run on.
6. **Edits.** ``when`` says in which forwards they act: the prompt's (the prefill), those of generated tokens (all but the prefill; the first new token is
   then chosen unedited), or all. Rows count in the forward's own queries: a prefill has all rows of the padded prompt, a decode forward one. So an edit
   that acts in decode forwards has ``rows=None`` or ``rows=(-1,)``: the row that chooses the next token. Keys count over the padded sequence so far.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, get_args, Literal

import torch
from torch import Tensor

from symbolic_residue.errors import ConfigError, EditError, InstrumentError, PromptError
from symbolic_residue.instrument._batch import Batch
from symbolic_residue.instrument._cached import Decoder, LastRow
from symbolic_residue.instrument._edits import Edit, PatternReplace, Positions
from symbolic_residue.instrument._generation import Collector, continuation, frozen, Generation, Keep, KEEPS, last_row, Step, Stop
from symbolic_residue.instrument._instrument import Instrument
from symbolic_residue.instrument._sampling import Sampler
from symbolic_residue.instrument._trace import Trace
from symbolic_residue.instrument.attention import AttentionRead

__all__ = ["When", "generate", "stream"]

When = Literal["always", "prompt", "generated"]


def generate(
    instrument: Instrument,
    inputs: Batch | Tensor | LastRow,
    *,
    max_new_tokens: int,
    temperature: float = 0.0,
    top_k: int | None = None,
    top_p: float | None = None,
    seed: int | Sequence[int] | None = None,
    stop_ids: Sequence[int] | None = None,
    stop_texts: Sequence[str] = (),
    reads: Sequence[str] = (),
    attention: AttentionRead | None = None,
    edits: Sequence[Edit] = (),
    when: When = "always",
    prompt_rows: bool = False,
    on_token: Callable[[Step], None] | None = None,
    keep: Keep = "all",
) -> Generation:
    """Generate tokens and keep what was read at each of them.

    Args:
        instrument: the model's instrument.
        inputs: left-padded prompts, or ids ``[batch, query]`` of equal length; or prompts that have run already (``row.select([0] * 4)``: four times
            the first one), of which nothing can be read or edited any more but the last row (edits of ``rows=(-1,)``).
        max_new_tokens: at most so many, at least 1.
        temperature: 0 takes the most probable token; above, ``softmax(logits / temperature)`` is drawn from.
        top_k: draw among the k most probable tokens.
        top_p: draw from the nucleus: the fewest tokens that hold this probability.
        seed: a number (sequence i draws with ``seed + i``) or one a sequence; None takes fresh ones, which the result tells. A sequence's tokens
            depend on its own seed only, not on its batch.
        stop_ids: token ids that end a sequence; None takes the model's own (generation config, else config), ``()`` none.
        stop_texts: a sequence ends when its new text holds one of these.
        reads: points to read, e.g. ``("resid_post.*",)``.
        attention: attention statistics to read at every new token (``rows`` None or ``(-1,)``; all but ``received``). New keys form the region ``generated``.
        edits: what to change.
        when: in which forwards the edits act: ``always``, ``prompt``, ``generated`` (see the module).
        prompt_rows: also read all rows of the prompt (the prefill), into ``Generation.prompt``.
        on_token: called with each step as it comes.
        keep: readouts kept in the result: of ``all`` steps, of the ``last`` one, or ``none`` (then ``on_token`` sees them).

    Returns:
        The generation. After a KeyboardInterrupt it is what was captured so far, with ``partial=True``.

    Raises:
        ConfigError: an option out of range, or options that contradict each other.
        PromptError: an empty prompt, ids that the model does not have, or more tokens than its context.
        InstrumentError: right padding, training mode, or logits that are NaN.
        ReadError, EditError, AttentionError: see those.
        KeyboardInterrupt: before the first token there is nothing to keep.
    """
    if keep not in KEEPS:
        raise ConfigError(f"keep={keep!r} is unknown.", todo=f"Use one of {', '.join(KEEPS)}.")
    plan = _plan(
        instrument, inputs, max_new_tokens, temperature, top_k, top_p, seed, stop_ids, stop_texts, reads, attention, edits, when, prompt_rows
    )  # fmt: skip
    collector = Collector(plan.prompts, plan.tokenizer, plan.sampler.seeds, keep, prompt_rows, instrument.points(reads))
    steps = _steps(plan)
    try:
        for step in steps:
            collector.add(step)
            if on_token is not None:
                on_token(step)
    except KeyboardInterrupt:
        if not collector.steps:
            raise
        return collector.finish(partial=True)
    finally:
        steps.close()
    return collector.finish()


def stream(
    instrument: Instrument,
    inputs: Batch | Tensor | LastRow,
    *,
    max_new_tokens: int,
    temperature: float = 0.0,
    top_k: int | None = None,
    top_p: float | None = None,
    seed: int | Sequence[int] | None = None,
    stop_ids: Sequence[int] | None = None,
    stop_texts: Sequence[str] = (),
    reads: Sequence[str] = (),
    attention: AttentionRead | None = None,
    edits: Sequence[Edit] = (),
    when: When = "always",
    prompt_rows: bool = False,
) -> Generator[Step, None, None]:
    """As :func:`generate`, one step at a time. Options are checked at once, before the first step is asked for.

    The model stays attached between steps: run nothing else on it meanwhile. Leaving the loop (``break``, an exception, Ctrl-C) detaches it; whoever keeps
    the iterator beyond its loop calls ``close()``.

    Yields:
        A step for each new token.

    Raises:
        See :func:`generate`.
    """
    return _steps(
        _plan(
            instrument, inputs, max_new_tokens, temperature, top_k, top_p, seed, stop_ids, stop_texts, reads, attention, edits, when, prompt_rows
        )
    )  # fmt: skip


@dataclass
class _Plan:
    """A generation whose options have been checked."""

    instrument: Instrument
    batch: Batch
    prompts: list[list[int]]
    limit: int
    sampler: Sampler
    stop_ids: frozenset[int]
    stop_texts: tuple[str, ...]
    reads: Sequence[str]
    prefill_read: AttentionRead | None
    decode_read: AttentionRead | None
    prefill_edits: Sequence[Edit]
    decode_edits: Sequence[Edit]
    prompt_rows: bool
    begun: LastRow | None

    @property
    def tokenizer(self) -> Any:
        """The tokenizer, where there is one."""
        return getattr(self.instrument.loaded, "tokenizer", None)


def _plan(
    instrument: Instrument,
    inputs: Batch | Tensor | LastRow,
    max_new_tokens: int,
    temperature: float,
    top_k: int | None,
    top_p: float | None,
    seed: int | Sequence[int] | None,
    stop_ids: Sequence[int] | None,
    stop_texts: Sequence[str],
    reads: Sequence[str],
    attention: AttentionRead | None,
    edits: Sequence[Edit],
    when: When,
    prompt_rows: bool,
) -> _Plan:
    if isinstance(max_new_tokens, bool) or not isinstance(max_new_tokens, int) or max_new_tokens < 1:
        raise ConfigError(f"max_new_tokens={max_new_tokens!r} is no whole number from 1 up.")
    if instrument.model.training:
        raise InstrumentError("The model is in training mode.", why="Dropout would change its tokens.", todo="Call model.eval().")
    begun = inputs if isinstance(inputs, LastRow) else None
    batch = _checked_batch(instrument, inputs.batch if isinstance(inputs, LastRow) else inputs)
    sampler = Sampler.make(len(batch.ids), temperature, top_k, top_p, seed)
    texts = (stop_texts,) if isinstance(stop_texts, str) else tuple(stop_texts)
    if not all(isinstance(text, str) and text for text in texts):
        raise ConfigError("A stop text is empty or no text.", why="Every text holds the empty one.")
    if texts and getattr(instrument.loaded, "tokenizer", None) is None:
        raise ConfigError("Stop texts need a tokenizer.", todo="Give stop_ids, or wrap the model with its tokenizer.")
    instrument.points(reads)
    prefill_read, decode_read = _split_read(attention, batch, prompt_rows)
    prefill_edits, decode_edits = _split_edits(edits, when)
    ids, real = batch.ids.tolist(), batch.mask.bool().tolist()
    prompts = [[t for t, there in zip(row, mask, strict=True) if there] for row, mask in zip(ids, real, strict=True)]
    return _Plan(
        instrument,
        batch,
        prompts,
        max_new_tokens,
        sampler,
        stop_ids_of(instrument, stop_ids),
        texts,
        tuple(reads),
        prefill_read,
        decode_read,
        prefill_edits,
        decode_edits,
        prompt_rows,
        _checked_begun(
            instrument,
            begun,
            bool(reads or prompt_rows or prefill_read is not None) or any(_rows(edit) != (-1,) for edit in prefill_edits),
        ),
    )


def _rows(edit: Edit) -> tuple[int, ...] | None:
    """The rows that an edit names; None: all of them, or it has none."""
    rows = getattr(edit, "rows", None)
    return None if rows is None else tuple(rows)


def _checked_begun(instrument: Instrument, begun: LastRow | None, asked: bool) -> LastRow | None:
    """Prompts that have run: of this model, whole, and with nothing left to be done in them."""
    if begun is None:
        return None
    if begun.instrument.model is not instrument.model:
        raise InstrumentError("The prompts were run by another model.", todo="Give the instrument that ran them.")
    if asked:
        raise ConfigError(
            "Prompts that have run already cannot be read or edited, but for their last row.",
            why="Their last row chooses the first new token.",
            todo="Give the prompts themselves, edits of rows=(-1,), or edits with when='generated'.",
        )
    if begun.hides:
        raise ConfigError(
            "Tokens are hidden from the prompts' last row.", why="A generation would see them.", todo="Use LastRow.decoder."
        )
    return begun


def _checked_batch(instrument: Instrument, inputs: Batch | Tensor) -> Batch:
    """The prompts as a batch that can be continued."""
    if isinstance(inputs, Batch):
        batch = inputs
    else:
        if inputs.dim() != 2 or inputs.is_floating_point() or inputs.dtype == torch.bool:
            raise PromptError(f"Prompts are token ids [batch, query], not {inputs.dtype} {tuple(inputs.shape)}.")
        n, width = inputs.shape
        batch = Batch(inputs, torch.ones_like(inputs), None, (0,) * n, (width - 1,) * n)
    ids, mask = batch.ids, batch.mask.bool()
    if not ids.numel() or not bool(mask.any(-1).all()):
        raise PromptError("A prompt is empty.", todo="Give every sequence at least one token (for instance the tokenizer's bos).")
    if not bool((mask.int().diff(dim=-1) >= 0).all()):
        raise InstrumentError(
            "The prompts are padded on the right.",
            why="New tokens follow each prompt's last one.",
            todo="Use collate(…, side='left').",
        )
    vocab = instrument.parts.embed.weight.shape[0]  # type: ignore[union-attr]
    if int(ids.min()) < 0 or int(ids.max()) >= vocab:
        raise PromptError(f"A token id is outside of the model's 0 to {int(vocab) - 1}.")
    limit, longest = instrument.parts.max_context, int(mask.sum(-1).max())
    if limit is not None and longest >= limit:
        raise PromptError(
            f"A prompt of {longest} tokens leaves no room in the model's context of {limit}.", todo="Shorten the text."
        )
    return batch


def stop_ids_of(instrument: Instrument, given: Sequence[int] | None = None) -> frozenset[int]:
    """The tokens that end a sequence: those given, or the model's own.

    Raises:
        ConfigError: an id that the model does not have.
    """
    if given is not None:
        vocab = instrument.parts.vocab_size
        if not all(isinstance(t, int) and 0 <= t < vocab for t in given):
            raise ConfigError(f"stop_ids={given!r} are not all ids of the model's {vocab} tokens.")
        return frozenset(given)
    for config in (getattr(instrument.model, "generation_config", None), instrument.model.config):
        ids = getattr(config, "eos_token_id", None)
        if ids is not None:
            return frozenset([ids] if isinstance(ids, int) else ids)
    return frozenset()


def _split_read(
    attention: AttentionRead | None, batch: Batch, prompt_rows: bool
) -> tuple[AttentionRead | None, AttentionRead | None]:
    """What the prefill reads (its last row, or all), and what each decode forward reads (its one row)."""
    if attention is None:
        return None, None
    if attention.regions is None and batch.regions is not None:
        attention = replace(attention, regions=batch.regions)
    if "received" in attention.stats:
        raise ConfigError(
            "'received' sums over rows, and a step has one.",
            todo="Use AttentionRead(rows=(-1,), weights=True): the row's own weights.",
        )
    if attention.rows not in (None, (-1,)):
        raise ConfigError(f"rows={attention.rows} in a generation.", why="Each step reads the row that chose its token.", todo="Leave rows out.")  # fmt: skip
    if prompt_rows and attention.rows is not None:
        raise ConfigError("prompt_rows=True and rows=(-1,) contradict each other.", todo="Leave one of them out.")
    # A decode forward has one row: reading "all" keeps the fused path open.
    decode = attention if attention.weights else replace(attention, rows=None)
    return (attention if prompt_rows else replace(attention, rows=(-1,))), decode


def _split_edits(edits: Sequence[Edit], when: When) -> tuple[Sequence[Edit], Sequence[Edit]]:
    """Edits of the prefill, and of the decode forwards."""
    if when not in get_args(When):
        raise ConfigError(f"when={when!r} is unknown.", todo=f"Use one of {', '.join(get_args(When))}.")
    for edit in edits:
        if isinstance(edit, Positions):
            raise EditError("Positions cannot be changed in a generation.", todo="Change them in Instrument.run.")
        if when == "prompt":
            continue
        if isinstance(edit, PatternReplace):
            raise EditError("A given pattern has a fixed number of keys; a generation's grow.", todo="Use when='prompt'.")
        if edit.rows is not None and any(r not in ((-1, 0) if when == "generated" else (-1,)) for r in edit.rows):
            raise EditError(
                f"An edit names rows {tuple(edit.rows)}.",
                why="The forward of a new token has one row.",
                todo="Write rows=(-1,) for the row that chooses the next token, or use when='prompt'.",
            )
    return (() if when == "generated" else edits), (() if when == "prompt" else edits)


@dataclass
class _State:
    """The sequences so far."""

    plan: _Plan
    ids: list[list[int]] = field(default_factory=list)
    stops: list[Stop | None] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.ids = [[] for _ in self.plan.prompts]
        self.stops = [None] * len(self.ids)

    @property
    def running(self) -> list[bool]:
        """Which sequences have not ended."""
        return [stop is None for stop in self.stops]

    def advance(self, number: int, logits: Tensor, trace: Trace) -> Step:
        """Choose, append, see who ends."""
        running = self.running
        alive = torch.tensor(running, device=logits.device)
        log_p = torch.log_softmax(logits.double(), -1)
        bad = (torch.isnan(log_p).any(-1) & alive).tolist()
        if any(bad):
            raise InstrumentError(
                f"The logits of sequence {bad.index(True)} are NaN or infinite at step {number}.",
                why="No token can be chosen from them.",
                todo="Look for the first point with NaN; half precision overflows, and so do large edits.",
            )
        chosen = self.plan.sampler.choose(logits, running)
        p = log_p.exp()
        entropy = torch.special.entr(p).sum(-1)
        chosen_log_p = log_p.gather(-1, chosen[:, None])[:, 0]
        tokens = chosen.tolist()
        for i in [i for i, runs in enumerate(running) if runs]:
            self.ids[i].append(tokens[i])
            self.stops[i] = self._ending(i, tokens[i])
        missing = float("nan")
        return Step(
            number,
            torch.where(alive, chosen, -1),
            alive,
            tuple(self.stops),
            torch.where(alive, chosen_log_p, missing),
            torch.where(alive, entropy, missing),
            frozen(trace, running),
        )

    def _ending(self, i: int, token: int) -> Stop | None:
        plan, new = self.plan, self.ids[i]
        if token in plan.stop_ids:
            return Stop("eos", token=token)
        if plan.stop_texts:
            text = continuation(plan.tokenizer, plan.prompts[i], new)
            found = [(text.index(stop), stop) for stop in plan.stop_texts if stop in text]
            if found:
                return Stop("stop text", text=min(found)[1])
        if len(new) == plan.limit:
            return Stop("length")
        if len(plan.prompts[i]) + len(new) == plan.instrument.parts.max_context:
            return Stop("context full")
        return None


def _steps(plan: _Plan) -> Generator[Step, None, None]:
    instrument, state, width = plan.instrument, _State(plan), plan.batch.ids.shape[1]
    if plan.begun is not None:
        if plan.prefill_edits:
            decoder = plan.begun.decoder()
            with instrument.attached(edits=plan.prefill_edits, prompt=width):
                decoder.step(ids=plan.begun.last)
        else:
            decoder = plan.begun.continued()
        trace = Trace(logits=decoder.logits[:, None])
    else:
        with instrument.recording(reads=plan.reads, attention=plan.prefill_read, edits=plan.prefill_edits, prompt=width) as traces:
            decoder = Decoder(instrument, plan.batch)
        trace = traces.pop()
    step = state.advance(0, decoder.logits, trace if plan.prompt_rows else last_row(trace))
    fed = torch.where(step.running, step.ids, 0)
    yield step
    if not any(state.running):
        return
    with instrument.recording(reads=plan.reads, attention=plan.decode_read, edits=plan.decode_edits, prompt=width) as traces:
        while any(running := state.running):
            decoder.step(ids=fed, running=torch.tensor(running, device=fed.device))
            step = state.advance(step.number + 1, decoder.logits, traces.pop())
            fed = torch.where(step.running, step.ids, fed)
            yield step
