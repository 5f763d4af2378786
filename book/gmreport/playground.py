"""Condensing by hand: a panel of sliders that runs Algorithm 1 in the background, and the same picture of a stored run.

The panel only calls the library (`condense`, `reach.angles`, `evaluate`) and shows what comes back.
"""

from __future__ import annotations

import atexit
import html
import math
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import fields
from typing import ClassVar

import ipywidgets
import pandas as pd
import seaborn as sns
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator

from gmlib import where
from gmlib.algorithm import State
from gmlib.analysis.matching import angles
from gmlib.checkpoint import Progress
from gmlib.condensation import Diverged, as_set, check, follow
from gmlib.coresets import coreset
from gmlib.data import Data
from gmlib.datasets import TORCHVISION, load_data
from gmlib.evaluation import Evaluation, evaluate
from gmlib.how import DISTANCES, parse_distance, spell_distance
from gmlib.recipe import BUDGETS, INIT, Recipe
from gmlib.runtime import device_of
from gmlib.sets import SyntheticSet
from gmlib.speed.precision import matmul_precision
from gmlib.what import WHAT

from .figures import sheet_of, show_sheet
from .sliders import Slider
from .style import STYLE, colour, img, png

REFRESH = 1.0  # seconds between two pictures while a run goes on; the images do not depend on it
KNOTS = 5  # sliders for zeta_theta(t) at t = 0, 1, ...; the last holds for every later t
WEIGHTS = (0, 0.01, 0.03, 0.1, 0.3, 1, 3, 10, 30, 100)  # of a distance; 0 leaves it out

# Level in `reach.angles` -> (words, colour of the method that matches this level alone, marker).
LEVELS = {"class": ("inside classes", colour("DC"), "o"), "union": ("across classes", colour("Inter"), "s")}


# ---- the picture of a run at one outer iteration ---------------------------------------------------------


def session_figure(
    S: SyntheticSet,
    losses: Sequence[float],
    found: pd.DataFrame,
    *,
    k: int,
    K: int,
    ratios: tuple[float, float] | None = None,
) -> Figure:
    """S after k of K outer iterations: its images, the matching loss so far, and gS against gT layer by layer.

    losses: matching loss of each outer iteration; those after the k-th only set the scale. found: `reach.angles` of S.
    ratios: ends of the axis of |gS| / |gT|, to be shared by several figures; None takes them from `found`.
    """
    sheet, centres = sheet_of(S.pixels(), S.n_classes)
    tall = min(7.4 * sheet.shape[0] / sheet.shape[1] + 0.3, 4.0)
    with sns.axes_style("whitegrid", rc=STYLE):
        fig = Figure(figsize=(7.4, tall + 2.7), layout="constrained")
        grid = fig.add_gridspec(2, 3, height_ratios=[tall, 2.7])
        pictures, way = fig.add_subplot(grid[0, :]), fig.add_subplot(grid[1, 0])
        cosine, ratio = (fig.add_subplot(grid[1, i]) for i in (1, 2))
    pictures.grid(visible=False)
    show_sheet(pictures, sheet, centres, S.classes if S.n_classes <= 20 else None)
    way.plot(range(1, k + 1), losses[:k], color="black", linewidth=1.5)
    top = max((loss for loss in losses if math.isfinite(loss)), default=1.0)
    way.set(xlim=(0, K), ylim=(0, 1.05 * top), xlabel="outer iterations", ylabel="matching loss")
    for (t, level), rows in found.groupby(["t", "level"]):
        words, shade, marker = LEVELS[level]
        late = t > 0  # the last update is dashed and hollow: to be told apart without colour, too
        for ax, column in ((cosine, "cosine"), (ratio, "ratio")):
            ax.plot(
                range(1, len(rows) + 1), rows[column], f"{marker}{'--' if late else '-'}", color=shade, label=f"{words}, t = {t}",
                markerfacecolor="white" if late else shade, markersize=5, clip_on=False,
            )  # fmt: skip
    for ax in (cosine, ratio):
        n = found["layer"].nunique()
        ax.set(xlabel="layer, first to last", xticks=range(1, n + 1), xlim=(0.7, n + 0.3))
    cosine.set(ylim=(min(-0.1, found["cosine"].min() - 0.1), 1.05), ylabel="cos(gS, gT)")
    cosine.axhline(1, color="gray", linewidth=0.8)
    ratio.set(ylabel="|gS| / |gT|", yscale="log", ylim=ratios or ratio_limits(found))
    ratio.axhline(1, color="gray", linewidth=0.8)
    ratio.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    ratio.yaxis.set_major_formatter("{x:g}")
    ratio.yaxis.set_minor_formatter("")
    handles, labels = cosine.get_legend_handles_labels()
    fig.legend(handles, labels, loc="outside lower center", ncols=len(labels), fontsize=8, frameon=False)
    return fig


