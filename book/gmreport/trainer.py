"""Two small networks that train in the reader's browser, on ten random digits and on ten condensed ones.

The script trainer.js trains them. Here is the page without it: a stored run of one seed, and the accuracies of many.
"""

from __future__ import annotations

import base64
import html
import json
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from statistics import fmean, stdev
from typing import Any

import msgspec
import numpy as np
import torch

from gmlib.data import Data
from gmlib.datasets import load_data
from gmlib.files import read_json
from gmlib.runs.shipped import results_folder
from gmlib.sets import SyntheticSet

from .drawing import Pictures
from .figures import sheet_of
from .style import counted

LAYERS = (64, 128, 128, 10)  # of gmlib's MLP for these images
NBSP = "\N{NO-BREAK SPACE}"
INK = 16  # the largest value of a pixel of scikit-learn's digits
NETS = {"random": "ten random digits", "condensed": "ten condensed digits"}
# In SVG units. A page shows at least one CSS pixel for each, so letters of 12 units can be read on a phone.
CHART = {"left": 32, "right": 334, "top": 12, "bottom": 176}
STRIP = {"left": 12, "right": 328}
REMAKE = "run workflow/trainer.py"


class Shown(msgspec.Struct):
    """The run that the page shows without script."""

    seed: int
    random_images: list[int]
    accuracies: dict[str, list[float]]


class Stored(msgspec.Struct):
    """What the page reads of results/trainer/run.json."""

    recipe: dict[str, Any]
    data: dict[str, str]
    set: str
    protocol: dict[str, Any]
    seeds: list[int]
    random: list[float]
    condensed: list[float]
    herding: list[float]
    other_sets: list[list[float]]
    all_training_images: list[float]
    steps: list[int]
    shown: Shown


