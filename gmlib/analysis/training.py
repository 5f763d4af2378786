"""Measurements while a network is trained on S: the paths of Figure 2, and the gradients of S and T along the way."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from functools import partial

from ..checks import require

require("pandas", "analysis")

import numpy as np
import pandas as pd
import torch
from torch import Tensor
from torch.nn.utils import get_total_norm

from .. import networks
from ..checks import check_number
from ..data import Data, check_data
from ..evaluation import accuracy
from ..maxmin import (
    check_numbers,
    displacement,
    loss_and_gradient,
    loss_and_gradient_on_real,
    prepare,
    walk,
)
from ..runtime import check_deadline, generator, progress_bar, time_limit
from ..sets import SyntheticSet, check_pair, images_of
from ..speed.precision import matmul_precision

QUANTILES = (5, 25, 50, 75, 95)  # percent
MEANS = ("test_accuracy", "train_loss", "real_loss", "real_gradient_norm")


@matmul_precision("float32")
def paths(
    sets: Mapping[str, SyntheticSet | Data],
    data: Data,
    *,
    network: str = "convnet",
    width: int | None = None,
    depth: int | None = None,
    steps: int = 1000,
    every: int = 50,
    lr: float = 0.01,
    seed: int = 0,
    start: int = 0,
    real_batch: int = 256,
    device: torch.device | str | None = None,
    progress: bool = True,
    deadline: float | None = None,
) -> pd.DataFrame:
    """Train on each S and on T from one theta0, and project all paths on the plane through theta0 that fits best.

    Every path takes ``steps`` steps of full-batch gradient descent. theta is recorded at step 0 and after every
    ``every`` steps, and kept in memory. A path ends early if its gradient is no longer finite.

    Parameters
    ----------
    sets : dict
        {name of the path: S}. The name "T" is taken.
    data : Data
        T is ``real_batch`` of its training images of any class. Its path is called "T".
    network : str
        A name that `networks.build` knows.
    width, depth : int, optional
        None takes the width and depth that the first set was condensed with, or 128 and 3. Coresets and noise have
        none: give both.
    steps, every : int
    lr : float
        Learning rate.
    seed : int
        Decides theta0 and T. The same seed gives the same bits on one machine's CPU.
    start : int
        theta0 is that of start number ``start`` of `reach` for the same seed.
    real_batch : int
        Number of real images, drawn once.
    device : torch.device or str, optional
        None takes CUDA if there is a GPU, else the CPU.
    progress : bool
        Show a progress bar.
    deadline : float, optional
        In the unit of ``time.monotonic()``. It is checked at every step.

    Returns
    -------
    DataFrame
        One row per path and recorded step, T's path last, with these columns:

        - path, start, step
        - x, y: position in the plane, theta0 at the origin, as `plane` returns it
        - distance: ``||theta - theta0||_2`` over all parameters, in the unit of x and y
        - loss, gradient_norm: on the path's own set
        - loss_T, gradient_norm_T: on T
        - test_accuracy: in percent
        - explained: share of all squared distances that lies in the plane, 0 to 1, equal in all rows

        Losses are in nats.

    Raises
    ------
    ValueError
        If there are no sets, a set is named "T" or does not fit ``data``, or a number is out of range. This is
        checked before any work.
    OutOfTime
        At the deadline.

    Source
    ------
    Figure 2, Section 3.2. A path is trapped where Eq. 14 holds on its own set.
    """
    if not isinstance(sets, Mapping) or not sets or "T" in sets:
        raise ValueError('sets must name one set or more, as {"M": S}, but not "T", which is the path on real images')
    check_numbers(lr, steps=steps, every=every, real_batch=real_batch)
    check_number("start", start, least=0, whole=True)
    check_deadline(deadline)
    check_data(data)
    if every > steps:
        raise ValueError(f"every={every} is more than steps={steps}: give a smaller every")
    for S in sets.values():
        check_pair(S, data)
    device, first, _, network_at = prepare(next(iter(sets.values())), network, width, depth, seed, device)
    images = {name: images_of(S) for name, S in sets.items()}
    images["T"] = data.sample_any(real_batch, generator(seed, "paths real"))
    images = {name: (x.to(device, first.dtype), y.to(device)) for name, (x, y) in images.items()}
    x_test, y_test = data.test_images.to(device, first.dtype), data.test_labels.to(device)

    rows = []
    points = []
    with progress_bar("paths", len(images), "path", progress) as bar, time_limit(deadline):
        for name, (x, y) in images.items():
            f = network_at(start)
            theta = list(f.parameters())
            theta0 = [p.detach().clone() for p in theta]
            for step, loss, gradient in walk(partial(loss_and_gradient, f, x=x, y=y), theta, lr, steps):
                if step % every:
                    continue
                norm = get_total_norm(gradient).item()
                if not math.isfinite(norm):
                    break
                loss_T, gT = loss_and_gradient_on_real(f, theta, *images["T"])
                points.append(displacement(theta, theta0))
                row = {
                    "path": name,
                    "start": start,
                    "step": step,
                    "loss": loss.item(),
                    "gradient_norm": norm,
                    "loss_T": loss_T.item(),
                    "gradient_norm_T": get_total_norm(gT).item(),
                    "test_accuracy": accuracy(f, x_test, y_test),
                }
                rows.append(row)
            bar.update()
    xy, distances, explained = plane(points)
    table = pd.DataFrame(rows).assign(explained=explained)
    for i, (name, values) in enumerate({"x": xy[:, 0], "y": xy[:, 1], "distance": distances}.items()):
        table.insert(3 + i, name, values)
    return table


def plane(points: Sequence[Sequence[Tensor]]) -> tuple[np.ndarray, np.ndarray, float]:
    """Fit a plane through the origin to points: it keeps as much of their squared length as possible.

    Its axes are the first two principal directions of the points, not centred. The farthest point along each axis
    is on the positive side.

    Parameters
    ----------
    points : sequence
        n >= 2 points, each a list of tensors of the same shapes.

    Returns
    -------
    xy : ndarray
        (n, 2) coordinates in the plane.
    lengths : ndarray
        (n,) lengths in the whole space.
    explained : float
        Share of the squared lengths that lies in the plane, 0 to 1; NaN if all points are at the origin.
    """
    # There are few points with many coordinates, so the directions come from the n x n matrix of their products.
    gram = torch.zeros(len(points), len(points), dtype=torch.float64)
    for same in zip(*points, strict=True):
        A = torch.stack(same).flatten(1).cpu().double()
        gram += A @ A.T
    squares, directions = torch.linalg.eigh(gram)  # ascending: points = directions * sqrt(squares) in principal axes
    squares = squares[-2:].flip(0).clamp(min=0)
    directions = directions[:, -2:].flip(1)
    xy = directions * squares.sqrt()
    xy = torch.where(xy.amax(0) < -xy.amin(0), -xy, xy)
    lengths = gram.diagonal().sqrt()
    return xy.numpy(), lengths.numpy(), (squares.sum() / gram.trace()).item()


@matmul_precision("float32")
def alignment(
    S: SyntheticSet | Data,
    data: Data,
    *,
    network: str = "convnet",
    width: int | None = None,
    depth: int | None = None,
    steps: int = 1000,
    every: int = 50,
    lr: float = 0.01,
    seed: int = 0,
    n_starts: int = 1,
    real_batch: int = 256,
    device: torch.device | str | None = None,
    progress: bool = True,
    deadline: float | None = None,
) -> pd.DataFrame:
    """Compare the gradients of S and of T layer by layer, along training on S by full-batch gradient descent.

    Parameters
    ----------
    S : SyntheticSet or Data
        A Data means all its training images.
    data : Data
        T is ``real_batch`` of its training images of any class.
    network : str
        A name that `networks.build` knows.
    width, depth : int, optional
        None takes the width and depth that S was condensed with, or 128 and 3.
    steps, every : int
        Compare at steps 0, ``every``, 2 * ``every``, ... up to ``steps``.
    lr : float
        Learning rate.
    seed : int
        Decides T and the starts, which are those of `reach` for the same seed.
    n_starts : int
        Number of random theta0.
    real_batch : int
        Number of real images, drawn once.
    device : torch.device or str, optional
        None takes CUDA if there is a GPU, else the CPU.
    progress : bool
        Show a progress bar.
    deadline : float, optional
        In the unit of ``time.monotonic()``. It is checked at every step.

    Returns
    -------
    DataFrame
        One row per start, step and matched layer, with these columns:

        - start, step
        - layer: the name of the weight
        - cosine: of the layer's whole gradients; NaN if one is zero
        - ratio: norm_S / norm_T
        - norm_S, norm_T
        - loss_S, loss_T: in nats, of the whole network

    Raises
    ------
    ValueError
        If S does not fit ``data`` or a number is out of range. This is checked before any work.
    OutOfTime
        At the deadline.

    Source
    ------
    Section 3.2: angles do not help where the gradient of L(S, theta) has become small.
    """
    check_numbers(lr, steps=steps, every=every, n_starts=n_starts, real_batch=real_batch)
    check_deadline(deadline)
    check_data(data)
    check_pair(S, data)
    device, x, y, network_at = prepare(S, network, width, depth, seed, device)
    x_T, y_T = data.sample_any(real_batch, generator(seed, "alignment real"))
    x_T, y_T = x_T.to(device, x.dtype), y_T.to(device)

    rows = []
    with progress_bar("alignment", n_starts, "start", progress) as bar, time_limit(deadline):
        for start in range(n_starts):
            f = network_at(start)
            names, theta = zip(*f.named_parameters(), strict=True)
            matched = {name for name, _ in networks.matched(f)}
            for step, loss_S, gS in walk(partial(loss_and_gradient, f, x=x, y=y), theta, lr, steps):
                if step % every:
                    continue
                loss_T, gT = loss_and_gradient_on_real(f, theta, x_T, y_T)
                for layer, A, B in zip(names, gS, gT, strict=True):
                    if layer not in matched:
                        continue
                    norm_S, norm_T = A.norm(), B.norm()
                    row = {
                        "start": start,
                        "step": step,
                        "layer": layer,
                        "cosine": ((A / norm_S) * (B / norm_T)).sum().item(),
                        "ratio": (norm_S / norm_T).item(),
                        "norm_S": norm_S.item(),
                        "norm_T": norm_T.item(),
                        "loss_S": loss_S.item(),
                        "loss_T": loss_T.item(),
                    }
                    rows.append(row)
            bar.update()
    return pd.DataFrame(rows)


def by_eps(table: pd.DataFrame, by: Sequence[str] = ()) -> pd.DataFrame:
    """Summarise the rows of `reach` over starts.

    Parameters
    ----------
    table : DataFrame
        What `reach` returns, or several such tables with further columns.
    by : sequence of str
        Further columns that identify a set, for example "method" and "set".

    Returns
    -------
    DataFrame
        One row per threshold, the largest first, with these columns:

        - those in ``by``, and eps
        - starts: number of starts
        - reached: share of the starts that reached eps, 0 to 1. Look at it before you compare sets.
        - min_distance: the inner minimum of Eq. 13 over these starts
        - distance_q05, ..., distance_q95: quantiles
        - median_steps
        - test_accuracy, train_loss, real_loss, real_gradient_norm: means

        All columns after "reached" are over the starts that reached eps, and means on real data over those that used
        them. They are NaN if none did.
    """
    keys = [*by, "eps"]
    measured = table[["distance", "steps", *MEANS]].where(
        table["reached"]
    )  # NaN in other rows, which pandas leaves out
    groups = measured.groupby([table[key] for key in keys])
    reached = table.groupby(keys)["reached"]
    columns = {"starts": reached.size(), "reached": reached.mean(), "min_distance": groups["distance"].min()}
    columns |= {f"distance_q{q:02d}": groups["distance"].quantile(q / 100) for q in QUANTILES}
    columns |= {"median_steps": groups["steps"].median()} | {name: groups[name].mean() for name in MEANS}
    ascending = [key != "eps" for key in keys]
    return pd.DataFrame(columns).reset_index().sort_values(keys, ascending=ascending, ignore_index=True)
