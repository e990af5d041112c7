"""What the tables of a run folder hold.

1. :data:`TABLES` names every table and the type of every column; nothing else is written or read. ``item`` comes first in
   each and ties the tables together.
2. Numbers are finite and nothing is missing, except in the columns of :data:`MAY_BE_MISSING`: bounds of intervals that could
   not be had, controls of verdicts without one, tests that were not made. There, null and NaN both mean "not measured".
3. Columns of :data:`ADDED` came later: in runs of earlier versions they are missing, and read as null.
4. :func:`conform` brings a table to its schema without loss (column order, narrower numbers, all-null columns) or refuses it.
"""

from __future__ import annotations

import polars as pl

from symbolic_residue.errors import StoreError

__all__ = ["ADDED", "CHOICES", "MAY_BE_MISSING", "SCHEMA_VERSION", "TABLES", "conform", "content_problems", "known", "with_added"]

SCHEMA_VERSION = 1
"""Raised by one whenever a table (or the manifest) changes so that older code would read it wrongly."""

# ``name``: text; ``name:i`` whole number; ``name:f`` number; ``name:b`` true or false; a final ``?``: may be missing.
_COLUMNS = {
    "items": "prompt text? chat:b? n_tokens:i? seed:i? status error? summary?",
    "tokens": "position:i token_id:i token region char_start:i char_end:i influence:f? attention:f?",
    "verdicts": "shell mode outcome quantity unit value:f? low:f? high:f? n:i control? control_value:f? control_low:f? "
    "control_high:f? control_n:i? criterion:f direction criterion_source note?",
    "candidates": "rank:i token_id:i token probability:f logit:f source",
    "traces": "refiner variant:i step:i token_id:i token probability:f share:f",
    "refiners": "refiner variant:i steps:i converged:b returns:i leader? leader_loss:f? velocity:f? final_l1:f? appended?",
    "transfer": "refiner source target mass:f",
    "lens": "layer:i position:i top_token top_probability:f entropy:f answer_probability:f",
    "heads": "layer:i head:i target dla:f dla_low:f? dla_high:f? n:i ablation:f? ablation_low:f? ablation_high:f? "
    "control_ablation:f? control_n:i? p:f? q:f? specificity_p:f? patch_recovered:f? patch_control:f? role confirmed:b?",
    "components": "target component layer:i contribution:f",
    "dla_check": "target logit_difference:f sum_of_parts:f error:f",
    "attention": "layer:i head:i region mass:f",
    "attention_stats": "layer:i head:i entropy:f distance:f max:f argmax:i sink:f",
    "readout_mass": "layer:i head:i row:i region mass:f",
    "readout_stats": "layer:i head:i row:i entropy:f distance:f max:f argmax:i",
    "readouts": "table backend mode",
    "curves": "curve series x:f x_unit value:f low:f? high:f? n:i unit",
    "fits": "series model a:f b:f b_low:f? b_high:f? rss:f aic:f difference:f preferred:f? n:i distances:i",
    "head_scores": "layer:i head:i score value:f low:f? high:f? control:f? control_low:f? control_high:f? n:i unit",
    "head_tests": "layer:i head:i behaviour effect:f low:f? high:f? n:i unit control:f? control_n:i p:f? q:f? confirmed:b?",
    "shell_items": "shell benchmark benchmark_item kind frame split null:b planted",
    "maps": "map layer:i position:i value:f unit",
    "heals": "failure kind place dose:f restored:b twin_restored:b? smallest:b measure before:f after:f limit:f prompts:i side_kl:f side_low:f? "
    "side_high:f? side_n:i side_changed:f side_changed_low:f side_changed_high:f entries:i entries_restoring:i",
    "heal_rules": "kind place? dose:f? search_restored:i search_n:i restored:i? n:i? frames:i? rate:f? low:f? high:f? control_rate:f? control_low:f? "
    "control_high:f? control_n:i? p:f? p_adjusted:f? gain:f? gain_low:f? gain_high:f? measure? side_kl:f? side_low:f? side_high:f? side_n:i? "
    "side_changed:f? side_changed_low:f? side_changed_high:f? outcome",
    "salience": "position:i token kind relative:f weighted:f? under:f? kl:f? fall:f? blamed:b?",
    "carriers": "layer:i head:i? share:f fall:f control:f control_low:f control_high:f control_n:i random_effect:f? p:f confirmed:b?",
    "sensitivity": "variant:i kind text js:f top_token top_probability:f changed:b",
    "ov": "layer:i token strength:f",
    "overlap": "level first second units:i first_n:i second_n:i shared:i expected:f low:f high:f p:f q:f? crossed:f? crossed_n:i null "
    "shared_units?",
    "blame": "level layer:i unit shell score:f? rank:i of:i blamed:b confirmed:b? by:i basis",
    "frame_shifts": "quantity kind contrast value:f? low:f? high:f? n:i unit changed:i? p:f q:f method",
    "alignments": "layer:i unit:i shell effect:f p:f q:f planted_n:i null_n:i aligned:b",
    "alignment_pairs": "first second correlation:f null_low:f null_high:f p:f p_adjusted:f units:i",
    "signatures": "component group value:f? unit source",
    "similarities": "category shell outcome similarity:f? low:f? high:f? n:i control:f? cosine:f? p:f? p_toward:f? components:i shell_auc:f shell_low:f? "
    "shell_high:f? shell_n:i unit",
    "disruption": "layer:i head:i metric value:f control:f difference:f low:f? high:f? effect:f? p:f q:f n:i unit",
    "overruled": "component layer:i head:i contribution:f low:f? high:f? n:i role ablation:f? ablation_low:f? ablation_high:f? q:f? confirmed:b? "
    "control:f? control_q:f?",
    "endings": "side end content difference:f end_probability:f content_probability:f rank:i ended:b",
    "ghosts": "unit layer:i index:i activity:f effect:f low:f? high:f? floor:f n:i state success_activity:f success_effect:f difference:f p:f q:f",
    "failure_graphs": "failure mode kind? target? value:f? control_value:f? compared? healthy:b? tokens:i? control_tokens:i? nodes:i? worst_row:f? "
    "ghosts:f? ghosts_random:f? control_ghosts:f? control_ghosts_random:f? folder? reason?",
    "failure_parts": "failure kind split part value:f share:f control_value:f? control_share:f?",
    "failure_units": "failure kind side rank:i layer:i position:i token neuron:i activation:f effect:f other_effect:f? raises?",
    "cross_run": "layer:i feature success:f failure:f difference:f low:f? high:f? effect:f? p:f q:f n:i",
    "across": "measure pooled:b n:i counts control? about said? reason?",
    "attention_rows": "layer:i head:i query:i key:i weight:f",
    "ov_keys": "layer:i head:i position:i target strength:f",
    "ov_heads": "layer:i head:i target strength:f norm:f",
    "instruction_answers": "condition order arrangement task:i question answer ended:b follows_a:b follows_b:b follows_x:b blended:b",
    "instruction_rates": "condition order arrangement outcome share:f low:f high:f n:i",
    "instruction_pairs": "one two one_text two_text relation layer:i cosine:f conflict:f",
    "instruction_effects": "hidden order tokens:f value:f low:f? high:f? n:i unit p:f? recovered:f? responsible:b?",
    "contrast_trials": "model condition question trial:i seed:i positive:b stop new_tokens:i kept:b counted:b",
    "contrast_rates": "model condition behaviour hits:i n:i rate:f low:f high:f clusters:i? n_effective:f?",
    "contrast_examples": "example condition question system? asked trial:i seed:i prompt_len:i event:i? event_character:i? "
    "token_hit:b? text_hit:b? stop text ids sinks drawn_by",
    "contrast_records": "model condition example cluster layer:i head:i? region segmentation stratum query_offset:i row:i mass:f",
    "contrast_preflight": "check model condition? value:f low:f? high:f? margin:f? n:i outcome note?",
    "contrast_layers": "model condition region segmentation query_offset:i layer:i head:i? value:f low:f? high:f? n:i clusters:i p:f? share:f control:f? "
    "A:b? B:b? C:b? D:b? E:b? F:b? rival? margin:f? margin_low:f? margin_high:f? detectable:f?",
    "contrast_rule_outs": "model condition region segmentation query_offset:i layer:i head:i? stratum value:f? low:f? high:f? n:i control_n:i? "
    "clusters:i passed:b?",
    "contrast_trajectory": "model condition region segmentation query_offset:i layer:i head:i? lag:i value:f low:f? high:f? n:i clusters:i",
    "contrast_windows": "model condition region segmentation query_offset:i head:i? first:i last:i layers:i peak_layer:i peak_value:f D:b? E:b? F:b?",
    "contrast_missing": "model condition stratum examples:i with_rows:i missing:i?",
    "contrast_differences": "tuned reference condition region segmentation query_offset:i stratum layer:i head:i? value:f low:f? high:f? p:f? n:i clusters:i "
    "unpaired:i tuned_value:f reference_value:f detectable:f?",
    "contrast_verdicts": "tuned reference condition region segmentation query_offset:i head:i? outcome layer:i value:f low:f? high:f? p:f? n:i clusters:i "
    "tuned_value:f reference_value:f detectable:f? layers nulls? beyond_nulls:b? margin:f? margin_low:f? margin_high:f? null_p:f? why",
    "contrast_shifts": "tuned reference condition region segmentation query_offset:i tuned_peak:i reference_peak:i shift:i low:f? high:f? "
    "agree:f? n:i clusters:i",
    "contrast_heads": "model condition region segmentation query_offset:i layer:i head:i rank:i chosen_value:f value:f low:f? high:f? p:f? n:i clusters:i "
    "chosen_n:i holds:b?",
    "contrast_causal": "analysis model condition example cluster part place layer:i? head:i? dose:f? value:f control:f? unit",
    "contrast_effects": "analysis model condition part place layer:i? head:i? dose:f? value:f low:f? high:f? n:i clusters:i control:f? control_low:f? "
    "control_high:f? p:f? unit outcome? criterion:f? why?",
    "parallel_tokens": "step:i rank:i token:i text probability:f position:f slot:i gone:i? score:f?",
    "parallel_steps": "step:i threshold:f above:i mass:f entropy:f disagreement:f size:i ending:f?",
    "parallel_trees": "text alternatives stop keys:i tree",
    "parallel_keys": "step:i physical:i cache:i set_step:i rank:i position:f token:i text?",
    "parallel_arms": "arm reference form layer:i head:i value:f n:i",
    "parallel_competition": "form layer:i head:i total:f expected:f drop:f by_competition:f beyond:f excess:f n:i sets:i",
    "parallel_output": "arm kl:f nll:f agree:f n:i",
    "parallel_entropy": "arm layer:i entropy:f most:f rest:f rest_most:f n:i",
    "parallel_heads": "layer:i head:i sink:f local:f distance:f entropy_share:f induction:f control:f kind n:i",
    "parallel_intra": "mode size:i layer:i query_rank:i key_rank:i value:f n:i",
    "parallel_published": "arm keys sets:f others:f value:f naive_p:f? samples:i",
    "parallel_bias": "bias:f ratio:f kl:f nll:f n:i",
    "parallel_scaling": "size:i layer:i total:f expected:f drop:f by_competition:f beyond:f",
    "parallel_trace": "arm step:i rank:i token layer:i received:f value_norm:f write:f lens:f",
    "parallel_pruning": "step:i rank:i probability:f judged:f attention:f pruned:b",
    "parallel_layers": "question arm reference form layer:i value:f low:f? high:f? p:f? p_adjusted:f? n:i outcome",
    "parallel_verdicts": "question quantity arm reference form outcome value:f? low:f? high:f? n:i unit p:f? margin:f? control? control_value:f? "
    "control_low:f? control_high:f? note?",
    "changes": "rank:i kind description needed:f? effect? unit?",
}
_DTYPES: dict[str, pl.DataType] = {"": pl.String(), "i": pl.Int64(), "f": pl.Float64(), "b": pl.Boolean()}


