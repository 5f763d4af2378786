"""Tables and sentences on steps and time: when S is updated (Figure 3, Eq. 12) and what it costs (Section 4.5)."""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping, Sequence

import pandas as pd
from IPython.display import Markdown

from gmlib import where
from gmlib.analysis.statistics import half_width, sample_size
from gmlib.recipe import Recipe
from gmlib.runs.store import Run

from .figures import overfitting
from .paper import published
from .style import counted, display_name, md, method_order, per_class
from .tables import Table, filled


def steps_table(
    runs: Collection[Run], methods: Sequence[str], why: Mapping[tuple[str, int, str], str] | None = None
) -> Table:
    """What one outer iteration of each method takes, as a mean over the outer iterations of all its sets.

    Columns: steps of theta as `where.steps_per_outer_iteration` plans them, and as taken; evaluations of L(T) for the
    overfitting test; seconds, also in percent of the first method with fixed steps; the matching loss in the last
    outer iteration, mean over sets.

    Parameters
    ----------
    runs
        Of one data set and number of images per class.
    methods
        The rows.
    why
        (dataset, ipc, method) -> why a method was not run.
    """
    cells, whole = {}, None
    reasons = {method: reason for (*_, method), reason in (why or {}).items()}
    columns = ("steps, planned", "steps, taken", "L(T) evaluated", "seconds", "matching loss")
    for method in methods:
        records = [r.record for r in runs if r.record["method"] == method and r.record["history"]]
        if not records:
            cells |= {(method, c): ["not run"] for c in columns}
            cells[method, columns[0]] += [reasons[method]] if method in reasons else []
            continue
        recipe = Recipe(**records[0]["recipe"])
        T, zeta = recipe.schedule()
        detects = recipe.where in where.STOP
        entries = pd.DataFrame([entry for record in records for entry in record["history"]])
        taken = entries["theta_steps"]
        seconds = entries["seconds"].mean()
        if whole is None and recipe.where == "fixed":
            whole = seconds
        planned = ("at most " if detects else "") + f"{where.steps_per_outer_iteration(recipe.where, T, zeta)}"
        spread = [f"{taken.min()} to {taken.max()}"] if taken.nunique() > 1 else []
        counts = f"{counted(len(entries), 'outer iteration')}, {counted(len(records), 'set')}"
        # L(T) is also measured before the first step at each t.
        losses = f"{taken.mean() + T - 1:.0f}" if detects else "0"
        share = [] if whole is None else [f"{100 * seconds / whole:.0f} %"]
        last = sum(record["history"][-1]["loss"] for record in records) / len(records)
        lines = (
            [planned],
            [f"{taken.mean():.0f}", *spread, counts],
            [losses],
            [f"{seconds:.3g}", *share],
            [f"{last:.4g}"],
        )
        cells |= {(method, c): cell for c, cell in zip(columns, lines, strict=True)}
    caption = "One outer iteration: steps of theta, evaluations of L(T), seconds, and the matching loss at the end."
    return filled(list(methods), cells, caption)


def overfitting_table(losses: pd.DataFrame, gap: float) -> Table:
    """How often theta overfits by the two criteria of `where.STOP`, methods in rows.

    Parameters
    ----------
    losses
        As in `overfitting_figure`. Counts are over all outer iterations, losses are means after the last step of
        each.
    gap
        Threshold of "overfit-gap", in nats.
    """
    cells, ks = {}, losses["k"].nunique()
    for method, rows in losses.groupby("method", sort=False):
        outer = [part for _, part in rows.groupby("k")]
        rose, opened = (
            sum(overfitting(part, name, gap).sum() for part in outer) for name in ("overfit", "overfit-gap")
        )
        n = (rows["i"] > 0).sum()
        last = pd.concat([part.tail(1) for part in outer])
        cells[method, "steps of theta"] = [f"{n}"]
        cells[method, "raised L(T)"] = [f"{rose}", f"{100 * rose / n:.0f} %"]
        cells[method, f"left a gap over {gap:g}"] = [f"{opened}", f"{100 * opened / n:.0f} %"]
        cells[method, "L(S) at the end"] = [f"{last['loss_S'].mean():.2f}"]
        cells[method, "L(T) at the end"] = [f"{last['loss_T'].mean():.2f}"]
    caption = f"Steps of theta that overfit, over {counted(ks, 'outer iteration')} of one set; losses in nats."
    return filled(method_order(losses["method"]), cells, caption)


