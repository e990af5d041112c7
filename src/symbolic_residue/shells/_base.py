"""The shape that all shells share.

A shell is a controlled failure probe. ``run`` puts the model under one kind of stress, beside a matched control, and collects the *residue*: what
the model computed but did not deliver. ``analyze_residue`` turns it into findings: verdicts with controls, and the components to blame, each
confirmed by an intervention.

A custom shell subclasses ``ShellBase``, names itself and its three operations, and writes ``run`` and ``analyze_residue``; ``self.instrument`` reads and
edits the model. Findings offer ``tables()`` so that a run folder can keep them.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import Any, ClassVar, Generic, Protocol, runtime_checkable, TYPE_CHECKING, TypeVar

import polars as pl

from symbolic_residue.errors import ConfigError, NoRightAnswerError
from symbolic_residue.instrument import Instrument, verify
from symbolic_residue.shells._failure import Failure
from symbolic_residue.shells._verdict import Verdict

if TYPE_CHECKING:
    from symbolic_residue.models import LoadedModel
    from symbolic_residue.prompts import ShellItem

__all__ = ["Progress", "Result", "ShellBase", "quiet"]

Progress = Callable[[str, float], None]
"""Told what is going on, and the share done."""


def quiet(what: str, share: float) -> None:
    """The progress that tells nobody."""


ResidueT = TypeVar("ResidueT")
FindingsT = TypeVar("FindingsT")


@runtime_checkable
class Result(Protocol):
    """What a question returns: tables with named columns (see the table list in ``design/interfaces.md``)."""

    def tables(self) -> dict[str, pl.DataFrame]:
        """Table name → frame, without the ``item`` column."""
        ...


class ShellBase(ABC, Generic[ResidueT, FindingsT]):
    """Base of all shells.

    Args:
        model: a plain Hugging Face decoder, left unchanged and bit-identical after every run.
        tokenizer: its fast tokenizer.
        config: the shell's configuration; ``None`` takes the defaults.
        loaded: instead of model and tokenizer: a model from :func:`symbolic_residue.open_model`, already verified.

    Raises:
        UnsupportedModelError, VerificationError: the family table does not know or does not fit the model.
        ConfigError: neither or both ways of giving a model.
    """

    name: ClassVar[str]
    """The shell's name, lower case, as on the command line."""

    operations: ClassVar[tuple[str, str, str]]
    """The command triple."""

    benchmark: ClassVar[str | None] = None
    """The packaged benchmark made for the shell, None where there is none."""

    right_answers: ClassVar[dict[str, str]] = {}
    """Failure mode → its right answer in words, for the modes that have one. Modes with the same words are one thing to heal."""

    no_right_answers: ClassVar[dict[str, str]] = {}
    """Failure mode → why no answer is right there."""

    @classmethod
    def items(cls) -> list[Any]:
        """The items of the shell's benchmark, in file order, each a ``ShellItem``.

        Raises:
            ConfigError: the shell has no packaged benchmark.
        """
        raise ConfigError(f"{cls.name} has no packaged benchmark.", todo="Run it on prompts of your own.")

    def run_item(self, item: ShellItem, *, seed: int = 0, progress: Progress = quiet) -> ResidueT:
        """Collect the residue of one item of the shell's benchmark: its text, and whatever else it gives (control, answer …).

        Raises:
            PromptError, TemplateError: the item does not fit the model.
        """
        return self.run(item.shown, seed=seed, progress=progress)

    @classmethod
    def right_answer(cls, mode: str) -> str:
        """What is right where a failure mode shows, in words.

        Raises:
            NoRightAnswerError: no answer is right there, and why. ConfigError: the shell has no such mode.
        """
        if mode in cls.right_answers:
            return cls.right_answers[mode]
        if mode in cls.no_right_answers:
            raise NoRightAnswerError(
                f"{cls.name}: {mode} has no right answer, so there is nothing to restore.",
                why=cls.no_right_answers[mode],
                todo=f"Use one of: {', '.join(cls.right_answers)}." if cls.right_answers else "Use another shell.",
            )
        if not cls.right_answers and not cls.no_right_answers:
            raise NoRightAnswerError(f"The shell {cls.name} does not say what is right.", todo="Write failures into a file.")
        raise ConfigError(
            f"{cls.name} has no failure mode {mode!r}.",
            todo=f"Use one of: {', '.join((*cls.right_answers, *cls.no_right_answers))}.",
        )

    def failures(self, source: Any, mode: str, *, id: str | None = None, seed: int = 0) -> list[Failure]:
        """What the model should get right where an item of the benchmark, or a residue, shows a failure mode; nothing is run.

        Args:
            source: an item or a residue of this shell.
            mode: the failure mode.
            id: names the failure; the item's own when left out.
            seed: of padding, where an item needs some.

        Raises:
            NoRightAnswerError: no answer is right for this mode, item or residue.
            ConfigError: no such mode, or nothing of this shell.
        """
        self.right_answer(mode)
        raise NoRightAnswerError(f"The shell {self.name} does not say what is right.", todo="Write failures into a file.")

    def asks(self, input_text: str) -> dict[str, Any]:
        """What this shell can ask of a plain text: the arguments of :meth:`run` that it finds there, none where the text alone is enough.

        ``input_text`` among them takes the text's place (None where the other arguments say it all).

        Raises:
            InputError: nothing can be asked of this text; the message says why.
        """
        return {}

    def __init__(self, model: Any = None, tokenizer: Any = None, config: Any = None, *, loaded: LoadedModel | None = None) -> None:
        if (model is None) == (loaded is None):
            raise ConfigError("Give either model and tokenizer, or loaded.")
        if loaded is None:
            from symbolic_residue.models import wrap

            loaded = wrap(model, tokenizer)
            verify(loaded)
        self.loaded = loaded
        self.config = config
        self.instrument = Instrument(loaded)

    @property
    def tokenizer(self) -> Any:
        """The model's tokenizer."""
        return self.loaded.tokenizer

    @abstractmethod
    def run(self, input_text: str, *, seed: int = 0, progress: Progress = quiet) -> ResidueT:
        """Collect the residue of one prompt."""

    def verdicts(self, residue: ResidueT) -> list[Verdict]:
        """The verdicts of a residue alone, by the criteria in its configuration. Shells that can judge without a forward do so here."""
        return self.analyze_residue(residue).verdicts  # type: ignore[attr-defined]

    @abstractmethod
    def analyze_residue(self, residue: ResidueT, *, progress: Progress = quiet) -> FindingsT:
        """Verdicts and attribution from a residue."""
