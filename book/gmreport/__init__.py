"""What the pages of the report show: tables, figures, verdicts, sliders and the published numbers.

Nothing here runs an experiment, except the playground when a reader starts one.

The argument ``results`` is always in long form: a DataFrame with one row per trained network and the columns dataset,
ipc, method, budget, set (integer seed of the condensed set), network, net (index of the network) and accuracy
(percent).
"""

from __future__ import annotations

import importlib
from typing import Any

# A module is imported when one of its names is first used: a batch job needs none of the plotting packages.
_NAMES = {
    "benchmarks": "aims_sentence aims_table benchmarks_table stored_benchmarks",
    "cards": (
        "augmented_code gmlib_code other_cards recommended recommended_cards sets_sentence shipped_sets terms_list "
        "training_code training_sentence"
    ),
    "claims": "claims_table judge_claims coresets_sentence paper_table stored_claims substitutes_sentence",
    "chapters": "answer_box claims_box equation_and_code longest_runs",
    "contours": "Plane",
    "costs": (
        "added_up_sentence cost_measured cost_ratio cost_table costs_sentence log_sentence overfitting_table "
        "precision_table pulls_sentence saving_sentence schedule_sentence steps_table time_to timed_with "
        "timing_sentence"
    ),
    "deviations": (
        "changes_sentence deviations_sentence deviations_table find_deviations probes probes_table recipe_departures"
    ),
    "drawing": "Panels Pictures legend_of show svg",
    "explorer": "Explorer Runs",
    "faults": "faults_sentence faults_table stored_faults",
    "figures": (
        "ACCURACY_CAPTION accuracy_figure alignment_figure cost_figure distance_figure image_grid loss_figure "
        "overfitting_figure paths_figure plane_distances pulls_figure reach_figure schedule_figure sets_figure "
        "time_figure transfer_figure"
    ),
    "front": "answer_to answers_html five_answers hero ours_against_paper stored_film",
    "growth": "grid_sentence grid_table hours_sentence hours_table stored_growth",
    "hypothesis": (
        "alignment_sentence correlation correlation_outcome descents_by_cell paths_sentence paths_table "
        "reach_answers reach_correlations reach_points reach_table trap_verdicts traps_forest"
    ),
    "matrix": "claims_in_words claims_matrix message not_run_table",
    "orders": "ORDERINGS ordering_cells orderings",
    "playground": "Playground",
    "replays": "Recording recordings recordings_answer recordings_sentence session_figure",
    "sessions": "Session",
    "sharing": (
        "precision_effect precision_pairs precision_pairs_table stored_together together_sentence together_table"
    ),
    "sliders": "Slider trace_slider",
    "style": (
        "COLOURS STYLE colour display_name distance_name in_figure md method_order per_class sign source use_style"
    ),
    "summaries": (
        "Verdict Verdicts alike components components_sentence compression data_sentence forest matching "
        "spreads spreads_sentence summarise verdict verdicts"
    ),
    "tables": (
        "Cell Table accuracy_table components_table distance_names neighbours_table noise outcome_against text_table"
    ),
    "trainer": "train_here",
    "transfer": "best_source best_target generalisation network_sizes network_table transfer_sentence transfer_table",
}
_MODULE_OF = {name: module for module, names in _NAMES.items() for name in names.split()}

__all__ = sorted(_MODULE_OF)


def __getattr__(name: str) -> Any:
    if name in _NAMES:
        return importlib.import_module(f".{name}", __name__)
    if name not in _MODULE_OF:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f".{_MODULE_OF[name]}", __name__), name)


def __dir__() -> list[str]:
    return __all__
