"""The max-min hypothesis (Section 5): distances to the nearest trap, and their relation to accuracy."""

from __future__ import annotations

import math

import pandas as pd
from IPython.display import Markdown

from gmlib.analysis.statistics import RankCorrelation, rank_correlation
from gmlib.analysis.training import by_eps
from gmlib.coresets import CORESETS

from .style import counted, md, method_order
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


def reach_points(table: pd.DataFrame) -> pd.DataFrame:
    """`by_eps` of each set at the smallest threshold, with the accuracy of the set.

    Parameters
    ----------
    table
        Rows of `gmlib.reach` for several sets, with columns method, set and accuracy.
    """
    sums = by_eps(table, by=["method", "set"])
    trained = table[["method", "set", "accuracy"]].drop_duplicates()
    return sums[sums["eps"] == sums["eps"].min()].merge(trained, on=["method", "set"])


def correlation(question: str, found: RankCorrelation) -> Markdown:
    """A question with its answer by a rank correlation over sets.

    The answer is "yes" if the 95% interval lies above 0, "no, the other way round" if below, "not decided" otherwise.
    """
    if math.isnan(found.rho):
        return Markdown(f"- {question} **not decided** ({found.note}).")
    answer = "yes" if found.low > 0 else "no, the other way round" if found.high < 0 else "not decided"
    return Markdown(f"- {question} Spearman's rho {found}: **{answer}**.")


def reach_answers(points: pd.DataFrame, condensing: pd.DataFrame | None = None) -> Markdown:
    """Section 5's questions, each answered by `correlation` over sets, and the number of sets without a distance.

    Parameters
    ----------
    points
        From `reach_points`. The methods "noise" and "real data" are controls, without accuracy.
    condensing
        The columns of `by_eps` and k, for one run of M along its outer iterations.
    """
    trained = points[points["accuracy"].notna()]
    real = trained["method"] == "random"
    matched = trained[~real & ~trained["method"].isin(list(CORESETS))]
    against_noise = points[points["method"].isin(["noise", *matched["method"]])]
    far, accuracy = trained["min_distance"], trained["accuracy"]
    asked = {
        "Does matching raise the distance, against noise?": (
            against_noise["method"] != "noise",
            against_noise["min_distance"],
        ),
        "Does it raise the distance, against random real images?": (~real, far),
        "Does the distance rise while M condenses?": (
            None if condensing is None else (condensing["k"], condensing["min_distance"])
        ),
        "Do sets with a farther trap train better networks?": (far, accuracy),
        "Does this also hold among the matched sets alone?": (matched["min_distance"], matched["accuracy"]),
        "Does the distance say more than the training loss at the trap?": (far, accuracy, trained["train_loss"]),
        "Do networks get better with a smaller gradient on the real data at the trap?": (
            -trained["real_gradient_norm"],
            accuracy,
        ),
    }
    sets = points[points["method"] != "real data"]
    without = sets[sets["min_distance"].isna()]
    eps = points["eps"].iloc[0]
    count = f"All {len(sets)} sets, noise included, have a start that reaches ε = {eps:g}."
    if len(without):
        names = ", ".join(f"{md(method)} {n}" for method, n in without["method"].value_counts(sort=False).items())
        count = (
            f"**From {len(without)} of {counted(len(sets), 'set')}, noise included, no start reaches ε = {eps:g}** "
            f"({names}). They have no distance, so the correlations leave them out."
        )
    answers = [correlation(question, rank_correlation(*values)).data for question, values in asked.items() if values]
    return Markdown("\n".join([count, "", *answers]))


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
    frame = pd.DataFrame({name: map(lines, rows.itertuples()) for name, rows in columns.items()}, index=ends.index)
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
