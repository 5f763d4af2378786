"""The max-min hypothesis (Section 5): distances to the nearest trap, and their relation to accuracy."""

from __future__ import annotations

import html
import math
from collections.abc import Sequence
from types import SimpleNamespace

import pandas as pd
from IPython.display import HTML, Markdown

from gmlib.analysis.statistics import RankCorrelation, rank_correlation
from gmlib.analysis.training import by_eps
from gmlib.coresets import CORESETS
from gmlib.recipe import BUDGETS

from . import paper
from .differences import against_zero, axis_html, forest_html
from .style import SIGNS, counted, display_name, listed, md, method_order, sign, signed
from .summaries import Verdict, verdict
from .tables import Table, text_table


def reach_table(sums: pd.DataFrame, budget: str) -> Table:
    """Distances to the nearest trap, methods in rows, thresholds in columns.

    Parameters
    ----------
    sums
        From `by_eps(..., by=["method", "set"])`: one row per set and threshold.
    budget
        Of the runs, for the caption.
    """
    methods = method_order(sums["method"])
    eps = sorted(sums["eps"].unique(), reverse=True)
    cells = {}
    for method in methods:
        for e in eps:
            rows = sums[(sums["method"] == method) & (sums["eps"] == e)]
            distances = rows["min_distance"].dropna()
            spread = f"±{distances.std():.2f}" if len(distances) > 1 else ""
            first = f"{distances.mean():.2f}{spread}" if len(distances) else "not reached"
            starts = rows["starts"].sum()
            arrived = (rows["starts"] * rows["reached"]).sum()
            cells[method, f"eps = {e:g}"] = [first, f"{counted(len(rows), 'set')}, {arrived:.0f} of {starts} starts"]
    caption = (
        "Distance from the start to the nearest trap, mean±std over sets; how many sets, and starts that reached it "
        f"(budget: {budget})."
    )
    return Table(methods, [f"eps = {e:g}" for e in eps], cells, caption)


def descents_by_cell(descents: pd.DataFrame) -> list[tuple[tuple[str, int, str], pd.DataFrame]]:
    """The rows of each data set, images per class and budget: the largest budget first, then in the order of Table 3.

    Parameters
    ----------
    descents
        From `readback.stored_descents`.
    """
    order, budgets = paper.order_of_cells(), {name: i for i, name in enumerate(reversed(BUDGETS))}

    def place(cell: tuple[tuple[str, int, str], pd.DataFrame]) -> tuple[int, int]:
        (dataset, ipc, budget), _ = cell
        return budgets.get(budget, len(budgets)), order.get((dataset, ipc), len(order))

    groups = descents.groupby(["dataset", "ipc", "budget"], sort=False) if len(descents) else ()
    return sorted(groups, key=place)


def reach_points(table: pd.DataFrame) -> pd.DataFrame:
    """`by_eps` of each set at the smallest threshold that all sets have, with the accuracy of the set.

    Parameters
    ----------
    table
        Rows of `gmlib.reach` for several sets, with columns method, set and accuracy.
    """
    sums = by_eps(table, by=["method", "set"])
    trained = table[["method", "set", "accuracy"]].drop_duplicates()
    sets = sums.groupby("eps").size()
    return sums[sums["eps"] == sets.index[sets == sets.max()].min()].merge(trained, on=["method", "set"])


def learned_points(points: pd.DataFrame) -> pd.DataFrame:
    """The rows of `reach_points` of learned sets."""
    return points[~points["method"].isin(["noise", "real data", *CORESETS])]


# The paper's changes to its baseline. Section 5 says that they move traps away. The first of a pair has the change.
CHANGES = (("M", "DC"), ("MD", "M"))


def trap_verdicts(some: pd.DataFrame) -> list[Verdict]:
    """Whether the first method of each of CHANGES has the farther traps.

    The rule is that of `verdict`, with the distance to the nearest trap of a set in place of its accuracy.

    Parameters
    ----------
    some
        The rows of one cell from `descents_by_cell`.

    Returns
    -------
    list of Verdict
        In the order of CHANGES, without pairs that were not run. Differences are distances.
    """
    points = learned_points(reach_points(some)).dropna(subset="min_distance")
    cell = {name: some[name].iloc[0] for name in ("dataset", "ipc", "budget")}
    as_results = points[["method", "set"]].assign(accuracy=points["min_distance"], network="convnet", net=0, **cell)
    run = set(points["method"])
    return [verdict(as_results, *pair) for pair in CHANGES if run.issuperset(pair)]