def log_sentence(log: Mapping) -> Markdown:
    """Which run a log of detections in results/overfitting/ comes from, by its own fields."""
    recipe = Recipe(**log["recipe"])
    size = f"width {recipe.width} and {recipe.batch_real} real images per class and update"
    length = f"{counted(log['outer_iterations'], 'outer iteration')}, stopped {md(log['stopped'])}"
    return Markdown(
        f"The log **{md(log['data']['name'])}** is from {md(log['data']['origin'])}, made with a ConvNet of {size} "
        f"(in the paper {Recipe.width} and {Recipe.batch_real}). "
        f"Method {md(display_name(recipe.method))}, {per_class(recipe.ipc)}, {length}."
    )


def schedule_sentence(name: str, seen: Sequence[Sequence[int]], learned: Sequence[int]) -> Markdown:
    """Whether a learned schedule has Eq. 12's shape.

    It has this shape if it falls and, at every t, Eq. 12 lies between the quartiles of the steps until overfitting.

    Parameters
    ----------
    name
        Of the log.
    seen, learned
        As in `schedule_figure`, for this log.
    """
    quartiles = pd.DataFrame(seen).quantile([0.25, 0.75])
    eq12 = pd.Series([where.adaptive(t) for t in range(len(learned))])
    sides = {"above": eq12 > quartiles.loc[0.75], "below": eq12 < quartiles.loc[0.25]}
    outside = [
        f"{side} the quartiles at t = {', '.join(map(str, at.index[at]))}" for side, at in sides.items() if at.any()
    ]
    lies = " and ".join(outside) if outside else "between the quartiles at every t"
    falls = learned[-1] < learned[0]
    has = "has" if falls and not outside else "does not have"
    return Markdown(
        f"- {md(name)}, {counted(len(seen), 'outer iteration')}: the learned schedule is "
        f"`steps:{','.join(map(str, learned))}`, {sum(learned)} steps against Eq. 12's {sum(eq12)}. "
        f"It {'falls' if falls else 'does not fall'}, and Eq. 12 lies {lies}: **it {has} Eq. 12's shape**."
    )


def pulls_sentence(name: str, pulls: pd.DataFrame) -> Markdown:
    """Which part of the matching loss moves S most in the end, a line for each method.

    Parameters
    ----------
    name
        Of the data.
    pulls
        As in `pulls_figure`.
    """
    lines = []
    for method, rows in pulls.groupby("method", sort=False):
        begin, end = (rows[rows["t"] == t].set_index(["what", "how"]) for t in (rows["t"].min(), rows["t"].max()))
        most = end["step"].idxmax()
        others = end["step"].drop(most)
        less = f", that of the others is at most {_share(others.max())}" if len(others) else ""
        step = f"its step goes from {_share(begin['step'][most])} of |S| to {_share(end['step'][most])}{less}"
        lines.append(
            f"- {md(name)}, {md(display_name(method))}: in {counted(int(end['steps'].iloc[0]), 'step')} of theta "
            f"L(S, θ) goes from {begin['loss_S'].iloc[0]:.2f} to {end['loss_S'].iloc[0]:.2f} nats. Then the part "
            f"that moves S most is **{md(', '.join(most))}**: {step}. "
            f"The norm of its gradient goes to {end['gradient'][most] / begin['gradient'][most]:.0%} of its first "
            "value."
        )
    return Markdown("\n".join(lines))


def _share(x: float) -> str:
    return f"{x:.0%}" if x >= 0.095 else f"{x:.1%}"


# ---- what it costs: Section 4.5 ------------------------------------------------------------------------------


