"""Sliders through pictures: widgets with a kernel, plain HTML in a static page."""

from __future__ import annotations

import hashlib
import html
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import seaborn as sns
from matplotlib.figure import Figure

from .figures import sheet_of, show_sheet
from .style import STYLE, colour, img, png

# Copies of one slider in a page share an id, so the script connects each copy that is not connected yet.
_SCRIPT = """
document.querySelectorAll('#%(id)s:not([data-ready])').forEach(function (box) {
  var input = box.querySelector('input'), name = box.querySelector('output');
  var frames = box.querySelectorAll('.gm-frame'), names = %(names)s;
  function show() {
    frames.forEach(function (frame, i) { frame.hidden = i !== Number(input.value); });
    name.textContent = names[input.value];
    input.setAttribute('aria-valuetext', names[input.value]);
  }
  input.addEventListener('input', show);
  box.dataset.ready = '1'; input.value = %(start)d; input.parentElement.hidden = false; show();
});
"""


@dataclass
class Slider:
    """A slider through pictures. It is an ipywidget if there is a kernel, else plain HTML.

    Attributes
    ----------
    frames : sequence of (str, bytes or Figure or str, str)
        Caption, content and alternative text of each frame. The content is PNG bytes, a Figure (which is closed) or
        HTML.
    label : str
        What the slider moves along.
    names : sequence, optional
        The label of each frame; None takes 0, 1, ...
    start : int
        The first frame that is shown. It is the only one in print and without scripts.

    Raises
    ------
    ValueError
        If there is no frame, a frame has no alternative text, or ``names`` or ``start`` do not fit.
    """

    frames: Sequence[tuple[str, bytes | Figure | str, str]]
    label: str = "outer iteration k"
    names: Sequence[object] | None = None
    start: int = 0
    _html: list[str] = field(default_factory=list, init=False, repr=False)
    _live: object = field(default=None, init=False, repr=False)

    def __post_init__(self):
        if not self.frames:
            raise ValueError("a slider needs at least one frame")
        self.names = [str(n) for n in (range(len(self.frames)) if self.names is None else self.names)]
        if len(self.names) != len(self.frames):
            raise ValueError(f"{len(self.names)} names for {len(self.frames)} frames: give one per frame")
        if not -len(self.frames) <= self.start < len(self.frames):
            raise ValueError(f"start={self.start} is outside the {len(self.frames)} frames: give a smaller one")
        self.start %= len(self.frames)
        for caption, content, alt in self.frames:
            if not alt.strip():
                raise ValueError(f"frame {caption!r} has no alternative text: describe it in a sentence")
            if isinstance(content, str):
                body = f'<div role="group" aria-label="{html.escape(alt)}">{content}</div>'
            else:
                body = img(png(content) if isinstance(content, Figure) else content, alt)
            self._html.append(f"{body}<figcaption>{html.escape(caption)}</figcaption>")

    def __repr__(self) -> str:
        return f"Slider: {len(self.frames)} frames along {self.label}"

    @property
    def id(self) -> str:
        """The id of its HTML element. It depends only on the content, so builds are reproducible."""
        content = json.dumps([self.label, self.names, self.start, self._html])
        return "gm-slider-" + hashlib.sha256(content.encode()).hexdigest()[:12]

    def _repr_html_(self) -> str:
        hidden = ["" if i == self.start else " hidden" for i in range(len(self._html))]
        frames = "".join(f'<figure class="gm-frame"{h}>{f}</figure>' for h, f in zip(hidden, self._html, strict=True))
        name = html.escape(self.names[self.start])
        control = (
            f"<label hidden><span>{html.escape(self.label)}: <output>{name}</output></span>"
            f'<input type="range" min="0" max="{len(self._html) - 1}" step="1" value="{self.start}" '
            f'aria-label="{html.escape(self.label)}" aria-valuetext="{name}"></label>'
        )
        # A name that contains "</script>" must not end the script.
        names = json.dumps(self.names).replace("<", "\\u003c")
        script = _SCRIPT % {"id": self.id, "names": names, "start": self.start}
        return f'<div class="gm-slider" id="{self.id}">{control}{frames}</div><script>{script}</script>'

    def _repr_mimebundle_(self, include=None, exclude=None) -> dict[str, object]:
        bundle = {"text/plain": repr(self), "text/html": self._repr_html_()}
        return self._widget_bundle() | bundle

    def _widget_bundle(self) -> dict[str, object]:
        """The ipywidget, or nothing if there is no kernel."""
        try:
            import ipywidgets
            from IPython import get_ipython
        except ImportError:
            return {}
        if getattr(get_ipython(), "kernel", None) is None:
            return {}
        if self._live is None:
            options = [(name, i) for i, name in enumerate(self.names)]
            pick = ipywidgets.SelectionSlider(
                options=options,
                value=self.start,
                description=self.label,
                style={"description_width": "initial"},
                layout={"width": "100%", "max_width": "40em"},
            )
            view = ipywidgets.HTML(value=self._html[self.start])
            pick.observe(lambda change: setattr(view, "value", self._html[change["new"]]), names="value")
            self._live = ipywidgets.VBox([pick, view])
        return self._live._repr_mimebundle_()


def trace_slider(
    trace: Mapping[int, tuple[object, Sequence[float]]],
    n_classes: int,
    *,
    method: str,
    titles: Sequence[str] | None = None,
) -> Slider:
    """A slider through the outer iterations of one run. It shows the images and the accuracy so far.

    Parameters
    ----------
    trace : mapping
        {number of outer iterations k: (images, accuracies in percent of the networks trained on them)}. The images
        are as in `image_grid`.
    n_classes : int
    method : str
    titles : sequence of str, optional
        Class names above the columns.

    Returns
    -------
    Slider
        It starts at the last k.
    """
    ks = list(trace)
    means = [float(np.mean(accuracies)) for _, accuracies in trace.values()]
    frames = []
    for k, mean, (images, accuracies) in zip(ks, means, trace.values(), strict=True):
        sheet, centres = sheet_of(images, n_classes)
        height = 7.2 * sheet.shape[0] / sheet.shape[1] + 0.3
        with sns.axes_style("whitegrid", rc=STYLE):
            fig = Figure(figsize=(7.2, height + 2.0), layout="constrained")
            pictures, curve = fig.subplots(2, 1, height_ratios=[height, 2.0])
        pictures.grid(visible=False)
        show_sheet(pictures, sheet, centres, titles)
        for at, (_, each) in trace.items():
            curve.plot([at] * len(each), each, "o", color=colour(method), alpha=0.35, markersize=3, markeredgewidth=0)
        curve.plot(ks, means, color=colour(method), linewidth=1.5)
        curve.plot([k], [mean], "o", color="black", markersize=7)
        curve.set(xlabel="outer iteration k", ylabel="test accuracy (%)")
        caption = f"k = {k}: networks trained on these images reach {mean:.1f} % (mean of {len(accuracies)})"
        alt = (
            f"The images after {k} outer iterations of {method}, one column for each class; below, accuracy against k"
        )
        frames.append((caption, fig, alt))
    return Slider(frames, names=ks, start=len(ks) - 1)
