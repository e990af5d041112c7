"""MEMTRACE (RECALL, ANCHOR, INHIBIT): does a fact stated early survive to the question?

1. Fact, padding of d tokens, question: for a sweep of distances, several texts of padding each, beside a control that states another fact or none (``_text``,
   ``_ask``, ``_observe``).
2. Four failure modes are judged (``_judge``); the fall with distance is fitted (``_fit``).
3. At the judged distance: attention to the fact, value-weighted attention, traces of residual stream and cached values (``_tables``).
4. The heads that fetch the fact are ranked and confirmed (``_attribute``).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar, TYPE_CHECKING

import polars as pl

from symbolic_residue.errors import ConfigError, PromptError
from symbolic_residue.prompts import build_prompt, find_span, memory_items, MemoryItem, Padding, Prompt, ShellItem
from symbolic_residue.shells._base import Progress, quiet, ShellBase
from symbolic_residue.shells._confirm import head_means
from symbolic_residue.shells._failure import Failure
from symbolic_residue.shells._verdict import Verdict
from symbolic_residue.shells.memtrace._ask import ask, find_asked
from symbolic_residue.shells.memtrace._attribute import begin_again, heads_frame, intervene, Interventions
from symbolic_residue.shells.memtrace._config import MemtraceConfig
from symbolic_residue.shells.memtrace._curves import curve_frame, decay_fits, MEMORY
from symbolic_residue.shells.memtrace._failures import fact_failures, item_options
from symbolic_residue.shells.memtrace._findings import changes, MemtraceFindings, summarise
from symbolic_residue.shells.memtrace._judge import verdicts
from symbolic_residue.shells.memtrace._observe import observe
from symbolic_residue.shells.memtrace._operations import anchor, Anchoring, Recall, recall
from symbolic_residue.shells.memtrace._residue import Asked, MemtraceResidue
from symbolic_residue.shells.memtrace._tables import reading_frames
from symbolic_residue.shells.memtrace._text import passage

if TYPE_CHECKING:
    from torch import Tensor

    from symbolic_residue.instrument import Prefix
    from symbolic_residue.models import LoadedModel
    from symbolic_residue.types import Span

__all__ = ["MemtraceShell"]

_REFERENCES = 16


class MemtraceShell(ShellBase[MemtraceResidue, MemtraceFindings]):
    """Probe whether a fact survives a distance.

    Args:
        model, tokenizer: a plain Hugging Face decoder and its tokenizer.
        config: a ``MemtraceConfig``; ``None`` takes the defaults.
        loaded: instead of model and tokenizer: an opened model.

    Raises:
        What ``ShellBase`` raises.
    """

    name: ClassVar[str] = "memtrace"
    operations: ClassVar[tuple[str, str, str]] = ("RECALL", "ANCHOR", "INHIBIT")
    benchmark: ClassVar[str | None] = "memory-degradation"

    right_answers: ClassVar[dict[str, str]] = {
        **dict.fromkeys(("recall decay", "hallucinated reconstruction", "partial recall"), "the stated fact"),
        "priority collision": "the stated fact, not its rival",
    }

    config: MemtraceConfig

    def __init__(
        self, model: Any = None, tokenizer: Any = None, config: MemtraceConfig | None = None, *, loaded: LoadedModel | None = None
    ) -> None:
        super().__init__(model, tokenizer, config or MemtraceConfig(), loaded=loaded)
        self._each: dict[bool, Tensor] = {}
        self._kept: tuple[Asked, Prefix | None] | None = None

    @classmethod
    def items(cls) -> list[MemoryItem]:
        """The items of ``memory-degradation``: facts of three types, three kinds of padding, and null items."""
        return memory_items()

    # -- operations ----------------------------------------------------------------------------------------------------------

    def recall_operation(self, position: int, token: str | int, context: str, *, chat: bool = False) -> Recall:
        """RECALL: read a token at a position of the context, depth by depth.

        Args:
            position: the row; negative counts from the end.
            token: its text (the first token of it) or id.
            context: the prompt.
            chat: render the context by the chat template.

        Raises:
            ConfigError: a position or token that is not there.
            PromptError: an unusable context.
        """
        token_id = self._token(token)
        text = self.tokenizer.decode([token_id], clean_up_tokenization_spaces=False)
        return recall(self.instrument, self._prompt(context, chat), position, token_id, text, self.config.readable_rank)

    def anchor_operation(
        self,
        span: str | tuple[int, int],
        strength: float,
        *,
        context: str,
        mode: str = "attention",
        tokens: Sequence[str | int] = (),
        layers: Sequence[int] | None = None,
        heads: Sequence[int] | None = None,
        chat: bool = False,
    ) -> Anchoring:
        """ANCHOR: multiply the odds of a span's keys by ``strength`` for all later rows, or scale its embeddings.

        Args:
            span: a text in the context, or token positions (start, stop).
            strength: a factor; 1 changes nothing.
            context: the prompt.
            mode: ``attention`` or ``embedding``.
            tokens: next tokens whose shift is reported; left out, the best one.
            layers, heads: where the bias acts; None is everywhere.
            chat: render the context by the chat template.

        Raises:
            ConfigError: an unusable strength, mode or token.
            SpanError: the span is not there.
            PromptError: an unusable context.
        """
        prompt = self._prompt(context, chat)
        found: Span = find_span(prompt, text=span) if isinstance(span, str) else find_span(prompt, index=span)
        ids = [self._token(t) for t in tokens] or [self._best(prompt)]
        texts = [self.tokenizer.decode([i], clean_up_tokenization_spaces=False) for i in ids]
        return anchor(self.instrument, prompt, found, strength, mode, layers=layers, heads=heads, tokens=ids, texts=texts)

    def inhibit_operation(self, span: str | tuple[int, int], strength: float = 0.0, **options: Any) -> Anchoring:
        """INHIBIT: :meth:`anchor_operation` with a strength below 1; 0 hides the span.

        Raises:
            ConfigError: a strength of 1 or more; and what :meth:`anchor_operation` raises.
        """
        if not strength < 1:
            raise ConfigError(f"INHIBIT's strength is {strength}.", todo="Give a factor below 1, or use anchor_operation.")
        return self.anchor_operation(span, strength, **options)

    def asks(self, input_text: str) -> dict[str, Any]:
        """The fact in a plain text, the question that asks for it, and its answer.

        Raises:
            PromptError: an empty text. SpanError: no sentence of it states what its end asks for.
        """
        if not isinstance(input_text, str) or not input_text.strip():
            raise PromptError("The prompt is empty.", todo="Give a text with a fact and a question.")
        fact, question, answers = find_asked(self.instrument, self.tokenizer, input_text, False)
        return {"fact": fact, "question": question, "answer": answers}

    # -- the run -------------------------------------------------------------------------------------------------------------

    def run(
        self,
        input_text: str,
        *,
        fact: str | None = None,
        question: str | None = None,
        answer: str | Sequence[str] | None = None,
        foils: Sequence[str] | Sequence[Sequence[str]] | None = None,
        control: str | None = None,
        rival: str | None = None,
        rival_answer: str | None = None,
        distractors: Sequence[str] = (),
        padding: Padding | None = None,
        place: str = "between",
        token_type: str | None = None,
        chat: bool = False,
        seed: int = 0,
        progress: Progress = quiet,
    ) -> MemtraceResidue:
        """Collect the residue of one fact.

        Args:
            input_text: the whole prompt: fact, whatever stands between, question.
            fact: the text that states the answer; left out, the first sentence that mentions the answer.
            question: the end of the prompt; left out, its last sentence.
            answer: what should come next, with its leading space; several texts for an answer of several fields, each following the one before. Left
                out, what the model says next on the prompt as it is; where fact and question are left out too, the word that an earlier sentence most helps
                it to say (:meth:`asks`).
            foils: wrong answers of the same type (for several fields, a list for each); left out, the model's guesses without the fact.
            control: the fact as the control states it; left out, the fact with the first foils in the answers' places, or no fact where foils were not given.
            rival: a fact in the prompt with another value of the same kind; ``rival_answer`` its value.
            distractors: sentences for adversarial padding.
            padding: one kind of padding instead of the configured ones.
            place: ``between`` fact and question, or ``before`` the fact: then the text grows and the distance does not.
            token_type: ``name``, ``number`` or ``word``; guessed from the answer when left out.
            chat: render the prompt as one user turn by the chat template.
            seed: of padding, random heads and resampling.
            progress: told what is going on, and the share done.

        Raises:
            PromptError, TemplateError: an unusable prompt, or no room for any distance.
            SpanError: fact, question or rival are not where they must be.
            ConfigError: unusable answers, foils or options.
        """
        asked = self._ask(
            input_text,
            fact=fact,
            question=question,
            answer=answer,
            foils=foils,
            control=control,
            rival=rival,
            rival_answer=rival_answer,
            distractors=distractors,
            padding=padding,
            place=place,
            token_type=token_type,
            chat=chat,
            seed=seed,
        )
        passages = {side: passage(self.tokenizer, asked, side) for side in asked.sides}
        seen = observe(self.instrument, asked, passages, progress)
        reading = reading_frames(self.instrument, self.tokenizer, asked, passages["fact"], seen)
        shifted = bool(self.instrument.parts.position_ids)
        frames = {
            **reading.frames,
            "measures": seen.measures,
            "curves": curve_frame(seen.measures, seen.attention, asked, shifted=shifted),
            "fits": decay_fits(seen.measures, asked),
        }
        provenance = self.loaded.provenance.model_copy(update={"seed": seed}).model_dump(mode="json")
        self._kept = (asked, seen.prefix)
        progress("residue collected", 1.0)
        return MemtraceResidue(asked, self.config, provenance, frames)

    def run_item(self, item: ShellItem, *, seed: int = 0, progress: Progress = quiet) -> MemtraceResidue:
        """Collect the residue of one item, with its own kind of padding, control, foils and rival."""
        if not isinstance(item, MemoryItem):
            raise ConfigError(f"{item.id} is no item of memory-degradation.", todo=f"Use one of {type(self).__name__}.items().")
        text, options = item_options(item)
        return self.run(text, seed=seed, progress=progress, **options)

    def failures(self, source: Any, mode: str, *, id: str | None = None, seed: int = 0) -> list[Failure]:
        """The answer of an item or a residue at its judged distance, in every padding text; of several fields each is a failure of its own.

        Raises:
            NoRightAnswerError: a priority collision without a rival. ConfigError: no such mode, or no item or residue of this shell.
        """
        self.right_answer(mode)
        if isinstance(source, MemoryItem):
            text, options = item_options(source)
            return fact_failures(self.tokenizer, self._ask(text, seed=seed, **options), mode, id or source.id, source.frame)
        if isinstance(source, MemtraceResidue):
            return fact_failures(self.tokenizer, source.asked, mode, id or "fact", None)
        raise ConfigError("That is neither an item of memory-degradation nor a residue of memtrace.")

    def verdicts(self, residue: MemtraceResidue) -> list[Verdict]:
        """The four verdicts of a residue, from its measures alone."""
        return verdicts(residue)

    def analyze_residue(self, residue: MemtraceResidue, *, progress: Progress = quiet) -> MemtraceFindings:
        """Verdicts and attribution of a residue.

        Args:
            residue: from :meth:`run`, or loaded.
            progress: told what is going on, and the share done.

        Raises:
            ConfigError: the residue belongs to another model (its weights' hash differs).
        """
        residue.must_be_of(self.loaded.provenance.weights_sha256)
        asked = residue.asked
        judged = verdicts(residue)
        target = residue.frames["dla_check"]["target"][0]
        found: Interventions | None = None
        if residue.config.top_heads:
            one = passage(self.tokenizer, asked, "fact")
            prefix = (
                self._kept[1] if self._kept is not None and self._kept[0] is asked else begin_again(self.instrument, residue, one)
            )
            foil = residue.frames["candidates"].filter(pl.col("source") == "foil").sort("logit", descending=True)["token_id"][0]
            found = intervene(self.instrument, residue, one, prefix, self._reference_means(asked), foil, progress=progress)
        self._kept = None  # keys and values of the beginnings are large
        frames = {"heads": heads_frame(residue, target, found), "changes": changes(residue, found)}
        if found is not None:
            frames["curves"] = pl.concat([residue.frames["curves"], found.dose])
        tests = found.found.tests if found is not None else []
        return MemtraceFindings(residue, judged, frames, summarise(residue, judged), tests=tests)

    def visualize_memory_decay(self, findings: MemtraceFindings) -> Any:
        """Memory against distance with the fits, as an Altair chart (needs the ``figures`` extra)."""
        from symbolic_residue.figures import memory_decay

        curves = findings.residue.frames["curves"].filter(pl.col("curve") == MEMORY)
        return memory_decay(curves, findings.residue.frames["fits"])

    # -- parts of a run ------------------------------------------------------------------------------------------------------

    def _ask(
        self,
        text: str,
        *,
        seed: int,
        answer: str | Sequence[str] | None = None,
        foils: Any = None,
        padding: Padding | None = None,
        fact: str | None = None,
        question: str | None = None,
        control: str | None = None,
        rival: str | None = None,
        rival_answer: str | None = None,
        distractors: Sequence[str] = (),
        place: str = "between",
        token_type: str | None = None,
        chat: bool = False,
    ) -> Asked:
        """What :meth:`run` asks; its arguments."""
        return ask(
            self.instrument,
            self.tokenizer,
            self.config,
            text,
            fact=fact,
            question=question,
            answers=[answer] if isinstance(answer, str) else list(answer) if answer is not None else None,
            foils=_listed(foils),
            control=control,
            rival=rival,
            rival_answer=rival_answer,
            distractors=distractors,
            paddings=[padding] if padding is not None else self.config.paddings,
            place=place,
            token_type=token_type,
            chat=chat,
            seed=seed,
        )

    def _prompt(self, text: str, chat: bool) -> Prompt:
        return build_prompt(self.tokenizer, text, chat=chat, max_tokens=self.instrument.parts.max_context)

    def _token(self, token: str | int) -> int:
        if isinstance(token, str):
            ids = self.tokenizer.encode(token, add_special_tokens=False)
            if not ids:
                raise ConfigError("The token's text is empty.")
            return ids[0]
        if not 0 <= int(token) < len(self.tokenizer):
            raise ConfigError(f"Token id {token} is outside the vocabulary of {len(self.tokenizer)}.")
        return int(token)

    def _best(self, prompt: Prompt) -> int:
        return int(self.instrument.run(_ids(prompt), keep_logits=1)["logits"][0, -1].argmax())

    def _reference_means(self, asked: Asked) -> tuple[Tensor, Tensor]:
        """Heads' outputs at the last row of other facts with their questions (calibration split), the present question's left out."""
        items = [i for i in memory_items() if i.split == "calibration"][:_REFERENCES]
        if asked.chat not in self._each:
            prompts = [self._prompt(i.control + i.question, asked.chat) for i in items]
            self._each[asked.chat] = head_means(self.instrument, prompts)[1]
        others = [n for n, item in enumerate(items) if item.question != asked.question]
        each = self._each[asked.chat][others]
        return each.mean(0), each


def _ids(prompt: Prompt) -> Any:
    """The prompt's ids as a batch of one."""
    import torch

    return torch.tensor([prompt.ids])


def _listed(foils: Sequence[str] | Sequence[Sequence[str]] | None) -> list[list[str]] | None:
    """Foils as one list a field; a flat list is that of a single field."""
    if foils is None:
        return None
    if isinstance(foils, str):
        raise ConfigError("The foils are a single string.", why="They are a list.", todo=f"Write [{foils!r}, …].")
    if all(isinstance(f, str) for f in foils):
        return [[str(f) for f in foils]]
    return [list(f) for f in foils]
