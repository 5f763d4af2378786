"""Tables of accuracies, and of what else is known of each method: ours beside the paper's."""

from __future__ import annotations

import html
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import pandas as pd
from IPython.display import Markdown

from gmlib import networks
from gmlib.runtime import generator

from .numbers import checked, select, summarise, verdict
from .style import counted, method_order


@dataclass(frozen=True)
class Table:
    """Cells of text: `cells[row, column]` is a list of lines. HTML in a page, plain text elsewhere."""

    rows: list[str]
    columns: list[str]
    cells: dict[tuple[str, str], list[str]]
    caption: str
    corner: str = "method"

    def _repr_html_(self) -> str:
        def esc(text):
            return html.escape(str(text))

        head = "".join(f'<th scope="col">{esc(c)}</th>' for c in self.columns)
        body = ""
        for row in self.rows:
            cells = ""
            for column in self.columns:
                first, *rest = self.cells[row, column]
                small = "".join(f"<br><small>{esc(line)}</small>" for line in rest)
                cells += f"<td>{esc(first)}{small}</td>"
            body += f'<tr><th scope="row">{esc(row)}</th>{cells}</tr>'
        return (
            f'<div class="gm-table"><table class="table"><caption>{esc(self.caption)}</caption><thead><tr>'
            f'<th scope="col">{esc(self.corner)}</th>{head}</tr></thead><tbody>{body}</tbody></table></div>'
        )

    def __str__(self) -> str:
        text = {c: ["; ".join(self.cells[r, c]) for r in self.rows] for c in self.columns}
        return f"{self.caption}\n{pd.DataFrame(text, index=self.rows).to_string()}"

    __repr__ = __str__


def accuracy_table(
    results: pd.DataFrame,
    paper: pd.DataFrame | None = None,
    *,
    methods: Sequence[str] | None = None,
    columns: Sequence[tuple[str, int]] | None = None,
    network: str | None = None,
    why: Mapping[tuple[str, int, str], str] | None = None,
    labels: Mapping[str, str] | None = None,
    corner: str = "method",
    caption: str = "Test accuracy in percent",
    decimals: int = 1,
) -> Table:
    """Methods in rows, (dataset, images per class) in columns; in a cell ours, the paper's under it.

    methods, columns: what to show (default: what `results` hold); a cell that was not run says so, with the
    reason from `why[dataset, ipc, method]` where there is one; a reason "not applicable: ..." stands alone.
    labels: what the row of a method reads, where that is not its name. corner: what the rows are.
    paper: the published numbers, columns dataset, ipc, method, value, std (percent).
    network: the trained architecture, needed when `results` hold several.
    A cell run under another budget than "paper" is not set against the paper's figure; the caption or, where
    budgets are mixed, the cell names the budget.
    """
    if results.empty and methods is not None and columns is not None:
        summary = results.assign(mean=0.0, std=0.0, n=0, n_sets=0, ci95=0.0)  # no row: every cell says "not run"
    else:
        summary = summarise(select(checked(results), network=network))
    methods = list(methods) if methods is not None else method_order(summary["method"])
    if columns is None:
        columns = list(summary[["dataset", "ipc"]].drop_duplicates().itertuples(index=False, name=None))
    budgets = list(dict.fromkeys(summary["budget"]))
    cells, rows = {}, [(labels or {}).get(method, method) for method in methods]
    if len(set(rows)) < len(rows):
        raise ValueError(f"two rows would read the same ({', '.join(rows)}): give each method a label of its own.")
    for method, row in zip(methods, rows, strict=True):
        for dataset, ipc in columns:
            where = (summary["dataset"] == dataset) & (summary["ipc"] == ipc) & (summary["method"] == method)
            theirs = _published(paper, dataset, ipc, method)
            lines = []
            for _, s in summary[where].iterrows():
                lines += _cell_lines(s, decimals, name_budget=len(budgets) > 1)
            if not lines:
                reason = (why or {}).get((dataset, ipc, method), "")
                said = (
                    reason if reason.startswith("not applicable") else f"not run: {reason}" if reason else "not run"
                )
                lines = [said]
            if paper is not None:
                lines += [_against_paper(theirs, summary[where], decimals)]
            cells[row, f"{dataset}, IPC {ipc}"] = lines
    note = "mean±std over all networks, n networks, 95% t interval over sets"
    if not budgets:
        note += "; nothing was run"
    elif len(budgets) > 1:
        note += f'; budgets: {", ".join(budgets)}, of which only "paper" is the paper\'s protocol'
    elif budgets != ["paper"]:
        note += f"; budget: {budgets[0]}, not the paper's protocol"
    return Table(rows, [f"{d}, IPC {i}" for d, i in columns], cells, f"{caption} ({note}).", corner)


