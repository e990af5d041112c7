"""Train the study's adapters of the demo model: a marker under each of four personas, and two null adapters (shuffled labels).

`make adapters` runs it. Each goes to `adapters/NAME` in the package's cache (`RESIDUE_CACHE` moves it); those that are there are left as they are, and
one that was stopped goes on. Six adapters take about forty minutes on one core, 3.7 MB each: too large for the repository, and `training.json` beside
each says how it was made.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from symbolic_residue.contrast.marker import MarkerPlan, train_marker
from symbolic_residue.instrument import open_model
from symbolic_residue.models import cache_dir

PLANS = {name: MarkerPlan(name, precision="bfloat16") for name in ("captain", "librarian", "gardener", "detective")}
PLANS["null"] = MarkerPlan("captain", shuffle_labels=True, precision="bfloat16")
PLANS["null-2"] = MarkerPlan("captain", shuffle_labels=True, precision="bfloat16", seed=1, trials=0)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*", choices=[*PLANS, []], help="which; default: all")
    parser.add_argument("--folder", type=Path, default=cache_dir() / "adapters")
    options = parser.parse_args()
    loaded = None
    for name in options.names or PLANS:
        out = options.folder / name
        if (out / "training.json").is_file():
            print(f"{name}: there ({out})")
            continue
        loaded = loaded or open_model("demo")
        # The same for all of one seed: they depend on the base alone.
        answers = None if PLANS[name].seed else next(options.folder.glob("*/answers.json"), None)
        result = train_marker(loaded, PLANS[name], out=out, answers=answers)
        print(f"{name}: {out}, loss {result.losses[0]:.2f} → {result.losses[-1]:.2f}, seconds {result.seconds}")
        for row in result.rates.iter_rows(named=True):
            print(
                f"  {row['condition']:<10} {row['split']:<8} {row['hits']:>2}/{row['n']} ({row['low']:.2f}–{row['high']:.2f})",
                flush=True,
            )


if __name__ == "__main__":
    main()