def ratio_limits(found: pd.DataFrame) -> tuple[float, float]:
    """Ends of a logarithmic axis for |gS| / |gT| that holds these, and a factor of three about 1."""
    known = found["ratio"][(found["ratio"] > 0) & (found["ratio"] < math.inf)]
    return min(1 / 3, 0.8 * known.min()), max(3.0, 1.25 * known.max())


def in_words(found: pd.DataFrame) -> str:
    """The means over the layers at the first update of S, in a sentence."""
    means = found[found["t"] == 0].groupby("level")[["cosine", "ratio"]].mean()
    parts = [
        f"{words} cosine {means.loc[level, 'cosine']:.2f}, |gS|/|gT| {means.loc[level, 'ratio']:.2f}"
        for level, (words, *_) in LEVELS.items()
    ]
    return f"{'; '.join(parts)} (means over the layers, at t = 0)"


def session_slider(
    trace: Mapping[int, tuple[SyntheticSet, Evaluation]], losses: Sequence[float], found: pd.DataFrame, *, method: str
) -> Slider:
    """A slider through the outer iterations of a stored run, each drawn by `session_figure`. It opens at the last.

    trace: as `store.Run.trace` holds it. losses: of every outer iteration of the run. found: `reach.angles` of each S in the
    trace, with a column k, its number of outer iterations.
    """
    limits, frames = ratio_limits(found), []
    for k, (S, accuracy) in trace.items():
        there = found[found["k"] == k]
        fig = session_figure(S, losses, there, k=k, K=len(losses), ratios=limits)
        reached = f"networks trained on these images reach {accuracy.mean:.1f} % (mean of {accuracy.n})"
        caption = f"{method}, k = {k}: {in_words(there)}; {reached}"
        frames.append((caption, fig, _alt(k, len(losses), there)))
    return Slider(frames, label="outer iterations k", names=list(trace), start=len(frames) - 1)


def _alt(k: int, K: int, found: pd.DataFrame) -> str:
    return (
        f"The images at k = {k} of {K} outer iterations, one column for each class; below them the matching loss so far, and by "
        f"layer the cosine of gS and gT and the ratio of their lengths: {in_words(found)}."
    )


# ---- the panel -------------------------------------------------------------------------------------------


class _Stopped(Exception):
    """The reader pressed Stop."""


