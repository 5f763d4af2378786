"""Tables, figures, verdicts and sliders that the pages show. Nothing here runs an experiment.

Every function that takes `results` expects the long form: a DataFrame with one row per trained network
and the columns dataset, ipc, method, budget, set (integer seed of the condensed set), network, net (index
of the network) and accuracy (percent).
"""

from .figures import accuracy_figure, alignment_figure, image_grid, reach_figure
from .numbers import Verdict, Verdicts, claim, components, compression, correlation, summarise, verdict, verdicts
from .sliders import Slider, trace_slider
from .style import COLOURS, STYLE, colour, method_order, show, source, use_style
from .tables import Table, reach_table, table

__all__ = [
    "COLOURS", "STYLE", "Slider", "Table", "Verdict", "Verdicts", "accuracy_figure", "alignment_figure", "claim", "colour",
    "components", "compression", "correlation", "image_grid", "method_order", "reach_figure", "reach_table", "show", "source",
    "summarise", "table", "trace_slider", "use_style", "verdict", "verdicts",
]
