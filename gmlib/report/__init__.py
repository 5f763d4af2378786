"""Tables, figures, verdicts and sliders that the pages show. Nothing here runs an experiment, but for the playground, at its
reader's word.

Every function that takes `results` expects the long form: a DataFrame with one row per trained network
and the columns dataset, ipc, method, budget, set (integer seed of the condensed set), network, net (index
of the network) and accuracy (percent).
"""

from .benchmarks import aims_sentence, aims_table, benchmarks_table, stored_benchmarks
from .claims import (
    ORDERINGS,
    claims,
    claims_sentence,
    claims_summary,
    claims_table,
    orderings,
    orderings_table,
    paper_table,
)
from .costs import (
    cost_measured,
    cost_ratio,
    cost_table,
    foretold_table,
    log_sentence,
    overfitting_table,
    precision_table,
    pulls_sentence,
    saving_sentence,
    schedule_sentence,
    steps_table,
    time_to,
    timed_with,
    timing_sentence,
)
from .deviations import deviations, deviations_sentence, deviations_table, probes, probes_table, recipe_departures
from .figures import (
    accuracy_figure,
    alignment_figure,
    cost_figure,
    distance_figure,
    image_grid,
    loss_figure,
    overfitting_figure,
    paths_figure,
    plane_distances,
    pulls_figure,
    reach_figure,
    schedule_figure,
    sets_figure,
    time_figure,
    transfer_figure,
)
from .numbers import (
    Verdict,
    Verdicts,
    alike,
    claim,
    components,
    compression,
    correlation,
    matching,
    reach_answers,
    reach_points,
    summarise,
    verdict,
    verdicts,
)
from .playground import Playground, session_figure, session_slider
from .sliders import Slider, trace_slider
from .style import COLOURS, STYLE, colour, method_order, show, source, use_style
from .tables import (
    Table,
    best_source,
    best_target,
    components_table,
    generalisation,
    matching_table,
    neighbours_table,
    network_sizes,
    network_table,
    noise_table,
    reach_table,
    table,
    text_table,
    transfer_table,
)

__all__ = [
    "COLOURS", "ORDERINGS", "STYLE", "Playground", "Slider", "Table", "Verdict", "Verdicts", "accuracy_figure", "aims_sentence",
    "aims_table", "alignment_figure", "alike", "benchmarks_table", "best_source", "best_target", "claim", "claims",
    "claims_sentence", "claims_summary", "claims_table", "colour", "components", "components_table", "compression",
    "correlation", "cost_figure", "cost_measured", "cost_ratio", "cost_table", "deviations", "deviations_sentence",
    "deviations_table", "distance_figure", "foretold_table", "generalisation", "image_grid", "log_sentence", "loss_figure",
    "matching", "matching_table", "method_order", "neighbours_table", "network_sizes", "network_table", "noise_table",
    "orderings", "orderings_table", "overfitting_figure", "overfitting_table", "paper_table", "paths_figure", "plane_distances",
    "precision_table", "probes", "probes_table", "pulls_figure", "pulls_sentence", "reach_answers", "reach_figure",
    "reach_points", "reach_table", "recipe_departures", "saving_sentence", "schedule_figure", "schedule_sentence",
    "session_figure", "session_slider", "sets_figure", "show", "source", "steps_table", "stored_benchmarks", "summarise",
    "table", "text_table", "time_figure", "time_to", "timed_with", "timing_sentence", "trace_slider", "transfer_figure",
    "transfer_table", "use_style", "verdict", "verdicts",
]
