"""Induction heads of a model, in fifteen lines: which heads look at the token after the previous occurrence of this one?

Run: python examples/induction_heads.py
"""

from symbolic_residue import Instrument, open_model
from symbolic_residue.readout import copying_scores, induction_scores

loaded = open_model("demo")
found = induction_scores(Instrument(loaded), seed=0)  # 16 sequences of 32 random tokens, each repeated
copying = copying_scores(loaded.parts)
print(f"{found.n} sequences; control: {found.control_text}; uniform attention would score {found.uniform:.3f}")
print("head   attention to the token after the previous occurrence [95 % interval]   control   copying score of its OV circuit")
for layer, head, score, control in found.best(8):
    shown = f"{score.value:.2f} [{score.low:.2f}, {score.high:.2f}]"
    print(f"{layer:2}.{head}   {shown:>66}   {control.value:7.3f}   {float(copying.scores[layer, head]):.2f}")
print(f"random matrices' copying score: {copying.control.value:.2f} [{copying.control.low:.2f}, {copying.control.high:.2f}]")
