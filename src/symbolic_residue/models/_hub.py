"""Models of the Hugging Face hub: what is on disk first, the network only where it must be and may be.

1. The hub's own cache is asked for a complete snapshot of the revision. If it has one, nothing goes over the network; a branch is
   therefore what it was when it was fetched, and the recorded revision is always the commit.
2. Otherwise, unless offline, one short request asks what the repository holds; it must have safetensors (pickles are never loaded).
3. The snapshot is downloaded: config, tokenizer, safetensors of the top folder. No code file is fetched.

Offline means ``offline=True``, or ``offline=None`` with ``HF_HUB_OFFLINE`` or ``TRANSFORMERS_OFFLINE`` set.
"""

from __future__ import annotations

import errno
import json
import os
from collections.abc import Callable
from pathlib import Path

from symbolic_residue.errors import ModelError, ModelFolderError, OfflineError, UnknownModelError, WriteError
from symbolic_residue.models._cache import CacheEntry
from symbolic_residue.models._families import FAMILIES
from symbolic_residue.models._quiet import quiet
from symbolic_residue.models._refs import HubRef

__all__ = ["fetch_hub", "find_hub", "hub_entries", "hub_failure", "is_offline"]

_PATTERNS = [
    "config.json",
    "generation_config.json",
    "*.safetensors",
    "*.safetensors.index.json",
    "tokenizer*",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab*",
    "merges.txt",
    "chat_template*",
]
_IGNORED = ["*/*", "consolidated*"]
_NETWORK_PACKAGES = {"huggingface_hub", "hf_xet", "httpx", "httpx2", "httpcore", "requests", "urllib3"}
_TIMEOUT_S = 10.0


def is_offline(offline: bool | None) -> bool:
    """Whether the network is off limits: as told, or by ``HF_HUB_OFFLINE`` / ``TRANSFORMERS_OFFLINE``."""
    if offline is not None:
        return offline
    return any(os.environ.get(key, "").upper() in ("1", "TRUE", "YES", "ON") for key in ("HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE"))


def find_hub(ref: HubRef) -> Path | None:
    """The folder of a complete snapshot in the hub's cache, or ``None``."""
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HFValidationError, LocalEntryNotFoundError

    try:
        folder = Path(
            snapshot_download(
                ref.repo, revision=ref.revision, local_files_only=True, allow_patterns=_PATTERNS, ignore_patterns=_IGNORED
            )
        )
    except LocalEntryNotFoundError:
        return None
    except HFValidationError as error:
        raise UnknownModelError(f"{str(ref)!r} is no model id of the hub.", why=str(error)) from error
    return folder if _is_complete(folder) else None


def fetch_hub(ref: HubRef, progress: Callable[[str], None]) -> Path:
    """The folder of the model, downloaded first where it is not on disk.

    Raises:
        OfflineError: the hub cannot be reached.
        UnknownModelError: no such repository or revision.
        ModelError: access is restricted.
        ModelFolderError: the repository has no safetensors.
        WriteError: the hub's cache cannot be written.
    """
    from huggingface_hub import HfApi, snapshot_download

    folder = find_hub(ref)
    if folder is not None:
        return folder
    try:
        progress(f"asking the hub for {ref}")
        info = HfApi().model_info(ref.repo, revision=ref.revision, timeout=_TIMEOUT_S)
        names = [file.rfilename for file in info.siblings or []]
        if not any(name.endswith(".safetensors") and "/" not in name for name in names):
            raise ModelFolderError(
                f"The repository {ref} has no safetensors.",
                why="Other weight formats are pickles, which can run code and are never loaded.",
                todo="Use a repository or revision with model.safetensors.",
            )
        progress(f"downloading {ref}")
        with quiet():
            folder = Path(
                snapshot_download(
                    ref.repo, revision=ref.revision, allow_patterns=_PATTERNS, ignore_patterns=_IGNORED, etag_timeout=_TIMEOUT_S
                )
            )
    except Exception as error:
        raise hub_failure(ref.repo, ref.revision, error) from error
    if not _is_complete(folder):
        raise ModelFolderError(f"The repository {ref} lacks config.json or some of its safetensors.")
    return folder


