"""Writes the packaged benchmark ``instruction-conflict`` from the kinds of instruction that a program verifies.

1. ``contradictory`` (level 2): no answer can follow both. ``tension`` (level 1): one answer can follow both, but the worked examples of each ignore the other.
   ``null-compatible`` (level 0): one answer can follow both, and every example does. ``null-same``: one instruction in two wordings.
2. The calibration split uses the first wording of each kind and the first values, the held-out split the second wording, other values, and the two
   instructions the other way round. The kinds of a null pair differ between the splits.
3. Every pair is checked by ``relation`` when the item is made and when it is read; the control is the shell's own choice.

Run: python benchmarks/items/instruction_conflict.py (rewrites src/symbolic_residue/prompts/data/instruction_conflict.jsonl)
"""

from __future__ import annotations

from pathlib import Path

from symbolic_residue.prompts._instructions import Instruction, joint, KINDS, make_instruction, PLAIN, TASKS
from symbolic_residue.shells.instruction_disruption import InstructionItem
from symbolic_residue.shells.instruction_disruption._ask import choose_control

TARGET = Path(__file__).parents[2] / "src/symbolic_residue/prompts/data/instruction_conflict.jsonl"
SPLITS = ("calibration", "held-out")

# Two kinds; "kind:n" takes the n-th value of the split's half of the values, "language:NAME" the language.
CONTRADICTORY = (
    ("uppercase", "lowercase"), ("language:French", "language:German"), ("language:Spanish", "language:English"), ("end:0", "end:1"),
    ("exclaim", "question"), ("exclaim", "dots"), ("question", "dots"), ("contain:0", "avoid:0"), ("numbered", "bullets"), ("numbered", "no-list"),
    ("bullets", "no-list"), ("json", "code"), ("quoted", "brackets"), ("brackets", "stars"), ("stars", "hash"), ("hash", "bullets"),
    ("say-yes", "say-no"), ("start:0", "start:1"), ("only:0", "only:1"), ("digits", "no-digits"), ("numbered", "json"), ("quoted", "bullets"),
    ("numbered", "hash"), ("stars", "numbered"),
)  # fmt: skip
COMPATIBLE = {
    "calibration": (
        ("numbered", "end:0"), ("bullets", "exclaim"), ("hash", "end:1"), ("lowercase", "bullets"), ("language:French", "exclaim"), ("stars", "lowercase"),
        ("language:Spanish", "numbered"), ("one-word", "exclaim"), ("end:2", "lowercase"), ("contain:0", "bullets"), ("no-list", "exclaim"),
        ("no-digits", "end:0"), ("short", "hash"), ("brackets", "lowercase"), ("numbered", "uppercase"),
    ),
    "held-out": (
        ("bullets", "end:0"), ("numbered", "exclaim"), ("stars", "end:1"), ("lowercase", "numbered"), ("language:German", "exclaim"), ("hash", "lowercase"),
        ("language:French", "bullets"), ("one-word", "bullets"), ("end:2", "no-digits"), ("contain:0", "numbered"), ("no-list", "end:0"),
        ("no-digits", "bullets"), ("short", "numbered"), ("quoted", "lowercase"), ("bullets", "uppercase"),
    ),
}  # fmt: skip
SAME = {
    "calibration": (
        "numbered",
        "end:0",
        "exclaim",
        "language:French",
        "one-word",
        "stars",
        "brackets",
        "only:0",
        "contain:0",
        "json",
        "short",
    ),
    "held-out": (
        "bullets",
        "end:0",
        "dots",
        "language:German",
        "lowercase",
        "hash",
        "quoted",
        "only:0",
        "digits",
        "code",
        "no-list",
    ),
}
TENSION = {
    "calibration": (
        ("numbered", "lowercase"), ("bullets", "end:0"), ("hash", "exclaim"), ("uppercase", "end:1"), ("language:French", "numbered"), ("stars", "uppercase"),
        ("language:German", "bullets"), ("exclaim", "lowercase"), ("end:2", "numbered"), ("contain:1", "exclaim"),
    ),
    "held-out": (
        ("bullets", "uppercase"), ("numbered", "end:0"), ("stars", "exclaim"), ("lowercase", "end:1"), ("language:Spanish", "bullets"), ("hash", "uppercase"),
        ("language:French", "numbered"), ("dots", "lowercase"), ("end:2", "bullets"), ("contain:1", "numbered"),
    ),
}  # fmt: skip


def instruction(name: str, split: str, wording: int) -> Instruction:
    """The instruction behind a name, with the split's values."""
    kind, _, value = name.partition(":")
    if value.isdigit():
        values = KINDS[kind].values
        half = len(values) // 2
        value = values[int(value) + (half if split == "held-out" else 0)]
    return make_instruction(kind, value, wording=wording)


def item(kind: str, number: int, level: int, names: tuple[str, str], split: str, a: Instruction, b: Instruction) -> InstructionItem:
    """One item, checked."""
    if level == 0 and a.kind != b.kind:
        assert all(joint(a, b, plain) is not None for plain in (*PLAIN, *TASKS)), names
    return InstructionItem(
        id=f"{kind}-{number:02d}",
        kind=kind,
        frame=" + ".join(sorted(n.split(":")[0] for n in names)),
        split=split,  # type: ignore[arg-type]
        a=a,
        b=b,
        control=choose_control(a, b),
        level=level,  # type: ignore[arg-type]
    )


def items() -> list[InstructionItem]:
    """All items, kinds in order, calibration before held-out."""
    out: list[InstructionItem] = []
    for kind, level in (("contradictory", 2), ("tension", 1), ("null-compatible", 0), ("null-same", 0)):
        number = 0
        for s, split in enumerate(SPLITS):
            pairs = {
                "contradictory": CONTRADICTORY,
                "tension": TENSION[split],
                "null-compatible": COMPATIBLE[split],
                "null-same": tuple((name, name) for name in SAME[split]),
            }[kind]
            for names in pairs:
                number += 1
                if kind == "null-same":
                    a, b = (instruction(names[0], split, wording) for wording in (0, 1))
                else:
                    a, b = (instruction(name, split, s) for name in names)
                    if s:
                        a, b = b, a
                out.append(item(kind, number, level, names, split, a, b))
    return out


if __name__ == "__main__":
    TARGET.write_text("".join(f"{one.model_dump_json()}\n" for one in items()), encoding="utf-8")
