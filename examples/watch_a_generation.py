"""Where the model looks while it writes: each new token with its probability and what the attention of its row fell on.

Run: python examples/watch_a_generation.py ["your question"]
"""

import math
import sys

from symbolic_residue import AttentionRead, build_prompt, Instrument, open_model
from symbolic_residue.instrument import collate, stream

QUESTION = "Name three rivers in Europe, each with the country of its mouth."


def main(question: str = QUESTION, max_new_tokens: int = 40) -> None:
    loaded = open_model("demo")
    prompt = build_prompt(loaded.tokenizer, question, chat=True)
    steps = stream(
        Instrument(loaded), collate([prompt]), max_new_tokens=max_new_tokens, attention=AttentionRead(stats=("mass", "entropy"))
    )
    for step in steps:
        table = step.trace.attention
        token = loaded.tokenizer.decode(step.ids)
        shares = [f"{name} {float(table.mass(name).mean()):.2f}" for name in ("sink", "system", "user", "generated")]
        print(
            f"{token!r:>16}  p {math.exp(step.log_probs[0]):.2f}  entropy {float(step.entropy[0]):.2f} nats | {', '.join(shares)}"
        )
    print(f"ended by: {step.stops[0].reason}")


if __name__ == "__main__":
    main(*sys.argv[1:2])