def _parse(spec: str) -> tuple[dict[str, pl.DataType], frozenset[str]]:
    columns, optional = {"item": _DTYPES[""]}, set()
    for word in spec.split():
        name, _, kind = word.rstrip("?").partition(":")
        columns[name] = _DTYPES[kind]
        if word.endswith("?"):
            optional.add(name)
    return columns, frozenset(optional)


TABLES: dict[str, dict[str, pl.DataType]] = {name: _parse(spec)[0] for name, spec in _COLUMNS.items()}
"""Table name → column name → type, in the order of the columns."""

MAY_BE_MISSING: dict[str, frozenset[str]] = {name: _parse(spec)[1] for name, spec in _COLUMNS.items()}
"""Table name → the columns where null or NaN is allowed."""

ADDED: dict[str, frozenset[str]] = {"contrast_rates": frozenset({"clusters", "n_effective"})}
"""Table name → columns that runs of earlier versions lack: missing there, they are read as null. Each may be missing anyway."""

CHOICES: dict[tuple[str, str], tuple[str, ...]] = {
    ("items", "status"): ("done", "failed"),
    ("verdicts", "outcome"): ("fires", "absent", "undecided"),
    ("verdicts", "direction"): ("above", "below"),
    ("parallel_verdicts", "outcome"): ("down-weighted", "up-weighted", "no effect", "undecided", "measured"),
}
"""``(table, column)`` → the only words allowed there."""


