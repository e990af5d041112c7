"""Files that a config names on the hub: from the hub's cache, from a small local server that plays the hub, and refused with what to do."""

from __future__ import annotations

import json
import shutil
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
from dictionary_files import random_dictionary, write_circuit_tracer

from symbolic_residue.dictionaries import open_dictionary, Transcoders
from symbolic_residue.errors import DictionaryError, ModelError, OfflineError, UnknownModelError, WriteError

OLD, NEW = "0123456789abcdef0123456789abcdef01234567", "89abcdef0123456789abcdef0123456789abcdef"
NAMES = [f"sub/layer_{i}.safetensors" for i in range(3)]


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The hub's cache, empty, and no network."""
    import huggingface_hub.constants

    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    return tmp_path / "hub"


@pytest.fixture
def made(tmp_path: Path) -> tuple[Transcoders, Path]:
    """A dictionary of three layers, and its files."""
    dictionary = random_dictionary(kind="topk")
    return dictionary, write_circuit_tracer(dictionary, tmp_path / "files")


def put(cache: Path, files: Path, commit: str, layers: tuple[int, ...], ref: str = "main") -> None:
    """Some layers as the hub's client keeps them."""
    repo = cache / "models--org--codes"
    for part in ("refs", "blobs", f"snapshots/{commit}/sub"):
        (repo / part).mkdir(parents=True, exist_ok=True)
    (repo / "refs" / ref).write_text(commit)
    for i in layers:
        shutil.copy(files / f"layer_{i}.safetensors", repo / "snapshots" / commit / "sub")


def config(made: tuple[Transcoders, Path], folder: Path, query: str = "", **entries: Any) -> Path:
    """A folder that holds a config alone, whose files are on the hub."""
    folder.mkdir()
    for path in write_circuit_tracer(
        made[0], folder, transcoders=[f"hf://org/codes/{name}{query}" for name in NAMES], **entries
    ).glob("*.safetensors"):
        path.unlink()
    return folder


def test_files_in_the_hubs_cache_are_read_without_a_network(made: Any, cache: Path, tmp_path: Path) -> None:
    put(cache, made[1], OLD, (0, 1, 2))
    told: list[str] = []
    opened = open_dictionary(config(made, tmp_path / "a"), progress=told.append)
    assert opened.layers.keys() == {0, 1, 2} and not told
    assert opened.sha256 == open_dictionary(made[1]).sha256


def test_the_revision_says_which_commit_is_read(made: Any, cache: Path, tmp_path: Path) -> None:
    other = write_circuit_tracer(random_dictionary(kind="topk", seed=9), tmp_path / "other")
    put(cache, made[1], OLD, (0, 1, 2))
    put(cache, other, NEW, (0, 1, 2), ref="v2")
    assert open_dictionary(config(made, tmp_path / "a")).sha256 == open_dictionary(made[1]).sha256
    assert open_dictionary(config(made, tmp_path / "b", "?revision=v2")).sha256 == open_dictionary(other).sha256
    assert open_dictionary(config(made, tmp_path / "c", f"?revision={OLD}")).sha256 == open_dictionary(made[1]).sha256


def test_offline_says_the_command_that_fetches_what_is_missing(made: Any, cache: Path, tmp_path: Path) -> None:
    put(cache, made[1], OLD, (1,))
    with pytest.raises(OfflineError) as told:
        open_dictionary(config(made, tmp_path / "a"))
    assert told.value.todo == f"With a network: hf download org/codes {NAMES[0]} {NAMES[2]}"
    with pytest.raises(OfflineError, match=f"{NAMES[0]} {NAMES[1]} {NAMES[2]} --revision v3"):
        open_dictionary(config(made, tmp_path / "b", "?revision=v3"))


@pytest.mark.parametrize(
    "entry", ["https://example.org/x.safetensors", "hf://org/x.safetensors", "hf://org/codes", "hf://org/codes/", "hf://org/codes/x?revision=", "hf://org/codes/x?rev=a",
              "hf://org/codes/x?revision=a&revision=b", "hf://org/codes/../../x", "s3://org/codes/x", "hf://org/codes/sub/"],
)  # fmt: skip
def test_other_addresses_are_refused(entry: str, made: Any, cache: Path, tmp_path: Path) -> None:
    with pytest.raises(DictionaryError, match="names a file by"):
        open_dictionary(write_circuit_tracer(made[0], tmp_path / "a", transcoders=[entry]))


