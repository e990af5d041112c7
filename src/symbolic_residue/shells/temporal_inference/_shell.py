"""TEMPORAL-INFERENCE (REMEMBER, SHIFT, PREDICT): does order survive a gap?

1. A text is shifted at several places and distances, forward and backward (``_shift``); coherence of the true continuation is read beside a shuffled span and
   the same shifts in a reference text (``_observe``).
2. A pair of events is asked about in several wordings and both orders, beside stories without an order (``_pairs``).
3. Four failure modes are judged: drift, discontinuity break, ordering reversal, causal confusion (``_judge``).
4. Induction and previous-token heads are scored before and after the shift and confirmed by ablation, on repeated random sequences and on the text
   (``_heads``); for a pair the same heads are ablated at the last row (``shells._confirm``).
"""

from __future__ import annotations

from collections.abc import Sequence
from inspect import signature
from typing import Any, ClassVar, TYPE_CHECKING

import numpy as np
import polars as pl

from symbolic_residue.errors import ConfigError, EditError
from symbolic_residue.prompts import build_prompt, ShellItem, temporal_coherence, TemporalItem
from symbolic_residue.shells._base import Progress, quiet, ShellBase
from symbolic_residue.shells._failure import Failure
from symbolic_residue.shells._rows import LastRows
from symbolic_residue.shells._verdict import Verdict
from symbolic_residue.shells.temporal_inference._config import Direction, DIRECTIONS, Mode, MODES, TemporalInferenceConfig
from symbolic_residue.shells.temporal_inference._failures import pair_failures
from symbolic_residue.shells.temporal_inference._findings import summarise, TemporalInferenceFindings
from symbolic_residue.shells.temporal_inference._heads import ablate_on_text, behaviours, HeadBehaviours
from symbolic_residue.shells.temporal_inference._judge import verdicts
from symbolic_residue.shells.temporal_inference._observe import (
    coherence_curves,
    preferences_frame,
    SHIFTS,
    shifts_frame,
    token_frame,
)
from symbolic_residue.shells.temporal_inference._operations import predict, Prediction, remember, Remembered, shift, Shifted
from symbolic_residue.shells.temporal_inference._pairs import EventPair, pair_prompts, PairPrompt
from symbolic_residue.shells.temporal_inference._preference import pair_frames, pair_tests
from symbolic_residue.shells.temporal_inference._references import Genre, REFERENCES
from symbolic_residue.shells.temporal_inference._residue import Asked, TemporalInferenceResidue
from symbolic_residue.shells.temporal_inference._runs import TextRuns
from symbolic_residue.shells.temporal_inference._shift import places
from symbolic_residue.shells.temporal_inference._states import state_frames

if TYPE_CHECKING:
    from symbolic_residue.models import LoadedModel

__all__ = ["TemporalInferenceShell"]

_SHORTEST = 4
"""Tokens of the shortest shift that a text is asked about unasked."""


