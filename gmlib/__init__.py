"""gmlib: dataset condensation by gradient matching, after Jiang, Gu, Liu and Pan (arXiv 2208.00311).

    import gmlib as gm
    data = gm.load_data("digits")
    recipe = gm.Recipe.for_method("MDA", dataset="digits", ipc=10, budget="smoke", seed=0)
    S = gm.condense(data, recipe)
    print(gm.evaluate(S, data, n_networks=5))
"""

from .condense import Diverged, condense
from .coreset import CORESETS, coreset
from .data import Data, SyntheticSet, load_data
from .evaluate import Evaluation, Protocol, evaluate
from .networks import NETWORKS
from .networks import register as register_network
from .reach import reach
from .recipe import BUDGETS, METHODS, OutOfTime, Recipe
from .shipped import load_condensed

__version__ = "0.1.0"

__all__ = [
    "BUDGETS",
    "CORESETS",
    "METHODS",
    "NETWORKS",
    "Data",
    "Diverged",
    "Evaluation",
    "OutOfTime",
    "Protocol",
    "Recipe",
    "SyntheticSet",
    "condense",
    "coreset",
    "evaluate",
    "load_condensed",
    "load_data",
    "reach",
    "register_network",
]
