"""The packaged corpus in the demo model's tokens, and the command that asks whether a corpus fits a model."""

from __future__ import annotations

import json

import pytest

from symbolic_residue.cli import main
from symbolic_residue.concepts import packaged_corpus
from symbolic_residue.models import fetch

pytestmark = pytest.mark.model


@pytest.fixture(scope="module")
def tokenizer():
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(str(fetch("demo")), local_files_only=True)


def test_every_text_ends_in_the_same_token(tokenizer):
    last = {tokenizer(one.text, add_special_tokens=False)["input_ids"][-1] for one in packaged_corpus().texts}
    assert {tokenizer.decode([token]) for token in last} == {"."} and len(last) == 1


def test_every_text_fits_the_demo_model_and_a_long_one_does_not(tmp_path, capsys, tokenizer):
    assert main(["concepts", "validate", "--model", "demo"]) == 0
    capsys.readouterr()
    rows = [{"concept": "awe", "text": f"Text {i} of its own."} for i in range(4)] + [{"concept": "awe", "text": "hen " * 200_000}]
    (tmp_path / "a.jsonl").write_text("\n".join(json.dumps(row) for row in rows))
    assert main(["concepts", "validate", str(tmp_path / "a.jsonl"), "--model", "demo", "--json"]) == 2
    (found,) = json.loads(capsys.readouterr().out)["violations"]
    assert (found["kind"], found["line"]) == ("too long", 5) and "tokens, the context holds" in found["detail"]