def known(name: str) -> dict[str, pl.DataType]:
    """Columns of the table ``name``.

    Raises:
        StoreError: there is no such table.
    """
    if name not in TABLES:
        raise StoreError(f"{name!r} is no table of a run folder.", todo=f"The tables are: {', '.join(TABLES)}.")
    return TABLES[name]


def conform(name: str, frame: pl.DataFrame, item_id: str) -> pl.DataFrame:
    """``frame`` with the columns and types of table ``name``, every row belonging to ``item_id``.

    An ``item`` column is added where there is none. Whole numbers of any width become Int64, numbers Float64, all-null
    columns whatever the schema says. Nothing else is changed.

    Raises:
        StoreError: an unknown table, a missing, unknown or wrongly typed column, rows of another item, or values that are missing
            or not finite where that is not allowed.
    """
    schema = known(name)
    if "item" not in frame.columns:
        frame = frame.with_columns(pl.lit(item_id, pl.String).alias("item"))
    missing = [column for column in schema if column not in frame.columns]
    unknown = [column for column in frame.columns if column not in schema]
    if missing or unknown:
        said = [f"lacks {', '.join(missing)}"] * bool(missing) + [f"has unknown {', '.join(unknown)}"] * bool(unknown)
        raise StoreError(f"Table {name!r} {' and '.join(said)}.", todo=f"Its columns are: {', '.join(schema)}.")
    for column, dtype in schema.items():
        if not _lossless(frame.schema[column], dtype):
            raise StoreError(f"Table {name!r}: column {column!r} is {frame.schema[column]} where {dtype} is wanted.")
    try:
        frame = frame.select(pl.col(column).cast(dtype) for column, dtype in schema.items())
    except pl.exceptions.InvalidOperationError as error:  # a whole number past 64 bits
        raise StoreError(f"Table {name!r} holds numbers that its columns cannot.", why=str(error).split("\n")[0]) from error
    found = content_problems(name, frame)
    if found:
        raise StoreError(f"Table {name!r}: {'; '.join(found)}.", why="A run folder holds only what was measured.")
    if not (frame["item"] == item_id).all():
        raise StoreError(f"Table {name!r} holds rows of another item than {item_id!r}.")
    return frame