def traps_forest(descents: pd.DataFrame) -> HTML:
    """`trap_verdicts` of all cells as a forest plot.

    Parameters
    ----------
    descents
        From `readback.stored_descents`.
    """
    found = _all_trap_verdicts(descents)
    caption = "Does a change of the paper move the nearest trap away from the start? The stored sets."
    measure = ("mean distance to the nearest trap", "", "has the farther trap")
    notes = []
    if len(descents) and len(every := sorted(descents["eps"].unique(), reverse=True)) > 1:
        outcomes = [[v.outcome for v in _all_trap_verdicts(descents[descents["eps"] == eps])] for eps in every]
        other = [f"ε = {eps:g}" for eps, at in zip(every, outcomes, strict=True) if at != [v.outcome for v in found]]
        same = "All outcomes are the same" if not other else f"Some outcomes are others at {listed(other)}, of those"
        notes = [f"{same} at {listed([f'ε = {eps:g}' for eps in every])}."]
    return HTML(forest_html(found, caption, notes, measure))


def _all_trap_verdicts(descents: pd.DataFrame) -> list[Verdict]:
    return [v for _, some in descents_by_cell(descents) for v in trap_verdicts(some)]


# When a rank correlation decides a question. For values that have nothing to do with each other, the bootstrap
# interval leaves out 0 in 4 to 6% of the cases if there are ten sets or more. With five or six sets and a control it
# does so in 25 to 47%. If one of two groups has two sets, it does so in 12 to 25%; with five in 6 to 8%.
LEAST_SETS = 10
LEAST_GROUP = 5
LEAST_RHO = 0.3  # a weaker one leaves the ranks mostly open: it explains less than a tenth of their variance

ANSWERS = {"held": "yes", "reversed": "no, the other way round"}


def correlation_outcome(found: RankCorrelation, groups: Sequence[bool] | None = None) -> tuple[str, str]:
    """The outcome of a question that a rank correlation answers, and a reason.

    - too few sets: fewer than LEAST_SETS, or fewer than LEAST_GROUP in the smaller of two groups.
    - held: the 95% interval lies above 0, and rho is at least LEAST_RHO.
    - reversed: the interval lies below 0, and rho is at most -LEAST_RHO.
    - not decided: otherwise.

    Parameters
    ----------
    found
        From `rank_correlation`.
    groups
        If two groups of sets are compared: for each set used whether it is in the first.

    Returns
    -------
    outcome, reason : str
        The reason is "" if the question is decided, or if it is not because 0 lies in the interval.
    """
    if found.n < LEAST_SETS:
        return "too few sets", f"{counted(found.n, 'set')} of at least {LEAST_SETS}"
    if groups is not None and (smaller := min(sum(groups), len(groups) - sum(groups))) < LEAST_GROUP:
        return "too few sets", f"{counted(smaller, 'set')} of at least {LEAST_GROUP} in the smaller group"
    if math.isnan(found.rho):
        return "not decided", found.note
    if found.low <= 0 <= found.high:
        return "not decided", ""
    if abs(found.rho) < LEAST_RHO:
        return "not decided", f"|rho| is below {LEAST_RHO}"
    return ("held" if found.rho > 0 else "reversed"), ""


def correlation(question: str, found: RankCorrelation, groups: Sequence[bool] | None = None) -> Markdown:
    """A question with its answer by a rank correlation over sets, as a line of a list.

    Parameters
    ----------
    question
    found, groups
        As in `correlation_outcome`, which holds the rule.
    """
    outcome, reason = correlation_outcome(found, groups)
    numbers = "" if math.isnan(found.rho) else f" Spearman's rho {found}:"
    reason = f" ({reason})" if reason else ""
    return Markdown(f"- {question}{numbers} **{ANSWERS.get(outcome, outcome)}**{reason}.")


QUESTIONS = (
    "Does matching raise the distance, against noise?",
    "Does matching raise the distance, against random real images?",
    "Do sets with a farther trap train better networks?",
    "Does this also hold among the matched sets alone?",
    "Does the distance say more than the training loss at the trap?",
    "Do networks get better with a smaller gradient on the real data at the trap?",
)
AGAINST_REAL, TRAIN_BETTER = QUESTIONS[1:3]
ALONG_A_RUN = "Does the distance rise while M condenses?"


def reach_correlations(
    points: pd.DataFrame, condensing: pd.DataFrame | None = None
) -> dict[str, tuple[RankCorrelation, list[bool] | None]]:
    """The rank correlation that answers each of QUESTIONS, with the groups for `correlation_outcome`.

    Parameters
    ----------
    points, condensing
        As in `reach_answers`. With ``condensing``, ALONG_A_RUN is among the questions.
    """
    learned, trained = learned_points(points), points[points["accuracy"].notna()]
    matched = learned_points(trained)
    noise, random = (pd.concat([points[points["method"] == name], learned]) for name in ("noise", "random"))
    far, accuracy = trained["min_distance"], trained["accuracy"]
    first = {
        QUESTIONS[0]: (noise["method"] != "noise", noise["min_distance"]),
        QUESTIONS[1]: (random["method"] != "random", random["min_distance"]),
    }
    along = {} if condensing is None else {ALONG_A_RUN: (condensing["k"], condensing["min_distance"])}
    rest = {
        QUESTIONS[2]: (far, accuracy),
        QUESTIONS[3]: (matched["min_distance"], matched["accuracy"]),
        QUESTIONS[4]: (far, accuracy, trained["train_loss"]),
        QUESTIONS[5]: (-trained["real_gradient_norm"], accuracy),
    }
    found = {}
    for question, values in {**first, **along, **rest}.items():
        groups = None
        if question in first:
            known = values[1].notna()
            groups = values[0][known].tolist()
        found[question] = (rank_correlation(*values), groups)
    return found


