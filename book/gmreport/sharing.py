"""What is saved by making methods together and by bfloat16, and what bfloat16 does to the accuracy."""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Any

import msgspec
import pandas as pd
from IPython.display import Markdown

from gmlib.analysis.statistics import half_width

from .benchmarks import read_stored
from .style import counted, md, per_class
from .tables import Table, filled

Stored = Mapping[str, Mapping[str, Any]]  # name of the file -> what benchmarks/together.py wrote


class Together(msgspec.Struct):
    """A file that benchmarks/together.py wrote. The keys of the three tables are ways of making the sets."""

    methods: list[str]
    images: str
    seconds: dict[str, list[float]]
    median: dict[str, float]
    times_as_fast: dict[str, float]
    device_name: str
    threads: int
    torch: str
    commit: str | None


def stored_together(folder: str | os.PathLike | None = None) -> dict[str, dict[str, Any]]:
    """The stored files of benchmarks/together.py, by their name without .json.

    Parameters
    ----------
    folder
        None for results/benchmarks/together/ in the repository.

    Raises
    ------
    FileNotFoundError
        If the repository's results are not here.
    ValueError
        If a file is damaged.
    """
    return read_stored("benchmarks/together", folder, Together)


def together_sentence(stored: Stored) -> Markdown:
    """How much faster the methods are together than apart, on each machine."""
    if not stored:
        return Markdown("**The time of methods made together was not measured yet.**")
    parts = [
        f"{counted(len(m['methods']), 'method')} take {m['median']['apart, float32']:.1f} s per outer iteration one "
        f"after another and {m['median']['together, float32']:.1f} s together, both in float32, and "
        f"{m['median']['together, bf16']:.1f} s together in bfloat16 ({md(m['device_name'])}, "
        f"{counted(m['threads'], 'thread')})"
        for m in stored.values()
    ]
    return Markdown(f"**{'; '.join(parts)}.**")


def together_table(measured: Mapping[str, Any]) -> Table:
    """Seconds per outer iteration of all methods, by how they are made."""
    cells = {}
    for kind, seconds in measured["seconds"].items():
        cells[kind, "seconds"] = [
            f"{measured['median'][kind]:.2f}",
            f"{min(seconds):.2f} to {max(seconds):.2f}, n={len(seconds)}",
        ]
        cells[kind, "times as fast"] = [f"{measured['times_as_fast'][kind]:.2f}"]
    caption = (
        f"One outer iteration of {counted(len(measured['methods']), 'method')}, medians of whole processes; "
        f"{measured['images']}; {measured['device_name']}, {counted(measured['threads'], 'thread')}; torch "
        f"{measured['torch']}, gmlib at commit {measured['commit']}."
    )
    return filled(list(measured["seconds"]), cells, caption, "made")


def precision_pairs(probed: pd.DataFrame) -> pd.DataFrame:
    """Pairs of sets that differ in the precision of the pass over real images only.

    With precision="auto" a set may have the precision of its probe. Then both are the same set, which is no pair.

    Parameters
    ----------
    probed
        From `gmreport.probes`.

    Returns
    -------
    DataFrame
        One row for each pair: dataset, ipc, method, budget, set (the seed), difference (accuracy with bfloat16 minus
        accuracy with float32, in points), n (networks).
    """
    signs = {("float32", "precision=bf16"): 1.0, ("bf16", "precision=float32"): -1.0}
    changes = zip(probed["base_precision"], probed["change"], strict=True)
    pairs = probed.assign(sign=[signs.get(change) for change in changes]).dropna(subset="sign")
    pairs["difference"] = pairs["gain"] * pairs["sign"].astype(float)
    return pairs[["dataset", "ipc", "method", "budget", "set", "difference", "n"]].reset_index(drop=True)


def precision_effect(pairs: pd.DataFrame) -> Markdown:
    """What bfloat16 does to the accuracy: mean difference and 95% interval over pairs, for each data set and size.

    The interval counts the pairs as independent. Pairs of one seed share networks and real batches, so it may be too
    narrow. An interval over the few seeds would be too wide to say anything. `precision_pairs_table` shows each pair.

    Parameters
    ----------
    pairs
        From `precision_pairs`.
    """
    if pairs.empty:
        return Markdown("**No set was made in both precisions with the same seed yet.**")
    parts = []
    for (dataset, ipc, budget), some in pairs.groupby(["dataset", "ipc", "budget"], sort=False):
        values = some["difference"].to_numpy()
        half = half_width(values)
        spread = "" if len(values) < 2 else f" ({values.mean() - half:+.2f} to {values.mean() + half:+.2f})"
        networks = counted(int(some["n"].min()), "network")
        parts.append(
            f"{md(dataset)}, {per_class(ipc)}, {md(budget)} budget: {values.mean():+.2f} points{spread}, "
            f"{counted(len(values), 'pair')} with at least {networks} each"
        )
    return Markdown(
        f"**Accuracy with bfloat16 minus accuracy with float32, same seeds: {'; '.join(parts)}.** "
        "Intervals are 95% t intervals over the pairs. Pairs of one seed share their networks and real batches, so "
        "their differences may be alike, and an interval may be too narrow."
    )


def precision_pairs_table(pairs: pd.DataFrame) -> Table:
    """Every pair. ``pairs`` is from `precision_pairs`."""
    cells, rows = {}, []
    for p in pairs.itertuples():
        row = f"{p.dataset}, IPC {p.ipc}: {p.method}, set {p.set} ({p.budget})"
        rows.append(row)
        cells[row, "bfloat16 minus float32"] = [f"{p.difference:+.1f}", f"n={p.n}"]
    return filled(rows, cells, "Differences of test accuracy in points, mean over networks of the same seed.", "set")
