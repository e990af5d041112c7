"""INSTRUCTION-DISRUPTION (DISTILL, SPLICE, NULLIFY): what does a model do with two orders at once?

1. Two instructions, each verifiable by a program, stand in one prompt, in both orders and in one or two arrangements; beside it each alone, and the first
   with an instruction that is compatible with it (``_frames``). Several questions are asked in every frame.
2. The model answers greedily (``_answers``); a program says which instruction each answer follows.
3. Four failure modes are judged from the shares of answers: nullification, partial execution, blended execution, priority inversion (``_judge``).
4. The instructions are also directions in the residual stream, and their conflict is an angle (``_geometry``); the benchmark asks whether it predicts failure.
5. Attribution: each instruction's block is hidden from the question and the answer, and heads are ablated (``_attribute``).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar

import polars as pl
from torch import Tensor

from symbolic_residue.errors import ConfigError
from symbolic_residue.prompts import ShellItem
from symbolic_residue.prompts._instructions import Instruction, TASKS
from symbolic_residue.shells._base import Progress, quiet, ShellBase
from symbolic_residue.shells._confirm import head_means
from symbolic_residue.shells._failure import Failure
from symbolic_residue.shells._verdict import Verdict
from symbolic_residue.shells.instruction_disruption._answers import answer_frames, read_answers, SharedRows
from symbolic_residue.shells.instruction_disruption._ask import find_instructions, make_asked, read_lines
from symbolic_residue.shells.instruction_disruption._attribute import attribute_heads, HeadAttribution, span_effects, SpanEffect
from symbolic_residue.shells.instruction_disruption._config import InstructionDisruptionConfig
from symbolic_residue.shells.instruction_disruption._failures import instruction_failure
from symbolic_residue.shells.instruction_disruption._findings import (
    effects_frame,
    heads_frame,
    InstructionDisruptionFindings,
    rates_frame,
    summarise,
)
from symbolic_residue.shells.instruction_disruption._frames import build_frames, Frame, rendered
from symbolic_residue.shells.instruction_disruption._geometry import distill, NEUTRAL, nullify, Splice, splice
from symbolic_residue.shells.instruction_disruption._items import BENCHMARK, instruction_items, InstructionItem
from symbolic_residue.shells.instruction_disruption._judge import MODES, verdicts
from symbolic_residue.shells.instruction_disruption._preference import answer_pairs, Cell, cells_of, plain_pairs, preference_frame
from symbolic_residue.shells.instruction_disruption._residue import Asked, InstructionDisruptionResidue
from symbolic_residue.shells.instruction_disruption._tables import (
    answers_frame,
    curves_frame,
    geometry_frames,
    lens_frame,
    mass_frame,
)

__all__ = ["InstructionDisruptionShell"]


class InstructionDisruptionShell(ShellBase[InstructionDisruptionResidue, InstructionDisruptionFindings]):
    """Probe what a model does with two instructions at once.

    Args:
        model, tokenizer: a plain Hugging Face decoder and its tokenizer.
        config: an ``InstructionDisruptionConfig``; ``None`` takes the defaults.
        loaded: instead of model and tokenizer: an opened model.

    Raises:
        ConfigError: the configured layer does not exist; besides what ``ShellBase`` raises.
    """

    name: ClassVar[str] = "instruction-disruption"
    operations: ClassVar[tuple[str, str, str]] = ("DISTILL", "SPLICE", "NULLIFY")
    benchmark: ClassVar[str | None] = BENCHMARK

    right_answers: ClassVar[dict[str, str]] = dict.fromkeys(MODES, "the instruction that holds")

    config: InstructionDisruptionConfig

    def __init__(
        self,
        model: Any = None,
        tokenizer: Any = None,
        config: InstructionDisruptionConfig | None = None,
        *,
        loaded: Any = None,
    ) -> None:
        super().__init__(model, tokenizer, config or InstructionDisruptionConfig(), loaded=loaded)
        self._layer(self.config.layer)
        self._neutral: dict[tuple[int, int], Tensor] = {}
        self._means: dict[tuple[bool, int], Tensor] = {}
        self._kept: tuple[Asked, SharedRows, list[Cell]] | None = None

    @classmethod
    def items(cls) -> list[InstructionItem]:
        """The items of ``instruction-conflict``: contradictions, tensions, and pairs without any conflict."""
        return instruction_items()

    def run_item(self, item: ShellItem, *, seed: int = 0, progress: Progress = quiet) -> InstructionDisruptionResidue:
        """Collect the residue of one item."""
        if not isinstance(item, InstructionItem):
            raise ConfigError(f"{item.id} is no item of {BENCHMARK}.", todo=f"Use one of {type(self).__name__}.items().")
        return self.run(instructions=[item.a, item.b], control=item.control, joint=item.joint, seed=seed, progress=progress)

    def failures(self, source: Any, mode: str, *, id: str | None = None, seed: int = 0) -> list[Failure]:
        """An item's or a residue's pair in both orders: answers that follow the instruction with priority, or both where one answer can.

        Raises:
            ConfigError: no such mode, or no item or residue of this shell.
        """
        self.right_answer(mode)
        config = self.config
        if isinstance(source, InstructionItem):
            asked = make_asked([source.a, source.b], None, source.control, source.joint, config.tasks, seed)
            name, frame = id or source.id, source.frame
        elif isinstance(source, InstructionDisruptionResidue):
            asked, config = source.asked, source.config
            name = frame = id or "pair"
        else:
            raise ConfigError(f"That is neither an item of {BENCHMARK} nor a residue of instruction-disruption.")
        limit = self.instrument.parts.max_context
        return [instruction_failure(self.tokenizer, asked, config, self._chat(config), limit, name, frame)]

    # -- operations ----------------------------------------------------------------------------------------------------------

    def distill_operation(self, text: str, *, layer: int | None = None) -> Tensor:
        """DISTILL: the instruction's direction, ``[d_model]`` float32: residual after a layer, mean over content tokens, centred on neutral instructions.

        Args:
            text: the instruction.
            layer: after which layer; default from the config, else the last but one.

        Raises:
            PromptError: an empty text. ConfigError: no such layer.
        """
        at = self._layer(self.config.layer if layer is None else layer)
        return distill(self.instrument, self.tokenizer, [text], at)[0] - self._centre(at)

    def splice_operation(self, vectors: Sequence[Tensor] | Tensor) -> Splice:
        """SPLICE: the mean of instruction vectors, and their conflict (mean pairwise 1 − cosine, in [0, 2]).

        Raises:
            ConfigError: no vector, vectors of different lengths, or one without direction.
        """
        return splice(vectors)

    def nullify_operation(self, vectors: Sequence[Tensor] | Tensor, threshold: float | None = None) -> Tensor | None:
        """NULLIFY: the spliced vector, or None where the conflict is above ``threshold`` (default from the criteria).

        Raises:
            ConfigError: as for SPLICE.
        """
        return nullify(splice(vectors), self.config.criteria.conflict if threshold is None else threshold)

    def asks(self, input_text: str) -> dict[str, Any]:
        """Two instructions among the text's sentences, and its question as the task (the packaged ones where it has none).

        Raises:
            PromptError: fewer than two of its sentences are instructions that a program can verify.
        """
        found, question = find_instructions(input_text)
        return {"input_text": None, "instructions": found, "task": question}

    # -- the run -------------------------------------------------------------------------------------------------------------

    def run(
        self,
        input_text: str | None = None,
        *,
        instructions: Sequence[str | Instruction] | None = None,
        task: str | Sequence[str] | None = None,
        control: str | Instruction | None = None,
        joint: bool | None = None,
        seed: int = 0,
        progress: Progress = quiet,
    ) -> InstructionDisruptionResidue:
        """Collect the residue of one pair of instructions.

        Args:
            input_text: two instructions on lines of their own, and perhaps a question; or give ``instructions``.
            instructions: two instructions, as words or made by ``make_instruction``; the first is ``a``, the second ``b``.
            task: one question (asked in several wordings) or several; the packaged ones when left out.
            control: an instruction compatible with the first; chosen when left out.
            joint: whether the examples of both follow both; by default where the two are compatible.
            seed: of random heads and resampling.
            progress: told what is going on, and the share done.

        Raises:
            PromptError: words that no program can verify, or a prompt too long. TemplateError: the template cannot take the conversation.
            ConfigError: unusable options.
        """
        if (input_text is None) == (instructions is None):
            raise ConfigError("Give either input_text or instructions.")
        if input_text is not None:
            found, question = read_lines(input_text)
            instructions, task = found, task if task is not None else question
        assert instructions is not None
        asked = make_asked(instructions, task, control, joint, self.config.tasks, seed)
        frames = self._frames(asked, self.config)
        hide = not any(layer.mixer is not None for layer in self.instrument.parts.layers)
        progress("prompts", 0.05)
        known = plain_pairs(self.tokenizer, asked)
        own_questions = all(task.plain is None for task in asked.tasks)
        wanted = self.config.top_heads > 0
        cells = (
            cells_of(frames, known, hide=hide, both_orders=self.config.both_hidden_orders) if wanted and not own_questions else []
        )
        rows, at = self._rows(frames, cells)
        progress("answers", 0.3)
        of_frames = rows.select(range(len(frames)))
        answers = answer_frames(self.instrument, self.tokenizer, of_frames, limit=self.config.max_new_tokens)
        both = [i for i, f in enumerate(frames) if len(f.order) == 2]
        first = frames[0].arrangement
        shown = [i for i in both if frames[i].condition == "conflict" and frames[i].task == 0 and frames[i].arrangement == first]
        progress("attention", 0.6)
        reading = read_answers(self.instrument, self.tokenizer, frames, of_frames, answers, both, shown)
        if wanted and own_questions:
            cells = cells_of(
                frames, answer_pairs(asked, frames, answers.ids), hide=hide, both_orders=self.config.both_hidden_orders
            )
            if cells:
                rows, at = self._rows([], cells)
        tables = {"instruction_answers": answers_frame(asked, frames, answers), "mass": mass_frame(frames, reading)}
        progress("preference", 0.8)
        self._kept = None
        if cells:
            cells = [cell for _, cell in sorted(zip(at, cells, strict=True), key=lambda pair: pair[0])]
            of_cells = rows.select(sorted(at))
            tables["preference"] = preference_frame(of_cells, cells)
            bare = [i for i, c in enumerate(cells) if c.frame.condition == "conflict" and not c.hidden]
            self._kept = (asked, of_cells.select(bare), [cells[i] for i in bare])
        layer = self._layer(self.config.layer)
        vectors = distill(self.instrument, self.tokenizer, [asked.a.text, asked.b.text, asked.control.text], layer)
        tables["instruction_pairs"], tables["vectors"] = geometry_frames(asked, vectors - self._centre(layer), layer)
        tables["curves"] = curves_frame(tables["mass"], reading, frames, seed)
        lens = lens_frame(reading, frames, self.tokenizer)
        if lens is not None:
            tables["lens"] = lens
        tables["readouts"] = pl.DataFrame({"table": ["curves"], "backend": [reading.backend], "mode": [reading.mode]})
        provenance = self.loaded.provenance.model_copy(update={"seed": seed}).model_dump(mode="json")
        progress("residue collected", 1.0)
        return InstructionDisruptionResidue(asked, self.config, provenance, tables)

    def verdicts(self, residue: InstructionDisruptionResidue) -> list[Verdict]:
        """The four verdicts of a residue, from its answers alone."""
        return verdicts(residue)

    def analyze_residue(
        self, residue: InstructionDisruptionResidue, *, progress: Progress = quiet
    ) -> InstructionDisruptionFindings:
        """Verdicts and attribution of a residue.

        Args:
            residue: from :meth:`run`, or loaded.
            progress: told what is going on, and the share done.

        Raises:
            ConfigError: the residue belongs to another model (its weights' hash differs).
        """
        residue.must_be_of(self.loaded.provenance.weights_sha256)
        asked, config = residue.asked, residue.config
        judged = verdicts(residue)
        pairs = residue.frames["instruction_pairs"]
        conflict = float(pairs.filter((pl.col("one") == "a") & (pl.col("two") == "b"))["conflict"][0])
        effects: list[SpanEffect] = []
        heads: HeadAttribution | None = None
        frames = {"instruction_rates": rates_frame(residue)}
        if config.top_heads and "preference" in residue.frames:
            effects = span_effects(residue.frames["preference"], asked.seed)
            if effects:
                frames["instruction_effects"] = effects_frame(effects)
            kept = self._conflict_rows(residue)
            if kept is not None:
                rows, cells = kept
                heads = attribute_heads(
                    rows,
                    cells,
                    self._reference_means(config),
                    top_heads=config.top_heads,
                    random_heads=config.random_heads,
                    seed=asked.seed,
                    progress=progress,
                )
                frames["heads"] = heads_frame(heads)
        progress("judged", 1.0)
        summary = summarise(residue, judged, effects, conflict)
        return InstructionDisruptionFindings(residue, judged, frames, summary, effects=effects, heads=heads, conflict=conflict)

    def visualize_instruction_conflict(self, findings: InstructionDisruptionFindings) -> Any:
        """What the answers follow, by condition, as an Altair chart (needs the ``figures`` extra)."""
        from symbolic_residue.figures import instruction_conflict

        return instruction_conflict(findings.frames["instruction_rates"])

    # -- parts of a run ------------------------------------------------------------------------------------------------------

    def _layer(self, layer: int | None) -> int:
        n = self.instrument.parts.n_layers
        if layer is not None and not 0 <= layer < n:
            raise ConfigError(f"There is no layer {layer}.", todo=f"Use 0 to {n - 1}.")
        return max(0, n - 2) if layer is None else layer

    def _centre(self, layer: int) -> Tensor:
        """Mean of the neutral instructions' vectors, ``[d_model]``."""
        key = (layer, self.config.references)
        if key not in self._neutral:
            self._neutral[key] = distill(self.instrument, self.tokenizer, NEUTRAL[: key[1]], layer).mean(0)
        return self._neutral[key]

    def _chat(self, config: InstructionDisruptionConfig) -> bool:
        return bool(getattr(self.tokenizer, "chat_template", None)) if config.frame == "auto" else config.frame == "chat"

    def _frames(self, asked: Asked, config: InstructionDisruptionConfig) -> list[Frame]:
        return build_frames(
            self.tokenizer,
            asked,
            config.arrangements,
            examples=config.examples,
            chat=self._chat(config),
            both_orders=config.both_control_orders,
            limit=self.instrument.parts.max_context,
        )

    def _rows(self, frames: Sequence[Frame], cells: Sequence[Cell]) -> tuple[SharedRows, list[int]]:
        """One batch of all frames, then what the cells ask beyond them; and each cell's number in it."""
        known: dict[tuple[tuple[int, ...], tuple[int, int] | None], int] = {}
        shared: list[int] = []
        for number, frame in enumerate(frames):
            known.setdefault((tuple(frame.prompt.ids), None), number)
            shared.append(frame.shared)
        sequences = [list(f.prompt.ids) for f in frames]
        hidden: list[tuple[int, int] | None] = [None] * len(frames)
        at = []
        for cell in cells:
            if cell.sequence not in known:
                known[cell.sequence] = len(sequences)
                sequences.append(list(cell.ids))
                shared.append(cell.frame.shared)
                hidden.append(cell.span)
            at.append(known[cell.sequence])
        return SharedRows(self.instrument, sequences, shared, hidden), at

    def _conflict_rows(self, residue: InstructionDisruptionResidue) -> tuple[SharedRows, list[Cell]] | None:
        """The conflict frames at the token where the two instructions part, kept from the run or run again."""
        if self._kept is not None and self._kept[0] == residue.asked:
            return self._kept[1], self._kept[2]
        asked = residue.asked
        frames = self._frames(asked, residue.config)
        pairs = plain_pairs(self.tokenizer, asked)
        if all(task.plain is None for task in asked.tasks):
            rows, _ = self._rows(frames, [])
            found = answer_frames(self.instrument, self.tokenizer, rows, limit=residue.config.max_new_tokens)
            pairs = answer_pairs(asked, frames, found.ids)
        cells = [c for c in cells_of(frames, pairs, hide=False) if c.frame.condition == "conflict"]
        return (self._rows([], cells)[0], cells) if cells else None

    def _reference_means(self, config: InstructionDisruptionConfig) -> Tensor:
        """Heads' mean outputs ``[layer, head, d_head]`` over neutral instructions with a question each, in the frame of the run."""
        chat = self._chat(config)
        key = (chat, config.references)
        if key not in self._means:
            prompts = [
                rendered(self.tokenizer, [text], TASKS[i % len(TASKS)].question, "user+user", chat=chat, limit=None)
                for i, text in enumerate(NEUTRAL[: config.references])
            ]
            self._means[key] = head_means(self.instrument, prompts)[0]
        return self._means[key]