def with_added(name: str, frame: pl.DataFrame) -> pl.DataFrame:
    """``frame`` as it was read, with null in the columns of :data:`ADDED` where an earlier version wrote it without any of them."""
    added = ADDED.get(name, frozenset())
    if not added or added & set(frame.columns) or set(TABLES[name]) - added != set(frame.columns):
        return frame
    return frame.with_columns(pl.lit(None, TABLES[name][column]).alias(column) for column in TABLES[name] if column in added)


def content_problems(name: str, frame: pl.DataFrame) -> list[str]:
    """What is wrong with the values of a table that has the right columns: missing, not finite, or words not allowed."""
    found = []
    for column, dtype in TABLES[name].items():
        values = frame[column]
        optional = column in MAY_BE_MISSING[name]
        nulls = values.null_count()
        nans = int(values.is_nan().sum()) if dtype == pl.Float64 else 0
        infinite = int(values.is_infinite().sum()) if dtype == pl.Float64 else 0
        if (nulls or nans) and not optional:
            found.append(f"{column} is missing in {nulls + nans} of {len(frame)} rows")
        if infinite:
            found.append(f"{column} is infinite in {infinite} of {len(frame)} rows")
        allowed = CHOICES.get((name, column))
        odd = values.drop_nulls().filter(~values.drop_nulls().is_in(allowed)) if allowed else None
        if odd is not None and len(odd):
            found.append(f"{column} says {odd[0]!r}, which is none of {', '.join(allowed or ())}")
    return found


def _lossless(given: pl.DataType, wanted: pl.DataType) -> bool:
    if given == wanted or given == pl.Null:
        return True
    if wanted == pl.Int64:
        return given.is_integer()
    if wanted == pl.Float64:
        return given.is_integer() or given == pl.Float32
    return wanted == pl.String and given in (pl.Categorical, pl.Enum)
