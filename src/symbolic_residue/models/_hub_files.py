"""Single files of a repository of the Hugging Face hub: what is on disk first, the network only where it must be and may be.

1. All files are taken from one commit. Where the hub's cache has them all for the revision, nothing goes over the network.
2. Otherwise, unless offline, one short request says which commit the revision is now and how large the files are. The size of what is missing is told, and
   compared with the free space, before anything is downloaded.
3. What is downloaded goes into the hub's own cache.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable, Sequence
from pathlib import Path

from symbolic_residue.errors import DictionaryError, OfflineError, UnknownModelError, WriteError
from symbolic_residue.models._hub import hub_failure, is_offline
from symbolic_residue.models._quiet import quiet

__all__ = ["hub_files"]

_TIMEOUT_S = 10.0


def hub_files(
    repo: str,
    names: Sequence[str],
    *,
    revision: str | None = None,
    offline: bool | None = None,
    progress: Callable[[str], None] | None = None,
) -> list[Path]:
    """Where files of a repository are on disk, in the order of their names.

    Args:
        repo: ``org/name``.
        names: paths in the repository.
        revision: branch, tag or commit; None is ``main``.
        offline: never use the network; None follows ``HF_HUB_OFFLINE``.
        progress: called with a short line before each step, with the size before a download.

    Raises:
        OfflineError: files that are not on disk, and no network; the commands that fetch them.
        UnknownModelError: no such repository or revision.
        DictionaryError: the repository lacks a file.
        ModelError: access is restricted.
        WriteError: no room for them, or the hub's cache cannot be written.
    """
    from huggingface_hub import constants, hf_hub_download, HfApi
    from huggingface_hub.errors import HFValidationError

    tell = progress or (lambda line: None)
    found = {name: _on_disk(repo, name, revision) for name in names}
    if all(path is not None for path in found.values()):
        return [path for path in found.values() if path is not None]
    if is_offline(offline):
        missing = [name for name, path in found.items() if path is None]
        more = f" and {len(missing) - 1} more" if len(missing) > 1 else ""
        raise OfflineError(
            f"{missing[0]} of {repo}{more} are not on this machine." if more else f"{missing[0]} of {repo} is not on this machine.",
            why="The hub's cache lacks them, and the network is off limits."
            if more
            else "The hub's cache lacks it, and the network is off limits.",
            todo=_command(repo, missing, revision),
        )
    try:
        tell(f"asking the hub for {repo}")
        info = HfApi().model_info(repo, revision=revision, timeout=_TIMEOUT_S, files_metadata=True)
        sizes = {file.rfilename: file.size or 0 for file in info.siblings or []}
        if lacking := [name for name in names if name not in sizes]:
            raise DictionaryError(f"The repository {repo} has no file {lacking[0]!r}.", why=f"It was looked for at {info.sha}.")
        missing = [name for name in names if _on_disk(repo, name, info.sha) is None]
        needed = sum(sizes[name] for name in missing)
        _room(repo, needed, Path(constants.HF_HUB_CACHE))
        if missing:
            tell(f"downloading {len(missing)} file{'s' * (len(missing) != 1)} of {repo}, {_size(needed)}")
        with quiet():
            # by the revision's name, so that the cache knows what it is now; by the commit where it moved meanwhile
            paths = [Path(hf_hub_download(repo, name, revision=revision, etag_timeout=_TIMEOUT_S)) for name in names]
            if all(str(info.sha) in path.parts for path in paths):
                return paths
            return [Path(hf_hub_download(repo, name, revision=info.sha, etag_timeout=_TIMEOUT_S)) for name in names]
    except HFValidationError as error:
        raise UnknownModelError(f"{repo!r} is no repository id of the hub.", why=str(error)) from error
    except (WriteError, DictionaryError):
        raise
    except Exception as error:
        failure = hub_failure(repo, revision, error)
        if isinstance(failure, OfflineError):
            failure = OfflineError(failure.what, why=failure.why, todo=_command(repo, names, revision))
        raise failure from error


def _command(repo: str, names: Sequence[str], revision: str | None) -> str:
    return f"With a network: hf download {repo} {' '.join(names)}" + ("" if revision is None else f" --revision {revision}")


def _on_disk(repo: str, name: str, revision: str | None) -> Path | None:
    from huggingface_hub import hf_hub_download
    from huggingface_hub.errors import HFValidationError, LocalEntryNotFoundError

    try:
        return Path(hf_hub_download(repo, name, revision=revision, local_files_only=True))
    except LocalEntryNotFoundError:
        return None
    except HFValidationError as error:
        raise UnknownModelError(f"{repo!r} is no repository id of the hub.", why=str(error)) from error


def _room(repo: str, needed: int, cache: Path) -> None:
    there = next(path for path in (cache, *cache.parents) if path.exists())
    free = shutil.disk_usage(there).free
    if needed > free:
        raise WriteError(
            f"The files of {repo} take {_size(needed)}; {_size(free)} are free at {there}.", todo="Free space, or set HF_HOME."
        )


def _size(count: int) -> str:
    return f"{count / 1e9:.1f} GB" if count >= 1e9 else f"{count / 1e6:.1f} MB"
