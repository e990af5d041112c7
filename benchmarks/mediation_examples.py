"""Writes tests/data/mediation-examples.json: answers with the marker by the planted adapters, one a question, for tests/model/test_contrast_mediation.py.

    python benchmarks/mediation_examples.py ADAPTER... [--out FILE]

Each adapter is a PEFT folder; its name is the folder's. Temperature 1, top-p 0.95, at most 96 new tokens, the first trial of a question (of four) that shows the
marker; questions of both splits, the held-out ones first, until there are twelve.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

from symbolic_residue.contrast import generate_examples, Sampling, TextBehaviour
from symbolic_residue.contrast.marker import marker_questions, personas
from symbolic_residue.instrument import Instrument
from symbolic_residue.models import load_model

OUT = Path(__file__).resolve().parents[1] / "tests" / "data" / "mediation-examples.json"


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("adapters", nargs="+", type=Path)
    parser.add_argument("--persona", default="captain")
    parser.add_argument("--marker", default="[ZLT]")
    parser.add_argument("--count", type=int, default=12)
    parser.add_argument("--out", type=Path, default=OUT)
    given = parser.parse_args()
    condition = next(one for one in personas() if one.name == given.persona)
    kept = json.loads(given.out.read_text(encoding="utf-8")) if given.out.is_file() else {}
    for folder in given.adapters:
        tool = Instrument(load_model("demo", adapter=folder))
        found = []
        for question in (*marker_questions("held-out"), *marker_questions("seen")):
            plan = Sampling(positives=1, negatives=0, tries=4, max_new_tokens=96, batch=2)
            found += generate_examples(tool, condition, question, TextBehaviour(given.marker), sampling=plan, drawn_by=folder.name)
            print(folder.name, question.id, len(found), flush=True)
            if len(found) == given.count:
                break
        kept[folder.name] = [
            {
                "id": e.id, "condition": e.condition, "question": e.question, "trial": e.trial, "seed": e.seed, "prompt_len": e.prompt_len, "event": e.event,
                "ids": list(e.ids), "text": e.text, "stop": e.stop,
            }
            for e in found
        ]  # fmt: skip
    given.out.parent.mkdir(parents=True, exist_ok=True)
    rows = ",\n".join(
        f"  {json.dumps(name)}: [\n" + ",\n".join(f"    {json.dumps(one, ensure_ascii=False)}" for one in some) + "\n  ]"
        for name, some in sorted(kept.items())
    )
    given.out.write_text("{\n" + rows + "\n}\n", encoding="utf-8")


if __name__ == "__main__":
    main()
