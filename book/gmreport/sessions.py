"""Recorded sessions of the playground: runs that a page plays back without a kernel, and the picture of a live run.

    python -m gmreport.sessions

records every run of SESSIONS on the digits and writes results/playground/sessions.json. A run that the file has
already, with the same settings, is not done again.
"""

from __future__ import annotations

import base64
import math
import os
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from PIL import Image

from gmlib.analysis.matching import angles_along
from gmlib.condensation import condense
from gmlib.coresets import coreset
from gmlib.data import Data
from gmlib.datasets import load_data
from gmlib.evaluation import evaluate
from gmlib.exchange import png_bytes
from gmlib.files import path_or, read_json, write_json
from gmlib.recipe import BUDGETS, Recipe
from gmlib.runs.provenance import environment
from gmlib.runs.shipped import results_folder
from gmlib.runtime import device_of
from gmlib.sets import SyntheticSet

from .style import INTER, INTRA

# Level in the table of `angles` -> (words, colour of the term that matches this level alone, marker).
LEVELS = {"class": ("inside classes", INTRA, "o"), "union": ("across classes", INTER, "s")}
ROWS = 2  # images of each class that a recording shows, at most
NETWORKS = 2  # trained on each recorded S
NETWORKS_AT_END = 5  # and on the last one
RANDOM_SETS = 5  # of random real images, for comparison
FILE = "playground/sessions.json"


@dataclass(frozen=True)
class Session:
    """One recorded run: S after some outer iterations, and what was measured there.

    Attributes
    ----------
    recipe : Recipe
    ks : tuple of int
        Numbers of outer iterations, 0 to K, in order.
    losses : sequence of float
        Matching loss of every outer iteration.
    angles : DataFrame
        From `gmlib.analysis.matching.angles_along`: k, t, level, layer, cosine, ratio.
    accuracies : sequence of sequences of float
        For each k the accuracies in percent of the networks trained on S.
    sprite : bytes
        PNG with the images at each k, one frame below the other, from `sprite`.
    random : float
        Mean accuracy of networks trained on as many random real images, NaN if unknown.
    """

    recipe: Recipe
    ks: tuple[int, ...]
    losses: Sequence[float]
    angles: pd.DataFrame
    accuracies: Sequence[Sequence[float]]
    sprite: bytes
    random: float = math.nan

    @classmethod
    def of(
        cls,
        recipe: Recipe,
        trace: Mapping[int, tuple[SyntheticSet, Sequence[float]]],
        losses: Sequence[float],
        angles: pd.DataFrame,
        random: float = math.nan,
    ) -> Session:
        """The session of a run.

        Parameters
        ----------
        recipe : Recipe
        trace : mapping
            k -> (S, the accuracies of networks trained on it).
        losses, angles, random
            As the attributes.
        """
        ks = tuple(sorted(trace))
        sets, accuracies = zip(*(trace[k] for k in ks), strict=True)
        return cls(recipe, ks, list(losses), angles, [list(a) for a in accuracies], sprite(sets), random)

    @cached_property
    def means(self) -> pd.DataFrame:
        """Means over the layers of cosine and ratio, by level, t and k."""
        return self.angles.groupby(["level", "t", "k"])[["cosine", "ratio"]].mean()

    def along(self, column: str, level: str = "class", t: int = 0) -> list[float]:
        """The mean over the layers of "cosine" or "ratio" at each k; t = -1 is the last update."""
        at = self.angles["t"].max() if t < 0 else t
        return self.means.loc[(level, at), column].reindex(self.ks).tolist()

    @property
    def accuracy(self) -> list[float]:
        """The mean accuracy at each k, in percent."""
        return [float(np.mean(each)) for each in self.accuracies]

    @property
    def lowest_layer(self) -> tuple[int, int, float]:
        """The layer with the smallest cosine inside the classes at the end, the number of layers, and this cosine."""
        end = self.angles.query("t == 0 and level == 'class' and k == @self.ks[-1]")["cosine"].tolist()
        return end.index(min(end)) + 1, len(end), min(end)

    def to_json(self) -> dict[str, Any]:
        """Plain JSON types. Cosines and ratios have four digits."""
        table = self.angles.assign(**{c: [_short(x) for x in self.angles[c]] for c in ("cosine", "ratio")})
        return {
            "recipe": self.recipe.as_dict(),
            "ks": list(self.ks),
            "losses": [_short(x, 5) for x in self.losses],
            "angles": {c: table[c].tolist() for c in ("k", "t", "level", "layer", "cosine", "ratio")},
            "accuracies": [list(each) for each in self.accuracies],
            "png": base64.b64encode(self.sprite).decode(),
        }

    @classmethod
    def from_json(cls, found: Mapping[str, Any], random: float = math.nan) -> Session:
        """What `to_json` wrote. ``random`` is as the attribute."""
        table = pd.DataFrame(found["angles"]).astype({"cosine": float, "ratio": float})
        recipe, png = Recipe(**found["recipe"]), base64.b64decode(found["png"])
        return cls(recipe, tuple(found["ks"]), found["losses"], table, found["accuracies"], png, random)