@dataclass(frozen=True)
class Trainer:
    """The stored run as HTML, with the data that trainer.js needs to do it again.

    Attributes
    ----------
    stored : Stored
    S : SyntheticSet
        The ten condensed digits.
    data : Data
        scikit-learn's digits.
    """

    stored: Stored
    S: SyntheticSet
    data: Data

    def __repr__(self) -> str:
        s = self.stored
        return (
            f"Trainer: {counted(len(s.seeds), 'seed')}, condensed {_spread(s.condensed)}, random {_spread(s.random)}"
        )

    def _repr_html_(self) -> str:
        images = {"random": self.data.train_images[self.stored.shown.random_images], "condensed": self.S.images}
        sets = "".join(
            f'<div class="gm-{net}"><p><b>{self.stored.shown.accuracies[net][-1]:.1f}{NBSP}%</b> '
            f"<span>{title}</span></p>{self._pictures(images[net], title)}</div>"
            for net, title in NETS.items()
        )
        content = json.dumps(self._for_script(), separators=(",", ":")).replace("<", "\\u003c")
        return (
            f'<div class="gm-trainer"><div class="gm-both"><div class="gm-learn"><div class="gm-sets">{sets}</div>'
            f"{_CONTROLS}{self._chart()}{self._strip()}"
            f'<p class="gm-attempts" hidden></p></div>{_READ}</div>{self._how()}'
            f'<script type="application/json">{content}</script></div>'
        )

    def _pictures(self, images: torch.Tensor, alt: str) -> str:
        pixels = images * self.data.std[0] + self.data.mean[0]
        return Pictures({"": sheet_of(pixels, self.data.n_classes, np.nan)[0]}, self.data.n_classes).to_html(alt)

    def _for_script(self) -> dict[str, Any]:
        s = self.stored
        names = ("lr", "momentum", "weight_decay")
        return {
            "layers": LAYERS,
            "steps": s.steps,
            **{name: s.protocol[name] for name in names},
            "mean": self.data.mean[0],
            "std": self.data.std[0],
            "counts": self.data.counts,
            "train": packed(self.data.train_images, self.data),
            "test": packed(self.data.test_images, self.data),
            "labels": "".join(map(str, self.data.test_labels.tolist())),
            "condensed": base64.b64encode(self.S.images.numpy().astype("<f4").tobytes()).decode(),
            "seed": s.shown.seed,
            "chart": CHART,
            "strip": STRIP | {"low": self._low},
        }

    def _chart(self) -> str:
        """The accuracies of the stored run against steps, on a logarithmic axis that begins at 0."""
        steps, c = self.stored.steps, CHART
        last = steps[-1]

        def x(step: float) -> float:
            return c["left"] + (c["right"] - c["left"]) * math.log1p(step) / math.log1p(last)

        def y(accuracy: float) -> float:
            return c["bottom"] - (c["bottom"] - c["top"]) * accuracy / 100

        grid = "".join(
            f'<path class="gm-grid" d="M{c["left"]} {y(a):.1f}H{c["right"]}"/>'
            f'<text x="{c["left"] - 5}" y="{y(a) + 4:.1f}" text-anchor="end">{a}</text>'
            for a in (0, 50, 100)
        )
        grid += f'<text x="{c["left"] + 4}" y="{c["top"] + 15}">% of the test digits</text>'
        grid += "".join(
            f'<text x="{x(step):.1f}" y="{c["bottom"] + 16}" text-anchor="middle">{step}</text>'
            for step in [0, *(s for s in (3, 10, 30, 100) if 2 * s < last), last]
        )
        lines = ""
        for net, values in self.stored.shown.accuracies.items():
            at = [(x(step), y(a)) for step, a in zip(steps, values, strict=True)]
            d = "".join(f"{'L' if i else 'M'}{p:.1f} {q:.1f}" for i, (p, q) in enumerate(at))
            name = NETS[net].split()[1]
            lines += (
                f'<g class="gm-{net}"><g class="gm-earlier"></g><path class="gm-train-line" d="{d}"/>'
                f'<circle cx="{at[-1][0]:.1f}" cy="{at[-1][1]:.1f}" r="4"/>'
                f'<text class="gm-end" x="{c["right"]}" y="{at[-1][1] + (17 if net == "random" else -8):.1f}" '
                f'text-anchor="end">{name} {values[-1]:.1f}{NBSP}%</text></g>'
            )
        s = self.stored.shown
        words = ", ".join(f"{NETS[net]} {values[-1]:.1f}{NBSP}%" for net, values in s.accuracies.items())
        label = f"Accuracy on the test digits against training steps. After {last} steps: {words}."
        middle = (c["left"] + c["right"]) / 2
        return (
            f'<p class="gm-result" role="status">A stored run, seed {s.seed}. After {last} steps: {words}.</p>'
            f'<svg class="gm-chart" role="img" aria-label="{html.escape(label)}" viewBox="0 0 360 210">{grid}{lines}'
            f'<text x="{middle}" y="{c["bottom"] + 32}" text-anchor="middle">training steps (log scale)</text></svg>'
        )

    @property
    def _low(self) -> int:
        """Where the axis of the strip begins, in percent."""
        s = self.stored
        return int(min(*s.random, *s.condensed, *s.herding) // 10 * 10)

    def _strip(self) -> str:
        """The last accuracies of all stored seeds, a row for each kind of images."""
        s, low = self.stored, self._low
        width = STRIP["right"] - STRIP["left"]

        def x(accuracy: float) -> float:
            return STRIP["left"] + width * (accuracy - low) / (100 - low)

        rows = {"random": s.random, "herding": s.herding, "condensed": s.condensed}
        titles = {**NETS, "herding": "ten real digits, chosen by herding"}
        drawn = ""
        for i, (net, values) in enumerate(rows.items()):
            y = 14 + 38 * i
            d = "".join(f"M{x(a):.1f} {y + 6}v10" for a in sorted(values))
            drawn += (
                f'<g class="gm-{net}"><text x="{STRIP["left"]}" y="{y}">{titles[net]}: {_spread(values)}</text>'
                f'<path class="gm-grid" d="M{STRIP["left"]} {y + 11}H{STRIP["right"]}"/>'
                f'<path class="gm-rug" d="{d}"/>'
                f'<g class="gm-dots" transform="translate(0 {y + 11})"></g></g>'
            )
        ticks = "".join(
            f'<text x="{x(a):.1f}" y="126" text-anchor="middle">{a}{" %" * (a == 100)}</text>'
            for a in range(low, 101, 20 if low < 50 else 10)
        )
        label = "; ".join(f"{titles[net]}: {_spread(values)}" for net, values in rows.items())
        wins = sum(c > r for c, r in zip(s.condensed, s.random, strict=True))
        return (
            f'<p class="gm-many"><b>{counted(len(s.seeds), "seed")}, not one.</b> gmlib trained both with each '
            f"beforehand. The condensed digits won {wins} times. Each line is a seed, ± the standard deviation.</p>"
            f'<svg class="gm-strip-chart" role="img" aria-label="Accuracy over {len(s.seeds)} seeds. '
            f'{html.escape(label)}." viewBox="0 0 360 130">{drawn}{ticks}</svg>'
        )

    def _how(self) -> str:
        s = self.stored
        n_weights = sum((a + 1) * b for a, b in pairwise(LAYERS))
        every, tested = (f"{len(labels):,}" for labels in (self.data.train_labels, self.data.test_labels))
        means = [fmean(s.condensed), *map(fmean, s.other_sets)]
        best = ", the best of them" if means[0] == max(means) else ""
        sets = f"{', '.join(f'{mean:.1f}' for mean in means[:-1])} and {means[-1]:.1f}{NBSP}%"
        return (
            '<div class="gm-train-how"><p><b>Is it fair?</b> Both networks start from the same weights and take the '
            f"same {s.steps[-1]} steps. Only their ten images differ. The random ones are drawn from {every} "
            f"training digits, one of each class. MD learned the condensed ones from the same {every}. The {tested} "
            f"test digits were used for neither. MD depends on its own seed too: {len(means)} sets, with seeds 0 to "
            f"{len(means) - 1}, reach {sets} on average. Here is the first{best}.</p>"
            "<details><summary>How they were made</summary>"
            "<p>The images are scikit-learn's digits, 8x8 pixels. The network is gmlib's <code>mlp</code> "
            f"({'-'.join(map(str, LAYERS))}, {n_weights:,} weights). It is trained as the paper trains on a set: "
            f"SGD, learning rate {s.protocol['lr']:g}, a tenth of it after half the steps, momentum "
            f"{s.protocol['momentum']:g}, weight decay {s.protocol['weight_decay']:g}, all ten images in every step, "
            "no augmentation. A seed draws the first weights and the random digits.</p>"
            "<p>The condensed digits were made once, for this kind of network, by the paper's recipe of MD with "
            f"{s.recipe['outer_loops']:,} outer iterations: <code>workflow/trainer.py</code>. The network trained on "
            f"all {every} digits reaches {fmean(s.all_training_images):.1f}{NBSP}%.</p></details></div>"
        )


def train_here(results_dir: Path | None = None) -> Trainer:
    """The two networks to train in the browser, from results/trainer.

    Raises
    ------
    FileNotFoundError
        If they are not stored.
    ValueError
        If a file is damaged, or was made with another set or other data.
    """
    folder = results_folder(results_dir) / "trainer"
    stored = msgspec.convert(read_json(folder / "run.json", Stored, advice=REMAKE), Stored)
    S, data = SyntheticSet.load(folder / "set.safetensors"), load_data("digits")
    if S.fingerprint != stored.set or data.fingerprint != stored.data["fingerprint"]:
        raise ValueError(f"{folder} was made with another set or other digits: {REMAKE}")
    return Trainer(stored, S, data)


def packed(images: torch.Tensor, data: Data) -> str:
    """Digits as text: "a" to "q" for 0 to 16 of ink, "A" to "Y" for 2 to 26 pixels without ink.

    Raises
    ------
    ValueError
        If a pixel is none of these 17 values.
    """
    ink = (images * data.std[0] + data.mean[0]) * INK
    whole = ink.round().clamp(0, INK)
    if (ink - whole).abs().max() > 1e-3:
        raise ValueError(f"the pixels are not 0 to {INK} sixteenths")
    text = bytes(whole.to(torch.uint8).flatten().add(ord("a")).tolist()).decode()
    return re.sub("a{2,26}", lambda run: chr(ord("A") - 2 + len(run[0])), text)


def _spread(values: Sequence[float]) -> str:
    return f"{fmean(values):.1f}{NBSP}±{NBSP}{stdev(values):.1f}{NBSP}%"


def _bars(names: Mapping[str, str]) -> str:
    columns = "".join(f"<li><i></i>{digit}</li>" for digit in range(LAYERS[-1]))
    return "".join(
        f'<div class="gm-{net}"><p>{title.capitalize()}: <b>–</b></p><ol aria-hidden="true">{columns}</ol></div>'
        for net, title in names.items()
    )


_CONTROLS = (
    '<p class="gm-train-controls" hidden><button type="button" class="gm-train">Train both here</button>'
    '<button type="button" class="gm-train-more">Five more</button>'
    '<label>seed <input type="number" min="1" max="4294967295" step="1" value="1" inputmode="numeric"></label></p>'
)
_READ = (
    '<div class="gm-read" hidden><p class="gm-ask">Now draw a digit. What do they read?</p>'
    '<div class="gm-pads"><canvas class="gm-pad" width="256" height="256" tabindex="0" role="application" '
    'aria-label="Pad to draw a digit on" aria-describedby="gm-pad-keys"></canvas>'
    '<p><canvas class="gm-seen" width="8" height="8" role="img" aria-label="The drawing as 8x8 pixels"></canvas>'
    "<small>what they see</small></p></div>"
    '<p class="gm-train-controls"><button type="button" class="gm-clear">Clear</button>'
    '<button type="button" class="gm-any">A test digit</button>'
    '<button type="button" class="gm-differ">One they read differently</button></p>'
    '<p class="gm-train-said" role="status"><span></span><span class="gm-hidden"></span></p>'
    f'<div class="gm-bars">{_bars(NETS)}</div>'
    '<p class="gm-keys" id="gm-pad-keys">By keyboard: arrows move the pen, Space lowers or lifts it, Backspace takes '
    "a stroke back, Delete clears.</p></div>"
)
