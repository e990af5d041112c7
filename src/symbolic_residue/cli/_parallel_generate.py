"""``residue parallel generate``: every token above a threshold enters the same sequence; the tree grows in the terminal and is kept in a run folder.

1. Options are judged first, then the model's positions (``check_rotary``), then a single prompt: what is refused leaves no folder behind.
2. Each prompt is one item: its tree as tables, with ``--capture`` also the attention of every step. A prompt of a file that cannot be read is a failed item.
3. ``--resume`` goes on with an unfinished run of the same options.
"""

from __future__ import annotations

from typing import Annotated, Any, TYPE_CHECKING

import typer

from symbolic_residue.cli._common import (
    Adapter,
    Chat,
    default_output,
    Device,
    Dtype,
    echo_json,
    File,
    gather_prompts,
    Json,
    Model,
    NoReport,
    open_for_cli,
    Prompt,
    Resume,
)
from symbolic_residue.cli._parallel_options import (
    Bias,
    config_of,
    Embedding,
    embedding_of,
    Epsilon,
    Follow,
    IgnoreEnd,
    MaxKeys,
    MaxSiblings,
    MaxSteps,
    Mode,
    Out,
    Prune,
    PruneAfter,
    PruneHeads,
    PruneLayers,
    PruneLeast,
    PruneRemoval,
    PruneSource,
    Scheme,
    Threshold,
)
from symbolic_residue.cli._words import words

if TYPE_CHECKING:
    from symbolic_residue.diagnose import ItemResult
    from symbolic_residue.instrument import Instrument
    from symbolic_residue.parallel import ParallelConfig, Tree
    from symbolic_residue.prompts import PromptItem

__all__ = ["KIND", "generate_command", "plain_config", "read_prompt"]

KIND = "parallel"
"""Kind of the run."""


def generate_command(
    prompt: Prompt = None,
    file: File = None,
    chat: Chat = False,
    model: Model = "demo",
    adapter: Adapter = None,
    threshold: Threshold = "0.1",
    mode: Mode = None,
    scheme: Scheme = None,
    epsilon: Epsilon = None,
    follow: Follow = None,
    max_steps: MaxSteps = 30,
    max_siblings: MaxSiblings = 20,
    max_keys: MaxKeys = None,
    bias: Bias = None,
    embedding: Embedding = None,
    ignore_end: IgnoreEnd = False,
    prune: Prune = None,
    prune_least: PruneLeast = None,
    prune_after: PruneAfter = None,
    prune_removal: PruneRemoval = None,
    prune_layers: PruneLayers = None,
    prune_heads: PruneHeads = None,
    prune_source: PruneSource = None,
    capture: Annotated[
        bool, typer.Option("--capture", help="Keep every step's attention [layer, head, query, key] and the map of its keys.")
    ] = False,
    dtype: Dtype = "float32",
    device: Device = "cpu",
    out: Out = None,
    resume: Resume = False,
    no_report: NoReport = False,
    json: Json = False,
) -> None:
    """Let every token above a threshold into the same sequence, and show the tree that grows."""
    prompts = gather_prompts(prompt, file)
    config = config_of(
        threshold=threshold, mode=mode, scheme=scheme, epsilon=epsilon, follow=follow, max_steps=max_steps, max_siblings=max_siblings,
        max_keys=max_keys, bias=bias, ignore_end=ignore_end, prune=prune, prune_least=prune_least, prune_after=prune_after,
        prune_removal=prune_removal, prune_layers=prune_layers, prune_heads=prune_heads, prune_source=prune_source,
    )  # fmt: skip
    _check_use(config, embedding)
    loaded = open_for_cli(model, adapter=adapter, dtype=dtype, device=device)
    from symbolic_residue.diagnose import failed_item
    from symbolic_residue.instrument import Instrument
    from symbolic_residue.parallel import check_pruning, check_rotary
    from symbolic_residue.store import RunFolder

    instrument = Instrument(loaded)
    check_rotary(instrument)
    check_pruning(instrument, config)
    vector = embedding_of(embedding, instrument)
    if file is None:
        read_prompt(instrument, prompts.items[0], chat=chat)
    path = out or default_output("parallel")
    kept = {**plain_config(config), "chat": chat, "capture": capture, "embedding": _digest(vector)}
    done: list[tuple[str, Any, Any]] = []
    with RunFolder.create(
        path,
        kind=KIND,
        command=["residue", *words.get()],
        provenance=loaded.provenance.model_dump(mode="json"),
        config=kept,
        planned=len(prompts.items) + len(prompts.bad),
        resume=resume,
    ) as run:
        there = {*run.done_items()}
        for item in prompts.items:
            if item.id in there:
                continue
            result, tree = _work(instrument, item, config, chat=chat, capture=capture, vector=vector, live=not json)
            run.write_item(result.item, result.tables, result.tensors)
            done.append((item.id, result, tree))
            if tree is not None and tree.stop == "interrupted":
                raise KeyboardInterrupt
        for line in prompts.bad:
            name = f"line-{line.number:05d}"
            if name not in {*run.done_items(), *run.failed_items()}:
                bad = failed_item(name, line.text, f"Line {line.number}: {line.reason}", chat=False, seed=0)
                run.write_item(bad.item, bad.tables)
                done.append((name, bad, None))
    page = None
    if not no_report:
        from symbolic_residue.report import render_report

        page = render_report(path)
    _show(done, str(path), None if page is None else str(page), as_json=json)
    raise typer.Exit(1 if RunFolder.open(path).failed_items() else 0)


