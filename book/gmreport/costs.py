"""Tables and sentences on steps and time: where S is updated (Figure 3, Eq. 12), and what that costs (Section 4.5)."""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping, Sequence

import pandas as pd
from IPython.display import Markdown
from scipy import stats

from gmlib import where
from gmlib.recipe import Recipe
from gmlib.runs.store import Run

from .figures import overfitting
from .numbers import half_width
from .paper import published
from .style import counted, method_order, per_class
from .tables import Table, filled


def steps_table(
    runs: Collection[Run], methods: Sequence[str], why: Mapping[tuple[str, int, str], str] | None = None
) -> Table:
    """What one outer iteration of each method takes, mean over the outer iterations of all its sets.

    runs: of one dataset and ipc. In columns: steps of theta as `where.steps_per_outer_iteration` has them beforehand, and as
    taken; evaluations of L(T) for the overfitting test; seconds, with those of the first method with fixed steps as
    100 percent; the matching loss in the last outer iteration, mean over sets. why: as in `table`.
    """
    cells, whole = {}, None
    reasons = {method: reason for (*_, method), reason in (why or {}).items()}
    for method in methods:
        own = [r.record for r in runs if r.record["method"] == method and r.record["history"]]
        columns = ("steps, beforehand", "steps, taken", "L(T) evaluated", "seconds", "matching loss")
        cells |= {(method, c): ["not run"] for c in columns}
        cells[method, columns[0]] += [reasons[method]] if method in reasons else []
        if not own:
            continue
        recipe = Recipe(**own[0]["recipe"])
        T, zeta = recipe.schedule()
        detects = recipe.where in where.STOP
        entries = pd.DataFrame([entry for record in own for entry in record["history"]])
        taken, seconds = entries["theta_steps"], entries["seconds"].mean()
        whole = seconds if whole is None and recipe.where == "fixed" else whole
        beforehand = ("at most " if detects else "") + f"{where.steps_per_outer_iteration(recipe.where, T, zeta)}"
        spread = [f"{taken.min()} to {taken.max()}"] if taken.nunique() > 1 else []
        # `condense.move` measures it before the first step at each t too
        losses = f"{taken.mean() + T - 1:.0f}" if detects else "0"
        share = [] if whole is None else [f"{100 * seconds / whole:.0f} %"]
        last = sum(record["history"][-1]["loss"] for record in own) / len(own)
        row = [[beforehand], [f"{taken.mean():.0f}", *spread], [losses], [f"{seconds:.3g}", *share], [f"{last:.4g}"]]
        cells |= {(method, c): lines for c, lines in zip(columns, row, strict=True)}
        counts = (counted(len(entries), "outer iteration"), counted(len(own), "set"))
        cells[method, "steps, taken"].append(", ".join(counts))
    caption = "One outer iteration: steps of theta, evaluations of L(T), seconds, and the matching loss at the end."
    return filled(list(methods), cells, caption)


def overfitting_table(losses: pd.DataFrame, gap: float) -> Table:
    """How often theta overfits on its way by the two criteria of `where.STOP`, methods in rows.

    losses: as `overfitting_figure` takes them; the counts are over all their outer iterations, the losses those after the last
    step of each, in the mean. gap: threshold of "overfit-gap", in nats.
    """
    cells, ks = {}, losses["k"].nunique()
    for method, rows in losses.groupby("method", sort=False):
        outer = [part for _, part in rows.groupby("k")]
        rose, open_ = (
            sum(overfitting(part, criterion, gap).sum() for part in outer) for criterion in ("overfit", "overfit-gap")
        )
        n, last = (rows["i"] > 0).sum(), pd.concat([part.tail(1) for part in outer])
        cells[method, "steps of theta"] = [f"{n}"]
        cells[method, "raised L(T)"] = [f"{rose}", f"{100 * rose / n:.0f} %"]
        cells[method, f"left a gap over {gap:g}"] = [f"{open_}", f"{100 * open_ / n:.0f} %"]
        cells[method, "L(S) at the end"] = [f"{last['loss_S'].mean():.2f}"]
        cells[method, "L(T) at the end"] = [f"{last['loss_T'].mean():.2f}"]
    caption = f"Steps of theta that overfit, over {counted(ks, 'outer iteration')} of one set; losses in nats."
    return filled(method_order(losses["method"]), cells, caption)


