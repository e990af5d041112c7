"""Which sublayers carry what an adapter changed? One prompt, two models: the adapted model's activations into the base, a few prompts.

The adapter is random (fixed seed) and adapts the MLPs of layers 10 to 14 only, so the answer is known. Run: python examples/base_against_adapter.py
"""

import copy

import torch
from peft import get_peft_model, LoraConfig

from symbolic_residue import build_prompt, Instrument, open_model
from symbolic_residue.models import wrap
from symbolic_residue.readout import KLToSource, patch_pairs, patch_sweep

TEXTS = (
    "The key is in the box. The box is in the",
    "My favourite colour of all is",
    "She opened the door and saw a",
    "Water boils at a temperature of",
)

loaded = open_model("demo")
config = LoraConfig(
    r=4, target_modules=["down_proj"], layers_to_transform=[10, 11, 12, 13, 14], task_type="CAUSAL_LM", init_lora_weights=False
)
torch.manual_seed(0)
adapted = get_peft_model(copy.deepcopy(loaded.model), config).eval()
base, tuned = Instrument(loaded), Instrument(wrap(adapted, loaded.tokenizer))

pairs = patch_pairs([build_prompt(loaded.tokenizer, text) for text in TEXTS], positions=("all",))
sweep = patch_sweep(
    base, pairs, source=tuned, metric=KLToSource(), components=("attn_out", "mlp_out"), layers=range(8, 17), floor=1e-4, controls=1
)
for row in sweep.summary().iter_rows(named=True):
    print(
        f"{row['component']}.{row['layer']:<3} recovered {row['recovered']:+.3f} [{row['recovered_low']:+.3f}, {row['recovered_high']:+.3f}]  "
        f"control {row['control']:+.3f}  n = {row['n']} prompts"
    )
