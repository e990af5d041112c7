"""Where does the model keep the country while it looks for the capital? Activation patching between prompts, over six pairs.

Run: python examples/patching_two_prompts.py
"""

from symbolic_residue import build_prompt, Instrument, open_model
from symbolic_residue.prompts import find_span
from symbolic_residue.readout import LogitDifference, patch_pair, patch_sweep

CAPITALS = {"France": " Paris", "Italy": " Rome", "Japan": " Tokyo", "Spain": " Madrid", "Egypt": " Cairo", "Germany": " Berlin"}

loaded = open_model("demo")
instrument, tokenizer = Instrument(loaded), loaded.tokenizer
countries, pairs, metrics = list(CAPITALS), [], []
for clean, corrupted in zip(countries, countries[1:] + countries[:1], strict=True):
    prompts = [build_prompt(tokenizer, f"The capital city of {country} is called") for country in (clean, corrupted)]
    subjects = tuple(find_span(prompt, text=country) for prompt, country in zip(prompts, (clean, corrupted), strict=True))
    pairs.append(patch_pair(*prompts, positions={"subject": subjects, "last": "last"}, name=f"{clean} into {corrupted}"))
    right, wrong = (tokenizer(CAPITALS[country], add_special_tokens=False).input_ids[0] for country in (clean, corrupted))
    metrics.append(LogitDifference(right, wrong))

sweep = patch_sweep(instrument, pairs, metric=metrics, components=("resid_pre",), layers=(0, 12, 18, 21, 24, 27))
for row in sweep.summary().iter_rows(named=True):
    print(
        f"resid_pre.{row['layer']:<2} {row['positions']:8}recovered {row['recovered']:+.2f} [{row['recovered_low']:+.2f}, {row['recovered_high']:+.2f}]  "
        f"control {row['control']:+.2f}  n = {row['n']} pairs"
    )