def cost_table(costs: pd.DataFrame) -> Table:
    """What an outer iteration costs, methods in rows.

    Parameters
    ----------
    costs
        From `costs.outer_iteration`.
    """
    methods = method_order(costs["method"])
    base = "DC" if "DC" in methods else methods[0]
    against, cells = f"against {base}", {}
    for method in methods:
        rows = costs[costs["method"] == method]
        first, mean = rows.iloc[0], rows.mean(numeric_only=True)
        value, low, high = cost_ratio(costs, method, base)
        at_most = "at most " if mean["loss_evaluations"] else ""
        peak = mean["peak_memory_bytes"]
        cells[method, "time"] = [at_most + _seconds(mean["seconds"])]
        cells[method, against] = [f"{at_most}{value:.1f} %"]
        if method != base and not math.isnan(low):
            cells[method, against] += [f"95% CI [{low:.1f}, {high:.1f}]"]
        cells[method, "updates of S"] = [
            _seconds(mean["seconds_matching"]),
            f"{first['T']} of {_seconds(mean['seconds_per_update'])}",
        ]
        cells[method, "steps of theta"] = [
            at_most + _seconds(mean["seconds_moving"]),
            f"{first['theta_steps']:.0f} of {_seconds(mean['seconds_per_step'])}",
        ]
        looking = [at_most + _seconds(mean["seconds_looking"]), f"{first['loss_evaluations']:.0f} losses"]
        cells[method, "looking for overfitting"] = looking if at_most else ["none"]
        cells[method, "peak memory"] = ["not measured" if math.isnan(peak) else f"{peak / 1e6:.0f} MB"]
    return filled(methods, cells, f"One outer iteration with {timed_with(costs)}.")


def timed_with(costs: pd.DataFrame) -> str:
    """How an outer iteration was timed, for a caption.

    Parameters
    ----------
    costs
        From `costs.outer_iteration`.
    """
    first, n = costs.iloc[0], costs["round"].nunique()
    return (
        f"T = {first['T']}, zeta = {first['zeta']}, added up from its pieces; mean of {n} rounds, 95% t interval "
        f"over rounds; {first['device_name']} ({first['device']}), {counted(first['threads'], 'CPU thread')}"
    )


def _seconds(seconds: float) -> str:
    return f"{seconds:.2f} s" if seconds >= 0.1 else f"{1000 * seconds:.1f} ms"


def cost_ratio(costs: pd.DataFrame, method: str, base: str) -> tuple[float, float, float]:
    """Time of a method's outer iteration in percent of another's: mean of the ratios in each round, low, high.

    low, high: 95% t interval over rounds, NaN for one round.

    Parameters
    ----------
    costs
        From `costs.outer_iteration`.
    """
    return _interval(_ratios(costs, method, base))


def _ratios(costs: pd.DataFrame, method: str, base: str) -> pd.Series:
    seconds = costs.pivot(index="round", columns="method", values="seconds")
    return 100 * seconds[method] / seconds[base]


def _interval(values: pd.Series) -> tuple[float, float, float]:
    mean, half = float(values.mean()), half_width(values.to_numpy())
    return mean, mean - half, mean + half


def cost_measured(costs: pd.DataFrame, ipc: int) -> dict[str, tuple[float, float, float]]:
    """Measured values for the paper's claims on efficiency, as `judge_claims` takes them.

    M and D: the time of MD above that of DC. A: the time of MDA below that of MD, which differs only in the steps of
    theta. The paper makes the claim on A for 10 images per class, so it is left out for another ipc. A claim is also
    left out if one of its methods was not timed, or in one round only.

    Parameters
    ----------
    costs
        From `costs.outer_iteration`.
    ipc
        Images per class.

    Returns
    -------
    dict
        Claim id -> (value, low, high), in percent of time or in steps.
    """
    timed = set(costs["method"])
    found = {}
    if {"MD", "DC"} <= timed:
        value, low, high = cost_ratio(costs, "MD", "DC")
        found["m-and-d-extra-time-at-most"] = (value - 100, low - 100, high - 100)
    if ipc == 10 and {"MDA", "MD"} <= timed:
        value, low, high = cost_ratio(costs, "MDA", "MD")
        found["a-saving-at-least"] = found["a-saving-at-most"] = (100 - value, 100 - high, 100 - low)
        for name, method in (("fixed", "MD"), ("adaptive", "MDA")):
            steps = costs.loc[costs["method"] == method, "theta_steps"].iloc[0]
            found[f"theta-updates-{name}"] = (steps, steps, steps)
    return {f"text-efficiency-{name}": ours for name, ours in found.items() if not math.isnan(ours[1])}