def test_a_name_that_is_no_repository_is_refused(made: Any, cache: Path, tmp_path: Path) -> None:
    with pytest.raises(UnknownModelError, match="no repository id"):
        open_dictionary(write_circuit_tracer(made[0], tmp_path / "a", transcoders=["hf://org/a--b..c/x.safetensors"]))


class Hub:
    """Serves one repository at one commit."""

    def __init__(self, files: Path) -> None:
        self.status, self.gets = 200, []
        hub = self

        class Handler(BaseHTTPRequestHandler):
            def do_HEAD(self) -> None:
                self.answer(body=False)

            def do_GET(self) -> None:
                self.answer(body=True)

            def answer(self, body: bool) -> None:
                path = self.path.partition("?")[0]
                if path.startswith("/api/models/org/codes"):
                    said: Any = {
                        "id": "org/codes",
                        "sha": NEW,
                        "siblings": [{"rfilename": name, "size": (files / Path(name).name).stat().st_size} for name in NAMES],
                    }
                    data, headers = json.dumps(said).encode(), {"Content-Type": "application/json"}
                else:
                    name = path.rpartition("/")[2]
                    hub.gets += [name] if body else []
                    data, headers = (files / name).read_bytes(), {"ETag": f'"{name}"', "X-Repo-Commit": NEW}
                self.send_response(hub.status)
                for key, value in {
                    **headers,
                    "Content-Length": str(len(data)),
                    **({"X-Error-Code": "RepoNotFound"} if hub.status in (401, 404) else {}),
                }.items():
                    self.send_header(key, value)
                self.end_headers()
                if body:
                    self.wfile.write(data)

            def log_message(self, format: str, *args: Any) -> None:
                """Nothing on the terminal."""

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.thread = threading.Thread(target=self.server.serve_forever, daemon=True)
        self.thread.start()


@pytest.fixture
def hub(made: Any, cache: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    import huggingface_hub.constants

    hub = Hub(made[1])
    address = f"http://127.0.0.1:{hub.server.server_port}"
    monkeypatch.setattr(huggingface_hub.constants, "ENDPOINT", address)
    monkeypatch.setattr(
        huggingface_hub.constants, "HUGGINGFACE_CO_URL_TEMPLATE", address + "/{repo_id}/resolve/{revision}/{filename}"
    )
    monkeypatch.delenv("HF_HUB_OFFLINE")
    yield hub
    hub.server.shutdown()
    hub.server.server_close()
    hub.thread.join()


def test_online_the_size_is_told_and_all_files_are_of_one_commit(hub: Hub, made: Any, cache: Path, tmp_path: Path) -> None:
    stale = write_circuit_tracer(random_dictionary(kind="topk", seed=9), tmp_path / "stale")
    put(cache, stale, OLD, (0,))  # of an older commit: must not be mixed with the others
    told: list[str] = []
    opened = open_dictionary(config(made, tmp_path / "a"), progress=told.append)
    assert opened.sha256 == open_dictionary(made[1]).sha256
    size = sum((made[1] / Path(name).name).stat().st_size for name in NAMES)
    assert told == ["asking the hub for org/codes", f"downloading 3 files of org/codes, {size / 1e6:.1f} MB"]
    assert sorted(hub.gets) == [Path(name).name for name in NAMES]
    assert open_dictionary(tmp_path / "a", progress=told.append).sha256 == opened.sha256
    assert len(told) == 2 and len(hub.gets) == 3  # on disk now


def test_a_full_disk_and_missing_files_are_told_before_a_download(
    hub: Hub, made: Any, cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(shutil, "disk_usage", lambda path: shutil._ntuple_diskusage(10**6, 10**6, 10))  # type: ignore[attr-defined]
        with pytest.raises(WriteError, match="are free"):
            open_dictionary(config(made, tmp_path / "a"))
    lacking = write_circuit_tracer(made[0], tmp_path / "b", transcoders=["hf://org/codes/sub/layer_7.safetensors"])
    with pytest.raises(DictionaryError, match=r"no file 'sub/layer_7.safetensors'"):
        open_dictionary(lacking)
    assert not hub.gets


@pytest.mark.parametrize("status, error", [(401, UnknownModelError), (404, UnknownModelError), (500, OfflineError)])
def test_what_the_hub_refuses_is_told(
    status: int, error: type[ModelError], hub: Hub, made: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    hub.status = status
    with pytest.raises(error) as told:
        open_dictionary(config(made, tmp_path / "a"))
    assert error is not OfflineError or "hf download org/codes" in told.value.todo