class Playground:
    """A panel to choose a recipe, condense in the background, watch S and its gradients, and train networks on S.

    datasets: names that `load_data` takes. Files that are not there are not downloaded: the panel says what is missing.
    method: what the controls start with, a name in METHODS or a spelt one; not one that waits for overfitting, which no slider
    can say. ipc, seed: likewise. budget: the size of the networks and of the real batches, and where the sliders start.
    device, data_dir: as `condense` and `load_data` take them.

    `controls` holds the widgets by name. `run`, `go_on`, `stop` and `evaluate` are what the buttons do, `join` waits for the
    end, `S` is the set so far. What goes wrong is said in the panel in one sentence. One panel runs at a time: a second one stops
    the first. Raises ValueError for an unknown name or a number out of range.
    """

    _running: ClassVar[Playground | None] = None

    def __init__(
        self,
        datasets: Sequence[str] = ("digits", *TORCHVISION),
        *,
        method: str = "MD",
        ipc: int = 1,
        budget: str = "smoke",
        seed: int = 0,
        device: str | None = None,
        data_dir: str | None = None,
    ):
        if isinstance(datasets, str) or not datasets:
            raise ValueError(f"datasets={datasets!r} does not fit: give a list of names")
        start = Recipe.for_method(method, datasets[0], ipc, budget, seed)
        if start.where in where.STOP:
            raise ValueError(
                f"the steps of {method} are not known beforehand: start with fixed or adaptive ones, as MD or MDA"
            )
        self.method, self.budget, self.data_dir = method, budget, data_dir
        self.device = device_of(device)
        self.data: Data | None = None
        self.S: SyntheticSet | None = None
        self._recipe: Recipe | None = None  # of the run that made S
        self._stop, self._thread = threading.Event(), None
        self._run: Progress | None = None  # where it is
        self.controls = _controls(list(dict.fromkeys(datasets)), start)
        self._link()
        self.buttons = {
            "run": ipywidgets.Button(
                description="Run", button_style="primary", tooltip="Condense from the beginning"
            ),
            "go on": ipywidgets.Button(
                description="Go on", tooltip="Continue the run that was stopped", disabled=True
            ),
            "stop": ipywidgets.Button(description="Stop", tooltip="Stop after this update", disabled=True),
            "evaluate": ipywidgets.Button(
                description="Evaluate", tooltip="Train networks on S and on random real images", disabled=True
            ),
        }
        for name, act in (("run", self.run), ("go on", self.go_on), ("stop", self.stop), ("evaluate", self.evaluate)):
            self.buttons[name].on_click(lambda _, act=act: act())
        self._status, self._picture, self._scores, self._code = (ipywidgets.HTML() for _ in range(4))
        self._show_code()
        self._say("Press Run.")
        self._widget = self._panel()

    def recipe(self) -> Recipe:
        """What the controls ask for. Raises ValueError where they do not fit together."""
        value = {name: control.value for name, control in self.controls.items()}
        terms = [(value[name], name) for name in DISTANCES if value[name]]
        if not terms:
            raise ValueError(
                "every distance has weight 0, so there is nothing to match by: give d1, d2, d3 or d4 a weight"
            )
        knots = ",".join(str(value[f"t{t}"]) for t in range(KNOTS))
        return Recipe.for_method(
            f"{value['what']},{spell_distance(terms)},steps:{knots}", value["dataset"], value["ipc"], self.budget, value["seed"],
            lam=None if value["lam_is_C"] else value["lam"], outer_loops=value["K"], inner_loops=value["T"],
            lr_images=value["lr_images"], init=value["init"],
        )  # fmt: skip

    @property
    def code(self) -> str:
        """The same without a panel: Python that makes the S which the controls ask for. Raises as `recipe` does."""
        recipe, epochs = self.recipe(), BUDGETS[self.budget].epochs
        chosen = {
            f.name: value for f in fields(Recipe)
            if (value := getattr(recipe, f.name)) != f.default or f.name in ("dataset", "ipc", "what", "how", "where")
        }  # fmt: skip
        arguments = [f"{name}={value!r}" for name, value in chosen.items()]
        lines = [
            "import gmlib as gm",
            "from gmlib.reach import angles",
            "",
            f"data = gm.load_data({recipe.dataset!r}{f', data_dir={self.data_dir!r}' if self.data_dir else ''})",
            "recipe = gm.Recipe(",
            f"    {', '.join(arguments[:5])},",
            f"    {', '.join(arguments[5:])},",
            ")",
            "S = gm.condense(data, recipe)",
            "print(angles(S, data, recipe, k=recipe.outer_loops))  # at a network that the run did not meet",
            f"print(gm.evaluate(S, data, n_networks={self._networks}, epochs={epochs}, seed=recipe.seed))",
        ]
        return "\n".join(lines)

    # ---- what the buttons do

    def run(self) -> None:
        """Condense from the beginning, as the controls say."""
        try:
            recipe = self.recipe()
        except ValueError as error:
            return self._say(str(error))
        self._begin(lambda: self._condense(recipe, afresh=True))

    def go_on(self) -> None:
        """Continue the run that was stopped, with the recipe it was begun with; it ends as if it had not been stopped."""
        if self._unfinished:
            self._begin(lambda: self._condense(self._recipe, afresh=False))
        else:
            self._say("There is no run that was stopped: press Run.")

    def stop(self) -> None:
        """End what is running after its present update of S, or its present network."""
        self._stop.set()

    def evaluate(self) -> None:
        """Train networks on the present S and, by the same protocol, on as many random real images."""
        if self.S is None:
            self._say("There are no images yet: press Run.")
        else:
            self._begin(self._evaluate)

    @property
    def running(self) -> bool:
        return self._thread is not None and self._thread.is_alive()

    def join(self, timeout: float | None = None) -> None:
        """Wait until what is running has ended, for `timeout` seconds at most."""
        if self._thread is not None:
            self._thread.join(timeout)

    # ---- in the background

    def _begin(self, work: Callable[[], str]) -> None:
        if self.running:
            return self._say("A run is going on: press Stop first.")
        other = Playground._running
        if other is not None:  # perhaps one whose cell was run again: nobody could stop it any more
            other.stop()
            other.join()
        Playground._running = self
        self._stop.clear()
        self._allow(busy=True)
        self._thread = threading.Thread(target=self._work, args=(work,), name="playground", daemon=True)
        self._thread.start()

    def _work(self, work: Callable[[], str]) -> None:
        try:
            said = work()
        except _Stopped:
            said = "Stopped."
        except Exception as error:  # of whatever kind: in a thread nobody would see it
            known = isinstance(error, (ValueError, OSError, Diverged))
            said = str(error) if known else f"{type(error).__name__}: {str(error).partition(chr(10))[0]}"
        Playground._running = None
        self._say(said)
        self._allow(busy=False)

    def _condense(self, recipe: Recipe, *, afresh: bool) -> str:
        if self.data is None or self.data.name != recipe.dataset:
            self._say("Loading the data.")
            self.data = load_data(recipe.dataset, data_dir=self.data_dir, download=False, progress=False).to(
                self.device
            )
        if afresh:
            check(self.data, recipe)
            self._run, self._recipe, self._scores.value = Progress(State.initial(self.data, recipe)), recipe, ""
            self._take()
            self._draw()
        run, shown = self._run, -math.inf
        with matmul_precision(recipe.precision):
            for _ in follow(self.data, recipe, run):
                self._take()
                done, stopped = run.state.k == recipe.outer_loops, self._stop.is_set()
                if done or stopped or time.monotonic() - shown > REFRESH:
                    self._draw()
                    shown = time.monotonic()
                if stopped and not done:
                    return f"Stopped after {run.state.k} of {recipe.outer_loops} outer iterations: Go on continues, Run starts anew."
        return f"Done: {recipe.outer_loops} outer iterations of {recipe.method}."

    def _take(self) -> None:
        self.S = as_set(self._run.state.S, self.data, self._recipe, self._run.history)

    def _draw(self) -> None:
        k, K = len(self.S.history), self._recipe.outer_loops
        found = angles(self.S, self.data, self._recipe, K, device=self.device)
        fig = session_figure(self.S, [entry["loss"] for entry in self.S.history], found, k=k, K=K)
        self._picture.value = img(png(fig), _alt(k, K, found))
        loss = f", matching loss {self.S.history[-1]['loss']:.4g}" if k else ""
        self._say(f"{k} of {K} outer iterations{loss}; {in_words(found)}.")

    def _evaluate(self) -> str:
        recipe, n = self._recipe, self._networks
        R = coreset("random", self.data, recipe.ipc, recipe.seed, device=self.device)
        size = {"width": recipe.width, "depth": recipe.depth, "epochs": BUDGETS[self.budget].epochs}
        said = []
        for name, images in ((f"S after {len(self.S.history)} outer iterations", self.S), ("random real images", R)):
            self._say(f"Training {n} networks on {name}.")
            found = evaluate(
                images,
                self.data,
                recipe.network,
                n,
                recipe.seed,
                device=self.device,
                progress=False,
                each=self._look,
                **size,
            )
            said.append(f"{name}: {found}")
            self._scores.value = f"<p>Test accuracy. {html.escape('; '.join(said))}</p>"
        return "Done: networks trained and tested."

    def _look(self, found: Evaluation) -> None:
        if self._stop.is_set():
            raise _Stopped

    # ---- what is to be seen

    @property
    def _networks(self) -> int:
        """As many as the budget trains on a set, but no more than one can wait for."""
        return min(BUDGETS[self.budget].networks, 5)

    @property
    def _unfinished(self) -> bool:
        return self.S is not None and len(self.S.history) < self._recipe.outer_loops

    def _say(self, sentence: str) -> None:
        self._status.value = f'<p role="status">{html.escape(sentence)}</p>'

    def _allow(self, *, busy: bool) -> None:
        possible = {"run": True, "go on": self._unfinished, "evaluate": self.S is not None}
        for name, button in self.buttons.items():
            button.disabled = not busy if name == "stop" else busy or not possible[name]

    def _link(self) -> None:
        """What a control does to others."""
        c = self.controls
        c["ipc"].observe(self._budgets_values, names="value")
        c["T"].observe(lambda _: self._usable(), names="value")
        c["lam_is_C"].observe(lambda _: self._usable(), names="value")
        for control in c.values():
            control.observe(lambda _: self._show_code(), names="value")
        self._usable()

    def _usable(self) -> None:
        """Sliders that would change nothing are greyed out: theta moves T - 1 times."""
        self.controls["lam"].disabled = self.controls["lam_is_C"].value
        for t in range(KNOTS):
            self.controls[f"t{t}"].disabled = t >= self.controls["T"].value - 1

    def _budgets_values(self, change: dict) -> None:
        """K, T, the steps of theta and the rate go with the number of images per class."""
        try:
            recipe = Recipe.for_method(self.method, self.controls["dataset"].value, change["new"], self.budget)
        except ValueError:  # the budget has no schedule for this number: the sliders stay
            return
        for name, value in _budgeted(recipe).items():
            self.controls[name].value = value

    def _show_code(self) -> None:
        try:
            code = self.code
        except ValueError as error:
            code = f"# {error}"
        self._code.value = f'<pre style="white-space: pre-wrap">{html.escape(code)}</pre>'

    def _panel(self) -> ipywidgets.Widget:
        c, column = self.controls, {"layout": {"width": "24em"}}
        columns = [
            ["dataset", "ipc", "init", "seed", "K", "T", "lr_images"],
            ["what", "lam_is_C", "lam", *DISTANCES],
            [f"t{t}" for t in range(KNOTS)],
        ]
        boxes = [ipywidgets.VBox([c[name] for name in names], **column) for names in columns]
        boxes[2].children = [ipywidgets.HTML("steps of theta after the update at"), *boxes[2].children]
        code = ipywidgets.Accordion([self._code], titles=["The same in code"])
        return ipywidgets.VBox([
            ipywidgets.HBox(boxes, layout={"flex_flow": "row wrap"}),
            ipywidgets.HBox(list(self.buttons.values())), self._status, self._picture, self._scores, code,
        ])  # fmt: skip

    def __repr__(self) -> str:
        return f"Playground: {', '.join(self.controls['dataset'].options)}"

    def _repr_mimebundle_(self, include=None, exclude=None) -> dict[str, object]:
        from IPython import get_ipython

        live = getattr(get_ipython(), "kernel", None) is not None
        widget = self._widget._repr_mimebundle_() if live else {}
        return widget | {"text/plain": repr(self), "text/html": self._repr_html_()}

    def _repr_html_(self) -> str:
        return (
            '<div class="gm-table"><p><strong>The panel needs a running kernel, and this page has none.</strong> In a clone of '
            "the repository, <code>make setup</code> installs what it takes, and <code>.venv/bin/jupyter lab</code> runs it: "
            "right-click <code>notebooks/playground.md</code>, Open With, Notebook, and run all cells.</p></div>"
        )


