"""Sliders through pictures: widgets with a kernel, plain HTML in a static page."""

from __future__ import annotations

import hashlib
import html
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
from matplotlib.figure import Figure

from .drawing import Panels, Pictures, content, svg
from .figures import image_grid, panel
from .style import colour, display_name, img

# Copies of one slider in a page share an id, so the script connects each copy that is not connected yet.
_SCRIPT = """
document.querySelectorAll('#%(id)s:not([data-ready])').forEach(function (box) {
  var input = box.querySelector('input'), name = box.querySelector('output');
  var frames = box.querySelectorAll('.gm-frame'), moving = box.querySelectorAll('[data-places]');
  var names = %(names)s;
  function show() {
    var at = Number(input.value);
    frames.forEach(function (frame, i) { frame.hidden = i !== at; });
    moving.forEach(function (part) {
      part.setAttribute('transform', 'translate(' + part.dataset.places.split(';')[at] + ')');
    });
    name.textContent = names[at];
    input.setAttribute('aria-valuetext', names[at]);
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
    frames : sequence of (str, content, str)
        Caption, content and alternative text of each frame. The content is a Figure (which is closed), Panels,
        Pictures, PNG bytes or HTML.
    label : str
        What the slider moves along.
    names : sequence, optional
        The label of each frame; None takes 0, 1, ...
    start : int
        The first frame that is shown. It is the only one in print and without scripts; the captions of all frames
        are then listed below it.
    below : str, optional
        HTML below every frame. A part of it with an attribute ``data-places`` of the form "x,y;x,y;..." moves by this
        much at each frame.

    Raises
    ------
    ValueError
        If there is no frame, a frame has no alternative text, or ``names`` or ``start`` do not fit.
    """

    frames: Sequence[tuple[str, bytes | Figure | Panels | Pictures | str, str]]
    label: str = "outer iteration k"
    names: Sequence[object] | None = None
    start: int = 0
    below: str = ""
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
        for caption, picture, alt in self.frames:
            if not alt.strip():
                raise ValueError(f"frame {caption!r} has no alternative text: describe it in a sentence")
            if isinstance(picture, str):
                body = f'<div role="group" aria-label="{html.escape(alt)}">{picture}</div>'
            else:
                body = img(picture, alt) if isinstance(picture, bytes) else content(picture, alt)
            self._html.append(f"{body}<figcaption>{html.escape(caption)}</figcaption>")

    def __repr__(self) -> str:
        return f"Slider: {len(self.frames)} frames along {self.label}"

    @property
    def id(self) -> str:
        """The id of its HTML element. It depends only on the content, so builds are reproducible."""
        text = json.dumps([self.label, self.names, self.start, self._html, self.below])
        return "gm-slider-" + hashlib.sha256(text.encode()).hexdigest()[:12]

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
        captions = "".join(f"<li>{html.escape(caption)}</li>" for caption, *_ in self.frames)
        listed = f'<ul class="gm-captions">{captions}</ul>' if len(self.frames) > 1 else ""
        return (
            f'<div class="gm-slider" id="{self.id}">{control}{frames}{self._below(self.start)}{listed}</div>'
            f"<script>{script}</script>"
        )

    def _below(self, frame: int) -> str:
        """What is below the frames, with its moving parts where this frame has them."""

        def moved(found: re.Match) -> str:
            return f'{found[0]} transform="translate({found[1].split(";")[frame]})"'

        return re.sub(r'data-places="([^"]*)"', moved, self.below)

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
            view = ipywidgets.HTML(value=self._html[self.start] + self._below(self.start))

            def show(change):
                view.value = self._html[change["new"]] + self._below(change["new"])

            pick.observe(show, names="value")
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
    name = display_name(method)
    frames = []
    for k, mean, (images, accuracies) in zip(ks, means, trace.values(), strict=True):
        caption = f"k = {k}: networks trained on these images reach {mean:.1f} % (mean of {len(accuracies)})"
        alt = f"The images after {k} outer iterations of {name}, one column for each class"
        frames.append((caption, image_grid(images, n_classes, titles=titles), alt))
    return Slider(frames, names=ks, start=len(ks) - 1, below=_curve(trace, means, method))


def _curve(trace: Mapping[int, tuple[object, Sequence[float]]], means: Sequence[float], method: str) -> str:
    """The accuracy against k, drawn once, with a dot that moves."""
    fig, ax = panel(height=2.0)
    ks = list(trace)
    for k, (_, each) in trace.items():
        ax.plot([k] * len(each), each, "o", color=colour(method), alpha=0.35, markersize=3, markeredgewidth=0)
    ax.plot(ks, means, color=colour(method), linewidth=1.5)
    ax.set(xlabel="outer iteration k", ylabel="test accuracy (%)")
    fig.set_dpi(72)  # as in SVG
    fig.draw_without_rendering()  # only now is it known where the axes are; they stay there
    fig.set_layout_engine("none")
    points = ax.transData.transform(np.column_stack([ks, means]))
    height = fig.get_figheight() * 72
    places = ";".join(f"{x:.1f},{height - y:.1f}" for x, y in points)
    at = "; ".join(f"{mean:.1f} % at k = {k}" for k, mean in zip(ks, means, strict=True))
    drawn = svg(fig, hidden=False, label=f"Test accuracy along the outer iterations: {at}")
    dot = f'<circle r="5" fill="currentColor" data-places="{places}"/>'
    return f'<div class="gm-panels">{drawn.removesuffix("</svg>")}{dot}</svg></div>'
