"""The playground: a panel of sliders that condenses in the background."""

from __future__ import annotations

import atexit
import html
import math
import threading
import time
from collections.abc import Callable, Sequence
from typing import Any, ClassVar

import ipywidgets

from gmlib import where
from gmlib.algorithm import State, Update
from gmlib.analysis.matching import angles
from gmlib.checkpoint import Progress
from gmlib.condensation import Diverged, as_set, check, follow, read_losses
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

from .replays import alt_text, in_words, session_figure
from .style import counted, img, png

REFRESH = 1.0  # seconds between two pictures of a run
KNOTS = 5  # sliders for zeta_theta(t); the last one holds for every later t
WEIGHTS = (0, 0.01, 0.03, 0.1, 0.3, 1, 3, 10, 30, 100)  # of a distance; 0 leaves it out


class _Stopped(Exception):
    """Stop was pressed."""


class Playground:
    """A panel to choose a recipe, condense in the background, watch S and its gradients, and train networks on S.

    The panel shows an error in one sentence. One panel runs at a time: a second one stops the first.

    Parameters
    ----------
    datasets : sequence of str
        Names that `gmlib.load_data` takes. The panel downloads nothing.
    method : str
        The controls start with it. A name in METHODS or a spelt-out method, but not one that waits for overfitting.
    ipc, seed : int
        The controls start with them.
    budget : str
        Sets the size of networks and batches, and where the sliders start.
    device : str, optional
        As in `gmlib.condense`.
    data_dir : str, optional
        As in `gmlib.load_data`.
    size : int or (int, int), optional
        As in `gmlib.load_data`, for those of the data sets that it applies to.

    Attributes
    ----------
    controls, buttons : dict
        The widgets by name.
    S : SyntheticSet or None
        The set in the picture.
    data : Data or None
        What S was condensed from.

    Raises
    ------
    ValueError
        For an unknown name or a number out of range.
    """

    _active: ClassVar[Playground | None] = None  # the panel that runs

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
        size: int | tuple[int, int] | None = None,
    ):
        if isinstance(datasets, str) or not datasets:
            raise ValueError(f"datasets={datasets!r} does not fit: give a list of names")
        first = Recipe.for_method(method, datasets[0], ipc, budget, seed)
        if first.where in where.STOP:
            raise ValueError(f"the steps of {method} are not known in advance: start with another method, such as MD")
        self.method, self.budget, self.data_dir, self.size = method, budget, data_dir, size
        self.device = device_of(device)
        # Only the background thread writes the next four. S and its history are copies, so readers need no lock.
        self.data: Data | None = None
        self.S: SyntheticSet | None = None
        self._recipe: Recipe | None = None  # of the run that made S
        self._run: Progress | None = None  # a run that was stopped
        self._thread: threading.Thread | None = None
        self._stop = threading.Event()
        self.controls = _controls(list(dict.fromkeys(datasets)), first)
        self.buttons = {
            "run": _button("Run", "Condense from the beginning", self.run, button_style="primary"),
            "go on": _button("Go on", "Continue the run that was stopped", self.go_on),
            "stop": _button("Stop", "Stop after this update", self.stop),
            "evaluate": _button("Evaluate", "Train networks on S and on random real images", self.evaluate),
        }
        self._status, self._picture, self._scores, self._code = (ipywidgets.HTML() for _ in range(4))
        self.controls["ipc"].observe(self._take_budget, names="value")
        for control in self.controls.values():
            control.observe(self._update, names="value")
        self._update()
        self._enable_buttons(busy=False)
        self._say("Press Run.")
        self._widget = self._panel()

    def _choice(self) -> tuple[list, dict[str, Any]]:
        """The arguments of `Recipe.for_method` that the controls describe."""
        value = {name: control.value for name, control in self.controls.items()}
        terms = [(value[name], name) for name in DISTANCES if value[name]]
        if not terms:
            raise ValueError("every distance has weight 0: give d1, d2, d3 or d4 a weight")
        knots = ",".join(str(value[f"t{t}"]) for t in range(KNOTS))
        method = f"{value['what']},{spell_distance(terms)},steps:{knots}"
        arguments = [method, value["dataset"], value["ipc"], self.budget, value["seed"]]
        changes = {
            "lam": None if value["lam_is_C"] else value["lam"], "outer_loops": value["K"], "inner_loops": value["T"],
            "lr_images": value["lr_images"], "init": value["init"],
        }  # fmt: skip
        return arguments, changes

    def recipe(self) -> Recipe:
        """The recipe that the controls describe. Raises ValueError if their values do not fit together."""
        arguments, changes = self._choice()
        return Recipe.for_method(*arguments, **changes)

    @property
    def code(self) -> str:
        """Python code that makes the same S without the panel. Raises ValueError as `recipe` does."""
        recipe = self.recipe()
        arguments, changes = self._choice()
        given = "".join(f", {name}={value!r}" for name, value in self._options(recipe.dataset).items())
        evaluation = f"n_networks={self._n_networks}, epochs={BUDGETS[self.budget].epochs}, seed={recipe.seed}"
        return f"""\
import gmlib as gm
from gmlib.analysis.matching import angles

data = gm.load_data({recipe.dataset!r}{given})
recipe = gm.Recipe.for_method(
    {", ".join(map(repr, arguments))},
    {", ".join(f"{name}={value!r}" for name, value in changes.items())},
)
S = gm.condense(data, recipe)
print(angles(S, data, recipe, k=recipe.outer_loops))  # at a network that the run never uses
print(gm.evaluate(S, data, {evaluation}))"""

    def _options(self, dataset: str) -> dict[str, Any]:
        """The options of `load_data` for a data set. A size applies to image files only."""
        is_resized = self.size is not None and dataset.startswith(("imagefolder:", "TinyImageNet"))
        options = {"data_dir": self.data_dir} if self.data_dir else {}
        return options | ({"size": self.size} if is_resized else {})

    # ---- what the buttons do

    def run(self) -> None:
        """Condense from the beginning."""
        try:
            recipe = self.recipe()
        except ValueError as error:
            return self._say(str(error))
        self._start(lambda: self._condense(recipe))

    def go_on(self) -> None:
        """Continue the run that was stopped, with its own recipe. It ends as if it had not been stopped."""
        if self._run is None and not self.running:
            return self._say("There is no run that was stopped: press Run.")
        self._start(self._follow)

    def stop(self) -> None:
        """End the work after the present update of S, or the present network."""
        self._stop.set()

    def evaluate(self) -> None:
        """Train networks on S and, by the same protocol, on as many random real images."""
        if self.S is None:
            return self._say("There are no images yet: press Run.")
        self._start(self._evaluate)

    @property
    def running(self) -> bool:
        """True while there is work in the background."""
        return self._thread is not None and self._thread.is_alive()

    def join(self, timeout: float | None = None) -> None:
        """Wait for the end of the work, for ``timeout`` seconds at most."""
        if self._thread is not None:
            self._thread.join(timeout)

    # ---- the work, in a thread of its own

    def _start(self, work: Callable[[], str]) -> None:
        if self.running:
            return self._say("A run is in progress: press Stop first.")
        other = Playground._active
        if other is not None:  # perhaps its cell was run again, and its buttons are gone
            other.stop()
            other.join()
        Playground._active = self
        self._stop.clear()
        self._enable_buttons(busy=True)
        self._thread = threading.Thread(target=self._work, args=(work,), name="playground", daemon=True)
        self._thread.start()

    def _work(self, work: Callable[[], str]) -> None:
        try:
            message = work()
        except _Stopped:
            message = "Stopped."
        except Exception as error:  # of any type: an error in a thread would not be seen
            is_for_readers = isinstance(error, (ValueError, OSError, Diverged))
            message = str(error) if is_for_readers else f"{type(error).__name__}: {error}"
            message = message.partition("\n")[0].removesuffix(": ")
        Playground._active = None
        self._say(message)
        self._enable_buttons(busy=False)

    def _condense(self, recipe: Recipe) -> str:
        data = self.data
        if data is None or data.name != recipe.dataset:
            self._say("Loading the data.")
            options = self._options(recipe.dataset)
            data = load_data(recipe.dataset, download=False, progress=False, **options).to(self.device)
        check(data, recipe)
        self.data, self._recipe, self._run = data, recipe, Progress(State.initial(data, recipe))
        self._scores.value = ""
        self._show(self._run)
        return self._follow()

    def _follow(self) -> str:
        recipe, run = self._recipe, self._run
        self._run = None  # an error ends the run: its state may be halfway through an update
        last, is_shown = -math.inf, False
        try:
            with matmul_precision(recipe.precision):
                for update in follow(self.data, recipe, run):
                    is_shown = time.monotonic() - last > REFRESH
                    if is_shown:
                        self._show(run, update)
                        last = time.monotonic()
                    if self._stop.is_set():
                        break
                if not is_shown:
                    self._show(run, update)
        except Diverged as error:
            self.S = error.S
            raise
        k, K = run.state.k, recipe.outer_loops
        if k == K:
            return f"Done: {counted(K, 'outer iteration')} of {recipe.method}."
        self._run = run
        return f"Stopped after {k} of {counted(K, 'outer iteration')}: Go on continues, Run starts again."

    def _show(self, run: Progress, update: Update | None = None) -> None:
        if update is not None:
            read_losses(self.data, self._recipe, run, update)  # raises Diverged if S is not finite
        self.S = as_set(run.state.S, self.data, self._recipe, list(run.history))
        self._draw()

    def _draw(self) -> None:
        k, K = len(self.S.history), self._recipe.outer_loops
        losses = [entry["loss"] for entry in self.S.history]
        table = angles(self.S, self.data, self._recipe, K, device=self.device)
        self._picture.value = img(png(session_figure(self.S, losses, table, k=k, K=K)), alt_text(k, K, table))
        loss = f", matching loss {losses[-1]:.4g}" if losses else ""
        self._say(f"{k} of {counted(K, 'outer iteration')}{loss}; {in_words(table)}.")

    def _evaluate(self) -> str:
        recipe, n = self._recipe, self._n_networks
        R = coreset("random", self.data, recipe.ipc, recipe.seed, device=self.device)
        size = {"width": recipe.width, "depth": recipe.depth, "epochs": BUDGETS[self.budget].epochs}
        k = len(self.S.history)
        scores = []
        for name, images in ((f"S after {counted(k, 'outer iteration')}", self.S), ("random real images", R)):
            self._say(f"Training {n} networks on {name}.")
            score = evaluate(
                images, self.data, recipe.network, n, recipe.seed, device=self.device, progress=False,
                each=self._check_stop, **size,
            )  # fmt: skip
            scores.append(f"{name}: {score}")
            self._scores.value = f"<p>Test accuracy. {html.escape('; '.join(scores))}</p>"
        return "Done: networks trained and tested."

    def _check_stop(self, score: Evaluation) -> None:
        if self._stop.is_set():
            raise _Stopped

    # ---- what the panel shows

    @property
    def _n_networks(self) -> int:
        """The number of networks that the budget trains per set, but at most 5 to keep the wait short."""
        return min(BUDGETS[self.budget].networks, 5)

    def _say(self, sentence: str) -> None:
        self._status.value = f'<p role="status">{html.escape(sentence)}</p>'

    def _enable_buttons(self, *, busy: bool) -> None:
        possible = {"run": True, "go on": self._run is not None, "evaluate": self.S is not None}
        for name, button in self.buttons.items():
            button.disabled = not busy if name == "stop" else busy or not possible[name]

    def _take_budget(self, change: dict[str, Any]) -> None:
        """Set K, T, the steps of theta and the rate to the budget's for this number of images per class."""
        try:
            recipe = Recipe.for_method(self.method, self.controls["dataset"].value, change["new"], self.budget)
        except ValueError:  # the budget has no values for this number
            return
        for name, value in _budgeted(recipe).items():
            self.controls[name].value = value

    def _update(self, change: dict[str, Any] | None = None) -> None:
        """Disable sliders that change nothing, and show the code."""
        c = self.controls
        c["lam"].disabled = c["lam_is_C"].value
        for t in range(KNOTS):
            c[f"t{t}"].disabled = t >= c["T"].value - 1  # theta moves T - 1 times
        try:
            code = self.code
        except ValueError as error:
            code = f"# {error}"
        self._code.value = f'<pre style="white-space: pre-wrap">{html.escape(code)}</pre>'

    def _panel(self) -> ipywidgets.Widget:
        c = self.controls
        columns = [
            [c[name] for name in ("dataset", "ipc", "init", "seed", "K", "T", "lr_images")],
            [c[name] for name in ("what", "lam_is_C", "lam", *DISTANCES)],
            [ipywidgets.HTML("steps of theta after the update at"), *(c[f"t{t}"] for t in range(KNOTS))],
        ]
        boxes = [ipywidgets.VBox(column, layout={"width": "28em"}) for column in columns]
        controls = ipywidgets.HBox(boxes, layout={"flex_flow": "row wrap"})
        buttons = ipywidgets.HBox(list(self.buttons.values()))
        code = ipywidgets.Accordion([self._code], titles=["The same in code"])
        return ipywidgets.VBox([controls, buttons, self._status, self._picture, self._scores, code])

    def __repr__(self) -> str:
        return f"Playground: {', '.join(self.controls['dataset'].options)}"

    def _repr_mimebundle_(self, include=None, exclude=None) -> dict[str, object]:
        from IPython import get_ipython

        has_kernel = getattr(get_ipython(), "kernel", None) is not None
        widget = self._widget._repr_mimebundle_() if has_kernel else {}
        return widget | {"text/plain": repr(self), "text/html": self._repr_html_()}

    def _repr_html_(self) -> str:
        return (
            '<div class="gm-table"><p><strong>The panel needs a running kernel, and this page has none.</strong> '
            "In a clone of the repository, <code>make setup</code> installs what is needed. Then start "
            "<code>.venv/bin/jupyter lab</code>, right-click <code>notebooks/playground.md</code>, choose Open With, "
            "Notebook, and run all cells.</p></div>"
        )


