"""``residue concepts validate``: what is wrong with a corpus of concept texts.

Exit code: 0 nothing found, 1 warnings only, 2 something is refused.
"""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any, TYPE_CHECKING

import typer

from symbolic_residue.cli._common import echo_json, Json

if TYPE_CHECKING:
    from symbolic_residue.concepts import Corpus, Violation

__all__ = ["validate_command"]

WARNED, REFUSED = 1, 2
_SHOWN = 50


def validate_command(
    corpus: Annotated[
        Path | None,
        typer.Argument(metavar="[FOLDER|FILE]", help="A corpus: folder or JSONL. Default: the packaged one.", show_default=False),
    ] = None,
    model: Annotated[
        str | None, typer.Option("--model", "-m", help="Also: does every text fit this model's context?", show_default=False)
    ] = None,
    show_all: Annotated[bool, typer.Option("--all", help=f"Every finding, not the first {_SHOWN}.")] = False,
    words: Annotated[
        bool, typer.Option("--words-alone", help="Also: how well do words alone tell each concept? No model.")
    ] = False,
    card: Annotated[bool, typer.Option("--card", help="Print the packaged corpus's data card and stop.")] = False,
    json: Json = False,
) -> None:
    """What is wrong with a corpus: refused or warned, with file and line. Exit code 0 nothing, 1 warnings, 2 refused."""
    from symbolic_residue.concepts import corpus_card, packaged_corpus, scan_corpus, validate_corpus

    if card:
        typer.echo(corpus_card().rstrip())
        return
    tokenizer, context = (None, None) if model is None else _tokenizer(model)
    source: Any = packaged_corpus() if corpus is None else corpus
    found = validate_corpus(source, tokenizer=tokenizer, context=context)
    read = source if corpus is None else scan_corpus(corpus)[0]
    counts = _counts(read)
    if words:
        _add_words(read, counts)
    refused = sum(one.severity == "refused" for one in found)
    if json:
        echo_json(
            {
                "corpus": "packaged" if corpus is None else str(corpus),
                "sha256": read.sha256,
                "concepts": counts,
                "scenarios": len(read.scenarios),
                "texts": len(read.texts),
                "refused": refused,
                "warned": len(found) - refused,
                "violations": [asdict(one) for one in found],
            }
        )
    else:
        _show(read, counts, found, refused, None if show_all else _SHOWN)
    raise typer.Exit(REFUSED if refused else WARNED if found else 0)


def _tokenizer(model: str) -> tuple[Any, int | None]:
    """Tokenizer and context of a model, without its weights.

    Raises:
        ModelError: the model cannot be had.
    """
    from transformers import AutoConfig, AutoTokenizer

    from symbolic_residue.errors import ModelFolderError
    from symbolic_residue.models import fetch

    folder = str(fetch(model))
    try:
        tokenizer = AutoTokenizer.from_pretrained(folder, trust_remote_code=False, local_files_only=True)
        config: Any = AutoConfig.from_pretrained(folder, trust_remote_code=False, local_files_only=True)
    # The tokenizers library raises plain Exception on a damaged file, so nothing narrower catches it.
    except Exception as error:
        raise ModelFolderError(
            f"The tokenizer in {folder} cannot be loaded.", why=f"{type(error).__name__}: {str(error).strip()[:300]}"
        ) from error
    return tokenizer, getattr(config.get_text_config(), "max_position_embeddings", None)


def _counts(corpus: Corpus) -> list[dict[str, Any]]:
    """For each concept, the neutral telling first: family, texts, pairs, words a text."""
    from symbolic_residue.concepts import BASELINE

    rows = []
    for name in (BASELINE, *corpus.concepts):
        texts = corpus.positives(name)
        words = [len(one.text.split()) for one in texts]
        stated = corpus.meanings.get(name)
        rows.append(
            {
                "concept": name,
                "family": stated.family if stated is not None else None,
                "texts": len(texts),
                "pairs": len(corpus.pairs(name)) if name != BASELINE else None,
                "words": sum(words) / len(words) if words else None,
            }
        )
    return rows


_WORDS = {"baseline": "words alone, against neutral", "others": "words alone, against others"}


def _add_words(corpus: Corpus, counts: list[dict[str, Any]]) -> None:
    """Held-out AUC of words alone, as text, with interval and n."""
    from symbolic_residue.concepts import words_alone

    by_name = {row["concept"]: row for row in counts}
    for one in words_alone(corpus):
        auc = one.auc
        by_name[one.concept][f"words_{one.against}"] = (
            None
            if auc.value != auc.value
            else {"auc": auc.value, "low": auc.low, "high": auc.high, "scenarios": auc.n, "method": auc.method}
        )


def _auc(value: dict[str, Any] | None) -> str:
    return "–" if value is None else f"{value['auc']:.2f} [{value['low']:.2f}, {value['high']:.2f}] n={value['scenarios']}"


def _show(corpus: Corpus, rows: list[dict[str, Any]], found: list[Violation], refused: int, most: int | None) -> None:
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    from symbolic_residue.cli._errors import visible

    console = Console(highlight=False)
    counts = Table(box=None, pad_edge=False)
    for title in ("concept", "family", "texts", "pairs", "words a text"):
        counts.add_column(title, justify="left" if title in ("concept", "family") else "right")
    shown = [against for against in _WORDS if any(f"words_{against}" in row for row in rows)]
    for against in shown:
        counts.add_column(_WORDS[against])
    for row in rows:
        words = "–" if row["words"] is None else f"{row['words']:.1f}"
        pairs = "–" if row["pairs"] is None else str(row["pairs"])
        counts.add_row(
            Text(visible(row["concept"])),
            Text(visible(row["family"] or "–")),
            str(row["texts"]),
            pairs,
            words,
            *(_auc(row.get(f"words_{a}")) for a in shown),
        )
    console.print(counts)
    if shown:
        console.print(
            "Words alone: AUC within the scenario left out, naive Bayes on the others; 0.5 is chance, n counts scenarios."
        )
    console.print(f"{len(corpus.texts)} texts, {len(corpus.scenarios)} scenarios.")
    if not found:
        console.print("Nothing is wrong with it.")
        return
    table = Table(box=None, pad_edge=False)
    for title in ("", "what", "where", "concept", "scenario", "detail"):
        table.add_column(title, overflow="fold")
    for one in found[:most]:
        where = one.place or "–"
        cells = (one.severity, one.kind, where, one.concept or "–", one.scenario or "–", one.detail)
        table.add_row(*(Text(visible(cell)) for cell in cells))
    console.print(table)
    left = len(found) - len(found[:most])
    console.print(f"{refused} refused, {len(found) - refused} warned." + (f" {left} more: --all." if left else ""))
