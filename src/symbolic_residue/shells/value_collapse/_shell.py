"""VALUE-COLLAPSE (ISOLATE, STABILIZE, YIELD): can the model decide between competing next tokens?

1. The prompt, small edits of it that keep its meaning, and a control prompt that settles the answer go through the model.
2. Candidates are chosen (or given); three refiners trace how their shares move.
3. Four failure modes are judged: flatness, oscillation, value collapse, confidence fragility (``_judge``).
4. The difference between the best candidates is attributed to heads, MLPs and layers, and confirmed by ablation and patching (``_attribute``).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, ClassVar, TYPE_CHECKING

import numpy as np
import polars as pl

from symbolic_residue.errors import ConfigError, NoRightAnswerError
from symbolic_residue.prompts import benchmark, BenchmarkItem, build_prompt, perturb, Prompt, ShellItem
from symbolic_residue.readout import dla_reads, lens_reads
from symbolic_residue.shells._base import Progress, quiet, ShellBase
from symbolic_residue.shells._confirm import head_means
from symbolic_residue.shells._failure import Failure
from symbolic_residue.shells._rows import LastRows
from symbolic_residue.shells._verdict import Verdict
from symbolic_residue.shells.value_collapse._attribute import attribute, token_influence
from symbolic_residue.shells.value_collapse._config import ValueCollapseConfig
from symbolic_residue.shells.value_collapse._failures import candidate_failure
from symbolic_residue.shells.value_collapse._findings import attribution_frames, changes_frame, summarise, ValueCollapseFindings
from symbolic_residue.shells.value_collapse._judge import quantity, verdicts
from symbolic_residue.shells.value_collapse._observe import choose_candidates, measure, next_token, observe, Read, read_prompt
from symbolic_residue.shells.value_collapse._operations import commit, isolate, Isolation, resolve_candidates, token_text
from symbolic_residue.shells.value_collapse._refine import Refinement
from symbolic_residue.shells.value_collapse._residue import Asked, ValueCollapseResidue
from symbolic_residue.shells.value_collapse._tables import residue_frames
from symbolic_residue.stats import js_divergence

if TYPE_CHECKING:
    from torch import Tensor

    from symbolic_residue.models import LoadedModel

__all__ = ["ValueCollapseShell"]

_REFERENCES = 24
_KEPT_TOKENS = 8192


class ValueCollapseShell(ShellBase[ValueCollapseResidue, ValueCollapseFindings]):
    """Probe whether a model can decide between competing next tokens.

    Args:
        model, tokenizer: a plain Hugging Face decoder and its tokenizer.
        config: a ``ValueCollapseConfig``; ``None`` takes the defaults.
        loaded: instead of model and tokenizer: an opened model.

    Where the model soft-caps its logits, verdicts and interventions are of the capped ones, direct logit attribution of those before the cap.
    """

    name: ClassVar[str] = "value-collapse"
    operations: ClassVar[tuple[str, str, str]] = ("ISOLATE", "STABILIZE", "YIELD")

    benchmark: ClassVar[str | None] = "value-ambiguity"

    right_answers: ClassVar[dict[str, str]] = dict.fromkeys(
        ("flatness", "value collapse"), "the candidate that the disambiguated prompt names"
    )
    no_right_answers: ClassVar[dict[str, str]] = {
        "oscillation": "It is how the leader changes along the refinement, not which candidate leads in the end.",
        "confidence fragility": "It is how much small edits change the distribution, not which candidate leads.",
    }

    config: ValueCollapseConfig

    @classmethod
    def items(cls) -> list[BenchmarkItem]:
        """The items of ``value-ambiguity``: prompts torn between two tokens, each with a control, and settled ones."""
        return benchmark("value-ambiguity")

    def run_item(self, item: ShellItem, *, seed: int = 0, progress: Progress = quiet) -> ValueCollapseResidue:
        """Collect the residue of one item, with its candidates and its control."""
        if not isinstance(item, BenchmarkItem):
            raise ConfigError(f"{item.id} is no item of value-ambiguity.", todo=f"Use one of {type(self).__name__}.items().")
        return self.run(item.prompt, candidates=item.candidates, control=item.control, seed=seed, progress=progress)

    def failures(self, source: Any, mode: str, *, id: str | None = None, seed: int = 0) -> list[Failure]:
        """The candidate that an item's control names, against the other one, by more than the criterion of flatness.

        Raises:
            NoRightAnswerError: a mode or an item without one; a residue, which does not say which candidate is right.
            ConfigError: no such mode, or no item of this shell.
        """
        self.right_answer(mode)
        if isinstance(source, ValueCollapseResidue):
            raise NoRightAnswerError("A residue does not say which candidate is right.", todo="Write the failure into a file.")
        if not isinstance(source, BenchmarkItem):
            raise ConfigError("That is no item of value-ambiguity.")
        return [candidate_failure(self.tokenizer, source, id or source.id, self.config.criteria.log_odds)]

    def __init__(
        self,
        model: Any = None,
        tokenizer: Any = None,
        config: ValueCollapseConfig | None = None,
        *,
        loaded: LoadedModel | None = None,
    ) -> None:
        super().__init__(model, tokenizer, config or ValueCollapseConfig(), loaded=loaded)
        self._references: dict[bool, list[Prompt]] = {}
        self._means: dict[bool, tuple[Tensor, Tensor]] = {}
        self._kept: tuple[list[Prompt], _Rows] | None = None
        self._unrelated: dict[bool, np.ndarray] = {}

    # -- operations ----------------------------------------------------------------------------------------------------------

    def isolate_operation(
        self,
        candidates: Sequence[str | int],
        context: str,
        factor: float = 2.0,
        *,
        mode: str = "logits",
        layer: int | None = None,
        chat: bool = False,
    ) -> Isolation:
        """ISOLATE: raise the candidates by ``factor`` nats of logit.

        Args:
            candidates: token texts or ids.
            context: the prompt.
            factor: nats added to each candidate's logit (negative lowers it).
            mode: ``logits`` adds to the logits; ``residual`` adds the matching direction to the residual stream after ``layer`` (default the last).
            chat: render the context by the chat template.

        Raises:
            ConfigError: an unusable candidate, factor, mode or layer.
            PromptError: an unusable context.
        """
        ids = resolve_candidates(self.tokenizer, candidates)
        return isolate(self.instrument, self.tokenizer, self._prompt(context, None, chat), ids, factor, mode, layer)

    def stabilize_operation(
        self,
        context: str,
        n: int | None = None,
        *,
        refiner: str = "soft",
        candidates: Sequence[str | int] | None = None,
        chat: bool = False,
    ) -> Refinement:
        """STABILIZE: refine the distribution for at most ``n`` steps, or until its L1 change is below the configured tolerance.

        Args:
            context: the prompt.
            n: the most steps (default from the config).
            refiner: ``rollout``, ``soft`` or ``layers``.
            candidates: whose shares are traced; chosen by mass when left out.

        Raises:
            ConfigError: an unusable ``n``, refiner or candidate.
            PromptError: an unusable context.
        """
        config = ValueCollapseConfig.make(
            **self.config.model_dump()
            | {"steps": self.config.steps if n is None else n, "refiners": (refiner,), "verdict_refiner": refiner}
        )
        ids = resolve_candidates(self.tokenizer, candidates) if candidates is not None else None
        return observe(self.instrument, [self._prompt(context, None, chat)], config, ids).refinements[refiner]

    def yield_operation(self, context: str, threshold: float | None = None, *, chat: bool = False) -> str | None:
        """YIELD: the top next token if its probability is above ``threshold`` (default from the config), else None."""
        found = observe(self.instrument, [self._prompt(context, None, chat)], self.config.model_copy(update={"refiners": ()}))
        token = commit(found.probability[0], self.config.yield_threshold if threshold is None else threshold)
        return None if token is None else token_text(self.tokenizer, token)

    # -- the run -------------------------------------------------------------------------------------------------------------

    def run(
        self,
        input_text: str | None = None,
        *,
        messages: Sequence[dict[str, str]] | None = None,
        chat: bool = False,
        candidates: Sequence[str | int] | None = None,
        control: str | None = None,
        seed: int = 0,
        progress: Progress = quiet,
    ) -> ValueCollapseResidue:
        """Collect the residue of one prompt.

        Args:
            input_text: the prompt; or ``messages``, a conversation that ends with a user's turn.
            chat: render ``input_text`` as one user turn by the chat template.
            candidates: token texts or ids to compare; chosen by mass when left out.
            control: a prompt in the same frame that settles the answer; left out, the shell settles it on the first candidate beforehand (the
                prompt answered twice, or a note in a chat).
            seed: of variants, random heads and resampling.
            progress: told what is going on, and the share done.

        Raises:
            PromptError, TemplateError: an unusable prompt.
            ConfigError: unusable candidates or options.
        """
        prompt = self._prompt(input_text, messages, chat)
        turns = [dict(m) for m in messages] if messages is not None else None
        text = turns[-1]["content"] if turns else str(input_text)
        if turns and turns[-1]["role"] != "user":
            raise ConfigError("The conversation must end with a user's turn.", why="Its last turn is what gets varied.")
        given = resolve_candidates(self.tokenizer, candidates) if candidates is not None else None
        progress("first reading", 0.0)
        read = read_prompt(self.instrument, prompt, self.config.lens_positions)
        first = next_token(read.row)[0]
        ids = choose_candidates(first, self.config) if given is None else sorted(given, key=lambda t: -first[t])
        given = None if given is None else ids
        names = [token_text(self.tokenizer, t) for t in ids]
        variants = [(v.kind, v.text) for v in perturb(text, seed=seed, protect=names, n=self.config.variants)]
        limit = self.instrument.parts.max_context
        # Variants may be a little longer than the prompt, hence four times instead of three.
        repeat = not chat and turns is None and (limit is None or 4 * len(prompt) + 16 <= limit)
        control_text = control if control is not None else _settled(text, names[0], repeat=repeat)
        n_control = self.config.control_variants or self.config.variants
        control_variants = [(v.kind, v.text) for v in perturb(control_text, seed=seed, protect=names, n=n_control)]
        asked = Asked(
            input_text=text,
            messages=turns,
            chat=chat or turns is not None,
            control_text=control_text,
            control_kind="given" if control is not None else "hint",
            candidates=[int(i) for i in ids],
            candidate_source="given" if given is not None else "mass",
            variants=variants,
            control_variants=control_variants,
            seed=seed,
        )
        prompts, controls = self._family(asked)
        progress("prompt and variants", 0.2)
        rows = self._rows(prompts, controls, read)
        of_prompt = observe(self.instrument, prompts, self.config, ids, rows=rows.prompts)
        progress("control and variants", 0.5)
        # The control needs only the refiner that the verdicts look at.
        plain, chosen = self.config.model_copy(update={"refiners": ()}), ids if given is not None else None
        of_control = observe(self.instrument, controls, plain, chosen, rows=rows.controls)
        # The analysis that follows reads and edits the same rows. A long prompt's cache is not kept: it may be large.
        kept = rows.prompts.tokens <= _KEPT_TOKENS
        self._kept = (prompts, replace(rows, controls=rows.controls.without_cache())) if kept else None
        progress("unrelated prompts", 0.8)
        measures = [measure(of_prompt, "prompt"), measure(of_control, "control")]
        measures += [_values("prompt", "js", js_divergence(of_prompt.probability[1:], of_prompt.probability[:1]))]
        measures += [_values("control", "js", js_divergence(of_control.probability[1:], of_control.probability[:1]))]
        measures += [_values("unrelated", "js", self._unrelated_js(asked.chat))]
        frames = residue_frames(self.instrument, self.tokenizer, self.config, prompts, asked, of_prompt, read.lens)
        frames["measures"] = pl.concat(measures)
        provenance = self.loaded.provenance.model_copy(update={"seed": seed}).model_dump(mode="json")
        progress("residue collected", 1.0)
        return ValueCollapseResidue(asked, self.config, provenance, frames)

    def verdicts(self, residue: ValueCollapseResidue) -> list[Verdict]:
        """The four verdicts of a residue, from its measures alone."""
        return verdicts(residue)

    def analyze_residue(self, residue: ValueCollapseResidue, *, progress: Progress = quiet) -> ValueCollapseFindings:
        """Verdicts and attribution of a residue.

        Args:
            residue: from :meth:`run`, or loaded.
            progress: told what is going on, and the share done.

        Raises:
            ConfigError: the residue belongs to another model (its weights' hash differs).
        """
        residue.must_be_of(self.loaded.provenance.weights_sha256)
        asked, config = residue.asked, residue.config
        prompts, controls = self._family(asked)
        rows = self._kept[1] if self._kept is not None and self._kept[0] == prompts else self._rows(prompts, controls)
        self._kept = None
        attribution = attribute(
            self.instrument,
            prompts,
            controls[0],
            lambda: self._reference_means(asked.chat),
            asked.candidates,
            top_heads=config.top_heads,
            random_heads=config.random_heads,
            attributed=config.attributed_candidates,
            seed=asked.seed,
            rows=rows.prompts,
            settled=rows.controls,
            progress=progress,
        )
        progress("hiding tokens", 1.0)
        pair = attribution.pairs[0]
        influence = token_influence(self.instrument, prompts[0], pair, rows=rows.prompt)
        names = {t: token_text(self.tokenizer, t) for t in asked.candidates}
        judged = verdicts(residue)
        frames = attribution_frames(attribution, names, asked.candidates, asked.seed)
        frames["tokens"] = residue.frames["tokens"].with_columns(influence=pl.Series(influence))
        measures = residue.frames["measures"]
        first = residue.frames["candidates"].row(0, named=True)
        frames["changes"] = changes_frame(
            {
                "probability": first["probability"],
                "threshold": config.yield_threshold,
                "log_odds": float(quantity(measures, "prompt", "log_odds")[0]),
                "criterion": config.criteria.log_odds,
                "names": [names[t] for t in asked.candidates[:2]],
                "sensitivity": residue.frames["sensitivity"],
                "tests": attribution.tests,
                "influence": influence,
                "tokens": prompts[0].tokens,
                "base": float(first["logit"] - residue.frames["candidates"].row(1, named=True)["logit"]),
                "control_log_odds": float(quantity(measures, "control", "log_odds")[0]),
                "control_text": asked.control_text,
            }
        )
        summary = summarise(judged, [names[t] for t in asked.candidates])
        return ValueCollapseFindings(residue, judged, frames, summary, attribution=attribution)

    def visualize_value_competition(self, findings: ValueCollapseFindings) -> Any:
        """The candidates' shares along each refiner, as an Altair chart (needs the ``figures`` extra)."""
        from symbolic_residue.figures import probability_traces

        return probability_traces(findings.residue.frames["traces"])

    # -- parts of a run ------------------------------------------------------------------------------------------------------

    def _prompt(self, text: str | None, messages: Sequence[dict[str, str]] | None, chat: bool) -> Prompt:
        return build_prompt(self.tokenizer, text, messages=messages, chat=chat, max_tokens=self.instrument.parts.max_context)

    def _family(self, asked: Asked) -> tuple[list[Prompt], list[Prompt]]:
        """The prompt with its variants, and the control with its own."""

        def build(text: str) -> Prompt:
            if asked.messages is None:
                return self._prompt(text, None, asked.chat)
            return self._prompt(None, [*asked.messages[:-1], {**asked.messages[-1], "content": text}], True)

        prompts = [build(t) for t in (asked.input_text, *(text for _, text in asked.variants))]
        controls = [build(t) for t in (asked.control_text, *(text for _, text in asked.control_variants))]
        return prompts, controls

    def _reference(self, chat: bool) -> list[Prompt]:
        """Unrelated prompts in the same frame: the packaged ones whose answer is settled."""
        if chat not in self._references:
            texts = [item.prompt for item in benchmark("value-ambiguity") if item.kind == "null"][:_REFERENCES]
            self._references[chat] = [self._prompt(text, None, chat) for text in texts]
        return self._references[chat]

    def _reference_means(self, chat: bool) -> tuple[Tensor, Tensor]:
        """:func:`head_means` over the unrelated prompts."""
        self._run_reference(chat)
        return self._means[chat]

    def _unrelated_js(self, chat: bool) -> np.ndarray:
        """Jensen-Shannon divergence between the distributions of disjoint pairs of unrelated prompts (each prompt used once), ``[pair]``."""
        self._run_reference(chat)
        return self._unrelated[chat]

    def _run_reference(self, chat: bool) -> None:
        """The unrelated prompts, run once for both."""
        if chat in self._unrelated:
            return
        prompts = self._reference(chat)
        rows = LastRows(self.instrument, prompts)
        self._means[chat] = head_means(self.instrument, prompts, rows=rows)
        p = next_token(rows)
        half = len(p) // 2
        self._unrelated[chat] = js_divergence(p[:half], p[half : 2 * half])

    def _rows(self, prompts: list[Prompt], controls: list[Prompt], read: Read | None = None) -> _Rows:
        """The prompt, its variants, and the control with its own, each run once; ``read``: of the prompt, where it has run."""
        reads = (*lens_reads(), *dla_reads(self.instrument.parts))
        read = read or read_prompt(self.instrument, prompts[0], 1)
        varied = LastRows(self.instrument, prompts[1:])
        varied.plain(reads)
        at_control = LastRows(self.instrument, controls)
        at_control.plain(reads)
        return _Rows(read.row, LastRows.join([read.row, varied]), at_control)


@dataclass(frozen=True)
class _Rows:
    """The prompt's last row, those of it and its variants, and what was read of the control and its variants."""

    prompt: LastRows
    prompts: LastRows
    controls: LastRows


def _settled(text: str, answer: str, *, repeat: bool) -> str:
    """The control that this shell words itself: the answer settled beforehand.

    With ``repeat`` the prompt is answered twice and then asked again, which even a small model can copy; otherwise (a chat, or a prompt
    too long to repeat) a note states the answer.
    """
    if repeat:
        return f"{text}{answer}.\n{text}{answer}.\n{text}"
    return f"Note: the answer that follows is “{answer.strip()}”, and nothing else.\n{text}"


def _values(side: str, name: str, values: np.ndarray) -> pl.DataFrame:
    return pl.DataFrame(
        {
            "side": [side] * len(values),
            "variant": list(range(1, len(values) + 1)),
            "quantity": [name] * len(values),
            "value": values.tolist(),
        },
        schema={"side": pl.String, "variant": pl.Int64, "quantity": pl.String, "value": pl.Float64},
    )