def costs_sentence(costs: pd.DataFrame) -> str:
    """What M and D add and what A saves, in percent of the time with 95% intervals, as plain text. "" for neither.

    Parameters
    ----------
    costs
        From `costs.outer_iteration`.
    """
    timed, parts = set(costs["method"]), []
    for method, base, words in (("MD", "DC", "M and D add"), ("MDA", "MD", "A saves")):
        if {method, base} <= timed:
            value, low, high = (x - 100 for x in cost_ratio(costs, method, base))
            if method == "MDA":
                value, low, high = -value, -high, -low
            spread = "" if math.isnan(low) else f" ({low:.1f} to {high:.1f})".replace("-", "−")
            parts.append(f"{words} {value:.1f} %".replace("-", "−") + spread)
    return ", ".join(parts)


def saving_sentence(costs: pd.DataFrame, base: str = "MD", shorter: str = "MDA") -> Markdown:
    """How much time the steps of theta take with ``base``, and how much of it the fewer steps of ``shorter`` save.

    The last sentence gives the share that the paper's saving would need.

    Parameters
    ----------
    costs
        From `costs.outer_iteration`.
    """
    rows = costs[costs["method"] == base]
    steps = {m: float(costs.loc[costs["method"] == m, "theta_steps"].iloc[0]) for m in (base, shorter)}
    schedule = f"With T = {rows['T'].iloc[0]} and zeta = {rows['zeta'].iloc[0]}"
    if not steps[base]:
        return Markdown(f"{schedule} theta takes no step, so no schedule can save any time.")
    fewer = 1 - steps[shorter] / steps[base]
    share, low, high = _interval(100 * rows["seconds_moving"] / rows["seconds"])
    text = (
        f"{schedule} {md(base)} takes {steps[base]:.0f} steps of theta in an outer iteration. They take "
        f"{share:.0f} % of its time here (95% interval {low:.0f} to {high:.0f}). {md(shorter)} takes "
        f"{steps[shorter]:.0f} steps, {abs(100 * fewer):.0f} % "
    )
    if fewer <= 0:
        return Markdown(f"{text}more: **it takes {-share * fewer:.0f} % more time and saves none**.")
    claimed = published("text").set_index("claim")["value"]
    least, most = (claimed[f"text-efficiency-a-saving-at-{word}"] for word in ("least", "most"))
    return Markdown(
        f"{text}fewer: **it saves {share * fewer:.0f} % of the time**. The same schedule saves the paper's "
        f"{least:.0f} to {most:.0f} % where the steps of theta take {least / fewer:.0f} to {most / fewer:.0f} % "
        "of the time."
    )


def timing_sentence(costs: pd.DataFrame, method: str = "MD", base: str = "DC", target: float = 0.5) -> Markdown:
    """Whether the timings are exact enough to see a difference of 1 % between two methods.

    They are exact enough if the 95% interval of the ratio (`cost_ratio`, over at least two rounds) is within ±target
    percentage points. Otherwise the sentence says how many rounds are needed.

    Parameters
    ----------
    costs
        From `costs.outer_iteration`.
    method, base
        The two methods.
    target
        In percentage points.
    """
    ratios = _ratios(costs, method, base)
    method, base = md(display_name(method)), md(display_name(base))
    value, low, _ = _interval(ratios)
    half = value - low
    if math.isnan(half):
        return Markdown(f"{method} takes {value:.1f} % of the time of {base}, in one round: there is no interval.")
    interval = f"a 95% interval of ±{half:.2f} after {len(ratios)} rounds"
    result = f"{method} takes {value:.1f} % of the time of {base}, with {interval}: "
    if half <= target:
        return Markdown(f"{result}**narrow enough** to see a difference of 1 %.")
    rounds = sample_size(float(ratios.std()), target)
    return Markdown(
        f"{result}**too wide** to see a difference of 1 %. Timings are noisy if the machine does other work at the "
        f"same time. With rounds as noisy as these it takes about {float(f'{rounds:.1g}'):.0f} to reach "
        f"±{target:g}; an idle machine needs fewer."
    )