def hub_failure(repo: str, revision: str | None, error: Exception) -> Exception:
    """The hub client's, its HTTP library's or the system's error as one of ours; anything else comes back as it is."""
    from huggingface_hub.errors import GatedRepoError, RepositoryNotFoundError, RevisionNotFoundError

    ref = repo if revision is None else f"{repo}@{revision}"
    if isinstance(error, ModelError):
        return error
    if isinstance(error, GatedRepoError):
        return ModelError(
            f"Access to {ref} is restricted.",
            why="Its owner asks users to accept terms first.",
            todo=f"Accept them at https://huggingface.co/{repo}, then log in with `hf auth login`.",
        )
    if isinstance(error, RevisionNotFoundError):
        return UnknownModelError(f"{repo} has no revision {revision!r}.", todo="Use a branch, tag or commit it has.")
    if isinstance(error, RepositoryNotFoundError):
        return UnknownModelError(
            f"The hub has no model {repo!r}, or it is private.", todo="Check the name; for a private model run `hf auth login`."
        )
    if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EACCES, errno.EROFS):
        return WriteError(
            f"{ref} cannot be written to the hub's cache.", why=str(error.strerror), todo="Free space, or set HF_HOME."
        )
    from_network = any(kind.__module__.split(".")[0] in _NETWORK_PACKAGES for kind in type(error).__mro__)
    if not from_network and not isinstance(error, OSError):
        return error
    reason = str(error).strip().splitlines()
    return offline_error(ref, f"The hub cannot be reached ({type(error).__name__}: {reason[0][:200] if reason else ''}).")


def offline_error(ref: str, why: str) -> OfflineError:
    """The one wording for a model that is not on disk."""
    return OfflineError(
        f"{ref} is not on this machine.",
        why=why,
        todo="With a network: residue models fetch demo (a small model to start with) or residue models fetch ORG/NAME.",
    )


def _is_complete(folder: Path) -> bool:
    """Whether config and weights are there: the hub's client cannot tell for snapshots that other programs began."""
    if not (folder / "config.json").is_file():
        return False
    index = folder / "model.safetensors.index.json"
    if index.is_file():
        try:
            shards = set(json.loads(index.read_bytes())["weight_map"].values())
        except (ValueError, KeyError, AttributeError):
            return False
        return all((folder / shard).is_file() for shard in shards)
    return (folder / "model.safetensors").is_file()


def hub_entries() -> list[CacheEntry]:
    """Complete snapshots in the hub's cache whose architecture is in the family table, sorted by name."""
    from huggingface_hub import constants, scan_cache_dir
    from huggingface_hub.errors import CacheNotFound

    try:
        with quiet():
            repos = scan_cache_dir(constants.HF_HUB_CACHE).repos
    except CacheNotFound:
        return []
    entries = []
    for repo in repos:
        for revision in repo.revisions if repo.repo_type == "model" else ():
            folder = Path(revision.snapshot_path)
            if not _is_complete(folder):
                continue
            try:
                model_type = json.loads((folder / "config.json").read_bytes()).get("model_type")
            except (ValueError, AttributeError):
                continue  # not a transformers model: others keep their files in this cache too
            if model_type not in FAMILIES:
                continue
            name = repo.repo_id if "main" in revision.refs else f"{repo.repo_id}@{revision.commit_hash}"
            entries.append(
                CacheEntry(
                    ref=name,
                    source="hub",
                    model_type=model_type,
                    revision=revision.commit_hash,
                    files={file.file_name: file.size_on_disk for file in revision.files},
                    folder=folder,
                )
            )
    return sorted(entries, key=lambda entry: entry.ref)