def farther_shares(points: pd.DataFrame) -> dict[str, float]:
    """In how many pairs of a learned set and a control the learned set has the farther trap, in percent; ties half.

    Parameters
    ----------
    points
        From `reach_points`.

    Returns
    -------
    dict
        Question -> share, for the questions that compare learned sets with a control, where both were measured.
    """
    learned = learned_points(points)["min_distance"].dropna().to_numpy()
    shares = {}
    for question, name in zip(QUESTIONS, ("noise", "random"), strict=False):
        control = points.loc[points["method"] == name, "min_distance"].dropna().to_numpy()
        if len(learned) and len(control):
            ahead = learned[:, None] - control
            shares[question] = 100 * float(((ahead > 0) + 0.5 * (ahead == 0)).mean())
    return shares


class Answers(Markdown):
    """Answers as a list of sentences; in a page they are lines of a forest plot."""

    def __init__(self, text: str, html: str):
        super().__init__(text)
        self._html = html

    def _repr_html_(self) -> str:
        return self._html


def reach_answers(points: pd.DataFrame, condensing: pd.DataFrame | None = None, caption: str = "") -> Answers:
    """Section 5's questions, each answered by `correlation` over sets, and the number of sets without a distance.

    Parameters
    ----------
    points
        From `reach_points`. The methods "noise" and "real data" are controls. These, and sets without networks, have
        no accuracy.
    condensing
        The columns of `by_eps` and k, for one run of M along its outer iterations.
    caption
        What was run. How to read the plot follows.
    """
    sets = points[points["method"] != "real data"]
    without = sets[sets["min_distance"].isna()]
    eps = points["eps"].iloc[0]
    count = f"All {len(sets)} sets, noise included, have a start that reaches ε = {eps:g}."
    if len(without):
        counts = without["method"].value_counts(sort=False)
        names = ", ".join(f"{md(display_name(method))} {n}" for method, n in counts.items())
        count = (
            f"**From {len(without)} of {counted(len(sets), 'set')}, noise included, no start reaches ε = {eps:g}** "
            f"({names}). They have no distance, so the correlations leave them out."
        )
    found, shares = reach_correlations(points, condensing), farther_shares(points)
    lines = [correlation(question, *each).data for question, each in found.items()]
    lines = [f"{line} {_pairs(shares[q])}." if q in shares else line for q, line in zip(found, lines, strict=True)]
    text = "\n".join([count, "", *lines])
    return Answers(text, _forest(found, shares, " ".join(filter(None, (caption, count.replace("**", ""))))))


def _pairs(share: float) -> str:
    return f"Learned sets have the farther trap in {share:.0f} % of pairs"


def _forest(
    found: dict[str, tuple[RankCorrelation, list[bool] | None]], shares: dict[str, float], caption: str
) -> str:
    """Each correlation as a line: its outcome, the question, its interval against zero, and the numbers."""
    body, met = "", {}
    for question, (rho, groups) in found.items():
        outcome, reason = correlation_outcome(rho, groups)
        met[outcome] = None
        mark = SimpleNamespace(outcome=outcome, difference=rho.rho, low=rho.low, high=rho.high, margin=math.nan)
        known = not math.isnan(rho.rho)
        numbers = f"<b>{signed(rho.rho)}</b> " if known else ""
        numbers += f"<small>{signed(rho.low)} to {signed(rho.high)}</small>" if known else ""
        more = [reason] if reason else []
        more += [_pairs(shares[question]).lower()] if question in shares else []
        reason = f" <small>({html.escape('; '.join(more))})</small>" if more else ""
        body += (
            f'<tr><td>{sign(outcome)}</td><th scope="row">{html.escape(question)}{reason}</th>'
            f'<td class="gm-plot" aria-hidden="true">{against_zero(mark, 1.0) if known else ""}</td>'
            f'<td class="gm-number" title="n = {rho.n}">{numbers}</td></tr>'
        )
    heads = ("verdict", "question", "drawing", "Spearman's rho, 95% interval")
    head = "".join(f'<th scope="col">{name}</th>' for name in heads)
    foot = f'<tr><td></td><td></td><td class="gm-plot">{axis_html(1.0)}</td><td></td></tr>'
    signs = "; ".join(f"{SIGNS[name][0]} {_RULES[name]}" for name in _RULES if name in met)
    read = f"Dot: Spearman's rho; line: its 95% interval from resampling the sets. {signs}."
    if shares:
        read += (
            " The questions on noise and random images correlate the distance with whether a set is learned (0 or "
            "1). Because of the ties such a rho stays below 1 even if learned sets are farther in all pairs."
        )
    return (
        f'<figure class="gm-figure"><table class="gm-forest"><thead class="gm-hidden"><tr>{head}</tr></thead>'
        f'<tbody>{body}</tbody><tfoot aria-hidden="true">{foot}</tfoot></table>'
        f'<figcaption class="gm-numbered">{html.escape(f"{caption} {read}")}</figcaption></figure>'
    )