def log_sentence(log: Mapping) -> Markdown:
    """What a log of detections under results/overfitting/ is of, from its own fields."""
    recipe = Recipe(**log["recipe"])
    size = f"width {recipe.width} and {recipe.batch_real} real images per class and update"
    length = f"{counted(log['outer_iterations'], 'outer iteration')}, stopped {log['stopped']}"
    return Markdown(
        f"The log **{log['data']['name']}** is of {log['data']['origin']}, made with a ConvNet of {size}, where the paper has "
        f"{Recipe.width} and {Recipe.batch_real}. Method {recipe.method}, {per_class(recipe.ipc)}, {length}."
    )


def schedule_sentence(name: str, seen: Sequence[Sequence[int]], learned: Sequence[int]) -> Markdown:
    """Whether a learned schedule has Eq. 12's shape; arguments as for `schedule_figure`, of one log.

    Rule: it falls, and at every t Eq. 12 lies between the quartiles of the steps until overfitting.
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
        f"- {name}, {counted(len(seen), 'outer iteration')}: the learned schedule is "
        f"`steps:{','.join(map(str, learned))}`, {sum(learned)} steps against Eq. 12's {sum(eq12)}. "
        f"It {'falls' if falls else 'does not fall'}, and Eq. 12 lies {lies}: **it {has} Eq. 12's shape**."
    )


def pulls_sentence(name: str, pulls: pd.DataFrame) -> Markdown:
    """Which part of the matching loss S follows in the end, a line for each method; pulls: as for `pulls_figure`."""
    lines = []
    for method, rows in pulls.groupby("method", sort=False):
        begin, end = (rows[rows["t"] == t].set_index(["what", "how"]) for t in (rows["t"].min(), rows["t"].max()))
        most = end["step"].idxmax()
        others = end["step"].drop(most)
        less = f", of the others at most {_share(others.max())}" if len(others) else ""
        step = f"its step goes from {_share(begin['step'][most])} of |S| to {_share(end['step'][most])}{less}"
        lines.append(
            f"- {name}, {method}: in {counted(int(end['steps'].iloc[0]), 'step')} of theta L(S, θ) goes from "
            f"{begin['loss_S'].iloc[0]:.2f} to {end['loss_S'].iloc[0]:.2f} nats. The part that then moves S most is "
            f"**{', '.join(most)}**: {step}. "
            f"The gradient of S in it goes to {end['gradient'][most] / begin['gradient'][most]:.0%} of its norm."
        )
    return Markdown("\n".join(lines))


def _share(x: float) -> str:
    return f"{x:.0%}" if x >= 0.095 else f"{x:.1%}"


# ---- what it costs: Section 4.5 ------------------------------------------------------------------------------


def cost_table(costs: pd.DataFrame) -> Table:
    """What an outer iteration costs, methods in rows; costs: as `cost.outer_iteration` returns them."""
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
            _seconds(mean["seconds_matching"]), f"{first['T']} of {_seconds(mean['seconds_per_update'])}"
        ]  # fmt: skip
        cells[method, "steps of theta"] = [
            at_most + _seconds(mean["seconds_moving"]), f"{first['theta_steps']:.0f} of {_seconds(mean['seconds_per_step'])}"
        ]  # fmt: skip
        cells[method, "looking for overfitting"] = [
            at_most + _seconds(mean["seconds_looking"]), f"{first['loss_evaluations']:.0f} losses"
        ] if at_most else ["none"]  # fmt: skip
        cells[method, "peak memory"] = ["not measured" if math.isnan(peak) else f"{peak / 1e6:.0f} MB"]
    return filled(methods, cells, f"One outer iteration with {timed_with(costs)}.")


def timed_with(costs: pd.DataFrame) -> str:
    """What an outer iteration was timed with, for a caption; costs: as `cost.outer_iteration` returns them."""
    first, n = costs.iloc[0], costs["round"].nunique()
    return (
        f"T = {first['T']}, zeta = {first['zeta']}, added up from its pieces; mean of {n} rounds, 95% t interval over rounds; "
        f"{first['device_name']} ({first['device']}), {first['threads']} CPU thread{'s' if first['threads'] > 1 else ''}"
    )


def _seconds(seconds: float) -> str:
    return f"{seconds:.2f} s" if seconds >= 0.1 else f"{1000 * seconds:.1f} ms"


def cost_ratio(costs: pd.DataFrame, method: str, base: str) -> tuple[float, float, float]:
    """Time of a method's outer iteration in percent of another's: mean over rounds of the ratio in each, 95% t interval.

    costs: as `cost.outer_iteration` returns them. The interval is NaN for one round.
    """
    seconds = costs.pivot(index="round", columns="method", values="seconds")
    return _interval(100 * seconds[method] / seconds[base])


def _interval(values: pd.Series) -> tuple[float, float, float]:
    mean, half = float(values.mean()), half_width(values.to_numpy())
    return mean, mean - half, mean + half


def cost_measured(costs: pd.DataFrame, ipc: int) -> dict[str, tuple[float, float, float]]:
    """What `claims` is to judge the paper's efficiency claims by: claim id -> (value, low, high), percent of time or steps.

    M and D: the time of MD above that of DC. A: the time of MDA below that of MD, which differs in the steps of theta alone;
    the paper claims it for 10 images per class, so it is left out for another ipc. A claim whose methods were not timed, or
    in one round only, is left out. costs: as `cost.outer_iteration` returns them.
    """
    timed, found = set(costs["method"]), {}
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


def saving_sentence(costs: pd.DataFrame, base: str = "MD", shorter: str = "MDA") -> Markdown:
    """What part of the time theta's steps take with `base`, and what the fewer steps of `shorter` can save of it.

    costs: as `cost.outer_iteration` returns them. It ends with the share that the paper's saving would need.
    """
    rows = costs[costs["method"] == base]
    steps = {m: float(costs.loc[costs["method"] == m, "theta_steps"].iloc[0]) for m in (base, shorter)}
    where_ = f"With T = {rows['T'].iloc[0]} and zeta = {rows['zeta'].iloc[0]}"
    if not steps[base]:
        return Markdown(f"{where_} theta takes no step, so no schedule can save any time.")
    fewer = 1 - steps[shorter] / steps[base]
    share, low, high = _interval(100 * rows["seconds_moving"] / rows["seconds"])
    text = (
        f"{where_} {base} takes {steps[base]:.0f} steps of theta in an outer iteration, and they take {share:.0f} % of its time "
        f"here (95% interval {low:.0f} to {high:.0f}). {shorter} takes {steps[shorter]:.0f}, which is {abs(100 * fewer):.0f} % "
    )
    if fewer <= 0:
        return Markdown(f"{text}more: **it costs {-share * fewer:.0f} % of the time and saves none**.")
    claimed = published("text").set_index("claim")["value"]
    least, most = (claimed[f"text-efficiency-a-saving-at-{word}"] for word in ("least", "most"))
    return Markdown(
        f"{text}fewer: **it saves {share * fewer:.0f} % of the time**. The same schedule saves the paper's {least:.0f} to "
        f"{most:.0f} % where the steps of theta take {least / fewer:.0f} to {most / fewer:.0f} % of the time."
    )


def timing_sentence(costs: pd.DataFrame, method: str = "MD", base: str = "DC", target: float = 0.5) -> Markdown:
    """Whether the timings are exact enough to see a difference of 1 % between two methods, and what it would take.

    Rule: they are if the 95% interval of the ratio (`cost_ratio`, two rounds at least) is within ±target percentage points.
    """
    value, low, high = cost_ratio(costs, method, base)
    half, n = (high - low) / 2, costs["round"].nunique()
    said = (
        f"{method} takes {value:.1f} % of the time of {base}, with a 95% interval of ±{half:.2f} after {n} rounds: "
    )
    if half <= target:
        return Markdown(f"{said}**narrow enough** to see a difference of 1 %.")
    # A t interval of n rounds is t s / sqrt(n) to either side; with many rounds t is that of the normal distribution.
    rounds = (stats.norm.ppf(0.975) / stats.t.ppf(0.975, n - 1) * half / target) ** 2 * n
    return Markdown(
        f"{said}**too wide** to see a difference of 1 %. A machine that does other work at the same time makes timings noisy. "
        f"With rounds as noisy as these it would take about {float(f'{rounds:.1g}'):.0f} to come down to ±{target:g}; an idle "
        "machine needs fewer."
    )


def foretold_table(foretold: pd.DataFrame, taken: pd.DataFrame) -> Table:
    """Seconds of an outer iteration, as the pieces add up to and as runs took; methods in rows.

    foretold: as `cost.outer_iteration` returns it, with the steps that the runs took; taken: as `cost.taken` does.
    """
    cells = {}
    for method, runs in taken.groupby("method", sort=False):
        rows = foretold[foretold["method"] == method]
        sums, took = rows["seconds"].mean(), runs["seconds"].mean()
        cells[method, "steps of theta"] = [f"{runs['theta_steps'].mean():.0f}"]
        cells[method, "added up"] = [_seconds(sums)]
        cells[method, "in the run"] = [_seconds(took)]
        cells[method, "run / added up"] = [f"{took / sums:.2f}"]
    first = foretold.iloc[0]
    caption = (
        f"One outer iteration with T = {first['T']}, zeta = {first['zeta']}: mean of {foretold['round'].nunique()} rounds of "
        "pieces, median of a run's outer iterations."
    )
    return filled(method_order(taken["method"]), cells, caption)


def time_to(along: pd.DataFrame, base: str = "DC") -> Markdown:
    """When each method first reaches the accuracy that `base` ends with; along: as `cost.along` returns it.

    Means over sets, where several were run. A method reaches it at its first snapshot at or above.
    """
    if base not in set(along["method"]):
        return Markdown(f"{base} was not run to its end: there is no accuracy for the others to reach.")
    looks = along.groupby(["method", "k"], sort=False)[["seconds", "accuracy"]].mean().reset_index()
    end = looks[looks["method"] == base].sort_values("k").iloc[-1]
    told = []
    for method in method_order(looks["method"]):
        if method == base:
            continue
        rows = looks[looks["method"] == method].sort_values("k")
        there = rows[rows["accuracy"] >= end["accuracy"]]
        if len(there):
            told.append(f"{method} after {_seconds(there['seconds'].iloc[0])} (k = {there['k'].iloc[0]})")
        else:
            told.append(f"{method} not within {_seconds(rows['seconds'].iloc[-1])}")
    sets, networks = along["set"].nunique(), along["networks"].min()
    return Markdown(
        f"**{base} ends at {end['accuracy']:.1f} % after {_seconds(end['seconds'])}.** First at or above that: "
        f"{'; '.join(told) or 'no other method was run'}. "
        f"An accuracy is the mean of {networks} network{'s' if networks > 1 else ''} for each of {sets} "
        f"set{'s' if sets > 1 else ''}, and was looked at after k = {', '.join(map(str, sorted(looks['k'].unique())))}."
    )


def precision_table(measured: pd.DataFrame) -> Table:
    """What less precision saves and changes (`cost.precisions`): medians over the rounds, float32 as 100 percent of the time."""
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
    rounds, device = measured["round"].nunique(), measured["device"].iloc[0]
    caption = f"One update of S on {device.upper()}, medians of {counted(rounds, 'round')}; changes are relative to float32."
    return filled(list(dict.fromkeys(measured["precision"])), cells, caption, "precision")