def plain_config(config: ParallelConfig) -> dict[str, Any]:
    """The configuration as the manifest keeps it."""
    from dataclasses import asdict

    held = asdict(config) | {"threshold": str(config.schedule)}
    return {key: list(value) if isinstance(value, tuple) else value for key, value in held.items()}


def _check_use(config: ParallelConfig, embedding: Any) -> None:
    from symbolic_residue.errors import ConfigError

    if embedding is not None and (min(config.schedule.values) == 1 or config.max_siblings == 1):
        raise ConfigError(
            "--embedding has nothing to act on.", why="Every set holds one token.", todo="Lower the threshold, or leave it out."
        )


def _digest(vector: Any) -> str | None:
    import hashlib

    return None if vector is None else hashlib.sha256(vector.double().numpy().tobytes()).hexdigest()


def read_prompt(instrument: Instrument, item: PromptItem, *, chat: bool) -> Any:
    """The prompt, tokenised.

    Raises:
        PromptError: empty, or no room in the context.
    """
    from symbolic_residue.errors import PromptError
    from symbolic_residue.prompts import build_prompt

    limit = instrument.parts.max_context
    messages = None if item.messages is None else [{"role": m["role"], "content": m["content"]} for m in item.messages]
    built = build_prompt(
        instrument.loaded.tokenizer, item.prompt, messages=messages, chat=chat and messages is None, max_tokens=limit
    )
    if limit is not None and len(built) >= limit:
        raise PromptError(
            f"A prompt of {len(built)} tokens leaves no room in the model's context of {limit}.", todo="Shorten the text."
        )
    return built


def _work(
    instrument: Instrument, item: PromptItem, config: ParallelConfig, *, chat: bool, capture: bool, vector: Any, live: bool
) -> tuple[ItemResult, Tree | None]:
    """One prompt's tree as an item of the run; a prompt that cannot be read is a failed one."""
    from symbolic_residue.cli._parallel_show import growing
    from symbolic_residue.diagnose import failed_item, ItemResult, items_row
    from symbolic_residue.errors import InputError
    from symbolic_residue.parallel import Capture, decode, tree_tables

    asked = item.prompt if item.prompt is not None else item.messages[-1]["content"] if item.messages else ""
    try:
        built = read_prompt(instrument, item, chat=chat)
    except InputError as error:
        return failed_item(item.id, asked, str(error), chat=chat or item.messages is not None, seed=0), None
    held = Capture(instrument.loaded.tokenizer) if capture else None
    with growing(live) as show:

        def on_step(grown: Any) -> None:
            if held is not None:
                held.add(grown)
            if show is not None:
                show(grown)

        (tree,) = decode(instrument, [built.ids], config, weights=capture, embedding=vector, checked=True, on_step=on_step)
    several = sum(len(step.tokens) > 1 for step in tree.steps)
    summary = f"{len(tree.steps)} steps, {several} sets of several tokens; stop: {tree.stop}."
    cut = tree.stop == "interrupted"  # kept, and grown anew by --resume
    row = items_row(
        prompt=asked,
        text=built.text,
        chat=built.chat,
        n_tokens=len(built),
        seed=0,
        status="failed" if cut else "done",
        error=f"Interrupted after {len(tree.steps)} steps." if cut else None,
        summary=summary,
    )
    tables = {"items": row, **tree_tables(tree)}
    tensors: dict[str, Any] = {}
    if held is not None:
        tables["parallel_keys"], tensors = held.key_map(), held.tensors()
    return ItemResult(item.id, tables, tensors, summary), tree


def _show(done: list[tuple[str, Any, Any]], path: str, page: str | None, *, as_json: bool) -> None:
    if as_json:
        import json

        items = [
            {
                "item": name,
                "status": "failed" if tree is None else "done",
                "summary": result.summary,
                **(
                    {}
                    if tree is None
                    else {"text": tree.text, "alternatives": tree.rendered(), "stop": tree.stop, "tree": json.loads(tree.to_json())}
                ),
            }
            for name, result, tree in done
        ]
        echo_json({"run": path, "report": page, "items": items})
        return
    from rich.console import Console
    from rich.markup import escape

    from symbolic_residue.cli._parallel_show import show_tree
    from symbolic_residue.figures import visible

    console = Console(highlight=False)
    for name, result, tree in done:
        if tree is None:
            console.print(f"[bold]{escape(visible(name))}[/]: [red]failed[/] {escape(visible(result.summary))}", soft_wrap=True)
        else:
            show_tree(name, tree, steps=len(done) <= 3)
    console.print(f"run: {escape(path)}", soft_wrap=True)
    if page is not None:
        console.print(f"report: {escape(page)}", soft_wrap=True)
