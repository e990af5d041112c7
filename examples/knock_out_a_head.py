"""A head knocked out: does the model still repeat what it has read once, and is it this head or any head?

1. Find the strongest induction heads on random tokens.
2. On other random tokens, repeated, set the outputs of these heads to zero and measure how much worse the second half is predicted (nats a token).
3. The control knocks out as many heads drawn at random from the same layers.

Run: python examples/knock_out_a_head.py
"""

import random

import torch

from symbolic_residue import Instrument, open_model
from symbolic_residue.instrument import HeadScale
from symbolic_residue.readout import induction_scores
from symbolic_residue.stats import bootstrap_mean

HALF, SEQUENCES, HEADS = 32, 12, 6

instrument = Instrument(open_model("demo"))
strongest = [(layer, head) for layer, head, _, _ in induction_scores(instrument, seed=0).best(HEADS)]
generator = torch.Generator().manual_seed(1)
halves = torch.stack([torch.randperm(48000, generator=generator)[:HALF] + 200 for _ in range(SEQUENCES)])
ids = torch.cat([halves, halves], 1)


def surprise(heads: list[tuple[int, int]]) -> torch.Tensor:
    """Mean −log p of the second half's tokens (its first cannot be foreseen), ``[sequence]``, with these heads knocked out."""
    logits = instrument.run(ids, edits=[HeadScale(layer, head, 0.0) for layer, head in heads])["logits"]
    log_p = torch.log_softmax(logits[:, HALF:-1].float(), -1)
    return -log_p.gather(-1, ids[:, HALF + 1 :, None])[..., 0].mean(-1)


rng = random.Random(0)
others: list[tuple[int, int]] = []
for layer, _ in strongest:
    left = [(layer, head) for head in range(instrument.parts.n_heads) if (layer, head) not in [*strongest, *others]]
    others.append(rng.choice(left))
whole = surprise([])
print("whole model:", round(float(whole.mean()), 3), "nats a token")
for name, heads in (("strongest induction heads", strongest), ("random heads of the same layers", others)):
    change = bootstrap_mean((surprise(heads) - whole).numpy(), seed=0)
    print(f"{name} {heads}: {change.value:+.3f} [{change.low:+.3f}, {change.high:+.3f}] nats a token, {change.n} sequences")