_RULES = {
    "held": f"yes, the interval lies right of 0 and rho is at least {LEAST_RHO}",
    "reversed": f"no, the interval lies left of 0 and rho is at most −{LEAST_RHO}",
    "not decided": "neither",
    "too few sets": "too few sets for an answer",
}


def _traps(walked: pd.DataFrame, eps: float) -> pd.DataFrame:
    """The first recorded step of each path with a gradient below eps; a row of NaN for a path without one."""
    paths = list(dict.fromkeys(walked["path"]))
    return walked[walked["gradient_norm"] < eps].groupby("path", sort=False).first().reindex(paths)


def paths_table(walked: pd.DataFrame, eps: float, caption: str) -> Table:
    """The trap and the end of each path.

    Parameters
    ----------
    walked
        From `paths`.
    eps
        Threshold of the gradient norm.
    caption
        What was run.
    """

    def lines(r) -> str:
        if pd.isna(r.step):
            return "not reached"
        return (
            f"{r.distance:.2f} from the start, step {r.step:.0f}\n"
            f"gradient {r.gradient_norm:.2g}, on T {r.gradient_norm_T:.2g}\n"
            f"test accuracy {r.test_accuracy:.1f} %"
        )

    ends = walked.groupby("path", sort=False).last()
    columns = {f"first recorded below {eps:g}": _traps(walked, eps), f"after {ends['step'].max():.0f} steps": ends}
    names = list(map(display_name, ends.index))
    frame = pd.DataFrame({name: list(map(lines, rows.itertuples())) for name, rows in columns.items()}, index=names)
    return text_table(frame, caption, corner="path")


def paths_sentence(walked: pd.DataFrame, eps: float) -> Markdown:
    """Whether the paths on each S end as in Figure 2: trapped earlier than the path on T and nearer to the start.

    A path on T without a trap counts with its last distance.

    Parameters
    ----------
    walked, eps
        As in `paths_table`.
    """
    last = walked.groupby("path", sort=False).last()
    traps = _traps(walked, eps)
    on_S = traps.drop("T")
    on_T = traps.loc["T"].fillna({"step": math.inf, "distance": last.loc["T", "distance"]})
    as_drawn = (on_S["step"] < on_T["step"]) & (on_S["distance"] < on_T["distance"])
    text = (
        f"**{as_drawn.sum()} of {counted(len(on_S), 'path')} on S are trapped earlier than the path on T and nearer "
        "to the start, as in Figure 2.** "
    )
    if on_S["step"].notna().any():
        text += (
            f"At the traps the gradient on T has a norm of {on_S['gradient_norm_T'].min():.2g} to "
            f"{on_S['gradient_norm_T'].max():.2g}. At the start its norm is {walked['gradient_norm_T'].iloc[0]:.2g}. "
        )
    squares = (walked["x"] ** 2 + walked["y"] ** 2).groupby(walked["path"]).sum()
    shown = squares / (walked["distance"] ** 2).groupby(walked["path"]).sum()
    return Markdown(
        f"{text}The plane shows {walked['explained'].iloc[0]:.0%} of the squared distances from the start, and "
        f"{shown.min():.0%} to {shown.max():.0%} of those of single paths."
    )


def alignment_sentence(aligned: pd.DataFrame) -> Markdown:
    """How the gradients of S and T change along training on S, as means over layers and starts.

    Parameters
    ----------
    aligned
        From `alignment`.
    """
    means = aligned.groupby("step")[["ratio", "cosine"]].mean()
    first, last = means.iloc[0], means.iloc[-1]
    steps = f"From step {means.index[0]} to step {means.index[-1]}"
    ratios = f"the ratio of the norms goes from {first['ratio']:.2g} to {last['ratio']:.2g}"
    cosines = f"the cosine from {first['cosine']:.2f} to {last['cosine']:.2f}"
    return Markdown(f"{steps} {ratios} and {cosines}, averaged over layers and starts.")
