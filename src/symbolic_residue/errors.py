"""The one exception tree: every refusal says what is wrong, why, and what to do about it.

::

    ResidueError
    ├── InputError                 what the user gave cannot be used              (exit 2)
    │   ├── PromptError            empty, over-long, or otherwise unusable text
    │   ├── PromptFileError        a JSONL prompt file; bad lines named by number
    │   ├── TemplateError          a chat template that is missing or cannot be segmented
    │   ├── SpanError              a span or region that matches nothing, or overlaps
    │   ├── ConfigError            an option out of range, options that contradict
    │   ├── RecordError            a table of measurements that cannot be trusted
    │   ├── CorpusError            a corpus of concept texts that cannot be used; files and lines named
    │   └── NoRightAnswerError     a failure for which no answer is right, so that nothing can be restored
    ├── ModelError                 a model that cannot be had or trusted           (exit 3)
    │   ├── UnknownModelError      a reference that names nothing
    │   ├── OfflineError           a hub model that is not on disk, and no network
    │   ├── ModelFolderError       a folder that holds no usable model
    │   ├── DamagedFileError       hash mismatch, truncated GGUF, unreadable weights
    │   ├── NonFiniteWeightsError  NaN or infinity in the weights
    │   ├── AdapterError           an adapter that does not fit its base
    │   ├── DictionaryError        a dictionary of features that cannot be read, or does not fit its model
    │   ├── UnsupportedModelError  an architecture that the family table does not know
    │   └── VerificationError      the loaded model does not behave as the table says
    ├── InstrumentError            a read or an edit that cannot be exact          (exit 4)
    │   ├── ReadError              unknown point, or a point this family does not have
    │   ├── EditError              an edit of the wrong shape, or one that masks a whole row
    │   └── AttentionError         a mask, cache or backend the readout does not serve
    ├── StoreError                 the run folder                                  (exit 5)
    │   ├── RunExistsError         the output folder is already there
    │   ├── RunDamagedError        a run folder that fails validation
    │   └── WriteError             disk full, no permission
    └── MissingExtraError          an optional package is not installed            (exit 6)

Exit code 130 is kept for Ctrl-C, 1 for "ran, but some prompts failed".
"""

from __future__ import annotations

from typing import ClassVar

__all__ = [
    "AdapterError",
    "AttentionError",
    "ConfigError",
    "CorpusError",
    "DamagedFileError",
    "DictionaryError",
    "EditError",
    "InputError",
    "InstrumentError",
    "MissingExtraError",
    "ModelError",
    "ModelFolderError",
    "NoRightAnswerError",
    "NonFiniteWeightsError",
    "OfflineError",
    "PromptError",
    "PromptFileError",
    "ReadError",
    "RecordError",
    "ResidueError",
    "RunDamagedError",
    "RunExistsError",
    "SpanError",
    "StoreError",
    "TemplateError",
    "UnknownModelError",
    "UnsupportedModelError",
    "VerificationError",
    "WriteError",
]


class ResidueError(Exception):
    """Base of every error that this package raises on purpose.

    Args:
        what: one sentence: what is wrong, naming the thing.
        why: one sentence: the reason, where it is not plain from ``what``.
        todo: one sentence or command: what to do instead.
    """

    exit_code: ClassVar[int] = 1

    def __init__(self, what: str, *, why: str = "", todo: str = "") -> None:
        self.what, self.why, self.todo = what, why, todo
        super().__init__(what, why, todo)

    def __str__(self) -> str:
        return " ".join(part for part in (self.what, self.why, self.todo) if part)


class InputError(ResidueError):
    """What the user gave cannot be used."""

    exit_code = 2


class PromptError(InputError):
    """Empty, over-long, or otherwise unusable text."""


class PromptFileError(InputError):
    """A JSONL prompt file that cannot be used; bad lines are named by number."""


class TemplateError(InputError):
    """A chat template that is missing or cannot be segmented."""


class SpanError(InputError):
    """A span or region that matches nothing, or overlaps where it must not."""


class ConfigError(InputError):
    """An option out of range, or options that contradict each other."""


class RecordError(InputError):
    """A table of measurements that cannot be trusted: columns, NaN, lost or doubled records."""


class CorpusError(InputError):
    """A corpus of concept texts that cannot be used; files and lines are named."""


class NoRightAnswerError(InputError):
    """A failure mode, an item or a residue for which no answer is right: there is nothing that an edit could restore."""


class ModelError(ResidueError):
    """A model that cannot be had or trusted."""

    exit_code = 3


class UnknownModelError(ModelError):
    """A reference that names nothing."""


class OfflineError(ModelError):
    """A hub model that is not on disk, with no network to fetch it."""


class ModelFolderError(ModelError):
    """A folder that holds no usable model."""


class DamagedFileError(ModelError):
    """Hash mismatch, truncated GGUF or safetensors, unreadable weights."""


class NonFiniteWeightsError(ModelError):
    """NaN or infinity in the weights."""


class AdapterError(ModelError):
    """An adapter that does not fit its base model."""


class DictionaryError(ModelError):
    """A dictionary of features that cannot be read, or does not fit its model."""


class UnsupportedModelError(ModelError):
    """An architecture that the family table does not know."""


class VerificationError(ModelError):
    """The loaded model does not behave as the family table says."""


class InstrumentError(ResidueError):
    """A read or an edit that cannot be exact."""

    exit_code = 4


class ReadError(InstrumentError):
    """An unknown point, or a point that this family does not have."""


class EditError(InstrumentError):
    """An edit of the wrong shape, or one that would mask a whole row."""


class AttentionError(InstrumentError):
    """A mask, cache or backend that the attention readout does not serve."""


class StoreError(ResidueError):
    """The run folder cannot be written or read."""

    exit_code = 5


class RunExistsError(StoreError):
    """The output folder is already there."""


class RunDamagedError(StoreError):
    """A run folder that fails validation."""


class WriteError(StoreError):
    """Disk full, no permission, or another failure of the file system."""


class MissingExtraError(ResidueError):
    """An optional package is not installed; ``todo`` holds the exact pip line."""

    exit_code = 6

    def __init__(self, package: str, extra: str, *, needed_for: str) -> None:
        super().__init__(
            f"The package {package!r} is not installed.",
            why=f"It is needed for {needed_for}.",
            todo=f"pip install 'symbolic-residue[{extra}]'",
        )
