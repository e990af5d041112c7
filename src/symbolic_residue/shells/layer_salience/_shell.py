"""LAYER-SALIENCE (SENSE, WEIGHT, CANCEL): what does the model stop looking at, and did it matter?

1. SENSE reads the attention that every token receives in every layer (``_sense``), on the text and on ordinary texts of its length.
2. WEIGHT says which tokens are under a part of their uniform share, layer by layer.
3. CANCEL hides exactly these keys in exactly these layers (``_cancel``), at several thresholds and token by token, beside random positions and
   positions of matched distance (``_observe``).
4. Four failure modes are judged (``_judge``); the heads and layers that carry the tokens that mattered are confirmed by hiding (``_attribute``).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar, TYPE_CHECKING

import numpy as np
import polars as pl
import torch
from numpy.typing import NDArray

from symbolic_residue.errors import ConfigError, PromptError
from symbolic_residue.instrument import collate
from symbolic_residue.prompts import build_prompt, Prompt, ShellItem
from symbolic_residue.shells._base import Progress, quiet, ShellBase
from symbolic_residue.shells._failure import Failure
from symbolic_residue.shells._verdict import Verdict
from symbolic_residue.shells.layer_salience._attribute import attribute
from symbolic_residue.shells.layer_salience._cancel import as_cells, cancel, Cancellation, effects
from symbolic_residue.shells.layer_salience._config import LayerSalienceConfig
from symbolic_residue.shells.layer_salience._failures import answer_failure
from symbolic_residue.shells.layer_salience._findings import curve_frame, head_frame, LayerSalienceFindings, summarise
from symbolic_residue.shells.layer_salience._items import salience_items, SalienceItem
from symbolic_residue.shells.layer_salience._judge import largest_fall, NEEDED, neglected_share, verdicts
from symbolic_residue.shells.layer_salience._observe import blamed, observe
from symbolic_residue.shells.layer_salience._references import reference_texts
from symbolic_residue.shells.layer_salience._residue import Asked, LayerSalienceResidue
from symbolic_residue.shells.layer_salience._sense import (
    effective_number,
    FIRST_ROW,
    mean_weights,
    received,
    Salience,
    sense,
    uniform_share,
    visible,
)

if TYPE_CHECKING:
    from symbolic_residue.models import LoadedModel

__all__ = ["LayerSalienceShell"]

_FRAME = ("sink", "special", "assistant_header")
_FEWEST = 6
_STEP = 32
_KEPT = 256


class LayerSalienceShell(ShellBase[LayerSalienceResidue, LayerSalienceFindings]):
    """Probe what a model stops looking at, and whether it mattered.

    Args:
        model, tokenizer: a plain Hugging Face decoder and its tokenizer.
        config: a ``LayerSalienceConfig``; ``None`` takes the defaults.
        loaded: instead of model and tokenizer: an opened model.

    Raises:
        See ``ShellBase``.
    """

    name: ClassVar[str] = "layer-salience"
    operations: ClassVar[tuple[str, str, str]] = ("SENSE", "WEIGHT", "CANCEL")
    benchmark: ClassVar[str | None] = "attention-salience"

    right_answers: ClassVar[dict[str, str]] = {"premature deprioritization": "the answer whose evidence is neglected"}
    no_right_answers: ClassVar[dict[str, str]] = {
        "salience collapse": "It counts the tokens that get little attention, whatever the answer is.",
        "bottleneck": "It is where attention narrows, whatever the answer is.",
        "ghosts": "It is how much unattended tokens matter, whatever the answer is.",
    }

    config: LayerSalienceConfig

    @classmethod
    def items(cls) -> list[SalienceItem]:
        """The items of ``attention-salience``: texts whose last word depends on a token that is easily neglected, and texts where it does not."""
        return salience_items()

    def run_item(self, item: ShellItem, *, seed: int = 0, progress: Progress = quiet) -> LayerSalienceResidue:
        """Collect the residue of one item, with its answer."""
        if not isinstance(item, SalienceItem):
            raise ConfigError(f"{item.id} is no item of attention-salience.", todo=f"Use one of {type(self).__name__}.items().")
        return self.run(item.text, answer=item.answer, seed=seed, progress=progress)

    def failures(self, source: Any, mode: str, *, id: str | None = None, seed: int = 0) -> list[Failure]:
        """The answer of an item, or the one that a residue's run was given.

        Raises:
            NoRightAnswerError: a mode without one, or no answer was given. ConfigError: no such mode, or no item or residue of this shell.
        """
        self.right_answer(mode)
        if isinstance(source, SalienceItem):
            found = answer_failure(self.tokenizer, source.text, source.answer, id or source.id, source.frame)
        elif isinstance(source, LayerSalienceResidue):
            asked = source.asked
            given = asked.answer_text if asked.answer_source == "given" and not asked.messages else None
            found = answer_failure(self.tokenizer, asked.input_text, given, id or "text", None, token=asked.answer, chat=asked.chat)
        else:
            raise ConfigError("That is neither an item of attention-salience nor a residue of layer-salience.")
        return [found]

    def __init__(
        self,
        model: Any = None,
        tokenizer: Any = None,
        config: LayerSalienceConfig | None = None,
        *,
        loaded: LoadedModel | None = None,
    ) -> None:
        super().__init__(model, tokenizer, config or LayerSalienceConfig(), loaded=loaded)
        self._references: dict[tuple[bool, int], list[NDArray[np.float64]]] = {}

    # -- operations ----------------------------------------------------------------------------------------------------------

    def sense_operation(self, context: str, layers: Sequence[int] | None = None, *, chat: bool = False) -> Salience:
        """SENSE: the attention that each token of ``context`` receives in each of ``layers`` (all that have softmax attention when left out).

        Raises:
            PromptError: an unusable context.
            ConfigError: a layer without softmax attention.
        """
        return self._sense(self._prompt(context, None, chat), layers)

    def weight_operation(
        self, threshold: float | None = None, *, of: Salience | str, layers: Sequence[int] | None = None, chat: bool = False
    ) -> dict[int, list[int]]:
        """WEIGHT: the positions under ``threshold`` (part of the uniform share; default from the config), layer by layer.

        Args:
            threshold: above 0.
            of: what SENSE returned, or a text.
            layers, chat: as for :meth:`sense_operation`, for a text.

        Raises:
            ConfigError: an unusable threshold.
        """
        limit = self.config.threshold if threshold is None else threshold
        if not 0 < limit < float("inf"):
            raise ConfigError(
                f"The threshold is {limit}.", why="It is a part of the uniform share.", todo="Give a number above 0, such as 0.3."
            )
        salience = self.sense_operation(of, layers, chat=chat) if isinstance(of, str) else of
        under = salience.under(limit)
        return {layer: np.flatnonzero(under[place]).tolist() for place, layer in enumerate(salience.layers)}

    def cancel_operation(
        self, context: str, under: Mapping[int, Sequence[int]], *, answer: str | int | None = None, chat: bool = False
    ) -> Cancellation:
        """CANCEL: hide exactly these positions in exactly these layers, from every later row.

        Args:
            context: the text.
            under: layer → positions, as :meth:`weight_operation` returns them.
            answer: the token whose probability is followed; the best next token when left out.
            chat: render the context by the chat template.

        Raises:
            PromptError: an unusable context or answer.
            ConfigError: a layer or position that cannot be cancelled.
        """
        prompt = self._prompt(context, None, chat)
        cells = as_cells(under, self.instrument, prompt)
        base, found = cancel(self.instrument, prompt, [np.zeros_like(cells), cells])
        token = self._answer(prompt, base, answer)[0]
        kl, fall = effects(base, found[None], token)
        return Cancellation(
            int(cells.sum()),
            float(kl[0]),
            float(fall[0]),
            float(base[token].exp()),
            float(found[token].exp()),
            self.tokenizer.decode([int(base.argmax())]),
            self.tokenizer.decode([int(found.argmax())]),
        )

    # -- the run -------------------------------------------------------------------------------------------------------------

    def run(
        self,
        input_text: str | None = None,
        *,
        messages: Sequence[dict[str, str]] | None = None,
        chat: bool = False,
        answer: str | int | None = None,
        seed: int = 0,
        progress: Progress = quiet,
    ) -> LayerSalienceResidue:
        """Collect the residue of one text.

        Args:
            input_text: the text; or ``messages``, a conversation that ends with a user's turn.
            chat: render ``input_text`` as one user turn by the chat template.
            answer: the next token whose probability is followed, with its leading space, or its id; the model's best one when left out. Of an answer of several
                tokens the first counts.
            seed: of the control's draws, the random heads and all resampling.
            progress: told what is going on, and the share done.

        Raises:
            PromptError, TemplateError: an unusable prompt or answer; fewer than six tokens beside the sink.
        """
        prompt = self._prompt(input_text, messages, chat)
        turns = [dict(m) for m in messages] if messages is not None else None
        if turns and turns[-1]["role"] != "user":
            raise ConfigError("The conversation must end with a user's turn.")
        in_chat = chat or turns is not None
        progress("attention received", 0.0)
        salience = self._sense(prompt, None)
        token, source = self._answer(prompt, salience.log_probability, answer)
        asked = Asked(
            input_text=turns[-1]["content"] if turns else str(input_text),
            messages=turns,
            chat=in_chat,
            answer=token,
            answer_text=self.tokenizer.decode([token]),
            answer_source=source,
            seed=seed,
        )
        frames = observe(self.instrument, prompt, salience, self.config, token, seed, progress)
        progress("ordinary texts of this length", 0.9)
        frames["references"] = self._reference_frame(prompt, salience, in_chat)
        frames["readouts"] = pl.DataFrame(
            {"table": ["maps", "salience"], "backend": [salience.backend] * 2, "mode": [salience.mode] * 2}
        )
        provenance = self.loaded.provenance.model_copy(update={"seed": seed}).model_dump(mode="json")
        progress("residue collected", 1.0)
        return LayerSalienceResidue(asked, self.config, provenance, frames)

    def verdicts(self, residue: LayerSalienceResidue) -> list[Verdict]:
        """The four verdicts of a residue, from its tables alone."""
        return verdicts(residue)

    def analyze_residue(self, residue: LayerSalienceResidue, *, progress: Progress = quiet) -> LayerSalienceFindings:
        """Verdicts and carriers of a residue.

        Args:
            residue: from :meth:`run`, or loaded.
            progress: told what is going on, and the share done.

        Raises:
            ConfigError: the residue belongs to another model (its weights' hash differs).
        """
        residue.must_be_of(self.loaded.provenance.weights_sha256)
        asked, frames = residue.asked, residue.frames
        judged = verdicts(residue)
        needed = next(v for v in judged if v.mode == NEEDED)
        tokens = [] if needed.outcome == "absent" else blamed(frames["cancels"])
        counted = sorted(frames["cells"].filter(pl.col("counted"))["position"].unique().to_list())
        tests = []
        if tokens and residue.config.top_heads:
            prompt = self._prompt(None if asked.messages else asked.input_text, asked.messages, asked.chat and not asked.messages)
            tests = attribute(
                self.instrument, prompt, tokens, counted, frames["carry"], residue.config, asked.answer, asked.seed, progress
            )
        shown = frames["salience"].with_columns(blamed=pl.when(pl.col("fall").is_not_null()).then(pl.col("position").is_in(tokens)))
        tables = {"salience": shown, "curves": curve_frame(residue), **head_frame(tests, frames["carry"] if tokens else None)}
        return LayerSalienceFindings(
            residue,
            judged,
            {name: frame for name, frame in tables.items() if len(frame)},
            summarise(residue, judged, tokens),
            blamed=tuple(tokens),
            carriers=tuple(tests),
        )

    def visualize_salience_heatmap(self, findings: LayerSalienceFindings, *, weighted: bool = False) -> Any:
        """Attention received by layer and token, the neglected cells marked, as an Altair chart (needs the ``figures`` extra).

        Args:
            findings: from :meth:`analyze_residue`.
            weighted: the value-weighted twin instead.
        """
        from symbolic_residue.figures import salience_heatmap

        frames = findings.residue.frames
        which = "value-weighted attention received" if weighted else "attention received"
        return salience_heatmap(frames["maps"], frames["salience"], which, threshold=findings.residue.config.threshold)

    # -- parts of a run ------------------------------------------------------------------------------------------------------

    def _prompt(self, text: str | None, messages: Sequence[dict[str, str]] | None, chat: bool) -> Prompt:
        prompt = build_prompt(self.tokenizer, text, messages=messages, chat=chat, max_tokens=self.instrument.parts.max_context)
        n = len(_counted(prompt))
        if n < _FEWEST:
            raise PromptError(
                f"The text has {n} tokens that could be neglected.",
                why="The first (the sink), the last, and the frame of a chat do not count.",
                todo=f"Give a text with at least {_FEWEST}.",
            )
        return prompt

    def _sense(self, prompt: Prompt, layers: Sequence[int] | None) -> Salience:
        return sense(self.instrument, collate([prompt]), prompt.tokens, _counted(prompt), layers)

    def _answer(self, prompt: Prompt, log_probability: torch.Tensor, answer: str | int | None) -> tuple[int, str]:
        if answer is None:
            return int(log_probability.argmax()), "top"
        if isinstance(answer, str):
            told = prompt.messages is None
            whole = build_prompt(
                self.tokenizer,
                prompt.text if told else None,
                messages=None if told else prompt.messages,
                answer=answer,
            )
            assert whole.answer_start is not None
            return whole.ids[whole.answer_start], "given"
        if not 0 <= answer < len(log_probability):
            raise PromptError(f"There is no token {answer}.", todo=f"Token ids go from 0 to {len(log_probability) - 1}.")
        return int(answer), "given"

    def _reference_frame(self, prompt: Prompt, salience: Salience, chat: bool) -> pl.DataFrame:
        """``text, share, drop, drop_layer``: what the verdicts measure, in eight ordinary texts cut to this prompt's length."""
        n, parts = len(prompt), self.instrument.parts
        uniform = [uniform_share(visible(n, parts.attention_window(layer))) for layer in salience.layers]
        counted = list(salience.counted)
        rows: list[tuple[int, float, float | None, int | None]] = []
        for text, mean in enumerate(self._reference_weights(n, chat)):
            relative = np.stack(
                [
                    received(w, visible(n, parts.attention_window(layer))) / u
                    for w, u, layer in zip(mean, uniform, salience.layers, strict=True)
                ]
            )
            found, of = neglected_share(relative[:, counted], self.config.threshold)
            drop = place = None
            if len(mean) > 1 and n > FIRST_ROW:
                place, falls = largest_fall(np.stack([effective_number(w)[FIRST_ROW:] for w in mean]))
                drop = float(falls.mean())
            rows.append((text, found / of, drop, None if place is None else salience.layers[place]))
        return pl.DataFrame(
            rows, schema={"text": pl.Int64, "share": pl.Float64, "drop": pl.Float64, "drop_layer": pl.Int64}, orient="row"
        )

    def _reference_weights(self, n: int, chat: bool) -> list[NDArray[np.float64]]:
        """Mean attention ``[layer, row, key]`` of each ordinary text's first ``n`` tokens; short ones are read once for several lengths."""
        length = -(-n // _STEP) * _STEP
        limit = self.instrument.parts.max_context
        length = n if n > _KEPT or (limit is not None and length > limit) else length
        if (chat, length) not in self._references:
            found = []
            for text in reference_texts(length):
                ids = build_prompt(self.tokenizer, text, chat=chat).ids[:length]
                found.append(mean_weights(self.instrument, ids).astype(np.float32))
            if length > _KEPT:
                return found
            self._references[chat, length] = found
        return [w[:, :n, :n].astype(np.float64) for w in self._references[chat, length]]


def _counted(prompt: Prompt) -> list[int]:
    """Positions that can be neglected: not the sink, not the last, not the frame of a chat."""
    regions = prompt.regions.per_token()
    return [j for j in range(1, len(prompt) - 1) if regions[j] not in _FRAME]