def _short(x: float, digits: int = 4) -> float | None:
    return float(f"{x:.{digits}g}") if math.isfinite(x) else None


def sprite(sets: Sequence[SyntheticSet]) -> bytes:
    """PNG with the images of each set, one set below the other: a column for each class, ROWS rows at most.

    One pixel for each pixel. The gaps between the images are transparent.
    """
    frames = []
    for S in sets:
        x = S.pixels().cpu().numpy()
        x = x.reshape(S.n_classes, -1, *x.shape[1:])[:, :ROWS]
        classes, rows, channels, height, width = x.shape
        gap = max(1, width // 14)
        frame = np.zeros((rows, height + gap, classes, width + gap, channels + 1))
        frame[:, :height, :, :width, :channels] = x.transpose(1, 3, 0, 4, 2)
        frame[:, :height, :, :width, channels] = 1
        frames.append(frame.reshape(rows * (height + gap), classes * (width + gap), channels + 1))
    return png_bytes(Image.fromarray(np.rint(np.concatenate(frames) * 255).astype(np.uint8)))


# ---- what is recorded

# Name -> (method, images per class, changed fields of the recipe).
SESSIONS: dict[str, tuple[str, int, dict[str, Any]]] = {
    "d1 + d2": ("MD", 1, {}),
    "d1": ("M", 1, {}),
    "d2": ("multi,d2,fixed", 1, {}),
    "inter": ("inter,d1+d2,fixed", 1, {}),
    "intra": ("intra,d1+d2,fixed", 1, {}),
    "lam 0.01": ("MD", 1, {"lam": 0.01}),
    "lam 100": ("MD", 1, {"lam": 100.0}),
    "real": ("MD", 1, {"init": "real"}),
    "rate 1": ("MD", 1, {"lr_images": 1.0}),
    "rate 10": ("MD", 1, {"lr_images": 10.0}),
    "long": ("MD", 1, {"outer_loops": 150}),
    "steps 0": ("multi,d1+d2,steps:0", 2, {"outer_loops": 10}),
    "steps 50": ("multi,d1+d2,steps:50", 2, {"outer_loops": 10}),
    "Eq. 12": ("MDA", 2, {"outer_loops": 10}),
}  # fmt: skip


def recorded_recipe(name: str) -> Recipe:
    """The recipe of a session: the smoke budget on the digits, with the changes in SESSIONS."""
    method, ipc, changes = SESSIONS[name]
    return Recipe.for_method(method, "digits", ipc, "smoke", 0, **changes)


def frames(K: int, n: int = 10) -> list[int]:
    """Outer iterations to record, 0 to K: more at first, when S changes most."""
    return sorted({round(K * (i / (n - 1)) ** 2) for i in range(n)})


def record(data: Data, recipe: Recipe, *, device: str | None = None) -> Session:
    """Condense, and measure at each of `frames`.

    Parameters
    ----------
    data, recipe, device
        As in `gmlib.condense`.
    """
    K = recipe.outer_loops
    S = condense(data, recipe, device, progress=False, snapshots=frames(K))
    sets = {k: as_snapshot(S, images) for k, images in S.snapshots.items()}
    networks = {k: NETWORKS_AT_END if k == K else NETWORKS for k in sets}
    trace = {k: (each, _accuracies(each, data, recipe, networks[k], device)) for k, each in sets.items()}
    losses = [entry["loss"] for entry in S.history]
    return Session.of(recipe, trace, losses, angles_along(sets, data, recipe, device=device))


def as_snapshot(S: SyntheticSet, images) -> SyntheticSet:
    """The set with other images."""
    return SyntheticSet(images, S.labels, S.classes, S.mean, S.std)


def _accuracies(S: SyntheticSet, data: Data, recipe: Recipe, networks: int, device: str | None) -> list[float]:
    size = {"width": recipe.width, "depth": recipe.depth, "epochs": BUDGETS["smoke"].epochs}
    found = evaluate(S, data, recipe.network, networks, recipe.seed, device=device, progress=False, **size)
    return [round(a, 4) for a in found.accuracies]


def record_all(
    path: str | os.PathLike | None = None, names: Sequence[str] | None = None, device: str | None = "cpu"
) -> Path:
    """Record what the file has not got yet, and store it after each run.

    Parameters
    ----------
    path : path, optional
        None takes results/playground/sessions.json.
    names : sequence of str, optional
        Some of SESSIONS. None takes all.
    device : str, optional
        As in `gmlib.condense`.
    """
    path = path_or(path, results_folder() / FILE)
    path.parent.mkdir(parents=True, exist_ok=True)
    found = read_json(path) if path.is_file() else {"random": {}, "sessions": {}}
    data = load_data("digits", download=False, progress=False)
    protocol = {"networks": [NETWORKS, NETWORKS_AT_END], "random_sets": RANDOM_SETS, "data": data.fingerprint}
    if found.setdefault("protocol", protocol) != protocol:
        raise ValueError(f"{path} was made with another protocol: delete it and record again")
    for name in SESSIONS if names is None else names:
        recipe = recorded_recipe(name)
        n = str(recipe.ipc)
        if found["sessions"].get(name, {}).get("recipe") == recipe.as_dict():
            continue
        if n not in found["random"]:
            sets = [coreset("random", data, recipe.ipc, seed, device=device) for seed in range(RANDOM_SETS)]
            found["random"][n] = [_accuracies(R, data, recipe, NETWORKS, device) for R in sets]
        session = record(data, recipe, device=device)
        found["sessions"][name] = session.to_json()
        found["made_with"] = environment(device_of(device))
        write_json(path, found)
        print(f"{name}: {session.accuracy[-1]:.1f} %", flush=True)
    return path


def stored_sessions(path: str | os.PathLike | None = None) -> tuple[dict[str, Session], dict[str, Any]]:
    """The recorded sessions by name, and the rest of the file: random, protocol and made_with.

    Parameters
    ----------
    path : path, optional
        None takes results/playground/sessions.json. Without the file there are no sessions.
    """
    path = path_or(path, results_folder() / FILE)
    about = read_json(path) if path.is_file() else {"sessions": {}, "random": {}}
    random = {int(ipc): float(np.mean(each)) for ipc, each in about["random"].items()}
    found = {
        name: Session.from_json(each, random[each["recipe"]["ipc"]]) for name, each in about.pop("sessions").items()
    }
    return found, about


if __name__ == "__main__":
    print(record_all(*sys.argv[1:2]))
