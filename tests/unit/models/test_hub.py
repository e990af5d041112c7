"""The hub, played by a small local server: what is on disk needs no network, and every answer becomes one of our errors."""

from __future__ import annotations

import shutil
import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from symbolic_residue.errors import ModelError, ModelFolderError, OfflineError, UnknownModelError
from symbolic_residue.models import fetch, hub_entries, HubRef, load_model

COMMIT = "0123456789abcdef0123456789abcdef01234567"


class Hub:
    """Answers every request alike; counts them."""

    def __init__(self) -> None:
        self.status, self.headers, self.body, self.requests = 200, {}, b"{}", 0
        hub = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                hub.requests += 1
                self.send_response(hub.status)
                for key, value in {"Content-Type": "application/json", "Content-Length": str(len(hub.body)), **hub.headers}.items():
                    self.send_header(key, value)
                self.end_headers()
                self.wfile.write(hub.body)

            def log_message(self, format: str, *args: Any) -> None:
                """Nothing on the terminal."""

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.thread = threading.Thread(target=self.server.serve_forever, daemon=True)
        self.thread.start()


@pytest.fixture
def hub(cache: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    import huggingface_hub.constants

    hub = Hub()
    monkeypatch.setattr(huggingface_hub.constants, "ENDPOINT", f"http://127.0.0.1:{hub.server.server_port}")
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", False)
    for key in ("HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE"):
        monkeypatch.delenv(key, raising=False)
    yield hub
    hub.server.shutdown()
    hub.server.server_close()
    hub.thread.join()


@pytest.fixture
def snapshot(hub: Hub, folder: Path, tmp_path: Path) -> Path:
    """The tiny model as the hub's client keeps it on disk."""
    repo = tmp_path / "hub" / "models--org--tiny"
    target = repo / "snapshots" / COMMIT
    shutil.copytree(folder, target)
    (repo / "refs").mkdir()
    (repo / "refs" / "main").write_text(COMMIT)
    (repo / "blobs").mkdir()
    return target


def test_a_model_on_disk_needs_no_network(hub: Hub, snapshot: Path) -> None:
    loaded = load_model("org/tiny")
    assert hub.requests == 0
    provenance = loaded.provenance
    assert (provenance.model, provenance.source, provenance.revision) == ("org/tiny", "hub", COMMIT)
    assert fetch(f"org/tiny@{COMMIT}") == snapshot


def test_listing(hub: Hub, snapshot: Path) -> None:
    (entry,) = hub_entries()
    assert (entry.ref, entry.source, entry.model_type, entry.revision) == ("org/tiny", "hub", "llama", COMMIT)
    assert entry.size_bytes == sum(path.stat().st_size for path in snapshot.iterdir())
    (snapshot / "config.json").write_text('{"model_type": "bloom"}')
    assert hub_entries() == []


def test_no_hub_cache_is_an_empty_list(cache: Path) -> None:
    assert hub_entries() == []


def test_incomplete_snapshot_is_not_a_model(hub: Hub, snapshot: Path) -> None:
    (snapshot / "model.safetensors").unlink()
    assert hub_entries() == []
    with pytest.raises(OfflineError, match="off limits"):
        load_model("org/tiny", offline=True)


@pytest.mark.parametrize("variable", ["HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE"])
def test_offline_by_environment(hub: Hub, monkeypatch: pytest.MonkeyPatch, variable: str) -> None:
    monkeypatch.setenv(variable, "1")
    with pytest.raises(OfflineError) as caught:
        load_model("org/other")
    assert "residue models fetch demo" in caught.value.todo
    assert hub.requests == 0


def test_unreachable_hub_fails_fast(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import huggingface_hub.constants

    monkeypatch.setattr(huggingface_hub.constants, "ENDPOINT", "http://127.0.0.1:9")  # nothing listens there
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", False)
    start = time.monotonic()
    with pytest.raises(OfflineError, match="cannot be reached"):
        fetch("org/other")
    assert time.monotonic() - start < 20


def test_client_that_was_started_offline(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import huggingface_hub.constants

    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(OfflineError):
        fetch("org/other")


@pytest.mark.parametrize(
    ("status", "code", "kind", "message"),
    [
        (404, "RepoNotFound", UnknownModelError, "no model 'org/other'"),
        (401, "RepoNotFound", UnknownModelError, "or it is private"),
        (404, "RevisionNotFound", UnknownModelError, "no revision 'v9'"),
        (403, "GatedRepo", ModelError, "hf auth login"),
        (500, "", OfflineError, "cannot be reached"),
        (429, "", OfflineError, "cannot be reached"),
    ],
)
def test_answers_of_the_hub(hub: Hub, status: int, code: str, kind: type[Exception], message: str) -> None:
    hub.status, hub.headers = status, {"X-Error-Code": code} if code else {}
    start = time.monotonic()
    with pytest.raises(kind) as caught:
        fetch(HubRef("org/other", "v9"))
    assert message in str(caught.value)
    assert time.monotonic() - start < 20


def test_repository_of_pickles(hub: Hub) -> None:
    hub.body = b'{"id": "org/other", "sha": "%s", "siblings": [{"rfilename": "pytorch_model.bin"}]}' % COMMIT.encode()
    with pytest.raises(ModelFolderError, match="has no safetensors"):
        fetch("org/other")


def test_name_that_the_hub_forbids(hub: Hub) -> None:
    with pytest.raises(UnknownModelError, match="no model id"):
        fetch("org/double--dash")