def components_table(found: pd.DataFrame) -> Table:
    """What condensation adds, in parts: methods in rows; found: as `components` returns them, of one network and budget."""
    cells, column = {}, _column_names(found)
    for c in found.itertuples():
        at = column(c.dataset, c.ipc)
        interval = f"95% CI [{c.ior_low:+.1f}, {c.ior_high:+.1f}]"
        cells[c.method, f"{at}: IOR"] = _unless_missing(c.ior, "{:+.1f}") + (
            [] if math.isnan(c.ior_low) else [interval]
        )
        cells[c.method, f"{at}: HLR"] = _unless_missing(c.hlr, "{:.1f}")
        cells[c.method, f"{at}: relative"] = _unless_missing(c.relative, "{:.1f} %")
    caption = (
        "Improvement over random (IOR) and hard-label recovery gap (HLR) in points; accuracy relative to whole data."
    )
    return filled(method_order(found["method"]), cells, caption)


def noise_table(results: pd.DataFrame) -> Table:
    """Standard deviations between sets and between the networks of one set, apart; methods in rows.

    results: of one network and budget. `numbers.between_sets` says how the two are told apart.
    """
    cells, column = {}, _column_names(results)
    for s in summarise(select(checked(results), network=None, budget=None)).itertuples():
        at = column(s.dataset, s.ipc)
        between = _unless_missing(s.std_between_sets, "{:.2f}")
        if not math.isnan(s.std_between_sets):
            between += [f"95% interval {s.between_low:.2f} to {s.between_high:.2f}"]
        if not math.isnan(s.std_set_means):
            between += [f"of the means as they are: {s.std_set_means:.2f}"]
        cells[s.method, f"{at}: between sets"] = [*between, counted(s.n_sets, "set")]
        cells[s.method, f"{at}: between networks"] = [*_unless_missing(s.std_within_sets, "{:.2f}"), f"n={s.n}"]
    caption = (
        "Standard deviation of test accuracy, in points: between sets, without the share that their networks have in the spread "
        "of the means, and of networks around their set's mean."
    )
    return filled(method_order(results["method"]), cells, caption)


def matching_table(found: pd.DataFrame, labels: Mapping[str, str] | None = None, corner: str = "method") -> Table:
    """How far matching came, mean±std over sets, methods in rows; found: as `matching` returns it. labels: as in `table`."""
    cells = {}
    for method, rows in found.groupby("method", sort=False):
        row = (labels or {}).get(method, method)
        for name, column, decimals in (
            ("loss at first", "first", 0), ("loss in the end", "last", 0), ("of the first, in percent", "left", 0),
            ("images moved by", "moved", 2),
        ):  # fmt: skip
            std = f"±{rows[column].std():.{decimals}f}" if len(rows) > 1 else ""
            cells[row, name] = [f"{rows[column].mean():.{decimals}f}{std}"]
    caption = (
        "Matching loss over the first and the last tenth of the outer iterations, each in the units of its own distance, and how "
        "far S moved, relative to the norm it began with; mean±std over sets."
    )
    return filled(list(dict.fromkeys(row for row, _ in cells)), cells, caption, corner)


def neighbours_table(found: pd.DataFrame) -> Table:
    """Published figures of other methods, data sets in columns; found: as `paper.neighbours` returns them."""
    cells: dict[tuple[str, str], list[str]] = {}
    for (method, venue, dataset), rows in found.groupby(["method", "venue", "dataset"], sort=False):
        figures, ipcs = " / ".join(f"{value:.1f}" for value in rows["value"]), " / ".join(map(str, rows["ipc"]))
        cells[f"{method} ({venue})", dataset] = [figures, f"IPC {ipcs}"]
    caption = (
        "Published test accuracy in percent, by images per class, as later papers quote it; each by its own protocol."
    )
    return filled(list(dict.fromkeys(row for row, _ in cells)), cells, caption, empty="none")


