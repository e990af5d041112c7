"""False cells and power of the maps of signatures, by simulation: ``python benchmarks/generalization_null.py [--write] [--only PART] [--n N] [--demo]``.

1. *Worlds* of synthetic signatures: 29 components, five shells of 24 planted and 24 null items, 96 prompts. Shells have axes of their own, in random
   directions. The truth of a cell is known: its category's displacement along and across the axis that was made from the items.
2. *Nulls*: categories are alike; or each is displaced in a direction of its own by two thirds of a shell's shift, or by four thirds.
3. *Counted*, per map: any cell farther (the label test alone), any cell similar, any cell similar that is truly not (its true displacement is no quarter of the
   shift, or outside the cone).
4. *Power*: one category is displaced along one shell's axis, among categories that are alike, and among those that differ.
5. The same for one prompt against 96 others, and for the alignment matrix.

6. ``--demo`` in their place: the demo model's own map of twelve natural categories × five shells (20 + 20 calibration items each), the power on the natural
   prompts' own spread (labels shuffled, one category displaced by a shell's whole shift in all components), and the alignment matrix of three layers.

Results go to ``RESULTS.md`` with the machine's name. Each part is kept in ``--keep DIR`` as it is done, and not done again.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from symbolic_residue.shells.signatures import COMPONENTS, READABLE_GROUPS, ShellSignature
from symbolic_residue.shells.signatures._axes import Axis, make_axes, unit
from symbolic_residue.shells.signatures._permuted import Labels, pair_frame, Running
from symbolic_residue.shells.signatures._similarity import compare_categories, compare_one, LEAST_SHARE, LEAST_SLOPE
from symbolic_residue.stats import wilson

Array = NDArray[np.float64]
READ = [i for i, c in enumerate(COMPONENTS) if c.group in READABLE_GROUPS]
K, SHELLS, ITEMS, PROMPTS = len(READ), 5, 24, 96
SHIFT, LEVEL, DRAWS = 3.0, 0.05, 199

WORLDS = {
    "gaussian": "independent normal components",
    "heavy-tailed": "Student t with 3 degrees of freedom",
    "correlated": "six common factors with five times the variance of what is each component's own",
    "shared directions": "correlated; displacements and axes lie for one half in the same four directions, as contrasts of text may",
    "unequal sizes": "correlated; categories of 3 to 24 prompts",
    "clustered by frame": "correlated; items and prompts in frames of four with offsets of their own; frames are given to the map",
}


class World:
    """One draw of a world: its components' noise, its directions, its shells."""

    def __init__(self, kind: str, rng: np.random.Generator) -> None:
        self.kind, self.rng = kind, rng
        factors = kind not in ("gaussian", "heavy-tailed")
        self.mix = 0.25 * rng.normal(size=(6, K)) if factors else np.zeros((6, K))
        self.common = rng.normal(size=(4, K))
        self.toward = self.directions(SHELLS)
        self.sizes = [3, 3, 4, 4, 5, 6, 6, 8, 8, 10, 15, 24] if kind == "unequal sizes" else [8] * 12
        self.labels = np.repeat(np.arange(12), self.sizes)

    def directions(self, n: int) -> Array:
        """``[n, component]`` of unit length."""
        own = unit(self.rng.normal(size=(n, K)))
        if self.kind != "shared directions":
            return own
        return unit(own + unit(self.rng.normal(size=(n, 4)) @ self.common))

    def draw(self, n: int, frames: bool = True) -> Array:
        """``[n, component]``: items or prompts, all alike but for noise and, in clusters of four, their frames."""
        noise = self.rng.normal if self.kind != "heavy-tailed" else lambda size: self.rng.standard_t(3, size=size) / np.sqrt(3)
        x = noise(size=(n, 6)) @ self.mix + 0.5 * noise(size=(n, K))
        if self.kind == "clustered by frame" and frames:
            x += np.repeat(0.5 * self.rng.normal(size=(-(-n // 4), K)), 4, axis=0)[:n]
        return x

    def shells(self) -> list[ShellSignature]:
        """The shells' items, displaced by the shift along each one's own direction."""
        frames = tuple(str(i // 4) for i in range(ITEMS)) if self.kind == "clustered by frame" else ()
        sides = [(self.draw(ITEMS) + SHIFT * d, self.draw(ITEMS)) for d in self.toward]
        return [ShellSignature(f"s{i}", full(a), full(b), frames, frames) for i, (a, b) in enumerate(sides)]

    def natural(self, displaced: Array) -> tuple[Array, NDArray[np.int64]]:
        """``[unit, component]`` and the units' labels: prompts, or means of the four prompts of a frame."""
        if self.kind == "clustered by frame":
            means = self.draw(4 * PROMPTS).reshape(PROMPTS, 4, K).mean(1)
            return full(means + displaced[self.labels]), self.labels
        return full(self.draw(PROMPTS) + displaced[self.labels]), self.labels


def full(values: Array) -> Array:
    """``[n, component of a signature]``, the readable ones filled."""
    out = np.full((len(values), len(COMPONENTS)), np.nan)
    out[:, READ] = values
    return out


def truly_similar(displaced: Array, sizes: list[int], axes: tuple[Axis, ...]) -> NDArray[np.bool_]:
    """``[category, shell]``: whether the true displacement from the others is a quarter of the shift along the axis and inside the cone."""
    share = np.array(sizes) / sum(sizes)
    apart = (displaced - share @ displaced) / (1 - share)[:, None]
    found = np.empty((len(sizes), len(axes)), dtype=bool)
    for s, axis in enumerate(axes):
        x = apart @ axis.whitening
        along = x @ axis.direction
        across = np.linalg.norm(x - along[:, None] * axis.direction, axis=1)
        found[:, s] = (along > LEAST_SHARE * axis.shift) & (along > LEAST_SLOPE * across)
    return found


def maps(kind: str, differ: float, planted: float, n: int, seed: int) -> dict[str, int]:
    """Counts over ``n`` maps: any cell farther, any similar, any falsely similar, the planted cell similar."""
    counts = dict.fromkeys(("maps", "farther", "similar", "false", "planted"), 0)
    for i in range(n):
        rng = np.random.default_rng([seed, i])
        world = World(kind, rng)
        displaced = differ * world.directions(12)
        displaced[4] += planted * world.toward[2]
        shells = world.shells()
        matrix, labels = world.natural(displaced)
        axes = make_axes(shells, [matrix])
        cells = compare_categories(matrix, labels, axes, rng, DRAWS)
        similar = (np.maximum(cells.p, cells.p_toward) <= LEVEL) & np.array([a.has_signature for a in axes])
        counts["maps"] += 1
        counts["farther"] += bool((cells.p <= LEVEL).any())
        counts["similar"] += bool(similar.any())
        counts["false"] += bool((similar & ~truly_similar(displaced, world.sizes, axes)).any())
        counts["planted"] += bool(similar[4, 2])
    return counts


def prompts(kind: str, differ: float, planted: float, n: int, seed: int) -> dict[str, int]:
    """Counts over ``n`` prompts, each against 96 others (in frames: a prompt of a frame of its own against one prompt of each of 96 frames)."""
    counts = dict.fromkeys(("maps", "farther", "similar", "planted"), 0)
    for i in range(n):
        rng = np.random.default_rng([seed, i])
        world = World(kind, rng)
        shells = world.shells()
        together = world.draw(4 * (PROMPTS + 1))[::4]
        together[0] += differ * world.directions(1)[0] + planted * world.toward[2]
        matrix = full(together)
        axes = make_axes(shells, [matrix])
        cells = compare_one(matrix[0], matrix[1:], axes, shells)
        similar = (np.maximum(cells.p, cells.p_toward)[0] <= LEVEL) & np.array([a.has_signature for a in axes])
        counts["maps"] += 1
        counts["farther"] += bool((cells.p <= LEVEL).any())
        counts["similar"] += bool(similar.any())
        counts["planted"] += bool(similar[2])
    return counts


def alignment(kind: str, n: int, seed: int) -> dict[str, int]:
    """Counts over ``n`` matrices of two shells × 100 units in noise: any unit aligned (family-wise), any at a false discovery rate of 5 %, the pair."""
    counts = dict.fromkeys(("maps", "aligned", "discovered", "pair"), 0)
    for i in range(n):
        rng = np.random.default_rng([seed, i])
        values, labels = [], []
        for _ in range(2):
            x = rng.standard_t(3, size=(ITEMS, 100)) if kind == "heavy-tailed" else rng.normal(size=(ITEMS, 100))
            if kind != "independent":
                x += rng.normal(size=(ITEMS, 3)) @ rng.normal(size=(3, 100))
            frames = None
            if kind == "clustered by frame":
                x += np.tile(np.repeat(2 * rng.normal(size=(4, 100)), 3, axis=0), (2, 1))
                frames = ([str(j // 3) for j in range(12)],) * 2
            if kind == "sparse":
                x = np.maximum(x - 2.5, 0)
            values.append(x)
            labels.append(Labels.draw(12, 12, rng, DRAWS, frames))
        running = Running(labels)
        running.add(values)
        _, p, q = running.finish()
        counts["maps"] += 1
        counts["aligned"] += bool((p <= LEVEL).any())
        counts["discovered"] += bool((q <= LEVEL).any())
        counts["pair"] += bool(pair_frame(("a", "b"), running)["p_adjusted"][0] <= LEVEL)
    return counts


UNITS = ("independent", "correlated", "heavy-tailed", "clustered by frame", "sparse")
DIFFER, SIZES = (0.0, 2.0, 4.0), (0.5, 1.0, 1.5, 2.0, 3.0, 4.0)


def parts(n: int) -> dict[str, Callable[[], dict[str, int]]]:
    """Every simulation by its name; power takes a quarter of the maps."""
    few = max(n // 4, 1)
    out: dict[str, Callable[[], dict[str, int]]] = {}
    for w, world in enumerate(WORLDS):
        for d, differ in enumerate(DIFFER):
            out[f"null/{world}/{differ}"] = lambda world=world, differ=differ, seed=100 * w + d: maps(world, differ, 0.0, n, seed)
        out[f"one/{world}"] = lambda world=world, w=w: prompts(world, 0.0, 0.0, n, 5000 + w)
        for size in (2.0, 3.0):
            for differ in (0.0, 2.0):
                seed = 1000 + 100 * w + int(10 * size + differ)
                out[f"power/{world}/{differ}/{size}"] = lambda world=world, differ=differ, size=size, seed=seed: maps(
                    world, differ, size, few, seed
                )
    for size in SIZES:
        for differ in (0.0, 2.0):
            seed = 3000 + int(10 * size + differ)
            out[f"power/correlated/{differ}/{size}"] = lambda differ=differ, size=size, seed=seed: maps(
                "correlated", differ, size, few, seed
            )
    for differ, size in ((4.0, 0.0), (0.0, 3.0), (0.0, 4.0), (0.0, 5.0), (0.0, 6.0)):
        seed = 6000 + int(10 * size + differ)
        out[f"one/correlated/{differ}/{size}"] = lambda differ=differ, size=size, seed=seed: prompts(
            "correlated", differ, size, n if not size else few, seed
        )
    for u, units in enumerate(UNITS):
        out[f"units/{units}"] = lambda units=units, u=u: alignment(units, n, 7000 + u)
    return out


def demo(machine: str) -> str:
    """The section of RESULTS.md on the demo model."""
    from symbolic_residue import Instrument, open_model
    from symbolic_residue.prompts import natural_prompts
    from symbolic_residue.shells import alignment_matrix, generalization_map, read_shell, read_signatures, shell_prompts
    from symbolic_residue.shells import SHELLS as NAMES

    instrument = Instrument(open_model("demo"))
    texts = natural_prompts()
    read = read_signatures(instrument, [t.prompt for t in texts], names=[t.id for t in texts])
    natural: dict[str, list[Any]] = {}
    for text, one in zip(texts, read, strict=True):
        natural.setdefault(text.category, []).append(one)
    shells = [read_shell(instrument, name, most=20) for name in NAMES]
    frame = generalization_map(natural, shells).frame
    cells = {(row["category"], row["shell"]): row for row in frame.iter_rows(named=True)}
    lines = [
        "## Maps of signatures: the demo model",
        "",
        f"Machine: {machine}. SmolLM2-135M-Instruct; twelve categories of eight natural prompts, 20 + 20 calibration items a shell. Similarity in units of the",
        "shell's shift, with its own (not simultaneous) 95 % interval over prompts; **bold**: farther, family-wise over the 60 cells; *similar* where said.",
        "",
        f"| category | {' | '.join(NAMES)} |",
        f"|---|{'---|' * len(NAMES)}",
    ]
    for category in natural:
        row = []
        for name in NAMES:
            c = cells[category, name]
            value = "–" if c["similarity"] is None else f"{c['similarity']:+.2f} [{c['low']:+.2f}, {c['high']:+.2f}]"
            value = (
                f"**{value}** (cosine {c['cosine']:.2f}, p {c['p']:.3f}, toward {c['p_toward']:.2f})" if c["p"] <= LEVEL else value
            )
            row.append(value + (" *similar*" if c["outcome"] == "similar" else ""))
        lines.append(f"| {category} | {' | '.join(row)} |")
    separated = []
    for name in NAMES:
        c = cells[next(iter(natural)), name]
        separated.append(f"{name} {c['shell_auc']:.2f} [{c['shell_low']:.2f}, {c['shell_high']:.2f}]")
    lines += ["", f"AUC of planted against null items, held out by frame (n = 40 items each): {'; '.join(separated)}.", ""]
    matrix = np.stack([one.values for one in read])
    labels = np.repeat(np.arange(len(natural)), [len(v) for v in natural.values()])
    axes = make_axes(shells, [matrix])
    rng, n, hits = np.random.default_rng(0), 300, []
    for s, shell in enumerate(shells):
        step = shell.planted.mean(0) - shell.null.mean(0)
        found = 0
        for _ in range(n):
            shuffled, moved = rng.permutation(labels), matrix.copy()
            moved[shuffled == 4] += step
            one = compare_categories(moved, shuffled, axes, rng, DRAWS)
            found += max(one.p[4, s], one.p_toward[4, s]) <= LEVEL
        hits.append(f"{shell.shell} {rate(found, n)}")
    lines += [
        f"Power on these prompts: labels shuffled, one category moved by a shell's whole shift is similar to it in {'; '.join(hits)} % of {n}.",
        "",
    ]
    units = alignment_matrix(
        instrument, {name: shell_prompts(instrument, name, most=12) for name in NAMES}, reads=[f"mlp_act.{i}" for i in LAYERS]
    )
    lines += [
        f"Alignment matrix, layers {', '.join(map(str, LAYERS))} ({len(units.unit)} neurons), 12 + 12 calibration items a shell, 500 permutations:",
        "",
        "| shell | aligned, family-wise | at q ≤ 0.05 | effect of smallest p | its p | its q |",
        "|---|---|---|---|---|---|",
    ]
    for s, name in enumerate(NAMES):
        best = int(np.argmin(units.p[s] - 1e-6 * np.abs(units.effect[s])))
        lines.append(
            f"| {name} | {int((units.p[s] <= LEVEL).sum())} | {int((units.q[s] <= LEVEL).sum())} | {units.effect[s, best]:+.2f} (layer {units.layer[best]}, "
            f"neuron {units.unit[best]}) | {units.p[s, best]:.3f} | {units.q[s, best]:.3f} |"
        )
    pairs = units.pairs.sort("p").row(0, named=True)
    lines += [
        "",
        f"The pair of shells with the smallest p: {pairs['first']} and {pairs['second']}, correlation {pairs['correlation']:+.2f} (null {pairs['null_low']:+.2f} to "
        f"{pairs['null_high']:+.2f}, p {pairs['p']:.2f}, {pairs['p_adjusted']:.2f} after Holm over ten pairs).",
    ]
    return "\n".join(lines)


LAYERS = (5, 15, 25)


def rate(count: int, of: int) -> str:
    """A share in per cent with Wilson's interval."""
    found = wilson(count, of)
    return f"{100 * found.value:.1f} [{100 * found.low:.1f}, {100 * found.high:.1f}]"


def section(found: dict[str, dict[str, int]], machine: str, seconds: float) -> str:
    """The section of RESULTS.md."""
    n = found["null/gaussian/0.0"]["maps"]
    lines = [
        "## Maps of signatures: false cells and power",
        "",
        f"Machine: {machine}. Synthetic signatures of {K} components, {SHELLS} shells of {ITEMS} + {ITEMS} items, {PROMPTS} prompts in twelve categories, {DRAWS}",
        f"permutations, {n} maps a row of nulls ({seconds / 60:.0f} minutes in all). Per cent of maps with 95 % Wilson intervals; the level is 5 % over all 60 cells of a map.",
        "The share and the cone that `similar` asks for were fixed on a prototype with other seeds.",
        "",
        "Nulls: no category is made like a shell. *Differ*: each category is displaced in a direction of its own, by so much of a shell's shift. *Falsely*: a cell called",
        "similar whose true displacement is no quarter of the shift, or outside the cone. *Farther* is the label test alone: exact where categories are alike, and true, as",
        "far as it goes, where they differ.",
        "",
        "| world | categories differ by | any farther | any similar | any falsely similar |",
        "|---|---|---|---|---|",
    ]
    for world in WORLDS:
        for differ in DIFFER:
            c = found[f"null/{world}/{differ}"]
            lines.append(
                f"| {world} | {differ / SHIFT:.2g} | {rate(c['farther'], n)} | {rate(c['similar'], n)} | {rate(c['false'], n)} |"
            )
    lines += ["", *(f"* {world}: {what}." for world, what in WORLDS.items()), ""]
    lines += ["Power: one category displaced along one shell's axis, by so much of the shift, is called similar:", ""]
    lines += [
        "| world | displaced by | others alike | others differ by 0.67 | any falsely similar (alike / differ) |",
        "|---|---|---|---|---|",
    ]
    for world in WORLDS:
        for size in SIZES if world == "correlated" else (2.0, 3.0):
            c = [found[f"power/{world}/{differ}/{size}"] for differ in (0.0, 2.0)]
            false = " / ".join(f"{100 * x['false'] / x['maps']:.1f}" for x in c)
            lines.append(f"| {world} | {size / SHIFT:.2g} | {' | '.join(rate(x['planted'], x['maps']) for x in c)} | {false} |")
    few = found["power/gaussian/0.0/2.0"]["maps"]
    lines += ["", f"({few} maps a cell.) One prompt against {PROMPTS} others like it, over five shells:", ""]
    lines += ["| world | farther | similar |", "|---|---|---|"]
    lines += [f"| {w} | {rate(c['farther'], n)} | {rate(c['similar'], n)} |" for w in WORLDS for c in [found[f"one/{w}"]]]
    c = found["one/correlated/4.0/0.0"]
    lines.append(f"| correlated, displaced in a direction of its own by 1.3 | {rate(c['farther'], n)} | {rate(c['similar'], n)} |")
    found_at = [
        f"{size / SHIFT:.2g}: {rate(c['planted'], c['maps'])} %"
        for size in (3.0, 4.0, 5.0, 6.0)
        for c in [found[f"one/correlated/0.0/{size}"]]
    ]
    lines += ["", f"Displaced along a shell's axis (correlated world) it is called similar to it at {'; at '.join(found_at)}.", ""]
    lines += ["Alignment matrix, two shells of 12 + 12 items × 100 units in noise:", ""]
    lines += ["| units | any of 200 aligned (family-wise) | any at q ≤ 0.05 | the pair of shells |", "|---|---|---|---|"]
    for units in UNITS:
        c = found[f"units/{units}"]
        lines.append(f"| {units} | {rate(c['aligned'], n)} | {rate(c['discovered'], n)} | {rate(c['pair'], n)} |")
    lines += ["", "*q* is held for each shell by itself, so either of two may call a unit in up to 9.8 % of matrices."]
    return "\n".join(lines)


def main() -> None:
    """Run, print, and on ``--write`` put the section into RESULTS.md."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--write", action="store_true", help="write the section of RESULTS.md")
    parser.add_argument("--n", type=int, default=2000, help="maps of each null (power: a quarter)")
    parser.add_argument("--only", default="", help="run only parts whose name begins so, and do not report")
    parser.add_argument("--keep", type=Path, default=None, help="a folder where each part's counts are kept")
    parser.add_argument("--demo", action="store_true", help="the demo model's maps instead of the simulations")
    args = parser.parse_args()
    if args.demo:
        from _common import machine, write_section

        text = demo(machine(1))
        print(text)
        if args.write:
            write_section(text)
        return
    found: dict[str, Any] = {}
    for name, run in parts(args.n).items():
        kept = args.keep / (name.replace("/", "_").replace(" ", "-") + ".json") if args.keep else None
        if kept is not None and kept.exists():
            found[name] = json.loads(kept.read_text("utf-8"))
        elif name.startswith(args.only):
            start = time.perf_counter()
            found[name] = run() | {"seconds": round(time.perf_counter() - start)}
            print(name, found[name], flush=True)
            if kept is not None:
                kept.parent.mkdir(parents=True, exist_ok=True)
                kept.write_text(json.dumps(found[name]), "utf-8")
    if args.only:
        return
    from _common import machine, write_section

    text = section(found, machine(1), sum(c["seconds"] for c in found.values()))
    print(text)
    if args.write:
        write_section(text)


if __name__ == "__main__":
    main()
