"""The cache: entries whole or not at all, checked when opened."""

from __future__ import annotations

from pathlib import Path

import pytest

from symbolic_residue.errors import DamagedFileError, WriteError
from symbolic_residue.models import cache_dir, cached, CacheEntry
from symbolic_residue.models._cache import building, entries_dir, file_sha256, read_entry, weights_digest, write_record

ENTRY = CacheEntry(ref="pypi:a==1", source="wheel", model_type="llama", revision="1")


def make(key: str = "a-1") -> Path:
    with building(key) as folder:
        assert folder is not None
        (folder / "weights").write_bytes(b"12345")
        write_record(folder, ENTRY)
    return entries_dir() / key


def leftovers() -> list[str]:
    return [path.name for path in entries_dir().iterdir() if ".tmp-" in path.name]


def test_cache_dir_follows_the_environment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RESIDUE_CACHE", str(tmp_path / "here"))
    assert cache_dir() == tmp_path / "here"
    monkeypatch.delenv("RESIDUE_CACHE")
    assert cache_dir().name == "symbolic-residue"


def test_an_entry_appears_when_it_is_whole(cache: Path) -> None:
    assert cached() == []
    folder = make()
    (entry,) = cached()
    assert entry.folder == folder
    assert entry.files == {"weights": 5}
    assert entry.size_bytes == 5
    assert leftovers() == []


def test_a_second_builder_is_told_that_it_is_there(cache: Path) -> None:
    make()
    with building("a-1") as folder:
        assert folder is None


@pytest.mark.parametrize("error", [KeyboardInterrupt, ValueError])
def test_an_interrupted_build_leaves_nothing(cache: Path, error: type[BaseException]) -> None:
    with pytest.raises(error), building("a-1") as folder:
        assert folder is not None
        (folder / "weights").write_bytes(b"1")
        raise error
    assert cached() == []
    assert leftovers() == []
    make()  # and the lock is free again


def test_what_a_killed_process_left_is_cleared(cache: Path) -> None:
    stale = entries_dir() / ".a-1.tmp-killed"
    stale.mkdir(parents=True)
    (stale / "half").write_bytes(b"1")
    (entries_dir() / "a-1").mkdir()  # a folder without a record is no entry
    make()
    assert leftovers() == []
    assert len(cached()) == 1


def test_damage_is_named(cache: Path) -> None:
    folder = make()
    (folder / "weights").write_bytes(b"123")
    with pytest.raises(DamagedFileError, match="has 3 bytes instead of 5"):
        read_entry(folder)
    (folder / "weights").unlink()
    with pytest.raises(DamagedFileError, match="is missing"):
        cached()
    (folder / "residue-model.json").write_text('{"ref": 1')
    with pytest.raises(DamagedFileError, match="cannot be read"):
        read_entry(folder)


def test_an_unwritable_cache_is_a_write_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").write_text("in the way")
    monkeypatch.setenv("RESIDUE_CACHE", str(tmp_path / "file"))
    with pytest.raises(WriteError, match="RESIDUE_CACHE"), building("a-1"):
        pass


def test_full_disk_while_building(cache: Path) -> None:
    import errno

    with pytest.raises(WriteError, match="disk is full"), building("a-1"):
        raise OSError(errno.ENOSPC, "No space left on device")
    with pytest.raises(FileNotFoundError), building("a-1"):
        raise FileNotFoundError("another reason passes unchanged")
    assert cached() == []


def test_weights_digest(tmp_path: Path) -> None:
    import hashlib

    one, two = tmp_path / "1.safetensors", tmp_path / "2.safetensors"
    one.write_bytes(b"one")
    two.write_bytes(b"two")
    assert weights_digest([one]) == file_sha256(one) == hashlib.sha256(b"one").hexdigest()
    assert weights_digest([one, two]) == weights_digest([two, one])
    before = weights_digest([one, two])
    two.write_bytes(b"tvo")
    assert weights_digest([one, two]) != before