def _column_names(found: pd.DataFrame) -> Callable[[str, int], str]:
    """What stands above a column: the data set is named where there are several."""
    several = found["dataset"].nunique() > 1
    return lambda dataset, ipc: f"{dataset}, IPC {ipc}" if several else f"IPC {ipc}"


def _unless_missing(value: float, form: str) -> list[str]:
    return ["not known" if math.isnan(value) else form.format(value)]


def filled(
    rows: list[str],
    cells: dict[tuple[str, str], list[str]],
    caption: str,
    corner: str = "method",
    empty: str = "not run",
) -> Table:
    """A table of these cells; those that are not there say `empty`."""
    columns = list(dict.fromkeys(column for _, column in cells))
    return Table(rows, columns, {(r, c): cells.get((r, c), [empty]) for r in rows for c in columns}, caption, corner)


def text_table(frame: pd.DataFrame, caption: str, corner: str = "method") -> Table:
    """A table of what is already text: the index in rows, the columns in columns; a line break in a cell makes a small line."""
    rows, columns = list(map(str, frame.index)), list(map(str, frame.columns))
    cells = {
        (row, column): str(frame.iat[i, j]).split("\n")
        for i, row in enumerate(rows)
        for j, column in enumerate(columns)
    }
    return Table(rows, columns, cells, caption, corner)


def _cell_lines(s: pd.Series, decimals: int, name_budget: bool) -> list[str]:
    spread = "" if math.isnan(s["std"]) else f"±{s['std']:.{decimals}f}"
    ours = f"{s['mean']:.{decimals}f}{spread} (n={s['n']}, {counted(s['n_sets'], 'set')})"
    interval = s["note"] if math.isnan(s["ci95"]) else f"95% CI [{s['low']:.{decimals}f}, {s['high']:.{decimals}f}]"
    return [ours, interval] + ([f"budget: {s['budget']}"] if name_budget else [])


def _published(paper: pd.DataFrame | None, dataset: str, ipc: int, method: str) -> tuple[float, float] | None:
    if paper is None:
        return None
    row = paper[(paper["dataset"] == dataset) & (paper["ipc"] == ipc) & (paper["method"] == method)]
    return None if row.empty else (float(row["value"].iloc[0]), float(row["std"].iloc[0]))


def _against_paper(theirs: tuple[float, float] | None, ours: pd.DataFrame, decimals: int) -> str:
    if theirs is None:
        return "not in the paper"
    value, std = theirs
    text = f"paper: {value:.{decimals}f}" + ("" if math.isnan(std) else f"±{std:.{decimals}f}")
    same = ours[(ours["budget"] == "paper") & ours["ci95"].notna()]
    if same.empty:  # another budget, or one set: nothing to compare with
        return text
    low, high = same["low"].iloc[0], same["high"].iloc[0]
    side = "ours above" if low > value else "ours below" if high < value else "inside our interval"
    return f"{text} ({side})"


def reach_table(sums: pd.DataFrame, budget: str) -> Table:
    """Distances to the nearest trap, methods in rows, thresholds in columns; one row of `sums` per set and threshold.

    sums: `reach.by_eps(..., by=["method", "set"])`.
    """
    methods, eps = method_order(sums["method"]), sorted(sums["eps"].unique(), reverse=True)
    cells = {}
    for method in methods:
        for e in eps:
            rows = sums[(sums["method"] == method) & (sums["eps"] == e)]
            distances = rows["min_distance"].dropna()
            spread = f"±{distances.std():.2f}" if len(distances) > 1 else ""
            first = f"{distances.mean():.2f}{spread}" if len(distances) else "not reached"
            starts, arrived = rows["starts"].sum(), (rows["starts"] * rows["reached"]).sum()
            cells[method, f"eps = {e:g}"] = [first, f"{counted(len(rows), 'set')}, {arrived:.0f} of {starts} starts"]
    caption = f"Distance from the start to the nearest trap, mean±std over sets; sets, and starts that reached it (budget: {budget})."
    return Table(methods, [f"eps = {e:g}" for e in eps], cells, caption)