def added_up_sentence(predicted: pd.DataFrame, taken: pd.DataFrame) -> Markdown:
    """Whether outer iterations of runs took as long as their pieces add up to.

    Parameters
    ----------
    predicted
        From `costs.outer_iteration`, with the steps that the runs took.
    taken
        From `costs.measured_seconds`.
    """
    shares = taken.groupby("method")["seconds"].mean() / predicted.groupby("method")["seconds"].mean()
    ends = dict.fromkeys(f"{share:.2f}" for share in (shares.min(), shares.max()))
    text = f"Outer iterations in the runs took {' to '.join(ends)} times as long as their pieces add up to"
    if ADDS_UP[0] <= shares.min() and shares.max() <= ADDS_UP[1]:
        return Markdown(f"{text}: the pieces tell the whole.")
    return Markdown(
        f"{text}. The machine was not equally fast all the time, so the clock of single runs says little."
    )


ADDS_UP = (0.8, 1.25)  # a run takes this many times its pieces if the machine was equally fast for both


def time_to(along: pd.DataFrame, base: str = "DC") -> Markdown:
    """When each method first reaches the final accuracy of ``base``: at its first snapshot at or above it.

    Accuracies are means over sets.

    Parameters
    ----------
    along
        From `costs.accuracy_over_time`.
    """
    if base not in set(along["method"]):
        return Markdown(f"{md(base)} was not run to its end, so there is no accuracy for the others to reach.")
    looks = along.groupby(["method", "k"], sort=False)[["seconds", "accuracy"]].mean().reset_index()
    end = looks[looks["method"] == base].sort_values("k").iloc[-1]
    times = []
    for method in method_order(looks["method"]):
        if method == base:
            continue
        rows = looks[looks["method"] == method].sort_values("k")
        there = rows[rows["accuracy"] >= end["accuracy"]]
        if len(there):
            times.append(
                f"{md(display_name(method))} after {_seconds(there['seconds'].iloc[0])} (k = {there['k'].iloc[0]})"
            )
        else:
            times.append(f"{md(display_name(method))} not within {_seconds(rows['seconds'].iloc[-1])}")
    sets = along["set"].nunique()
    networks = along["networks"].min()
    return Markdown(
        f"**{md(base)} ends at {end['accuracy']:.1f} % after {_seconds(end['seconds'])}.** First at or above that: "
        f"{'; '.join(times) or 'no other method was run'}. "
        f"An accuracy is the mean of {counted(networks, 'network')} for each of {counted(sets, 'set')}, measured "
        f"after k = {', '.join(map(str, sorted(looks['k'].unique())))}."
    )


def precision_table(measured: pd.DataFrame) -> Table:
    """What less precision saves and changes: medians over the rounds, with time in percent of float32.

    Parameters
    ----------
    measured
        From `costs.precisions`.
    """
    whole = measured[measured["precision"] == "float32"].set_index("round")["seconds_per_update"]
    cells = {}
    for name, rows in measured.groupby("precision", sort=False):
        share = rows.set_index("round")["seconds_per_update"] / whole
        cells[name, "seconds of an update"] = [
            f"{rows['seconds_per_update'].median():.3g}",
            f"{100 * share.median():.0f} %",
        ]
        cells[name, "change of the loss"] = [f"{rows['change_in_loss'].median():.1e}"]
        cells[name, "change of dS"] = [f"{rows['change_in_dS'].median():.1e}"]
    rounds = counted(measured["round"].nunique(), "round")
    device = measured["device"].iloc[0].upper()
    caption = f"One update of S on {device}, medians of {rounds}; changes are relative to float32."
    return filled(list(dict.fromkeys(measured["precision"])), cells, caption, "precision")