@atexit.register
def _leave() -> None:
    """Stop the background work before Python ends: it aborts if a thread is inside torch."""
    panel = Playground._active
    if panel is not None:
        panel.stop()
        panel.join()


def _button(description: str, tooltip: str, act: Callable[[], None], **options: str) -> ipywidgets.Button:
    button = ipywidgets.Button(description=description, tooltip=tooltip, **options)
    button.on_click(lambda _: act())
    return button


def _controls(datasets: list[str], start: Recipe) -> dict[str, ipywidgets.Widget]:
    """The controls by name, with the values of `start`."""
    values = _budgeted(start)
    weights = {name: weight for weight, name in parse_distance(start.how)}
    controls = {}

    def add(name: str, kind: type[ipywidgets.Widget], description: str, **options: Any) -> None:
        look = {"style": {"description_width": "12em"}, "layout": {"width": "27em"}}
        controls[name] = kind(description=description, **look, **options)

    def add_slider(name: str, description: str, kind: type = ipywidgets.IntSlider, **options: Any) -> None:
        add(name, kind, description, continuous_update=False, **options)

    add("dataset", ipywidgets.Dropdown, "data set", options=datasets)
    add("ipc", ipywidgets.BoundedIntText, "images per class", value=start.ipc, min=1, max=500)
    add("init", ipywidgets.Dropdown, "S starts as", options=INIT, value=start.init)
    add("seed", ipywidgets.BoundedIntText, "seed", value=start.seed, min=0, max=2**31)
    add("K", ipywidgets.BoundedIntText, "K, outer iterations", value=values["K"], min=1, max=10**6)
    add_slider("T", "T, updates each", value=values["T"], min=1, max=50)
    log = {"kind": ipywidgets.FloatLogSlider, "step": 0.1}
    add_slider("lr_images", "rate of S", value=values["lr_images"], min=-3, max=2, **log)
    add("what", ipywidgets.Dropdown, "what", options=list(WHAT), value=start.what)
    add("lam_is_C", ipywidgets.Checkbox, "lam = C, as in the paper", value=start.lam is None)
    add_slider("lam", "lam", value=start.lam or 10, min=-2, max=3, **log)
    for name, words in zip(DISTANCES, ("angle", "Euclidean", "sum of squares", "mean of squares"), strict=True):
        weight = weights.get(name, 0)
        options = [(f"{w:g}", w) for w in sorted({*WEIGHTS, weight})]
        add_slider(name, f"{name}, {words}", ipywidgets.SelectionSlider, options=options, value=weight)
    for t in range(KNOTS):
        words = f"t = {t}" if t < KNOTS - 1 else f"t = {t} and later"
        add_slider(f"t{t}", words, value=values[f"t{t}"], min=0, max=where.MAX_STEPS)
    return controls


def _budgeted(recipe: Recipe) -> dict[str, float]:
    """The values of the controls that a budget sets for its number of images per class."""
    T, zeta = recipe.schedule()
    steps = {f"t{t}": where.steps(recipe.where, t, zeta) for t in range(KNOTS)}
    return {"K": recipe.outer_loops, "T": T, "lr_images": recipe.lr_images, **steps}
