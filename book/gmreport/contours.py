"""The plane of gradients: the reader drags gS, and sees the distance to gT, its slope, and where the slope leads."""

from __future__ import annotations

import html
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from gmlib.how import parse_distance

from .drawing import content
from .figures import distance_figure, plane_distances

STILL = (
    "The distance to gT for every gS: each band of colour is one step of equal height, and the band at gT is the "
    "nearest. The number of a gradient is its distance."
)


@dataclass(frozen=True)
class Plane:
    """Two planes side by side: d1, and d1 with a distance that depends on the length. Both have the same gS.

    ``_static/contours.js`` draws them. Without scripts and in print there is a still picture: contours of d1, d2 and
    their sum.

    Attributes
    ----------
    gS : dict
        Name -> (x, y) of the gradients to start from. The first is shown first.
    distances : sequence of str
        What the buttons offer, as `gmlib.how.parse_distance` reads it: one distance, or d1 and another.
    gT : (float, float)
    marked : sequence of str
        Which of ``gS`` the still picture shows. None takes all.
    caption : str
        Plain text.
    """

    gS: Mapping[str, Sequence[float]]
    distances: Sequence[str] = ("d2", "d3", "100*d4", "d1 + d2", "d1 + d3", "d1 + 100*d4")
    gT: Sequence[float] = (1.0, 0.0)
    marked: Sequence[str] | None = None
    caption: str = ""

    def __repr__(self) -> str:
        return f"Plane: {', '.join(self.distances)}"

    def settings(self) -> dict[str, object]:
        """What the script needs. The weights have the names of the distances, d1 first."""
        spelt = {e.replace("*", " "): {name: weight for weight, name in parse_distance(e)} for e in self.distances}
        return {"gT": list(self.gT), "starts": {name: list(at) for name, at in self.gS.items()}, "distances": spelt}

    def _repr_html_(self) -> str:
        shown = ["d1", "d2", "d1 + d2"]
        marked = {name: at for name, at in self.gS.items() if self.marked is None or name in self.marked}
        values = {e: plane_distances(e, list(marked.values()), self.gT) for e in shown}
        alt = "Contours of three distances to gT in the plane. " + "; ".join(
            f"{e}: " + ", ".join(f"{name} is at {value:.2f}" for name, value in zip(marked, each, strict=True))
            for e, each in values.items()
        )
        still = content(distance_figure(shown, self.gT, marked), alt)
        data = json.dumps(self.settings()).replace("<", "\\u003c")
        return (
            f'<figure class="gm-figure gm-contours"><div class="gm-plane-live"></div>'
            f'<div class="gm-plane-still">{still}</div><script type="application/json">{data}</script>'
            f'<figcaption class="gm-numbered"><span class="gm-plane-live">{html.escape(self.caption)}</span>'
            f'<span class="gm-plane-still">{STILL}</span></figcaption></figure>'
        )