class TemporalInferenceShell(ShellBase[TemporalInferenceResidue, TemporalInferenceFindings]):
    """Probe whether a model keeps track of order across a jump in time.

    Args:
        model, tokenizer: a plain Hugging Face decoder and its tokenizer.
        config: a ``TemporalInferenceConfig``; ``None`` takes the defaults.
        loaded: instead of model and tokenizer: an opened model.
    """

    name: ClassVar[str] = "temporal-inference"
    operations: ClassVar[tuple[str, str, str]] = ("REMEMBER", "SHIFT", "PREDICT")
    benchmark: ClassVar[str | None] = "temporal-coherence"

    right_answers: ClassVar[dict[str, str]] = {
        "ordering reversal": "the right order",
        "causal confusion": "the right cause and effect",
    }
    no_right_answers: ClassVar[dict[str, str]] = {
        "drift": "It is how coherence falls along a continuation; many continuations are good.",
        "discontinuity break": "It is a step in the curve of coherence; many continuations are good.",
    }

    config: TemporalInferenceConfig

    @classmethod
    def items(cls) -> list[TemporalItem]:
        """The items of ``temporal-coherence``: texts in three genres, pairs of events in order, and causes with effects; planted and null."""
        return temporal_coherence()

    def run_item(self, item: ShellItem, *, seed: int = 0, progress: Progress = quiet) -> TemporalInferenceResidue:
        """Collect the residue of one item: its text or its pair.

        Raises:
            ConfigError: it is no item of the benchmark.
        """
        if not isinstance(item, TemporalItem):
            raise ConfigError(f"{item.id} is no item of temporal-coherence.", todo=f"Use one of {type(self).__name__}.items().")
        pair = EventPair.model_validate(item.pair) if item.pair is not None else None
        return self.run(item.text, pair=pair, genre=item.genre or "narrative", seed=seed, progress=progress)

    def failures(self, source: Any, mode: str, *, id: str | None = None, seed: int = 0) -> list[Failure]:
        """The pair of an item or a residue, in both orders of every wording: the right word against the other one.

        Raises:
            NoRightAnswerError: a mode without one, a text, a story that gives no order, or a pair of the other relation.
            ConfigError: no such mode, or no item or residue of this shell.
        """
        self.right_answer(mode)
        return pair_failures(self.tokenizer, source, mode, self.config.wordings, id)

    def __init__(
        self,
        model: Any = None,
        tokenizer: Any = None,
        config: TemporalInferenceConfig | None = None,
        *,
        loaded: LoadedModel | None = None,
    ) -> None:
        super().__init__(model, tokenizer, config or TemporalInferenceConfig(), loaded=loaded)
        self._references: dict[tuple[Any, ...], pl.DataFrame] = {}
        self._heads: dict[tuple[Any, ...], HeadBehaviours] = {}
        self._kept: tuple[str, TextRuns] | None = None
        self._rows: dict[str, LastRows] = {}

    def verdicts(self, residue: TemporalInferenceResidue) -> list[Verdict]:
        """The four verdicts of a residue alone."""
        return verdicts(residue)

    # -- operations ----------------------------------------------------------------------------------------------------------

    def remember_operation(self, positions: Sequence[int], context: str) -> Remembered:
        """REMEMBER: residual states at the anchors, before the first layer and after each.

        Args:
            positions: anchors, counted in tokens; negative from the end.
            context: the text.

        Raises:
            ConfigError: no anchor, or one outside the context.
        """
        return remember(self.instrument, build_prompt(self.tokenizer, context), positions)

    def shift_operation(
        self, distance: int = 15, direction: Direction = "forward", mode: Mode = "tokens", *, context: str
    ) -> Shifted:
        """SHIFT: a jump of ``distance`` tokens at the end of a context.

        Args:
            distance: tokens.
            direction: ``forward`` drops the last tokens (or raises positions), ``backward`` repeats them (or lowers positions).
            mode: ``tokens`` or ``positions``.
            context: the text.

        Raises:
            ConfigError: an unknown direction or mode, or a distance that the context is too short for.
            EditError: ``positions`` where the model does not look at position ids.
        """
        self._must_jump(mode)
        return shift(self.tokenizer, build_prompt(self.tokenizer, context).ids, distance, direction, mode)

    def predict_operation(self, targets: Sequence[str], context: str | Shifted) -> Prediction:
        """PREDICT: the most probable next tokens, each target's probability (of its first token), and the greedy continuation.

        Args:
            targets: texts; may be empty.
            context: a text, or what SHIFT made of one.

        Raises:
            ConfigError: a target without tokens. EditError: positions that the model does not have.
        """
        if isinstance(context, str):
            ids = tuple(build_prompt(self.tokenizer, context).ids)
            context = Shifted(ids, tuple(range(len(ids))), context, 0, "forward", "tokens")
        return predict(self.instrument, self.tokenizer, context, targets, self.config.top_k, self.config.steps)

    def asks(self, input_text: str) -> dict[str, Any]:
        """The distance of the shift that drift is judged at: the usual one, or the longest one (of at least four tokens) for which a short text has room.

        Raises:
            PromptError: the text is too short for a shift of four tokens.
        """
        n = len(build_prompt(self.tokenizer, input_text))
        usual = signature(self.run).parameters["shift_distance"].default
        room = places(n, _SHORTEST, self.config)[0] - self.config.context
        return {"shift_distance": min(usual, room)}

    # -- the run -------------------------------------------------------------------------------------------------------------

    def run(
        self,
        input_text: str | None = None,
        *,
        shift_distance: int = 15,
        direction: Direction = "forward",
        mode: Mode = "tokens",
        pair: EventPair | None = None,
        genre: Genre = "narrative",
        seed: int = 0,
        progress: Progress = quiet,
    ) -> TemporalInferenceResidue:
        """Collect the residue of a text, of a pair of events, or of both.

        Args:
            input_text: the text to shift; the shift is made at several places near its end.
            shift_distance: tokens of the shift that drift is judged at.
            direction: ``forward`` or ``backward``.
            mode: ``tokens`` or ``positions``: what is shifted.
            pair: two events whose order, or which of them is the cause, is asked about.
            genre: of the reference text that serves as the control.
            seed: of everything random.
            progress: told what is going on, and the share done.

        Raises:
            PromptError: an unusable or too short text. ConfigError: neither text nor pair, or an unknown option.
            EditError: ``positions`` where the model does not look at position ids, or has too few.
        """
        if input_text is None and pair is None:
            raise ConfigError("There is nothing to probe.", todo="Give input_text, a pair of events, or both.")
        if direction not in DIRECTIONS or mode not in MODES or genre not in REFERENCES or shift_distance < 1:
            raise ConfigError(
                f"A shift of {shift_distance} {direction!r} ({mode!r}, genre {genre!r}).",
                todo=f"Use a distance from 1; {' or '.join(DIRECTIONS)}; {' or '.join(MODES)}; {', '.join(REFERENCES)}.",
            )
        self._must_jump(mode)
        config = self.config
        prompt = (
            build_prompt(self.tokenizer, input_text, max_tokens=self.instrument.parts.max_context)
            if input_text is not None
            else None
        )
        cuts = places(len(prompt), shift_distance, config) if prompt is not None else []
        prompts = pair_prompts(self.tokenizer, pair, config.wordings) if pair is not None else []
        neutral = pair_prompts(self.tokenizer, pair, config.wordings, control=True) if pair is not None else []
        asked = Asked(
            input_text=input_text if input_text is not None else prompts[0].text,
            text=input_text,
            pair=pair,
            genre=genre,
            distance=shift_distance,
            direction=direction,
            mode=mode,
            cuts=cuts,
            prompts=prompts,
            neutral=neutral,
            seed=seed,
        )
        frames: dict[str, pl.DataFrame] = {"shifts": pl.DataFrame(schema=SHIFTS)}
        shown = prompt if prompt is not None else build_prompt(self.tokenizer, prompts[0].text)
        frames["tokens"] = token_frame(shown)
        curves = []
        if prompt is not None:
            progress("shifting the text", 0.0)
            runs = self._runs(prompt.ids)
            shifts = [shifts_frame(runs, cuts, asked, config, "text")]
            progress("shifting the reference text", 0.5)
            shifts += [
                self._reference(name, asked)
                for name in ([genre] if config.references == 1 else list(REFERENCES)[: config.references])
            ]
            if config.references > 1 and genre not in list(REFERENCES)[: config.references]:
                shifts.append(self._reference(genre, asked))
            all_shifts = pl.concat(shifts)
            curves.append(coherence_curves(all_shifts, asked, config))
            # Judged against the reference of the asked genre; the others stay in the curves.
            frames["shifts"] = all_shifts.filter(pl.col("side").is_in(["text", genre])).with_columns(
                side=pl.when(pl.col("side") == genre).then(pl.lit("reference")).otherwise(pl.col("side"))
            )
            frames |= state_frames(runs, self.tokenizer, self.instrument.parts.n_layers, cuts[-1], asked, config)
        if pair is not None:
            progress("asking about the pair", 0.8)
            gaps = config.gaps if self.instrument.parts.position_ids else ()
            frames["preferences"], by_gap = pair_frames(self.instrument, self.tokenizer, asked, gaps, self._last_rows)
            curves += by_gap
        else:
            frames["preferences"] = preferences_frame([], np.zeros(0), "pair")
        if curves:
            frames["curves"] = pl.concat(curves)
        provenance = self.loaded.provenance.model_copy(update={"seed": seed}).model_dump(mode="json")
        progress("residue collected", 1.0)
        return TemporalInferenceResidue(asked, config, provenance, frames)

    def analyze_residue(self, residue: TemporalInferenceResidue, *, progress: Progress = quiet) -> TemporalInferenceFindings:
        """Verdicts, head scores and ablations of a residue.

        Args:
            residue: from :meth:`run`, or loaded.
            progress: told what is going on, and the share done.

        Raises:
            ConfigError: the residue belongs to another model (its weights' hash differs).
        """
        residue.must_be_of(self.loaded.provenance.weights_sha256)
        asked, config = residue.asked, residue.config
        judged = verdicts(residue)
        frames: dict[str, pl.DataFrame] = {}
        if config.top_heads:
            progress("heads on random sequences", 0.0)
            heads = self._behaviours(config, asked)
            frames["head_scores"] = heads.scores
            tests = [heads.tests]
            if asked.text is not None:
                progress("ablating heads on the text", 0.5)
                runs = self._runs(build_prompt(self.tokenizer, asked.text).ids)
                if runs.shared:
                    tests.append(ablate_on_text(runs, asked.cuts, config.window, heads, asked.seed))
            if asked.pair is not None:
                progress("ablating heads on the pair", 0.7)
                tests.append(pair_tests(self.instrument, asked, heads, self._last_rows))
            frames["head_tests"] = pl.concat(tests)
        progress("findings", 1.0)
        return TemporalInferenceFindings(residue, judged, frames, summarise(residue, judged))

    def visualize_temporal_coherence(self, findings: TemporalInferenceFindings) -> Any:
        """Coherence against distance, forward and backward, beside its controls; for a pair, the preference against the gap (an Altair chart).

        Raises:
            ConfigError: the residue has no curve. MissingExtraError: no Altair.
        """
        from symbolic_residue.figures import temporal_coherence as draw

        if "curves" not in findings.residue.frames:
            raise ConfigError("There is no curve to draw.", todo="Run a text, or a pair with gaps.")
        return draw(findings.residue.frames["curves"])

    # -- parts ---------------------------------------------------------------------------------------------------------------

    def _must_jump(self, mode: str) -> None:
        if mode == "positions" and not self.instrument.parts.position_ids:
            raise EditError(
                f"{self.instrument.parts.family} does not look at position ids, so they cannot be shifted.",
                todo="Use mode='tokens'.",
            )

    def _runs(self, ids: Sequence[int]) -> TextRuns:
        key = repr(list(ids))
        if self._kept is None or self._kept[0] != key:
            self._kept = (key, TextRuns(self.instrument, ids))
        return self._kept[1]

    def _reference(self, genre: str, asked: Asked) -> pl.DataFrame:
        """Table ``shifts`` of a reference text under the asked shift; the same for every text, so kept."""
        key = (genre, asked.mode, asked.direction, asked.distance, asked.seed)
        if key not in self._references:
            ids = build_prompt(self.tokenizer, REFERENCES[genre]).ids
            cuts = places(len(ids), asked.distance, self.config)
            # Longer distances than the reference has room for are left out of its curve.
            self._references[key] = shifts_frame(TextRuns(self.instrument, ids), cuts, asked, self.config, genre)
        return self._references[key]

    def _behaviours(self, config: TemporalInferenceConfig, asked: Asked) -> HeadBehaviours:
        key = (config.model_dump_json(), asked.distance, asked.direction, asked.seed)
        if key not in self._heads:
            self._heads[key] = behaviours(self.instrument, config, asked.distance, asked.direction, seed=asked.seed)
        return self._heads[key]

    def _last_rows(self, prompts: Sequence[PairPrompt]) -> LastRows:
        """The prompts' cached last rows; those of the last pair are kept, since its analysis asks for them again."""
        key = repr([p.text for p in prompts])
        if key not in self._rows:
            while len(self._rows) > 1:
                del self._rows[next(iter(self._rows))]
            self._rows[key] = LastRows(self.instrument, [build_prompt(self.tokenizer, p.text) for p in prompts])
        return self._rows[key]