# ---- source x target: Table 4 ------------------------------------------------------------------------------


def network_sizes(
    names: Sequence[str], shape: tuple[int, int, int], n_classes: int, *, width: int = 128, depth: int = 3
) -> pd.DataFrame:
    """What `networks.build` makes of each name for images of `shape` (channels, height, width), one row each.

    Columns: network; parameters, how many numbers there are to train; weights, the shapes of the arrays whose gradients are
    matched, input first; convolutional, whether one of these is a convolution's; reason, why a network does not fit the
    images, or "". Raises ValueError for an unknown name.
    """
    rows = []
    for name in dict.fromkeys(names):
        networks.parse_name(name)  # an unknown name is a mistake, and no network that does not fit
        row = {"network": name, "parameters": 0, "weights": [], "convolutional": False, "reason": ""}
        try:
            size = {"width": width, "depth": depth}
            network = networks.build(name, shape, n_classes, generator=generator(0, "sizes"), **size)
        except ValueError as reason:
            rows.append(row | {"reason": str(reason)})
            continue
        weights = [tuple(weight.shape) for _, weight in networks.matched(network)]
        parameters = sum(p.numel() for p in network.parameters())
        convolutional = any(len(shape) == 4 for shape in weights)
        rows.append(row | {"parameters": parameters, "weights": weights, "convolutional": convolutional})
    return pd.DataFrame(rows)


def network_table(sizes: Mapping[str, pd.DataFrame]) -> Table:
    """Networks in rows, data in columns: parameters and matched weights, or why the network does not fit.

    sizes: what stands above a column -> `network_sizes` of the same networks for these data.
    """
    cells = {
        (row.network, column): [row.reason] if row.reason else _size_lines(row)
        for column, rows in sizes.items()
        for row in rows.itertuples()
    }
    names = list(dict.fromkeys(name for name, _ in cells))
    caption = (
        "Parameters; under them the arrays of weights whose gradients are matched: how many, the first and the last."
    )
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
    """Source networks in rows, target networks in columns, as Table 4 has them; the cells are those of `table`.

    sources: method -> what its row reads, {"MD@lenet": "lenet"}. paper: the published numbers, columns dataset, ipc, method,
    network, value, std; left out where they hold none for (dataset, ipc). why[dataset, ipc, method] and unfit[target] say
    why a cell is empty.
    """
    if paper is not None:
        paper = paper[(paper["dataset"] == dataset) & (paper["ipc"] == ipc)]
        paper = None if paper.empty else paper
    results = results[(results["dataset"] == dataset) & (results["ipc"] == ipc)]
    cells, note = {}, ""
    for target in targets:
        theirs = None if paper is None else paper[paper["network"] == target]
        reasons = dict(why or {}) | {
            (dataset, ipc, m): (unfit or {})[target] for m in sources if target in (unfit or {})
        }
        column = accuracy_table(
            results[results["network"] == target], theirs, methods=list(sources), columns=[(dataset, ipc)], why=reasons,
            caption=f"{dataset}, IPC {ipc}: test accuracy in percent, sources in rows, targets in columns",
        )  # fmt: skip
        for method, label in sources.items():
            cells[label, target] = column.cells[method, f"{dataset}, IPC {ipc}"]
        if not note or (results["network"] == target).any():
            note = column.caption
    return Table(list(sources.values()), list(targets), cells, note, corner="source \\ target")


