"""What the specification asks of each shell, and the tests that fail if it is wrong.

Operations, residue, attribution and figure stand in :data:`AUDIT`; modes are enumerated by ``test_modes`` (each planted, and each ruled out). The tests here fail if a shell
has an operation or a figure that no row names, or if a row names a test that does not exist.
"""

from __future__ import annotations

import ast
from functools import cache
from pathlib import Path

import pytest

from symbolic_residue.shells import shell_class, SHELLS

UNIT = Path(__file__).parents[2]
MEM, OPS = "shells/memtrace/test_memtrace.py", "shells/memtrace/test_operations.py"
VAL, VOPS, REF, ATT = (
    "shells/test_value_collapse.py",
    "shells/test_operations.py",
    "shells/test_refine.py",
    "shells/test_attribution.py",
)
SAL, SENSE, CANCEL = (
    "shells/layer_salience/test_salience_shell.py",
    "shells/layer_salience/test_salience_sense.py",
    "shells/layer_salience/test_salience_cancel.py",
)
TMP, INS = "shells/temporal/test_temporal.py", "shells/test_instruction_disruption.py"
NUM, HEADS = "shells/planted/test_numbers.py", "shells/planted/test_heads.py"

AUDIT: dict[str, list[tuple[str, str, tuple[str, ...]]]] = {
    "memtrace": [
        ("operation RECALL", OPS, ("test_recall_ends_in_the_models_own_probability", "test_readable_means_to_the_end")),
        ("operation ANCHOR", OPS, ("test_anchor_multiplies_the_odds_of_the_span", "test_strength_one_changes_nothing_and_before_is_the_model")),
        ("operation ANCHOR: embedding", NUM, ("test_anchoring_an_embedding_scales_it",)),
        ("operation INHIBIT", OPS, ("test_inhibit_hides_the_span",)),
        ("stimulus: fact, padding, question", MEM, ("test_the_prompt_itself_is_what_is_measured_at_its_own_distance", "test_fields_are_read_at_the_row_before_their_token")),
        ("stimulus: found in a user's text", MEM, ("test_fact_question_answer_and_foils_are_found",)),
        ("stimulus: padding of exactly d tokens", "shells/memtrace/test_text.py", ("test_every_distance_holds_exactly_its_padding", "test_the_row_before_the_answer_is_scored")),
        ("residue: decay curve", MEM, ("test_measures_are_those_of_plain_forwards", "test_texts_that_are_one_at_a_short_distance_count_once")),
        ("residue: fits by AIC", "shells/memtrace/test_fit.py", ("test_a_planted_law_is_found", "test_the_minimum_is_that_of_another_optimiser_and_aic_its_formula")),
        ("residue: attention by region", MEM, ("test_attention_to_the_fact_is_that_of_eager_attention",)),
        ("residue: value-weighted, KV trace", MEM, ("test_value_trace_and_norms_are_their_formulas",)),
        ("residue: position sensitivity", MEM, ("test_positions_are_shifted_without_text",)),
        ("residue: lens", MEM, ("test_the_parts_sum_and_the_last_depth_is_the_output",)),
        ("attribution: retrieval heads", HEADS, ("test_memtrace_names_the_head_that_fetches_the_fact_and_not_where_it_is_scaled_to_0",)),
        ("attribution: dose of ANCHOR and INHIBIT", "shells/memtrace/test_planted.py", ("test_hiding_the_fact_takes_the_answer_away_and_hiding_padding_does_not",)),
        ("attribution: by token type", MEM, ("test_heads_by_type",)),
        ("figure visualize_memory_decay", MEM, ("test_the_figure_shows_every_padding_and_its_better_law",)),
    ],
    "value-collapse": [
        ("operation ISOLATE", VOPS, ("test_isolate_adds_exactly_to_the_logits",)),
        ("operation ISOLATE: residual", VOPS, ("test_isolate_in_the_residual_stream_raises_by_the_factor", "test_isolate_at_an_earlier_layer_is_another_intervention")),
        ("operation STABILIZE: rollout, layers, soft", VOPS, ("test_stabilize_by_rollout_follows_the_plain_greedy_continuation", "test_stabilize_by_layers_ends_at_the_output", "test_stabilize_by_soft_starts_at_the_output_and_takes_n_steps")),
        ("operation STABILIZE: soft feeds the expected embedding", REF, ("test_soft_appends_the_expected_embedding", "test_rollout_appends_the_best_token", "test_a_converged_variant_has_ended")),
        ("operation YIELD", VOPS, ("test_yield_returns_the_top_token_above_the_threshold_only", "test_commit_is_strict")),
        ("candidates by mass", VOPS, ("test_candidates_are_the_smallest_set_that_holds_the_mass",)),
        ("residue: probability traces", VAL, ("test_traces_refiners_and_measures_tell_one_story",)),
        ("residue: mass transfer", REF, ("test_transfer_by_hand", "test_transfer_balances_the_books")),
        ("residue: convergence velocity", REF, ("test_velocity_is_the_slope_of_the_logarithm",)),
        ("residue: sensitivity", VAL, ("test_measures_are_those_of_plain_forwards",)),
        ("attribution: parts sum to the difference", ATT, ("test_parts_sum_to_the_difference_of_a_plain_forward",)),
        ("attribution: inhibition", ATT, ("test_a_planted_inhibitor_is_confirmed_with_the_other_sign",)),
        ("attribution: mean ablation", ATT, ("test_mean_ablation_is_a_full_forward_with_a_plain_hook", "test_a_planted_head_is_found_and_confirmed")),
        ("attribution: patching", ATT, ("test_patching_is_the_share_of_the_way_to_the_control", "test_patching_every_head_arrives_at_the_control")),
        ("attribution: OV strength", ATT, ("test_what_heads_write_toward_a_candidate_is_centred",)),
        ("figure visualize_value_competition", VAL, ("test_the_figure_is_a_chart_of_the_traces",)),
    ],
    "layer-salience": [
        ("operation SENSE", SENSE, ("test_the_causal_correction_is_that_of_a_plain_loop", "test_chosen_layers_keep_their_numbers_and_others_are_refused")),
        ("operation SENSE: value-weighted twin", SENSE, ("test_the_value_weighted_twin_is_that_of_a_plain_loop",)),
        ("operation WEIGHT", CANCEL, ("test_weight_names_the_positions_and_cancel_takes_them",)),
        ("operation CANCEL", CANCEL, ("test_exactly_these_keys_in_exactly_these_layers", "test_many_sets_in_one_forward_are_those_one_by_one")),
        ("controls: random, matched distance", CANCEL, ("test_controls_hide_as_many_positions_in_every_layer", "test_matched_controls_stay_near")),
        ("residue: distributions, layer flow, token types", NUM, ("test_the_curves_of_salience_are_those_of_eager_attention",)),
        ("residue: effective number", SENSE, ("test_the_effective_number_lies_between_one_and_all_and_forgets_sink_and_self",)),
        ("residue: dose-response", SAL, ("test_the_dose_is_the_cancellation_of_what_weight_names",)),
        ("residue: tagger", "shells/layer_salience/test_salience_tokens.py", ("test_words",)),
        ("attribution: heads and layers that carry it", SAL, ("test_the_planted_head_carries_it",)),
        ("figure visualize_salience_heatmap", SAL, ("test_the_figure_is_a_chart_of_the_cells",)),
    ],
    "temporal-inference": [
        ("operation REMEMBER", TMP, ("test_operations_drop_repeat_and_remember",)),
        ("operation SHIFT", TMP, ("test_shifted_texts_are_those_of_whole_forwards", "test_a_jump_is_what_hidden_tokens_make")),
        ("operation PREDICT", NUM, ("test_predict_is_the_softmax_of_a_plain_forward",)),
        ("operation PREDICT: continuation", TMP, ("test_greedy_continuation_is_the_whole_forwards",)),
        ("residue: coherence", TMP, ("test_coherence_is_shifted_minus_unshifted_without_the_first_token",)),
        ("residue: coherence against distance, both directions", NUM, ("test_the_coherence_curve_is_the_mean_over_places_and_window",)),
        ("residue: change point", TMP, ("test_a_step_is_found_where_it_is", "test_smooth_curves_of_other_shapes_are_rarely_steps")),
        ("residue: minimal pairs", TMP, ("test_right_words_follow_the_story", "test_preferences_are_log_odds_and_a_liking_for_a_word_cancels")),
        ("residue: pairs across a gap", NUM, ("test_a_gap_moves_the_questions_positions_and_nothing_else",)),
        ("residue: states at anchors", NUM, ("test_the_map_is_how_far_states_move",)),
        ("residue: induction and previous-token score, before and after", TMP, ("test_the_planted_heads_are_named",)),
        ("residue: by genre", TMP, ("test_items_are_balanced_and_apart",)),
        ("attribution: ablation", TMP, ("test_the_planted_heads_are_named", "test_a_head_without_output_is_not_named", "test_ablations_are_those_of_a_plain_forward")),
        ("figure visualize_temporal_coherence", TMP, ("test_findings_are_whole_and_fit_the_store",)),
    ],
    "instruction-disruption": [
        ("operation DISTILL", INS, ("test_distill_is_the_centred_mean_over_content_tokens", "test_content_tokens_are_words")),
        ("operation SPLICE", INS, ("test_splice_is_a_mean_and_a_conflict_that_ignores_length_and_order",)),
        ("operation NULLIFY", INS, ("test_nullify_returns_nothing_above_the_threshold",)),
        ("behaviour: answers", INS, ("test_answers_are_those_of_plain_greedy_generation", "test_chat_frames_put_the_first_instruction_into_the_systems_turn")),
        ("residue: vectors, conflict", NUM, ("test_conflict_is_one_minus_the_cosine_of_what_distill_gives",)),
        ("residue: attention to each span, lens of first content token", NUM, ("test_lens_and_attention_are_those_of_the_rows_that_chose_the_tokens",)),
        ("residue: AUC of geometry", INS, ("test_auc_of_geometry_leaves_out_what_was_not_judged",)),
        ("attribution: spans", HEADS, ("test_the_instruction_that_decides_is_named_and_the_one_that_is_masked_out_is_not", "test_nothing_is_named_where_nothing_decides")),
        ("attribution: spans are masked forwards", INS, ("test_preference_and_hidden_blocks_are_those_of_masked_forwards",)),
        ("attribution: heads", HEADS, ("test_the_head_that_lets_one_instruction_win_is_named",)),
        ("figure visualize_instruction_conflict", INS, ("test_the_figure_shows_every_frame",)),
    ],
}  # fmt: skip


@cache
def defined_in(file: str) -> set[str]:
    return {node.name for node in ast.parse((UNIT / file).read_text("utf-8")).body if isinstance(node, ast.FunctionDef)}


def test_the_audit_names_every_shell() -> None:
    assert sorted(AUDIT) == sorted(SHELLS)


@pytest.mark.parametrize("shell", list(SHELLS))
def test_every_row_names_tests_that_exist(shell: str) -> None:
    for what, file, names in AUDIT[shell]:
        assert names, what
        assert set(names) <= defined_in(file), (what, file, set(names) - defined_in(file))


@pytest.mark.parametrize("shell", list(SHELLS))
def test_every_operation_and_figure_has_a_row(shell: str) -> None:
    kind, rows = shell_class(shell), [what for what, _, _ in AUDIT[shell]]
    for operation in kind.operations:
        assert callable(getattr(kind, f"{operation.lower()}_operation"))
        assert any(row.startswith(f"operation {operation}") for row in rows), operation
    figures = [name for name in dir(kind) if name.startswith("visualize_")]
    assert figures
    assert {f"figure {name}" for name in figures} <= set(rows)
    for part in ("residue", "attribution"):
        assert any(row.startswith(part) for row in rows)
