"""Committed results say what they are, and bear out what is said of them."""

import json
from pathlib import Path

from gmlib import Recipe, where

RESULTS = Path(__file__).parent.parent / "results"


def test_the_schedule_learned_from_cifar10_is_not_eq_12s():
    """Section 4.4 reads Eq. 12 off such logs. Ours, of a smaller network, also falls, but farther and sooner."""
    log = json.loads((RESULTS / "overfitting" / "cifar10-jpeg-ipc10-mdo.json").read_text())
    recipe = Recipe(**log["recipe"])
    T, _ = recipe.schedule()
    assert (recipe.method, recipe.ipc, T) == ("MDO", 10, 10) and len(log["history"]) == log["outer_iterations"]
    for first in (0, 10, 20):  # from the start, and once S has taken shape
        learned = where.fit_schedule(log["history"][first:], T)
        eq12 = [where.adaptive(t) for t in range(T - 1)]
        assert learned == sorted(learned, reverse=True)
        assert learned[0] == eq12[0] == where.MAX_STEPS, "at first neither stops before the bound"
        assert max(learned[4:]) < min(eq12[4:]), "later theta overfits in fewer steps than Eq. 12 allows"


def test_every_result_is_in_the_readme():
    readme = (RESULTS / "README.md").read_text()
    files = [p.relative_to(RESULTS).as_posix() for p in RESULTS.rglob("*") if p.is_file() and p.name != "README.md"]
    assert files and all(f"`{name}`" in readme for name in files)