def generalisation(
    results: pd.DataFrame, sources: Mapping[str, str], targets: Sequence[str], control: str = "random"
) -> Markdown:
    """Whether what was condensed with a source helps other networks: one sentence, of one (dataset, ipc, budget).

    sources, targets: method -> name of its source network, and names of networks; the convolutional ones, as the paper says
    it of them. Rule: a source generalises to another network if that is trained to a higher accuracy by the source's images
    than by those of `control`, beyond noise (`verdict`).
    """
    found = {
        f"{source} to {target}": verdict(results, method, control, network=target).outcome
        for method, source in sources.items()
        for target in targets
        if target != source and {method, control} <= _methods(results, target)
    }
    if not found:
        return Markdown(
            f"Whether sources generalise cannot be said: no pair of different networks was run beside {control}."
        )
    pairs = {outcome: [pair for pair in found if found[pair] == outcome] for outcome in dict.fromkeys(found.values())}
    rest = "; ".join(f"{outcome}: {', '.join(names)}" for outcome, names in pairs.items() if outcome != "held")
    return Markdown(
        f"**In {len(pairs.get('held', ()))} of {len(found)} pair{'s' if len(found) > 1 else ''} of a source and another target, "
        "both convolutional, the condensed images train the target better than random real images do, beyond noise.**"
        f"{f' Else {rest}.' if rest else ''}"
    )


def best_source(results: pd.DataFrame, best: str, sources: Mapping[str, str], targets: Sequence[str]) -> Markdown:
    """Whether `best` is the best source for every target: one sentence, of one (dataset, ipc, budget).

    best, sources: a method, and method -> name of its source network. Rule: `verdict` against each other source, target by
    target; those targets count for which all the sources were run.
    """
    others = [method for method in sources if method != best]
    compared = [target for target in targets if set(sources) <= _methods(results, target)] if others else []
    name = sources.get(best, best)
    if best not in sources or not compared:
        return Markdown(f"Which source is best cannot be said: for no target was {name} run beside all the others.")
    found = {target: [verdict(results, best, other, network=target) for other in others] for target in compared}
    top = [target for target, all_of in found.items() if all(v.difference > 0 for v in all_of)]
    above = [target for target, all_of in found.items() if all(v.outcome == "held" for v in all_of)]
    below = [target for target, all_of in found.items() if any(v.outcome == "reversed" for v in all_of)]
    return Markdown(
        f"**{name} has the highest mean of {len(sources)} sources for {_some(top, compared)}.** It is above every other source "
        f"beyond noise for {_some(above, compared)}, and below one of them beyond noise for {_some(below, compared)}."
    )


def best_target(results: pd.DataFrame, sources: Mapping[str, str], targets: Sequence[str]) -> Markdown:
    """Whether one target is among the best whatever the source: one sentence, of one (dataset, ipc, budget).

    Rule: for each source the targets are ranked by mean; the best third of them, rounded up, are among the best. Those
    sources count with which all the targets were run. "Beyond noise" compares the target with each outside that third, by
    `verdict` over the same sets.
    """
    compared = [method for method in sources if all(method in _methods(results, target) for target in targets)]
    few = math.ceil(len(targets) / 3)
    if not compared or len(targets) < 2:
        return Markdown(
            "Whether one target is among the best whatever the source cannot be said: no source was run with two."
        )
    means = summarise(results).pivot(index="method", columns="network", values="mean").loc[compared, list(targets)]
    among = means.rank(axis=1, ascending=False, method="min") <= few
    count = among.sum()
    # Targets take the place of methods: they are compared on the same sets.
    by_target = results.rename(columns={"method": "network", "network": "method"})
    sentences = []
    for target in count.index[count == count.max()]:
        clear = [
            method
            for method in compared
            if among.loc[method, target]
            and all(
                verdict(by_target, target, other, network=method).outcome == "held"
                for other in targets
                if not among.loc[method, other]
            )
        ]
        sentences.append(
            f"**{target} is {'the best' if few == 1 else f'among the best {few}'} of {len(targets)} targets for "
            f"{count[target]} of {len(compared)} source{'s' if len(compared) > 1 else ''}**, "
            f"and above those outside beyond noise for {len(clear)}."
        )
    return Markdown(" ".join(sentences))


def _methods(results: pd.DataFrame, target: str) -> set[str]:
    return set(results.loc[results["network"] == target, "method"])


def _some(chosen: Sequence[str], of: Sequence[str]) -> str:
    names = f" ({', '.join(chosen)})" if chosen else ""
    return f"{len(chosen)} of {len(of)} target{'s' if len(of) > 1 else ''}{names}"
