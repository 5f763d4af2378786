"""gmlib: dataset condensation by gradient matching, after Jiang, Gu, Liu and Pan (arXiv 2208.00311).

import gmlib as gm

data = gm.load_data("digits")
recipe = gm.Recipe.for_method("MDA", dataset="digits", ipc=10, budget="smoke", seed=0)
S = gm.condense(data, recipe)
print(gm.evaluate(S, data, n_networks=5))
"""

from .condensation import Diverged, condense, condense_together
from .coresets import CORESETS, coreset
from .data import Data
from .datasets import load_data
from .evaluation import Evaluation, Protocol, evaluate
from .judging import CrossArchitectures, Judgement, cross_architectures, judge
from .maxmin import reach
from .networks import NETWORKS
from .networks import register as register_network
from .recipe import BUDGETS, METHODS, Recipe
from .runs.estimates import Estimate, estimate
from .runs.shipped import load_condensed
from .runtime import OutOfTime
from .sets import SyntheticSet

__version__ = "0.2.0"

__all__ = [
    "BUDGETS",
    "CORESETS",
    "METHODS",
    "NETWORKS",
    "CrossArchitectures",
    "Data",
    "Diverged",
    "Estimate",
    "Evaluation",
    "Judgement",
    "OutOfTime",
    "Protocol",
    "Recipe",
    "SyntheticSet",
    "condense",
    "condense_together",
    "coreset",
    "cross_architectures",
    "estimate",
    "evaluate",
    "judge",
    "load_condensed",
    "load_data",
    "reach",
    "register_network",
]
