"""Across architectures (Table 4): sizes of networks, source and target tables, and what they show, in sentences."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import pandas as pd
from IPython.display import Markdown

from gmlib import networks
from gmlib.runtime import generator

from .style import counted, display_name, listed, md, per_class
from .summaries import summarise, verdict
from .tables import Table, accuracy_table


def network_sizes(
    names: Sequence[str], shape: tuple[int, int, int], n_classes: int, *, width: int = 128, depth: int = 3
) -> pd.DataFrame:
    """Size of each network for images of a shape, or why it does not fit.

    Parameters
    ----------
    names
        Names of networks, as `networks.build` reads them.
    shape
        (channels, height, width).
    n_classes
        Number of classes.
    width, depth
        Of a ConvNet.

    Returns
    -------
    DataFrame
        One row for each network. Columns: network; parameters, how many; weights, the shapes of the weights whose
        gradients are matched, from input to output; convolutional, True if one of them belongs to a convolution;
        reason, why the network does not fit the images, or "".

    Raises
    ------
    ValueError
        If a name is unknown.
    """
    rows = []
    for name in dict.fromkeys(names):
        networks.parse_name(name)  # an unknown name is an error, a network that does not fit is not
        row = {"network": name, "parameters": 0, "weights": [], "convolutional": False, "reason": ""}
        try:
            network = networks.build(
                name, shape, n_classes, generator=generator(0, "sizes"), width=width, depth=depth
            )
        except ValueError as reason:
            rows.append(row | {"reason": str(reason)})
            continue
        weights = [tuple(weight.shape) for _, weight in networks.matched(network)]
        parameters = sum(p.numel() for p in network.parameters())
        convolutional = any(len(shape) == 4 for shape in weights)
        rows.append(row | {"parameters": parameters, "weights": weights, "convolutional": convolutional})
    return pd.DataFrame(rows)


def network_table(sizes: Mapping[str, pd.DataFrame]) -> Table:
    """Parameters and matched weights of networks (rows) on data (columns), or why the network does not fit.

    Parameters
    ----------
    sizes
        Name of a column -> `network_sizes` of the same networks for these data.
    """
    cells = {
        (row.network, column): [row.reason] if row.reason else _size_lines(row)
        for column, rows in sizes.items()
        for row in rows.itertuples()
    }
    names = list(dict.fromkeys(name for name, _ in cells))
    caption = "Parameters; below, the weights whose gradients are matched: how many arrays, the first and the last."
    return Table(names, list(sizes), cells, caption, corner="network")


def _size_lines(row) -> list[str]:
    first, last = ("×".join(map(str, row.weights[i])) for i in (0, -1))
    return [f"{row.parameters:,}", f"{len(row.weights)}: {first} to {last}"]


def transfer_table(
    results: pd.DataFrame,
    paper: pd.DataFrame | None = None,
    *,
    sources: Mapping[str, str],
    targets: Sequence[str],
    dataset: str,
    ipc: int,
    why: Mapping[tuple[str, int, str], str] | None = None,
    unfit: Mapping[str, str] | None = None,
) -> Table:
    """Source networks in rows, target networks in columns, as in Table 4. Cells are those of `accuracy_table`.

    Parameters
    ----------
    results
        Long form.
    paper
        The published numbers: columns dataset, ipc, method, network, value, std. Ignored if they do not have this
        data set and size.
    sources
        Method -> the text of its row, such as {"MD@lenet": "lenet"}.
    targets
        Networks.
    dataset, ipc
        The data set and its images per class.
    why
        (dataset, ipc, method) -> why a source was not run.
    unfit
        Target -> why it was not run.
    """
    if paper is not None:
        paper = paper[(paper["dataset"] == dataset) & (paper["ipc"] == ipc)]
        paper = None if paper.empty else paper
    results = results[(results["dataset"] == dataset) & (results["ipc"] == ipc)]
    cells, shown, note, legend, unfit = {}, {}, "", (), unfit or {}
    for target in targets:
        theirs = None if paper is None else paper[paper["network"] == target]
        reasons = dict(why or {}) | {(dataset, ipc, m): unfit[target] for m in sources if target in unfit}
        column = accuracy_table(
            results[results["network"] == target],
            theirs,
            methods=list(sources),
            columns=[(dataset, ipc)],
            why=reasons,
            labels=sources,
            caption=f"{dataset}, {per_class(ipc)}: test accuracy in percent, sources in rows, targets in columns",
        )
        for label in sources.values():
            cells[label, target] = column.cells[label, f"{dataset}, IPC {ipc}"]
            shown[label, target] = column.shown[label, f"{dataset}, IPC {ipc}"]
        if not note or (results["network"] == target).any():
            note, legend = column.caption, column.legend
    return Table(list(sources.values()), list(targets), cells, note, "source \\ target", shown=shown, legend=legend)


def transfer_sentence(found: pd.DataFrame) -> Markdown:
    """What our runs of Table 4 say: how many cells were run, those that differ, and which source is the best.

    Parameters
    ----------
    found
        From `judge_claims`.
    """
    cells = found[found["table"] == "Table 4"]
    run = cells[cells["ours"].notna() & cells["budget"].eq("paper")]
    if run.empty:
        return Markdown("**No cell of Table 4 was run by the paper's protocol.**")
    outcomes = run["outcome"].value_counts()
    counts = listed([f"{n} {'different' if name == 'differs' else name}" for name, n in outcomes.items()])
    differing = [
        f"{c.row} to {c.column} {c.ours:.1f} (paper {c.paper:.1f})"
        for c in run[run["outcome"] == "differs"].itertuples()
    ]
    text = f"**Of the paper's {len(cells)} cells, {len(run)} were run: {counts}.**"
    text += f" The different ones: {listed(differing)}." if differing else ""
    ours = run.pivot(index="row", columns="column", values="ours").dropna(axis=1)
    if len(ours) > 1 and len(ours.columns):
        best = ours.idxmax().value_counts()
        names = [f"{name} for {n}" for name, n in best.items()]
        text += (
            f" Of the sources {listed(list(ours.index))}, the one with the highest mean is {listed(names)} of the "
            f"{counted(len(ours.columns), 'target')} that all of them were tried on."
        )
    return Markdown(text)


def generalisation(
    results: pd.DataFrame, sources: Mapping[str, str], targets: Sequence[str], control: str = "random"
) -> Markdown:
    """Whether images condensed with one network help to train other networks, in one sentence.

    A source generalises to another network if its images train that network to a higher accuracy than those of
    ``control``, beyond noise (`verdict`).

    Parameters
    ----------
    results
        Long form, of one (dataset, ipc, budget).
    sources
        Method -> name of its source network. The paper's claim is about convolutional ones.
    targets
        Networks.
    control
        The method to compare with.
    """
    found = {
        f"{md(source)} to {md(target)}": verdict(results, method, control, network=target).outcome
        for method, source in sources.items()
        for target in targets
        if target != source and {method, control} <= _methods(results, target)
    }
    if not found:
        return Markdown(
            "We cannot say whether sources generalise: no pair of different networks has runs of the source and of "
            f"{md(display_name(control))}."
        )
    pairs = {outcome: [pair for pair in found if found[pair] == outcome] for outcome in dict.fromkeys(found.values())}
    rest = "; ".join(f"{outcome}: {', '.join(names)}" for outcome, names in pairs.items() if outcome != "held")
    return Markdown(
        f"**In {len(pairs.get('held', ()))} of {counted(len(found), 'pair')} of a source and another target, both "
        "convolutional, the condensed images train the target better than random real images do, beyond noise.**"
        f"{f' The others: {rest}.' if rest else ''}"
    )


def best_source(results: pd.DataFrame, best: str, sources: Mapping[str, str], targets: Sequence[str]) -> Markdown:
    """Whether ``best`` is the best source for every target, in one sentence.

    It is compared with each other source by `verdict`, target by target. A target counts if all the sources were run.

    Parameters
    ----------
    results
        Long form, of one (dataset, ipc, budget).
    best
        A method.
    sources
        Method -> name of its source network.
    targets
        Networks.
    """
    others = [method for method in sources if method != best]
    compared = [target for target in targets if set(sources) <= _methods(results, target)] if others else []
    name = md(sources.get(best, best))
    if best not in sources or not compared:
        return Markdown(f"We cannot say which source is best: no target has runs of {name} and of all the others.")
    found = {target: [verdict(results, best, other, network=target) for other in others] for target in compared}
    top = [target for target, verdicts in found.items() if all(v.difference > 0 for v in verdicts)]
    above = [target for target, verdicts in found.items() if all(v.outcome == "held" for v in verdicts)]
    below = [target for target, verdicts in found.items() if any(v.outcome == "reversed" for v in verdicts)]
    return Markdown(
        f"**{name} has the highest mean of {len(sources)} sources for {_some(top, compared)}.** It is above every "
        f"other source beyond noise for {_some(above, compared)}, and below one of them beyond noise for "
        f"{_some(below, compared)}."
    )


def best_target(results: pd.DataFrame, sources: Mapping[str, str], targets: Sequence[str]) -> Markdown:
    """Whether one target is among the best for all sources, in one sentence.

    The targets of each source are ranked by mean. The best third, rounded up, are among the best. A source counts if
    all the targets were run. "Beyond noise" compares the target by `verdict` with each target outside that third,
    over the same sets.

    Parameters
    ----------
    results
        Long form, of one (dataset, ipc, budget).
    sources
        Method -> name of its source network.
    targets
        Networks.
    """
    compared = [method for method in sources if all(method in _methods(results, target) for target in targets)]
    if not compared or len(targets) < 2:
        return Markdown(
            "We cannot say whether one target is among the best for all sources: no source was run with all targets."
        )
    few = math.ceil(len(targets) / 3)
    means = summarise(results).pivot(index="method", columns="network", values="mean").loc[compared, list(targets)]
    among = means.rank(axis=1, ascending=False, method="min") <= few
    count = among.sum()
    by_target = results.rename(columns={"method": "network", "network": "method"})  # `verdict` compares methods

    def clearly(target: str, method: str) -> bool:
        outside = among.columns[~among.loc[method]]
        found = (verdict(by_target, target, other, network=method) for other in outside)
        return among.loc[method, target] and all(v.outcome == "held" for v in found)

    rank = "the best" if few == 1 else f"among the best {few}"
    sentences = [
        f"**{md(target)} is {rank} of {len(targets)} targets for {count[target]} of "
        f"{counted(len(compared), 'source')}**, and above the rest beyond noise for "
        f"{sum(clearly(target, method) for method in compared)}."
        for target in count.index[count == count.max()]
    ]
    return Markdown(" ".join(sentences))


def _methods(results: pd.DataFrame, target: str) -> set[str]:
    return set(results.loc[results["network"] == target, "method"])


def _some(chosen: Sequence[str], of: Sequence[str]) -> str:
    names = f" ({md(', '.join(chosen))})" if chosen else ""
    return f"{len(chosen)} of {counted(len(of), 'target')}{names}"
