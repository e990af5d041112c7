"""A study from one YAML file.

1. ``load_config(path)`` reads the file with PyYAML's safe loader (a name given twice is refused), then checks every field. What is wrong is refused with the
   field's name and what it is for; nothing is guessed.
2. Paths (adapters, model folders, a file of questions) are relative to the file's own folder; ``~`` and ``$VARIABLES`` are filled in.
"""

from __future__ import annotations

import difflib
import os
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ValidationError

from symbolic_residue.contrast._config import ConditionConfig, QuestionConfig, Reference, StudyConfig
from symbolic_residue.errors import ConfigError

__all__ = ["load_config", "read_config"]


def load_config(path: str | os.PathLike[str]) -> StudyConfig:
    """The study of a YAML file.

    Raises:
        ConfigError: no such file, no YAML, or a field that is wrong, named.
        PromptFileError: a file of questions that cannot be read.
    """
    import yaml

    path = Path(path)
    try:
        text = path.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(
            f"The configuration {path} cannot be read.", why=f"{error}.", todo="Give a YAML file, such as examples/contrast.yaml."
        ) from error

    class Loader(yaml.SafeLoader):
        """As safe_load, but a name given twice is an error."""

        def construct_mapping(self, node: Any, deep: bool = False) -> dict[Any, Any]:
            names = [self.construct_object(key, deep=deep) for key, _ in node.value]
            doubled = next((name for name in names if names.count(name) > 1), None)
            if doubled is not None:
                raise yaml.MarkedYAMLError(problem=f"{doubled!r} is given twice", problem_mark=node.start_mark)
            return super().construct_mapping(node, deep=deep)

    try:
        data = yaml.load(text, Loader)
    except (yaml.YAMLError, TypeError) as error:
        mark, problem = getattr(error, "problem_mark", None), getattr(error, "problem", None)
        where = "" if mark is None else f", line {mark.line + 1}"
        raise ConfigError(
            f"{path}{where} is no YAML that can be used.", why=f"{problem or error}.", todo="Texts with ':' or '#' stand in quotes."
        ) from error
    return read_config(data, folder=path.parent)


def read_config(data: Any, *, folder: str | os.PathLike[str] = ".") -> StudyConfig:
    """The study of what a YAML file holds.

    Args:
        data: names and values.
        folder: what paths are relative to.

    Raises:
        ConfigError: a field that is wrong, named, with what it is for.
        PromptFileError: a file of questions that cannot be read.
    """
    if not isinstance(data, dict):
        raise ConfigError(
            "The configuration holds no fields.", todo="Write fields such as 'model: demo'; see examples/contrast.yaml."
        )
    data = dict(data)
    data["questions"] = _questions(data.get("questions"), Path(folder)) if "questions" in data else None
    if data["questions"] is None:
        del data["questions"]
    if "adapter" in data:
        data["adapter"] = _place(data["adapter"], folder)
    if isinstance(data.get("model"), str):
        data["model"] = _model(data["model"], folder)
    if isinstance(data.get("references"), dict):
        data["references"] = {name: _reference(one, folder) for name, one in data["references"].items()}
    try:
        return StudyConfig.model_validate(data)
    except ValidationError as error:
        raise _refusal(error) from None


def _questions(given: Any, folder: Path) -> Any:
    if isinstance(given, str):
        from symbolic_residue.prompts import read_prompts

        found = read_prompts(folder / _filled(given), model=QuestionConfig)
        if found.bad:
            raise ConfigError(
                f"Field 'questions': line {found.bad[0].number} of {given} cannot be used: {found.bad[0].reason}.",
                todo='Each line: {"id": "…", "text": "…"}.',
            )
        return [one.model_dump() for one in found.items]
    if isinstance(given, list):
        return [{"id": f"q{i:02d}", "text": one} if isinstance(one, str) else one for i, one in enumerate(given, start=1)]
    return given


def _reference(given: Any, folder: str | os.PathLike[str]) -> Any:
    if given == "base":
        return {"base": True}
    if not isinstance(given, dict):
        return given
    given = dict(given)
    if "adapter" in given:
        given["adapter"] = _place(given["adapter"], folder)
    if isinstance(given.get("model"), str):
        given["model"] = _model(given["model"], folder)
    return given


def _filled(text: str) -> str:
    return os.path.expandvars(str(Path(text).expanduser()))


def _place(given: Any, folder: str | os.PathLike[str]) -> Any:
    return str(Path(folder) / _filled(given)) if isinstance(given, str) else given


def _model(given: str, folder: str | os.PathLike[str]) -> str:
    there = Path(folder) / _filled(given)
    return str(there) if there.is_dir() else given


def _refusal(error: ValidationError) -> ConfigError:
    """The first thing that is wrong, said with the field's name and what the field is for."""
    first = error.errors()[0]
    where, section, meant = _field(first["loc"])
    kind, said = first["type"], first["msg"].removeprefix("Value error, ")
    if kind == "extra_forbidden":
        name = str(first["loc"][-1])
        near = difflib.get_close_matches(name, section.model_fields, 1)
        fields = ", ".join(section.model_fields)
        return ConfigError(f"{where!r} is no field of a study.", todo=f"Did you mean {near[0]!r}?" if near else f"Fields here: {fields}.")  # fmt: skip
    if kind == "missing":
        return ConfigError(f"Field {where!r} is missing.", why=meant, todo="See examples/contrast.yaml.")
    if kind == "string_type":
        said = f"{first['input']!r} is no text"
        return ConfigError(f"Field {where!r}: {said}.", why=meant, todo="Write it in quotes.")
    return ConfigError(f"Field {where!r}: {said}." if where else f"The fields do not fit together: {said}.", todo=meant)


def _field(place: tuple[int | str, ...]) -> tuple[str, type[BaseModel], str]:
    """A place as it is written, the section that it is in, and what its field is for."""
    section: type[BaseModel] = StudyConfig
    inner: dict[str, type[BaseModel]] = {"conditions": ConditionConfig, "questions": QuestionConfig, "references": Reference}
    meant, shown = "", ""
    for part in place:
        shown += f"[{part}]" if isinstance(part, int) else f".{part}" if shown else str(part)
        field = section.model_fields.get(str(part))
        if field is None:
            continue
        meant = " ".join((field.description or "").split())
        annotation = inner.get(str(part)) or field.annotation
        options = [annotation, *getattr(annotation, "__args__", ())]
        section = next((one for one in options if isinstance(one, type) and issubclass(one, BaseModel)), section)
    return shown, section, meant
