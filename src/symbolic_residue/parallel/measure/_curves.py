"""Curves over prompts: offset, bias, set size, entropy by layer. A point is a mean over prompts with its flip interval."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, TYPE_CHECKING

from symbolic_residue.parallel.measure._infer import Means, means, Rule

if TYPE_CHECKING:
    import polars as pl

__all__ = ["curve_rows"]


def _row(curve: str, series: str, x: float, x_unit: str, found: Means | None, unit: str) -> list[dict[str, Any]]:
    if found is None:
        return []
    point = {"curve": curve, "series": series, "x": x, "x_unit": x_unit, "unit": unit}
    return [point | {"value": found.value, "low": found.low, "high": found.high, "n": found.n}]


def curve_rows(frames: Mapping[str, pl.DataFrame], rule: Rule) -> list[dict[str, Any]]:
    """Rows of ``curves`` from all prompts' tables."""
    import polars as pl

    out: list[dict[str, Any]] = []

    def per_prompt(frame: pl.DataFrame, column: str) -> Means | None:
        # Heads first, then layers, then prompts.
        layers = frame.group_by("item", "layer").agg(pl.col(column).mean()) if "layer" in frame.columns else frame
        return means(layers.group_by("item").agg(pl.col(column).mean()).sort("item")[column].to_numpy(), rule)

    arms = frames["parallel_arms"].filter(pl.col("reference").str.starts_with("offset ") & (pl.col("arm") == "shared"))
    for form in ("all keys", "sink excluded"):
        for name in sorted(set(arms["reference"]), key=lambda s: float(s.split()[1])):
            found = per_prompt(arms.filter((pl.col("form") == form) & (pl.col("reference") == name)), "value")
            ratio = None if found is None else found.ratio()
            out += _row("parallel offset", form, float(name.split()[1]), "positions between neighbours", ratio, "ratio")
    bias = frames.get("parallel_bias")
    if bias is not None and not bias.is_empty():
        for b in sorted(set(bias["bias"])):
            at = bias.filter(pl.col("bias") == b)
            found = per_prompt(at, "ratio")
            out += _row("parallel bias", "member against alone", b, "nats", None if found is None else found.ratio(), "ratio")
            for series in ("kl", "nll"):
                found = per_prompt(at, series)
                out += _row("parallel bias", series, b, "nats", None if found is None else found.within(0.0), "nats")
    scaling = frames.get("parallel_scaling")
    if scaling is not None and not scaling.is_empty():
        for size in sorted(set(scaling["size"])):
            at = scaling.filter(pl.col("size") == size)
            for series in ("total", "expected"):
                found = per_prompt(at, series)
                out += _row("parallel scaling", series, size, "tokens", None if found is None else found.within(0.0, 1.0), "share")
            for series, name in (
                ("drop", "member against alone"),
                ("by_competition", "by competition"),
                ("beyond", "beyond competition"),
            ):
                found = per_prompt(at, series)
                out += _row("parallel scaling", name, size, "tokens", None if found is None else found.ratio(), "ratio")
    entropy = frames.get("parallel_entropy")
    if entropy is not None and not entropy.is_empty():
        share = entropy.with_columns((pl.col("rest") / pl.col("rest_most")).alias("share")).filter(pl.col("share").is_finite())
        for arm in sorted(set(share["arm"])):
            for layer in sorted(set(share["layer"])):
                at = share.filter((pl.col("arm") == arm) & (pl.col("layer") == layer))
                found = per_prompt(at, "share")
                out += _row("parallel entropy", arm, layer, "layer", None if found is None else found.within(0.0, 1.0), "share")
    return out