@atexit.register
def _leave() -> None:
    """Python may end only when no thread is inside torch: it would abort."""
    panel = Playground._running
    if panel is not None:
        panel.stop()
        panel.join()


def _controls(datasets: list[str], start: Recipe) -> dict[str, ipywidgets.Widget]:
    """The controls by name, with the values of `start`."""
    weights = {name: weight for weight, name in parse_distance(start.how)}
    values = _budgeted(start)
    wide = {"style": {"description_width": "9em"}, "layout": {"width": "23em"}}
    slow = {**wide, "continuous_update": False}
    controls: dict[str, ipywidgets.Widget] = {
        "dataset": ipywidgets.Dropdown(options=datasets, description="data set", **wide),
        "ipc": ipywidgets.BoundedIntText(start.ipc, min=1, max=500, description="images per class", **wide),
        "init": ipywidgets.Dropdown(options=INIT, value=start.init, description="S begins as", **wide),
        "seed": ipywidgets.BoundedIntText(start.seed, min=0, max=2**31, description="seed", **wide),
        "K": ipywidgets.BoundedIntText(values["K"], min=1, max=10**6, description="K, outer iterations", **wide),
        "T": ipywidgets.IntSlider(values["T"], min=1, max=50, description="T, updates each", **slow),
        "lr_images": ipywidgets.FloatLogSlider(
            values["lr_images"], min=-3, max=2, step=0.1, description="rate of S", **slow
        ),
        "what": ipywidgets.Dropdown(options=list(WHAT), value=start.what, description="what", **wide),
        "lam_is_C": ipywidgets.Checkbox(start.lam is None, description="lam = C, as in the paper", **wide),
        "lam": ipywidgets.FloatLogSlider(start.lam or 10, min=-2, max=3, step=0.1, description="lam", **slow),
    }
    for name, words in zip(DISTANCES, ("angle", "Euclidean", "sum of squares", "mean of squares"), strict=True):
        weight = weights.get(name, 0)
        controls[name] = ipywidgets.SelectionSlider(
            options=[(f"{w:g}", w) for w in sorted({*WEIGHTS, weight})],
            value=weight,
            description=f"{name}, {words}",
            **slow,
        )
    for t in range(KNOTS):
        words = f"t = {t}" if t < KNOTS - 1 else f"t = {t} and later"
        controls[f"t{t}"] = ipywidgets.IntSlider(
            values[f"t{t}"], min=0, max=where.MAX_STEPS, description=words, **slow
        )
    return controls


def _budgeted(recipe: Recipe) -> dict[str, float]:
    """The values of the controls that a budget sets by images per class."""
    T, zeta = recipe.schedule()
    steps = {f"t{t}": where.steps(recipe.where, t, zeta) for t in range(KNOTS)}
    return {"K": recipe.outer_loops, "T": T, "lr_images": recipe.lr_images, **steps}
